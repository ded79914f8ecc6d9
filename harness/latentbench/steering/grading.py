"""Problems with verifiable answers: reading them, and whether a text ends in the right answer.

Grading reads text only; nothing in it is executed.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from itertools import islice
from typing import Any, Literal

from latentbench.core.protocols import Problem, ProblemSet
from latentbench.interventions.chat import asked
from latentbench.study.context import StageContext

GradedBy = Literal["number", "boxed"]
"""What makes an answer right: the last number written, or the last boxed expression."""
Grader = Callable[[str, str], bool]
"""Called with (written, gold answer): whether the written one is right."""

# A minus is a sign only where no digit or word stands before it: "10-3" holds 10 and 3.
_NUMBER = re.compile(r"(?:(?<!\w)-)?(?:\d[\d,]*(?:\.\d+)?|(?<!\w)\.\d+)")
_SECONDS = 5


def read_problems(problems: ProblemSet, context: StageContext, count: int | None = None) -> list[Problem]:
    """The first `count` problems (or all) after `skip`, never more than `limit`, as the model reads them.

    Raises InvalidInput where they are to be put in a chat template that the model's tokenizer does not have.
    """
    most = problems.limit if count is None else min(count, problems.limit or count)
    stop = None if most is None else problems.skip + most
    found = list(islice(problems.problems(context.roots), problems.skip, stop))
    if not problems.chat_template:
        return found
    tokenizer = context.tokenizer()
    return [replace(problem, prompt=asked(tokenizer, problem.prompt, problems.system)) for problem in found]


def grader(graded_by: GradedBy) -> Grader:
    """The grader by name."""
    return {"number": same_last_number, "boxed": same_boxed}[graded_by]


def last_number(text: str) -> Decimal | None:
    """The last number written, thousands commas allowed; None where there is none."""
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None


def same_last_number(written: str, gold: str) -> bool:
    """Whether the last number written equals the last one of the gold answer, as a number (42 = 42.0 = 0042)."""
    number = last_number(written)
    return number is not None and number == last_number(gold)


def same_boxed(written: str, gold: str) -> bool:
    r"""Whether the last `\boxed{}` is the gold answer, by math-verify; False without one or where it cannot be read."""
    from math_verify import LatexExtractionConfig

    start = written.rfind("\\boxed")
    if start < 0:
        return False
    # By default a box comes second to phrases such as "the final answer is".
    return _equal(written[start:], f"\\boxed{{{gold}}}", [LatexExtractionConfig(boxed_match_priority=0)])


def same_mathematics(written: str, gold: str) -> bool:
    r"""Whether the answer found anywhere in a text is the gold one, by math-verify, which looks for a `\boxed{}`, for phrases
    such as "the answer is", for formulas and for numbers; False where it finds none. The gold answer is plain, in dollars, or
    a text whose last box holds it."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig

    inner = gold[gold.rfind("\\boxed") :] if "\\boxed" in gold else f"\\boxed{{{gold}}}"
    return _equal(written, inner, [LatexExtractionConfig(), ExprExtractionConfig()])


def _equal(written: str, gold: str, config: list[Any]) -> bool:
    from math_verify import LatexExtractionConfig, parse, verify

    # math-verify limits its time by a signal, which only the main thread may set.
    limit = _SECONDS if threading.current_thread() is threading.main_thread() else None
    answer = parse(written, config, parsing_timeout=limit)
    expected = parse(gold, [LatexExtractionConfig(boxed_match_priority=0)], parsing_timeout=limit)
    return bool(answer and expected and verify(expected, answer, timeout_seconds=limit))
