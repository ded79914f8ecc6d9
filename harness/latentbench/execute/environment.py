"""What a record says of the machine and the code that made it."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from latentbench.meters import high_water
from latentbench.record import Checkout, Environment

_PACKAGES = ("latentbench", "torch", "transformers", "sae-lens", "numpy", "safetensors", "datasets", "numba", "triton")


def environment(project: Path, device: str, threads: int, devices: int = 1) -> Environment:
    """Versions, processor, device, how many of them train one SAE, threads of each, and the state of the code."""
    return Environment(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        device=device,
        devices=devices,
        threads=threads,
        packages={name: found for name in _PACKAGES if (found := _version(name))},
        git=_git(project),
    )


def peak_memory_bytes() -> int:
    """Largest resident set so far, of this process or of one that it started: SAEs may be trained in those."""
    started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return max(high_water(), started if sys.platform == "darwin" else started * 1024)


@cache
def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'unknown'}, {os.cpu_count()} cores"


@cache
def _git(project: Path) -> Checkout | None:
    """Commit of the checkout and whether files differ from it; None outside of one."""
    commit = _run(project, "rev-parse", "HEAD")
    if commit is None:
        return None
    # Only what computes: pages and results do not change a number.
    changed = _run(project, "status", "--porcelain", "--", ".", ":(exclude)results", ":(exclude)*.md")
    return Checkout(commit=commit, dirty=bool(changed))


def _run(project: Path, *arguments: str) -> str | None:
    # The configuration of a checkout may name a program that watches its files, which git would start.
    command = ["git", "-C", str(project), "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
