"""`adapter: transformers`: any causal language model of the Hugging Face hub, or a local folder in that layout.

A folder's facts are read without torch, its weights are loaded without pickles and without code of others. Of a model that
also sees or hears the text decoder is measured: it is given text alone (`auto_class`).
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from functools import lru_cache
from inspect import Parameter, signature
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from latentbench.activations.model_config import (
    PACKED,
    check_against_weights,
    check_files,
    check_numbers,
    facts_of,
    weight_shapes,
)
from latentbench.core.border import foreign
from latentbench.core.errors import NotAvailable, RefusedFile
from latentbench.core.hub import cached_commit, cached_file, cached_folder, is_commit, refuse_local, resolved_commit
from latentbench.core.paths import Roots
from latentbench.core.protocols import LanguageModel, ModelAdapter, ModelFacts
from latentbench.core.spec_model import Json, without_default
from latentbench.core.untrusted_files import read_json
from latentbench_adapters.model_files import (
    Stamp,
    check_model_folder,
    folder_identity,
    folder_stamp,
    refuse_adapter,
    refuse_kernels,
    settled,
)
from latentbench_adapters.model_placement import DeviceMap, loading_options, rejoined

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from latentbench.core.sites import Site

_SPARE = 1 << 26
"""Numbers that a model may have besides its weights: masks and tables that it computes."""


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


def load_model(
    source: str, revision: str | None, dtype: str, device: torch.device, device_map: DeviceMap | None = None
) -> LanguageModel:
    """A model from a folder or a hub id through transformers' auto classes, in evaluation mode, on `device` or spread as
    `device_map` says.

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
        skeleton = _checked_skeleton(config, source)
        offloaded = TemporaryDirectory(prefix="lb-offload-") if device_map else None
        loaded: Any = auto_class(config, source).from_pretrained(
            source,
            **loading_options(device_map, device, skeleton, offloaded.name if offloaded else ""),
            config=config,
            revision=revision,
            dtype=getattr(torch, dtype),
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # transformers' own error names none of them
            output_loading_info=True,
        )
        model, report = loaded
        _check_weights(report, source)
        if device_map:
            device = rejoined(model)
            model.offloaded_weights = offloaded  # a folder that goes with the model
        else:
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
        model = _skeleton(config, source)
    check_site(model, site)
    wanted = submodule(decoder_blocks(model)[site.index], site)
    path: str = next(name for name, module in model.named_modules() if module is wanted)
    return path


def _config(source: str, revision: str | None, **options: bool) -> Any:
    """The model's configuration. A padding id that its embedding has no row for is left out: torch refuses to build one
    with it, and nothing else asks for it, since padding is masked and its id chosen in `latentbench.activations.vocabulary`."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False, **options)
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


def _skeleton(config: Any, source: str) -> torch.nn.Module:
    """The model without weights: nothing is allocated. Raises RefusedFile for numbers that no model has."""
    import torch

    check_numbers(config.to_dict(), source)
    with torch.device("meta"):
        model: torch.nn.Module = auto_class(config, source).from_config(config)
    return model


def _checked_skeleton(config: Any, source: str) -> torch.nn.Module:
    """The model without weights. Raises RefusedFile when a configuration asks for more memory than the folder's weights can fill.

    transformers allocates whatever the configuration asks for before it sees that the weights are smaller.
    """
    model = _skeleton(config, source)
    held = sum(map(prod, weight_shapes(Path(source))))
    asked = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    if held and asked > _SPARE + PACKED * held:
        raise RefusedFile(f"{source}: config.json asks for a model of {asked:,} numbers, but its weights hold {held:,}")
    return model


def _check_weights(report: dict[str, Any], source: str) -> None:
    """Raises RefusedFile for weights that transformers made up because the files lack them or have them in other shapes."""
    if other := [f"{name} is {list(is_)}, not {list(asked)}" for name, is_, asked in sorted(report["mismatched_keys"])]:
        raise RefusedFile(
            f"the weights of the model {source!r} do not have the shapes that its config.json asks for: {'; '.join(other[:3])}"
        )
    if missing := sorted(report["missing_keys"]):
        raise RefusedFile(f"the model {source!r} lacks weights of its architecture: {', '.join(missing[:5])}")


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


class TransformersModel(ModelAdapter):
    """A causal language model, or the text decoder of one that also sees or hears: safetensors only, no remote code."""

    adapter: Literal["transformers"] = "transformers"
    id: Annotated[str, Field(min_length=1, max_length=300)]
    """Hub id such as `EleutherAI/pythia-70m`, or the path of a folder (relative to the project, or allowed)."""
    revision: Annotated[str, Field(pattern=r"^[\w./-]+$", max_length=100)] | None = None
    """Commit, tag or branch of a hub model; `run` pins it to the commit it resolves to."""
    device_map: DeviceMap | None = None
    """How accelerate spreads it where one device does not hold it: `auto`, `balanced`, or a map such as
    `{model.embed_tokens: "cuda:0", model.layers: "cuda:1", model.norm: "cuda:1", lm_head: disk}`. In no key."""

    def __hash__(self) -> int:
        return hash((self.id, self.revision, self.dtype))  # a map is none of what can be hashed

    @model_serializer(mode="wrap")
    def _without_new_defaults(self, made: SerializerFunctionWrapHandler) -> dict[str, Json]:
        return without_default(type(self), ("device_map",), made(self))

    @model_validator(mode="after")
    def _known_form(self) -> Any:
        if not _is_path(self.id) and not _HUB_ID.fullmatch(self.id):
            raise ValueError(f"{self.id!r} is neither a hub id (owner/name) nor a path (start it with ./ or ../)")
        if self.revision and ".." in self.revision.split("/"):
            raise ValueError(f"the revision {self.revision!r} is no commit, tag or branch")
        return self

    def folder(self, roots: Roots) -> Path | None:
        """The local folder meant, or None for a hub id.

        Raises NotAvailable when a stated path is not a folder, RefusedFile and OutsideProject for one that leads elsewhere
        or to code.
        """
        if not _is_path(self.id) and not (roots.project / self.id / "config.json").is_file():
            refuse_local(self.id, roots.project)
            return None
        folder = roots.resolve(self.id)
        if not (folder / "config.json").is_file():
            raise NotAvailable(f"{self.id} is not a model folder: it holds no config.json")
        check_model_folder(folder, roots)
        return folder

    def identity(self, roots: Roots) -> Json:
        folder = self.folder(roots)
        if folder:
            return {"files": folder_identity(folder), "dtype": self.dtype}
        return {"hub": self.id, "revision": self._commit() or self.revision or "main", "dtype": self.dtype}

    def pinned(self, roots: Roots) -> Self:
        """Itself with the revision replaced by the commit it stands for now (asks the hub unless cached)."""
        if self.folder(roots) or is_commit(self.revision):
            return self
        return self.model_copy(update={"revision": resolved_commit("model", self.id, self.revision)})

    def facts(self, roots: Roots) -> ModelFacts | None:
        folder = self.folder(roots)
        if folder:
            return folder_facts(folder)
        commit = self._commit()
        config = cached_file("model", self.id, commit, "config.json") if commit else None
        return facts_of(read_json(config), self.id) if config else None

    def published_name(self, roots: Roots) -> str | None:
        return None if self.folder(roots) else self.id

    def hook_module(self, roots: Roots, site: Site) -> str | None:
        return hook_module(self._source(roots), self.revision, site)

    def load(self, roots: Roots, device: torch.device) -> LanguageModel:
        return load_model(self._source(roots), self.revision, self.dtype, device, self.device_map)

    def load_tokenizer(self, roots: Roots) -> PreTrainedTokenizerBase:
        return load_tokenizer(self._source(roots), self.revision)

    def _source(self, roots: Roots) -> str:
        """What transformers opens: the folder, or the hub id, whose files are checked as far as they are here."""
        if folder := self.folder(roots):
            return str(folder)
        if (commit := self._commit()) and (cached := cached_folder("model", self.id, commit)).is_dir():
            check_model_folder(cached, Roots(cached))
        return self.id

    def _commit(self) -> str | None:
        """The commit known on this machine: stated in full, or remembered by the hub's cache."""
        return self.revision if is_commit(self.revision) else cached_commit("model", self.id, self.revision)


def _is_path(text: str) -> bool:
    return text.startswith(("/", "./", "../", "~"))
