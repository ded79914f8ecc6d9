"""Statistics that metrics bring along: what they are given, where they are stored, and whom one that fails costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latentbench.activations.tokens import special_mask
from latentbench.core.errors import InvalidInput, NotAvailable
from latentbench.metrics.base import Statistic
from latentbench.reconstruction.shared_pass import MeasurementRequest, measure
from latentbench.reconstruction.statistics import Measurement, TokenBatch
from tests.support.passes import LM, MIDDLE, TOKENIZER, TOKENS, ToySAE, flat

HERE = "tests.numerics.test_declared_statistics"


def error(batch: TokenBatch) -> Tensor:
    return (batch.x - batch.reconstruction).square().sum(-1, dtype=torch.float64)


def position(batch: TokenBatch) -> Tensor:
    return batch.positions


def token(batch: TokenBatch) -> Tensor:
    return batch.ids


def is_active(batch: TokenBatch) -> Tensor:
    return (batch.codes.values != 0).any(1)


def per_dimension(batch: TokenBatch) -> Tensor:
    return batch.x


def a_number(batch: TokenBatch) -> Any:
    return 1.0


def complex_numbers(batch: TokenBatch) -> Tensor:
    return batch.positions + 1j


def raising(batch: TokenBatch) -> Tensor:
    raise ArithmeticError("nothing to see")


def own(function: Callable[[TokenBatch], Any]) -> Statistic:
    return Statistic(f"mine.{function.__name__}", f"{HERE}:{function.__name__}")


def measured(*statistics: Statistic, budgets: tuple[int | None, ...] = (None,), **options: Any) -> list[Measurement]:
    request = MeasurementRequest("own", ToySAE(1), MIDDLE, budgets, statistics=statistics)
    return measure(LM, TOKENS, [request], **options).measurements


@pytest.mark.parametrize("forward_tokens", [1, 40, 4096])
def test_statistics_get_the_ordinary_tokens_and_end_up_in_document_order(forward_tokens: int) -> None:
    statistics = (own(error), own(position), own(token), own(is_active))
    (found,) = measured(*statistics, forward_tokens=forward_tokens)
    special = special_mask(TOKENS.ids, TOKENIZER)
    for n, length in enumerate(TOKENS.lengths.tolist()):
        ordinary = [i for i in range(length) if not special[n, i]]
        assert found.statistics["mine.position"][n] == sum(ordinary)
        assert found.statistics["mine.token"][n] == sum(TOKENS.ids[n, ordinary].tolist())
        assert found.statistics["mine.is_active"][n] == len(ordinary)
    assert np.array_equal(found.statistics["mine.error"], found.statistics["squared_error"])
    assert all(values.dtype == np.float64 for values in found.statistics.values())


def test_budgets_have_their_own_values_under_their_own_names() -> None:
    plain, limited = measured(own(error), budgets=(None, 2))
    assert np.array_equal(limited.statistics["mine.error@2"], limited.statistics["squared_error@2"])
    assert (limited.statistics["mine.error@2"] != plain.statistics["mine.error"]).any()


def test_what_is_measured_anyway_stays_to_the_bit() -> None:
    plain = flat(measure(LM, TOKENS, [MeasurementRequest("own", ToySAE(1), MIDDLE, splice=True)]))
    statistics = (own(error), own(is_active))
    request = MeasurementRequest("own", ToySAE(1), MIDDLE, splice=True, statistics=statistics)
    more = flat(measure(LM, TOKENS, [request]))
    assert more.keys() - plain.keys() == {"own/mine.error", "own/mine.is_active"}
    assert all(np.array_equal(values, more[name]) for name, values in plain.items())


@pytest.mark.parametrize(
    ("statistic", "kind", "says"),
    [
        (own(per_dimension), InvalidInput, r"'mine.per_dimension' \(.*:per_dimension\) gave a tensor \[\d+, 16\] of"),
        (own(a_number), InvalidInput, "gave float; it must give one real number for each token"),
        (own(complex_numbers), InvalidInput, r"of torch.complex\d+; it must give one real number"),
        (own(raising), ArithmeticError, "nothing to see"),
        (Statistic("mine.gone", "no.such.module:function"), NotAvailable, "no.such.module:function cannot be imported"),
    ],
    ids=["shape", "type", "complex", "raises", "missing"],
)
def test_a_statistic_that_fails_costs_its_sae_and_no_other(
    statistic: Statistic, kind: type[Exception], says: str
) -> None:
    requests = [
        MeasurementRequest("own", ToySAE(1), MIDDLE, statistics=(statistic,)),
        MeasurementRequest("other", ToySAE(2), MIDDLE),
    ]
    found = measure(LM, TOKENS, requests)
    assert [measurement.name for measurement in found.measurements] == ["other"]
    assert found.failures.keys() == {"own"}
    with pytest.raises(kind, match=says):
        raise found.failures["own"]
