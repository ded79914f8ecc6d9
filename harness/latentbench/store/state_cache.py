"""Room for stored hidden states: whether to store them, how much they may take, and which of them go first.

They can be computed again, and there is no end to them, so they have a limit of their own: a share of what is free on the
disk, or what LATENTBENCH_STATES says, and never more than the quota of the whole store leaves beside the rest.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal, get_args

from latentbench.store.cleaning import (
    evict,
    holding,
    last_used,
    needed_by_the_living,
    parse_size,
    quota_of_environment,
    size_of,
)
from latentbench.store.store import Artifact, Store

CacheMode = Literal["always", "auto", "never"]
"""Whether hidden states are stored: always, where reading them pays, or not at all. The strongest wish first."""
STATES = "states"
"""Kind of the artifacts that hold hidden states."""
STATES_QUOTA = "LATENTBENCH_STATES"
"""Environment variable, so that it reaches workers wherever they run: most that stored hidden states may take."""
_FREE_SHARE = 5
"""Without it they may take one part in so many of what is free on the disk."""


def strongest(modes: Iterable[CacheMode]) -> CacheMode:
    """What is done where several read the same hidden states: the strongest wish among them decides."""
    wanted, order = {*modes}, get_args(CacheMode)
    found: CacheMode = next(mode for mode in order if mode in wanted)
    return found


def states_limit(store: Store) -> int:
    """Bytes that stored hidden states may take together. Raises InvalidInput for a quota that is none."""
    return _limit(store, _bytes(store.artifacts(STATES)))


def make_room_for_states(store: Store, wanted: int, spared: Collection[str]) -> bool:
    """Evicts the least recently used hidden states until `wanted` bytes more may be stored; False where they may not be.

    Those with the keys `spared` stay, and those that a live worker uses. Nothing is evicted where that would not do.
    """
    there = list(store.artifacts(STATES))
    taken = _bytes(there)
    excess = wanted + taken - _limit(store, taken)
    kept = {*spared} | needed_by_the_living(store)
    candidates = sorted((artifact for artifact in there if artifact.key not in kept), key=last_used)
    if excess > _bytes(candidates):
        return False
    list(evict(store, holding(excess, candidates)))
    return True


def _limit(store: Store, taken: int) -> int:
    """See `states_limit`; `taken` bytes are stored already."""
    text = os.environ.get(STATES_QUOTA, "")
    most = parse_size(text) if text else (_free(store.root) + taken) // _FREE_SHARE
    if (quota := quota_of_environment()) is not None:
        most = min(most, quota - (size_of(store.root) - taken))
    return max(0, most)


def _bytes(artifacts: Iterable[Artifact]) -> int:
    return sum(artifact.bytes for artifact in artifacts)


def _free(path: Path) -> int:
    """Bytes that the disk has for a folder, which need not exist yet."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free
