"""A node's own copy of what a job reads and makes, for clusters whose nodes share no disk.

Before the job, what the node lacks is fetched by content; while it runs, what it has made goes home: artifacts and
checkpoints as they appear, so that a node that dies costs little, records and logs at the end. Home is the depot of the
machine that the run was started on.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from latentbench.core.errors import DamagedArtifact, InvalidInput, StoreError
from latentbench.core.hashing import file_digest
from latentbench.core.known_files import known_digest
from latentbench.core.spec_model import Json
from latentbench.store.depot import PROJECT, RESULTS, Depot, DepotLike, Seal, carry, inside, pieces

_BRING_SECONDS = 1.0
"""Between two looks for what can go home."""


@dataclass(frozen=True)
class Apart:
    """How a node works that does not see the disk of the machine which the run was started on."""

    scratch: str
    """Folder on a disk of the node, which may be written with the node's own variables: `$TMPDIR/latentbench`."""
    names: tuple[str, ...]
    """What the job may read or make, by its names in a depot."""


class NodeCopy:
    """Store, project and results of one job on this node. Artifacts and files stay here for the jobs that come later."""

    def __init__(self, apart: Apart, home: DepotLike) -> None:
        """Raises InvalidInput when the scratch folder has no meaning here, StoreError when it cannot be written."""
        base = _expanded(apart.scratch)
        self._names, self._home = apart.names, home
        self._files, self.store = base / "files", base / "store"
        try:
            for folder in (self._files, self.store, base / "jobs"):
                folder.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(dir=base / "jobs"))
        except OSError as error:
            raise StoreError(f"cannot write to {base} on {os.uname().nodename}: {error.strerror or error}") from error
        self.project, self.results = self._folder / "project", self._folder / "results"
        self.project.mkdir()
        (self.results / "logs").mkdir(parents=True)
        self._here = Depot(self.store, results=self.results)
        self._stamps: dict[str, object] = {}
        """What was known of a name when it last went home."""
        self._looked = 0.0

    def fetch(self) -> None:
        """Brings what home has and the job may read."""
        for file, seal in self._home.listing(PROJECT).items():
            target = inside(self.project, file)
            target.parent.mkdir(parents=True, exist_ok=True)
            # A second name of the same bytes: so the project has what its specs name, and nothing of former runs.
            os.link(self._fetched(file, seal), target)
        for name in self._names:
            carry(name, self._home, self._here)
            self._stamps[name] = self._stamp(name)

    def _fetched(self, file: str, seal: Seal) -> Path:
        """A file of the project by its content. Raises DamagedArtifact when it does not arrive as it was sent."""
        size, sha256 = seal
        kept = self._files / sha256[:2] / sha256
        if not kept.is_file() or (kept.stat().st_size, known_digest(kept)) != (size, sha256):
            kept.parent.mkdir(exist_ok=True)
            handle, draft = tempfile.mkstemp(dir=kept.parent, prefix=".")
            with os.fdopen(handle, "wb") as arriving:
                arriving.writelines(pieces(self._home, PROJECT, file))
            if file_digest(Path(draft)) != sha256:
                os.unlink(draft)
                raise DamagedArtifact(f"the project's file {file!r} did not arrive as it was sent; run it again")
            os.replace(draft, kept)
        return kept

    def localised(self, job: Json) -> Json:
        """The job as JSON data with the folders of this node; folders allowed besides are the same everywhere."""
        roots = {**job["roots"], "project": str(self.project)}
        return {**job, "store": str(self.store), "results": str(self.results), "roots": roots}

    def bring_back(self, at_once: bool = False) -> None:
        """Sends what has appeared or changed home, unless that was looked at a moment ago."""
        if not at_once and time.monotonic() - self._looked < _BRING_SECONDS:
            return
        for name in self._names:
            stamp = self._stamp(name)
            if stamp and stamp != self._stamps.get(name):
                # What is replaced on its way is sent at the next look.
                with suppress(DamagedArtifact), self._here.frozen(name) as now:
                    carry(name, now, self._home)
                    self._stamps[name] = stamp
        self._looked = time.monotonic()

    def bring_results(self) -> None:
        """Sends records, their statistics and logs home."""
        carry(RESULTS, self._here, self._home)

    def close(self) -> None:
        """Deletes what was only this job's."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _stamp(self, name: str) -> object:
        """Changes whenever files of this name do, which are replaced and never written to; empty when there are none."""
        folder, found = self.store / name, list[tuple[str, int, int]]()
        if name.startswith("objects/"):
            folder = folder.parent / folder.name[:2] / folder.name
        with suppress(OSError):
            for path in sorted(folder.iterdir()):
                stat = path.stat()
                found.append((path.name, stat.st_ino, stat.st_size))
        return found


@contextmanager
def node_copy(apart: Apart, home: DepotLike) -> Iterator[NodeCopy]:
    """A copy with all that the job may read; what it leaves goes home when the block ends, however it ends."""
    copy = NodeCopy(apart, home)
    try:
        copy.fetch()
        yield copy
    finally:
        try:
            copy.bring_back(at_once=True)
            copy.bring_results()
        finally:
            copy.close()


def _expanded(scratch: str) -> Path:
    text = os.path.expanduser(os.path.expandvars(scratch))
    if "$" in text or not Path(text).is_absolute():
        raise InvalidInput(
            f"--scratch {scratch!r} is no folder on {os.uname().nodename}: it must be an absolute path, and its variables must "
            "be set where Ray was started there"
        )
    return Path(text)
