"""A number counts only if its statistics give it or its record's digest holds; otherwise the row says that it is damaged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentbench.core.errors import InvalidInput, RefusedFile
from latentbench.core.hashing import file_digest
from latentbench.exchange.exporting import write_folder
from latentbench.leaderboard.api import leaderboard
from latentbench.leaderboard.build import board_of
from latentbench.leaderboard.load import load
from latentbench.leaderboard.select import select
from latentbench.records.results import read_record
from latentbench.store.files import read_arrays, write_arrays
from tests.unit.leaderboard_factory import Planted, rewritten, write

EV = "general/explained_variance.centred@2"


def altered(path: Path, change: Callable[[dict[str, Any]], None], *, sealed: bool = False) -> None:
    """Alters a record as an editor would, or together with its digest as somebody would who knows of it."""
    plain = json.loads(path.read_text())
    change(plain)
    rewritten(path, **plain) if sealed else path.write_text(json.dumps(plain))


def better(plain: dict[str, Any]) -> None:
    for metric in plain["metrics"]:
        if metric["id"] == "explained_variance.centred":
            metric["value"] = 0.96


def rarer(plain: dict[str, Any]) -> None:
    for metric in plain["metrics"]:
        if metric["id"] == "dead_fraction":
            metric["value"] = 0.0


def larger(plain: dict[str, Any]) -> None:
    for metric in plain["metrics"]:
        if metric["id"] == "l0":
            metric["n"] = 6000


def narrower(plain: dict[str, Any]) -> None:
    plain["metrics"][0]["ci"]["low"] = plain["metrics"][0]["value"]


def renamed(plain: dict[str, Any]) -> None:
    plain["label"] = "sae.k=8"


def later(plain: dict[str, Any]) -> None:
    plain["created"] = "2027-01-01T00:00:00+00:00"


def unvouched(plain: dict[str, Any]) -> None:
    plain["digest"] = None


def undocumented(plain: dict[str, Any]) -> None:
    plain["documents"] = None


def reason(path: Path) -> str:
    record = read_record(path)
    assert record.status == "damaged"
    assert record.metrics == ()
    assert record.documents is None
    assert record.error is not None
    return record.error.message


@pytest.mark.parametrize("change", [better, rarer, larger, narrower, renamed, later, unvouched, undocumented])
def test_a_record_that_was_altered_is_damaged(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    (path,) = write(tmp_path, Planted())
    altered(path, change)
    assert "digest" in reason(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (better, r"general/explained_variance.centred@2 is 0.96 in the record and 0.7\d+ from its statistics"),
        (larger, "general/l0@2 is said to be over 6000 documents and has statistics of 60"),
        (undocumented, "without its statistics general/"),
    ],
)
def test_an_altered_number_is_found_although_the_digest_was_made_anew(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    (path,) = write(tmp_path, Planted())
    altered(path, change, sealed=True)
    assert re.search(says, reason(path))


def test_an_untouched_record_is_whole_whatever_its_layout(tmp_path: Path) -> None:
    (path,) = write(tmp_path, Planted())
    plain = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(plain.items())), indent=4))
    assert read_record(path).status == "ok"


def changed(sidecar: Path) -> None:
    write_arrays(sidecar, {"general/tokens": np.ones(60)})


def truncated(sidecar: Path) -> None:
    sidecar.write_bytes(sidecar.read_bytes()[:-8])


def flipped(sidecar: Path) -> None:
    content = bytearray(sidecar.read_bytes())
    content[-3] ^= 1
    sidecar.write_bytes(content)


def linked(sidecar: Path) -> None:
    elsewhere = sidecar.rename(sidecar.parents[3] / "elsewhere.safetensors")
    sidecar.symlink_to(elsewhere)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (Path.unlink, "cannot be read: No such file"),
        (changed, "sha256 differs"),
        (truncated, "sha256 differs"),
        (flipped, "sha256 differs"),
        (linked, "outside of its folder"),
    ],
)
def test_a_damaged_companion_damages_the_record(tmp_path: Path, damage: Callable[[Path], object], says: str) -> None:
    (path,) = write(tmp_path, Planted())
    damage(path.with_suffix(".safetensors"))
    assert says in reason(path)


def test_statistics_elsewhere_are_not_read(tmp_path: Path) -> None:
    (path,) = write(tmp_path, Planted())
    secret = path.with_suffix(".safetensors").rename(tmp_path / "secret.safetensors")
    for name in ("../../../secret.safetensors", str(secret)):
        altered(path, lambda plain, name=name: plain["documents"].update(file=name), sealed=True)  # type: ignore[misc]
        assert "outside of its folder" in reason(path)


def test_statistics_that_were_altered_with_everything_that_vouches_for_them_contradict_the_numbers(
    tmp_path: Path,
) -> None:
    (path,) = write(tmp_path, Planted())
    sidecar = path.with_suffix(".safetensors")
    arrays = read_arrays(sidecar)
    write_arrays(sidecar, arrays | {"general/squared_error": arrays["general/squared_error"] * 0.5})
    altered(path, lambda plain: plain["documents"].update(sha256=file_digest(sidecar)), sealed=True)
    assert "from its statistics" in reason(path)


def test_a_damaged_record_is_in_no_mean_and_no_ranking(tmp_path: Path) -> None:
    paths = write(tmp_path, *[Planted(name=name, seed=seed) for name in ("a/one", "a/two") for seed in range(3)])
    whole = {row.spec: row.values[EV] for row in board_of(load(tmp_path)).groups[0].rows}
    altered(paths[0], better)
    found = board_of(load(tmp_path))
    rows = {row.spec: row for row in found.groups[0].rows}
    assert rows["a/one"].values[EV].seeds == whole["a/one"].seeds[1:]
    assert not rows["a/one"].complete
    assert [badge.text for badge in rows["a/one"].badges] == ["2 of 3 seeds", "damaged (seed 0)"]
    assert rows["a/two"].values[EV] == whole["a/two"]
    assert all(row_id != rows["a/one"].id for row_id, _ in found.groups[0].verdicts)
    (problem,) = found.problems
    assert problem.startswith(f"{paths[0].relative_to(tmp_path)} is damaged: {reason(paths[0])}; ")
    assert problem.endswith("`latentbench run specs/a/one.yaml` computes it again")


@pytest.mark.parametrize("format", ["terminal", "md", "json", "csv", "latex", "html"])
def test_no_format_shows_a_number_of_a_damaged_record(tmp_path: Path, format: Any) -> None:
    first, _ = write(tmp_path, Planted(name="a/one"), Planted(name="a/two", error=0.31))
    altered(first, better)
    text = leaderboard(tmp_path, format)
    assert "0.96" not in text
    assert "damaged" in text or format in ("csv", "latex")


def test_a_damaged_record_is_neither_compared_nor_exported(tmp_path: Path) -> None:
    first, _ = write(tmp_path / "results", Planted(name="a/one"), Planted(name="a/two"))
    altered(first, better)
    with pytest.raises(InvalidInput, match="a/one has no numbers: damaged"):
        select(load(tmp_path / "results"), "a/one")
    for format in ("every-eval-ever", "saebench"):
        write_folder(load(tmp_path / "results"), format, tmp_path / format)
        assert not list((tmp_path / format).rglob("a-one*"))
        assert list((tmp_path / format).rglob("a-two*"))


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("environment", {"git": "x"}, "environment.git"),
        ("environment", [], "environment"),
        ("resolved", {"dataset": "x"}, "resolved: Value error, dataset"),
        ("resolved", {"dataset": {"eval": ["x"]}}, "resolved: Value error, dataset.eval"),
        ("resolved", {"metrics": {"l0": 1}}, "resolved: Value error, metrics"),
        ("resolved", {"steering": {"scale": "large"}}, "resolved: Value error, steering.scale"),
        ("comparability", {"general": {"key": "k", "fields": "x"}}, "comparability.general.fields"),
        ("cost", {"wall_seconds": {"train": "long"}}, "cost.wall_seconds.train"),
        ("created", "yesterday", "created"),
    ],
)
def test_a_record_is_checked_whole_and_costs_its_own_row(tmp_path: Path, field: str, value: Any, says: str) -> None:
    first, _ = write(tmp_path, Planted(name="a/one"), Planted(name="a/two"))
    rewritten(first, **{field: value})
    found = load(tmp_path)
    assert [cell.record.spec.name for cell in found.loaded] == ["a/two"]
    assert says in str(found.refused[0])
    for format in ("terminal", "md", "json", "csv", "latex", "html"):
        assert "a/two" in leaderboard(tmp_path, format)  # type: ignore[arg-type]


def test_a_record_that_is_a_link_is_none(tmp_path: Path) -> None:
    (path,) = write(tmp_path, Planted())
    path.symlink_to(path.rename(tmp_path / "elsewhere.json"))
    with pytest.raises(RefusedFile, match="symbolic links are not followed"):
        read_record(path)
