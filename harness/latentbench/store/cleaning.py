"""What can leave the store: artifacts nobody needs, the least recently used beyond a quota, and litter of the dead.

Nothing goes that a record refers to, that a live worker makes, or that a live worker said it uses.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from latentbench.core.errors import InvalidInput, StoreError
from latentbench.store.derived import DERIVED, Derived
from latentbench.store.store import MANIFEST, Artifact, Store

QUOTA = "LATENTBENCH_QUOTA"
"""Environment variable, so that it reaches workers wherever they run."""

STALE_SECONDS = 3600.0
"""Age at which a draft without a live lease counts as left behind."""

_UNITS = {"": 1, "B": 1, **{f"{p}B": 1000**n for n, p in enumerate("KMGT", 1)}}
_UNITS |= {f"{p}IB": 1024**n for n, p in enumerate("KMGT", 1)}


@dataclass(frozen=True)
class Litter:
    """Something in the store's folder that is no artifact and that nobody works on."""

    what: str
    path: Path
    bytes: int

    def remove(self) -> None:
        """Deletes it. Raises StoreError when the disk refuses."""
        try:
            if self.path.is_dir() and not self.path.is_symlink():
                shutil.rmtree(self.path)
            else:
                self.path.unlink(missing_ok=True)
        except FileNotFoundError:
            return  # another process was faster
        except OSError as error:
            raise StoreError(f"cannot delete {self.path}: {error.strerror or error}") from error


def parse_size(text: str) -> int:
    """Bytes meant by `50GiB`, `1.5 TB` or `1000000`. Raises InvalidInput."""
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]{0,3})\s*", text, re.ASCII)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise InvalidInput(f"{text[:40]!r} is not a size; write for example 50GiB or 500MB")
    return int(float(match[1]) * unit)


def needed_by_the_living(store: Store) -> set[str]:
    """Keys of artifacts that live workers make or use."""
    live = store.leases.live()
    # A lease on an artifact is called `kind-key`; what else its owner needs is listed in it.
    return {held.name.rpartition("-")[2] for held in live}.union(*(held.keys for held in live))


def loose(store: Store, referred: Iterable[str]) -> list[Artifact]:
    """Artifacts that neither a record refers to nor a live worker needs, the least recently used first."""
    kept = {*referred} | needed_by_the_living(store)
    return sorted((a for a in store.artifacts() if a.key not in kept), key=last_used)


def last_used(artifact: Artifact) -> float:
    """When the artifact was last read or written, by the clock of its file system; 0 when it has just gone."""
    with suppress(OSError):
        return (artifact.folder / MANIFEST).stat().st_mtime
    return 0.0


def beyond(store: Store, quota: int, candidates: Iterable[Artifact]) -> list[Artifact]:
    """The first of the candidates without which the store is no larger than `quota` bytes; all if that is not enough."""
    # What tables keep is worked out again in seconds, so it goes before any artifact.
    return holding(size_of(store.root) - size_of(store.root / DERIVED) - quota, candidates)


def holding(wanted: int, candidates: Iterable[Artifact]) -> list[Artifact]:
    """The first of the candidates that hold `wanted` bytes together; all if that is not enough."""
    chosen = list[Artifact]()
    for artifact in candidates:
        if wanted <= 0:
            break
        chosen.append(artifact)
        wanted -= artifact.bytes
    return chosen


def quota_of_environment() -> int | None:
    """Bytes that LATENTBENCH_QUOTA allows the store; None when it is not set. Raises InvalidInput."""
    text = os.environ.get(QUOTA, "")
    return parse_size(text) if text else None


def limit(text: str | None) -> None:
    """Sets the quota for this process and the workers it starts. Raises InvalidInput."""
    if text:
        parse_size(text)
        os.environ[QUOTA] = text


def keep_within(store: Store, quota: int | None, referred: Callable[[], Iterable[str]]) -> list[Artifact]:
    """Evicts the least recently used artifacts beyond the quota, if there is one. `referred`: keys that records name."""
    if quota is None or size_of(store.root) <= quota:
        return []
    Derived(store.root).remove()
    return list(evict(store, beyond(store, quota, loose(store, referred()))))


def evict(store: Store, artifacts: Iterable[Artifact]) -> Iterator[Artifact]:
    """Deletes artifacts and yields them, except those that somebody has begun to use since they were listed."""
    # The list is made first: a run that starts while others are deleted moves the time of what it reads.
    for artifact, used in [(artifact, last_used(artifact)) for artifact in artifacts]:
        if artifact.key not in needed_by_the_living(store) and last_used(artifact) == used:
            store.remove(artifact)
            yield artifact


def litter(store: Store, results: Path, quarantine: bool = False) -> list[Litter]:
    """What the dead have left: drafts, checkpoints, temporary files, and on request what was put in quarantine."""
    now, making = _now(store.root), needed_by_the_living(store)
    # A lease says that a draft is being written, however old it looks; what nobody has a lease on goes by its age.
    found = [("draft", p) for p in store.root.glob("tmp/*") if not _made(p, making) and _stale(p, now)]
    found += [("draft", p) for p in store.root.glob("objects/.removed-*") if _stale(p, now)]
    found += [("checkpoint", p) for p in store.root.glob("partial/*") if p.name not in making]
    for folder in (store.root / "partial", results / "records", results / "logs"):
        found += [("temporary file", p) for p in folder.rglob(".*") if p.is_file() and _stale(p, now)]
    found += [("quarantine", p) for p in store.root.glob("quarantine/*") if quarantine]
    return [Litter(what, path, size_of(path)) for what, path in sorted(found)]


def forgettable(store: Store, quota: int | None) -> list[Litter]:
    """What is kept of tables (harness/latentbench/store/derived.py), where the store exceeds a quota."""
    path = store.root / DERIVED
    beyond_quota = quota is not None and path.is_file() and size_of(store.root) > quota
    return [Litter("tables", path, size_of(path))] if beyond_quota else []


def size_of(path: Path) -> int:
    """Bytes of a file or of all files below a folder."""
    if not path.is_dir():
        with suppress(OSError):
            return path.lstat().st_size
        return 0
    with suppress(OSError), os.scandir(path) as entries:
        return sum(size_of(Path(e)) if e.is_dir(follow_symlinks=False) else _bytes(e) for e in entries)
    return 0


def _bytes(entry: os.DirEntry[str]) -> int:
    with suppress(OSError):
        return entry.stat(follow_symlinks=False).st_size
    return 0


def _made(draft: Path, making: set[str]) -> bool:
    return any(part in making for part in draft.name.split("-"))


def _stale(path: Path, now: float) -> bool:
    try:
        newest: float = max(p.lstat().st_mtime for p in (path, *(path.iterdir() if path.is_dir() else ())))
    except OSError:
        return False  # it has just gone
    return now - newest > STALE_SECONDS


def _now(root: Path) -> float:
    """The time by the clock that stamps this file system's files, which may be another machine's."""
    with suppress(OSError), tempfile.NamedTemporaryFile(dir=root, prefix=".now-") as file:
        os.utime(file.name)
        return os.stat(file.name).st_mtime
    return time.time()
