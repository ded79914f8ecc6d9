"""Doses: vectors as long as a dose asks for, and what `steering_dose` measures, against ratios computed token by token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from latentbench.activations.capture import hidden_states
from latentbench.core.errors import InvalidInput
from latentbench.core.sites import Site
from latentbench.core.token_rule import EVERY_TOKEN, TokenRule
from latentbench.interventions.changes import Use
from latentbench.interventions.injection import VectorInjection
from latentbench.interventions.intervention import Stack, Untouched
from latentbench.interventions.places import Places
from latentbench.interventions.vectors import SteeringVectors
from latentbench.steering.baselines import RandomMethod
from latentbench.steering.contrastive import ContrastiveMethod
from latentbench.steering.dose import SteeringDose
from latentbench.steering.dose_study import measure_dose
from latentbench.study.context import StageContext
from tests.support.labs import lab_of, random_texts
from tests.support.steering import lab, language_model

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["w3 w4 w5 w6", "w9 w8", "w20", "w7 w50 w51 w52 w53"]


class Texts:
    """An evaluation domain."""

    documents = len(TEXTS)

    def read(self, roots: Any) -> Any:
        return iter(TEXTS)


def surroundings(folder: Path, rule: TokenRule = EVERY_TOKEN) -> StageContext:
    experiment: Any = SimpleNamespace(
        model=SimpleNamespace(identity=lambda roots: {"hub": "a/b", "dtype": "float32"}),
        dataset=SimpleNamespace(eval={"lab": Texts()}),
        token_rule=rule,
    )
    return replace(lab(language_model("gpt_neox", torch.float32), folder), experiment=experiment)


@pytest.mark.parametrize(("multiple", "named"), [(None, ()), (1.1, ()), (None, ("w4", "w52"))], ids=str)
def test_vectors_are_as_long_as_the_dose_asks(tmp_path: Path, multiple: float | None, named: tuple[str, ...]) -> None:
    around = surroundings(tmp_path, TokenRule(multiple, named))
    plain = RandomMethod(norm=1.0, layers=(0, 2))
    method = plain.model_copy(update={"dose": -0.3})
    made = method.read(method.make(around), around)
    assert isinstance(made, VectorInjection)
    directions = plain.make(around).tensors
    for layer, delta in made.deltas.items():
        lengths = []
        for text in TEXTS:
            words = text.split()
            ids = torch.tensor([[int(word[1:]) for word in words]])
            states = hidden_states(around.model().model, [Site(index=layer)], ids)[Site(index=layer)][0].double()
            lengths += [float(h.norm()) for h, word in zip(states, words, strict=True) if word not in named]
        longest = float("inf") if multiple is None else multiple * float(torch.tensor(lengths).median())
        ratios = torch.tensor([float(delta.norm()) / length for length in lengths if length <= longest])
        assert (len(ratios) < len(lengths)) == (multiple is not None)
        assert float(ratios.mean()) == pytest.approx(0.3, rel=1e-5)
        torch.testing.assert_close(delta / delta.norm(), -directions[f"layer.{layer}"], rtol=1e-5, atol=1e-6)


def test_equal_doses_of_two_methods_are_equally_long(tmp_path: Path) -> None:
    """Other than equal relative scales: those are told by the texts that each method is made from."""
    around = surroundings(tmp_path)
    methods: list[Any] = [
        RandomMethod(norm=7.0, dose=0.2),
        ContrastiveMethod(positive=("w3 w4",), negative=("w9 w4",), dose=0.2),
    ]
    sizes = [[float(d.norm()) for d in m.read(m.make(around), around).deltas.values()] for m in methods]
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-5)
    with pytest.raises(InvalidInput, match="not known for layers"):
        methods[0].read(RandomMethod(norm=7.0).make(around), around)


def measured(tmp_path: Path, intervention: Any, rule: TokenRule) -> tuple[dict[str, Any], Any, StageContext]:
    made = lab_of(tmp_path, 4, lambda tokens, noise: torch.zeros(len(tokens), 4), texts=random_texts(12))
    experiment: Any = SimpleNamespace(dataset=made.experiment.dataset, token_rule=rule)
    context = replace(made, experiment=experiment, subject=lambda: intervention)
    found = measure_dose(SteeringDose(), context)
    return dict(found.statistics.get("lab", {})), found, context


VECTORS = SteeringVectors({0: torch.linspace(-1, 1, 32)})


def lengths_of(context: StageContext) -> tuple[Tensor, Tensor]:
    """Norms [documents, T] after block 0, and which tokens are no special ones."""
    tokens = context.tokens("lab")
    states = hidden_states(context.model().model, [Site(index=0)], tokens.ids)[Site(index=0)]
    return states.double().norm(dim=-1), tokens.ids > 2


@pytest.mark.parametrize("multiple", [None, 1.0])
def test_the_metric_is_the_mean_over_ordinary_tokens(tmp_path: Path, multiple: float | None) -> None:
    sums, found, context = measured(tmp_path, VectorInjection(VECTORS, 2.0), TokenRule(multiple))
    norms, ordinary = lengths_of(context)
    if multiple is not None:
        ordinary = ordinary & (norms <= norms[ordinary].median() * (1 + 1e-6))
    size = 2 * float(VECTORS.vectors[0].norm())
    expected = (size / norms * ordinary).sum(1)
    torch.testing.assert_close(torch.from_numpy(sums["steering_dose.ratio"]), expected, rtol=1e-5, atol=0)
    for name in ("changed", "tokens"):
        assert sums[f"steering_dose.{name}"].tolist() == ordinary.sum(1).tolist()
    assert sums["steering_dose.length"].sum() == pytest.approx(size * int(ordinary.sum()), rel=1e-5)
    assert found.details["receipt"]["dose"] == pytest.approx(float(expected.sum() / ordinary.sum()), rel=1e-5)
    assert found.details["receipt"]["steered"] > int(ordinary.sum())


def test_tokens_that_are_not_changed_do_not_thin_the_dose_out(tmp_path: Path) -> None:
    use = Use(Places(first=5))
    sums, _, context = measured(tmp_path, Stack([VectorInjection(VECTORS, use=use)]), EVERY_TOKEN)
    norms, ordinary = lengths_of(context)
    ordinary[:, 5:] = False
    expected = (float(VECTORS.vectors[0].norm()) / norms)[ordinary].mean()
    assert sums["steering_dose.ratio"].sum() / sums["steering_dose.changed"].sum() == pytest.approx(float(expected))
    assert sums["steering_dose.changed"].sum() == int(ordinary.sum()) < sums["steering_dose.tokens"].sum()


def test_what_changes_no_hidden_state_has_no_dose(tmp_path: Path) -> None:
    sums, found, _ = measured(tmp_path, Untouched(), EVERY_TOKEN)
    assert not sums
    assert set(found.reasons) == {f"steering_dose.{name}" for name in ("tokens", "changed", "ratio", "length")}
