"""Tokens of a page: each text stands in it once, and everything else refers to it by number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentbench.metrics.autointerp.pieces import Pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Vocabulary:
    """Texts in the order of their first use."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._pieces = Pieces(tokenizer)
        self.special: frozenset[int] = frozenset(tokenizer.all_special_ids)
        """Ids that stand for no text."""
        self._numbers: dict[str, int] = {}

    def token(self, token: int) -> int:
        """The number of a token of the model."""
        return self.text(self._pieces[token])

    def text(self, text: str) -> int:
        """The number of any text."""
        return self._numbers.setdefault(text, len(self._numbers))

    @property
    def texts(self) -> list[str]:
        """All texts by number."""
        return list(self._numbers)
