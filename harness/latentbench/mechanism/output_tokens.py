"""Which tokens a vector points to (logit lens), and which next-token probabilities it moves (token shift).

The lens reads a vector straight through the unembedding. For a vector v and rows w_t of the unembedding: dot_t = w_t · v
and cos_t = w_t · v / (‖w_t‖ ‖v‖), as in Small Vectors (arXiv 2509.06608, section 5 and its code): the final norm is not
applied. `latentbench.latents.logit_lens`, the lens of SAE latents, does apply it; the two differ on purpose, each as in the
work it reproduces, and their tokens are not comparable.

The shift is p_steered − p_unsteered over the same text, by position. The total variation
TV = ½ Σ_t |p_steered(t) − p_unsteered(t)| says how much, the largest increase which token (section 6: for last-layer
vectors nearly all of it is one token at the first position).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from latentbench.activations.vocabulary import unembedding
from latentbench.core.protocols import LanguageModel
from latentbench.core.spec_model import Json
from latentbench.interventions.intervention import Intervention
from latentbench.mechanism.metrics.output_tokens import LogitLens, TokenShift
from latentbench.mechanism.metrics.study import DOMAIN
from latentbench.mechanism.passages import Passages, injection_of, left_out, passages_of, trace
from latentbench.metrics.value import MetricValue
from latentbench.statistics.arrays import Array
from latentbench.study.context import StageContext
from latentbench.study.study import Findings


def measure_logit_lens(study: LogitLens, context: StageContext) -> Findings:
    """The lens of every layer's vector."""
    lm, vectors = context.model(), injection_of(context).vectors.vectors
    lenses = {layer: vector_logit_lens(lm, vector, study.tokens) for layer, vector in vectors.items()}
    values = [
        MetricValue(
            id=f"logit_lens.{end}_cosine",
            version=study.version,
            value=tokens[0]["cosine"],
            unit="cosine",
            higher_is_better=None,
            params={"layer": layer},
        )
        for layer, lens in lenses.items()
        for end, tokens in (("top", lens.top), ("bottom", lens.bottom))
    ]
    layers = [{"layer": layer, "top": lens.top, "bottom": lens.bottom} for layer, lens in lenses.items()]
    return Findings(values=tuple(values), details={"layers": layers})


def measure_token_shift(study: TokenShift, context: StageContext) -> Findings:
    """Total variation per passage, at the first generated token and summed over the others."""
    lm, passages = context.model(), passages_of(study, context)
    shift = probability_shift(lm, context.subject(), passages)
    ones = np.ones(len(passages))
    statistics = {"first": shift.first, "rest": shift.rest, "others": shift.others, "passages": ones}
    named = {f"token_shift.{name}": values for name, values in statistics.items()}
    details = {"tokens": shift.tokens(lm), "passages": len(passages)}
    units = study.units(context, passages.numbers)
    return Findings({DOMAIN: named}, details=details, warnings=left_out(study, passages), units=units)


@dataclass(frozen=True)
class LogitLensTokens:
    """The tokens nearest to a vector and those farthest from it."""

    top: list[dict[str, Json]]
    """`{token, id, cosine, dot}`, highest cosine first."""
    bottom: list[dict[str, Json]]
    """Lowest cosine first."""


@torch.no_grad()
def vector_logit_lens(lm: LanguageModel, vector: Tensor, count: int = 20) -> LogitLensTokens:
    """The lens of `vector` [d_model] with `count` tokens at either end."""
    rows = unembedding(lm.model)
    direction = vector.to(rows.device, torch.float32)
    # float32 in chunks: the unembedding of a large model does not fit twice.
    dots = torch.cat([chunk.float() @ direction for chunk in torch.split(rows, 16384)])
    norms = torch.cat([torch.linalg.vector_norm(chunk.float(), dim=1) for chunk in torch.split(rows, 16384)])
    cosines = dots / (norms * direction.norm()).clamp_min(1e-30)
    order = torch.argsort(cosines, descending=True, stable=True).tolist()
    return LogitLensTokens(
        [_token(lm, token, cosines, dots) for token in order[:count]],
        [_token(lm, token, cosines, dots) for token in order[::-1][:count]],
    )


def _token(lm: LanguageModel, token: int, cosines: Tensor, dots: Tensor) -> dict[str, Json]:
    shown = token_text(lm, token)
    return {"token": shown, "id": token, "cosine": round(float(cosines[token]), 6), "dot": round(float(dots[token]), 6)}


def token_text(lm: LanguageModel, token: int) -> str:
    """A token as text, its leading space included."""
    return str(lm.tokenizer.decode([token]))


@dataclass
class ProbabilityShift:
    """Probability shifts over passages."""

    first: Array
    """[B] TV at the first generated token."""
    rest: Array
    """[B] TV summed over the other generated tokens."""
    others: Array
    """[B] number of those."""
    boosted: dict[int, list[float]] = field(default_factory=dict)
    """Token to its increase at the first position of each passage in which it is the most boosted one there."""
    boosted_later: dict[int, list[float]] = field(default_factory=dict)
    """The same at all other positions."""

    def top(self) -> int | None:
        """The token most often boosted most at the first position; of several the one with the lowest id."""
        return max(self.boosted, key=lambda token: (len(self.boosted[token]), -token), default=None)

    def tokens(self, lm: LanguageModel, count: int = 20) -> list[dict[str, Json]]:
        """The most boosted tokens: how often, and their increases at the first and at other positions."""
        known = self.boosted.keys() | self.boosted_later.keys()
        order = sorted(known, key=lambda t: (-sum(self.boosted.get(t, ())), -sum(self.boosted_later.get(t, ())), t))
        return [
            {
                "token": token_text(lm, token),
                "id": token,
                # Enough for a box plot; a report of thousands of passages stays small.
                "first": [round(value, 5) for value in self.boosted.get(token, [])[:500]],
                "later": [round(value, 5) for value in self.boosted_later.get(token, [])[:500]],
            }
            for token in order[:count]
        ]


@torch.no_grad()
def probability_shift(lm: LanguageModel, intervention: Intervention, passages: Passages) -> ProbabilityShift:
    """Both models over `passages`, position by position; probabilities in float32."""
    first, rest, others = [], [], []
    boosted: dict[int, list[float]] = defaultdict(list)
    later: dict[int, list[float]] = defaultdict(list)
    for batch in passages.batches(lm):
        steered, plain = trace(lm, batch, intervention).logits, trace(lm, batch).logits
        moved, increase, token = _moved(steered, plain)
        leading, following = batch.first, batch.predicting & ~batch.first
        first.append((moved * leading).sum(1))
        rest.append((moved * following).sum(1))
        others.append(following.sum(1))
        _note(boosted, token[leading], increase[leading])
        _note(later, token[following], increase[following])
    return ProbabilityShift(_array(first), _array(rest), _array(others), dict(boosted), dict(later))


def _moved(steered: Tensor, plain: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, T] total variation, largest increase, and the token that has it."""
    # Softmax in float32: half precision knows no probability to more than three digits, and most shifts are small ones.
    difference = steered.float().softmax(-1) - plain.float().softmax(-1)
    increase, token = difference.max(-1)
    return difference.abs().sum(-1).double() / 2, increase, token


def _note(where: dict[int, list[float]], tokens: Tensor, increases: Tensor) -> None:
    for token, increase in zip(tokens.tolist(), increases.tolist(), strict=True):
        where[token].append(increase)


def _array(parts: list[Tensor]) -> Array:
    return np.asarray(torch.cat(parts).cpu().double().numpy())
