"""Which rows of a table are read: conditions on its columns, written in a spec and never evaluated as code."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from latentbench.core.errors import InvalidInput
from latentbench.core.spec_model import Json, SpecModel

Value = str | int | float | bool


class RowFilter(SpecModel):
    """Keeps the rows that meet every condition it names, or leaves them out."""

    field: Annotated[str, Field(min_length=1)] | None = None
    """Column that is looked at; default the one with the text."""
    equals: Value | None = None
    """Its value. A cell of a CSV file is compared as text: 1 is `1` there and not `1.0`."""
    one_of: Annotated[tuple[Value, ...], Field(min_length=1)] | None = None
    """Its value is one of these."""
    contains: Annotated[str, Field(min_length=1)] | None = None
    """It has this text in it."""
    matches: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    """Regular expression in the syntax of RE2, which takes linear time; it may match anywhere, `^` and `$` are the ends."""
    min_length: NonNegativeInt | None = None
    """Characters it has at least."""
    max_length: PositiveInt | None = None
    """Characters it has at most."""
    at_least: float | None = None
    """It is a number that is not smaller."""
    at_most: float | None = None
    """It is a number that is not larger."""
    exclude: bool = False
    """Whether rows that meet all of that are left out; the others are then kept."""

    @model_validator(mode="after")
    def _says_something(self) -> Any:
        if not self.model_dump(exclude={"field", "exclude"}, exclude_none=True):
            raise ValueError("a filter names at least one condition, e.g. `equals: 1`")
        if self.matches is not None:
            _matched(self.matches, "")
        return self

    def keeps(self, row: Mapping[str, Json], text: str, where: str) -> bool:
        """Whether a row is read; `text` is that of the row. Raises InvalidInput for a row without the field."""
        if self.field is None:
            value: Json = text
        elif self.field in row:
            value = row[self.field]
        else:
            raise InvalidInput(f"{where}: no value under {self.field!r}; it has {', '.join(map(str, row))[:200]}")
        return self._meets(value) != self.exclude

    def _meets(self, value: Json) -> bool:
        wanted = (self.equals,) if self.equals is not None else self.one_of
        if wanted is not None and not any(_same(one, value) for one in wanted):
            return False
        if self.at_least is not None or self.at_most is not None:
            low = -math.inf if self.at_least is None else self.at_least
            high = math.inf if self.at_most is None else self.at_most
            if not low <= _number(value) <= high:  # what is no number is NaN, with which every comparison fails
                return False
        written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        fits = (self.min_length or 0) <= len(written) <= (self.max_length or len(written))
        found = self.contains is None or self.contains in written
        return fits and found and (self.matches is None or _matched(self.matches, written))


def _same(wanted: Value, value: Json) -> bool:
    if isinstance(value, str):
        return value == (wanted if isinstance(wanted, str) else json.dumps(wanted))
    # Python's True equals 1, JSON's true does not.
    return isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)


def _number(value: Json) -> float:
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan


def _matched(pattern: str, text: str) -> bool:
    """Whether RE2 finds the pattern. Raises ValueError for one it does not know."""
    import pyarrow as arrow
    import pyarrow.compute as compute

    try:
        return bool(compute.match_substring_regex(arrow.array([text]), pattern)[0].as_py())
    except arrow.ArrowInvalid as error:
        raise ValueError(f"{pattern!r} is no regular expression of RE2: {error}") from None
