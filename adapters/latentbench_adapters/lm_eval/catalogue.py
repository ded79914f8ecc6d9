"""The tasks there are and what each reads and tests on, known from lm-eval's files alone.

Importing lm-eval takes seconds, and validating a spec must not.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from latentbench.core.errors import InvalidInput, NotAvailable
from latentbench.core.paths import Roots
from latentbench.core.plugins import package_version
from latentbench.core.protocols import SLOT, PromptForm
from latentbench.core.spec_model import Json
from latentbench.reasoning.task_suite import TaskOptions, is_path
from latentbench_adapters.lm_eval.task_file import read_task, task_file_identity

POCKET_TASKS = Path(__file__).parents[1] / "pocket" / "tasks"
"""The pocket model's word problems."""
ARITHMETIC_TASKS = Path(__file__).parents[1] / "arithmetic" / "tasks"
"""Questions of simple arithmetic, which small real models answer sometimes."""
PLAIN_TASKS = Path(__file__).parent / "plain" / "tasks"
"""Known benchmarks whose questions are put alone, without words around them."""
OWN_TASKS = (POCKET_TASKS, ARITHMETIC_TASKS, PLAIN_TASKS)
"""Tasks that ship with this project. A folder of tasks is called `tasks`: their files are then part of their identity."""
_HEAD = re.compile(r"^(?:task|group):[ \t]*([\w.:-]+)[ \t]*$", re.MULTILINE)


def lm_eval_version() -> str:
    """Version of the installed package. Raises NotAvailable when there is none."""
    try:
        return package_version("lm-eval")
    except PackageNotFoundError as error:
        raise NotAvailable("tasks need lm-eval: pip install 'lm-eval>=0.4.13'") from error


def shipped_tasks_folder() -> Path:
    """lm-eval's task files. Raises NotAvailable when lm-eval is not installed."""
    lm_eval_version()
    spec = find_spec("lm_eval")  # of a top-level package, so nothing of it is run
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "tasks"


@lru_cache(maxsize=256)
def find_task(name: str) -> Path:
    """The file of a shipped task or group. Raises InvalidInput with similar names when there is none.

    Most files are called like their task; the names inside of all 14,000 are read only where that fails.
    """
    for root in (*OWN_TASKS, shipped_tasks_folder()):
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
def read_shipped_task(path: Path) -> Mapping[str, Any]:
    """A shipped task file with what it includes, read without running anything: functions stay names.

    Read once per process: hundreds of cells ask for the same few tasks.
    """
    loaded = yaml.load(path.read_bytes(), Loader=_Names)
    if not isinstance(loaded, dict):
        raise InvalidInput(f"{path.name} is no task file")
    included = loaded.pop("include", [])
    merged: dict[str, Any] = {}
    for other in [included] if isinstance(included, str) else included:
        merged |= read_shipped_task((path.parent / other).resolve())
    return MappingProxyType(merged | loaded)


def members(name: str) -> Iterator[Path]:
    """The files of a task, or of a group and all that it names."""
    path = find_task(name)
    yield path
    config = read_shipped_task(path)
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
    paths = (path for root in (shipped_tasks_folder(), *OWN_TASKS) for path in sorted(root.rglob("*.yaml")))
    return {name: path for path in paths for name in _heads(path)}


LENGTH, LENGTH_ALIASES = "max_gen_toks", ("max_new_tokens", "max_tokens", "max_completion_tokens")
"""How a task states the longest answer, in lm-eval's own word and in those it translates."""


def longest_answer(task: str, roots: Roots) -> int | None:
    """New tokens that a task asks for by itself, the largest of a group; None where it asks for no number."""
    asked = [config.get("generation_kwargs") or {} for config in _configs(task, roots)]
    return max(
        (int(kwargs[name]) for kwargs in asked for name in (LENGTH, *LENGTH_ALIASES) if name in kwargs), default=None
    )


def open_datasets(task: str, roots: Roots) -> list[str]:
    """Hub datasets that a task reads at no stated revision, in alphabetical order."""
    found = set()
    for config in _configs(task, roots):
        options = config.get("dataset_kwargs") or {}
        if "dataset_path" in config and "data_files" not in options and not options.get("revision"):
            found.add(str(config["dataset_path"]))
    return sorted(found)


def tests_on(task: str, problems: Json, roots: Roots) -> bool:
    """Whether a task tests on the problems of a set with the identity `problems`.

    Told by the split of problems that are made on the spot, the bytes of a file or the split of a hub dataset; what cannot be
    told is no.
    """
    split = problems.get("split")
    if "pocket" in problems:
        return split == "eval" and not is_path(task) and any(path.parent == POCKET_TASKS for path in members(task))
    if "arithmetic" in problems:
        asked = ARITHMETIC_TASKS / f"arithmetic_{problems.get('kind')}.yaml"
        return split == "eval" and not is_path(task) and asked in members(task)
    if "hub" in problems:
        tested = ((config.get("dataset_path"), config.get("test_split")) for config in _configs(task, roots))
        return (problems["hub"], split) in tested
    return is_path(task) and not set(_leaves(problems.get("files"))).isdisjoint(_tested_files(task, roots))


_FIELD = re.compile(r"\{\{\s*\w+\s*\}\}")
_OTHER = ("{{", "}}", "{%", "{#")


def prompt_form(task: str, options: TaskOptions, roots: Roots) -> PromptForm | None:
    """How a task puts its questions under `options`; None where its files alone do not tell, or its questions differ."""
    configs = _configs(task, roots)
    forms = {_form(config, options) for config in configs if "group" not in config}
    changed = any(set(child) - {"task", "group"} for config in configs for child in _changed(config))
    return forms.pop() if len(forms) == 1 and not changed else None


def _form(config: Mapping[str, Any], options: TaskOptions) -> PromptForm | None:
    text, shots = config.get("doc_to_text"), options.num_fewshot
    worked = config.get("num_fewshot") if shots is None else shots
    more = any(config.get(name) for name in ("description", "gen_prefix", "use_prompt"))
    if worked or more or not isinstance(text, str) or len(_FIELD.findall(text)) != 1:
        return None
    said = _FIELD.sub(SLOT, text)
    if any(mark in said for mark in _OTHER):
        return None
    system = options.system or None  # without a chat template lm-eval writes it right before the question
    return PromptForm(said, True, system) if options.chat_template else PromptForm((system or "") + said)


def _changed(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What a group says of its tasks besides their names."""
    children = config.get("task") if "group" in config else None
    yield from (child for child in (children if isinstance(children, list) else ()) if isinstance(child, dict))


def _configs(task: str, roots: Roots) -> list[Mapping[str, Any]]:
    return [read_task(task, roots)] if is_path(task) else [read_shipped_task(path) for path in members(task)]


def _tested_files(path: str, roots: Roots) -> Iterator[str]:
    """Digests of the files with the test problems of a task file."""
    known = task_file_identity(path, roots)
    documents, split = known["documents"], known["config"].get("test_split")
    return _leaves(documents.get(split, documents) if isinstance(documents, dict) else documents)


def _leaves(value: Json) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif value is not None:
        for child in value.values() if isinstance(value, dict) else value:
            yield from _leaves(child)
