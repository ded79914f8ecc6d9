"""Tokens as the text they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Pieces:
    """The text of single tokens, spaces included, so that the pieces of a window joined are its text.

    A token that is part of a character becomes U+FFFD, as tokenizers decode it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}
        # Tokenizers drop the space in front of the first token they decode, so nothing is decoded alone.
        anchor = tokenizer.encode("a", add_special_tokens=False)
        self._anchor = [int(anchor[-1])] if anchor else []
        self._before = self._decoded(self._anchor)

    def __getitem__(self, token: int) -> str:
        if token not in self._known:
            joined = self._decoded([*self._anchor, token])
            behind = joined.startswith(self._before) and len(joined) > len(self._before)
            self._known[token] = joined[len(self._before) :] if behind else self._decoded([token])
        return self._known[token]

    def _decoded(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))
