"""Everything that only a GPU can show, in a few minutes: `make gpu`, `latentbench bench gpu`, `python -m latentbench.bench.gpu`.

Each part (`PARTS`) runs in a process of its own with a time limit, so that one which fails, hangs or takes the driver with it
costs its own figures and nothing else. The report is written after every part. What the parts do stands in
`harness/latentbench/bench/gpu_parts.py`; here nothing is imported but the standard library and a few small modules, so that
this process can always say what became of them.

It runs from a checkout that nobody installed, without network: a package that a part needs and that is missing makes this part
"not available". `--device cpu` is a dry run of every part in a small size; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from latentbench.bench.gpu_report import (
    CHECKOUT,
    MACHINE,
    Figure,
    GpuReport,
    PartReport,
    line,
    page,
    reports,
    summary,
)
from latentbench.core.errors import InvalidInput, LatentbenchError
from latentbench.core.text import visible

LAST_LINES = 30
"""How much of what a failed part printed the report keeps."""
RESULTS, PAGE = CHECKOUT / "results" / "gpu", CHECKOUT / "docs" / "gpu.md"
Announce = Callable[[str], None]


@dataclass(frozen=True)
class Part:
    """Something that is tried in a process of its own."""

    name: str
    about: str
    seconds: float
    """After which it is ended."""
    interpreted: bool = False
    """Whether a dry run takes the CUDA kernels in Triton's interpreter, for the sake of their tests."""


PARTS = (
    Part(MACHINE, "the device and the versions of what drives it", 90),
    Part("kernels", "device tests: kernels against dense float64 and torch's operations", 120, interpreted=True),
    Part("training", "device tests: training against the CPU, and resumed", 120),
    Part("nccl", "device tests: collectives and training in a process group of one", 90),
    Part("hierarchical", "HierarchicalTopK's loss and step, K up to 128, 65,536 latents, d = 2,304", 120),
    Part("train", "training steps against sae-lens and torch's operations", 150),
    Part("rl", "steps of reinforcement learning of steering vectors", 120),
    Part("steering", "device tests: vectors and adapters trained by reinforcement, resumed", 90),
    Part("run", "device tests: a spec from texts to its record", 120),
    Part("sizes", "which sizes of the kernels' tiles are fastest", 90, interpreted=True),
)
"""In the order of what matters most, should the time not suffice for all."""


def run(
    output: Path,
    *,
    device: str = "cuda",
    minutes: float = 8.0,
    only: tuple[str, ...] = (),
    parts: tuple[Part, ...] = PARTS,
    commit: str | None = None,
    python: str = sys.executable,
    announce: Announce = print,
) -> tuple[GpuReport, Path]:
    """Runs the parts one after the other and writes the report below `output` after each.

    `device`: cuda, cuda:N, or cpu for a dry run. `only`: names of parts; the one that tells of the machine always runs, and
    others stay in the report as they were, if they were measured with the same commit. `commit`: of a copy without git.
    Raises InvalidInput for unknown names, and where the device is not there or does not answer.
    """
    chosen = _chosen(parts, only)
    deadline = time.monotonic() + 60 * minutes
    report = GpuReport(device, device == "cpu", _commit() or commit, f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")
    logs = output / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"{output} cannot be written to: {error.strerror or error}") from error
    with _surroundings(device) as environment:
        for part in chosen:
            limit = min(part.seconds, deadline - time.monotonic())
            arguments = [python, "-m", "latentbench.bench.gpu_parts", part.name, device]
            report.parts[part.name] = found = _tried(part, arguments, limit, logs, environment)
            if part.name == MACHINE and found.outcome != "ok":
                raise InvalidInput(f"the device {device!r} cannot be used ({found.outcome}): {found.detail}")
            if part.name == MACHINE and only:
                report.adopt(output)
            path = report.write(output)
            announce(line(part.name, found))
    return report, path


def _chosen(parts: tuple[Part, ...], only: tuple[str, ...]) -> list[Part]:
    known = [part.name for part in parts]
    if unknown := sorted(set(only) - set(known)):
        raise InvalidInput(f"no part is called {', '.join(unknown)}; there are {', '.join(known)}")
    return [part for part in parts if not only or part.name in (MACHINE, *only)]


def _tried(part: Part, command: list[str], limit: float, logs: Path, environment: dict[str, str]) -> PartReport:
    """Runs one part. Whatever it does, it is gone afterwards."""
    if limit <= 0:
        return PartReport("timed out", detail="no time was left for it; allow more with --minutes")
    log, told = logs / f"{part.name}.log", logs / f"{part.name}.jsonl"
    told.unlink(missing_ok=True)
    if not part.interpreted:
        environment = {name: value for name, value in environment.items() if name not in _INTERPRETER}
    began = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, str(told)],
            cwd=CHECKOUT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a process group of its own: killed as a whole, with what it has started
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill(process)
    return _report(told, log, code, time.monotonic() - began, limit)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _report(told: Path, log: Path, code: int | None, seconds: float, limit: float) -> PartReport:
    """From what a part has told line by line; its last line is its outcome, where it came to its end."""
    figures: list[Figure] = []
    ended: dict[str, Any] | None = None
    for text in told.read_text("utf-8", errors="replace").splitlines() if told.is_file() else []:
        try:
            data = json.loads(text)
        except ValueError:  # cut short by a kill
            continue
        if "outcome" in data:
            ended = data
        else:
            figures.append(Figure(**data))
    seconds = round(seconds, 1)
    if code is None:
        detail = "\n".join([*_last_lines(log), f"ended after {limit:.0f} s, its limit"])
        return PartReport("timed out", seconds, detail, figures)
    if ended is None or (code != 0 and ended["outcome"] == "ok"):
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return PartReport("failed", seconds, "\n".join([*_last_lines(log), how]), figures)
    detail = ended["detail"] if ended["outcome"] != "failed" else "\n".join([*_last_lines(log), ended["detail"]])
    return PartReport(ended["outcome"], seconds, detail, figures)


def _last_lines(log: Path) -> list[str]:
    return log.read_text("utf-8", errors="replace").rstrip().splitlines()[-LAST_LINES:]


_INTERPRETER = ("TRITON_INTERPRET", "LATENTBENCH_KERNELS")
_OWN = (*_INTERPRETER, "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that would make the parts something else than what a user runs: kernels by force, a launcher's ranks."""


@contextmanager
def _surroundings(device: str) -> Iterator[dict[str, str]]:
    """The environment of the parts: this checkout, no network, and kernels compiled anew, so that compiling is timed."""
    with tempfile.TemporaryDirectory(prefix="latentbench-gpu-") as scratch:
        paths = [str(CHECKOUT), str(CHECKOUT / "harness"), str(CHECKOUT / "adapters"), _plug_ins(Path(scratch))]
        kept = {name: value for name, value in os.environ.items() if name not in _OWN}
        yield kept | {
            "PYTHONPATH": os.pathsep.join(filter(None, [*paths, os.environ.get("PYTHONPATH", "")])),
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TRITON_CACHE_DIR": str(Path(scratch) / "triton"),
            **(dict(zip(_INTERPRETER, ("1", "triton"), strict=True)) if device == "cpu" else {}),
        }


def _plug_ins(scratch: Path) -> str:
    """A folder with the entry points of this checkout, where it is not installed; otherwise nothing."""
    try:
        distribution("latentbench")
    except PackageNotFoundError:
        project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]
        folder = scratch / "plug-ins" / f"latentbench-{project['version']}.dist-info"
        folder.mkdir(parents=True)
        metadata = f"Metadata-Version: 2.1\nName: latentbench\nVersion: {project['version']}\n"
        (folder / "METADATA").write_text(metadata, "utf-8")
        groups = [
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
            for group, points in project["entry-points"].items()
        ]
        (folder / "entry_points.txt").write_text("\n".join(groups), "utf-8")
        return str(folder.parent)
    return ""


def _commit() -> str | None:
    """The checkout's commit, `+` behind it where what computes differs from it."""
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--", ".", ":(exclude)results", ":(exclude)*.md")
    return commit and commit + ("+" if changed else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 where a part failed or timed out, 2 where nothing could be tried."""
    parser = argparse.ArgumentParser(prog="latentbench.bench.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu for a dry run")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--commit", help="of the code, where it is a copy without git")
    parser.add_argument("--page", action="store_true", help="only write docs/gpu.md anew from results/gpu")
    parser.add_argument("--only", action="append", default=[], choices=[part.name for part in PARTS])
    given = parser.parse_args(arguments)
    try:
        if given.page:
            PAGE.write_text(page(reports(RESULTS)), "utf-8")
            return 0
        chosen = {"device": given.device, "minutes": given.minutes, "only": tuple(given.only), "commit": given.commit}
        report, path = run(given.output, **chosen)
    except LatentbenchError as error:
        print(f"error: {visible(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"interrupted: what was measured before stands below {given.output}", file=sys.stderr)
        return 130
    print(f"\n{summary(report)}\n\nwritten to {path}; `make gpu-page` puts it into docs/gpu.md")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
