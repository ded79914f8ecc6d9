"""The study from beginning to end: survey, sample, collect, ask, score, and what it hands in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from latentbench.autointerp.collection import Collected, Collector, ExamplePools, decoder_neighbours
from latentbench.autointerp.definition import ScoringProtocol
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


def interpret(
    lab: StageContext,
    judge: Judge,
    protocol: ScoringProtocol,
    domain: str,
    ledger: RequestBudget,
    budgets: Sequence[Budget],
) -> AutointerpDetails:
    """Everything found out about the SAE at each budget."""
    ground = EvaluationSetup.of(lab, protocol, domain)
    sampled = _sampled(ground, budgets)
    collected = _collected(ground, sampled)
    interview = _Judging(ground, judge, ledger)
    return AutointerpDetails(
        domain=domain,
        judge=judge.label,
        documents=len(ground.tokens.ids),
        tokens=ground.ordinary_tokens,
        seed=ground.seed,
        budgets=tuple(interview.about(sample, collected[sample.budget]) for sample in sampled),
    )


def _sampled(ground: EvaluationSetup, budgets: Sequence[Budget]) -> list[Sampled]:
    """The first pass."""
    surveys = {budget: FiringCounter(ground.sae.width, ground.sides, ground.protocol.window) for budget in budgets}
    ground.each_batch(0, budgets, lambda budget, batch, codes: surveys[budget].add(batch, codes))
    return [_sample(ground, budget, survey.finished()) for budget, survey in surveys.items()]


def _sample(ground: EvaluationSetup, budget: Budget, surveyed: FiringCounts) -> Sampled:
    protocol = ground.protocol
    eligible = surveyed.eligible(protocol.explain, protocol.test)
    latents = stratified(surveyed.firing, eligible, protocol.latents, seed_of(ground.seed, "latents", budget))
    neighbours: Integers = np.zeros(0, dtype=np.int64)
    near: list[list[int]] = [[] for _ in latents]
    if protocol.hard_negatives == "neighbours":
        neighbours, near = decoder_neighbours(ground.sae, latents)
    return Sampled(budget, surveyed, int(eligible.sum()), latents, neighbours, near)


def _collected(ground: EvaluationSetup, sampled: Sequence[Sampled]) -> dict[Budget, Collected]:
    """The second pass."""
    collectors = {s.budget: Collector(ground, s.latents, s.neighbours, s.surveyed.maximum) for s in sampled}
    ground.each_batch(1, list(collectors), lambda budget, batch, codes: collectors[budget].add(batch, codes))
    return {budget: collector.finished() for budget, collector in collectors.items()}


@dataclass(frozen=True)
class _Judging:
    """A judge and what it is asked about."""

    ground: EvaluationSetup
    judge: Judge
    ledger: RequestBudget

    def about(self, sampled: Sampled, collected: Collected) -> BudgetDetails:
        """Explanations and scores of the latents of one budget."""
        materials = ExamplePools(
            self.ground, collected, sampled.near, seed_of(self.ground.seed, "inactive", sampled.budget)
        )
        cases = [self._case(latent, column, materials) for column, latent in enumerate(sampled.latents.tolist())]
        verdicts = iter(self._asked([case for case in cases if isinstance(case, LatentQuestions)]))
        answered = [
            next(verdicts) if isinstance(case, LatentQuestions) else JudgeVerdict(problem=case) for case in cases
        ]
        latents = tuple(
            self._detail(column, sampled, case, verdict, materials)
            for column, (case, verdict) in enumerate(zip(cases, answered, strict=True))
        )
        alive = int((sampled.surveyed.firing > 0).sum())
        too_few = {TOO_FEW: alive - sampled.eligible} if alive > sampled.eligible else {}
        return BudgetDetails(
            budget=sampled.budget,
            width=self.ground.sae.width,
            alive=alive,
            eligible=sampled.eligible,
            excluded=too_few
            | Counter(_FAILED if latent.failures else latent.excluded for latent in latents if latent.excluded),
            latents=latents,
        )

    def _case(self, latent: int, column: int, materials: ExamplePools) -> LatentQuestions | str:
        train, test = (materials.material(column, side) for side in (TRAIN, TEST))
        return build_questions(
            latent, train, test, self.ground.protocol, seed_of(self.ground.seed, "questions", latent)
        )

    def _asked(self, cases: Sequence[LatentQuestions]) -> list[JudgeVerdict]:
        lab = self.ground.lab
        if isinstance(self.judge, RuleJudge):
            return rule_verdicts(self.judge, cases, lab.progress)
        return ChatSession(self.judge, lab.roots, lab.cache, self.ledger, lab.progress).verdicts(cases)

    def _detail(
        self, column: int, sampled: Sampled, case: LatentQuestions | str, verdict: JudgeVerdict, materials: ExamplePools
    ) -> LatentDetail:
        latent, probabilities = int(sampled.latents[column]), self.judge.graded
        excluded = case if isinstance(case, str) else verdict.excluded
        asked = case if isinstance(case, LatentQuestions) and excluded is None else None
        maximum = float(sampled.surveyed.maximum[latent])
        return LatentDetail(
            latent=latent,
            density=float(sampled.surveyed.firing[latent] / self.ground.ordinary_tokens),
            max_activation=maximum,
            explanation=verdict.explanation,
            detection=score_of(asked.detection, verdict.detection, probabilities) if asked else None,
            fuzzing=score_of(asked.fuzzing, verdict.fuzzing, probabilities) if asked else None,
            excluded=excluded,
            requests=verdict.requests,
            failures=verdict.failures,
            hard_negatives=case.hard if isinstance(case, LatentQuestions) else 0,
            examples=materials.shown(column, SHOWN),
            histogram=Histogram(maximum=maximum, counts=materials.histogram(column)),
        )


_FEW, _MANY_FAILURES = 0.2, 0.05
"""Shares of alive latents that a score speaks for, and of failed requests, from which on readers are warned."""


def findings(
    lab: StageContext,
    judge: Judge,
    protocol: ScoringProtocol,
    domain: str,
    ledger: RequestBudget,
    budgets: Sequence[int | None],
) -> Findings:
    """Runs the study at every budget."""
    details = interpret(lab, judge, protocol, domain, ledger, budgets)
    rows = max(len(budget.latents) for budget in details.budgets)
    sums = [latent_statistics(budget, rows, judge.graded) for budget in details.budgets]
    return Findings(
        statistics={domain: {name: values for part in sums for name, values in part.items()}},
        details=details.plain(),
        warnings=tuple(_warnings(details)),
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
