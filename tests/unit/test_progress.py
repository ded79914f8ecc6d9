"""Rates and remaining time from counts, by a clock that the test turns; and what travels of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentbench.core.progress import Count, WorkProgress
from latentbench.distributed.progress_meter import SECONDS_BETWEEN, OpenWork, ProgressMeter, RateEstimator
from latentbench.distributed.worker_process import Event


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """A meter and everything it sent."""

    def __init__(self, what: str = "work", cells: tuple[str, ...] = ()) -> None:
        self.clock, self.sent = Clock(), list[WorkProgress]()
        self.meter = ProgressMeter(what, self.sent.append, cells, self.clock)

    def after(self, seconds: float, *counts: Any, **told: Any) -> WorkProgress:
        """What is sent when the work tells something so much later."""
        self.clock.now += seconds
        self.meter(*counts, **told)
        return self.sent[-1]


# -- rates ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.floats(1e-3, 1e6), st.lists(st.floats(0.01, 50), min_size=1, max_size=60))
def test_steady_work_has_its_own_rate_however_often_it_tells(rate: float, silences: list[float]) -> None:
    estimator, now = RateEstimator(), 0.0
    estimator.see(now, 7.0)
    for silence in silences:
        now += silence
        estimator.see(now, 7.0 + rate * now)
    assert estimator.rate == pytest.approx(rate, rel=1e-6)


def test_there_is_no_rate_before_something_was_done() -> None:
    estimator = RateEstimator()
    for now in (0.0, 5.0, 10.0):
        estimator.see(now, 3.0)
        assert estimator.rate is None
    estimator.see(20.0, 13.0)
    assert estimator.rate == 0.5, "of all the time since the work began"


def steady(estimator: RateEstimator, start: float, seconds: int, count: float, rate: float) -> float:
    for second in range(1, seconds + 1):
        estimator.see(start + second, count + rate * second)
    return count + rate * seconds


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.floats(61, 1e6), st.integers(5, 500))
def test_a_pause_does_not_slow_what_comes_after_it(pause: float, seconds: int) -> None:
    estimator = RateEstimator()
    estimator.see(0, 0)
    count = steady(estimator, 0, seconds, 0, 10.0)
    estimator.see(seconds + pause, count + 10.0)
    assert estimator.rate == pytest.approx(10.0)


def test_silences_that_come_again_are_how_the_work_goes() -> None:
    """In waves: 300 s of reading without a word, then 3,000 units in 100 s; 7.5 a second in the long run."""
    estimator, now, count = RateEstimator(), 0.0, 0.0
    estimator.see(now, count)
    for _ in range(20):
        now += 300
        count = steady(estimator, now, 100, count, 30.0)
        now += 100
    assert estimator.rate == pytest.approx(7.5, rel=0.1)


def test_a_new_speed_is_believed_within_minutes() -> None:
    estimator = RateEstimator()
    estimator.see(0, 0)
    count = steady(estimator, 0, 600, 0, 10.0)
    steady(estimator, 600, 600, count, 20.0)
    assert estimator.rate == pytest.approx(20.0, rel=0.1)


def test_a_clock_that_goes_back_breaks_nothing() -> None:
    estimator = RateEstimator()
    for now, count in ((10.0, 0.0), (5.0, 0.5), (6.0, 1.0), (7.0, 2.0)):
        estimator.see(now, count)
    assert estimator.rate is not None
    assert 0.5 < estimator.rate <= 1.0, "two units in the two seconds that passed"


# -- messages ------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.floats(0, 1e4), st.integers(0, 500)), min_size=1, max_size=40), st.integers(0, 2000))
def test_the_share_never_falls_and_the_time_left_is_never_negative(told: list[tuple[float, int]], total: int) -> None:
    watched, done = Watched(), 0
    with watched.meter:
        for seconds, more in told:
            done += more
            watched.after(seconds, done, total)
    shares = [message.share for message in watched.sent]
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)
    assert all(message.left is None or 0 <= message.left < math.inf for message in watched.sent)
    assert watched.sent[-1].end == "done"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.floats(0, 3), min_size=1, max_size=200))
def test_at_most_two_messages_a_second_and_the_last_one_tells_all(silences: list[float]) -> None:
    watched = Watched()
    with watched.meter:
        for number, silence in enumerate(silences, 1):
            watched.after(silence, number, len(silences))
    assert len(watched.sent) <= 2 + sum(silences) / SECONDS_BETWEEN
    assert watched.sent[-1].done == len(silences)


def test_what_an_earlier_run_had_done_counts_into_the_share_alone() -> None:
    watched = Watched()
    watched.after(0, 9000, 10_000, "tokens", before=9000)
    message = watched.after(10, 9100, 10_000, "tokens", before=9000)
    assert message.share == 0.91
    assert message.rate == 10.0
    assert message.left == 90.0


def test_what_was_done_earlier_may_become_known_later() -> None:
    """A training reads its first block before it finds its checkpoint."""
    watched = Watched()
    watched.after(0, 0, 10_000)
    watched.after(10, 50, 10_000)
    watched.after(1, 9000, 10_000, before=9000)
    message = watched.after(10, 9100, 10_000, before=9000)
    assert message.rate == 10.0
    assert message.left == 90.0


def test_speed_goes_by_the_pace_where_there_is_one() -> None:
    watched = Watched()
    watched.after(0, 0, 4, "documents", pace=Count(0, 1000, "tokens"))
    message = watched.after(10, 1, 4, "documents", pace=Count(800, 1000, "tokens"))
    assert (message.done, message.total, message.unit) == (1, 4, "documents")
    assert (message.rate, message.rate_unit, message.left) == (80.0, "tokens", 2.5)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"part": "explaining"}, {"part": "scoring"}),
        ({"unit": "documents"}, {"unit": "requests"}),
        ({}, {}),  # counted from the beginning once more
    ],
)
def test_every_part_of_the_work_has_its_own_speed(first: dict[str, Any], then: dict[str, Any]) -> None:
    watched = Watched("autointerp")
    watched.after(0, 0, 100, **first)
    assert watched.after(10, 90, 100, **first).rate == 9.0
    assert watched.after(50, 0, 100, **then).rate is None
    message = watched.after(10, 10, 100, **then)
    assert (message.rate, message.left) == (1.0, 90.0)
    assert message.what == ", ".join(["autointerp", *(v for k, v in then.items() if k == "part")])


def test_a_part_that_is_over_at_once_has_a_speed_all_the_same() -> None:
    watched = Watched()
    with watched.meter as progress:
        for part in ("one", "two"):
            for done in range(5):
                watched.clock.now += 0.01
                progress(done, 4, part=part)
    assert watched.sent[-1].rate == pytest.approx(100.0)


def test_of_several_numbers_the_range_is_kept() -> None:
    message = Watched().after(0, 1, 2, loss=[0.3, 0.1, math.nan], reward=0.5, none=math.inf, empty=[])
    assert message.numbers == {"loss": (0.1, 0.3), "reward": (0.5, 0.5)}


@pytest.mark.parametrize(
    "counts",
    [(None, 3), ("many", 3), (1, math.nan), (math.inf, math.inf), (10**400, 3), ([1], 2), (object(), 2)],
)
def test_nonsense_is_not_shown_and_fails_nothing(counts: tuple[Any, Any]) -> None:
    watched = Watched()
    with watched.meter as progress:
        progress(*counts)
        progress(*counts, pace=Count(*counts, "x"))
    assert watched.sent == []


def test_work_that_tells_nothing_is_not_heard_of() -> None:
    watched = Watched()
    with watched.meter:
        pass
    assert watched.sent == []


def test_work_that_fails_is_said_to_have_stopped() -> None:
    watched = Watched()

    def work() -> None:
        with watched.meter as progress:
            progress(1, 4, part="here")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert [(m.end, m.what, m.done) for m in watched.sent] == [("", "work, here", 1), ("stopped", "work, here", 1)]


def test_a_message_fits_into_a_pipe_whatever_it_says() -> None:
    hostile = "\x1b\u2028" * 10_000
    watched = Watched(hostile, ("f" * 64,) * 1000)
    told = {f"{n}{hostile}": list(range(1000)) for n in range(100)}
    message = watched.after(0, 1, 2, hostile, part=hostile, pace=Count(1, 2, hostile), **told)
    assert len(Event("progress", progress=message).line().encode()) < 4096


def test_most_calls_cost_next_to_nothing() -> None:
    """Counted in what they do, not in time: no look at the counts, no message."""
    watched = Watched()
    watched.after(0, 0, 10**6)
    before = watched.meter._message
    for done in range(10_000):
        watched.after(1e-6, done, 10**6)
    assert watched.meter._message is before
    assert len(watched.sent) == 1


# -- on its way ----------------------------------------------------------------------------------------------------------


def example(**changes: Any) -> WorkProgress:
    kept: dict[str, Any] = {"work": "w1", "what": "training", "done": 3.0, "total": 4.0, "unit": "tokens"}
    return WorkProgress(**{**kept, **changes})


def test_an_event_comes_back_as_it_was_sent() -> None:
    message = example(rate=2.5, rate_unit="tokens", left=0.4, numbers={"loss": (0.1, 0.2)}, cells=("ab",), end="done")
    assert Event.parse(Event("progress", progress=message).line()) == Event("progress", progress=message)
    done = Event("done", "mine[seed=0]", "ok")
    assert Event.parse(done.line()) == done


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("done"),
        lambda data: data.update(done=None),
        lambda data: data.update(done=math.nan),
        lambda data: data.update(total=10**400),
        lambda data: data.update(rate="fast"),
        lambda data: data.update(left=True),
        lambda data: data.update(what=3),
        lambda data: data.update(cells=[3]),
        lambda data: data.update(cells=None),
        lambda data: data.update(numbers=[1]),
        lambda data: data.update(numbers={"loss": [1, 2, 3]}),
        lambda data: data.update(end="soon"),
        lambda data: data.update(more=1),
    ],
)
def test_what_is_no_message_of_ours_is_passed_over(change: Callable[[dict[str, Any]], Any]) -> None:
    data = asdict(example())
    change(data)
    assert Event.parse(json.dumps({"kind": "progress", "progress": data})) is None


@pytest.mark.parametrize(
    "line", ["", "{}", "[]", "[" * 9000, '{"kind": "progress"}', '{"kind": "done", "progress": {}}', '{"kind": "x"}']
)
def test_other_lines_on_the_output_are_passed_over(line: str) -> None:
    assert Event.parse(line) is None


def test_work_of_a_lost_process_is_ended_once() -> None:
    open_work = OpenWork()
    for message in (example(), example(work="w2"), example(work="w2", end="done"), example(done=3.5)):
        open_work.see(message)
    assert open_work.end() == [example(done=3.5, end="stopped")]
    assert open_work.end() == []
