"""A record in two: what only it says, and parts that many records share.

Seeds share an experiment, rows share a machine and the facts by which they may be compared. Apart from those, a record is a
few kilobytes, so that ten thousand fit into memory, and into a line each of what is kept of checked records. Put together
again it equals the record that was validated: it is built without validation, which is for what was validated before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel

from latentbench.core.spec_model import Json
from latentbench.records.numbers import Numbers
from latentbench.records.record import Record

LAYOUT = 1
"""Raised when records or their parts are taken apart in another way."""
SHARED = ("spec", "resolved", "comparability", "environment")
"""Fields that many records share."""
_HEADINGS, _PATTERN = "headings", "pattern"


def slim(record: Record) -> tuple[Json, dict[str, str]]:
    """What only this record says, and the parts that it names, as JSON text by their digests."""
    plain = record.model_dump(mode="json", exclude={"metrics"})
    titles, values, ends, counted, why = Numbers.of(record.metrics).columns
    texts = {name: _text(plain.pop(name)) for name in SHARED} | {_HEADINGS: titles, _PATTERN: counted}
    named = {name: part_digest(text) for name, text in texts.items()}
    own = {"own": plain, "parts": named, "values": values, "ends": ends, "why": why}
    return own, {named[name]: text for name, text in texts.items()}


def part_digest(text: str) -> str:
    """By which a record names a part."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Parts:
    """Parts of records, each built once and shared by all that name it."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._built: dict[tuple[str, str], Any] = {}

    def add(self, texts: Mapping[str, str]) -> None:
        """Parts by their digests."""
        self._texts.update(texts)

    def missing(self, own: Json) -> set[str]:
        """The parts that a record names and that are not here."""
        return {digest for digest in own["parts"].values() if digest not in self._texts}

    def whole(self, own: Json) -> Record:
        """The record again; all its parts must be here. Raises KeyError, TypeError or ValueError for what `slim` did not make."""
        named, makers = own["parts"], _makers(Record)
        fields = {name: makers[name](value) for name, value in own["own"].items()}
        fields |= {name: self.shared(name, named[name]) for name in SHARED}
        titles, counted = self._texts[named[_HEADINGS]], self._texts[named[_PATTERN]]
        numbers = Numbers(titles, own["values"], own["ends"], counted, own["why"])
        return Record.model_construct(**fields, metrics=numbers)

    def shared(self, name: str, digest: str) -> Any:
        """The one object that is this field of all records that name the part."""
        if (name, digest) not in self._built:
            self._built[name, digest] = _makers(Record)[name](json.loads(self._texts[digest]))
        return self._built[name, digest]


Maker = Callable[[Any], Any]


@cache
def _makers(model: type[BaseModel]) -> dict[str, Maker]:
    """Of each field of a model what builds its value from JSON."""
    return {name: _maker(field.annotation) for name, field in model.model_fields.items()}


def _maker(annotation: Any) -> Maker:
    origin, args = get_origin(annotation), [arg for arg in get_args(annotation) if arg is not NoneType]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return lambda plain: _built(annotation, plain)
    if origin is Annotated:
        return _maker(args[0])
    if origin is tuple:
        each = _maker(args[0])
        return lambda plain: tuple(map(each, plain))
    if origin is dict and _maker(args[1]) is not _as_it_is:
        each = _maker(args[1])
        return lambda plain: {name: each(value) for name, value in plain.items()}
    if len(args) == 1 and origin is not dict and NoneType in get_args(annotation):
        given = _maker(args[0])
        return _as_it_is if given is _as_it_is else lambda plain: None if plain is None else given(plain)
    return _as_it_is


def _as_it_is(plain: Any) -> Any:
    return plain


def _built(model: type[BaseModel], plain: Mapping[str, Any]) -> BaseModel:
    makers = _makers(model)
    return model.model_construct(**{name: makers[name](value) for name, value in plain.items()})


def _text(value: Json) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
