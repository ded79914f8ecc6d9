"""Evaluation texts kept out of what is trained on.

What an SAE was trained to reconstruct says little of what it reconstructs, so texts of evaluation that stand among those of
training are told, left out, or refused. Letter for letter is not enough: the same abstract comes with other line ends, so white
space is folded first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from latentbench.core.errors import InvalidInput
from latentbench.core.hashing import canonical
from latentbench.core.paths import Roots
from latentbench.core.protocols import DatasetAdapter
from latentbench.core.spec_model import Json
from latentbench.core.text import folded, plural
from latentbench.core.text_digests import folded_digest_of
from latentbench.core.texts import Reading, notes_of


@dataclass(frozen=True)
class HeldOut:
    """Evaluation texts that are not to be trained on, and what becomes of a training document that has one of them."""

    found: Literal["remove", "refuse"]
    sets: Mapping[str, DatasetAdapter]
    """The evaluation sets by name."""

    def identity(self, roots: Roots) -> Json:
        """What determines which documents are left; names and order of the sets do not."""
        read = (data.identity_of_read(roots) for data in self.sets.values())
        return {"found": self.found, "texts": sorted(read, key=canonical)}

    def without(self, texts: Iterable[str], roots: Roots) -> Reading:
        """The texts that are in none of the sets. With `refuse` one that is raises InvalidInput, which says in which."""
        owners = {folded_digest_of(text): name for name, data in self.sets.items() for text in data.read(roots)}
        removed: Counter[str] = Counter()

        def kept() -> Iterator[str]:
            for number, text in enumerate(texts, 1):
                name = owners.get(folded_digest_of(text))
                if name is None:
                    yield text
                elif self.found == "refuse":
                    raise InvalidInput(_refusal(number, text, name))
                else:
                    removed[name] += 1

        def notes() -> tuple[str, ...]:
            own = (
                f"{plural(count, 'document')} left out of training because the evaluation set {name} has the text"
                for name, count in sorted(removed.items())
            )
            return (*notes_of(texts), *own)

        return Reading(kept(), notes)


def _refusal(number: int, text: str, name: str) -> str:
    return (
        f"training document {number} ({folded(text[:200])[:60]!r}…) has the text of a document of the evaluation set "
        f"{name}, and the spec says `overlap: refuse`; split both with `by_text`, or leave such documents out with "
        "`overlap: remove`"
    )
