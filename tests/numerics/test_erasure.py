"""Targeted probe perturbation and spurious correlation removal: by hand in float64, with hooks, planted, and through the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from latentbench.core.errors import CellFailed, InvalidInput
from latentbench.core.paths import Roots
from latentbench.core.sites import Site
from latentbench.core.text_digests import folded_digest_of
from latentbench.core.token_rule import EVERY_TOKEN
from latentbench.latents.erasing import Erasable, TokenStates, erasable, latents_written, random_latents, token_states
from latentbench.latents.erasure import SpuriousCorrelationRemoval, TargetedProbePerturbation
from latentbench.latents.label_probes import last_states, probe_of
from latentbench.latents.labelled_probing import LabelledProbing
from latentbench.latents.probing import Labels, Probe
from latentbench.latents.spurious_correlation import TASKS, CrossedPair, CrossedProbes, TextLabels, measure_scr, removal
from latentbench.latents.targeted_perturbation import ClassedSet, balanced_accuracy, drops, measure_tpp
from latentbench.sae.autoencoder import Codes, SparseAutoencoder
from latentbench.sae.options.topk import TopKOptions
from latentbench.sae.variants.topk import TopK
from latentbench_adapters.datasets import FilesDataset
from latentbench_adapters.pocket.adapter import PocketModel
from tests.support.project import Workbench, random_words

pytestmark = pytest.mark.usefixtures("one_thread")
DATA = FilesDataset(path="*.csv", label="target", context=32)
Array = NDArray[np.float64]


def tpp(**fields: Any) -> TargetedProbePerturbation:
    return TargetedProbePerturbation(sets=DATA, **fields)


def scr(**fields: Any) -> SpuriousCorrelationRemoval:
    return SpuriousCorrelationRemoval(concepts=DATA, cues=DATA.model_copy(update={"label": "cue"}), **fields)


def classed(labels: Sequence[int], test_share: float = 0.3) -> ClassedSet:
    """Texts `text 0`, `text 1`, …, with these classes."""
    found, why = ClassedSet.of("set", {f"text {n}": f"class {label}" for n, label in enumerate(labels)}, test_share)
    assert found is not None, why
    return found


def probes_for(texts: Erasable, given: ClassedSet) -> list[Probe]:
    train = ~given.test
    return [probe_of(texts.states[train], given.labels(n)[train]) for n in range(len(given.classes))]


# --- by hand --------------------------------------------------------------------------------------------------------


def tokens_by_hand(
    texts: int, rng: np.random.Generator, width: int = 12, d: int = 6
) -> tuple[list[Array], list[Array], Array]:
    """States [tokens, d] and sparse codes [tokens, width] of each text, and the decoder [width, d]."""
    lengths = rng.integers(1, 7, texts)
    codes = [rng.uniform(0, 1, (n, width)) * (rng.uniform(size=(n, width)) < 0.4) for n in lengths]
    rows = rng.normal(size=(width, d))
    return [c @ rows + rng.normal(size=(len(c), d)) for c in codes], codes, rows


def accuracy_by_hand(
    states: list[Array], codes: list[Array], rows: Array, probe: Probe, wanted: Labels, ablated: Sequence[int]
) -> tuple[float, float]:
    """(share of positives, share of negatives) that a probe is right on, when latents are taken from every token."""
    right: dict[bool, list[bool]] = {True: [], False: []}
    for text, (x, z) in enumerate(zip(states, codes, strict=True)):
        kept = [token - sum((z[t, i] * rows[i] for i in ablated), np.zeros(len(token))) for t, token in enumerate(x)]
        said = float(np.mean(kept, axis=0) @ probe.direction + probe.offset) > 0
        right[bool(wanted[text])].append(said == bool(wanted[text]))
    return float(np.mean(right[True])), float(np.mean(right[False]))


def order_by_hand(codes: list[Array], rows: Array, probe: Probe, labels: Labels, train: Labels) -> list[int]:
    means = np.array([z.mean(0) for z in codes])
    worth = [
        abs((means[train & labels, i].mean() - means[train & ~labels, i].mean()) * float(rows[i] @ probe.direction))
        for i in range(len(rows))
    ]
    return sorted(range(len(rows)), key=lambda i: -worth[i])


def pooled_by_hand(states: list[Array], codes: list[Array], rows: Array) -> Erasable:
    latents = csr_array(np.array([z.mean(0) for z in codes]))
    return Erasable(np.array([x.mean(0) for x in states]), latents, rows)


def test_drops_are_those_of_ablating_every_token_of_every_text() -> None:
    rng = np.random.default_rng(0)
    given = classed(rng.integers(0, 4, 240).tolist())
    states, codes, rows = tokens_by_hand(240, rng)
    texts = pooled_by_hand(states, codes, rows)
    probes = [Probe(rng.normal(size=6), float(rng.normal())) for _ in given.classes]
    found = drops(texts, given, probes, tpp(latents=(1, 3, 500)), np.random.default_rng(1))
    tested = np.flatnonzero(given.test)
    for own, probe in enumerate(probes):
        order = order_by_hand(codes, rows, probe, given.labels(own), ~given.test)
        assert not any("500" in name for name in found[own])
        for n in (1, 3):
            lost = []
            for other, judged in enumerate(probes):
                chosen = [states[t] for t in tested], [codes[t] for t in tested]
                wanted = given.labels(other)[tested]
                before, after = (
                    np.mean(accuracy_by_hand(*chosen, rows, judged, wanted, latents)) for latents in ([], order[:n])
                )
                lost.append(float(before - after))
            others = np.mean([lost[other] for other in range(len(probes)) if other != own])
            assert found[own][f"tpp.own_{n}"] == pytest.approx(lost[own], abs=1e-12)
            assert found[own][f"tpp.others_{n}"] == pytest.approx(others, abs=1e-12)
            assert found[own][f"tpp.score_{n}"] == pytest.approx(lost[own] - others, abs=1e-12)


def crossed(rows: Sequence[tuple[int, int]], **fields: Any) -> CrossedPair:
    concept: TextLabels = {folded_digest_of(f"text {n}"): (f"text {n}", str(a)) for n, (a, _) in enumerate(rows)}
    cue: TextLabels = {folded_digest_of(f"text {n}"): (f"text {n}", str(b)) for n, (_, b) in enumerate(rows)}
    found = CrossedPair.of("a × b", concept, cue, scr(**fields))
    assert isinstance(found, CrossedPair), found
    return found


def test_scores_are_shares_of_the_gap_by_hand() -> None:
    rng = np.random.default_rng(3)
    pair = crossed([(n % 2, n // 2 % 2) for n in range(400)])
    states, codes, rows = tokens_by_hand(len(pair.texts), rng)
    states = [
        x + 3.0 * pair.labels[0][t] * np.eye(6)[0] + 3.0 * pair.labels[1][t] * np.eye(6)[1]
        for t, x in enumerate(states)
    ]
    # The oracles read the labels; of the biased probes every other one is an oracle, so that nothing lies between them.
    oracle = {wanted: Probe(np.eye(6)[wanted], -1.5) for wanted in (0, 1)}
    biased = {(w, opposite): oracle[w] if opposite else Probe(rng.normal(size=6), 0.0) for w, opposite in TASKS}
    probes = CrossedProbes(biased, oracle, {number: Probe(rng.normal(size=6), 0.0) for number in (0, 1)})
    found, reasons = removal(
        pooled_by_hand(states, codes, rows), pair, probes, scr(latents=(2,)), np.random.default_rng(0)
    )
    tested = np.flatnonzero(pair.test)
    wanted_sum, tasks = 0.0, 0
    for wanted, opposite in TASKS:
        labels = pair.labels[wanted][tested]
        chosen = [states[t] for t in tested], [codes[t] for t in tested], rows
        spurious = pair.labels[1 - wanted]
        order = order_by_hand(codes, rows, probes.cue[1 - wanted], spurious, ~pair.test)
        judged = biased[wanted, opposite]
        base, ablated = (np.mean(accuracy_by_hand(*chosen, judged, labels, i)) for i in ([], order[:2]))
        best = np.mean(accuracy_by_hand(*chosen, oracle[wanted], labels, []))
        if best - base >= 0.05:
            wanted_sum, tasks = wanted_sum + float((ablated - base) / (best - base)), tasks + 1
    assert 0 < tasks < 4  # both branches were taken
    assert found["scr.count"] == tasks
    assert len(reasons) == 4 - tasks
    assert found["scr.score_2"] == pytest.approx(wanted_sum, abs=1e-9)


# --- known truths ---------------------------------------------------------------------------------------------------


def planted(labels: NDArray[np.int64], rng: np.random.Generator, width: int = 24, d: int = 16) -> Erasable:
    """Latent i fires on texts of class i alone, the others at random; their directions are orthogonal, and error is small."""
    codes = rng.uniform(0, 1, (len(labels), width)) * (rng.uniform(size=(len(labels), width)) < 0.3)
    classes = int(labels.max()) + 1
    codes[:, :classes] = 2.0 * (labels[:, None] == np.arange(classes))
    rows = np.zeros((width, d))
    rows[:classes, :classes] = np.eye(classes)
    rows[classes:, classes:] = rng.normal(size=(width - classes, d - classes)) / 4
    return Erasable(codes @ rows + 0.05 * rng.normal(size=(len(labels), d)), csr_array(codes), rows)


def test_one_latent_for_each_class_has_all_that_there_is() -> None:
    """Its own probe loses the positives, half of its balanced accuracy, and no other probe loses anything."""
    rng = np.random.default_rng(0)
    given = classed(rng.integers(0, 4, 400).tolist())
    texts = planted(given.numbers, rng)
    found = drops(texts, given, probes_for(texts, given), tpp(latents=(1,)), rng)
    for one in found:
        assert one["tpp.accuracy"] > 0.98
        assert one["tpp.own_1"] > 0.45
        assert one["tpp.score_1"] > 0.45
        assert abs(one["tpp.others_1"]) < 0.03
        assert abs(one["tpp.random_score_1"]) < 0.25
        assert 0.4 < one["tpp.direction_score"] <= 0.51


def test_random_labels_have_nothing_to_lose() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 4, 1200)
    texts = planted(numbers, rng)
    given = classed(rng.permutation(numbers).tolist())
    found = drops(texts, given, probes_for(texts, given), tpp(latents=(1, 5)), rng)
    assert np.mean([one["tpp.accuracy"] for one in found]) == pytest.approx(0.5, abs=0.05)
    for n in (1, 5):
        assert np.mean([one[f"tpp.score_{n}"] for one in found]) == pytest.approx(0, abs=0.05)


def trained(pair: CrossedPair, states: Array) -> CrossedProbes:
    """All probes of a pair, as the metric trains them."""
    tasks = [(pair.labels[wanted], pair.coinciding(opposite)) for wanted, opposite in TASKS]
    tasks += [(labels, part) for part in (pair.half, pair.train) for labels in pair.labels]
    made = [probe_of(states[part], labels[part]) for labels, part in tasks]
    return CrossedProbes(dict(zip(TASKS, made[:4], strict=True)), dict(enumerate(made[4:6])), dict(enumerate(made[6:])))


def test_ablating_the_cue_gives_back_what_it_cost() -> None:
    """Each value of either label has a latent, those of a label with opposite rows: without them nothing says the cue."""
    rng = np.random.default_rng(0)
    pair = crossed([(n % 2, n // 2 % 2) for n in range(1200)], texts=1200)
    codes = rng.uniform(0, 1, (len(pair.texts), 20)) * (rng.uniform(size=(len(pair.texts), 20)) < 0.3)
    codes[:, :4] = np.stack([pair.labels[0], ~pair.labels[0], pair.labels[1], ~pair.labels[1]], 1)
    rows = np.zeros((20, 12))
    rows[[0, 2], [0, 1]], rows[[1, 3], [0, 1]] = 1, -1
    rows[4:, 2:] = rng.normal(size=(16, 10)) / 4
    states = codes @ rows + 0.3 * rng.normal(size=(len(codes), 12))
    texts = Erasable(states, csr_array(codes), rows)
    found, reasons = removal(texts, pair, trained(pair, states), scr(latents=(2,)), rng)
    assert (found["scr.count"], reasons) == (4, [])
    assert found["scr.base_accuracy"] / 4 < 0.9
    assert found["scr.oracle_accuracy"] / 4 > 0.97
    assert 0.9 < found["scr.score_2"] / 4 <= 1.1
    assert 0.9 < found["scr.direction_score"] / 4 <= 1.1
    assert found["scr.random_score_2"] / 4 < 0.5


def test_labels_that_say_nothing_have_no_gap() -> None:
    """Random labels: the probe that is trained where they coincide is as good as that of all combinations, by chance."""
    rng = np.random.default_rng(0)
    pair = crossed([(n % 2, n // 2 % 2) for n in range(1200)], texts=1200)
    states, codes, rows = tokens_by_hand(len(pair.texts), rng)
    texts = pooled_by_hand(states, codes, rows)
    found, reasons = removal(texts, pair, trained(pair, texts.states), scr(latents=(2,), least_gap=0.2), rng)
    assert found == {}
    assert len(reasons) == 4


# --- which texts ----------------------------------------------------------------------------------------------------


def test_classes_of_few_texts_are_left_out_and_named() -> None:
    labels = {f"text {n}": "abc"[n % 3] for n in range(300)} | {f"more {n}": "d" for n in range(9)}
    found, why = ClassedSet.of("set", labels, 0.3)
    assert found is not None
    assert found.classes == ("a", "b", "c")
    assert len(found.texts) == 300
    assert why == ["set: d has too few texts"]
    assert [labels[text] for text in found.texts] == [found.classes[n] for n in found.numbers]
    two = {text: label for text, label in labels.items() if label != "c"}
    assert ClassedSet.of("set", two, 0.3) == (None, ["set has 2 classes of enough texts, of 3"])


def test_a_pair_has_equally_many_of_every_combination_in_both_halves() -> None:
    rng = np.random.default_rng(0)
    pair = crossed([(int(a < 0.3), int(b < 0.6)) for a, b in rng.uniform(size=(900, 2))], texts=400)
    for half in (pair.train, pair.test):
        counts = np.bincount(2 * pair.labels[0][half] + pair.labels[1][half], minlength=4)
        assert len(set(counts.tolist())) == 1
    assert len(pair.texts) <= 400
    as_they_are, opposite = pair.coinciding(False), pair.coinciding(True)
    assert (pair.labels[0] == pair.labels[1])[as_they_are].all()
    assert (pair.labels[0] != pair.labels[1])[opposite].all()
    assert abs(as_they_are.sum() - pair.half.sum()) <= 2
    assert not (pair.half & pair.test).any()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([(n % 3, n % 2) for n in range(300)], "a × b: 3 and 2 values of the labels"),
        ([(n % 2, n % 2) for n in range(300)], "a × b: 0 texts of a combination of labels"),
    ],
)
def test_pairs_that_cannot_be_crossed_say_why(rows: list[tuple[int, int]], words: str) -> None:
    concept, cue = (
        {folded_digest_of(f"text {n}"): (f"text {n}", str(row[side])) for n, row in enumerate(rows)} for side in (0, 1)
    )
    assert CrossedPair.of("a × b", concept, cue, scr()) == words


def test_balanced_accuracy_counts_both_sides_alike() -> None:
    labels = np.array([True] + [False] * 9)
    assert balanced_accuracy(np.zeros(10, dtype=bool), labels) == 0.5
    assert balanced_accuracy(labels, labels) == 1.0


def test_random_latents_are_those_that_fire() -> None:
    drawn = random_latents(np.array([3, 5, 9]), 2, np.random.default_rng(0))
    assert {int(n) for one in drawn for n in one} == {3, 5, 9}
    assert {len(one) for one in drawn} == {2}
    assert all(sorted(one) == [3, 5, 9] for one in random_latents(np.array([3, 5, 9]), 50, np.random.default_rng(0)))


# --- with a model ---------------------------------------------------------------------------------------------------

TEXTS = ("The old man walks to the river.", "A cat", "She gives three apples to her brother and one to me", "x")
SITE = Site(index=2)


@pytest.fixture(scope="module")
def pocket() -> Any:
    return PocketModel().load(Roots(Path()), torch.device("cpu"))


def topk(d_in: int) -> TopK:
    made = TopK(TopKOptions(width=48, k=4), d_in, torch.Generator().manual_seed(0))
    return made.eval()


def test_ablation_is_that_of_a_hook_on_the_running_model(pocket: Any) -> None:
    """The scores of ablated texts against the model run once more with the latents taken out of every token."""
    tokens = token_states(pocket, SITE, EVERY_TOKEN, TEXTS, DATA, "mean")
    sae = topk(tokens.states.shape[1])
    texts = erasable(tokens, sae, latents_written(sae))
    ablated = np.array([0, 3, 11, 12, 30, 41, 47])
    probe = Probe(np.random.default_rng(0).normal(size=sae.d_in), 0.25)
    (found,) = texts.scores([probe], np.ones(len(TEXTS), dtype=bool), ablated)
    assert np.abs(found - probe.scores(texts.states)).max() > 1e-3

    def without(module: Any, args: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        codes = sae.encode(states[0]).dense(sae.width)
        codes[:, [i for i in range(sae.width) if i not in ablated]] = 0
        changed = states - (codes @ sae.W_dec)[None]
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = pocket.model.get_submodule("model.layers.2").register_forward_hook(without)
    try:
        for text, score in zip(TEXTS, found, strict=True):
            ids = pocket.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
            ids = torch.cat([torch.tensor([[pocket.tokenizer.bos_token_id]]), ids], 1)[:, : DATA.context]
            with torch.no_grad():
                states = pocket.model(ids, output_hidden_states=True).hidden_states[3][0, 1:].double().mean(0).numpy()
            assert score == pytest.approx(probe.scores(states), abs=1e-4)
    finally:
        handle.remove()


def test_the_last_token_is_that_of_labelled_probing(pocket: Any) -> None:
    found = token_states(pocket, SITE, EVERY_TOKEN, TEXTS, DATA, "last")
    assert found.counts.tolist() == [1, 1, 1, 1]
    torch.testing.assert_close(
        found.states.float(), last_states(pocket, SITE, EVERY_TOKEN, TEXTS, LabelledProbing(sets=DATA))
    )


def test_texts_without_tokens_keep_their_place(pocket: Any) -> None:
    found = token_states(
        pocket, SITE, EVERY_TOKEN, ("A cat", "", "x"), DATA.model_copy(update={"prepend_bos": False}), "mean"
    )
    assert found.counts[1] == 0
    assert found.counts.sum() == len(found.states)


class Rescaling(TopK):
    """Writes twice what its rows say."""

    def decode(self, codes: Codes) -> torch.Tensor:
        return 2 * super().decode(codes)


class NoDictionary(SparseAutoencoder):
    """Has nothing to ablate."""

    width = d_in = 4

    def encode(self, x: torch.Tensor, budget: int | None = None) -> Codes:
        return Codes.from_dense(x)

    def decode(self, codes: Codes) -> torch.Tensor:
        return codes.dense(4)


def test_saes_that_do_not_add_up_rows_are_refused() -> None:
    sae = Rescaling(TopKOptions(width=48, k=4), 16, torch.Generator().manual_seed(0))
    with pytest.raises(InvalidInput, match="Rescaling does not add up its decoder rows"):
        latents_written(sae)
    with pytest.raises(InvalidInput, match="has no dictionary"):
        latents_written(NoDictionary())


def test_mean_states_and_codes_are_means_over_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    states, counts = torch.randn(11, 16, generator=generator), torch.tensor([4, 1, 6])
    sae = topk(16)
    texts = erasable(TokenStates(states, counts), sae, latents_written(sae))
    with torch.no_grad():
        codes = sae.encode(states).dense(48).double().numpy()
    for text, (start, stop) in enumerate([(0, 4), (4, 5), (5, 11)]):
        np.testing.assert_allclose(texts.states[text], states[start:stop].double().mean(0), atol=1e-12)
        np.testing.assert_allclose(texts.latents[[text]].todense()[0], codes[start:stop].mean(0), atol=1e-12)


# --- through the command line ---------------------------------------------------------------------------------------


def write_sets(bench: Workbench) -> None:
    """A file of three classes by words, one of two labels that cross, and one that cannot be used."""
    texts = random_words(400)
    begun = [text.split()[:12] for text in texts]  # what `context` leaves of them
    kinds = ["acid" if "acid" in words else "salt" if "salt" in words else "none" for words in begun]
    bench.write("sets/kinds.csv", "text,target\n" + "".join(f"{t},{k}\n" for t, k in zip(texts, kinds, strict=True)))
    marks = [f"{int('glass' in words)},{int('ore' in words)}" for words in begun]
    rows = [f"{text},{mark}\n" for text, mark in zip(texts, marks, strict=True)]
    bench.write("pairs/words.csv", "text,glass,ore\n" + "".join(rows))
    bench.write("sets/single.csv", "text,target\n" + "".join(f"{text},1\n" for text in texts))


KINDS = {"adapter": "files", "path": "sets/*.csv", "label": "target", "context": 16}
WORDS = {"adapter": "files", "path": "pairs/words.csv", "context": 16}
TPP = {"tpp": {"sets": KINDS, "latents": [2, 500]}}
SCR = {"scr": {"concepts": {**WORDS, "label": "glass"}, "cues": {**WORDS, "label": "ore"}, "latents": [2, 500], "least_gap": 0.001}}  # fmt: skip


def test_records_have_the_numbers_and_name_what_is_left_out(bench: Workbench, command: Any) -> None:
    write_sets(bench)
    bench.spec(metrics=["l0", TPP, SCR], matrix={"sae.k": [2, 4]})
    done = command("run", "mine")
    assert done.code == 0, done.err
    records = list(bench.records().values())
    assert len(records) == 2
    for record in records:
        numbers = {(n.id, n.params.get("latents")): n for n in record.metrics}
        kinds = numbers["tpp.score", 2]
        assert (kinds.domain, kinds.n, kinds.unit) == ("labelled_classes", 3, "difference")
        assert kinds.value == pytest.approx(numbers["tpp.own", 2].value - numbers["tpp.others", 2].value)
        assert numbers["tpp.score", 500].null_reason == "500 latents cannot be ablated of 32"
        assert "tpp: 1 sets or classes were left out: single has 1 classes of enough texts, of 1" in record.warnings
        words = numbers["scr.score", 2]
        assert (words.domain, words.n, words.unit) == ("labelled_pairs", 1, "fraction")
        assert numbers["scr.oracle_accuracy", None].value > numbers["scr.base_accuracy", None].value
        assert numbers["scr.random_score", 500].value is None
    fixed = {
        n.id: n.value
        for n in records[0].metrics
        if n.id in ("tpp.accuracy", "scr.base_accuracy", "tpp.direction_score")
    }
    assert fixed == {n.id: n.value for n in records[1].metrics if n.id in fixed}
    # The states of each metric's texts and their probes, once for both SAEs.
    assert len(list((bench.root / "results/store/objects/shared").glob("*/*"))) == 4


@pytest.mark.parametrize(
    ("metric", "line", "words"),
    [
        ({"tpp": {"sets": {**KINDS, "label": None}}}, "- tpp:", "no labels: name the column that holds them as `label`"),
        ({"tpp": {"sets": KINDS, "latents": [0]}}, "- 0", "tpp.latents[0]: input should be greater than 0"),
        ({"tpp": {"sets": KINDS, "pooling": "sum"}}, "pooling: sum", "tpp.pooling"),
        ({"tpp": {"sets": {**KINDS, "context": 9999}}}, "- tpp:", "sets.context: the model has positions for"),
        ({"scr": {**SCR["scr"], "cues": {**WORDS, "label": "ore", "context": 8}}}, "- scr:", "cues.context, cues.prepend_bos"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_at_its_line(
    bench: Workbench, command: Any, metric: dict[str, Any], line: str, words: str
) -> None:
    write_sets(bench)
    path = bench.spec(metrics=["l0", metric])
    done = command("validate", "mine")
    assert done.code == 2
    (said,) = [one for one in done.err.splitlines() if one.startswith("specs/mine.yaml:")]
    assert words in said
    number, column = map(int, said.split(":")[1:3])
    assert path.read_text().splitlines()[number - 1].strip() == line
    assert column > 1


def around(sae: SparseAutoencoder, root: Path) -> Any:
    """What a stage has of its surroundings before a model is needed."""
    return SimpleNamespace(sae=sae, device=torch.device("cpu"), roots=Roots(root), progress=lambda *args: None)


def test_where_no_set_can_be_used_the_cell_fails_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "single.csv").write_text("text,target,cue\n" + "".join(f"text {n},1,{n % 2}\n" for n in range(99)))
    told = "tpp: none of 1 sets can be used: single has 1 classes of enough texts, of 1"
    with pytest.raises(CellFailed, match=told):
        measure_tpp(tpp(), around(topk(16), tmp_path))
    with pytest.raises(
        CellFailed, match="scr: none of 1 pairs can be used: single × single: 1 and 2 values of the labels"
    ):
        measure_scr(scr(), around(topk(16), tmp_path))


def test_an_sae_without_a_dictionary_has_no_numbers_and_says_why(tmp_path: Path) -> None:
    for study, measure in ((tpp(), measure_tpp), (scr(), measure_scr)):
        values = measure(study, around(NoDictionary(), tmp_path)).values
        assert [value.id for value in values] == [number.id for number in study.numbers()]
        assert {value.null_reason for value in values} == {"NoDictionary has no dictionary"}
