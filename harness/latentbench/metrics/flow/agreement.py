"""Do matched latents fire on the same tokens? (Feature Flow, arXiv 2502.03032, §4.1), version 1.

A firing is an active latent of a residual site, with one before it, at an ordinary token. Its predecessors are its
matches in the residual stream before (R), the MLP (M) and the attention (A) of the block between; a predecessor fires with
it when any of its `flow.k` matches is active at the same token.

====================  ===========================================================  ======
number                formula                                                      better
====================  ===========================================================  ======
`residual`            share of firings whose R predecessor fires with them         higher
`residual_chance`     the same if predecessors fired independently, at their own   (a reference)
                      rate on the domain
`residual_lift`       `residual` / `residual_chance`                               higher
`mlp`, `attention`    share of firings whose M (A) predecessor fires with them     higher
`nowhere`             share of firings with none of them                           lower
====================  ===========================================================  ======

Units are documents. Beside them, without interval, `separable_residual`, `_mlp` and `_attention`: of all pairs of the
eight groups (which of R, M, A fire) per layer, the share that a Mann-Whitney U test on s(R), s(M) or s(A) tells apart with
p < 0.001. The paper tests firings; here each latent counts once per group, because firings of one latent are no
independent draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveInt

from latentbench.metrics.base import Array, Estimator
from latentbench.metrics.flow.base import FlowStudy, share
from latentbench.metrics.study import Findings

if TYPE_CHECKING:
    from latentbench.lab import Lab


def _lift(agreed: Array, chance: Array) -> Array:
    return agreed / chance


class FlowAgreement(FlowStudy):
    """Whether matched latents fire together, and whether scores tell where latents come from."""

    version: ClassVar[int] = 1

    metric: Literal["flow_agreement"] = "flow_agreement"
    tokens: PositiveInt = 5
    """Tokens of each document that the group test looks at, drawn at random (the paper's 5)."""
    minimum: PositiveInt = Field(default=20, ge=2)
    """Latents a group needs to be tested."""
    alpha: float = Field(default=0.001, gt=0, lt=1)
    """Below this p two groups count as told apart (the paper's value)."""

    def numbers(self) -> tuple[Estimator, ...]:
        def number(name: str, better: bool | None) -> Estimator:
            inputs = (f"flow_agreement.{name}", "flow_agreement.firings")
            return Estimator(f"flow_agreement.{name}", 1, "fraction", better, inputs, share)

        lift = ("flow_agreement.residual", "flow_agreement.residual_chance")
        return (
            number("residual", True),
            number("residual_chance", None),
            Estimator("flow_agreement.residual_lift", 1, "ratio", True, lift, _lift),
            number("mlp", True),
            number("attention", True),
            number("nowhere", False),
        )

    def run(self, lab: Lab) -> Findings:
        from latentbench.flow.studies.agreement import run

        return run(self, lab)
