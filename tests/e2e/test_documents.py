"""What the pages show is executed: their specs are valid, their commands run, their code can be imported.

Commands run in a copy of the project. What would compute for minutes is planned instead, and its options are read; what is
set up outside of latentbench (environments, `make`) is looked up. A command of another kind fails here until it is known.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from latentbench.spec.checks import check
from latentbench.spec.project import find_project, load_specs
from tests.support.project import Done, Workbench, run
from tests.unit.leaderboard_factory import Planted, write

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/extending.md", "docs/tools.md", "specs/README.md")
RUN = ("README.md", "CONTRIBUTING.md")
"""Pages whose commands are run; those of the others take results of other tools, or an account."""
COMPUTING = {"run": "plan"}
"""Verbs that compute, and the verb that tells what they would do. The fault suite and `make demo` run them."""
FRAGMENTS: dict[str, str] = {}
"""YAML blocks that are no whole specs, by their first line, with what makes one of them."""
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"(?<!`)`((?:latentbench|python\s+-m) [^`]+)`(?!`)")


def text_of(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def blocks(page: str, *languages: str) -> list[str]:
    return [content for language, content in FENCED.findall(text_of(page)) if language in languages]


def commands(page: str) -> Iterator[list[str]]:
    """The words of every command in a page's shell blocks, without prompts and comments."""
    for block in blocks(page, "console", "bash", "sh", "shell"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.removeprefix("$ ").split(" && "):
                if words := shlex.split(part, comments=True):
                    yield words


def inline(page: str) -> list[list[str]]:
    """The words of every command in the running text."""
    return [shlex.split(" ".join(found.split())) for found in INLINE.findall(FENCED.sub("", text_of(page)))]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    """The specs of this project, and planted records of the cells that pages ask for."""
    shutil.copytree(ROOT / "specs", tmp_path / "project/specs")
    made = Workbench(tmp_path / "project")
    for number, label in enumerate(("sae.k=8", "sae.k=16", "sae.k=32")):
        write(made.root / "results", Planted(name="mine/topk", label=label, error=0.3 - 0.1 * number))
        write(made.root / "results/demo", Planted(label=label, error=0.3 - 0.1 * number))
    monkeypatch.chdir(made.root)
    monkeypatch.delenv("LATENTBENCH_ALLOW", raising=False)
    return made


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command line, in this process."""

    def called(*arguments: str) -> Done:
        capsys.readouterr()
        code = run(list(arguments))
        return Done(code, *capsys.readouterr())

    return called


@pytest.mark.parametrize("page", PAGES)
def test_every_spec_that_a_page_shows_is_valid(page: str, bench: Workbench) -> None:
    for block in blocks(page, "yaml", "yml"):
        first = block.splitlines()[0]
        name = re.match(r"# (specs/\S+\.yaml)", first)
        path = bench.write(name[1] if name else "specs/mine/shown.yaml", block + FRAGMENTS.get(first, ""))
        project = find_project(start=bench.root)
        (spec,) = load_specs(project, [str(path)])
        assert check(spec, project.roots) == []
        for cells in re.findall(r"= (\d+) cells", block):
            assert len(spec.cells) == int(cells)


@pytest.mark.parametrize("page", RUN)
def test_every_command_that_a_page_shows_runs(page: str, bench: Workbench, call: Callable[..., Done]) -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", text_of("Makefile"), re.MULTILINE))
    about_files = (words for words in inline(page) if any(word.endswith(".yaml") for word in words))
    for words in (*commands(page), *about_files):
        name, arguments = Path(words[0]).name, words[1:]
        if name == "latentbench":
            if arguments[0] in COMPUTING:
                assert_ends_well(call(*arguments, "--help"), words)
                arguments[0] = COMPUTING[arguments[0]]
            assert_ends_well(call(*arguments), words)
        elif name == "make":
            assert targets.issuperset(arguments)
        elif name == "pip":
            assert arguments[0] == "install"
            assert all((ROOT / word).exists() for word in arguments if word.endswith(".txt"))
        else:
            assert name.startswith("python"), words
            assert arguments[:2] in (["-m", "venv"], ["-m", "pytest"]), words


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_a_page_mentions_has_these_options(page: str, call: Callable[..., Done]) -> None:
    for words in (*inline(page), *(words for words in commands(page) if words[0] == "latentbench")):
        if words[0] == "latentbench":
            assert_ends_well(call(*words[1:], "--help"), words)
        else:
            assert find_spec(words[2]) is not None, words


@pytest.mark.parametrize("page", PAGES)
def test_all_code_that_a_page_shows_can_be_imported(page: str, tmp_path: Path) -> None:
    """As files of a package, in the order of the page; what it does is tested where a spec runs with it."""
    names = []
    for number, block in enumerate(blocks(page, "python", "py")):
        named = re.match(r"# (\w+)/(\w+)\.py\n", block)
        package, module = named.groups() if named else ("shown", f"block{number}")
        names.append(f"{package}.{module}")
        path = tmp_path / package / f"{module}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(block, "utf-8")
    if names:
        paths = os.pathsep.join(map(str, (tmp_path, ROOT / "harness", ROOT / "adapters")))
        done = subprocess.run(
            [sys.executable, "-c", f"import {', '.join(names)}"],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


def test_pages_show_something() -> None:
    """So that a page whose blocks are written otherwise does not pass for want of any."""
    assert len(list(commands("README.md"))) >= 10
    assert len(inline("CONTRIBUTING.md")) >= 4
    assert blocks("README.md", "yaml")
    assert blocks("CONTRIBUTING.md", "python")
    fenced = {language for page in PAGES for language, _ in FENCED.findall(text_of(page))}
    assert fenced <= {"", "yaml", "console", "python", "toml"}


def assert_ends_well(done: Done, words: list[str]) -> None:
    assert done.code == 0, f"{shlex.join(words)}: {done.out[-2000:]}{done.err}"
