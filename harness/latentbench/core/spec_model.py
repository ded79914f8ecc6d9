"""The base of every part of a spec: immutable, closed to unknown keys, free of NaN and infinity."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict

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
        use_attribute_docstrings=True,
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


def without_empty(name: str, plain: dict[str, Json]) -> dict[str, Json]:
    """The data of a part without a field that is empty: the field is newer than records, whose keys and facts stay as they were."""
    return {field: value for field, value in plain.items() if value or field != name}


def without_default(model: type[SpecModel], names: Collection[str], plain: dict[str, Json]) -> dict[str, Json]:
    """The data of a part without those of the fields `names` that have their default, for the same reason: they are newer."""
    fields = model.model_fields
    return {name: value for name, value in plain.items() if name not in names or value != fields[name].default}


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
