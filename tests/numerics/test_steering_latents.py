"""Latents set to other values, and steering where a probe or a latent says so, against plain hooks in float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from latentbench.activations.capture import hidden_states
from latentbench.activations.massive import UNLIMITED, NormLimit, lengths
from latentbench.core.errors import InvalidInput
from latentbench.core.sites import Site
from latentbench.core.token_rule import EVERY_TOKEN, TokenRule
from latentbench.interventions.ablation import Ablation
from latentbench.interventions.conditions import DirectionCondition, LatentCondition, Threshold
from latentbench.interventions.generation import left_padded
from latentbench.interventions.injection import VectorInjection
from latentbench.interventions.intervention import Stack
from latentbench.interventions.latents import LatentEdit, PlacedSae
from latentbench.steering.ablation import AblateMethod
from latentbench.steering.baselines import RandomMethod
from latentbench.steering.conditional import ConditionalMethod, When
from latentbench.steering.contrastive import ContrastiveMethod
from latentbench.steering.latents import SaeLatentsMethod
from latentbench.study.context import StageContext
from tests.numerics.test_steering_changes import (
    BASES,
    PROMPTS,
    VECTORS,
    agree,
    agree_where_changed,
    projected,
)
from tests.support.flow import TiedSae, unit
from tests.support.steering import CONFIGS, LAYERS, WIDTH, lab, language_model

pytestmark = pytest.mark.usefixtures("one_thread")

SAE = TiedSae(unit(torch.randn(24, WIDTH, generator=torch.Generator().manual_seed(4))), 0.1)
CHOSEN = torch.tensor([2, 7, 11])
MIDDLE = Site(index=1)


def dense(hidden: Tensor) -> Tensor:
    """[..., 24] latents by their definition."""
    before = hidden.float() @ SAE.rows.T
    return before * (before > 0.1)


def edited(hidden: Tensor, clamp: float | None, times: float) -> Tensor:
    z = dense(hidden)
    other = z.clone()
    other[..., CHOSEN] = torch.full_like(z[..., CHOSEN], clamp) if clamp is not None else times * z[..., CHOSEN]
    return hidden + (other - z) @ SAE.rows


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("clamp", "times"), [(3.0, 0.0), (None, 0.0), (None, 4.0)], ids=str)
def test_latents_are_set_and_the_error_stays(name: str, clamp: float | None, times: float) -> None:
    lm = language_model(name, torch.float32)

    def change(layer: int, hidden: Tensor, order: Tensor) -> Tensor:
        return edited(hidden, clamp, times) if layer == 1 else hidden

    values = None if clamp is None else torch.full((3,), clamp)
    edit = LatentEdit(PlacedSae(SAE, MIDDLE), CHOSEN, values, times)
    (agree if clamp is not None else agree_where_changed)(lm, edit, lambda text, prompt: change, 3e-4)


def test_receipts_count_tokens_whose_latents_changed_and_massive_ones_keep_every_bit() -> None:
    lm = language_model("llama", torch.float32)
    ids, mask = left_padded(PROMPTS, 1, torch.device("cpu"))
    before = hidden_states(lm.model, [MIDDLE], ids, mask)[MIDDLE]
    limit = NormLimit(1.0, float(lengths(before)[mask.bool()].median()))
    edit = LatentEdit(PlacedSae(SAE, MIDDLE, limit), CHOSEN, times=0.0)
    with edit.applied(lm) as receipt:
        after = hidden_states(lm.model, [MIDDLE], ids, mask)[MIDDLE]
    short = mask.bool() & (lengths(before) <= limit.length)
    fires = short & (dense(before)[..., CHOSEN] != 0).any(-1)
    assert 0 < int(fires.sum()) < int(short.sum()) < int(mask.sum())
    assert torch.equal(after[~fires], before[~fires])
    torch.testing.assert_close(after[fires], edited(before, None, 0.0)[fires], rtol=1e-5, atol=1e-5)
    assert receipt.steered == int(fires.sum())


def test_other_places_of_a_block_are_changed_where_the_sae_reads() -> None:
    lm = language_model("llama", torch.float32)
    ids = torch.tensor(PROMPTS[:1])
    for point in ("resid_pre", "attn_out", "mlp_out"):
        site = Site(index=1, point=point)  # type: ignore[arg-type]
        before = hidden_states(lm.model, [site], ids)[site]
        with LatentEdit(PlacedSae(SAE, site), CHOSEN, torch.full((3,), 2.0)).applied(lm) as receipt:
            after = hidden_states(lm.model, [site], ids)[site]
        torch.testing.assert_close(after, edited(before, 2.0, 0.0), rtol=1e-5, atol=1e-5)
        assert (receipt.calls, receipt.steered) == (1, len(PROMPTS[0]))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", ["direction", "latent"])
def test_only_tokens_where_the_condition_holds_are_steered(name: str, kind: str) -> None:
    """It is read at block 0, before the change there, and steers blocks 0 to 2 at the same token."""
    lm, site, reads = language_model(name, torch.float32), Site(index=0), list[Tensor]()
    probe = unit(torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(5)))[0]
    states = hidden_states(lm.model, [site], torch.tensor(PROMPTS[:1]))[site][0]
    # Thresholds between two tokens of a text, so that both sides occur; half of a latent's largest activation has both.
    low, high = (states @ probe).sort().values[2:4].tolist()
    active = dense(states).max(0).values
    latent, half = int(active.argmax()), float(active.max()) / 2
    condition: Any = DirectionCondition(site, probe, Threshold((low + high) / 2))
    if kind == "latent":
        condition = LatentCondition(PlacedSae(SAE, site), latent, Threshold(half, above=False))

    def change(layer: int, hidden: Tensor, order: Tensor) -> Tensor:
        if layer == 0:
            value = hidden @ probe if kind == "direction" else dense(hidden)[..., latent]
            reads[:] = [value > (low + high) / 2 if kind == "direction" else value < half]
        return hidden + reads[0][..., None] * VECTORS.vectors[layer]

    steered = VectorInjection(VECTORS).where(condition)
    agree_where_changed(lm, steered, lambda text, prompt: change, 3e-4)
    with steered.applied(lm) as receipt:
        lm.model(input_ids=torch.tensor(PROMPTS[:1]))
    holds = (states @ probe > (low + high) / 2) if kind == "direction" else dense(states)[:, latent] < half
    assert 0 < int(holds.sum()) < len(PROMPTS[0])
    assert receipt.steered == LAYERS * int(holds.sum())


def test_a_condition_in_a_stack_reads_what_parts_before_it_left() -> None:
    lm, direction = language_model("llama", torch.float32), VECTORS.vectors[1] / VECTORS.vectors[1].norm()
    condition = DirectionCondition(MIDDLE, direction, Threshold(50.0))
    lifting = VectorInjection(VECTORS.only(1), 100 / float(VECTORS.vectors[1].norm()))
    gated = Ablation({2: BASES[2]}).where(condition)
    for parts, expected in (([lifting, gated], len(PROMPTS[0])), ([gated, lifting], 0)):
        with Stack(parts).applied(lm) as receipt:
            lm.model(input_ids=torch.tensor(PROMPTS[:1]))
        assert receipt.steered == len(PROMPTS[0]) + expected


def test_a_condition_that_is_read_too_late_is_refused() -> None:
    late = DirectionCondition(Site(index=2), torch.ones(WIDTH), Threshold(0.0))
    with pytest.raises(InvalidInput, match="too late for the change at 0"):
        VectorInjection(VECTORS).where(late)
    inside = LatentCondition(PlacedSae(SAE, Site(index=1, point="mlp_out")), 3, Threshold(0.0))
    assert VectorInjection(VECTORS.only(1)).where(inside).use.condition is inside
    with pytest.raises(InvalidInput, match="too late"):
        LatentEdit(PlacedSae(SAE, Site(index=1, point="attn_out")), CHOSEN).where(inside)


class Texts:
    """An evaluation domain."""

    documents = 3

    def read(self, roots: Any) -> Any:
        return iter(["w3 w4 w5 w6", "w9 w8", "w20"])


def surroundings(folder: Path, multiple: float | None = None, texts: bool = True) -> StageContext:
    lm = language_model("gpt_neox", torch.float32)
    experiment: Any = SimpleNamespace(
        model=SimpleNamespace(identity=lambda roots: {"hub": "a/b", "dtype": "float32"}),
        dataset=SimpleNamespace(eval={"lab": Texts()} if texts else {}),
        token_rule=EVERY_TOKEN if multiple is None else TokenRule(multiple),
        sites=(MIDDLE,),
    )
    return replace(lab(lm, folder), experiment=experiment, saes=lambda: {MIDDLE: SAE})


def test_a_direction_of_one_layer_is_projected_out_at_all_and_several_span_a_subspace(tmp_path: Path) -> None:
    around = surroundings(tmp_path)
    found = ContrastiveMethod(positive=("w3 w4",), negative=("w9 w4",), layers=1)
    method = AblateMethod(directions=(found,), scale=0.5, scope="generated")
    made = method.read(method.make(around), around)
    assert isinstance(made, Ablation)
    assert list(made.bases) == [0, 1, 2]
    assert (made.scale, made.scope) == (0.5, "generated")
    direction = found.make(around).tensors["layer.1"]
    for basis in made.bases.values():
        torch.testing.assert_close(projected(basis, direction).float(), direction, rtol=1e-4, atol=1e-5)
        assert basis.shape == (1, WIDTH)
    both = AblateMethod(directions=(found, RandomMethod(norm=1.0, layers=(0, 2))))
    made = both.read(both.make(around), around)
    assert isinstance(made, Ablation)
    assert {layer: len(basis) for layer, basis in made.bases.items()} == {0: 2, 1: 1, 2: 2}
    only = AblateMethod(directions=(RandomMethod(norm=1.0, layers=(0, 2)),), layers=(0, 1))
    with pytest.raises(InvalidInput, match=r"no direction is made at layers \[1\]"):
        only.make(around)


def test_the_methods_make_what_their_fields_say(tmp_path: Path) -> None:
    around = surroundings(tmp_path, multiple=3.0)
    method = SaeLatentsMethod(latents=(2, 7), clamp=(1.0, 2.0))
    content = method.make(around)
    made = method.read(content, around)
    assert isinstance(made, LatentEdit)
    assert made.clamp is not None
    assert (made.latents.tolist(), made.clamp.tolist(), made.placed.site) == ([2, 7], [1.0, 2.0], MIDDLE)
    found = []
    for text in ("w3 w4 w5 w6", "w9 w8", "w20"):
        ids = torch.tensor([[int(word[1:]) for word in text.split()]])
        found.append(hidden_states(around.model().model, [MIDDLE], ids)[MIDDLE][0].norm(dim=-1))
    assert made.placed.limit.length == pytest.approx(3 * float(torch.cat(found).median()), rel=1e-5)
    with pytest.raises(InvalidInput, match="no latent 24"):
        SaeLatentsMethod(latents=(24,), times=0.0).read(content, around)
    with pytest.raises(InvalidInput, match="massive"):
        method.make(surroundings(tmp_path, multiple=3.0, texts=False))
    plain = surroundings(tmp_path)
    assert method.read(method.make(plain), plain).placed.limit == UNLIMITED  # type: ignore[attr-defined]


@pytest.mark.parametrize("by", ["probe", "latent"])
def test_a_conditional_method_reads_its_condition(tmp_path: Path, by: str) -> None:
    around = surroundings(tmp_path)
    probe = ContrastiveMethod(positive=("w3 w4",), negative=("w9 w4",), layers=1)
    when = When(probe=probe, above=0.5) if by == "probe" else When(latent=3, below=0.5)
    method = ConditionalMethod(part=RandomMethod(norm=2.0, layers=(1, 2), scale=3.0), when=when)
    made = method.read(method.make(around), around)
    assert isinstance(made, VectorInjection)
    assert (made.vectors.layers, made.scale) == ((1, 2), 3.0)
    condition = made.use.condition
    if by == "probe":
        assert isinstance(condition, DirectionCondition)
        assert torch.equal(condition.direction, probe.make(around).tensors["layer.1"])
        assert (condition.site, condition.threshold) == (MIDDLE, Threshold(0.5))
        many = ConditionalMethod(
            part=method.part, when=When(probe=ContrastiveMethod(positive=("w3",), negative=("w9",)), above=0.0)
        )
        with pytest.raises(InvalidInput, match="made at 3 layers"):
            many.read(many.make(around), around)
    else:
        assert isinstance(condition, LatentCondition)
        assert (condition.latent, condition.threshold) == (3, Threshold(0.5, above=False))
    early = ConditionalMethod(part=RandomMethod(norm=2.0), when=when)
    with pytest.raises(InvalidInput, match="too late"):
        early.read(early.make(around), around)


def test_who_is_used_otherwise_is_another_intervention(tmp_path: Path) -> None:
    """Answers are kept by identity, so every setting must be in it."""
    placed = PlacedSae(SAE, MIDDLE, made="a")
    condition = DirectionCondition(Site(index=0), torch.ones(WIDTH), Threshold(0.0))
    edits = [
        LatentEdit(placed, CHOSEN),
        LatentEdit(replace(placed, made="b"), CHOSEN),
        LatentEdit(replace(placed, limit=NormLimit(1.0, 2.0)), CHOSEN),
        LatentEdit(placed, CHOSEN, times=1.0),
        LatentEdit(placed, CHOSEN, torch.ones(3)),
        LatentEdit(placed, CHOSEN[:2]),
        LatentEdit(placed, CHOSEN, scale=2.0),
        LatentEdit(placed, CHOSEN, scope="generated"),
        LatentEdit(placed, CHOSEN).where(condition),
        LatentEdit(placed, CHOSEN).where(replace(condition, threshold=Threshold(1.0))),
        LatentEdit(placed, CHOSEN).where(replace(condition, threshold=Threshold(0.0, above=False))),
        LatentEdit(placed, CHOSEN).where(replace(condition, direction=torch.zeros(WIDTH))),
        LatentEdit(placed, CHOSEN).where(LatentCondition(placed, 3, Threshold(0.0))),
    ]
    assert len({str(edit.identity) for edit in edits}) == len(edits)
