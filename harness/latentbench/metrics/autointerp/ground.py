"""What both passes over the documents share: the SAE, the texts, the two sides, and the windows drawn beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from latentbench.activations.capture import hidden_states
from latentbench.activations.site import Site
from latentbench.activations.tokens import EvalTokens
from latentbench.canonical import seed_of
from latentbench.errors import InvalidInput
from latentbench.lab import Lab
from latentbench.measure.batches import DocumentBatch
from latentbench.measure.domain import Domain
from latentbench.metrics.autointerp.best import Integers
from latentbench.metrics.autointerp.protocol import Protocol
from latentbench.metrics.autointerp.sampling import TEST, TRAIN, Places, random_places, sides
from latentbench.metrics.autointerp.texts import Texts
from latentbench.sae.base import SparseAutoencoder
from latentbench.sae.codes import Codes

Budget = int | None
Take = Callable[[Budget, DocumentBatch, Codes], None]

PASSES = 2

_POOL = 2048
"""Windows per side that inactive ones are taken from."""
_FORWARD_TOKENS = 4096


@dataclass(frozen=True)
class Ground:
    """One SAE on one domain. All but `lab` and `sae` follows from the tokens, the protocol and the seed."""

    lab: Lab
    site: Site
    sae: SparseAutoencoder
    protocol: Protocol
    seed: int
    tokens: EvalTokens
    texts: Texts
    sides: Integers
    """[documents] 0 (train) or 1 (test)."""
    pool: Places

    @staticmethod
    def of(lab: Lab, protocol: Protocol, domain: str) -> Ground:
        """Raises InvalidInput unless the cell has exactly one SAE."""
        saes = lab.saes()
        if len(saes) != 1:
            raise InvalidInput(f"autointerp needs one SAE, the spec has {len(saes)}")
        seed, tokens = lab.seed("autointerp"), lab.tokens(domain)
        texts, halves = Texts.of(tokens, lab.tokenizer()), sides(tokens.units.shared(tokens.digests), seed)
        pool = _drawn(texts.lengths, halves, protocol.window, seed)
        return Ground(lab, *next(iter(saes.items())), protocol, seed, tokens, texts, halves, pool)

    @property
    def ordinary_tokens(self) -> int:
        """Of all documents."""
        return int(self.texts.lengths.sum())

    @torch.no_grad()
    def each_batch(self, done: int, budgets: Sequence[Budget], take: Take) -> None:
        """One pass over the documents: the model once per batch, the SAE once per budget. `done` passes came before."""
        total = len(self.tokens.ids)

        def progress(documents: int, _: int) -> None:
            self.lab.progress(done * total + documents, PASSES * total)

        domain = Domain(self.lab.model(), self.tokens, _FORWARD_TOKENS, progress)
        for batch in domain.batches():
            states = hidden_states(domain.model, [self.site], batch.ids, batch.real.long())
            x = states[self.site][batch.ordinary].float()
            self.sae.to(x.device).eval()
            for budget in budgets:
                take(budget, batch, _checked(self.sae.encode(x, budget)))


def _drawn(lengths: Integers, halves: Integers, window: int, seed: int) -> Places:
    drawn = [
        random_places(lengths, halves == side, window, _POOL, seed_of(seed, "places", side)) for side in (TRAIN, TEST)
    ]
    return Places(np.concatenate([p.document for p in drawn]), np.concatenate([p.start for p in drawn]))


def _checked(codes: Codes) -> Codes:
    if not codes.values.isfinite().all():
        raise InvalidInput("autointerp: the SAE has activations that are not finite numbers")
    return codes
