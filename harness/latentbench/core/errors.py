"""Every error latentbench raises on purpose.

    LatentbenchError            one clear message, no traceback, exit code 1
    ├── InvalidInput            what the user wrote cannot work, exit code 2
    │   ├── SpecError           one or many Problems, each with file, line and column
    │   ├── OutsideProject      a path that leads out of the project and of the folders that were allowed; a ValueError too
    │   ├── RefusedFile         a weight, vector or result file that is malformed, unsafe or of another kind
    │   └── NotAvailable        a model, dataset or package that is not here (with what to do about it)
    │       └── Unpinnable      what a spec names of the hub, or of a package, whose content nobody here knows
    ├── StoreError              the artifact store cannot be read or written
    │   └── DamagedArtifact     checksum or layout of a stored artifact is wrong
    └── CellFailed              one cell could not be computed; the others go on
        └── Panicked            native code of a library gave up in the midst of it

Errors of third-party libraries are mapped to these where they enter (`harness/latentbench/core/border.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from latentbench.core.text import one_line


class LatentbenchError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class InvalidInput(LatentbenchError):
    """Something the user wrote cannot work."""

    exit_code = 2


@dataclass(frozen=True, order=True)
class SpecProblem:
    """One thing that is wrong in a spec, where it is, and what to do about it."""

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}: "
        return one_line(where + (f"{self.path}: {self.message}" if self.path else self.message))


class SpecError(InvalidInput):
    """All problems of one or several specs, reported at once."""

    def __init__(self, problems: list[SpecProblem]) -> None:
        self.problems = sorted(set(problems))
        super().__init__("\n".join(map(str, self.problems)))


class OutsideProject(InvalidInput, ValueError):
    """A path that leads nowhere, or out of the project and of the folders that were allowed.

    A ValueError too, so that pydantic tells it at the place in the spec that names the path.
    """


class RefusedFile(InvalidInput):
    """A file that is malformed, unsafe, or of another kind than asked for."""


class NotAvailable(InvalidInput):
    """A model, dataset, package or device that is not available here."""


class Unpinnable(NotAvailable):
    """A branch or tag of the hub of which nobody here knows the commit, or a package that is not installed: what needs it cannot
    be planned."""


class StoreError(LatentbenchError):
    """The store cannot be read or written."""


class DamagedArtifact(StoreError):
    """A stored artifact whose bytes are not what was written."""


class CellFailed(LatentbenchError):
    """One cell could not be computed."""


class Panicked(CellFailed):
    """Native code of a library gave up, with an exception that is no `Exception`."""
