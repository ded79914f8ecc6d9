"""`transfer_agreement`: whether vectors that were made elsewhere do here what they do at home."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from latentbench.mechanism.metrics.study import MechanismStudy
from latentbench.metrics.base import Estimator
from latentbench.steering.transfer import TransferMethod

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.study.context import ExperimentView

NAME = "transfer_agreement"


class TransferAgreement(MechanismStudy):
    """What `method: transfer` does to the final residual stream, against what the same vectors do where they were made.

    Over the texts that the steered model writes behind the prompts, Δ(t) = h_L^steered(t) − h_L^plain(t) after the last block L,
    here and at home over the very same tokens, each averaged over the generated tokens of a text:

    * `cosine`: mean over texts of cos(Δ̄ here, Δ̄ at home);
    * `length`: Σ ‖Δ̄ here‖ / Σ ‖Δ̄ at home‖ over texts.

    Two models must have the same vocabulary.
    """

    implementation: ClassVar[str] = "latentbench.mechanism.transfer:measure_agreement"

    metric: Literal["transfer_agreement"] = "transfer_agreement"

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        if not isinstance(experiment.steering, TransferMethod):
            return (f"{self.metric!r} compares vectors with where they come from: it needs `method: transfer`",)
        return super().problems_in(experiment, roots)

    def numbers(self) -> tuple[Estimator, ...]:
        return (
            _number("cosine", "cosine", "cosine", "texts"),
            _number("length", "ratio", "here", "home"),
        )


def _number(name: str, unit: str, above: str, below: str) -> Estimator:
    return Estimator(
        id=f"{NAME}.{name}",
        version=1,
        unit=unit,
        higher_is_better=None,
        inputs=(f"{NAME}.{above}", f"{NAME}.{below}"),
        formula=lambda summed, number: summed / number,
        units="problems",
    )
