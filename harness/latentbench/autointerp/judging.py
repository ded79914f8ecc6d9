"""Asking a judge about latents, in words or through the rule it learns, within a hard budget for requests and money.

Both kinds of judge answer the same questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from latentbench.autointerp.prompts import Messages, ask, explain, explanation_in, labels_in, probabilities_in
from latentbench.autointerp.windows import LatentQuestions, Question
from latentbench.core.errors import InvalidInput
from latentbench.core.judges import RuleJudge, answered
from latentbench.core.paths import Roots
from latentbench.core.progress import Progress
from latentbench.core.protocols import Judge, Reply
from latentbench.core.spec_model import SpecModel

CHARACTERS_PER_TOKEN = 3
"""A low estimate, so that costs are not underestimated."""
REPLY_TOKENS = 1024
"""The longest reply of a judge that states no limit (`max_tokens`)."""
_AT_ONCE = 32
"""Requests handed to a judge together."""


class Prices(SpecModel):
    """What a million tokens cost, in the unit of `max_cost`."""

    prompt: float
    reply: float

    def of(self, prompt_tokens: float, reply_tokens: float) -> float:
        """What these tokens cost."""
        return (prompt_tokens * self.prompt + reply_tokens * self.reply) / 1e6


@dataclass
class RequestBudget:
    """Counts what a study asks, and stops before the first request that could exceed a limit.

    Requests answered from transcripts count too, so that a study that was interrupted ends as it would have otherwise.
    """

    max_requests: int | None = None
    max_cost: float | None = None
    prices: Prices | None = None
    requests: int = field(default=0, init=False)
    spent: float = field(default=0.0, init=False)

    def ask(self, judge: Judge, requests: Sequence[Messages], roots: Roots, cache: Path) -> Iterator[Reply]:
        """One reply per request, in order. Raises InvalidInput before a request that could exceed a limit."""
        # In parts, because what replies have cost decides how many more can be afforded.
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
        # What a reply costs is known only afterwards, so each counts as if it were as long as it may be.
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


QUESTIONS_PER_REQUEST = 8
"""Questions per request, as in KronSAE (arXiv 2505.22255, app. A.5)."""


@dataclass
class JudgeVerdict:
    """What a judge said about one latent."""

    explanation: str | None = None
    detection: tuple[float | None, ...] = ()
    """The probability that each question is true, or 0 and 1; None where the request with it failed."""
    fuzzing: tuple[float | None, ...] = ()
    requests: int = 0
    failures: int = 0
    problem: str | None = None
    """What went wrong first."""

    def excluded(self, asked: LatentQuestions) -> str | None:
        """Why the latent has no score: no explanation, or fewer than half of a test's questions of either truth answered.

        A lost request costs its questions and no more. Requests are cut from shuffled questions, so that which of them is
        lost tells nothing of the truth; and both truths weigh the same, however many of each are left.
        """
        if self.explanation is not None and all(
            _enough(items, answers)
            for items, answers in ((asked.detection, self.detection), (asked.fuzzing, self.fuzzing))
        ):
            return None
        return f"{self.failures} of {self.requests} requests to the judge failed, first: {self.problem}"


def _enough(items: Sequence[Question], answers: Sequence[float | None]) -> bool:
    """Whether half of the true and half of the false questions were answered."""
    pairs = list(zip(items, answers, strict=True))
    asked = [[answer for item, answer in pairs if item.truth == truth] for truth in (True, False)]
    return all(2 * sum(answer is not None for answer in of_one) >= len(of_one) for of_one in asked)


def requests_per_latent(test: int) -> int:
    """One explanation, and detection and fuzzing in batches."""
    return 1 + -(-2 * test // QUESTIONS_PER_REQUEST) + -(-4 * (test // 3) // QUESTIONS_PER_REQUEST)


def rule_verdicts(judge: RuleJudge, questions: Sequence[LatentQuestions], progress: Progress) -> list[JudgeVerdict]:
    """The judge learns one rule per latent and answers by it."""
    verdicts = []
    for done, asked in enumerate(questions, 1):
        rule = judge.learn(asked.active, [window.tokens for window in asked.inactive])
        detection = rule.detect([item.window.tokens for item in asked.detection])
        fuzzing = rule.fuzz([(item.window.tokens, item.marks or ()) for item in asked.fuzzing])
        verdicts.append(JudgeVerdict(rule.explanation, tuple(detection), tuple(fuzzing), requests=1))
        progress(done, len(questions), "latents", part="scoring")
    return verdicts


@dataclass(frozen=True)
class ChatSession:
    """Chat models, one that explains and one that answers (often the same), with what asking them takes."""

    judge: Judge
    explainer: Judge
    roots: Roots
    cache: Path
    request_budget: RequestBudget
    progress: Progress

    def verdicts(self, questions: Sequence[LatentQuestions]) -> list[JudgeVerdict]:
        """First all explanations, then all questions about the latents that were explained.

        Raises NotAvailable when the judge is gone, InvalidInput before a request that could exceed a limit.
        """
        verdicts = [JudgeVerdict() for _ in questions]
        explanations = self._replies("explaining", self.explainer, [explain(q.active) for q in questions])
        for verdict, reply in zip(verdicts, explanations, strict=True):
            _explained(verdict, reply)
        self._ask(list(_batches(questions, verdicts)))
        return verdicts

    def _ask(self, batches: Sequence[_QuestionBatch]) -> None:
        prompts = [ask(batch.verdict.explanation or "", batch.items) for batch in batches]
        for batch, reply in zip(batches, self._replies("scoring", self.judge, prompts), strict=True):
            batch.take(reply, self.judge.graded)

    def _replies(self, part: str, judge: Judge, prompts: Sequence[Messages]) -> Iterator[Reply]:
        self.progress(0, len(prompts), "requests", part=part)
        replies = answered(self.request_budget.ask(judge, prompts, self.roots, self.cache), judge.label)
        for done, reply in enumerate(replies, 1):
            yield reply
            self.progress(done, len(prompts), "requests", part=part)


@dataclass(frozen=True)
class _QuestionBatch:
    """Questions of one test about one latent that are asked together."""

    verdict: JudgeVerdict
    items: tuple[Question, ...]

    def take(self, reply: Reply, graded: bool) -> None:
        labels = None if reply.text is None else labels_in(reply.text, len(self.items))
        given = probabilities_in(reply.text or "", reply.ones, len(self.items)) if labels and graded else labels
        self.verdict.requests += 1
        if labels is None:
            _failed(self.verdict, reply, "the answer is no list of one 0 or 1 per excerpt")
        elif given is None:
            _failed(self.verdict, reply, "the answer came without the probabilities of its labels")
        answers = (None,) * len(self.items) if given is None else tuple(map(float, given))
        if self.items[0].marks is None:
            self.verdict.detection += answers
        else:
            self.verdict.fuzzing += answers


def _batches(questions: Sequence[LatentQuestions], verdicts: Sequence[JudgeVerdict]) -> Iterator[_QuestionBatch]:
    for asked, verdict in zip(questions, verdicts, strict=True):
        for items in (asked.detection, asked.fuzzing) if verdict.explanation is not None else ():
            for start in range(0, len(items), QUESTIONS_PER_REQUEST):
                yield _QuestionBatch(verdict, items[start : start + QUESTIONS_PER_REQUEST])


def _explained(verdict: JudgeVerdict, reply: Reply) -> None:
    verdict.requests += 1
    verdict.explanation = None if reply.text is None else explanation_in(reply.text)
    if verdict.explanation is None:
        _failed(verdict, reply, "the answer holds no explanation")


def _failed(verdict: JudgeVerdict, reply: Reply, unreadable: str) -> None:
    verdict.failures += 1
    verdict.problem = verdict.problem or reply.error or unreadable
