"""What travels between machines that share no disk: artifacts, checkpoints, results and the files that specs name.

A `Depot` stands for the folders of one machine; `carry` brings what has a name from one to another. Whatever arrives is
checked against the sha256 that its sender said, an artifact against its manifest as well, and only then gets its name.
Names lead nowhere but into these folders, and each depot takes and gives no more than it was made for.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from latentbench.core.errors import DamagedArtifact, RefusedFile, StoreError
from latentbench.core.hashing import file_digest
from latentbench.core.known_files import known_digest
from latentbench.store.files import sync_folder
from latentbench.store.store import Store

CHUNK_BYTES = 8 << 20
"""So much travels at a time."""
PROJECT, RESULTS = "project", "results"
"""Names of the files that specs name, which are only read, and of what a job leaves: records, their statistics, logs."""
_LEFT_BY_JOBS = ("records", "logs")
"""Folders of the results: the store may be another."""
_OBJECT = re.compile(r"objects/([a-z_]{1,40})/([0-9a-f]{64})")
_CHECKPOINT = re.compile(r"partial/([0-9a-f]{64})")
_DRAFT = re.compile(r"[a-z0-9_-]{1,40}")

Seal = tuple[int, str]
"""Bytes of a file and their sha256."""


def object_name(kind: str, key: str) -> str:
    """Of an artifact; all its files travel together."""
    return f"objects/{kind}/{key}"


def checkpoint_name(key: str) -> str:
    """Of the checkpoint of an unfinished artifact."""
    return f"partial/{key}"


class DepotLike(Protocol):
    """A depot, here or on another machine."""

    def listing(self, name: str) -> dict[str, Seal]:
        """The files of what has this name, by their paths in it; empty when there is none."""

    def read(self, name: str, file: str, start: int) -> bytes:
        """A piece of a file; empty at its end."""

    def begin(self, name: str) -> str:
        """A new draft for what is to have this name."""

    def write(self, draft: str, file: str, content: bytes) -> None:
        """Adds to a file of a draft."""

    def accept(self, name: str, draft: str, seals: dict[str, Seal]) -> None:
        """Gives what is in a draft its name, if it is what its sender said. Raises DamagedArtifact otherwise."""


class Depot:
    """The folders of this machine."""

    def __init__(
        self,
        store: Path,
        project: Path | None = None,
        results: Path | None = None,
        files: Collection[str] = (),
        takes: Collection[str] | None = None,
    ) -> None:
        """`files`: paths in the project that may be read; `takes`: the only names under which something may be left,
        None for any."""
        self._store, self._files, self._takes = Store(store), frozenset(files), takes
        self._roots = {PROJECT: project, RESULTS: results}

    def listing(self, name: str) -> dict[str, Seal]:
        """See `DepotLike`. An artifact's bytes are verified; a damaged one counts as absent."""
        if (match := _OBJECT.fullmatch(name)) and self._store.get(match[1], match[2]) is None:
            return {}
        folder = self._folder(name)
        found: dict[str, Seal] = {}
        for file in sorted(self._files) if name == PROJECT else _files_in(folder):
            with suppress(FileNotFoundError):  # replaced or finished meanwhile
                path = inside(folder, file)
                found[file] = path.stat().st_size, known_digest(path)
        return found

    def read(self, name: str, file: str, start: int) -> bytes:
        """See `DepotLike`. Raises RefusedFile for a file that is none of those that may be read."""
        if name == PROJECT and file not in self._files:
            raise RefusedFile(f"{file[:80]!r} is no file that the specs name")
        with inside(self._folder(name), file).open("rb") as handle:
            handle.seek(start)
            return handle.read(CHUNK_BYTES)

    def begin(self, name: str) -> str:
        """See `DepotLike`. Raises RefusedFile for a name under which nothing is taken."""
        self._folder(name)
        if name == PROJECT or (self._takes is not None and name not in self._takes):
            raise RefusedFile(f"nothing is taken under the name {name[:80]!r}")
        try:
            self._drafts.mkdir(parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(dir=self._drafts, prefix="arriving-")).name
        except OSError as error:
            raise StoreError(f"cannot write to the store {self._store.root}: {error.strerror or error}") from error

    def write(self, draft: str, file: str, content: bytes) -> None:
        """See `DepotLike`."""
        path = inside(self._draft(draft), file)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as handle:
                handle.write(content)
        except OSError as error:
            raise StoreError(f"cannot write to the store {self._store.root}: {error.strerror or error}") from error

    def accept(self, name: str, draft: str, seals: dict[str, Seal]) -> None:
        """See `DepotLike`. With an artifact its checkpoint has done its duty and is deleted."""
        folder = self._draft(draft)
        try:
            if name == RESULTS and (other := [file for file in seals if file.split("/")[0] not in _LEFT_BY_JOBS]):
                raise RefusedFile(f"{other[0][:80]!r} is nothing that a job leaves in the results")
            for file, (size, sha256) in seals.items():
                path = inside(folder, file)
                if not path.is_file() or path.stat().st_size != size or file_digest(path) != sha256:
                    raise DamagedArtifact(f"{file!r} of {name[:80]} did not arrive as it was sent")
            if match := _OBJECT.fullmatch(name):
                self._store.admit(folder, match[1], match[2])
                self._store.drop_checkpoint(match[2])
            else:
                _place_all(folder, self._folder(name), seals)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def frozen(self, name: str) -> Iterator[Depot]:
        """A depot in which what has this name stays as it is now, whatever replaces its files here meanwhile."""
        with tempfile.TemporaryDirectory(dir=self._made_drafts(), prefix="leaving-") as place:
            other = Depot(Path(place))
            source, target = self._folder(name), other._folder(name)
            for file in _files_in(source):
                with suppress(FileNotFoundError):
                    path = inside(target, file)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    # A second name of the same bytes: files here are replaced and never written to.
                    os.link(inside(source, file), path)
            yield other

    @property
    def _drafts(self) -> Path:
        return self._store.root / "tmp"

    def _made_drafts(self) -> Path:
        self._drafts.mkdir(parents=True, exist_ok=True)
        return self._drafts

    def _draft(self, draft: str) -> Path:
        if not _DRAFT.fullmatch(draft) or not (self._drafts / draft).is_dir():
            raise RefusedFile(f"there is no draft {draft[:40]!r}")
        return self._drafts / draft

    def _folder(self, name: str) -> Path:
        if (root := self._roots.get(name)) is not None:
            return root
        if match := _OBJECT.fullmatch(name):
            return self._store.folder(match[1], match[2])
        if match := _CHECKPOINT.fullmatch(name):
            return self._store.checkpoint(match[1])
        raise RefusedFile(f"nothing here has the name {name[:80]!r}")


def carry(name: str, source: DepotLike, target: DepotLike) -> int:
    """Brings what has this name to where it is lacking, file by file; returns how many bytes travelled.

    Of an artifact all files or none travel, of everything else those that differ. Raises DamagedArtifact for what does not
    arrive as it was sent, which then has left nothing.
    """
    sent = source.listing(name)
    there = {} if name == RESULTS else target.listing(name)  # there may be thousands of other jobs' results
    lacking = {file: seal for file, seal in sent.items() if there.get(file) != seal}
    if not lacking or (there and _OBJECT.fullmatch(name)):
        return 0
    draft = target.begin(name)
    for file in lacking:
        for piece in pieces(source, name, file):
            target.write(draft, file, piece)
    target.accept(name, draft, lacking)
    return sum(size for size, _ in lacking.values())


def pieces(source: DepotLike, name: str, file: str) -> Iterator[bytes]:
    """The content of a file, piece by piece; one empty piece of an empty file."""
    start, piece = 0, source.read(name, file, 0)
    yield piece
    while piece:
        start += len(piece)
        if piece := source.read(name, file, start):
            yield piece


def _files_in(folder: Path) -> list[str]:
    """Paths of the plain files below a folder; what is being written has a name with a dot in front."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sorted(str(path.relative_to(folder)) for path in found if not path.name.startswith("."))


def inside(folder: Path, file: str) -> Path:
    """The path of a file below a folder. Raises RefusedFile for one that leads out of it."""
    parts = file.split("/")
    if "\0" in file or any(part in ("", ".", "..") for part in parts):
        raise RefusedFile(f"{file[:80]!r} is no path of a file in a folder")
    path = folder.joinpath(*parts)
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise RefusedFile(f"{file[:80]!r} leads out of its folder")
    return path


def _place_all(draft: Path, folder: Path, files: Collection[str]) -> None:
    """Moves files to their places, each whole; records last, as they vouch for what stands beside them."""
    try:
        for file in sorted(files, key=lambda name: (name.endswith(".json"), name)):
            target = inside(folder, file)
            target.parent.mkdir(parents=True, exist_ok=True)
            arrived = inside(draft, file)
            arrived.chmod(0o644)
            with arrived.open("rb") as handle:
                os.fsync(handle.fileno())
            # Through the target's own folder, since a draft may lie on another disk than it.
            beside = target.with_name(f".{target.name[:40]}.{draft.name}")
            shutil.move(arrived, beside)
            os.replace(beside, target)
            sync_folder(target.parent)
    except OSError as error:
        raise StoreError(f"cannot write into {folder}: {error.strerror or error}") from error
