"""Two runs side by side: fields, comparability, differences, movers; and which records a name means."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from latentbench.core.errors import InvalidInput
from latentbench.leaderboard.api import compare_records
from latentbench.leaderboard.board import Column
from latentbench.leaderboard.compare import Comparison, MetricChange, compare
from latentbench.leaderboard.load import load
from latentbench.leaderboard.select import select
from tests.unit.leaderboard_factory import HOSTILE, Planted, record, rewritten, write

EV = "general/explained_variance.centred@2"


def compared(results: Path, a: str, b: str) -> Comparison:
    loaded = load(results)
    return compare(select(loaded, a), select(loaded, b))


def change(found: Comparison, key: str) -> MetricChange:
    return next(c for c in found.changes if c.column.key == key)


def test_a_better_sae_is_found_better_with_everything_that_differs(tmp_path: Path) -> None:
    write(
        tmp_path,
        Planted(name="a/topk", error=0.3),
        Planted(name="a/kron", error=0.2, sae={"variant": "kron", "width": 1024, "heads": 4}),
    )
    found = compared(tmp_path, "a/topk", "a/kron")
    fields = {(f.path, f.there, f.here) for f in found.fields}
    assert fields == {("sae.variant", "topk", "kron"), ("sae.k", 16, None), ("sae.heads", None, 4)}
    assert [match.comparable for match in found.domains] == [True, True]
    ev = change(found, EV)
    assert ev.difference is not None
    assert ev.difference == pytest.approx(0.1, abs=0.02)
    assert ev.low is not None
    assert ev.high is not None
    assert 0 < ev.low < ev.difference < ev.high
    assert ev.better == "B"
    assert ev.p is not None
    assert ev.p_holm is not None
    assert ev.p <= ev.p_holm < 0.001
    assert change(found, "general/cross_entropy.increase@2").better == "B"


def test_overlapping_seeds_are_a_tie_although_documents_tell_them_apart(tmp_path: Path) -> None:
    """The rule of the leaderboard: two pages must not say two things of one pair of rows."""
    write(tmp_path, *[Planted(name="a/one", seed=s, error=e) for s, e in enumerate((0.20, 0.26))])
    write(tmp_path, *[Planted(name="a/two", seed=s, error=e) for s, e in enumerate((0.22, 0.27))])
    ev = change(compared(tmp_path, "a/one", "a/two"), EV)
    assert ev.p_holm is not None
    assert ev.p_holm < 0.05
    assert ev.better is None
    assert "ranges overlap; not testable with n = 2 seeds" in compare_records(tmp_path, "a/one", "a/two")


def test_a_run_against_itself_is_a_tie_everywhere(tmp_path: Path) -> None:
    write(tmp_path, Planted())
    found = compared(tmp_path, "quickstart/topk", "quickstart/topk")
    assert found.fields == ()
    assert {c.difference for c in found.changes} == {0.0}
    assert {c.p for c in found.changes if c.reason is None} == {1.0}
    assert found.movers == {}


def test_runs_measured_differently_get_no_difference_and_the_reason(tmp_path: Path) -> None:
    write(tmp_path, Planted(name="a/one"), Planted(name="a/two", facts={"context": 256}))
    found = compared(tmp_path, "a/one", "a/two")
    assert [match.comparable for match in found.domains] == [False, False]
    assert [(f.path, f.there, f.here) for f in found.domains[0].differs] == [("context", 128, 256)]
    assert all(c.difference is None and c.p is None and c.reason for c in found.changes)
    page = compare_records(tmp_path, "a/one", "a/two", "md")
    assert "general: not comparable (context 128 → 256)" in page


def test_a_domain_only_one_side_measured(tmp_path: Path) -> None:
    write(tmp_path, Planted(name="a/one"), Planted(name="a/two", domains=("general",)))
    matches = {m.domain: m for m in compared(tmp_path, "a/one", "a/two").domains}
    assert matches["general"].comparable
    assert matches["chemistry"].reason == "not measured by B"


def test_sets_of_runs_are_paired_by_seed(tmp_path: Path) -> None:
    for seeds, says in ((3, "not testable with n = 3 seeds"), (6, None)):
        results = tmp_path / str(seeds)
        write(results, *[Planted(name="a/one", seed=s, error=0.3) for s in range(seeds)])
        write(results, *[Planted(name="a/two", seed=s, error=0.2) for s in range(seeds)])
        ev = change(compared(results, "a/one", "a/two"), EV)
        assert ev.seeds is not None
        assert ev.seeds.reason == says
        assert ev.seeds.p == (None if says else 2 / 2**6)
        assert ev.better == "B"


def test_one_run_against_one_has_no_seed_test(tmp_path: Path) -> None:
    write(tmp_path, Planted(name="a/one"), Planted(name="a/two"))
    assert change(compared(tmp_path, "a/one", "a/two"), EV).seeds is None


def test_movers_are_the_documents_that_carry_the_difference(tmp_path: Path) -> None:
    one, two = Planted(name="a/one", draw=1, error=0.2), Planted(name="a/two", draw=2, error=0.2)
    write(tmp_path, one, two)
    found = compared(tmp_path, "a/one", "a/two").movers[EV]
    arrays = [record(planted)[1] for planted in (one, two)]
    moved = arrays[0]["general/squared_error"] - arrays[1]["general/squared_error"]
    expected = np.argsort(-np.abs(moved))[:5]
    assert [m.document for m in found] == expected.tolist()
    assert found[0].share == pytest.approx(moved[expected[0]] / arrays[0]["general/total_variance"].sum(), rel=1e-6)
    assert found[0].a == pytest.approx(
        1 - arrays[0]["general/squared_error"][expected[0]] / arrays[0]["general/total_variance"][expected[0]]
    )


def test_a_record_without_its_statistics_has_nothing_to_compare(tmp_path: Path) -> None:
    first, _ = write(tmp_path, Planted(name="a/one"), Planted(name="a/two"))
    first.with_suffix(".safetensors").unlink()
    with pytest.raises(InvalidInput, match=r"a/one has no numbers: damaged \(.*cannot be read: No such file"):
        compared(tmp_path, "a/one", "a/two")
    with pytest.raises(InvalidInput, match="damaged"):
        select(load(tmp_path), str(first))


@pytest.mark.parametrize("wanted", ["a/two[sae.k=8][1]", "a/two[sae.k=8][seed=1]", "CELL", "PATH", "RELATIVE"])
def test_ways_to_name_one_run(tmp_path: Path, wanted: str) -> None:
    write(tmp_path, Planted(name="a/two", label="sae.k=8", seed=0), Planted(name="a/two", label="sae.k=16", seed=0))
    path = write(tmp_path, Planted(name="a/two", label="sae.k=8", seed=1))[0]
    cell = json.loads(path.read_text())["cell"]
    relative = str(path.relative_to(tmp_path))
    wanted = {"CELL": cell[:10], "PATH": str(path), "RELATIVE": relative}.get(wanted, wanted)
    assert [c.record.cell for c in select(load(tmp_path), wanted).cells] == [cell]


def test_ways_to_name_a_set(tmp_path: Path) -> None:
    write(tmp_path, *[Planted(name="a/one", seed=s) for s in range(3)], Planted(name="a/one", seed=3, status="failed"))
    for wanted in ("a/one", "a/one[]"):
        assert select(load(tmp_path), wanted).seeds == (0, 1, 2)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("a/onne", "a/one"),
        ("a/one", "a/one[sae.k=16], a/one[sae.k=8]"),
        ("a/one[sae.k=9]", "a/one[sae.k=8]"),
        ("a/one[sae.k=8][7]", "seeds: 0"),
        ("a/lost", "has no numbers: failed"),
        ("a/one[[", "no records"),
        ("nowhere.json", "no record nowhere.json"),
        ("abcdef", "no records of abcdef"),
        ("a/\x1b[31m", "\\u001b"),
        ("", "no records"),
    ],
)
def test_unknown_and_ambiguous_names_say_what_there_is(tmp_path: Path, wanted: str, says: str) -> None:
    write(
        tmp_path,
        Planted(name="a/one", label="sae.k=8"),
        Planted(name="a/one", label="sae.k=16"),
        Planted(name="a/lost", status="failed"),
    )
    with pytest.raises(InvalidInput) as caught:
        select(load(tmp_path), wanted)
    assert says in str(caught.value)


def test_the_start_of_several_cells_is_ambiguous(tmp_path: Path) -> None:
    for path, cell in zip(write(tmp_path, Planted(seed=0), Planted(seed=1)), ("a" * 64, "a" * 63 + "b"), strict=True):
        rewritten(path, cell=cell)
    with pytest.raises(InvalidInput, match="several cells"):
        select(load(tmp_path), "aaaaaaaa")


@pytest.mark.parametrize("format", ["md", "json", "terminal"])
def test_formats_are_deterministic_and_inert(tmp_path: Path, format: str) -> None:
    write(tmp_path, Planted(name="a/one"))
    path = write(tmp_path, Planted(name="a/two", error=0.3))[0]
    rewritten(path, resolved={**json.loads(path.read_text())["resolved"], HOSTILE: HOSTILE})
    pages = [compare_records(tmp_path, "a/one", "a/two", format) for _ in range(2)]  # type: ignore[arg-type]
    assert pages[0] == pages[1]
    assert "\x1b" not in pages[0]
    assert format == "json" or "\u2028" not in pages[0]
    assert format != "md" or "<img" not in pages[0]


def test_json_has_every_metric_and_both_sides(tmp_path: Path) -> None:
    write(tmp_path, Planted(name="a/one"), Planted(name="a/two"))
    data = json.loads(compare_records(tmp_path, "a/one", "a/two", "json"))
    assert [data["a"]["cells"][0]["seed"], data["b"]["name"]] == [0, "a/two[0]"]
    recorded = {Column.of(m).key for m in load(tmp_path).loaded[0].record.metrics}
    assert len(data["metrics"]) == len(recorded)
    assert all({"difference", "low", "high", "p", "p_holm", "seed_p"} <= metric.keys() for metric in data["metrics"])
