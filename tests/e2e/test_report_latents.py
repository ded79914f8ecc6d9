"""The page about latents: made from a finished cell on the command line, and read in headless Chromium."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.metrics.autointerp.details import (
    AutointerpDetails,
    BudgetDetails,
    LatentDetail,
    ShownExample,
    TestScore,
)
from harness.report.latents import page as page_of
from harness.report.latents import render
from harness.report.records import record_of
from harness.report.sources import sources_of
from tests.support.project import Done, Workbench

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (pip install -e '.[dev]')")
CHROMIUM = os.environ.get("LATENTBENCH_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
CHROMEDRIVER = shutil.which("chromedriver")
browser = pytest.mark.skipif(
    not CHROMIUM or not CHROMEDRIVER,
    reason="no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)",
)
pytestmark = pytest.mark.browser

HOSTILE = "</script><script>document.title=1</script><img src=x onerror=document.title=1>"
Browser = Any
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
def driver() -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--window-size=1400,1000")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    yield started
    started.quit()


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
    driver.get("about:blank")
    driver.get_log("browser")
    driver.get_log("performance")
    driver.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
    driver.get(path.as_uri() + fragment)
    wait(driver, "document.querySelector('#table tbody tr')")


def wait(driver: Browser, condition: str) -> None:
    deadline = time.monotonic() + 10
    while not driver.execute_script(f"return {condition}"):
        assert time.monotonic() < deadline, f"never became true: {condition}"
        time.sleep(0.02)


def one(driver: Browser, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def texts(driver: Browser, selector: str) -> list[str]:
    return list(
        driver.execute_script("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector)
    )


def press(driver: Browser, *keys: str) -> None:
    webdriver.ActionChains(driver).send_keys(*keys).perform()


def focused(driver: Browser) -> str | None:
    found = driver.execute_script("return document.activeElement.dataset.latent ?? document.activeElement.id")
    return None if found is None else str(found)


@browser
def test_sorting_by_heading_and_by_list(page: Browser) -> None:
    expected = sorted((x["a"]["s"] for x in planted()["latents"] if x["a"]), reverse=True)
    assert [float(x) for x in texts(page, "td.score")] == expected[:50], "best score first"
    one(page, "[data-sort='density']").click()
    lowest = sorted(x["u"][0]["d"] for x in planted()["latents"])
    shown = [float(x.removesuffix(" %")) / 100 for x in texts(page, "td.density")]
    assert shown == pytest.approx(lowest[:50], rel=0.1, abs=1e-3)
    assert page.execute_script("return document.activeElement.closest('th').ariaSort") == "ascending"
    press(page, webdriver.Keys.ENTER)
    assert page.execute_script("return document.activeElement.closest('th').ariaSort") == "descending"
    one(page, "#sort option[value='number']").click()
    assert texts(page, ".row-name")[:3] == ["0", "1", "2"]
    one(page, "#direction").click()
    assert texts(page, ".row-name")[:3] == ["119", "118", "117"]


@browser
def test_latents_without_a_score_come_last(page: Browser) -> None:
    one(page, "[aria-label='Next page']").click()
    assert texts(page, "td.score")[:10] != ["–"] * 10
    assert texts(page, "td.score")[10:] == ["–"] * 40
    one(page, "#scored").click()
    assert texts(page, "#count") == ["1–50 of 60 of 120 latents"]


@browser
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


@browser
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


@browser
def test_keyboard_alone(page: Browser) -> None:
    one(page, "#sort option[value='number']").click()
    page.execute_script("document.querySelector('.row-name').focus()")
    press(page, webdriver.Keys.ARROW_DOWN)
    assert focused(page) == "1"
    press(page, webdriver.Keys.ENTER)
    wait(page, "document.querySelector('dialog').open")
    press(page, webdriver.Keys.ARROW_RIGHT)
    assert texts(page, "#drawer-title") == ["Latent 2"]
    press(page, webdriver.Keys.ARROW_LEFT, webdriver.Keys.ARROW_LEFT)
    assert texts(page, "#drawer-title") == ["Latent 0"]
    for _ in range(12):
        press(page, webdriver.Keys.TAB)
        inside = "document.activeElement === document.body || document.activeElement.closest('dialog') !== null"
        assert page.execute_script(f"return {inside}"), "focus stays in the drawer"
    press(page, webdriver.Keys.ESCAPE)
    wait(page, "!document.querySelector('dialog').open")
    assert focused(page) == "0", "focus returns"


@browser
def test_an_address_leads_to_a_latent(driver: Browser, report: Path) -> None:
    visit(driver, report, "#77")
    wait(driver, "document.querySelector('dialog').open")
    assert texts(driver, "#drawer-title") == ["Latent 77"]


@browser
def test_the_other_domain(page: Browser) -> None:
    one(page, "#domain option[value='1']").click()
    assert set(texts(page, "td.density")) == {"–"}
    assert "Latents by density on other" in texts(page, "#overview h3")


@browser
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


@browser
def test_asks_nothing_of_any_network(driver: Browser, report: Path) -> None:
    visit(driver, report)
    one(driver, ".row-name").click()
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked == [report.as_uri()]
    script = (
        "const done = arguments[0]; fetch('https://example.org').then(() => done('fetched'), () => done('refused'))"
    )
    assert driver.execute_async_script(script) == "refused"


@browser
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
        ink, paper = (luminance(colour) for colour in page.execute_script(script))
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 4.5
        one(page, "#theme").click()


@browser
@pytest.mark.parametrize("width", [390, 700, 1000])
def test_fits_narrow_screens(driver: Browser, report: Path, width: int) -> None:
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 2, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        visit(driver, report)
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        driver.execute_script("document.querySelector('.row-name').click()")
        wait(driver, "document.querySelector('dialog').open")
        assert driver.execute_script("return document.querySelector('.sheet').scrollWidth") <= width
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@browser
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


def luminance(colour: list[int]) -> float:
    """Relative luminance (WCAG 2) of [r, g, b, a]."""
    parts = [c / 255 for c in colour[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def embedded(page: str) -> Any:
    """The data in a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_a_page_from_a_finished_cell(command: Command, bench: Workbench) -> None:
    """From the stored study, and the same numbers again from the documents where no study is stored."""
    bench.spec(metrics=["l0", {"latents": {"examples": 6, "window": 32}}])
    bench.spec("plain", metrics=["l0"])
    assert command("run", "mine", "plain", "--executor", "inline").code == 0
    done = command("report", "latents", "mine[0]")
    assert done.code == 0, done.err
    (path,) = (bench.root / "results/pages").iterdir()
    assert path.name.endswith("-latents.html")
    stored = embedded(path.read_text("utf-8"))
    assert stored["width"] == 32
    assert stored["alive"] == len(stored["latents"]) > 0
    shown = stored["latents"][0]
    assert {len(shown["p"]), len(shown["q"])} == {10}
    assert len(shown["k"]) == 8
    assert all("<s>" not in stored["texts"][i] for latent in stored["latents"] for e in latent["v"] for i in e[2])
    done = command("report", "latents", "plain[0]", "-o", "page.html", "--latents", "5")
    assert done.code == 0
    assert "no `latents` study is stored" in done.err
    measured = embedded((bench.root / "page.html").read_text("utf-8"))
    assert len(measured["latents"]) == 5
    whole = {latent["n"]: latent for latent in stored["latents"]}
    for latent in measured["latents"]:
        assert [stored["texts"][i] for i, _ in whole[latent["n"]]["u"]["0"]["t"]] == [
            measured["texts"][i] for i, _ in latent["u"]["0"]["t"]
        ]
        assert latent["u"]["0"]["d"] == whole[latent["n"]]["u"]["0"]["d"]


def test_a_page_without_the_model_says_what_is_missing(command: Command, bench: Workbench) -> None:
    bench.spec(metrics=["l0", "latents"])
    assert command("run", "mine", "--executor", "inline").code == 0
    for weights in (bench.root / "model").glob("*.safetensors"):
        weights.unlink()
    done = command("report", "latents", "mine[0]")
    assert done.code == 0, done.err
    (path,) = (bench.root / "results/pages").iterdir()
    content = embedded(path.read_text("utf-8"))
    assert content["latents"]
    assert content["latents"][0]["p"] == []
    assert "Without tokens promoted" in content["notes"][0]


def test_explanations_and_scores_are_shown(command: Command, bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An autointerp study's details, whatever made them."""
    bench.spec(metrics=["l0"])
    assert command("run", "mine", "--executor", "inline").code == 0
    sources = sources_of(record_of(bench.root / "results", "mine[0]"), bench.project, lambda text: None)
    score = TestScore(true_positive_rate=0.9, true_negative_rate=0.7, balanced_accuracy=0.8, positives=9, negatives=9)
    example = ShownExample(tokens=("a", " b"), activations=(0.0, 2.0), split="test", document=1)
    latent = LatentDetail(
        latent=3, density=0.1, max_activation=2.0, explanation="b", detection=score, fuzzing=score, examples=(example,)
    )
    other = LatentDetail(latent=4, density=0.1, max_activation=2.0, excluded="the judge failed")
    budget = BudgetDetails(budget=None, width=32, alive=30, eligible=20, excluded={"judge": 1}, latents=(latent, other))
    details = AutointerpDetails(domain="lab", judge="lexical", documents=6, tokens=90, seed=0, budgets=(budget,))
    content = embedded(page_of(type(sources)(**{**vars(sources), "autointerp": details}), most=10))
    shown = {entry["n"]: entry for entry in content["latents"]}
    assert shown[3]["a"]["x"] == "b"
    assert shown[3]["a"]["s"] == 0.8
    assert shown[4]["a"]["e"] == "the judge failed"
    _, document, words, active, split = shown[3]["v"][0]
    assert ([content["texts"][i] for i in words], active, split, document) == (["a", " b"], [1, 2], "test", 1)
    assert content["autointerp"]["judge"] == "lexical"
    assert len(shown) == 10, "sampled ones first, then others"


def test_consistency_of_seeds(command: Command, bench: Workbench) -> None:
    bench.spec(metrics=["l0"], seeds=[0, 1, 2])
    assert command("run", "mine", "--executor", "inline").code == 0
    done = command("report", "consistency", "mine", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert list(found) == ["0 – 1", "0 – 2", "1 – 2", "mean", "chance"]
    assert found["mean"]["matched"] == pytest.approx(np.mean([found[k]["matched"] for k in list(found)[:3]]))
    assert all(-1 <= line["matched"] <= line["best_match"] <= 1 for line in found.values())
    assert "best match" in command("report", "consistency", "mine").out
    done = command("report", "consistency", "mine[0]")
    assert (done.code, done.err) == (2, "error: consistency needs the same SAE from two seeds or more\n")


def test_what_cannot_be_shown_is_said_in_one_line(command: Command, bench: Workbench) -> None:
    bench.spec(metrics=["l0"], seeds=[0, 1])
    assert command("run", "mine", "--executor", "inline").code == 0
    done = command("report", "latents", "mine")
    assert done.code == 2
    assert "say which seed, e.g. mine[0] (seeds: 0, 1)" in done.err
    done = command("report", "latents", "nothing[0]")
    assert done.code == 2
    assert "there are no records of nothing" in done.err
    shutil.rmtree(bench.root / "results/store/objects/sae")
    done = command("report", "latents", "mine[0]")
    assert done.code == 2
    assert "not in the store; run its spec again" in done.err
    assert "Traceback" not in done.err
