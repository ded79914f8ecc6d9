"""`first_token_test` and `layer_pairs`: what of the gain is there without the vector, or with some layers of it?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from latentbench.core.spec_model import Json
from latentbench.mechanism.metrics.study import MechanismStudy
from latentbench.metrics.base import Estimator
from latentbench.steering.grading import GradedBy

Word = Annotated[str, Field(min_length=1, max_length=200)]


def _different(texts: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(texts)) < len(texts):
        raise ValueError("names a text twice")
    return texts


class FirstTokenTest(MechanismStudy):
    """Is the vector more than a way to write its favourite first token?

    The token that steering boosts most often at the first generated position is appended to the prompt, and the vector is
    removed. Greedy accuracy on the same problems: `base`, `steered`, `substituted`, and
    `recovered` = (substituted − base) / (steered − base). Each of `texts` is appended in its place too, for `stated` and
    `stated_recovered`: a word that leads as well without being the vector's own shows that any such word would have done.
    Source: Small Vectors, Big Effects (arXiv 2509.06608), section 6 (about three quarters for a last-layer vector; "To" for
    Qwen, "Step" for Llama).
    """

    implementation: ClassVar[str] = "latentbench.mechanism.ablations:measure_first_token_test"
    newer: ClassVar[tuple[str, ...]] = (*MechanismStudy.newer, "texts")

    metric: Literal["first_token_test"] = "first_token_test"
    graded_by: GradedBy = "number"
    """What makes an answer right: the last number written, or the last boxed expression."""
    texts: Annotated[tuple[Word, ...], Field(max_length=20), AfterValidator(_different)] = ()
    """Texts such as " Step" and " To" that are appended to the prompt one by one, as the tokens that the tokenizer cuts them
    into on their own."""

    def numbers(self) -> tuple[Estimator, ...]:
        names = ("base", "steered", "substituted")
        stated = [
            number
            for place, text in enumerate(self.texts)
            for number in (
                _accuracy("first_token_test", f"stated[{place}]", "stated", {"text": text}),
                _recovered("stated_recovered", f"stated[{place}]", {"text": text}),
            )
        ]
        return (
            *(_accuracy("first_token_test", name) for name in names),
            _recovered("recovered", "substituted"),
            *stated,
        )


def _recovered(name: str, instead: str, params: Mapping[str, Json] | None = None) -> Estimator:
    """What of the gain there is with something `instead` of the vector."""
    return Estimator(
        id=f"first_token_test.{name}",
        version=1,
        unit="fraction",
        higher_is_better=None,
        inputs=tuple(f"first_token_test.{part}" for part in ("base", "steered", instead)),
        formula=lambda base, steered, substituted: (substituted - base) / (steered - base),
        units="problems",
        params=params or {},
    )


class LayerPairs(MechanismStudy):
    """Do the vectors of two layers add up? Version 2.

    Greedy accuracy with only the vectors of layers i and j, against each alone and all together; the normalised gain is
    (acc_ij − max(acc_i, acc_j)) / (acc_all − max(acc_i, acc_j)), and undefined where all together are no better than one of
    the two: nothing is gained then of which a pair could have its share (version 1 divided one loss by another). `mean_gain` is
    their mean, `best_alone`, `best_pair` and `together` are the accuracies. The pairs are taken from the vectors of this cell;
    those of a `stack` were trained one by one.
    Source: Small Vectors, Big Effects (arXiv 2509.06608), appendix D (with vectors trained one by one).
    """

    version: ClassVar[int] = 2
    implementation: ClassVar[str] = "latentbench.mechanism.ablations:measure_layer_pairs"

    metric: Literal["layer_pairs"] = "layer_pairs"
    graded_by: GradedBy = "number"
    """What makes an answer right: the last number written, or the last boxed expression."""
    pairs: PositiveInt = 36
    """Most pairs that are tried; those of the layers farthest apart first."""

    @model_validator(mode="after")
    def _greedy(self) -> Self:
        if self.temperature or self.only_ended:
            raise ValueError("reads no texts and grades greedy answers; leave out `temperature` and `only_ended`")
        return self


def _accuracy(metric: str, part: str, name: str | None = None, params: Mapping[str, Json] | None = None) -> Estimator:
    return Estimator(
        id=f"{metric}.{name or part}",
        version=1,
        unit="fraction",
        higher_is_better=None,
        inputs=(f"{metric}.{part}", f"{metric}.problems"),
        formula=lambda right, problems: right / problems,
        units="problems",
        params=params or {},
    )
