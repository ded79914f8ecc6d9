"""A learned edit inside a low-rank subspace of the residual stream: h ← h + scale · Rᵀ(W h + b − R h) (LoReFT, arXiv 2404.03592).

R [r, d] has orthonormal rows, W is [r, d] and b [r]. With W = R and b = 0 nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256

from torch import Tensor

from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Site
from latentbench.core.spec_model import Json
from latentbench.interventions.changes import PLAIN, Change, Use, where_strong, widened
from latentbench.interventions.changing import StateChange, changing
from latentbench.interventions.intervention import Layout, Receipt, Scope
from latentbench.interventions.vectors import SteeringVectors


@dataclass(frozen=True)
class SubspaceEdit:
    """What is learned."""

    basis: Tensor
    """R [r, d], orthonormal rows."""
    weight: Tensor
    """W [r, d]."""
    bias: Tensor
    """b [r]."""


def editing(edit: SubspaceEdit, scale: float = 1.0) -> Change:
    """h ← h + scale · strength · Rᵀ(W h + b − R h); gradients flow into the edit."""

    def change(hidden: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        wide = widened(hidden)
        basis, weight, bias = (part.to(wide) for part in (edit.basis, edit.weight, edit.bias))
        moved = (wide @ (weight - basis).T + bias) @ basis
        left = wide + scale * strength[..., None].to(wide.dtype) * moved
        return where_strong(strength, left, hidden), strength.bool()

    return change


class Reft(StateChange):
    """A trained edit behind one block, at the tokens in scope that `use` leaves."""

    def __init__(
        self, layer: int, edit: SubspaceEdit, scale: float = 1.0, scope: Scope = "all", use: Use = PLAIN
    ) -> None:
        self.layer, self.edit, self.scale, self.scope, self.use = layer, edit, scale, scope, use

    @property
    def sites(self) -> tuple[Site, ...]:
        return (Site(index=self.layer),)

    @property
    def identity(self) -> Json:
        total = sha256(f"{self.layer} {list(self.edit.basis.shape)}\n".encode())
        for part in (self.edit.basis, self.edit.weight, self.edit.bias):
            total.update(part.detach().float().cpu().contiguous().numpy().tobytes())
        return {"reft": total.hexdigest(), "scale": self.scale, "scope": self.scope, **self.use.identity}

    @contextmanager
    def applied(self, lm: LanguageModel, layout: Layout | None = None, *, idle: bool = False) -> Iterator[Receipt]:
        SteeringVectors({self.layer: self.edit.basis[0]}).check(lm.model)
        changes = {self.sites[0]: editing(self.edit, self.scale)}
        with changing(lm.model, changes, self.scope, self.use, layout, tokenizer=lm.tokenizer, idle=idle) as receipt:
            yield receipt
