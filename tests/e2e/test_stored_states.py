"""Hidden states through the command line: stored once, read by later seeds and specs, changing no weight and no number."""

from __future__ import annotations

import re
import shutil

import pytest

from latentbench.activations import row_states
from latentbench.core.spec_model import Json
from latentbench.reconstruction import documents as reconstruction
from latentbench.records.record import Record
from tests.conftest import Command
from tests.support.project import Workbench, documents, random_words, write_jsonl

MODES = ("never", "always")


def measured(record: Record) -> list[Json]:
    """What was measured on texts; the rest may hold times."""
    assert record.documents is not None
    return [record.documents.sha256, *(metric.plain() for metric in record.metrics if metric.domain)]


def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every pass of the model that training asked for, from here on."""
    rows: list[int] = []
    real = row_states.hidden_states

    def counted(model, sites, ids, *mask):
        rows.append(len(ids))
        return real(model, sites, ids, *mask)

    monkeypatch.setattr(row_states, "hidden_states", counted)
    return rows


def test_what_is_trained_does_not_depend_on_where_states_come_from(bench: Workbench, command: Command) -> None:
    weights, keys, numbers = [], [], []
    for mode in MODES:
        bench.spec("one", seeds=[0, 1], matrix={"sae.k": [2, 4]}, resources={"cache": mode})
        assert command("run", "one", "--executor", "inline").code == 0
        weights.append(bench.weights())
        keys.append({name: record.cell for name, record in bench.records().items()})
        numbers.append({name: measured(record) for name, record in bench.records().items()})
        shutil.rmtree(bench.root / "results")
    assert len(weights[0]) == 4
    assert weights[0] == weights[1]
    assert keys[0] == keys[1]
    assert numbers[0] == numbers[1]


def test_later_seeds_variants_and_specs_do_not_run_the_model_for_them(
    bench: Workbench, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = passes(monkeypatch)
    bench.spec("one", resources={"cache": "always"})
    assert command("run", "one", "--executor", "inline").code == 0
    first = sum(rows)
    bench.spec("one", resources={"cache": "always"}, seeds=[0, 1, 2])
    bench.spec("other", sae={"variant": "batch_topk", "width": 16, "k": 3}, training__batch=32)
    assert command("run", "one", "other", "--executor", "inline").code == 0
    assert sum(rows) == first
    assert len(bench.records()) == 4


def test_later_saes_are_measured_without_the_blocks_before_their_site(
    bench: Workbench, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    real = reconstruction.hidden_states, reconstruction.hidden_states_and_logits
    for function in real:
        monkeypatch.setattr(
            reconstruction, function.__name__, lambda *given, of=function: (passes.append(1), of(*given))[1]
        )
    bench.spec("one", resources={"cache": "always"})
    assert command("run", "one", "--executor", "inline").code == 0
    first = len(passes)
    bench.spec("other", resources={"cache": "always"}, seeds=[0, 1, 2], sae__k=3)
    assert command("run", "other", "--executor", "inline").code == 0
    assert len(passes) == first > 0
    bench.spec("computed", resources={"cache": "never"}, seeds=[3], sae__k=3)
    assert command("run", "computed", "--executor", "inline").code == 0
    assert len(passes) > first


STUDIES: list[Json] = [
    "latents",
    {"sparse_probing": {"k": [1, 2]}},
    {"autointerp": {"judge": {"adapter": "lexical"}, "domain": "lab", "latents": 4}},
]


def test_studies_of_latents_find_the_same_and_run_no_model_where_the_store_has_its_states(
    bench: Workbench, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = {"dataset.eval.other": {"adapter": "files", "path": "data/other.jsonl", "documents": 40, "context": 16}}
    write_jsonl(bench.root / "data/other.jsonl", random_words(40))
    write_jsonl(bench.root / "data/eval.jsonl", documents(40, start=500))
    same = {"metrics": STUDIES, "dataset.eval.lab.documents": 40, **two}
    numbers = []
    for mode in MODES:
        bench.spec("one", **same, resources={"cache": mode})
        said = command("plan", "one").out
        assert ("hidden states of the documents of other at 0.resid_post" in said) is (mode == "always")
        assert command("run", "one", "--executor", "inline").code == 0
        (record,) = bench.records().values()
        numbers.append(measured(record))
        if mode == "never":
            shutil.rmtree(bench.root / "results")
    assert numbers[0] == numbers[1]
    passes: list[int] = []
    real = reconstruction.hidden_states
    monkeypatch.setattr(reconstruction, "hidden_states", lambda *given: (passes.append(1), real(*given))[1])
    bench.spec("other", **same, resources={"cache": "always"}, sae__k=3)
    assert command("run", "other", "--executor", "inline").code == 0
    assert passes == []
    bench.spec("computed", **same, resources={"cache": "never"}, sae__k=2)
    assert command("run", "computed", "--executor", "inline").code == 0
    assert passes


def test_a_plan_says_what_will_be_stored_and_what_it_saves(bench: Workbench, command: Command) -> None:
    bench.spec("one", seeds=[0, 1], matrix={"sae.k": [2, 4]})
    said = command("plan", "one").out
    assert "hidden states of 1,024 tokens at 0.resid_post: " in said
    assert "4 SAEs in 2 streams would each time take" in said
    assert "stored hidden states may take" in said
    at_most = re.search(r"hidden states of the documents of lab at 0.resid_post.*: (\d+) kB to store", said)
    assert at_most
    assert "measuring 4 SAEs would each time take" in said
    bench.spec("one", resources={"cache": "never"})
    assert "hidden states" not in command("plan", "one").out
    bench.spec("one", resources={"cache": "always"})
    assert command("run", "one", "--executor", "inline").code == 0
    bench.spec("one", resources={"cache": "always"}, seeds=[0, 1])
    said = command("plan", "one").out
    assert " in the store; 1 SAE in 1 stream" in said
    found = re.search(r"hidden states of the documents of lab at .*: (\d+) kB in the store; measuring 1 SAE", said)
    assert found
    assert 0 < int(found[1]) <= int(at_most[1])


def test_there_is_no_room_for_them(bench: Workbench, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTBENCH_STATES", "1kB")
    bench.spec("one", resources={"cache": "always"})
    done = command("run", "one", "--executor", "inline")
    assert done.code == 3
    assert "needs" in done.err
    assert "LATENTBENCH_STATES" in done.err
    bench.spec("one", resources={"cache": "auto"})
    assert command("run", "one", "--executor", "inline").code == 0


def test_a_mode_that_is_none_is_named(bench: Workbench, command: Command) -> None:
    bench.spec("one", resources={"cache": "sometimes"})
    done = command("validate", "one")
    assert done.code != 0
    assert "always" in done.err
    assert "never" in done.err
