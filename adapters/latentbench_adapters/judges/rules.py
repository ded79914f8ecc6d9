"""A judge that learns a rule from examples instead of being asked in words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol

from latentbench_adapters.protocols import Judge

Tokens = tuple[str, ...]
"""The tokens of one window as text."""
Marks = tuple[bool, ...]
"""Which of a window's tokens are marked."""


class Active(Protocol):
    """A window in which a latent fires."""

    @property
    def tokens(self) -> Tokens:
        """The window's tokens."""

    @property
    def activations(self) -> tuple[float, ...]:
        """The latent's activation at each of them, 0 where it is inactive."""


class Rule(ABC):
    """What was learned about one latent."""

    explanation: str
    """The rule as a sentence."""

    @abstractmethod
    def detect(self, windows: Sequence[Tokens]) -> list[float]:
        """The probability, for each window, that the latent fires in it."""

    @abstractmethod
    def fuzz(self, windows: Sequence[tuple[Tokens, Marks]]) -> list[float]:
        """The probability, for each window, that the marked tokens are those on which the latent fires."""


class RuleJudge(Judge):
    """A judge without words; its answers are probabilities, made by the same protocol from the same examples."""

    deterministic: ClassVar[bool] = True

    @property
    def graded(self) -> bool:
        return True

    @abstractmethod
    def learn(self, active: Sequence[Active], inactive: Sequence[Tokens]) -> Rule:
        """A rule from windows in which the latent fires and windows in which it does not."""
