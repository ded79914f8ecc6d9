"""What each part of `latentbench bench gpu` does, in a process of its own: `python -m latentbench.bench.gpu_parts NAME DEVICE FILE`.

A part writes what it finds to FILE at once, one JSON object per line, so that nothing is lost when it falls; its last line says
how it ended. Whatever library is missing makes it "not available". Torch is loaded inside of the functions: a process whose
torch cannot be loaded says so. A dry run (DEVICE is cpu) does the same with less.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentbench.bench.gpu_report import CHECKOUT, Teller
from latentbench.core.border import contained, reason
from latentbench.core.errors import CellFailed, NotAvailable

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "triton", "transformers", "accelerate", "trl", "sae-lens", "numba", "numpy", "pydantic")


def machine(tell: Teller) -> None:
    """The device, what drives it, and how torch is set; a small product shows that it computes at all."""
    import torch

    device = _torch_device(tell.device)
    tell.found("python", sys.version.split()[0])
    for name in PACKAGES:
        tell.found(name, _version(name))
    tell.found("cores", os.cpu_count())
    tell.found("float32 products", torch.get_float32_matmul_precision(), note="highest: no TF32")
    if device.type == "cuda":
        _of_card(tell, device)
    else:
        tell.found("device", "cpu")
    x = torch.eye(64, device=device)
    if float((x @ x).trace()) != 64:
        raise CellFailed("a product of two identity matrices is wrong on this device")


def _of_card(tell: Teller, device: torch.device) -> None:
    import torch

    card = torch.cuda.get_device_properties(device)
    tell.found("device", card.name)
    tell.found("memory", round(card.total_memory / 2**30, 1), "GiB")
    tell.found("compute capability", f"{card.major}.{card.minor}")
    tell.found("multiprocessors", card.multi_processor_count)
    tell.found("devices seen", torch.cuda.device_count())
    tell.found("driver", _driver())
    tell.found("cuda", torch.version.cuda or torch.version.hip)
    nccl: Any = torch.cuda.nccl
    tell.found("nccl", ".".join(map(str, nccl.version())) if torch.distributed.is_nccl_available() else None)
    tell.found("bfloat16", torch.cuda.is_bf16_supported())


def _driver() -> str | None:
    """Version of the driver: from the system, or from the tool that comes with it."""
    try:
        found = re.search(r"Module\s+(?:for\s+\S+\s+)?([\d.]+)", Path("/proc/driver/nvidia/version").read_text("utf-8"))
        if found:
            return found[1]
    except OSError:
        pass
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip() or None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _torch_device(name: str) -> torch.device:
    """The device that is meant, with its number. Raises NotAvailable where torch does not see it."""
    import torch

    if name == "cpu":
        torch.set_num_threads(1)
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = "built without CUDA" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        raise NotAvailable(f"torch {torch.__version__}, {built}, sees no CUDA device")
    device = torch.device(name if ":" in name else "cuda:0")
    if (device.index or 0) >= torch.cuda.device_count():
        raise NotAvailable(f"torch sees {torch.cuda.device_count()} CUDA devices, and no {name}")
    torch.cuda.set_device(device)
    return device


def _tests(name: str, tell: Teller) -> None:
    """Runs the file of `tests/device` with this name; each test is a figure: its seconds, and how it ended."""
    file = CHECKOUT / "tests" / "device" / f"test_{name}.py"
    if not file.is_file():
        raise NotAvailable("the tests are not here: run it from a checkout")
    import pytest

    import tests.support.project  # noqa: F401  # what is missing for all of them is told by name

    watcher = _Watcher(tell)
    options = ["-q", "--device", tell.device, "-m", "slow or not slow", "-p", "no:cacheprovider", "-W", "default"]
    with tempfile.TemporaryDirectory() as folder:
        code = pytest.main([str(file), *options, "--basetemp", str(Path(folder) / "tests")], plugins=[watcher])
    if watcher.missing:
        raise NotAvailable(f"it needs {watcher.missing}, which is not installed")
    if code or watcher.failed or not watcher.passed:
        count = watcher.passed + len(watcher.failed)
        raise CellFailed(
            f"{len(watcher.failed)} of {count} tests failed: {', '.join(watcher.failed)} (exit code {int(code)})"
        )


class _Watcher:
    """A plug-in of pytest that tells of every test as it ends."""

    def __init__(self, tell: Teller) -> None:
        self._tell = tell
        self.passed, self.failed, self.missing = 0, list[str](), ""

    def pytest_collectreport(self, report: Any) -> None:
        said = str(report.longrepr or "")
        lacking = re.search(r"No module named '([\w.]+)'", said) if report.failed else None
        if lacking and not lacking[1].startswith(("latentbench", "tests")):
            self.missing = lacking[1]

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when != "call" and report.passed:
            return  # set-up and tear-down are told of only where they fail
        name = report.nodeid.rpartition("::")[2]
        for what, value in report.user_properties:
            self._tell.found(f"{name}: {what}", value)
        note = report.outcome
        if report.skipped and isinstance(report.longrepr, tuple):
            note += ": " + report.longrepr[2].removeprefix("Skipped: ")
        self._tell.found(name, round(report.duration, 3), "s", note)
        self.passed += report.passed
        if report.failed:
            self.failed.append(name)


def _measured(name: str, tell: Teller) -> None:
    from latentbench.bench import gpu_timings

    getattr(gpu_timings, name)(tell, _torch_device(tell.device))


WORK: dict[str, Callable[[Teller], None]] = {
    "machine": machine,
    **{name: partial(_tests, name) for name in ("kernels", "training", "nccl", "steering", "run")},
    **{name: partial(_measured, name) for name in ("hierarchical", "train", "sizes", "rl")},
}


def _end_with(parent: int) -> None:
    """Ends this process when the one that started it is gone, which may have been killed."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main(name: str, device: str, file: str) -> int:
    """Does one part; 0 where it ended as its last line says, whatever that is."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    tell = Teller(Path(file), device)
    try:
        WORK[name](tell)
    except ModuleNotFoundError as error:
        ours = (error.name or "").startswith(("latentbench", "tests"))
        tell.ended("failed" if ours else "not available", f"it needs {error.name}, which is not installed")
    except NotAvailable as error:
        tell.ended("not available", str(error))
    except BaseException as error:  # whatever a library or the driver raises is what this part found
        kept = contained(error)
        if not isinstance(kept, CellFailed):
            traceback.print_exception(kept)
        tell.ended("failed", reason(kept))
    else:
        tell.ended("ok")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
