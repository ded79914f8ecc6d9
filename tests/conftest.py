"""Fixtures that several kinds of tests share."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.project import Done, Workbench, documents, run, write_jsonl

# A suite that a shell started in the background ignores Ctrl-C, and so would the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    # Threads of several processes that outnumber the cores wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))

Command = Callable[..., Done]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random language model, made once."""
    from tests.support.tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def bench(tmp_path: Path, tiny_model: Path) -> Workbench:
    """A project with a model and data, without specs."""
    return furnish(tmp_path / "project", tiny_model)


@pytest.fixture
def command(bench: Workbench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line, run in this process inside of `bench`."""
    monkeypatch.chdir(bench.root)
    monkeypatch.delenv("LATENTBENCH_ALLOW", raising=False)

    def call(*arguments: str) -> Done:
        capsys.readouterr()
        code = run(list(arguments))
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return call


def furnish(root: Path, model: Path) -> Workbench:
    """A project folder with the model and texts that the shared experiment names."""
    shutil.copytree(model, root / "model")
    (root / "specs").mkdir()
    write_jsonl(root / "data/train.jsonl", documents(80))
    write_jsonl(root / "data/eval.jsonl", documents(8, start=500))
    return Workbench(root)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tensors too small to share: threads that wait for each other would only slow the test."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
