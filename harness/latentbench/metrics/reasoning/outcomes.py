"""What a model's answers to a task were worth: arrays problem by problem and sample by sample, and the texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from latentbench.lab import Content
from latentbench.metrics.base import Array
from latentbench.metrics.reasoning.passing import ks_of, pass_at
from latentbench.section import Json
from latentbench_adapters.lm_eval.responses import Answer

if TYPE_CHECKING:
    from latentbench_adapters.lm_eval.model import SteeredLM
    from latentbench_adapters.lm_eval.tasks import Problems, Verdict

T = TypeVar("T")
Marked = tuple[Answer, "Verdict"]
_FIELDS = ("correct", "unformatted", "tokens", "truncated")


@dataclass(frozen=True)
class Outcomes:
    """All answers to all problems, [problems, samples] each."""

    correct: Array
    """What an answer scored, usually 0 or 1."""
    unformatted: Array
    """1 where no answer could be found in it."""
    tokens: Array
    """Generated tokens; NaN for tasks that generate nothing."""
    truncated: Array
    """1 where the limit on new tokens ended it; NaN for tasks that generate nothing."""
    texts: Sequence[Sequence[str]]
    """[problems][samples]."""
    lm_eval: Mapping[str, float]
    """Mean over problems of the first sample, by `task/metric,filter`: what lm-eval itself reports."""
    documents: str
    """Digest of what was asked."""
    shortened: int
    """Questions that did not fit into the context and were cut on the left."""

    def statistics(self, prefix: str = "") -> dict[str, Array]:
        """[problems] sums over samples of everything, by name."""
        solved = (self.correct >= 1).sum(1)
        found = {f"{prefix}{name}": getattr(self, name).sum(1) for name in _FIELDS}
        found[f"{prefix}solved"] = np.asarray(solved > 0, dtype=np.float64)
        samples = self.correct.shape[1]
        return found | {f"{prefix}solved_in[{k}]": pass_at(k, samples, solved) for k in ks_of(samples)}

    def to_content(self) -> Content:
        """For the store."""
        tensors = {name: torch.from_numpy(np.ascontiguousarray(getattr(self, name))) for name in _FIELDS}
        texts: Json = [list(samples) for samples in self.texts]
        about = {"documents": self.documents, "shortened": self.shortened, "lm_eval": dict(self.lm_eval)}
        return Content(tensors, {"texts": texts, **about})

    @staticmethod
    def from_content(content: Content) -> Outcomes:
        """The inverse of `to_content`."""
        arrays: dict[str, Any] = {name: content.tensors[name].double().numpy() for name in _FIELDS}
        return Outcomes(**arrays, **content.meta)


def outcomes(lm: SteeredLM, tasks: Sequence[Problems], samples: int) -> Outcomes:
    """`samples` answers of `lm` to every problem of all tasks, scored."""
    parts = [_marked(lm, problems, samples) for problems in tasks]
    rows = [row for part in parts for row in part]
    written = all(problems.generative for problems in tasks)
    return Outcomes(
        correct=_array(rows, lambda answer, verdict: verdict.correct),
        unformatted=_array(rows, lambda answer, verdict: not verdict.formatted),
        tokens=_array(rows, lambda answer, verdict: answer.tokens if written else np.nan),
        truncated=_array(rows, lambda answer, verdict: answer.truncated if written else np.nan),
        texts=[[answer.text for answer, _ in row] for row in rows],
        lm_eval={
            key: value for problems, part in zip(tasks, parts, strict=True) for key, value in _means(problems, part)
        },
        documents="+".join(problems.documents_digest for problems in tasks),
        shortened=lm.shortened,
    )


def _marked(lm: SteeredLM, problems: Problems, samples: int) -> list[list[Marked]]:
    """Answers and what they were worth, [problems][samples]."""
    requests = [instance for group in problems.groups for instance in group for _ in range(samples)]
    if problems.generative:
        answers = lm.answers(requests)
        responses: list[Any] = [answer.text for answer in answers]
    else:
        responses, answers = lm.loglikelihood(requests, disable_tqdm=True), [Answer("", 0, False)] * len(requests)
    worth = [problems.verdicts(part) for part in _by_sample(problems, responses, samples)]
    given = [[group[0] for group in part] for part in _by_sample(problems, answers, samples)]
    pairs = [list(zip(*both, strict=True)) for both in zip(given, worth, strict=True)]  # [samples][problems]
    return [list(row) for row in zip(*pairs, strict=True)]


def _by_sample(problems: Problems, flat: Sequence[T], samples: int) -> list[list[list[T]]]:
    """`flat` holds `samples` of each request of each problem; returns [samples][problems][requests]."""
    stream = iter(flat)
    nested = [[[next(stream) for _ in range(samples)] for _ in group] for group in problems.groups]
    return [[[request[sample] for request in group] for group in nested] for sample in range(samples)]


def _array(rows: Sequence[Sequence[Marked]], of: Callable[[Answer, Verdict], float]) -> Array:
    return np.array([[of(answer, verdict) for answer, verdict in row] for row in rows], dtype=np.float64)


def _means(problems: Problems, rows: Sequence[Sequence[Marked]]) -> Iterator[tuple[str, float]]:
    firsts = [row[0][1].every for row in rows]
    for key in firsts[0]:
        yield f"{problems.name}/{key}", float(np.mean([every[key] for every in firsts]))
