"""How much runs at once: as many rows as memory is free for, and half as many where that was too many.

An accelerator that runs out of memory raises, so there what does not fit can be tried and tried again in smaller pieces
(`Pieces`). On a CPU the system ends the process instead, so there it has to be told beforehand from what a row will need
(`rows_that_fit`): the cache that it keeps, whose size is measured on the loaded model, and what a pass holds meanwhile.

Work that is done in pieces is done again from its beginning where memory ran out in the midst of it. So it must leave
nothing behind until it is through: sums are put down at its end, random numbers are drawn from a generator that is put back.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from latentbench.activations.measured_once import once_per_model
from latentbench.activations.vocabulary import embedding_rows
from latentbench.core.border import contained
from latentbench.core.errors import CellFailed

if TYPE_CHECKING:
    from latentbench.core.protocols import LanguageModel

Items = TypeVar("Items", bound=Sequence[Any] | Tensor)
Result = TypeVar("Result")

_SAID = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""What torch says in a plain RuntimeError: CPUs, Apple's devices, and libraries that allocate behind torch's back."""
_SHARE = 0.8
"""How much of the free memory is planned with: allocators leave gaps, and others use the device as well."""
_PROBED = (8, 16)
"""Tokens of the two texts by which the size of a cache is measured."""


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on whatever device; to be asked before an error is taken for the fault of what was run."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)


class Pieces:
    """Runs work on at most `most` items at once, and on half as many from where memory runs out.

    What was found to fit is remembered, so one object serves all batches of a loop. The largest items should come first.
    """

    def __init__(self, most: int) -> None:
        self.size = max(1, most)
        """The most items that are run at once from here on."""

    def run(self, work: Callable[[Items], Result], items: Items, planned: int | None = None) -> Iterator[Result]:
        """What `work` gives for each piece of `items` (a sequence or a tensor), in order; no more than `planned` at once.

        `work` may be called again with a part of what it was called with before. Raises CellFailed where memory does not
        suffice for a single item.
        """
        done = 0
        while done < len(items):
            piece: Any = items[done : done + max(1, min(self.size, planned or self.size))]
            result = _tried(work, piece, len(piece))
            if result is None:
                self._halve(len(piece))
                continue
            done += len(piece)
            yield result[0]

    def _halve(self, tried: int) -> None:
        self.size = max(1, tried // 2)
        free_unused()


def halving(work: Callable[[int], Result], most: int) -> Result:
    """What `work` gives, told how much to run at once: `most`, and half as much whenever memory ran out.

    For work that keeps what it has done, and goes on from there. Raises CellFailed where memory does not suffice for one.
    """
    while (result := _tried(work, most, most)) is None:
        most = max(1, most // 2)
        free_unused()
    return result[0]


def free_unused() -> None:
    """Gives back what an attempt that ran out of memory has left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _tried(work: Callable[[Any], Result], what: Any, size: int) -> tuple[Result] | None:
    """What `work` gives for something of a size, or None where memory ran out."""
    try:
        return (work(what),)
    except Exception as error:  # raised on, unless it says that memory ran out
        if not out_of_memory(error):
            raise
        if size == 1:
            raise CellFailed(
                "memory does not suffice for one text at a time; shorten the texts or the answers, or take a smaller "
                "model, a shorter data type or a larger device"
            ) from error
    # Only out here: while the error lives, its traceback holds every tensor of the attempt.
    return None


def rows_that_fit(bytes_per_row: float, most: int, device: torch.device) -> int:
    """How many rows of `bytes_per_row` may be planned at once: `most` or, where memory is short, fewer, but at least one."""
    free = free_bytes(device)
    if free is None or bytes_per_row <= 0:
        return max(1, most)
    return max(1, min(most, int(_SHARE * free / bytes_per_row)))


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be had on a device; None where nobody says."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch holds and does not use goes to whoever asks next.
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return _free_on_the_machine() if device.type == "cpu" else None


@dataclass(frozen=True)
class RowBytes:
    """What a text takes while a model reads or continues it."""

    fixed: float
    """Bytes kept whatever its length: the states of recurrent layers."""
    token: float
    """Bytes kept for each token: keys and values."""
    read: float
    """Bytes held for each token of a pass while it runs, without logits."""
    logits: float
    """Bytes of one token's logits, with their copy in float32."""

    def reading(self, tokens: int, scored: int) -> float:
        """Bytes of a pass over `tokens` tokens that wants the logits of `scored` of them."""
        return tokens * self.read + scored * self.logits

    def writing(self, prompt: int, new: int) -> float:
        """Bytes of a row that reads a prompt and goes on for `new` tokens."""
        kept = self.fixed + (prompt + new) * self.token
        return kept + self.reading(prompt, 1)


@once_per_model
def row_bytes(lm: LanguageModel) -> RowBytes:
    """What one text takes in a loaded model; its cache is measured when first asked for."""
    short, long = (_kept_after(lm, tokens) for tokens in _PROBED)
    token = max(0.0, (long - short) / (_PROBED[1] - _PROBED[0]))
    item, words = lm.model.dtype.itemsize, embedding_rows(lm.model)
    return RowBytes(
        fixed=max(0.0, short - _PROBED[0] * token),
        token=token,
        read=float(item * _widths_at_once(lm.model)),
        logits=float((item + 4) * words),
    )


def _kept_after(lm: LanguageModel, tokens: int) -> int:
    """Bytes of what a model keeps of a text, under whatever name it returns that."""
    ids = torch.ones(1, tokens, dtype=torch.long, device=lm.device)
    try:
        output: Any = lm.model(input_ids=ids, use_cache=True)
    except BaseException as error:
        if out_of_memory(error):
            raise
        contained(error)  # a model that cannot keep anything
        return 0
    return _bytes_within({name: value for name, value in output.items() if name != "logits"}, set())


def _bytes_within(thing: Any, seen: set[int]) -> int:
    """Bytes of all tensors within an object of any make, each counted once."""
    if id(thing) in seen:
        return 0
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        return thing.nbytes
    if isinstance(thing, dict):
        parts: Any = thing.values()
    else:
        parts = thing if isinstance(thing, list | tuple) else vars(thing).values() if hasattr(thing, "__dict__") else ()
    return sum(_bytes_within(part, seen) for part in parts)


def _widths_at_once(model: nn.Module) -> int:
    """Numbers that a pass holds for each token: a few of the stream's width, and a few of the widest projection's."""
    # What a block needs is freed when the next one begins, so their number does not matter.
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    inner: Any = model.get_input_embeddings()  # type: ignore[operator]
    projections = (part for part in model.modules() if isinstance(part, nn.Linear) and part is not head)
    widest = max((part.out_features for part in projections), default=0)
    return 8 * int(inner.weight.shape[1]) + 4 * widest


def _free_on_the_machine() -> int | None:
    """Bytes that the system can give without swapping: the machine's, or what is left of the limit of our group."""
    found = [number for number in (_available(), _left_in_group()) if number is not None]
    return min(found, default=None)


def _available() -> int | None:
    for line in _text("/proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return 1024 * int(value.split()[0])
    return None


def _left_in_group() -> int | None:
    most, used = (_text(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if not (most.isdecimal() and used.isdecimal()):
        return None
    # Files that were read count as used until somebody else wants the memory: weights above all.
    counts = dict(line.split() for line in _text("/sys/fs/cgroup/memory.stat").splitlines())
    given_back = sum(int(counts.get(name, 0)) for name in ("inactive_file", "active_file"))
    return max(0, int(most) - int(used) + given_back)


def _text(path: str) -> str:
    try:
        return Path(path).read_text("ascii")
    except (OSError, ValueError):  # another system, or one that tells us nothing
        return ""
