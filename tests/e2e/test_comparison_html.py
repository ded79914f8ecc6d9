"""The comparison page in headless Chromium."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from selenium.webdriver import Keys

from latentbench.leaderboard.api import compare_records
from tests.support.browser import Browser, one, opened, press, requested, screen, texts
from tests.unit.leaderboard_factory import HOSTILE, Planted, rewritten, write

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of runs: B is better on general texts and cannot be told apart in L0."""
    folder = tmp_path_factory.mktemp("results")
    for seed in range(2):
        write(folder, Planted(name="a/one", seed=seed, error=0.3), Planted(name="a/two", seed=seed, error=0.2))
    return folder


def compared(driver: Browser, results: Path, a: str, b: str) -> Path:
    page = results / "compare.html"
    page.write_text(compare_records(results, a, b, "html"), encoding="utf-8")
    opened(driver, page, ready="document.querySelector('#count').textContent !== ''")
    return page


def test_sets_of_runs_with_verdicts_fields_and_movers(driver: Browser, results: Path) -> None:
    compared(driver, results, "a/one", "a/two")
    cards = texts(driver, ".card .lead")
    assert cards[:2] == ["a/one", "a/two"]
    assert cards[2].startswith("B is better in ")
    assert len(texts(driver, ".card .path")) == 4
    assert len(driver.find_elements("css selector", "#table .number-row svg")) > 10
    moved = {f"{number}, {domain}" for number in ("EV centred", "CE increase") for domain in ("general", "chemistry")}
    assert set(texts(driver, "figcaption")) == moved
    assert "EV centred" in texts(driver, ".grid-table tbody th")
    assert driver.get_log("browser") == []


def test_filtering_by_words_and_by_significance(driver: Browser, results: Path) -> None:
    compared(driver, results, "a/one", "a/two")
    whole = int(texts(driver, "#count")[0].split()[0])
    press(driver, "/")
    assert driver.execute_script("return document.activeElement.id") == "search"
    one(driver, "#search").send_keys("chemistry ev")
    assert texts(driver, "#count") == ["1 number"]
    one(driver, "#search").send_keys(Keys.CONTROL + "a", Keys.DELETE)
    one(driver, "#significant").click()
    shown = int(texts(driver, "#count")[0].split()[0])
    assert 0 < shown < whole
    visible = "return [...document.querySelectorAll('.number-row')].filter(r => !r.hidden).map(r => r.dataset.better)"
    assert set(driver.execute_script(visible)) == {"B"}


def test_fits_a_phone_in_both_themes(driver: Browser, results: Path) -> None:
    with screen(driver):
        compared(driver, results, "a/one", "a/two")
        assert driver.execute_script("return document.documentElement.scrollWidth") == 390
        first = driver.execute_script("return document.documentElement.dataset.theme")
        one(driver, "#theme").click()
        assert driver.execute_script("return document.documentElement.dataset.theme") != first


def test_hostile_strings_are_text_and_nothing_is_fetched(driver: Browser, tmp_path: Path) -> None:
    paths = write(tmp_path, Planted(name="a/one"), Planted(name="a/two", error=0.3))
    for path in paths:
        resolved = json.loads(path.read_text())["resolved"]
        rewritten(path, resolved={**resolved, HOSTILE: HOSTILE + path.name}, label=HOSTILE)
    page = compared(driver, tmp_path, "a/one", "a/two")
    assert driver.title == "latentbench comparison"
    assert driver.find_elements("css selector", "img") == []
    assert "<img src=x" in texts(driver, ".fields")[0]
    assert requested(driver) == [page.as_uri()]
    assert driver.get_log("browser") == []


def test_runs_measured_differently_say_why(driver: Browser, tmp_path: Path) -> None:
    write(tmp_path, Planted(name="a/one"), Planted(name="a/two", facts={"context": 256}))
    compared(driver, tmp_path, "a/one", "a/two")
    assert "not comparable (context 128 → 256)" in texts(driver, ".card.warn")[0]
    assert texts(driver, "figcaption") == []
