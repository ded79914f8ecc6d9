"""Hidden states in seeded, shuffled batches, for training many SAEs at many sites from one forward pass.

Training rows are permuted anew in every epoch and cut into blocks of at most `buffer` tokens. The hidden states of one
block are harvested together, shuffled and cut into batches. What block b holds depends on (tokens, total_tokens,
options, order_seed, rule, b) alone: a run continues after block b without any saved buffer.

Special tokens and those that the rule names are left out by their ids, before the model is run, so that the number of
batches is known from the start. Massive ones are known only afterwards, and not at all sites alike: each site's batches are
cut from what is left there, into the same number, and are a little smaller.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latentbench.activations.fitting import Pieces
from latentbench.activations.massive import LeftOut, NormLimit, OrdinaryTokens, lengths, named_ids, named_mask
from latentbench.activations.residual import hook_point
from latentbench.activations.row_states import TOKENS_PER_FORWARD, LiveRowStates, RowStates
from latentbench.activations.tokens import TrainTokens, special_mask
from latentbench.core.errors import CellFailed, InvalidInput
from latentbench.core.sites import Site
from latentbench.core.token_rule import EVERY_TOKEN, TokenRule
from latentbench.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from latentbench.sae.options.training import TrainingOptions

if TYPE_CHECKING:
    from latentbench.core.protocols import LanguageModel


class ActivationStream:
    """Batches of hidden states at `sites` over about `total_tokens` training tokens.

    `total_tokens` is rounded up to full rows and counts special tokens, whose hidden states are then left out. It may
    exceed what `tokens` holds: every pass over the rows has its own order. A row longer than `buffer` is a block of
    its own. `forward_batch` rows are run at a time (default: about 8,192 tokens), half as many from where memory runs out,
    which changes nothing beyond rounding.
    `rule` says which tokens are left out besides; its limits are those of block 0. `states` gives the hidden states of rows at
    `sites` (default: the model, when they are asked for).

    In a group of processes every member runs its own part of a block's rows and keeps those hidden states to itself: its
    share of a batch is what it has of it. All members' shares together are the batch of a process alone.
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
        rule: TokenRule = EVERY_TOKEN,
        states: RowStates | None = None,
    ) -> None:
        """Raises InvalidInput for a site the model lacks, for a named token that is none, and where nothing is left."""
        for site in sites:
            hook_point(language_model.model, site)  # refuses sites that the model lacks, before anything is run
        self._lm, self._ids, self._sites = language_model, tokens.ids, tuple(dict.fromkeys(sites))
        self._states = states or LiveRowStates(language_model, tokens, self._sites)
        self._options, self._seed, self._group, self._rule = options, order_seed, group, rule
        context = tokens.ids.shape[1]
        # A position is a row's place in the endless sequence of epochs, of which a training may need more than one.
        self._positions = -(-total_tokens * len(tokens.ids) // tokens.tokens)
        words = tokens.real & ~special_mask(tokens.ids, language_model.tokenizer)
        self._named = words & named_mask(tokens.ids, named_ids(rule, language_model.tokenizer))
        self._ordinary = words & ~self._named
        self._per_row = self._ordinary.sum(1)
        self._pieces = Pieces(forward_batch or max(1, TOKENS_PER_FORWARD // context))
        # Rounded up, so that no block is larger than the buffer unless a single row is.
        self.blocks: int = -(-self._positions // max(1, options.buffer // context))
        """Number of shuffle blocks."""
        # Blocks differ by at most one row, so the smallest holds the quotient.
        if (fewest := self._positions // self.blocks) < group.size:
            raise InvalidInput(
                f"{group.size} devices cannot share {fewest} rows of {context} tokens, which are all that a shuffle block "
                "holds: raise training.buffer or lower training.devices"
            )
        self._latest_order: tuple[int, Tensor] | None = None
        # Counted for all blocks before the first forward pass: the learning rate falls over the exact number of steps.
        self._block_tokens = self._count_tokens()
        self.steps: int = sum(map(self._batches_in, self._block_tokens))
        """Exact number of batches of all blocks."""
        if self.steps == 0:
            named = " and those that `leave_out` names" if rule.named else ""
            raise InvalidInput(f"the training documents hold nothing but special tokens{named}")
        self.on_read: Callable[[int, int], None] = lambda block, tokens: None
        """Is told of every piece of a block whose hidden states are there, and how many of this member's tokens it has."""
        self._first: dict[Site, Tensor] | None = None
        self._statistics: dict[Site, _FirstBlock] | None = None

    @property
    def first_norms(self) -> dict[Site, float]:
        """Mean Euclidean norm of the hidden states of block 0 at each site."""
        return {site: first.norm for site, first in self._first_statistics().items()}

    @property
    def means(self) -> dict[Site, Tensor]:
        """Mean hidden state [d] float32 of block 0 at each site."""
        return {site: first.mean for site, first in self._first_statistics().items()}

    @property
    def left_out(self) -> dict[Site, LeftOut]:
        """What the rule leaves out of block 0 at each site."""
        return {site: first.left_out for site, first in self._first_statistics().items()}

    def tokens_seen(self, block: int) -> int:
        """Tokens in blocks 0 to `block`, that one included; special and named ones are not counted, massive ones are."""
        return sum(self._block_tokens[: block + 1])

    def steps_before(self, block: int) -> int:
        """Number of batches in the blocks before `block`."""
        return sum(map(self._batches_in, self._block_tokens[:block]))

    def batches(self, block: int) -> Iterator[dict[Site, Tensor]]:
        """The batches of one block: for each site float32 [n, d], n within one of the others and close to `batch`.

        Row i of two sites belongs to the same token where the same tokens of the block are massive at both. In a group, this
        member's share of them. Raises CellFailed when a batch is too small for every member to have some of it.
        """
        states = self._harvest(block)
        if (count := self._batches_in(self._block_tokens[block])) == 0:
            return
        kept = {site: self._kept(site, state) for site, state in states.items()}
        edges = self._edges(kept)
        orders = {site: self._order_of(block, int(edge[-1]), count).tensor_split(count) for site, edge in edges.items()}
        for number in range(count):
            # Kept in the model's type until here: a block in float32 would take twice the memory of one in bfloat16.
            own = {
                site: kept[site][_share(order[number], edges[site], self._group.rank)] for site, order in orders.items()
            }
            yield {site: state[own[site].to(state.device)].float() for site, state in states.items()}

    def _kept(self, site: Site, states: Tensor) -> Tensor:
        """[kept] int64, on the CPU: which of this member's hidden states of a block at `site` are not massive."""
        if self._rule.multiple is None:
            return torch.arange(len(states))
        limits = OrdinaryTokens(limits={site: self._first_statistics()[site].left_out.limit})
        return limits.short(site, states).nonzero()[:, 0].cpu()

    def _edges(self, kept: dict[Site, Tensor]) -> dict[Site, Tensor]:
        """For each site [members + 1]: how many hidden states the members before each one have together."""
        counts = torch.zeros(len(kept), self._group.size, dtype=torch.int64)
        counts[:, self._group.rank] = torch.tensor([len(own) for own in kept.values()])
        ends = self._group.all_sum(counts).cumsum(1)
        return {site: torch.cat([end.new_zeros(1), end]) for site, end in zip(kept, ends, strict=True)}

    def _order_of(self, block: int, tokens: int, batches: int) -> Tensor:
        """The shuffle of what is left of a block at a site. Raises CellFailed where it is not enough for its batches."""
        if tokens < batches:
            raise CellFailed(
                f"of {self._block_tokens[block]} tokens of a block all but {tokens} are massive (longer than {self._rule.multiple} "
                "times the median): `massive: keep` keeps them"
            )
        # Every member draws the order of the whole block and picks what lies in its own part: no hidden states travel.
        return torch.randperm(tokens, generator=self._generator("tokens", block))

    def _batches_in(self, tokens: int) -> int:
        # The nearest number: a block is split evenly, and its batches are then as close to `batch` as equal parts can be.
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
        # One generator per use and number, so that block b needs none of the draws before it. A hash, since
        # neighbouring seeds need not give independent sequences; seven bytes fit a signed 64-bit seed.
        digest = hashlib.sha256(f"{self._seed}/{use}/{number}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def _harvest(self, block: int) -> dict[Site, Tensor]:
        """Hidden states [n, d] of a block's ordinary tokens (a member's part of them) in row order, in the model's type."""
        if block == 0:
            self._first_statistics()
        # Block 0 was run for its statistics: used once and let go, for it is as large as any block.
        kept, self._first = self._first, None
        return kept if block == 0 and kept is not None else self._run(block)

    def _first_statistics(self) -> dict[Site, _FirstBlock]:
        if self._statistics is None:
            self._first = self._run(0)
            named = int(self._named[self._rows(0)].sum())
            self._statistics = {
                site: _first_block(state, named, self._rule, self._group) for site, state in self._first.items()
            }
        return self._statistics

    @torch.no_grad()
    def _run(self, block: int) -> dict[Site, Tensor]:
        harvested: dict[Site, Tensor] = {}
        done, part = 0, self._parts(block)[self._group.rank]
        tokens = self._tokens_in(part)
        for states in self._pieces.run(self._ordinary_states, part):
            for site, state in states.items():
                # Filled in place: joining the pieces at the end would hold every block twice.
                if site not in harvested:
                    harvested[site] = state.new_empty(tokens, state.shape[-1])
                harvested[site][done : done + len(state)] = state
            done += len(state)
            self.on_read(block, len(state))
        return harvested

    def _ordinary_states(self, rows: Tensor) -> dict[Site, Tensor]:
        """Hidden states [n, d] of the ordinary tokens of some rows, in the model's type."""
        return self._states.read(rows, self._ordinary[rows])


def _share(chosen: Tensor, edges: Tensor, rank: int) -> Tensor:
    """Which of a batch's tokens member `rank` has, counted from its own first; `edges` [size + 1] bound the parts.

    Raises CellFailed when a member has none, which every member finds alike.
    """
    # `right=True`: a token whose number is an edge is the first of the part that begins there.
    owners = torch.bucketize(chosen, edges[1:-1], right=True)
    if not torch.bincount(owners, minlength=len(edges) - 1).all():
        raise CellFailed(
            f"a batch of {len(chosen)} tokens leaves one of {len(edges) - 1} devices without any: raise training.batch or "
            "lower training.devices"
        )
    return chosen[owners == rank] - edges[rank]


@dataclass(frozen=True)
class _FirstBlock:
    """What is known of a site from block 0, massive tokens left out."""

    norm: float
    mean: Tensor
    left_out: LeftOut


def _first_block(states: Tensor, named: int, rule: TokenRule, group: ProcessGroup) -> _FirstBlock:
    own = torch.cat([lengths(piece) for piece in torch.split(states, TOKENS_PER_FORWARD)])
    found = group.all_gather(own.cpu())
    limit = NormLimit.of(found, rule.multiple)
    massive = int(((found > limit.length) & found.isfinite()).sum())
    short = (own <= limit.length) | ~own.isfinite()
    norm, mean = _norm_and_mean(states, short, group)
    return _FirstBlock(norm, mean, LeftOut(limit, len(found) - massive, massive, named))


def _norm_and_mean(states: Tensor, counted: Tensor, group: ProcessGroup) -> tuple[float, Tensor]:
    """Mean norm and mean [d] of all members' hidden states [n, d] that are `counted` [n], summed in float64."""
    # The statistics scale and centre the whole training, so they must not depend on how sums are cut up: in float64
    # the parts of several members differ from one process's by rounding alone.
    norm, mean = 0.0, states.new_zeros(states.shape[1], dtype=torch.float64)
    for whole, which in zip(
        torch.split(states, TOKENS_PER_FORWARD), torch.split(counted, TOKENS_PER_FORWARD), strict=True
    ):
        piece = whole[which]
        norm += float(piece.double().norm(dim=1).sum())
        mean += piece.sum(0, dtype=torch.float64)
    # One collective for all of it.
    sums = group.all_sum(torch.cat([mean, mean.new_tensor([norm, int(counted.sum())])]))
    # A block of special tokens only has no hidden states.
    tokens = sums[-1].clamp_min(1)
    return float(sums[-2] / tokens), (sums[:-2] / tokens).float()
