"""What is read at a block's attention and MLP is what they add, in every architecture, or the site is refused by name."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import GraniteConfig, GraniteForCausalLM, LlamaConfig

from latentbench.activations.capture import hidden_states, hidden_states_and_logits
from latentbench.activations.residual import PARTS, additions, hook_point
from latentbench.activations.resume import resumed_logits
from latentbench.core.errors import InvalidInput
from latentbench.core.sites import Point, Site
from latentbench.flow.interventions import editing
from latentbench.interventions.injection import injecting
from tests.support.architectures import ARCHITECTURES, FAST, LAYERS, WIDTH, WORDS, Architecture, model_of

IDS = torch.randint(3, WORDS, (2, 9), generator=torch.Generator().manual_seed(1))
V = torch.randn(WIDTH, generator=torch.Generator().manual_seed(2))
ALL_POINTS: tuple[Point, ...] = ("resid_pre", "resid_post", "attn_out", "mlp_out")

every_architecture = pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]
)


def expected(architecture: Architecture) -> list[tuple[Site, float | str]]:
    return [
        (Site(index=index, point=point), wanted)
        for index in range(LAYERS)
        for point, wanted in zip(("attn_out", "mlp_out"), architecture.of(index), strict=True)
    ]


def close(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max())))


@torch.no_grad()
@every_architecture
def test_every_site_adds_what_is_read_there_or_is_refused_with_a_sentence(name: str) -> None:
    model, architecture = model_of(name), ARCHITECTURES[name]
    for site, wanted in expected(architecture):
        if architecture.residual or isinstance(wanted, str):
            refused(model, site, architecture.residual or str(wanted))
        else:
            assert hook_point(model, site).multiplier == pytest.approx(wanted, rel=1e-12), site
            adds(model, site)
    for site in (Site(index=1), Site(index=2, point="resid_pre")):
        if architecture.residual:
            refused(model, site, architecture.residual)
        else:
            states, logits = hidden_states_and_logits(model, [site], IDS)
            assert logits.isfinite().all()
            if architecture.handover:
                with pytest.raises(InvalidInput, match=r"block 2 .* cannot be resumed there"):
                    resumed_logits(model, site, states[site], IDS)
                continue
            assert torch.equal(resumed_logits(model, site, states[site], IDS), logits), site


def refused(model: nn.Module, site: Site, sentence: str) -> None:
    zeros = torch.zeros(2, 9, WIDTH)
    with pytest.raises(InvalidInput, match=sentence):
        hidden_states(model, [site], IDS)
    with pytest.raises(InvalidInput, match=sentence):
        resumed_logits(model, site, zeros, IDS, None, zeros)
    with pytest.raises(InvalidInput, match=sentence), editing(model, {site: lambda hidden, real: hidden}):
        model(input_ids=IDS, use_cache=False)


def adds(model: nn.Module, site: Site) -> None:
    """What is read adds up, put back it changes nothing, and a vector added to it arrives in the residual stream."""
    sites = {point: Site(index=site.index, point=point) for point in ALL_POINTS}
    both = all(point in additions(model)[site.index].multipliers for point in PARTS)
    wanted = [sites[point] for point in ALL_POINTS if both or point not in PARTS or point == site.point]
    states, logits = hidden_states_and_logits(model, wanted, IDS)
    if both:
        total = states[sites["resid_pre"]] + states[sites["attn_out"]] + states[sites["mlp_out"]]
        assert close(total, states[sites["resid_post"]]), site
    again = resumed_logits(model, site, states[site], IDS, None, states[sites["resid_pre"]])
    assert close(again, logits), site
    with editing(model, {site: lambda hidden, real: V.expand_as(hidden)}):
        moved = hidden_states(model, wanted, IDS)
    assert close(moved[site], states[site] + V), site
    arrived = moved[sites["resid_post"]] - states[sites["resid_post"]]
    if both:  # behind attention, the MLP may answer
        arrived = arrived - (moved[sites["mlp_out"]] - states[sites["mlp_out"]]) * (site.point == "attn_out")
        assert close(arrived, V.expand_as(arrived)), site
    elif site.point == "mlp_out":
        assert close(arrived, V.expand_as(arrived)), site


@torch.no_grad()
def test_one_function_written_in_two_ways_has_one_set_of_hidden_states() -> None:
    """The residual multiplier of Granite folded into the weights, in float64."""
    sizes: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 3}
    options = {**sizes, "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
    torch.manual_seed(0)
    scaled = GraniteForCausalLM(GraniteConfig(residual_multiplier=0.22, **options)).double().eval()
    folded = GraniteForCausalLM(GraniteConfig(residual_multiplier=1.0, **options)).double().eval()
    folded.load_state_dict(scaled.state_dict())
    for block in folded.model.layers:
        block.self_attn.o_proj.weight.mul_(0.22)
        block.mlp.down_proj.weight.mul_(0.22)
    sites = [Site(index=index, point=point) for index in range(3) for point in ALL_POINTS]
    ours, theirs = (hidden_states(model, sites, IDS) for model in (scaled, folded))
    entrance, other = ours[Site(index=1, point="resid_pre")], torch.randn(2, 9, WIDTH, dtype=torch.float64)
    for site in sites:
        torch.testing.assert_close(ours[site], theirs[site], rtol=1e-10, atol=1e-12)
    for point in PARTS:
        spliced = [resumed_logits(m, Site(index=1, point=point), other, IDS, None, entrance) for m in (scaled, folded)]
        torch.testing.assert_close(*spliced, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_data_types_are_understood_as_well(dtype: torch.dtype) -> None:
    for name in ("llama", "gemma2", "gpt_neox", "granite"):
        number = ARCHITECTURES[name].attention
        for found in additions(model_of(name, dtype)):
            assert found.multipliers == {"attn_out": number, "mlp_out": number}, (name, found.refusals)
    for found in additions(model_of("falcon_h1", dtype)):
        assert all("do not add up" in found.refusals[point] for point in PARTS)


class Block(nn.Module):
    """A block that scales what its parts add, and may do something else besides."""

    def __init__(self, attention: float, mlp: float, wrong: str = "") -> None:
        super().__init__()
        self.attn, self.mlp, self.beside = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm = nn.LayerNorm(WIDTH)
        self.first, self.second, self.wrong = attention, mlp, wrong
        if wrong == "unnamed":
            self.first = [attention]  # type: ignore[assignment]

    def forward(self, hidden_states: Tensor) -> Tensor:
        first = self.first[0] if isinstance(self.first, list) else self.first
        middle = hidden_states + self.attn(self.norm(hidden_states)) * first
        mlp = self.mlp(self.norm(middle))
        if self.wrong == "twice":
            mlp = self.mlp(mlp)
        out = middle + mlp * self.second
        if self.wrong == "third":
            return out + self.beside(self.norm(hidden_states))
        return self.norm(out) if self.wrong == "normed" else 0.9 * out if self.wrong == "shrunk" else out


class Model(nn.Module):
    """Two such blocks, and whatever `transformers` models have that is looked at."""

    def __init__(self, *blocks: Block, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = LlamaConfig(num_hidden_layers=len(blocks))
        self.embedding, self.layers = nn.Embedding(WORDS, WIDTH), nn.ModuleList(blocks)
        self.passes = 0
        self.to(dtype)

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        self.passes += 1
        hidden = self.embedding(input_ids)
        for block in self.layers:
            hidden = block(hidden)
        return SimpleNamespace(logits=hidden @ self.embedding.weight.T)


NUMBERS = st.floats(0.02, 20.0).flatmap(lambda number: st.sampled_from([number, -number]))


@settings(max_examples=60, deadline=None)
@given(NUMBERS, NUMBERS, st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
def test_whatever_numbers_a_block_holds_are_found_exactly(attention: float, mlp: float, dtype: torch.dtype) -> None:
    # Numbers that the data type can hardly tell apart are one number to the block as well.
    apart = 2 * torch.finfo(dtype).eps * max(1, abs(attention), abs(mlp))
    assume(all(a == b or abs(a - b) > apart for a, b in combinations((1.0, attention, mlp), 2)))
    found = additions(Model(Block(attention, mlp), Block(1.0, 1.0), dtype=dtype))
    assert [dict(block.multipliers) for block in found] == [
        {"attn_out": attention, "mlp_out": mlp},
        {"attn_out": 1.0, "mlp_out": 1.0},
    ], found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("unnamed", r"it adds 0\.5\d* × its attention and 0\.25\d* × its MLP at best .* no number it holds explains"),
        ("third", r"its input, attention and MLP do not add up to its output \(off by \d+\.\d%\)"),
        ("normed", "it adds .* at best .* no number it holds explains"),
        ("shrunk", r"it adds 0\.45\d* × its attention and 0\.22\d* × its MLP at best"),
        ("twice", "its MLP runs 2 times in one pass of the model"),
    ],
)
def test_what_is_wrong_with_a_block_is_said_and_the_other_blocks_work(
    wrong: str, sentence: str, dtype: torch.dtype
) -> None:
    model = Model(Block(0.5, 0.25, wrong), Block(0.5, 0.25), dtype=dtype)
    for point in PARTS:
        with pytest.raises(InvalidInput, match=rf"Block \(layer 0\): {sentence}.* The residual stream works\."):
            hook_point(model, Site(index=0, point=point))
    assert dict(additions(model)[1].multipliers) == {"attn_out": 0.5, "mlp_out": 0.25}


def test_a_multiplier_may_be_a_parameter_of_one_number_but_not_a_vector() -> None:
    block = Block(1.0, 1.0)
    del block.first, block.second
    block.register_parameter("first", nn.Parameter(torch.tensor([0.125])))
    block.register_parameter("second", nn.Parameter(torch.tensor(3.0)))
    assert dict(additions(Model(block))[0].multipliers) == {"attn_out": 0.125, "mlp_out": 3.0}
    block = Block(1.0, 1.0)
    del block.second
    block.register_parameter("second", nn.Parameter(torch.linspace(0.5, 2, WIDTH)))
    assert "no number it holds explains" in additions(Model(block))[0].refusals["mlp_out"]


def test_measuring_leaves_nothing_behind_and_is_done_once() -> None:
    model = Model(Block(0.5, 0.5), Block(0.5, 0.5)).train()
    model.layers[1].eval()
    seen: list[nn.Module] = []
    for part in model.modules():
        part.register_forward_hook(lambda module, args, output: seen.append(module))
        part.register_forward_pre_hook(lambda module, args: seen.append(module))
    before = [(part.training, [*part._forward_hooks], [*part._forward_pre_hooks]) for part in model.modules()]
    state = torch.get_rng_state()
    assert additions(model) is additions(model)
    assert model.passes == 2
    assert seen == []
    assert torch.equal(torch.get_rng_state(), state)
    after = [(part.training, [*part._forward_hooks], [*part._forward_pre_hooks]) for part in model.modules()]
    assert after == before
    model.layers[0].forward = None  # type: ignore[assignment]
    broken = Model(model.layers[0], Block(1.0, 1.0))
    hooks = [[*part._forward_hooks] for part in broken.modules()]
    with pytest.raises(TypeError):
        additions(broken)
    assert [[*part._forward_hooks] for part in broken.modules()] == hooks


def test_measuring_in_the_middle_of_steering_is_in_nobodys_receipt() -> None:
    model = model_of.__wrapped__("granite")  # one that nothing was asked of before
    site = Site(index=2, point="mlp_out")
    with torch.no_grad(), injecting(model, {0: V}) as receipt:
        hidden_states(model, [site], IDS)
        states, logits = hidden_states_and_logits(model, [site, Site(index=2, point="resid_pre")], IDS)
        entrance = states[Site(index=2, point="resid_pre")]
    assert (receipt.passes, receipt.calls, receipt.steered) == (2, 2, 2 * IDS.numel())
    with torch.no_grad():
        assert close(resumed_logits(model, site, states[site], IDS, None, entrance), logits)
