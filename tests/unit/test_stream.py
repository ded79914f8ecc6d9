"""The shuffled stream: complete, seeded, stateless, and the same whatever is asked alongside."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import latentbench.activations.row_states
from latentbench.activations.capture import hidden_states
from latentbench.activations.tokens import TrainTokens
from latentbench.core.errors import InvalidInput
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Site
from latentbench.sae.activation_stream import ActivationStream
from latentbench.sae.options.training import TrainingOptions

BOS, CONTEXT, ROWS = 0, 8, 23
FIRST, SECOND, INNER = Site(index=0), Site(index=2), Site(index=1, point="mlp_out")
_NONE = dict.fromkeys(("eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id"))
TOKENIZER = SimpleNamespace(bos_token_id=BOS, **_NONE)


def model() -> LanguageModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2
    )
    return LanguageModel(LlamaForCausalLM(config).eval(), TOKENIZER, torch.device("cpu"))


MODEL = model()


def train_tokens(rows: int = ROWS, context: int = CONTEXT) -> TrainTokens:
    """Random rows with a BOS here and there."""
    return TrainTokens(torch.randint(0, 12, (rows, context), generator=torch.Generator().manual_seed(3)).int(), ())


TOKENS = train_tokens()


def stream(sites=(SECOND,), total=ROWS * CONTEXT, batch=10, buffer=40, seed=0, **kwargs) -> ActivationStream:
    options = TrainingOptions(batch=batch, buffer=buffer)
    return ActivationStream(MODEL, kwargs.pop("tokens", TOKENS), sites, total, options, seed, **kwargs)


def everything(source: ActivationStream, site: Site = SECOND) -> list[Tensor]:
    return [batch[site] for block in range(source.blocks) for batch in source.batches(block)]


def sorted_rows(states: Tensor) -> Tensor:
    return states[torch.argsort(states[:, 0])]


def test_one_epoch_holds_every_ordinary_hidden_state_once() -> None:
    got = torch.cat(everything(stream()))
    with torch.no_grad():
        states = hidden_states(MODEL.model, [SECOND], TOKENS.ids.long())[SECOND]
    expected = states[TOKENS.ids != BOS]
    assert got.shape == expected.shape
    assert got.dtype == torch.float32
    torch.testing.assert_close(sorted_rows(got), sorted_rows(expected))
    assert not torch.allclose(got, expected)  # and not in reading order


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 80), st.integers(0, 5))
def test_counts_are_exact_and_batches_nearly_equal(total: int, batch: int, more: int, seed: int) -> None:
    source = stream(total=total, batch=batch, buffer=batch + more, seed=seed)
    sizes = [[len(b[SECOND]) for b in source.batches(block)] for block in range(source.blocks)]
    assert sum(map(len, sizes)) == source.steps
    for block, of_block in enumerate(sizes):
        assert source.tokens_seen(block) == sum(map(sum, sizes[: block + 1]))
        assert source.steps_before(block) == sum(map(len, sizes[:block]))
        assert sum(of_block) <= max(batch + more, CONTEXT)
        if of_block:
            assert max(of_block) - min(of_block) <= 1
            assert sum(of_block) <= 1.5 * batch * len(of_block)
            assert len(of_block) == 1 or sum(of_block) >= 0.75 * batch * len(of_block)


def test_a_block_is_a_pure_function_of_its_number() -> None:
    whole, resumed = stream(total=500), stream(total=500)
    blocks = {number: [b[SECOND] for b in whole.batches(number)] for number in range(whole.blocks)}
    for number in (7, 2, 7):
        again = [b[SECOND] for b in resumed.batches(number)]
        assert all(torch.equal(a, b) for a, b in zip(blocks[number], again, strict=True))


def test_order_depends_on_the_seed_and_changes_with_every_epoch() -> None:
    first, same, other = (torch.cat(everything(stream(seed=seed))) for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    torch.testing.assert_close(sorted_rows(first), sorted_rows(other))
    # Two epochs in blocks of one epoch each.
    twice = stream(total=2 * ROWS * CONTEXT, buffer=ROWS * CONTEXT, batch=20)
    assert twice.blocks == 2
    epochs = [torch.cat([b[SECOND] for b in twice.batches(block)]) for block in range(2)]
    assert not torch.equal(epochs[0], epochs[1])
    torch.testing.assert_close(sorted_rows(epochs[0]), sorted_rows(epochs[1]))


def test_every_epoch_orders_rows_and_every_block_its_tokens_differently() -> None:
    one_row = {"buffer": CONTEXT, "batch": CONTEXT}
    source = stream(total=2 * ROWS * CONTEXT, **one_row)
    rows = [sorted_rows(next(source.batches(block))[SECOND])[0] for block in range(source.blocks)]
    first, second = torch.stack(rows[:ROWS]), torch.stack(rows[ROWS:])
    assert not torch.allclose(first, second)
    torch.testing.assert_close(sorted_rows(first), sorted_rows(second))
    same = TrainTokens(torch.arange(1, CONTEXT + 1).int().repeat(6, 1), ())
    source = stream(tokens=same, total=6 * CONTEXT, **one_row)
    blocks = [next(source.batches(block))[SECOND] for block in range(6)]
    torch.testing.assert_close(sorted_rows(blocks[0]), sorted_rows(blocks[1]))
    assert not all(torch.allclose(blocks[0], block) for block in blocks[1:])


def test_a_site_is_the_same_alone_and_in_company() -> None:
    alone, company = stream([FIRST]), stream([SECOND, FIRST, INNER])
    assert all(torch.equal(a, b) for a, b in zip(everything(alone, FIRST), everything(company, FIRST), strict=True))
    assert alone.first_norms[FIRST] == company.first_norms[FIRST]
    assert torch.equal(alone.means[FIRST], company.means[FIRST])


def test_rows_of_all_sites_belong_to_the_same_token() -> None:
    source = stream([Site(index=1), Site(index=2, point="resid_pre")])
    for block in range(source.blocks):
        for batch in source.batches(block):
            assert torch.equal(batch[Site(index=1)], batch[Site(index=2, point="resid_pre")])


@pytest.mark.parametrize("forward_batch", [1, 2, 5, 100])
def test_the_number_of_rows_run_at_once_changes_nothing(forward_batch: int) -> None:
    for a, b in zip(everything(stream()), everything(stream(forward_batch=forward_batch)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_norms_and_means_are_those_of_block_0_which_is_harvested_once(monkeypatch) -> None:
    calls = []
    real = latentbench.activations.row_states.hidden_states

    def counted(*args):
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(latentbench.activations.row_states, "hidden_states", counted)
    source = stream(forward_batch=100)
    norms, means = source.first_norms, source.means
    block = torch.cat([b[SECOND] for b in source.batches(0)])
    assert len(calls) == 1
    assert norms[SECOND] == pytest.approx(block.norm(dim=1).mean().item(), rel=1e-6)
    torch.testing.assert_close(means[SECOND], block.mean(0))
    everything(source)
    assert source.first_norms == norms
    assert len(calls) == 1 + source.blocks


def test_batches_can_be_trained_on() -> None:
    weight = torch.zeros(16, requires_grad=True)
    (next(stream().batches(0))[SECOND] @ weight).sum().backward()
    assert weight.grad is not None


def test_a_low_precision_model_gives_float32_batches() -> None:
    low = replace(MODEL, model=model().model.to(torch.bfloat16))
    source = ActivationStream(low, TOKENS, [SECOND], 100, TrainingOptions(batch=10, buffer=40), 0)
    assert next(source.batches(0))[SECOND].dtype == torch.float32


def test_nothing_but_special_tokens_is_refused() -> None:
    with pytest.raises(InvalidInput, match="nothing but special tokens"):
        stream(tokens=TrainTokens(torch.zeros(3, 8, dtype=torch.int32), ()))
    with pytest.raises(InvalidInput, match="layer 3 does not exist"):
        stream([Site(index=3)])


def test_fewer_rows_are_run_at_once_where_memory_runs_out() -> None:
    expected, run = everything(stream()), MODEL.model.forward

    def forward(input_ids: Tensor, **kwargs: object) -> object:
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return run(input_ids=input_ids, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODEL.model, "forward", forward)
        found = everything(stream())
    assert [batch.shape for batch in found] == [batch.shape for batch in expected]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
