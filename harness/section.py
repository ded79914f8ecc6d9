"""The base of every part of a spec: immutable, closed to unknown keys, free of NaN and infinity."""

from __future__ import annotations

from typing import Any

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

    def plain(self) -> dict[str, Json]:
        """All fields, defaults included, as JSON data."""
        return self.model_dump(mode="json")
