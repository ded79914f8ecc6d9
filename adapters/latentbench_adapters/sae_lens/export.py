"""Native SAEs in sae-lens' on-disk format, for everything that reads sae-lens: evaluators, dashboards, steering.

Which SAE of sae-lens a native SAE is, weight for weight:

| native | sae-lens | |
| --- | --- | --- |
| TopK, Matryoshka (topk), fine-tuned, extended, stitched on TopK, random decoder, untrained | topk | exact |
| Multi-TopK | topk | exact at its k; a larger `k` in cfg.json, up to the multiple it was trained with, gives the wider codes |
| AbsTopK; matching pursuit | abstopk; matching_pursuit | exact |
| HierarchicalTopK | topk | exact at its largest k; a smaller `k` in cfg.json gives every other budget |
| BatchTopK, Matryoshka (batch_topk), JumpReLU, tuned SAEs with thresholds | jumprelu | exact (at inference) |
| Gated; standard and p-annealed | gated; standard | exact |
| boosted and ensembles, all with thresholds | jumprelu, concatenated | exact |
| boosted and ensembles, some with top-k | latentbench_groups, concatenated | registered class |
| KronSAE, KronSAE with JumpReLU | latentbench_kron | registered class |

Identity, mean and PCA are no dictionaries of sparse latents and are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from sae_lens import SAE
from sae_lens.registry import get_sae_class
from torch import Tensor

from latentbench.core.errors import InvalidInput
from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench.sae.dictionary import DictionarySAE, SparseDictionarySAE
from latentbench.sae.encoders import RowEncoder, SignedEncoder
from latentbench.sae.linear import LinearWeights, SupportsLinearWeights, ThresholdRule, TopKRule
from latentbench.sae.sources.base import ExportedSae, SaeOrigin
from latentbench.sae.variants.kron import KronEncoder, KronJumpReLU
from latentbench.sae.variants.penalised import Gated, PenalisedSAE, Standard
from latentbench.sae.variants.pursuit import MatchingPursuit
from latentbench.sae.variants.topk import BudgetLoss, MultiTopK
from latentbench.sae.variants.transcoder import Transcoder
from latentbench.store.files import new_folder
from latentbench_adapters.sae_lens import classes
from latentbench_adapters.sae_lens.classes import GROUPS, KRON
from latentbench_adapters.sae_lens.saes import LoadedFromSaeLens, TrainedBySaeLens

EXACT = "exact"


class Equivalent(NamedTuple):
    """An SAE in the terms of sae-lens."""

    config: dict[str, Any]
    """Fields of its configuration, `architecture` among them, without metadata."""
    weights: dict[str, Tensor]
    equivalence: str
    """`exact` or `exact at k=…`, after `registered class …, ` where sae-lens needs one of ours."""


def equivalent_of(sae: SparseAutoencoder) -> Equivalent:
    """`sae` in the terms of sae-lens. Raises InvalidInput where there is no equivalent."""
    if isinstance(sae, LoadedFromSaeLens):
        return Equivalent(_fields(sae.inner.cfg.to_dict()), dict(sae.inner.state_dict()), EXACT)
    if isinstance(sae, TrainedBySaeLens):
        return _trained_by_sae_lens(sae)
    # From the particular to the general: a penalised SAE could be taken apart into groups too, but sae-lens has its
    # class.
    if isinstance(sae, PenalisedSAE):
        return _penalised(sae)
    if isinstance(sae, KronJumpReLU):
        return _kron(sae, sae.encoder, ThresholdRule(sae.threshold), EXACT, centred=False)
    if isinstance(sae, SparseDictionarySAE) and isinstance(sae.encoder, KronEncoder):
        rule = sae.selection.rule(sae.width)
        return _kron(sae, sae.encoder, rule, _exactness(sae, rule), sae.centred)
    if isinstance(sae, Transcoder):
        raise InvalidInput("sae-lens has no transcoder with top-k activation")
    if isinstance(sae, MatchingPursuit):
        return _pursuit(sae)
    if isinstance(sae, SparseDictionarySAE) and isinstance(sae.encoder, RowEncoder):
        return _selected(sae, sae.encoder)
    if isinstance(sae, SupportsLinearWeights):
        return _groups(sae.linear_weights())
    raise InvalidInput(f"{type(sae).__name__} has no equivalent in sae-lens: it is no dictionary of sparse latents")


def _selected(sae: SparseDictionarySAE, encoder: RowEncoder) -> Equivalent:
    weights = _weights(encoder.weight, encoder.bias, sae.W_dec, sae.b_dec)
    rule = sae.selection.rule(sae.width)
    if isinstance(rule, ThresholdRule):
        return _made("jumprelu", sae, weights | {"threshold": rule.threshold}, sae.centred)
    architecture = "abstopk" if isinstance(encoder, SignedEncoder) else "topk"
    return _made(architecture, sae, weights, sae.centred, _exactness(sae, rule), k=rule.k)


def _pursuit(sae: MatchingPursuit) -> Equivalent:
    # Exactly k steps: neither a small remainder nor a latent that is taken again ends them.
    steps: dict[str, Any] = {"max_iterations": sae.k, "residual_threshold": 0.0, "stop_on_duplicate_support": False}
    return _made("matching_pursuit", sae, {"W_dec": sae.W_dec, "b_dec": sae.b_dec}, True, **steps)


def _penalised(sae: PenalisedSAE) -> Equivalent:
    if isinstance(sae, Standard):
        return _made("standard", sae, _weights(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec), True)
    if isinstance(sae, Gated):
        weights = _weights(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
        gate = {"b_gate": weights.pop("b_enc"), "r_mag": sae.r_mag, "b_mag": sae.b_mag}
        return _made("gated", sae, weights | gate, True)
    rows, bias, threshold = sae.equivalent()
    return _made("jumprelu", sae, _weights(rows, bias, sae.W_dec, sae.b_dec) | {"threshold": threshold}, True)


def _kron(
    sae: DictionarySAE, encoder: KronEncoder, rule: TopKRule | ThresholdRule, exactness: str, centred: bool
) -> Equivalent:
    weights = _weights(encoder.weight, encoder.bias, sae.W_dec, sae.b_dec)
    weights["threshold"] = _thresholds(rule, sae.W_dec[:, 0])
    sizes = {"heads": encoder.heads, "m": encoder.m, "n": encoder.n, "kernel": encoder.kernel}
    kind = f"registered class {KRON}, {exactness}"
    return _made(KRON, sae, weights, centred, kind, **sizes, k=_k(rule))


def _groups(found: LinearWeights) -> Equivalent:
    """A dictionary of groups: sae-lens' own class where one rule holds for all, otherwise the registered one."""
    groups, b_dec = found
    encoder, bias, decoder = (torch.cat([getattr(g, name) for g in groups]) for name in ("W_enc", "b_enc", "W_dec"))
    weights, sae = _weights(encoder, bias, decoder, b_dec), _Sizes(len(b_dec), len(bias))
    thresholds = [_thresholds(group.rule, group.b_enc) for group in groups]
    if all(isinstance(group.rule, ThresholdRule) for group in groups):
        return _made("jumprelu", sae, weights | {"threshold": torch.cat(thresholds)}, False)
    if len(groups) == 1:
        return _made("topk", sae, weights, False, k=_k(groups[0].rule))
    sizes = [(group.width, _k(group.rule)) for group in groups]
    kind = f"registered class {GROUPS}, {EXACT}"
    return _made(GROUPS, sae, weights | {"threshold": torch.cat(thresholds)}, False, kind, groups=sizes)


def _trained_by_sae_lens(sae: TrainedBySaeLens) -> Equivalent:
    state = dict(sae.inner.state_dict())
    sae.inner.process_state_dict_for_saving_inference(state)
    return Equivalent(_fields(sae.inner.cfg.get_inference_sae_cfg_dict()), state, EXACT)


class _Sizes(NamedTuple):
    d_in: int
    width: int


def _made(
    architecture: str,
    sae: SparseAutoencoder | _Sizes,
    weights: dict[str, Tensor],
    centred: bool,
    equivalence: str = EXACT,
    **fields: Any,
) -> Equivalent:
    config = {
        "architecture": architecture,
        "d_in": sae.d_in,
        "d_sae": sae.width,
        "dtype": str(weights["W_dec"].dtype).removeprefix("torch."),
        "apply_b_dec_to_input": centred,
        **fields,
    }
    return Equivalent(config, weights, equivalence)


def _weights(encoder: Tensor, bias: Tensor, decoder: Tensor, b_dec: Tensor) -> dict[str, Tensor]:
    """sae-lens multiplies from the right: its W_enc is [d_in, width]."""
    return {"W_enc": encoder.t(), "b_enc": bias, "W_dec": decoder, "b_dec": b_dec}


def _exactness(sae: SparseDictionarySAE, rule: TopKRule | ThresholdRule) -> str:
    several = isinstance(sae.objective, BudgetLoss) or isinstance(sae, MultiTopK)
    return f"exact at k={rule.k}" if several and isinstance(rule, TopKRule) else EXACT


def _k(rule: TopKRule | ThresholdRule) -> int | None:
    return rule.k if isinstance(rule, TopKRule) else None


def _thresholds(rule: TopKRule | ThresholdRule, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if isinstance(rule, TopKRule) else rule.threshold


def _fields(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != "metadata"}


def export(sae: SparseAutoencoder, folder: Path, origin: SaeOrigin | None = None) -> ExportedSae:
    """Writes `sae` to the new `folder` so that `sae_lens.SAE.load_from_disk(folder)` reconstructs the same.

    The folder appears whole or not at all. Raises InvalidInput when it exists or when the SAE has no equivalent in
    sae-lens, StoreError when the disk refuses.
    """
    found = equivalent_of(sae)
    notes = {**(origin or SaeOrigin()).fields(), "latentbench_equivalence": found.equivalence}
    with new_folder(folder) as draft:
        assembled(found, notes).save_model(draft)
    architecture = str(found.config["architecture"])
    return ExportedSae(architecture, found.equivalence, classes.__name__ if architecture in (KRON, GROUPS) else None)


def assembled(found: Equivalent, metadata: dict[str, Any]) -> SAE:
    """The SAE as an object of sae-lens. Its weights are copies on the CPU."""
    sae_class, config_class = get_sae_class(found.config["architecture"])
    # On the meta device sae-lens initialises nothing: no memory, no draw from the global random generator.
    config = config_class.from_dict({**found.config, "device": "meta", "metadata": metadata})
    inner = sae_class(config)
    inner.load_state_dict({name: _copy(tensor) for name, tensor in found.weights.items()}, assign=True)
    inner.cfg.device = "cpu"
    return inner.eval()


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.device("cpu"), copy=True).contiguous()
