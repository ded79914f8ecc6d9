"""What a task tests on, known without importing lm-eval: how long its answers may be, and which problems they are to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from latentbench.section import Json
from latentbench_adapters.lm_eval.catalogue import OWN, members, plain
from latentbench_adapters.lm_eval.task_file import is_path, read_task, task_file_identity
from latentbench_adapters.protocols import Roots

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

    Told by the pocket model's split, the bytes of a file or the split of a hub dataset; what cannot be told is no.
    """
    split = problems.get("split")
    if "pocket" in problems:
        return split == "eval" and not is_path(task) and any(path.parent == OWN for path in members(task))
    if "hub" in problems:
        tested = ((config.get("dataset_path"), config.get("test_split")) for config in _configs(task, roots))
        return (problems["hub"], split) in tested
    return is_path(task) and not set(_leaves(problems.get("files"))).isdisjoint(_tested_files(task, roots))


def _configs(task: str, roots: Roots) -> list[Mapping[str, Any]]:
    return [read_task(task, roots)] if is_path(task) else [plain(path) for path in members(task)]


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
