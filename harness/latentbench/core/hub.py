"""The Hugging Face hub: what a branch or tag stands for now, from the cache of this machine or from the hub itself."""

from __future__ import annotations

import os
import re
import time
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from latentbench.core.border import foreign, reason
from latentbench.core.errors import NotAvailable, RefusedFile, Unpinnable

Kind = Literal["model", "dataset"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_PATIENCE = 10.0
"""Seconds to wait for the hub; its own client waits for ever."""
_REMEMBERED = 60.0
"""Seconds for which an answer is not asked for again."""
_HIDDEN = (401, 403, 404)
_ADVICE = "go online once, state a full commit as `revision`, or point HF_HOME at a cache that holds it"
_ADVICE_HIDDEN = "check its name and revision; for a private or gated repository, log in with `hf auth login`"


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
    if "/" not in repository and (kinds := _kinds_of_file()) and (kinds / repository).is_dir():
        raise RefusedFile(f"{repository!r} is a kind of file to `datasets` and no repository on the hub")


@cache
def _kinds_of_file() -> Path | None:
    """Where the installed `datasets` has its readers."""
    library = find_spec("datasets")  # of a top-level package, so nothing of it is run
    places = library.submodule_search_locations if library else None
    return Path(places[0]) / "packaged_modules" if places else None


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
    """The commit of a branch or tag now. Raises Unpinnable with what to do when nobody knows."""
    known = cached_commit(kind, repository, revision)
    if known:
        return known
    answer = _asked(kind, repository, revision, int(time.monotonic() // _REMEMBERED))
    if isinstance(answer, Unpinnable):
        raise Unpinnable(str(answer))
    return answer


def silence(timeout: float) -> str | None:
    """Why the hub gives no answer now, or None where it does. `timeout`: seconds to wait for a connection and for a reply."""
    try:
        with foreign("the hub", kind=NotAvailable):
            from huggingface_hub import constants, get_session

            status = get_session().head(constants.ENDPOINT, timeout=timeout).status_code
            return f"{constants.ENDPOINT} answers with HTTP {status}" if status >= 500 else None
    except NotAvailable as error:
        return str(error)


def cache_folder() -> Path:
    """Where the hub's cache is on this machine."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()


@lru_cache(maxsize=256)
def _asked(kind: Kind, repository: str, revision: str | None, moment: int) -> str | Unpinnable:
    """The hub's answer, also when it is none: the cells of a run ask the same, and a hub that is out of reach takes long.

    `moment` is part of what is remembered, so that another minute asks anew.
    """
    what = f"the revision {revision or 'main'!r} of the {kind} {repository!r} cannot be pinned"
    try:
        with foreign(what, _ADVICE, Unpinnable):
            from huggingface_hub import HfApi
            from huggingface_hub.errors import HfHubHTTPError

            try:
                sha = HfApi().repo_info(repository, revision=revision, repo_type=kind, timeout=_PATIENCE).sha
            except HfHubHTTPError as error:
                if error.response.status_code not in _HIDDEN:
                    raise
                raise Unpinnable(f"{what}: {reason(error)}; {_ADVICE_HIDDEN}") from None
    except NotAvailable as error:
        return error if isinstance(error, Unpinnable) else Unpinnable(str(error))
    return str(sha) if is_commit(sha) else Unpinnable(f"{what}: the hub names no commit; {_ADVICE}")


def _folder(kind: Kind, repository: str) -> Path:
    return cache_folder() / f"{kind}s--{repository.replace('/', '--')}"
