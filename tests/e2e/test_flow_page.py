"""The flow page in headless Chromium: it works offline, follows paths, and shows foreign text as text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import ActionChains, Keys

from latentbench.core.sites import Site
from latentbench.flow.graph import LatentNode, traced
from latentbench.flow.graph_export import Note
from latentbench.flow.labels import layer_statistics
from latentbench.flow.options import Flow
from latentbench.metrics.value import MetricValue
from latentbench.records.record import Record
from latentbench.report.flow import rendered
from latentbench.report.flow_steering import TEXTS, steering_of
from latentbench.study.study import Findings
from tests.support import browser
from tests.support.browser import Browser, requested
from tests.support.flow import maps_of, planted
from tests.unit.leaderboard_factory import HOSTILE, Planted, record

pytestmark = pytest.mark.browser

SITE = Site(index=2)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    truth = planted()
    maps = maps_of(truth.saes(), Flow.model_validate({"k": 2, "thresholds": {"chance": 1, "drop": 0.1}}))
    written = (truth.written[SITE] >= 0).nonzero()[:, 0].tolist()
    graphs = [traced(maps, LatentNode(SITE, latent)) for latent in (written[0], 3)]
    notes = {node: Note(HOSTILE, (HOSTILE, " acid", "\n")) for graph in graphs for node in graph.nodes}
    layers = [{**vars(layer), "site": str(layer.site)} for layer in layer_statistics(maps)]
    target = tmp_path_factory.mktemp("page") / "flow.html"
    steering = steering_of(
        steered(), Findings(details={"settings": {"base": {"texts": ["plain"]}, "single=2": {"texts": [HOSTILE] * 9}}})
    )
    html = rendered(f"planted {HOSTILE}", [HOSTILE], graphs, notes, layers, [HOSTILE], steering)
    target.write_text(html, encoding="utf-8")
    return target


def steered() -> Record:
    """A record of two schedules at two strengths, compared at two costs, one of which no strength has."""
    made, _ = record(Planted())
    told = {"target": HOSTILE, "action": "activate"}

    def number(name: str, value: float | None, **params: object) -> MetricValue:
        reason = "too dear" if value is None else None
        return MetricValue(
            id=f"flow_steering.{name}", version=2, domain="general", value=value, null_reason=reason, unit="fraction",
            higher_is_better=None, n=60, params={**told, **params},
        )  # fmt: skip

    settings = [(way, s) for way in ("single", "random_constant") for s in (1.0, 2.0)]
    rates = [number("rate", s / 3, schedule=way, strength=s) for way, s in settings]
    losses = [number("loss_increase", s * s - 1, schedule=way, strength=s) for way, s in settings]
    costs = [
        number("rate_at_cost", 0.5 if c < 1 else None, schedule=way, cost=c)
        for way, _ in settings[::2]
        for c in (0.5, 9.0)
    ]
    costs.append(number("gain_at_cost", 0.0, schedule="random_constant", cost=0.5))
    return made.model_copy(update={"metrics": (number("base_rate", 0.1), *rates, *losses, *costs)})


@pytest.fixture
def opened(driver: Browser, page: Path) -> Iterator[Browser]:
    browser.opened(driver, page)
    yield driver
    assert driver.get_log("browser") == []


def ids(driver: Browser, selector: str) -> list[str]:
    return [node.get_attribute("data-id") for node in driver.find_elements("css selector", selector)]


def edges(driver: Browser) -> list[tuple[str, str]]:
    found = driver.find_elements("css selector", ".edge")
    return [(edge.get_attribute("data-from"), edge.get_attribute("data-to")) for edge in found]


def reach(edges: list[tuple[str, str]], start: str) -> set[str]:
    found = {start}
    for back in (True, False):
        front = {start}
        while front:
            front = {a if back else b for a, b in edges if (b if back else a) in front} - (front | set())
            found |= front
    return found


def test_it_opens_offline_and_fetches_nothing(opened: Browser, page: Path) -> None:
    assert opened.find_elements("css selector", ".node")
    assert {url for url in requested(opened) if not url.startswith("data:")} <= {page.as_uri()}


def test_a_click_follows_the_path_and_another_shows_all(opened: Browser) -> None:
    node = opened.find_elements("css selector", ".node")[0]
    chosen = node.get_attribute("data-id")
    node.click()
    assert set(ids(opened, ".node.on")) == reach(edges(opened), chosen)
    assert set(ids(opened, ".node.on")) < set(ids(opened, ".node"))
    assert opened.find_element("css selector", "#about h2").text == chosen
    opened.find_element("id", "clear").click()
    assert ids(opened, ".node.on") == []
    assert not opened.find_elements("css selector", "svg.following")


def test_a_step_in_the_panel_goes_on_to_the_neighbour(opened: Browser) -> None:
    before = opened.find_element("css selector", "#about h2").text
    step = opened.find_element("css selector", "#about .steps button")
    wanted = step.text
    step.click()
    assert opened.find_element("css selector", "#about h2").text == wanted != before
    assert opened.switch_to.active_element.get_attribute("data-id") == wanted


def test_it_can_be_walked_with_the_keyboard(opened: Browser) -> None:

    seed = opened.find_element("css selector", ".node.seed")
    opened.execute_script("arguments[0].focus()", seed)
    seed.send_keys(Keys.ENTER)
    assert ids(opened, ".node.chosen") == [seed.get_attribute("data-id")]
    opened.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    after = opened.switch_to.active_element.get_attribute("data-id")
    assert (seed.get_attribute("data-id"), after) in edges(opened)
    opened.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert ids(opened, ".node.chosen") == []


def test_hovering_shows_the_explanation_and_the_tokens(opened: Browser) -> None:
    ActionChains(opened).move_to_element(opened.find_element("css selector", ".node.seed .shape")).perform()
    shown = opened.find_element("id", "tip")
    assert shown.is_displayed()
    assert HOSTILE.split()[0] in shown.text
    assert "·acid" in shown.text


def test_foreign_text_stays_text(opened: Browser) -> None:
    assert "pwned" not in opened.title.split()[0]
    assert opened.title.startswith("planted </script>")
    assert opened.find_elements("css selector", "#graph img, #about img, .notice img, header img") == []
    assert len(opened.find_elements("css selector", "script")) == 2


def test_edges_can_be_thinned_and_seeds_changed(opened: Browser) -> None:
    least = "const r = document.getElementById('least'); r.value = arguments[0]; r.dispatchEvent(new Event('input'))"
    whole = len(edges(opened))
    opened.execute_script(least, 0.5)
    assert 0 < len(edges(opened)) < whole
    assert ids(opened, ".node.seed")
    opened.execute_script(least, 1)
    assert ids(opened, ".node") == ids(opened, ".node.seed")
    opened.execute_script(least, 0)
    opened.find_element("css selector", "#seed option:nth-child(2)").click()
    assert ids(opened, ".node.seed") == ["2.resid_post:3"]


def test_what_steering_did_is_drawn_and_its_texts_are_read(opened: Browser) -> None:
    section = opened.find_element("id", "steering")
    assert "10.0 % are classified as" in section.text
    points = section.find_elements("css selector", "circle.setting")
    assert len(points) == 4
    assert "random path, constant" in section.text
    assert "plain" in opened.find_element("id", "texts").text
    strongest = next(p for p in points if (p.get_attribute("aria-label") or "").startswith("single layer, strength 2:"))
    strongest.send_keys(Keys.ENTER)
    assert len(opened.find_elements("css selector", "#texts li")) == TEXTS
    assert HOSTILE.split()[0] in opened.find_element("id", "texts").text
    assert opened.find_elements("css selector", "#steering img") == []
    cells = [
        [cell.text for cell in row.find_elements("css selector", "td")]
        for row in section.find_elements("css selector", "tbody tr")
    ]
    assert cells == [["0.500", "–"], ["0.500\n+0.000 against the single layer", "–"]]


def test_a_cell_that_was_not_steered_has_no_steering() -> None:
    assert steering_of(record(Planted())[0], None) is None
    found = steering_of(steered(), None)
    assert found is not None
    assert {tuple(setting["texts"]) for setting in found["settings"]} == {()}


def test_both_themes_and_the_layers(opened: Browser) -> None:
    before = opened.execute_script("return document.documentElement.dataset.theme")
    opened.find_element("id", "theme").click()
    assert opened.execute_script("return document.documentElement.dataset.theme") != before
    opened.find_element("id", "theme").click()
    assert len(opened.find_elements("css selector", "#layers tbody tr")) == 5
    assert opened.find_elements("css selector", ".shares .newborn")


def test_it_fits_a_narrow_window(opened: Browser) -> None:
    size = opened.get_window_size()
    opened.set_window_size(520, 900)
    try:
        assert opened.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    finally:
        opened.set_window_size(size["width"], size["height"])
