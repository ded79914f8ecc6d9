"""Numbers, text from elsewhere, columns and rows as every renderer shows them."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Collection, Sequence

from latentbench.core.spec_model import Json
from latentbench.core.text import visible
from latentbench.leaderboard.board import BEYOND, Column, Row, RowGroup, ranked

_MARKDOWN = re.compile(r"([\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|^[#+-])")
"""Everything that means something in the middle of a line or table cell; an underscore within a word does not."""
DECIMALS = {"fraction": 3, "score": 3, "cosine": 4, "latents/token": 1, "nats/token": 3}
"""Digits after the point by unit; the HTML report has them from here, so that both show the same."""
MOST_DECIMALS = 5
THOUSANDS = 1e4
"""Counts from here on are written out."""


def decimals(unit: str, halves: Collection[float] = ()) -> int | None:
    """Digits after the point that a unit deserves, or more where half an interval would round to nothing.

    `halves` are half the widths of the intervals shown together. None for units that have no fixed number of digits.
    """
    if unit not in DECIMALS:
        return None
    middle = statistics.median([half for half in halves if half > 0] or [1.0])
    return max(DECIMALS[unit], min(MOST_DECIMALS, math.ceil(-math.log10(2 * middle))))


def decimals_of(group: RowGroup, column: Column) -> int | None:
    """Digits after the point of a column's numbers."""
    values = [row.values[column.key] for row in group.rows if column.key in row.values]
    widths = [value.high - value.low for value in values if value.high is not None and value.low is not None]
    return decimals(column.unit, [width / 2 for width in widths] if column.higher_is_better is not None else ())


def number(value: float | None, unit: str, places: int | None = None) -> str:
    """A number with as many digits as its unit deserves, or with `places` after the point; a dash for a missing one."""
    if value is None:
        return "–"
    places = DECIMALS.get(unit) if places is None else places
    if abs(value) >= 1e6 or (value != 0 and abs(value) < min(5e-4, 10.0 ** -(places or 0) / 2)):
        return f"{value:.2e}"
    if places is None and abs(value) >= THOUSANDS:
        return f"{value:,.0f}"
    return f"{value:.4g}" if places is None else f"{value:.{places}f}"


def spread(size: float, unit: str, places: int | None = None) -> str:
    """Half an interval or a standard deviation with the digits of its number; what rounds to nothing is small."""
    places = DECIMALS.get(unit) if places is None else places
    if places is None or size == 0:
        return number(size, unit, places)
    least = 10.0**-places
    return f"<{least:.{places}f}" if size < least / 2 else f"{size:.{places}f}"


BEYOND_LEGEND = f"{BEYOND} measured with more active latents per token than the SAE was trained with."


def fact(value: Json) -> str:
    """A fact of a spec or of a measurement as text; what a side lacks is absent."""
    return "absent" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


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


def markdown(text: str) -> str:
    """Text from a record as one inert line of Markdown."""
    shown = visible(text.replace("\r", " ").replace("\n", " ")).replace("&", "&amp;").replace("<", "&lt;")
    # GitHub makes links of bare addresses.
    return _MARKDOWN.sub(r"\\\1", shown.replace(">", "&gt;").replace("://", ":&#47;&#47;"))


def chosen_columns(group: RowGroup, wanted: Sequence[str] | None) -> tuple[Column, ...]:
    """The short table's columns, or those whose key, metric id or label is wanted (`all` for every column)."""
    if not wanted:
        return group.shown
    if "all" in wanted:
        return group.columns
    return tuple(c for c in group.columns if {c.key, c.metric, c.metric.partition(".")[0], c.label} & set(wanted))


def by_domain(group: RowGroup, columns: Sequence[Column], domain: str | None) -> tuple[list[Column], tuple[Row, ...]]:
    """A domain's columns, and its rows, best first: those with a number there and those without any."""
    own = [column for column in columns if column.domain == domain]
    rows = [r for r in group.rows if not r.measured or any(r.values[c.key].value is not None for c in own)]
    return own, ranked(rows, own)
