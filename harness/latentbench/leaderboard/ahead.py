"""Many new records: other processes check them and work out their rows' intervals, before the table is made as if it knew.

`python -m latentbench.leaderboard.ahead RESULTS STORE FIRST LAST SHORT` does that for a share of the files and leaves what it
found in the store (harness/latentbench/store/derived.py), under digests of the content. No table waits for an answer or
believes one: what a process did not come to, because it was ended or its share cuts a row in two, is worked out by whoever
needs it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

from latentbench.core.resources import processors
from latentbench.leaderboard.build import work_out
from latentbench.leaderboard.evidence import StatisticsReader
from latentbench.leaderboard.load import load, record_files
from latentbench.records.reading import KNOWN
from latentbench.store.derived import Derived

FEWEST = 400
"""New records from which other processes pay: each takes half a second before it does anything."""
_EACH = 200
"""New records for each of them at least."""
_MOST = 16
"""Processes at once."""
_ALONE = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1")
# Without the last one a file in the current folder would be imported in a library's place.
_ENVIRONMENT = {**_ALONE, "PYTHONSAFEPATH": "1"}


def work_ahead(results: Path, store: Path, there: int, short: bool) -> None:
    """Has the rows of new records worked out, where those are many among the files and there are processors for it."""
    new = there - Derived(store).count(KNOWN)
    processes = min(processors(), _MOST, new // _EACH)
    if new < FEWEST or processes < 2:
        return
    bounds = [there * number // processes for number in range(processes + 1)]
    shares = [(str(first), str(last)) for first, last in pairwise(bounds)]
    command = [sys.executable, "-m", "latentbench.leaderboard.ahead", str(results), str(store)]
    environment, nothing = {**os.environ, **_ENVIRONMENT}, subprocess.DEVNULL
    started: list[subprocess.Popen[bytes]] = []
    try:
        for share in shares:
            words = [*command, *share, "short" if short else "whole"]
            started.append(subprocess.Popen(words, env=environment, stdin=nothing, stdout=nothing, stderr=nothing))
        for process in started:
            process.wait()
    except OSError:
        return  # no process can be started here
    finally:
        for process in started:
            process.kill()
            process.wait()


def main(results: str, store: str, first: str, last: str, length: str) -> None:
    """Works out the rows of the files from the first to before the last."""
    derived = Derived(Path(store))
    share = list(record_files(Path(results)))[int(first) : int(last)]
    loaded = load(Path(results), derived, share)
    work_out(loaded, StatisticsReader(derived), short=length == "short")


if __name__ == "__main__":
    main(*sys.argv[1:])
