"""What all judges share: those that learn a rule instead of being asked in words, replies that never came, and label probabilities.

A `RuleJudge` learns from examples. `answered` sees to it that a judge whose endpoint is gone does not look like one that
answers badly. `ones_of` says how sure a chat model was of the labels it wrote (`Reply.ones`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, Protocol

from latentbench.core.errors import NotAvailable
from latentbench.core.protocols import Judge, Reply

WindowTokens = tuple[str, ...]
"""The tokens of one window as text."""
WindowMarks = tuple[bool, ...]
"""Which of a window's tokens are marked."""


class ActiveWindow(Protocol):
    """A window in which a latent fires."""

    @property
    def tokens(self) -> WindowTokens:
        """The window's tokens."""

    @property
    def activations(self) -> tuple[float, ...]:
        """The latent's activation at each of them, 0 where it is inactive."""


class Rule(ABC):
    """What was learned about one latent."""

    explanation: str
    """The rule as a sentence."""

    @abstractmethod
    def detect(self, windows: Sequence[WindowTokens]) -> list[float]:
        """The probability, for each window, that the latent fires in it."""

    @abstractmethod
    def fuzz(self, windows: Sequence[tuple[WindowTokens, WindowMarks]]) -> list[float]:
        """The probability, for each window, that the marked tokens are those on which the latent fires."""


class RuleJudge(Judge):
    """A judge without words; its answers are probabilities, made by the same protocol from the same examples."""

    deterministic: ClassVar[bool] = True

    @property
    def graded(self) -> bool:
        return True

    @abstractmethod
    def learn(self, active: Sequence[ActiveWindow], inactive: Sequence[WindowTokens]) -> Rule:
        """A rule from windows in which the latent fires and windows in which it does not."""


GONE = 8
"""So many requests in a row without an answer, retries included, and the endpoint counts as gone."""


def answered(replies: Iterable[Reply], judge: str) -> Iterator[Reply]:
    """Passes the replies of the judge called `judge` on; transcripts keep what was answered.

    Raises NotAvailable as soon as the endpoint is gone, and at the end when any request got no answer: a score without
    them would differ from an undisturbed run's, and be stored.
    """
    lost = row = total = 0
    first = ""
    for reply in replies:
        total, lost, row = total + 1, lost + reply.lost, row + 1 if reply.lost else 0
        first = first or (reply.error or "" if reply.lost else "")
        if row == GONE:
            raise NotAvailable(_said(judge, f"{row} requests in a row", first))
        yield reply
    if lost:
        raise NotAvailable(_said(judge, f"{lost} of {total} requests", first))


def _said(judge: str, which: str, first: str) -> str:
    return (
        f"the judge {judge} did not answer {which} (first: {first}). What it answered is kept; run again to ask only the "
        "rest, or set `unanswered: count` on the judge to count them as failures"
    )


_LABELS = ("0", "1")


def ones_of(steps: Iterable[tuple[str, Mapping[str, float]]]) -> dict[int, float]:
    """Offset of every token that is 0 or 1 alone, to the probability of 1 against 0 there.

    `steps` are the written tokens in order, each with the probabilities of tokens that could have stood there (the
    written one among them, or certain). Spaces around a digit do not count.
    """
    found, offset = {}, 0
    for token, others in steps:
        if token.strip() in _LABELS:
            zero, one = (sum(p for other, p in others.items() if other.strip() == label) for label in _LABELS)
            written = float(token.strip())
            found[offset + len(token) - len(token.lstrip())] = one / (zero + one) if zero + one > 0 else written
        offset += len(token)
    return found
