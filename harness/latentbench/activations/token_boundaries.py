"""Where a text can be cut so that the tokens before the cut are those of the whole text, whatever follows.

In general far-away text can change a token: a rule may look ahead, and the merges of one long word depend on each other.
So a cut is offered only between a letter or digit and a space, and only where each step of the tokenizer is known to
end there:

* no added token holds a letter or digit followed by a space,
* the normaliser changes single characters, or composes them with their marks, or makes runs of spaces one,
* the pre-tokenizer parts words there; or its rules look no further, and no piece of the vocabulary holds that letter
  followed by a space, so that no merge and no best path leads across.

Where this is not known, `TokenBoundaries.of` returns None and texts have to be tokenised whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from unicodedata import ucd_3_2_0

from latentbench.core.spec_model import Json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNDERLINE = "\N{LOWER ONE EIGHTH BLOCK}"  # what SentencePiece writes for a space
_SPACES = (" ", _UNDERLINE)
_CHARACTERWISE = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Strip", "Prepend")
_COMPOSING = {"NFC", "NFKC"}
_BY_CHARACTER = ("Digits", "Punctuation")
_AT_SPACES = ("WhitespaceSplit", "Whitespace")

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORDS = (
    {r" ?\p{L}+"},
    {rf"{_LEAD}\p{{L}}+"},
    {rf"{_LEAD}[\p{{L}}\p{{M}}]+"},
    {rf"{_LEAD}{_UPPER}*{_LOWER}+", rf"{_LEAD}{_UPPER}+{_LOWER}*"},
    {rf"{_LEAD}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?", rf"{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"},
)
"""Alternatives of published tokenizers (GPT-2, Llama 3, Qwen, Mistral, gpt-oss) that together take every letter."""
_NUMBERS = {r"\p{N}", r"\p{N}+", r" ?\p{N}+", r"\p{N}{1,3}"}
_REST = {
    *(r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*"),
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    *(_CONTRACTIONS, "'s", "'t", "'re", "'ve", "'m", "'ll", "'d"),
    *(r"[\r\n]", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"),
}
_KNOWN = _REST.union(_NUMBERS, *_WORDS)
"""No alternative here matches anything visible and then a space, or looks beyond a space that follows its match."""
_ALTERNATIVE = re.compile(r"(?:\\.|\[(?:\\.|[^\]\\])*\]|\((?:\\.|[^()\\])*\)|[^|\\\[(])+")


class _Unknown(Exception):
    """A part of a tokenizer of which nothing is known here."""


@dataclass(frozen=True)
class TokenBoundaries:
    """The certain cuts in texts of one tokenizer."""

    normalizer: Any
    """The tokenizer's normaliser or None."""
    letters: frozenset[str] | None
    """Letters and digits, as the normaliser has them, from which no token leads on to a space; None: all."""

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerBase) -> TokenBoundaries | None:
        """What is certain of a tokenizer; None where nothing is."""
        from transformers import PreTrainedTokenizerFast as Fast

        if not isinstance(tokenizer, Fast):
            return None
        if (type(tokenizer).__call__, type(tokenizer)._encode_plus) != (Fast.__call__, Fast._encode_plus):
            return None  # it does more than the steps looked at below
        backend = tokenizer.backend_tokenizer
        try:
            space, parts_words = _pre_tokenized(_state(backend.pre_tokenizer), _normalized(_state(backend.normalizer)))
        except _Unknown:
            return None
        if any(map(_crosses, _added_tokens(backend))):
            return None
        letters = None if parts_words else _separable(backend, space)
        return TokenBoundaries(backend.normalizer, letters) if letters != frozenset() else None

    def last(self, text: str, end: int) -> int:
        """The last certain cut of `text` at or before `end`; 0 when there is none."""
        # From 1 on: a cut before the first character would leave nothing in front of it.
        while (end := text.rfind(" ", 1, end + 1)) > 0:
            if self._certain_after(text[end - 1]):
                return end
            end -= 1
        return 0

    def _certain_after(self, letter: str) -> bool:
        if _in_word(letter) and self.normalizer is not None:
            letter = self.normalizer.normalize_str(letter)[-1:]
        return _in_word(letter) and (self.letters is None or letter in self.letters)


def _in_word(character: str) -> bool:
    """Whether it is a letter or digit, and was one in Unicode 3.2: a tokenizer's tables may be older than Python's."""
    return character != "" and ucd_3_2_0.category(character).startswith(("L", "Nd"))


def _state(part: Any) -> Json:
    """Settings of a normaliser or pre-tokenizer as tokenizer.json has them, None without one. Raises _Unknown."""
    try:
        return None if part is None else json.loads(part.__getstate__())
    except Exception as error:  # the library has no type of its own for what is written in Python
        raise _Unknown from error


def _normalized(part: Json, space: str = " ") -> str:
    """What a normaliser makes of a space. Raises _Unknown."""
    match part:
        case None:
            return space
        case {"type": "Sequence", "normalizers": list(steps)}:
            for step in steps:
                space = _normalized(step, space)
            return space
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if len(old) == 1:
            return _known_space(new) if old == space else space
        case {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": str(new)} if new == space:
            return space
        case {"type": kind} if kind in _CHARACTERWISE:
            return space
    raise _Unknown


def _kinds(normalizer: Json) -> Iterator[str]:
    for step in (normalizer or {}).get("normalizers", ()):
        yield from _kinds(step)
    yield from (normalizer["type"],) if normalizer else ()


def _pre_tokenized(part: Json, space: str) -> tuple[str, bool]:
    """What a pre-tokenizer makes of a space, and whether it parts words before every one. Raises _Unknown.

    What follows in a sequence after words were parted sees each word alone, so whatever it is, it cannot look further.
    """
    match part:
        case None:
            return space, False
        case {"type": "Sequence", "pretokenizers": list(steps)}:
            parts_words = False
            for step in steps:
                if not parts_words:
                    space, parts_words = _pre_tokenized(step, space)
            return space, parts_words
        case {"type": "Metaspace", "replacement": str(new), "split": bool(parts_words)}:
            return _known_space(new), parts_words
        case {"type": "ByteLevel", "use_regex": True} if space == " ":
            return space, True
        case {"type": "Split", "pattern": {"String": str(at)}, "behavior": str(behaviour), "invert": False}:
            return space, _parts_at(at, behaviour, space)
        case {"type": "Split", "pattern": {"Regex": str(rule)}, "behavior": str(behaviour)} if space == " ":
            return space, _parts_by(rule, behaviour)
        case {"type": kind} if kind in _AT_SPACES and space == " ":
            return space, True
        case {"type": kind} if kind in _BY_CHARACTER:
            return space, False
    raise _Unknown


def _known_space(text: str) -> str:
    """`text` where it stands for a space and, like one, is neither letter nor punctuation. Raises _Unknown."""
    if text not in _SPACES:
        raise _Unknown
    return text


def _parts_at(text: str, behaviour: str, space: str) -> bool:
    """Whether splitting at `text` parts words before every space. Raises _Unknown where it may lead across."""
    if text != space and space in text:
        raise _Unknown
    return text == space and behaviour in ("Isolated", "Removed", "MergedWithNext")


def _parts_by(rule: str, behaviour: str) -> bool:
    """Whether splitting by a regular expression parts words before every space. Raises _Unknown for alternatives not listed above."""
    alternatives = _ALTERNATIVE.findall(rule)
    if "|".join(alternatives) != rule or not (found := set(alternatives)) <= _KNOWN:
        raise _Unknown
    takes_all = any(words <= found for words in _WORDS) and not _NUMBERS.isdisjoint(found)
    return takes_all and behaviour in ("Isolated", "Removed")


def _added_tokens(backend: Any) -> Iterator[str]:
    """Added tokens as they are looked for: in the text itself, or in what the normaliser made of it."""
    for token in backend.get_added_tokens_decoder().values():
        normalized = token.normalized and backend.normalizer is not None
        yield backend.normalizer.normalize_str(token.content) if normalized else token.content


def _crosses(piece: str) -> bool:
    return any(_in_word(before) and after in _SPACES for before, after in pairwise(piece))


def _separable(backend: Any, space: str) -> frozenset[str]:
    """Letters and digits from which no piece of the vocabulary leads on to a space; none where the model may look further.

    The letter and the space must be pieces themselves, for unknown neighbours can be fused into one token. A normaliser
    that composes could make another letter of it, depending on what stands before.
    """
    from tokenizers import models

    model = backend.model
    if isinstance(model, models.BPE):
        affixes = (model.continuing_subword_prefix, model.end_of_word_suffix)
        local = not (model.dropout or model.ignore_merges or any(affixes))
    else:
        local = isinstance(model, models.Unigram) and model.alpha is None
    pieces = backend.get_vocab(with_added_tokens=False)
    if not local or space not in pieces or not _COMPOSING.isdisjoint(_kinds(_state(backend.normalizer))):
        return frozenset()
    crossing = {before for piece in pieces for before, after in pairwise(piece) if after == space}
    return frozenset(piece for piece in pieces if len(piece) == 1 and _in_word(piece)) - crossing
