"""Where a spec may read files, and what leads out of there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from latentbench.core.errors import OutsideProject


@dataclass(frozen=True)
class Roots:
    """Where a spec may read files, and where what is made of them is kept: relative paths start at `project`; others must lie below an `allowed` folder."""

    project: Path
    allowed: tuple[Path, ...] = ()
    store: Path | None = None
    """The artifact store, where what has to be made of such files is kept; None where nothing can be."""

    def resolve(self, path: str) -> Path:
        """The absolute path meant by `path`. Raises OutsideProject when it leaves the project and the allowed folders."""
        resolved = _resolved(self.project / path)
        if self._holds(resolved):
            return resolved
        raise OutsideProject(
            f"{path!r} lies outside the project; allow its folder with --allow DIR or LATENTBENCH_ALLOW=DIR"
        )

    def check_links(self, folder: Path) -> None:
        """Raises OutsideProject when something in `folder` or directly below its folders is a link that leads out.

        In the hub's cache every file of a snapshot is a link to the blobs of the same repository: those lead nowhere.
        """
        for path in (*folder.glob("*"), *folder.glob("*/*")):
            if path.is_symlink() and not self._holds(found := _resolved(path)) and not _is_blob(folder, found):
                raise OutsideProject(
                    f"{folder.name}/{path.relative_to(folder)} is a link that leads outside the project; allow the "
                    "folder it leads to with --allow DIR or LATENTBENCH_ALLOW=DIR"
                )

    def _holds(self, path: Path) -> bool:
        return any(path.is_relative_to(root.resolve()) for root in (self.project, *self.allowed))


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # older Pythons raise the latter for links that lead to each other
        raise OutsideProject(f"{path.name!r} cannot be followed: {error}") from None


def _is_blob(folder: Path, path: Path) -> bool:
    """Whether `folder` is a snapshot in the hub's cache and `path` one of its repository's blobs."""
    repository = folder.parent.parent
    return folder.parent.name == "snapshots" and "--" in repository.name and path.parent == repository / "blobs"
