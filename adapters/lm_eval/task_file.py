"""A task file of the user: lm-eval's format without the parts that can run code or reach beyond the project."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from adapters.hub import cached_commit
from adapters.protocols import Roots
from harness.canonical import known_digest
from harness.errors import NotAvailable, RefusedFile
from harness.section import Json

_LOCAL = ("json", "csv", "parquet", "text")
_KEYS = frozenset(
    [
        "task",
        "task_alias",
        "dataset_path",
        "dataset_name",
        "dataset_kwargs",
        "training_split",
        "validation_split",
        "test_split",
        "fewshot_split",
        "doc_to_text",
        "doc_to_target",
        "doc_to_choice",
        "description",
        "target_delimiter",
        "fewshot_delimiter",
        "fewshot_config",
        "num_fewshot",
        "metric_list",
        "output_type",
        "generation_kwargs",
        "filter_list",
        "gen_prefix",
        "metadata",
    ]
)
_DATASET_KEYS = frozenset({"data_files", "revision", "field"})
_MAX_BYTES = 1 << 20
NONE: Mapping[str, str] = MappingProxyType({})


def is_path(task: str) -> bool:
    """Whether a task is named by its file."""
    return task.endswith((".yaml", ".yml")) or "/" in task


def read_task(path: str, roots: Roots) -> dict[str, Json]:
    """The checked configuration of a task file, data files as absolute paths.

    Raises NotAvailable, RefusedFile or InvalidInput for a file that is missing, of another kind, or that asks for
    code, for files outside of the project or for anything not in the list of known keys.
    """
    file = _existing(path, roots)
    config = _parsed(file)
    if unknown := sorted(set(config) - _KEYS):
        raise RefusedFile(f"{path}: {', '.join(unknown)} cannot be used here; known keys: {', '.join(sorted(_KEYS))}")
    if not isinstance(config.get("task"), str) or not isinstance(config.get("dataset_path"), str):
        raise RefusedFile(
            f"{path}: a task file needs `task:` (its name) and `dataset_path:` (json, csv, … or a hub id)"
        )
    if any(isinstance(metric, dict) and metric.get("hf_evaluate") for metric in config.get("metric_list") or ()):
        raise RefusedFile(f"{path}: `hf_evaluate` metrics are code from the hub and are not run")
    return config | {"dataset_kwargs": _dataset_options(path, config, roots)}


def task_file_identity(path: str, roots: Roots, commits: Mapping[str, str] = NONE) -> Json:
    """What determines the task: its configuration and the bytes of its documents, or the hub's commit of them.

    `commits` states those of hub datasets whose revision the file leaves open.
    """
    config = read_task(path, roots)
    options = config.pop("dataset_kwargs")
    if "data_files" in options:
        documents = _each(options.pop("data_files"), lambda file: known_digest(Path(file)))
    else:
        hub = config["dataset_path"]
        documents = documents_commit(hub, options.get("revision") or commits.get(hub))
    return {"config": config | options, "documents": documents}


def documents_commit(dataset: str, revision: str | None) -> Json:
    """The commit of a hub dataset as far as this machine knows it."""
    return {"hub": dataset, "revision": cached_commit("dataset", dataset, revision) or revision or "main"}


def _existing(path: str, roots: Roots) -> Path:
    file = roots.resolve(path)
    if not file.is_file():
        raise NotAvailable(f"there is no task file {path!r} (paths are relative to the project)")
    if file.stat().st_size > _MAX_BYTES:
        raise RefusedFile(f"{path} is too large for a task file")
    return file


def _parsed(file: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(file.read_text("utf-8"))
    except yaml.constructor.ConstructorError as error:
        raise RefusedFile(
            f"{file.name}: {str(error.problem)[:120]}: functions (`!function`) and objects are code, which only tasks that "
            "ship with lm-eval may name"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise RefusedFile(f"{file.name} is not readable YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(loaded, dict):
        raise RefusedFile(f"{file.name} is not a task file: a map of keys is expected")
    return loaded


def _dataset_options(path: str, config: dict[str, Any], roots: Roots) -> dict[str, Json]:
    options = config.get("dataset_kwargs") or {}
    if not isinstance(options, dict) or (unknown := sorted(set(options) - _DATASET_KEYS)):
        wrong = "must be a map" if not isinstance(options, dict) else f"{', '.join(unknown)} cannot be used here"
        raise RefusedFile(f"{path}: dataset_kwargs: {wrong}; known keys: {', '.join(sorted(_DATASET_KEYS))}")
    local = config["dataset_path"] in _LOCAL
    if local != ("data_files" in options):
        raise RefusedFile(f"{path}: `data_files` goes with `dataset_path: {' | '.join(_LOCAL)}`, and they need it")
    if not local and not _hub_id(config["dataset_path"]):
        raise RefusedFile(
            f"{path}: dataset_path {config['dataset_path']!r} is neither a hub id nor {', '.join(_LOCAL)}"
        )
    if not local:
        return dict(options)
    return {**options, "data_files": _each(options["data_files"], lambda file: _resolved(path, file, roots))}


def _hub_id(name: str) -> bool:
    owner, _, rest = name.partition("/")
    return all(part and part.replace("-", "").replace("_", "").replace(".", "").isalnum() for part in (owner, rest))


def _resolved(path: str, file: Json, roots: Roots) -> str:
    """A data file's absolute path within the project."""
    if not isinstance(file, str) or "://" in file:
        raise RefusedFile(f"{path}: data_files must name files of the project, not {str(file)[:80]!r}")
    found = roots.resolve(file)
    if not found.is_file():
        raise NotAvailable(f"{path}: there is no data file {file!r} (paths are relative to the project)")
    return str(found)


def _each(files: Json, change: Callable[[Json], str]) -> Json:
    """`data_files` [one, a list, or either by split] with every file changed."""
    if isinstance(files, dict):
        return {split: _each(part, change) for split, part in files.items()}
    if isinstance(files, list):
        return [_each(file, change) for file in files]
    return change(files)
