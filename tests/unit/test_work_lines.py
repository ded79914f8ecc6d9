"""Work in progress for people: rows of a terminal of any width, lines for everything else, whatever titles hold."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentbench.cli.progress import ProgressDisplay, _ErrorConsole
from latentbench.cli.work_lines import ROWS, SECONDS_BETWEEN_LINES, WorkLines, plain, rows, set_to
from latentbench.core.progress import WorkProgress
from latentbench.distributed.worker_process import Event
from latentbench.plan.plan import Plan

TRAINING = {
    "what": "training 6 SAEs of quickstart/topk[seed=0]",
    "done": 3_400_000.0,
    "total": 10_000_000.0,
    "unit": "tokens",
    "rate": 3289.4,
    "rate_unit": "tokens",
    "left": 2006.0,
    "numbers": {"loss": (0.1234, 0.31)},
}


def work(**changes: Any) -> WorkProgress:
    kept: dict[str, Any] = {"work": "w1", "what": "work", "done": 1.0, "total": 4.0, "unit": "steps"}
    return WorkProgress(**{**kept, **changes})


WORKS = st.builds(
    work,
    what=st.text(max_size=80) | st.text(st.sampled_from("漢字\u0301\x1b[2J\r\n\t\u202e👩‍🔬"), max_size=80),
    done=st.floats(0, 1e12),
    total=st.floats(0, 1e12),
    unit=st.text(max_size=10),
    rate=st.none() | st.floats(0, 1e9),
    rate_unit=st.sampled_from(["tokens", "problems", "\x1b[1m"]),
    left=st.none() | st.floats(0, 1e9),
    seconds=st.floats(0, 1e9),
    numbers=st.dictionaries(st.text(max_size=8), st.tuples(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9)), max_size=4),
    end=st.sampled_from(["", "done", "stopped"]),
)
UNSAFE = [chr(code) for code in (*range(32), *range(127, 160), 0x2028, 0x2029, 0x202E, 0x200F)]


def test_a_line_says_everything() -> None:
    assert plain(work(**TRAINING)) == (
        "training 6 SAEs of quickstart/topk[seed=0]: 34 % (3,400,000 of 10,000,000 tokens), 3,289 tokens/s, "
        "loss 0.123–0.31, about 33 min left"
    )
    done = work(**TRAINING, seconds=3120.0, end="done")
    assert plain(done) == (
        "training 6 SAEs of quickstart/topk[seed=0]: done in 52 min, 3,289 tokens/s, loss 0.123–0.31"
    )
    assert plain(work(what="x", seconds=7.0, end="stopped")) == "x: stopped at 25 % after 7 s"
    assert plain(work()) == "work: 25 % (1 of 4 steps)", "what is not known is not said"


@pytest.mark.parametrize(
    ("rate", "told"),
    [(12345.6, "12,346"), (99.96, "100"), (1.0, "1"), (2.345, "2.35")],
)
def test_rates_per_second(rate: float, told: str) -> None:
    assert f", {told} problems/s" in plain(work(rate=rate, rate_unit="problems"))


@pytest.mark.parametrize(("rate", "told"), [(0.5, "30 steps/min"), (1 / 60, "1 steps/min"), (1 / 300, "12 steps/h")])
def test_slow_work_is_told_per_minute_or_hour(rate: float, told: str) -> None:
    assert told in plain(work(rate=rate, rate_unit="steps"))


def test_only_what_is_done_is_100_percent() -> None:
    assert "99 %" in plain(work(done=99_999, total=100_000))
    assert "100 %" in plain(work(done=4, total=4))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(WORKS)
def test_a_line_steers_no_terminal(message: WorkProgress) -> None:
    line = plain(message)
    assert not set(line) & set(UNSAFE)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(WORKS, max_size=20), st.integers(40, 200), st.booleans())
def test_rows_are_no_wider_than_the_terminal_and_steer_nothing(
    works: list[WorkProgress], width: int, utf8: bool
) -> None:
    made = rows(works, width, utf8)
    assert len(made) == min(len(works), ROWS) + (len(works) > ROWS)
    for row in made:
        assert row.cell_len <= width
        assert not set(row.plain) & set(UNSAFE)


@pytest.mark.parametrize("width", range(40, 201, 10))
def test_the_share_is_seen_at_every_width_and_more_of_the_rest_at_greater_ones(width: int) -> None:
    (row,) = rows([work(**TRAINING)], width)
    assert "34 %" in row.plain
    told = ["training", "33 min left", "3,289 tokens/s", "loss 0.123–0.31"]
    seen = [part in row.plain for part in told]
    assert seen == sorted(seen, reverse=True), "what is missed first is shown first"
    assert all(seen) == (width >= 80)
    assert ("━" in row.plain) == (width >= 50)


def test_rows_are_aligned() -> None:
    first, second = (row.plain for row in rows([work(**TRAINING), work(what="x", left=3.0)], 120))
    assert first.index("━") == second.index("━")
    assert first.index("34 %") == second.index("25 %")
    assert first.index("33 min left") == second.index("3 s left")


def test_bars_of_ascii_terminals_are_ascii() -> None:
    (row,) = rows([work(**TRAINING)], 120, utf8=False)
    assert "###" in row.plain
    assert "---" in row.plain


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(), st.integers(0, 60))
def test_texts_are_cut_to_cells(text: str, cells: int) -> None:
    from rich.cells import cell_len

    assert cell_len(set_to(text, cells)) == cells


def test_a_line_comes_every_30_seconds_and_at_the_end() -> None:
    said, now = list[str](), 0.0
    lines = WorkLines(said.append, lambda: now)
    for second in range(0, 200, 5):
        now = float(second)
        lines.take(work(done=second, total=400))
        lines.take(work(work="w2", what="other", done=second, total=800))
    now = 200.0
    lines.take(work(end="done", seconds=200))
    assert [line for line in said if line.startswith("work")] == [
        *(f"work: {second // 4} % ({second} of 400 steps)" for second in range(30, 200, 30)),
        "work: done in 3 min",
    ]
    assert sum(line.startswith("other") for line in said) == 200 // SECONDS_BETWEEN_LINES


def test_who_begins_to_watch_sees_a_line_at_once() -> None:
    said = list[str]()
    lines = WorkLines(said.append, lambda: 5.0, at_once=True)
    lines.take(work())
    lines.take(work(done=2))
    assert said == ["work: 25 % (1 of 4 steps)"]


# -- the display of a run ------------------------------------------------------------------------------------------------


def shown(events: list[Event], terminal: bool, width: int = 100) -> str:
    """What a run with these events writes to such a standard error."""
    display, out = ProgressDisplay(Plan(())), io.StringIO()
    display.console = _ErrorConsole(
        file=out, force_terminal=terminal, width=width, color_system=None, legacy_windows=False
    )
    display.live = terminal
    with display:
        for event in events:
            display.report(event)
            time.sleep(0.3 if terminal else 0)
    return out.getvalue()


HOSTILE = "a\x1b[2Jb\r\nc[bold]d\u202e"
EVENTS = [
    Event("progress", progress=work(what=HOSTILE)),
    Event("note", HOSTILE),
    Event("done", HOSTILE, "ok"),
    Event("progress", progress=work(what=HOSTILE, end="stopped")),
]


def test_a_run_without_a_terminal_writes_lines_without_control_characters() -> None:
    written = shown(EVENTS, terminal=False)
    clean = "a\\u001b[2Jb\\u000d\\u000ac[bold]d\\u202e"
    assert written.splitlines() == [
        "0 cells: 0 to run, 0 re-used",
        f"note   {clean}",
        f"ok     {clean}",
        f"{clean}: stopped at 25 % after 1 s",
    ]


def test_a_terminal_shows_bars_and_keeps_only_lines() -> None:
    written = shown(EVENTS, terminal=True)
    assert "━━━" in written
    assert "25 %" in written
    assert "\x1b[2J" not in written
    assert "\u202e" not in written
    assert written.count("note   a") == 1


class Stuck(io.StringIO):
    """A reader that takes nothing for a while, or is gone."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        if self.error:
            raise self.error
        time.sleep(0.5)
        return super().write(text)


@pytest.mark.parametrize("error", [None, BrokenPipeError(), ValueError("I/O operation on closed file")])
def test_a_reader_that_is_slow_or_gone_does_not_hold_up_the_run(error: Exception | None) -> None:
    display = ProgressDisplay(Plan(()))
    display.console = _ErrorConsole(file=Stuck(error))
    with display:
        began = time.monotonic()
        for number in range(1000):
            display.report(Event("progress", progress=work(done=number, total=1000)))
        display.report(Event("done", "mine", "ok"))
        assert time.monotonic() - began < 0.4, "less than one write takes"


def test_nothing_is_shown_of_a_quiet_run(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay(Plan(()), quiet=True) as display:
        display.report(EVENTS[0])
        display.report(EVENTS[2])
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
