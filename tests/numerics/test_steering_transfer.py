"""Vectors at other blocks and of other models: which goes where, how long it is, and how its effects are compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from latentbench.activations.capture import hidden_states
from latentbench.core.errors import InvalidInput, NotAvailable
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Point, Site
from latentbench.interventions.injection import VectorInjection, injecting
from latentbench.interventions.vectors import SteeringVectors
from latentbench.mechanism.passages import Passages
from latentbench.mechanism.transfer import mean_changes
from latentbench.steering.baselines import RandomMethod
from latentbench.steering.build import content_of, residual_norms
from latentbench.steering.transfer import TransferMethod
from latentbench.study.context import StageContext, SubjectHome
from tests.support.steering import LAYERS, WIDTH, lab, language_model

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["w3 w4 w5 w6", "w9 w8", "w7 w50 w51 w52"]
VECTORS = {layer: torch.randn(WIDTH, generator=torch.Generator().manual_seed(layer)) for layer in range(LAYERS)}


def moved(folder: Path, made: dict[int, torch.Tensor], place: Point = "resid_post") -> StageContext:
    """Surroundings in which vectors at some blocks of another model come to this one."""
    here, there = language_model("llama"), language_model("llama", seed=1)
    texts = SimpleNamespace(documents=len(TEXTS), read=lambda roots: iter(TEXTS))
    model = SimpleNamespace(identity=lambda roots: {"hub": "a/b"})
    home = SubjectHome(content_of(made, place=place), None, lambda: there)
    experiment: Any = SimpleNamespace(model=model, dataset=SimpleNamespace(eval={"lab": texts}))
    return replace(lab(here, folder), experiment=experiment, home=lambda: home)


def method(**options: Any) -> TransferMethod:
    return TransferMethod(vectors=RandomMethod(norm=1.0), **options)


def test_vectors_go_to_blocks_in_order_and_one_goes_to_all(tmp_path: Path) -> None:
    own, one = {0: VECTORS[0], 2: VECTORS[2]}, {1: VECTORS[1]}
    for made, layers, expected in (
        (own, "all", own),
        (own, (1, 2), {1: VECTORS[0], 2: VECTORS[2]}),
        (one, (0, -1), {0: VECTORS[1], 2: VECTORS[1]}),
    ):
        around = moved(tmp_path, made)
        found = method(layers=layers).read(method(layers=layers).make(around), around)
        assert isinstance(found, VectorInjection)
        assert found.vectors.layers == tuple(expected)
        assert all(torch.equal(found.vectors.vectors[layer], vector) for layer, vector in expected.items())
    with pytest.raises(InvalidInput, match="2 vectors cannot be added to 3 blocks"):
        method(layers=(0, 1, 2)).make(moved(tmp_path, own))


@pytest.mark.parametrize("place", ["resid_post", "attn_out"])
def test_norms_of_both_models_say_how_long_a_vector_is(place: Point, tmp_path: Path) -> None:
    around = moved(tmp_path, {0: VECTORS[0]}, place)
    made = method(layers=2, rescale="norms").make(around)
    here = residual_norms(around.model(), (2,), TEXTS, place)[2]
    there = residual_norms(around.home().model(), (0,), TEXTS, place)[0]
    torch.testing.assert_close(made.tensors["layer.2"], VECTORS[0] * here / there)
    assert made.meta["residual_norms"] == {"2": here}
    assert made.meta.get("place", "resid_post") == place
    assert abs(here / there - 1) > 0.01


def test_a_width_that_does_not_fit_and_a_cell_without_an_origin_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="made for another model"):
        method().make(moved(tmp_path, {0: torch.ones(WIDTH + 1)}))
    with pytest.raises(NotAvailable, match="not made from another one's"):
        method().make(lab(language_model("llama"), tmp_path))


def test_a_change_is_the_mean_over_the_tokens_that_predict_what_was_written() -> None:
    lm: LanguageModel = language_model("llama")
    rows, lengths = [[0, 5, 9, 30, 7, 11], [0, 8, 3]], [3, 2]
    ids = torch.tensor([row + [1] * (6 - len(row)) for row in rows])
    real = torch.arange(6)[None] < torch.tensor([[6], [3]])
    found = mean_changes(
        lm, VectorInjection(SteeringVectors({0: VECTORS[0]})), Passages(ids, real, torch.tensor(lengths))
    )
    last = Site(index=LAYERS - 1)
    for row, length, change in zip(rows, lengths, found, strict=True):
        alone = torch.tensor([row])
        plain = hidden_states(lm.model, [last], alone)[last][0]
        with injecting(lm.model, {0: VECTORS[0]}):
            steered = hidden_states(lm.model, [last], alone)[last][0]
        expected = (steered - plain)[length - 1 : len(row) - 1].mean(0)
        torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-5)
