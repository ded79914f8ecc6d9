"""What a process can say of itself: the time at which its device is done, and the most memory it has had."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def now(device: torch.device) -> float:
    """Seconds of a clock that stands still until `device` has done what it was given: work on CUDA is only queued."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return perf_counter()


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def high_water() -> int:
    """Largest resident set of this process so far, in bytes.

    Linux counts what a process had before it became this program, so its parent's, into `ru_maxrss`, but not into
    `VmHWM`.
    """
    try:
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = getrusage(RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def memory_of(call: Callable[[], object]) -> int:
    """Bytes by which a call raises this process's resident set at its highest, in a process made for it.

    What was let go of before (compiled modules, say) would hide as much of it, so the mark is set down first, where the
    system can.
    """
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "utf-8")  # Linux: VmHWM becomes what is resident now
    before = high_water()
    call()
    return high_water() - before
