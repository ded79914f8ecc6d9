"""What a row says of its own training and of budgets that it was not trained for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from latentbench.execute.cell_record import training_warnings
from tests.conftest import Command
from tests.support.project import Workbench

NOISE = np.random.default_rng(0).normal(0, 0.005, 100)
FLAT = {"steps": 2000, "curve": {"normalised": list(0.3 + NOISE)}}
FALLING = {"steps": 2000, "curve": {"normalised": list(np.linspace(0.8, 0.3, 100) + NOISE)}}
EARLIER: dict[str, Any] = {"curve": {"normalised": []}}
"""What earlier versions kept, without the number of steps."""


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([], []),
        ([FLAT], []),
        ([EARLIER], []),
        ([FLAT | {"steps": 499}], ["the SAE was trained for 499 steps, fewer than 500"]),
        ([FLAT | {"steps": 500}], []),
        (
            [FLAT, FLAT | {"steps": 16}, FLAT | {"steps": 40}],
            ["2 of 3 SAEs were trained for 16 to 40 steps, fewer than 500"],
        ),
        ([FALLING], ["the SAE was still learning when training ended: the loss fell by 13."]),
        ([FALLING, FALLING, FLAT], ["2 of 3 SAEs were still learning when training ended: the loss fell by up to 13."]),
        ([FLAT | {"curve": {"normalised": list(0.3 + 5 * NOISE)}}], []),
        ([FLAT | {"left_out": {"tokens": 98, "massive": 1, "named": 1}}], []),
        ([FLAT | {"left_out": {"tokens": 97, "massive": 2, "named": 1}}], ["the SAE was trained without 3.0% of the"]),
        (
            [FLAT, FLAT | {"left_out": {"tokens": 90, "massive": 10, "named": 0}}],
            ["1 of 2 SAEs were trained without 10.0% of the tokens, massive ones or those that `leave_out` names"],
        ),
    ],
    ids=[
        "loaded",
        "settled",
        "earlier",
        "few",
        "enough",
        "several",
        "falling",
        "two falling",
        "noisy",
        "2% out",
        "3% out",
        "10% out",
    ],
)
def test_what_training_records_say(records: list[dict[str, Any]], said: list[str]) -> None:
    found = list(training_warnings(records))
    assert len(found) == len(said)
    assert all(warning.startswith(start) for warning, start in zip(found, said, strict=True))


def test_a_row_says_how_short_its_training_was_and_which_budgets_are_beyond_it(
    bench: Workbench, command: Command
) -> None:
    bench.spec("one", sae__k=4, metrics=[{"explained_variance": {"budgets": [2, 8]}}, "dead_fraction"])
    assert command("run", "one", "--executor", "inline").code == 0
    (record,) = bench.records().values()
    assert [warning for warning in record.warnings if "trained" in warning] == [
        "the budget 8 exceeds the k = 4 it was trained with: marked † in tables",
        "the SAE was trained for 16 steps, fewer than 500: more may change the order of rows",
    ]
    marked = {(value.budget, value.trained_k) for value in record.metrics or ()}
    assert marked == {(None, None), (2, None), (8, 4)}
    assert "trained_k" not in next(value.plain() for value in record.metrics or () if value.budget == 2)
