"""What ends an answer: one rule for the rollouts of a training and for an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from latentbench.activations.vocabulary import embedding_rows, end_ids, known
from latentbench.core.protocols import LanguageModel


class Stops:
    """The end tokens of a model, and texts that end an answer too."""

    def __init__(self, lm: LanguageModel, texts: Sequence[str] = ()) -> None:
        self._tokenizer: Any = lm.tokenizer
        self._texts = tuple(texts)
        special = {text: self._special(text, embedding_rows(lm.model)) for text in self._texts}
        self.tokens: frozenset[int] = frozenset(end_ids(lm)) | {
            token for token in special.values() if token is not None
        }
        """Ids that end an answer. A text that is a special token ends it as that token, not as text: decoding leaves
        special tokens out, so their text never appears."""
        self.texts: tuple[str, ...] = tuple(text for text, token in special.items() if token is None)
        """The others, found in the text, also where no token border meets theirs."""
        # Every token but a special one is at least a byte, so as many tokens hold any occurrence that ends now; one more
        # because some tokenizers decode the first token of a row without its space.
        self.window = max((len(text.encode()) for text in self.texts), default=0) + 1
        """The most generated tokens that `found` reads of a row."""

    def found(self, rows: Sequence[Sequence[int]]) -> list[bool]:
        """Of each row of generated ids, whether one of `texts` ends in its last token."""
        if not self.texts or not rows:
            return [False] * len(rows)
        recent = [list(row[-self.window :]) for row in rows]
        tails = self._tokenizer.batch_decode(recent, skip_special_tokens=False)
        return [any(text in tail for text in self.texts) for tail in tails]

    def cut(self, text: str) -> str:
        """`text` up to the first stop text."""
        return text[: min((text.index(stop) for stop in self._texts if stop in text), default=len(text))]

    def _special(self, text: str, rows: int) -> int | None:
        """The id of a special token of that name, if there is one and the model knows it."""
        added = self._tokenizer.added_tokens_decoder
        named = {token.content for token in added.values() if token.special} | set(self._tokenizer.all_special_tokens)
        return known(self._tokenizer.convert_tokens_to_ids(text), rows) if text in named else None
