"""Windows of text around what a latent does: the examples it is explained from and the questions it is scored by, and tokens as text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from latentbench.core.errors import LatentbenchError
from latentbench.core.text import folded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TokenTexts:
    """The text of single tokens, spaces included, so that those of a window joined are its text.

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


MARKED = 0.3
"""Tokens whose activation is at least this share of the window's strongest are marked."""


@dataclass(frozen=True)
class Window:
    """Consecutive ordinary tokens of one document with one latent's activations."""

    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    """Absolute activation at each token, 0 where the latent is inactive."""
    document: int
    start: int
    """Number of the first token among the document's ordinary tokens."""

    @property
    def text(self) -> str:
        """What a reader sees."""
        return "".join(self.tokens)

    @property
    def words(self) -> str:
        """The text with its white space folded: windows that agree in it are the same example."""
        return folded(self.text)

    @property
    def peak(self) -> float:
        """The strongest activation, 0 in a window without the latent."""
        return max(self.activations, default=0.0)

    @property
    def peak_token(self) -> str:
        """The token at which the latent is strongest."""
        return self.tokens[self.activations.index(self.peak)]

    @property
    def marks(self) -> tuple[bool, ...]:
        """Which tokens carry the activation: those of at least 0.3 of the peak."""
        return tuple(value > 0 and value >= MARKED * self.peak for value in self.activations)

    def overlaps(self, other: Window) -> bool:
        """Whether the two share a token."""
        first, second = sorted((self, other), key=lambda window: window.start)
        return self.document == other.document and second.start < first.start + len(first.tokens)


@dataclass(frozen=True)
class Question:
    """One question: does the window hold the latent (detection), or are the marks right (fuzzing)?"""

    window: Window
    truth: bool
    marks: tuple[bool, ...] | None = None
    """None in detection."""

    @property
    def text(self) -> str:
        """The window's text."""
        return self.window.text


@dataclass(frozen=True)
class LatentQuestions:
    """Everything asked about one latent."""

    latent: int
    active: tuple[Window, ...]
    """What the explanation is made from."""
    inactive: tuple[Window, ...]
    """Windows of the same documents without the latent, for judges that learn from both."""
    detection: tuple[Question, ...]
    """In the order in which they are asked; as many true as false."""
    fuzzing: tuple[Question, ...]
    """Half of them true; of the others one half has wrong marks, one half is without the latent."""
    hard: int = 0
    """How many of the inactive windows of detection are hard ones."""

    def __post_init__(self) -> None:
        check_disjoint((*self.active, *self.inactive), (*self.detection, *self.fuzzing))


def check_disjoint(explained: Iterable[Window], asked: Iterable[Question]) -> None:
    """Raises LatentbenchError when a text or a document is both explained from and asked about."""
    seen = list(explained)
    texts, documents = {window.words for window in seen}, {window.document for window in seen}
    for item in asked:
        if item.window.words in texts or item.window.document in documents:
            raise LatentbenchError(
                f"autointerp: a text of document {item.window.document} is among both the explainer's examples and the "
                "scorer's questions; the score would be void. Please report this."
            )
