"""How the parts lean on each other: read from the imports of the source, nothing is run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {"latentbench": ROOT / "harness", "latentbench_adapters": ROOT / "adapters"}
MODULES = {
    ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
    for package, root in SOURCES.items()
    for path in (root / package).rglob("*.py")
}


def imported(tree: ast.AST, *, lazily: bool) -> Iterator[str]:
    """Modules of ours that a module imports when it is loaded, or also inside of functions; not those for types alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not lazily:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in MODULES else node.module for name in names)
        yield from imported(node, lazily=lazily)


def graph(*, lazily: bool) -> nx.DiGraph:
    made = nx.DiGraph()
    for name, path in MODULES.items():
        found = {other for other in imported(ast.parse(path.read_text("utf-8")), lazily=lazily) if other in MODULES}
        made.add_edges_from((name, other) for other in found - {name})
    return made


def test_both_packages_are_read() -> None:
    assert {name.partition(".")[0] for name in MODULES} == set(SOURCES)
    edges = graph(lazily=True).edges
    assert ("latentbench.records.integrity", "latentbench.metrics.recorded") in edges
    assert len(edges) > 3 * len(SOURCES) * 100


def test_nothing_goes_round_in_circles_when_it_is_loaded() -> None:
    circles = [sorted(part) for part in nx.strongly_connected_components(graph(lazily=False)) if len(part) > 1]
    assert circles == []


@pytest.mark.parametrize("above", ["plan", "execute", "cli"])
def test_adapters_lean_on_nothing_that_runs_them(above: str) -> None:
    reached = {
        (name, other)
        for name, other in graph(lazily=True).edges
        if name.startswith("latentbench_adapters.") and f"{other}.".startswith(f"latentbench.{above}.")
    }
    assert reached == set()
