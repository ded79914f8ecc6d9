"""Projecting directions out of the residual stream of a running model (arXiv 2406.11717 does so with one, at every layer)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256

import torch
from torch import Tensor

from latentbench.core.errors import InvalidInput
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import OUTPUT, Place, Site
from latentbench.core.spec_model import Json
from latentbench.interventions.changes import PLAIN, Use, projecting_out
from latentbench.interventions.changing import StateChange, changing
from latentbench.interventions.intervention import Layout, Receipt, Scope
from latentbench.interventions.vectors import SteeringVectors

_NEGLIGIBLE = 1e-6
"""Directions whose part outside of the others' span is smaller, relative to the largest, add rounding to it and no dimension."""


def orthonormal(directions: Tensor) -> Tensor:
    """Orthonormal rows [k, d] float32 that span those of `directions` [n, d]. Raises InvalidInput where these are all zero."""
    # Of equal length first: what counts is where they point, so that a short one is not lost beside a long one.
    lengths = directions.double().norm(dim=1, keepdim=True)
    pointing = (directions.double() / lengths.clamp_min(1e-30))[lengths[:, 0] > 0]
    if not len(pointing):
        raise InvalidInput("there is no direction to project out: the vectors are zero")
    _, sizes, rows = torch.linalg.svd(pointing, full_matrices=False)
    basis: Tensor = rows[sizes > _NEGLIGIBLE * sizes[0]].float()
    return basis


class Ablation(StateChange):
    """Directions projected out of a hidden state of some blocks: h ← h − scale · P h, P the projection on their span at the layer.

    `bases` holds orthonormal rows [k, d_model] by layer. With scale 1 nothing is left along them, with 2 it is reflected.
    """

    def __init__(
        self,
        bases: Mapping[int, Tensor],
        scale: float = 1.0,
        scope: Scope = "all",
        use: Use = PLAIN,
        place: Place = OUTPUT,
    ) -> None:
        self.bases = {layer: basis.float() for layer, basis in sorted(bases.items())}
        self.scale, self.scope, self.use, self.place = scale, scope, use, place

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(Site(index=layer, point=self.place) for layer in self.bases)

    @property
    def identity(self) -> Json:
        total = sha256(b"" if self.place == OUTPUT else f"{self.place}\n".encode())
        for layer, basis in self.bases.items():
            total.update(f"{layer} {list(basis.shape)}\n".encode() + basis.cpu().contiguous().numpy().tobytes())
        return {"ablated": total.hexdigest(), "scale": self.scale, "scope": self.scope, **self.use.identity}

    @contextmanager
    def applied(self, lm: LanguageModel, layout: Layout | None = None, *, idle: bool = False) -> Iterator[Receipt]:
        for layer, basis in self.bases.items():
            SteeringVectors({layer: basis[0]}).check(lm.model)
        changes = {
            site: projecting_out(basis.to(lm.device), self.scale)
            for site, basis in zip(self.sites, self.bases.values(), strict=True)
        }
        with changing(lm.model, changes, self.scope, self.use, layout, tokenizer=lm.tokenizer, idle=idle) as receipt:
            yield receipt
