"""The page about latents: made from a finished cell on the command line, and read in headless Chromium."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium.webdriver import Keys

from latentbench.report.latents import render
from tests.support.browser import (
    HOSTILE,
    Browser,
    contrast,
    fetched,
    one,
    opened,
    press,
    requested,
    screen,
    texts,
    wait,
)
from tests.support.project import Done

pytestmark = pytest.mark.browser

Command = Callable[..., Done]


def planted(latents: int = 120, words: tuple[str, ...] = (), explanation: str | None = None) -> dict[str, Any]:
    """Content of a page: latent n fires on text n % 40; odd ones have a score."""
    rng = np.random.default_rng(0)
    texts = [*(f" word{i}" for i in range(40)), *words]
    return {
        "facts": {"model": "tiny", "layer": "0.resid_post", "variant": "topk", "cell": "c", "tokens": {"lab": 5000}},
        "notes": [],
        "domains": ["lab", "other"],
        "width": latents + 7,
        "alive": latents,
        "histograms": {
            "lab": {"edges": [-3, -2, -1, 0], "counts": [latents - 9, 9, 0], "dead": 7},
            "other": {"edges": [-3, -2, -1, 0], "counts": [0, latents, 0], "dead": 7},
        },
        "bins": {"lowest": -12, "perOctave": 2},
        "autointerp": {
            "judge": "lexical",
            "domain": "lab",
            "sampled": latents // 2,
            "eligible": latents,
            "excluded": {},
        },
        "latents": [_planted(n, rng, texts, explanation) for n in range(latents)],
        "texts": texts,
    }


def _planted(n: int, rng: np.random.Generator, texts: list[str], explanation: str | None) -> dict[str, Any]:
    own, others = n % 40, rng.integers(0, len(texts), 32).tolist()
    size = round(float(rng.uniform(1, 4)), 3)
    use = {"d": round(float(rng.uniform(0.001, 0.2)), 5), "m": size, "h": 2.5, "r": 0.5, "g": [24, [1, 5, 2]]}
    test = {"balanced_accuracy": 0.8, "true_positive_rate": 0.9, "true_negative_rate": 0.7, "auroc": None}
    score = round(float(rng.uniform(0.4, 1)), 2) if n % 2 else None
    told = {
        "x": explanation or f"fires on word{own}",
        "s": score,
        "e": None,
        "d": {**test, "positives": 9, "negatives": 9},
        "f": None,
    }
    return {
        "n": n,
        "u": {0: {**use, "t": [[own, 0.75], [len(texts) - 1, 0.25]]}, 1: None},
        "k": [[(n + 1) % 100, 0.5], [100_000, 0.4]],
        "p": [[own, 3.25]],
        "q": [[(own + 1) % 40, -2.5]],
        "a": told if n % 2 else None,
        "v": [[0, 3, [*others[:15], own, *others[16:]], [15, size, 16, size / 3]], [1, 4, others, [2, size / 2]]],
    }


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "latents.html"
    path.write_text(render("mine[0]", planted()), encoding="utf-8")
    return path


@pytest.fixture
def page(driver: Browser, report: Path) -> Iterator[Browser]:
    visit(driver, report)
    yield driver
    assert driver.get_log("browser") == [], "the console must stay silent"


def visit(driver: Browser, path: Path, fragment: str = "") -> None:
    opened(driver, path, fragment, ready="document.querySelector('#table tbody tr')")


def focused(driver: Browser) -> str | None:
    found = driver.execute_script("return document.activeElement.dataset.latent ?? document.activeElement.id")
    return None if found is None else str(found)


def test_sorting_by_heading_and_by_list(page: Browser) -> None:
    expected = sorted((x["a"]["s"] for x in planted()["latents"] if x["a"]), reverse=True)
    assert [float(x) for x in texts(page, "td.score")] == expected[:50], "best score first"
    one(page, "[data-sort='density']").click()
    lowest = sorted(x["u"][0]["d"] for x in planted()["latents"])
    shown = [float(x.removesuffix(" %")) / 100 for x in texts(page, "td.density")]
    assert shown == pytest.approx(lowest[:50], rel=0.1, abs=1e-3)
    assert page.execute_script("return document.activeElement.closest('th').ariaSort") == "ascending"
    press(page, Keys.ENTER)
    assert page.execute_script("return document.activeElement.closest('th').ariaSort") == "descending"
    one(page, "#sort option[value='number']").click()
    assert texts(page, ".row-name")[:3] == ["0", "1", "2"]
    one(page, "#direction").click()
    assert texts(page, ".row-name")[:3] == ["119", "118", "117"]


def test_latents_without_a_score_come_last(page: Browser) -> None:
    one(page, "[aria-label='Next page']").click()
    assert texts(page, "td.score")[:10] != ["–"] * 10
    assert texts(page, "td.score")[10:] == ["–"] * 40
    one(page, "#scored").click()
    assert texts(page, "#count") == ["1–50 of 60 of 120 latents"]


def test_search_reads_explanations_tokens_and_examples(page: Browser) -> None:
    press(page, "/")
    assert focused(page) == "search"
    one(page, "#search").send_keys("fires WORD7")
    wait(page, "document.querySelectorAll('.row-name').length < 50")
    expected = [str(n) for n in range(120) if n % 2 and n % 40 == 7]
    assert set(expected) <= set(texts(page, ".row-name"))
    told = {x["n"]: x for x in planted()["latents"]}
    words = planted()["texts"]
    for name in map(int, texts(page, ".row-name")):
        heard = [words[i] for example in told[name]["v"] for i in example[2]]
        assert any("word7" in w for w in heard) or told[name]["n"] % 40 == 7
    one(page, "#search").clear()
    one(page, "#search").send_keys("#33")
    wait(page, "document.querySelectorAll('.row-name').length === 1")
    assert texts(page, ".row-name") == ["33"]
    one(page, "#search").clear()
    one(page, "#search").send_keys("nothing like it")
    wait(page, "document.querySelector('#table .none')")


def test_a_latent_in_full(page: Browser) -> None:
    one(page, "#sort option[value='number']").click()
    one(page, "[data-latent='1']").click()
    wait(page, "document.querySelector('dialog').open")
    sheet = texts(page, ".sheet")[0]
    for part in (
        "Latent 1",
        "fires on word1",
        "0.80",
        "On lab",
        "2.50 bits",
        "Promotes",
        "3.25",
        "−2.50",
        "document 3",
    ):
        assert part in sheet
    assert "word1" in texts(page, ".example .fire.a8")
    assert one(page, ".example .fire.a8").get_attribute("title")
    assert texts(page, ".near li")[1].endswith("not shown on this page")
    one(page, ".near .link").click()
    assert texts(page, "#drawer-title") == ["Latent 2"]
    assert page.execute_script("return location.hash") == "#2"


def test_keyboard_alone(page: Browser) -> None:
    one(page, "#sort option[value='number']").click()
    page.execute_script("document.querySelector('.row-name').focus()")
    press(page, Keys.ARROW_DOWN)
    assert focused(page) == "1"
    press(page, Keys.ENTER)
    wait(page, "document.querySelector('dialog').open")
    press(page, Keys.ARROW_RIGHT)
    assert texts(page, "#drawer-title") == ["Latent 2"]
    press(page, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert texts(page, "#drawer-title") == ["Latent 0"]
    for _ in range(12):
        press(page, Keys.TAB)
        inside = "document.activeElement === document.body || document.activeElement.closest('dialog') !== null"
        assert page.execute_script(f"return {inside}"), "focus stays in the drawer"
    press(page, Keys.ESCAPE)
    # A dialog tells that it was closed some time after it was, and only then the page moves the focus.
    wait(page, "document.activeElement.dataset.latent === '0'")


def test_an_address_leads_to_a_latent(driver: Browser, report: Path) -> None:
    visit(driver, report, "#77")
    wait(driver, "document.querySelector('dialog').open")
    assert texts(driver, "#drawer-title") == ["Latent 77"]


def test_the_other_domain(page: Browser) -> None:
    one(page, "#domain option[value='1']").click()
    assert set(texts(page, "td.density")) == {"–"}
    assert "Latents by density on other" in texts(page, "#overview h3")


def test_hostile_strings_are_text(driver: Browser, tmp_path: Path) -> None:
    report = tmp_path / "hostile.html"
    content = planted(20, words=(HOSTILE, "\u2028<!--<script>", "\x00\x1b[31m"), explanation=HOSTILE)
    content |= {"notes": [HOSTILE], "domains": [HOSTILE, "other"]}
    content["facts"]["model"] = HOSTILE
    content["histograms"] = {HOSTILE: content["histograms"]["lab"]}
    report.write_text(render(HOSTILE, content), encoding="utf-8")
    visit(driver, report)
    title = driver.title
    assert HOSTILE in title
    for latent in range(20):
        driver.execute_script(f"document.querySelectorAll('.row-name')[{latent}].click()")
        assert HOSTILE in texts(driver, ".sheet")[0]
        driver.execute_script("document.querySelector('dialog').close()")
    one(driver, "#search").send_keys("</script><img")
    assert driver.title == title
    assert driver.find_elements("css selector", "img, body script:not([type]) ~ script") == []
    assert driver.get_log("browser") == []


def test_asks_nothing_of_any_network(driver: Browser, report: Path) -> None:
    visit(driver, report)
    one(driver, ".row-name").click()
    assert requested(driver) == [report.as_uri()]
    assert fetched(driver) == "refused"


def test_light_and_dark_can_be_read(page: Browser) -> None:
    """Text on the strongest colour keeps a contrast of 4.5 (WCAG AA)."""
    for _ in range(2):
        script = """
          const fire = document.querySelector('.fire.a8'), canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
          const shown = (colours) => { for (const c of colours) { canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); } return [...canvas.getImageData(0, 0, 1, 1).data]; };
          const of = (node, name) => getComputedStyle(node)[name];
          const paper = of(document.querySelector('.scroller'), 'backgroundColor');
          return [shown([of(fire, 'color')]), shown([paper, of(fire, 'backgroundColor')])];
        """
        assert contrast(*page.execute_script(script)) > 4.5
        one(page, "#theme").click()


@pytest.mark.parametrize("width", [390, 700, 1000])
def test_fits_narrow_screens(driver: Browser, report: Path, width: int) -> None:
    with screen(driver, width):
        visit(driver, report)
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        driver.execute_script("document.querySelector('.row-name').click()")
        wait(driver, "document.querySelector('dialog').open")
        assert driver.execute_script("return document.querySelector('.sheet').scrollWidth") <= width


def test_five_thousand_latents_stay_responsive(
    driver: Browser, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    report = tmp_path / "many.html"
    report.write_text(render("many[0]", planted(5000)), encoding="utf-8")
    visit(driver, report)
    assert texts(driver, "#count") == ["1–50 of 5000 latents"]
    sort = "document.querySelector('[data-sort=\"density\"]').click()"
    search = "{ const box = document.querySelector('#search'); box.value = 'word7 fires'; box.dispatchEvent(new Event('input')); }"
    seconds = {
        name: milliseconds(driver, code)
        for name, code in (("sort", sort), ("open", "document.querySelector('.row-name').click()"))
    }
    driver.execute_script("document.querySelector('dialog').close()")
    before = time.monotonic()
    driver.execute_script(search)
    wait(driver, "/ of [0-9]+ of 5000/.test(document.querySelector('#count').textContent)")
    seconds["search"] = 1000 * (time.monotonic() - before)
    for name, value in seconds.items():
        record_property(f"{name}_ms", value)
    print({name: round(value) for name, value in seconds.items()})
    assert 0 < seconds["sort"] < 1000
    assert seconds["search"] < 5000
    assert len(texts(driver, ".row-name")) <= 50, "only what is looked at is drawn"


def milliseconds(driver: Browser, code: str) -> float:
    """Time of a script and the layout it causes, in the page; the best of five, for the first compiles it."""
    script = f"const from = performance.now(); {code}; document.body.offsetHeight; return performance.now() - from"
    return min(float(driver.execute_script(script)) for _ in range(5))
