"""Our statistics against sae-lens' own evaluator: same SAE, same tokens, same mask.

Conventions that differ, each of them pinned down by a test here:

* Zero-ablation: sae-lens zeroes special tokens too; here they keep their hidden states, as under the SAE.
* Cross-entropy with special tokens: sae-lens leaves out predictions made *from* a special token (the first after BOS),
  here every prediction of a real token counts.
* KL: sae-lens also counts the last position of a row, which predicts nothing.
* MSE: sae-lens sums the squared error over dimensions, here it is per dimension.
* The legacy explained variance centres on each batch's mean, here `token_ratio` centres on the domain's.
* sae-lens' proxy of a transformers model takes no attention mask, so its rows must be equally long.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from latentbench.activations.blocks import decoder_blocks
from latentbench.activations.tokens import EvalTokens, evaluation_tokens
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Site
from latentbench.core.token_rule import EVERY_TOKEN, TokenRule
from latentbench.metrics.values import metric_values
from latentbench.reconstruction.cross_entropy import CrossEntropy
from latentbench.reconstruction.error_metrics import MSE, Cosine, ExplainedVariance, NormRatio
from latentbench.reconstruction.shared_pass import MeasurementRequest, measure
from latentbench.reconstruction.sparsity_and_cost import L0
from latentbench.sae.autoencoder import Codes, SparseAutoencoder

evals = pytest.importorskip("sae_lens.evals")
sae_lens = pytest.importorskip("sae_lens")
load_model = pytest.importorskip("sae_lens.load_model")

REAL = Path(__file__).parents[3] / "shared" / "real"
SITE = Site(index=2)
METRICS = [
    CrossEntropy(),
    ExplainedVariance(estimators=("centred", "token_ratio")),
    L0(),
    MSE(),
    Cosine(),
    NormRatio(),
]
SAME = 1e-6
"""Relative: both sum in another order, sae-lens in float32."""
DIVERGENCE = 1e-5
"""sae-lens adds up terms of both signs in float32, in which a divergence of 0.003 nats loses a digit or two."""
QUOTIENT = 1e-5
"""Of two differences of losses, each of which loses a digit to cancellation."""
ROLES = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id")


class SaeLensSAE(SparseAutoencoder):
    """A sae-lens SAE behind our interface."""

    def __init__(self, sae) -> None:
        super().__init__()
        self.sae, self.d_in, self.width = sae, sae.cfg.d_in, sae.cfg.d_sae

    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        return Codes.from_dense(self.sae.encode(x))

    def decode(self, codes: Codes) -> Tensor:
        return self.sae.decode(codes.dense(self.width))


class Rows:
    """Stands in for sae-lens' activation store: hands out rows of tokens in order."""

    def __init__(self, ids: Tensor, batch: int) -> None:
        self._ids, self.store_batch_size_prompts, self.context_size = ids, batch, ids.shape[1]
        self.reset_input_dataset()

    def reset_input_dataset(self) -> None:
        self._batches: Iterator[Tensor] = iter(self._ids.split(self.store_batch_size_prompts))

    def get_batch_tokens(self, count: int) -> Tensor:
        return next(self._batches)


def fitted(kind: str, model, ids: Tensor):
    """A sae-lens SAE that reconstructs about as well as PCA would: directions and mean come from the data."""
    torch.manual_seed(1)
    d = model.config.hidden_size
    shape = {"d_in": d, "d_sae": 2 * d, "dtype": "float32", "device": "cpu"}
    if kind == "topk":
        sae = sae_lens.TopKSAE(sae_lens.TopKSAEConfig(**shape, k=d // 2))
    else:
        sae = sae_lens.JumpReLUSAE(sae_lens.JumpReLUSAEConfig(**shape))
    sae.cfg.metadata.hook_name = next(n for n, m in model.named_modules() if m is decoder_blocks(model)[SITE.index])
    with torch.no_grad():
        x = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[SITE.index + 1]
        x = x[:, 1:].flatten(0, 1)
        _, scale, directions = torch.linalg.svd(x - x.mean(0), full_matrices=False)
        sae.b_dec.copy_(x.mean(0))
        sae.W_dec.copy_(torch.cat([directions, -directions]))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_enc.copy_(-sae.b_dec @ sae.W_enc if not sae.cfg.apply_b_dec_to_input else torch.zeros(2 * d))
        if kind == "jumprelu":
            sae.threshold.copy_((scale / len(x) ** 0.5).repeat(2))
    return sae.eval()


def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=90, **sizes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def rows(bos: bool) -> EvalTokens:
    ids = torch.randint(2, 90, (24, 16), generator=torch.Generator().manual_seed(5)).int()
    if bos:
        ids[:, 0] = 0
    return EvalTokens(ids, torch.full((24,), 16, dtype=torch.int32), ("0" * 16,) * 24, 0)


def tokenizer(special: bool) -> SimpleNamespace:
    return SimpleNamespace(**dict.fromkeys(ROLES) | ({"bos_token_id": 0} if special else {}))


def ours(model, tok, tokens: EvalTokens, sae, rule: TokenRule = EVERY_TOKEN) -> dict[str, float]:
    """Our metric values."""
    lm = LanguageModel(model, tok, torch.device("cpu"))
    results = measure(lm, tokens, [MeasurementRequest("sae", SaeLensSAE(sae), SITE, splice=True)], rule=rule)
    statistics = results.baselines[SITE].statistics | results.measurements[0].statistics
    return {v.id: float(v.value) for v in metric_values(METRICS, {"d": statistics}) if v.value is not None}


def theirs(model, tok, tokens: EvalTokens, sae, batch: int = 8) -> dict[str, float]:
    """All of sae-lens' metrics, from its `run_evals`."""
    ids = tokens.ids.long()
    batches = len(ids) // batch
    config = evals.get_eval_everything_config(batch, batches, batches)
    proxy = load_model.HookedProxyLM(model, tok)
    scaler = sae_lens.training.activation_scaler.ActivationScaler()
    metrics, _ = evals.run_evals(sae, Rows(ids, batch), proxy, scaler, config, exclude_special_tokens=tok is not None)
    return {name: value for group in metrics.values() for name, value in group.items()}


def their_losses(model, tok, tokens: EvalTokens, sae) -> dict[str, Tensor]:
    """sae-lens' losses of every token [documents, context or context − 1], none left out."""
    ignored = evals.get_special_token_ids(tok)
    proxy = load_model.HookedProxyLM(model, tok)
    scaler = sae_lens.training.activation_scaler.ActivationScaler()
    with torch.no_grad():
        return evals.get_recons_loss(sae, proxy, scaler, tokens.ids.long(), True, True, ignore_tokens=ignored)


def assert_reconstruction_agrees(mine: dict[str, float], lens: dict[str, float], d: int) -> None:
    assert mine["explained_variance.centred"] == pytest.approx(lens["explained_variance"], rel=SAME)
    assert mine["l0"] == pytest.approx(lens["l0"], rel=SAME)
    assert mine["mse"] * d == pytest.approx(lens["mse"], rel=SAME)
    assert mine["cosine"] == pytest.approx(lens["cossim"], rel=SAME)
    assert mine["norm_ratio"] == pytest.approx(lens["l2_ratio"], rel=SAME)


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_the_whole_evaluator_agrees_where_there_are_no_special_tokens(kind: str) -> None:
    model, tokens = tiny_model(), rows(bos=False)
    sae = fitted(kind, model, tokens.ids.long())
    mine = ours(model, tokenizer(False), tokens, sae)
    lens = theirs(model, None, tokens, sae)
    assert_reconstruction_agrees(mine, lens, 24)
    assert 0.2 < mine["explained_variance.centred"] < 0.98
    assert mine["cross_entropy.clean"] == pytest.approx(lens["ce_loss_without_sae"], rel=SAME)
    assert mine["cross_entropy.sae"] == pytest.approx(lens["ce_loss_with_sae"], rel=SAME)
    assert mine["cross_entropy.zero"] == pytest.approx(lens["ce_loss_with_ablation"], rel=SAME)
    assert mine["cross_entropy.loss_recovered_zero"] == pytest.approx(lens["ce_loss_score"], rel=QUOTIENT)


def test_with_bos_the_same_tokens_are_looked_at_and_the_same_states_replaced() -> None:
    model, tokens, tok = tiny_model(), rows(bos=True), tokenizer(True)
    sae = fitted("topk", model, tokens.ids.long())
    mine = ours(model, tok, tokens, sae)
    assert_reconstruction_agrees(mine, theirs(model, tok, tokens, sae), 24)
    losses = their_losses(model, tok, tokens, sae)
    assert mine["cross_entropy.clean"] == pytest.approx(losses["ce_loss_without_sae"].mean().item(), rel=SAME)
    assert mine["cross_entropy.sae"] == pytest.approx(losses["ce_loss_with_sae"].mean().item(), rel=SAME)
    assert mine["cross_entropy.kl"] == pytest.approx(losses["kl_div_with_sae"][:, :-1].mean().item(), rel=DIVERGENCE)


def test_with_massive_tokens_left_out_by_both_the_same_is_measured() -> None:
    model, tokens = tiny_model(), rows(bos=False)
    massive = 7
    with torch.no_grad():
        model.get_input_embeddings().weight[massive] *= 200
    sae = fitted("topk", model, tokens.ids[~(tokens.ids == massive).any(1)].long())
    mine = ours(model, tokenizer(False), tokens, sae, TokenRule())
    # sae-lens has no rule by length but leaves out ids, and keeps their states where it splices as well.
    known = SimpleNamespace(**dict.fromkeys(ROLES) | {"eos_token_id": massive})
    assert_reconstruction_agrees(mine, theirs(model, known, tokens, sae), 24)
    losses = their_losses(model, known, tokens, sae)
    assert mine["cross_entropy.sae"] == pytest.approx(losses["ce_loss_with_sae"].mean().item(), rel=SAME)
    assert mine["cross_entropy.kl"] == pytest.approx(losses["kl_div_with_sae"][:, :-1].mean().item(), rel=DIVERGENCE)
    every = ours(model, tokenizer(False), tokens, sae)
    assert abs(every["explained_variance.centred"] - mine["explained_variance.centred"]) > 0.01


def test_sae_lens_leaves_out_predictions_made_from_bos() -> None:
    model, tokens, tok = tiny_model(), rows(bos=True), tokenizer(True)
    sae = fitted("topk", model, tokens.ids.long())
    mine = ours(model, tok, tokens, sae)
    lens = theirs(model, tok, tokens, sae)
    losses = their_losses(model, tok, tokens, sae)
    assert lens["ce_loss_with_sae"] == pytest.approx(losses["ce_loss_with_sae"][:, 1:].mean().item(), rel=SAME)
    assert abs(mine["cross_entropy.clean"] - lens["ce_loss_without_sae"]) > 1e-3
    assert lens["kl_div_with_sae"] == pytest.approx(losses["kl_div_with_sae"][:, 1:].mean().item(), rel=SAME)


def test_sae_lens_zeroes_bos_too() -> None:
    model, tokens, tok = tiny_model(), rows(bos=True), tokenizer(True)
    sae = fitted("topk", model, tokens.ids.long())
    ids = tokens.ids.long()
    block = decoder_blocks(model)[SITE.index]

    def zeroed(keep_bos: bool) -> float:
        def zero(module, args, output: Tensor) -> Tensor:
            return output * ((ids == 0) & keep_bos)[..., None]

        handle = block.register_forward_hook(zero)
        with torch.no_grad():
            log_p = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
        handle.remove()
        return float(-log_p[:, :-1].gather(-1, ids[:, 1:, None]).mean())

    mine = ours(model, tok, tokens, sae)
    lens = their_losses(model, tok, tokens, sae)["ce_loss_with_ablation"].mean().item()
    assert mine["cross_entropy.zero"] == pytest.approx(zeroed(keep_bos=True), rel=1e-5)
    assert lens == pytest.approx(zeroed(keep_bos=False), rel=1e-5)
    assert abs(mine["cross_entropy.zero"] - lens) > 1e-3


def test_the_legacy_explained_variance_agrees_when_one_batch_is_the_domain() -> None:
    model, tokens = tiny_model(), rows(bos=False)
    sae = fitted("topk", model, tokens.ids.long())
    mine = ours(model, tokenizer(False), tokens, sae)
    whole, batched = (theirs(model, None, tokens, sae, batch)["explained_variance_legacy"] for batch in (24, 2))
    assert mine["explained_variance.token_ratio"] == pytest.approx(whole, rel=SAME)
    assert abs(batched - whole) > 1e-3


def real():
    """A real model, its tokenizer and 48 stories of at least 128 tokens (see the last point above)."""
    tok = AutoTokenizer.from_pretrained(REAL / "stories260k")
    model = AutoModelForCausalLM.from_pretrained(REAL / "stories260k").eval()
    with (REAL / "text" / "tinystories.jsonl").open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    tokens = evaluation_tokens(texts, tok, context=128, documents=200)
    long = torch.where(tokens.lengths == 128)[0][:48]
    chosen = EvalTokens(tokens.ids[long], tokens.lengths[long], tuple(tokens.digests[n] for n in long), 0)
    return model, tok, chosen


@pytest.mark.skipif(not REAL.exists(), reason="needs the real model, which is not part of the project")
@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_a_real_model_on_real_text_agrees(kind: str) -> None:
    model, tok, tokens = real()
    sae = fitted(kind, model, tokens.ids.long())
    mine = ours(model, tok, tokens, sae)
    assert_reconstruction_agrees(mine, theirs(model, tok, tokens, sae, batch=16), 64)
    losses = their_losses(model, tok, tokens, sae)
    assert mine["cross_entropy.clean"] == pytest.approx(losses["ce_loss_without_sae"].mean().item(), rel=SAME)
    assert mine["cross_entropy.sae"] == pytest.approx(losses["ce_loss_with_sae"].mean().item(), rel=SAME)
    assert mine["cross_entropy.kl"] == pytest.approx(losses["kl_div_with_sae"][:, :-1].mean().item(), rel=DIVERGENCE)
    assert 1.0 < mine["cross_entropy.clean"] < 2.2
    assert mine["cross_entropy.clean"] < mine["cross_entropy.sae"] < mine["cross_entropy.zero"]
