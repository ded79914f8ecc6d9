"""What is done to a model while it runs: something that can be switched on, leaves a receipt, and is gone afterwards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from latentbench.core.protocols import LanguageModel
from latentbench.core.spec_model import Json

if TYPE_CHECKING:
    from torch import Tensor

    from latentbench.core.sites import Site

Scope = Literal["all", "generated", "first", "prompt"]
"""Which tokens are changed, told by what is predicted from them.

    all        every token
    generated  tokens that a generated token is predicted from: the last of the prompt and all generated ones
    first      the token that the first generated token is predicted from: the last of the prompt
    prompt     all others: the prompt without its last token

`prompt` and `generated` share nothing and make up `all`.
"""


@dataclass
class Receipt:
    """Proof that an intervention happened: what its hooks saw. It is complete once the intervention is switched off."""

    passes: int = 0
    """Forward passes of the model."""
    calls: int = 0
    """Hook calls, over all layers."""
    tokens: int = 0
    """Tokens the model processed that are no padding, times layers in scope."""
    steered: int = 0
    """Tokens at which something was added, over all layers."""
    relative_size: float = 0.0
    """Mean |Δ|/|h| over steered tokens, with the Δ that arrived in the model's data type."""
    first_position: int | None = None
    """Lowest position, counted from 0 without padding, at which something was added."""
    last_position: int | None = None
    """Highest position at which something was added."""

    def cover(self, positions: Tensor) -> None:
        """Notes positions [N] at which something is added."""
        if len(positions):
            low, high = int(positions.min()), int(positions.max())
            self.first_position = low if self.first_position is None else min(low, self.first_position)
            self.last_position = high if self.last_position is None else max(high, self.last_position)

    def __add__(self, other: Receipt) -> Receipt:
        """The receipt of two stretches of work, one after the other: sums, and the mean size by steered tokens."""
        steered = self.steered + other.steered
        size = self.relative_size * self.steered + other.relative_size * other.steered
        first = [r.first_position for r in (self, other) if r.first_position is not None]
        last = [r.last_position for r in (self, other) if r.last_position is not None]
        return Receipt(
            passes=self.passes + other.passes,
            calls=self.calls + other.calls,
            tokens=self.tokens + other.tokens,
            steered=steered,
            relative_size=size / steered if steered else 0.0,
            first_position=min(first, default=None),
            last_position=max(last, default=None),
        )


Watch = Callable[["Site", "Tensor", "Tensor", "Tensor"], None]
"""Told of a change: where, hidden states [B, T, d] before and after, and which tokens were changed [B, T]."""


@dataclass
class Layout:
    """What a plain forward pass does not say about its tokens; set anew before every call that needs it.

    `generate()` needs none: which tokens are the prompt is then known.
    """

    prompt_lengths: Tensor | None = None
    """[B] int: prompt tokens of each row, padding not counted; required where the scope is not `all`."""
    real: Tensor | None = None
    """[B, T] bool: which tokens are no padding, for calls without an `attention_mask`; default all."""
    earlier: Tensor | None = None
    """[B, cached] int: ids of the tokens that stand in the cache, padding included; read where changes depend on the text."""
    watch: Watch | None = None
    """Told of every change of hidden states at single tokens; adapters make none."""


class Intervention(ABC):
    """Anything that changes a model's behaviour without changing its stored weights: vectors, an adapter, a prefix."""

    prefix: str = ""
    """Text to append to every prompt (the `prefix` baseline); nothing for all others."""

    @property
    @abstractmethod
    def identity(self) -> Json:
        """What tells it from every other intervention (hash of the vectors, scale, scope): a part of cache keys."""

    @property
    def adds(self) -> bool:
        """Whether it adds the same whatever it finds there, so that in a stack nothing but rounding depends on its turn."""
        return False

    @abstractmethod
    def applied(
        self, lm: LanguageModel, layout: Layout | None = None, *, idle: bool = False
    ) -> AbstractContextManager[Receipt]:
        """Switches it on for the body of a `with`; on leaving, the model is as it was and the receipt is complete.

        Raises CellFailed on leaving when the receipt does not add up: a run that was silently not steered is no result.
        That the model did not run at all is refused too, unless it may be `idle` (all answers came from a cache).
        Hooks of others that read the changed hidden states may be registered before or after.
        """


class Untouched(Intervention):
    """The model as it is, perhaps with a prefix: rows to compare with."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix

    @property
    def adds(self) -> bool:
        return True

    @property
    def identity(self) -> Json:
        return {"prefix": self.prefix} if self.prefix else None

    @contextmanager
    def applied(self, lm: LanguageModel, layout: Layout | None = None, *, idle: bool = False) -> Iterator[Receipt]:
        yield Receipt()


class Stack(Intervention):
    """Several interventions at once: where they change the same place, each finds what those before it have left.

    Parts that add the same whatever they find make a sum, which needs no order.
    """

    def __init__(self, parts: Sequence[Intervention]) -> None:
        self.parts = tuple(parts)
        self.prefix = "".join(part.prefix for part in parts)

    @property
    def adds(self) -> bool:
        return all(part.adds for part in self.parts)

    @property
    def identity(self) -> Json:
        return [part.identity for part in self.parts]

    @contextmanager
    def applied(self, lm: LanguageModel, layout: Layout | None = None, *, idle: bool = False) -> Iterator[Receipt]:
        receipt = Receipt()
        with ExitStack() as stack:
            # Hooks that are installed later run earlier, so the last part comes first. A sum keeps the order in which its
            # rounding has always been done.
            turn = 1 if self.adds else -1
            receipts = [stack.enter_context(part.applied(lm, layout, idle=idle)) for part in self.parts[::turn]]
            yield receipt
        # Filled only now, when every part has completed its own receipt on leaving; in place, since the caller holds it.
        vars(receipt).update(vars(sum(receipts[::turn], Receipt())))
        receipt.passes = max((one.passes for one in receipts), default=0)  # they saw the same ones
