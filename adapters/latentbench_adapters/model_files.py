"""What a model folder is, and what it may hold: read without torch, before any library opens it.

*Identity.* Which names transformers opens depends on the class and the configuration, and the list is open: every tokenizer
class has vocabulary names of its own, and some files are found by listing the folder. So the rule is the other way round:
every file in the folder counts, and every chat template below additional_chat_templates/, but for what is never opened.

*Guards.* transformers follows what the files of a folder say: to weights of other names, to adapters on top of other models,
to kernels of the hub that are code. Whatever leads out of the folder or to code is refused here, with what to do.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from fnmatch import translate
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any

from latentbench.activations.model_config import check_against_weights, check_files, facts_of
from latentbench.core.errors import NotAvailable, RefusedFile
from latentbench.core.known_files import known_digest
from latentbench.core.paths import Roots
from latentbench.core.protocols import ModelFacts
from latentbench.core.spec_model import Json
from latentbench.core.untrusted_files import read_json

_NEVER_READ_NAMES = (
    # of people and of version control
    *(".*", "*.md", "*.rst", "*.pdf", "*.html", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp"),
    *(name + ending for name in ("readme", "license", "licence", "notice") for ending in ("", ".txt")),
    # code, which is not run, and weights in formats that are not loaded (pickles, other frameworks)
    *("*.py", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "*.onnx", "*.ot", "*.gguf"),
    *("pytorch_model*.index.json", "tf_model*.index.json", "flax_model*.index.json"),
    # left by a training or a measurement
    *("trainer_state.json", "*_results.json", "events.out.*", "*.log"),
)
"""Patterns of names, in lower case. What is in doubt is not here: a file too many costs a second run, never a wrong number."""
_NEVER_READ = re.compile("|".join(map(translate, _NEVER_READ_NAMES)))
_TEMPLATES = "additional_chat_templates"
_SINGLE, _INDEX, _ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
_WEIGHTS = (".safetensors", ".safetensors.index.json")
_IMPLEMENTATIONS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
_TICK = 2_000_000_000
"""Nanoseconds; the slowest clocks of file systems in use tick so often."""
_MAX_BYTES = 1 << 26
"""Largest index or tokenizer configuration that is read; those of large mixtures of experts have 10 MB."""


def folder_facts(folder: Path) -> ModelFacts:
    """Shape of the model from its config.json, as far as its weights bear it out. Raises NotAvailable or RefusedFile."""
    check_files(folder)
    stamp = folder_stamp(folder)
    return _known_facts(folder, stamp) if settled(stamp) else _facts(folder)


@lru_cache(maxsize=256)
def _known_facts(folder: Path, stamp: Stamp) -> ModelFacts:
    return _facts(folder)


def _facts(folder: Path) -> ModelFacts:
    facts = facts_of(read_json(folder / "config.json"), str(folder))
    check_against_weights(facts, folder)
    return facts


def folder_identity(folder: Path) -> Json:
    """Digest of every file that determines what the model and its tokenizer do, by name; a link counts as its target.

    Raises NotAvailable where there are no weights, RefusedFile as `check_model_folder` does.
    """
    stamp = folder_stamp(folder)
    if not any(name.endswith(".safetensors") for name, *_ in stamp):
        raise NotAvailable(f"{folder} holds no *.safetensors weights; pickled weights are not read, convert them first")
    _check(folder, stamp)
    return dict(_digests(folder, stamp))


def check_model_folder(folder: Path, roots: Roots) -> None:
    """Raises RefusedFile for a folder whose files lead elsewhere or ask for code, OutsideProject for links that lead out."""
    roots.check_links(folder)
    _check(folder, folder_stamp(folder))


def refuse_adapter(source: str, revision: str | None) -> None:
    """Raises RefusedFile for an adapter (LoRA, …), which transformers would load on top of any model that it names."""
    from transformers.utils.peft_utils import find_adapter_config_file

    if find_adapter_config_file(source, revision=revision) is not None:
        raise RefusedFile(_adapter(source))


def refuse_kernels() -> None:
    """From now on transformers gets no kernels from the hub: they are code, and a model's config.json can name them."""
    from transformers.integrations import hub_kernels

    def refused(name: str, *_: Any, **__: Any) -> Any:
        raise ImportError(f"the kernel {name!r} of the hub is code and is not run")

    vars(hub_kernels)["get_kernel"] = refused


Stamp = tuple[tuple[str, int, int], ...]
"""Path in the folder, size and time of change of the files that count: while these stay, the files were looked at."""


def folder_stamp(folder: Path) -> Stamp:
    """Of a folder as it is now. Every cell asks again, so it takes one look at the folder and one at each file."""
    with os.scandir(folder) as entries:
        found = {entry.name: entry for entry in entries}
    counted = [(name, entry) for name, entry in found.items() if not _NEVER_READ.match(name.lower())]
    if _TEMPLATES in found and found[_TEMPLATES].is_dir():
        with os.scandir(folder / _TEMPLATES) as entries:
            counted += [(f"{_TEMPLATES}/{entry.name}", entry) for entry in entries if entry.name.endswith(".jinja")]
    states = ((name, entry.stat()) for name, entry in sorted(counted, key=itemgetter(0)) if entry.is_file())
    return tuple((name, state.st_size, state.st_mtime_ns) for name, state in states)


def settled(stamp: Stamp) -> bool:
    """Whether the last change is long enough ago for the next one to get another time: file systems' clocks tick."""
    return time.time_ns() - max((changed for *_, changed in stamp), default=0) > _TICK


@lru_cache(maxsize=256)
def _digests(folder: Path, stamp: Stamp) -> tuple[tuple[str, str], ...]:
    return tuple((name, known_digest(folder / name)) for name, *_ in stamp)


@lru_cache(maxsize=256)
def _check(folder: Path, stamp: Stamp) -> None:
    """Raises RefusedFile for an adapter, for code of the hub, and when a file names one that does not count."""
    files = {name for name, _, _ in stamp}
    if _ADAPTER in files:  # applied where peft is installed, and left out without a word where it is not
        raise RefusedFile(_adapter(str(folder)))
    _check_kernels(_object(folder / "config.json"), folder)
    for by, name in _named(folder, files):
        if name not in files or (by == "config.json" and not name.endswith(_WEIGHTS)):
            raise RefusedFile(
                f"{folder / by} names {name[:120]!r}, which is not among the folder's files that are read"
            )


def _check_kernels(config: dict[str, Json], folder: Path) -> None:
    for key, value in _walk(config):
        if key in _IMPLEMENTATIONS and isinstance(value, str) and "/" in value:
            raise RefusedFile(
                f"{folder / 'config.json'}: {key} {value[:80]!r} is a kernel of the hub, which is code and is not run; "
                "remove the key"
            )


def _named(folder: Path, files: set[str]) -> Iterator[tuple[str, str]]:
    """(file, name) of everything that a file of the folder tells transformers to read, wherever that leads."""
    config, tokenizer = (_object(folder / name) for name in ("config.json", "tokenizer_config.json"))
    text = config.get("text_config")
    weights = [
        name for part in (config, text) if isinstance(part, dict) for name in _names(part, "transformers_weights")
    ]
    yield from (("config.json", name) for name in weights)
    for name in (*_names(tokenizer, "fast_tokenizer_files"), *_existing(tokenizer)):
        yield "tokenizer_config.json", name
    for index in weights or ([] if _SINGLE in files else [_INDEX]):
        if index.endswith(_INDEX.removeprefix("model")) and index in files:
            yield from ((index, name) for name in _names(_object(folder / index), "weight_map"))


def _names(config: dict[str, Json], key: str) -> list[str]:
    """What stands under `key`: one name, a list or the values of a map."""
    value = config.get(key)
    each = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return sorted({str(name) for name in each if name})


def _existing(tokenizer: dict[str, Json]) -> Iterator[str]:
    """Files that a tokenizer's configuration names; a path that leads nowhere is a trace of where it was saved."""
    for key, value in tokenizer.items():
        if key.endswith("_file") and isinstance(value, str) and _exists(value):
            yield value


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def _walk(value: Json) -> Iterator[tuple[str, Json]]:
    """Every key of nested objects with its value."""
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _walk(child)
    yield from value.items() if isinstance(value, dict) else ()


def _object(path: Path) -> dict[str, Json]:
    """A JSON object; empty where there is none, or anything else, which whoever reads it for what it says will refuse."""
    if not path.is_file():
        return {}
    if path.stat().st_size > _MAX_BYTES:
        raise RefusedFile(f"{path} is larger than such a file can be")
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _adapter(source: str) -> str:
    return (
        f"{source!r} holds an adapter (adapter_config.json), which names another model and code of its own: merge it into "
        "its model (peft's `merge_and_unload`) and save that"
    )
