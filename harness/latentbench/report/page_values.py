"""Numbers and texts as a page holds them: few digits, and each text once, referred to by number."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, overload

from latentbench.autointerp.windows import TokenTexts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@overload
def short(value: float) -> float: ...
@overload
def short(value: float | None) -> float | None: ...
def short(value: float | None) -> float | None:
    """Three significant digits; None for what is missing or not finite, which JSON cannot hold."""
    if value is None or not math.isfinite(value):
        return None
    return int(value) if value == int(value) and abs(value) < 1000 else float(f"{value:.3g}")


class Vocabulary:
    """Texts in the order of their first use."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._pieces = TokenTexts(tokenizer)
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
