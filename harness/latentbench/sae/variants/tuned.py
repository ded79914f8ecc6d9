"""Baselines of boosting that train an existing SAE on: fine-tuned, extended, stitched (SAE Boost, arXiv 2507.12990).

The paper names them without defining them in full; what is fixed here stands in each class.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentbench.errors import InvalidInput
from latentbench.sae.base import Loss, SparseAutoencoder
from latentbench.sae.dictionary import SparseDictionarySAE, squared_error
from latentbench.sae.encoders import LinearEncoder, unit_rows
from latentbench.sae.linear import Group, linear_weights
from latentbench.sae.options.boost import ExtendedOptions, FineTunedOptions, StitchedOptions
from latentbench.sae.rules import ThresholdRule, TopRule
from latentbench.sae.selection import BatchSelection, Selection, TokenSelection


class Tuned(SparseDictionarySAE):
    """A dictionary that starts from given weights: TopK where those have top-k, BatchTopK where thresholds.

    Reads x itself; a decoder bias that the base subtracts is folded into the encoder's.
    """

    centred = False
    encoder: LinearEncoder

    def __init__(
        self, options: FineTunedOptions, group: Group, b_dec: Tensor, extra_k: int, generator: torch.Generator
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
    `most_active`: copies of the base's latents that fire most often on the first training batch.
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
            parameter.register_post_accumulate_grad_hook(self._keep_old)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def begin(self, mean: Tensor, scale: float) -> None:
        super().begin(mean, scale)
        weight, bias = self.encoder.weight, self.encoder.bias
        bias[self.old :] = -(weight[self.old :] @ (mean * scale))

    def loss(self, x: Tensor, dead: Tensor, step: int, steps: int) -> Loss:
        if step == 0 and self.init == "most_active":
            self._copy_most_active(x)
        new = torch.arange(self.width, device=dead.device) >= self.old
        return super().loss(x, dead & new, step, steps)

    @torch.no_grad()
    def _copy_most_active(self, x: Tensor) -> None:
        counts = self.team.sum(self.encode(x).firing_counts(self.width))[: self.old]
        chosen = counts.argsort(descending=True, stable=True)[: self.width - self.old]
        for parameter in (self.encoder.weight, self.encoder.bias, self.W_dec):
            parameter[self.old :] = parameter[chosen]

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
            self.selection.threshold = self.selection.threshold.repeat(self.width)

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        """As always; then the least changed latents and the decoder bias return to the base's."""
        super().fold_input_scale(scale)
        weight, bias = self.encoder.weight, self.encoder.bias
        before, after = torch.cat([self.old_encoder, self.old_decoder], 1), torch.cat([weight, self.W_dec], 1)
        change = (after - before).norm(dim=1) / before.norm(dim=1).clamp_min(1e-12)
        kept = change.argsort(stable=True)[: len(change) - self.grafted]
        for parameter, original in ((weight, self.old_encoder), (bias, self.old_bias), (self.W_dec, self.old_decoder)):
            parameter[kept] = original[kept]
        if isinstance(self.selection, BatchSelection):
            self.selection.threshold[kept] = self.old_threshold[kept]
        self.b_dec.copy_(self.old_b_dec)


def single_group(base: SparseAutoencoder, d_in: int) -> tuple[Group, Tensor]:
    """The base's only group of latents and its decoder bias. Raises InvalidInput for other SAEs."""
    groups, b_dec = linear_weights(base)
    if len(groups) != 1 or len(b_dec) != d_in:
        raise InvalidInput(f"the base must be one dictionary over {d_in} dimensions, not {type(base).__name__}")
    weight, bias, decoder, rule = groups[0]
    return Group(weight.detach(), bias.detach(), decoder.detach(), rule), b_dec.detach()


def _selection(options: FineTunedOptions, group: Group, extra_k: int) -> Selection:
    given = options.k or (group.rule.k if isinstance(group.rule, TopRule) else None)
    if given is None:
        raise InvalidInput("the base has thresholds: say with k how many latents per token BatchTopK keeps active")
    if given + extra_k > group.width:
        raise InvalidInput(f"{given + extra_k} active latents cannot exceed the {group.width} there are")
    if isinstance(group.rule, TopRule):
        return TokenSelection(given + extra_k)
    return BatchSelection(given + extra_k, options.threshold_momentum)


def _grown(old: Group, extra: int, generator: torch.Generator) -> Group:
    rows = unit_rows(torch.randn(extra, old.W_enc.shape[1], generator=generator)).to(old.W_enc)
    encoder, decoder = (rows * weight.norm(dim=1).mean() for weight in (old.W_enc, old.W_dec))
    bias = torch.cat([old.b_enc, old.b_enc.new_zeros(extra)])
    return Group(torch.cat([old.W_enc, encoder]), bias, torch.cat([old.W_dec, decoder]), old.rule)
