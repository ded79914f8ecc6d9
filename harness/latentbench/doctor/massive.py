"""A planted massive activation: the rule that leaves it out must find it, and it alone.

One word of the pocket model's vocabulary gets an embedding a thousand times as long as the longest other, and keeps it in the
residual stream of every block. The truths: the share that is left out is the word's share of the tokens; every statistic is,
bit for bit, the one with the word left out by name; an SAE that knows nothing but the word explains nearly all variance where
it counts, and none where it does not.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from latentbench.activations.tokens import real_mask, special_mask
from latentbench.core.protocols import LanguageModel
from latentbench.core.token_rule import EVERY_TOKEN, TokenRule
from latentbench.doctor.check import Check, Finding, both, close
from latentbench.doctor.truths import FLOAT32, SITE, PocketFixture
from latentbench.metrics.values import metric_values
from latentbench.reconstruction.error_metrics import ExplainedVariance
from latentbench.reconstruction.shared_pass import MeasurementRequest, PassResults, measure
from latentbench.sae.autoencoder import Codes, SparseAutoencoder

TIMES = 1000.0
"""Length of the planted embedding, in lengths of the longest other one."""
SHARE = 0.01
"""About the share of tokens that the planted word is."""


def massive_checks() -> list[Check]:
    """The planted word."""
    return [Check("a planted massive activation is left out", "metrics", lambda: _left_out(_Planted(PocketFixture())))]


class _OnlyLong(SparseAutoencoder):
    """x̂ = x for hidden states longer than `length`, and the same vector for all others."""

    def __init__(self, otherwise: Tensor, length: float) -> None:
        super().__init__()
        self.d_in = self.width = len(otherwise)
        self.otherwise, self.length = otherwise, length

    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        # One latent for each dimension, none of them active on a short state.
        return Codes(x * (x.norm(dim=1, keepdim=True) > self.length), torch.arange(self.width).expand(len(x), -1))

    def decode(self, codes: Codes) -> Tensor:
        return torch.where(codes.values.any(1, keepdim=True), codes.values, self.otherwise)


class _Planted:
    """The pocket model with a massive word, and passes over the doctor's documents with it."""

    def __init__(self, pocket: PocketFixture) -> None:
        self.pocket, self.tokens = pocket, pocket.tokens
        words = real_mask(self.tokens.lengths, self.tokens.ids.shape[1]) & ~special_mask(
            self.tokens.ids, pocket.model.tokenizer
        )
        counts = self.tokens.ids[words].bincount()
        self.word = int((counts / counts.sum() - SHARE).abs().argmin())
        self.share = float(counts[self.word]) / float(counts.sum())

    @cached_property
    def model(self) -> LanguageModel:
        """A copy with the word's embedding lengthened."""
        made = copy.deepcopy(self.pocket.model.model)
        rows: Tensor = made.get_input_embeddings().weight  # type: ignore[assignment]
        with torch.no_grad():
            rows[self.word] *= TIMES * rows.norm(dim=1).max() / rows[self.word].norm()
        return replace(self.pocket.model, model=made)

    def measured(self, sae: SparseAutoencoder, rule: TokenRule) -> PassResults:
        """A pass with one SAE."""
        return measure(self.model, self.tokens, [MeasurementRequest("sae", sae, SITE, splice=True)], rule=rule)

    def named(self) -> TokenRule:
        """The rule that leaves the word out by name."""
        spelling: str = self.model.tokenizer.convert_ids_to_tokens(self.word)  # type: ignore[assignment]
        return TokenRule(None, (spelling,))


def _left_out(planted: _Planted) -> Finding:
    rule, topk = TokenRule(), planted.pocket.topk
    by_length, by_name = planted.measured(topk, rule), planted.measured(topk, planted.named())
    baseline = by_length.baselines[SITE]
    massive, tokens = (float(baseline.statistics[name].sum()) for name in ("massive", "tokens"))
    knows = _OnlyLong(torch.from_numpy(baseline.mean).float(), baseline.limit.length)
    ordinary, every = (_explained(planted.measured(knows, asked)) for asked in (rule, EVERY_TOKEN))
    same = _statistics(by_length).keys() == _statistics(by_name).keys() and all(
        np.array_equal(values, _statistics(by_name)[name]) for name, values in _statistics(by_length).items()
    )
    return both(
        close("share left out", massive / (massive + tokens), planted.share, 1e-12),
        Finding(same, f"statistics are {'bit for bit those' if same else 'not those'} with the word left out by name"),
        close("explained variance of an SAE that knows the word alone", ordinary, 0.0, FLOAT32),
        Finding(every > 0.95, f"the same where the word counts: {every:.4f} (above .95)"),
    )


def _statistics(results: PassResults) -> dict[str, np.ndarray]:
    shared = results.baselines[SITE].statistics
    kept = {name: values for name, values in shared.items() if name not in ("massive", "named")}
    return kept | results.measurements[0].statistics


def _explained(results: PassResults) -> float:
    found = {**results.baselines[SITE].statistics, **results.measurements[0].statistics}
    value = metric_values([ExplainedVariance()], {"pocket": found})[0].value
    return float("nan") if value is None else value
