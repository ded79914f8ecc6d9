"""The tasks there are, known from lm-eval's files alone: importing lm-eval takes seconds, and validating a spec must not."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from latentbench.errors import InvalidInput, NotAvailable

OWN = Path(__file__).parents[1] / "pocket" / "tasks"
"""Tasks that ship with this project."""
_HEAD = re.compile(r"^(?:task|group):[ \t]*([\w.:-]+)[ \t]*$", re.MULTILINE)


def lm_eval_version() -> str:
    """Of the installed package. Raises NotAvailable when there is none."""
    try:
        return version("lm-eval")
    except PackageNotFoundError as error:
        raise NotAvailable("tasks need lm-eval: pip install 'lm-eval>=0.4.13'") from error


def folder() -> Path:
    """lm-eval's task files. Raises NotAvailable when lm-eval is not installed."""
    lm_eval_version()
    spec = find_spec("lm_eval")  # of a top-level package, so nothing of it is run
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "tasks"


@lru_cache(maxsize=256)
def find(name: str) -> Path:
    """The file of a shipped task or group. Raises InvalidInput with similar names when there is none.

    Most files are called like their task; the names inside of all 14,000 are read only where that fails.
    """
    for root in (OWN, folder()):
        for path in sorted(root.rglob(f"{name}.yaml")) if re.fullmatch(r"[\w.-]+", name) else ():
            if name in _heads(path):
                return path
    known = _everything()
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    raise InvalidInput(f"lm-eval {lm_eval_version()} has no task or group {name!r}{hint}")


@lru_cache(maxsize=1024)
def plain(path: Path) -> Mapping[str, Any]:
    """A shipped task file with what it includes, read without running anything: functions stay names.

    Read once per process: hundreds of cells ask for the same few tasks.
    """
    loaded = yaml.load(path.read_bytes(), Loader=_Names)
    if not isinstance(loaded, dict):
        raise InvalidInput(f"{path.name} is no task file")
    included = loaded.pop("include", [])
    merged: dict[str, Any] = {}
    for other in [included] if isinstance(included, str) else included:
        merged |= plain((path.parent / other).resolve())
    return MappingProxyType(merged | loaded)


def members(name: str) -> Iterator[Path]:
    """The files of a task, or of a group and all that it names."""
    path = find(name)
    yield path
    config = plain(path)
    children = config.get("task") if "group" in config else None
    for child in children if isinstance(children, list) else ():
        named = child.get("task") or child.get("group") if isinstance(child, dict) else child
        if isinstance(named, str):
            yield from members(named)


class _Names(yaml.SafeLoader):
    """Reads `!function module.name` as text."""


_Names.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))  # type: ignore[arg-type]


def _heads(path: Path) -> list[str]:
    return _HEAD.findall(path.read_text("utf-8", errors="replace"))


@lru_cache(maxsize=1)
def _everything() -> dict[str, Path]:
    paths = (path for root in (folder(), OWN) for path in sorted(root.rglob("*.yaml")))
    return {name: path for path in paths for name in _heads(path)}
