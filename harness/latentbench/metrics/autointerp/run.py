"""The study from beginning to end: survey, sample, collect, ask, score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentbench.canonical import seed_of
from latentbench.lab import Lab
from latentbench.metrics.autointerp.best import Integers
from latentbench.metrics.autointerp.cases import build_case
from latentbench.metrics.autointerp.collect import Collected, Collector
from latentbench.metrics.autointerp.details import SHOWN, AutointerpDetails, BudgetDetails, Histogram, LatentDetail
from latentbench.metrics.autointerp.examples import Case
from latentbench.metrics.autointerp.ground import Budget, Ground
from latentbench.metrics.autointerp.interview import Chat, Verdict, rule_verdicts
from latentbench.metrics.autointerp.ledger import Ledger
from latentbench.metrics.autointerp.materials import Materials
from latentbench.metrics.autointerp.neighbours import nearest
from latentbench.metrics.autointerp.protocol import Protocol
from latentbench.metrics.autointerp.sampling import TEST, TRAIN, stratified
from latentbench.metrics.autointerp.scoring import score_of
from latentbench.metrics.autointerp.survey import Survey, Surveyed
from latentbench_adapters.judges.rules import RuleJudge
from latentbench_adapters.protocols import Judge

TOO_FEW = "fires in too few windows to be explained and scored"
"""Why an alive latent is not eligible."""
_FAILED = "requests to the judge failed"
"""Why a latent has no score, without the details."""


@dataclass(frozen=True)
class Sampled:
    """The latents of one budget."""

    budget: Budget
    surveyed: Surveyed
    eligible: int
    latents: Integers
    neighbours: Integers
    """Further latents to be watched."""
    near: list[list[int]]
    """Of each latent, the columns of its neighbours among `latents` and `neighbours`."""


def run(
    lab: Lab, judge: Judge, protocol: Protocol, domain: str, ledger: Ledger, budgets: Sequence[Budget]
) -> AutointerpDetails:
    """Everything found out about the SAE at each budget."""
    ground = Ground.of(lab, protocol, domain)
    sampled = _sampled(ground, budgets)
    collected = _collected(ground, sampled)
    interview = _Interview(ground, judge, ledger)
    return AutointerpDetails(
        domain=domain,
        judge=judge.label,
        documents=len(ground.tokens.ids),
        tokens=ground.ordinary_tokens,
        seed=ground.seed,
        budgets=tuple(interview.about(sample, collected[sample.budget]) for sample in sampled),
    )


def _sampled(ground: Ground, budgets: Sequence[Budget]) -> list[Sampled]:
    """The first pass."""
    surveys = {budget: Survey(ground.sae.width, ground.sides, ground.protocol.window) for budget in budgets}
    ground.each_batch(0, budgets, lambda budget, batch, codes: surveys[budget].add(batch, codes))
    return [_sample(ground, budget, survey.finished()) for budget, survey in surveys.items()]


def _sample(ground: Ground, budget: Budget, surveyed: Surveyed) -> Sampled:
    protocol = ground.protocol
    eligible = surveyed.eligible(protocol.explain, protocol.test)
    latents = stratified(surveyed.firing, eligible, protocol.latents, seed_of(ground.seed, "latents", budget))
    neighbours: Integers = np.zeros(0, dtype=np.int64)
    near: list[list[int]] = [[] for _ in latents]
    if protocol.hard_negatives == "neighbours":
        neighbours, near = nearest(ground.sae, latents)
    return Sampled(budget, surveyed, int(eligible.sum()), latents, neighbours, near)


def _collected(ground: Ground, sampled: Sequence[Sampled]) -> dict[Budget, Collected]:
    """The second pass."""
    collectors = {s.budget: Collector(ground, s.latents, s.neighbours, s.surveyed.maximum) for s in sampled}
    ground.each_batch(1, list(collectors), lambda budget, batch, codes: collectors[budget].add(batch, codes))
    return {budget: collector.finished() for budget, collector in collectors.items()}


@dataclass(frozen=True)
class _Interview:
    """A judge and what it is asked about."""

    ground: Ground
    judge: Judge
    ledger: Ledger

    def about(self, sampled: Sampled, collected: Collected) -> BudgetDetails:
        """Explanations and scores of the latents of one budget."""
        materials = Materials(
            self.ground, collected, sampled.near, seed_of(self.ground.seed, "inactive", sampled.budget)
        )
        cases = [self._case(latent, column, materials) for column, latent in enumerate(sampled.latents.tolist())]
        verdicts = iter(self._asked([case for case in cases if isinstance(case, Case)]))
        answered = [next(verdicts) if isinstance(case, Case) else Verdict(problem=case) for case in cases]
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

    def _case(self, latent: int, column: int, materials: Materials) -> Case | str:
        train, test = (materials.material(column, side) for side in (TRAIN, TEST))
        return build_case(latent, train, test, self.ground.protocol, seed_of(self.ground.seed, "questions", latent))

    def _asked(self, cases: Sequence[Case]) -> list[Verdict]:
        lab = self.ground.lab
        if isinstance(self.judge, RuleJudge):
            return rule_verdicts(self.judge, cases, lab.progress)
        return Chat(self.judge, lab.roots, lab.cache, self.ledger, lab.progress).verdicts(cases)

    def _detail(
        self, column: int, sampled: Sampled, case: Case | str, verdict: Verdict, materials: Materials
    ) -> LatentDetail:
        latent, probabilities = int(sampled.latents[column]), self.judge.graded
        excluded = case if isinstance(case, str) else verdict.excluded
        asked = case if isinstance(case, Case) and excluded is None else None
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
            hard_negatives=case.hard if isinstance(case, Case) else 0,
            examples=materials.shown(column, SHOWN),
            histogram=Histogram(maximum=maximum, counts=materials.histogram(column)),
        )
