"""`adapter: transformers`: any causal language model of the Hugging Face hub, or a local folder in that layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from latentbench.errors import NotAvailable
from latentbench.section import Json
from latentbench_adapters.folder import folder_facts, hook_module, load_model, load_tokenizer, read_json
from latentbench_adapters.hub import cached_commit, cached_file, cached_folder, is_commit, refuse_local, resolved_commit
from latentbench_adapters.model_config import facts_of
from latentbench_adapters.model_files import check_model_folder, folder_identity
from latentbench_adapters.protocols import LanguageModel, ModelAdapter, ModelFacts, Roots

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from latentbench.activations.site import Site

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


class TransformersModel(ModelAdapter):
    """A causal language model loaded through `AutoModelForCausalLM`, safetensors only, no remote code."""

    adapter: Literal["transformers"] = "transformers"
    id: Annotated[str, Field(min_length=1, max_length=300)]
    """Hub id such as `EleutherAI/pythia-70m`, or the path of a folder (relative to the project, or allowed)."""
    revision: Annotated[str, Field(pattern=r"^[\w./-]+$", max_length=100)] | None = None
    """Commit, tag or branch of a hub model; `run` pins it to the commit it resolves to."""

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
        return load_model(self._source(roots), self.revision, self.dtype, device)

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
