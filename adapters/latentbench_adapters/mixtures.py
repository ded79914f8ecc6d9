"""`adapter: mix`: several texts as one, in stated shares, in an order that follows from nothing but what they are.

The next document always comes from the part that has given least for its weight, so at every moment the shares are exact to one
document of each part, and nothing is drawn by chance. What an SAE is given is shuffled later anyway (`training.buffer`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from latentbench.core.errors import InvalidInput
from latentbench.core.paths import Roots
from latentbench.core.plugins import Choice
from latentbench.core.protocols import DatasetAdapter
from latentbench.core.spec_model import Json, SpecModel
from latentbench.core.text import plural
from latentbench.core.texts import ByText, Reading

_DATASETS = Choice("datasets", "adapter")


def _parse_texts(value: Any) -> Any:
    """The dataset that a map in a spec stands for; what is wrong in it is reported at its place in the spec."""
    if isinstance(value, DatasetAdapter):
        return value
    if not isinstance(value, dict):
        raise ValueError("must be texts: {adapter: …}")
    return _DATASETS.read(value)


class MixedPart(SpecModel):
    """One of the texts of a mixture."""

    texts: Annotated[Any, BeforeValidator(_parse_texts)]
    """Texts as under `dataset.train`, with `skip`, `documents`, `by_text` and `distinct` of their own. What they say of rows
    (`context`, `tokens`, `repeat`, `packing`, `prepend_bos`) is the mixture's to say and is not read."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Its share is its weight out of the sum of all."""
    name: Annotated[str, Field(min_length=1, max_length=60)] | None = None
    """How notes call it; default `part 1`, `part 2`, …"""


WhenOut = Literal["stop", "go_on", "repeat"]


class MixedDataset(DatasetAdapter):
    """Documents of several texts in turn, each with a share of its own."""

    adapter: Literal["mix"] = "mix"
    parts: Annotated[tuple[MixedPart, ...], Field(min_length=1)]
    """What is mixed."""
    by: Literal["characters", "documents"] = "characters"
    """What the shares are shares of."""
    when_out: WhenOut = "stop"
    """What happens when the part whose turn it is has no more: the mixture ends (so that its shares hold to the end), the others
    go on in theirs, or the part begins again. The record says which part it was."""

    def identity(self, roots: Roots) -> Json:
        parts = [{"share": share, **part.texts.identity_of_read(roots)} for part, share in self._shares()]
        return {"parts": parts, "by": self.by, "when_out": self.when_out}

    @property
    def splits(self) -> tuple[ByText, ...]:
        return (*super().splits, *(split for part in self.parts for split in part.texts.splits))

    def texts(self, roots: Roots) -> Reading:
        """The documents; the notes of what is read tell the shares and which part ran out."""
        sources = [
            _Source(part.name or f"part {number}", part.texts, share, roots)
            for number, (part, share) in enumerate(self._shares(), 1)
        ]
        return Reading(self._mixed(sources), lambda: _notes(sources, self.by, self.when_out))

    def _shares(self) -> Iterator[tuple[MixedPart, float]]:
        total = sum(part.weight for part in self.parts)
        return ((part, part.weight / total) for part in self.parts)

    def _mixed(self, sources: list[_Source]) -> Iterator[str]:
        left = list(sources)
        while left:
            source = min(left, key=lambda one: one.given(self.by) / one.share)  # the first of equals
            text = source.next()
            if text is None and self.when_out == "repeat":
                text = source.again()
            if text is not None:
                yield text
            elif self.when_out == "go_on":
                left.remove(source)
            else:
                return


@dataclass(eq=False)
class _Source:
    """A part while it is read."""

    name: str
    data: DatasetAdapter
    share: float
    roots: Roots
    documents: int = 0
    characters: int = 0
    ends: list[int] = field(default_factory=list)
    """Documents it had given each time it ran out."""
    reading: Reading | None = None

    def given(self, by: Literal["characters", "documents"]) -> int:
        """What it has given so far."""
        return self.characters if by == "characters" else self.documents

    def next(self) -> str | None:
        """Its next document, or None where it has no more."""
        if self.reading is None:
            self.reading = self.data.read(self.roots)
        text = next(self.reading, None)
        if text is None:
            self.ends.append(self.documents)
        else:
            self.documents, self.characters = self.documents + 1, self.characters + len(text)
        return text

    def again(self) -> str:
        """Its first document once more. Raises InvalidInput where it has none."""
        self.reading = None
        text = self.next()
        if text is None:
            raise InvalidInput(f"{self.name} of a mixture has no documents, so it cannot be repeated")
        return text


_ENDED = {"stop": "which ended the mixture", "go_on": "and the others went on", "repeat": "and began again"}


def _notes(sources: list[_Source], by: Literal["characters", "documents"], when_out: WhenOut) -> tuple[str, ...]:
    total = sum(source.given(by) for source in sources) or 1
    shares = ", ".join(
        f"{source.name} {source.given(by) / total:.2%} of the {by} ({plural(source.documents, 'document')}; {source.share:.2%} wanted)"
        for source in sources
    )
    ends = (
        f"{source.name} ran out after {plural(source.ends[0], 'document')}, {_ENDED[when_out]}"
        for source in sources
        if source.ends
    )
    inner = (
        f"{source.name}: {note}" for source in sources if source.reading is not None for note in source.reading.notes
    )
    return (f"mixed of {shares}", *ends, *inner)
