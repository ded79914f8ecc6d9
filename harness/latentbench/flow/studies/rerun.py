"""What one latent becomes when a hidden state before it is changed at its token: many cases in one forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from latentbench.activations.capture import hidden_states, hidden_states_and_logits
from latentbench.activations.resume import resuming
from latentbench.activations.site import Site
from latentbench.errors import CellFailed
from latentbench.flow.activity import TOKENS_PER_FORWARD
from latentbench.flow.editing import TokenEdit
from latentbench.flow.places import depth
from latentbench.sae.base import SparseAutoencoder
from latentbench.steering.intervention import Receipt
from latentbench_adapters.protocols import LanguageModel


@dataclass(frozen=True)
class Rows:
    """Documents that cases refer to, and where the forward pass may start."""

    ids: Tensor
    """[B, T] int64."""
    real: Tensor
    """[B, T] bool."""
    entry: Site | None
    """Site whose captured states stand for all blocks up to it; None: the pass starts at the tokens."""
    states: Tensor | None
    """[B, T, d] at `entry`."""


@dataclass(frozen=True)
class Cases:
    """One latent at one token each."""

    rows: Tensor
    """[C] int64: the document."""
    positions: Tensor
    """[C] int64: the token's column."""
    latents: Tensor
    """[C] int64."""

    def part(self, chosen: Tensor) -> Cases:
        """Some of them, by number."""
        return Cases(self.rows[chosen], self.positions[chosen], self.latents[chosen])


@dataclass(frozen=True)
class Outcome:
    """What came of some cases."""

    activations: Tensor
    """[C] float32: of each case's latent at its token."""
    losses: Tensor | None
    """[C] float64: cross-entropy summed over the predictions from the token to the document's end."""
    receipt: Receipt


def entry_before(site: Site) -> Site | None:
    """Where a pass may be resumed so that a change at `site` or behind it still counts."""
    return Site(index=depth(site) - 1) if depth(site) else None


def rerun(
    lm: LanguageModel,
    sae: SparseAutoencoder,
    target: Site,
    rows: Rows,
    cases: Cases,
    deltas: Mapping[Site, Tensor],
    *,
    loss: bool = False,
) -> Outcome:
    """The cases with `deltas` [C, d] added at their tokens. Raises CellFailed when a change did not arrive."""
    order = torch.argsort(cases.positions)  # of similar length, because nothing behind a token matters to it
    step = max(1, TOKENS_PER_FORWARD // rows.ids.shape[1])
    activations = torch.zeros(len(order), device=rows.ids.device)
    losses = torch.zeros(len(order), dtype=torch.float64, device=rows.ids.device) if loss else None
    total = Receipt()
    for chosen in torch.split(order, step):
        part = cases.part(chosen)
        length = rows.ids.shape[1] if loss else int(part.positions.max()) + 1
        edit = TokenEdit({site: delta[chosen] for site, delta in deltas.items()}, part.positions)
        states, after, receipt = _pass(lm, target, rows, part, edit, length, loss)
        activations[chosen] = _activation(sae, states, part)
        if losses is not None and after is not None:
            losses[chosen] = after
        total = total + receipt
    expected = sum(int((delta != 0).any(1).sum()) for delta in deltas.values())
    if total.steered != expected:
        raise CellFailed(f"of {expected} changes at single tokens {total.steered} arrived")
    return Outcome(activations, losses, total)


def _pass(
    lm: LanguageModel, target: Site, rows: Rows, cases: Cases, edit: TokenEdit, length: int, loss: bool
) -> tuple[Tensor, Tensor | None, Receipt]:
    """Hidden states [C, T, d] at the target, losses [C] where asked for, and the receipt."""
    ids, real = rows.ids[cases.rows, :length], rows.real[cases.rows, :length]
    with _entering(lm, rows, cases, length), edit.applied(lm) as receipt:
        if not loss:
            states = hidden_states(lm.model, (target,), ids, real.long())
            after = None
        else:
            states, logits = hidden_states_and_logits(lm.model, (target,), ids, real.long())
            after = losses_from(logits, ids, real, cases.positions)
    return states[target], after, receipt


def _entering(lm: LanguageModel, rows: Rows, cases: Cases, length: int) -> AbstractContextManager[None]:
    if rows.entry is None or rows.states is None:
        return nullcontext()
    return resuming(lm.model, rows.entry, rows.states[cases.rows, :length])


def _activation(sae: SparseAutoencoder, states: Tensor, cases: Cases) -> Tensor:
    """[C] activation of each case's latent at its token."""
    codes = sae.encode(states[torch.arange(len(states), device=states.device), cases.positions].float())
    return (codes.values * (codes.indices == cases.latents[:, None])).sum(1)


def losses_from(logits: Tensor, ids: Tensor, real: Tensor, positions: Tensor, rows: Tensor | None = None) -> Tensor:
    """[C] float64: cross-entropy of `rows` (default: all) of a batch, over predictions made at or after `positions` [C].

    `logits` [B, T, vocabulary], `ids` and `real` [B, T]; a row may be asked for several times.
    """
    chosen = range(len(ids)) if rows is None else rows.tolist()
    return torch.stack(
        [_row_loss(logits[row], ids[row], real[row], at) for row, at in zip(chosen, positions, strict=True)]
    )


def _row_loss(logits: Tensor, ids: Tensor, real: Tensor, position: Tensor) -> Tensor:
    """One row at a time, because vocabularies are large."""
    counted = real[1:] & (torch.arange(len(ids) - 1, device=ids.device) >= position)
    chosen = logits[:-1][counted].float()
    return torch.nn.functional.cross_entropy(chosen, ids[1:][counted], reduction="sum").double()
