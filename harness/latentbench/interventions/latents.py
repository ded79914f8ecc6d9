"""Latents of an SAE set to other values in a running model, where the SAE reads: h ← h + Σ (z' − z) · v.

What the SAE does not explain of the hidden state stays, since only the change of the latents is decoded (as in Scaling
Monosemanticity, Anthropic 2024).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from latentbench.activations.massive import UNLIMITED, NormLimit, OrdinaryTokens
from latentbench.core.errors import InvalidInput
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Site
from latentbench.core.spec_model import Json
from latentbench.interventions.changes import PLAIN, Change, Use, where_strong, widened
from latentbench.interventions.changing import StateChange, changing
from latentbench.interventions.intervention import Layout, Receipt, Scope
from latentbench.sae.autoencoder import Codes, SparseAutoencoder


@dataclass(frozen=True)
class PlacedSae:
    """An SAE where it reads."""

    sae: SparseAutoencoder
    site: Site
    limit: NormLimit = UNLIMITED
    """Longer hidden states are massive: the SAE was not made for them, so nothing is read or changed there."""
    made: Json = None
    """What tells the SAE from every other one."""

    @property
    def identity(self) -> dict[str, Json]:
        """The SAE, its place and what it reads there."""
        return {"sae": self.made, "site": str(self.site), "longest": self.limit.plain()["length"]}

    def rows(self, latents: Tensor) -> Tensor:
        """Decoder rows [k, d] of latents [k]. Raises InvalidInput for an SAE without a dictionary or without these latents."""
        rows = self.sae.decoder_rows()
        if rows is None or int(latents.max()) >= len(rows):
            raise InvalidInput(f"there is no latent {int(latents.max())}; the dictionary width is {self.sae.width}")
        return rows[latents.to(rows.device)].detach()

    @torch.no_grad()
    def read(self, hidden: Tensor, asked: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Activations [N, k] of `latents` [k] at those of the `asked` tokens [B, T] that are not massive, and which these are."""
        counted = asked & OrdinaryTokens(limits={self.site: self.limit}).short(self.site, hidden)
        if not counted.any():
            return torch.zeros(0, len(latents), device=hidden.device), counted
        return activations(self.sae.encode(hidden[counted].float()), latents), counted


def activations(codes: Codes, latents: Tensor) -> Tensor:
    """[N, k] activations of latents [k] in codes of N tokens, 0 where a latent is not active."""
    one_by_one = [(codes.values * (codes.indices == latent)).sum(-1) for latent in latents.tolist()]
    return torch.stack(one_by_one, -1)


class LatentEdit(StateChange):
    """Latents set to a value (`clamp`) or multiplied by a number (`times`), the change multiplied by `scale`.

    Without `clamp` their activation a becomes `times` · a: 0 suppresses them.
    """

    def __init__(
        self,
        placed: PlacedSae,
        latents: Tensor,
        clamp: Tensor | None = None,
        times: float = 0.0,
        scale: float = 1.0,
        scope: Scope = "all",
        use: Use = PLAIN,
    ) -> None:
        self.placed, self.latents, self.clamp, self.times = placed, latents.long(), clamp, times
        self.scale, self.scope, self.use = scale, scope, use
        self.rows = placed.rows(self.latents).float()

    @property
    def sites(self) -> tuple[Site, ...]:
        return (self.placed.site,)

    @property
    def identity(self) -> Json:
        to: Json = {"times": self.times} if self.clamp is None else {"clamp": self.clamp.tolist()}
        used = {"scale": self.scale, "scope": self.scope, **self.use.identity}
        return {**self.placed.identity, "latents": self.latents.tolist(), **to, **used}

    @contextmanager
    def applied(self, lm: LanguageModel, layout: Layout | None = None, *, idle: bool = False) -> Iterator[Receipt]:
        changes = {self.placed.site: self._change}
        with changing(lm.model, changes, self.scope, self.use, layout, tokenizer=lm.tokenizer, idle=idle) as receipt:
            yield receipt

    @property
    def _change(self) -> Change:
        def change(hidden: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
            active, counted = self.placed.read(hidden, strength.bool(), self.latents)
            moved = (active * self.times if self.clamp is None else self.clamp.to(active)) - active
            wide = widened(hidden)
            delta = torch.zeros_like(wide)
            delta[counted] = (moved @ self.rows.to(moved)).to(wide.dtype)
            changed = counted.clone()
            changed[counted] = (moved != 0).any(-1)
            left = wide + self.scale * strength[..., None].to(wide.dtype) * delta
            return where_strong(changed, left, hidden), changed

        return change
