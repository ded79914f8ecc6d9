"""`report latents` and `report consistency` on cells that were run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from latentbench.autointerp.scores import AutointerpDetails, BudgetDetails, LatentDetail, ShownExample, TestScore
from latentbench.report.cells import record_of, sources_of
from latentbench.report.latents import page as page_of
from tests.support.project import Done, Workbench

Command = Callable[..., Done]


def embedded(page: str) -> Any:
    """The data in a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_a_page_from_a_finished_cell(command: Command, bench: Workbench) -> None:
    """From the stored study, and the same numbers again from the documents where no study is stored."""
    bench.spec(metrics=["l0", {"latents": {"examples": 6, "window": 32}}])
    bench.spec("plain", metrics=["l0"])
    assert command("run", "mine", "plain", "--executor", "inline").code == 0
    done = command("report", "latents", "mine[0]")
    assert done.code == 0, done.err
    (path,) = (bench.root / "results/pages").iterdir()
    assert path.name.endswith("-latents.html")
    stored = embedded(path.read_text("utf-8"))
    assert stored["width"] == 32
    assert stored["alive"] == len(stored["latents"]) > 0
    shown = stored["latents"][0]
    assert {len(shown["p"]), len(shown["q"])} == {10}
    assert len(shown["k"]) == 8
    assert all("<s>" not in stored["texts"][i] for latent in stored["latents"] for e in latent["v"] for i in e[2])
    done = command("report", "latents", "plain[0]", "-o", "page.html", "--latents", "5")
    assert done.code == 0
    assert "no `latents` study is stored" in done.err
    measured = embedded((bench.root / "page.html").read_text("utf-8"))
    assert len(measured["latents"]) == 5
    whole = {latent["n"]: latent for latent in stored["latents"]}
    for latent in measured["latents"]:
        assert [stored["texts"][i] for i, _ in whole[latent["n"]]["u"]["0"]["t"]] == [
            measured["texts"][i] for i, _ in latent["u"]["0"]["t"]
        ]
        assert latent["u"]["0"]["d"] == whole[latent["n"]]["u"]["0"]["d"]


def test_a_page_without_the_model_says_what_is_missing(command: Command, bench: Workbench) -> None:
    bench.spec(metrics=["l0", "latents"])
    assert command("run", "mine", "--executor", "inline").code == 0
    for weights in (bench.root / "model").glob("*.safetensors"):
        weights.unlink()
    done = command("report", "latents", "mine[0]")
    assert done.code == 0, done.err
    (path,) = (bench.root / "results/pages").iterdir()
    content = embedded(path.read_text("utf-8"))
    assert content["latents"]
    assert content["latents"][0]["p"] == []
    assert "Without tokens promoted" in content["notes"][0]


def test_explanations_and_scores_are_shown(command: Command, bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An autointerp study's details, whatever made them."""
    bench.spec(metrics=["l0"])
    assert command("run", "mine", "--executor", "inline").code == 0
    sources = sources_of(record_of(bench.root / "results", "mine[0]"), bench.project, lambda text: None)
    score = TestScore(true_positive_rate=0.9, true_negative_rate=0.7, balanced_accuracy=0.8, positives=9, negatives=9)
    example = ShownExample(tokens=("a", " b"), activations=(0.0, 2.0), split="test", document=1)
    latent = LatentDetail(
        latent=3, density=0.1, max_activation=2.0, explanation="b", detection=score, fuzzing=score, examples=(example,)
    )
    other = LatentDetail(latent=4, density=0.1, max_activation=2.0, excluded="the judge failed")
    budget = BudgetDetails(budget=None, width=32, alive=30, eligible=20, excluded={"judge": 1}, latents=(latent, other))
    details = AutointerpDetails(domain="lab", judge="lexical", documents=6, tokens=90, seed=0, budgets=(budget,))
    content = embedded(page_of(type(sources)(**{**vars(sources), "autointerp": details}), most=10))
    shown = {entry["n"]: entry for entry in content["latents"]}
    assert shown[3]["a"]["x"] == "b"
    assert shown[3]["a"]["s"] == 0.8
    assert shown[4]["a"]["e"] == "the judge failed"
    _, document, words, active, split = shown[3]["v"][0]
    assert ([content["texts"][i] for i in words], active, split, document) == (["a", " b"], [1, 2], "test", 1)
    assert content["autointerp"]["judge"] == "lexical"
    assert len(shown) == 10, "sampled ones first, then others"


def test_consistency_of_seeds(command: Command, bench: Workbench) -> None:
    bench.spec(metrics=["l0"], seeds=[0, 1, 2])
    assert command("run", "mine", "--executor", "inline").code == 0
    done = command("report", "consistency", "mine", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert list(found) == ["0 – 1", "0 – 2", "1 – 2", "mean", "chance"]
    assert found["mean"]["matched"] == pytest.approx(np.mean([found[k]["matched"] for k in list(found)[:3]]))
    assert all(-1 <= line["matched"] <= line["best_match"] <= 1 for line in found.values())
    assert "best match" in command("report", "consistency", "mine").out
    done = command("report", "consistency", "mine[0]")
    assert (done.code, done.err) == (2, "error: consistency needs the same SAE from two seeds or more\n")


def test_what_cannot_be_shown_is_said_in_one_line(command: Command, bench: Workbench) -> None:
    bench.spec(metrics=["l0"], seeds=[0, 1])
    assert command("run", "mine", "--executor", "inline").code == 0
    done = command("report", "latents", "mine")
    assert done.code == 2
    assert "say which seed, e.g. mine[0] (seeds: 0, 1)" in done.err
    done = command("report", "latents", "nothing[0]")
    assert done.code == 2
    assert "there are no records of nothing" in done.err
    shutil.rmtree(bench.root / "results/store/objects/sae")
    done = command("report", "latents", "mine[0]")
    assert done.code == 2
    assert "not in the store; run its spec again" in done.err
    assert "Traceback" not in done.err
