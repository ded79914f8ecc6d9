"""What the pages promise is there: their verbs and links, and generated pages are up to date. `tests/e2e/test_documents.py` runs them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from latentbench.cli.app import app
from latentbench.spec.checks import check
from latentbench.spec.project import find_project, load_specs
from latentbench.spec.reference import reference_page

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "specs/README.md", "docs/tools.md")
LINKING = sorted((*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("results/*.md")))


@pytest.mark.parametrize("page", PAGES)
def test_every_verb_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    verbs = {command.callback.__name__.rstrip("_") for command in app.registered_commands if command.callback}
    groups = {group.name for group in app.registered_groups}
    named = set(re.findall(r"(?:^|`|/)latentbench ([a-z]+)", text, re.MULTILINE))
    assert named <= verbs | groups
    assert named


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_links_to_exists(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 130


def test_the_reference_page_is_what_the_code_says() -> None:
    assert (ROOT / "specs/README.md").read_text("utf-8") == reference_page()


def test_every_shipped_spec_is_valid_without_a_network() -> None:
    project = find_project(start=ROOT)
    specs = load_specs(project, [])
    assert [problem for spec in specs for problem in check(spec, project.roots)] == []
    assert len({spec.origin.name for spec in specs}) == len(specs)
