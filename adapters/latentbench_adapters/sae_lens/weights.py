"""SAEs of sae-lens taken apart: what boosting, its baselines and exports need of a loaded SAE."""

from __future__ import annotations

import torch
from sae_lens import SAE
from torch import Tensor

from latentbench.errors import InvalidInput
from latentbench.sae.linear import Group, LinearWeights, folded_bias
from latentbench.sae.rules import ThresholdRule, TopRule

_NORMALISING = ("layer_norm", "constant_norm_rescale")
"""Normalisations that sae-lens applies to every token; the others are folded into the weights or not applied."""


def weights_of(inner: SAE) -> LinearWeights:
    """Weights of a standard, topk, jumprelu or gated SAE as one group that reads x; of a group SAE as its groups.

    Raises InvalidInput for other classes and where the input is normalised or reshaped at run time.
    """
    config = inner.cfg
    if config.normalize_activations in _NORMALISING or config.reshape_activations != "none":
        raise InvalidInput(
            f"this sae-lens SAE normalises or reshapes its input at run time ({config.normalize_activations}, "
            f"{config.reshape_activations}), so it has no equivalent linear encoder"
        )
    kind, rows = config.architecture(), inner.W_enc.t()
    if kind == "gated":
        groups: tuple[Group, ...] = (_gated(inner, rows),)
    elif kind == "latentbench_groups":
        groups = _groups(inner, rows)
    elif kind in ("standard", "topk", "jumprelu"):
        groups = (_plain(inner, rows, kind),)
    else:
        raise InvalidInput(f"sae-lens' class {kind!r} has no equivalent linear encoder with top-k or thresholds")
    shift = inner.b_dec if config.apply_b_dec_to_input else None
    read = tuple(Group(g.W_enc, folded_bias(g.W_enc, g.b_enc, shift), g.W_dec, g.rule) for g in groups)
    return LinearWeights(tuple(_float32(group) for group in read), inner.b_dec.float())


def _plain(inner: SAE, rows: Tensor, kind: str) -> Group:
    if kind == "jumprelu":
        return Group(rows, inner.b_enc, inner.W_dec, ThresholdRule(inner.threshold.detach()))
    if kind == "standard":
        return Group(rows, inner.b_enc, inner.W_dec, ThresholdRule(torch.zeros_like(inner.b_enc)))
    if inner.cfg.rescale_acts_by_decoder_norm:
        norm = inner.W_dec.norm(dim=-1)
        return Group(rows * norm[:, None], inner.b_enc * norm, inner.W_dec / norm[:, None], TopRule(int(inner.cfg.k)))
    return Group(rows, inner.b_enc, inner.W_dec, TopRule(int(inner.cfg.k)))


def _gated(inner: SAE, rows: Tensor) -> Group:
    """The gate is open where the magnitude's pre-activation exceeds b_mag − e^r b_gate."""
    gain = inner.r_mag.exp()
    threshold = ThresholdRule((inner.b_mag - gain * inner.b_gate).detach())
    return Group(rows * gain[:, None], inner.b_mag, inner.W_dec, threshold)


def _groups(inner: SAE, rows: Tensor) -> tuple[Group, ...]:
    found, start = [], 0
    for width, k in inner.cfg.groups:
        part = slice(start, start + width)
        rule = ThresholdRule(inner.threshold[part].detach()) if k is None else TopRule(k)
        found.append(Group(rows[part], inner.b_enc[part], inner.W_dec[part], rule))
        start += width
    return tuple(found)


def _float32(group: Group) -> Group:
    rule = ThresholdRule(group.rule.threshold.float()) if isinstance(group.rule, ThresholdRule) else group.rule
    return Group(group.W_enc.float(), group.b_enc.float(), group.W_dec.float(), rule)
