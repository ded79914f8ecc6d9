"""A model in a GGUF file: known by its bytes, converted once, and from then on loaded from the store like any other folder.

The key of what it is converted to is made of the file's sha256, so a file is converted once wherever it lies, and whoever
states that sha256 can plan without the file. Nothing here imports torch; what converts does
(`latentbench_adapters.gguf_conversion`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path

from latentbench.core.errors import InvalidInput, NotAvailable, RefusedFile
from latentbench.core.gguf_header import MODEL, GgufHeader, read_gguf_header
from latentbench.core.known_files import known, known_digest
from latentbench.core.packages import check_sha256
from latentbench.core.paths import Roots
from latentbench.core.protocols import ModelFacts
from latentbench.core.spec_model import Json
from latentbench.core.stage import Stage
from latentbench.store.store import Store
from latentbench_adapters.model_files import folder_facts

VERSION = 2
"""Raised when the same file is converted to other weights or another tokenizer. Since 2 digits are cut off where a header says so."""
_LARGEST = {"embedding_length": 1 << 20, "block_count": 1 << 12, "context_length": 1 << 53}
Files = tuple[Path, ...]


@dataclass(frozen=True)
class GgufModel:
    """A GGUF file, or its pieces one behind the other, and what is known of it."""

    name: str
    """For people: the file's name."""
    find: Callable[[], Files]
    """The file or its pieces. Raises NotAvailable with what to do where they are not on this machine."""
    sha256: str | None = None
    """What the spec states of the whole file."""
    published: Json = None
    """Where it was published, for what cannot change there; its identity when no sha256 is stated."""
    fetch: Callable[[], Files] | None = None
    """Like `find`, but gets what is not here yet."""

    def identity(self) -> dict[str, Json]:
        """The file's sha256, or where it was published, and how it is converted. Raises NotAvailable or RefusedFile."""
        if self.published and not self.sha256:
            return {**self.published, "conversion": VERSION}
        files = self._here() if self.sha256 else self.find()
        if files:
            check_sha256(self.name, files, self.sha256)
        return {"gguf": known_digest(*files) if files else self.sha256, "conversion": VERSION}

    def stage(self) -> Stage:
        """What converts it."""
        try:
            self.find()
            lacking = ""
        except NotAvailable as error:
            lacking = f" ({error})"
        return Stage("model", f"{self.name} converted from GGUF{lacking}", self.identity())

    def facts(self, roots: Roots) -> ModelFacts | None:
        """Shape of the model by the file's header; None where neither file nor conversion is here. Raises RefusedFile."""
        if files := self._here():
            return ModelFacts(
                *known("gguf facts/1", files, lambda: list(astuple(gguf_facts(header_of(files), self.name))))
            )
        made = self.converted(roots)
        try:
            return folder_facts(made) if made else None
        except InvalidInput:
            return None  # damaged: whoever loads it finds that out and converts the file again

    def converted(self, roots: Roots) -> Path | None:
        """The folder that it was converted to, its bytes unchecked: for its configuration. None where it was not yet."""
        if roots.store is None:
            return None
        store, ref = _store(roots.store), self.stage().ref
        return store.folder(*ref) if store.has(*ref) else None

    def folder(self, roots: Roots) -> Path:
        """The folder that it was converted to; the first to ask converts it.

        Raises NotAvailable when the file is not here or there is no store, RefusedFile when it cannot be converted.
        """
        if roots.store is None:
            raise NotAvailable(f"{self.name} has to be converted into a store, and none is given")
        store, stage = _store(roots.store), self.stage()
        return store.once(*stage.ref, lambda: _kept(store, stage), lambda: self._convert(store, stage))

    def _convert(self, store: Store, stage: Stage) -> Path:
        files = (self.fetch or self.find)()
        check_sha256(self.name, files, self.sha256)
        header = header_of(files)
        gguf_facts(header, self.name)
        from latentbench_adapters.gguf_conversion import convert

        with store.writing(stage.kind, stage.key, stage.made_from) as folder:
            convert(files, header, self.name, folder)
        return store.folder(*stage.ref)

    def _here(self) -> Files:
        try:
            return self.find()
        except NotAvailable:
            return ()


def header_of(files: Files) -> GgufHeader:
    """The header of a file or of its pieces. Raises NotAvailable or RefusedFile."""
    return read_gguf_header(files, MODEL)


def gguf_facts(header: GgufHeader, name: str) -> ModelFacts:
    """Shape of a model by its header. Raises RefusedFile for what is no language model, or one of several files."""
    pieces = header.values.get("split.count", 1)
    if pieces != 1:
        raise RefusedFile(
            f"{name} is one of {pieces} files of a model; make one of them with llama.cpp's `llama-gguf-split --merge`"
        )
    d_model, layers, context = (_number(header, key, name) for key in _LARGEST)
    embedding = header.tensors.get("token_embd.weight", ())
    if len(embedding) != 2 or embedding[1] != d_model or layers > len(header.tensors):
        raise RefusedFile(f"{name} is no language model: its tensors are not those that its header describes")
    # Some have a block more, which predicts the token after the next one and is no part of the model.
    behind = header.of_model("nextn_predict_layers")
    return ModelFacts(d_model, layers - (behind if type(behind) is int else 0), embedding[0], context)


def _number(header: GgufHeader, key: str, name: str) -> int:
    value = header.of_model(key)
    if type(value) is not int or not 1 <= value <= _LARGEST[key]:
        raise RefusedFile(
            f"{name} is no language model: its header says {header.architecture}.{key} = {str(value)[:40]}"
        )
    return value


@lru_cache(maxsize=8)
def _store(root: Path) -> Store:
    """One for a process, so that what was converted is verified once and not at every look."""
    return Store(root)


def _kept(store: Store, stage: Stage) -> Path | None:
    artifact = store.get(*stage.ref)
    return artifact.folder if artifact else None
