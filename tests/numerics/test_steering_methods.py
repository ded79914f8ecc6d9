"""Vectors that are found or made without training: against what their definitions give."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from latentbench.core.errors import InvalidInput, NotAvailable, RefusedFile
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Site
from latentbench.interventions.injection import VectorInjection
from latentbench.interventions.intervention import Stack, Untouched
from latentbench.interventions.vectors import SteeringVectors, write_vectors
from latentbench.steering.baselines import LoadMethod, NoSteering, PrefixMethod, RandomMethod, StackMethod
from latentbench.steering.build import residual_norms, vectors_of, width_of
from latentbench.steering.computed_vectors import direction_of
from latentbench.steering.contrastive import ContrastiveMethod, SaeLatentMethod
from latentbench.study.context import Content, StageContext
from tests.support.labs import RuleSAE
from tests.support.steering import LAYERS, WIDTH, WordProblems, lab, language_model

pytestmark = pytest.mark.usefixtures("one_thread")

POSITIVE, NEGATIVE = ("w3 w4 w5", "w6"), ("w7 w8", "w9 w10 w11")
TEXTS = ["w3 w4 w5 w6", "w9 w8", "w20"]


class Texts:
    """An evaluation domain."""

    documents = 3

    def read(self, roots: Any) -> Any:
        return iter(TEXTS)

    def identity(self, roots: Any) -> Any:
        return "texts"


class Named:
    """A model section."""

    def __init__(self, revision: str = "a") -> None:
        self.revision = revision

    def identity(self, roots: Any) -> Any:
        return {"hub": "owner/model", "revision": self.revision, "dtype": "float64"}


@pytest.fixture
def lm() -> LanguageModel:
    return language_model("gpt_neox")


def surroundings(lm: LanguageModel, folder: Path, revision: str = "a", texts: bool = True) -> StageContext:
    made = lab(lm, folder)
    experiment: Any = SimpleNamespace(
        model=Named(revision), dataset=SimpleNamespace(eval={"lab": Texts()} if texts else {})
    )
    return replace(made, experiment=experiment)


def state(lm: LanguageModel, text: str, layer: int) -> Tensor:
    """[T, d] of one text, by transformers' own hidden states; the last of those is behind the final norm."""
    found: list[Tensor] = []
    block: Any = lm.model.gpt_neox.layers[layer]
    handle = block.register_forward_hook(
        lambda module, args, output: found.append(output[0] if isinstance(output, tuple) else output)
    )
    lm.model(input_ids=torch.tensor([[int(word[1:]) for word in text.split()]]))
    handle.remove()
    return found[0].reshape(-1, WIDTH)


def injection(method: Any, content: Content, surroundings: StageContext) -> VectorInjection:
    made = method.read(content, surroundings)
    assert isinstance(made, VectorInjection)
    return made


@pytest.mark.parametrize("token", ["last", "mean"])
def test_contrastive_is_the_difference_of_means(lm: LanguageModel, tmp_path: Path, token: Any) -> None:
    method = ContrastiveMethod(positive=POSITIVE, negative=NEGATIVE, token=token, layers=(0, -1))
    made = injection(method, method.make(surroundings(lm, tmp_path)), surroundings(lm, tmp_path))
    assert made.vectors.layers == (0, LAYERS - 1)

    def of(texts: tuple[str, ...], layer: int) -> Tensor:
        states = [state(lm, text, layer) for text in texts]
        # The first token is left out of means, unless it is the only one: its state is unlike all others.
        return torch.stack([s[-1] if token == "last" else s[1:].mean(0) if len(s) > 1 else s[0] for s in states]).mean(
            0
        )

    for layer, vector in made.vectors.vectors.items():
        expected = (of(POSITIVE, layer) - of(NEGATIVE, layer)).float()
        torch.testing.assert_close(vector, expected, rtol=1e-5, atol=1e-6)


def test_contrastive_pairs_prompts_with_continuations(lm: LanguageModel, tmp_path: Path) -> None:
    method = ContrastiveMethod(positive=(" w3",), negative=(" w4",), prompts=5, layers=1)
    method = method.model_copy(update={"problems": WordProblems()})
    made = method.make(surroundings(lm, tmp_path))
    prompts = [problem.prompt for problem in WordProblems().problems(surroundings(lm, tmp_path).roots)][:5]
    ends = [torch.stack([state(lm, prompt + end, 1)[-1] for prompt in prompts]).mean(0) for end in (" w3", " w4")]
    torch.testing.assert_close(made.tensors["layer.1"], (ends[0] - ends[1]).float(), rtol=1e-5, atol=1e-6)
    assert made.meta["pairs"] == 5


def test_pca_is_the_first_direction_of_the_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(WIDTH, generator=generator), dim=0)
    sizes = 3 + torch.rand(50, generator=generator)
    pairs = sizes[:, None] * direction + 0.01 * torch.randn(50, WIDTH, generator=generator)
    for sign in (1, -1):
        expected = sign * sizes.mean() * direction
        torch.testing.assert_close(direction_of(sign * pairs, "pca"), expected, atol=0.02, rtol=0.02)


def test_residual_norms_are_means_over_tokens(lm: LanguageModel) -> None:
    norms = residual_norms(lm, (0, 2), TEXTS)
    for layer, norm in norms.items():
        states = [state(lm, text, layer) for text in TEXTS]
        per_token = torch.cat([(s[1:] if len(s) > 1 else s).norm(dim=-1) for s in states])
        assert norm == pytest.approx(float(per_token.mean()), rel=1e-9)


def test_random_vectors_have_the_norm_asked_for(lm: LanguageModel, tmp_path: Path) -> None:
    around = surroundings(lm, tmp_path)
    by_number = RandomMethod(norm=2.5).make(around).tensors
    assert [float(v.norm()) for v in by_number.values()] == pytest.approx([2.5] * LAYERS)
    by_layer = RandomMethod(norm=(1.0, 3.0), layers=(0, 2)).make(around).tensors
    assert [float(v.norm()) for v in by_layer.values()] == pytest.approx([1.0, 3.0])
    made = RandomMethod(like=0.1).make(around)
    sizes = [float(v.norm()) for v in made.tensors.values()]
    assert sizes == pytest.approx([0.1 * norm for norm in made.meta["residual_norms"].values()])
    again, other = (
        RandomMethod(norm=2.5).make(around).tensors,
        RandomMethod(norm=2.5).make(replace(around, key="x")).tensors,
    )
    assert torch.equal(again["layer.0"], by_number["layer.0"])
    assert not torch.equal(other["layer.0"], by_number["layer.0"])
    with pytest.raises(InvalidInput, match="2 norms for 3 layers"):
        RandomMethod(norm=(1.0, 2.0)).make(around)
    with pytest.raises(InvalidInput, match="dataset"):
        RandomMethod(like=0.1).make(surroundings(lm, tmp_path, texts=False))


def test_relative_scales_use_the_norms_that_were_measured(lm: LanguageModel, tmp_path: Path) -> None:
    around = surroundings(lm, tmp_path)
    method = RandomMethod(norm=7.0, relative=True, scale=0.2)
    deltas = injection(method, made := method.make(around), around).deltas
    expected = [0.2 * norm for norm in made.meta["residual_norms"].values()]
    assert [float(delta.norm()) for delta in deltas.values()] == pytest.approx(expected)


def test_an_sae_latent_is_its_decoder_direction(lm: LanguageModel, tmp_path: Path) -> None:
    sae = RuleSAE(6, lambda ids, noise: ids, torch.zeros(3, WIDTH))
    for site, layer in ((Site(index=1), 1), (Site(index=1, point="resid_pre"), 0), (Site(index=2, point="mlp_out"), 2)):
        around = replace(surroundings(lm, tmp_path), saes=lambda site=site: {site: sae})
        made = SaeLatentMethod(latent=4).make(around).tensors
        row = sae.decoder_rows()[4]
        torch.testing.assert_close(made, {f"layer.{layer}": row / row.norm()})
        with pytest.raises(InvalidInput, match="no latent 6"):
            SaeLatentMethod(latent=6).make(around)
    with pytest.raises(InvalidInput, match="one SAE"):
        SaeLatentMethod(latent=0).make(surroundings(lm, tmp_path))


def test_a_loaded_vector_must_be_of_this_model(lm: LanguageModel, tmp_path: Path) -> None:
    tag = {"hub": "owner/model", "revision": "a"}
    SteeringVectors({0: torch.ones(WIDTH), 2: torch.ones(WIDTH)}, tag).save(tmp_path / "v.safetensors")
    around = surroundings(lm, tmp_path)
    made = LoadMethod(path="v.safetensors").make(around)
    assert made.tensors.keys() == {"layer.0", "layer.2"}
    assert LoadMethod(path="v.safetensors", layers=-1).make(around).tensors.keys() == {"layer.2"}
    other = surroundings(lm, tmp_path, revision="b")
    with pytest.raises(RefusedFile, match="another model or revision"):
        LoadMethod(path="v.safetensors").make(other)
    carried = LoadMethod(path="v.safetensors", other_model=True).make(other)
    assert carried.tensors.keys() == made.tensors.keys()
    assert vectors_of(carried, other).model == tag  # exported again, they still say whose they are
    with pytest.raises(InvalidInput, match="no steering vector for layers"):
        LoadMethod(path="v.safetensors", layers=1).make(around)
    write_vectors(SteeringVectors({0: torch.ones(WIDTH + 1)}), tmp_path / "wide.gguf")
    with pytest.raises(InvalidInput, match="17 wide"):
        LoadMethod(path="wide.gguf").make(around)
    with pytest.raises(NotAvailable, match="no file"):
        LoadMethod(path="absent.gguf").make(around)


def test_baselines_without_vectors(lm: LanguageModel, tmp_path: Path) -> None:
    around = surroundings(lm, tmp_path)
    prefix, nothing = PrefixMethod(text=" So"), NoSteering()
    made = [method.read(method.make(around), around) for method in (prefix, nothing)]
    assert all(isinstance(one, Untouched) for one in made)
    assert [one.prefix for one in made] == [" So", ""]
    assert [one.identity for one in made] == [{"prefix": " So"}, None]


def test_a_stack_is_made_of_its_parts(lm: LanguageModel, tmp_path: Path) -> None:
    around = surroundings(lm, tmp_path)
    parts = [
        {"method": "random", "norm": 1.0},
        {"method": "random", "norm": 1.0, "scale": 2.0},
        {"method": "prefix", "text": " So"},
    ]
    method = StackMethod.model_validate_json(json.dumps({"method": "stack", "parts": parts}))
    made = method.read(method.make(around), around)
    assert isinstance(made, Stack)
    first, second, third = made.parts
    assert isinstance(first, VectorInjection)
    assert isinstance(second, VectorInjection)
    assert first.vectors.digest != second.vectors.digest  # parts draw for themselves
    assert (second.scale, third.prefix, made.prefix) == (2.0, " So", " So")
    with made.applied(lm) as receipt:
        lm.model(input_ids=torch.tensor([[3, 4]]))
    assert receipt.calls == 2 * LAYERS


def test_a_width_that_the_configuration_does_not_say_is_asked_for_by_name(lm: LanguageModel) -> None:
    assert width_of(lm.model) == WIDTH
    with pytest.raises(InvalidInput, match="SimpleNamespace has no hidden_size"):
        width_of(SimpleNamespace(config=SimpleNamespace()))
