"""Numbers and foreign text as every renderer shows them."""

from __future__ import annotations

import re
import unicodedata

_MARKDOWN = re.compile(r"([\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|^[#+-])")
"""Everything that means something in the middle of a line or table cell; an underscore within a word does not."""
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
DECIMALS = {"fraction": 3, "cosine": 4, "latents/token": 1, "nats/token": 3}


def number(value: float | None, unit: str) -> str:
    """A number with as many digits as its unit deserves; a dash for a missing one."""
    if value is None:
        return "–"
    if abs(value) >= 1e6 or (value != 0 and abs(value) < 5e-4):
        return f"{value:.2e}"
    return f"{value:.{DECIMALS[unit]}f}" if unit in DECIMALS else f"{value:.4g}"


def spread(sd: float, unit: str) -> str:
    """A standard deviation with the digits of its number; what rounds to nothing is said to be small."""
    if unit not in DECIMALS or sd == 0:
        return number(sd, unit)
    least = 10.0 ** -DECIMALS[unit]
    return f"<{least:.{DECIMALS[unit]}f}" if sd < least / 2 else f"{sd:.{DECIMALS[unit]}f}"


def p_value(p: float | None) -> str:
    """A p-value, never as an exact zero."""
    return "" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def seconds(value: float | None) -> str:
    """A duration."""
    if value is None:
        return "–"
    for size, unit in ((3600, "h"), (60, "min")):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.1f} s"


def plain(text: str) -> str:
    """Text from a record with everything that could steer a terminal or reorder a line made visible."""
    return "".join(_visible(character) for character in text)


def markdown(text: str) -> str:
    """Text from a record as one inert line of Markdown."""
    shown = plain(text.replace("\r", " ").replace("\n", " ")).replace("&", "&amp;").replace("<", "&lt;")
    # GitHub makes links of bare addresses.
    return _MARKDOWN.sub(r"\\\1", shown.replace(">", "&gt;").replace("://", ":&#47;&#47;"))


def _visible(character: str) -> str:
    if character == "\n":
        return character
    unsafe = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _BIDI
    return f"\\u{ord(character):04x}" if unsafe else character
