"""Whatever the hub answers, or does not: a commit or one sentence, and a run computes what needs nothing from it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from latentbench.core import hub
from latentbench.core.errors import Unpinnable
from latentbench.doctor import environment
from tests.conftest import Command
from tests.support.hub_server import BODIES, COMMIT, Hub, serving, use
from tests.support.project import Workbench


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub on this machine, with an empty cache beside it."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "odd-token-42")
    hub._asked.cache_clear()
    with serving() as served:
        use(served.url, monkeypatch)
        yield served
    hub._asked.cache_clear()


def nowhere() -> str:
    """An address at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def refusal(name: str, revision: str | None = None) -> str:
    with pytest.raises(Unpinnable) as caught:
        hub.resolved_commit("model", f"a/{name}", revision)
    said = str(caught.value)
    assert said.startswith(f"the revision {revision or 'main'!r} of the model 'a/{name}' cannot be pinned: ")
    assert "\n" not in said
    assert len(said) < 700
    assert "odd-token" not in said
    return said


def test_a_branch_is_pinned_to_the_commit_that_the_hub_names(server: Hub) -> None:
    assert hub.resolved_commit("model", "a/sound", None) == COMMIT
    assert hub.resolved_commit("dataset", "a/sound", "v1") == COMMIT
    assert server.asked == ["/api/models/a/sound", "/api/datasets/a/sound/revision/v1"]


@pytest.mark.parametrize("name", [*(name for name in BODIES if name != "sound"), "hangs-up"])
def test_every_other_answer_is_one_sentence(server: Hub, name: str) -> None:
    said = refusal(name)
    hidden = name in ("absent", "private", "gated", "no-revision", "disabled")
    assert ("check its name and revision" in said) == hidden
    assert ("go online once" in said) != hidden


def test_a_hub_that_echoes_the_token_does_not_get_it_into_a_message(server: Hub) -> None:
    assert "[secret]" in refusal("echo")


def test_a_hub_that_does_not_answer_is_given_up(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_PATIENCE", 0.3)
    started = time.monotonic()
    assert "ReadTimeout" in refusal("silent")
    assert time.monotonic() - started < 2.5


def test_a_hub_out_of_reach_is_asked_once(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_REMEMBERED", 1e9)
    use(nowhere(), monkeypatch)
    first = refusal("sound")
    assert "ConnectError" in first
    use(server.url, monkeypatch)
    assert refusal("sound") == first
    assert server.asked == []


def test_a_machine_that_is_told_to_stay_offline_says_so(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal("sound")
    assert server.asked == []


# -- doctor -----------------------------------------------------------------------------------------------------------


def test_doctor_says_online_only_of_a_hub_that_answered(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment._hub().detail.startswith("online, it answered")
    use(nowhere(), monkeypatch)
    assert environment._hub().detail.startswith("unreachable (the hub: ")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert environment._hub().detail.startswith("offline, because HF_HUB_OFFLINE is set")


def test_doctor_waits_for_a_hub_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_PATIENCE", 0.3)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        use(f"http://127.0.0.1:{mute.getsockname()[1]}", monkeypatch)
        started = time.monotonic()
        found = environment._hub()
    assert found.passed is None
    assert found.detail.startswith("unreachable")
    assert time.monotonic() - started < 2.5


# -- runs -------------------------------------------------------------------------------------------------------------

RUN = ("run", "--executor", "inline", "--device", "cpu")


def test_a_spec_that_cannot_be_pinned_costs_only_its_own_cells(
    server: Hub, bench: Workbench, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(nowhere(), monkeypatch)
    bench.spec("good")
    bench.spec("mixed", cases=[{"label": "here"}, {"label": "far", "model": {"id": "a/sound"}}], seeds=[0, 1])
    done = command(*RUN, "good", "mixed", "--json")
    assert done.code == 3
    assert "Traceback" not in done.err
    told = json.loads(done.out)
    assert told["unfinished"].keys() == {"mixed[far][seed=0]", "mixed[far][seed=1]"}
    assert "cannot be pinned" in told["unfinished"]["mixed[far][seed=0]"]
    assert {name: record.status for name, record in bench.records().items()} == {
        "good[][0]": "ok",
        "mixed[here][0]": "ok",
        "mixed[here][1]": "ok",
    }
    done = command(*RUN, "good", "mixed")
    assert done.code == 3
    assert "3 of 5 cells complete" in " ".join(done.err.split())
    assert command(*RUN, "mixed", "--filter", "here").code == 0
    assert command("plan").code == 0, "a plan asks nobody"


def test_a_spec_that_cannot_be_pinned_alone_is_refused(
    server: Hub, bench: Workbench, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(nowhere(), monkeypatch)
    bench.spec("far", model__id="a/sound", seeds=[0, 1, 2])
    done = command(*RUN, "far")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert done.err.startswith("error: the revision 'main' of the model 'a/sound' cannot be pinned: ")
    assert bench.records() == {}


def test_a_name_that_leads_nowhere_is_still_told_with_its_place(bench: Workbench, command: Command) -> None:
    bench.spec("wrong", model__id="./absent")
    bench.spec("outside", model__id="/etc")
    done = command(*RUN)
    assert done.code == 2
    assert "specs/wrong.yaml:2:3: model: " in done.err
    assert "specs/outside.yaml:2:3: model: " in done.err
