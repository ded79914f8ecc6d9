"""Rows of a table chosen by their labels, as `rows=topk-*,!untrained` says."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from latentbench.leaderboard.board import Row


@dataclass(frozen=True)
class RowPatterns:
    """Patterns of labels; one behind `!` leaves out, and where all do, every other row is meant."""

    patterns: tuple[str, ...] = ("*",)

    def __str__(self) -> str:
        return ", ".join(self.patterns)

    def wants(self, row: Row) -> bool:
        """Whether a row is meant."""
        named = [pattern for pattern in self.patterns if not pattern.startswith("!")] or ["*"]
        left_out = [pattern[1:] for pattern in self.patterns if pattern.startswith("!")]
        return _matches(row, named) and not _matches(row, left_out)


EVERY_ROW = RowPatterns()


def _matches(row: Row, patterns: list[str]) -> bool:
    return any(fnmatchcase(row.label, pattern) for pattern in patterns)
