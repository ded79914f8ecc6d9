"""Judges behind an endpoint, killed or misunderstood: nothing that was answered is asked again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latentbench.autointerp.metric import Autointerp
from tests.support.chat_server import Answer, Script, said, serving
from tests.support.judges import KEY, echo, files_under, judge
from tests.support.labs import fires_on, lab_of, token_sets

pytestmark = pytest.mark.usefixtures("judge_key")


_CHAT = """
import sys
from pathlib import Path
from latentbench_adapters.judges.openai import OpenAIJudge
from latentbench.core.paths import Roots
judge = OpenAIJudge(base_url=sys.argv[1], model="m", key_env="JUDGE_KEY", retries=3, timeout=5, concurrency=2)
folder = Path(sys.argv[2])
requests = [[{"role": "user", "content": f"question {i}"}] for i in range(40)]
print([reply.text for reply in judge.chat(requests, Roots(folder), folder / "cache")])
"""

_STUDY = """
import sys
from pathlib import Path
import torch
from latentbench_adapters.judges.openai import OpenAIJudge
from latentbench.autointerp.metric import Autointerp
from tests.support.labs import fires_on, lab_of, token_sets
torch.set_num_threads(1)
judge = OpenAIJudge(base_url=sys.argv[1], model="m", key_env="JUDGE_KEY", concurrency=2)
found = Autointerp(latents=8, judge=judge).run(lab_of(Path(sys.argv[2]), 8, fires_on(token_sets(8))))
print(sorted((name, values.tolist()) for name, values in found.statistics["lab"].items()))
"""


def helpful(number: int, body: Answer) -> Answer:
    """Answers every question, by the length of the excerpt."""
    system, user = (message["content"] for message in body["messages"])
    if '"explanation"' in system:
        return said('Sure! {"explanation": "words"}')
    lines = user.split("\n")[2:]
    return said(f"<think>hm {{</think>```json\n{json.dumps({'answers': [len(line) % 2 for line in lines]})}\n```")


def start(code: str, url: str, folder: Path) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", code, url, str(folder)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("code", "requests", "answers"),
    [
        pytest.param(_CHAT, 40, echo, id="a chat"),
        pytest.param(_STUDY, 8 * 9, helpful, id="a study", marks=pytest.mark.slow),
    ],
)
def test_work_killed_half_way_repeats_no_request_that_was_answered(
    tmp_path: Path, code: str, requests: int, answers: Script
) -> None:
    with serving(lambda number, body: {**answers(number, body), "delay": 0.05}) as server:
        process = start(code, server.url, tmp_path)
        while len(server.bodies) < 20:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        answered, before = len(list((tmp_path / "cache").rglob("*.json"))), len(server.bodies)
        server.script = answers
        out, err = start(code, server.url, tmp_path).communicate(timeout=120)
        assert out.startswith("["), err
        assert 15 < answered <= before
        assert len(server.bodies) - before == requests - answered
        assert len({json.dumps(body, sort_keys=True) for body in server.bodies}) == requests
        assert start(code, server.url, tmp_path).communicate(timeout=120)[0] == out
        assert len(server.bodies) - before == requests - answered
    assert KEY not in files_under(tmp_path) + out + err


def test_unreadable_answers_are_counted_from_transcripts_alike(tmp_path: Path) -> None:
    """Every third answer is adversarial; the failures are the same when everything comes from transcripts."""
    adversarial = [
        "1,0,1",
        '{"answers": [1]}',
        '{"answers": [0,1]}{"answers": [1,0]}',
        '{"answers": [2,2,2,2,2,2,2,2]}',
    ]

    def script(number: int, body: Answer) -> Answer:
        if '"answers"' in body["messages"][0]["content"] and number % 3 == 0:
            return said(adversarial[number // 3 % len(adversarial)])
        return helpful(number, body)

    with serving(script) as server:
        metric = Autointerp(latents=4, judge=judge(server.url, concurrency=1))
        first, second = (metric.run(lab_of(tmp_path, 4, fires_on(token_sets(4)))) for _ in range(2))
    assert len(server.bodies) == 4 * 9
    assert first.details == second.details
    assert first.statistics["lab"]["autointerp.failures"].sum() == sum(n % 3 == 0 for n in range(4, 36))
    assert first.statistics["lab"]["autointerp.requests"].sum() == 36


def test_an_absurd_probability_costs_one_reply_and_not_the_study(tmp_path: Path) -> None:
    def script(number: int, body: Answer) -> Answer:
        answer = json.loads(helpful(number, body)["body"])
        text = answer["choices"][0]["message"]["content"]
        steps = [{"token": c, "logprob": 0, "top_logprobs": [{"token": c, "logprob": 0}]} for c in text]
        if number == 7:
            steps[0]["top_logprobs"] = [{"token": "1", "logprob": 1e9}]
        answer["choices"][0]["logprobs"] = {"content": steps}
        return {"body": json.dumps(answer)}

    with serving(script) as server:
        counting = judge(server.url, concurrency=1, probabilities=True, retries=0, unanswered="count")
        found = Autointerp(latents=4, judge=counting).run(lab_of(tmp_path, 4, fires_on(token_sets(4))))
        assert found.statistics["lab"]["autointerp.failures"].sum() == 1
        asked = len(server.bodies)
        failing = judge(server.url, concurrency=1, probabilities=True, retries=0)
        again = Autointerp(latents=4, judge=failing).run(lab_of(tmp_path, 4, fires_on(token_sets(4))))
        assert again.statistics["lab"]["autointerp.failures"].sum() == 0
    assert len(server.bodies) == asked + 1
