"""The study from beginning to end: survey, sample, collect, ask, score, and what it hands in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from latentbench.autointerp.collection import Collected, Collector, ExamplePools, decoder_neighbours
from latentbench.autointerp.judging import ChatSession, JudgeVerdict, RequestBudget, rule_verdicts
from latentbench.autointerp.passes import Budget, EvaluationSetup, FiringCounter, FiringCounts
from latentbench.autointerp.questions import build_questions
from latentbench.autointerp.sampling import TEST, TRAIN, Integers, stratified
from latentbench.autointerp.scores import (
    SHOWN,
    AutointerpDetails,
    BudgetDetails,
    Histogram,
    LatentDetail,
    latent_statistics,
    score_of,
)
from latentbench.autointerp.windows import LatentQuestions
from latentbench.core.hashing import seed_of
from latentbench.core.judges import RuleJudge
from latentbench.core.protocols import Judge
from latentbench.study.context import StageContext
from latentbench.study.study import Findings

if TYPE_CHECKING:
    from latentbench.autointerp.metric import Autointerp

_FEW, _MANY_FAILURES = 0.2, 0.05
"""Shares of alive latents that a score speaks for, and of failed requests, from which on readers are warned."""
TOO_FEW = "fires in too few windows to be explained and scored"
"""Why an alive latent is not eligible."""
_FAILED = "requests to the judge failed"
"""Why a latent has no score, without the details."""


@dataclass(frozen=True)
class Sampled:
    """The latents of one budget."""

    budget: Budget
    surveyed: FiringCounts
    eligible: int
    latents: Integers
    neighbours: Integers
    """Further latents to be watched."""
    near: list[list[int]]
    """Of each latent, the columns of its neighbours among `latents` and `neighbours`."""


def measure_autointerp(study: Autointerp, context: StageContext) -> Findings:
    """Runs the study at every budget."""
    details = interpret(study, context)
    # Statistics of one study on one domain have one length, and budgets may have differently many eligible latents.
    rows = max(len(budget.latents) for budget in details.budgets)
    sums = [latent_statistics(budget, rows, study.judge.graded) for budget in details.budgets]
    return Findings(
        statistics={details.domain: {name: values for part in sums for name, values in part.items()}},
        details=details.plain(),
        warnings=tuple(_warnings(details)),
    )


def interpret(study: Autointerp, context: StageContext) -> AutointerpDetails:
    """Everything found out about the SAE at each budget."""
    (domain,) = study.domains(context.experiment)
    setup = EvaluationSetup.of(context, study.protocol, domain)
    sampled = _sampled(setup, study.measured_at())
    collected = _collected(setup, sampled)
    request_budget = RequestBudget(study.max_requests, study.max_cost, study.prices)
    judging = _Judging(setup, study.judge, study.explainer or study.judge, request_budget)
    return AutointerpDetails(
        domain=domain,
        judge=study.judges,
        documents=len(setup.tokens.ids),
        tokens=setup.ordinary_tokens,
        seed=setup.seed,
        budgets=tuple(judging.about(sample, collected[sample.budget]) for sample in sampled),
    )


def _sampled(setup: EvaluationSetup, budgets: Sequence[Budget]) -> list[Sampled]:
    """The first pass."""
    surveys = {budget: FiringCounter(setup.sae.width, setup.sides, setup.protocol.window) for budget in budgets}
    setup.each_batch(0, budgets, lambda budget, batch, codes: surveys[budget].add(batch, codes))
    return [_sample(setup, budget, survey.finished()) for budget, survey in surveys.items()]


def _sample(setup: EvaluationSetup, budget: Budget, surveyed: FiringCounts) -> Sampled:
    protocol = setup.protocol
    eligible = surveyed.eligible(protocol.before_cut(protocol.explain), protocol.before_cut(protocol.test))
    latents = stratified(surveyed.firing, eligible, protocol.latents, seed_of(setup.seed, "latents", budget))
    neighbours: Integers = np.zeros(0, dtype=np.int64)
    near: list[list[int]] = [[] for _ in latents]
    if protocol.hard_negatives == "neighbours":
        neighbours, near = decoder_neighbours(setup.sae, latents)
    return Sampled(budget, surveyed, int(eligible.sum()), latents, neighbours, near)


def _collected(setup: EvaluationSetup, sampled: Sequence[Sampled]) -> dict[Budget, Collected]:
    """The second pass."""
    collectors = {s.budget: Collector(setup, s.latents, s.neighbours, s.surveyed.maximum) for s in sampled}
    setup.each_batch(1, list(collectors), lambda budget, batch, codes: collectors[budget].add(batch, codes))
    return {budget: collector.finished() for budget, collector in collectors.items()}


@dataclass(frozen=True)
class _Judging:
    """A judge, who explains to it, and what they are asked about."""

    setup: EvaluationSetup
    judge: Judge
    explainer: Judge
    request_budget: RequestBudget

    def about(self, sampled: Sampled, collected: Collected) -> BudgetDetails:
        """Explanations and scores of the latents of one budget."""
        pools = ExamplePools(self.setup, collected, sampled.near, seed_of(self.setup.seed, "inactive", sampled.budget))
        built = [self._questions(latent, column, pools) for column, latent in enumerate(sampled.latents.tolist())]
        verdicts = iter(self._verdicts([one for one in built if isinstance(one, LatentQuestions)]))
        answered = [next(verdicts) if isinstance(one, LatentQuestions) else JudgeVerdict() for one in built]
        latents = tuple(
            self._detail(column, sampled, questions, verdict, pools)
            for column, (questions, verdict) in enumerate(zip(built, answered, strict=True))
        )
        alive = int((sampled.surveyed.firing > 0).sum())
        too_few = {TOO_FEW: alive - sampled.eligible} if alive > sampled.eligible else {}
        return BudgetDetails(
            budget=sampled.budget,
            width=self.setup.sae.width,
            alive=alive,
            eligible=sampled.eligible,
            excluded=too_few
            | Counter(_FAILED if latent.failures else latent.excluded for latent in latents if latent.excluded),
            latents=latents,
        )

    def _questions(self, latent: int, column: int, pools: ExamplePools) -> LatentQuestions | str:
        """What is asked about the latent in this column, or the reason why it cannot be scored."""
        train, test = (pools.pool(column, side) for side in (TRAIN, TEST))
        return build_questions(latent, train, test, self.setup.protocol, seed_of(self.setup.seed, "questions", latent))

    def _verdicts(self, questions: Sequence[LatentQuestions]) -> list[JudgeVerdict]:
        context = self.setup.context
        if isinstance(self.judge, RuleJudge):
            return rule_verdicts(self.judge, questions, context.progress)
        chat = ChatSession(
            self.judge, self.explainer, context.roots, context.cache, self.request_budget, context.progress
        )
        return chat.verdicts(questions)

    def _detail(
        self,
        column: int,
        sampled: Sampled,
        questions: LatentQuestions | str,
        verdict: JudgeVerdict,
        pools: ExamplePools,
    ) -> LatentDetail:
        latent, probabilities = int(sampled.latents[column]), self.judge.graded
        excluded = questions if isinstance(questions, str) else verdict.excluded(questions)
        asked = questions if isinstance(questions, LatentQuestions) and excluded is None else None
        maximum = float(sampled.surveyed.maximum[latent])
        return LatentDetail(
            latent=latent,
            density=float(sampled.surveyed.firing[latent] / self.setup.ordinary_tokens),
            max_activation=maximum,
            explanation=verdict.explanation,
            detection=score_of(asked.detection, verdict.detection, probabilities) if asked else None,
            fuzzing=score_of(asked.fuzzing, verdict.fuzzing, probabilities) if asked else None,
            excluded=excluded,
            requests=verdict.requests,
            failures=verdict.failures,
            hard_negatives=questions.hard if isinstance(questions, LatentQuestions) else 0,
            examples=pools.shown(column, SHOWN),
            histogram=Histogram(maximum=maximum, counts=pools.histogram(column)),
        )


def _warnings(details: AutointerpDetails) -> Iterator[str]:
    for budget in details.budgets:
        where = "autointerp" if budget.budget is None else f"autointerp at {budget.budget} active latents"
        scored = sum(latent.score is not None for latent in budget.latents)
        coverage = _share(budget.eligible, budget.alive) * _share(scored, len(budget.latents))
        if coverage < _FEW:
            yield (
                f"{where}: the score speaks for {coverage:.0%} of the alive latents only "
                f"({_reasons(budget) or 'no latent is alive'}); more documents help"
            )
        failures = sum(latent.failures for latent in budget.latents)
        requests = sum(latent.requests for latent in budget.latents)
        if _share(failures, requests) > _MANY_FAILURES:
            yield f"{where}: {failures} of {requests} requests to {details.judge} failed or could not be read"


def _reasons(budget: BudgetDetails) -> str:
    return "; ".join(f"{count}: {reason}" for reason, count in budget.excluded.items())


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
