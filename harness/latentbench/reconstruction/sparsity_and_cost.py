"""How many latents are active per token, how many never are, and what the SAE costs.

* `l0` = Σ_t #{latents ≠ 0} / tokens, in latents per token; neither direction is better in itself. Negative activations
  count (as in sae-lens since 6.4x; SAEBench counts them too).
* `dead_fraction` = share of latents that are active on none of the domain's tokens; lower is better. It falls as more
  tokens are looked at, so the number of tokens is part of the result's parameters. 1 − SAEBench `frac_alive`.

Both over ordinary tokens (not special, named or massive), version 2: version 1 counted massive ones. Cost is given by formula, so that tables can show quality at equal cost:

| number | formula |
| --- | --- |
| `cost.parameters` | numbers stored, biases included |
| `cost.encoder` | multiply-accumulates per token to encode: d·F if linear, d·h(m+n) + h·m·n for KronSAE, k·d·F for matching pursuit |
| `cost.decoder` | multiply-accumulates per token to decode: d · (active latents) |

KronSAE (arXiv 2505.22255, eq. 7), which counts a multiply-accumulate as one operation. Active latents are the variant's k, or
the measured L0 where it fixes none. Training speed and memory depend on the machine and stand in the record's `cost`, not
here; version 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from latentbench.metrics.base import BudgetedMetric, Display, Estimator, Metric, Tally, ratio
from latentbench.metrics.value import MetricValue
from latentbench.sae.cost import SaeCost, linear_cost, variant_cost
from latentbench.sae.options import Variant
from latentbench.sae.options.base import LoadedSae
from latentbench.statistics.arrays import Counts

_L0 = Estimator("l0", 2, "latents/token", None, ("l0", "tokens"), ratio)


def _dead_fraction(firing: Counts, tokens: int) -> float:
    return float((firing == 0).mean()) if tokens and firing.size else float("nan")


_DEAD = Tally("dead_fraction", 2, "fraction", False, _dead_fraction)


class L0(BudgetedMetric):
    """Active latents per token."""

    displays: ClassVar[Mapping[str, Display]] = {"l0": Display("L0", 10)}

    metric: Literal["l0"] = "l0"

    def numbers(self) -> tuple[Estimator, ...]:
        return (_L0,)


class DeadFraction(BudgetedMetric):
    """Share of latents that never fire on the evaluated tokens of the domain."""

    displays: ClassVar[Mapping[str, Display]] = {"dead_fraction": Display("Dead", 50, least=0.0)}

    metric: Literal["dead_fraction"] = "dead_fraction"

    def tallies(self) -> tuple[Tally, ...]:
        return (_DEAD,)


class ComputeCost(Metric):
    """Parameters and operations per token of the SAE, by formula."""

    version: ClassVar[int] = 1

    metric: Literal["cost"] = "cost"

    def of_sae(self, options: Variant | LoadedSae, d_in: int, width: int, l0: float) -> Iterator[MetricValue]:
        known = _compute_cost(options, d_in, width, l0)
        yield _cost_value("cost.parameters", known.parameters, "parameters")
        yield _cost_value("cost.encoder", known.encoder, "MAC/token")
        yield _cost_value("cost.decoder", known.decoder, "MAC/token")


def _compute_cost(options: Variant | LoadedSae, d_in: int, width: int, l0: float) -> SaeCost:
    if isinstance(options, LoadedSae):
        return linear_cost(d_in, width, l0)
    for active in (None, l0):  # measured where the variant fixes no number of active latents
        try:
            return variant_cost(options, d_in, active)
        except ValueError:
            continue
    return linear_cost(d_in, width, l0)  # on top of a loaded SAE, of which only the width is known


def _cost_value(name: str, value: float, unit: str) -> MetricValue:
    return MetricValue(id=name, version=1, value=float(value), unit=unit, higher_is_better=False)
