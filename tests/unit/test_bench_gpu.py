"""`bench gpu`: whatever becomes of a part costs that part alone, and all of it is told; without a GPU, by parts that are made up."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tomllib
from importlib.metadata import PackageNotFoundError, distributions
from pathlib import Path
from typing import Any

import pytest

from latentbench.bench import gpu, gpu_parts
from latentbench.bench.gpu import PAGE, PARTS, RESULTS, Part, run
from latentbench.bench.gpu_report import (
    CHECKOUT,
    MACHINE,
    Figure,
    GpuReport,
    PartReport,
    Teller,
    page,
    reports,
    summary,
)
from latentbench.core.errors import CellFailed, InvalidInput, NotAvailable
from tests.conftest import Command

FAKE = """#!{python}
import json, os, signal, subprocess, sys, time
name, device, file = sys.argv[3:]

def say(**data):
    with open(file, "a") as out:
        out.write(json.dumps(data) + "\\n")

print("last words of", name, flush=True)
if name == "machine":
    say(what="device", value="Fancy GPU 9000|X", unit="", note="")
    say(outcome="ok", detail="")
else:
    say(what=f"figure of {{name}}", value=1.5, unit="ms", note="")
if name == "hangs":
    child = subprocess.Popen(["sleep", "600"])
    say(what="child", value=child.pid, unit="", note="")
    time.sleep(600)
if name == "dies":
    os.kill(os.getpid(), signal.SIGSEGV)
if name == "is cut short":
    open(file, "a").write('{{"what": "hal')
    sys.exit(3)
if name == "lacks":
    say(outcome="not available", detail="it needs trl, which is not installed")
if name == "falls":
    say(outcome="failed", detail="an error (RuntimeError)")
if name == "works":
    say(outcome="ok", detail="")
"""


@pytest.fixture
def fake(tmp_path: Path) -> str:
    """In Python's place: makes up what each part does."""
    path = tmp_path / "fake"
    path.write_text(FAKE.format(python=sys.executable))
    path.chmod(0o755)
    return str(path)


def parts(*names: str, seconds: float = 30) -> tuple[Part, ...]:
    return tuple(Part(name, "", seconds) for name in (MACHINE, *names))


def on_disk(folder: Path) -> Any:
    return json.loads((folder / "fancy-gpu-9000-x.json").read_text())


def test_each_part_costs_at_most_itself_and_stands_in_the_file_at_once(tmp_path: Path, fake: str) -> None:
    names, seen = ("dies", "is cut short", "lacks", "falls", "works"), list[list[str]]()
    report, path = run(
        tmp_path, parts=parts(*names), python=fake, announce=lambda _: seen.append(list(on_disk(tmp_path)["parts"]))
    )
    assert seen == [[MACHINE, *names[:count]] for count in range(len(names) + 1)]
    outcomes = {name: part.outcome for name, part in report.parts.items()}
    assert outcomes == dict(
        zip((MACHINE, *names), ("ok", "failed", "failed", "not available", "failed", "ok"), strict=True)
    )
    assert report.failed
    # Between the two, Python itself tells where it was.
    assert report.parts["dies"].detail.startswith("last words of dies\nFatal Python error: Segmentation fault")
    assert report.parts["dies"].detail.endswith("\nended by SIGSEGV")
    assert report.parts["is cut short"].detail == "last words of is cut short\nended with exit code 3"
    assert report.parts["lacks"].detail == "it needs trl, which is not installed"
    assert report.parts["falls"].detail == "last words of falls\nan error (RuntimeError)"
    for name in names:
        assert report.parts[name].figures[0] == Figure(f"figure of {name}", 1.5, "ms")
    assert GpuReport.read(path) == report
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fake", "fancy-gpu-9000-x.json", "logs"]
    text = summary(report)
    assert all(name in text for name in names)
    assert "1.5 ms" in text


def test_what_hangs_is_ended_with_all_it_started_and_what_comes_too_late_is_not_begun(
    tmp_path: Path, fake: str
) -> None:
    began = time.monotonic()
    report, _ = run(tmp_path, parts=parts("hangs", "works"), python=fake, minutes=3 / 60, announce=lambda _: None)
    assert time.monotonic() - began < 20
    hung, late = report.parts["hangs"], report.parts["works"]
    assert (hung.outcome, late.outcome) == ("timed out", "timed out")
    assert "its limit" in hung.detail
    assert "no time was left" in late.detail
    assert not late.figures
    child = int(hung.figures[1].value or 0)
    assert (
        not Path(f"/proc/{child}").exists()
        or "Z" in Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
    )


def test_parts_that_are_tried_again_leave_the_others_of_the_same_commit(
    tmp_path: Path, fake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = parts("works", "falls")
    run(tmp_path, parts=known, python=fake, announce=lambda _: None)
    report, _ = run(tmp_path, parts=known, python=fake, only=("works",), announce=lambda _: None)
    assert list(report.parts) == [MACHINE, "works", "falls"]
    monkeypatch.setattr(gpu, "_commit", lambda: "another")
    report, _ = run(tmp_path, parts=known, python=fake, only=("works",), announce=lambda _: None)
    assert list(report.parts) == [MACHINE, "works"]


def test_without_the_device_nothing_is_tried(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    done = command("bench", "gpu", "--device", "cuda:97", "--output", str(tmp_path / "out"))
    assert done.code == 2
    assert "the device 'cuda:97' cannot be used (not available)" in done.err
    assert not list((tmp_path / "out").glob("*.json"))
    with pytest.raises(InvalidInput, match="no part is called sleep; there are machine, kernels"):
        run(tmp_path, only=("sleep",))
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="cannot be written to"):
        run(tmp_path / "file")
    capsys.readouterr()


@pytest.mark.parametrize(
    ("error", "outcome", "detail"),
    [
        (
            ModuleNotFoundError("No module named 'trl'", name="trl"),
            "not available",
            "it needs trl, which is not installed",
        ),
        (
            ModuleNotFoundError("", name="latentbench.gone"),
            "failed",
            "it needs latentbench.gone, which is not installed",
        ),
        (NotAvailable("no device"), "not available", "no device"),
        (CellFailed("2 of 3 tests failed"), "failed", "2 of 3 tests failed (CellFailed)"),
        (
            RuntimeError("CUDA error: an illegal memory access"),
            "failed",
            "CUDA error: an illegal memory access (RuntimeError)",
        ),
        (None, "ok", ""),
    ],
)
def test_a_part_says_how_it_ended(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception | None,
    outcome: str,
    detail: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work(tell: Teller) -> None:
        tell.found("before", 1)
        if error:
            raise error

    monkeypatch.setitem(gpu_parts.WORK, "kernels", work)
    assert gpu_parts.main("kernels", "cpu", str(tmp_path / "told")) == 0
    lines = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert lines[-1] == {"outcome": outcome, "detail": detail}
    assert ("illegal memory access" in capsys.readouterr().err) == isinstance(error, RuntimeError)


def test_every_part_has_something_to_do() -> None:
    assert gpu_parts.WORK.keys() == {part.name for part in PARTS}
    for part in PARTS:
        if part.about.startswith("device tests"):
            assert (CHECKOUT / "tests/device" / f"test_{part.name}.py").is_file()


def test_device_tests_are_told_one_by_one(tmp_path: Path) -> None:
    folder = tmp_path / "tests/device"
    folder.mkdir(parents=True)
    (folder / "conftest.py").write_text((CHECKOUT / "tests/device/conftest.py").read_text())
    (folder / "test_kernels.py").write_text(
        "import pytest\n"
        "def test_right(device, record_property):\n    record_property('error', 0.5)\n    assert device.type == 'cpu'\n"
        "@pytest.mark.slow\ndef test_wrong():\n    assert 1 == 2\n"
        "def test_elsewhere():\n    pytest.skip('needs a GPU')\n"
    )
    (folder / "test_nccl.py").write_text("import surely_nothing\n\ndef test_never():\n    pass\n")
    code = (
        "import pathlib, sys\nimport latentbench.bench.gpu_parts as parts\n"
        f"parts.CHECKOUT = pathlib.Path({str(tmp_path)!r})\n"
        "for name in ('kernels', 'nccl'):\n    parts.main(name, 'cpu', name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment())
    kernels, nccl = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in ("kernels", "nccl")
    )
    assert [(told["what"], told["note"]) for told in kernels[:-1]] == [
        ("test_right: error", ""),
        ("test_right", "passed"),
        ("test_wrong", "failed"),
        ("test_elsewhere", "skipped: needs a GPU"),
    ], done.stdout + done.stderr
    assert kernels[-1]["outcome"] == "failed"
    assert "1 of 2 tests failed: test_wrong" in kernels[-1]["detail"]
    assert nccl == [{"outcome": "not available", "detail": "it needs surely_nothing, which is not installed"}]


def environment() -> dict[str, str]:
    with gpu._surroundings("cuda") as found:
        return found


def test_a_checkout_that_is_not_installed_has_its_plug_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(gpu, "distribution", none)
    (found,) = distributions(path=[gpu._plug_ins(tmp_path)])
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]
    written = {(point.group, point.name, point.value) for point in found.entry_points}
    assert written == {(group, *point) for group, points in project["entry-points"].items() for point in points.items()}
    assert found.version == project["version"]


def test_variables_that_would_change_what_is_measured_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LATENTBENCH_KERNELS", "TRITON_INTERPRET", "RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
        assert name not in environment()
    assert environment()["HF_HUB_OFFLINE"] == "1"


def test_the_page_is_that_of_the_committed_files() -> None:
    assert PAGE.read_text("utf-8") == page(reports(RESULTS)), "run `make gpu-page`"


def test_the_page_holds_every_figure_and_no_dry_run(tmp_path: Path) -> None:
    assert "no figures yet" in page(reports(tmp_path))
    machine = PartReport("ok", 1.0, "", [Figure("device", "Fancy | GPU"), Figure("cuda", "13.0")])
    tests = PartReport(
        "failed",
        9.0,
        "1 of 2 tests failed",
        [Figure("test_a", 0.1, "s", "passed"), Figure("test_b", 1, "s", "failed")],
    )
    timing = PartReport(
        "ok", 2.0, "", [Figure("step", 10.5, "ms", "published: 10.6"), Figure("peak", None, note="too much")]
    )
    made = GpuReport("cuda", False, "abc", "2026-01-01", {MACHINE: machine, "kernels": tests, "train": timing})
    made.write(tmp_path)
    GpuReport("cpu", True, "abc", "2026-01-01", {MACHINE: machine}).write(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    text = page(reports(tmp_path))
    assert "no figures yet" not in text
    assert text.count("## ") == 1
    assert "## Fancy \\| GPU" in text
    assert "| kernels | failed | 9.0 | 1 passed, 1 failed | 1 of 2 tests failed |" in text
    assert "| step | 10.5 ms (published: 10.6) |" in text
    assert "| peak | (too much) |" in text
    assert "test_a" not in text
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InvalidInput, match="is no report"):
        reports(tmp_path)


def test_a_dry_run_measures_in_a_small_size(tmp_path: Path) -> None:
    report, path = run(tmp_path, device="cpu", only=("hierarchical",), announce=lambda _: None)
    assert path.name == "dry-run-cpu.json"
    assert {name: part.outcome for name, part in report.parts.items()} == {MACHINE: "ok", "hierarchical": "ok"}, report
    assert any("training step" in figure.what for figure in report.parts["hierarchical"].figures)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_dry_run_tries_every_part(tmp_path: Path) -> None:
    report, _ = run(tmp_path, device="cpu", minutes=14, announce=lambda _: None)
    assert list(report.parts) == [part.name for part in PARTS]
    assert {name: (part.outcome, part.detail) for name, part in report.parts.items() if part.outcome != "ok"} == {}
    assert all(part.figures for part in report.parts.values())
