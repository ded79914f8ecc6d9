"""A model with a massive word, from spec to row: what is left out, what the row says of it, and what `keep` gives."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from latentbench.records.record import Record
from latentbench.store.store import Store
from tests.conftest import Command
from tests.support.project import Workbench, random_words, write_jsonl


@pytest.fixture
def massive(bench: Workbench) -> Workbench:
    """`bench` with a model in which `gas` is massive, and texts of random words."""
    weights = bench.root / "model/model.safetensors"
    tensors = load_file(weights)
    (name,) = (name for name in tensors if "embed_tokens" in name)
    word = AutoTokenizer.from_pretrained(str(bench.root / "model")).convert_tokens_to_ids("gas")
    tensors[name][word] *= 1000
    save_file(tensors, weights, metadata={"format": "pt"})
    write_jsonl(bench.root / "data/train.jsonl", random_words(120))
    write_jsonl(bench.root / "data/eval.jsonl", random_words(6, seed=2))
    return bench


def numbers(record: Record) -> dict[str, float | None]:
    return {value.id: value.value for value in record.metrics}


def test_a_row_says_what_is_left_out_and_what_it_would_be_with_it(massive: Workbench, command: Command) -> None:
    metrics = ["cross_entropy", "explained_variance", "mse", "every_token"]
    massive.spec("rule", metrics=metrics)
    massive.spec("kept", metrics=metrics[:3], massive="keep")
    massive.spec("named", metrics=metrics[:3], massive="keep", leave_out=["gas"])
    done = command("run", "--executor", "inline")
    assert done.code == 0, done.err
    rule, kept, named = (
        next(r for r in massive.records().values() if r.spec.name == name) for name in ("rule", "kept", "named")
    )
    found = numbers(rule)
    share = found["left_out.massive"]
    assert share is not None
    assert 0.02 < share < 0.12  # one word of twenty-odd
    (warning,) = (text for text in rule.warnings if "left out" in text)
    assert warning.startswith(f"lab: {share:.1%} of the tokens are left out")
    # The word is all variance there is where it counts, and an SAE that never saw it knows nothing of it.
    assert found["every_token.explained_variance.centred"] != pytest.approx(
        found["explained_variance.centred"], abs=0.01
    )
    assert numbers(kept)["left_out.massive"] == 0
    assert numbers(kept)["cross_entropy.clean"] == found["cross_entropy.clean"]
    # Left out by name or by length, the tokens are the same; the SAEs are not, for their seeds come from their keys.
    assert numbers(named)["left_out.named"] == share
    for number in ("cross_entropy.zero", "cross_entropy.mean"):
        assert numbers(named)[number] == found[number]
    assert rule.comparability["lab"].key != kept.comparability["lab"].key != named.comparability["lab"].key
    folder = Store(massive.root / "results/store").folder("sae", rule.keys["sae"])
    left_out = json.loads((folder / "training.json").read_text())["left_out"]
    assert left_out["massive"] > 0
    assert left_out["limit"] == 10 * left_out["median"]


def test_rows_are_complete_and_whole(massive: Workbench, command: Command) -> None:
    massive.spec("mine", metrics=["explained_variance", "every_token"])
    assert command("run", "mine", "--executor", "inline").code == 0
    again = command("run", "mine", "--executor", "inline")
    assert again.code == 0
    assert "measuring" not in again.out + again.err
    table = command("leaderboard")
    assert "damaged" not in table.out + table.err
    for heading in ("EV centred", "3 warnings"):
        assert heading in table.out


def test_what_no_token_is_called_is_one_error(massive: Workbench, command: Command) -> None:
    massive.spec("mine", leave_out=["gas metal"])
    done = command("run", "mine", "--executor", "inline")
    assert done.code != 0
    said = " ".join((done.out + done.err).split())
    assert "leave_out: 'gas metal' is not one token of this model but 2 ('gas', 'metal')" in said
    assert "Traceback" not in said


def test_what_says_nothing_is_refused(massive: Workbench, command: Command) -> None:
    massive.spec("mine", metrics=["explained_variance", "every_token"], massive="keep")
    done = command("validate", "mine")
    assert done.code != 0
    assert "counts every token already" in done.err
    massive.spec("mine", massive=0.5)
    assert "greater than 1" in command("validate", "mine").err
    massive.spec("mine", dataset__eval__lab__packing="documents")
    assert "`packing` is for training" in command("validate", "mine").err
