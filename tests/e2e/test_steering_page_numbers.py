"""Every number of a steering page, computed again from the records and from what is stored, without the code that made the page.

Bootstrap, exchange test and Holm's adjustment are written out here from their definitions (harness/latentbench/statistics).
"""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file
from scipy import stats

from latentbench.interventions.generation import prompt_ids
from latentbench_adapters.pocket.adapter import PocketModel
from tests.conftest import furnish
from tests.support.browser import HOSTILE, PHONE, Browser, opened, requested, screen, texts
from tests.support.project import Workbench, run

pytestmark = pytest.mark.usefixtures("one_thread")

TASK, TEXTS = "pocket_problems", "general"
PROBLEMS = {"adapter": "pocket", "split": "train", "skip": 4096}
WRITTEN: dict[str, Any] = {"problems_from": PROBLEMS, "count": 2, "new_tokens": 12}
ACCURACY: dict[str, Any] = {"reasoning_accuracy": {"task": TASK, "limit": 24}}
COST: dict[str, Any] = {"capability_cost": {"scales": [0.5, 2]}}
SPEC: dict[str, Any] = {
    "model": {"adapter": "pocket"},
    "dataset": {
        "eval": {TEXTS: {"adapter": "pocket", "domain": "general", "split": "eval", "documents": 12, "context": 32}}
    },
    "steering": {
        "method": "contrastive",
        "layers": [3, 4],
        "scale": 0.5,
        "problems": {"adapter": "pocket", "split": "train", "limit": 16},
        "positive": [" To find out, go step by step."],
        "negative": [" 42."],
    },
    "metrics": [ACCURACY, COST, "steering_dose", "logit_lens", {"steered_texts": {**WRITTEN, "scales": [0.25, 0.5]}}],
    "cases": [
        {"label": "steps"},
        {
            "label": "random",
            "steering": {"method": "random", "layers": [3, 4], "norm": [2.0, 4.0]},
            "metrics": [ACCURACY, COST, {"steered_texts": {**WRITTEN, "scales": [0.25]}}],
        },
        {
            "label": "prefix",
            "steering": {"method": "prefix", "text": " To find out, go step"},
            "metrics": [ACCURACY, "capability_cost", {"steered_texts": WRITTEN}],
        },
    ],
}


def ran(bench: Workbench, name: str, spec: dict[str, Any]) -> None:
    bench.write(f"specs/{name}.yaml", yaml.safe_dump(spec, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(bench.root)
        assert run(["run", name, "--executor", "inline"]) == 0


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workbench:
    bench = furnish(tmp_path_factory.mktemp("steered") / "project", tiny_model)
    ran(bench, "mine", SPEC)
    return bench


def record(bench: Workbench, label: str, spec: str = "mine") -> dict[str, Any]:
    (path,) = (bench.root / f"results/records/{spec}").glob(f"{label}*.json")
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found | {"statistics": load_file(path.with_suffix(".safetensors"))}


def page_of(bench: Workbench, made: dict[str, Any]) -> Path:
    return bench.root / "results/pages" / f"{made['cell'][:16]}-steering.html"


def stored(bench: Workbench, kind: str, made: dict[str, Any], name: str) -> Path:
    key = made["keys"][name]
    return bench.root / "results/store/objects" / kind / key[:2] / key


class Elements(HTMLParser):
    """The text of every element of a page with the elements that it stands in, in the order in which they end."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.found: list[tuple[tuple[str, ...], str]] = []
        """(names of what is around it and its own, as `tag` or `tag:label`; text)."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "br"):
            self.open.append((tag, dict(attrs), []))

    def handle_data(self, data: str) -> None:
        for _, _, parts in self.open:
            parts.append(data)

    def handle_endtag(self, tag: str) -> None:
        names = tuple(f"{name}:{own['aria-label']}" if own.get("aria-label") else name for name, own, _ in self.open)
        self.found.append((names, "".join(self.open.pop()[2])))


def elements(page: Path) -> list[tuple[tuple[str, ...], str]]:
    text = page.read_text("utf-8")
    reader = Elements()
    reader.feed(re.sub(r"<(script|style)[^>]*>.*?</\1>", "", text, flags=re.DOTALL))
    return reader.found


def rows(page: Path, table: str) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for names, text in elements(page):
        if f"div:{table}" in names and "tbody" in names:
            if names[-1] in ("th", "td"):
                found[-1].append(text.removeprefix("\n"))
            elif names[-1] == "tr":
                found.append([])
    return found[:-1]


def said(page: Path) -> tuple[str, str]:
    """The headline and the sentences of the verdict."""
    (section, *_) = [place for place, (names, _) in enumerate(elements(page)) if names[-1] == "section"]
    verdict = elements(page)[: section + 1]
    return next(text for names, text in verdict if names[-1] == "h2"), " ".join(
        text for names, text in verdict if names[-1] == "p" and "section" in names
    )


def sums(made: dict[str, Any], name: str) -> np.ndarray:
    return np.asarray(made["statistics"][name])


def per_unit(made: dict[str, Any], number: str) -> tuple[np.ndarray, np.ndarray]:
    """Numerator and denominator [units] of a number that is a ratio of sums."""
    if number == "gain":
        start = f"{TASK}/reasoning_accuracy"
        gained = sums(made, f"{start}.correct") - sums(made, f"{start}.base_correct")
        return gained, sums(made, f"{start}.answers")
    start = f"{TEXTS}/capability_cost"
    return sums(made, f"{start}.kl"), sums(made, f"{start}.predictions")


def bootstrap(*ratios: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """Expanded percentile interval of a ratio, or of the first minus the second over the same resamples."""
    n = len(ratios[0][0])
    drawn = np.random.default_rng([0, n]).multinomial(n, np.full(n, 1 / n), size=2000).astype(float)
    values = [(drawn @ top) / (drawn @ bottom) for top, bottom in ratios]
    tail = stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1))
    low, high = np.quantile(values[0] - values[1] if len(values) == 2 else values[0], [tail, 1 - tail])
    return float(low), float(high)


def exchange_p(ours: tuple[np.ndarray, np.ndarray], theirs: tuple[np.ndarray, np.ndarray]) -> float:
    """Of ratios over one denominator, which are linear in what is exchanged: a t-test of the units' differences."""
    assert np.array_equal(ours[1], theirs[1])
    differences = ours[0] - theirs[0]
    if not np.abs(differences).sum():
        return 1.0
    return float(max(stats.ttest_1samp(differences, 0).pvalue, 2.0 ** (1 - len(differences))))


def holm(*p_values: float) -> list[float]:
    """For two p-values: the smaller one twice, the larger one as it is and never below the other."""
    smaller = min(1.0, 2 * min(p_values))
    first = int(np.argmin(p_values))
    return [smaller if place == first else max(smaller, p) for place, p in enumerate(p_values)]


def prompts_of(page: Path) -> list[str]:
    """The prompts that stand above the tables of texts."""
    found = [(names, text) for names, text in elements(page) if names[-1] == "pre" and "section:Texts" in names]
    return [text.removeprefix("\n") for names, text in found if "table" not in names]


def plain(number: float, number_format: str) -> str:
    return format(number, number_format).replace("-", "−")


def points(number: float, sign: str = "") -> str:
    return plain(100 * number, f"{sign}.1f")


def nats(number: float, sign: str = "") -> str:
    return plain(number, f"{sign}.3g")


def p_text(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def test_the_verdict_and_its_table_follow_from_the_records(steered: Workbench) -> None:
    cell, controls = record(steered, "steps"), {name: record(steered, name) for name in ("prefix", "random")}
    made = page_of(steered, cell)
    ours = {number: per_unit(cell, number) for number in ("gain", "kl")}
    wanted = []
    held: dict[str, str] = {}
    for number, shown, unit in (("gain", points, "points"), ("kl", nats, "nats/token")):
        theirs = {name: per_unit(made, number) for name, made in controls.items()}
        adjusted = holm(*(exchange_p(ours[number], other) for other in theirs.values()))
        for (name, other), p in zip(theirs.items(), adjusted, strict=True):
            here, there = (top.sum() / bottom.sum() for top, bottom in (ours[number], other))
            low, high = bootstrap(ours[number], other)
            span = f"{shown(low)} to {shown(high)}"
            wanted.append(
                [f"{shown(x, '+')} {unit}" for x in (here, there, here - there)] + [span, p_text(p)],
            )
            held[f"{number} {name}"] = f"({shown(here - there, '+')} {unit}, {span}"
    table = rows(made, "Controls")
    assert [row[2:] for row in table] == wanted
    assert [row[0] for row in table] == [f"accuracy, {TASK}"] * 2 + [f"KL divergence, {TEXTS}"] * 2

    title, about = said(made)
    answered = sums(cell, f"{TASK}/reasoning_accuracy.answers").sum()
    before, after = (sums(cell, f"{TASK}/reasoning_accuracy.{side}").sum() for side in ("base_correct", "correct"))
    gain, (low, high) = (after - before) / answered, bootstrap(ours["gain"])
    assert f"from {100 * before / answered:.1f} % to {100 * after / answered:.1f} %" in about
    n = len(ours["gain"][0])
    assert f"{points(abs(gain))} points" in about
    assert f"(95 % interval {points(low)} to {points(high)}, {n} problems)" in about
    assert held["gain prefix"] in about
    assert held["gain random"] in about
    verdict = "No gain" if low <= 0 <= high else "A loss" if gain < 0 else "A gain"
    low, high = bootstrap(ours["kl"])
    cost = ours["kl"][0].sum() / ours["kl"][1].sum()
    assert f"It costs {nats(cost)} nats/token of KL divergence on {TEXTS} ({nats(low)} to {nats(high)})." in about
    dose = tuple(sums(cell, f"{TEXTS}/steering_dose.{name}") for name in ("ratio", "changed"))
    low, high = bootstrap((dose[0], dose[1]))
    moved = f"{nats(dose[0].sum() / dose[1].sum())} on {TEXTS} ({nats(low)} to {nats(high)}), at scale 0.5."
    assert f"The dose ‖Δ‖/‖h‖ is {moved}" in about
    assert title.startswith(f"{verdict} in accuracy on {TASK}")


def test_vectors_frontier_bars_and_receipts_show_what_is_stored(steered: Workbench) -> None:
    cell, random = record(steered, "steps"), record(steered, "random")
    made = page_of(steered, cell)
    content = stored(steered, "subject", cell, "subject")
    vectors, meta = load_file(content / "content.safetensors"), json.loads((content / "content.json").read_text())
    lens = json.loads((stored(steered, "study", cell, "study/logit_lens") / "content.json").read_text())
    norms = {layer: float(np.linalg.norm(vectors[f"layer.{layer}"].astype(np.float64))) for layer in (3, 4)}
    wanted = []
    for layer, norm in norms.items():
        residual = meta["residual_norms"][str(layer)]
        wanted.append([str(layer), *(plain(x, ".4g") for x in (norm, norm / 2, residual, norm / 2 / residual))])
    table = rows(made, "Vectors")
    assert [row[:5] for row in table] == wanted
    tops = {layer["layer"]: layer["top"][0]["cosine"] for layer in layers_of(lens)}
    assert all(f"{tops[int(row[0])]:.2f}" in row[5] for row in table)
    ratios = sorted((2.0 / (norms[3] / 2), 4.0 / (norms[4] / 2)))
    assert f"of {ratios[0]:.2f} to {ratios[1]:.2f} times the length at the same layers" in rows(made, "Controls")[1][1]

    frontier = {row[0]: row[1:] for row in rows(made, f"Accuracy against cost, {TASK}")}
    for label, one in (("steps", cell), ("random", random), ("prefix", record(steered, "prefix"))):
        correct, answered = (sums(one, f"{TASK}/reasoning_accuracy.{name}").sum() for name in ("correct", "answers"))
        top, bottom = per_unit(one, "kl")
        assert frontier[label] == [plain(top.sum() / bottom.sum(), ".4g"), plain(correct / answered, ".4g")]
    assert len(frontier) == 3

    drawn = [
        json.loads(part) for part in re.findall(r'<script type="application/json">(.*?)</script>', made.read_text())
    ]
    (bars,) = [one["data"][0] for one in drawn if one["data"][0]["type"] == "bar" and "base" in one["data"][0]["x"]]
    base = sums(cell, f"{TASK}/reasoning_accuracy.base_correct").sum() / len(
        sums(cell, f"{TASK}/reasoning_accuracy.problems")
    )
    assert bars["y"][bars["x"].index("base")] == pytest.approx(base, abs=1e-12)
    costs = next(one["data"][0] for one in drawn if "KL per token (nats)" in json.dumps(one["layout"]["yaxis"]))
    assert costs["x"] == [0.5, 2]
    start = f"{TEXTS}/capability_cost"
    of = [sums(cell, f"{start}.kl[{s}]").sum() / sums(cell, f"{start}.predictions").sum() for s in ("0.5", "2.0")]
    assert costs["y"] == pytest.approx(of, abs=1e-12)

    receipts = {row[0]: row for row in rows(made, "Receipt")}
    assert set(receipts) == {f"accuracy on {TASK}", "capability cost", "dose", "texts"}
    tokens = int(sums(cell, f"{TEXTS}/capability_cost.predictions").sum())
    assert int(receipts["capability cost"][3].replace(",", "")) == 2 * (tokens + 12), (
        "a document's last token predicts none"
    )


def layers_of(lens: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = lens.get("details", lens)["layers"]
    return found


def test_all_numbers_are_those_of_the_record(steered: Workbench) -> None:
    cell = record(steered, "steps")
    table = rows(page_of(steered, cell), "All numbers")
    assert len(table) == len(cell["metrics"])
    for row, number in zip(table, cell["metrics"], strict=True):
        assert row[0].startswith(number["id"])
        assert row[2] == (number["null_reason"] if number["value"] is None else plain(number["value"], ".4g"))
        if number["ci"]:
            assert row[3] == " to ".join(plain(number["ci"][end], ".4g") for end in ("low", "high"))


@torch.no_grad()
def greedy(lm: Any, prompt: str, new_tokens: int, added: dict[int, torch.Tensor]) -> str:
    """One token after the other, without a cache, by a plain hook on the blocks' output."""
    ids = prompt_ids(lm, [prompt])[0]
    start, ends = len(ids), {lm.tokenizer.eos_token_id}
    handles = [
        block.register_forward_hook(lambda module, args, output, delta=added[n]: with_added(output, delta))
        for n, block in enumerate(lm.model.model.layers)
        if n in added
    ]
    try:
        while len(ids) - start < new_tokens and not (ids[start:] and ids[-1] in ends):
            ids.append(int(lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    finally:
        for handle in handles:
            handle.remove()
    return str(lm.tokenizer.decode(ids[start:], skip_special_tokens=True))


def with_added(output: Any, delta: torch.Tensor) -> Any:
    return (output[0] + delta, *output[1:]) if isinstance(output, tuple) else output + delta


def test_texts_at_every_scale_are_those_that_plain_hooks_give(steered: Workbench) -> None:
    cell, random = record(steered, "steps"), record(steered, "random")
    made_page = page_of(steered, cell)
    lm = PocketModel(adapter="pocket").load(steered.project.roots, torch.device("cpu"))
    vectors = {
        name: load_file(stored(steered, "subject", made, "subject") / "content.safetensors")
        for name, made in (("steps", cell), ("random", random))
    }
    prompts = prompts_of(made_page)
    assert len(prompts) == 2
    for place, prompt in enumerate(prompts):
        table = {
            row[0]: [text.removesuffix(" …") for text in row[1:]]
            for row in rows(made_page, f"Texts after prompt {place + 1}")
        }
        assert list(table) == ["0.25", "0.5 (the spec's)"], "the spec's own scale is one row, however often it is named"
        for said, scale in (("0.25", 0.25), ("0.5 (the spec's)", 0.5)):
            unsteered, own, of_prefix, of_random = table[said]
            at = {"steps": scale, "random": 0.25 if scale == 0.25 else 1.0}  # the control's own scale is 1
            added = {
                name: {n: at[name] * torch.from_numpy(vectors[name][f"layer.{n}"]) for n in (3, 4)} for name in vectors
            }
            assert unsteered == greedy(lm, prompt, 12, {})
            assert own == greedy(lm, prompt, 12, added["steps"])
            assert of_random == greedy(lm, prompt, 12, added["random"])
            assert of_prefix == ("–" if scale == 0.25 else greedy(lm, prompt + " To find out, go step", 12, {}))


def test_a_control_says_what_it_is_and_is_held_against_nothing(steered: Workbench) -> None:
    for label, kind in (
        ("random", "random vectors"),
        ("prefix", "the prefix “ To find out, go step” in place of a vector"),
    ):
        made = page_of(steered, record(steered, label))
        assert said(made)[0] == f"A control: {kind}"
        assert rows(made, "Controls") == []


def test_without_a_control_nothing_is_concluded_and_a_case_is_offered(steered: Workbench) -> None:
    ran(steered, "alone", {**SPEC, "metrics": [ACCURACY], "cases": [{"label": "steps"}]})
    cell = record(steered, "steps", "alone")
    made = page_of(steered, cell)
    title, about = said(made)
    assert title == f"A loss in accuracy on {TASK}"
    assert "No control was measured alike, so nothing is concluded" in about
    assert "not measured; steering_dose does so" in about
    assert "What it costs on other text is not measured; capability_cost does so" in about
    (offered,) = yaml.safe_load(
        next(text for names, text in elements(made) if names[-1] == "pre" and "section" in names)
    )
    norms = [float(row[2]) for row in rows(made, "Vectors")]
    assert offered["steering"]["norm"] == pytest.approx(norms, rel=1e-3)
    ran(
        steered, "alone", {**SPEC, "metrics": [ACCURACY], "cases": [{"label": "steps"}, offered]}
    )  # it is a case that runs


def test_without_a_gain_the_costs_are_held_against_the_control(steered: Workbench) -> None:
    cases = [{"label": "steps"}, {"label": "random", "steering": SPEC["cases"][1]["steering"]}]
    ran(steered, "costs", {**SPEC, "metrics": ["capability_cost"], "cases": cases})
    made = page_of(steered, record(steered, "steps", "costs"))
    assert said(made)[0] == "Whether steering helps was not measured"
    (row,) = rows(made, "Controls")
    assert row[0] == f"KL divergence, {TEXTS}"


@pytest.mark.browser
def test_the_page_fits_a_phone_fetches_nothing_and_tables_can_be_scrolled_by_keys(
    steered: Workbench, driver: Browser
) -> None:
    with screen(driver, PHONE):
        opened(driver, page_of(steered, record(steered, "steps")))
        assert driver.execute_script("return document.documentElement.scrollWidth") == PHONE
        cut = (
            "return [...document.querySelectorAll('main :is(p, th, td, pre, h2, h3)')].filter(e => e.checkVisibility() "
            "&& !e.closest('thead') && e.getBoundingClientRect().right > innerWidth).map(e => e.textContent)"
        )
        assert driver.execute_script(cut) == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requested(driver))
    script = "return [...document.querySelectorAll('main .wide table')].filter(e => e.closest('.wide').tabIndex !== 0).length"
    assert driver.execute_script(script) == 0
    assert driver.get_log("browser") == []


@pytest.mark.browser
def test_names_and_texts_from_elsewhere_stay_text(steered: Workbench, driver: Browser) -> None:
    prompts = {"steered_texts": {"prompts": [HOSTILE], "new_tokens": 2}}
    cases = [{"label": "steps"}, {"label": "prefix", "steering": {"method": "prefix", "text": HOSTILE}}]
    ran(steered, "hostile", {**SPEC, "metrics": [ACCURACY, prompts], "cases": cases})
    opened(driver, page_of(steered, record(steered, "steps", "hostile")))
    assert driver.title == "hostile [steps] · steering"
    assert driver.execute_script("return document.querySelectorAll('main img').length") == 0
    assert HOSTILE in " ".join(texts(driver, "#verdict p"))
    assert texts(driver, "section[aria-label=Texts] h3 + pre") == [HOSTILE]
