"""The classes of the dictionary_learning library as linear dictionaries.

Where a class multiplies its activations by the decoder norms and divides by them again in `decode`, the same is folded
into the weights, so that activations and reconstruction are both those of the library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from latentbench.core.errors import RefusedFile
from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench.sae.linear import ThresholdRule, TopKRule
from latentbench.sae.sources.tensors import checked, dictionary

_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Saved(NamedTuple):
    """The content of a file of weights and what its configuration promises of it."""

    d_in: int
    width: int
    k: int | None
    weights: Mapping[str, Tensor]
    where: str
    """The file, for messages."""

    def read(self, shapes: dict[str, tuple[int, ...]], *others: str) -> list[Tensor]:
        """The tensors of these names and shapes; `others` may be there too. Raises RefusedFile."""
        found = checked(self.weights, shapes, others, self.where)
        return [found[name] for name in shapes]

    @property
    def rows(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of an encoder with bias and a decoder, as `nn.Linear` layers keep them."""
        encoder = {"encoder.weight": (self.width, self.d_in), "encoder.bias": (self.width,)}
        return {**encoder, "decoder.weight": (self.d_in, self.width)}

    @property
    def columns(self) -> dict[str, tuple[int, ...]]:
        """The same of classes that keep matrices as they multiply them from the right, and the decoder's bias."""
        encoder = {"W_enc": (self.d_in, self.width), "b_enc": (self.width,)}
        return {**encoder, "W_dec": (self.width, self.d_in), "b_dec": (self.d_in,)}


def build(
    kind: str, d_in: int, width: int, k: int | None, weights: Mapping[str, Tensor], where: str
) -> SparseAutoencoder:
    """An SAE of the class `kind`. Raises RefusedFile when the weights are not those of such an SAE."""
    return _BUILDERS[kind](Saved(d_in, width, k, weights, where))


def _auto_encoder(saved: Saved) -> SparseAutoencoder:
    encoder, bias, decoder, b_dec = saved.read({**saved.rows, "bias": (saved.d_in,)})
    return dictionary(encoder, bias, decoder.t(), b_dec, _above(torch.zeros_like(bias)), centred=True)


def _auto_encoder_new(saved: Saved) -> SparseAutoencoder:
    encoder, bias, decoder, b_dec = saved.read({**saved.rows, "decoder.bias": (saved.d_in,)})
    return dictionary(encoder, bias, decoder.t(), b_dec, _above(torch.zeros_like(bias)), centred=False)


def _top_k(saved: Saved) -> SparseAutoencoder:
    k = _same_k(saved)
    # Newer versions also save a threshold, but their `encode` uses top-k unless told otherwise.
    encoder, bias, decoder, b_dec = saved.read({**saved.rows, "b_dec": (saved.d_in,)}, "k", "threshold")
    return dictionary(encoder, bias, decoder.t(), b_dec, TopKRule(k), centred=True)


def _batch_top_k(saved: Saved) -> SparseAutoencoder:
    _same_k(saved)
    shapes: dict[str, tuple[int, ...]] = {**saved.rows, "b_dec": (saved.d_in,), "threshold": ()}
    encoder, bias, decoder, b_dec, threshold = saved.read(shapes, "k")
    return dictionary(encoder, bias, decoder.t(), b_dec, _above(threshold.expand_as(bias)), centred=True)


def _matryoshka(saved: Saved) -> SparseAutoencoder:
    _same_k(saved)
    shapes: dict[str, tuple[int, ...]] = {**saved.columns, "threshold": ()}
    encoder, bias, decoder, b_dec, threshold = saved.read(shapes, "k", "group_sizes")
    return dictionary(encoder.t(), bias, decoder, b_dec, _above(threshold.expand_as(bias)), centred=True)


def _jump_relu(saved: Saved) -> SparseAutoencoder:
    encoder, bias, decoder, b_dec, threshold = saved.read({**saved.columns, "threshold": (saved.width,)})
    # `encode` of this class multiplies by the decoder norms after the jump, and `decode` divides by them again.
    norm = _norms(decoder)
    weights = (encoder.t() * norm[:, None], bias * norm, decoder / norm[:, None], b_dec)
    return dictionary(*weights, _above(threshold * norm), centred=False)


def _gated(saved: Saved) -> SparseAutoencoder:
    """The gate is open where the magnitude's pre-activation exceeds b_mag − e^r b_gate."""
    vectors = dict.fromkeys(("r_mag", "gate_bias", "mag_bias"), (saved.width,))
    matrices = {"encoder.weight": (saved.width, saved.d_in), "decoder.weight": (saved.d_in, saved.width)}
    shapes: dict[str, tuple[int, ...]] = {**matrices, **vectors, "decoder_bias": (saved.d_in,)}
    encoder, decoder, r, gate, magnitude, b_dec = saved.read(shapes)
    gain, norm = r.exp(), _norms(decoder.t())
    threshold = _above((magnitude - gain * gate) * norm)
    weights = (encoder * (gain * norm)[:, None], magnitude * norm, decoder.t() / norm[:, None], b_dec)
    return dictionary(*weights, threshold, centred=True)


_BUILDERS: dict[str, Callable[[Saved], SparseAutoencoder]] = {
    "AutoEncoder": _auto_encoder,
    "AutoEncoderNew": _auto_encoder_new,
    "AutoEncoderTopK": _top_k,
    "BatchTopKSAE": _batch_top_k,
    "GatedAutoEncoder": _gated,
    "JumpReluAutoEncoder": _jump_relu,
    "MatryoshkaBatchTopKSAE": _matryoshka,
}


def _above(threshold: Tensor) -> ThresholdRule:
    return ThresholdRule(threshold.clamp_min(0).clone())


def _norms(decoder: Tensor) -> Tensor:
    """Norms [width] of decoder rows; 1 for a row of zeros, which adds nothing anyway."""
    norms: Tensor = decoder.norm(dim=1)
    return torch.where(norms > 0, norms, 1)


def _same_k(saved: Saved) -> int:
    """The k that configuration and weights agree on. Raises RefusedFile."""
    # Both may be there, and k changes every number: where they differ nobody can say which one was meant.
    stored = saved.weights.get("k")
    if stored is not None and (stored.numel() != 1 or stored.dtype not in _WHOLE):
        raise RefusedFile(f"{saved.where}: k is {stored.dtype} {list(stored.shape)}, not a single whole number")
    found = saved.k if stored is None else int(stored)
    if found is None or (saved.k is not None and saved.k != found):
        raise RefusedFile(f"{saved.where}: k is {found}, the configuration says {saved.k}")
    if not 1 <= found <= saved.width:
        raise RefusedFile(f"{saved.where}: k = {found} active latents do not fit the width {saved.width}")
    return found
