"""One number of rows that two things distinguish, as a matrix: what is varied last across, all else down."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from latentbench.core.errors import InvalidInput
from latentbench.leaderboard.board import Row

NOTHING = "–"


def two_way(rows: Sequence[Row], shown: Callable[[Row], str], corner: str) -> list[list[str]]:
    """Lines of a table, the heading first. A label `middle,steering.layers=4` stands in the line `middle` and the column
    `steering.layers=4`; `corner` says what the numbers are.

    Raises InvalidInput for a label of one part, and for two rows of one label, which have no cell of their own.
    """
    cells: dict[tuple[str, str], str] = {}
    for row in rows:
        down, comma, across = row.label.rpartition(",")
        if not comma:
            raise InvalidInput(f"the row {row.label!r} is told by one thing alone, so it has no place in a matrix")
        if (down, across) in cells:
            raise InvalidInput(f"two rows are called {row.label!r}")
        cells[down, across] = shown(row)
    heads = _ordered({across for _, across in cells})
    lines = [
        [down, *(cells.get((down, across), NOTHING) for across in heads)] for down in _ordered({d for d, _ in cells})
    ]
    return [[corner, *heads], *lines]


def _ordered(texts: set[str]) -> list[str]:
    """By the numbers in them where they have some, so that 4 comes before 16 and 0.25 before 0.5."""
    return sorted(texts, key=lambda text: [(0, float(part)) if number else (1, part) for part, number in _parts(text)])


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    for number, other in re.findall(r"(\d+(?:\.\d+)?)|(\D+)", text):
        yield (number or other), bool(number)
