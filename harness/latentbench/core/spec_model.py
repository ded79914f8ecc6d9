"""The base of every part of a spec: immutable, closed to unknown keys, free of NaN and infinity."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Collection
from functools import cache
from itertools import pairwise
from textwrap import dedent
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

if TYPE_CHECKING:
    from latentbench.core.paths import Roots

Json = Any
"""Plain JSON data: dict, list, str, int, float, bool or None."""


class SpecModel(BaseModel):
    """A frozen pydantic model that refuses unknown keys; field docstrings become schema descriptions."""

    model_config = ConfigDict(
        extra="forbid",
        populate_by_name=True,
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        defer_build=True,  # half of the start of a verb went into validators that it never used
    )

    handling: ClassVar[frozenset[str]] = frozenset()
    """Fields that say how the work is done (time limits, retries) and not what comes out: they are in no key."""

    def plain(self) -> dict[str, Json]:
        """All fields, defaults included, as JSON data."""
        return self.model_dump(mode="json")

    def determining(self) -> dict[str, Json]:
        """Like `plain`, without its `handling` and that of the parts that its fields hold."""
        made = {name: value for name, value in self.plain().items() if name not in self.handling}
        inner = ((name, getattr(self, name)) for name in made)
        return made | {name: value.determining() for name, value in inner if isinstance(value, SpecModel)}

    def pinned(self, roots: Roots) -> Self:
        """Itself with whatever may change (a branch of a hub repository) replaced by what it stands for now (a commit).

        Parts that name such a thing say how; all others ask the parts in their fields. Raises Unpinnable when
        the hub must be asked and does not answer.
        """
        held = {name: getattr(self, name) for name in type(self).model_fields}
        now = {name: _pinned(value, roots) for name, value in held.items()}
        # By identity and not by equality: whoever has nothing to pin returns itself, and then nothing is copied on the way up.
        changed = {name: value for name, value in now.items() if value is not held[name]}
        return self.model_copy(update=changed) if changed else self

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        # Pydantic can do this too, but for every model when it is defined: a tenth of `validate` was parsing its own source.
        made = handler(core)
        properties = handler.resolve_ref_schema(made).get("properties", {})
        for name, field in cls.model_fields.items():
            owner = next(base for base in cls.__mro__ if name in inspect.get_annotations(base))
            if text := _field_docstrings(owner).get(name):
                properties[field.alias or name].setdefault("description", text)
        return made


def without_default(model: type[SpecModel], names: Collection[str], plain: dict[str, Json]) -> dict[str, Json]:
    """The data of a part without those of the fields `names` that have their default.

    These fields are newer than records, whose keys and facts stay as they were.
    """
    defaults = _defaults(model, tuple(names))
    return {name: value for name, value in plain.items() if name not in defaults or not _says(value, defaults[name])}


@cache
def _defaults(model: type[SpecModel], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: model.model_fields[name].get_default(call_default_factory=True) for name in names}


def _says(plain: Json, value: object) -> bool:
    """Whether JSON data is that of a field's value: a tuple is a list there."""
    return bool(plain == value) or (isinstance(value, tuple) and plain == list(value))


@cache
def _field_docstrings(cls: type) -> dict[str, str]:
    """The docstrings of the fields that a class itself declares, by name; none where its source is not at hand."""
    try:
        (declared,) = ast.parse(dedent(inspect.getsource(cls))).body
    except (OSError, TypeError, SyntaxError):
        return {}
    assert isinstance(declared, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in pairwise(declared.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _pinned(value: Any, roots: Roots) -> Any:
    if isinstance(value, SpecModel):
        return value.pinned(roots)
    if isinstance(value, tuple):
        now: Any = tuple(_pinned(one, roots) for one in value)
        return value if all(new is old for new, old in zip(now, value, strict=True)) else now
    if isinstance(value, dict):
        now = {name: _pinned(one, roots) for name, one in value.items()}
        return value if all(now[name] is value[name] for name in value) else now
    return value
