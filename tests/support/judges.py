"""A judge behind an endpoint, what it is asked, and its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latentbench.core.paths import Roots
from latentbench.core.protocols import Reply
from latentbench_adapters.judges.openai import OpenAIJudge
from tests.support.chat_server import Answer, said

KEY = "sk-a-secret-that-must-not-be-seen-7391"


def judge(url: str, **options: Any) -> OpenAIJudge:
    return OpenAIJudge(**{"base_url": url, "model": "m", "key_env": "JUDGE_KEY", "retries": 3, "timeout": 5, **options})


def questions(count: int) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": f"question {i}"}] for i in range(count)]


def ask(url: str, count: int, tmp_path: Path, **options: Any) -> list[Reply]:
    return list(judge(url, **options).chat(questions(count), Roots(tmp_path), tmp_path / "cache"))


def echo(number: int, body: Answer) -> Answer:
    return said(f"re {body['messages'][-1]['content']}")


def files_under(folder: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())
