"""The HTML report in headless Chromium: what a reader does with it, and what it must never do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Keys

from latentbench.leaderboard.api import leaderboard
from tests.support.browser import Browser, contrast, fetched, one, opened, press, requested, screen, texts, wait
from tests.unit.leaderboard_factory import HOSTILE, Planted, rewritten, write

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]

VARIANTS = {"topk": 1.0, "jumprelu": 0.93, "gated": 1.12}
SPARSITIES = {8: 0.30, 16: 0.22, 32: 0.15, 64: 0.10}


def planted() -> Iterator[Planted]:
    for k, error in SPARSITIES.items():
        for name, factor in VARIANTS.items():
            lost = name == "gated" and k == 64
            sae = {"variant": name, "width": 1024, "k": k}
            yield Planted(
                name=f"quickstart/{name}", label=f"sae.k={k}", l0=k, error=error * factor,
                status="failed" if lost else "ok", sae=sae,
            )  # fmt: skip
    yield Planted(name="mine/other", facts={"context": 256})


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("results")
    write(results, *planted())
    (results / "records" / "bad.json").write_text("{")
    page = results / "report.html"
    page.write_text(leaderboard(results, "html"), encoding="utf-8")
    return page


@pytest.fixture
def page(driver: Browser, report: Path) -> Iterator[Browser]:
    visit(driver, report)
    yield driver
    assert driver.get_log("browser") == [], "the console must stay silent"


def visit(driver: Browser, path: Path) -> None:
    ready = "document.querySelectorAll('#plots svg').length > 0 || !document.querySelector('#plots')"
    opened(driver, path, ready=ready)


def column(driver: Browser, key: str) -> list[str]:
    """Numbers of a column, top to bottom; the key is the `data-sort` of its heading."""
    script = """
      const heads = [...document.querySelectorAll('#table thead tr:last-child th')];
      const at = heads.findIndex(h => h.querySelector(`[data-sort="${arguments[0]}"]`));
      return [...document.querySelectorAll('#table tbody tr:not(.gap)')].map(r => (r.children[at].querySelector('.number') ?? r.children[at]).textContent)
    """
    return list(driver.execute_script(script, key))


def names(driver: Browser) -> list[str]:
    return texts(driver, "#table .row-name")


def limit(driver: Browser, label: str, sign: str, bound: str) -> None:
    one(driver, f"#limit-column option[value='{position(driver, label)}']").click()
    one(driver, f"#limit-sign option[value='{sign}']").click()
    one(driver, "#limit-number").send_keys(bound)
    one(driver, "#limit button").click()


def position(driver: Browser, label: str) -> str:
    return str(texts(driver, "#limit-column option").index(label))


def test_sorting_by_click_and_by_keyboard(page: Browser) -> None:
    key = position(page, "CE increase, general")
    button = one(page, f"[data-sort='{key}']")
    button.click()
    found = [float(x) for x in column(page, key) if x != "–"]
    assert found == sorted(found)
    assert len(found) == 11
    assert column(page, key)[-1] == "–", "missing numbers come last"
    assert page.execute_script("return document.activeElement.dataset.sort") == key
    assert page.execute_script("return document.activeElement.closest('th').ariaSort") == "ascending"
    press(page, Keys.ENTER)
    found = [float(x) for x in column(page, key) if x != "–"]
    assert found == sorted(found, reverse=True)
    assert column(page, key)[-1] == "–"
    assert page.execute_script("return document.activeElement.closest('th').ariaSort") == "descending"


def test_search_suite_and_status_filters(page: Browser) -> None:
    one(page, "#search").send_keys("jumprelu k=16")
    wait(page, "document.querySelectorAll('.row-name').length === 1")
    assert names(page) == ["quickstart/jumprelusae.k=16"]
    assert texts(page, "#count") == ["1 of 12 rows"]
    one(page, "#search").clear()
    one(page, "#search").send_keys("nothing like it")
    wait(page, "document.querySelector('#table .none')")
    one(page, "#search").send_keys(Keys.CONTROL + "a", Keys.DELETE)
    wait(page, "document.querySelectorAll('.row-name').length === 12")
    one(page, "#status option[value='failed']").click()
    assert names(page) == ["quickstart/gatedsae.k=64"]
    assert texts(page, "#table .badge.failed") == ["failed (seed 0)"]


def test_which_variant_is_best_at_l0_up_to_32_and_is_it_significant(page: Browser) -> None:
    before = texts(page, "#findings .card")[1]
    assert "jumprelu · sae.k=64" in before
    limit(page, "L0, chemistry", "le", "33")
    assert texts(page, ".chip") == ["L0, chemistry ≤ 33 ×"]
    card = texts(page, "#findings .card")[1]
    assert "Best EV centred on chemistry" in card
    assert "jumprelu · sae.k=32" in card
    assert "Significantly ahead of all others" in card
    assert "Ties are judged among the rows that pass the filters" in texts(page, "#scope")[0]
    assert card.index("Significantly") < card.index("behind")
    one(page, ".chip").click()
    assert texts(page, "#findings .card")[1] == before


def test_after_choosing_the_column_of_a_limit_one_types_the_bound(page: Browser) -> None:
    one(page, f"#limit-column option[value='{position(page, 'EV centred, chemistry')}']").click()
    press(page, "0.8", Keys.ENTER)
    assert texts(page, ".chip") == ["EV centred, chemistry ≥ 0.8 ×"], (
        "for a number that should be high, at least so much"
    )


def test_ties_on_the_page_agree_with_the_ties_of_the_records(page: Browser, report: Path) -> None:
    """A filter that passes everything ranked makes the page judge for itself."""
    limit(page, "L0, general", "le", "1000")
    data = json.loads(leaderboard(report.parent, "json"))
    rows = data["groups"][0]["rows"]
    expected = {
        r["spec"] + r["label"]: next(n["standing"] for n in r["numbers"] if n["metric"] == "explained_variance.centred")
        for r in rows
    }
    at = int(position(page, "EV centred, general"))
    script = """
      const at = [...document.querySelectorAll('#table thead tr:last-child th')].findIndex(h => h.querySelector(`[data-sort="${arguments[0]}"]`));
      return [...document.querySelectorAll('#table tbody tr')].map(r => [r.querySelector('.row-name').textContent, r.children[at].className.split(' ')[0]])
    """
    shown = dict(page.execute_script(script, at))
    assert shown == {name: standing for name, standing in expected.items() if name in shown}
    assert set(shown.values()) == {"best", "behind"}


def test_drawer_answers_what_was_run_and_how_to_run_it_again(page: Browser) -> None:
    one(page, "[data-row]").click()
    wait(page, "document.querySelector('dialog').open")
    text = texts(page, "#drawer")[0]
    assert "latentbench run specs/quickstart/jumprelu.yaml --filter '[sae.k=64]'" in text
    assert text.index("latentbench run") < text.index("What was run, as resolved") < text.index("seed0-")
    shown = texts(page, "#drawer details:first-of-type .numbers tbody th")
    assert len(shown) == 10, "the numbers of the table come first, all others are folded away"
    assert "more numbers" in text
    assert "variant: jumprelu" in text
    assert 'torch: "2.13.0"' in text
    assert "records/quickstart/jumprelu/seed0-" in text
    press(page, Keys.ESCAPE)
    wait(page, "!document.querySelector('dialog').open")
    assert page.execute_script("return document.activeElement.className") == "row-name", "focus returns"


def test_drawer_of_a_failed_row_says_why(page: Browser) -> None:
    one(page, "#status option[value='failed']").click()
    one(page, "tr.failed td").click()
    wait(page, "document.querySelector('dialog').open")
    assert "CellFailed: the loss became NaN at step 12" in texts(page, "#drawer")[0]


def test_keyboard_alone(page: Browser) -> None:
    press(page, "/")
    assert page.execute_script("return document.activeElement.id") == "search"
    page.execute_script("document.querySelector('.row-name').focus()")
    press(page, Keys.ARROW_DOWN)
    focused = page.execute_script("return [...document.querySelectorAll('.row-name')].indexOf(document.activeElement)")
    assert focused == 1
    press(page, Keys.ENTER)
    wait(page, "document.querySelector('dialog').open")
    for _ in range(30):
        press(page, Keys.TAB)
        inside = "document.activeElement === document.body || document.activeElement.closest('dialog') !== null"
        assert page.execute_script(f"return {inside}"), "focus stays in the drawer"
    press(page, Keys.ESCAPE)
    wait(page, "!document.querySelector('dialog').open")


def test_groups_stand_apart_with_the_reason(page: Browser) -> None:
    tabs = page.find_elements("css selector", "[role=tab]")
    assert len(tabs) == 2
    tabs[0].send_keys(Keys.ARROW_RIGHT)
    assert names(page) == ["mine/other"]
    assert "context is 256, in the first table 128" in texts(page, "#differs")[0]
    assert page.execute_script("return document.activeElement.ariaSelected") == "true"


def test_plots_have_whiskers_a_frontier_and_open_the_drawer(page: Browser) -> None:
    assert texts(page, "figcaption") == ["EV centred against L0, general", "CE increase against L0, general"]
    assert len(page.find_elements("css selector", "figure:first-child .mark-point")) == 11
    assert len(page.find_elements("css selector", "figure:first-child .whisker")) == 22
    leading = page.execute_script(
        "return [...document.querySelectorAll('figure:first-child .leading')].map(e => e.ariaLabel)"
    )
    assert sorted(re.findall(r"quickstart/(\w+)", " ".join(leading))) == ["jumprelu"] * 4
    one(page, "#plot-domain option[value='chemistry']").click()
    assert "chemistry" in texts(page, "figcaption")[0]
    # In one step: the resting mouse pointer may hide the tip again.
    script = "document.querySelector('.leading').focus(); return document.querySelector('#tip').textContent"
    assert "quickstart/jumprelu" in page.execute_script(script)
    press(page, Keys.ENTER)
    wait(page, "document.querySelector('dialog').open")


def test_columns_and_intervals_can_be_chosen(page: Browser) -> None:
    shown = len(page.find_elements("css selector", "#table thead tr:last-child th"))
    one(page, ".menu summary").click()
    box = page.find_elements("css selector", "#columns input:not(:checked)")[0]
    box.click()
    assert len(page.find_elements("css selector", "#table thead tr:last-child th")) == shown + 1
    assert page.find_elements("css selector", "#table .interval")
    one(page, "#intervals").click()
    assert not page.find_elements("css selector", "#table .interval")


def test_the_committed_results_fit_a_screen_of_1400_pixels(driver: Browser, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(leaderboard(ROOT / "results", "html"), encoding="utf-8")
    with screen(driver, 1400):
        visit(driver, tmp_path / "page.html")
        assert texts(driver, "#table thead tr:last-child th:last-child") == ["Time"]
        wide, seen = driver.execute_script(
            "const area = document.querySelector('.scroller'); return [area.scrollWidth, area.clientWidth]"
        )
        assert wide <= seen, "seeds and times are not cut"
        assert one(driver, "#table .interval").is_displayed()


def test_light_and_dark(page: Browser) -> None:
    def readable() -> float:
        script = "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
        return contrast(*page.execute_script(script))

    first = page.execute_script("return document.documentElement.dataset.theme")
    assert readable() > 7
    one(page, "#theme").click()
    assert page.execute_script("return document.documentElement.dataset.theme") != first
    assert readable() > 7


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_follows_the_system(driver: Browser, report: Path, theme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": theme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    visit(driver, report)
    driver.refresh()
    assert driver.execute_script("return document.documentElement.dataset.theme") == theme
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_fits_a_phone(driver: Browser, report: Path) -> None:
    with screen(driver):
        visit(driver, report)
        assert driver.execute_script("return document.documentElement.scrollWidth") == 390
        driver.execute_script("document.querySelector('[data-row]').click()")
        wait(driver, "document.querySelector('dialog').open")
        assert driver.execute_script("return document.querySelector('.sheet').scrollWidth") <= 390
        name = "return document.querySelector('.stacked tbody th').getBoundingClientRect()"
        assert driver.execute_script(f"{name}.width") > 130, "names are not squeezed into a column of letters"
        driver.execute_script("document.querySelector('dialog').close()")
        tick = driver.execute_script("return document.querySelector('.tick').getBoundingClientRect().height")
        assert tick > 10, "text of figures is not shrunk"


def test_asks_nothing_of_any_network(driver: Browser, report: Path) -> None:
    visit(driver, report)
    one(driver, "[data-row]").click()
    assert requested(driver) == [report.as_uri()]


def test_policy_forbids_fetching(driver: Browser, report: Path) -> None:
    visit(driver, report)
    assert fetched(driver) == "refused"
    script = """
      const node = document.createElement('div');
      node.innerHTML = '<img src=x onerror="document.title=1">';
      document.body.append(node)
    """
    driver.execute_script(script)
    assert driver.title == "latentbench leaderboard"
    driver.get_log("browser")


def test_hostile_strings_are_text(driver: Browser, tmp_path: Path) -> None:
    paths = write(
        tmp_path,
        Planted(warnings=(HOSTILE,), sae={"variant": HOSTILE}),
        Planted(name="quickstart/other", status="failed", message=HOSTILE),
    )
    for path in paths:
        rewritten(path, label=HOSTILE, spec={"name": HOSTILE, "path": HOSTILE, "digest": HOSTILE})
    (tmp_path / "records" / "<img src=x onerror=alert(1)>.json").write_text("{")
    report = tmp_path / "report.html"
    report.write_text(leaderboard(tmp_path, "html"), encoding="utf-8")
    visit(driver, report)
    assert "</script><img src=x onerror=" in names(driver)[0]
    for button in range(len(driver.find_elements("css selector", ".row-name"))):
        driver.execute_script(f"document.querySelectorAll('.row-name')[{button}].click()")
        assert "</script><img" in texts(driver, "#drawer")[0]
        driver.execute_script("document.querySelector('dialog').close()")
    assert driver.title == "latentbench leaderboard"
    assert driver.find_elements("css selector", "img") == []
    assert driver.get_log("browser") == []
