"""`adapter: transformers`: any causal language model of the Hugging Face hub, a local folder in that layout, or a GGUF file in
either.

What is known of it before it is loaded is read without torch.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from latentbench.activations.model_config import facts_of
from latentbench.core.border import foreign
from latentbench.core.errors import NotAvailable, RefusedFile
from latentbench.core.hub import cached_commit, cached_file, cached_folder, is_commit, refuse_local, resolved_commit
from latentbench.core.packages import Sha256
from latentbench.core.paths import Roots
from latentbench.core.protocols import LanguageModel, ModelAdapter, ModelFacts
from latentbench.core.spec_model import Json, without_default
from latentbench.core.stage import Stage
from latentbench.core.untrusted_files import read_json
from latentbench_adapters.gguf_model import GgufModel
from latentbench_adapters.model_files import check_model_folder, folder_facts, folder_identity
from latentbench_adapters.model_loading import hook_module, load_model, load_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from latentbench.core.sites import Site

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


class TransformersModel(ModelAdapter):
    """A causal language model, or the text decoder of one that also sees or hears: safetensors or GGUF, no remote code."""

    adapter: Literal["transformers"] = "transformers"
    id: Annotated[str, Field(min_length=1, max_length=300)]
    """Hub id such as `EleutherAI/pythia-70m`, or the path of a folder (relative to the project, or allowed)."""
    revision: Annotated[str, Field(pattern=r"^[\w./-]+$", max_length=100)] | None = None
    """Commit, tag or branch of a hub model; `run` pins it to the commit it resolves to."""
    file: Annotated[str, Field(pattern=r"\.gguf$", max_length=300)] | None = None
    """A GGUF file there, which is read in place of safetensors; it is converted once and then kept in the store."""
    sha256: Sha256 | None = None
    """Of that file; with it, cells can be planned where the file is not, and what is kept of it is found wherever it lies."""

    @model_serializer(mode="wrap")
    def _as_before(self, made: SerializerFunctionWrapHandler) -> dict[str, Json]:
        """Both fields are newer than records, whose keys stay as they were."""
        return without_default(type(self), ("file", "sha256"), made(self))

    @model_validator(mode="after")
    def _known_form(self) -> Any:
        if not _is_path(self.id) and not _HUB_ID.fullmatch(self.id):
            raise ValueError(f"{self.id!r} is neither a hub id (owner/name) nor a path (start it with ./ or ../)")
        if self.revision and ".." in self.revision.split("/"):
            raise ValueError(f"the revision {self.revision!r} is no commit, tag or branch")
        if self.file and (_is_path(self.file) or ".." in self.file.split("/") or "\\" in self.file):
            raise ValueError(
                f"{self.file!r} is no file below the folder or repository; write it as `folder/model.gguf`"
            )
        if self.sha256 and not self.file:
            raise ValueError("`sha256` is that of a GGUF file; name it under `file`")
        return self

    @property
    def label(self) -> str:
        return self.id

    def folder(self, roots: Roots) -> Path | None:
        """The local folder meant, or None for a hub id.

        Raises NotAvailable when a stated path is not a folder, RefusedFile and OutsideProject for one that leads elsewhere
        or to code.
        """
        if not self._is_local(roots):
            refuse_local(self.id, roots.project)
            return None
        folder = roots.resolve(self.id)
        if self.file:
            return folder
        if not (folder / "config.json").is_file():
            raise NotAvailable(f"{self.id} is not a model folder: it holds no config.json")
        check_model_folder(folder, roots)
        return folder

    def identity(self, roots: Roots) -> Json:
        if gguf := self._gguf(roots):
            return {**gguf.identity(), "dtype": self.dtype}
        folder = self.folder(roots)
        if folder:
            return {"files": folder_identity(folder), "dtype": self.dtype}
        return {**self._published(), "dtype": self.dtype}

    def conversion(self, roots: Roots) -> Stage | None:
        gguf = self._gguf(roots)
        return gguf.stage() if gguf else None

    def pinned(self, roots: Roots) -> Self:
        """Itself with the revision replaced by the commit it stands for now (asks the hub unless cached)."""
        if self.folder(roots) or is_commit(self.revision) or self.sha256:
            return self
        return self.model_copy(update={"revision": resolved_commit("model", self.id, self.revision)})

    def facts(self, roots: Roots) -> ModelFacts | None:
        if gguf := self._gguf(roots):
            return gguf.facts(roots)
        folder = self.folder(roots)
        if folder:
            return folder_facts(folder)
        config = self._cached("config.json")
        return facts_of(read_json(config), self.id) if config else None

    def published_name(self, roots: Roots) -> str | None:
        return None if self.folder(roots) else self.id

    def hook_module(self, roots: Roots, site: Site) -> str | None:
        if gguf := self._gguf(roots):
            made = gguf.converted(roots)
            return hook_module(str(made), None, site) if made else None
        return hook_module(self._source(roots), self.revision, site)

    def load(self, roots: Roots, device: torch.device) -> LanguageModel:
        return load_model(self._source(roots), self.revision, self.dtype, device)

    def load_tokenizer(self, roots: Roots) -> PreTrainedTokenizerBase:
        return load_tokenizer(self._source(roots), self.revision)

    def _source(self, roots: Roots) -> str:
        """What transformers opens: the folder, or the hub id, whose files are checked as far as they are here."""
        if gguf := self._gguf(roots):
            return str(gguf.folder(roots))
        if folder := self.folder(roots):
            return str(folder)
        if (commit := self._commit()) and (cached := cached_folder("model", self.id, commit)).is_dir():
            check_model_folder(cached, Roots(cached))
        return self.id

    def _is_local(self, roots: Roots) -> bool:
        return _is_path(self.id) or (roots.project / self.id / (self.file or "config.json")).is_file()

    def _gguf(self, roots: Roots) -> GgufModel | None:
        """The GGUF file meant, if one is. Raises as `folder` does."""
        if self.file is None:
            return None
        folder, file = self.folder(roots), self.file
        name = Path(file).name
        if folder:
            return GgufModel(name, lambda: (_existing(f"{self.id.rstrip('/')}/{file}", roots),), self.sha256)
        published = {**self._published(), "file": file}
        return GgufModel(name, lambda: (self._in_cache(file),), self.sha256, published, lambda: (self._fetched(file),))

    def _published(self) -> dict[str, Json]:
        return {"hub": self.id, "revision": self._commit() or self.revision or "main"}

    def _in_cache(self, file: str) -> Path:
        if cached := self._cached(file):
            return cached
        raise NotAvailable(f"{file} of {self.id} is not on this machine yet; it is fetched when it is needed")

    def _fetched(self, file: str) -> Path:
        if cached := self._cached(file):
            return cached
        advice = "check the file's name; go online once, or point HF_HOME at a cache that holds it"
        with foreign(f"{file} of {self.id} cannot be fetched", advice, NotAvailable):
            from huggingface_hub import hf_hub_download

            return Path(hf_hub_download(self.id, file, revision=self.revision))

    def _cached(self, name: str) -> Path | None:
        commit = self._commit()
        return cached_file("model", self.id, commit, name) if commit else None

    def _commit(self) -> str | None:
        """The commit known on this machine: stated in full, or remembered by the hub's cache."""
        return self.revision if is_commit(self.revision) else cached_commit("model", self.id, self.revision)


def _existing(path: str, roots: Roots) -> Path:
    """A file that is here. Raises NotAvailable, RefusedFile for a pipe or device, OutsideProject."""
    found = roots.resolve(path)
    if found.is_file():
        return found
    if found.exists():
        raise RefusedFile(f"{path} is no file")
    raise NotAvailable(f"there is no file {path}")


def _is_path(text: str) -> bool:
    return text.startswith(("/", "./", "../", "~"))
