"""What is wrong with a file, said in its own words at its own line: pydantic's errors, and problems of our own.

Pydantic locates an error in the data that it validated. Between that and the file lie the names of alternatives (which variant
of a union was tried) and the short forms that were written out, so a location is followed as far as the file has it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import ValidationError

from latentbench.core.errors import SpecProblem
from latentbench.core.plugins import Choice
from latentbench.core.spec_model import SpecModel
from latentbench.core.yaml_tree import Step, YamlNode, YamlPath, dotted

_PLAIN = {
    "missing": "is required",
    "none_required": "must be empty",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be text",
    "dict_type": "must be a map of keys to values",
    "model_type": "must be a map of keys to values",
    "model_attributes_type": "must be a map of keys to values",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "finite_number": "must be a finite number",
}


def problems_of(error: ValidationError, tree: YamlNode, model: type[SpecModel]) -> list[SpecProblem]:
    """Every error of a validation as a problem at the line that caused it."""
    items: list[dict[str, Any]] = [dict(item) for item in error.errors(include_url=False)]
    # A list whose items are wrong is also counted as too short.
    wrong = {item["loc"][: len(item["loc"]) - depth] for item in items for depth in range(1, len(item["loc"]))}
    kept = (item for item in items if not (item["type"] == "too_short" and item["loc"] in wrong))
    return [_problem(item, tree, model) for item in kept]


def problem_at(tree: YamlNode, path: Iterable[Any], message: str) -> SpecProblem:
    """A problem of our own at `path`, or at the deepest part of it that the file has."""
    found, node = locate(tree, path)
    return node.mark.problem(message, dotted(found))


def suggestion(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'k'?)` for the nearest known word; otherwise the known words, if they are few."""
    names = sorted(set(known))
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (known: {', '.join(names)})" if names and len(names) <= 40 else ""


def locate(tree: YamlNode, path: Iterable[Any]) -> tuple[YamlPath, YamlNode]:
    """The deepest node along `path`, skipping steps that are names of alternatives and not keys of the file."""
    node, found = tree, tuple[Step, ...]()
    for step in path:
        child = node.child(step)
        if child is not None:
            node, found = child, (*found, step)
    return found, node


def _problem(item: dict[str, Any], tree: YamlNode, model: type[SpecModel]) -> SpecProblem:
    location = item["loc"]
    path, node = locate(tree, _in_file(model, location))
    mark = node.mark
    if item["type"] == "extra_forbidden":
        key = str(location[-1])
        mark = node.key_mark or node.mark
        return mark.problem(f"unknown key {key!r}" + suggestion(key, _keys(model, location[:-1])), dotted(path))
    if item["type"] == "missing":
        path = (*path, str(location[-1]))
    return mark.problem(_message(item, model, location), dotted(path))


def _message(item: dict[str, Any], model: type[SpecModel], location: tuple[Any, ...]) -> str:
    kind, context = item["type"], item.get("ctx", {})
    if kind == "union_tag_invalid":
        expected = [name.strip().strip("'") for name in context["expected_tags"].split(",")]
        return f"unknown {_tag(model, location)} {context['tag']!r}" + suggestion(context["tag"], expected)
    if kind == "union_tag_not_found":
        return f"say which {_tag(model, location)}: one of {', '.join(_names(model, location))}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return f"must be {context['expected']}, not {item['input']!r}"
    message = str(item["msg"])
    return _PLAIN.get(kind, message[0].lower() + message[1:]) + _given(item)


def _given(item: dict[str, Any]) -> str:
    value = item["input"]
    scalar = isinstance(value, str | int | float) and item["type"] != "missing"
    return f", not {str(value)[:60]!r}" if scalar and item["type"] in _PLAIN else ""


def _tag(model: type[SpecModel], location: tuple[Any, ...]) -> str:
    choice = _choice_at(model, location)
    return " or ".join([choice.tag, *choice.others]) if choice else "kind"


def _names(model: type[SpecModel], location: tuple[Any, ...]) -> list[str]:
    choice = _choice_at(model, location)
    return sorted(choice.choices()) if choice else []


def _keys(model: type[SpecModel], location: tuple[Any, ...]) -> list[str]:
    found = _model_at(model, location)
    return [field.alias or name for name, field in found.model_fields.items()] if found else []


def _model_at(model: type[SpecModel], location: tuple[Any, ...]) -> type[SpecModel] | None:
    """The spec model whose keys stand at `location`."""
    kinds = list(_follow(model, location))
    return next((kind for kind in reversed(kinds) if isinstance(kind, type) and issubclass(kind, SpecModel)), None)


def _choice_at(model: type[SpecModel], location: tuple[Any, ...]) -> Choice | None:
    return next((kind for kind in reversed(list(_follow(model, location))) if isinstance(kind, Choice)), None)


def _follow(model: type[SpecModel], location: tuple[Any, ...]) -> Iterable[type[SpecModel] | Choice]:
    """The spec models and choices passed on the way down `location`."""
    current: type[SpecModel] | Choice | None = model
    yield model
    for step in location:
        if isinstance(current, Choice):
            current = current.choices().get(str(step), current)
        elif current is not None:
            field = next((f for n, f in current.model_fields.items() if step in (n, f.alias)), None)
            current = _inside(field) if field else None
        if current is not None:
            yield current


def _in_file(model: type[SpecModel], location: tuple[Any, ...]) -> list[Any]:
    """The location without the step that names an alternative recognised by a key of the same name."""
    steps: list[Any] = []
    for number, step in enumerate(location):
        above = list(_follow(model, location[:number]))[-1]
        if not (isinstance(above, Choice) and step in above.others):
            steps.append(step)
    return steps


def _inside(annotation: Any) -> type[SpecModel] | Choice | None:
    """The spec model or choice that a field holds, looked for through optional, list and map types."""
    for found in getattr(annotation, "metadata", ()) or getattr(annotation, "__metadata__", ()):
        if isinstance(found, Choice):
            return found
    inner = getattr(annotation, "annotation", annotation)
    if isinstance(inner, type) and issubclass(inner, SpecModel):
        return inner
    parts = (inner,) if inner is not annotation else get_args(annotation)
    return next((made for made in map(_inside, parts) if made is not None), None)
