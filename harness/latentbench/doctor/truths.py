"""Metrics whose numbers are known without measuring, through the code that measures everything else.

| SAE | truth |
| --- | --- |
| identity x̂ = x | explained variance 1, cosine 1, CE increase 0, KL 0, loss recovered 1 |
| mean x̂ = x̄ | explained variance 0 (centred), CE with it = CE of mean ablation |
| zero x̂ = 0 | CE with it = CE of zero ablation, loss recovered (zero) 0, explained variance (uncentred) 0 |
| any, at another scale of x | the same explained variance, cosine, norm ratio and L0 |
| any, in other batches or other company | the same numbers |

A planted dictionary: hidden states are sparse sums of known unit directions.

The oracle SAE that holds these directions must explain everything and must have exactly the planted L0; a TopK SAE
trained on such states for a few seconds must find most directions, and an untrained one must not. What is compared is
the mean over planted directions of the largest |cosine| with an atom (mean maximum cosine similarity, Sharkey et al. 2022).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from latentbench.activations.capture import hidden_states
from latentbench.activations.tokens import EvalTokens, evaluation_tokens
from latentbench.core.paths import Roots
from latentbench.core.plugins import plugin
from latentbench.core.protocols import DatasetAdapter, LanguageModel, ModelAdapter
from latentbench.core.sites import Site
from latentbench.doctor.check import Check, Finding, both, close
from latentbench.metrics.base import Metric
from latentbench.metrics.values import metric_values
from latentbench.reconstruction.cross_entropy import CrossEntropy
from latentbench.reconstruction.documents import DocumentBatch, Domain
from latentbench.reconstruction.error_metrics import Cosine, ExplainedVariance, NormRatio
from latentbench.reconstruction.shared_pass import MeasurementRequest, PassResults, Reconstructions, measure
from latentbench.reconstruction.sparsity_and_cost import L0
from latentbench.sae.autoencoder import Codes, SparseAutoencoder
from latentbench.sae.options import IdentityOptions, TopKOptions
from latentbench.sae.options.training import TrainingOptions
from latentbench.sae.trainer import NativeTrainer
from latentbench.statistics.arrays import Statistics

if TYPE_CHECKING:
    from latentbench.statistics.arrays import Array

D, DIRECTIONS, ACTIVE = 32, 48, 3
"""More directions than dimensions, so that they overlap and no rotation of the basis finds them."""
BATCH, STEPS = 512, 500
FOUND, CHANCE = 0.95, 0.75
"""A trained SAE must reach the one, an untrained one may not exceed the other. The gap is wide on purpose: a version of
torch that rounds otherwise must not fail a right installation."""


def dictionary_checks() -> list[Check]:
    """The oracle, and training."""
    return [
        Check("a planted dictionary is recognised", "metrics", _oracle),
        Check("a planted dictionary is found by training", "metrics", _trained),
    ]


def planted(seed: int = 0) -> tuple[Tensor, torch.Generator]:
    """Unit directions [DIRECTIONS, D], and the generator for draws."""
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(DIRECTIONS, D, generator=generator), dim=1), generator


def draw(directions: Tensor, generator: torch.Generator, n: int = BATCH) -> Tensor:
    """[n, D] sums of ACTIVE different directions with strengths in [1, 2]."""
    chosen = torch.rand(n, DIRECTIONS, generator=generator).topk(ACTIVE, dim=1).indices
    strengths = 1 + torch.rand(n, ACTIVE, generator=generator)
    return torch.zeros(n, DIRECTIONS).scatter_(1, chosen, strengths) @ directions


@torch.no_grad()
def recovery(directions: Tensor, sae: SparseAutoencoder) -> float:
    """Mean over directions of the largest |cosine| with a decoder row."""
    rows = sae.decoder_rows()
    assert rows is not None
    # Of either sign: an SAE that holds −v with negative activations has found v.
    return float((directions @ normalize(rows, dim=1).T).abs().max(dim=1).values.mean())


def _oracle() -> Finding:
    """The SAE that knows the directions. They are orthogonal here, so that one matrix product encodes them exactly."""
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(D, D, generator=generator)).Q
    sae = TopKOptions(width=D, k=ACTIVE).build(D, generator)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in sae.state_dict().items()}
    sae.load_state_dict(zeros | {"W_dec": basis, "encoder.weight": basis})
    chosen = torch.rand(BATCH, D, generator=generator).topk(ACTIVE, dim=1).indices
    x = torch.zeros(BATCH, D).scatter_(1, chosen, 1 + torch.rand(BATCH, ACTIVE, generator=generator)) @ basis
    with torch.no_grad():
        codes = sae.eval().encode(x)
        lost = (x - sae.decode(codes)).square().sum() / (x - x.mean(0)).square().sum()
    return both(
        close("explained variance of the oracle", 1 - float(lost), 1.0, 1e-6),
        close("its L0", float(codes.l0.double().mean()), ACTIVE, 0.0),
        close("its recovery", recovery(basis, sae), 1.0, 1e-6),
    )


def _trained() -> Finding:
    directions, generator = planted()
    sae = TopKOptions(width=2 * DIRECTIONS, k=ACTIVE).build(D, generator)
    before, first = recovery(directions, sae), draw(directions, generator)
    training = TrainingOptions(batch=BATCH, lr=3e-3)
    norm = float(first.norm(dim=1).mean())
    trainer = NativeTrainer(sae, Site(index=0), training, steps=STEPS, first_norm=norm, mean=first.mean(0))  # type: ignore[arg-type]
    for _ in range(STEPS):
        trainer.step(draw(directions, generator))
    after = recovery(directions, trainer.finish())
    detail = (
        f"mean largest cosine {after:.3f} after {STEPS} steps (needed {FOUND}), {before:.3f} before (at most {CHANCE})"
    )
    return Finding(after >= FOUND and before <= CHANCE, detail)


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


class PocketFixture:
    """The pocket model, a few documents, and SAEs with known numbers; everything is made once, on first use."""

    @cached_property
    def model(self) -> LanguageModel:
        """The pocket model on the CPU."""
        adapter: ModelAdapter = _pocket("models")
        return adapter.load(self._roots, torch.device("cpu"))

    @cached_property
    def tokens(self) -> EvalTokens:
        """A few documents of unequal length."""
        adapter: DatasetAdapter = _pocket("datasets", domain="general", split="eval")
        texts = enumerate(islice(adapter.texts(self._roots), DOCUMENTS))
        uneven = (text[: 40 + 25 * (number % 9)] for number, text in texts)
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
    def requests(self) -> tuple[MeasurementRequest, ...]:
        """Every SAE of the table above."""
        mean = torch.from_numpy(measure(self.model, self.tokens, sites=[SITE]).baselines[SITE].mean).float()
        identity = IdentityOptions().build(self.d_in, torch.Generator())
        saes = {
            "identity": identity,
            "mean": Constant(mean),
            "zero": Constant(torch.zeros(self.d_in)),
            "topk": self.topk,
        }
        return tuple(MeasurementRequest(name, sae, SITE, splice=True) for name, sae in saes.items())

    @cached_property
    def results(self) -> PassResults:
        """All SAEs in one pass."""
        return self.measured(self.requests)

    def measured(self, requests: Sequence[MeasurementRequest], forward_tokens: int = 4096) -> PassResults:
        """A pass over the documents."""
        return measure(self.model, self.tokens, requests, forward_tokens=forward_tokens)

    def numbers(self, name: str, results: PassResults | None = None) -> dict[str, float]:
        """Every number of an SAE by id; NaN where it has none."""
        found = results or self.results
        own = next(m.statistics for m in found.measurements if m.name == name)
        values = metric_values(METRICS, {"pocket": {**found.baselines[SITE].statistics, **own}})
        return {value.id: float("nan") if value.value is None else value.value for value in values}

    def states(self) -> Iterator[tuple[object, Tensor]]:
        """Batches with the hidden states [N, d] of their ordinary tokens."""
        domain = Domain(self.model, self.tokens, 4096, None)

        def read(batch: DocumentBatch) -> tuple[object, Tensor]:
            states = hidden_states(domain.model, [SITE], batch.ids, batch.real.long())[SITE]
            return batch, states[batch.ordinary].float()

        yield from domain.run(read)

    @property
    def _roots(self) -> Roots:
        return Roots(Path.cwd())


def _pocket(group: str, **fields: str) -> Any:
    """The pocket model or its texts, found by name as a spec finds them, so that the doctor checks how they plug in too."""
    return plugin(group, "pocket")(**fields)


def metric_checks() -> list[Check]:
    """The checks of the table above."""
    pocket = PocketFixture()
    return [
        Check("identity reconstructs everything", "metrics", lambda: _identity(pocket)),
        Check("the mean explains nothing", "metrics", lambda: _mean(pocket)),
        Check("zero is zero ablation", "metrics", lambda: _zero(pocket)),
        Check("scaling hidden states moves nothing", "metrics", lambda: _rescaled(pocket)),
        Check("batch size moves nothing", "metrics", lambda: _batches(pocket)),
        Check("company moves nothing", "metrics", lambda: _company(pocket)),
    ]


def _identity(pocket: PocketFixture) -> Finding:
    found = pocket.numbers("identity")
    truths = {
        "explained_variance.centred": 1.0,
        "explained_variance.uncentred": 1.0,
        "cross_entropy.increase": 0.0,
        "cross_entropy.kl": 0.0,
        "cross_entropy.loss_recovered_zero": 1.0,
        "cosine": 1.0,
    }
    return both(*(close(name, found[name], truth, FLOAT32) for name, truth in truths.items()))


def _mean(pocket: PocketFixture) -> Finding:
    found = pocket.numbers("mean")
    return both(
        close("explained_variance.centred", found["explained_variance.centred"], 0.0, FLOAT32),
        close("explained_variance.token_ratio", found["explained_variance.token_ratio"], 0.0, FLOAT32),
        close("CE with it − CE mean-ablated", found["cross_entropy.sae"] - found["cross_entropy.mean"], 0.0, FLOAT32),
        close("cross_entropy.loss_recovered_mean", found["cross_entropy.loss_recovered_mean"], 0.0, FLOAT32),
    )


def _zero(pocket: PocketFixture) -> Finding:
    found = pocket.numbers("zero")
    return both(
        close("explained_variance.uncentred", found["explained_variance.uncentred"], 0.0, FLOAT32),
        close("CE with it − CE zero-ablated", found["cross_entropy.sae"] - found["cross_entropy.zero"], 0.0, FLOAT32),
        close("cross_entropy.loss_recovered_zero", found["cross_entropy.loss_recovered_zero"], 0.0, FLOAT32),
    )


def _rescaled(pocket: PocketFixture) -> Finding:
    plain = _statistics(pocket, 1.0)
    largest = max(_apart(plain, _statistics(pocket, factor)) for factor in SCALES)
    scales = " and ".join(f"{factor:g}" for factor in SCALES)
    return close(f"largest relative change of EV, cosine, norm ratio, L0 at scales {scales}", largest, 0.0, 1e-5)


def _statistics(pocket: PocketFixture, factor: float) -> dict[str, float]:
    """Numbers of the TopK SAE on hidden states times `factor`."""
    sums = Reconstructions(Scaled(pocket.topk, factor), None, len(pocket.tokens.ids))
    mean = torch.from_numpy(pocket.results.baselines[SITE].mean).float() * factor
    total = 0.0
    with torch.no_grad():
        for batch, x in pocket.states():
            sums.add(batch, x * factor, x * factor, mean)  # type: ignore[arg-type]
            total += float((x * factor - mean).double().square().sum())
    tokens = torch.from_numpy(pocket.results.baselines[SITE].statistics["tokens"])
    found = {name: float(values.sum()) for name, values in sums.finished("scaled", tokens).statistics.items()}
    n = float(tokens.sum())
    centred, residual = 1 - found["squared_error"] / total, 1 - found["residual_variance"] / total
    per_token = {name: found[name] / n for name in ("cosine", "norm_ratio", "l0", "token_ratio")}
    return {"centred": centred, "residual_variance": residual, **per_token}


def _batches(pocket: PocketFixture) -> Finding:
    apart = max(
        _distance(pocket.results, pocket.measured(pocket.requests, forward_tokens)) for forward_tokens in (1, 200)
    )
    return close("largest relative change of a statistic in batches of 1 document and of 200 tokens", apart, 0.0, 1e-4)


def _company(pocket: PocketFixture) -> Finding:
    alone = pocket.measured([pocket.requests[-1]])
    same = all(
        np.array_equal(ours, theirs)
        for ours, theirs in zip(_own(pocket.results, "topk").values(), _own(alone, "topk").values(), strict=True)
    )
    return Finding(
        same,
        f"measured alone and with {len(pocket.requests) - 1} others: {'bit for bit the same' if same else 'different'}",
    )


def _own(results: PassResults, name: str) -> Statistics:
    return next(m.statistics for m in results.measurements if m.name == name)


def _distance(a: PassResults, b: PassResults) -> float:
    """Largest relative difference of any SAE's statistic, summed over documents."""
    pairs = [(_own(a, m.name), m.statistics) for m in b.measurements if m.name == "topk"]
    return max(_relative(ours[name], theirs[name]) for ours, theirs in pairs for name in ours)


def _relative(ours: Array, theirs: Array) -> float:
    return float(abs(ours.sum() - theirs.sum()) / max(abs(ours.sum()), 1e-12))


def _apart(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    return max(abs(a[name] - b[name]) / max(abs(a[name]), 1e-12) for name in a)
