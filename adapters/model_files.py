"""What a model folder is: the files that determine what its model and its tokenizer do.

Which names transformers opens depends on the class and the configuration, and the list is open: every tokenizer class has
vocabulary names of its own, and some files are found by listing the folder. So the rule is the other way round: every
file in the folder counts, and every chat template below additional_chat_templates/, but for what is never opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

from adapters.folder import read_json
from harness.canonical import known_digest
from harness.errors import NotAvailable, RefusedFile
from harness.section import Json

_NEVER_READ = (
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
_TEMPLATES = "additional_chat_templates"
_SINGLE, _INDEX, _ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
_MAX_BYTES = 1 << 26
"""Of an index or a tokenizer's configuration; those of large mixtures of experts have 10 MB."""


def folder_identity(folder: Path) -> Json:
    """Digest of every file that determines what the model and its tokenizer do, by name; a link counts as its target.

    Raises NotAvailable where there are no weights, RefusedFile where files outside of the folder would count as well.
    """
    files = _files(folder)
    if not any(name.endswith(".safetensors") for name in files):
        raise NotAvailable(f"{folder} holds no *.safetensors weights; pickled weights are not read, convert them first")
    if _ADAPTER in files:  # would be applied where peft is installed, and left out without a word where it is not
        raise RefusedFile(
            f"{folder} holds an adapter ({_ADAPTER}) beside the model; save the model with the adapter merged into it "
            "(peft: merge_and_unload), or move the adapter to a folder of its own"
        )
    identity = {name: known_digest(path) for name, path in files.items()}
    _check_named(folder, tuple(identity.items()))
    return identity


def _files(folder: Path) -> dict[str, Path]:
    """The files that count, by their path in the folder."""
    found = [path for path in folder.iterdir() if not _never_read(path.name)]
    kept = sorted(path for path in (*found, *(folder / _TEMPLATES).glob("*.jinja")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in kept}


def _never_read(name: str) -> bool:
    return any(fnmatchcase(name.lower(), pattern) for pattern in _NEVER_READ)


@lru_cache(maxsize=256)
def _check_named(folder: Path, content: tuple[tuple[str, str], ...]) -> None:
    """Raises RefusedFile when a file names one that does not count. Looked at once for the same `content` (see above)."""
    files = {name for name, _ in content}
    for by, name in _named(folder, files):
        if name not in files:
            raise RefusedFile(
                f"{folder / by} names {name[:120]!r}, which is not among the folder's files that are read"
            )


def _named(folder: Path, files: set[str]) -> Iterator[tuple[str, str]]:
    """(file, name) of everything that a file of the folder tells transformers to read, wherever that leads."""
    weights = _stated(folder, "config.json", "transformers_weights")
    tokenizers = _stated(folder, "tokenizer_config.json", "fast_tokenizer_files")
    yield from (("config.json", name) for name in weights)
    yield from (("tokenizer_config.json", name) for name in tokenizers)
    for index in weights or ([] if _SINGLE in files else [_INDEX]):
        if index.endswith(_INDEX.removeprefix("model")) and index in files:
            yield from ((index, name) for name in _stated(folder, index, "weight_map"))


def _stated(folder: Path, file: str, key: str) -> list[str]:
    """The names under `key` of a JSON file: one, a list or the values of a map; none where it is not there."""
    config = read_json(folder / file, _MAX_BYTES) if (folder / file).is_file() else None
    sections = (config, config.get("text_config")) if isinstance(config, dict) else ()
    found = [section.get(key) for section in sections if isinstance(section, dict)]
    return sorted({str(name) for value in found for name in _each(value) if name})


def _each(value: Json) -> list[Json]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
