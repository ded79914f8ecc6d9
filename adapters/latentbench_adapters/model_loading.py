"""Loading a model from a folder or from the hub: weights without pickles, and without code of others.

Of a model that also sees or hears the text decoder is measured: it is given text alone (`auto_class`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from inspect import Parameter, signature
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentbench.activations.model_config import PACKED, check_files, check_numbers, weight_shapes
from latentbench.core.border import foreign
from latentbench.core.errors import NotAvailable, RefusedFile
from latentbench.core.protocols import LanguageModel
from latentbench_adapters.model_files import folder_facts, refuse_adapter, refuse_kernels

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from latentbench.core.sites import Site

SPARE = 1 << 26
"""Numbers that a model may have besides its weights: masks and tables that it computes."""


def load_model(source: str, revision: str | None, dtype: str, device: torch.device) -> LanguageModel:
    """A model from a folder or a hub id through transformers' auto classes, in evaluation mode.

    Raises NotAvailable with what to do when it cannot be had, RefusedFile when its files are damaged, incomplete or do not
    fit together, InvalidInput when it is not causal.
    """
    import torch
    from transformers.utils import logging

    from latentbench.activations.causality import check_causal

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # Before anything of the source is opened: a configuration can name code that transformers would fetch and run.
    refuse_kernels()
    if Path(source).is_dir():
        folder_facts(Path(source))
    with _reading(f"the model {source!r}", source):
        refuse_adapter(source, revision)
        config = _config(source, revision)
        _check_skeleton(config, source)
        loaded: Any = auto_class(config, source).from_pretrained(
            source,
            config=config,
            revision=revision,
            dtype=getattr(torch, dtype),
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # transformers' own error names none of them
            output_loading_info=True,
        )
        model, report = loaded
        check_weights(report, source)
        torch.nn.Module.to(model, device)  # transformers' own wrappers of these three carry no types
        check_causal(model)
    # Nobody here trains a model's weights: a backward pass to a vector or SAE must not compute and keep their gradients.
    torch.nn.Module.requires_grad_(model, False)
    torch.nn.Module.eval(model)
    return LanguageModel(model, load_tokenizer(source, revision), device)


def auto_class(config: Any, source: str) -> Any:
    """The auto class of transformers that builds the model of a configuration: a causal language model, or one that also
    sees or hears and can be given text alone (LLaVA, Qwen-VL, Mistral 3, Voxtral, …).

    Of an architecture that is registered as both (Llama 4, Qwen3.5), the first loads the text decoder without the other
    towers. Raises InvalidInput for a configuration of neither kind.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

    if type(config) in AutoModelForCausalLM._model_mapping:
        return AutoModelForCausalLM
    why = _no_text_decoder(AutoModelForMultimodalLM._model_mapping.get(type(config), None), config)
    if why:
        raise RefusedFile(f"the model {source!r} is no causal language model: {why}")
    return AutoModelForMultimodalLM


def _no_text_decoder(kind: Any, config: Any) -> str:
    """Why what a class of transformers builds cannot be read as a decoder of text; empty where it can."""
    if kind is None:
        return f"transformers has no class for its type {config.model_type!r} that predicts the next token of a text"
    text = config.get_text_config(decoder=True)
    if config.is_encoder_decoder or text.is_encoder_decoder:
        return f"{kind.__name__} is an encoder and a decoder, whose texts are two"
    asked = [one for one in signature(kind.forward).parameters.values() if one.kind is not Parameter.VAR_KEYWORD]
    if needed := [one.name for one in asked if one.default is one.empty and one.name not in ("self", "input_ids")]:
        return f"{kind.__name__} cannot run on text alone, it needs {', '.join(needed)}"
    return ""


def load_tokenizer(source: str, revision: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id. Raises NotAvailable, or RefusedFile when its files are damaged."""
    from transformers import AutoTokenizer

    from latentbench_adapters.jinja_sandbox import bound_chat_templates

    bound_chat_templates()
    with _reading(f"the tokenizer of {source!r}", source):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )
    return tokenizer


def hook_module(source: str, revision: str | None, site: Site) -> str | None:
    """Path of the module at which `site` is read in a folder's or cached hub id's model, e.g. `model.layers.3`.

    The model is built without weights from its configuration. None when that is not on this machine. Raises RefusedFile
    when it is no configuration of a model, InvalidInput when the model has no such site.
    """
    from latentbench.activations.blocks import check_site, decoder_blocks, submodule

    with _reading(f"the configuration of {source!r}", source):
        try:
            config = _config(source, revision, local_files_only=True)
        except (OSError, ValueError):
            return None
        model = skeleton(config, source)
    check_site(model, site)
    wanted = submodule(decoder_blocks(model)[site.index], site)
    path: str = next(name for name, module in model.named_modules() if module is wanted)
    return path


def _config(source: str, revision: str | None, **options: bool) -> Any:
    from transformers import AutoConfig

    return without_odd_padding(
        AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False, **options)
    )


def without_odd_padding(config: Any) -> Any:
    """The configuration without a padding id that its embedding has no row for: torch refuses to build one with it, and
    nothing else asks for it, since padding is masked and its id chosen in `latentbench.activations.vocabulary`."""
    text = config.get_text_config()
    padding = getattr(text, "pad_token_id", None)
    if padding is not None and padding >= getattr(text, "vocab_size", padding + 1):
        text.pad_token_id = None
    return config


def _reading(what: str, source: str) -> AbstractContextManager[None]:
    """The border to transformers and what it stands on, which only gets folders of plain files."""
    if Path(source).is_dir():
        check_files(Path(source))
        return foreign(f"{what} cannot be loaded", "mend or replace the files of that folder")
    advice = "for a hub model: go online once, or point HF_HOME at a cache that holds it; for a folder: check its path"
    return foreign(f"{what} cannot be loaded", advice, NotAvailable)


def skeleton(config: Any, source: str) -> torch.nn.Module:
    """The model without weights: nothing is allocated. Raises RefusedFile for numbers that no model has."""
    import torch

    check_numbers(config.to_dict(), source)
    with torch.device("meta"):
        model: torch.nn.Module = auto_class(config, source).from_config(config)
    return model


def _check_skeleton(config: Any, source: str) -> None:
    """Raises RefusedFile when a configuration asks for more memory than the folder's weights can fill.

    transformers allocates whatever the configuration asks for before it sees that the weights are smaller.
    """
    model = skeleton(config, source)
    held = sum(map(prod, weight_shapes(Path(source))))
    asked = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    if held and asked > SPARE + PACKED * held:
        raise RefusedFile(f"{source}: config.json asks for a model of {asked:,} numbers, but its weights hold {held:,}")


def check_weights(report: dict[str, Any], source: str) -> None:
    """Raises RefusedFile for weights that transformers made up because the files lack them or have them in other shapes."""
    if other := [f"{name} is {list(is_)}, not {list(asked)}" for name, is_, asked in sorted(report["mismatched_keys"])]:
        raise RefusedFile(
            f"the weights of the model {source!r} do not have the shapes that its config.json asks for: {'; '.join(other[:3])}"
        )
    if missing := sorted(report["missing_keys"]):
        raise RefusedFile(f"the model {source!r} lacks weights of its architecture: {', '.join(missing[:5])}")
