"""Direct logit attribution: through which parts of the model does a vector raise a token's logit?

At the first generated token the final residual stream moves by Δ_L = Σ_l s_l + Σ_l (Δattn_l + Δmlp_l). To first order
the logit of token t moves by g · Δ_L with g the gradient of that logit in the final residual stream, here the mean of the
gradients at the plain and at the steered end (the trapezoid rule), so every part c of the sum gets its share g · c. What
the shares leave unexplained is reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from latentbench.activations.blocks import decoder_blocks
from latentbench.activations.resume import resumed_logits
from latentbench.activations.site import Site
from latentbench.steering.inject import VectorInjection
from latentbench.steering.mechanism.passages import Passages, Trace, trace
from latentbench_adapters.protocols import LanguageModel


@dataclass(frozen=True)
class Attribution:
    """Shares of the change of one token's logit, one row per passage."""

    token: int
    change: Tensor
    """[B] float64: the logit under steering minus the plain one."""
    direct: Tensor
    """[B, layers] from the vector of each layer itself."""
    attention: Tensor
    """[B, layers] from what each block's attention adds otherwise than before."""
    mlp: Tensor
    """[B, layers] the same for its MLP."""

    @property
    def rest(self) -> Tensor:
        """[B] what the shares do not explain."""
        return self.change - self.direct.sum(1) - self.attention.sum(1) - self.mlp.sum(1)


def attribution(lm: LanguageModel, injection: VectorInjection, passages: Passages, token: int) -> Attribution:
    """Of the logit of `token` at the first generated token of every passage."""
    rows = [_batch(lm, injection, batch, token) for batch in passages.batches(lm)]
    change, direct, attention, mlp = (torch.cat([row[part] for row in rows]) for part in range(4))
    return Attribution(token, change, direct, attention, mlp)


def _batch(lm: LanguageModel, injection: VectorInjection, batch: Passages, token: int) -> tuple[Tensor, ...]:
    layers = len(decoder_blocks(lm.model))
    last = Site(index=layers - 1)
    sites = [last, *(Site(index=i, point=p) for i in range(layers) for p in ("attn_out", "mlp_out"))]
    steered, plain = trace(lm, batch, injection, sites), trace(lm, batch, None, sites)
    place = batch.prompt_lengths - 1
    gradient = (_gradient(lm, batch, plain, last, token) + _gradient(lm, batch, steered, last, token)) / 2
    change = _at(steered.logits, place)[:, token].double() - _at(plain.logits, place)[:, token].double()
    moved = {
        site: _at(steered.states[site], place).double() - _at(plain.states[site], place).double() for site in sites
    }
    # The first generated token is predicted from the last of the prompt, which the scope `prompt` leaves alone.
    direct = _direct(gradient, {} if injection.scope == "prompt" else injection.deltas, layers)
    parts = [
        torch.stack([(gradient * moved[Site(index=i, point=point)]).sum(1) for i in range(layers)], 1)
        for point in ("attn_out", "mlp_out")
    ]
    return change.cpu(), direct.cpu(), parts[0].cpu(), parts[1].cpu()


def _direct(gradient: Tensor, deltas: Mapping[int, Tensor], layers: int) -> Tensor:
    zero = gradient.new_zeros(len(gradient))
    columns = [gradient @ deltas[i].to(gradient) if i in deltas else zero for i in range(layers)]
    return torch.stack(columns, 1)


def _gradient(lm: LanguageModel, batch: Passages, run: Trace, last: Site, token: int) -> Tensor:
    """[B, d] float64: of the token's logit in the final residual stream of `run`."""
    hidden = run.states[last].detach().clone().requires_grad_(True)
    with torch.enable_grad():
        logits = resumed_logits(lm.model, last, hidden, batch.ids, batch.real.long())
        wanted = _at(logits, batch.prompt_lengths - 1)[:, token].sum()
        (gradient,) = torch.autograd.grad(wanted, hidden)
    return _at(gradient, batch.prompt_lengths - 1).double()


def _at(values: Tensor, place: Tensor) -> Tensor:
    """[B, …] the entries of [B, T, …] at one place per row."""
    return values[torch.arange(len(values), device=values.device), place]
