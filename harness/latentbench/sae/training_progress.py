"""How far a training is, in tokens, while the model reads a block and while SAEs learn from it."""

from __future__ import annotations

from collections.abc import Callable

from latentbench.core.progress import Progress
from latentbench.sae.activation_stream import ActivationStream


class TrainingProgress:
    """Counts tokens: half when their hidden states are there, whole when they were learned from.

    A block is read first and learned from afterwards, at speeds that differ much, and block 0 is read before there is a
    trainer. So either count alone would go in jumps, and the speed of its beginning would say nothing of the rest.
    """

    def __init__(self, stream: ActivationStream, progress: Progress, members: int = 1) -> None:
        """Listens to `stream`. `members`: processes that share a block, each of which reads about as much of it."""
        self._stream, self._progress, self._members = stream, progress, members
        self._losses: Callable[[], list[float]] = list
        self._total = stream.tokens_seen(stream.blocks - 1)
        self._before = self._start = self._size = self._batches = self._learned = 0
        self._read = 0.0
        """Of the block at work, as are its start, its size in tokens and batches, and the batches learned from."""
        self._block = -1
        stream.on_read = self.read
        self._enter(0)
        self._tell()

    def begin(self, block: int, losses: Callable[[], list[float]]) -> None:
        """Training begins at `block`, where an earlier run left off; `losses` gives the present one of every SAE."""
        self._losses = losses
        self._before = self._stream.tokens_seen(block - 1)
        self._enter(min(block, self._stream.blocks - 1))
        self._tell()

    def read(self, block: int, tokens: int) -> None:
        """So many more tokens of a block have hidden states."""
        self._enter(block)
        self._read = min(float(self._size), self._read + tokens * self._members)
        self._tell()

    def learned(self, block: int) -> None:
        """Another batch of a block was learned from."""
        self._enter(block)
        self._read, self._learned = float(self._size), min(self._batches, self._learned + 1)
        self._tell()

    def _enter(self, block: int) -> None:
        if block == self._block:
            return
        self._block, self._read, self._learned = block, 0.0, 0
        self._start = self._stream.tokens_seen(block - 1)
        self._size = self._stream.tokens_seen(block) - self._start
        self._batches = self._stream.steps_before(block + 1) - self._stream.steps_before(block)

    def _tell(self) -> None:
        # By batches and not by their tokens, of which some are massive: the last batch is the end of the block.
        learned = self._size * self._learned / max(1, self._batches)
        done = self._start + (self._read + learned) / 2
        # A run that goes on later reads block 0 for its statistics alone.
        self._progress(max(done, self._before), self._total, "tokens", before=self._before, loss=self._losses())
