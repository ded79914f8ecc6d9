"""Why an artifact is there: what it was made from, what was made from it, and which records refer to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from latentbench.core.errors import DamagedArtifact, InvalidInput, RefusedFile, StoreError
from latentbench.core.spec_model import Json
from latentbench.records.record import Record
from latentbench.records.results import RECORDS, read_record
from latentbench.store.files import read_json
from latentbench.store.store import MANIFEST, Artifact, Store

_SHOWN = 5


@dataclass(frozen=True)
class Relative:
    """An artifact that another was made from, or that was made from it."""

    key: str
    kind: str | None
    """None when it is not in the store."""


@dataclass(frozen=True)
class Lineage:
    """Everything that is known of a key."""

    key: str
    artifact: Artifact | None
    created: str | None
    made_from: Json
    parents: tuple[Relative, ...]
    children: tuple[Relative, ...]
    records: tuple[str, ...]
    """Paths below the folder of results of the records that refer to it, or that are its cell's."""
    state: str
    """`stored`, `being made by …`, `unfinished` or `not in the store`."""


def lineage(store: Store, results: Path, prefix: str) -> Lineage:
    """What is known of the one key that starts with `prefix`. Raises InvalidInput when it is none or several."""
    artifacts = {a.key: a for a in store.artifacts()}
    manifests = {key: _manifest(a) for key, a in artifacts.items()}
    referring = list(_records(results))
    making = {held.name.rpartition("-")[2]: str(store.leases.owner(held)) for held in store.leases.live()}
    known = {*artifacts, *making, *(key for record, _ in referring for key in _keys(record))}
    key = _only(prefix, known | {path.name for path in store.root.glob("partial/*")})
    manifest = manifests.get(key, {})
    return Lineage(
        key,
        artifacts.get(key),
        manifest.get("created"),
        _payload(manifest),
        tuple(_relative(parent, artifacts) for parent in _parents(manifest)),
        tuple(_relative(child, artifacts) for child, other in manifests.items() if key in _parents(other)),
        tuple(str(path.relative_to(results)) for record, path in referring if key in _keys(record)),
        _state(store, key, key in artifacts, making.get(key)),
    )


def _only(prefix: str, known: set[str]) -> str:
    found = sorted(key for key in known if key.startswith(prefix.lower())) if prefix else []
    if not found:
        raise InvalidInput(f"neither the store nor a record knows a key that begins with {prefix[:80]!r}")
    if len(found) > 1:
        some = ", ".join(key[:16] for key in found[:_SHOWN]) + (", …" if len(found) > _SHOWN else "")
        raise InvalidInput(f"{len(found)} keys begin with {prefix[:80]!r}: {some}; give more digits")
    return found[0]


def _state(store: Store, key: str, stored: bool, owner: str | None) -> str:
    if stored:
        return "stored"
    if owner is not None:
        return f"being made by {owner}"
    return "unfinished, continues from its checkpoint" if store.checkpoint(key).is_dir() else "not in the store"


def _manifest(artifact: Artifact) -> dict[str, Json]:
    with suppress(DamagedArtifact, StoreError):
        manifest = read_json(artifact.folder / MANIFEST)
        if isinstance(manifest, dict):
            return manifest
    return {}


def _payload(manifest: dict[str, Json]) -> Json:
    made_from = manifest.get("made_from")
    return made_from.get("payload", made_from) if isinstance(made_from, dict) else made_from


def _parents(manifest: dict[str, Json]) -> tuple[str, ...]:
    made_from = manifest.get("made_from")
    parents = made_from.get("parents") if isinstance(made_from, dict) else None
    return tuple(map(str, parents)) if isinstance(parents, list) else ()


def _relative(key: str, artifacts: dict[str, Artifact]) -> Relative:
    return Relative(key, artifacts[key].kind if key in artifacts else None)


def _keys(record: Record) -> set[str]:
    return {record.cell, *record.keys.values(), *(artifact.key for artifact in record.artifacts)}


def _records(results: Path) -> Iterator[tuple[Record, Path]]:
    for path in sorted((results / RECORDS).rglob("*.json")):
        with suppress(RefusedFile):  # an unreadable record refers to nothing
            yield read_record(path), path
