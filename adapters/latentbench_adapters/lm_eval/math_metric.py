"""`math_verify`: a metric of lm-eval's that grades by math-verify, which task files ask for by name.

lm-eval has no such metric of its own: its MATH tasks grade by functions that a task file would have to name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

MATH_VERIFY = "math_verify"


def register() -> None:
    """Makes lm-eval know the metric; once is enough, and more does no harm."""
    from lm_eval.api import metrics  # noqa: F401  (registers the aggregations)
    from lm_eval.api.registry import metric_registry, register_metric

    if MATH_VERIFY not in metric_registry:
        register_metric(metric=MATH_VERIFY, higher_is_better=True, aggregation="mean")(math_verify)


def math_verify(references: Sequence[Any], predictions: Sequence[str]) -> float:
    """1 where the answer is mathematically the right one, as lm-eval calls metrics: one answer and its right answer."""
    from latentbench.steering.grading import same_mathematics  # whoever only reads a task file needs no grader

    (gold,), (written,) = references, predictions
    return float(same_mathematics(written, str(gold)))


def boxed_answers(documents: Dataset) -> Dataset:
    r"""`answer` of every problem: what stands in the last `\boxed{}` of its worked solution."""
    from lm_eval.tasks.minerva_math.utils import last_boxed_only_string, remove_boxed

    return documents.map(lambda row: {"answer": remove_boxed(last_boxed_only_string(row["solution"]))})
