"""What is done to a model while it runs: something that can be switched on, leaves a receipt, and is gone afterwards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from adapters.protocols import LanguageModel
from harness.section import Json


@dataclass
class Receipt:
    """Proof that an intervention happened: what its hooks saw. Checked against the tokens the model processed."""

    calls: int = 0
    """Hook calls, over all layers."""
    tokens: int = 0
    """Tokens the model processed that are no padding, times layers in scope."""
    steered: int = 0
    """Tokens at which something was added, over all layers."""
    relative_size: float = 0.0
    """Mean |Δ|/|h| over steered tokens."""


class Intervention(ABC):
    """Anything that changes a model's behaviour without changing its stored weights: vectors, an adapter, a prefix."""

    prefix: str = ""
    """Text to append to every prompt (the `prefix` baseline); nothing for all others."""

    @property
    @abstractmethod
    def identity(self) -> Json:
        """What tells it from every other intervention (hash of the vectors, scale, scope): a part of cache keys."""

    @abstractmethod
    def applied(self, lm: LanguageModel, **options: Any) -> AbstractContextManager[Receipt]:
        """Switches it on for the body of a `with`; on leaving, the model is as it was and the receipt is complete.

        Raises CellFailed on leaving when the receipt does not add up: a run that was silently not steered is no result.
        """
