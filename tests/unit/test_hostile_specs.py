"""Whatever a spec says, reading and planning it gives a plan or problems that are located, on one line and free of escapes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from latentbench.core.errors import LatentbenchError, SpecError
from latentbench.plan.plan import make_plan
from latentbench.spec.checks import check
from latentbench.spec.project import Project, read_specs
from latentbench.store.store import Store
from tests.conftest import Command
from tests.support.hostile import ROOT, malformed
from tests.support.project import Workbench

Count = Callable[[str, object], None]
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def outcome(project: Project, text: str) -> str:
    """`read`, `planned` or `refused`; whatever else is raised is the bug that these tests look for."""
    path = project.specs / "fuzzed/spec.yaml"
    path.write_text(text.replace("../../_base", "../_base"), "utf-8", errors="surrogatepass")
    specs, problems = read_specs(project, [path])
    if not problems:
        problems = [problem for spec in specs for problem in check(spec, project.roots)]
    for problem in problems:
        assert not UNSAFE.search(str(problem)), str(problem)
        assert "\n" not in str(problem)
        assert problem.line >= 1
    if problems:
        return "refused"
    if sum(len(spec.cells) for spec in specs) > 50:
        return "read"
    try:
        make_plan(specs, Store(project.store), project.results, project.roots)
    except LatentbenchError:
        return "refused"
    return "planned"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The shipped project, with fuzzed specs beside the shipped ones through links."""
    root = tmp_path_factory.mktemp("fuzzed")
    (root / "specs/fuzzed").mkdir(parents=True)
    for path in (ROOT / "specs").iterdir():
        if path.is_dir():
            _copy(path, root / "specs" / path.name)
    return Project(root, root / "results", root / "results/store")


def _copy(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_dir():
            _copy(path, target / path.name)
        else:
            (target / path.name).write_bytes(path.read_bytes())


def fuzz(project: Project, examples: int, count: Count) -> None:
    """Tries that many malformed specs."""
    seen: Counter[str] = Counter()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(malformed)
    def every(text: str) -> None:
        seen[outcome(project, text)] += 1

    every()
    count("specs", sum(seen.values()))
    for what, times in sorted(seen.items()):
        count(what, times)
    assert sum(seen.values()) >= examples
    assert seen["refused"] > examples / 4
    assert seen["planned"] > examples / 100  # they reach the end of the way, not only its beginning


def test_malformed_specs_are_refused_without_a_traceback(project: Project, record_property: Count) -> None:
    fuzz(project, 300, record_property)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_malformed_specs(project: Project, record_property: Count, request: pytest.FixtureRequest) -> None:
    fuzz(project, int(request.config.getoption("--specs", default=10_000)), record_property)


TRAVERSALS = [
    "../../etc/passwd",
    "/etc/passwd",
    "~/x",
    "a/../../..",
    "./link/passwd",
    "\x00",
    "file:///etc/passwd",
    "a" * 9000,
]
NAMES = {
    "model id": {"model": {"adapter": "transformers", "id": "{}"}},
    "texts": {"dataset__train__path": "{}"},
    "evaluation texts": {"dataset__eval__lab__path": "{}"},
    "loaded SAE": {"sae": {"load": {"adapter": "latentbench", "path": "{}"}}},
    "parent": {"extends": "{}"},
    "name": {"name": "{}"},
    "layer": {"layer": "{}"},
    "metric": {"metrics": ["{}"]},
    "case": {"cases": [{"label": "{}"}]},
}


@pytest.mark.parametrize("what", NAMES)
@pytest.mark.parametrize("path", TRAVERSALS, ids=[repr(path)[:20] for path in TRAVERSALS])
def test_no_path_leaves_the_project(bench: Workbench, command: Command, what: str, path: str) -> None:
    (bench.root / "link").symlink_to("/etc")
    changes = {key: _filled(value, path) for key, value in NAMES[what].items()}
    bench.spec(**changes)
    for verb in ("validate", "plan"):
        done = command(verb)
        assert done.code == 2, done.out
        assert "Traceback" not in done.err + done.out
        assert "root:" not in done.err + done.out
        assert not UNSAFE.search((done.err + done.out).replace("\r", ""))


def _filled(value: object, path: str) -> object:
    if isinstance(value, dict):
        return {key: _filled(inner, path) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, path) for inner in value]
    return path if value == "{}" else value


def test_specs_that_are_links_out_of_the_project_show_nothing_of_where_they_lead(
    bench: Workbench, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("password: hunter2\n")
    (bench.root / "specs/linked.yaml").symlink_to(tmp_path / "secret")
    done = command("validate", "linked")
    assert done.code == 2
    assert "hunter2" not in done.out + done.err


@pytest.mark.parametrize("depth", [50, 5000, 200_000])
def test_nesting_without_end_is_one_problem(bench: Workbench, command: Command, depth: int) -> None:
    for text in ("x: " + "[" * depth, "x: " + "{a: " * depth, "- " * depth, "? " * depth, "!!a " * depth):
        bench.write("specs/deep.yaml", text)
        done = command("validate", "deep")
        assert done.code == 2
        assert "Traceback" not in done.err
        assert len(done.err) < 2000


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(50)),
        "a: &a {x: y}\nb: {<<: *a, c: *a}\n" * 200,
        "".join(f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 9) if i else 'x'}]\n" for i in range(20)),
        "&a [*a]",
        "seeds: [" + "9" * 100_000 + "]",
        "seeds: [" + ",".join(map(str, range(50_000))) + "]",
        "matrix: {" + ", ".join(f"a{i}: [1, 2]" for i in range(60)) + "}",
        "x: " + "'" * 100_000,
    ],
)
def test_bombs_are_refused_in_no_time(bench: Workbench, command: Command, text: str) -> None:
    import time

    bench.write("specs/bomb.yaml", text)
    started = time.perf_counter()
    done = command("validate", "bomb")
    assert done.code == 2
    assert "Traceback" not in done.err
    assert time.perf_counter() - started < 20


def test_what_a_spec_says_cannot_steer_the_terminal(bench: Workbench, command: Command) -> None:
    escape = "\x1b]0;owned\x07\x1b[2J\x9b31m"
    bench.spec(description=escape, sae={"variant": escape}, **{f"matrix__{escape}": [1]})
    for verb in ("validate", "plan", "run", "list"):
        done = command(verb)
        assert not UNSAFE.search(done.out + done.err), verb
    with pytest.raises(SpecError, match=r"\\u001b"):
        raise SpecError(read_specs(bench.project, [bench.root / "specs/mine.yaml"])[1])


def test_secrets_of_the_environment_are_nowhere(
    bench: Workbench, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {
        "OPENAI_API_KEY": "sk-1234567890abcdef",
        "HF_TOKEN": "hf_secretsecretsecret",
        "MY_KEY": "k3y-k3y-k3y-k3y",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    bench.spec(description="${MY_KEY} $OPENAI_API_KEY {HF_TOKEN}")
    bench.spec("broken", model={"adapter": "huggingface", "id": "${HF_TOKEN}"})
    said = [command(*verb) for verb in (("validate",), ("plan", "mine"), ("run", "mine", "--executor", "inline"))]
    text = "".join(done.out + done.err for done in said)
    files = b"".join(path.read_bytes() for path in (bench.root / "results").rglob("*") if path.is_file())
    assert said[-1].code == 0
    for value in secrets.values():
        assert value not in text
        assert value.encode() not in files
