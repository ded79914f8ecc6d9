"""The published JSON Schema and the reference page specs/README.md, both generated from the spec models themselves."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latentbench.concepts.options import AdapterTraining, Concept, Concepts, Prompting
from latentbench.core.plugins import plugins
from latentbench.core.sites import Site
from latentbench.core.spec_model import Json, SpecModel
from latentbench.core.texts import ByText
from latentbench.flow.options import Flow
from latentbench.sae.options.base import LoadedSae
from latentbench.sae.options.training import TrainingOptions
from latentbench.spec.experiment import Data, Experiment, Header, Resources, Spec
from latentbench.steering.auto import SweepOptions
from latentbench.steering.conditional import When
from latentbench.steering.positions import Positions

_GROUP_TITLES = {
    "models": ("Models", "model", "adapter"),
    "datasets": ("Datasets", "dataset.train, dataset.eval.<name>", "adapter"),
    "problems": ("Problems with answers", "steering.problems", "adapter"),
    "variants": ("SAE variants", "sae", "variant"),
    "sources": ("SAEs trained elsewhere", "sae.load", "adapter"),
    "methods": ("Steering", "steering", "method"),
    "metrics": ("Metrics", "metrics", "metric"),
    "judges": ("Judges", "metrics.autointerp.judge", "adapter"),
}


def json_schema() -> Json:
    """JSON Schema (2020-12) of a spec file. Inherited keys may be missing from a file, so nothing is required in it."""
    schema = _partial(Spec.model_json_schema(by_alias=True, mode="validation"))
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "latentbench spec"
    _add_short_forms(schema)
    return schema


def reference_page() -> str:
    """specs/README.md: every key a spec can have, with type, default and meaning."""
    lines = [_INTRODUCTION]
    for title, model in _FIXED.items():
        lines += [f"## {title}", "", _about(model), "", *_table(model), ""]
    for group, (title, where, tag) in _GROUP_TITLES.items():
        lines += [f"## {title}", "", f"Under `{where}`, chosen by `{tag}`.", ""]
        for name, model in sorted(plugins(group).items()):
            lines += [f"### {name}", "", _about(model), "", *_table(model, tag), ""]
    return "\n".join(lines).rstrip() + "\n"


def _partial(schema: Json) -> Json:
    """The schema of a part of what it describes: a map may leave anything to its parents, and null clears what they say."""
    if isinstance(schema, list):
        return [_partial(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {
        key: _partial(value) for key, value in schema.items() if not (key == "required" and isinstance(value, list))
    }
    if "oneOf" in kept:
        kept["anyOf"] = kept.pop("oneOf")
        kept.pop("discriminator", None)
    if isinstance(values := kept.get("additionalProperties"), dict):
        kept["additionalProperties"] = _or_null(values)
    for group in ("properties", "patternProperties"):
        if isinstance(named := kept.get(group), dict):
            kept[group] = {name: _or_null(value) for name, value in named.items()}
    return kept


def _or_null(schema: Json) -> Json:
    return (
        {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
        if "anyOf" in schema
        else {"anyOf": [schema, {"type": "null"}]}
    )


def _add_short_forms(schema: Json) -> None:
    """A layer may be a number; metrics may be names, or one-key maps from a name to its options."""
    short = [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": r"^\d+\.[a-z_]+$"}]
    schema["properties"]["layer"] = {"anyOf": [*short, schema["properties"]["layer"]]}
    layers = schema["properties"]["layers"]
    for form in layers["anyOf"]:
        if "items" in form:
            form["items"] = {"anyOf": [*short, form["items"]]}
    metrics = next(form for form in schema["properties"]["metrics"]["anyOf"] if "items" in form)
    names = sorted(plugins("metrics"))
    one_key = {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "properties": {name: {"type": "object"} for name in names},
    }
    metrics["items"] = {"anyOf": [{"enum": names}, one_key, metrics["items"]]}


def _about(model: type[SpecModel]) -> str:
    return " ".join((model.__doc__ or "").split())


def _table(model: type[SpecModel], tag: str | None = None) -> Iterator[str]:
    properties = model.model_json_schema(by_alias=True).get("properties", {})
    required = set(model.model_json_schema(by_alias=True).get("required", ()))
    rows = [(name, schema) for name, schema in properties.items() if name != tag]
    if rows:
        yield "| key | type | default | meaning |"
        yield "| --- | --- | --- | --- |"
    for name, schema in rows:
        default = "**required**" if name in required else f"`{_default(schema)}`"
        about = " ".join(schema.get("description", "").split()).replace("|", "\\|")
        yield f"| `{name}` | {_type(schema)} | {default} | {about} |"


def _default(schema: dict[str, Any]) -> str:
    """The default as YAML, shortened to `…` where it is a map of its own."""
    if "default" not in schema:  # made by a factory: an empty map
        return "{}"
    text = json.dumps(schema["default"])
    return text if len(text) <= 20 else "…"


def _type(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " \\| ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    options = schema.get("anyOf", schema.get("oneOf"))
    if options:
        return " \\| ".join(dict.fromkeys(kind for kind in map(_type, options) if kind != "null"))
    kinds = schema.get("type", "object")
    if isinstance(kinds, list):
        return " \\| ".join(_type({**schema, "type": kind}) for kind in kinds)
    return f"list of {_type(schema.get('items', {}))}" if kinds == "array" else _WORDS.get(kinds, kinds)


_WORDS = {"object": "map", "string": "text", "boolean": "true or false"}

_FIXED: dict[str, type[SpecModel]] = {
    "The file": Header,
    "The experiment": Experiment,
    "`dataset`": Data,
    "`by_text`": ByText,
    "`layer`": Site,
    "`sae.load`": LoadedSae,
    "`training`": TrainingOptions,
    "`flow`": Flow,
    "`concepts`": Concepts,
    "`concepts.chosen`": Concept,
    "`concepts.adapter`": AdapterTraining,
    "`concepts.prompting`": Prompting,
    "`steering.positions`": Positions,
    "`steering.auto`": SweepOptions,
    "`steering.when` of `conditional`": When,
    "`resources`": Resources,
}

_INTRODUCTION = """# Specs

One YAML file describes one experiment; `latentbench run` turns it into rows. This page is generated from the code
(`make reference`); an editor that reads the JSON Schema (`latentbench schema`) completes and checks specs as you type.

```yaml
extends: ../_base/pocket.yaml       # maps merge deep, lists replace, null clears
description: TopK at three sparsities.
sae: {variant: topk, width: 1024, k: 16}
metrics: [cross_entropy, explained_variance: {budgets: [4, 8]}]
seeds: [0, 1, 2]
matrix: {sae.k: [8, 16, 32]}        # cartesian product; `cases:` for named combinations
```

* `extends` takes one path or a list, relative to the file. A map that names another `adapter`, `variant` or `load` than
  the inherited one replaces it as a whole. Folders that start with `_` hold parents, which are not run by themselves.
* Paths of data and models are relative to the project and stay inside it; `--allow DIR` (or `LATENTBENCH_ALLOW`) opens
  another folder.
* Every cell of `cases` × `matrix` × `seeds` is one row. What is in a row's identity is content: texts, weights, options,
  versions of definitions. Names, paths, devices and resources are not.
* Numbers are numbers (`1e-4`, `1_000_000`), `yes`/`on` are text, a key may stand only once, NaN and infinity are refused.
"""


PAGE = Path(__file__).parents[3] / "specs" / "README.md"


def main() -> int:
    """`python -m latentbench.spec.reference [--check]`: writes specs/README.md, or fails when it is not up to date."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="only compare")
    if not parser.parse_args().check:
        PAGE.write_text(reference_page(), "utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text("utf-8") == reference_page():
        return 0
    print("specs/README.md is not what the code says: run `make reference`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
