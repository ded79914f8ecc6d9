"""Repeats in studies: one unit in what they find, and never on both sides of what they split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch

from latentbench.activations.tokens import EvalTokens, evaluation_tokens
from latentbench.autointerp.passes import EvaluationSetup
from latentbench.autointerp.questions import _distinct
from latentbench.autointerp.windows import Question, Window, check_disjoint
from latentbench.core.errors import CellFailed, LatentbenchError
from latentbench.core.paths import Roots
from latentbench.core.protocols import Problem, ProblemSet
from latentbench.core.token_rule import EVERY_TOKEN
from latentbench.flow.metrics import FlowAgreement, FlowDeactivation, FlowTransition
from latentbench.flow.steering_metric import FlowSteering
from latentbench.flow.steering_study import _halves, _planned
from latentbench.interventions.injection import VectorInjection
from latentbench.interventions.vectors import SteeringVectors
from latentbench.latents.sparse_probing import DOMAIN, SparseProbing
from latentbench.mechanism.metrics.ablations import FirstTokenTest
from latentbench.mechanism.metrics.output_tokens import TokenShift
from latentbench.study.context import StageContext
from latentbench.study.study import Findings
from tests.support import steering
from tests.support.flow_studies import pocket, studying
from tests.support.labs import CONTEXT, VOCABULARY, fires_on, lab_of, random_texts, token_sets

pytestmark = pytest.mark.usefixtures("one_thread")


def twice(tokens: EvalTokens) -> EvalTokens:
    """Every document and then, side by side with it, the same one again."""
    order = torch.arange(len(tokens.ids)).repeat_interleave(2)
    digests = tuple(tokens.digests[i] for i in order.tolist())
    return EvalTokens(tokens.ids[order], tokens.lengths[order], digests, 0)


# -- flow ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[StageContext, StageContext]]:
    """A lab, and the same with every document twice."""
    with torch.no_grad():
        lab = studying(pocket(), tmp_path_factory.mktemp("lab"))
        doubled = {name: twice(lab.tokens(name)) for name in ("general", "chemistry")}
        yield lab, replace(lab, tokens=doubled.__getitem__)


@pytest.mark.parametrize("study", [FlowAgreement(minimum=3), FlowTransition()], ids=lambda study: study.metric)
def test_flow_over_documents_that_are_there_twice(flow: tuple[StageContext, StageContext], study: Any) -> None:
    once, again = (study.run(lab).summed() for lab in flow)
    for domain, named in once.items():
        for name, values in named.items():
            # What a transition carries is divided by the variance of all documents, which is twice as large too.
            times = 2 if study.metric == "flow_agreement" else 1
            np.testing.assert_allclose(again[domain][name], times * values, rtol=1e-4, atol=1e-9, err_msg=name)


def test_documents_that_were_not_looked_at_are_no_units(flow: tuple[StageContext, StageContext]) -> None:
    found = FlowDeactivation(documents=7, tokens=1, latents=2).run(flow[1])
    assert found.units["general"].numbers.tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert {len(values) for values in found.summed()["general"].values()} == {4}


def test_steered_texts_of_one_document_are_one_and_none_is_on_both_sides(
    flow: tuple[StageContext, StageContext],
) -> None:
    lab = flow[1]
    halves = _halves(lab, lab.tokens("general"))
    train, test = ({row.tobytes() for row in half.ids.numpy()} for half in (halves.train, halves.test))
    assert (len(train), len(test), train & test) == (6, 6, set())
    assert halves.units.numbers.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    once = _halves(flow[0], flow[0].tokens("general"))  # where nothing repeats, every second document
    assert torch.equal(once.train.ids, flow[0].tokens("general").ids[0::2])
    study = FlowSteering(target="chemistry", start="general", prompts=5, prompt_tokens=4, tokens=4, select=1)
    assert _planned(study, lab).units.numbers.tolist() == [0, 0, 1, 1, 2]


# -- probing and autointerp ------------------------------------------------------------------------------------------


def probed(folder: Path, texts: dict[str, list[str]]) -> Findings:
    """Sparse probing where latents 0 to 3 fire on some words."""
    lab = lab_of(folder, 8, fires_on(token_sets(8, 12)))
    made = {name: evaluation_tokens(part, lab.tokenizer(), context=CONTEXT) for name, part in texts.items()}
    experiment: Any = SimpleNamespace(dataset=SimpleNamespace(eval=dict.fromkeys(made)), token_rule=EVERY_TOKEN)
    return SparseProbing(k=(2,)).run(replace(lab, experiment=experiment, tokens=made.__getitem__))


def halves_of_words(count: int) -> dict[str, list[str]]:
    """Documents of lower words in one domain, of higher ones in the other."""
    middle = VOCABULARY // 2
    return {
        name: [
            " ".join(w for w in text.split() if (int(w[1:]) < middle) == low) for text in random_texts(count, seed=9)
        ]
        for name, low in (("low", True), ("high", False))
    }


def test_copies_are_held_out_together_and_count_as_one(tmp_path: Path) -> None:
    texts = halves_of_words(30)
    once, copies = (probed(tmp_path, {name: part * times for name, part in texts.items()}) for times in (1, 2))
    for name, values in once.statistics[DOMAIN].items():
        np.testing.assert_allclose(copies.summed()[DOMAIN][name], values, rtol=1e-9, err_msg=name)


def test_a_document_with_other_white_space_is_held_out_with_its_original(tmp_path: Path) -> None:
    texts = halves_of_words(30)
    again = {name: [*part, *(f" {text}\n".replace(" ", "  ") for text in part)] for name, part in texts.items()}
    units = probed(tmp_path, again).units[DOMAIN]
    assert set(np.bincount(units.numbers)) == {2}
    assert 20 <= len(units) <= 40


def test_a_document_of_two_domains_is_one(tmp_path: Path) -> None:
    texts = halves_of_words(30)
    shared = random_texts(6, seed=4)
    found = probed(tmp_path, {name: [*part, *shared] for name, part in texts.items()})
    assert 0 < found.units[DOMAIN].repeats <= 6
    plain = probed(tmp_path, {**texts, "low": [*texts["low"], *shared]})
    assert plain.units[DOMAIN].repeats == 0


def test_copies_of_too_few_documents_are_too_few_documents(tmp_path: Path) -> None:
    with pytest.raises(CellFailed, match="too few documents: 6,"):
        probed(tmp_path, {name: part * 10 for name, part in halves_of_words(6).items()})


def test_examples_and_questions_are_of_different_documents_up_to_white_space(tmp_path: Path) -> None:
    texts = random_texts(20)
    spaced = [text.replace(" ", "\n\n") for text in texts]
    lab = lab_of(tmp_path, 4, fires_on(token_sets(4)), [*texts, *spaced])
    protocol: Any = SimpleNamespace(window=9)
    sides = EvaluationSetup.of(lab, protocol, "lab").sides
    assert sides[:20].tolist() == sides[20:].tolist()
    assert sides[:20].sum() == 10
    plain = lab_of(tmp_path, 4, fires_on(token_sets(4)), texts)
    assert set(EvaluationSetup.of(plain, protocol, "lab").sides.tolist()) == {0, 1}


def window(text: str, document: int) -> Window:
    tokens = tuple(f" {word}" for word in text.split(" "))
    return Window(tokens, (1.0,) * len(tokens), document, 0)


def test_windows_that_differ_in_white_space_are_one_example() -> None:
    seen, spaced = window("a b c", 1), window("a \n b  c", 2)
    assert (seen.text != spaced.text, seen.words) == (True, spaced.words)
    assert _distinct([seen, spaced, window("d", 3)], set(), 3) == [seen, window("d", 3)]
    with pytest.raises(LatentbenchError, match="both the explainer's examples and the"):
        check_disjoint([seen], [Question(spaced, True)])


# -- problems --------------------------------------------------------------------------------------------------------


class Repeating(ProblemSet):
    """Five prompts, over and over, every other time with more space."""

    adapter: Literal["repeating"] = "repeating"

    def identity(self, roots: Roots) -> Any:
        return "repeating"

    def problems(self, roots: Roots) -> Iterator[Problem]:
        for i in range(40):
            yield Problem(f"w{3 + i % 5}{' ' * (1 + i // 5 % 2)}w9", str(i % 5))


@pytest.mark.parametrize("kind", [TokenShift, FirstTokenTest], ids=lambda kind: kind.__name__)
def test_a_prompt_that_is_asked_again_is_one_problem(tmp_path: Path, kind: Any) -> None:
    section = {"problems_from": {"adapter": "pocket", "split": "train"}, "prompts": 12, "new_tokens": 4}
    study = kind.model_validate(section).model_copy(update={"problems_from": Repeating()})
    vectors = SteeringVectors({1: torch.randn(steering.WIDTH, generator=torch.Generator().manual_seed(1))})
    lab = replace(steering.lab(steering.language_model("llama"), tmp_path), subject=lambda: VectorInjection(vectors))
    found = study.run(lab)
    (units,) = found.units.values()
    assert units.numbers.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert all(len(values) == 5 for named in found.summed().values() for values in named.values())
