"""`reasoning_accuracy`: how many problems of an lm-eval task the steered model solves, and how many the model itself.

Both answer the same problems at the same temperature with the same random numbers (sampling is seeded per problem and
sample, by what is asked). With c_i of n samples of problem i right, c⁰_i those of the model without steering:

=====================  ==============================================================  ======
number                 formula, over P problems                                        better
=====================  ==============================================================  ======
`accuracy`             Σ c_i / (P n): accuracy averaged over samples (avg@n)           higher
`base`                 Σ c⁰_i / (P n)                                                  (the model's)
`gain`                 Σ (c_i − c⁰_i) / (P n)                                          higher
`gain_p`               two-sided p-value of the gain: paired exchange test over        lower
                       problems (harness/latentbench/statistics/paired.py)
`pass_at_n`            share of problems with c_i ≥ 1                                  higher
`base_pass_at_n`       share of problems with c⁰_i ≥ 1                                 (the model's)
`pass_at_k`            mean of 1 − C(n−c_i, k) / C(n, k), k = 2, 4, … below n          higher
`base_pass_at_k`       the same of c⁰_i                                                (the model's)
`format_failure`       share of answers in which the task finds nothing to score       lower
`base_format_failure`  the same of the model without steering                          (the model's)
`mean_length`          generated tokens per answer, the end token not counted          -
`base_mean_length`     the same of the model without steering                          -
`truncated`            share of answers ended by `max_new_tokens`                      lower
=====================  ==============================================================  ======

Whether an answer is right, and what "nothing to score" is, the task says: the metric `math_verify` where it has one,
else `exact_match`, else `acc`, behind its filter `flexible-extract` where it has one, else its first. An answer fails the
format when that filter extracts nothing; where a task does not extract, when it holds neither `\\boxed` nor `$…$` and more
words than the right answer has.

Of a group of tasks, every problem counts alike; with `mean_over: tasks` every task does, whatever its size: each problem of a
task of P_t problems, of T tasks with P problems together, weighs P / (T P_t) in all the sums above, so that `accuracy` is the
mean of the tasks' accuracies. Intervals and tests resample problems, of all tasks together.

A gain over a base that fails the format is often a gain in format: read both. A scale or a checkpoint must be chosen on
other problems than those it is reported on (`pocket_problems_selection`; see `choose_scale` in harness/latentbench/report/frontier.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import truediv
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, SerializerFunctionWrapHandler, model_serializer, model_validator

from latentbench.core.plugins import implementation
from latentbench.core.protocols import ProblemSet, PromptForm
from latentbench.core.spec_model import Json, without_default
from latentbench.metrics.base import Display, Estimator, Role
from latentbench.reasoning.task_suite import TaskOptions, installed_suite, is_path
from latentbench.statistics.arrays import Array
from latentbench.steering.method import makers_of
from latentbench.study.context import Longest
from latentbench.study.study import Study

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.study.context import ExperimentView, StageContext


def ks_of(samples: int) -> tuple[int, ...]:
    """The k of pass@k that are reported besides 1 (the accuracy) and n: powers of two between them."""
    return tuple(2**power for power in range(1, samples.bit_length()) if 2**power < samples)


def pass_at(k: int, samples: int, right: Array) -> Array:
    """[problems] 1 − C(n−c, k) / C(n, k) for c [problems] right answers of n.

    The unbiased estimate of the chance that one of k answers is right (Chen et al. 2021, arXiv 2107.03374, eq. 1).
    """
    import numpy as np
    from scipy.special import comb

    return np.asarray(1 - comb(samples - right, k) / comb(samples, k), dtype=np.float64)


METRIC = "reasoning_accuracy"


class ReasoningAccuracy(Study):
    """Accuracy of the steered model on an lm-eval task, paired with the model without steering."""

    needs: ClassVar[frozenset[str]] = frozenset({"steering"})
    implementation: ClassVar[str] = "latentbench.reasoning.evaluation:evaluate"
    displays: ClassVar[Mapping[str, Display]] = {
        "reasoning_accuracy.accuracy": Display(
            "Accuracy", 90, movers=True, against="capability_cost.kl", by_scale=True, least=0.0
        ),
        "reasoning_accuracy.gain": Display(
            "Accuracy gain",
            100,
            role=Role("gain", "accuracy", ("reasoning_accuracy.base", "reasoning_accuracy.accuracy")),
        ),
    }

    gain: ClassVar[str | None] = f"{METRIC}.gain"

    metric: Literal["reasoning_accuracy"] = "reasoning_accuracy"
    task: Annotated[str, Field(min_length=1, max_length=300)]
    """A task or group of lm-eval (`gsm8k`, `hendrycks_math500`, `aime24`), `arithmetic_sum` and its like for small
    models, `pocket_problems`, or a task file in lm-eval's format (`tasks/mine.yaml`, relative to the project; it may name data
    files of the project, but no code)."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=40)] | None = None
    """Column group in the table; default: the task's name."""
    samples: Annotated[int, Field(ge=1, le=1024)] = 1
    """Answers per problem."""
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    """0 decodes greedily; otherwise answers are drawn from the full distribution (no top-p, no top-k)."""
    limit: PositiveInt | None = None
    """Problems, from the first on (of each task of a group); default all."""
    mean_over: Literal["problems", "tasks"] = "problems"
    """What of a group of tasks counts alike: every problem, or every task, as in the "Average" that papers print of
    benchmarks of different sizes (`plain_math_six`)."""
    max_new_tokens: PositiveInt | None = None
    """Longest answer; default the task's own."""
    num_fewshot: Annotated[int, Field(ge=0, le=64)] | None = None
    """Worked examples in the prompt; default the task's own."""
    chat_template: bool = False
    """Whether questions are put in the model's chat template."""
    system: str | None = None
    """System instruction."""
    different_prompts: bool = False
    """Whether the task may put its questions otherwise than the problems that the steering is made from (`plain_gsm8k`,
    `plain_math500`, `plain_aime24` and the other plain tasks put them alone). Otherwise that is refused: part of a gain would be
    the difference of the prompts."""
    scored_by: str | None = None
    """The task's metric that says whether an answer is right; default see the metric's description."""
    filter: str | None = None
    """The task's filter that extracts the answer; default see the metric's description."""
    batch: PositiveInt = 64
    """Answers generated together; it changes rounding only."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the random numbers of sampling, the same for every steering vector."""
    examples: Annotated[int, Field(ge=0, le=200)] = 12
    """Problems whose answers the report shows."""
    commits: Annotated[dict[str, str], Field(default_factory=dict)]
    """Commit by hub dataset of the task; `run` fills in those that stand behind `main` when it starts."""

    handling: ClassVar[frozenset[str]] = frozenset({"commits", "different_prompts"})
    # Commits are in the task's identity; that prompts differ is said to validation, and is in the prompts themselves.

    def pinned(self, roots: Roots) -> Self:
        from latentbench.core.hub import resolved_commit

        hubs = [hub for hub in installed_suite().open_datasets(self.task, roots) if hub not in self.commits]
        now = {hub: resolved_commit("dataset", hub, None) for hub in hubs}
        return self.model_copy(update={"commits": self.commits | now}) if now else self

    @model_validator(mode="after")
    def _sampled(self) -> Any:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                "several samples at temperature 0 are all the same; set `temperature` above 0, or 1 sample"
            )
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, made: SerializerFunctionWrapHandler) -> dict[str, Json]:
        """These are newer than records, which rows are compared by."""
        return without_default(type(self), ("different_prompts", "mean_over"), made(self))

    @property
    def domain(self) -> str:
        """The task's column group."""
        if self.name:
            return self.name
        stem = (
            self.task.rsplit("/", 1)[-1].rsplit(".yaml", 1)[0].rsplit(".yml", 1)[0] if is_path(self.task) else self.task
        )
        return (
            "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in stem).lstrip("_-")[:40] or "task"
        )

    @property
    def label(self) -> str:
        """One spec may ask for several tasks."""
        return f"{self.metric}/{self.domain}"

    def domains(self, experiment: ExperimentView) -> tuple[str, ...]:
        return ()

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        task = installed_suite().identity(self.task, roots, self.commits)
        return task | {"pass_at": list(ks_of(self.samples))} if ks_of(self.samples) else task

    def comparability(self, experiment: ExperimentView, roots: Roots) -> Mapping[str, Mapping[str, Json]]:
        facts = {
            "model": experiment.model.identity(roots),
            "task": self.identity(experiment, roots),
            **self.settings(),
        }
        return {self.domain: facts}

    def settings(self) -> dict[str, Json]:
        """What must agree, besides the model and the task, for two answers to be comparable."""
        left_out = {"metric", "task", "name", "batch", "examples", *self.handling}
        return self.model_dump(mode="json", exclude=left_out)

    @property
    def options(self) -> TaskOptions:
        """What the spec changes about the task."""
        fields = ("limit", "num_fewshot", "chat_template", "system", "temperature", "max_new_tokens", "filter")
        return TaskOptions(metric=self.scored_by, **{name: getattr(self, name) for name in fields})

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        self.identity(experiment, roots)  # raises for an unknown task or a refused file
        return tuple(self._found_wrong(experiment, roots))

    def _found_wrong(self, experiment: ExperimentView, roots: Roots) -> Iterator[str]:
        if self.domain in experiment.dataset.eval:
            yield f"an evaluation domain is called {self.domain!r} already; set another `name:` for this metric"
        made_from = (getattr(part, "problems", None) for part in makers_of(experiment.steering))
        trained_on = [problems for problems in made_from if isinstance(problems, ProblemSet)]
        suite = installed_suite()
        if any(suite.tests_on(self.task, problems.identity(roots), roots) for problems in trained_on):
            yield f"the steering is made from the very problems that {self.task} tests; take another split for it"
        if not self.different_prompts:
            yield from self._unlike({problems.form for problems in trained_on}, roots)

    def _unlike(self, made_from: set[PromptForm | None], roots: Roots) -> Iterator[str]:
        """What is wrong where the task does not put its questions as the problems do that the steering is made from."""
        asked = installed_suite().prompt_form(self.task, self.options, roots) if made_from else None
        say = "or say `different_prompts: true`"
        if made_from and asked is None:
            yield (
                f"how {self.task} puts its questions cannot be told from its file (worked examples, more than one field or "
                f"text made by code), so neither whether the steering is made from such prompts; take a plain task, {say}"
            )
        elif None in made_from:
            yield f"how the problems that the steering is made from put their questions cannot be told; {say}"
        elif unlike := made_from - {asked}:
            made = " and ".join(sorted(map(str, unlike)))
            yield (
                f"the steering is made from prompts that read {made}, and {self.task} asks {asked}: take a plain task, give "
                f"both the same `chat_template`, `system` and words, {say}"
            )

    def asked_digests(self, context: StageContext) -> frozenset[str]:
        found: frozenset[str] = implementation("latentbench.reasoning.evaluation:asked_problems")(self, context)
        return found

    def longest_answer(self, roots: Roots) -> Longest | None:
        longest = self.max_new_tokens or installed_suite().longest_answer(self.task, roots)
        return Longest(longest, "max_new_tokens") if longest else None

    def numbers(self) -> tuple[Estimator, ...]:
        params = {"samples": self.samples, "temperature": self.temperature}
        return (
            *(_estimator(row, params) for row in _NUMBERS),
            *(_pass_at(k, side, params) for k in ks_of(self.samples) for side in ("", "base_")),
        )


def _gain(steered: Array, base: Array, answers: Array) -> Array:
    return (steered - base) / answers


def _pass_at(k: int, side: str, params: Mapping[str, Any]) -> Estimator:
    row = (f"{side}pass_at_k", "fraction", None if side else True, (f"{side}solved_in[{k}]", "problems"))
    return _estimator(row, {**params, "k": k})


_NUMBERS: tuple[tuple[str, str, bool | None, tuple[str, ...]], ...] = (
    ("accuracy", "fraction", True, ("correct", "answers")),
    ("base", "fraction", None, ("base_correct", "answers")),
    ("gain", "fraction", True, ("correct", "base_correct", "answers")),
    ("pass_at_n", "fraction", True, ("solved", "problems")),
    ("base_pass_at_n", "fraction", None, ("base_solved", "problems")),
    ("format_failure", "fraction", False, ("unformatted", "answers")),
    ("base_format_failure", "fraction", None, ("base_unformatted", "answers")),
    ("mean_length", "tokens", None, ("tokens", "answers")),
    ("base_mean_length", "tokens", None, ("base_tokens", "answers")),
    ("truncated", "fraction", False, ("truncated", "answers")),
)


def _estimator(row: tuple[str, str, bool | None, tuple[str, ...]], params: Mapping[str, Any]) -> Estimator:
    name, unit, better, statistics = row
    inputs = tuple(f"{METRIC}.{statistic}" for statistic in statistics)
    formula = _gain if name == "gain" else truediv
    return Estimator(f"{METRIC}.{name}", 1, unit, better, inputs, formula, units="problems", params=params)
