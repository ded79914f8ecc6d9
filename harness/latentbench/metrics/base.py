"""What a metric is: sums over documents, and a formula over those sums.

Every metric of an SAE on a domain is a function of sums of per-document sufficient statistics. That one fact gives
document-clustered intervals and paired tests for all of them (the formula is re-evaluated on re-weighted sums) without
running the model again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import PositiveInt

from latentbench.core.spec_model import SpecModel
from latentbench.metrics.value import MetricValue
from latentbench.statistics.arrays import Array, Counts

BUDGETED = "@"
"""Separates a statistic's name from the budget it was measured at, e.g. `squared_error@8`."""


@dataclass(frozen=True)
class Estimator:
    """One named number: a formula over summed per-document statistics."""

    id: str
    """`metric.estimator`, as in records."""
    version: int
    unit: str
    higher_is_better: bool | None
    inputs: tuple[str, ...]
    """Names of the statistics whose sums the formula takes, in order. See harness/latentbench/measure for their definitions."""
    formula: Callable[..., Array]
    """Elementwise over arrays of sums, so that thousands of bootstrap resamples cost one call. May return NaN
    (e.g. 0/0); the caller turns that into null with a reason."""
    units: str = "documents"
    """What the statistics are per, in the plural: the independent units of intervals and tests."""
    paired: bool = True
    """Whether unit i is the same thing in every row (a document, a problem). Latents of two SAEs are not."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """What else tells this number from others of the same id (a judge, a temperature): they are never ranked together."""
    undefined: str | None = None
    """What it means when the formula gives NaN; default: the sums it was given."""

    def names(self, budget: int | None) -> tuple[str, ...]:
        """The statistics to read when measured at `budget` active latents (None: as trained)."""
        return tuple(name if name in SHARED else at_budget(name, budget) for name in self.inputs)

    @property
    def shared(self) -> bool:
        """Whether the number is the same for every SAE and every budget (e.g. the clean cross-entropy)."""
        return all(name in SHARED for name in self.inputs)


@dataclass(frozen=True)
class Tally:
    """One named number computed from how often each latent fired; it has no interval over documents."""

    id: str
    version: int
    unit: str
    higher_is_better: bool | None
    formula: Callable[[Counts, int], float]
    """Of the firing counts [width] of one domain and the number of tokens they were counted over."""


@dataclass(frozen=True)
class Display:
    """How tables and comparisons show a number. The metric that reports the number says so."""

    heading: str
    """Of its column; a number without a `Display` is headed by its id."""
    headline: int | None = None
    """Its place among the columns of the default table, lowest first, with gaps for the numbers of other packages; None:
    the number stands only where every column is asked for."""
    movers: bool = False
    """Whether a comparison names the units (documents, problems) on which the number differs most."""


SHARED = frozenset(
    {
        "tokens",
        "elements",
        "predictions",
        "squared_norm",
        "total_variance",
        "ce_clean",
        "ce_zero",
        "ce_mean",
        "kl_zero",
        "kl_mean",
    }
)
"""Statistics of the model and the documents alone: the same for every SAE at a site and at every budget."""


def at_budget(name: str, budget: int | None) -> str:
    """`squared_error` at budget 8 is stored as `squared_error@8`."""
    return name if budget is None else f"{name}{BUDGETED}{budget}"


class Metric(SpecModel):
    """A metric that a spec can ask for; its fields are the parameters. Plugs in through `latentbench.metrics`."""

    needs: ClassVar[frozenset[str]] = frozenset({"sae"})
    """Sections of the spec the metric cannot do without."""
    splices: ClassVar[bool] = False
    """Whether the reconstruction must be spliced into the model (a resumed forward), not only computed."""
    displays: ClassVar[Mapping[str, Display]] = {}
    """How its numbers are shown, by their full id; a metric of another package says it in the same way."""
    version: ClassVar[int] = 1

    metric: str

    @property
    def label(self) -> str:
        """What tells it from the other metrics of its spec, in which no two may have the same."""
        return self.metric

    def measured_at(self) -> tuple[int | None, ...]:
        """Budgets at which the SAE is measured; None is the budget it was trained with."""
        return (None,)

    def numbers(self) -> tuple[Estimator, ...]:
        """The numbers this metric reports per domain and budget."""
        return ()

    def of_sae(self, section: Any, d_in: int, width: int, l0: float) -> Iterable[MetricValue]:
        """Numbers that belong to the SAE itself and not to a domain.

        `section` is its part of the spec, `l0` its active latents per token on the first evaluation domain.
        """
        return ()

    def tallies(self) -> tuple[Tally, ...]:
        """The numbers this metric reports per domain and budget from firing counts."""
        return ()


class BudgetedMetric(Metric):
    """A metric that can also be reported with fewer active latents than the SAE was trained with."""

    budgets: tuple[PositiveInt, ...] | None = None
    """Active latents per token at which to report the metric as well; the SAE as trained is always reported."""

    @property
    def label(self) -> str:
        """What tells it from the other metrics of its spec, in which no two may have the same."""
        return self.metric

    def measured_at(self) -> tuple[int | None, ...]:
        return (None, *dict.fromkeys(self.budgets or ()))
