"""A hard budget for requests and money."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from latentbench.errors import InvalidInput
from latentbench.metrics.autointerp.prompts import Messages
from latentbench.section import Section
from latentbench_adapters.protocols import Judge, Reply, Roots

CHARACTERS_PER_TOKEN = 3
"""A low estimate, so that costs are not underestimated."""
REPLY_TOKENS = 1024
"""The longest reply of a judge that states no limit (`max_tokens`)."""
_AT_ONCE = 32


class Prices(Section):
    """What a million tokens cost, in the unit of `max_cost`."""

    prompt: float
    reply: float

    def of(self, prompt_tokens: float, reply_tokens: float) -> float:
        """What these tokens cost."""
        return (prompt_tokens * self.prompt + reply_tokens * self.reply) / 1e6


@dataclass
class Ledger:
    """Counts what a study asks; stops before the first request that could exceed a limit.

    Requests answered from transcripts count too, so that a study that was interrupted ends as it would have otherwise.
    """

    max_requests: int | None = None
    max_cost: float | None = None
    prices: Prices | None = None
    requests: int = field(default=0, init=False)
    spent: float = field(default=0.0, init=False)

    def ask(self, judge: Judge, requests: Sequence[Messages], roots: Roots, cache: Path) -> Iterator[Reply]:
        """One reply per request, in order. Raises InvalidInput before a request that could exceed a limit."""
        for start in range(0, len(requests), _AT_ONCE):
            todo = self._affordable(judge, requests[start : start + _AT_ONCE])
            for reply in judge.chat(todo, roots, cache) if todo else ():
                self.requests += 1
                self.spent += self.prices.of(reply.prompt_tokens, reply.reply_tokens) if self.prices else 0.0
                yield reply
            if len(todo) < len(requests[start : start + _AT_ONCE]):
                raise InvalidInput(self._stopped())

    def _affordable(self, judge: Judge, requests: Sequence[Messages]) -> Sequence[Messages]:
        """As many of them, from the first, as surely stay within the limits."""
        if self.max_requests is not None:
            requests = requests[: max(0, self.max_requests - self.requests)]
        if self.max_cost is None or self.prices is None:
            return requests
        longest, cost = getattr(judge, "max_tokens", REPLY_TOKENS), self.spent
        for number, messages in enumerate(requests):
            cost += self.prices.of(estimated_tokens(messages), longest)
            if cost > self.max_cost:
                return requests[:number]
        return requests

    def _stopped(self) -> str:
        spent = f" (about {self.spent:.4g} spent)" if self.prices else ""
        limit = f"max_requests: {self.max_requests}" if self._counted_out else f"max_cost: {self.max_cost}"
        return (
            f"autointerp: stopped after {self.requests} requests{spent}, because the next could exceed `{limit}`; raise it, "
            "or ask for fewer latents, examples or budgets. What was answered is kept and not asked again"
        )

    @property
    def _counted_out(self) -> bool:
        return self.max_requests is not None and self.requests >= self.max_requests


def estimated_tokens(messages: Messages) -> float:
    """An upper estimate of a prompt's tokens."""
    return sum(8 + len(message["content"]) / CHARACTERS_PER_TOKEN for message in messages)
