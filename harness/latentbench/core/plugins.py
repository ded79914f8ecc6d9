"""Everything that plugs in, found through entry points so that other packages can add to it without a fork.

    latentbench.models     language models         latentbench.variants   SAE variants
    latentbench.datasets   text documents          latentbench.sources    SAEs trained elsewhere
    latentbench.problems   problems with answers   latentbench.methods    ways to a steering vector
    latentbench.metrics    metrics                 latentbench.judges     who explains and scores latents

An entry point's name is what a spec writes; its value is a `SpecModel` class that imports no torch. Two more groups are asked
for by name and not written in specs:

    latentbench.exports    formats of other libraries for SAEs (`latentbench.sae.sources.base.SaeFormat`)
    latentbench.tasks      libraries of reasoning tasks (`latentbench.reasoning.task_suite.TaskSuite`)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema, core_schema

from latentbench.core.errors import NotAvailable
from latentbench.core.spec_model import Json, SpecModel

Group = str
GROUPS = ("models", "datasets", "problems", "variants", "sources", "methods", "metrics", "judges")


@cache
def plugins(group: Group) -> dict[str, type[SpecModel]]:
    """All registered spec models of a group by name. Raises NotAvailable for a plug-in that is broken or doubled."""
    found: dict[str, type[SpecModel]] = {}
    for point in _points(group):
        try:
            loaded = point.load()
        except (ImportError, AttributeError) as error:
            raise NotAvailable(f"the plug-in {point.name} = {point.value} cannot be imported: {error}") from error
        if found.setdefault(point.name, loaded) is not loaded:
            raise NotAvailable(f"two installed packages both provide {point.name!r} in latentbench.{group}")
    return found


@cache
def plugin(group: Group, name: str) -> Any:
    """The one plug-in of a group that is called `name`: neither a broken neighbour nor its import counts.

    Raises NotAvailable where none or several are installed, or it cannot be imported.
    """
    points = [point for point in _points(group) if point.name == name]
    if len({point.value for point in points}) != 1:
        raise NotAvailable(f"{len(points)} installed packages provide {name!r} in latentbench.{group}; it needs one")
    point = points[0]
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise NotAvailable(f"the plug-in {point.name} = {point.value} cannot be imported: {error}") from error


def _points(group: Group) -> tuple[EntryPoint, ...]:
    """What is registered, by name."""
    return tuple(sorted(_registered().select(group=f"latentbench.{group}"), key=lambda point: point.name))


@cache
def _registered() -> Any:  # what has `select`; which class it is depends on the version of Python
    """Read once: each look goes through the metadata of every installed package."""
    return entry_points()


@cache
def package_version(name: str) -> str:
    """Version of an installed package, read once: every cell asks. Raises PackageNotFoundError."""
    return version(name)


def implementation(reference: str) -> Any:
    """What `module:name` names. So a declaration says what carries it out without importing it, and torch with it.

    Raises NotAvailable where it cannot be imported.
    """
    module, _, name = reference.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise NotAvailable(f"{reference} cannot be imported: {error}") from error


class Choice:
    """Annotates a field that holds one of a group's spec models, told apart by the key `tag`."""

    def __init__(self, group: Group, tag: str, **others: type[SpecModel]) -> None:
        self.group = group
        self.tag = tag
        self.others = others
        """Further spec models, recognised by the presence of their name as a key."""

    def choices(self) -> dict[str, type[SpecModel]]:
        """What a spec may name here."""
        return {**plugins(self.group), **self.others}

    def read(self, value: Json) -> Any:
        """The spec model that a map stands for, read strictly and as JSON like a whole spec. Raises pydantic's ValidationError.

        For fields that hold what they are themselves among the choices of: their models cannot be built without each other.
        """
        return self._adapter.validate_json(json.dumps(value), strict=True)

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(Annotated[Any, self])

    # Called when a schema that holds the field is built, so plug-ins are imported when something is first validated and not
    # when the class with the field is. Pydantic knows the alternatives then, and says which of them were expected.
    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        made = {name: handler.generate_schema(cls) for name, cls in self.choices().items()}
        if not made:  # nothing of this group is installed
            return handler(source)
        discriminator: str | Callable[[Any], Any] = self._chosen if self.others else self.tag
        return core_schema.tagged_union_schema(made, discriminator=discriminator)

    def _chosen(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return getattr(value, self.tag, None) or next(
                (name for name, cls in self.others.items() if isinstance(value, cls)), None
            )
        return next((name for name in self.others if name in value), value.get(self.tag))
