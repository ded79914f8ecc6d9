"""The Hugging Face hub: what a branch or tag stands for now, from the cache of this machine or from the hub itself."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from harness.errors import NotAvailable, RefusedFile

Kind = Literal["model", "dataset"]

_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a full commit, which cannot change."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def refuse_local(repository: str, *folders: Path) -> None:
    """Raises RefusedFile where a hub id is also a path from here or from one of `folders`: libraries would open that."""
    for folder in (Path.cwd(), *folders):
        if os.path.lexists(folder / repository):
            raise RefusedFile(
                f"{repository!r} is the id of a repository on the hub, but also stands in {folder.name}/, where it would "
                "be read in its place: rename one, or say a path (./…) where a local folder is meant"
            )


def check_dataset(repository: str, *folders: Path) -> None:
    """`refuse_local`, and RefusedFile for what `datasets` calls its readers (`json`, `pandas`, …).

    Without files of their own they read whatever lies in the current folder.
    """
    refuse_local(repository, *folders)
    library = find_spec("datasets")  # of a top-level package, so nothing of it is run
    places = library.submodule_search_locations if library else None
    if places and "/" not in repository and (Path(places[0]) / "packaged_modules" / repository).is_dir():
        raise RefusedFile(f"{repository!r} is a kind of file to `datasets` and no repository on the hub")


def cached_commit(kind: Kind, repository: str, revision: str | None) -> str | None:
    """The commit that the hub's cache on this machine remembers for a branch or tag, or None."""
    ref = _folder(kind, repository) / "refs" / (revision or "main")
    known = ref.read_text("ascii", "replace").strip() if ref.is_file() else ""
    return known if is_commit(known) else None


def cached_file(kind: Kind, repository: str, commit: str, name: str) -> Path | None:
    """A file of a repository in the hub's cache on this machine, or None."""
    path = cached_folder(kind, repository, commit) / name
    return path if path.is_file() else None


def cached_folder(kind: Kind, repository: str, commit: str) -> Path:
    """Where the hub's cache on this machine has a repository's files, as links to its blobs, if it has any."""
    return _folder(kind, repository) / "snapshots" / commit


def resolved_commit(kind: Kind, repository: str, revision: str | None) -> str:
    """The commit of a branch or tag now. Raises NotAvailable with what to do when nobody knows."""
    known = cached_commit(kind, repository, revision)
    if known:
        return known
    import httpx
    from huggingface_hub import HfApi

    try:
        sha = HfApi().repo_info(repository, revision=revision, repo_type=kind).sha
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise NotAvailable(
            f"the hub does not answer for the {kind} {repository!r}, so its revision cannot be pinned "
            f"({type(error).__name__}); go online once, state a full commit as `revision`, or point HF_HOME at a cache "
            "that holds it"
        ) from error
    return str(sha)


def _folder(kind: Kind, repository: str) -> Path:
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()
    return hub / f"{kind}s--{repository.replace('/', '--')}"
