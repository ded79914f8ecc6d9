"""`capability_cost`: what steering costs on text that has nothing to do with what it is for.

On the documents of each evaluation domain, every prediction of a real token, in nats (harness/latentbench/reconstruction/documents.py):

===============  ===========================================  ======
number           formula                                      better
===============  ===========================================  ======
`ce_clean`       CE of the model without steering             (the model's)
`ce_increase`    CE_steered − CE_clean, per token             lower
`kl`             mean KL(model ‖ steered model), per token    lower
===============  ===========================================  ======

The same at every one of `scales` (with the parameter `scale`) gives the frontier against accuracy; the clean model runs
once for all of them. A text has no prompt: with the scopes `generated` and `first` its first token counts as the prompt,
and with `prompt` nothing is changed. A prefix stands in prompts only and costs nothing here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from latentbench.core.spec_model import Json
from latentbench.metrics.base import Display, Estimator, Role
from latentbench.metrics.panel import CurveData, PanelData
from latentbench.statistics.arrays import Array
from latentbench.steering.method import parts_of
from latentbench.study.study import Study

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.study.context import ExperimentView

NAME = "capability_cost"
"""The metric's name, with which the names of its statistics begin."""


class CapabilityCost(Study):
    """Cross-entropy and KL divergence that steering causes on neutral text, against its scale."""

    needs: ClassVar[frozenset[str]] = frozenset({"steering"})
    implementation: ClassVar[str] = "latentbench.steering.capability_cost_study:measure_capability_cost"
    displays: ClassVar[Mapping[str, Display]] = {
        "capability_cost.kl": Display("KL to the unsteered", 110, role=Role("cost", "KL divergence"))
    }

    metric: Literal["capability_cost"] = "capability_cost"
    scales: Annotated[tuple[float, ...], Field(max_length=100)] = ()
    """Scales at which to measure besides the spec's own."""

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        parts = parts_of(experiment.steering) if self.scales else ()
        return tuple(
            f"`scales` are those of steering vectors; the method {part.method!r} adds none"
            for part in parts
            if not part.adds_vectors
        )

    def panels(self, details: Mapping[str, Json]) -> Iterator[PanelData]:
        """Cost by scale, a curve for each domain."""
        curves = {domain: points for domain, points in details.get("curve", {}).items() if points}
        for name, axis in (("kl", "KL per token (nats)"), ("ce_increase", "cross-entropy increase (nats)")):
            drawn = {d: ([p["scale"] for p in points], [p[name] for p in points]) for d, points in curves.items()}
            if drawn:
                about = "On text that has nothing to do with the task."
                yield PanelData(f"Cost: {axis}", about, [CurveData(drawn, "scale", axis)])

    def numbers(self) -> tuple[Estimator, ...]:
        clean = _estimator("ce_clean", None, ("ce_clean",), {})
        return (clean, *_costs(None), *(cost for scale in dict.fromkeys(self.scales) for cost in _costs(scale)))


def _mean(total: Array, n: Array) -> Array:
    return total / n


def _increase(steered: Array, clean: Array, n: Array) -> Array:
    return (steered - clean) / n


def _estimator(name: str, better: bool | None, statistics: tuple[str, ...], params: Mapping[str, Any]) -> Estimator:
    inputs = tuple(f"{NAME}.{statistic}" for statistic in (*statistics, "predictions"))
    formula = _increase if len(statistics) == 2 else _mean
    return Estimator(f"{NAME}.{name}", 1, "nats/token", better, inputs, formula, params=params)


def _costs(scale: float | None) -> tuple[Estimator, Estimator]:
    params = {} if scale is None else {"scale": scale}
    return (
        _estimator("ce_increase", False, (at_scale("ce", scale), "ce_clean"), params),
        _estimator("kl", False, (at_scale("kl", scale),), params),
    )


def at_scale(name: str, scale: float | None) -> str:
    """Name of a statistic at a scale; at the spec's own it has none."""
    return name if scale is None else f"{name}[{scale!r}]"
