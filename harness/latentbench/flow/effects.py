"""What an intervention does to the model: to one latent at its token, to losses, and to the texts it writes.

`rerun` changes hidden states at single tokens, many cases in one forward pass; `write` samples texts under an intervention;
`losses` says what documents cost the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentbench.activations.capture import hidden_states, hidden_states_and_logits
from latentbench.activations.fitting import Pieces
from latentbench.activations.resume import resuming
from latentbench.activations.tokens import real_mask, special_mask
from latentbench.core.errors import CellFailed
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import Site
from latentbench.flow.activity import TOKENS_PER_FORWARD, TokenRows
from latentbench.flow.interventions import TokenEdit
from latentbench.flow.topology import depth
from latentbench.interventions.generation import check_context_length, generate
from latentbench.interventions.intervention import Intervention, Layout, Receipt
from latentbench.interventions.writing_ways import generate_way
from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench.statistics.arrays import Array


@dataclass(frozen=True)
class RerunRows:
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
class RerunCases:
    """One latent at one token each."""

    rows: Tensor
    """[C] int64: the document."""
    positions: Tensor
    """[C] int64: the token's column."""
    latents: Tensor
    """[C] int64."""

    def part(self, chosen: Tensor) -> RerunCases:
        """Some of them, by number."""
        return RerunCases(self.rows[chosen], self.positions[chosen], self.latents[chosen])


@dataclass(frozen=True)
class RerunOutcome:
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
    rows: RerunRows,
    cases: RerunCases,
    deltas: Mapping[Site, Tensor],
    *,
    loss: bool = False,
) -> RerunOutcome:
    """The cases with `deltas` [C, d] added at their tokens. Raises CellFailed when a change did not arrive."""
    order = torch.argsort(cases.positions)  # of similar length, because nothing behind a token matters to it
    step = max(1, TOKENS_PER_FORWARD // rows.ids.shape[1])
    activations = torch.zeros(len(order), device=rows.ids.device)
    losses = torch.zeros(len(order), dtype=torch.float64, device=rows.ids.device) if loss else None

    def work(chosen: Tensor) -> Receipt:
        part = cases.part(chosen)
        length = rows.ids.shape[1] if loss else int(part.positions.max()) + 1
        edit = TokenEdit({site: delta[chosen] for site, delta in deltas.items()}, part.positions)
        states, after, receipt = _pass(lm, target, rows, part, edit, length, loss)
        activations[chosen] = _activation(sae, states, part)
        if losses is not None and after is not None:
            losses[chosen] = after
        return receipt

    total = sum(Pieces(step).run(work, order), Receipt())
    # A hook that did not run, or ran elsewhere, would look like a latent that nothing leads to.
    expected = sum(int((delta != 0).any(1).sum()) for delta in deltas.values())
    if total.steered != expected:
        raise CellFailed(f"of {expected} changes at single tokens {total.steered} arrived")
    return RerunOutcome(activations, losses, total)


def _pass(
    lm: LanguageModel, target: Site, rows: RerunRows, cases: RerunCases, edit: TokenEdit, length: int, loss: bool
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


def _entering(lm: LanguageModel, rows: RerunRows, cases: RerunCases, length: int) -> AbstractContextManager[None]:
    if rows.entry is None or rows.states is None:
        return nullcontext()
    return resuming(lm.model, rows.entry, rows.states[cases.rows, :length])


def _activation(sae: SparseAutoencoder, states: Tensor, cases: RerunCases) -> Tensor:
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


PROMPTS_AT_ONCE = 32
"""Texts written together. Random numbers are drawn for all rows of a batch, so changing it changes the texts."""


@dataclass(frozen=True)
class Written:
    """Prompts with what the model wrote after them."""

    ids: Tensor
    """[prompts, T] int64, on the CPU: prompt and text."""
    ordinary: Tensor
    """[prompts, T] bool, on the CPU: generated and not special."""
    loss: Array
    """[prompts]: cross-entropy of the generated tokens under the untouched model, summed."""
    counts: Array
    """[prompts]: tokens that `loss` is summed over."""

    def generated(self) -> list[NDArray[np.int64]]:
        """Ordinary generated tokens of each text."""
        return [row[mask].numpy() for row, mask in zip(self.ids, self.ordinary, strict=True)]

    def decoded(self, tokenizer: Any) -> list[str]:
        """Prompt and text together, as people read them."""
        return [str(text) for text in tokenizer.batch_decode(self.ids, skip_special_tokens=True)]


def write(
    lm: LanguageModel,
    prompts: Tensor,
    intervention: Intervention,
    *,
    tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> tuple[Written, Receipt]:
    """Samples `tokens` tokens after each of `prompts` [N, P]; the same random numbers whatever the intervention.

    Raises InvalidInput where they do not fit into the model's context, and for a model that cannot write.
    """
    check_context_length(lm.model, prompts.shape[1], tokens)
    generate_way(lm)
    parts, receipt = [], Receipt()
    for number, part in enumerate(torch.split(prompts, PROMPTS_AT_ONCE)):
        with torch.random.fork_rng(devices=_devices(lm)), intervention.applied(lm) as one:
            torch.manual_seed(seed + number)  # inside of the intervention: what setting it up draws must not shift ours
            ids = generate(
                lm,
                part,
                torch.ones_like(part),
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                do_sample=True,
                temperature=temperature,
                top_p=top_p,
                top_k=0,
            )
        parts.append(_written(lm, ids, prompts.shape[1]))
        receipt = receipt + one
    return _joined(parts), receipt


def losses(lm: LanguageModel, texts: TokenRows, intervention: Intervention) -> tuple[Array, Array]:
    """[rows] each: cross-entropy summed over every prediction of a document under the intervention, and their number."""
    context = texts.ids.shape[1]

    def work(rows: Tensor) -> Tensor:
        ids, real = texts.ids[rows].to(lm.device).long(), real_mask(texts.lengths[rows], context).to(lm.device)
        with intervention.applied(lm, Layout(real=real)):
            logits = lm.model(input_ids=ids, attention_mask=real.long(), use_cache=False).logits
        return losses_from(logits, ids, real, torch.zeros(len(ids), dtype=torch.int64, device=lm.device)).cpu()

    pieces = Pieces(TOKENS_PER_FORWARD // context)
    found = torch.cat(list(pieces.run(work, torch.arange(len(texts.ids)))))
    return found.numpy(), (texts.lengths - 1).double().numpy()


def _written(lm: LanguageModel, ids: Tensor, prompt: int) -> Written:
    real = torch.ones_like(ids, dtype=torch.bool)
    logits = lm.model(input_ids=ids, attention_mask=real.long(), use_cache=False).logits
    start = torch.full((len(ids),), prompt - 1, device=ids.device)  # the prompt's last token predicts the first written
    loss = losses_from(logits, ids, real, start).cpu().numpy()
    ordinary = ~special_mask(ids, lm.tokenizer)
    ordinary[:, :prompt] = False
    counts = np.full(len(ids), float(ids.shape[1] - prompt))
    return Written(ids.cpu(), ordinary.cpu(), loss, counts)


def _joined(parts: Sequence[Written]) -> Written:
    ids, ordinary = (torch.cat([getattr(part, name) for part in parts]) for name in ("ids", "ordinary"))
    loss, counts = (np.concatenate([getattr(part, name) for part in parts]) for name in ("loss", "counts"))
    return Written(ids, ordinary, loss, counts)


def _devices(lm: LanguageModel) -> list[Any]:
    return [lm.device] if lm.device.type == "cuda" else []
