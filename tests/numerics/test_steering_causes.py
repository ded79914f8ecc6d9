"""First token and pairs of layers as studies: what is appended, and vectors that were trained one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from latentbench.core.errors import InvalidInput
from latentbench.interventions.generation import prompt_ids
from latentbench.interventions.injection import VectorInjection
from latentbench.interventions.intervention import Intervention, Stack, Untouched
from latentbench.interventions.rollouts import Sampling, answers
from latentbench.interventions.vectors import SteeringVectors
from latentbench.mechanism import ablations
from latentbench.mechanism.ablations import shared_gain
from latentbench.mechanism.metrics.ablations import FirstTokenTest, LayerPairs
from latentbench.mechanism.metrics.study import DOMAIN, vector_problems
from latentbench.mechanism.passages import injection_of
from latentbench.steering.baselines import NoSteering, PrefixMethod, RandomMethod, StackMethod
from latentbench.steering.capability_cost import CapabilityCost
from latentbench.steering.grading import grader
from latentbench.steering.optimised import LoraMethod, RlMethod
from latentbench_adapters.pocket.adapter import PocketProblems
from tests.support.steering import WIDTH, WordProblems, lab, language_model

pytestmark = pytest.mark.usefixtures("one_thread")


def vectors(layer: int, size: float = 1.0) -> SteeringVectors:
    return SteeringVectors({layer: size * torch.randn(WIDTH, generator=torch.Generator().manual_seed(layer))})


def study(kind: Any, **options: Any) -> Any:
    section = {"problems_from": {"adapter": "pocket", "split": "train"}, "prompts": 4, "new_tokens": 4, **options}
    return kind.model_validate(section).model_copy(update={"problems_from": WordProblems()})


def around(folder: Path, subject: Intervention) -> Any:
    return replace(lab(language_model("llama"), folder), subject=lambda: subject)


def test_an_ending_is_appended_as_tokens_whatever_its_text_would_become() -> None:
    lm = language_model("llama")
    odd = lm.tokenizer.unk_token_id if lm.tokenizer.unk_token_id is not None else 1
    for token in (5, odd):
        (row,) = prompt_ids(lm, ["w4 w9"])
        (ended,) = answers(lm, ["w4 w9"], Sampling(4), ending=(token,))
        with torch.no_grad():
            expected = lm.model(input_ids=torch.tensor([[*row, token]])).logits[0, -1].argmax()
        assert ended.ids[0] == expected
    assert lm.tokenizer("w4 w9" + lm.tokenizer.decode([5]))["input_ids"] != [*row, 5]  # joined to the word before


def test_the_first_token_test_appends_the_token_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endings = []

    def watched(*args: Any, ending: Any = (), **more: Any) -> Any:
        endings.append(tuple(ending))
        return answers(*args, ending=ending, **more)

    monkeypatch.setattr(ablations, "answers", watched)
    found = study(FirstTokenTest).run(around(tmp_path, VectorInjection(vectors(1))))
    assert [len(ending) for ending in endings] == [0, 0, 1]
    assert found.details["token"] == language_model("llama").tokenizer.decode(list(endings[2]))


def test_stated_texts_are_appended_as_their_own_tokens_beside_the_boosted_one(tmp_path: Path) -> None:
    metric, made = study(FirstTokenTest, texts=["w5", "w9 w7"]), around(tmp_path, VectorInjection(vectors(1)))
    found, lm = metric.run(made), made.model()
    statistics = found.statistics[DOMAIN]
    right = grader("number")
    for place, (text, ending) in enumerate((("w5", [5]), ("w9 w7", [9, 7]))):
        written = answers(lm, [problem.prompt for problem in metric.asked(made)], Sampling(4), ending=ending)
        expected = [float(right(a.text, p.answer)) for a, p in zip(written, metric.asked(made), strict=True)]
        assert statistics[f"first_token_test.stated[{place}]"].tolist() == expected
        assert found.details["stated"][text] == pytest.approx(sum(expected) / 4)
    # Every number can be made of what was found, and is told apart by its text.
    numbers = metric.numbers()
    assert len({(number.id, number.params.get("text")) for number in numbers}) == len(numbers) == 4 + 2 * 2
    assert {name for number in numbers for name in number.inputs} <= statistics.keys()
    asked = {name: np.full(2, value) for name, value in (("base", 1.0), ("steered", 5.0), ("stated[0]", 4.0))}
    (recovered,) = (n for n in numbers if n.id.endswith("stated_recovered") and n.params == {"text": "w5"})
    assert recovered.formula(*(asked[name.partition(".")[2]] for name in recovered.inputs)).tolist() == [0.75, 0.75]


def test_a_text_without_tokens_is_refused_and_none_is_named_twice(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="makes no token of the text '  '; state another"):
        study(FirstTokenTest, texts=["  "]).run(around(tmp_path, VectorInjection(vectors(1))))
    with pytest.raises(ValidationError, match="names a text twice"):
        study(FirstTokenTest, texts=["w5", "w5"])
    assert "texts" not in FirstTokenTest.model_validate({"problems_from": {"adapter": "pocket"}}).plain()


def test_pairs_may_be_of_vectors_that_were_trained_one_by_one(tmp_path: Path) -> None:
    stack = Stack([VectorInjection(vectors(0), 0.5), VectorInjection(vectors(2), 2.0)])
    joint = VectorInjection(SteeringVectors({0: 0.5 * vectors(0).vectors[0], 2: 2.0 * vectors(2).vectors[2]}))
    apart, together = (study(LayerPairs).run(around(tmp_path, subject)).details for subject in (stack, joint))
    assert apart == together
    assert [single["layer"] for single in apart["alone"]] == [0, 2]


@pytest.mark.parametrize(
    ("both", "alone", "together", "gain"),
    [
        (0.6, (0.5, 0.2), 0.7, 0.5),
        (0.4, (0.5, 0.2), 0.7, -0.5),
        (0.9, (0.5, 0.8), 0.8, None),
        (0.6, (1.0, 0.9), 0.2, None),
    ],
)
def test_a_gain_is_shared_only_where_there_is_one(
    both: float, alone: tuple[float, float], together: float, gain: float | None
) -> None:
    assert shared_gain(both, *alone, together) == pytest.approx(gain)


def test_one_layer_alone_has_no_pairs(tmp_path: Path) -> None:
    found = {v.id: v for v in study(LayerPairs).run(around(tmp_path, VectorInjection(vectors(1)))).values}
    for name in ("mean_gain", "best_pair"):
        value = found[f"layer_pairs.{name}"]
        assert (value.value, value.null_reason) == (None, "there are no two layers with vectors")
    assert found["layer_pairs.best_alone"].value == found["layer_pairs.together"].value


def test_vectors_of_a_stack_are_summed_by_layer(tmp_path: Path) -> None:
    stack = Stack([VectorInjection(vectors(1)), VectorInjection(vectors(1), 2.0), VectorInjection(vectors(0))])
    made = injection_of(around(tmp_path, stack))
    assert made.vectors.layers == (0, 1)
    torch.testing.assert_close(made.deltas[1], 3 * vectors(1).vectors[1])
    with pytest.raises(InvalidInput, match="adds no vectors"):
        injection_of(around(tmp_path, Stack([VectorInjection(vectors(1)), Untouched("x")])))


RL = RlMethod(problems=PocketProblems())
LORA = LoraMethod(problems=PocketProblems())


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ((RL, RandomMethod(norm=1.0)), ()),
        ((RL, RandomMethod(norm=1.0, scope="first")), ("scope",)),
        ((RL, LORA), ("'lora' adds none",)),
        ((RL, StackMethod(parts=(RL, PrefixMethod(text=" So")))), ("'prefix' adds none",)),
    ],
)
def test_stacks_without_one_mechanism_are_refused_before_training(parts: Any, said: tuple[str, ...]) -> None:
    experiment: Any = SimpleNamespace(steering=StackMethod(parts=parts))
    found = vector_problems("logit_lens", experiment)
    assert len(found) == len(said)
    assert all(part in text for part, text in zip(said, found, strict=True))


def test_a_sweep_of_scales_is_for_vectors() -> None:
    asked: Any = CapabilityCost(scales=(0.5, 1.0))
    for method, problems in ((LORA, 1), (PrefixMethod(text=" So"), 1), (NoSteering(), 1), (RL, 0)):
        experiment = SimpleNamespace(steering=method)
        assert len(asked.problems_in(experiment, None)) == problems
        assert CapabilityCost().problems_in(experiment, None) == ()  # type: ignore[arg-type]
