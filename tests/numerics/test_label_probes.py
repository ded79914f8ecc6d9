"""Probes on labelled texts: AUROC by hand, planted latents, texts that repeat, and the states they read."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.metrics import roc_auc_score

from latentbench.core.paths import Roots
from latentbench.core.sites import Site
from latentbench.core.token_rule import EVERY_TOKEN
from latentbench.latents.label_probes import (
    LabelledSet,
    auroc,
    best_strength,
    last_states,
    statistics_of,
)
from latentbench.latents.labelled_probing import LabelledProbing
from latentbench.latents.probing import fit
from latentbench_adapters.datasets import FilesDataset
from latentbench_adapters.pocket.adapter import PocketModel
from tests.support.project import Workbench, random_words

pytestmark = pytest.mark.usefixtures("one_thread")
DATA = FilesDataset(path="*.csv", label="target", context=32)


def study(**fields: Any) -> LabelledProbing:
    return LabelledProbing(sets=DATA, **fields)


def made(rows: list[tuple[str, str]], **fields: Any) -> LabelledSet:
    found = LabelledSet.of("set", rows, DATA, study(**fields))
    assert isinstance(found, LabelledSet), found
    return found


ROWS = [(f"text {n}", "ab"[n % 2]) for n in range(400)]


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, labels = rng.integers(0, 4, 12).astype(float), np.arange(12) % 3 == 0
        pairs = itertools.product(scores[labels], scores[~labels])
        assert auroc(scores, labels) == pytest.approx(np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs]))
        assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))


def test_texts_are_divided_by_their_words_and_repeats_are_one() -> None:
    labelled = made(ROWS)
    again = made([*reversed(ROWS), *((text.replace(" ", "\n"), label) for text, label in ROWS)])
    assert labelled.digest != ""
    assert {text.split()[1] for text in again.texts} == {text.split()[1] for text in labelled.texts}
    sides = [
        {" ".join(t.split()) for t, test in zip(one.texts, one.test, strict=True) if test} for one in (labelled, again)
    ]
    assert sides[0] == sides[1]
    assert 0.2 < labelled.test.mean() < 0.4
    np.testing.assert_array_equal(labelled.labels, [int(text.split()[1]) % 2 == 1 for text in labelled.texts])
    assert len(made(ROWS, texts=100).texts) == 100


def test_a_text_with_both_labels_has_none() -> None:
    assert "text 0" not in made([*ROWS, ("text  0", "b")]).texts
    assert "text 0" in made([*ROWS, ("text  0", "a")]).texts


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([(text, "a") for text, _ in ROWS], "set has 1 labels"),
        ([(text, str(n % 3)) for n, (text, _) in enumerate(ROWS)], "set has 3 labels"),
        (ROWS[:20], "set has too few texts of a label"),
        ([(text, "a" if n else "b") for n, (text, _) in enumerate(ROWS)], "set has too few texts of a label"),
    ],
)
def test_sets_that_cannot_be_probed_say_why(rows: list[tuple[str, str]], words: str) -> None:
    assert LabelledSet.of("set", rows, DATA, study()) == words


def test_k_latents_find_what_is_planted_and_nothing_in_noise() -> None:
    labelled, rng = made(ROWS), np.random.default_rng(0)
    latents = rng.uniform(0, 1, (len(labelled.texts), 40))
    noise = statistics_of(csr_array(latents), 0.5, labelled, study(k=(1, 4)))
    assert all(abs(noise[f"labelled_probing.auc_{k}"] - 0.5) < 0.2 for k in (1, 4))
    latents[:, 7] += 0.4 * labelled.labels
    latents[:, 9] += 0.4 * labelled.labels
    found = statistics_of(csr_array(latents), 0.75, labelled, study(k=(1, 2, 4)))
    one, two = found["labelled_probing.auc_1"], found["labelled_probing.auc_2"]
    assert 0.7 < one < two < 1
    assert found["labelled_probing.gain_2"] == pytest.approx(two - 0.75)
    assert found["labelled_probing.auc_states"] == 0.75


def test_latents_are_chosen_without_the_test_texts() -> None:
    """A latent that tells the label on test texts alone is not the one that is chosen."""
    labelled, rng = made(ROWS), np.random.default_rng(0)
    latents = rng.uniform(0, 1, (len(labelled.texts), 2))
    latents[:, 0] += 9.0 * (labelled.labels & labelled.test)
    latents[:, 1] += 0.3 * (labelled.labels & ~labelled.test)
    assert statistics_of(csr_array(latents), 0.5, labelled, study(k=(1,)))["labelled_probing.auc_1"] < 0.7


@pytest.mark.parametrize("count", [60, 300])
def test_the_penalty_is_the_best_on_texts_that_were_not_fitted_on(count: int) -> None:
    """Against every penalty tried one by one, with the folds counted out by hand."""
    rng = np.random.default_rng(1)
    labels = np.arange(count) % 2 == 0
    x = rng.normal(size=(count, 30))
    x[:, 0] += labels
    held = [np.arange(count) >= count - 60] if count == 300 else [(np.arange(count) // 2) % 6 == n for n in range(6)]
    tried = {
        strength: np.mean([roc_auc_score(labels[h], fit(x[~h], labels[~h], per_feature=True, strength=strength).scores(x[h])) for h in held])
        for strength in np.logspace(-5, 5, 10)
    }  # fmt: skip
    assert tried[best_strength(x, labels)] == max(tried.values())


def test_a_text_is_the_state_of_its_last_token_that_counts() -> None:
    """Against one text at a time through the model's own hidden states."""
    model = PocketModel().load(Roots(Path()), torch.device("cpu"))
    texts = ("The old man walks to the river.", "A cat", "She gives three apples to her brother and one to me", "x")
    found = last_states(model, Site(index=2), EVERY_TOKEN, texts, study())
    for text, state in zip(texts, found, strict=True):
        ids = model.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        ids = torch.cat([torch.tensor([[model.tokenizer.bos_token_id]]), ids], 1)[:, :32]
        with torch.no_grad():
            wanted = model.model(ids, output_hidden_states=True).hidden_states[3][0, -1]
        torch.testing.assert_close(state, wanted, rtol=1e-4, atol=1e-4)


# --- through the command line ---------------------------------------------------------------------------------------


def test_a_record_has_the_numbers_over_sets_and_names_those_left_out(bench: Workbench, command: Any) -> None:
    texts = random_words(260)
    planted = [(text, "acid" in text) for text in texts]
    alternate = [(text, n % 2 == 0) for n, text in enumerate(texts)]
    for name, rows in (("acid", planted), ("noise", alternate), ("single", [(text, True) for text in texts])):
        lines = "".join(f"{text},{int(label)}\n" for text, label in rows)
        bench.write(f"sets/{name}.csv", "text,target\n" + lines)
    probing = {"sets": {"adapter": "files", "path": "sets/*.csv", "label": "target", "context": 16}, "k": [1, 8]}
    bench.spec(metrics=["l0", {"labelled_probing": probing}], matrix={"sae.k": [2, 4]})
    width = json.loads((bench.root / "model/config.json").read_text())["hidden_size"]
    most = f"{3 * 1500 * width * 4 // 1000} kB"
    told = f"reads the last states of 3 labelled sets at 0.resid_post, at most {most}: computed and stored once for all SAEs there"
    assert f"labelled_probing: {told} (in each of 2 cells)" in command("plan", "mine").out.splitlines()
    assert command("run", "mine").code == 0
    for record in bench.records().values():
        numbers = {(n.id, n.params.get("latents")): n for n in record.metrics if n.domain == "labelled_sets"}
        assert {key[0] for key in numbers} == {f"labelled_probing.{name}" for name in ("auc", "gain", "states_auc")}
        for k in (1, 8):
            gain = numbers["labelled_probing.auc", k].value - numbers["labelled_probing.states_auc", None].value
            assert numbers["labelled_probing.gain", k].value == pytest.approx(gain)
            assert numbers["labelled_probing.gain", k].n == 2
        assert "labelled_probing: 1 sets were left out: single has 1 labels" in record.warnings
    states = {n.value for r in bench.records().values() for n in r.metrics if n.id == "labelled_probing.states_auc"}
    assert len(states) == 1
    store = bench.root / "results/store/objects/shared"
    assert len(list(store.glob("*/*"))) == 3  # states of the same texts once, and a probe for each set, for both SAEs


def test_sets_without_labels_are_refused_where_they_are_named(bench: Workbench, command: Any) -> None:
    probing = {"sets": {"adapter": "files", "path": "data/*.jsonl"}}
    bench.spec(metrics=["l0", {"labelled_probing": probing}])
    done = command("validate", "mine")
    assert done.code == 2
    assert "the texts have no labels: name the column that holds them as `label`" in done.err
    bench.spec(metrics=["l0", {"labelled_probing": {"sets": {"adapter": "pocket", "domain": "law"}}}])
    assert "texts of `adapter: pocket` have no labels" in command("validate", "mine").err
