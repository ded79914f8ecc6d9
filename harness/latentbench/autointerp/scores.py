"""The scores of a latent, and what an autointerp study leaves for reports, as JSON: `Findings.details` is `AutointerpDetails(...).plain()`.

Reports read it back with `AutointerpDetails.model_validate(details)`. Everything in it is bounded: at most `latents`
latents per budget, `SHOWN` examples per latent and `2 · radius + 1` tokens per example. All strings are data from
models, documents and judges: escape every one of them. Importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from latentbench.autointerp.definition import AREAS, COVERED, FAILURES, RATES, REQUESTS, SAMPLED, SCORED
from latentbench.autointerp.windows import Question
from latentbench.core.spec_model import SpecModel
from latentbench.metrics.base import at_budget
from latentbench.statistics.arrays import Array

SHOWN = 12
"""Examples kept per latent, strongest first."""
BINS = 20
"""Bins of the activation histogram."""


class ShownExample(SpecModel):
    """A window of one document in which the latent fires."""

    tokens: tuple[str, ...]
    """The window's tokens as text; joined they are the text, spaces included."""
    activations: tuple[float, ...]
    """The latent's activation at each token, 0 where it is inactive; as long as `tokens`."""
    split: Literal["train", "test"]
    """Whether the document belongs to the half that explanations or the half that scores are made from."""
    document: int
    """Row of the document in its domain."""

    @property
    def peak(self) -> float:
        """The strongest activation of the window."""
        return max(self.activations, default=0.0)


class TestScore(SpecModel):
    """How one test (detection or fuzzing) of one latent went."""

    __test__ = False  # no test case, whatever its name

    true_positive_rate: float
    true_negative_rate: float
    balanced_accuracy: float
    """½ (true positive rate + true negative rate); chance is 0.5."""
    auroc: float | None = None
    """Area under the ROC curve; null for a judge that gives no probabilities."""
    positives: int
    """True questions that were answered."""
    negatives: int
    """False ones."""


class Histogram(SpecModel):
    """How strong a latent is on the tokens on which it fires: equal bins between 0 and `maximum`."""

    maximum: float
    counts: tuple[int, ...]
    """Firing tokens per bin."""


class LatentDetail(SpecModel):
    """One sampled latent."""

    latent: int
    """Number of the latent in the SAE, from 0."""
    density: float
    """Share of the domain's ordinary tokens on which it fires."""
    max_activation: float
    explanation: str | None = None
    """What the judge says it fires on; null where there is none."""
    detection: TestScore | None = None
    fuzzing: TestScore | None = None
    excluded: str | None = None
    """Why it has no score, as one sentence; null for a scored latent."""
    requests: int = 0
    """Requests made to the judge for this latent."""
    failures: int = 0
    """Those that failed or whose answer could not be read."""
    hard_negatives: int = 0
    """How many of the test's inactive windows are hard ones (of the kind the spec asks for)."""
    examples: tuple[ShownExample, ...] = ()
    """Strongest first."""
    histogram: Histogram | None = None

    @property
    def score(self) -> float | None:
        """Mean balanced accuracy of detection and fuzzing, None for an excluded latent."""
        if self.excluded is not None or self.detection is None or self.fuzzing is None:
            return None
        return (self.detection.balanced_accuracy + self.fuzzing.balanced_accuracy) / 2


class BudgetDetails(SpecModel):
    """Everything about the SAE at one number of active latents per token."""

    budget: int | None
    """Active latents per token; null: as trained."""
    width: int
    """Latents of the SAE."""
    alive: int
    """Latents that fire on at least one token of the domain."""
    eligible: int
    """Alive latents with enough windows on both sides to be explained and scored; sampled from these."""
    excluded: dict[str, int]
    """Latents without a score by reason: alive ones that were not eligible, and sampled ones that failed."""
    latents: tuple[LatentDetail, ...]
    """The sampled latents."""


class AutointerpDetails(SpecModel):
    """`Findings.details` of an autointerp study."""

    domain: str
    judge: str
    """Short name of the judge."""
    documents: int
    tokens: int
    """Ordinary tokens of the domain."""
    seed: int
    """With which latents and examples were sampled."""
    budgets: tuple[BudgetDetails, ...]
    """As trained first."""


def score_of(items: Sequence[Question], answers: Sequence[float | None], probabilities: bool) -> TestScore:
    """Rates of right answers among those that came, where a probability of at least ½ is a yes. Both truths must occur."""
    pairs = [(item.truth, answer) for item, answer in zip(items, answers, strict=True) if answer is not None]
    truth, given = (np.array(part) for part in zip(*pairs, strict=True))
    yes = given >= 0.5
    sensitivity, specificity = float(yes[truth].mean()), float(1 - yes[~truth].mean())
    return TestScore(
        true_positive_rate=sensitivity,
        true_negative_rate=specificity,
        balanced_accuracy=(sensitivity + specificity) / 2,
        auroc=area_under_roc(given[truth], given[~truth]) if probabilities else None,
        positives=int(truth.sum()),
        negatives=int((~truth).sum()),
    )


def area_under_roc(positives: Array, negatives: Array) -> float:
    """The chance that a true question gets a higher probability than a false one; ties count ½ (Mann-Whitney)."""
    above = (positives[:, None] > negatives).mean()
    return float(above + (positives[:, None] == negatives).mean() / 2)


def latent_statistics(details: BudgetDetails, rows: int, probabilities: bool) -> dict[str, Array]:
    """Statistics [rows] named with the budget: one row per sampled latent, zeros behind."""
    share = details.eligible / details.alive if details.alive else 0.0
    columns: dict[str, list[float]] = {
        name: [] for name in (SAMPLED, SCORED, COVERED, REQUESTS, FAILURES, *RATES, *AREAS * probabilities)
    }
    for latent in details.latents:
        for name, value in _statistics(latent, share, probabilities).items():
            columns[name].append(value)
    padding = [0.0] * (rows - len(details.latents))
    return {at_budget(name, details.budget): np.array(column + padding, float) for name, column in columns.items()}


def _statistics(latent: LatentDetail, share: float, probabilities: bool) -> dict[str, float]:
    counted = {SAMPLED: 1.0, REQUESTS: float(latent.requests), FAILURES: float(latent.failures)}
    if latent.score is None:
        return counted | dict.fromkeys((SCORED, COVERED, *RATES, *AREAS * probabilities), 0.0)
    tests = [test for test in (latent.detection, latent.fuzzing) if test is not None]
    rates = [rate for test in tests for rate in (test.true_positive_rate, test.true_negative_rate)]
    scored = counted | {SCORED: 1.0, COVERED: share} | dict(zip(RATES, rates, strict=True))
    return scored | (dict(zip(AREAS, [test.auroc or 0.0 for test in tests], strict=True)) if probabilities else {})
