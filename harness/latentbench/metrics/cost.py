"""What an SAE costs, by formula, so that tables can show quality at equal cost.

| number | formula |
| --- | --- |
| `cost.parameters` | numbers stored, biases included |
| `cost.encoder` | multiply-accumulates per token to encode: d·F for a linear encoder, d·h(m+n) + h·m·n for KronSAE |
| `cost.decoder` | multiply-accumulates per token to decode: d · (active latents) |

Version 1; KronSAE (arXiv 2505.22255, eq. 7), which counts a multiply-accumulate as one operation. Active latents are the
variant's k, or the measured L0 where it fixes none. Training speed and memory depend on the machine and stand in the
record's `cost`, not here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from latentbench.metrics.base import Metric
from latentbench.record import MetricValue
from latentbench.sae.cost import Cost as SaeCost
from latentbench.sae.cost import linear_cost, variant_cost
from latentbench.sae.options import Variant
from latentbench.sae.options.loaded import LoadedSae


class Cost(Metric):
    """Parameters and operations per token of the SAE, by formula."""

    version: ClassVar[int] = 1

    metric: Literal["cost"] = "cost"

    def of_sae(self, section: Variant | LoadedSae, d_in: int, width: int, l0: float) -> Iterator[MetricValue]:
        known = _cost(section, d_in, width, l0)
        yield _value("cost.parameters", known.parameters, "parameters")
        yield _value("cost.encoder", known.encoder, "MAC/token")
        yield _value("cost.decoder", known.decoder, "MAC/token")


def _cost(section: Variant | LoadedSae, d_in: int, width: int, l0: float) -> SaeCost:
    if isinstance(section, LoadedSae):
        return linear_cost(d_in, width, l0)
    for active in (None, l0):  # measured where the variant fixes no number of active latents
        try:
            return variant_cost(section, d_in, active)
        except ValueError:
            continue
    return linear_cost(d_in, width, l0)  # on top of a loaded SAE, of which only the width is known


def _value(name: str, value: float, unit: str) -> MetricValue:
    return MetricValue(id=name, version=1, value=float(value), unit=unit, higher_is_better=False)
