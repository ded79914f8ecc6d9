"""Whatever a task file says: nothing in it is run, and all that comes of it is a task or one error with its place."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from latentbench.core.errors import LatentbenchError, NotAvailable
from latentbench.core.paths import Roots
from latentbench.reasoning.task_suite import TaskOptions
from latentbench_adapters.lm_eval import catalogue
from latentbench_adapters.lm_eval.task_file import RefusedTask, read_task
from latentbench_adapters.lm_eval.tasks import LmEvalProblems, _refused, load, task_identity
from tests.support.hostile_tasks import SOUND, hostile_tasks, lay_traps, sound_text

Count = Callable[[str, object], None]


@dataclass(frozen=True)
class Trap:
    """A project where code of any attack would leave a trace."""

    roots: Roots
    outside: Path
    canary: Path

    def outcome(self, text: str) -> str:
        """`refused` by what `validate` reads, `not loaded`, `not scored` or `scored`; anything else raised is a bug."""
        (self.roots.project / "task.yaml").write_text(text, "utf-8", errors="surrogatepass")
        try:
            read_task("task.yaml", self.roots)
            task_identity("task.yaml", self.roots)
            assert catalogue.longest_answer("task.yaml", self.roots) != 0
            assert not catalogue.tests_on("task.yaml", {"hub": "x/y", "split": "test"}, self.roots)
        except LatentbenchError as error:
            problems = error.problems if isinstance(error, RefusedTask) else ()
            return "refused" if all(problem.line >= 1 for problem in problems) else "refused nowhere"
        try:
            tasks = load(
                "task.yaml", TaskOptions(limit=2), self.roots, self.roots.project / "cache", lambda *a, **k: ""
            )
        except LatentbenchError:
            return "not loaded"
        return "scored" if all(map(scored, tasks)) else "not scored"

    def sprung(self) -> str:
        """What was run."""
        return self.canary.read_text() if self.canary.exists() else ""


def scored(problems: LmEvalProblems) -> bool:
    """Whether answers to a task can be scored."""
    answer = "so 2" if problems.generative else (-1.0, True)
    try:
        assert problems.documents_digest
        problems.scores([[answer] * len(group) for group in problems.groups])
    except LatentbenchError:
        return False
    return True


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trap:
    project, outside, canary = tmp_path / "project", tmp_path / "outside", tmp_path / "canary"
    roots = lay_traps(project, outside, canary)
    monkeypatch.chdir(project)  # where a name could be taken for a folder
    monkeypatch.syspath_prepend(str(project))
    return Trap(roots, outside, canary)


def fuzz(trap: Trap, examples: int, count: Count) -> None:
    """Tries that many hostile task files."""
    seen: Counter[str] = Counter()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(hostile_tasks(trap.outside, trap.canary))
    def every(text: str) -> None:
        started = time.perf_counter()
        seen[trap.outcome(text)] += 1
        assert not trap.sprung(), text
        assert time.perf_counter() - started < 30, text

    every()
    count("task files", sum(seen.values()))
    for what, times in sorted(seen.items()):
        count(what, times)
    assert not seen["refused nowhere"]
    assert sum(seen.values()) >= examples
    assert seen["refused"] > examples / 4
    assert seen["scored"] > examples / 100  # they reach the end of the way, not only its beginning


def test_hostile_task_files_run_nothing(trap: Trap, record_property: Count) -> None:
    fuzz(trap, 200, record_property)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_thousand_hostile_task_files(trap: Trap, record_property: Count, request: pytest.FixtureRequest) -> None:
    fuzz(trap, int(request.config.getoption("--tasks", default=2000)), record_property)


@pytest.mark.parametrize("task", SOUND, ids=[task["task"] for task in SOUND])
def test_what_attacks_are_made_of_is_sound(trap: Trap, task: dict[str, object]) -> None:
    assert trap.outcome(sound_text(task)) == "scored"


def test_what_lm_eval_falls_back_to_is_out_of_reach(trap: Trap, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with a hole in the list: first the attack as lm-eval alone has it, then the guard."""
    from lm_eval.api.registry import get_metric

    for name in ("./evil", "evil", str(trap.outside / "evil")):
        get_metric(name)
        assert trap.sprung()
        trap.canary.unlink()
        for module in [module for module in sys.modules if "evil" in module]:
            del sys.modules[module]  # so that it would be run again
        config = yaml.safe_load(sound_text(SOUND[0], metric_list=[{"metric": name}]))
        config["dataset_kwargs"] = {"data_files": {"test": str(trap.roots.project / "data/rows.jsonl")}}
        monkeypatch.setattr("latentbench_adapters.lm_eval.tasks.read_task", lambda *_, config=config: config)
        with pytest.raises(NotAvailable):
            load("task.yaml", TaskOptions(), trap.roots, trap.roots.project / "cache", lambda *a, **k: "")
        assert not trap.sprung()
    assert sys.modules["evaluate"] is not None  # others may use it


def test_code_that_a_shipped_task_fetches_is_refused_by_name(trap: Trap) -> None:
    with pytest.raises(NotAvailable, match="code from elsewhere"), _refused("x", "cannot load"):
        import evaluate  # noqa: F401
