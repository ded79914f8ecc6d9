"""Batches from the command line: which cells are meant, what is left, and how long that may take."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentbench.cli import progress
from latentbench.core.errors import InvalidInput
from latentbench.execute.batch_status import Estimate, duration, estimate
from latentbench.execute.run import CellSelection, Shard, _expression
from latentbench.plan.plan import Plan, make_plan
from latentbench.spec.project import load_specs
from latentbench.store.store import Store
from tests.conftest import Command
from tests.support.project import Workbench, write_jsonl
from tests.unit.leaderboard_factory import rewritten

RUN = ("run", "--executor", "inline", "--device", "cpu")


def plan(bench: Workbench) -> Plan:
    project = bench.project
    return make_plan(load_specs(project, []), Store(project.store), project.results, project.roots)


def titles(out: str) -> set[str]:
    return {cell["cell"] for cell in json.loads(out)["cells"]}


@given(st.text(st.sampled_from("0123456789abcdef"), min_size=64, max_size=64), st.integers(1, 50))
def test_every_cell_is_in_exactly_one_shard(key: str, of: int) -> None:
    assert sum(Shard(number, of).has(key) for number in range(1, of + 1)) == 1


@pytest.mark.parametrize("text", ["", "0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3", "1 / 2", "9999999/9999999"])
def test_shards_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is not I/N"):
        Shard.parse(text)


@given(st.text(max_size=30))
def test_a_pattern_without_wildcards_means_itself(text: str) -> None:
    plain = text.replace("*", "").replace("?", "")
    assert re.search(_expression(plain), f"before{plain}after")


def test_shards_are_disjoint_and_complete_whatever_the_filter(bench: Workbench, command: Command) -> None:
    bench.spec(matrix={"sae.k": [1, 2, 4, 8]}, seeds=[0, 1, 2])
    shards = [titles(command("plan", "--shard", f"{n}/3", "--json").out) for n in (1, 2, 3)]
    assert sum(map(len, shards)) == len(set().union(*shards)) == 12
    filtered = titles(command("plan", "--shard", "2/3", "--filter", "k=8]*=1]", "--json").out)
    assert filtered == {"mine[sae.k=8][seed=1]"} & shards[1]
    assert titles(command("plan", "--filter", "[sae.k=4][seed=?]", "--json").out) == {
        f"mine[sae.k=4][seed={seed}]" for seed in range(3)
    }


def test_a_filter_that_matches_nothing_says_what_cells_are_called(bench: Workbench, command: Command) -> None:
    bench.spec()
    done = command("run", "--filter", "k=99")
    assert done.code == 2
    assert "no cell matches --filter 'k=99'; cells have titles such as mine[seed=0]" in done.err


def test_max_cells_runs_the_first_ones_and_the_next_run_goes_on(bench: Workbench, command: Command) -> None:
    bench.spec(matrix={"sae.k": [1, 2, 4]}, metrics=["explained_variance"])
    first = command(*RUN, "--max-cells", "2")
    assert first.code == 3, "one cell is left"
    assert set(bench.records()) == {"mine[sae.k=1][0]", "mine[sae.k=2][0]"}
    assert "no numbers mine[sae.k=4][seed=0]: not run" in first.err
    before = bench.records()
    assert command(*RUN, "--max-cells", "2").code == 0
    assert {name: record for name, record in bench.records().items() if name in before} == before
    assert len(bench.records()) == 3


def test_retry_runs_what_failed_and_nothing_else(bench: Workbench, command: Command) -> None:
    bench.write("data/late.jsonl", "not json\n")
    late = {"adapter": "files", "path": "data/late.jsonl", "documents": 4, "context": 16}
    bench.spec("bad", dataset__eval={"lab": late}, metrics=["explained_variance"])
    assert command(*RUN).code == 3
    bench.spec("new", metrics=["explained_variance"])
    retry = ("retry", *RUN[1:])
    assert command(*retry, "--timed-out").code == 0, "nothing was stopped for time"
    write_jsonl(bench.root / "data/late.jsonl", ["ore salt acid base gas metal"] * 5)
    assert command("status", "bad").code == 3
    assert {name: r.status for name, r in bench.records().items()} == {"bad[][0]": "failed"}
    bench.write("data/late.jsonl", "not json\n")
    assert command(*retry, "--failed").code == 3
    assert {name: r.status for name, r in bench.records().items()} == {"bad[][0]": "failed"}


def test_the_summary_names_every_failure_once(bench: Workbench, command: Command) -> None:
    bench.write("data/bad.jsonl", "not json\n")
    bad = {"adapter": "files", "path": "data/bad.jsonl", "documents": 4, "context": 16}
    bench.spec(dataset__eval={"lab": bad}, metrics=["explained_variance"], seeds=[0, 1])
    done = command(*RUN)
    assert done.code == 3
    for seed in (0, 1):
        assert done.err.count(f"no numbers mine[seed={seed}]") == 1


def test_time_left_is_told_from_records_of_like_cells(bench: Workbench, command: Command) -> None:
    bench.spec(matrix={"sae.k": [2, 4]}, metrics=["explained_variance"])
    assert "time left: unknown" in command("plan").out
    assert command(*RUN).code == 0
    for path, seconds in zip(sorted((bench.root / "results/records/mine").glob("*.json")), (100.0, 200.0), strict=True):
        cost = json.loads(path.read_text())["cost"]
        rewritten(path, cost={**cost, "wall_seconds": {"train": seconds, "measure": 20.0}})
    bench.spec(matrix={"sae.k": [2, 4, 8]}, metrics=["explained_variance"], seeds=[0, 1])
    bench.spec("other", metrics=["explained_variance"])
    made = plan(bench)
    (ours,) = [estimate(CellSelection("mine").of(made, bench.project.results), bench.project.results, 1)]
    # Seed 0: k=8 alone is as slow as the slowest of its spec, 220 s. Seed 1: three together, as slow as their slowest.
    assert ours == Estimate(440.0, 1, 4, 0)
    both = estimate(made, bench.project.results, 2)
    assert both == Estimate(220.0, 2, 4, 1)
    assert str(both) == (
        "time left: about 4 min with 2 workers, going by records of like cells; nothing is known of 1 further cell"
    )


def test_what_is_trained_already_is_not_counted(bench: Workbench, command: Command) -> None:
    bench.spec(metrics=["explained_variance"])
    assert command(*RUN).code == 0
    (path,) = (bench.root / "results/records/mine").glob("*.json")
    record = json.loads(path.read_text())
    record["cost"]["wall_seconds"] = {"train": 100.0, "measure": 20.0}
    path.write_text(json.dumps(record))
    bench.spec(metrics=["explained_variance", "mse", "cross_entropy"])
    guess = estimate(plan(bench), bench.project.results, 1)
    assert guess is not None
    assert guess.seconds == 20.0


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "[" * 9000, '{"cost": 3}', '{"cost": {"wall_seconds": {"a": "x"}}}']
)
def test_damaged_records_tell_nothing_of_time(bench: Workbench, content: str) -> None:
    bench.spec()
    bench.write("results/records/mine/seed0-abc.json", content)
    assert estimate(plan(bench), bench.project.results, 1) == Estimate(0.0, 1, 0, 1)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.1, "1 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (5400, "1.5 h")]
)
def test_durations_are_rounded_to_what_is_known(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_watch_follows_a_run_until_every_cell_is_done(
    bench: Workbench, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.spec(matrix={"sae.k": [1, 2]}, metrics=["explained_variance"])
    project, slept = bench.project, list[float]()
    made = plan(bench)

    def sleep(seconds: float) -> None:  # somebody else's work, seen through the store and the records alone
        slept.append(seconds)
        if len(slept) == 1:
            lease.close()
            for name in ("--max-cells", "--workers"):
                assert command(*RUN, name, "1").code == (3 if name == "--max-cells" else 0)

    told: list[str] = []
    monkeypatch.setattr(progress, "sleep", sleep)
    monkeypatch.setattr(progress, "say", told.append)
    (sae,) = (step.stage for step in made.cells[0].steps if step.stage.kind == "sae")
    with ExitStack() as lease:
        lease.enter_context(Store(project.store).leases.some([f"sae-{sae.key}"]))
        progress.follow(made, project, 7.0)
    assert slept == [7.0]
    assert "0 of 2 cells done, 1 at work, 1 waiting; time left: unknown" in told[0]
    assert told[-1].endswith("2 of 2 cells done, 0 at work, 0 waiting; nothing is left")


def test_watch_counts_what_failed(bench: Workbench, command: Command) -> None:
    from latentbench.execute.batch_status import BatchWatch, statuses

    bench.spec(dataset__eval__lab__path="data/none.jsonl", dataset__train__tokens=10**6, metrics=["explained_variance"])
    bench.write("data/none.jsonl", "not json\n")
    assert command(*RUN).code == 3
    state = BatchWatch(plan(bench), Store(bench.project.store), Path(bench.project.results)).look()
    assert (state.done, statuses(state), state.waiting) == (0, {"failed": 1}, 0)
