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
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from latentbench.core.spec_model import Json
from latentbench.metrics.base import Estimator
from latentbench.metrics.value import MetricValue
from latentbench.statistics.arrays import Array
from latentbench.study.study import Findings, Study

if TYPE_CHECKING:
    from torch import Tensor

    from latentbench.core.paths import Roots
    from latentbench.study.context import ExperimentView, StageContext

DOMAIN = "weights"
"""The numbers belong to no text; this is the column group they stand in."""


def _mean(total: Array, latents: Array) -> Array:
    return total / latents


MAX_COSINE = Estimator(
    "decoder.max_cosine",
    1,
    "cosine",
    False,
    ("decoder.max_cosine", "decoder.latents"),
    _mean,
    units="latents",
    paired=False,
)
ENCODER_COSINE = Estimator(
    "decoder.encoder_cosine",
    1,
    "cosine",
    None,
    ("decoder.linear_encoder_cosine", "decoder.latents"),
    _mean,
    units="latents",
    paired=False,
)


class Decoder(Study):
    """Largest cosine of decoder rows to each other, and cosine of encoder and decoder."""

    metric: Literal["decoder"] = "decoder"

    def numbers(self) -> tuple[Estimator, ...]:
        return MAX_COSINE, ENCODER_COSINE

    def domains(self, experiment: ExperimentView) -> tuple[str, ...]:
        return ()

    def comparability(self, experiment: ExperimentView, roots: Roots) -> Mapping[str, Mapping[str, Json]]:
        return {DOMAIN: {"layer": str(experiment.sites[0])}}

    def run(self, lab: StageContext) -> Findings:
        from latentbench.core.errors import InvalidInput
        from latentbench.latents.decoder_similarity import decoder_of, encoder_of, nearest, row_cosines

        try:
            rows = decoder_of(lab.sae).float()
        except InvalidInput as error:
            return Findings(values=tuple(_null(number, str(error)) for number in self.numbers()))
        real = rows.norm(dim=1) > 0
        found = {"max_cosine": nearest(rows, 1).cosines[:, 0]} if len(rows) > 1 else {}
        with suppress(InvalidInput):  # no linear encoder: "not measured: decoder.linear_encoder_cosine"
            found["linear_encoder_cosine"] = row_cosines(encoder_of(lab.sae).float(), rows)
        return Findings({DOMAIN: _statistics(found, real)})


def _statistics(found: Mapping[str, Tensor], real: Tensor) -> dict[str, Array]:
    values = {name: (value * real).double().cpu().numpy() for name, value in found.items()}
    return {f"decoder.{name}": value for name, value in {**values, "latents": real.double().cpu().numpy()}.items()}


def _null(number: Estimator, reason: str) -> MetricValue:
    return MetricValue(
        id=number.id,
        version=number.version,
        domain=DOMAIN,
        value=None,
        null_reason=reason,
        unit=number.unit,
        higher_is_better=number.higher_is_better,
    )
