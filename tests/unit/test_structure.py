"""How the parts lean on each other, and what reading verbs may import. The first is read from the source; nothing is run.

The rooms and their order stand in one place, the docstring of `harness/latentbench/__init__.py`.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

from latentbench.core.plugins import GROUPS
from tests.support.project import Workbench
from tests.unit.leaderboard_factory import Planted, write

ROOT = Path(__file__).parents[2]
SOURCES = {"latentbench": ROOT / "harness", "latentbench_adapters": ROOT / "adapters"}
MODULES = {
    ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
    for package, root in SOURCES.items()
    for path in sorted((root / package).rglob("*.py"))
}
LONGEST = 560
"""Lines of a file that somebody can still read in one go."""


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text("utf-8"))


def imported(module: str) -> Iterator[str]:
    """Modules of ours that a module imports, wherever in it that stands: at its top, in a function, or for types alone.

    A package that a module stands in is loaded before it, which is no choice of the module's and not counted.
    """
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else str(node.module) for name in names)


@cache
def graph() -> nx.DiGraph:
    made = nx.DiGraph()
    for name in MODULES:
        made.add_edges_from((name, other) for other in imported(name) if other in MODULES and other != name)
    return made


def listed(package: str) -> list[str]:
    """The parts of a package in the order in which its docstring lists them."""
    return re.findall(r"^    (\w+)  +\S", ast.get_docstring(tree(package)) or "", re.MULTILINE)


def parts(package: str) -> set[str]:
    """Modules and packages directly in a package."""
    return {name.split(".")[1] for name in MODULES if name.startswith(f"{package}.")}


def room(module: str) -> str:
    """The room of a module of `latentbench`; empty for the package itself."""
    return module.split(".")[1] if "." in module else ""


def test_both_packages_are_read() -> None:
    assert {name.partition(".")[0] for name in MODULES} == set(SOURCES)
    edges = graph().edges
    assert ("latentbench.records.integrity", "latentbench.metrics.recorded") in edges
    assert ("latentbench.store.files", "latentbench.core.errors") in edges
    assert ("latentbench.cli", "latentbench.cli.app") in edges  # inside of a function
    assert ("latentbench.activations.vocabulary", "latentbench.core.protocols") in edges  # for types alone
    assert len(edges) > 1000


def test_nothing_goes_round_in_circles() -> None:
    circles = [sorted(part) for part in nx.strongly_connected_components(graph()) if len(part) > 1]
    assert circles == []


@pytest.mark.parametrize("package", SOURCES)
def test_the_docstring_of_a_package_lists_its_parts(package: str) -> None:
    assert sorted(listed(package)) == sorted(parts(package))


def test_rooms_lean_on_the_rooms_below_them() -> None:
    height = {name: number for number, name in enumerate(listed("latentbench"))}
    upwards = sorted(
        (name, other)
        for name, other in graph().edges
        if name.startswith("latentbench.") and other.startswith("latentbench.")
        if height[room(name)] < height[room(other)]
    )
    assert upwards == []


def test_no_room_knows_the_adapters() -> None:
    """Not by an import and not by the name of a module, as declarations name what carries them out."""
    known = {
        (name, other)
        for name, other in graph().edges
        if name.startswith("latentbench.") and other.startswith("latentbench_adapters")
    }
    for name in MODULES:
        if not name.startswith("latentbench_adapters"):
            texts = (n.value for n in ast.walk(tree(name)) if isinstance(n, ast.Constant) and isinstance(n.value, str))
            known |= {(name, text) for text in texts if re.fullmatch(r"latentbench_adapters(\.\w+)*(:\w+)?", text)}
    assert known == set()


def test_adapters_lean_on_nothing_from_the_spec_language_upwards() -> None:
    rooms = listed("latentbench")
    above = set(rooms[rooms.index("spec") :])
    reached = {
        (name, other)
        for name, other in graph().edges
        if name.startswith("latentbench_adapters") and other.startswith("latentbench.") and room(other) in above
    }
    assert reached == set()


def test_a_public_class_name_means_one_class() -> None:
    places = defaultdict(list)
    for name in MODULES:
        for node in tree(name).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


@pytest.mark.parametrize("package", SOURCES)
def test_every_file_says_what_it_is_and_can_be_read_in_one_go(package: str) -> None:
    names = [name for name in MODULES if name.split(".")[0] == package]
    assert [name for name in names if not ast.get_docstring(tree(name))] == []
    sizes = {name: len(MODULES[name].read_text("utf-8").splitlines()) for name in names}
    assert {name: size for name, size in sizes.items() if size > LONGEST} == {}


def test_files_and_modules_that_texts_name_exist() -> None:
    """In pages, docstrings and comments: files and folders below harness/, adapters/ and tests/, and modules in backticks."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "specs/README.md", *MODULES.values()]
    lost = set()
    for page in pages:
        text = page.read_text("utf-8")
        files = re.findall(r"(?<![\w/.])((?:harness|adapters|tests)/[\w/.-]*\w)", text)
        names = re.findall(r"`(latentbench(?:_adapters)?(?:\.[a-z_]+)+)`", text)
        lost |= {(page.relative_to(ROOT).as_posix(), file) for file in files if not (ROOT / file).exists()}
        lost |= {
            (page.relative_to(ROOT).as_posix(), name)
            for name in names
            if not {name, name.rpartition(".")[0]} & set(MODULES) and name.split(".")[1] not in GROUPS
        }
    assert lost == set()


HEAVY = (
    *("torch", "transformers", "datasets", "sae_lens", "lm_eval", "tokenizers", "trl", "peft", "ray"),
    *("pandas", "sklearn", "numba", "networkx", "plotly"),
)
"""What opens models, texts and figures: seconds to import, and nothing that a verb which only reads needs."""
NUMBERS = ("numpy", "scipy")
"""What a table needs, for intervals are computed from the statistics beside the records."""
LANGUAGE = ("latentbench.spec.experiment",)
"""The spec language: its validators take half a second, which every look at results would wait for."""

READING = {
    "--help": (*HEAVY, *NUMBERS, *LANGUAGE),
    "new specs/other.yaml --from mine": (*HEAVY, *NUMBERS, *LANGUAGE),
    "store ls": (*HEAVY, *NUMBERS, *LANGUAGE),
    "validate": (*HEAVY, *NUMBERS),
    "plan": (*HEAVY, *NUMBERS),
    "list": (*HEAVY, *NUMBERS),
    "list variants": (*HEAVY, *NUMBERS),
    "list metrics": (*HEAVY, *NUMBERS),
    "show mine --origins": (*HEAVY, *NUMBERS),
    "schema": (*HEAVY, *NUMBERS),
    "status": (*HEAVY, *NUMBERS),
    "leaderboard": (*HEAVY, *LANGUAGE),
    "leaderboard --results measured": (*HEAVY, *LANGUAGE),
    "leaderboard --results measured --format html --output page.html": (*HEAVY, *LANGUAGE),
}
"""What each verb that reads may not import."""
INCOMPLETE = {"status": 3}
"""Exit codes of verbs that say that something is left to do."""


@pytest.mark.parametrize("arguments", READING)
def test_reading_verbs_import_nothing_heavy(bench: Workbench, arguments: str) -> None:
    bench.spec()
    (bench.root / "results").mkdir()
    if "measured" in arguments:
        write(bench.root / "measured", Planted(name="one"))
    code = "import sys; from latentbench.cli.app import run; code = run(sys.argv[1:])\n"
    code += f"print(code, sorted({set(READING[arguments])} & set(sys.modules)), file=sys.stderr)"
    path = os.pathsep.join([*map(str, SOURCES.values()), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments.split()],
        cwd=bench.root,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.stderr.splitlines()[-1] == f"{INCOMPLETE.get(arguments, 0)} []", done.stderr
