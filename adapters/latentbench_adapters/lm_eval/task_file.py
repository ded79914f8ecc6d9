"""A task file of the user: lm-eval's format without the parts that can run code or reach beyond the project."""

from __future__ import annotations

import tarfile
import zipfile
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from latentbench.core.errors import NotAvailable, RefusedFile, SpecError, SpecProblem
from latentbench.core.hub import cached_commit, refuse_local
from latentbench.core.known_files import known_digest
from latentbench.core.paths import Roots
from latentbench.core.spec_model import Json
from latentbench.core.validation_errors import problem_at
from latentbench.core.yaml_tree import YamlNode, YamlPath, parse, read_text

_LOCAL = ("json", "csv", "parquet", "text")
_SPLITS: tuple[YamlPath, ...] = (
    ("training_split",),
    ("validation_split",),
    ("test_split",),
    ("fewshot_split",),
    ("fewshot_config", "split"),
)
_MAX_BYTES = 1 << 20
_HEAD = 1 << 16
_PARQUET = b"PAR1"
_PATTERN = frozenset("*?[]{}")
NONE: Mapping[str, str] = MappingProxyType({})


class RefusedTask(SpecError, RefusedFile):
    """A task file that cannot be used, with everything that is wrong in it and where."""


def read_task(path: str, roots: Roots) -> dict[str, Json]:
    """The checked configuration of a task file, data files as absolute paths.

    Raises NotAvailable for a file that is missing, RefusedTask for one that asks for code, for files outside of the
    project, for anything not among the known keys, or with values that lm-eval could not use.
    """
    from latentbench_adapters.lm_eval.task_schema import problems_in  # it and Jinja are needed for task files alone

    file = _existing(path, roots)
    try:
        tree = parse(read_text(file, path), path, "task file")
    except SpecError as error:
        raise RefusedTask(error.problems) from None
    if problems := problems_in(tree):
        raise RefusedTask(problems)
    config: dict[str, Any] = tree.plain()
    return config | {"dataset_kwargs": _dataset_options(tree, config, roots)}


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


def _dataset_options(tree: YamlNode, config: dict[str, Any], roots: Roots) -> dict[str, Json]:
    """`dataset_kwargs` with absolute paths. Raises RefusedTask or NotAvailable at what is wrong with the documents."""
    options: dict[str, Json] = dict(config.get("dataset_kwargs") or {})
    name, files = config["dataset_path"], options.get("data_files")
    local = name in _LOCAL
    if local != (files is not None):
        said = f"`data_files` goes with `dataset_path: {' | '.join(_LOCAL)}`, and they need it"
        raise RefusedTask([problem_at(tree, ("dataset_path",), said)])
    if not local:
        _check_hub_id(tree, name, roots)
        return options
    if problems := list(_missing_splits(tree, config, files)):
        raise RefusedTask(problems)
    return {**options, "data_files": _each(files, lambda file: str(_data_file(tree, name, file, roots)))}


def _check_hub_id(tree: YamlNode, name: str, roots: Roots) -> None:
    owner, _, rest = name.partition("/")
    try:
        if not all(
            part and part.replace("-", "").replace("_", "").replace(".", "").isalnum() for part in (owner, rest)
        ):
            raise RefusedFile(f"{name[:80]!r} is neither a hub id nor {', '.join(_LOCAL)}")
        refuse_local(name, roots.project)
    except RefusedFile as error:
        raise RefusedTask([problem_at(tree, ("dataset_path",), str(error))]) from None


def _missing_splits(tree: YamlNode, config: dict[str, Any], files: Json) -> Iterator[SpecProblem]:
    """Splits that no data file is given for."""
    given = list(files) if isinstance(files, dict) else ["train"]
    for where in _SPLITS:
        node: YamlNode | None = tree
        for step in where:
            node = node.child(step) if node else None
        if node is not None and node.value is not None and node.value not in given:
            said = f"there is no split {str(node.value)[:80]!r} in data_files (known: {', '.join(given)[:200]})"
            yield problem_at(tree, where, said)


def _data_file(tree: YamlNode, kind: str, file: str, roots: Roots) -> Path:
    """A data file within the project. Raises RefusedTask or NotAvailable at `data_files`."""

    def refused(said: str) -> RefusedTask:
        return RefusedTask([problem_at(tree, ("dataset_kwargs", "data_files"), said)])

    if "::" in file or "://" in file or not _PATTERN.isdisjoint(file):
        raise refused(f"data_files must name files of the project one by one, not {file[:80]!r}")
    try:
        found = roots.resolve(file)
    except (ValueError, OSError) as error:
        raise refused(str(error)) from None
    if not found.is_file():
        said = f"there is no data file {file!r} (paths are relative to the project)"
        raise NotAvailable(str(problem_at(tree, ("dataset_kwargs", "data_files"), said)))
    if not _is_of(kind, found):
        raise refused(f"{file!r} is no {'Parquet' if kind == 'parquet' else 'text'} file; archives are not unpacked")
    return found


def _is_of(kind: str, file: Path) -> bool:
    """Whether a file is of the kind that is read, since `datasets` unpacks whatever looks like an archive."""
    with file.open("rb") as opened:
        head = opened.read(_HEAD)
    if kind == "parquet":
        return head.startswith(_PARQUET)
    try:
        getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return b"\0" not in head and not zipfile.is_zipfile(file) and not tarfile.is_tarfile(file)


def _each(files: Json, change: Callable[[str], str]) -> Json:
    """`data_files` [one, a list, or either by split] with every file changed."""
    if isinstance(files, dict):
        return {split: _each(part, change) for split, part in files.items()}
    if isinstance(files, list):
        return [_each(file, change) for file in files]
    return change(files)
