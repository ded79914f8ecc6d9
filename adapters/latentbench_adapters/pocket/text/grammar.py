"""A small template grammar: alternatives in brackets, slots in braces, and entities that persist in a document.

`[red|blue] {animal}` picks one alternative and fills the slot.  The first use of a slot draws it from the
lexicon and every later use repeats it, which gives documents long-range structure.  A trailing number makes a
second, different draw (`{animal2}`); `{person.1}` is the second form of an entry `"Ana/she/her/her"`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Lexicon = Mapping[str, Sequence[str] | range]

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{([a-z]+)(\d*)(?:\.(\d))?\}")
_SENTENCE = re.compile(r"(?<=[a-z][.?!] )[a-z]")
_ARTICLE = re.compile(r"\b([Aa]) (?=(?:[aeio]|u(?!n[ie]|s|r|t))[a-z]|8\d?\b|1[18]\b)")


@dataclass(frozen=True)
class Topic:
    """Sentence frames about one subject: one opening, `middle` frames in file order, one closing."""

    opening: tuple[str, ...]
    middle: tuple[str, ...]
    closing: tuple[str, ...]
    lexicon: Lexicon = field(default_factory=dict)


class Scene:
    """The entities of one document; the same slot always reads the same."""

    def __init__(self, rng: random.Random, *lexicons: Lexicon) -> None:
        self._rng = rng
        self._lexicons = lexicons
        self._bound: dict[str, str] = {}

    def say(self, template: str) -> str:
        """One sentence frame, expanded, with sentences capitalised and a/an agreeing."""
        text = self.fill(self._choose(template))
        text = _ARTICLE.sub(r"\1n ", text[:1].upper() + text[1:])
        return _SENTENCE.sub(lambda m: m[0].upper(), text)

    def fill(self, template: str) -> str:
        """The template with its slots filled and nothing else changed."""
        return _SLOT.sub(self._slot, template)

    def _choose(self, template: str) -> str:
        while "[" in template:  # innermost brackets first, so alternatives nest
            template = _CHOICE.sub(lambda m: self._rng.choice(m[1].split("|")), template)
        return template

    def _slot(self, match: re.Match[str]) -> str:
        kind, number, form = match[1], match[2], match[3]
        key = kind + number
        if key not in self._bound:
            self._bound[key] = self._draw(kind)
        entry = self._bound[key]
        return entry.split("/")[int(form or 0)] if "/" in entry else entry

    def _draw(self, kind: str) -> str:
        options = next(lexicon[kind] for lexicon in self._lexicons if kind in lexicon)
        taken = {value for key, value in self._bound.items() if key.rstrip("0123456789") == kind}
        while (drawn := str(self._rng.choice(options))) in taken and len(taken) < len(options):
            pass
        return drawn


def compose(rng: random.Random, topic: Topic, lexicon: Lexicon, asides: Sequence[str], low: int, high: int) -> str:
    """One document on `topic`: opening, `low`..`high` middle sentences in order, closing.

    Up to two of the domain's `asides` come in anywhere between opening and closing.
    """
    scene = Scene(rng, topic.lexicon, lexicon)
    count = min(rng.randint(low, high), len(topic.middle))
    frames = [topic.middle[i] for i in sorted(rng.sample(range(len(topic.middle)), count))]
    for aside in rng.sample(asides, rng.randint(0, 2)):
        frames.insert(rng.randint(0, len(frames)), aside)
    return " ".join(scene.say(frame) for frame in (rng.choice(topic.opening), *frames, rng.choice(topic.closing)))
