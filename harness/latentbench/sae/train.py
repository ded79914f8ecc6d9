"""Training many SAEs from one stream of hidden states, bit-exactly resumable at block boundaries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from latentbench.activations.site import Site
from latentbench.border import contained
from latentbench.meters import now
from latentbench.sae.base import SparseAutoencoder
from latentbench.sae.memory import release
from latentbench.sae.team import ALONE, Team


class Stream(Protocol):
    """Shuffled hidden states in blocks; every block is a pure function of its number."""

    @property
    def blocks(self) -> int:
        """Number of shuffle blocks."""

    @property
    def steps(self) -> int:
        """Number of batches over all blocks."""

    @property
    def first_norms(self) -> dict[Site, float]:
        """Mean L2 norm of the first block's hidden states."""

    @property
    def means(self) -> dict[Site, Tensor]:
        """Mean hidden state [d_in] of the first block."""

    def batches(self, block: int) -> Iterator[dict[Site, Tensor]]:
        """Batches [n, d_in] float32 of one block, for every site."""


@dataclass
class Pace:
    """Tokens learned from and the seconds spent in steps."""

    tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """None before the first step."""
        return self.tokens / self.seconds if self.seconds else None


class Trainee(Protocol):
    """One SAE being made from the stream."""

    site: Site
    """Where its hidden states come from."""
    next_block: int
    """First block it has not seen yet."""
    pace: Pace
    """How fast its steps were; of this process alone, and never part of its state."""

    def step(self, x: Tensor) -> None:
        """Learns from hidden states `x` [n, d_in] as the model produces them."""

    def state(self) -> dict[str, Tensor]:
        """Everything that the rest of the training depends on."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continues exactly where `state` was taken. Raises RefusedFile when it belongs to another SAE."""

    def finish(self) -> SparseAutoencoder:
        """The SAE, reading and writing hidden states as the model produces them."""


Outcome = SparseAutoencoder | Exception
T = TypeVar("T", bound=Trainee)


def train(
    trainees: Sequence[T],
    stream: Stream,
    checkpoint: Callable[[list[T]], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    team: Team = ALONE,
) -> dict[T, Outcome]:
    """Feeds every batch to every trainee that has not seen its block yet.

    `checkpoint(trainees)` is called after every block with those still in training, whose `next_block` has advanced;
    `progress(blocks done, blocks)` likewise. A trainee that raises is dropped, its exception is its outcome, and the
    others go on; in a team it must be an error that all members meet, otherwise it is raised.
    """
    failed: dict[T, Exception] = {}
    for block in range(min((t.next_block for t in trainees), default=0), stream.blocks):
        active = [t for t in trainees if t not in failed and t.next_block <= block]
        _feed(active, stream.batches(block), failed, team)
        active = [t for t in active if t not in failed]
        for trainee in active:
            trainee.next_block = block + 1
        if checkpoint is not None and active:
            checkpoint(active)
        if progress is not None:
            progress(block + 1, stream.blocks)
        if len(failed) == len(trainees):
            break
    release()
    return {trainee: failed.get(trainee) or _finished(trainee) for trainee in trainees}


def _feed(trainees: list[T], batches: Iterator[dict[Site, Tensor]], failed: dict[T, Exception], team: Team) -> None:
    if not trainees:
        return
    for batch in batches:
        for trainee in trainees:
            if trainee not in failed:
                x = batch[trainee.site]
                start = now(x.device)  # what the model or another SAE has queued is not this one's
                try:
                    trainee.step(x)
                except BaseException as error:  # one trainee's failure must not end the others' training
                    kept = contained(error)
                    if not team.shares(kept):
                        raise
                    failed[trainee] = kept
                trainee.pace.tokens += len(x)
                trainee.pace.seconds += now(x.device) - start


def _finished(trainee: Trainee) -> Outcome:
    try:
        return trainee.finish()
    except BaseException as error:  # as above
        return contained(error)
