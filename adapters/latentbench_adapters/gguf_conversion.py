"""From a GGUF file to a folder in the layout that transformers loads: float32 weights, configuration and tokenizer.

transformers takes the quantised numbers apart, exactly. It leaves out without a word what it does not know, so that the
model would be another one: here every tensor of the file has to end up in the model, and what the header says of it in
the configuration.
"""

from __future__ import annotations

import shutil
from math import prod
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging

from latentbench.activations.model_config import check_numbers
from latentbench.core.border import foreign
from latentbench.core.errors import RefusedFile
from latentbench.core.gguf_header import GgufHeader
from latentbench_adapters.jinja_sandbox import bound_chat_templates
from latentbench_adapters.model_files import refuse_kernels
from latentbench_adapters.model_loading import SPARE, auto_class, check_weights, skeleton, without_odd_padding

_STATED = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention.sliding_window": "sliding_window",
}
"""What a header may say and transformers may leave at its own default, and how its configurations call it."""
_CHUNK = 1 << 24


def convert(files: tuple[Path, ...], header: GgufHeader, name: str, folder: Path) -> None:
    """Writes the model of a file, or of pieces that continue each other, into `folder`.

    It holds the whole model in float32 once. Raises RefusedFile for what transformers cannot read, or not as it is meant.
    """
    # A folder of its own: transformers also opens what lies beside the file, and looks for it in the current folder first.
    source = folder / "source"
    source.mkdir()
    try:
        whole = _whole(files, source / "model.gguf")
        refuse_kernels()
        bound_chat_templates()
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        with foreign(
            f"the GGUF file {name} cannot be converted", "take another file of this model, or its safetensors"
        ):
            _model(whole, header, name).save_pretrained(folder)
            tokenizer: Any = AutoTokenizer.from_pretrained(source, gguf_file=str(whole), trust_remote_code=False)
            tokenizer.save_pretrained(folder)
    finally:
        shutil.rmtree(source)


def _whole(files: tuple[Path, ...], target: Path) -> Path:
    """The file under the name that transformers is given: a link to it, or its pieces put together."""
    if len(files) == 1:
        target.symlink_to(files[0].resolve())
        return target
    with target.open("wb") as joined:
        for path in files:
            with path.open("rb") as piece:
                shutil.copyfileobj(piece, joined, _CHUNK)
    return target


def _model(whole: Path, header: GgufHeader, name: str) -> Any:
    options = {"gguf_file": str(whole), "trust_remote_code": False}
    config = without_odd_padding(AutoConfig.from_pretrained(whole.parent, **options))
    _take_stated(config, header, name)
    _check_size(config, header, name)
    made: Any = auto_class(config, name).from_pretrained(
        whole.parent,
        config=config,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # transformers' own error names none of them
        output_loading_info=True,
        **options,
        **_unpacked(),
    )
    model, report = made
    check_weights(report, name)
    _check_nothing_left(model, header, name)
    return _plain(model)


def _unpacked() -> dict[str, Any]:
    """Newer versions of transformers could keep the quantised blocks, and would look for kernels on the hub."""
    options = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": options(dequantize=True)} if options else {}


def _plain(model: Any) -> Any:
    """The same weights in a model that does not know that it came from a GGUF file, which transformers would not save."""
    config = model.config
    for name in ("quantization_config", "_name_or_path"):
        vars(config).pop(name, None)
    with torch.device("meta"):  # it takes the weights over, so that they are held once
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    return plain


def _take_stated(config: Any, header: GgufHeader, name: str) -> None:
    """Puts into the configuration what the header says and transformers did not take. Raises RefusedFile where it cannot."""
    for key, attribute in _STATED.items():
        value = header.of_model(key)
        if value is None:
            continue
        if not hasattr(config, attribute):
            raise RefusedFile(
                f"{name}: its header says {key} = {value}, which transformers does not know for such models"
            )
        setattr(config, attribute, value)
    kind, factor = header.of_model("rope.scaling.type"), header.of_model("rope.scaling.factor")
    if kind not in (None, "none") or factor not in (None, 0, 1):
        raise RefusedFile(
            f"{name}: its header stretches positions (rope.scaling: {kind}, factor {factor}), which transformers does not "
            "take from GGUF files; take the model's safetensors"
        )


def _check_size(config: Any, header: GgufHeader, name: str) -> None:
    """Raises RefusedFile when the configuration asks for more memory than the file's tensors can fill."""
    check_numbers(config.to_dict(), name)
    empty = skeleton(config, name)
    asked = sum(tensor.numel() for tensor in (*empty.parameters(), *empty.buffers()))
    if asked > SPARE + header.elements:
        raise RefusedFile(
            f"{name}: its header asks for a model of {asked:,} numbers, but its tensors hold {header.elements:,}"
        )


def _check_nothing_left(model: Any, header: GgufHeader, name: str) -> None:
    """Raises RefusedFile when the file's tensors hold more than the model has."""
    blocks = model.config.get_text_config().num_hidden_layers
    # Blocks behind the last predict tokens further on, and are no part of the model.
    meant = {tensor: prod(shape) for tensor, shape in header.tensors.items() if not _behind(tensor, blocks)}
    has = sum(parameter.numel() for parameter in model.parameters())
    if (held := sum(meant.values())) > has:
        odd = [tensor for tensor in meant if "rope" in tensor] or ["of names it does not know"]
        raise RefusedFile(
            f"{name} holds {held:,} numbers, but transformers makes a model of {has:,}: it leaves out tensors "
            f"({', '.join(odd[:3])}), so that the model would be another one; take the model's safetensors"
        )


def _behind(tensor: str, blocks: int) -> bool:
    place = tensor.split(".")
    return place[0] == "blk" and place[1].isdecimal() and int(place[1]) >= blocks
