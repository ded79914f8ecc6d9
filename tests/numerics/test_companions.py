"""The companions of autointerp against straightforward dense float64 computations on planted data."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from latentbench.core.errors import InvalidInput
from latentbench.core.token_rule import EVERY_TOKEN, TokenRule
from latentbench.latents import decoder_similarity, survey
from latentbench.latents.decoder_similarity import agreement, consistency, matched_cosines
from latentbench.latents.encoding import Encoded, encoded
from latentbench.latents.logit_lens import final_norm, logit_lens
from latentbench.latents.probing import documents_of
from latentbench.latents.survey import PADDING, LatentUsage, NonzeroActivations, PairCounts, TopExamples
from latentbench.reconstruction.documents import DocumentBatch
from latentbench.sae.autoencoder import Codes
from tests.support.passes import LM, MASSIVE, MIDDLE, TOKENS, ToySAE
from tests.support.passes import planted as planted_model

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, VOCABULARY, K = 12, 9, 3
CPU = torch.device("cpu")


def planted(seed: int, lengths: tuple[int, ...] = (7, 5, 9, 4)) -> tuple[list[Encoded], Tensor]:
    """Documents in batches of two, whose first token is special, and the dense latents [documents, context, width]."""
    generator = torch.Generator().manual_seed(seed)
    context = max(lengths)
    ids = torch.randint(0, VOCABULARY, (len(lengths), context), generator=generator)
    dense = torch.zeros(len(lengths), context, WIDTH)
    batches = []
    for start in range(0, len(lengths), 2):
        chosen = torch.arange(start, min(start + 2, len(lengths)))
        real = torch.arange(context) < torch.tensor(lengths)[chosen][:, None]
        ordinary = real.clone()
        ordinary[:, 0] = False
        tokens = int(ordinary.sum())
        scores = torch.rand(tokens, WIDTH, generator=generator)
        scores[:, -1] = 0  # a dead latent
        values, indices = scores.topk(K, dim=1)
        values[torch.rand(tokens, K, generator=generator) < 0.3] = 0  # padding
        part = torch.zeros(*ordinary.shape, WIDTH)
        part[ordinary] = torch.zeros(tokens, WIDTH).scatter_add(1, indices, values)
        dense[chosen] = part
        batch = DocumentBatch(chosen, ids[chosen], real, ordinary, len(batches), torch.arange(len(chosen)))
        batches.append(Encoded(batch, batch.ordinary, torch.zeros(tokens, 2), Codes(values, indices)))
    return batches, dense


def used(batches: list[Encoded]) -> LatentUsage:
    found = LatentUsage(WIDTH, VOCABULARY, CPU)
    for part in batches:
        found.add(part)
    return found


def tokens_of(batches: list[Encoded]) -> Tensor:
    return torch.cat([part.batch.ids for part in batches])


@pytest.mark.parametrize("seed", range(3))
def test_usage_against_dense_latents(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "_PENDING", 5)  # pairs are merged again and again
    batches, dense = planted(seed)
    found, active = used(batches), dense != 0
    assert found.tokens == sum(int(part.batch.ordinary.sum()) for part in batches)
    torch.testing.assert_close(found.firing, active.sum((0, 1)))
    torch.testing.assert_close(found.documents, active.any(1).sum(0))
    torch.testing.assert_close(found.repeated, (active.sum(1) > 1).sum(0))
    torch.testing.assert_close(found.largest, dense.amax((0, 1)))
    assert found.histogram.sum(1).tolist() == found.firing.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_token_entropy_and_top_tokens_against_counting(seed: int) -> None:
    batches, dense = planted(seed)
    ids, found = tokens_of(batches), used(batches)
    entropy, (top, counts) = found.entropy(), found.top_tokens(4)
    for latent in range(WIDTH):
        seen = Counter(ids[dense[..., latent] != 0].tolist())
        total = sum(seen.values())
        expected = -sum(n / total * np.log2(n / total) for n in seen.values())
        assert float(entropy[latent]) == pytest.approx(expected, abs=1e-12)
        listed = sorted(seen.items(), key=lambda item: (-item[1], item[0]))[:4]
        assert [(t, n) for t, n in zip(top[latent].tolist(), counts[latent].tolist(), strict=True) if n] == listed


def test_entropy_of_known_uses() -> None:
    """Four equally frequent tokens have two bits, one token none."""
    ids = torch.tensor([[0, 1, 2, 3, 4]])
    real = torch.ones_like(ids, dtype=torch.bool)
    ordinary = real.clone()
    ordinary[0, 0] = False
    values, indices = torch.ones(4, 2), torch.tensor([[0, 1]] * 4)
    values[1:, 1] = 0
    found = used(
        [
            Encoded(
                DocumentBatch(torch.tensor([0]), ids, real, ordinary, 0, torch.tensor([0])),
                ordinary,
                torch.zeros(4, 2),
                Codes(values, indices),
            )
        ]
    )
    assert found.entropy()[:2].tolist() == [2.0, 0.0]
    assert found.repeated[:2].tolist() == [1, 0]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8)), max_size=60), st.integers(1, 10))
@settings(max_examples=40, deadline=None)
def test_pairs_are_counted_whatever_the_batches(pairs: list[tuple[int, int]], size: int) -> None:
    table = PairCounts(VOCABULARY, CPU)
    for start in range(0, len(pairs), size):
        latents, tokens = zip(*pairs[start : start + size], strict=True)
        table.add(torch.tensor(latents), torch.tensor(tokens))
    found = zip(*(part.tolist() for part in table.table()), strict=True)
    assert {(latent, token): n for latent, token, n in found} == dict(Counter(pairs))


@pytest.mark.parametrize("seed", range(4))
def test_top_examples_against_dense_latents(seed: int) -> None:
    window, kept = 4, 3
    lengths = (7, 5, 9, 4)
    batches, dense = planted(seed, lengths)
    ids, best = tokens_of(batches), TopExamples(WIDTH, kept, window, CPU)
    for part in batches:
        best.add(part)
    for latent in range(WIDTH):
        peaks = sorted(((float(dense[d, :, latent].max()), d) for d in range(len(lengths))), reverse=True)
        expected = [(value, d) for value, d in peaks if value > 0][:kept]
        shown = [
            (float(v), int(d))
            for v, d in zip(best.found.peaks[latent], best.found.documents[latent], strict=True)
            if v > 0
        ]
        assert shown == expected
        for place, (value, document) in enumerate(expected):
            start = int(best.found.starts[latent, place])
            stop = min(start + window, lengths[document])
            assert start <= int(dense[document, :, latent].argmax()) < stop
            assert value == float(dense[document, start:stop, latent].max())
            tokens = best.found.ids[latent, place]
            assert tokens[tokens != PADDING].tolist() == ids[document, start:stop].tolist()
            activations = best.found.activations[latent, place, : stop - start]
            torch.testing.assert_close(activations, dense[document, start:stop, latent].half())


def test_one_peak_per_document() -> None:
    entries = NonzeroActivations(
        torch.tensor([0, 0, 0, 1]), torch.tensor([1.0, 3.0, 2.0, 5.0]), torch.tensor([0, 1, 2, 2])
    )
    rows = torch.tensor([0, 0, 1])
    assert survey.document_peaks(entries, rows, entries.values > 0).tolist() == [1, 2, 3]
    assert survey.document_peaks(entries, rows, entries.values > 2.5).tolist() == [1, 3]


def test_nearest_rows_in_chunks_are_those_of_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(37, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[5] = 0
    whole = torch.nn.functional.normalize(rows, dim=1) @ torch.nn.functional.normalize(rows, dim=1).t()
    whole.fill_diagonal_(-torch.inf)
    monkeypatch.setattr(decoder_similarity, "_ENTRIES", 100)
    found = decoder_similarity.nearest(rows, 4)
    torch.testing.assert_close(found.cosines, whole.topk(4).values)
    assert not (found.indices == torch.arange(37)[:, None]).any()
    some = torch.tensor([3, 36])
    torch.testing.assert_close(decoder_similarity.nearest(rows, 4, some).cosines, found.cosines[some])
    torch.testing.assert_close(decoder_similarity.best_matches(rows[:9], rows[9:]), whole[:9, 9:].amax(1))


def test_matching_finds_a_planted_permutation() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 16, generator=generator)
    shuffled = 3 * rows[torch.randperm(40, generator=generator)]
    found = agreement(rows, shuffled)
    assert found.best_match == pytest.approx(1, abs=1e-6)
    assert found.matched == pytest.approx(1, abs=1e-6)
    assert found.shared == 1
    other = consistency([rows, shuffled]).chance
    assert other.matched is not None
    assert other.matched < other.best_match < 0.75


def test_matching_is_the_best_of_all_permutations() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    cosine = torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).t()
    best = max(float(cosine[range(5), list(order)].sum()) for order in permutations(range(5)))
    assert float(matched_cosines(a, b).sum()) == pytest.approx(best, abs=1e-12)


def test_no_one_to_one_match_for_unequal_or_wide_dictionaries(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    assert agreement(rows, rows[:10]).matched is None
    monkeypatch.setattr("latentbench.latents.decoder_similarity.HUNGARIAN_LIMIT", 19)
    assert agreement(rows, rows).matched is None
    with pytest.raises(InvalidInput, match="two seeds"):
        consistency([rows])
    with pytest.raises(InvalidInput, match="different dimensions"):
        consistency([rows, rows[:, :2]])


def language_model() -> LlamaForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2
        )
        model = LlamaForCausalLM(config).double()
    with torch.no_grad():
        model.model.norm.weight.uniform_(0.5, 2, generator=torch.Generator().manual_seed(3))
    return model


def test_logit_lens_is_unembedding_of_the_scaled_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentbench.latents.logit_lens._LOGITS", 40)  # two directions at a time
    model = language_model()
    directions = torch.randn(5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scaled = directions / directions.pow(2).mean(1, keepdim=True).add(model.model.norm.variance_epsilon).sqrt()
    logits = (scaled * model.model.norm.weight) @ model.lm_head.weight.t()
    logits = (logits - logits.mean(1, keepdim=True)).float().detach()
    found = logit_lens(model, directions, 3)
    assert found.top.tolist() == logits.topk(3).indices.tolist()
    assert found.bottom.tolist() == (-logits).topk(3).indices.tolist()
    torch.testing.assert_close(found.top_logits, logits.topk(3).values)
    torch.testing.assert_close(found.bottom_logits, -(-logits).topk(3).values)


def test_logit_lens_leaves_the_norms_bias_out() -> None:
    """With the bias, every latent would promote the same tokens."""
    model = language_model()
    norm = nn.LayerNorm(8).double()
    with torch.no_grad():
        norm.bias.copy_(100 * model.lm_head.weight[4])
    model.model.norm = norm
    assert final_norm(model) is norm
    direction = model.lm_head.weight[[7]].detach() - model.lm_head.weight[[9]].detach()
    found = logit_lens(model, direction, 1)
    centred = direction - direction.mean()
    expected = (centred / centred.pow(2).mean().add(norm.eps).sqrt()) @ model.lm_head.weight.t()
    assert found.top.item() == expected.argmax().item()
    assert found.bottom.item() == expected.argmin().item()


def test_documents_are_encoded_at_every_budget_by_an_sae_in_evaluation_mode() -> None:
    sae = ToySAE()
    sae.train()
    parts = list(encoded(LM, sae, MIDDLE, TOKENS, budgets=(None, 2), forward_tokens=40))
    assert not sae.training
    assert [part.budget for part in parts] == [None, 2] * (len(parts) // 2)
    assert all(first.states is second.states for first, second in zip(parts[::2], parts[1::2], strict=True))
    assert {part.codes.values.shape[1] for part in parts[1::2]} == {2}
    found = sorted(number for part in parts[::2] for number in part.batch.documents.tolist())
    assert found == list(range(len(TOKENS.ids)))
    batch = parts[0].batch
    assert torch.equal(batch.ids[batch.rows, batch.positions], batch.token_ids)


def test_latents_are_surveyed_without_massive_tokens() -> None:
    lm, sae = planted_model(), ToySAE()
    rules = TokenRule(10.0), TokenRule(None, (f"w{MASSIVE}",))
    by_length, by_name = (
        survey.survey(encoded(lm, sae, MIDDLE, TOKENS, rule=rule), lm, sae.width, 3, 8, 5).tensors() for rule in rules
    )
    assert by_length.keys() == by_name.keys()
    for name in ("tokens", "firing", "documents", "repeated", "largest", "entropy", "top_tokens"):
        assert torch.equal(by_length[name], by_name[name]), name
    kept = survey.survey(encoded(lm, sae, MIDDLE, TOKENS), lm, sae.width, 3, 8, 5)
    assert kept.tokens == int(by_length["tokens"]) + int((TOKENS.ids == MASSIVE).sum())
    pooled = [
        documents_of(encoded(lm, sae, MIDDLE, TOKENS, rule=rule), len(TOKENS.ids), sae).states
        for rule in (*rules, EVERY_TOKEN)
    ]
    assert np.array_equal(pooled[0], pooled[1])
    assert np.abs(pooled[2]).max() > 10 * np.abs(pooled[0]).max()


def test_readers_see_massive_tokens_on_which_nothing_is_active() -> None:
    lm, sae = planted_model(), ToySAE()
    pairs = zip(encoded(lm, sae, MIDDLE, TOKENS, rule=TokenRule(10.0)), encoded(lm, sae, MIDDLE, TOKENS), strict=True)
    massive = 0
    for part, whole in pairs:
        assert torch.equal(part.words, whole.batch.ordinary)
        spread, plain = part.codes_of_words().dense(sae.width), whole.codes.dense(sae.width)
        long = whole.batch.token_ids == MASSIVE
        assert not spread[long].any()
        torch.testing.assert_close(spread[~long], plain[~long])
        assert part.codes.l0.sum() == part.codes_of_words().l0.sum()
        massive += int(long.sum())
    assert massive > 0
