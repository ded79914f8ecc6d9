"""Which of the tokens in scope are changed, and how strongly: the first of them, some by number, those after a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentbench.core.errors import InvalidInput
from latentbench.core.spec_model import Json
from latentbench.interventions.intervention import Scope
from latentbench.interventions.passes import PassTokens


@dataclass(frozen=True)
class Places:
    """Tokens of a scope by number. They are numbered from 0, padding not counted.

    Number 0 is the first token in scope (of `generated` the last token of the prompt, which the first generated token is
    predicted from) or, with `after`, the one that completes that text.
    """

    first: int | None = None
    """So many are changed; None: all."""
    listed: tuple[int, ...] | None = None
    """Only these numbers; None: all."""
    after: str | None = None
    """Nothing before the token that completes the first occurrence of this text, in the scope `generated` among the generated
    tokens alone. It is found in the decoded text, also where no token border meets its own."""
    decay: int | None = None
    """Strength falls linearly from 1 at number 0 to 0 at this number; None: it is 1."""

    @property
    def identity(self) -> dict[str, Json]:
        """What it asks for."""
        asked = {"first": self.first, "listed": self.listed, "after": self.after, "decay": self.decay}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asked.items() if v is not None}

    def strength(self, tokens: PassTokens, scope: Scope, tokenizer: Any) -> Tensor:
        """[B, T]: 0 where nothing is changed; bool where nothing but the scope says so, else float32.

        Raises InvalidInput where the scope or the text cannot be told.
        """
        chosen = tokens.in_scope(scope)
        if self == EVERYWHERE:
            return chosen
        start = self._start(tokens, scope, tokenizer)[:, None]
        number = tokens.order - start
        chosen = chosen & (number >= 0)
        if self.first is not None:
            chosen = chosen & (number < self.first)
        if self.listed is not None:
            chosen = chosen & torch.isin(number, torch.tensor(self.listed, device=number.device))
        full = chosen.float()
        return full if self.decay is None else full * (1 - number / self.decay).clamp(0, 1)

    def _start(self, tokens: PassTokens, scope: Scope, tokenizer: Any) -> Tensor:
        """[B]: position of the token with number 0, behind the text where there is none."""
        begins = torch.zeros_like(tokens.order[:, 0])
        if scope in ("generated", "first"):
            assert tokens.prompt_lengths is not None  # or the scope could not have been told
            begins = tokens.prompt_lengths.to(begins.device) - 1
        if self.after is None:
            return begins
        read = begins + 1 if scope == "generated" else torch.zeros_like(begins)
        found = _completed(tokens.texts(), read.tolist(), self.after, tokenizer)
        return torch.maximum(begins, torch.tensor(found, device=begins.device))


EVERYWHERE = Places()
"""All tokens in scope alike."""


def _completed(texts: list[list[int]], starts: list[int], marker: str, tokenizer: Any) -> list[int]:
    """For each row of ids, the position of the token that completes `marker`, looked for from a position on.

    The length of the row where it is not there.
    """
    if tokenizer is None:
        raise InvalidInput(f"positions after {marker!r} are found in decoded text, for which there is no tokenizer")

    def reads(ids: list[int]) -> bool:
        return marker in tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    found = []
    for text, start in zip(texts, starts, strict=True):
        own = text[start:]
        if not reads(own):
            found.append(len(text))
            continue
        # Whatever holds the text goes on to hold it, so halving finds the first token with which it does.
        low, high = 0, len(own)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if reads(own[:middle]) else (middle, high)
        found.append(start + high - 1)
    return found
