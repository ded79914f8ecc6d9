"""Sparsity: how many latents are active per token, and how many never are.

* `l0` = Σ_t #{latents ≠ 0} / tokens, in latents per token; neither direction is better in itself. Negative activations
  count (as in sae-lens since 6.4x; SAEBench counts them too).
* `dead_fraction` = share of latents that are active on none of the domain's tokens; lower is better. It falls as more
  tokens are looked at, so the number of tokens is part of the result's parameters. 1 − SAEBench `frac_alive`.

Both over ordinary tokens (not BOS, EOS, PAD, SEP, CLS). Version 1.
"""

from __future__ import annotations

from typing import Literal

from latentbench.metrics.base import BudgetedMetric, Counts, Estimator, Tally

_L0 = Estimator("l0", 1, "latents/token", None, ("l0", "tokens"), lambda active, tokens: active / tokens)


def _dead_fraction(firing: Counts, tokens: int) -> float:
    return float((firing == 0).mean()) if tokens and firing.size else float("nan")


_DEAD = Tally("dead_fraction", 1, "fraction", False, _dead_fraction)


class L0(BudgetedMetric):
    """Active latents per token."""

    metric: Literal["l0"] = "l0"

    def numbers(self) -> tuple[Estimator, ...]:
        return (_L0,)


class DeadFraction(BudgetedMetric):
    """Share of latents that never fire on the evaluated tokens of the domain."""

    metric: Literal["dead_fraction"] = "dead_fraction"

    def tallies(self) -> tuple[Tally, ...]:
        return (_DEAD,)
