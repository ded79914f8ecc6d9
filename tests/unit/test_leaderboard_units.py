"""Numbers over other units than documents: latents of different SAEs, problems; rows without an SAE."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from latentbench.core.hashing import digest, file_digest
from latentbench.core.plugins import plugin
from latentbench.leaderboard.api import leaderboard
from latentbench.leaderboard.board import Board
from latentbench.leaderboard.build import board_of
from latentbench.leaderboard.compare import NOTHING_TO_TEST, compare
from latentbench.leaderboard.load import load
from latentbench.leaderboard.select import select
from latentbench.metrics import recorded
from latentbench.metrics.base import Display, Estimator, Metric
from latentbench.metrics.value import Interval, MetricValue
from latentbench.metrics.values import metric_values
from latentbench.records.integrity import sealed
from latentbench.records.record import Comparability, DocumentStatistics
from latentbench.store.files import write_arrays, write_json
from tests.unit.leaderboard_factory import Planted, record, rewritten

FORMATS = ("md", "terminal", "json", "csv", "html", "latex")


def _mean(total: Any, n: Any) -> Any:
    return total / n


class Judged(Metric):
    """Scores of single latents, by a judge; latents of two SAEs are different things."""

    metric: Literal["judged"] = "judged"
    judge: str = "words"

    def numbers(self) -> tuple[Estimator, ...]:
        names = f"judged.{self.judge}.hits", f"judged.{self.judge}.trials"
        latents = {"units": "latents", "paired": False, "params": {"judge": self.judge}}
        return (Estimator("judged.score", 1, "fraction", True, names, _mean, **latents),)


class Solved(Metric):
    """Share of problems solved; every row is asked the same problems."""

    metric: Literal["solved"] = "solved"

    def numbers(self) -> tuple[Estimator, ...]:
        inputs = "solved.right", "solved.asked"
        return (Estimator("solved.accuracy", 1, "fraction", True, inputs, _mean, units="problems"),)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    ours = {"judged": Judged, "solved": Solved}
    monkeypatch.setattr(recorded, "plugin", lambda group, name: ours.get(name) or plugin(group, name))
    remembered = recorded.display_of, recorded.estimators, recorded.tallies
    for function in remembered:
        function.cache_clear()
    yield
    for function in remembered:
        function.cache_clear()


def latents(score: float, n: int = 64, seed: int = 0, judge: str = "words") -> dict[str, np.ndarray]:
    hits = np.random.default_rng([seed, n]).binomial(20, score, n).astype(float)
    return {f"judged.{judge}.hits": hits, f"judged.{judge}.trials": np.full(n, 20.0)}


def problems(accuracy: float, n: int = 256, seed: int = 0) -> dict[str, np.ndarray]:
    right = np.random.default_rng([seed, n, 1]).random(n) < accuracy
    return {"solved.right": right.astype(float), "solved.asked": np.ones(n)}


def write(
    results: Path,
    name: str,
    extra: Mapping[str, Mapping[str, np.ndarray]],
    metrics: tuple[Metric, ...] = (Judged(),),
    seed: int = 0,
    **resolved: Any,
) -> None:
    """A planted record with more statistics on its domains, or on domains of their own."""
    made, arrays = record(Planted(name=name, seed=seed, domains=("general",)))
    added = {domain: dict(found) for domain, found in extra.items()}
    arrays |= {f"{domain}/{key}": array for domain, found in added.items() for key, array in found.items()}
    numbers = [
        v.model_copy(update={"params": {**v.params, **_params(metrics, v.id)}})
        for domain, found in added.items()
        for metric in metrics
        if any(set(number.inputs) <= found.keys() for number in metric.numbers())
        for v in metric_values([metric], {domain: found})
    ]
    facts = {domain: {"task": domain} for domain in added if domain not in made.comparability}
    agreed = {d: Comparability(key=digest("comparability", f), fields=f) for d, f in facts.items()}
    section = [*made.resolved["metrics"], *(metric.plain() for metric in metrics)]
    made = made.model_copy(
        update={
            "metrics": (*made.metrics, *numbers),
            "comparability": {**made.comparability, **agreed},
            "resolved": {**made.resolved, "metrics": section, **resolved},
            "cell": digest("cell", [name, seed]),
        }
    )
    path = results / "records" / name / f"seed{seed}-{made.cell[:12]}.json"
    write_arrays(path.with_suffix(".safetensors"), dict(arrays))
    sidecar = path.with_suffix(".safetensors")
    made = made.model_copy(update={"documents": DocumentStatistics(file=sidecar.name, sha256=file_digest(sidecar))})
    write_json(path, sealed(made))


def _params(metrics: tuple[Metric, ...], id: str) -> dict[str, Any]:
    return {} if id != "judged.score" or len(metrics) > 1 else dict(metrics[0].numbers()[0].params)


def board(results: Path) -> Board:
    made = board_of(load(results))
    assert made.problems == ()
    return made


def verdict(made: Board, spec: str, metric: str) -> Any:
    (group,) = made.groups
    row = next(row for row in group.rows if row.spec == spec)
    column = next(column for column in group.columns if column.metric == metric)
    return group.verdict(row, column), row.values[column.key]


def test_rows_with_other_numbers_of_latents_are_ranked(tmp_path: Path) -> None:
    write(tmp_path, "a/best", {"general": latents(0.9, 64)})
    write(tmp_path, "a/near", {"general": latents(0.89, 40, seed=1)})
    write(tmp_path, "a/worse", {"general": latents(0.6, 50, seed=2)})
    made = board(tmp_path)
    found = {name: verdict(made, name, "judged.score") for name in ("a/best", "a/near", "a/worse")}
    assert [found[name][0].standing for name in found] == ["best", "tied", "behind"]
    assert {(v.n, v.units) for _, v in found.values()} == {(64, "latents"), (40, "latents"), (50, "latents")}
    assert made.groups[0].counts == {"general": "60 documents, 40–64 latents"}


def test_few_latents_are_not_testable(tmp_path: Path) -> None:
    write(tmp_path, "a/one", {"general": latents(0.9, 5)})
    write(tmp_path, "a/two", {"general": latents(0.2, 64)})
    made = board(tmp_path)
    assert verdict(made, "a/two", "judged.score")[0].reason == "not testable with n = 5 latents"
    assert verdict(made, "a/one", "explained_variance.centred")[0].standing is not None, "documents are as before"


def test_seeds_with_other_numbers_of_latents_are_averaged_with_an_interval(tmp_path: Path) -> None:
    for seed, n in enumerate((64, 40, 52)):
        write(tmp_path, "a/one", {"general": latents(0.8, n, seed=seed)}, seed=seed)
    value = verdict(board(tmp_path), "a/one", "judged.score")[1]
    assert value.n is None
    assert value.low is not None
    assert value.high is not None
    assert value.low < value.value < value.high
    assert 0.005 < value.high - value.low < 0.1


def test_a_domain_may_hold_statistics_of_other_lengths(tmp_path: Path) -> None:
    """60 documents, 64 latents, 256 problems, all on one domain."""
    write(tmp_path, "a/one", {"general": {**latents(0.9), **problems(0.7)}}, (Judged(), Solved()))
    write(tmp_path, "a/two", {"general": {**latents(0.9, 30), **problems(0.4)}}, (Judged(), Solved()))
    made = board(tmp_path)
    assert verdict(made, "a/two", "solved.accuracy")[0].standing == "behind"
    assert set(made.groups[0].counts["general"].split(", ")) == {"60 documents", "30–64 latents", "256 problems"}


def test_tasks_are_domains_and_problems_are_paired(tmp_path: Path) -> None:
    write(tmp_path, "a/one", {"word_problems": problems(0.7)}, (Solved(),))
    write(tmp_path, "a/two", {"word_problems": problems(0.4)}, (Solved(),))
    found = compare(select(load(tmp_path), "a/one"), select(load(tmp_path), "a/two"))
    change = next(c for c in found.changes if c.column.metric == "solved.accuracy")
    assert (change.column.domain, change.a.n, change.a.units) == ("word_problems", 256, "problems")
    assert change.better == "A"
    assert "256 problems" in leaderboard(tmp_path, "md")


def test_paired_units_must_be_equally_many(tmp_path: Path) -> None:
    write(tmp_path, "a/one", {"word_problems": problems(0.7)}, (Solved(),))
    write(tmp_path, "a/two", {"word_problems": problems(0.7, n=100)}, (Solved(),))
    found = compare(select(load(tmp_path), "a/one"), select(load(tmp_path), "a/two"))
    change = next(c for c in found.changes if c.column.metric == "solved.accuracy")
    assert change.reason == "not testable: different numbers of problems"


def test_comparing_latents_is_unpaired_and_names_no_movers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Judged, "displays", {"judged.score": Display("Judged", movers=True)})
    write(tmp_path, "a/one", {"general": latents(0.6)})
    write(tmp_path, "a/two", {"general": latents(0.9, 40)})
    found = compare(select(load(tmp_path), "a/one"), select(load(tmp_path), "a/two"))
    change = next(c for c in found.changes if c.column.metric == "judged.score")
    assert change.better == "B"
    assert change.low is not None
    assert change.high is not None
    assert change.difference is not None
    assert 0 < change.low < change.difference < change.high
    assert [key for key in found.movers if "judged" in key] == []


def test_two_judges_are_two_columns(tmp_path: Path) -> None:
    words, letters = Judged(), Judged(judge="letters")
    both = {**latents(0.9), **latents(0.4, judge="letters")}
    for name in ("a/one", "a/two"):
        write(tmp_path, name, {"general": both}, (words,))
        path = next((tmp_path / "records" / name).glob("*.json"))
        data = json.loads(path.read_text())
        (other,) = metric_values([letters], {"general": both})
        other = other.model_copy(update={"params": {"judge": "letters"}})
        data["metrics"].append(other.model_dump(mode="json"))
        data["resolved"]["metrics"].append(letters.plain())
        rewritten(path, **data)
    columns = [c for c in board(tmp_path).groups[0].columns if c.metric == "judged.score"]
    assert {c.params for c in columns} == {"judge=words", "judge=letters"}
    page = leaderboard(tmp_path, "json", columns=["judged.score"])
    numbers = json.loads(page)["groups"][0]["rows"][0]["numbers"]
    values = {number["params"]: number["value"] for number in numbers}
    assert values["judge=words"] > 0.8
    assert values["judge=letters"] < 0.5
    assert "judged.score (judge=letters)" in leaderboard(tmp_path, "md", columns=["judged"])


def test_numbers_of_the_whole_run_have_a_difference_and_nothing_to_test(tmp_path: Path) -> None:
    for name, value in (("a/one", 1000.0), ("a/two", 4000.0)):
        write(tmp_path, name, {})
        path = next((tmp_path / "records" / name).glob("*.json"))
        data = json.loads(path.read_text())
        cost = MetricValue(id="cost.parameters", version=1, value=value, unit="parameters", higher_is_better=False)
        rewritten(path, metrics=[*data["metrics"], cost.model_dump(mode="json")])
    found = compare(select(load(tmp_path), "a/one"), select(load(tmp_path), "a/two"))
    change = next(c for c in found.changes if c.column.metric == "cost.parameters")
    assert (change.difference, change.p, change.reason) == (3000.0, None, NOTHING_TO_TEST)
    assert "alike" not in str(change.reason)


def test_units_of_numbers_whose_metric_is_not_installed_come_from_their_interval(tmp_path: Path) -> None:
    write(tmp_path, "a/one", {})
    path = next((tmp_path / "records" / "a/one").glob("*.json"))
    data = json.loads(path.read_text())
    ci = Interval(low=0.1, high=0.2, method="transition bootstrap, expanded percentile")
    other = MetricValue(
        id="other.share", version=1, domain="general", value=0.15, unit="fraction", higher_is_better=True, n=12, ci=ci
    )
    rewritten(path, metrics=[*data["metrics"], other.model_dump(mode="json")])
    assert board(tmp_path).groups[0].counts == {"general": "60 documents, 12 transitions"}


WITHOUT_SAE = {
    "steering": {"sae": None, "layer": None, "steering": {"method": "rl", "scale": 1.5}},
    "flow": {"sae": None, "layer": None, "layers": [{"index": 2, "point": "resid_post"}, {"index": 3}], "flow": {}},
    "sites": {
        "sae": None,
        "layer": None,
        "layers": [{"index": i, "point": p} for i in range(4) for p in ("attn_out", "mlp_out")],
    },
    "bare": {"sae": None, "layer": None},
}


@pytest.mark.parametrize("kind", WITHOUT_SAE)
@pytest.mark.parametrize("format", FORMATS)
def test_rows_without_an_sae_are_shown(tmp_path: Path, kind: str, format: str) -> None:
    write(tmp_path, "a/one", {"word_problems": problems(0.7)}, (Solved(),), **WITHOUT_SAE[kind])
    page = leaderboard(tmp_path, format)  # type: ignore[arg-type]
    assert "None" not in re.sub(r"[\"']none[\"']", "", page)
    assert "a/one" in page


def test_titles_name_the_layers(tmp_path: Path) -> None:
    for kind, title in (
        ("steering", "pocket"),
        ("flow", "pocket · layers 2 resid_post; 3"),
        ("sites", "pocket · layers 0–3 attn_out, mlp_out"),
    ):
        write(tmp_path / kind, "a/one", {}, (), **WITHOUT_SAE[kind])
        assert board(tmp_path / kind).groups[0].title == title


def test_headings_say_only_what_tells_columns_apart(tmp_path: Path) -> None:
    write(tmp_path, "a/one", {})
    (written,) = (tmp_path / "records").rglob("*.json")
    made = json.loads(written.read_text())
    steered = [
        MetricValue(
            id="flow_steering.shift", version=2, domain="general", value=0.5, unit="fraction", higher_is_better=None, n=60,
            params={"target": "chemistry", "strength": strength},
        ).model_dump(mode="json")
        for strength in (1.0, 2.0)
    ]  # fmt: skip
    rewritten(written, metrics=[*made["metrics"], *steered])
    (group,) = board(tmp_path).groups
    headings = [group.heading(column) for column in group.columns if column.metric == "flow_steering.shift"]
    assert headings == ["Steered (strength=1.0)", "Steered (strength=2.0)"]


def test_accuracy_against_scale_is_plotted_where_rows_differ_in_scale(tmp_path: Path) -> None:
    from latentbench.leaderboard.render import html

    made, _ = record(Planted(domains=("general",)))
    values = [("word_problems", "reasoning_accuracy.accuracy", True), ("general", "capability_cost.kl", False)]
    for number, scale in enumerate((0.0, 1.0, 2.0)):
        metrics = [
            MetricValue(id=id, version=1, domain=d, value=0.5 + number / 10, unit="fraction", higher_is_better=better)
            for d, id, better in values
        ]
        facts = {
            d: Comparability(key=digest("comparability", d), fields={"d": d}) for d in ("word_problems", "general")
        }
        cell = made.model_copy(
            update={
                "cell": digest("cell", scale), "label": f"steering.scale={scale}", "metrics": tuple(metrics),
                "comparability": facts, "resolved": {"model": {"id": "m"}, "steering": {"method": "rl", "scale": scale}},
            }
        )  # fmt: skip
        write_json(tmp_path / f"records/a/{number}.json", sealed(cell))
    page = html.page(board_of(load(tmp_path)))
    data = json.loads(re.search(r'id="board">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    (group,) = data["groups"]
    labels = [c["label"] for c in group["columns"]]
    seen = {(p["x"] if p["x"] == "scale" else labels[p["x"]], labels[p["y"]], p["domain"]) for p in group["plots"]}
    assert seen == {("scale", "Accuracy", "word_problems"), ("KL to the unsteered", "Accuracy", "word_problems")}
    assert sorted(group["rows"]["scale"]) == [0.0, 1.0, 2.0]
    assert group["rows"]["variant"] == {"all": "rl"}
