"""Hidden states in seeded, shuffled batches, for training many SAEs at many sites from one forward pass.

Training rows are permuted anew in every epoch and cut into blocks of at most `buffer` tokens. The hidden states of one
block are harvested together, shuffled and cut into batches. What block b holds depends on (tokens, total_tokens,
options, order_seed, b) alone: a run continues after block b without any saved buffer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latentbench.activations.capture import hidden_states
from latentbench.activations.residual import hook_point
from latentbench.activations.tokens import TrainTokens, special_mask
from latentbench.core.errors import CellFailed, InvalidInput
from latentbench.core.sites import Site
from latentbench.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from latentbench.sae.options.training import TrainingOptions

if TYPE_CHECKING:
    from latentbench.core.protocols import LanguageModel

_TOKENS_PER_FORWARD = 8192


class ActivationStream:
    """Batches of hidden states at `sites` over about `total_tokens` training tokens.

    `total_tokens` is rounded up to full rows and counts special tokens, whose hidden states are then left out. It may
    exceed what `tokens` holds: every pass over the rows has its own order. A row longer than `buffer` is a block of
    its own. `forward_batch` rows are run at a time (default: about 8,192 tokens); rows have no padding, so it changes
    nothing beyond rounding.

    In a group every member runs its own part of a block's rows and keeps those hidden states to itself: its share of a
    batch is what it has of it. All members' shares together are the batch of a process alone.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        tokens: TrainTokens,
        sites: Collection[Site],
        total_tokens: int,
        options: TrainingOptions,
        order_seed: int,
        forward_batch: int | None = None,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        for site in sites:
            hook_point(language_model.model, site)
        self._lm, self._ids, self._sites = language_model, tokens.ids, tuple(dict.fromkeys(sites))
        self._options, self._seed, self._group = options, order_seed, group
        context = tokens.ids.shape[1]
        self._positions = -(-total_tokens // context)
        self._ordinary = ~special_mask(tokens.ids, language_model.tokenizer)
        self._per_row = self._ordinary.sum(1)
        self._forward_batch = forward_batch or max(1, _TOKENS_PER_FORWARD // context)
        self.blocks: int = -(-self._positions // max(1, options.buffer // context))
        """Number of shuffle blocks."""
        if (fewest := self._positions // self.blocks) < group.size:
            raise InvalidInput(
                f"{group.size} devices cannot share {fewest} rows of {context} tokens, which are all that a shuffle block "
                "holds: raise training.buffer or lower training.devices"
            )
        self._latest_order: tuple[int, Tensor] | None = None
        self._block_tokens = self._count_tokens()
        self.steps: int = sum(map(self._batches_in, self._block_tokens))
        """Exact number of batches of all blocks."""
        if self.steps == 0:
            raise InvalidInput("the training documents hold nothing but special tokens")
        self._first: dict[Site, Tensor] | None = None
        self._statistics: dict[Site, tuple[float, Tensor]] | None = None

    @property
    def first_norms(self) -> dict[Site, float]:
        """Mean Euclidean norm of the hidden states of block 0 at each site."""
        return {site: norm for site, (norm, _) in self._first_statistics().items()}

    @property
    def means(self) -> dict[Site, Tensor]:
        """Mean hidden state [d] float32 of block 0 at each site."""
        return {site: mean for site, (_, mean) in self._first_statistics().items()}

    def tokens_seen(self, block: int) -> int:
        """Hidden states in blocks 0 to `block`, that one included (special tokens are not counted)."""
        return sum(self._block_tokens[: block + 1])

    def steps_before(self, block: int) -> int:
        """Number of batches in the blocks before `block`."""
        return sum(map(self._batches_in, self._block_tokens[:block]))

    def batches(self, block: int) -> Iterator[dict[Site, Tensor]]:
        """The batches of one block: for each site float32 [n, d], n within one of the others and close to `batch`.

        Row i of every site belongs to the same token. In a group, this member's share of them. Raises CellFailed when a
        batch is too small for every member to have some of it.
        """
        states = self._harvest(block)
        if (count := self._batches_in(self._block_tokens[block])) == 0:
            return
        edges = torch.tensor([0, *accumulate(map(self._tokens_in, self._parts(block)))])
        order = torch.randperm(self._block_tokens[block], generator=self._generator("tokens", block))
        for chosen in order.tensor_split(count):
            own = _share(chosen, edges, self._group.rank)
            yield {site: state[own.to(state.device)].float() for site, state in states.items()}

    def _batches_in(self, tokens: int) -> int:
        return max(1, round(tokens / self._options.batch)) if tokens else 0

    def _count_tokens(self) -> list[int]:
        return [self._tokens_in(self._rows(block)) for block in range(self.blocks)]

    def _tokens_in(self, rows: Tensor) -> int:
        return int(self._per_row[rows].sum())

    def _parts(self, block: int) -> tuple[Tensor, ...]:
        """Row numbers of one block, as the members of the group run them."""
        return self._rows(block).tensor_split(self._group.size)

    def _rows(self, block: int) -> Tensor:
        """Row numbers of one block; blocks differ by at most one row, so that none is a small left-over."""
        start, stop = (self._positions * edge // self.blocks for edge in (block, block + 1))
        rows = len(self._ids)
        epochs = range(start // rows, (stop - 1) // rows + 1)
        return torch.cat([self._order(n)[max(0, start - n * rows) : stop - n * rows] for n in epochs])

    def _order(self, epoch: int) -> Tensor:
        """The permutation of all rows in one epoch; the latest is kept, since neighbouring blocks share it."""
        if self._latest_order is None or self._latest_order[0] != epoch:
            self._latest_order = epoch, torch.randperm(len(self._ids), generator=self._generator("rows", epoch))
        return self._latest_order[1]

    def _generator(self, use: str, number: int) -> torch.Generator:
        digest = hashlib.sha256(f"{self._seed}/{use}/{number}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def _harvest(self, block: int) -> dict[Site, Tensor]:
        """Hidden states [n, d] of a block's ordinary tokens (a member's part of them) in row order, in the model's type."""
        if block == 0:
            self._first_statistics()
        kept, self._first = self._first, None
        return kept if block == 0 and kept is not None else self._run(block)

    def _first_statistics(self) -> dict[Site, tuple[float, Tensor]]:
        if self._statistics is None:
            self._first = self._run(0)
            self._statistics = {site: _norm_and_mean(state, self._group) for site, state in self._first.items()}
        return self._statistics

    @torch.no_grad()
    def _run(self, block: int) -> dict[Site, Tensor]:
        harvested: dict[Site, Tensor] = {}
        done, part = 0, self._parts(block)[self._group.rank]
        for rows in torch.split(part, self._forward_batch):
            ids, ordinary = self._ids[rows].to(self._lm.device).long(), self._ordinary[rows].to(self._lm.device)
            states = {site: state[ordinary] for site, state in hidden_states(self._lm.model, self._sites, ids).items()}
            for site, state in states.items():
                room = harvested.setdefault(site, state.new_empty(self._tokens_in(part), state.shape[-1]))
                room[done : done + len(state)] = state
            done += int(ordinary.sum())
        return harvested


def _share(chosen: Tensor, edges: Tensor, rank: int) -> Tensor:
    """Which of a batch's tokens member `rank` has, counted from its own first; `edges` [size + 1] bound the parts.

    Raises CellFailed when a member has none, which every member finds alike.
    """
    owners = torch.bucketize(chosen, edges[1:-1], right=True)
    if not torch.bincount(owners, minlength=len(edges) - 1).all():
        raise CellFailed(
            f"a batch of {len(chosen)} tokens leaves one of {len(edges) - 1} devices without any: raise training.batch or "
            "lower training.devices"
        )
    return chosen[owners == rank] - edges[rank]


def _norm_and_mean(states: Tensor, group: ProcessGroup) -> tuple[float, Tensor]:
    """Mean norm and mean [d] of all members' hidden states [n, d], summed in float64, a piece at a time."""
    norm, mean = 0.0, states.new_zeros(states.shape[1], dtype=torch.float64)
    for piece in torch.split(states, _TOKENS_PER_FORWARD):
        norm += float(piece.double().norm(dim=1).sum())
        mean += piece.sum(0, dtype=torch.float64)
    sums = group.all_sum(torch.cat([mean, mean.new_tensor([norm, len(states)])]))
    tokens = sums[-1].clamp_min(1)
    return float(sums[-2] / tokens), (sums[:-2] / tokens).float()
