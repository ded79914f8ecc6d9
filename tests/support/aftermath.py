"""What is left of a run: whether it is whole, how far it came, and whether it equals another's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from latentbench.core.hashing import file_digest
from latentbench.records.results import read_record
from latentbench.store.store import MANIFEST, Store
from tests.support.project import Workbench, numbers


def content(bench: Workbench) -> dict[str, Any]:
    """Everything that two computations of the same cells have in common, byte for byte: all but times, host and cost.

    Hidden states are kept where computing them took long beside storing them, which is another thing from run to run.
    """
    results = bench.root / "results"
    kept: dict[str, Any] = {
        str(path.relative_to(results)): path.read_bytes()
        for path in sorted(results.rglob("*"))
        if path.is_file() and path.name != MANIFEST and _lasting(path.relative_to(results)) and not _of_states(path)
    }
    records = {name: json.dumps(numbers(record)) for name, record in bench.records().items()}
    found = (path for path in (results / "store/objects").rglob(MANIFEST) if not _of_states(path))
    manifests = {path.parent.name: _timeless(path) for path in found}
    return kept | records | manifests


def _of_states(path: Path) -> bool:
    return "objects/states/" in path.as_posix()


def check_whole(bench: Workbench) -> None:
    """Raises unless every record and artifact that exists is complete and has the bytes that were written."""
    results = bench.root / "results"
    for path in (results / "records").rglob("*.json"):
        record = read_record(path)
        assert record.status != "damaged", record.error
        if record.documents is not None:
            assert file_digest(path.with_name(record.documents.file)) == record.documents.sha256, path
        assert record.status != "ok" or record.metrics, path
    store = Store(bench.project.store)
    for artifact in store.artifacts():
        store.verify(artifact.kind, artifact.key)
    folders = {path.parent.parent.parent for path in (results / "store/objects").glob("*/*/*/*")}
    assert all(folder.parent.name == "objects" for folder in folders)


def originals(bench: Workbench) -> dict[Path, int]:
    """The manifest of every artifact and the record of every cell that has numbers, with their inodes."""
    results = bench.root / "results"
    done = [p for p in (results / "records").rglob("*.json") if read_record(p).status == "ok"]
    return {path: path.stat().st_ino for path in (*(results / "store/objects").rglob(MANIFEST), *done)}


def phase(bench: Workbench) -> str:
    """What a run was doing when it ended, by what it had made."""
    store = bench.project.store / "objects"
    wanted = {"training": "sae", "measuring": "measurement"}
    if not (bench.root / "results").exists() or not any(store.glob("tokens/*/*")):
        return "planning"
    cells = sum(1 for _ in (bench.root / "results/records").rglob("*.json"))
    for name, kind in wanted.items():
        if sum(1 for _ in store.glob(f"{kind}/*/*")) <= cells:
            return name
    return "writing"


def _lasting(path: Path) -> bool:
    """Statistics and the files of artifacts; records are compared without their times, litter and tables are not."""
    return (path.parts[0] == "records" and path.suffix == ".safetensors") or path.parts[:2] == ("store", "objects")


def _timeless(manifest: Path) -> str:
    found = json.loads(manifest.read_bytes())
    return json.dumps({key: value for key, value in found.items() if key not in ("created", "digest")})
