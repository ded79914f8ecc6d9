"""The report's figures in headless Chromium: marks, scales, training curves."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentbench.leaderboard.api import leaderboard
from latentbench.leaderboard.build import board_of
from latentbench.leaderboard.load import load
from latentbench.leaderboard.render import html
from latentbench.records.integrity import sealed
from latentbench.store.files import write_json
from tests.e2e.test_report_html import visit
from tests.support.browser import Browser, one, texts, wait
from tests.unit.leaderboard_factory import Planted, record, write

pytestmark = pytest.mark.browser


def test_every_variant_has_a_mark_of_its_own_and_far_points_do_not_squeeze_the_others(
    driver: Browser, tmp_path: Path
) -> None:
    variants = [f"variant-{i}" for i in range(24)]
    write(tmp_path, *[Planted(name=f"a/{v}", sae={"variant": v}, error=0.2 + i / 500) for i, v in enumerate(variants)])
    write(tmp_path, Planted(name="a/untrained", sae={"variant": "variant-0"}, error=1.5))
    report = tmp_path / "report.html"
    report.write_text(leaderboard(tmp_path, "html"), encoding="utf-8")
    visit(driver, report)
    script = """return [...document.querySelectorAll('#plots > .shapes .point')].map(p => {
      const s = getComputedStyle(p); return p.getAttribute('d') + s.fill + s.strokeWidth })"""
    assert len(set(driver.execute_script(script))) == len(variants)
    assert texts(driver, "figure:first-child .beyond-note") == ["1 row beyond this scale, shown by arrows at its edge."]
    labels = texts(driver, "figure:first-child .tick.end")
    assert min(float(text) for text in labels) > 0.5
    reached = "return [...document.querySelectorAll('figure:first-child .mark-point')].map(e => e.ariaLabel)"
    assert any("a/untrained" in label for label in driver.execute_script(reached))


def test_accuracy_by_scale_is_a_line_per_vector_on_which_nothing_is_dominated(driver: Browser, tmp_path: Path) -> None:
    task = "reasoning_accuracy.accuracy"
    for number, (method, scale) in enumerate((m, s) for m in ("rl", "contrast") for s in (0.5, 1.0, 2.0)):
        made, _ = record(Planted(name="a/vectors", label=f"{method},steering.scale={scale}", domains=("general",)))
        steering = {"model": {"id": "m"}, "steering": {"method": method, "scale": scale}}
        value = made.metrics[0].model_copy(update={"id": task, "value": 0.9 - scale / 4})
        cell = made.model_copy(update={"metrics": (value,), "resolved": steering, "cell": f"{number:064x}"})
        write_json(tmp_path / f"records/a/{number}.json", sealed(cell))
    report = tmp_path / "report.html"
    report.write_text(leaderboard(tmp_path, "html"), encoding="utf-8")
    visit(driver, report)
    assert texts(driver, "figcaption") == ["Accuracy against Steering scale, general"]
    points = "return [...document.querySelectorAll('.frontier')].map(l => l.getAttribute('points').split(' ').length)"
    assert driver.execute_script(points) == [3, 3]
    assert len(driver.find_elements("css selector", ".mark-point.leading")) == 6
    assert len(driver.find_elements("css selector", ".whisker")) == 6


def test_where_more_of_both_numbers_is_better_the_row_that_has_most_of_both_leads_alone(
    driver: Browser, tmp_path: Path
) -> None:
    for number, (concept, fluency) in enumerate([(1.0, 1.9), (0.7, 1.5), (0.9, 1.8)]):
        made, _ = record(Planted(name="a/concepts", label=f"way-{number}", domains=("general",)))
        found = {"concept_steering.concept": concept, "concept_steering.fluency": fluency}
        values = [
            made.metrics[0].model_copy(update={"id": name, "value": value, "higher_is_better": True})
            for name, value in found.items()
        ]
        cell = made.model_copy(update={"metrics": values, "cell": f"{number:064x}"})
        write_json(tmp_path / f"records/a/{number}.json", sealed(cell))
    report = tmp_path / "report.html"
    report.write_text(leaderboard(tmp_path, "html"), encoding="utf-8")
    visit(driver, report)
    assert texts(driver, "figcaption") == ["Concept 0–2 against Fluency 0–2, general"]
    leading = driver.find_elements("css selector", ".mark-point.leading")
    assert ["way-0" in str(mark.get_attribute("aria-label")) for mark in leading] == [True]


def test_training_curves_links_and_units(driver: Browser, tmp_path: Path) -> None:
    results = tmp_path / "results"
    write(results, *[Planted(name="quickstart/topk", seed=seed) for seed in range(2)], Planted(name="quickstart/other"))
    board = board_of(load(results))
    row = next(row for group in board.groups for row in group.rows if row.spec == "quickstart/topk")
    steps = list(range(0, 1000, 20))
    curve = {
        "step": steps,
        "normalised": [1 / (1 + s / 50) for s in steps],
        "l0": [16.0] * 50,
        "dead": [0.0] * 49 + [3],
    }
    address = f"pages/{row.newest.record.cell}-latents.html"
    made = html.page(
        board, curves={row.id: {"seed 0": curve, "seed 1": curve}}, pages={row.id: [["latents, seed 0", address]]}
    )
    report = tmp_path / "report.html"
    report.write_text(made, encoding="utf-8")
    (tmp_path / "pages").mkdir()
    (tmp_path / address).write_text("<title>latents</title>", encoding="utf-8")
    visit(driver, report)
    assert texts(driver, "#table .counts") == ["60 documents", "60 documents"]
    wait(driver, "document.querySelectorAll('#curve-figures .trace').length === 1")
    driver.execute_script(f"document.querySelector('[data-row=\"{row.id}\"]').click()")
    captions = texts(driver, "#drawer figcaption")
    assert captions == ["Unexplained variance", "Dead latents"], "a level line is not drawn"
    assert len(driver.find_elements("css selector", "#drawer figure:first-child .trace")) == 2
    assert "60 documents" in texts(driver, "#drawer .numbers tbody tr")[0]
    one(driver, "#drawer .links a").click()
    wait(driver, "document.title === 'latents'")
    assert driver.get_log("browser") == []
