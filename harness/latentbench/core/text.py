"""Text that is shown: counted words, and text from elsewhere made safe to print."""

import re

# C0 and C1 controls, line and paragraph separators, marks that reorder text, and halves of surrogate pairs.
_UNSAFE = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_IN_TEXT, _IN_CELL, _IN_LINE = (re.compile(f"[{more}{_UNSAFE}]") for more in ("", "\t", "\t\n"))


def byte_size(count: int) -> str:
    """`18.9 MB`, in the unit that suits."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def plural(count: int, word: str) -> str:
    """`1 cell`, `2 cells`."""
    return f"{count:,} {word}" + ("" if count == 1 else "s")


def printable(text: str) -> str:
    """Text that may hold anything, safe to print: what could steer a terminal or reorder a line becomes visible.

    Line feeds and tabs stay. The escapes are those of JSON, so that JSON stays JSON.
    """
    return _IN_TEXT.sub(_escaped, text)


def visible(text: str) -> str:
    """Text as `printable` makes it, without tabs, which would push the columns of a table apart; line feeds stay."""
    return _IN_CELL.sub(_escaped, text)


def one_line(text: str) -> str:
    """Text as `printable` makes it, on one line."""
    return _IN_LINE.sub(_escaped, text)


def folded(text: str) -> str:
    """The text with every run of white space as one space, and none at its ends."""
    return " ".join(text.split())


def _escaped(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"
