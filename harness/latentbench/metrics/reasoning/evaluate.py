"""One evaluation: the steered model's answers, the unsteered model's (made once for all cells), and their comparison."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from latentbench.errors import InvalidInput
from latentbench.leaderboard.statistics import exchange_test
from latentbench.metrics.base import Array
from latentbench.metrics.reasoning.outcomes import Outcomes, outcomes
from latentbench.metrics.study import Findings
from latentbench.metrics.units import Units, units_of
from latentbench.record import MetricValue
from latentbench.section import Json
from latentbench.steering.generation import left_out
from latentbench.steering.intervention import Intervention
from latentbench_adapters.lm_eval.catalogue import lm_eval_version
from latentbench_adapters.lm_eval.model import SteeredLM
from latentbench_adapters.lm_eval.responses import Responses
from latentbench_adapters.lm_eval.tasks import Options, Problems, load, task_identity

if TYPE_CHECKING:
    from latentbench.lab import Content, Lab
    from latentbench.metrics.reasoning.study import ReasoningAccuracy

SHARED = "reasoning_base"


def evaluate(study: ReasoningAccuracy, lab: Lab) -> Findings:
    """Findings of one cell. Raises InvalidInput for a subject that is no intervention, NotAvailable for the task."""
    intervention = lab.subject()
    if not isinstance(intervention, Intervention):
        raise InvalidInput("reasoning_accuracy needs something to steer with: a `steering:` section")
    lm = _steered(study, lab, intervention)
    tasks = load(study.task, _options(study), lab.roots, lab.cache / "datasets", lm.apply_chat_template)
    if study.samples > 1 and not all(problems.generative for problems in tasks):
        raise InvalidInput(f"{study.task} has choices to compare and none to write: `samples` must be 1")
    base = Outcomes.from_content(lab.shared(SHARED, _payload(study, lab, tasks), lambda: _base(study, lab, tasks)))
    steered, units = outcomes(lm, tasks, study.samples), _units(tasks)
    statistics = _statistics(study, steered, base)
    return Findings(
        statistics={study.domain: statistics},
        values=(_gain_p(study, units, statistics),),
        details=_details(study, lm, tasks, steered, base),
        tensors={f"{name}_correct": torch.from_numpy(o.correct) for name, o in (("base", base), ("steered", steered))},
        warnings=tuple(_warnings(study, lm, steered)),
        units={study.domain: units},
    )


def _steered(study: ReasoningAccuracy, lab: Lab, intervention: Intervention | None) -> SteeredLM:
    return SteeredLM(
        lab.model(),
        intervention,
        identity=lab.experiment.model.identity(lab.roots),
        responses=Responses(lab.cache / "responses.sqlite3"),
        batch=study.batch,
        seed=study.seed,
        progress=lab.progress,
    )


def _options(study: ReasoningAccuracy) -> Options:
    fields = ("limit", "num_fewshot", "chat_template", "system", "temperature", "max_new_tokens", "filter")
    return Options(metric=study.scored_by, **{name: getattr(study, name) for name in fields})


def _payload(study: ReasoningAccuracy, lab: Lab, tasks: list[Problems]) -> Json:
    """Everything that the base model's answers and their scores depend on, besides the model."""
    documents = [problems.documents_digest for problems in tasks]
    return {
        "version": study.version,
        "task": task_identity(study.task, lab.roots, study.commits),
        "documents": documents,
        **study.settings(),
    }


def _base(study: ReasoningAccuracy, lab: Lab, tasks: list[Problems]) -> Content:
    return outcomes(_steered(study, lab, None), tasks, study.samples).to_content()


def _statistics(study: ReasoningAccuracy, steered: Outcomes, base: Outcomes) -> dict[str, np.ndarray]:
    problems = np.ones(len(steered.correct))
    named = (
        steered.statistics() | base.statistics("base_") | {"problems": problems, "answers": study.samples * problems}
    )
    return {f"{study.metric}.{name}": values for name, values in named.items()}


def _units(tasks: list[Problems]) -> Units:
    """Which problems are one: those that ask the same and have the same right answer, whatever task they stand in."""
    return units_of(problems.asked(group) for problems in tasks for group in problems.groups)


def _gain_p(study: ReasoningAccuracy, units: Units, statistics: Mapping[str, Array]) -> MetricValue:
    """The p-value of the gain: every problem's two results are exchanged."""
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


def _warnings(study: ReasoningAccuracy, lm: SteeredLM, steered: Outcomes) -> Iterator[str]:
    if settings := left_out(lm.language_model):
        said = ", ".join(f"{name} {value}" for name, value in settings.items())
        yield f"{study.domain}: answers are plain; the model's own generation config would set {said}"
    if steered.shortened:
        yield f"{study.domain}: {steered.shortened} questions did not fit into the context and were cut on the left"


def _details(
    study: ReasoningAccuracy, lm: SteeredLM, tasks: list[Problems], steered: Outcomes, base: Outcomes
) -> dict[str, Json]:
    return {
        "task": study.task,
        "lm_eval": {"version": lm_eval_version(), "base": dict(base.lm_eval), "steered": dict(steered.lm_eval)},
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


def _example(number: int, tasks: list[Problems], steered: Outcomes, base: Outcomes) -> Json:
    groups = [(problems, group) for problems in tasks for group in problems.groups]
    problems, group = groups[number]
    sides = {
        name: {"text": side.texts[number][0], "correct": float(side.correct[number, 0])}
        for name, side in (("base", base), ("steered", steered))
    }
    return {"prompt": str(group[0].args[0]), "answer": str(problems.gold(group)), **sides}
