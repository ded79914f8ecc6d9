"""What an autointerp study leaves for reports, as JSON: `Findings.details` is `AutointerpDetails(...).plain()`.

Reports read it back with `AutointerpDetails.model_validate(details)`. Everything in it is bounded: at most `latents`
latents per budget, `SHOWN` examples per latent and `2 · radius + 1` tokens per example. All strings are data from
models, documents and judges: escape every one of them. Importing this module imports no torch.
"""

from __future__ import annotations

from typing import Literal

from latentbench.section import Section

SHOWN = 12
"""Examples kept per latent, strongest first."""
BINS = 20
"""Bins of the activation histogram."""


class ShownExample(Section):
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


class TestScore(Section):
    """How one test (detection or fuzzing) of one latent went."""

    __test__ = False  # no test case, whatever its name

    true_positive_rate: float
    true_negative_rate: float
    balanced_accuracy: float
    """½ (true positive rate + true negative rate); chance is 0.5."""
    auroc: float | None = None
    """Area under the ROC curve; null for a judge that gives no probabilities."""
    positives: int
    negatives: int


class Histogram(Section):
    """How strong a latent is on the tokens on which it fires: equal bins between 0 and `maximum`."""

    maximum: float
    counts: tuple[int, ...]
    """Firing tokens per bin."""


class LatentDetail(Section):
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


class BudgetDetails(Section):
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


class AutointerpDetails(Section):
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
