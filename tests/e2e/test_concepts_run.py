"""Concepts from a spec to rows on the pocket model: vectors and prompts turn texts, random directions do not."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest

from latentbench_adapters.pocket.text import documents
from tests.support.project import Workbench

DOMAINS = ("chemistry", "law", "medicine", "code")
CONCEPTS: dict[str, Any] = {
    "layer": 3,
    "sets": {"adapter": "files", "path": "data/domains.csv", "label": "domain", "context": 48},
    "texts": 24,
    "chosen": {name: {"set": "domains", "label": name} for name in DOMAINS},
    "prompting": {"text": "", "examples": 2},
}
WAYS = ("mean", "prompt", "random", "none")


@pytest.mark.slow
def test_every_way_is_a_row_and_random_directions_gain_nothing(bench: Workbench, command: Callable[..., Any]) -> None:
    written = io.StringIO()
    rows = csv.writer(written)
    rows.writerow(("text", "domain"))
    rows.writerows((text, name) for name in DOMAINS for text in islice(documents(name, "eval", 0), 110))
    bench.write("data/domains.csv", written.getvalue())
    steering = {"doses": [0.3], "selection": 2, "prompts": 12, "tokens": 20}
    bench.spec(
        model={"adapter": "pocket"},
        dataset={"train": None, "eval": {"lab": {"adapter": "pocket", "domain": "general", "documents": 12}}},
        metrics=[{"concept_steering": steering}, {"concept_detection": {"texts": 24}}],
        cases=[{"label": way, "concepts": {"way": way}} for way in WAYS],
        sae=None,
        layer=None,
        training=None,
        concepts=CONCEPTS,
    )
    done = command("run", "mine", "--executor", "inline")
    assert done.code == 0, done.err
    found = {record.label: {value.id: value.value for value in record.metrics} for record in bench.records().values()}
    assert found.keys() == {*WAYS}
    gain = {way: values["concept_steering.gain"] for way, values in found.items()}
    assert gain["none"] == 0
    assert abs(gain["random"]) < 0.2
    assert gain["mean"] > max(0.0, gain["random"])
    assert found["mean"]["concept_steering.over_random"] > 0
    # That a prompt gains takes a model that follows prompts: see the committed records of SmolLM2 in test_committed_results.py.
    assert gain["prompt"] is not None
    detected = {way: values["concept_detection.text_mean"] for way, values in found.items()}
    assert detected["mean"] > 0.9 > detected["random"]
    assert detected["prompt"] is None
