"""What the weights alone say about latents.

With d_i the decoder row of latent i and e_i its encoder row:

| number | formula |
| --- | --- |
| `decoder.max_cosine` | mean over i of max_{j ≠ i} cos(d_i, d_j): how much atoms repeat each other |
| `decoder.encoder_cosine` | mean over i of cos(e_i, d_i); null where the encoder is not linear (KronSAE) |

Over latents whose decoder row is not zero, dead ones included: the weights do not know what fires. A wider dictionary
in the same space must have larger cosines, so only equal widths should be compared. Version 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from latentbench.core.spec_model import Json
from latentbench.metrics.base import Estimator, ratio
from latentbench.study.study import Study

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.study.context import ExperimentView

DOMAIN = "weights"
"""The numbers belong to no text; this is the column group they stand in."""


def _of_latents(name: str, better: bool | None, statistic: str) -> Estimator:
    inputs = (f"decoder.{statistic}", "decoder.latents")
    return Estimator(f"decoder.{name}", 1, "cosine", better, inputs, ratio, units="latents", paired=False)


NUMBERS = (
    _of_latents("max_cosine", False, "max_cosine"),
    _of_latents("encoder_cosine", None, "linear_encoder_cosine"),
)


class Decoder(Study):
    """Largest cosine of decoder rows to each other, and cosine of encoder and decoder."""

    implementation: ClassVar[str] = "latentbench.latents.decoder_similarity:measure_decoder"

    metric: Literal["decoder"] = "decoder"

    def numbers(self) -> tuple[Estimator, ...]:
        return NUMBERS

    def domains(self, experiment: ExperimentView) -> tuple[str, ...]:
        return ()

    def comparability(self, experiment: ExperimentView, roots: Roots) -> Mapping[str, Mapping[str, Json]]:
        return {DOMAIN: {"layer": str(experiment.sites[0])}}
