"""The mechanism of a vector, on tiny random models: what must hold exactly does."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    PretrainedConfig,
)

from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Site
from latentbench.interventions.injection import VectorInjection
from latentbench.interventions.intervention import Untouched
from latentbench.interventions.vectors import SteeringVectors
from latentbench.mechanism.output_tokens import probability_shift, vector_logit_lens
from latentbench.mechanism.passages import Passages, continuations, trace
from latentbench.mechanism.paths import attribution, divergence, path_patching
from latentbench.mechanism.propagation import attention_shift, persistence

WIDTH, LAYERS, WORDS = 16, 3, 40

CONFIGS: Mapping[str, PretrainedConfig] = {
    "llama": LlamaConfig(
        hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=4, vocab_size=WORDS
    ),
    "neox": GPTNeoXConfig(
        hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=4, vocab_size=WORDS
    ),
    "gpt2": GPT2Config(n_embd=WIDTH, n_layer=LAYERS, n_head=4, vocab_size=WORDS),
    "granite": GraniteConfig(
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        vocab_size=WORDS,
        residual_multiplier=0.22,
    ),
}


class Letters:
    """A tokenizer of one letter per token."""

    bos_token = None
    eos_token_id = WORDS - 1
    pad_token_id = WORDS - 1

    def __call__(self, text: str | list[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) % (WORDS - 1) for letter in item] for item in text]}

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(f"<{token}>" for token in ids)

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool = False) -> list[str]:
        return [self.decode(row) for row in rows]


def language_model(kind: str = "llama") -> LanguageModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind], dtype=torch.float32).eval()
    for parameter in model.parameters():  # away from the small initial values, so that every part matters
        torch.nn.init.normal_(parameter, std=0.3)
    return LanguageModel(model, Letters(), torch.device("cpu"))  # type: ignore[arg-type]


def injection(*layers: int, size: float = 1.0) -> VectorInjection:
    drawn = torch.Generator().manual_seed(1)
    return VectorInjection(SteeringVectors({layer: size * torch.randn(WIDTH, generator=drawn) for layer in layers}))


def passages(lm: LanguageModel, steered: VectorInjection) -> Passages:
    return continuations(lm, steered, ["abc", "hello there", "kind"], 6)


def test_what_is_measured_does_not_depend_on_the_size_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, steered = language_model(), injection(1)
    found = passages(lm, steered)

    def measured() -> list[Tensor]:
        paths, moved = path_patching(lm, steered, found), attention_shift(lm, steered, found)
        shift = torch.from_numpy(probability_shift(lm, steered, found).first)
        travelled = persistence(lm, steered, found, 1, {})
        shares = attribution(lm, steered, found, token=3)
        return [paths.modes["no_patch"], paths.heads, moved.heads, shift, travelled.diff_diff, shares.mlp]

    whole = measured()
    assert len(list(found.batches(lm))) == 1
    monkeypatch.setattr("latentbench.mechanism.passages.NUMBERS", 1)
    monkeypatch.setattr("latentbench.mechanism.paths._PLACES", 2)
    assert [len(batch) for batch in found.batches(lm)] == [1, 1, 1]
    for one, other in zip(measured(), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_passages_hold_the_prompt_and_what_the_steered_model_says_next() -> None:
    lm, steered = language_model(), injection(1)
    found = passages(lm, steered)
    logits = trace(lm, found, steered).logits
    for row in range(len(found)):
        places = torch.nonzero(found.predicting[row])[:, 0]
        assert int(places[0]) == int(found.prompt_lengths[row]) - 1
        torch.testing.assert_close(logits[row, places].argmax(-1), found.ids[row, places + 1])
    assert int(found.first.sum()) == len(found)


@pytest.mark.parametrize("kind", CONFIGS)
def test_skipping_the_layer_is_the_vector_read_by_the_unembedding_alone(kind: str) -> None:
    lm, steered = language_model(kind), injection(LAYERS - 2)
    text = passages(lm, steered)
    found = path_patching(lm, steered, text)
    after = VectorInjection(SteeringVectors({LAYERS - 1: steered.vectors.vectors[LAYERS - 2]}))
    expected = divergence(trace(lm, text).logits, trace(lm, text, after).logits)
    torch.testing.assert_close(found.modes["skip_layer"], (expected * text.predicting).sum(1))
    assert (found.modes["no_patch"] > 0).all()
    assert ("queries" in found.modes) == (kind in ("llama", "granite"))
    assert found.heads.shape == found.only_heads.shape == (3, 4)


def test_skipping_attention_equals_a_block_whose_attention_reads_the_plain_input() -> None:
    lm, steered = language_model(), injection(LAYERS - 2)
    text = passages(lm, steered)
    sites = [Site(index=LAYERS - 1, point="resid_pre"), Site(index=LAYERS - 1, point="attn_out")]
    plain = trace(lm, text, None, sites).states
    block = lm.model.model.layers[-1]
    with torch.no_grad():
        middle = plain[sites[0]] + steered.deltas[LAYERS - 2] + plain[sites[1]]
        hidden = middle + block.mlp(block.post_attention_layernorm(middle))
        logits = lm.model.lm_head(lm.model.model.norm(hidden))
    expected = (divergence(trace(lm, text).logits, logits) * text.predicting).sum(1)
    torch.testing.assert_close(path_patching(lm, steered, text).modes["skip_attention"], expected, rtol=1e-4, atol=1e-6)


def test_all_heads_together_are_skipped_attention_and_all_projections_no_steering_of_it() -> None:
    """With one head, that head is all of attention."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=1, vocab_size=WORDS
    )
    lm = LanguageModel(AutoModelForCausalLM.from_config(config).eval(), Letters(), torch.device("cpu"))  # type: ignore[arg-type]
    steered = injection(LAYERS - 2)
    found = path_patching(lm, steered, passages(lm, steered))
    torch.testing.assert_close(found.heads[:, 0], found.modes["skip_attention"])
    torch.testing.assert_close(found.only_heads[:, 0], found.modes["no_patch"])


@pytest.mark.parametrize("kind", CONFIGS)
def test_shares_of_a_small_change_add_up_to_the_change(kind: str) -> None:
    lm, steered = language_model(kind), injection(0, 1, size=1e-3)
    found = attribution(lm, steered, passages(lm, steered), token=5)
    assert float((found.rest.abs() / found.change.abs()).max()) < 0.02
    assert (found.direct[:, LAYERS - 1] == 0).all()
    assert (found.attention[:, 0] == 0).all()


def test_a_vector_at_the_last_layer_takes_the_direct_path_only() -> None:
    lm, steered = language_model(), injection(LAYERS - 1, size=0.5)
    found = attribution(lm, steered, passages(lm, steered), token=3)
    assert float(found.attention.abs().max()) == float(found.mlp.abs().max()) == 0.0


def test_a_scope_without_the_last_prompt_token_takes_no_direct_path() -> None:
    lm, steered = language_model(), injection(0, 1)
    scoped = VectorInjection(steered.vectors, scope="prompt")
    found = attribution(lm, scoped, passages(lm, steered), token=5)
    assert float(found.direct.abs().max()) == 0.0
    assert float(found.attention.abs().max()) > 0.0  # what was changed at earlier tokens is read from there


def test_behind_the_last_layer_there_is_nothing_and_the_final_change_is_the_vector() -> None:
    lm, steered = language_model(), injection(LAYERS - 1)
    text = passages(lm, steered)
    found = persistence(lm, steered, text, LAYERS - 1, steered.vectors.vectors)
    assert found.layers == ()
    assert found.diff_diff.shape == found.diff_vector.shape == found.relative.shape == (len(text), 0)
    torch.testing.assert_close(found.final, steered.deltas[LAYERS - 1], rtol=1e-4, atol=1e-6)


def test_persistence_agrees_with_a_dense_reference() -> None:
    lm, steered = language_model(), injection(0)
    text = passages(lm, steered)
    site = Site(index=2)
    delta = trace(lm, text, steered, [site]).states[site] - trace(lm, text, None, [site]).states[site]
    chosen = delta[text.predicting].double()
    later = torch.randn(WIDTH, generator=torch.Generator().manual_seed(7))
    found = persistence(lm, steered, text, 0, {0: steered.deltas[0], 2: later})
    assert found.layers == (1, 2)
    mean, other = (cosine_similarity(chosen, v, dim=-1).sum() for v in (chosen.mean(0), later.double()))
    torch.testing.assert_close(found.diff_diff[:, 1].sum(), mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.diff_vector[:, 1].sum(), other, rtol=1e-4, atol=1e-6)
    assert found.diff_vector[:, 0].isnan().all(), "there is no vector of layer 1 to compare with"


def test_what_is_added_at_a_block_itself_does_not_count_there() -> None:
    """Also not where the vectors of several layers are used, and whatever their scope."""
    lm = language_model()
    alone, both = injection(0), injection(0, 2)
    for scope in ("all", "generated"):
        first = VectorInjection(alone.vectors, scope=scope)  # type: ignore[arg-type]
        text = passages(lm, first)
        vectors = both.vectors.vectors
        expected = persistence(lm, first, text, 0, vectors)
        found = persistence(lm, VectorInjection(both.vectors, scope=scope), text, 0, vectors)  # type: ignore[arg-type]
        torch.testing.assert_close(found.diff_vector, expected.diff_vector, equal_nan=True)
        torch.testing.assert_close(found.diff_diff, expected.diff_diff)
        assert not torch.allclose(found.final, expected.final)


def test_attention_moves_only_after_the_steered_block() -> None:
    lm, steered = language_model(), injection(1)
    text = passages(lm, steered)
    before = lm.model.config._attn_implementation
    found = attention_shift(lm, steered, text)
    assert lm.model.config._attn_implementation == before
    assert (found.heads[:, :2] == 0).all()
    assert (found.mlps[:, :2] == 0).all()
    assert (found.heads[:, 2] > 0).all()
    assert (found.heads <= found.tokens[:, None, None]).all()


def test_nothing_moves_without_steering_and_the_shift_is_total_variation() -> None:
    lm, steered = language_model(), injection(2)
    text = passages(lm, steered)
    still = probability_shift(lm, Untouched(), text)
    assert float(still.first.sum() + still.rest.sum()) == 0.0
    shift = probability_shift(lm, steered, text)
    p, q = (trace(lm, text, way).logits.softmax(-1) for way in (steered, None))
    moved = (p - q).abs().sum(-1).double() / 2
    np.testing.assert_allclose(shift.first, (moved * text.first).sum(1).numpy(), rtol=1e-6)
    np.testing.assert_allclose(shift.first + shift.rest, (moved * text.predicting).sum(1).numpy(), rtol=1e-6)
    assert shift.top() in shift.boosted


def test_the_lens_of_a_row_of_the_unembedding_is_its_token() -> None:
    lm = language_model()
    row: Tensor = lm.model.get_output_embeddings().weight[7].detach()
    reading = vector_logit_lens(lm, 3 * row, count=WORDS)
    assert reading.top[0]["id"] == 7
    assert reading.top[0]["cosine"] == pytest.approx(1.0, abs=1e-5)
    assert reading.top[0]["dot"] == pytest.approx(3 * float(row @ row), rel=1e-4)
    assert [token["id"] for token in reading.bottom] == [token["id"] for token in reading.top][::-1]
