"""How long the reader of a page waits, in a headless Chromium that is spoken to through its DevTools protocol over a pipe.

Needs no driver and no package: messages are JSON that ends with a zero byte, on two file descriptors of the browser.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from select import select
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

from latentbench.core.errors import LatentbenchError

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1400,1000",
    "--remote-debugging-pipe",
)  # fmt: skip
_PATIENCE = 120.0
"""Seconds that the browser may take for one answer."""
_TIMES = 5
"""How often sorting and filtering are timed; the first time compiles the script."""


class BrowserFailed(LatentbenchError):
    """The browser ended, said nothing for too long, or refused."""


@dataclass(frozen=True)
class PageTimes:
    """What a reader waits for, in milliseconds. Of several times the shortest: what a busy machine adds is not the page's."""

    paint: float
    """From the start of loading to the first text on the screen."""
    rows: float
    """From the start of loading to the first rows of the table."""
    sort: float
    """From a click on a heading until the sorted rows are on the screen."""
    filter: float
    """From a choice until the rows that pass are on the screen."""
    sort_work: float
    """Of sorting, the time in which the page's own thread had a processor."""
    filter_work: float
    """The same of filtering."""


def browser() -> str | None:
    """Path of a Chromium, None where none is installed; `LATENTBENCH_CHROMIUM` names one that is not found by itself."""
    named = os.environ.get("LATENTBENCH_CHROMIUM")
    return named or next((path for name in _NAMES if (path := shutil.which(name))), None)


def page_times(page: Path) -> PageTimes | None:
    """Opens a leaderboard's page, sorts it and filters it; None where no browser is installed. Raises BrowserFailed."""
    path = browser()
    if path is None:
        return None
    with _started(path) as pipe:
        tab = pipe.tab()
        pipe.ask("Page.navigate", {"url": page.resolve().as_uri()}, tab)
        paint, rows = pipe.value(_LOADED, tab)
        pipe.ask("Performance.enable", {"timeDomain": "threadTicks"}, tab)
        sort, filtered = ([_timed(pipe, tab, script) for _ in range(_TIMES)] for script in (_SORT, _FILTER))
        waits, works = zip(_least(sort), _least(filtered), strict=True)
        return PageTimes(paint, rows, *waits, *works)


def _least(times: list[tuple[float, float]]) -> tuple[float, float]:
    """The shortest wait and the least work."""
    return min(wait for wait, _ in times), min(work for _, work in times)


def _timed(pipe: _Pipe, tab: str, script: str) -> tuple[float, float]:
    """Wait and work of one action, in milliseconds."""
    before = pipe.busy(tab)
    wait = float(pipe.value(script, tab))
    return wait, pipe.busy(tab) - before


_LOADED = """(async () => {
  const turn = () => new Promise((done) => setTimeout(done, 10));
  const paint = () => performance.getEntriesByName("first-contentful-paint")[0]?.startTime;
  while (document.readyState !== "complete" || !paint() || !document.querySelector("#table .row-name")) await turn();
  await new Promise((done) => setTimeout(done, 500));
  const rows = performance.getEntriesByName("rows")[0]?.startTime ?? performance.now();
  return [paint(), rows];
})()"""
_SHOWN = "const shown = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));"
_SORT = f"""(async () => {{
  {_SHOWN}
  const buttons = [...document.querySelectorAll("#table thead [data-sort]")], start = performance.now();
  buttons[Math.floor(buttons.length / 2)].click();
  await shown();
  return performance.now() - start;
}})()"""
_FILTER = f"""(async () => {{
  {_SHOWN}
  const chosen = document.querySelector("#status"), start = performance.now();
  chosen.value = chosen.value ? "" : "ranked";
  chosen.dispatchEvent(new Event("change"));
  await shown();
  return performance.now() - start;
}})()"""


class _Pipe:
    """Requests and answers of one browser."""

    def __init__(self, out: int, back: int) -> None:
        self._out, self._back = out, back
        self._sent, self._read = 0, b""

    def ask(self, method: str, params: dict[str, Any], session: str | None = None) -> Any:
        """The answer to a request; what the browser says meanwhile is passed over."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": params} | ({"sessionId": session} if session else {})
        try:
            os.write(self._out, json.dumps(message).encode() + b"\0")
        except OSError as error:
            raise BrowserFailed(f"the browser ended: {error}") from None
        while True:
            answer = json.loads(self._next())
            if answer.get("id") == self._sent:
                break
        if "error" in answer:
            raise BrowserFailed(f"the browser refused {method}: {answer['error'].get('message')}")
        return answer["result"]

    def tab(self) -> str:
        """A new page's session."""
        target = self.ask("Target.createTarget", {"url": "about:blank"})["targetId"]
        return str(self.ask("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"])

    def value(self, script: str, session: str) -> Any:
        """What a script's promise comes to."""
        asked = {"expression": script, "awaitPromise": True, "returnByValue": True}
        found = self.ask("Runtime.evaluate", asked, session)
        if "exceptionDetails" in found:
            raise BrowserFailed(f"the page failed: {found['exceptionDetails'].get('text')}")
        return found["result"]["value"]

    def busy(self, session: str) -> float:
        """Milliseconds for which the page's main thread has had a processor."""
        metrics = self.ask("Performance.getMetrics", {}, session)["metrics"]
        return float(next(1000 * metric["value"] for metric in metrics if metric["name"] == "TaskDuration"))

    def _next(self) -> bytes:
        deadline = monotonic() + _PATIENCE
        while b"\0" not in self._read:
            ready, _, _ = select([self._back], [], [], max(0.0, deadline - monotonic()))
            read = os.read(self._back, 1 << 16) if ready else b""
            if not read:
                raise BrowserFailed("the browser ended or gave no answer")
            self._read += read
        message, _, self._read = self._read.partition(b"\0")
        return message


@contextmanager
def _started(path: str) -> Iterator[_Pipe]:
    """A browser with a folder of its own, ended with all of its processes."""
    theirs, out = os.pipe()
    back, ours = os.pipe()
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        arguments = [path, *_FLAGS, f"--user-data-dir={folder}", "about:blank"]
        null = os.open(os.devnull, os.O_RDWR)
        # The browser reads from descriptor 3 and writes to 4; high numbers keep one copy from covering the other's source.
        sources = [_high(fd) for fd in (theirs, ours)]
        actions = [(os.POSIX_SPAWN_DUP2, source, place) for source, place in zip(sources, (3, 4), strict=True)]
        actions += [(os.POSIX_SPAWN_DUP2, null, place) for place in (0, 1, 2)]
        process = os.posix_spawn(path, arguments, os.environ, file_actions=actions, setpgroup=0)
        for descriptor in (theirs, ours, null, *sources):
            os.close(descriptor)
        try:
            yield _Pipe(out, back)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            os.close(out)
            os.close(back)


def _high(descriptor: int) -> int:
    import fcntl  # not on every platform, and only needed here

    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 64)
