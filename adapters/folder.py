"""A causal language model in a local folder, in the Hugging Face layout: read without torch, loaded without pickles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.model_files import refuse_adapter, refuse_kernels
from adapters.protocols import LanguageModel, ModelFacts
from harness.errors import NotAvailable, RefusedFile
from harness.section import Json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from harness.activations.site import Site

_MAX_CONFIG = 1 << 20


def folder_facts(folder: Path) -> ModelFacts:
    """Shape of the model from its config.json."""
    return facts_of(read_json(folder / "config.json"), str(folder))


def facts_of(config: Json, where: str) -> ModelFacts:
    """Shape from a transformers configuration, whatever names the architecture gives to it."""
    text = config.get("text_config", config) if isinstance(config, dict) else {}
    if isinstance(config, dict) and config.get("configuration_files"):
        raise RefusedFile(
            f"{where}: config.json names other configurations for other versions of transformers (configuration_files); "
            "load the model and save it anew (save_pretrained)"
        )
    try:
        return ModelFacts(
            d_model=_first(text, "hidden_size", "n_embd", "d_model"),
            layers=_first(text, "num_hidden_layers", "n_layer", "num_layers"),
            vocabulary=_first(text, "vocab_size"),
            context=_largest_position(text),
        )
    except (KeyError, AttributeError):
        raise RefusedFile(f"{where}: config.json does not describe a causal language model") from None


def read_json(path: Path, most: int = _MAX_CONFIG) -> Json:
    """A JSON file of at most `most` bytes. Raises NotAvailable or RefusedFile."""
    try:
        if path.stat().st_size > most:
            raise RefusedFile(f"{path} is larger than a configuration can be")
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise NotAvailable(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise RefusedFile(f"{path} is not JSON: {error}") from None


def load_model(source: str, revision: str | None, dtype: str, device: torch.device) -> LanguageModel:
    """A model from a folder or a hub id through transformers' auto classes, in evaluation mode.

    Raises NotAvailable with what to do when it cannot be had, RefusedFile when its weights are damaged or incomplete.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    refuse_kernels()
    try:
        refuse_adapter(source, revision)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=_config(source, revision),
            revision=revision,
            dtype=getattr(torch, dtype),
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError) as error:
        raise NotAvailable(_unavailable(source, error)) from error
    except SafetensorError as error:
        raise RefusedFile(f"the weights of the model {source!r} are damaged: {error}") from error
    model, report = loaded
    if report["missing_keys"]:  # transformers would make them up
        raise RefusedFile(
            f"the model {source!r} lacks weights of its architecture: {', '.join(sorted(report['missing_keys'])[:5])}"
        )
    torch.nn.Module.to(model, device)  # transformers' own wrappers of these three carry no types
    torch.nn.Module.requires_grad_(model, False)
    torch.nn.Module.eval(model)
    return LanguageModel(model, load_tokenizer(source, revision), device)


def load_tokenizer(source: str, revision: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id. Raises NotAvailable."""
    from transformers import AutoTokenizer

    from adapters.templates import bound_chat_templates

    bound_chat_templates()
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError) as error:
        raise NotAvailable(_unavailable(source, error)) from error
    return tokenizer


def hook_module(source: str, revision: str | None, site: Site) -> str | None:
    """Path of the module at which `site` is read in a folder's or cached hub id's model, e.g. `model.layers.3`.

    The model is built without weights from its configuration. None when that is not on this machine.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from harness.activations.blocks import check_site, decoder_blocks, submodule

    try:
        config = _config(source, revision, local_files_only=True)
    except (OSError, ValueError):
        return None
    with torch.device("meta"):
        model: torch.nn.Module = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    check_site(model, site)
    wanted = submodule(decoder_blocks(model)[site.index], site)
    path: str = next(name for name, module in model.named_modules() if module is wanted)
    return path


def _config(source: str, revision: str | None, **options: bool) -> Any:
    """The model's configuration. A padding id that its embedding has no row for is left out: torch refuses to build one
    with it, and nothing else asks for it, since padding is masked and its id chosen in `harness.activations.vocabulary`."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False, **options)
    text = config.get_text_config()
    padding = getattr(text, "pad_token_id", None)
    if padding is not None and padding >= getattr(text, "vocab_size", padding + 1):
        text.pad_token_id = None
    return config


def _first(config: dict[str, Json], *names: str) -> int:
    for name in names:
        if isinstance(config.get(name), int):
            return int(config[name])
    raise KeyError(names[0])


def _largest_position(config: dict[str, Json]) -> int | None:
    stated = (config.get(name) for name in ("max_position_embeddings", "n_positions", "n_ctx"))
    return next((value for value in stated if type(value) is int and value > 0), None)


def _unavailable(source: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    return (
        f"the model {source!r} cannot be loaded: {reason} "
        "(for a hub model: go online once, or point HF_HOME at a cache that holds it; for a folder: check its path)"
    )
