"""What a model's config.json states: its shape, read without torch, and believed only as far as it can be true.

transformers builds whatever a configuration asks for, a million blocks or a matrix larger than the machine, before it looks
at the weights. So numbers that no model has are refused here, where specs are validated, before anything is made of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from math import prod
from pathlib import Path

from latentbench.core.errors import RefusedFile
from latentbench.core.protocols import ModelFacts
from latentbench.core.spec_model import Json
from latentbench.core.untrusted_files import tensor_shapes

_NAMES = {
    "d_model": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "vocabulary": ("vocab_size",),
}
"""What architectures call it: transformers' own `attribute_map`s, in the order in which they are looked for."""
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length", "model_max_length")
_LARGEST = {"d_model": 1 << 20, "layers": 1 << 12, "vocabulary": 1 << 26}
_COUNTS = (
    (re.compile(r"(layers?|blocks?|depth|stages)$"), 1 << 12),
    (re.compile(r"(experts|groups|codebooks|quantizers)$"), 1 << 16),
)
"""Keys that count modules, of whatever part of the model, and the most there may be: each is built before weights are read."""
_LARGEST_NUMBER = 1 << 53
PACKED = 8
"""Most numbers that quantisers pack into one element of a tensor."""


def facts_of(config: Json, where: str) -> ModelFacts:
    """Shape from a transformers configuration, whatever names the architecture gives to it.

    Raises RefusedFile for what describes no causal language model, and for numbers that no model has.
    """
    text = config.get("text_config", config) if isinstance(config, dict) else None
    if not isinstance(text, dict):
        raise RefusedFile(f"{where}: config.json does not describe a causal language model")
    if config.get("configuration_files"):
        raise RefusedFile(
            f"{where}: config.json names other configurations for other versions of transformers (configuration_files); "
            "load the model and save it anew (save_pretrained)"
        )
    check_numbers(config, where)
    found = {fact: _stated(text, fact, where) for fact in _NAMES}
    d_model, layers = found["d_model"], found["layers"] or _listed(text)
    # A model with several towers may state its vocabulary beside them; a text model without one is no language model.
    if d_model is None or layers is None or (text is config and found["vocabulary"] is None):
        raise RefusedFile(f"{where}: config.json does not describe a causal language model")
    vocabulary = found["vocabulary"] or _stated(config, "vocabulary", where)
    return ModelFacts(d_model, layers, vocabulary, _positions(text))


def check_numbers(config: Json, where: str) -> None:
    """Raises RefusedFile for a whole number, of whatever part of the model, that no model has."""
    for key, number in _numbers(config):
        if abs(number) > next((most for pattern, most in _COUNTS if pattern.search(key)), _LARGEST_NUMBER):
            raise RefusedFile(f"{where}: config.json says {key} = {_short(number)}, which no model has")


def check_files(folder: Path) -> None:
    """Raises RefusedFile for what transformers would wait for or read for ever."""
    with os.scandir(folder) as entries:
        odd = sorted(entry.name for entry in entries if not (entry.is_file() or entry.is_dir()))
    for path in (folder / name for name in odd):
        if path.exists():
            raise RefusedFile(f"{path} is no file but a pipe or a device")


def check_against_weights(facts: ModelFacts, folder: Path) -> None:
    """Raises RefusedFile when config.json asks for more blocks or embeddings than the folder's weights can hold."""
    shapes = weight_shapes(folder)
    where, held = f"{folder}: config.json", sum(map(prod, shapes))
    if shapes and facts.layers > len(shapes):
        raise RefusedFile(f"{where} says {facts.layers} decoder blocks, but its weights are {len(shapes)} tensors")
    if shapes and facts.d_model * (facts.vocabulary or 1) > PACKED * held:
        raise RefusedFile(
            f"{where} says {facts.vocabulary or 'some'} tokens of {facts.d_model} dimensions, but its weights hold "
            f"{held:,} numbers"
        )


def weight_shapes(folder: Path) -> list[list[int]]:
    """Shapes of all tensors in the folder's *.safetensors. Raises RefusedFile."""
    files = sorted(path for path in folder.glob("*.safetensors") if path.is_file())  # a pipe would be waited for
    return [shape for path in files for shape in tensor_shapes(path).values()]


def _stated(config: dict[str, Json], fact: str, where: str) -> int | None:
    """The first of a fact's names that has a value. Raises RefusedFile when that is no plausible whole number."""
    name = next((name for name in _NAMES[fact] if config.get(name) is not None), None)
    if name is None:
        return None
    value = config[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST[fact]:
        raise RefusedFile(
            f"{where}: config.json says {name} = {_short(value)}; a whole number from 1 to {_LARGEST[fact]} is expected"
        )
    return value


def _listed(config: dict[str, Json]) -> int | None:
    """The number of blocks where their kinds are listed and no number is stated (Nemotron-H)."""
    kinds = config.get("layer_types") or config.get("layers_block_type")
    return len(kinds) if isinstance(kinds, list) and 1 <= len(kinds) <= _LARGEST["layers"] else None


def _positions(config: dict[str, Json]) -> int | None:
    """The longest text by the configuration; None where that has no whole number for it, or −1, as some write for none."""
    stated = (config.get(name) for name in _POSITIONS)
    return next((value for value in stated if type(value) is int and value > 0), None)


def _numbers(config: Json) -> Iterator[tuple[str, int]]:
    """Every whole number with its key, however deep; read_json has seen to it that the depth is bounded."""
    waiting: list[tuple[str, Json]] = [("", config)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(key, one) for one in value]
        elif isinstance(value, int):
            yield key, value


def _short(value: Json) -> str:
    return repr(value)[:40]
