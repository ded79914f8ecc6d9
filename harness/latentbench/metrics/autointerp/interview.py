"""Asking a judge about latents: in words, or through the rule it learns. Both answer the same questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from latentbench.metrics.autointerp.answers import explanation_in, labels_in, probabilities_in
from latentbench.metrics.autointerp.examples import Case, Item
from latentbench.metrics.autointerp.ledger import Ledger
from latentbench.metrics.autointerp.prompts import Messages, ask, explain
from latentbench_adapters.judges.answered import answered
from latentbench_adapters.judges.rules import RuleJudge
from latentbench_adapters.protocols import Judge, Reply, Roots

Progress = Callable[[int, int], None]

BATCH = 8
"""Questions per request, as in KronSAE (arXiv 2505.22255, app. A.5)."""


@dataclass
class Verdict:
    """What a judge said about one latent."""

    explanation: str | None = None
    detection: tuple[float, ...] = ()
    """The probability that each question is true, or 0 and 1."""
    fuzzing: tuple[float, ...] = ()
    requests: int = 0
    failures: int = 0
    problem: str | None = None
    """What went wrong first."""

    @property
    def excluded(self) -> str | None:
        """Why the latent has no score: one failure is enough, since leaving out questions could favour an answer."""
        if not self.failures:
            return None
        return f"{self.failures} of {self.requests} requests to the judge failed, first: {self.problem}"


def requests_per_latent(test: int) -> int:
    """One explanation, and detection and fuzzing in batches."""
    return 1 + -(-2 * test // BATCH) + -(-4 * (test // 3) // BATCH)


def rule_verdicts(judge: RuleJudge, cases: Sequence[Case], progress: Progress) -> list[Verdict]:
    """The judge learns one rule per latent and answers by it."""
    verdicts = []
    for done, case in enumerate(cases, 1):
        rule = judge.learn(case.active, [window.tokens for window in case.inactive])
        detection = rule.detect([item.window.tokens for item in case.detection])
        fuzzing = rule.fuzz([(item.window.tokens, item.marks or ()) for item in case.fuzzing])
        verdicts.append(Verdict(rule.explanation, tuple(detection), tuple(fuzzing), requests=1))
        progress(done, len(cases))
    return verdicts


@dataclass(frozen=True)
class Chat:
    """A chat model with what asking it takes."""

    judge: Judge
    roots: Roots
    cache: Path
    ledger: Ledger
    progress: Progress

    def verdicts(self, cases: Sequence[Case]) -> list[Verdict]:
        """First all explanations, then all questions about the latents that were explained.

        Raises NotAvailable when the judge is gone, InvalidInput before a request that could exceed a limit.
        """
        verdicts = [Verdict() for _ in cases]
        for verdict, reply in zip(verdicts, self._replies([explain(case.active) for case in cases]), strict=True):
            _explained(verdict, reply)
        self._ask(list(_batches(cases, verdicts)))
        return verdicts

    def _ask(self, batches: Sequence[_Batch]) -> None:
        replies = self._replies([ask(batch.verdict.explanation or "", batch.items) for batch in batches])
        for done, (batch, reply) in enumerate(zip(batches, replies, strict=True), 1):
            batch.take(reply, self.judge.graded)
            self.progress(done, len(batches))

    def _replies(self, prompts: Sequence[Messages]) -> Iterator[Reply]:
        return answered(self.ledger.ask(self.judge, prompts, self.roots, self.cache), self.judge.label)


@dataclass(frozen=True)
class _Batch:
    """Questions of one test about one latent that are asked together."""

    verdict: Verdict
    items: tuple[Item, ...]

    def take(self, reply: Reply, graded: bool) -> None:
        labels = None if reply.text is None else labels_in(reply.text, len(self.items))
        given = probabilities_in(reply.text or "", reply.ones, len(self.items)) if labels and graded else labels
        self.verdict.requests += 1
        if labels is None:
            _failed(self.verdict, reply, "the answer is no list of one 0 or 1 per excerpt")
        elif given is None:
            _failed(self.verdict, reply, "the answer came without the probabilities of its labels")
        elif self.items[0].marks is None:
            self.verdict.detection += tuple(map(float, given))
        else:
            self.verdict.fuzzing += tuple(map(float, given))


def _batches(cases: Sequence[Case], verdicts: Sequence[Verdict]) -> Iterator[_Batch]:
    for case, verdict in zip(cases, verdicts, strict=True):
        for items in (case.detection, case.fuzzing) if verdict.explanation is not None else ():
            for start in range(0, len(items), BATCH):
                yield _Batch(verdict, items[start : start + BATCH])


def _explained(verdict: Verdict, reply: Reply) -> None:
    verdict.requests += 1
    verdict.explanation = None if reply.text is None else explanation_in(reply.text)
    if verdict.explanation is None:
        _failed(verdict, reply, "the answer holds no explanation")


def _failed(verdict: Verdict, reply: Reply, unreadable: str) -> None:
    verdict.failures += 1
    verdict.problem = verdict.problem or reply.error or unreadable
