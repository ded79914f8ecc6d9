"""The mechanism of a vector from a spec to the page, which is opened in headless Chromium."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from latentbench.report import figures
from tests.conftest import Command
from tests.support.browser import HOSTILE, Browser, one, opened, requested, texts
from tests.support.project import Workbench

pytestmark = pytest.mark.usefixtures("one_thread")

READ = {"problems_from": {"adapter": "pocket", "split": "train"}, "prompts": 8, "new_tokens": 8}
STUDIES = (
    "token_shift",
    "attention_shift",
    "persistence",
    "path_patching",
    "logit_attribution",
    "first_token_test",
    "layer_pairs",
)
MORE: dict[str, Any] = {
    "token_shift": {"temperature": 1.0},
    "persistence": {"matrix": "own_texts"},
    "path_patching": {"also": ["groups", "paths", "entropies"]},
    "first_token_test": {"texts": [" Step", " To"]},
}
SPEC: dict[str, Any] = {
    "model": {"adapter": "pocket"},
    "dataset": {
        "eval": {"general": {"adapter": "pocket", "domain": "general", "split": "eval", "documents": 12, "context": 32}}
    },
    "steering": {"method": "random", "like": 0.5, "layers": [3, 4]},
    "metrics": [
        {"reasoning_accuracy": {"task": "pocket_problems", "limit": 12}},
        {"capability_cost": {"scales": [0, 1]}},
        "logit_lens",
        *({name: READ | MORE.get(name, {})} for name in STUDIES),
    ],
}


def write(bench: Workbench, **changes: Any) -> None:
    bench.write("specs/mine.yaml", yaml.safe_dump({**SPEC, **changes}, sort_keys=False))


def page(bench: Workbench, command: Command) -> Path:
    write(bench)
    done = command("run", "mine", "--executor", "inline")
    assert done.code == 0, done.err
    (made,) = (bench.root / "results/pages").glob("*-steering.html")
    return made


@pytest.mark.browser
def test_a_spec_ends_in_a_page_that_opens_offline(bench: Workbench, command: Command, driver: Browser) -> None:
    made = page(bench, command)
    (record,) = bench.records().values()
    numbers = {value.id for value in record.metrics if value.value is not None}
    assert {"token_shift.first", "attention_shift.heads", "path_patching.kl_skip_attention"} <= numbers
    assert {"persistence.diff_diff", "first_token_test.substituted", "logit_attribution.direct"} <= numbers
    assert {"persistence.final_cosine", "path_patching.entropy_plain", "first_token_test.stated"} <= numbers
    opened(driver, made)
    drawn = driver.execute_script("return document.querySelectorAll('.plot .main-svg').length")
    titles = texts(driver, "h2")
    one(driver, "#theme").click()
    assert driver.get_log("browser") == [], "the console must stay silent"
    assert drawn >= 10
    assert {
        "A control: random vectors",
        "Accuracy on pocket_problems",
        "Cost: KL per token (nats)",
        "Receipt",
        "Vectors",
        "Attention",
        "Persistence",
        "Single vectors",
        "Path patching",
        "Heads: mlp",
        "Groups: residual",
        "Entropies",
        "Pairs of layers",
    } <= set(titles)
    sent = requested(driver)
    assert all(url.startswith(("file:", "data:", "blob:")) for url in sent), sent


def test_text_from_elsewhere_stays_text() -> None:
    plot = figures.bars({HOSTILE: 1.0}, HOSTILE)
    assert "<img" not in plot
    assert plot.count("</script>") == 1


def test_mechanism_of_a_method_without_vectors_is_refused_with_its_line(bench: Workbench, command: Command) -> None:
    write(bench, steering={"method": "prefix", "text": " To"})
    done = command("validate", "mine")
    assert done.code == 2
    assert "the method 'prefix' adds none" in done.err
    assert "specs/mine.yaml:" in done.err


@pytest.mark.parametrize(
    ("texts", "wrong"),
    [
        ({"prompts": ["Once"], "scales": [2]}, "`scales` are those of steering vectors; the method 'prefix' adds none"),
        ({}, "state either prompts or problems_from"),
        ({"prompts": ["Once"], "problems_from": READ["problems_from"]}, "state either prompts or problems_from"),
    ],
)
def test_texts_that_cannot_be_written_are_refused_with_their_line(
    bench: Workbench, command: Command, texts: dict[str, Any], wrong: str
) -> None:
    write(bench, steering={"method": "prefix", "text": " To"}, metrics=[{"steered_texts": texts}])
    done = command("validate", "mine")
    assert done.code == 2
    assert wrong in done.err
    assert "specs/mine.yaml:" in done.err


def test_the_page_is_for_steered_cells_only(bench: Workbench, command: Command) -> None:
    bench.spec()
    assert command("run", "mine", "--executor", "inline").code == 0
    done = command("report", "steering", "mine")
    assert done.code == 2
    assert "does not steer" in done.err
