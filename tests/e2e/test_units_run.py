"""Copies of documents and problems from files to the table, through the real command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from latentbench.metrics.value import MetricValue
from latentbench.records.record import Record
from latentbench.store.files import read_arrays
from latentbench_adapters.pocket import text
from tests.conftest import Command
from tests.support.project import Workbench, random_words, write_jsonl

pytestmark = pytest.mark.usefixtures("one_thread")

TASK: dict[str, Any] = {
    "task": "sums",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "num_fewshot": 0,
}


def by_id(record: Record, domain: str) -> dict[str, MetricValue]:
    return {value.id: value for value in record.metrics if value.domain == domain}


def statistics(bench: Workbench, record: Record) -> dict[str, np.ndarray]:
    assert record.documents is not None
    (file,) = (bench.root / "results/records").rglob(record.documents.file)
    return dict(read_arrays(file))


def test_three_copies_are_one_document_with_three_times_its_weight(bench: Workbench, command: Command) -> None:
    texts = random_words(12)
    write_jsonl(bench.root / "data/once.jsonl", texts)
    write_jsonl(bench.root / "data/copies.jsonl", [*texts, *reversed(texts), *texts])
    for name, count in (("once", 12), ("copies", 36)):
        data = {"adapter": "files", "path": f"data/{name}.jsonl", "documents": count, "context": 16}
        bench.spec(name, dataset__eval={"lab": data}, metrics=["cross_entropy", "explained_variance", "dead_fraction"])
    done = command("run", "--executor", "inline")
    assert done.code == 0, done.err
    once, copies = bench.records()["once[][0]"], bench.records()["copies[][0]"]
    ours, plain = by_id(copies, "lab"), by_id(once, "lab")
    assert ours.keys() == plain.keys()
    for name, value in ours.items():
        assert (value.n, value.repeats) == (12, 24), name
        assert (plain[name].n, plain[name].repeats) == (12, 0), name
        assert value.value == pytest.approx(plain[name].value, rel=1e-5, abs=1e-7), name
        if value.ci is not None and plain[name].ci is not None:
            same = pytest.approx((plain[name].ci.low, plain[name].ci.high), rel=1e-5, abs=1e-7)
            assert (value.ci.low, value.ci.high) == same, name
    assert (ours["explained_variance.centred"].ci is None) == (plain["explained_variance.centred"].ci is None)
    tripled, single = statistics(bench, copies), statistics(bench, once)
    for name, values in single.items():
        np.testing.assert_allclose(tripled[name], 3 * values, rtol=1e-4, atol=1e-4, err_msg=name)
    repeated = "lab: 12 of 36 are distinct; those that repeat them count once in intervals and tests"
    assert (repeated in copies.warnings, set(copies.warnings) - {repeated}) == (True, set(once.warnings))
    table = (bench.root / "results/LEADERBOARD.md").read_text("utf-8")
    assert "lab (36 documents (12 distinct))" in table
    shown = command("leaderboard", "--suite", "copies").out
    assert "36 documents (12 distinct)" in " ".join(shown.split())


def test_problems_that_are_asked_again_are_one_problem(bench: Workbench, command: Command) -> None:
    drawn = text.problems("eval")
    rows = [{"question": p.question, "answer": str(p.answer)} for p, _ in zip(drawn, range(7), strict=False)]
    spaced = [{**row, "question": f" {row['question']}"} for row in rows[:2]]
    other = [{**rows[0], "answer": "-1"}]  # the same question with another answer is another problem
    lines = [*rows, *rows, *spaced, *other]
    bench.write("data/sums.jsonl", "".join(json.dumps(row) + "\n" for row in lines))
    bench.write("sums.yaml", yaml.safe_dump({**TASK, "dataset_kwargs": {"data_files": {"test": "data/sums.jsonl"}}}))
    documents = [*(" ".join(t.split()) for t, _ in zip(text.documents("general", "eval"), range(6), strict=False))]
    write_jsonl(bench.root / "data/texts.jsonl", [*documents, *documents])
    data = {"adapter": "files", "path": "data/texts.jsonl", "documents": 12, "context": 32}
    spec = {
        "model": {"adapter": "pocket"},
        "dataset": {"eval": {"general": data}},
        "steering": {"method": "prefix", "text": " To find out, go step by step."},
        "metrics": [{"reasoning_accuracy": {"task": "sums.yaml"}}, {"capability_cost": {}}],
    }
    bench.write("specs/mine.yaml", yaml.safe_dump(spec, sort_keys=False))
    done = command("run", "mine", "--executor", "inline")
    assert done.code == 0, done.err
    (record,) = bench.records().values()
    (domain,) = {value.domain for value in record.metrics} - {"general"}
    for value in by_id(record, str(domain)).values():
        assert (value.n, value.repeats) == (8, 9), value.id
    kept = statistics(bench, record)
    assert kept[f"{domain}/reasoning_accuracy.problems"].tolist() == [3, 3, 2, 2, 2, 2, 2, 1]
    for value in by_id(record, "general").values():
        assert (value.n, value.repeats) == (6, 6), value.id
    assert len(kept["general/capability_cost.predictions"]) == 6
    table = Path(bench.root / "results/LEADERBOARD.md").read_text("utf-8")
    assert "17 problems (8 distinct)" in table
    assert "12 documents (6 distinct)" in table
