"""Adding vectors to hidden states of a running model.

A vector of layer l is added to one hidden state of decoder block l, its output or what its place says: h_l(t) ← h_l(t) + Δ_l
at every token t in scope, never at padding. The vectors may be parameters: gradients flow into them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from latentbench.core.errors import CellFailed
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import OUTPUT, Place, Site
from latentbench.core.spec_model import Json
from latentbench.interventions.changes import PLAIN, Use, adding
from latentbench.interventions.changing import StateChange, changing
from latentbench.interventions.intervention import Layout, Receipt, Scope
from latentbench.interventions.vectors import SteeringVectors


class VectorInjection(StateChange):
    """Steering vectors times a scale, added at the tokens in scope that `use` leaves.

    `relative` scales are fractions of the mean residual norm: Δ_l = scale · mean‖h_l‖ · v_l / ‖v_l‖, with the norms that
    `vectors.residual_norms` hold. Raises InvalidInput where they are missing.
    """

    def __init__(
        self,
        vectors: SteeringVectors,
        scale: float = 1.0,
        scope: Scope = "all",
        relative: bool = False,
        use: Use = PLAIN,
    ) -> None:
        self.vectors, self.scale, self.scope, self.relative, self.use = vectors, scale, scope, relative, use
        self.deltas: Mapping[int, Tensor] = vectors.scaled(scale, relative)
        """Layer to what is added there, [d_model] float32."""

    @property
    def identity(self) -> Json:
        norms = {str(layer): norm for layer, norm in self.vectors.residual_norms.items()}
        return {
            "vectors": self.vectors.digest,
            "scale": self.scale,
            "scope": self.scope,
            "relative": norms if self.relative else None,
            **self.use.identity,
        }

    @property
    def adds(self) -> bool:
        return self.use.adds

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(Site(index=layer, point=self.vectors.place) for layer in self.vectors.layers)

    def with_scale(self, scale: float) -> VectorInjection:
        """The same at another scale."""
        return VectorInjection(self.vectors, scale, self.scope, self.relative, self.use)

    def only(self, *layers: int) -> VectorInjection:
        """The vectors of some layers alone. Raises InvalidInput for a layer without one."""
        return VectorInjection(self.vectors.only(*layers), self.scale, self.scope, self.relative, self.use)

    @contextmanager
    def applied(self, lm: LanguageModel, layout: Layout | None = None, *, idle: bool = False) -> Iterator[Receipt]:
        self.vectors.check(lm.model)
        deltas = {layer: delta.to(lm.device) for layer, delta in self.deltas.items()}
        changes = {Site(index=layer, point=self.vectors.place): adding(delta) for layer, delta in deltas.items()}
        with changing(lm.model, changes, self.scope, self.use, layout, tokenizer=lm.tokenizer, idle=idle) as receipt:
            yield receipt
        # |Δ| is measured as it arrived: 0 although something was asked for means that h + Δ rounded back to h everywhere.
        if receipt.steered and not receipt.relative_size and any(map(torch.any, deltas.values())):
            raise CellFailed(
                f"steering was not applied: the vectors are so small that {lm.model.dtype} rounds all of them away; "
                "raise `scale` or run the model in a finer `dtype`"
            )


@contextmanager
def injecting(
    model: nn.Module,
    deltas: Mapping[int, Tensor],
    scope: Scope = "all",
    layout: Layout | None = None,
    *,
    place: Place = OUTPUT,
    idle: bool = False,
) -> Iterator[Receipt]:
    """While open, `deltas[l]` [d_model] is added at `place` of block l at the tokens in `scope`; see `changing`."""
    changes = {Site(index=layer, point=place): adding(delta) for layer, delta in deltas.items()}
    with changing(model, changes, scope, layout=layout, idle=idle) as receipt:
        yield receipt
