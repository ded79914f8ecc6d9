"""What a folder of a model may hold: read without torch, before any library opens it.

transformers follows what the files of a folder say: to weights of other names, to adapters on top of other models, to
kernels of the hub that are code. Whatever leads out of the folder or to code is refused here, with what to do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from adapters.protocols import Roots
from harness.errors import RefusedFile
from harness.section import Json

_MAX_BYTES = 1 << 26
_IMPLEMENTATIONS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
_TEMPLATES = "additional_chat_templates"


def check_model_folder(folder: Path, roots: Roots) -> None:
    """Raises RefusedFile for a folder whose files lead elsewhere or ask for code, ValueError for links that lead out."""
    roots.check_links(folder)
    _check(folder, _stamp(folder))


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


@lru_cache(maxsize=64)
def _check(folder: Path, stamp: tuple[tuple[str, int, int], ...]) -> None:
    names = [name for name, _, _ in stamp]
    if "adapter_config.json" in names:
        raise RefusedFile(_adapter(folder.name))
    for name in names:
        if name == "config.json":
            _check_config(_object(folder / name), f"{folder.name}/{name}")
        elif name.endswith(".index.json"):
            weights = _object(folder / name).get("weight_map")
            _check_names(weights.values() if isinstance(weights, dict) else (), folder, name)
        elif name == "tokenizer_config.json":
            _check_names(_files_of(_object(folder / name)), folder, name)


def _check_config(config: dict[str, Json], where: str) -> None:
    weights = config.get("transformers_weights")
    if weights is not None and not (
        _plain(weights) and str(weights).endswith((".safetensors", ".safetensors.index.json"))
    ):
        raise RefusedFile(f"{where}: transformers_weights {str(weights)[:80]!r} is no safetensors file of this folder")
    for key, value in _walk(config):
        if key in _IMPLEMENTATIONS and isinstance(value, str) and "/" in value:
            raise RefusedFile(
                f"{where}: {key} {value[:80]!r} is a kernel of the hub, which is code and is not run; remove the key"
            )


def _check_names(names: Any, folder: Path, where: str) -> None:
    for name in names:
        if not _plain(name):
            raise RefusedFile(f"{folder.name}/{where} names {str(name)[:80]!r}, which is no file of this folder")


def _files_of(config: dict[str, Json]) -> Iterator[Json]:
    """Files that a tokenizer's configuration names; a path that leads nowhere is a trace of where it was saved."""
    versions = config.get("fast_tokenizer_files")
    yield from versions if isinstance(versions, list) else ()
    for key, value in config.items():
        if key.endswith("_file") and isinstance(value, str) and _exists(value):
            yield value


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def _plain(name: Json) -> bool:
    """Whether a name is that of a file in the same folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and not {"/", "\\", "\0"} & {*name}


def _walk(value: Json) -> Iterator[tuple[str, Json]]:
    """Every key of nested objects with its value."""
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _walk(child)
    yield from value.items() if isinstance(value, dict) else ()


def _object(path: Path) -> dict[str, Json]:
    """A JSON object; empty where the file holds anything else, which whoever reads it for what it says will refuse."""
    if path.stat().st_size > _MAX_BYTES:
        raise RefusedFile(f"{path.parent.name}/{path.name} is larger than such a file can be")
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


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    files = (path for path in folder.iterdir() if path.is_file())
    return tuple(sorted((path.name, (status := path.stat()).st_size, status.st_mtime_ns) for path in files))
