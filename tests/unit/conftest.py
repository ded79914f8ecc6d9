"""What several kinds of unit tests share."""

from __future__ import annotations

import pytest

from tests.support.judges import KEY


@pytest.fixture
def judge_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of judges behind an endpoint is set."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
