"""`token_shift`: at which generated tokens does the vector move probabilities, and towards what?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from latentbench.metrics.base import Array, Estimator
from latentbench.metrics.mechanism.base import DOMAIN, MechanismStudy, ones
from latentbench.metrics.study import Findings

if TYPE_CHECKING:
    from latentbench.lab import Lab


class TokenShift(MechanismStudy):
    """Total variation ½ Σ_t |p_steered − p_unsteered| over the steered model's own text.

    * `first`: at the first generated token; `rest`: mean over all others;
    * `share_first`: of the total over all generated tokens, what falls on the first.

    Source: Small Vectors, Big Effects (arXiv 2509.06608), section 6.
    """

    metric: Literal["token_shift"] = "token_shift"

    def numbers(self) -> tuple[Estimator, ...]:
        return (
            _number("first", ("first", "passages"), lambda first, passages: first / passages),
            _number("rest", ("rest", "others"), lambda rest, others: rest / others),
            _number("share_first", ("first", "rest"), lambda first, rest: first / (first + rest)),
        )

    def run(self, lab: Lab) -> Findings:
        from latentbench.steering.mechanism.shift import probability_shift

        lm, passages = lab.model(), self.passages(lab)
        shift = probability_shift(lm, lab.subject(), passages)
        statistics = {"first": shift.first, "rest": shift.rest, "others": shift.others, "passages": ones(shift.first)}
        named = {f"token_shift.{name}": values for name, values in statistics.items()}
        details = {"tokens": shift.tokens(lm), "passages": len(passages)}
        return Findings({DOMAIN: named}, details=details, units=self.units(lab))


def _number(name: str, inputs: tuple[str, ...], formula: Callable[..., Array]) -> Estimator:
    return Estimator(
        id=f"token_shift.{name}",
        version=1,
        unit="fraction" if name == "share_first" else "total variation",
        higher_is_better=None,
        inputs=tuple(f"token_shift.{item}" for item in inputs),
        formula=formula,
        units="problems",
    )
