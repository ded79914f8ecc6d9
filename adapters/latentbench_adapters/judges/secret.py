"""The key of an endpoint, struck out of everything that comes back from there before it is kept, shown or logged.

Servers repeat a key in errors and answers: whole, cut off, as part of a header or an address, or masked. Struck are

* every run of 8 characters or more that stands in the key, in any case, and in the key as base64, hexadecimal, a part of
  an address, JSON, Python or HTML (of a shorter key: the whole of it),
* a masked key (`sk-…wxyz`, `sk-abc***`) that shows 4 characters or more: it begins, goes on and ends as the key does.

A server that means to hide the key in its answer can still do so, as a cipher of its own; it was given the key.
"""

from __future__ import annotations

import html
import json
import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import replace
from string import ascii_lowercase, ascii_uppercase
from urllib.parse import quote

from latentbench.core.protocols import Reply

STRUCK = "[key]"
_RUN = 8
"""Characters of a key that are struck wherever they stand; fewer are as likely a word."""
_SHOWN = 4
"""Characters that a masked key has to show; fewer, such as `sk-…`, give nothing away."""
_LOWER = str.maketrans(ascii_uppercase, ascii_lowercase)
"""Unlike `str.lower`, leaves every character at its place."""
_WORD = re.compile(r"[^\s\"'`<>()\[\]{},;:=&?]+")
_MASK = re.compile(r"[*#•●·…]+|\.{2,}|[xX]{3,}")


class Secret:
    """A key that must not be seen; None where there is none."""

    def __init__(self, key: str | None) -> None:
        self._key = key or ""
        self._runs: dict[int, set[str]] = {}
        for form in map(_lowered, _forms(key) if key else ()):
            length = min(_RUN, len(form))
            self._runs.setdefault(length, set()).update(
                form[start : start + length] for start in range(len(form) - length + 1)
            )

    def struck(self, text: str) -> str:
        """The text with `[key]` for every piece of the key."""
        hidden = bytearray(len(text))
        for start, stop in (*self._pieces(_lowered(text)), *self._masked(text)):
            hidden[start:stop] = b"\x01" * (stop - start)
        made, last = [], 0
        for match in re.finditer(rb"\x01+", bytes(hidden)):
            made += [text[last : match.start()], STRUCK]
            last = match.end()
        return "".join([*made, text[last:]])

    def struck_from(self, reply: Reply) -> Reply:
        """The reply without the key; places in its text are forgotten where that moves them."""
        text, error = (None if said is None else self.struck(said) for said in (reply.text, reply.error))
        return replace(reply, text=text, error=error, ones=reply.ones if text == reply.text else None)

    def _pieces(self, lowered: str) -> Iterator[tuple[int, int]]:
        for length, runs in self._runs.items():
            for start in range(len(lowered) - length + 1):
                if lowered[start : start + length] in runs:
                    yield start, start + length

    def _masked(self, text: str) -> Iterator[tuple[int, int]]:
        longest = 2 * len(self._key) + 16
        for word in _WORD.finditer(text) if self._key else ():
            if len(word[0]) <= longest and any(map(self._shows, (word[0], word[0].rstrip(".")))):
                yield word.span()

    def _shows(self, word: str) -> bool:
        """Whether this is the key with masks over some of it."""
        first, *between = _MASK.split(word)
        if not between or len(first) + sum(map(len, between)) < _SHOWN or not self._key.startswith(first):
            return False
        place, last = len(first), between.pop()
        for piece in between:
            if (place := self._key.find(piece, place)) < 0:
                return False
            place += len(piece)
        return self._key.endswith(last) and len(self._key) - len(last) >= place


def _lowered(text: str) -> str:
    return text.translate(_LOWER)


def _forms(key: str) -> Iterator[str]:
    """The key, and as what else it may be written where that is long enough not to be a word."""
    yield key
    yield from (form for form in _encoded(key) if len(form) >= _RUN)


def _encoded(key: str) -> Iterator[str]:
    yield from (quote(key, safe=""), json.dumps(key)[1:-1], repr(key)[1:-1], html.escape(key), key.encode().hex())
    for before in range(3):  # bytes in front of it, which decide how base64 falls on it
        padded = b"\0" * before + key.encode()
        for encode in (b64encode, urlsafe_b64encode):
            # Six bits a character; the outer ones also hold bits of what stands before and after.
            yield encode(padded).decode()[-(-8 * before // 6) : 8 * len(padded) // 6]
