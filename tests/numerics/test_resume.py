"""Captured hidden states are the model's own, and a resumed forward equals the full one bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
)

from latentbench.activations.blocks import attention_output, decoder_blocks
from latentbench.activations.capture import hidden_states, hidden_states_and_logits
from latentbench.activations.resume import resumed_logits, resuming
from latentbench.core.errors import InvalidInput
from latentbench.core.sites import Point, Site, resumed_from

LAYERS = 4
POINTS: tuple[Point, ...] = ("resid_pre", "resid_post", "mlp_out", "attn_out")
_SIZES = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}

CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_GROUPED),
    "qwen2": lambda: Qwen2Config(**_GROUPED),
    # A window shorter than the text, so that Gemma's two kinds of layers get different masks.
    "gemma2": lambda: Gemma2Config(**_GROUPED, head_dim=8, sliding_window=5),
    "gpt_neox": lambda: GPTNeoXConfig(**_SIZES),
    "gpt_neox_serial": lambda: GPTNeoXConfig(**_SIZES, use_parallel_residual=False),
    "gpt2": lambda: GPT2Config(vocab_size=101, n_embd=32, n_layer=LAYERS, n_head=4, n_positions=64),
    "mistral": lambda: MistralConfig(**_GROUPED, sliding_window=5),
    "phi": lambda: PhiConfig(**_SIZES),
    "olmo2": lambda: Olmo2Config(**_GROUPED, pad_token_id=0),
    # As many experts as layers: a ModuleList of the right length that is not the decoder.
    "mixtral": lambda: MixtralConfig(**_GROUPED, num_local_experts=LAYERS),
    # Blocks that return tuples.
    "falcon": lambda: FalconConfig(vocab_size=101, hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=4),
    "bloom": lambda: BloomConfig(vocab_size=101, hidden_size=32, n_layer=LAYERS, n_head=4),
}
# Bloom's attention and MLP add the residual stream themselves.
ADDITIVE = [name for name in CONFIGS if name != "bloom"]


@cache
def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    for parameter in model.parameters():  # away from the tiny initialisation, so that differences would show
        nn.init.normal_(parameter, std=0.2)
    return model


def batch(padded: bool) -> tuple[Tensor, Tensor | None]:
    ids = torch.randint(3, 101, (3, 11), generator=torch.Generator().manual_seed(1))
    if not padded:
        return ids, None
    mask = torch.arange(11) < torch.tensor([11, 4, 8])[:, None]
    return ids * mask, mask.long()


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("name", CONFIGS)
def test_resuming_with_the_captured_state_gives_the_same_logits_bit_for_bit(name: str, padded: bool) -> None:
    model, (ids, mask) = model_of(name), batch(padded)
    points = POINTS if name in ADDITIVE else POINTS[:2]
    sites = [Site(index=index, point=point) for index in range(LAYERS) for point in points]
    with torch.no_grad():
        clean = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        states, logits = hidden_states_and_logits(model, sites, ids, mask)
        assert torch.equal(logits, clean)
        for site in sites:
            entrance = next((states[entering] for entering in resumed_from(site)), None)
            resumed = resumed_logits(model, site, states[site], ids, mask, entrance)
            assert torch.equal(resumed, clean), site
            changed = resumed_logits(model, site, torch.zeros_like(states[site]), ids, mask, entrance)
            assert not torch.equal(changed, clean), site


@pytest.mark.parametrize("name", CONFIGS)
def test_resuming_equals_replacing_the_state_in_a_full_forward(name: str) -> None:
    model, (ids, mask) = model_of(name), batch(padded=True)
    index = LAYERS // 2
    replacement = torch.randn(3, 11, 32, generator=torch.Generator().manual_seed(2))
    handle = decoder_blocks(model)[index].register_forward_hook(
        lambda module, args, output: (replacement, *output[1:]) if isinstance(output, tuple) else replacement
    )
    with torch.no_grad():
        full = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        handle.remove()
        after = resumed_logits(model, Site(index=index), replacement, ids, mask)
        before = resumed_logits(model, Site(index=index + 1, point="resid_pre"), replacement, ids, mask)
    assert torch.equal(after, full)
    assert torch.equal(before, full)


@pytest.mark.parametrize("name", ADDITIVE)
def test_a_block_adds_its_attention_and_mlp_to_its_input(name: str) -> None:
    model, (ids, mask) = model_of(name), batch(padded=False)
    for index in range(LAYERS):
        sites = {point: Site(index=index, point=point) for point in POINTS}
        with torch.no_grad():
            states = hidden_states(model, list(sites.values()), ids, mask)
        added = states[sites["resid_pre"]] + states[sites["attn_out"]] + states[sites["mlp_out"]]
        torch.testing.assert_close(added, states[sites["resid_post"]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_forward_stops_after_the_deepest_block(name: str) -> None:
    model, (ids, _) = model_of(name), batch(padded=False)
    ran: list[int] = []
    handles = [
        block.register_forward_pre_hook(lambda module, args, number=number: ran.append(number))
        for number, block in enumerate(decoder_blocks(model))
    ]
    head = model.get_output_embeddings().register_forward_pre_hook(lambda module, args: ran.append(-1))
    with torch.no_grad():
        early = hidden_states(model, [Site(index=0), Site(index=1)], ids)
    for handle in (*handles, head):
        handle.remove()
    assert ran == [0, 1]
    with torch.no_grad():
        late = hidden_states(model, [Site(index=0), Site(index=3)], ids)
    assert torch.equal(early[Site(index=0)], late[Site(index=0)])
    with torch.no_grad():
        entering = hidden_states(model, [Site(index=1, point="resid_pre")], ids)
    assert torch.equal(entering[Site(index=1, point="resid_pre")], late[Site(index=0)])


def hooks_and_patches(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in m.__dict__) for m in model.modules())


def test_the_model_is_restored_after_every_pass_and_every_exception() -> None:
    model, (ids, mask) = model_of("llama"), batch(padded=True)
    before = hooks_and_patches(model)
    site = Site(index=2, point="mlp_out")
    with torch.no_grad():
        clean = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        hidden_states(model, [site], ids, mask)
        assert hooks_and_patches(model) == before
        zeros = torch.zeros(3, 11, 32)
        with resuming(model, site, zeros, zeros):
            assert hooks_and_patches(model) > before
        with pytest.raises(ZeroDivisionError), resuming(model, site, zeros, zeros):
            raise ZeroDivisionError
        with pytest.raises(RuntimeError):  # a hidden state of the wrong width
            resumed_logits(model, Site(index=1), torch.zeros(3, 11, 7), ids, mask)
        with pytest.raises(ValueError, match="needs the residual stream entering block 2"):
            resumed_logits(model, site, torch.zeros(3, 11, 32), ids, mask)
        assert hooks_and_patches(model) == before
        assert torch.equal(model(input_ids=ids, attention_mask=mask, use_cache=False).logits, clean)


def test_a_forward_of_the_instances_own_survives() -> None:
    model, (ids, _) = model_of("gpt2"), batch(padded=False)
    block = decoder_blocks(model)[0]
    own = block.forward
    block.forward = own  # as accelerate's hooks do
    try:
        with torch.no_grad():
            resumed_logits(model, Site(index=1), torch.zeros(3, 11, 32), ids)
        assert block.__dict__["forward"] == own
    finally:
        del block.forward


def test_sites_the_model_does_not_have_are_refused_with_what_it_has() -> None:
    model, (ids, _) = model_of("gpt_neox"), batch(padded=False)
    with pytest.raises(InvalidInput, match=r"layer 4 does not exist: GPTNeoXForCausalLM has 4 decoder blocks, .* 3"):
        hidden_states(model, [Site(index=4)], ids)
    with pytest.raises(InvalidInput, match="layer 9 does not exist"):
        resumed_logits(model, Site(index=9), torch.zeros(3, 11, 32), ids)
    bloom = model_of("bloom")
    with pytest.raises(InvalidInput, match="BloomMLP adds the residual stream itself"):
        hidden_states(bloom, [Site(index=0, point="mlp_out")], ids)


def test_a_module_without_decoder_blocks_is_refused_with_what_was_looked_for() -> None:
    with pytest.raises(InvalidInput, match="Linear: no decoder blocks found: its configuration has no num_hidden"):
        decoder_blocks(nn.Linear(2, 2))
    other = nn.Module()
    other.config = LlamaConfig(num_hidden_layers=7)
    other.stack = nn.ModuleList([nn.Sequential(nn.Linear(2, 2)) for _ in range(3)])
    with pytest.raises(InvalidInput, match=r"looked for a ModuleList of 7 blocks .* found stack of 3"):
        decoder_blocks(other)
    block = nn.ModuleDict({"mixer": nn.Linear(2, 2)})
    with pytest.raises(InvalidInput, match=r"ModuleDict: no attention submodule found: .* found mixer"):
        attention_output(block)


def test_every_causal_language_model_of_three_families_more_is_understood() -> None:
    assert {"qwen3", "gemma3_text", "phi3"} <= set(CONFIG_MAPPING)
    for family in ("qwen3", "gemma3_text", "phi3"):
        config = CONFIG_MAPPING[family](**_GROUPED, pad_token_id=0)
        model = AutoModelForCausalLM.from_config(config).eval()
        ids, _ = batch(padded=False)
        with torch.no_grad():
            states, logits = hidden_states_and_logits(model, [Site(index=1)], ids)
            assert torch.equal(resumed_logits(model, Site(index=1), states[Site(index=1)], ids), logits), family


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_on_the_left_changes_no_hidden_state(name: str) -> None:
    model, (ids, _), site = model_of(name), batch(padded=False), Site(index=LAYERS - 1)
    mask = (torch.arange(11) >= torch.tensor([0, 7, 3])[:, None]).long()
    with torch.no_grad():
        together = hidden_states(model, [site], ids * mask, mask)[site]
        for row, start in enumerate((0, 7, 3)):
            alone = hidden_states(model, [site], ids[row : row + 1, start:])[site]
            torch.testing.assert_close(together[row : row + 1, start:], alone, rtol=1e-4, atol=1e-4)
