"""Autointerp scores through the command line, with and without a language model as the judge."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentbench.autointerp.scores import AutointerpDetails
from latentbench.metrics.value import MetricValue
from tests.conftest import Command
from tests.support.chat_server import Answer, said, serving
from tests.support.project import Workbench, random_words, write_jsonl

pytestmark = pytest.mark.usefixtures("one_thread")

KEY = "sk-not-to-be-seen-in-any-file-55"
SMALL = {"latents": 6, "explain_examples": 4, "test_examples": 6, "radius": 3}


def prepared(bench: Workbench, **options: Any) -> None:
    """A spec with two domains, the second with texts enough."""
    write_jsonl(bench.root / "data/many.jsonl", random_words(64))
    domain = {"adapter": "files", "path": "data/many.jsonl", "documents": 64, "context": 32}
    bench.spec(dataset__eval__many=domain, metrics=["l0", {"autointerp": {"domain": "many", **SMALL, **options}}])


def scores(bench: Workbench) -> dict[str, MetricValue]:
    (record,) = bench.records().values()
    assert record.status == "ok", record.error
    found = [value for value in record.metrics if value.id.startswith("autointerp.")]
    return {f"{value.id}@{value.params.get('budget')}": value for value in found}


def stored_details(bench: Workbench) -> AutointerpDetails:
    """What the store keeps for reports."""
    texts = [path.read_text() for path in (bench.root / "results/store").rglob("*.json")]
    (found,) = [d for text in texts if (d := _details(json.loads(text)))]
    return AutointerpDetails.model_validate(found)


def _details(value: Any) -> Any:
    if not isinstance(value, dict):
        return None
    if {"judge", "budgets", "documents"} <= value.keys():
        return value
    return next(filter(None, map(_details, value.values())), None)


def test_a_row_has_a_score_offline(bench: Workbench, command: Command) -> None:
    prepared(bench, budgets=[2])
    done = command("run", "mine")
    assert done.code == 0, done.err
    found = scores(bench)
    assert {value.domain for value in found.values()} == {"many"}
    assert {value.params["judge"] for value in found.values()} == {"lexical"}
    for budget in (None, 2):
        score = found[f"autointerp.score@{budget}"]
        assert score.value is not None
        assert 0 <= score.value <= 1
        assert 0 < (found[f"autointerp.coverage@{budget}"].value or 0) <= 1
    details = stored_details(bench)
    shown = [latent.score for latent in details.budgets[0].latents if latent.score is not None]
    assert found["autointerp.score@None"].value == pytest.approx(np.mean(shown))
    before = bench.records()
    assert command("run", "mine").code == 0
    assert bench.records() == before


def chat(number: int, body: Answer) -> Answer:
    system, user = (message["content"] for message in body["messages"])
    if '"explanation"' in system:
        return said('{"explanation": "words"}')
    return said(json.dumps({"answers": [len(line) % 2 for line in user.split("\n")[2:]]}))


def test_a_chat_model_judges_and_its_key_stays_out_of_every_file(
    bench: Workbench, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving(chat) as server:
        judge = {"adapter": "openai", "base_url": server.url, "model": "m", "key_env": "JUDGE_KEY"}
        prepared(bench, judge=judge)
        planned = command("plan", "mine")
        assert "at most 24 requests to m@127.0.0.1" in planned.out + planned.err
        assert server.bodies == []
        done = command("run", "mine")
        assert done.code == 0, done.err
    found = scores(bench)
    assert found["autointerp.judge_failures@None"].value == 0
    assert found["autointerp.score@None"].params["judge"] == f"m@127.0.0.1:{server.port}"
    assert server.keys == {f"Bearer {KEY}"}
    written = b"".join(path.read_bytes() for path in bench.root.rglob("*") if path.is_file())
    assert KEY.encode() not in written
    assert KEY not in done.out + done.err


def test_a_budget_that_does_not_suffice_fails_the_cell_with_what_to_do(bench: Workbench, command: Command) -> None:
    with serving(chat) as server:
        judge = {"adapter": "openai", "base_url": server.url, "model": "m"}
        prepared(bench, judge=judge, max_requests=3)
        assert command("run", "mine").code != 0
        assert len(server.bodies) == 3
    (record,) = bench.records().values()
    assert record.error is not None
    assert "stopped after 3 requests" in record.error.message


def test_an_endpoint_that_dies_half_way_leaves_the_study_unfinished(
    bench: Workbench, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked again, it gets only what was not answered, and the numbers are those of an undisturbed run."""
    with serving(chat) as server:
        judge = {"adapter": "openai", "base_url": server.url, "model": "m", "retries": 0}
        prepared(bench, judge=judge)
        assert command("run", "mine", "--results", "undisturbed").code == 0
        everything = len(server.bodies)
        monkeypatch.setattr(
            server, "script", lambda n, body: {"hang_up": True} if n >= everything + 9 else chat(n, body)
        )
        done = command("run", "mine")
        assert done.code != 0
        (record,) = bench.records().values()
        assert record.error is not None
        assert "run again to ask only the rest" in record.error.message
        kept = len(list((bench.root / "results/store/cache").rglob("*.json")))
        assert 0 < kept <= 9
        monkeypatch.setattr(server, "script", chat)
        asked = len(server.bodies)
        assert command("run", "mine").code == 0
        assert len(server.bodies) - asked == everything - kept
    undisturbed = bench.records("undisturbed")
    assert [r.metrics for r in bench.records().values()] == [r.metrics for r in undisturbed.values()]


@contextmanager
def transformers_serving(folder: Path, log: Path) -> Iterator[str]:
    """`transformers serve` on a free port, until the block ends."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as output:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([*command, str(folder)], stdout=output, stderr=output, env=environment)
    try:
        for _ in range(600):
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            if process.poll() is not None:
                pytest.skip(f"transformers serve does not start here: {log.read_text()[-500:]}")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
def test_a_real_server_with_a_model_that_answers_nonsense(bench: Workbench, command: Command, tmp_path: Path) -> None:
    """The tiny random model cannot answer; every latent is excluded, every failure counted, and the row says so."""
    bench.write("model/chat_template.jinja", "{% for m in messages %}{{ m['content'] }} {% endfor %}")
    with transformers_serving(bench.root / "model", tmp_path / "serve.log") as url:
        judge = {"adapter": "openai", "base_url": url, "model": str(bench.root / "model"), "max_tokens": 8}
        prepared(bench, judge=judge)
        done = command("run", "mine")
    assert done.code == 0, done.err
    found = scores(bench)
    assert found["autointerp.score@None"].value is None
    assert found["autointerp.judge_failures@None"].value == 1
    (record,) = bench.records().values()
    assert any("failed or could not be read" in warning for warning in record.warnings)
    asked = [latent for latent in stored_details(bench).budgets[0].latents if latent.requests]
    assert len(asked) >= 3
    unreadable = "1 of 1 requests to the judge failed, first: the answer holds no explanation"
    assert {(latent.failures, latent.excluded) for latent in asked} == {(1, unreadable)}
    replies = [json.loads(path.read_text())["reply"] for path in (bench.root / "results/store/cache").rglob("*.json")]
    assert len(replies) == len(asked)
    assert all(reply["prompt_tokens"] > 0 and reply["reply_tokens"] > 0 for reply in replies)
