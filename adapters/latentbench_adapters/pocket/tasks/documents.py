"""Documents of the tasks: word problems of the evaluation split, made in memory."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from latentbench_adapters.pocket.text import problems

if TYPE_CHECKING:
    from datasets import Dataset

TEST, SELECTION = 2048, 512


def test(**_: Any) -> dict[str, Dataset]:
    """The first `TEST` problems; the model card's 512 are the first of them."""
    return {"test": _dataset(islice(problems("eval"), TEST))}


def selection(**_: Any) -> dict[str, Dataset]:
    """`SELECTION` problems none of whose questions is in `test`."""
    tested = {problem.question for problem in islice(problems("eval"), TEST)}
    others = (problem for problem in problems("eval", seed=1) if problem.question not in tested)
    return {"test": _dataset(islice(others, SELECTION))}


def _dataset(drawn: Any) -> Dataset:
    from datasets import Dataset

    return Dataset.from_list([{"question": problem.question, "answer": str(problem.answer)} for problem in drawn])
