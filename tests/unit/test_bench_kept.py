"""Figures in the docs are those of the committed files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latentbench.bench.kept import FOLDER, PAGE, PAGES, keep, page
from latentbench.core.errors import InvalidInput

ROOT = Path(__file__).parents[2]


def test_the_page_shows_the_figures_of_the_files() -> None:
    text = (ROOT / PAGE).read_text("utf-8")
    assert text == page(text, ROOT / FOLDER)
    for name in PAGES:
        found = json.loads((ROOT / FOLDER / f"{name}.json").read_text("utf-8"))
        assert found["machine"]["processor"] in text
        assert f"<!-- {name} -->\n" in text


def test_figures_are_kept_with_their_machine_and_another_replaces_them(tmp_path: Path) -> None:
    figures = {"rounds": 1, "cells": 20, "commands": []}
    for rounds in (1, 7):
        keep(tmp_path / "startup.json", {**figures, "rounds": rounds})
        shown = page("a\n<!-- startup -->\nold\n<!-- end -->\nb\n", tmp_path)
        assert "old" not in shown
        assert f"the best of {rounds} processes" in shown
        assert shown.startswith("a\n")
        assert shown.endswith("<!-- end -->\nb\n")
        assert page(shown, tmp_path) == shown
    found = json.loads((tmp_path / "startup.json").read_text())
    assert found["machine"].keys() == {"processor", "python", "platform", "load"}


@pytest.mark.parametrize("name", ["startup", "other"])
def test_a_place_without_figures_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=f"{name}.json is wanted by a page"):
        page(f"<!-- {name} -->\n<!-- end -->", tmp_path)
