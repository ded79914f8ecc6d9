"""What stands in which table, what is averaged, what is blank, and who is tied with whom."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentbench.leaderboard.api import leaderboard
from latentbench.leaderboard.board import Board, Column, Row, RowGroup
from latentbench.leaderboard.build import board_of, differing_facts
from latentbench.leaderboard.load import load
from tests.unit.leaderboard_factory import Planted, rewritten, write

EV = "general/explained_variance.centred@2"


def board(results: Path, *cells: Planted, suite: str | None = None) -> Board:
    write(results, *cells)
    return board_of(load(results), suite)


def column(group: RowGroup, key: str) -> Column:
    return next(c for c in group.columns if c.key == key)


def row(group: RowGroup, spec: str) -> Row:
    return next(r for r in group.rows if r.spec == spec)


def texts(found: Row) -> list[str]:
    return [badge.text for badge in found.badges]


def test_seeds_are_averaged_with_their_spread(tmp_path: Path) -> None:
    (group,) = board(tmp_path, *[Planted(seed=s, error=0.2 + 0.01 * s) for s in range(3)]).groups
    (only,) = group.rows
    recorded = [next(m.value for m in cell.record.metrics if Column.of(m).key == EV) for cell in load(tmp_path).loaded]
    value = only.values[EV]
    assert value.value == pytest.approx(np.mean(recorded), rel=1e-12)  # type: ignore[arg-type]
    assert value.seeds == tuple(recorded)
    assert value.sd == pytest.approx(0.01, rel=0.5)
    assert value.low is not None
    assert value.high is not None
    assert value.value is not None
    assert value.low < value.value < value.high
    assert value.n == 60


def test_one_seed_shows_the_records_own_interval(tmp_path: Path) -> None:
    (group,) = board(tmp_path, Planted()).groups
    recorded = next(m for m in load(tmp_path).loaded[0].record.metrics if Column.of(m).key == EV)
    value = group.rows[0].values[EV]
    assert recorded.ci is not None
    assert (value.low, value.high, value.sd) == (recorded.ci.low, recorded.ci.high, None)


def test_rows_measured_differently_stand_apart_with_the_reason(tmp_path: Path) -> None:
    cells = [Planted(name="a/one"), Planted(name="a/two"), Planted(name="a/other", facts={"context": 256})]
    first, second = board(tmp_path, *cells).groups
    assert [r.spec for r in second.rows] == ["a/other"]
    assert [(f.path, f.here, f.there) for f in second.differs] == [("context", 256, 128)]
    assert first.differs == ()


def test_rows_without_a_domain_are_blank_there_and_ranked_on_the_others(tmp_path: Path) -> None:
    found = board(
        tmp_path,
        Planted(name="a/one", error=0.3),
        Planted(name="a/two", domains=("general",), error=0.1),
        Planted(name="a/three", error=0.2),
    )
    (group,) = found.groups
    rows = {row.spec: row for row in group.rows}
    standing = {
        (c.domain, name): group.verdict(row, c).standing
        for c in group.columns
        if c.metric == "explained_variance.centred"
        for name, row in rows.items()
    }
    assert standing["general", "a/two"] == "best"
    assert standing["chemistry", "a/three"] == "best"
    assert standing["chemistry", "a/two"] is None
    key = next(c.key for c in group.columns if c.domain == "chemistry")
    assert (rows["a/two"].values[key].value, rows["a/two"].values[key].reason) == (None, "not measured")


def test_domains_that_share_nothing_or_disagree_stand_apart(tmp_path: Path) -> None:
    found = board(
        tmp_path,
        Planted(name="a/one", domains=("general",)),
        Planted(name="a/two", domains=("law",)),
        Planted(name="a/three", domains=("general", "law"), facts={"context": 256}),
    )
    assert sorted(row.spec for group in found.groups for row in group.rows) == ["a/one", "a/three", "a/two"]
    assert len(found.groups) == 3
    for group in found.groups[1:]:
        assert group.differs
        assert len(group.differs) <= 2, "an absent domain is one fact"


def test_models_of_others_stand_before_the_one_that_ships(tmp_path: Path) -> None:
    other = {"adapter": "package", "facts": {"model": "another"}}
    cells = [Planted(name=f"a/{n}", label=n) for n in "xyz"]
    cells += [Planted(name="a/real", **other), Planted(name="z/real", **other)]  # type: ignore[arg-type]
    found = board(tmp_path, *cells)
    assert [sorted(row.spec for row in group.rows) for group in found.groups] == [
        ["a/real", "z/real"],
        ["a/x", "a/y", "a/z"],
    ]
    text = leaderboard(tmp_path, "md")
    assert re.findall("^## (.*)$", text, re.MULTILINE) == ["a", "z"]
    write(tmp_path, Planted(name="0/small"))
    assert re.findall("^## (.*)$", leaderboard(tmp_path, "md"), re.MULTILINE) == ["a", "z", "0"]


def test_grouping_does_not_depend_on_the_order_of_records(tmp_path: Path) -> None:
    cells = [
        Planted(name="a/one", domains=("general",)),
        Planted(name="a/two", domains=("general", "law")),
        Planted(name="a/three", domains=("law", "chemistry")),
        Planted(name="a/four", domains=("chemistry",), facts={"context": 256}),
    ]
    made = [board(tmp_path / str(i), *ordered) for i, ordered in enumerate((cells, cells[::-1]))]
    members = [sorted(sorted(row.spec for row in group.rows) for group in found.groups) for found in made]
    assert members[0] == members[1] == [["a/four"], ["a/one", "a/three", "a/two"]]


def test_a_newer_record_replaces_an_older_one_and_is_counted(tmp_path: Path) -> None:
    old = Planted(error=0.5, created="2025-01-01T00:00:00+00:00")
    found = board(tmp_path, old, Planted(error=0.2))
    (only,) = found.groups[0].rows
    assert only.values[EV].value == pytest.approx(0.8, abs=0.05)
    assert len(found.superseded) == 1
    assert "1 older" in texts(only)


def test_seeds_of_an_older_version_of_the_spec_are_not_averaged_in(tmp_path: Path) -> None:
    old = {"variant": "topk", "width": 1024, "k": 64}
    cells = [Planted(seed=s, sae=old, created="2025-01-01T00:00:00+00:00") for s in range(3)]
    found = board(tmp_path, *cells, Planted(seed=0))
    (only,) = found.groups[0].rows
    assert [cell.record.seed for cell in only.cells] == [0]
    assert len(found.superseded) == 3


def test_seeds_that_differ_in_what_is_in_no_key_stand_together(tmp_path: Path) -> None:
    """Among them records from before there was such a field."""
    others: tuple[dict[str, Any], ...] = ({}, {"devices": 1}, {"devices": 2})
    found = board(tmp_path, *(Planted(seed=seed, training=training) for seed, training in enumerate(others)))
    (only,) = found.groups[0].rows
    assert [cell.record.seed for cell in only.cells] == [0, 1, 2]
    assert not found.superseded
    changed = board(tmp_path / "lr", Planted(seed=0), Planted(seed=1, training={"lr": 0.1}))
    assert len(changed.superseded) == 1


def test_partial_rows_are_shown_but_not_ranked(tmp_path: Path) -> None:
    whole = [Planted(name="a/whole", seed=s, error=0.3) for s in range(3)]
    partial = [Planted(name="a/partial", seed=s, error=0.1, status="failed" if s == 1 else "ok") for s in range(3)]
    third = [Planted(name="a/third", seed=s, error=0.4) for s in range(3)]
    (group,) = board(tmp_path, *whole, *partial, *third).groups
    assert [r.spec for r in group.rows] == ["a/whole", "a/third", "a/partial"]
    last = row(group, "a/partial")
    assert "2 of 3 seeds" in texts(last)
    assert "failed (seed 1)" in texts(last)
    assert group.verdict(last, column(group, EV)).standing is None
    assert group.verdict(row(group, "a/whole"), column(group, EV)).standing == "best"


@pytest.mark.parametrize("status", ["failed", "timeout", "skipped"])
def test_cells_without_numbers_are_visible_rows_beside_their_siblings(tmp_path: Path, status: str) -> None:
    lost = Planted(name="a/two", status=status)  # type: ignore[arg-type]
    (group,) = board(tmp_path, Planted(name="a/one"), lost).groups
    last = group.rows[-1]
    assert (last.spec, last.status) == ("a/two", status)
    assert last.values
    assert all(value.value is None for value in last.values.values())
    assert f"{status} (seed 0)" in texts(last)


def test_a_board_of_failures_has_a_group_of_its_own(tmp_path: Path) -> None:
    (group,) = board(tmp_path, Planted(status="failed")).groups
    assert group.title == "Not measured"
    assert group.columns == ()


def test_a_null_in_one_seed_leaves_the_row_blank_with_the_reason(tmp_path: Path) -> None:
    paths = write(tmp_path, Planted(seed=0), Planted(seed=1))
    record = json.loads(paths[1].read_text())
    for metric in record["metrics"]:
        if metric["id"] == "explained_variance.centred" and metric["domain"] == "general":
            metric.update(value=None, ci=None, null_reason="no tokens")
    rewritten(paths[1], metrics=record["metrics"])
    value = board_of(load(tmp_path)).groups[0].rows[0].values[EV]
    assert value.value is None
    assert value.reason == "seed 1: no tokens"


def test_a_metric_that_one_seed_lacks_is_blank(tmp_path: Path) -> None:
    paths = write(tmp_path, Planted(seed=0), Planted(seed=1))
    metrics = json.loads(paths[0].read_text())["metrics"]
    rewritten(paths[0], metrics=[m for m in metrics if not m["id"].startswith("explained_variance")])
    value = board_of(load(tmp_path)).groups[0].rows[0].values[EV]
    assert (value.value, value.reason) == (None, "seed 0: not measured")


def test_ties_and_losers(tmp_path: Path) -> None:
    cells = [
        Planted(name="a/best", error=0.200, noise=0.1),
        Planted(name="a/close", error=0.201, noise=0.1),
        Planted(name="a/far", error=0.300, noise=0.1),
    ]
    (group,) = board(tmp_path, *cells).groups
    ev = column(group, EV)
    standings = {r.spec: group.verdict(r, ev).standing for r in group.rows}
    assert sorted(filter(None, standings.values())) == ["behind", "best", "tied"]
    assert standings["a/far"] == "behind"
    p = group.verdict(row(group, "a/far"), ev).p
    assert p is not None
    assert p < 1e-6


def test_overlapping_seeds_are_a_tie_although_documents_tell_them_apart(tmp_path: Path) -> None:
    one = [Planted(name="a/one", seed=s, error=e) for s, e in enumerate((0.20, 0.26))]
    two = [Planted(name="a/two", seed=s, error=e) for s, e in enumerate((0.22, 0.27))]
    (group,) = board(tmp_path, *one, *two).groups
    verdict = group.verdict(row(group, "a/two"), column(group, EV))
    assert verdict.standing == "tied"
    assert verdict.reason == "the ranges over seeds overlap"


def test_few_documents_are_not_testable(tmp_path: Path) -> None:
    (group,) = board(tmp_path, Planted(name="a/one", documents=4), Planted(name="a/two", documents=4)).groups
    verdicts = [group.verdict(r, column(group, EV)) for r in group.rows]
    assert [v.standing for v in verdicts] == [None, None]
    assert "not testable with n = 4 documents" in [v.reason for v in verdicts]


def test_numbers_without_direction_have_no_best(tmp_path: Path) -> None:
    (group,) = board(tmp_path, Planted(name="a/one", l0=8), Planted(name="a/two", l0=32)).groups
    assert all(group.verdict(r, column(group, "general/l0@2")).standing is None for r in group.rows)


def test_numbers_that_do_not_follow_from_their_statistics_are_reported_and_untested(tmp_path: Path) -> None:
    first, _ = write(tmp_path, Planted(name="a/one"), Planted(name="a/two"))
    record = json.loads(first.read_text())
    for metric in record["metrics"]:
        if metric["id"] == "explained_variance.centred":
            metric["value"] = 0.999
    rewritten(first, metrics=record["metrics"])
    found = board_of(load(tmp_path))
    assert any("0.999" in problem for problem in found.problems)
    assert all(found.groups[0].verdict(r, column(found.groups[0], EV)).standing is None for r in found.groups[0].rows)


def test_damaged_statistics_are_reported_and_their_numbers_are_none(tmp_path: Path) -> None:
    first, _ = write(tmp_path, Planted(name="a/one"), Planted(name="a/two"))
    first.with_suffix(".safetensors").write_bytes(b"damaged")
    found = board_of(load(tmp_path))
    assert any("sha256 differs" in problem for problem in found.problems)
    values = {r.spec: r.values.get(EV) for r in found.groups[0].rows}
    assert values["a/two"] is not None
    assert values["a/two"].value is not None
    assert not row(found.groups[0], "a/one").measured
    assert "damaged (seed 0)" in texts(row(found.groups[0], "a/one"))


def test_badges(tmp_path: Path) -> None:
    (group,) = board(tmp_path, Planted(dirty=True, warnings=("a", "b"))).groups
    assert texts(group.rows[0]) == ["dirty tree", "2 warnings"]


def test_an_outdated_metric_is_marked_and_kept_in_a_column_of_its_own(tmp_path: Path) -> None:
    first, _ = write(tmp_path, Planted(name="a/one"), Planted(name="a/two"))
    metrics = json.loads(first.read_text())["metrics"]
    rewritten(first, metrics=[{**m, "version": 0} if m["id"] == "l0" else m for m in metrics])
    (group,) = board_of(load(tmp_path)).groups
    assert "old metric version" in texts(row(group, "a/one"))
    assert {c.key for c in group.columns} >= {"general/l0@0", "general/l0@2"}
    assert row(group, "a/one").values["general/l0@2"].value is None


def test_suite_keeps_only_its_specs(tmp_path: Path) -> None:
    cells = [Planted(name=name) for name in ("a/one", "b/two", "b/deep/three", "bb/four")]
    for suite, names in (
        ("b", {"b/two", "b/deep/three"}),
        ("b/deep/", {"b/deep/three"}),
        ("a/one", {"a/one"}),
        ("b/t", set()),
    ):
        found = board(tmp_path / suite, *cells, suite=suite)
        assert {r.spec for group in found.groups for r in group.rows} == names


def test_short_table_has_the_core_columns_per_domain(tmp_path: Path) -> None:
    (group,) = board(tmp_path, Planted()).groups
    core = ["L0", "EV centred", "CE increase", "Loss rec. (zero)", "Dead"]
    assert [(c.domain, c.label) for c in group.shown] == [(d, c) for d in ("general", "chemistry") for c in core]
    assert len(group.columns) > len(group.shown)


def test_best_comes_first(tmp_path: Path) -> None:
    (group,) = board(tmp_path, *[Planted(name=f"a/{e}", error=e / 100) for e in (30, 10, 20)]).groups
    assert [r.spec for r in group.rows] == ["a/10", "a/20", "a/30"]


def test_facts_that_differ_alike_on_all_domains_are_named_once() -> None:
    here = {"general": {"layer": 1, "file": "a"}, "chemistry": {"layer": 1, "file": "b"}}
    there = {"general": {"layer": 2, "file": "a"}, "chemistry": {"layer": 2, "file": "c"}}
    assert [f.path for f in differing_facts(here, there)] == ["chemistry.file", "layer"]


def test_what_one_side_lacks_is_one_fact_and_metrics_go_by_name() -> None:
    here = {"metrics": [{"metric": "l0", "budgets": [8]}, {"metric": "cost"}], "sae": {"k": 8}}
    there = {"metrics": [{"metric": "mse", "x": {"y": 1}}, {"metric": "l0", "budgets": [16]}], "sae": {"k": 8}}
    assert [(f.path, f.here, f.there) for f in differing_facts(here, there)] == [
        ("metrics.cost", {"metric": "cost"}, None),
        ("metrics.l0.budgets", [8], [16]),
        ("metrics.mse", None, {"metric": "mse", "x": {"y": 1}}),
    ]


def test_what_training_cost_on_its_machine_is_a_column_that_nobody_is_ranked_by(tmp_path: Path) -> None:
    (group,) = board(
        tmp_path,
        *[Planted(seed=s, speed=1000.0 + 100 * s, memory=(3 + s) << 20) for s in range(2)],
        Planted("quickstart/other", speed=5000.0),
        Planted("quickstart/loaded"),
    ).groups
    speed, memory = (column(group, f"/training.{name}@1") for name in ("tokens_per_second", "memory"))
    assert (speed.unit, memory.unit) == ("tokens/s", "MiB")
    values = {r.spec: [r.values[c.key].value for c in (speed, memory)] for r in group.rows}
    assert values == {
        "quickstart/topk": [1050.0, 3.5],
        "quickstart/other": [5000.0, None],
        "quickstart/loaded": [None, None],
    }
    assert speed.higher_is_better is memory.higher_is_better is None
    assert not {speed, memory} & set(group.shown)
    assert not any(group.verdict(r, c).standing for r in group.rows for c in (speed, memory))
