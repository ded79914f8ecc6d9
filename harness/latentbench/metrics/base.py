"""What a metric is: sums over documents, and a formula over those sums.

Every metric of an SAE on a domain is a function of sums of per-document sufficient statistics. That one fact gives
document-clustered intervals and paired tests for all of them (the formula is re-evaluated on re-weighted sums) without
running the model again. Which sums are measured for every SAE is defined in
harness/latentbench/reconstruction/statistics.py; a metric that needs another one declares it as a `Statistic`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from latentbench.core.spec_model import Json, SpecModel
from latentbench.metrics.panel import PanelData
from latentbench.metrics.value import MetricValue
from latentbench.statistics.arrays import Array, Counts

MEASUREMENT_VERSION = 2
"""Raised when the same SAE and documents give other stored statistics. It is in the key of every measurement, and it
stands here because plans, which import no torch, read it too."""

BUDGETED = "@"
"""Separates a statistic's name from the budget it was measured at, e.g. `squared_error@8`."""


@dataclass(frozen=True)
class Statistic:
    """A sum that a metric needs and latentbench does not measure by itself: one number per token, summed per document."""

    name: str
    """`<metric>.<what>`, as in records; it holds no `@`."""
    implementation: str
    """`module:function` of a `TokenStatistic` (harness/latentbench/reconstruction/statistics.py). It is imported where
    it is measured, so that declaring it imports no torch."""
    shared: bool = False
    """Whether it follows from the model and the documents alone, so that it is measured once and not at every budget."""
    version: int = 1
    """Raised when the same SAE and documents give other values: it is in the measurement's key, the code is not."""


@dataclass(frozen=True)
class Estimator:
    """One named number: a formula over summed per-document statistics."""

    id: str
    """`metric.estimator`, as in records."""
    version: int
    unit: str
    higher_is_better: bool | None
    inputs: tuple[str, ...]
    """Names of the statistics whose sums the formula takes, in order."""
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
    statistics: tuple[Statistic, ...] = ()
    """Those of `inputs` that the metric brings along."""

    def names(self, budget: int | None) -> tuple[str, ...]:
        """The statistics to read when measured at `budget` active latents (None: as trained)."""
        shared = self._shared_names
        return tuple(name if name in shared else at_budget(name, budget) for name in self.inputs)

    @property
    def shared(self) -> bool:
        """Whether the number is the same for every SAE and every budget (e.g. the clean cross-entropy)."""
        return self._shared_names.issuperset(self.inputs)

    @property
    def _shared_names(self) -> frozenset[str]:
        return SHARED.union(statistic.name for statistic in self.statistics if statistic.shared)


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
class Role:
    """What a number says in the verdict that opens the page of a steered cell."""

    kind: Literal["gain", "cost", "dose"]
    """What steering gains over the unsteered model, 0 being nothing; what it costs; or how large the change is."""
    words: str
    """What is gained, paid or measured, as a sentence says it: `accuracy`, `KL divergence`."""
    levels: tuple[str, str] | None = None
    """Ids of the numbers without and with steering, on the same domain, whose difference a gain is."""


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
    against: str | None = None
    """Id of the number that pages draw it against, on the same domain or, where it is not measured there, on every other."""
    by_scale: bool = False
    """Whether pages draw it against the scale of a steering vector, where rows differ in that."""
    least: float | None = None
    """The least value it can have, where its unit does not say: a share of latents is at least 0, an explained variance not."""
    role: Role | None = None
    """What it says in the verdict on a steered cell; None: it has no part in it."""


SHARED = frozenset(
    {
        "tokens",
        "massive",
        "named",
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


def ratio(total: Array, n: Array) -> Array:
    """The formula of a mean: a sum over units by their number, or by the sum of whatever it is a share of."""
    return total / n


class Metric(SpecModel):
    """A metric that a spec can ask for; its fields are the parameters. Plugs in through `latentbench.metrics`."""

    needs: ClassVar[frozenset[str]] = frozenset({"sae"})
    """Parts of the spec that the metric cannot do without."""
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

    def of_sae(self, options: Any, d_in: int, width: int, l0: float) -> Iterable[MetricValue]:
        """Numbers that belong to the SAE itself and not to a domain.

        `options` are the SAE's part of the spec, `l0` its active latents per token on the first evaluation domain.
        """
        return ()

    def tallies(self) -> tuple[Tally, ...]:
        """The numbers this metric reports per domain and budget from firing counts."""
        return ()

    def panels(self, details: Mapping[str, Json]) -> Iterable[PanelData]:
        """What the page of a steered cell shows of `details`, which its study left; an earlier version may have left less."""
        return ()


class BudgetedMetric(Metric):
    """A metric that can also be reported with fewer active latents than the SAE was trained with."""

    budgets: tuple[PositiveInt, ...] | None = None
    """Active latents per token at which to report the metric as well; the SAE as trained is always reported."""

    def measured_at(self) -> tuple[int | None, ...]:
        return (None, *dict.fromkeys(self.budgets or ()))


def declared(metrics: Iterable[Metric], budget: int | None) -> tuple[Statistic, ...]:
    """The statistics that `metrics` bring along and want measured at `budget`, each once, ordered by name.

    Shared ones are measured with the SAE as it was trained and at no other budget: they would be the same there.
    """
    wanted = {
        statistic.name: statistic
        for metric in metrics
        for estimator in metric.numbers()
        for statistic in estimator.statistics
        if (budget is None if statistic.shared else budget in metric.measured_at())
    }
    return tuple(wanted[name] for name in sorted(wanted))


def statistic_problems(metric: Metric) -> tuple[str, ...]:
    """What is wrong with the statistics that a metric brings along: their names are how every stored sum is found."""
    brought = dict.fromkeys(statistic for estimator in metric.numbers() for statistic in estimator.statistics)
    misnamed = [s.name for s in brought if BUDGETED in s.name or not s.name.startswith(f"{metric.metric}.")]
    twice = {s.name for s in brought if sum(other.name == s.name for other in brought) > 1}
    return (
        *(f"its statistic {name!r} must be called `{metric.metric}.…`, without {BUDGETED!r}" for name in misnamed),
        *(f"two of its statistics are called {name!r}" for name in sorted(twice)),
    )
