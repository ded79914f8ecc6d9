"""Concepts against their definitions in float64: directions, AUROC, scores, edits, doses, and texts that are never shared."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from latentbench.concepts.detection import ConceptDetection
from latentbench.concepts.detection_study import detected, measure_concept_detection
from latentbench.concepts.directions import aurocs, first_component, mean_difference, probe_direction, telling_latent
from latentbench.concepts.kit import ConceptKit
from latentbench.concepts.making import make_concepts
from latentbench.concepts.options import Concepts
from latentbench.concepts.scores import (
    ConceptClassifier,
    distinct_pairs,
    fluency,
    harmonic_mean,
    judged,
    mean_losses,
    people_loss,
)
from latentbench.concepts.steering_metric import ConceptSteering
from latentbench.concepts.steering_study import measure_concept_steering
from latentbench.concepts.texts import Contrast, TextStates, concept_texts, token_states
from latentbench.concepts.training import orthonormal_rows
from latentbench.core.errors import CellFailed
from latentbench.core.paths import Roots
from latentbench.core.protocols import Judge, LanguageModel, Reply
from latentbench.core.sites import Site
from latentbench.interventions.changing import token_norms
from latentbench.interventions.intervention import Layout
from latentbench.interventions.reft import Reft, SubspaceEdit
from latentbench.metrics.value import MetricValue
from latentbench.metrics.values import metric_values
from latentbench.study.context import Content, StageContext
from latentbench.study.storage import from_content, to_content
from latentbench_adapters.datasets import FilesDataset
from tests.support.labs import RuleSAE
from tests.support.steering import WIDTH, lab, language_model

pytestmark = pytest.mark.usefixtures("one_thread")
LAYER = 1
WORDS = {"red": range(3, 43), "blue": range(43, 83)}
"""What the texts of each colour are made of."""
OPENINGS = tuple(f"w{i} w{i + 1}" for i in range(90, 110))


def written(draw: np.random.Generator, words: Sequence[int]) -> str:
    return " ".join(f"w{i}" for i in draw.choice(list(words), draw.integers(5, 14)))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled set of two colours."""
    folder, draw = tmp_path_factory.mktemp("colours"), np.random.default_rng(3)
    rows = [f"{written(draw, words)},{colour}" for _ in range(150) for colour, words in WORDS.items()]
    (folder / "colours.csv").write_text("\n".join(["text,target", *rows]) + "\n")
    return folder


def section(way: str, **fields: Any) -> Concepts:
    chosen = {colour: {"set": "colours", "label": colour} for colour in WORDS}
    adapter = {"steps": 30, "batch": 8, "tokens": 12, "learning_rate": 0.05}
    sets = FilesDataset(path="*.csv", label="target", context=16)
    read = {"way": way, "layer": LAYER, "texts": 24, "chosen": chosen, "adapter": adapter}
    return Concepts.model_validate({"sets": sets.plain(), **read, **fields})


class Neutral:
    """An evaluation domain."""

    documents, skip = 20, 0

    def read(self, roots: Any) -> Iterator[str]:
        draw = np.random.default_rng(5)
        return iter([written(draw, range(3, 110)) for _ in range(20)])

    def chosen_identity(self, roots: Any) -> Any:
        return "neutral"


class Named:
    """A model section."""

    def identity(self, roots: Any) -> Any:
        return {"hub": "owner/model"}


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    """A model that writes red words where hidden states point one way, and blue ones where they point the other way."""
    made = language_model("llama", torch.float32)
    colour = torch.nn.functional.normalize(torch.randn(WIDTH, generator=torch.Generator().manual_seed(9)), dim=0)
    model: Any = made.model
    for weight in {id(w): w for w in (model.model.embed_tokens.weight, model.lm_head.weight)}.values():
        weight.data[list(WORDS["red"])] += colour
        weight.data[list(WORDS["blue"])] -= colour
    model.model.norm.weight.data.fill_(1.0)
    return made


def surroundings(lm: LanguageModel, project: Path, **more: Any) -> StageContext:
    made = lab(lm, project)
    experiment = SimpleNamespace(
        model=Named(), dataset=SimpleNamespace(eval={"neutral": Neutral()}), token_rule=made.experiment.token_rule
    )
    return replace(made, experiment=experiment, **more)  # type: ignore[arg-type]


def kit_of(options: Concepts, context: StageContext) -> tuple[ConceptKit, Content]:
    content = make_concepts(options, context)
    return options.read(content, context), content


def states_of(lm: LanguageModel, text: str) -> Tensor:
    """[T, d] behind the block, by a hook of its own."""
    found: list[Tensor] = []
    block: Any = lm.model.model.layers[LAYER]
    handle = block.register_forward_hook(lambda module, args, output: found.append(output))
    lm.model(input_ids=torch.tensor([lm.tokenizer(text)["input_ids"]]))
    handle.remove()
    return (found[0][0] if isinstance(found[0], tuple) else found[0]).reshape(-1, WIDTH).double()


def test_the_parts_share_no_text_and_draws_differ(project: Path) -> None:
    texts = concept_texts(section("mean"), Roots(project))
    parts = [{*getattr(one, part).texts} for part in ("learn", "judge", "test") for one in texts.values()]
    red, blue = parts[0::2], parts[1::2]
    assert red == blue  # one against the rest, of the same texts
    assert all(not first & second for first, second in itertools.combinations(red, 2))
    learn = texts["red"].learn
    assert all(int(word[1:]) in WORDS["red"] for text in learn.positive for word in text.split())
    assert learn.drawn(9, 1) == learn.drawn(9, 1) != learn.drawn(9, 2)
    assert len(learn.drawn(10**6, 0).positive) == len(learn.drawn(10**6, 0).negative)


def test_a_concept_without_texts_is_told_with_the_labels_there_are(project: Path) -> None:
    lost = section("mean", chosen={"green": {"set": "colours", "label": "green"}})
    with pytest.raises(CellFailed, match=r"'green' has 0 texts .* labels blue, red"):
        concept_texts(lost, Roots(project))


def test_states_are_those_of_ordinary_tokens_whatever_the_batch(lm: LanguageModel, project: Path) -> None:
    texts = ["w3 w4 w5", "w6", "w7 w8 w9 w10 w11 w12", "w3"]
    found = token_states(surroundings(lm, project), section("mean"), texts)
    for number, text in enumerate(texts):
        expected = states_of(lm, text)
        torch.testing.assert_close(found.states[found.owner == number].double(), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.means()[number], expected.mean(0), rtol=1e-4, atol=1e-5)
    values = found.states.double() @ torch.arange(WIDTH).double()
    assert found.pooled_max(values[:, None])[2, 0] == values[found.owner == 2].max()


def planted(seed: int) -> tuple[Tensor, Any]:
    draw = torch.Generator().manual_seed(seed)
    labels = np.arange(60) < 30
    means = torch.randn(60, WIDTH, generator=draw, dtype=torch.float64)
    means[:30, 4] += 5 + torch.rand(30, generator=draw, dtype=torch.float64)
    return means, labels


def test_directions_are_what_their_definitions_give() -> None:
    means, labels = planted(0)
    x = means.numpy()
    np.testing.assert_allclose(mean_difference(means, labels), x[:30].mean(0) - x[30:].mean(0), rtol=1e-12)
    differences = x[:30] - x[30:]
    # The first right singular vector is the eigenvector of the largest eigenvalue of Dᵀ D.
    values, vectors = np.linalg.eigh(differences.T @ differences)
    component = vectors[:, values.argmax()]
    expected = component * (component @ differences.mean(0))
    np.testing.assert_allclose(first_component(means, labels), expected, rtol=1e-9, atol=1e-9)
    for made in (mean_difference, first_component, probe_direction):
        direction = made(means, labels)
        assert int(direction.abs().argmax()) == 4
        assert direction[4] > 0


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    draw = np.random.default_rng(0)
    scores, labels = draw.integers(0, 5, (14, 3)).astype(float), np.arange(14) % 3 == 0
    pairs = [
        [np.mean([(a > b) + 0.5 * (a == b) for a, b in itertools.product(column[labels], column[~labels])])]
        for column in scores.T
    ]
    np.testing.assert_allclose(aurocs(scores, labels), np.ravel(pairs), rtol=1e-12)
    with pytest.raises(CellFailed, match="AUROC"):
        aurocs(scores, np.ones(14, dtype=bool))


def test_detection_is_over_texts_and_over_tokens() -> None:
    owner = torch.tensor([0, 0, 1, 1, 2, 2, 3])
    states = TextStates(torch.zeros(7, WIDTH), owner, 4)
    values = torch.tensor([1.0, 5.0, 4.0, 4.0, 0.0, 4.5, 2.0], dtype=torch.float64)
    found = detected(states, values, np.array([True, True, False, False]))
    # By the largest: 5, 4 against 4.5, 2. By the mean: 3, 4 against 2.25, 2. By token: 1, 5, 4, 4 against 0, 4.5, 2.
    assert found == pytest.approx({"text_max": 3 / 4, "text_mean": 1.0, "token": 8 / 12})


def test_the_telling_latent_is_the_one_that_fires_on_the_concept(lm: LanguageModel, project: Path) -> None:
    context, options = surroundings(lm, project), section("latent")
    keys = torch.cat([states_of(lm, f"w{i}")[:1] for i in range(3, 83)]).float()
    fires_on = {2: range(40), 5: range(30)}  # of the words by number; latent 2 on all red ones, 5 on most

    def rules(tokens: Tensor, noise: Tensor) -> Tensor:
        return torch.stack([torch.tensor([float(int(t) in fires_on.get(n, ())) for t in tokens]) for n in range(8)], 1)

    alone = [f"w{i}" for i in range(3, 83)]
    states = token_states(context, options, alone)
    latent, auroc = telling_latent(states, np.arange(80) < 40, RuleSAE(8, rules, keys), context.device)
    assert (latent, auroc) == (2, 1.0)


def test_a_harmonic_mean_is_that_of_the_field_and_zero_where_one_is() -> None:
    from scipy.stats import hmean

    draw = np.random.default_rng(0)
    for count in (2, 3):
        scores = draw.uniform(0.01, 2, (count, 20))
        np.testing.assert_allclose(harmonic_mean(*scores), hmean(scores, axis=0), rtol=1e-12)
    np.testing.assert_array_equal(harmonic_mean(np.array([0.0, 2.0]), np.array([2.0, 2.0])), [0.0, 2.0])


def test_fluency_is_a_ratio_of_perplexities_and_falls_with_loops() -> None:
    losses = np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(fluency(losses, 2.0, np.ones(3)), [2.0, 2.0, 2 * np.exp(2.0) / np.exp(3.0)])
    np.testing.assert_allclose(fluency(losses, 2.0, np.full(3, 0.5))[:2], [1.0, 1.0])
    np.testing.assert_allclose(distinct_pairs([[1, 2, 1, 2, 1], [4, 5, 6], [7], []]), [2 / 4, 1, 1, 1])


def test_losses_are_those_of_the_texts_behind_their_openings(lm: LanguageModel) -> None:
    openings, texts = ["w3 w4", "w5 w6 w7"], [[8, 9, 10], [11]]
    found = mean_losses(lm, openings, texts)
    for opening, text, loss in zip(openings, texts, found, strict=True):
        ids = [*lm.tokenizer(opening)["input_ids"], *text]
        logits = lm.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        told = [-float(logits[len(ids) - len(text) - 1 + i, token]) for i, token in enumerate(text)]
        assert loss == pytest.approx(np.mean(told), rel=1e-5)


def test_what_people_write_is_read_behind_its_first_tokens(lm: LanguageModel) -> None:
    texts = ["w3 w4 w5 w6 w7 w8 w9 w10 w11", "w12 w13", "w14 w15 w16 w17 w18"]
    expected = mean_losses(lm, ["w3 w4 w5 w6", "w14 w15 w16 w17"], [[7, 8, 9], [18]]).mean()
    assert people_loss(lm, texts, 3) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt_neox", "gpt2"])
def test_an_edit_is_its_formula_on_every_architecture(name: str) -> None:
    lm, draw = language_model(name), torch.Generator().manual_seed(0)
    basis = orthonormal_rows(torch.randn(2, WIDTH, generator=draw, dtype=torch.float64))
    torch.testing.assert_close(basis @ basis.T, torch.eye(2, dtype=torch.float64))
    edit = SubspaceEdit(basis, torch.randn(2, WIDTH, generator=draw).double(), torch.randn(2, generator=draw).double())
    ids, blocks = torch.tensor([[5, 6, 7, 8]]), lm.model.base_model
    block: Any = next(getattr(blocks, part) for part in ("layers", "h") if hasattr(blocks, part))[LAYER]

    def plain(module: Any, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        moved = torch.stack(
            [h + 0.7 * edit.basis.T @ (edit.weight @ h + edit.bias - edit.basis @ h) for h in hidden.reshape(-1, WIDTH)]
        ).reshape(hidden.shape)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    handle = block.register_forward_hook(plain)
    expected = lm.model(input_ids=ids).logits
    handle.remove()
    with Reft(LAYER, edit, 0.7).applied(lm, Layout()) as receipt:
        found = lm.model(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert receipt.steered == 4
    assert not torch.allclose(found, lm.model(input_ids=ids).logits)


@pytest.mark.parametrize("way", ["mean", "pca", "probe", "random"])
def test_a_dose_is_the_mean_relative_size_of_the_change(way: str, lm: LanguageModel, project: Path) -> None:
    context = surroundings(lm, project)
    kit, _ = kit_of(section(way), context)
    ratios: list[Tensor] = []
    rows = list(Neutral().read(None))
    direction = kit.direction("red")
    assert direction is not None
    for intervention in (kit.at("red", 0.3), kit.like("red", torch.randn(WIDTH), 0.3)):
        ratios.clear()

        def note(site: Site, before: Tensor, after: Tensor, changed: Tensor) -> None:
            ratios.append(((after - before).norm(dim=-1) / token_norms(before))[changed])

        for text in rows:
            with intervention.applied(lm, Layout(watch=note)):
                lm.model(input_ids=torch.tensor([lm.tokenizer(text)["input_ids"]]))
        assert float(torch.cat(ratios).mean()) == pytest.approx(0.3, rel=1e-4)


@pytest.mark.parametrize("way", ["lora", "reft"])
def test_an_adapter_learns_its_texts_and_is_used_at_the_dose_asked_for(
    way: str, lm: LanguageModel, project: Path
) -> None:
    context, options = surroundings(lm, project), section(way)
    before = {name: parameter.clone() for name, parameter in lm.model.named_parameters()}
    kit, content = kit_of(options, context)
    again = make_concepts(options, context)
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in content.tensors.items())
    assert dict.fromkeys(before, True) == {
        name: torch.equal(parameter, before[name]) for name, parameter in lm.model.named_parameters()
    }
    for name, part in kit.parts.items():
        curve = part.meta["curve"]
        assert np.mean(curve[-5:]) < np.mean(curve[:2]) - 0.05, (name, curve)
        own = float(part.meta["dose"])
        assert kit.settings(name, (0.1, 0.2)) == tuple(sorted((0.1, 0.2, own)))
        ids = torch.tensor([[20, 60, 30, 70]])
        with kit.at(name, own / 500).applied(lm, Layout()) as small, torch.no_grad():
            lm.model(input_ids=ids)
        with kit.at(name, own / 1000).applied(lm, Layout()) as smaller, torch.no_grad():
            lm.model(input_ids=ids)
        assert smaller.relative_size == pytest.approx(small.relative_size / 2, rel=0.01)
        texts = [lm.tokenizer(text)["input_ids"] for text in list(Neutral().read(None))[:16]]
        sizes = []
        for row in texts:
            with kit.at(name, own / 500).applied(lm, Layout()) as one, torch.no_grad():
                lm.model(input_ids=torch.tensor([row]))
            sizes.append((one.relative_size, len(row)))
        mean = sum(size * length for size, length in sizes) / sum(length for _, length in sizes)
        assert mean == pytest.approx(own / 500, rel=0.01)


def numbers(study: Any, findings: Any) -> dict[str, MetricValue]:
    found = from_content(to_content(findings))
    return {value.id: value for value in metric_values([study], found.statistics, reasons=found.reasons)}


STUDY = ConceptSteering(openings=OPENINGS, doses=(0.3, 0.9), selection=6, prompts=12, tokens=10)


def measured(way: str, lm: LanguageModel, project: Path, study: ConceptSteering = STUDY, **fields: Any) -> Any:
    context = surroundings(lm, project)
    kit, _ = kit_of(section(way, **fields), context)
    return measure_concept_steering(study, replace(context, subject=lambda: kit))


def test_a_direction_turns_texts_to_its_concept_and_a_random_one_does_not(lm: LanguageModel, project: Path) -> None:
    found = {way: numbers(STUDY, measured(way, lm, project)) for way in ("mean", "random", "none")}
    gain = {way: values["concept_steering.gain"].value for way, values in found.items()}
    assert gain["none"] == 0
    assert gain["mean"] is not None
    assert gain["random"] is not None
    assert gain["mean"] > 0.2
    assert abs(gain["random"]) < gain["mean"] / 2
    assert found["none"]["concept_steering.over_random"].value is None
    assert "no dose" in (found["none"]["concept_steering.over_random"].null_reason or "")
    assert found["mean"]["concept_steering.classifier_accuracy"].value == 1.0


def test_numbers_are_means_over_concepts_of_means_over_texts(lm: LanguageModel, project: Path) -> None:
    findings = measured("mean", lm, project)
    found = numbers(STUDY, findings)
    each = {(v.id, v.params["concept"]): v for v in findings.values}
    for plain, one in (("score", "concept_score"), ("gain", "concept_gain")):
        values = [each[f"concept_steering.{one}", name].value for name in WORDS]
        assert found[f"concept_steering.{plain}"].value == pytest.approx(np.mean(values))
    interval = each["concept_steering.concept_gain", "red"].ci
    assert interval is not None
    assert interval.low < interval.high
    details = findings.details["concepts"]["red"]
    best = max(details["selection"], key=lambda entry: (entry["score"], -entry["dose"]))
    assert details["dose"] == best["dose"]
    assert not {*STUDY.choosing} & {*STUDY.measuring}


def test_a_prompt_stands_in_front_and_is_no_part_of_the_text(lm: LanguageModel, project: Path) -> None:
    kit, _ = kit_of(section("prompt", prompting={"text": "w3 {concept} ", "examples": 2}), surroundings(lm, project))
    learn = concept_texts(kit.options, Roots(project))["red"].learn
    leading = kit.leading("red")
    assert leading.endswith("w3 red ")
    assert leading.count("\n\n") == 2
    assert {*leading.split("\n\n")[:2]} <= {*learn.positive}
    assert kit.settings("red", (0.1,)) == (None,)


def test_detection_finds_held_out_texts_and_random_directions_do_not(lm: LanguageModel, project: Path) -> None:
    study, found = ConceptDetection(texts=30), {}
    for way in ("mean", "probe", "random", "lora"):
        context = surroundings(lm, project)
        kit, _ = kit_of(section(way), context)
        found[way] = numbers(study, measure_concept_detection(study, replace(context, subject=lambda kit=kit: kit)))
    for way in ("mean", "probe"):
        assert (found[way]["concept_detection.text_mean"].value or 0) > 0.9
        assert (found[way]["concept_detection.token"].value or 0) > 0.6
    assert found["lora"]["concept_detection.text_max"].value is None
    assert (found["random"]["concept_detection.text_mean"].value or 1) < 0.9


class Echo(Judge):
    """Says 2 of whatever holds a red word, and 1 of the rest; nothing of texts that begin with `silent`."""

    adapter: Literal["echo"] = "echo"

    def identity(self, roots: Roots) -> Any:
        return "echo"

    def chat(self, requests: Any, roots: Roots, cache: Path) -> Iterator[Reply]:
        for request in requests:
            text = request[-1]["content"].partition("<text>\n")[2].partition("\n</text>")[0]
            yield Reply("" if text.startswith("silent") else "Rating: 2 out of 2" if "w5" in text.split() else "1")


def test_a_judge_gives_three_scores_and_their_harmonic_mean(lm: LanguageModel, project: Path) -> None:
    context = surroundings(lm, project)
    found = judged(["w90"] * 3, ["w5 w90", "w90", "silent"], "red", Echo(), context)
    np.testing.assert_allclose(found["judged_score"], [2, 1, 0])
    np.testing.assert_allclose(found["judged_instruction"], [2, 1, 0])


def test_the_classifier_tells_its_texts(project: Path) -> None:
    texts = concept_texts(section("mean"), Roots(project))["red"]
    classifier = ConceptClassifier.trained(texts.judge)
    assert classifier.accuracy(texts.test) == 1.0
    assert classifier.accuracy(Contrast(texts.test.negative, texts.test.positive)) == 0.0
    assert classifier.probabilities([""]).shape == (1,)
