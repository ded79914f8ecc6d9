"""Columns instead of rows: JSON that says once what thousands of rows share. `data.js` reads it back.

A column is written as the shortest of

* `{"all": value}`, the same in every row,
* `{"of": [value, …], "at": [place, …]}`, few values of which every row names one,
* `{"in": [row, …], "as": [value, …]}`, absent in most rows,
* the plain list.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

from latentbench.core.spec_model import Json

DIGITS = 8
"""Significant digits of a number with a fraction: more than are shown, and enough to sort by."""


_PLAIN = frozenset({int, float, str, type(None)})
"""What is told apart by its value alone; 1 equals True in Python."""


def packed(values: Sequence[Json]) -> Json:
    """A column of numbers, strings, truths and nulls. Nested values are told apart by their JSON, and 0 from 0.0."""
    types = set(map(type, values))
    keys = values if types <= _PLAIN and not {int, float} <= types else [_key(value) for value in values]
    distinct = dict(zip(keys, values, strict=True))
    if len(distinct) <= 1:
        return {"all": values[0] if len(values) else None}
    present = [row for row, value in enumerate(values) if value is not None]
    if 2 * len(present) < len(values):
        return {"in": present, "as": [values[row] for row in present]}
    # A place is a few characters, so numbers seldom gain by being named.
    if 2 * len(distinct) <= len(values) and any(isinstance(value, str | list | dict) for value in values):
        places = {key: place for place, key in enumerate(distinct)}
        return {"of": list(distinct.values()), "at": [places[key] for key in keys]}
    return list(values)


def _key(value: Json) -> tuple[str, str]:
    return type(value).__name__, json.dumps(value)


def digits(value: float | None, places: int = DIGITS) -> float | None:
    """A number with so many significant digits; a whole one as it is, and what JSON cannot hold as nothing."""
    if value is None or isinstance(value, int):
        return value
    return float(f"{value:.{places}g}") if math.isfinite(value) else None


def shaped(trees: Sequence[Json]) -> Json:
    """Nested data of many rows: every form once, with columns of what stands at its leaves.

    `of` says which form each row has; a form's columns hold its rows in their order.
    """
    forms: dict[str, int] = {}
    columns: dict[str, list[list[Json]]] = defaultdict(list)
    of: list[int] = []
    for tree in trees:
        leaves: list[Json] = []
        form = json.dumps(_form(tree, leaves), ensure_ascii=False)
        of.append(forms.setdefault(form, len(forms)))
        columns[form].append(leaves)
    found = [{"form": json.loads(form), "leaves": list(_packed(columns[form]))} for form in forms]
    return {"of": packed(of), "forms": found}


def _packed(rows: Sequence[Sequence[Json]]) -> Iterator[Json]:
    return (packed(column) for column in zip(*rows, strict=True))


def _form(tree: Json, leaves: list[Json]) -> Json:
    """The tree with the numbers of its leaves in place of what stands there, which goes into `leaves`."""
    if isinstance(tree, dict):
        return {str(name): _form(part, leaves) for name, part in tree.items()}
    if isinstance(tree, list | tuple):
        return [_form(part, leaves) for part in tree]
    leaves.append(tree)
    return len(leaves) - 1
