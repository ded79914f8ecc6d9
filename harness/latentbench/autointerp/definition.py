"""What an autointerp score is: the sizes of what is asked about a latent, and the numbers as formulas over sums of latents.

Per sampled latent i, with TPR and TNR the shares of the answered true and false questions that were answered correctly:

    detection        Σ_i ½ (TPR_i + TNR_i) / scored     does a window hold the latent? (chance: 0.5)
    fuzzing          the same                           are the marked tokens those on which it fires?
    score            ½ (detection + fuzzing)
    above_chance     2 · score − 1                      0 at chance, 1 when all is right, negative below chance;
                                                        not clipped
    *_auroc          Σ_i AUROC_i / scored               ties count ½; only for judges that give probabilities
    coverage         eligible / alive · scored / sampled   the share of alive latents that the score speaks for:
                                                        latents are sampled from the eligible ones
    judge_failures   Σ_i failed_i / Σ_i requests_i      requests without an answer that could be read, of all that were
                                                        made, those about excluded latents included

A request that failed costs its (at most eight) questions. A latent has no score, and is counted, when it was not explained
or when fewer than half of the true or of the false questions of one of its tests were answered.

A judge that always gives the same answer has TPR + TNR = 1 and scores exactly 0.5. Detection and fuzzing: Paulo et al.
2024 (arXiv 2410.13928), balanced accuracy as in KronSAE (arXiv 2505.22255, app. A.5). Intervals are over latents.
Version 2: in version 1 one request that failed cost the latent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Literal

from latentbench.core.spec_model import Json
from latentbench.metrics.base import Estimator, ratio
from latentbench.statistics.arrays import Array

HardNegatives = Literal["none", "same_token", "neighbours"]


@dataclass(frozen=True)
class ScoringProtocol:
    """Sizes of everything asked about one latent."""

    latents: int
    explain: int
    """Windows with the latent that it is explained from; as many without it are there for judges that learn."""
    test: int
    """Windows with the latent that are asked about, and as many without it."""
    radius: int
    """Tokens on either side of the strongest."""
    quantiles: int
    """Equal parts of the activation distribution that examples are taken from evenly."""
    hard_negatives: HardNegatives
    from_quantile: float
    """Windows of which the peak is below this quantile of the latent's peaks are neither explained from nor asked about."""

    @property
    def window(self) -> int:
        """Tokens of a window."""
        return 2 * self.radius + 1

    @property
    def fuzzed(self) -> int:
        """Wrongly marked windows in the fuzzing test; as many are without the latent, twice as many rightly marked."""
        return self.test // 3

    @property
    def spare(self) -> int:
        """Windows without the latent that are at hand per latent and side: several times what is used, because equal and
        overlapping texts are left out."""
        return 4 * max(self.explain, self.test)

    @property
    def reservoir(self) -> int:
        """Windows with the latent kept per latent and side: as many, once the weaker ones are gone."""
        return self.before_cut(self.spare)

    def before_cut(self, windows: int) -> int:
        """How many windows with the latent leave so many above the quantile."""
        return ceil(windows / (1 - self.from_quantile))


VERSION = 2
"""Of the numbers and of the study."""
SCORED, SAMPLED, COVERED = "autointerp.scored", "autointerp.sampled", "autointerp.covered"
REQUESTS, FAILURES = "autointerp.requests", "autointerp.failures"
RATES = tuple(f"autointerp.{test}_{rate}" for test in ("detection", "fuzzing") for rate in ("tpr", "tnr"))
AREAS = ("autointerp.detection_auroc", "autointerp.fuzzing_auroc")


def estimators(params: Mapping[str, Json], probabilities: bool) -> tuple[Estimator, ...]:
    """All numbers; those of AUROC only for a judge that gives `probabilities`."""
    numbers: list[tuple[str, str, bool, tuple[str, ...], Callable[..., Array]]] = [
        ("score", "fraction", True, (*RATES, SCORED), _score),
        ("detection", "fraction", True, (*RATES[:2], SCORED), _balanced),
        ("fuzzing", "fraction", True, (*RATES[2:], SCORED), _balanced),
        ("above_chance", "fraction", True, (*RATES, SCORED), _above_chance),
        ("coverage", "fraction", True, (COVERED, SAMPLED), ratio),
        ("judge_failures", "fraction", False, (FAILURES, REQUESTS), ratio),
    ]
    if probabilities:
        numbers += [(name.removeprefix("autointerp."), "fraction", True, (name, SCORED), ratio) for name in AREAS]
    return tuple(
        Estimator(f"autointerp.{name}", VERSION, unit, better, inputs, formula, "latents", False, params)
        for name, unit, better, inputs, formula in numbers
    )


def _balanced(tpr: Array, tnr: Array, scored: Array) -> Array:
    return (tpr + tnr) / (2 * scored)


def _score(*sums: Array) -> Array:
    *rates, scored = sums
    mean: Array = sum(rates) / (4 * scored)
    return mean


def _above_chance(*sums: Array) -> Array:
    return 2 * _score(*sums) - 1
