"""Boosting: a residual SAE reads x and predicts a frozen base's error; and the baselines that train a base on.

SAE Boost (arXiv 2507.12990). The paper names the baselines (fine-tuned, extended, stitched) without defining them in full;
what is fixed here stands in each class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from latentbench.core.errors import InvalidInput
from latentbench.sae.autoencoder import Codes, SparseAutoencoder, TrainableSAE, TrainingLoss, weights_digest
from latentbench.sae.dictionary import SparseDictionarySAE, squared_error
from latentbench.sae.encoders import BatchSelection, LinearEncoder, Selection, TokenSelection, selection, unit_rows
from latentbench.sae.linear import (
    ConcatenatedSAE,
    LatentGroup,
    LinearWeights,
    ThresholdRule,
    TopKRule,
    concatenated,
    frozen,
    linear_weights,
)
from latentbench.sae.options.boosting import (
    BoostedOptions,
    EnsembleOptions,
    ExtendedOptions,
    FineTunedOptions,
    StitchedOptions,
)
from latentbench.sae.sparse_kernels.autograd import sparse_decode


class Residual(SparseDictionarySAE):
    """ê = Σ z_i W_dec[i] with z from x itself: no decoder bias, so that without active latents nothing changes.

    Decoder rows start at zero: before its first step a residual SAE leaves the base as it is.
    """

    centred = False
    encoder: LinearEncoder

    def __init__(self, options: BoostedOptions, d_in: int, generator: torch.Generator) -> None:
        encoder = LinearEncoder(d_in, options.width, generator)
        chosen = selection(options.selection, options.k, options.threshold_momentum)
        super().__init__(options, encoder, torch.zeros(options.width, d_in), chosen, squared_error)
        # Stays zero: a decoder bias would change the base's output on every token, even without active latents.
        self.b_dec.requires_grad_(False)

    @torch.no_grad()
    def begin(self, mean: Tensor, scale: float) -> None:
        """Starts the encoder's bias so that the mean hidden state gives pre-activation zero."""
        self.encoder.bias.copy_(-(self.encoder.weight @ (mean * scale)))


class Ensemble(SparseAutoencoder):
    """x̂ = x̂_base + Σ ê over the residual SAEs of several domains. Latents: the base's, then each residual's."""

    def __init__(self, options: EnsembleOptions, d_in: int, generator: torch.Generator, *boosts: Boosted) -> None:
        super().__init__()
        if not all(isinstance(boost, Boosted) for boost in boosts):
            raise InvalidInput("an ensemble is made of boosted SAEs; another SAE stands among its boosts")
        if not boosts or any(weights_digest(boost.base) != weights_digest(boosts[0].base) for boost in boosts):
            raise InvalidInput("an ensemble needs one or more boosted SAEs of the same base")
        self._boosts = boosts
        self.d_in, self.width = d_in, boosts[0].base.width + sum(boost.residual.width for boost in boosts)

    @property
    def bases(self) -> tuple[SparseAutoencoder, ...]:
        return self._boosts

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Ensemble:
        # What `to` and its relatives call: boosts are no submodules, whose weights would be saved, but move along.
        for boost in self._boosts:
            boost._apply(fn, recurse)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        codes = encode_together(x, self._boosts[0].base, [boost.residual for boost in self._boosts])
        return codes if budget is None else codes.truncated(budget)

    def decode(self, codes: Codes) -> Tensor:
        return decode_together(codes, self._boosts[0].base, [boost.residual for boost in self._boosts])

    def linear_weights(self) -> LinearWeights:
        """Base and residuals as the groups of one dictionary. Raises InvalidInput where the base is not linear."""
        groups, b_dec = linear_weights(self._boosts[0].base)
        return LinearWeights((*groups, *(g for boost in self._boosts for g in boost.residual_groups())), b_dec)

    def as_single(self) -> ConcatenatedSAE:
        """One dictionary with concatenated weights and the same output. Raises InvalidInput as `linear_weights`."""
        return ConcatenatedSAE(self.linear_weights())


class Boosted(TrainableSAE):
    """x̂ = x̂_base + ê: latents of the frozen base first, then those of the residual SAE, which alone is trained."""

    uses_kernels = True

    def __init__(self, options: BoostedOptions, d_in: int, generator: torch.Generator, base: SparseAutoencoder) -> None:
        super().__init__()
        if base.paired:
            raise InvalidInput("the base is a transcoder, which is no SAE: nothing is left for a residual SAE to learn")
        if base.d_in != d_in:
            raise InvalidInput(f"the base SAE reads {base.d_in} dimensions, the hidden states have {d_in}")
        self._base = (frozen(base),)  # a tuple: its weights are not part of this SAE's own
        self.residual = Residual(options, d_in, generator)
        self.d_in, self.width = d_in, base.width + options.width
        self.scale = 1.0

    @property
    def base(self) -> SparseAutoencoder:
        """The frozen SAE below."""
        return self._base[0]

    @property
    def bases(self) -> tuple[SparseAutoencoder, ...]:
        return self._base

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Boosted:
        # As in Ensemble: the base moves along.
        self.base._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def begin(self, mean: Tensor, scale: float) -> None:
        self.scale = scale
        self.residual.begin(mean, scale)

    def loss(self, x: Tensor, dead: Tensor, step: int, steps: int) -> TrainingLoss:
        """The residual SAE's loss with input x and target x − x̂_base."""
        with torch.no_grad():
            # The base reads hidden states as the model makes them, the residual SAE in training scaled ones.
            raw = x / self.scale
            codes = self.base.encode(raw)
            error = (raw - self.base.decode(codes)) * self.scale
        # Only the residual's latents can be revived: the base's have no gradient.
        loss = self.residual.loss_on(x, error, dead[self.base.width :], step, steps)
        return loss._replace(firing=torch.cat([codes.firing_counts(self.base.width), loss.firing]))

    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        codes = encode_together(x, self.base, [self.residual])
        return codes if budget is None else codes.truncated(budget)

    def decode(self, codes: Codes) -> Tensor:
        return decode_together(codes, self.base, [self.residual])

    def decoder_rows(self) -> Tensor | None:
        rows = self.base.decoder_rows()
        return None if rows is None else torch.cat([rows, self.residual.W_dec])

    def fold_input_scale(self, scale: float) -> None:
        self.scale = 1.0
        self.residual.fold_input_scale(scale)

    def settings(self) -> dict[str, float | int | str]:
        return self.residual.settings()

    def residual_groups(self) -> tuple[LatentGroup, ...]:
        """The residual SAE's latents as groups of a dictionary."""
        return self.residual.linear_weights().groups

    def linear_weights(self) -> LinearWeights:
        """Base and residual as the groups of one dictionary. Raises InvalidInput where the base is not linear."""
        groups, b_dec = linear_weights(self.base)
        return LinearWeights((*groups, *self.residual_groups()), b_dec)

    def as_single(self) -> ConcatenatedSAE:
        """One dictionary with concatenated weights and the same output. Raises InvalidInput as `linear_weights`."""
        return ConcatenatedSAE(self.linear_weights())


def encode_together(x: Tensor, base: SparseAutoencoder, residuals: Sequence[Residual]) -> Codes:
    """Codes of base and residuals in one numbering of latents: the base's first."""
    ends = tuple(accumulate([base.width, *(residual.width for residual in residuals)]))
    return concatenated([base.encode(x), *(residual.encode(x) for residual in residuals)], ends)


def decode_together(codes: Codes, base: SparseAutoencoder, residuals: Sequence[Residual]) -> Tensor:
    """The base's reconstruction plus what the residuals add; without active residual latents exactly the former."""
    out, start = base.decode(_part(codes, 0, base.width)), base.width
    for residual in residuals:
        out = out + sparse_decode(_part(codes, start, residual.width), residual.W_dec)
        start += residual.width
    return out


def _part(codes: Codes, start: int, width: int) -> Codes:
    # Codes of all parts come mixed, e.g. after `truncated`; entries of other parts become padding.
    inside = (codes.indices >= start) & (codes.indices < start + width)
    return Codes(torch.where(inside, codes.values, 0), torch.where(inside, codes.indices - start, 0))


class Tuned(SparseDictionarySAE):
    """A dictionary that starts from given weights: TopK where those have top-k, BatchTopK where thresholds.

    Reads x itself; a decoder bias that the base subtracts is folded into the encoder's.
    """

    centred = False
    encoder: LinearEncoder

    def __init__(
        self, options: FineTunedOptions, group: LatentGroup, b_dec: Tensor, extra_k: int, generator: torch.Generator
    ) -> None:
        encoder = LinearEncoder(len(b_dec), group.width, generator)
        chosen = _selection(options, group, extra_k)
        super().__init__(options, encoder, group.W_dec.detach().clone(), chosen, squared_error)
        with torch.no_grad():
            encoder.weight.copy_(group.W_enc)
            encoder.bias.copy_(group.b_enc)
            self.b_dec.copy_(b_dec)

    def begin(self, mean: Tensor, scale: float) -> None:
        """Lets the given weights read and write `scale · x`."""
        SparseDictionarySAE.fold_input_scale(self, 1 / scale)


class FineTuned(Tuned):
    """All weights of the base are trained on."""

    def __init__(
        self, options: FineTunedOptions, d_in: int, generator: torch.Generator, base: SparseAutoencoder
    ) -> None:
        super().__init__(options, *single_group(base, d_in), 0, generator)


class Extended(Tuned):
    """New latents beside the frozen old ones, k + extra_k active in common; all weights of the base stay as they are.

    Thresholds do not: old and new latents compete in BatchTopK, whose one running threshold then holds for both.

    `random`: encoder rows of the base's mean norm, zero at the mean hidden state; decoder rows in the same direction.
    `most_active`: encoder rows and biases of the base's latents that fire most often on the first training batch, decoder
    rows zero: the old latents already write what the copies would, so these start with the error that is left.
    """

    def __init__(
        self, options: ExtendedOptions, d_in: int, generator: torch.Generator, base: SparseAutoencoder
    ) -> None:
        old, b_dec = single_group(base, d_in)
        if options.init == "most_active" and options.extra_width > old.width:
            raise InvalidInput(f"{options.extra_width} new latents cannot be copies of the base's {old.width}")
        super().__init__(options, _grown(old, options.extra_width, generator), b_dec, options.extra_k, generator)
        self.old, self.init = old.width, options.init
        self.b_dec.requires_grad_(False)
        for parameter in (self.encoder.weight, self.encoder.bias, self.W_dec):
            # Struck out before clipping counts it; Adam leaves a weight as it is whose gradients were all zero.
            parameter.register_post_accumulate_grad_hook(self._keep_old)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def begin(self, mean: Tensor, scale: float) -> None:
        super().begin(mean, scale)
        weight, bias = self.encoder.weight, self.encoder.bias
        bias[self.old :] = -(weight[self.old :] @ (mean * scale))

    def loss(self, x: Tensor, dead: Tensor, step: int, steps: int) -> TrainingLoss:
        if step == 0 and self.init == "most_active":
            self._copy_most_active(x)
        # Old latents are frozen, so AuxK could not revive them; their place is left to the new ones.
        new = torch.arange(self.width, device=dead.device) >= self.old
        return super().loss(x, dead & new, step, steps)

    @torch.no_grad()
    def _copy_most_active(self, x: Tensor) -> None:
        counts = self.group.all_sum(self.encode(x).firing_counts(self.width))[: self.old]
        chosen = counts.argsort(descending=True, stable=True)[: self.width - self.old]
        for parameter in (self.encoder.weight, self.encoder.bias):
            parameter[self.old :] = parameter[chosen]
        self.W_dec[self.old :] = 0

    @torch.no_grad()
    def decay_weights(self, share: float) -> None:
        for parameter in (self.encoder.weight, self.encoder.bias, self.W_dec):
            parameter[self.old :] *= 1 - share

    def _keep_old(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            parameter.grad[: self.old] = 0


class Stitched(FineTuned):
    """Fine-tuned, but in the end only the most changed latents are kept; all others are the base's again.

    Change of a latent: the distance of its encoder and decoder rows from the base's over the latter's norm.
    """

    old_encoder: Tensor
    old_bias: Tensor
    old_decoder: Tensor
    old_b_dec: Tensor
    old_threshold: Tensor
    """Of a base with thresholds only."""

    def __init__(
        self, options: StitchedOptions, d_in: int, generator: torch.Generator, base: SparseAutoencoder
    ) -> None:
        (weight, bias, decoder, rule), b_dec = single_group(base, d_in)
        if options.grafted > len(bias):
            raise InvalidInput(f"cannot graft {options.grafted} of {len(bias)} latents")
        super().__init__(options, d_in, generator, base)
        self.grafted = options.grafted
        originals = {"encoder": weight, "bias": bias, "decoder": decoder, "b_dec": b_dec}
        if isinstance(rule, ThresholdRule):
            originals["threshold"] = rule.threshold
        for name, tensor in originals.items():  # buffers go where the weights go; the base's files keep their content
            self.register_buffer(f"old_{name}", tensor.clone(), persistent=False)
        if isinstance(self.selection, BatchSelection):
            # One threshold per latent: in the end some are the base's and the others the running one.
            self.selection.threshold = self.selection.threshold.repeat(self.width)

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        """As always; then the least changed latents and the decoder bias return to the base's."""
        super().fold_input_scale(scale)
        weight, bias = self.encoder.weight, self.encoder.bias
        before, after = torch.cat([self.old_encoder, self.old_decoder], 1), torch.cat([weight, self.W_dec], 1)
        # Compared with the originals after folding, when both read raw hidden states.
        change = (after - before).norm(dim=1) / before.norm(dim=1).clamp_min(1e-12)
        kept = change.argsort(stable=True)[: len(change) - self.grafted]
        for parameter, original in ((weight, self.old_encoder), (bias, self.old_bias), (self.W_dec, self.old_decoder)):
            parameter[kept] = original[kept]
        if isinstance(self.selection, BatchSelection):
            self.selection.threshold[kept] = self.old_threshold[kept]
        self.b_dec.copy_(self.old_b_dec)


def single_group(base: SparseAutoencoder, d_in: int) -> tuple[LatentGroup, Tensor]:
    """The base's only group of latents and its decoder bias. Raises InvalidInput for other SAEs."""
    groups, b_dec = linear_weights(base)
    if len(groups) != 1 or len(b_dec) != d_in:
        raise InvalidInput(f"the base must be one dictionary over {d_in} dimensions, not {type(base).__name__}")
    weight, bias, decoder, rule = groups[0]
    return LatentGroup(weight.detach(), bias.detach(), decoder.detach(), rule), b_dec.detach()


def _selection(options: FineTunedOptions, group: LatentGroup, extra_k: int) -> Selection:
    given = options.k or (group.rule.k if isinstance(group.rule, TopKRule) else None)
    if given is None:
        raise InvalidInput("the base has thresholds: say with k how many latents per token BatchTopK keeps active")
    if given + extra_k > group.width:
        raise InvalidInput(f"{given + extra_k} active latents cannot exceed the {group.width} there are")
    if isinstance(group.rule, TopKRule):
        return TokenSelection(given + extra_k)
    return BatchSelection(given + extra_k, options.threshold_momentum)


def _grown(old: LatentGroup, extra: int, generator: torch.Generator) -> LatentGroup:
    rows = unit_rows(torch.randn(extra, old.W_enc.shape[1], generator=generator)).to(old.W_enc)
    encoder, decoder = (rows * weight.norm(dim=1).mean() for weight in (old.W_enc, old.W_dec))
    bias = torch.cat([old.b_enc, old.b_enc.new_zeros(extra)])
    return LatentGroup(torch.cat([old.W_enc, encoder]), bias, torch.cat([old.W_dec, decoder]), old.rule)
