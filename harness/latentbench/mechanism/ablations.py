"""What of the gain in accuracy is there without the vector, or with some layers of it: greedy answers to the same problems.

The studies of `latentbench.mechanism.metrics.ablations`, which state what is compared and the formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from latentbench.activations.vocabulary import check_ids, embedding_rows
from latentbench.core.errors import InvalidInput
from latentbench.core.protocols import LanguageModel, Problem
from latentbench.core.spec_model import Json
from latentbench.interventions.intervention import Intervention, Layout, Untouched
from latentbench.interventions.rollouts import Sampling, answers
from latentbench.mechanism.metrics.ablations import FirstTokenTest, LayerPairs
from latentbench.mechanism.metrics.study import DOMAIN
from latentbench.mechanism.output_tokens import probability_shift, token_text
from latentbench.mechanism.passages import injection_of, left_out, passages_of
from latentbench.metrics.value import MetricValue
from latentbench.statistics.arrays import Array
from latentbench.steering.grading import Grader, grader
from latentbench.study.context import StageContext
from latentbench.study.study import Findings


def measure_first_token_test(study: FirstTokenTest, context: StageContext) -> Findings:
    """Right answers per problem: without steering, with it, and with the boosted token in the vector's place."""
    lm, steered = context.model(), context.subject()
    passages = passages_of(study, context)
    token = probability_shift(lm, steered, passages).top()
    if token is None:
        return Findings(warnings=("first_token_test: the steered model wrote nothing",))
    problems = study.asked(context)
    # The token is appended as an id: as text it could join the last word of the prompt and become another token.
    ways: dict[str, tuple[Intervention, tuple[int, ...]]] = {
        "base": (Untouched(), ()),
        "steered": (steered, ()),
        "substituted": (Untouched(), (token,)),
        **{f"stated[{place}]": (Untouched(), _tokens_of(lm, text)) for place, text in enumerate(study.texts)},
    }
    sampling, right = Sampling(study.new_tokens), grader(study.graded_by)
    found = {name: solved(lm, way, problems, sampling, right, ending) for name, (way, ending) in ways.items()}
    statistics = {**found, "problems": np.ones(len(problems))}
    details: dict[str, Json] = {name: float(found[name].mean()) for name in ("base", "steered", "substituted")}
    if study.texts:
        details["stated"] = {text: float(found[f"stated[{n}]"].mean()) for n, text in enumerate(study.texts)}
    return Findings(
        {DOMAIN: {f"first_token_test.{name}": values for name, values in statistics.items()}},
        details={"token": token_text(lm, token), **details},
        warnings=left_out(study, passages),
        units=study.units(context),
    )


def _tokens_of(lm: LanguageModel, text: str) -> tuple[int, ...]:
    """A text's own tokens. Raises InvalidInput where it has none, or one that the model does not know."""
    tokenizer: Any = lm.tokenizer
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    check_ids(list(ids), tokenizer, embedding_rows(lm.model), f"first_token_test: the text {text!r}: ")
    if not ids:
        raise InvalidInput(f"first_token_test: the tokenizer makes no token of the text {text!r}; state another")
    return ids


def measure_layer_pairs(study: LayerPairs, context: StageContext) -> Findings:
    """Accuracies of single layers and of pairs, and the mean of the pairs' normalised gains."""
    alone, both, together = _accuracies(study, context)
    gains: list[dict[str, Json]] = [
        {
            "layers": list(pair),
            "accuracy": accuracy,
            "gain": shared_gain(accuracy, alone[pair[0]], alone[pair[1]], together),
        }
        for pair, accuracy in both.items()
    ]
    known = [gain["gain"] for gain in gains if gain["gain"] is not None]
    reason = "all together are no better than one alone" if both else "there are no two layers with vectors"
    values = (
        _value(study, "mean_gain", sum(known) / len(known) if known else None, len(known), reason),
        _value(study, "best_alone", max(alone.values()), len(alone)),
        _value(study, "best_pair", max(both.values(), default=None), len(both), reason),
        _value(study, "together", together, 1),
    )
    singles = [{"layer": layer, "accuracy": accuracy} for layer, accuracy in alone.items()]
    return Findings(values=values, details={"alone": singles, "pairs": gains, "together": together})


def shared_gain(both: float, first: float, second: float, together: float) -> float | None:
    """(acc_ij − best) / (acc_all − best) with best the better of acc_i and acc_j; None where acc_all is no better than it."""
    best = max(first, second)
    return None if together <= best + 1e-12 else (both - best) / (together - best)


def solved(
    lm: LanguageModel,
    intervention: Intervention,
    problems: Sequence[Problem],
    sampling: Sampling,
    right: Grader,
    ending: Sequence[int] = (),
) -> Array:
    """[problems] 1 where the greedy answer after the prompt and the tokens of `ending` is right."""
    layout = Layout()
    prompts = [problem.prompt + intervention.prefix for problem in problems]
    with intervention.applied(lm, layout):
        written = answers(lm, prompts, sampling, layout=layout, ending=ending)
    return np.array([float(right(a.text, p.answer)) for a, p in zip(written, problems, strict=True)])


def _accuracies(
    study: LayerPairs, context: StageContext
) -> tuple[dict[int, float], dict[tuple[int, int], float], float]:
    """Accuracy by layer, by pair of layers, and with all layers."""
    lm, made = context.model(), injection_of(context)
    problems = study.asked(context)
    sampling, right = Sampling(study.new_tokens), grader(study.graded_by)

    def accuracy(*layers: int) -> float:
        chosen = made.only(*layers)
        return float(solved(lm, chosen, problems, sampling, right).mean())

    layers = made.vectors.layers
    # Of n layers there are n (n − 1) / 2 pairs; where not all are tried, the farthest apart say most.
    pairs = sorted(combinations(layers, 2), key=lambda pair: (pair[0] - pair[1], pair))[: study.pairs]
    steps = len(layers) + len(pairs) + 1
    context.progress(0, steps, "ablations")
    alone = {}
    for step, layer in enumerate(layers):
        alone[layer] = accuracy(layer)
        context.progress(step + 1, steps, "ablations")
    both = {}
    for step, pair in enumerate(pairs):
        both[pair] = accuracy(*pair)
        context.progress(len(layers) + step + 1, steps, "ablations")
    together = accuracy(*layers)
    context.progress(steps, steps, "ablations")
    return alone, both, together


def _value(study: LayerPairs, name: str, value: float | None, n: int, reason: str | None = None) -> MetricValue:
    return MetricValue(
        id=f"layer_pairs.{name}",
        version=study.version,
        domain=DOMAIN,
        value=value,
        null_reason=reason if value is None else None,
        unit="fraction",
        higher_is_better=None,
        n=n,
    )
