"""Import as a whole: all files or none, nothing twice, nothing outside, and our own exports come back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from latentbench.core.errors import InvalidInput, RefusedFile
from latentbench.exchange import saebench
from latentbench.exchange.exporting import write_folder
from latentbench.leaderboard.api import leaderboard
from latentbench.leaderboard.build import board_of
from latentbench.leaderboard.load import load
from tests.support.foreign import LM_EVAL, SAE_LENS, SAEBENCH, changed, numbers, one, put, taken
from tests.unit.leaderboard_factory import HOSTILE, Planted, write

MALFORMED: dict[str, tuple[str, Any]] = {
    "no json": ("a.json", "{"),
    "deep": ("a.json", "[" * 100_000),
    "other": ("a.json", {"hello": 1}),
    "empty list": ("a.json", []),
    "number": ("a.json", 3),
    "text for a number": ("a.json", changed(SAEBENCH, "eval_result_metrics/sparsity/l0", "many")),
    "list for an object": ("a.json", changed(SAEBENCH, "eval_result_metrics/sparsity", [1])),
    "no category": ("a.json", changed(SAEBENCH, "eval_result_metrics", {})),
    "no dataset": ("a.json", changed(SAE_LENS, "eval_cfg/dataset", None)),
    "true for a number": ("a.json", changed(SAE_LENS, "metrics/sparsity/l0", True)),
    "no numbers": ("a.json", {**LM_EVAL, "results": {"gsm8k": {"alias": "x"}}}),
    "tasks no objects": ("a.json", {**LM_EVAL, "results": {"gsm8k": 1}}),
    "lone surrogate": ("a.json", json.dumps(changed(SAEBENCH, "sae_lens_id", "x\ud800"))),
    "deep configuration": ("a.json", changed(SAEBENCH, "eval_config", json.loads('{"a":' * 200 + "1" + "}" * 200))),
    "deep columns": ("a.csv", "unique_id,eval_cfg.dataset,eval_cfg.n_eval" + ".a" * 200 + "\na,b,1\n"),
    "no csv": ("a.csv", "a,b\n1,2\n"),
    "empty csv": ("a.csv", ""),
    "binary csv": ("a.csv", "\x00\x01"),
    "clashing columns": ("a.csv", "unique_id,eval_cfg.dataset,metrics,metrics.l0\na,b,1,2\n"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_files_are_refused_whole(tmp_path: Path, kind: str) -> None:
    name, data = MALFORMED[kind]
    good, bad = put(tmp_path, SAEBENCH, "good.json"), put(tmp_path, data, name)
    with pytest.raises(RefusedFile) as caught:
        taken(tmp_path / "results", good, bad)
    assert str(caught.value).startswith(name)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "results").rglob("*")), "nothing may be half-written"


def test_absent_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no file"):
        taken(tmp_path / "results", tmp_path / "none.json")


def test_a_failing_write_takes_back_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from latentbench.exchange import importing

    real, calls = importing.write_json, []

    def failing(path: Path, value: Any) -> None:
        calls.append(path)
        if len(calls) > 1:
            raise OSError("disk full")
        real(path, value)

    monkeypatch.setattr(importing, "write_json", failing)
    with pytest.raises(OSError, match="disk full"):
        taken(tmp_path / "results", put(tmp_path, SAEBENCH, "a.json"), put(tmp_path, LM_EVAL, "b.json"))
    assert not list((tmp_path / "results").rglob("*.json"))


def test_importing_again_changes_nothing(tmp_path: Path) -> None:
    file = put(tmp_path, SAEBENCH)
    first, again = taken(tmp_path / "results", file)[0], taken(tmp_path / "results", file)[0]
    assert (first.new, again.new) == (True, False)
    assert first.path == again.path


def test_a_damaged_import_is_imported_again(tmp_path: Path) -> None:
    file = put(tmp_path, SAEBENCH)
    (made,) = taken(tmp_path / "results", file)
    written = made.path.read_bytes()
    made.path.write_bytes(written.replace(b'"higher_is_better": true', b'"higher_is_better": false'))
    assert "`latentbench import result.json` makes it again" in leaderboard(
        tmp_path / "results", "terminal", width=1000
    )
    (again,) = taken(tmp_path / "results", file)
    assert again.new
    assert made.path.read_bytes() == written


def test_hostile_names_stay_inside_the_records(tmp_path: Path) -> None:
    data = changed(changed(SAEBENCH, "sae_lens_release_id", "../../../../etc"), "sae_lens_id", HOSTILE)
    (made,) = taken(tmp_path / "results", put(tmp_path, data))
    assert made.path.resolve().is_relative_to((tmp_path / "results/records/imported").resolve())
    page = leaderboard(tmp_path / "results", "html")
    assert "<img" not in page


def test_imported_rows_stand_apart_and_say_so(tmp_path: Path) -> None:
    results = tmp_path / "results"
    write(results, Planted(domains=("openwebtext",)))
    taken(results, put(tmp_path, SAEBENCH))
    board = board_of(load(results))
    assert len(board.groups) == 2
    (imported,) = [group for group in board.groups if group.title.endswith("imported")]
    assert imported.rows[0].badges[0].kind == "imported"
    assert "imported: saebench 8042bb38aaaa" in leaderboard(results, "md")
    assert "imported: saebench" in leaderboard(results, "terminal")


def test_our_saebench_export_comes_back_with_the_same_numbers(tmp_path: Path) -> None:
    results = tmp_path / "results"
    write(results, Planted(domains=("general",)), Planted(name="a/other", error=0.3, domains=("general",)))
    assert write_folder(load(results), "saebench", tmp_path / "out") == 2
    files = sorted((tmp_path / "out").iterdir())
    back = taken(tmp_path / "back", *files)
    measured = {cell.record.spec.name: cell.record for cell in load(results).loaded}
    for item in back:
        original = measured[item.record.spec.name.removeprefix("imported/latentbench/")]
        assert item.record.metrics == original.metrics
        assert item.record.comparability == original.comparability, "the key follows from the facts, so it agrees"
    taken(results, *files)
    (group,) = board_of(load(results)).groups
    assert len(group.rows) == 4, "ranked with the measured rows, because the comparability key agrees"


def test_every_domain_and_seed_of_an_export_comes_back_onto_the_board(tmp_path: Path) -> None:
    """A file holds one domain: it must not pass for a newer version of the file of another."""
    write(tmp_path / "results", *[Planted(seed=seed) for seed in range(3)])
    write_folder(load(tmp_path / "results"), "saebench", tmp_path / "out")
    taken(tmp_path / "back", *sorted((tmp_path / "out").iterdir()))
    boards = [board_of(load(tmp_path / name)) for name in ("results", "back")]
    assert boards[1].superseded == ()
    means = [{key: v.value for g in b.groups for r in g.rows for key, v in r.values.items()} for b in boards]
    assert means[1].keys() == means[0].keys()
    assert means[1] == pytest.approx(means[0], rel=1e-12)


def test_tasks_in_files_of_their_own_do_not_replace_each_other(tmp_path: Path) -> None:
    tasks = [{**LM_EVAL, "results": {task: LM_EVAL["results"][task]}} for task in ("gsm8k", "lambada_openai")]
    files = [put(tmp_path, data, f"{number}.json") for number, data in enumerate(tasks)]
    taken(tmp_path / "results", *files, put(tmp_path, {**tasks[0], "date": 1738000000.5}, "newer.json"))
    board = board_of(load(tmp_path / "results"))
    assert {domain for group in board.groups for domain in group.domains} == {"gsm8k", "lambada_openai"}
    assert len(board.superseded) == 1, "the same task measured alike a second time is a newer version"


def test_a_changed_fact_costs_the_comparability(tmp_path: Path) -> None:
    results = tmp_path / "results"
    write(results, Planted(domains=("general",)))
    write_folder(load(results), "saebench", tmp_path / "out")
    (file,) = (tmp_path / "out").iterdir()
    data = json.loads(file.read_text())
    data["eval_result_unstructured"]["latentbench"]["comparability"]["fields"]["context"] = 256
    (item,) = taken(results, put(tmp_path, data))
    assert item.record.comparability["general"].fields["imported"] == "saebench"
    assert len(board_of(load(results)).groups) == 2


def test_our_export_reads_as_saebench_without_our_part(tmp_path: Path) -> None:
    results = tmp_path / "results"
    write(results, Planted(domains=("general",)))
    (cell,) = load(results).loaded
    data = saebench.write(cell.record, "general")
    record = one(tmp_path, {**data, "eval_result_unstructured": None})
    ours, theirs = numbers(cell.record), numbers(record)
    for id in ("cross_entropy.kl_recovered", "cross_entropy.loss_recovered_zero", "cross_entropy.sae", "l0"):
        assert theirs[id].value == ours[id].value
