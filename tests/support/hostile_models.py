"""Model folders that are not what they say: a sound one with a file changed, swapped for something else, or added."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.damaged import BOMBS, torn, torn_json, torn_table
from tests.support.hostile import at, changed, places
from tests.support.upstream import ENDLESS

JSON_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors.index.json",
)
FILES = (*JSON_FILES, "model.safetensors", "model-00001-of-00002.safetensors")
NUMBERS: list[Any] = [
    True,
    -1,
    0,
    3,
    10**6,
    10**9,
    10**12,
    2**31,
    2**62,
    2**64,
    10**30,
    1e300,
    -1e-300,
    0.5,
    "16",
    [16],
    {},
]
TEMPLATES = (
    "{% for",
    "{{ messages[0]['nothing'].deeper }}",
    "{{ raise_exception('no') }}",
    "{{ 1 // 0 }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "{{ 'x' * 10**9 }}",
    "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    "(" * 20_000,
)


def sharded(folder: Path) -> None:
    """Makes the folder's weights two files with an index."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, index = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    content = {"metadata": {"total_size": 0}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def spoil(folder: Path, generator: random.Random) -> str:
    """Does one thing to the folder, and says which."""
    name = generator.choice([name for name in FILES if (folder / name).is_file()])
    how = generator.choice(list(_WAYS))
    _WAYS[how](folder / name, generator)
    return f"{name}: {how}"


def _numbers(path: Path, generator: random.Random) -> None:
    """One number, or any other leaf, becomes one of the numbers that sizes should not be."""
    if path.suffix == ".safetensors":
        _values(path, generator)
        return
    tree = json.loads(path.read_bytes())
    leaves = [place for place in places(tree) if place and isinstance(at(tree, place), int | float | type(None))]
    place = generator.choice(leaves or places(tree))
    _write(path, changed(tree, place, "replace", generator.choice(NUMBERS)))


def _values(path: Path, generator: random.Random) -> None:
    change = torn_table if path.suffix == ".safetensors" else torn_json
    path.write_bytes(change(path.read_bytes(), generator))


def _bytes(path: Path, generator: random.Random) -> None:
    path.write_bytes(torn(path.read_bytes(), generator))


def _bomb(path: Path, generator: random.Random) -> None:
    path.write_bytes(generator.choice(list(BOMBS.values())))


def _encoding(path: Path, generator: random.Random) -> None:
    text = path.read_bytes().decode("latin-1")
    path.write_bytes(text.encode(generator.choice(["utf-16", "utf-32", "utf-8-sig", "utf-7"])))


def _other(path: Path, generator: random.Random) -> None:
    """Something that is no file stands in its place."""
    path.unlink()
    made: list[Callable[[], object]] = [
        lambda: None,
        path.mkdir,
        lambda: path.symlink_to("nowhere"),
        lambda: path.symlink_to(path.name),
        lambda: path.symlink_to(os.devnull),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to("."),
        lambda: os.mkfifo(path),
    ]
    generator.choice(made)()


def _joined(path: Path, generator: random.Random) -> None:
    """A file stands beside it that its readers look for."""
    extras: dict[str, list[bytes]] = {
        "special_tokens_map.json": [b'{"bos_token": 7}', b'{"bos_token": {"content": []}}', b"[]", *BOMBS.values()],
        "added_tokens.json": [b'{"x": -1}', b'{"x": 99999999999}', b"[]", *BOMBS.values()],
        "chat_template.jinja": [template.encode() for template in TEMPLATES],
        "adapter_config.json": [b"{}", b'{"base_model_name_or_path": "nobody/nothing", "peft_type": "LORA"}', b"["],
        "preprocessor_config.json": [b"[]", b"{"],
        "vocab.json": [b"[]", b'{"a": "b"}', *BOMBS.values()],
        "merges.txt": [b"\xff", b"a", b"a b c\n" * 100],
        "tokenizer.model": [b"", b"\0" * 4096, b"\xff" * 64],
    }
    name = generator.choice(list(extras))
    path.with_name(name).write_bytes(generator.choice(extras[name]))


def _tokenizer(path: Path, generator: random.Random) -> None:
    """Parts of a tokenizer that are well formed and do not work."""
    file = path.with_name("tokenizer.json")
    if not file.is_file():
        return
    tree = json.loads(file.read_bytes())
    pattern = generator.choice(["[", "(?<=a+)b", "\\", ENDLESS, "(" * 5000, "", "a{1,100000}"])
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    vocabulary = generator.choice([{}, {"<unk>": 2**32 - 1}, {"<unk>": -1}, {"<unk>": 0, "a": 0}, {"a": 5}])
    fixed = {"strategy": {"Fixed": 2**40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    change = generator.choice(
        [
            {"pre_tokenizer": split},
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split] * 50}},
            {"normalizer": {"type": "Replace", "pattern": {"Regex": pattern}, "content": "x" * 1000}},
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
            {"model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}},
            {"model": {"type": "BPE", "vocab": vocabulary, "merges": [["a", "b"]]}},
            {"model": {"type": "Unigram", "vocab": [], "unk_id": 7}},
            {"model": {"type": "WordPiece", "vocab": vocabulary, "max_input_chars_per_word": -1}},
            {"padding": {**fixed, "pad_type_id": 0, "pad_token": "x"}},
            {"truncation": {"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 2**40}},
            {"added_tokens": [{"id": 2**32 - 1, "content": "", "special": True}] * 3},
            {"post_processor": {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {"a": 1}}},
            {"decoder": {"type": "Strip", "content": "ab", "start": -1, "stop": 2**63}},
            {"version": "9.9"},
        ]
    )
    _write(file, tree | change)


def _template(path: Path, generator: random.Random) -> None:
    file = path.with_name("tokenizer_config.json")
    if file.is_file():
        _write(file, json.loads(file.read_bytes()) | {"chat_template": generator.choice(TEMPLATES)})


_WAYS: dict[str, Callable[[Path, random.Random], None]] = {
    "numbers": _numbers,
    "values": _values,
    "bytes": _bytes,
    "a bomb": _bomb,
    "encoding": _encoding,
    "no file": _other,
    "a file beside it": _joined,
    "tokenizer": _tokenizer,
    "template": _template,
}


def _write(path: Path, tree: Any) -> None:
    path.write_text(json.dumps(tree), "utf-8")
