"""The base of every part of a spec: immutable, closed to unknown keys, free of NaN and infinity."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

Json = Any
"""Plain JSON data: dict, list, str, int, float, bool or None."""


class Section(BaseModel):
    """A frozen pydantic model that refuses unknown keys; field docstrings become schema descriptions."""

    model_config = ConfigDict(
        extra="forbid",
        populate_by_name=True,
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    handling: ClassVar[frozenset[str]] = frozenset()
    """Fields that say how the work is done (time limits, retries) and not what comes out: they are in no key."""

    def plain(self) -> dict[str, Json]:
        """All fields, defaults included, as JSON data."""
        return self.model_dump(mode="json")

    def determining(self) -> dict[str, Json]:
        """Like `plain`, without the `handling` of this section and of those that its fields hold."""
        made = {name: value for name, value in self.plain().items() if name not in self.handling}
        inner = ((name, getattr(self, name)) for name in made)
        return made | {name: value.determining() for name, value in inner if isinstance(value, Section)}
