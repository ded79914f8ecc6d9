"""How a vector's effect travels through the layers over one text: attention patterns, MLP outputs, residual stream.

Attention shift: per head and query token t the total variation ½ Σ_s |a_steered(t, s) − a_plain(t, s)|; per block
‖Δmlp(t)‖ / ‖mlp(t)‖.

Persistence: Δ_j(t), what steering at earlier blocks has made of the output of block j:

    Δ_j(t) = h_j^steered(t) − h_j^plain(t), h_j^steered before anything is added at block j itself

* diff-diff: mean over t of cos(Δ_j(t), mean_t Δ_j): is it the same direction at every token?
* diff-vector: mean over t of cos(Δ_j(t), s_j): is it the direction that a vector of layer j adds?

* the matrix: cos(mean_t Δ_L of one vector, mean_t Δ_L of another) after the last block L, each vector switched on alone.

Only blocks behind the first steered one count: there Δ is the vector itself, whose cosine with itself says nothing. Small
Vectors (arXiv 2509.06608, section 5). Two passes, so that nothing but sums is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from latentbench.activations.blocks import decoder_blocks, text_config
from latentbench.core.errors import InvalidInput
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Site
from latentbench.core.spec_model import Json
from latentbench.interventions.injection import VectorInjection
from latentbench.interventions.intervention import Intervention
from latentbench.interventions.vectors import SteeringVectors
from latentbench.mechanism.metrics.propagation import AttentionShift, Persistence
from latentbench.mechanism.metrics.study import DOMAIN
from latentbench.mechanism.output_tokens import vector_logit_lens
from latentbench.mechanism.passages import (
    Passages,
    Trace,
    eager_attention,
    injection_of,
    left_out,
    passages_of,
    trace,
)
from latentbench.metrics.value import MetricValue
from latentbench.statistics.arrays import Array
from latentbench.steering.computed_vectors import vectors_from
from latentbench.study.context import StageContext
from latentbench.study.study import Findings


def measure_attention_shift(study: AttentionShift, context: StageContext) -> Findings:
    """Sums per passage over heads, layers and tokens, with how many of them there are."""
    passages = passages_of(study, context)
    found = attention_shift(context.model(), context.subject(), passages)
    statistics: dict[str, Tensor] = {}
    for name, values in (("heads", found.heads.flatten(1)), ("mlp", found.mlps)):
        statistics[f"attention_shift.{name}.total"] = values.sum(1)
        statistics[f"attention_shift.{name}.count"] = found.tokens * values.shape[1]
    details = {"heads": _per_token(found.heads, found.tokens), "mlps": _per_token(found.mlps, found.tokens)}
    arrays = {name: values.numpy() for name, values in statistics.items()}
    units = study.units(context, passages.numbers)
    return Findings({DOMAIN: arrays}, details=details, warnings=left_out(study, passages), units=units)


def measure_persistence(study: Persistence, context: StageContext) -> Findings:
    """Sums of cosines per passage over tokens and blocks, with how many of them there are.

    Raises InvalidInput where two files to compare with have a vector of the same layer, and what `vectors_from` raises.
    """
    lm, injection = context.model(), injection_of(context)
    vectors = _compared(study, context) if study.files else injection.vectors.vectors
    passages = passages_of(study, context)
    found = persistence(lm, injection, passages, injection.vectors.layers[0], vectors)
    statistics: dict[str, Tensor] = {}
    for name, values in (("diff_diff", found.diff_diff), ("diff_vector", found.diff_vector)):
        known = ~values.isnan().any(0)
        if known.any():
            statistics[f"persistence.{name}.total"] = values[:, known].sum(1)
            statistics[f"persistence.{name}.count"] = found.tokens * int(known.sum())
    lens = vector_logit_lens(lm, found.final)
    details: dict[str, Json] = {
        "layers": list(found.layers),
        "lens": {"top": lens.top, "bottom": lens.bottom},
        "diff_diff": _per_token(found.diff_diff, found.tokens),
        "diff_vector": _per_token(found.diff_vector, found.tokens),
        "relative": _per_token(found.relative, found.tokens),
        "vectors": "named" if study.files else "own",
    }
    arrays = {name: values.numpy() for name, values in statistics.items()}
    reasons = _reasons(study, found.layers, arrays)
    compared: tuple[MetricValue, ...] = ()
    if study.matrix is not None:
        details["matrix"], number = _matrix(study, context, passages, vectors if study.files else {})
        compared = (number,)
    return Findings(
        {DOMAIN: arrays},
        compared,
        details,
        warnings=left_out(study, passages),
        reasons=reasons,
        units=study.units(context, passages.numbers),
    )


def _matrix(
    study: Persistence, context: StageContext, passages: Passages, named: Mapping[int, Tensor]
) -> tuple[Json, MetricValue]:
    """What each vector alone makes of the final residual stream, compared with what every other one does."""
    lm, own = context.model(), injection_of(context)
    ways = {f"layer {layer}": own.vectors.only(layer) for layer in own.vectors.layers}
    ways |= {f"named, layer {layer}": SteeringVectors({layer: vector}) for layer, vector in named.items()}
    changes = []
    for step, vectors in enumerate(ways.values()):
        context.progress(step, len(ways), "vectors")
        # Named vectors are of a training of their own: at their own size, whatever share of the norms the cell's are.
        relative = own.relative and bool(vectors.residual_norms)
        alone = VectorInjection(vectors, own.scale if relative == own.relative else 1.0, own.scope, relative)
        texts = passages if study.matrix == "same_texts" else passages_of(study, context, alone)
        changes.append(_means(lm, alone, texts, ())[1].cpu())
    context.progress(len(ways), len(ways), "vectors")
    cosines = pairwise_cosines(torch.stack(changes))
    between = cosines[~torch.eye(len(ways), dtype=torch.bool)]
    known = between[~between.isnan()]
    value = MetricValue(
        id="persistence.final_cosine",
        version=1,
        domain=DOMAIN,
        value=float(known.mean()) if len(known) else None,
        null_reason=None if len(known) else "there are no two vectors that change the final residual stream",
        unit="cosine",
        higher_is_better=None,
        n=len(known) // 2,
    )
    return {"vectors": list(ways), "cosines": _without_nan(cosines.tolist())}, value


def pairwise_cosines(vectors: Tensor) -> Tensor:
    """[n, n] float64 cosines between vectors [n, d]; NaN for one that is zero, which has no direction."""
    wide = vectors.double()
    units = wide / wide.norm(dim=1, keepdim=True)
    cosines: Tensor = (units @ units.T).clamp(-1, 1)
    return cosines


def _compared(study: Persistence, context: StageContext) -> dict[int, Tensor]:
    """The vectors of all files. Raises InvalidInput where two of them have one for the same layer."""
    found: dict[int, Tensor] = {}
    for path in study.files:
        vectors = vectors_from(path, context).vectors
        if twice := sorted(found.keys() & vectors.keys()):
            raise InvalidInput(f"persistence: {path} is not the only file with vectors of layers {twice}")
        found |= vectors
    return found


def _reasons(study: Persistence, layers: tuple[int, ...], arrays: Mapping[str, Array]) -> dict[str, str]:
    """Why there is nothing to compute some numbers from."""
    later = "no block comes after the first steered one"
    vector = "no vector of a later block to compare with; name separately trained ones with `compare_with`"
    wanted = {name for number in study.numbers() for name in number.inputs}
    return dict.fromkeys(wanted - arrays.keys(), vector if layers else later)


def _per_token(values: Tensor, tokens: Tensor) -> Json:
    """Sums [B, …] as means over all tokens, NaN as null."""
    return _without_nan((values.sum(0) / tokens.sum()).tolist())


def _without_nan(value: Json) -> Json:
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if value != value else round(value, 6)  # NaN differs from itself


@dataclass(frozen=True)
class AttentionShiftSums:
    """Per passage, summed over the tokens that generated tokens are predicted from."""

    heads: Tensor
    """[B, layers, heads] float64 total variation."""
    mlps: Tensor
    """[B, layers] float64 relative change of MLP outputs."""
    tokens: Tensor
    """[B] those tokens."""


@torch.no_grad()
def attention_shift(lm: LanguageModel, intervention: Intervention, passages: Passages) -> AttentionShiftSums:
    """Steered against plain, all layers and heads."""
    sites = [Site(index=layer, point="mlp_out") for layer in range(len(decoder_blocks(lm.model)))]
    heads, mlps = [], []
    with eager_attention(lm):
        for batch in passages.batches(lm, _kept(lm, passages)):
            steered = trace(lm, batch, intervention, sites, attentions=True)
            _check_patterns(lm, steered)
            plain = trace(lm, batch, None, sites, attentions=True)
            heads.append(_heads(steered, plain, batch.predicting))
            mlps.append(_mlps(steered, plain, sites, batch.predicting))
    return AttentionShiftSums(torch.cat(heads), torch.cat(mlps), passages.predicting.sum(1).double().cpu())


def _kept(lm: LanguageModel, passages: Passages) -> int:
    """Numbers per token: attention to every other token by every head of every layer."""
    layers, heads = len(decoder_blocks(lm.model)), getattr(text_config(lm.model), "num_attention_heads", None)
    # Some architectures have a number for each layer. Where none is stated, memory is bounded by what one token attends to.
    each = heads if isinstance(heads, list | tuple) else [heads or 1] * layers
    return int(sum(each)) * passages.ids.shape[1]


def _check_patterns(lm: LanguageModel, found: Trace) -> None:
    """Raises InvalidInput for a model that does not say, for every block and head, what each token attends to."""
    layers = len(decoder_blocks(lm.model))
    forms = {tuple(one.shape) if isinstance(one, Tensor) else None for one in found.attentions}
    if len(found.attentions) == layers and len(forms) == 1 and None not in forms:
        return
    raise InvalidInput(
        f"attention_shift: {type(lm.model).__name__} gives the attention patterns of "
        f"{sum(isinstance(one, Tensor) for one in found.attentions)} of its {layers} blocks, or of another number of heads in "
        "each, so there is no mean over all blocks and heads"
    )


def _heads(steered: Trace, plain: Trace, chosen: Tensor) -> Tensor:
    """[B, layers, heads]."""
    layers = []
    for after, before in zip(steered.attentions, plain.attentions, strict=True):
        moved = (after.float() - before.float()).abs().sum(-1) / 2  # [B, heads, T]
        layers.append((moved.double() * chosen[:, None]).sum(-1))
    return torch.stack(layers, 1).cpu()


def _mlps(steered: Trace, plain: Trace, sites: list[Site], chosen: Tensor) -> Tensor:
    """[B, layers]."""
    layers = []
    for site in sites:
        before = plain.states[site].float()
        moved = (steered.states[site].float() - before).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-30)
        layers.append((moved.double() * chosen).sum(1))
    return torch.stack(layers, 1).cpu()


@dataclass(frozen=True)
class PersistenceSums:
    """Per passage and layer, summed over its generated tokens."""

    layers: tuple[int, ...]
    """Those behind the first steered one; none where that is the last."""
    diff_diff: Tensor
    """[B, layers] float64 sums of cosines."""
    diff_vector: Tensor
    """[B, layers] float64, NaN where there is no vector of that layer."""
    relative: Tensor
    """[B, layers] float64 sums of ‖Δ_j‖ / ‖h_j‖."""
    tokens: Tensor
    """[B] generated tokens."""
    final: Tensor
    """[d_model] mean change of the final residual stream, what is added at the last block included."""


@torch.no_grad()
def persistence(
    lm: LanguageModel, intervention: Intervention, passages: Passages, first: int, vectors: Mapping[int, Tensor]
) -> PersistenceSums:
    """Sums for every block behind layer `first`. `vectors` are those to compare with, by layer."""
    layers = tuple(range(first + 1, len(decoder_blocks(lm.model))))
    # Cosines to a mean need the mean first, over all passages, so every passage is run a second time.
    means, final = _means(lm, intervention, passages, layers)
    rows = [_cosines(lm, intervention, batch, means, vectors) for batch in passages.batches(lm)]
    diff_diff, diff_vector, relative = (torch.cat([row[part] for row in rows]) for part in range(3))
    tokens = passages.predicting.sum(1).double().cpu()
    return PersistenceSums(layers, diff_diff, diff_vector, relative, tokens, final.cpu())


def _differences(
    lm: LanguageModel, intervention: Intervention, batch: Passages, layers: tuple[int, ...]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Layer, Δ [B, T, d] and the plain state's norms [B, T], in float32; one layer at a time."""
    steered, plain = (trace(lm, batch, way, arriving=layers).arriving for way in (intervention, None))
    for layer in layers:
        # In float32 the difference of two states in half precision is exact. They are taken out of the traces, so that never
        # more than one layer is held in both.
        before = plain.pop(layer).float()
        yield layer, steered.pop(layer).float() - before, before.norm(dim=-1)


def _means(
    lm: LanguageModel, intervention: Intervention, passages: Passages, layers: tuple[int, ...]
) -> tuple[dict[int, Tensor], Tensor]:
    """Mean Δ by layer, and that of the final residual stream, [d_model] float32 each."""
    last = Site(index=len(decoder_blocks(lm.model)) - 1)
    sums: dict[int | Site, Tensor] = {}
    for batch in passages.batches(lm):
        steered, plain = (trace(lm, batch, way, [last], arriving=layers) for way in (intervention, None))
        pairs: dict[int | Site, tuple[Tensor, Tensor]] = {last: (steered.states[last], plain.states[last])}
        pairs |= {layer: (steered.arriving[layer], plain.arriving[layer]) for layer in layers}
        for place, (after, before) in pairs.items():
            total = (after.float() - before.float())[batch.predicting].double().sum(0)
            sums[place] = sums[place] + total if place in sums else total
    count = max(int(passages.predicting.sum()), 1)
    means = {place: (total / count).float() for place, total in sums.items()}
    return {layer: means[layer] for layer in layers}, means[last]


def _cosines(
    lm: LanguageModel,
    intervention: Intervention,
    batch: Passages,
    means: Mapping[int, Tensor],
    vectors: Mapping[int, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Three [B, layers]: sums over generated tokens."""
    chosen = batch.predicting
    empty = torch.zeros(len(batch), 0, dtype=torch.float64)
    columns: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for layer, delta, norms in _differences(lm, intervention, batch, tuple(means)):
        columns[0].append(_sum(cosine_similarity(delta, means[layer], dim=-1), chosen))
        vector = vectors.get(layer)
        # NaN and not 0, which would be a cosine: such layers are left out of the mean.
        unknown = torch.full((len(batch),), torch.nan, dtype=torch.float64)
        columns[1].append(
            unknown if vector is None else _sum(cosine_similarity(delta, vector.to(delta.device), dim=-1), chosen)
        )
        columns[2].append(_sum(delta.norm(dim=-1) / norms.clamp_min(1e-30), chosen))
    stacked = tuple(torch.stack(column, 1) if column else empty for column in columns)
    return stacked[0], stacked[1], stacked[2]


def _sum(values: Tensor, chosen: Tensor) -> Tensor:
    return (values.double() * chosen).sum(1).cpu()
