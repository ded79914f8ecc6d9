"""Metrics of SAEs whose numbers are known without measuring, through the code that measures everything else.

| SAE | truth |
| --- | --- |
| identity x̂ = x | explained variance 1, cosine 1, CE increase 0, KL 0, loss recovered 1 |
| mean x̂ = x̄ | explained variance 0 (centred), CE with it = CE of mean ablation |
| zero x̂ = 0 | CE with it = CE of zero ablation, loss recovered (zero) 0, explained variance (uncentred) 0 |
| any, at another scale of x | the same explained variance, cosine, norm ratio and L0 |
| any, in other batches or other company | the same numbers |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from latentbench.activations.capture import hidden_states
from latentbench.activations.site import Site
from latentbench.activations.tokens import EvalTokens, evaluation_tokens
from latentbench.doctor.check import Check, Finding, both, close
from latentbench.measure.documents import Request, Results, measure
from latentbench.measure.domain import Domain
from latentbench.measure.reconstruction import Reconstructions
from latentbench.metrics.base import Metric, Statistics
from latentbench.metrics.cross_entropy import CrossEntropy
from latentbench.metrics.explained_variance import ExplainedVariance
from latentbench.metrics.reconstruction import Cosine, NormRatio
from latentbench.metrics.sparsity import L0
from latentbench.metrics.values import metric_values
from latentbench.sae.base import SparseAutoencoder
from latentbench.sae.codes import Codes
from latentbench.sae.options import IdentityOptions, TopKOptions
from latentbench_adapters.pocket.adapter import PocketModel, PocketText
from latentbench_adapters.protocols import LanguageModel, Roots

if TYPE_CHECKING:
    from latentbench.metrics.base import Array

DOCUMENTS, CONTEXT, SITE = 24, 64, Site(index=3)
METRICS: tuple[Metric, ...] = (
    ExplainedVariance(estimators=("centred", "residual_variance", "token_ratio", "uncentred")),
    CrossEntropy(),
    Cosine(),
    NormRatio(),
    L0(),
)
FLOAT32 = 2e-6
"""What float32 arithmetic leaves of an equation of real numbers here."""
SCALES = (1e-3, 1e3)


class Constant(SparseAutoencoder):
    """x̂ = the same vector for every token; no latent is active."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.d_in, self.width, self.value = len(value), 1, value

    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        return Codes(x.new_zeros(len(x), 1), torch.zeros(len(x), 1, dtype=torch.int64))

    def decode(self, codes: Codes) -> Tensor:
        return self.value.expand(len(codes.values), -1)


class Scaled(SparseAutoencoder):
    """x̂ = c · sae(x / c): the same SAE for hidden states that are c times as large."""

    def __init__(self, sae: SparseAutoencoder, factor: float) -> None:
        super().__init__()
        self.d_in, self.width, self.sae, self.factor = sae.d_in, sae.width, sae, factor

    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        return self.sae.encode(x / self.factor, budget)

    def decode(self, codes: Codes) -> Tensor:
        return self.sae.decode(codes) * self.factor


class Ward:
    """The pocket model, a few documents, and SAEs with known numbers; everything is made once, on first use."""

    @cached_property
    def model(self) -> LanguageModel:
        """The pocket model on the CPU."""
        return PocketModel().load(self._roots, torch.device("cpu"))

    @cached_property
    def tokens(self) -> EvalTokens:
        """A few documents of unequal length."""
        texts = islice(PocketText(domain="general", split="eval").texts(self._roots), DOCUMENTS)
        uneven = (text[: 40 + 25 * (number % 9)] for number, text in enumerate(texts))
        return evaluation_tokens(uneven, self.model.tokenizer, context=CONTEXT)

    @cached_property
    def d_in(self) -> int:
        """Hidden size of the model."""
        return int(self.model.model.config.hidden_size)

    @cached_property
    def topk(self) -> SparseAutoencoder:
        """An SAE that is neither perfect nor useless: TopK as initialised."""
        return TopKOptions(width=4 * self.d_in, k=8).build(self.d_in, torch.Generator().manual_seed(1)).eval()

    @cached_property
    def requests(self) -> tuple[Request, ...]:
        """Every SAE of the table above."""
        mean = torch.from_numpy(measure(self.model, self.tokens, sites=[SITE]).baselines[SITE].mean).float()
        identity = IdentityOptions().build(self.d_in, torch.Generator())
        saes = {
            "identity": identity,
            "mean": Constant(mean),
            "zero": Constant(torch.zeros(self.d_in)),
            "topk": self.topk,
        }
        return tuple(Request(name, sae, SITE, splice=True) for name, sae in saes.items())

    @cached_property
    def results(self) -> Results:
        """All SAEs in one pass."""
        return self.measured(self.requests)

    def measured(self, requests: Sequence[Request], forward_tokens: int = 4096) -> Results:
        """A pass over the documents."""
        return measure(self.model, self.tokens, requests, forward_tokens=forward_tokens)

    def numbers(self, name: str, results: Results | None = None) -> dict[str, float]:
        """Every number of an SAE by id; NaN where it has none."""
        found = results or self.results
        own = next(m.statistics for m in found.measurements if m.name == name)
        values = metric_values(METRICS, {"pocket": {**found.baselines[SITE].statistics, **own}})
        return {value.id: float("nan") if value.value is None else value.value for value in values}

    def states(self) -> Iterator[tuple[object, Tensor]]:
        """Batches with the hidden states [N, d] of their ordinary tokens."""
        domain = Domain(self.model, self.tokens, 4096, None)
        for batch in domain.batches():
            yield batch, hidden_states(domain.model, [SITE], batch.ids, batch.real.long())[SITE][batch.ordinary].float()

    @property
    def _roots(self) -> Roots:
        return Roots(Path.cwd())


def metric_checks() -> list[Check]:
    """The checks of the table above."""
    ward = Ward()
    return [
        Check("identity reconstructs everything", "metrics", lambda: _identity(ward)),
        Check("the mean explains nothing", "metrics", lambda: _mean(ward)),
        Check("zero is zero ablation", "metrics", lambda: _zero(ward)),
        Check("scaling hidden states moves nothing", "metrics", lambda: _rescaled(ward)),
        Check("batch size moves nothing", "metrics", lambda: _batches(ward)),
        Check("company moves nothing", "metrics", lambda: _company(ward)),
    ]


def _identity(ward: Ward) -> Finding:
    found = ward.numbers("identity")
    truths = {
        "explained_variance.centred": 1.0,
        "explained_variance.uncentred": 1.0,
        "cross_entropy.increase": 0.0,
        "cross_entropy.kl": 0.0,
        "cross_entropy.loss_recovered_zero": 1.0,
        "cosine": 1.0,
    }
    return both(*(close(name, found[name], truth, FLOAT32) for name, truth in truths.items()))


def _mean(ward: Ward) -> Finding:
    found = ward.numbers("mean")
    return both(
        close("explained_variance.centred", found["explained_variance.centred"], 0.0, FLOAT32),
        close("explained_variance.token_ratio", found["explained_variance.token_ratio"], 0.0, FLOAT32),
        close("CE with it − CE mean-ablated", found["cross_entropy.sae"] - found["cross_entropy.mean"], 0.0, FLOAT32),
        close("cross_entropy.loss_recovered_mean", found["cross_entropy.loss_recovered_mean"], 0.0, FLOAT32),
    )


def _zero(ward: Ward) -> Finding:
    found = ward.numbers("zero")
    return both(
        close("explained_variance.uncentred", found["explained_variance.uncentred"], 0.0, FLOAT32),
        close("CE with it − CE zero-ablated", found["cross_entropy.sae"] - found["cross_entropy.zero"], 0.0, FLOAT32),
        close("cross_entropy.loss_recovered_zero", found["cross_entropy.loss_recovered_zero"], 0.0, FLOAT32),
    )


def _rescaled(ward: Ward) -> Finding:
    plain = _statistics(ward, 1.0)
    largest = max(_apart(plain, _statistics(ward, factor)) for factor in SCALES)
    scales = " and ".join(f"{factor:g}" for factor in SCALES)
    return close(f"largest relative change of EV, cosine, norm ratio, L0 at scales {scales}", largest, 0.0, 1e-5)


def _statistics(ward: Ward, factor: float) -> dict[str, float]:
    """Numbers of the TopK SAE on hidden states times `factor`."""
    sums = Reconstructions(Scaled(ward.topk, factor), None, len(ward.tokens.ids))
    mean = torch.from_numpy(ward.results.baselines[SITE].mean).float() * factor
    total = 0.0
    with torch.no_grad():
        for batch, x in ward.states():
            sums.add(batch, x * factor, mean)  # type: ignore[arg-type]
            total += float((x * factor - mean).double().square().sum())
    tokens = torch.from_numpy(ward.results.baselines[SITE].statistics["tokens"])
    found = {name: float(values.sum()) for name, values in sums.finished("scaled", tokens).statistics.items()}
    n = float(tokens.sum())
    centred, residual = 1 - found["squared_error"] / total, 1 - found["residual_variance"] / total
    per_token = {name: found[name] / n for name in ("cosine", "norm_ratio", "l0", "token_ratio")}
    return {"centred": centred, "residual_variance": residual, **per_token}


def _batches(ward: Ward) -> Finding:
    apart = max(_distance(ward.results, ward.measured(ward.requests, forward_tokens)) for forward_tokens in (1, 200))
    return close("largest relative change of a statistic in batches of 1 document and of 200 tokens", apart, 0.0, 1e-4)


def _company(ward: Ward) -> Finding:
    alone = ward.measured([ward.requests[-1]])
    same = all(
        np.array_equal(ours, theirs)
        for ours, theirs in zip(_own(ward.results, "topk").values(), _own(alone, "topk").values(), strict=True)
    )
    return Finding(
        same,
        f"measured alone and with {len(ward.requests) - 1} others: {'bit for bit the same' if same else 'different'}",
    )


def _own(results: Results, name: str) -> Statistics:
    return next(m.statistics for m in results.measurements if m.name == name)


def _distance(a: Results, b: Results) -> float:
    """Largest relative difference of any SAE's statistic, summed over documents."""
    pairs = [(_own(a, m.name), m.statistics) for m in b.measurements if m.name == "topk"]
    return max(_relative(ours[name], theirs[name]) for ours, theirs in pairs for name in ours)


def _relative(ours: Array, theirs: Array) -> float:
    return float(abs(ours.sum() - theirs.sum()) / max(abs(ours.sum()), 1e-12))


def _apart(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    return max(abs(a[name] - b[name]) / max(abs(a[name]), 1e-12) for name in a)
