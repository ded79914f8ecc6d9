"""The doctor: healthy here, and every check notices the fault it is there for."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from latentbench.activations.massive import OrdinaryTokens
from latentbench.cli.app import run
from latentbench.core.sites import Site
from latentbench.doctor import environment, intervals, truths
from latentbench.doctor.check import Check, Finding, both, close, one_thread, run_checks
from latentbench.doctor.massive import massive_checks
from latentbench.reconstruction import error_metrics
from latentbench.spec.project import Project

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def ward() -> truths.PocketFixture:
    """One pass over a few documents serves all tests here."""
    made = truths.PocketFixture()
    assert made.results.failures == {}
    return made


def test_metrics_hold_on_known_truths(ward: truths.PocketFixture) -> None:
    for look in (truths._identity, truths._mean, truths._zero, truths._rescaled, truths._company):
        found = look(ward)
        assert found.passed, found.detail


def test_a_wrong_formula_is_noticed(ward: truths.PocketFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of squares in place of the square of the mean, as in older evaluators."""
    right = error_metrics._ESTIMATORS["centred"]
    wrong = replace(right, inputs=("squared_error", "squared_norm"))
    monkeypatch.setitem(error_metrics._ESTIMATORS, "centred", wrong)
    assert not truths._mean(ward).passed
    assert truths._identity(ward).passed, "which identity cannot show"


def test_a_number_that_depends_on_the_scale_is_noticed(
    ward: truths.PocketFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = truths._statistics
    monkeypatch.setattr(truths, "_statistics", lambda w, factor: {**real(w, factor), "cosine": 0.5 * factor})
    assert not truths._rescaled(ward).passed


def test_a_number_that_depends_on_the_batch_is_noticed(
    ward: truths.PocketFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentbench.reconstruction import statistics

    real = statistics.squared_norms
    monkeypatch.setattr(statistics, "squared_norms", lambda vectors: real(vectors) / len(vectors))
    assert not truths._batches(ward).passed


def test_company_that_matters_is_noticed(ward: truths.PocketFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    real = truths._own

    def own(results, name):  # type: ignore[no-untyped-def]
        found = dict(real(results, name))
        return {**found, "l0": found["l0"] + 1e-9 * len(results.measurements)}

    monkeypatch.setattr(truths, "_own", own)
    assert not truths._company(ward).passed


def test_a_planted_massive_activation_is_left_out() -> None:
    (check,) = massive_checks()
    assert check.look().passed


def test_a_rule_that_leaves_nothing_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def everything(_: OrdinaryTokens, site: Site, states: torch.Tensor) -> torch.Tensor:
        return torch.ones(states.shape[:-1], dtype=torch.bool)

    monkeypatch.setattr(OrdinaryTokens, "short", everything)
    (check,) = massive_checks()
    finding = check.look()
    assert finding.passed is False
    assert "not those with the word left out by name" in finding.detail


def test_a_planted_dictionary_is_recognised() -> None:
    found = truths._oracle()
    assert found.passed, found.detail


def test_training_that_learns_nothing_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truths, "STEPS", 2)
    assert not truths._trained().passed


def test_recovery_of_the_dictionary_itself_is_one() -> None:
    class Holder:
        def __init__(self, rows: torch.Tensor) -> None:
            self.rows = rows

        def decoder_rows(self) -> torch.Tensor:
            return self.rows

    directions, generator = truths.planted()
    shuffled = directions[torch.randperm(len(directions), generator=generator)] * -3.0
    assert truths.recovery(directions, Holder(shuffled)) == pytest.approx(1.0, abs=1e-6)  # type: ignore[arg-type]
    noise = torch.randn(len(directions), truths.D, generator=generator)
    assert truths.recovery(directions, Holder(noise)) < truths.CHANCE  # type: ignore[arg-type]


def test_intervals_hold_and_too_short_ones_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert intervals._coverage().passed
    real = intervals.document_interval

    def short(*args, **kwargs):  # type: ignore[no-untyped-def]
        found = real(*args, **kwargs)
        middle = (found.low + found.high) / 2
        return found._replace(low=(found.low + middle) / 2, high=(found.high + middle) / 2)

    monkeypatch.setattr(intervals, "document_interval", short)
    assert not intervals._coverage().passed


def test_tests_that_cry_wolf_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from latentbench.statistics.paired import TestResult

    rng = np.random.default_rng(0)
    monkeypatch.setattr(intervals, "exchange_test", lambda *_: TestResult(float(rng.random() * 0.5)))
    assert not intervals._size().passed


def test_a_full_disk_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment._disk(tmp_path / "not/yet").passed
    monkeypatch.setattr(environment, "ENOUGH", 1 << 70)
    assert not environment._disk(tmp_path).passed


def test_a_package_that_does_not_fit_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "requires", lambda _: ["numpy<1", "absent-package", "pytest; extra == 'dev'"])
    found = environment._packages()
    assert not found.passed
    assert "numpy" in found.detail
    assert "absent-package is not installed" in found.detail
    assert "pytest" not in found.detail


def test_checks_are_computed_in_one_thread() -> None:
    """On busy cores, threads wait for each other."""
    torch.set_num_threads(2)
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_a_check_that_raises_has_failed_and_the_others_go_on(tmp_path: Path) -> None:
    checks = [
        Check("breaks", "metrics", lambda: close("x", 1 / 0, 1, 0)),
        Check("holds", "metrics", lambda: both(close("x", 1.0, 1.0, 0.0))),
        Check("tells", "surroundings", lambda: Finding(None, "to know")),
    ]
    found = list(run_checks(checks))
    assert [result.verdict for result in found] == ["fail", "pass", "note"]
    assert "ZeroDivisionError" in found[0].detail
    assert len(environment.surroundings_checks(Project(tmp_path, tmp_path, tmp_path))) == 5


def test_the_command_reports_and_its_code_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["doctor", "--quick", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["passed"]
    assert {"packages fit", "device", "hub"} <= {check["name"] for check in data["checks"]}
    monkeypatch.setattr(environment, "ENOUGH", 1 << 70)
    assert run(["doctor", "--quick"]) == 1
    assert "FAIL  the store can be written" in capsys.readouterr().out


@pytest.mark.slow
def test_everything_in_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    assert run(["doctor"]) == 0, capsys.readouterr().out
    assert time.monotonic() - started <= 60
