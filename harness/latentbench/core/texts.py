"""Which documents of a dataset are read: one side of a split by text, none twice, and what a reader must know of it.

Sets overlap: the same text stands in several of them under several labels, and often several times in one. A split by rows
would put it on both sides. Here its own words decide the side, so that whatever sets a text is in, it is on one side of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Literal

from pydantic import Field

from latentbench.core.spec_model import SpecModel
from latentbench.core.text import plural
from latentbench.core.text_digests import folded_digest_of

_DIGESTS = float(1 << 64)


class ByText(SpecModel):
    """One side of a split that the text itself decides, so that sets that share texts are split alike."""

    part: Literal["train", "eval"]
    """Which side is read."""
    eval_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of all texts that `eval` is given: those whose sha256, white space folded, is in the lowest part of its range. A
    larger share holds all texts of a smaller one."""

    def takes(self, folded: int) -> bool:
        """Whether it reads the text with this `folded_digest_of`."""
        return (folded / _DIGESTS < self.eval_share) == (self.part == "eval")

    def crosses(self, other: ByText) -> bool:
        """Whether the two are different sides and yet share texts, because `eval` is given more than `train` leaves out."""
        if self.part == other.part:
            return False
        train, evaluation = (self, other) if self.part == "train" else (other, self)
        return evaluation.eval_share > train.eval_share


class Reading(Iterator[str]):
    """Documents as they are read, and what there is to know of them once they are."""

    def __init__(self, texts: Iterator[str], notes: Callable[[], tuple[str, ...]] = tuple) -> None:
        self._texts, self._notes = texts, notes

    def __next__(self) -> str:
        return next(self._texts)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what was read so far: shares of a mixture, what was left out."""
        return self._notes()


def chosen(texts: Iterator[str], by_text: ByText | None, distinct: bool) -> Reading:
    """The texts that `by_text` takes, and with `distinct` each only once, white space aside; 8 bytes and some are kept for each."""
    seen: set[int] = set()
    repeated = 0

    def kept() -> Iterator[str]:
        nonlocal repeated
        for text in texts:
            folded = folded_digest_of(text)
            if by_text is not None and not by_text.takes(folded):
                continue
            if distinct and folded in seen:
                repeated += 1
                continue
            if distinct:
                seen.add(folded)
            yield text

    def notes() -> tuple[str, ...]:
        own = (f"{plural(repeated, 'document')} left out that repeat an earlier one",) if repeated else ()
        return (*notes_of(texts), *own)

    return Reading(kept() if by_text or distinct else texts, notes)


def notes_of(texts: object) -> tuple[str, ...]:
    """The notes of a `Reading`; none of any other source of texts."""
    return texts.notes if isinstance(texts, Reading) else ()
