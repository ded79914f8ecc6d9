"""What `reasoning_accuracy` does: the steered model's answers to a task, the unsteered model's, and their comparison.

The unsteered model answers once for all cells that ask it the same. What answers were worth is kept problem by problem and
sample by sample, with the texts (`Outcomes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from latentbench.core.errors import InvalidInput
from latentbench.core.hashing import digest
from latentbench.core.spec_model import Json
from latentbench.interventions.generation import ignored_generation_settings
from latentbench.interventions.intervention import Intervention
from latentbench.interventions.writing_ways import generate_way
from latentbench.metrics.value import MetricValue
from latentbench.reasoning.accuracy import ks_of, pass_at
from latentbench.reasoning.answer_cache import AnswerCache, TaskAnswer
from latentbench.reasoning.task_suite import (
    AnswerScore,
    TaskModel,
    TaskProblems,
    TaskSuite,
    installed_suite,
)
from latentbench.statistics.arrays import Array
from latentbench.statistics.paired import exchange_test
from latentbench.statistics.units import Units, units_of
from latentbench.study.context import Content
from latentbench.study.study import Findings

if TYPE_CHECKING:
    from latentbench.reasoning.accuracy import ReasoningAccuracy
    from latentbench.study.context import StageContext

T = TypeVar("T")
ScoredAnswer = tuple[TaskAnswer, AnswerScore]
_FIELDS = ("correct", "unformatted", "tokens", "truncated")


@dataclass(frozen=True)
class Outcomes:
    """All answers to all problems, [problems, samples] each."""

    correct: Array
    """What an answer scored, usually 0 or 1."""
    unformatted: Array
    """1 where no answer could be found in it."""
    tokens: Array
    """Generated tokens; NaN for tasks that generate nothing."""
    truncated: Array
    """1 where the limit on new tokens ended it; NaN for tasks that generate nothing."""
    texts: Sequence[Sequence[str]]
    """[problems][samples]."""
    lm_eval: Mapping[str, float]
    """Mean over problems of the first sample, by `task/metric,filter`: what lm-eval itself reports."""
    documents: str
    """Digest of what was asked."""
    shortened: int
    """Questions that did not fit into the context and were cut on the left."""

    def statistics(self, prefix: str = "") -> dict[str, Array]:
        """[problems] sums over samples of everything, by name."""
        solved = (self.correct >= 1).sum(1)
        found = {f"{prefix}{name}": getattr(self, name).sum(1) for name in _FIELDS}
        found[f"{prefix}solved"] = np.asarray(solved > 0, dtype=np.float64)
        samples = self.correct.shape[1]
        return found | {f"{prefix}solved_in[{k}]": pass_at(k, samples, solved) for k in ks_of(samples)}

    def to_content(self) -> Content:
        """The outcomes as the store keeps them."""
        tensors = {name: torch.from_numpy(np.ascontiguousarray(getattr(self, name))) for name in _FIELDS}
        texts: Json = [list(samples) for samples in self.texts]
        about = {"documents": self.documents, "shortened": self.shortened, "lm_eval": dict(self.lm_eval)}
        return Content(tensors, {"texts": texts, **about})

    @staticmethod
    def from_content(content: Content) -> Outcomes:
        """The inverse of `to_content`."""
        arrays: dict[str, Any] = {name: content.tensors[name].double().numpy() for name in _FIELDS}
        return Outcomes(**arrays, **content.meta)


def outcomes(lm: TaskModel, tasks: Sequence[TaskProblems], samples: int) -> Outcomes:
    """`samples` answers of `lm` to every problem of all tasks, scored."""
    parts = [_scored(lm, problems, samples) for problems in tasks]
    rows = [row for part in parts for row in part]
    written = all(problems.generative for problems in tasks)
    return Outcomes(
        correct=_array(rows, lambda answer, score: score.correct),
        unformatted=_array(rows, lambda answer, score: not score.formatted),
        tokens=_array(rows, lambda answer, score: answer.tokens if written else np.nan),
        truncated=_array(rows, lambda answer, score: answer.truncated if written else np.nan),
        texts=[[answer.text for answer, _ in row] for row in rows],
        lm_eval={
            key: value for problems, part in zip(tasks, parts, strict=True) for key, value in _means(problems, part)
        },
        documents="+".join(problems.documents_digest for problems in tasks),
        shortened=lm.shortened,
    )


def _scored(lm: TaskModel, problems: TaskProblems, samples: int) -> list[list[ScoredAnswer]]:
    """Answers and what they were worth, [problems][samples]."""
    # The samples of a request stand together, as `_by_sample` reads them; the n-th of equal requests gets sample n.
    requests = [instance for group in problems.groups for instance in group for _ in range(samples)]
    if problems.generative:
        answers = lm.answers(requests)
        responses: list[Any] = [answer.text for answer in answers]
    else:
        responses, answers = lm.loglikelihood(requests), [TaskAnswer("", 0, False)] * len(requests)
    worth = [problems.scores(part) for part in _by_sample(problems, responses, samples)]
    given = [[group[0] for group in part] for part in _by_sample(problems, answers, samples)]
    pairs = [list(zip(*both, strict=True)) for both in zip(given, worth, strict=True)]  # [samples][problems]
    return [list(row) for row in zip(*pairs, strict=True)]


def _by_sample(problems: TaskProblems, flat: Sequence[T], samples: int) -> list[list[list[T]]]:
    """`flat` holds `samples` of each request of each problem; returns [samples][problems][requests]."""
    stream = iter(flat)
    nested = [[[next(stream) for _ in range(samples)] for _ in group] for group in problems.groups]
    return [[[request[sample] for request in group] for group in nested] for sample in range(samples)]


def _array(rows: Sequence[Sequence[ScoredAnswer]], of: Callable[[TaskAnswer, AnswerScore], float]) -> Array:
    return np.array([[of(answer, score) for answer, score in row] for row in rows], dtype=np.float64)


def _means(problems: TaskProblems, rows: Sequence[Sequence[ScoredAnswer]]) -> Iterator[tuple[str, float]]:
    firsts = [row[0][1].every for row in rows]
    for key in firsts[0]:
        yield f"{problems.name}/{key}", float(np.mean([every[key] for every in firsts]))


SHARED = "reasoning_base"
"""Kind of the unsteered model's outcomes, which all cells with the same task, settings and model share."""


def evaluate(study: ReasoningAccuracy, context: StageContext) -> Findings:
    """Findings of one cell.

    Raises InvalidInput for a subject that is no intervention and a model that cannot write, NotAvailable where the task
    cannot be loaded or scored.
    """
    intervention = context.subject()
    if not isinstance(intervention, Intervention):
        raise InvalidInput("reasoning_accuracy needs something to steer with: a `steering:` section")
    suite = installed_suite()
    lm = _steered(suite, study, context, intervention)
    tasks = suite.load(study.task, study.options, context.roots, context.cache / "datasets", lm.apply_chat_template)
    if study.samples > 1 and not all(problems.generative for problems in tasks):
        raise InvalidInput(f"{study.task} has choices to compare and none to write: `samples` must be 1")
    if any(problems.generative for problems in tasks):
        generate_way(context.model())  # refused now, and not behind the unsteered model's answers
    base = Outcomes.from_content(
        context.shared(SHARED, _payload(suite, study, context, tasks), lambda: _base(suite, study, context, tasks))
    )
    steered, units = outcomes(lm, tasks, study.samples), _units(tasks)
    statistics = _statistics(
        study, steered, base, weights(study.mean_over, [len(problems.groups) for problems in tasks])
    )
    return Findings(
        statistics={study.domain: statistics},
        values=(_gain_p(study, units, statistics),),
        details=_details(suite, study, lm, tasks, steered, base),
        tensors={f"{name}_correct": torch.from_numpy(o.correct) for name, o in (("base", base), ("steered", steered))},
        warnings=tuple(_warnings(study, context, steered)),
        units={study.domain: units},
    )


def asked_problems(study: ReasoningAccuracy, context: StageContext) -> frozenset[str]:
    """Digests of the problems that are asked, by what they ask and their right answers."""
    suite = installed_suite()
    chat = _steered(suite, study, context, None).apply_chat_template
    tasks = suite.load(study.task, study.options, context.roots, context.cache / "datasets", chat)
    return frozenset(digest("problem", list(problems.asked(group))) for problems in tasks for group in problems.groups)


def _steered(
    suite: TaskSuite, study: ReasoningAccuracy, context: StageContext, intervention: Intervention | None
) -> TaskModel:
    return suite.steered(
        context.model(),
        intervention,
        identity=context.experiment.model.identity(context.roots),
        responses=AnswerCache(context.cache / "responses.sqlite3"),
        batch=study.batch,
        seed=study.seed,
        progress=partial(context.progress, part="steered" if intervention else "unsteered"),
    )


def _payload(suite: TaskSuite, study: ReasoningAccuracy, context: StageContext, tasks: Sequence[TaskProblems]) -> Json:
    """Everything that the unsteered model's answers and their scores depend on, besides the model."""
    documents = [problems.documents_digest for problems in tasks]
    return {
        "version": study.version,
        "task": suite.identity(study.task, context.roots, study.commits),
        "documents": documents,
        **study.settings(),
    }


def _base(suite: TaskSuite, study: ReasoningAccuracy, context: StageContext, tasks: Sequence[TaskProblems]) -> Content:
    return outcomes(_steered(suite, study, context, None), tasks, study.samples).to_content()


def weights(mean_over: str, sizes: Sequence[int]) -> Array:
    """[problems] what each problem of tasks with `sizes` problems weighs; they add up to the number of problems."""
    each = [sum(sizes) / (len(sizes) * size) if mean_over == "tasks" else 1.0 for size in sizes]
    return np.repeat(each, sizes)


def _statistics(study: ReasoningAccuracy, steered: Outcomes, base: Outcomes, weight: Array) -> dict[str, np.ndarray]:
    named = steered.statistics() | base.statistics("base_")
    weighted = {name: weight * values for name, values in named.items()}
    weighted |= {"problems": weight, "answers": study.samples * weight}
    return {f"{study.metric}.{name}": values for name, values in weighted.items()}


def _units(tasks: Sequence[TaskProblems]) -> Units:
    """Which problems are one: those that ask the same and have the same right answer, whatever task they stand in."""
    return units_of(problems.asked(group) for problems in tasks for group in problems.groups)


def _gain_p(study: ReasoningAccuracy, units: Units, statistics: Mapping[str, Array]) -> MetricValue:
    """The p-value of the gain: every unit's two results are exchanged.

    Computed here and not by a formula over sums, because the gain is a difference within a row, not between two.
    """
    summed = units.summed(statistics)
    named = ((f"{study.metric}.{side}correct", f"{study.metric}.answers") for side in ("", "base_"))
    ours, theirs = (np.stack([summed[name] for name in names], axis=1) for names in named)
    test = exchange_test(lambda correct, asked: correct / asked, ours, theirs, "problems")
    return MetricValue(
        id=f"{study.metric}.gain_p",
        version=1,
        domain=study.domain,
        value=test.p,
        null_reason=test.reason,
        unit="p-value",
        higher_is_better=None,
        n=len(units),
        repeats=units.repeats,
        params={"samples": study.samples, "temperature": study.temperature},
    )


def _warnings(study: ReasoningAccuracy, context: StageContext, steered: Outcomes) -> Iterator[str]:
    if settings := ignored_generation_settings(context.model()):
        said = ", ".join(f"{name} {value}" for name, value in settings.items())
        yield f"{study.domain}: answers are plain; the model's own generation config would set {said}"
    if steered.shortened:
        yield f"{study.domain}: {steered.shortened} questions did not fit into the context and were cut on the left"


def _details(
    suite: TaskSuite,
    study: ReasoningAccuracy,
    lm: TaskModel,
    tasks: Sequence[TaskProblems],
    steered: Outcomes,
    base: Outcomes,
) -> dict[str, Json]:
    return {
        "task": study.task,
        "lm_eval": {"version": suite.suite_version(), "base": dict(base.lm_eval), "steered": dict(steered.lm_eval)},
        "documents": steered.documents,
        "gained": int((steered.correct.sum(1) > base.correct.sum(1)).sum()),
        "lost": int((steered.correct.sum(1) < base.correct.sum(1)).sum()),
        "receipt": {**vars(lm.receipt), "answers_from_cache": lm.remembered},
        "examples": [_example(number, tasks, steered, base) for number in _shown(study.examples, steered, base)],
    }


def _shown(count: int, steered: Outcomes, base: Outcomes) -> list[int]:
    """Problems to show: in turn one that was gained, lost, and neither, each from the first on."""
    change = np.sign(steered.correct.sum(1) - base.correct.sum(1))
    queues = [np.flatnonzero(change == sign).tolist() for sign in (1, -1, 0)]
    longest = max(map(len, queues))
    turns = [queue[place] for place in range(longest) for queue in queues if place < len(queue)]
    return turns[:count]


def _example(number: int, tasks: Sequence[TaskProblems], steered: Outcomes, base: Outcomes) -> Json:
    groups = [(problems, group) for problems in tasks for group in problems.groups]
    problems, group = groups[number]
    sides = {
        name: {"text": side.texts[number][0], "correct": float(side.correct[number, 0])}
        for name, side in (("base", base), ("steered", steered))
    }
    return {"prompt": str(group[0].args[0]), "answer": str(problems.gold(group)), **sides}
