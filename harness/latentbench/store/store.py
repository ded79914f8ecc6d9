"""The content-addressed store: `objects/<kind>/<ab>/<key>/` holds an artifact's files and a manifest with their checksums.

An artifact appears by one rename, so it is whole or absent. Its bytes are checked against the manifest the first time
a process reads it; a damaged one is moved to `quarantine/` and counts as absent, so that it is rebuilt.

Any number of processes, on any number of machines that share the folder, may work on it: what one of them makes the
others wait for (`share`, with the leases of `harness/latentbench/store/leases.py`).
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias, TypeVar

from safetensors import SafetensorError

from latentbench.core.errors import DamagedArtifact, StoreError
from latentbench.core.hashing import digest, file_digest
from latentbench.core.spec_model import Json
from latentbench.store.files import read_json, sync_folder, write_json
from latentbench.store.leases import Leases

MANIFEST = "manifest.json"
LAYOUT = 2
"""Since 2 a manifest carries a digest of itself; those of 1 are still read."""

Ref: TypeAlias = tuple[str, str]
"""Kind and key of an artifact, there or not."""
T = TypeVar("T")

_POLL_SECONDS = (0.05, 1.0)
"""Between two looks at what another worker makes: at first, and at last."""


@dataclass(frozen=True)
class Artifact:
    """A stored artifact."""

    kind: str
    key: str
    folder: Path
    bytes: int


class Store:
    """A folder of artifacts, checkpoints of unfinished ones, and what was found damaged."""

    def __init__(self, root: Path, leases: Leases | None = None) -> None:
        self.root, self.leases = root, leases or Leases(root)
        self._verified: set[str] = set()

    def folder(self, kind: str, key: str) -> Path:
        """Where the artifact stands, if it exists."""
        return self.root.joinpath("objects", kind, key[:2], key)

    def checkpoint(self, key: str) -> Path:
        """Folder of the checkpoint of an unfinished artifact."""
        return self.root / "partial" / key

    def drop_checkpoint(self, key: str) -> None:
        """Deletes the checkpoint of an artifact that is finished."""
        shutil.rmtree(self.checkpoint(key), ignore_errors=True)

    def has(self, kind: str, key: str) -> bool:
        """Whether the artifact exists, its bytes unchecked (cheap, for planning)."""
        return os.path.isfile(f"{self.root}/objects/{kind}/{key[:2]}/{key}/{MANIFEST}")  # thousands of times a plan

    def get(self, kind: str, key: str) -> Artifact | None:
        """The artifact with its bytes verified, or None. A damaged one is put in quarantine."""
        folder = self.folder(kind, key)
        if not (folder / MANIFEST).is_file():
            return None
        try:
            size = self.verify(kind, key)
        except DamagedArtifact:
            self.quarantine(folder)
            return None
        with suppress(OSError):  # for eviction, which spares what was used lately; a store may be read-only
            os.utime(folder / MANIFEST)
        return Artifact(kind, key, folder, size)

    def verify(self, kind: str, key: str) -> int:
        """Total bytes of the artifact. Raises DamagedArtifact when a file is not what was written."""
        folder = self.folder(kind, key)
        files = _manifested(folder, kind, key)
        if key not in self._verified:  # once a process: it would read gigabytes at every look
            _check(folder, files)
            self._verified.add(key)
        return sum(size for size, _ in files.values())

    def admit(self, draft: Path, kind: str, key: str) -> None:
        """Makes a folder that came from another store, with its manifest, the artifact; the folder is then gone.

        Raises DamagedArtifact when it is not whole, or another artifact than that.
        """
        if not (draft / MANIFEST).is_file():
            raise DamagedArtifact(f"{draft.name} arrived without a manifest")
        _check(draft, _manifested(draft, kind, key))
        try:
            for file in draft.iterdir():
                with file.open("rb") as handle:
                    os.fchmod(handle.fileno(), 0o644)
                    os.fsync(handle.fileno())
            self._place(draft, self.folder(kind, key))
        except OSError as error:
            raise StoreError(f"cannot write to the store {self.root}: {error.strerror or error}") from error

    @contextmanager
    def writing(self, kind: str, key: str, made_from: Json) -> Iterator[Path]:
        """A folder to write the artifact's files into; it becomes the artifact when the block ends without error.

        `made_from` is what the key was computed from, kept in the manifest so that people can read what they have.
        """
        try:
            (self.root / "tmp").mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(dir=self.root / "tmp", prefix=f"{kind}-{key}-"))
        except OSError as error:
            raise StoreError(f"cannot write to the store {self.root}: {error.strerror or error}") from error
        try:
            yield draft
            self._seal(draft, kind, key, made_from)
            self._place(draft, self.folder(kind, key))
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StoreError(f"cannot write to the store {self.root}: {reason}") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def share(self, wanted: Iterable[Ref], make: Callable[[list[Ref]], object]) -> None:
        """Has every wanted artifact made by one worker alone, however many want it at the same time.

        `make` is called with those that nobody else is making, perhaps several times; what it has not stored when it
        returns it has failed at, and is not asked for again. What others make is waited for, and made here
        when they die or fail. Nothing is held while waiting, so workers that want overlapping sets cannot block each
        other. Raises StoreError when the store cannot be written, and whatever `make` raises.
        """
        left, pause = sorted(set(wanted)), _POLL_SECONDS[0]
        while left := [ref for ref in left if self.get(*ref) is None]:
            with self.taking(left) as mine:
                if mine:
                    make(mine)
            left = [ref for ref in left if ref not in mine]
            # Many may wait for hours on one file system: they look at different times, and ever more rarely.
            if left and not mine:
                time.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(1.5 * pause, _POLL_SECONDS[1])

    @contextmanager
    def taking(self, wanted: Iterable[Ref]) -> Iterator[list[Ref]]:
        """Those of the missing artifacts that nobody else is making; while open, they are this worker's to make."""
        missing = {f"{kind}-{key}": (kind, key) for kind, key in sorted(wanted) if self.get(kind, key) is None}
        with self.leases.some(missing) as taken:
            # Another may have finished between the look and the lease.
            yield [ref for name, ref in missing.items() if name in taken and self.get(*ref) is None]

    def once(self, kind: str, key: str, read: Callable[[], T | None], make: Callable[[], T]) -> T:
        """What `read` finds in the store, or what `make` makes and stores when nobody else is making it; see `share`."""
        made: list[T] = []
        found = read()
        while found is None:
            self.share([(kind, key)], lambda _: made.append(make()))
            found = made[0] if made else read()
        return found

    @contextmanager
    def using(self, keys: Iterable[str]) -> Iterator[None]:
        """While open, no quota evicts the artifacts with these keys, wherever the eviction is run."""
        # A lease like any other, of a name nobody else asks for: it is void when this process ends, however that does.
        name = f"use-{secrets.token_hex(8)}"
        with suppress(StoreError):  # where nothing can be written, nothing can be evicted
            self.leases.take([name], keys)
        try:
            yield
        finally:
            self.leases.release([name])

    def quarantine(self, folder: Path) -> Path:
        """Moves a damaged artifact aside and returns where to."""
        place = self.root / "quarantine"
        try:
            place.mkdir(parents=True, exist_ok=True)
            target = Path(tempfile.mkdtemp(dir=place, prefix=f"{folder.name[:16]}-"))
            with suppress(FileNotFoundError):  # another process was faster
                os.replace(folder, target / folder.name)
        except OSError as error:
            raise StoreError(f"cannot write to the store {self.root}: {error.strerror or error}") from error
        return target

    def artifacts(self, kind: str = "*") -> Iterator[Artifact]:
        """Every artifact, or every one of a kind, unverified, in the order of kind and key."""
        for manifest in sorted(self.root.glob(f"objects/{kind}/*/*/{MANIFEST}")):
            folder = manifest.parent
            with suppress(FileNotFoundError):  # evicted meanwhile
                size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
                yield Artifact(folder.parent.parent.name, folder.name, folder, size)

    def remove(self, artifact: Artifact) -> None:
        """Deletes an artifact: first renamed out of sight, so that no reader sees half of it."""
        try:
            grave = Path(tempfile.mkdtemp(dir=self.root / "objects", prefix=".removed-"))
            with suppress(FileNotFoundError):  # another process was faster
                os.replace(artifact.folder, grave / "x")
            shutil.rmtree(grave)
        except OSError as error:
            raise StoreError(f"cannot delete in the store {self.root}: {error.strerror or error}") from error
        self._verified.discard(artifact.key)

    def _seal(self, draft: Path, kind: str, key: str, made_from: Json) -> None:
        # On disk before the rename: after a power cut, what has an artifact's name also has its bytes.
        files = {}
        for file in sorted(draft.iterdir()):
            with file.open("rb") as handle:
                os.fchmod(handle.fileno(), 0o644)  # safetensors makes files that only their owner can read
                os.fsync(handle.fileno())
            files[file.name] = {"bytes": file.stat().st_size, "sha256": file_digest(file)}
        created = datetime.now(UTC).isoformat(timespec="seconds")
        manifest = {
            "layout": LAYOUT,
            "kind": kind,
            "key": key,
            "files": files,
            "made_from": made_from,
            "created": created,
        }
        write_json(draft / MANIFEST, {**manifest, "digest": digest("manifest", manifest)})

    def _place(self, draft: Path, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.chmod(draft, 0o755)
        if folder.exists() and not (folder / MANIFEST).is_file():
            self.quarantine(folder)  # a remnant that nobody can read must not block the place
        try:
            os.rename(draft, folder)
        except OSError:
            if not (folder / MANIFEST).is_file():
                raise
            # Another process finished the same content first; ours is a duplicate.
        sync_folder(folder.parent)


def _manifested(folder: Path, kind: str, key: str) -> dict[str, tuple[int, str]]:
    """Bytes and sha256 of every file of the artifact in a folder, by its manifest. Raises DamagedArtifact."""
    manifest = read_json(folder / MANIFEST)
    try:
        files = {str(name): (int(f["bytes"]), str(f["sha256"])) for name, f in manifest["files"].items()}
        sealed = {name: value for name, value in manifest.items() if name != "digest"}
        if manifest["layout"] != 1 and manifest["digest"] != digest("manifest", sealed):
            raise DamagedArtifact(f"{folder / MANIFEST} does not have the bytes that were written")
        if (manifest["kind"], manifest["key"]) != (kind, key):
            raise DamagedArtifact(f"{folder} holds another artifact than its name says")
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise DamagedArtifact(f"{folder / MANIFEST} is not a manifest") from error
    return files


def _check(folder: Path, files: dict[str, tuple[int, str]]) -> None:
    found = {entry.name: entry for entry in folder.iterdir()}
    strange = sorted(found.keys() ^ {*files, MANIFEST})
    if strange:
        raise DamagedArtifact(f"{folder}: missing, or not written with it: {', '.join(strange)[:300]}")
    for path in found.values():
        if path.is_symlink() or not path.is_file():
            raise DamagedArtifact(f"{path} is not a plain file")
    for name, (size, sha256) in files.items():
        if found[name].stat().st_size != size or file_digest(found[name]) != sha256:
            raise DamagedArtifact(f"{found[name]} does not have the bytes that were written")
