"""The documents of a domain as text pieces, and windows as text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from latentbench.activations.tokens import EvalTokens, real_mask, special_mask
from latentbench.metrics.autointerp.best import Found, Integers
from latentbench.metrics.autointerp.examples import Window
from latentbench.metrics.autointerp.pieces import Pieces
from latentbench.metrics.autointerp.sampling import Places


class Texts:
    """Ordinary tokens of the documents: neither padding nor special."""

    def __init__(self, tokens: EvalTokens, pieces: Pieces, special: NDArray[np.bool_]) -> None:
        self._ids, self._pieces = tokens.ids.numpy(), pieces
        self._ordinary = real_mask(tokens.lengths, tokens.ids.shape[1]).numpy() & ~special
        self.lengths: Integers = self._ordinary.sum(1).astype(np.int64)
        """[documents] numbers of ordinary tokens."""

    @staticmethod
    def of(tokens: EvalTokens, tokenizer: object) -> Texts:
        """The texts of evaluation documents."""
        return Texts(tokens, Pieces(tokenizer), special_mask(tokens.ids, tokenizer).numpy())  # type: ignore[arg-type]

    def pieces(self, document: int, start: int, window: int) -> tuple[str, ...]:
        """The texts of at most `window` ordinary tokens."""
        ids = self._ids[document][self._ordinary[document]][start : start + window]
        return tuple(self._pieces[token] for token in ids.tolist())

    def windows(self, found: Found) -> list[Window]:
        """Windows in which a latent fires."""
        parts = zip(found.document.tolist(), found.start.tolist(), found.activations, strict=True)
        return [self._window(document, start, activations.tolist()) for document, start, activations in parts]

    def inactive(self, places: Places, chosen: Integers, window: int) -> list[Window]:
        """Windows without the latent."""
        silent = [0.0] * window
        return [self._window(int(places.document[i]), int(places.start[i]), silent) for i in chosen]

    def _window(self, document: int, start: int, activations: list[float]) -> Window:
        tokens = self.pieces(document, start, len(activations))
        return Window(tokens, tuple(activations[: len(tokens)]), document, start)
