"""Injection on tiny random models: it equals a bias of the down-projection, and its receipt counts what happened."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentbench.activations.blocks import decoder_blocks
from latentbench.activations.capture import hidden_states
from latentbench.core.errors import CellFailed, InvalidInput
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Site
from latentbench.interventions.generation import left_padded
from latentbench.interventions.injection import VectorInjection, injecting
from latentbench.interventions.intervention import Layout, Receipt, Stack
from latentbench.interventions.lora import down_projections
from latentbench.interventions.rollouts import Sampling, answers
from latentbench.interventions.vectors import SteeringVectors
from tests.support.steering import CONFIGS, LAYERS, WIDTH, language_model

pytestmark = pytest.mark.usefixtures("one_thread")

NEW = 7
PROMPTS = [[0, 5, 9, 30, 7], [0, 8], [0, 50, 51]]
BIASED = ("llama", "qwen2", "gpt_neox")


def vectors(size: float = 1.0) -> SteeringVectors:
    generator = torch.Generator().manual_seed(1)
    return SteeringVectors({layer: size * torch.randn(WIDTH, generator=generator) for layer in range(LAYERS)})


def biased(name: str, steering: SteeringVectors, dtype: torch.dtype) -> LanguageModel:
    """The same model with the vectors as biases of its down-projections."""
    lm = language_model(name, dtype)
    for layer, path in down_projections(lm.model, steering.layers).items():
        projection: Any = lm.model.get_submodule(path)
        bias = steering.vectors[layer].to(dtype)
        projection.bias = nn.Parameter(bias if projection.bias is None else projection.bias + bias, requires_grad=False)
    return lm


def batch(padding: str) -> tuple[Tensor, Tensor]:
    if padding == "none":
        return torch.tensor(PROMPTS[:1]), torch.ones(1, len(PROMPTS[0]), dtype=torch.long)
    ids, mask = left_padded(PROMPTS, 1, torch.device("cpu"))
    if padding == "left":
        return ids, mask
    return torch.stack([row.roll(int(m.sum())) for row, m in zip(ids, mask, strict=True)]), mask.flip(1)


def generated(lm: LanguageModel, ids: Tensor, mask: Tensor, cached: bool) -> Any:
    model: Any = lm.model
    return model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        use_cache=cached,
        pad_token_id=1,
        output_logits=True,
        return_dict_in_generate=True,
    )


@pytest.mark.parametrize("name", BIASED)
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-4)], ids=["f64", "f32"])
def test_generation_is_that_of_a_bias_on_the_down_projection(
    name: str, cached: bool, padding: str, dtype: torch.dtype, error: float
) -> None:
    """The same tokens; logits differ by rounding alone, since (h + mlp) + v is not computed as h + (mlp + v)."""
    ids, mask = batch(padding)
    steering = vectors()
    expected = generated(biased(name, steering, dtype), ids, mask, cached)
    lm = language_model(name, dtype)
    plain = generated(lm, ids, mask, cached)
    with VectorInjection(steering).applied(lm):
        steered = generated(lm, ids, mask, cached)
    assert torch.equal(steered.sequences, expected.sequences)
    for got, wanted, unsteered in zip(steered.logits, expected.logits, plain.logits, strict=True):
        assert (got - wanted).abs().max() <= error
        assert (got - unsteered).abs().max() > 1000 * error  # the comparison can fail
    after = generated(lm, ids, mask, cached)
    assert all(torch.equal(a, b) for a, b in zip(after.logits, plain.logits, strict=True))


@pytest.mark.parametrize("name", BIASED)
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_a_plain_forward_is_that_of_a_bias_on_the_down_projection(name: str, padding: str) -> None:
    ids, mask = batch(padding)
    steering, real = vectors(), mask.bool()
    expected = biased(name, steering, torch.float64).model(input_ids=ids, attention_mask=mask).logits
    lm = language_model(name)
    with VectorInjection(steering).applied(lm):
        steered = lm.model(input_ids=ids, attention_mask=mask).logits
    assert (steered - expected)[real].abs().max() < 1e-12


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_is_never_steered_and_never_matters(name: str) -> None:
    """Rows of a padded batch are those of the same prompts run alone; hidden states at padding stay as they were."""
    lm, steering = language_model(name), vectors()
    for padding in ("left", "right"):
        ids, mask = batch(padding)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        plain = lm.model(input_ids=ids, attention_mask=mask, position_ids=positions, output_hidden_states=True)
        with VectorInjection(steering.only(0)).applied(lm):
            padded = lm.model(input_ids=ids, attention_mask=mask, position_ids=positions, output_hidden_states=True)
        difference = padded.hidden_states[1] - plain.hidden_states[1]
        assert torch.equal(difference[~mask.bool()], torch.zeros_like(difference[~mask.bool()]))
        assert (difference[mask.bool()] - steering.vectors[0]).abs().max() < 1e-6
        with VectorInjection(steering).applied(lm):
            together = lm.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
            for row, prompt in enumerate(PROMPTS):
                alone = lm.model(input_ids=torch.tensor([prompt])).logits[0]
                assert (together[row][mask[row].bool()] - alone).abs().max() < 1e-10


def by_hand(lm: LanguageModel, sequence: Tensor, steered: Tensor, steering: SteeringVectors) -> Tensor:
    """Logits of one sequence with the vectors added where `steered` says, by hooks that know nothing else."""
    handles = [
        block.register_forward_hook(
            lambda module, args, output, vector=steering.vectors[layer]: (
                (output[0] + steered[..., None] * vector, *output[1:])
                if isinstance(output, tuple)
                else output + steered[..., None] * vector
            )
        )
        for layer, block in enumerate(decoder_blocks(lm.model))
    ]
    logits: Tensor = lm.model(input_ids=sequence[None]).logits[0]
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("name", ["gpt_neox", "gpt2"])  # Llama's norms compute in float32, these in float64
@pytest.mark.parametrize("scope", ["all", "generated", "first", "prompt"])
def test_scopes_mean_what_they_say_in_every_way_to_run_a_model(name: str, scope: Any) -> None:
    """generate() with and without a cache, our sampler, and teacher forcing agree with an oracle told by position."""
    lm, steering = language_model(name), vectors()
    ids, mask = batch("left")
    injection = VectorInjection(steering, scope=scope)
    runs = []
    for cached in (True, False):
        with injection.applied(lm):
            runs.append(generated(lm, ids, mask, cached))
    assert torch.equal(runs[0].sequences, runs[1].sequences)
    for row, prompt in enumerate(PROMPTS):
        sequence = torch.tensor(prompt + runs[0].sequences[row, ids.shape[1] :].tolist()[:-1])
        order, last = torch.arange(len(sequence)), len(prompt) - 1
        where = {"all": order >= 0, "generated": order >= last, "first": order == last, "prompt": order < last}[scope]
        expected = by_hand(lm, sequence, where[None].double(), steering)
        for step in range(NEW):
            for run in runs:
                # generate() keeps logits in float32
                assert (run.logits[step][row] - expected[last + step]).abs().max() < 1e-6
        with injection.applied(lm, Layout(prompt_lengths=torch.tensor([len(prompt)]))):
            forced = lm.model(input_ids=sequence[None]).logits[0]
        assert (forced - expected).abs().max() < 1e-9


@pytest.mark.parametrize("name", CONFIGS)
def test_our_sampler_writes_what_generate_writes(name: str) -> None:
    """Greedily, with rows that end at different times (and are dropped) and a prompt repeated for its samples."""
    lm = language_model(name)
    texts = [" ".join(f"w{i}" for i in prompt[1:]) for prompt in PROMPTS]
    lm.tokenizer._tokenizer.post_processor = _opening()
    model: Any = lm.model
    ids, mask = batch("left")
    with VectorInjection(vectors(), scope="generated").applied(lm):
        long = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=30, pad_token_id=1)
        model.generation_config.eos_token_id = int(long[1, ids.shape[1] + 3])  # ends row 1 after four tokens or fewer
        plain = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=30, pad_token_id=1)
    layout = Layout()
    with VectorInjection(vectors(), scope="generated").applied(lm, layout):
        written = answers(lm, texts, Sampling(30), samples=2, layout=layout)
    assert len(written[2].ids) <= 4
    for row in range(len(PROMPTS)):
        expected = plain[row, ids.shape[1] :].tolist()
        for answer in written[2 * row : 2 * row + 2]:
            assert answer.ids == expected[: len(answer.ids)]
            ends = answer.ids[-1] in (1, model.generation_config.eos_token_id)
            assert answer.truncated != ends
            assert ends or len(answer.ids) == 30


def _opening() -> Any:
    from tokenizers.processors import TemplateProcessing

    return TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])


def test_the_receipt_counts_calls_tokens_positions_and_sizes() -> None:
    lm, steering = language_model("llama"), vectors(0.5)
    ids, mask = batch("left")
    clean = hidden_states(lm.model, [Site(index=0)], ids, mask)[Site(index=0)]
    with VectorInjection(steering.only(0)).applied(lm) as receipt:
        generated(lm, ids, mask, True)
    tokens = sum(map(len, PROMPTS)) + len(PROMPTS) * (NEW - 1)
    assert (receipt.passes, receipt.calls, receipt.tokens, receipt.steered) == (NEW, NEW, tokens, tokens)
    assert (receipt.first_position, receipt.last_position) == (0, len(PROMPTS[0]) + NEW - 2)
    with VectorInjection(steering.only(0)).applied(lm) as receipt:
        lm.model(input_ids=ids, attention_mask=mask)
    norms = clean.norm(dim=-1)[mask.bool()]
    assert receipt.relative_size == pytest.approx(float((steering.vectors[0].norm() / norms).mean()), rel=1e-6)
    with VectorInjection(steering, scope="first").applied(lm) as receipt:
        generated(lm, ids, mask, True)
    assert (receipt.calls, receipt.steered) == (LAYERS * NEW, LAYERS * len(PROMPTS))
    assert (receipt.first_position, receipt.last_position) == (1, 4)


def test_a_stack_adds_up() -> None:
    lm, steering = language_model("gpt_neox"), vectors()
    ids, mask = batch("left")
    together, parts = VectorInjection(steering), [VectorInjection(steering, 0.5), VectorInjection(steering, 0.5)]
    with together.applied(lm):
        expected = lm.model(input_ids=ids, attention_mask=mask).logits
    with Stack(parts).applied(lm) as receipt:
        stacked = lm.model(input_ids=ids, attention_mask=mask).logits
    assert (stacked - expected).abs().max() < 1e-12
    assert (receipt.calls, receipt.passes) == (2 * LAYERS, 1)
    assert receipt.relative_size > 0
    assert (receipt + receipt).passes == 2


def test_the_receipt_measures_what_arrives_and_refuses_what_is_rounded_away() -> None:
    lm = language_model("llama", torch.bfloat16)
    ids, mask = batch("left")
    clean = hidden_states(lm.model, [Site(index=0)], ids, mask)[Site(index=0)][mask.bool()].double()
    steering = SteeringVectors({0: torch.full((clean.shape[-1],), 2e-3 * float(clean.abs().mean()))})
    arrived = (clean.bfloat16() + steering.vectors[0].bfloat16()).double() - clean
    with VectorInjection(steering).applied(lm) as receipt:
        lm.model(input_ids=ids, attention_mask=mask)
    assert receipt.relative_size == pytest.approx(float((arrived.norm(dim=-1) / clean.norm(dim=-1)).mean()), rel=1e-4)
    with pytest.raises(CellFailed, match="rounds all of them away"), VectorInjection(steering, 1e-9).applied(lm):
        lm.model(input_ids=ids, attention_mask=mask)
    with VectorInjection(steering, 0.0).applied(lm) as receipt:
        lm.model(input_ids=ids, attention_mask=mask)
    assert receipt.relative_size == 0


def test_scale_zero_changes_no_bit() -> None:
    lm = language_model("llama", torch.float32)
    ids, mask = batch("left")
    plain = lm.model(input_ids=ids, attention_mask=mask).logits
    with VectorInjection(vectors(), scale=0.0).applied(lm):
        assert torch.equal(lm.model(input_ids=ids, attention_mask=mask).logits, plain)


def test_relative_scales_are_fractions_of_the_residual_norm() -> None:
    steering = SteeringVectors(vectors().vectors, residual_norms={0: 2.0, 1: 3.0, 2: 5.0})
    deltas = VectorInjection(steering, scale=0.1, relative=True).deltas
    assert [float(delta.norm()) for delta in deltas.values()] == pytest.approx([0.2, 0.3, 0.5])
    with pytest.raises(InvalidInput, match="residual norms"):
        VectorInjection(vectors(), relative=True)


def test_a_model_that_did_not_run_is_no_steered_result() -> None:
    lm = language_model("llama")
    with pytest.raises(CellFailed, match="did not run"), VectorInjection(vectors()).applied(lm):
        pass
    with VectorInjection(vectors()).applied(lm, idle=True) as receipt:
        pass
    assert receipt == Receipt()


def test_a_pass_that_skips_a_hook_fails() -> None:
    """A block that is replaced while hooks are installed on the old one: what silent non-steering looks like."""
    lm = language_model("llama")
    blocks = decoder_blocks(lm.model)
    other = language_model("llama", seed=1)
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(CellFailed, match=r"hooks of layers \[0, 2\]"))
        stack.enter_context(VectorInjection(vectors()).applied(lm))
        blocks[1] = decoder_blocks(other.model)[1]
        lm.model(input_ids=torch.tensor(PROMPTS[:1]))


def test_a_base_model_called_by_itself_fails() -> None:
    lm = language_model("llama")
    with pytest.raises(CellFailed, match="outside a pass"), VectorInjection(vectors()).applied(lm):
        lm.model.base_model(input_ids=torch.tensor(PROMPTS[:1]))


def test_a_scope_that_cannot_be_told_is_refused() -> None:
    lm = language_model("llama")
    with pytest.raises(InvalidInput, match="prompt_lengths"), VectorInjection(vectors(), scope="first").applied(lm):
        lm.model(input_ids=torch.tensor(PROMPTS[:1]))


def test_a_stopped_pass_and_other_hooks_read_the_steered_stream() -> None:
    lm, steering = language_model("llama"), vectors()
    ids, mask = batch("none")
    site = Site(index=1)
    plain = hidden_states(lm.model, [site], ids, mask)[site]
    with VectorInjection(steering.only(1, 2)).applied(lm) as receipt:
        steered = hidden_states(lm.model, [site], ids, mask)[site]
    assert (steered - plain - steering.vectors[1]).abs().max() < 1e-6
    assert receipt.calls == 1


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_those_of_a_bias(name: str) -> None:
    """Through a padded batch, for one number of what the model says."""
    ids, mask = batch("left")

    def said(lm: LanguageModel) -> Tensor:
        logits = lm.model(input_ids=ids, attention_mask=mask).logits
        return torch.log_softmax(logits, -1)[:, -1, 3].sum()

    other = biased(name, vectors(), torch.float64)
    projection: Any = other.model.get_submodule(down_projections(other.model, (1,))[1])
    projection.bias.requires_grad_(True)
    said(other).backward()
    lm, parameters = language_model(name), {n: nn.Parameter(v.double()) for n, v in vectors().vectors.items()}
    with injecting(lm.model, parameters):
        said(lm).backward()
    assert parameters[1].grad is not None
    assert parameters[1].grad.norm() > 1e-3
    torch.testing.assert_close(parameters[1].grad, projection.bias.grad, rtol=1e-6, atol=1e-9)


def test_the_wrong_width_or_depth_is_refused() -> None:
    lm = language_model("llama")
    wide = SteeringVectors({0: torch.ones(WIDTH + 1)})
    deep = SteeringVectors({LAYERS: torch.ones(WIDTH)})
    with pytest.raises(InvalidInput, match="17 wide"), VectorInjection(wide).applied(lm):
        pass
    with pytest.raises(InvalidInput, match="3 blocks"), VectorInjection(deep).applied(lm):
        pass
