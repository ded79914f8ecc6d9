"""The results in the repository: every record is whole, and the table follows from the records."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from latentbench.core.hashing import file_digest
from latentbench.leaderboard.api import leaderboard
from latentbench.records.results import read_record

RESULTS = Path(__file__).parents[2] / "results"
RECORDS = sorted((RESULTS / "records").rglob("*.json"))
PAGES = [RESULTS / "README.md", *sorted((RESULTS.parent / "docs/papers").glob("*.md"))]
TEXT = "\n".join(
    re.sub(r"<!-- (?:table|matrix) .*?<!-- end -->", "", page.read_text("utf-8"), flags=re.DOTALL) for page in PAGES
)
"""What people wrote; tables that are made from the records have a check of their own."""


def test_there_are_results() -> None:
    assert RECORDS


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_committed_record_is_whole(path: Path) -> None:
    record = read_record(path)
    assert record.status == "ok"
    assert path.stem.endswith(f"seed{record.seed}-{record.cell[:12]}")
    assert path.parent == RESULTS / "records" / record.spec.name
    assert record.documents is not None
    assert file_digest(path.with_name(record.documents.file)) == record.documents.sha256


def test_the_table_is_what_the_records_say() -> None:
    assert (RESULTS / "LEADERBOARD.md").read_text("utf-8") == leaderboard(RESULTS, "md")


QUOTED = re.compile(r"^\| (\S+) (\S+) \| (\S+?)((?: \w+=\S+)*) \| (\S+) \| (-?\d+\.\d+) \|$", re.MULTILINE)


@pytest.mark.parametrize("quoted", QUOTED.findall(TEXT), ids=" ".join)
def test_what_is_quoted_is_the_mean_of_the_records(quoted: tuple[str, ...]) -> None:
    spec, label, number, settings, domain, shown = quoted
    wanted = dict(setting.split("=") for setting in settings.split())
    found = [
        value.value
        for record in map(read_record, sorted((RESULTS / "records" / spec).glob(f"{label}-seed*.json")))
        for value in record.metrics
        if (value.id, value.domain) == (number, domain) and quoted_settings(value.params, wanted) == wanted
    ]
    values = [value for value in found if value is not None]
    assert len(values) == 3
    assert f"{fmean(values):.{len(shown.partition('.')[2])}f}" == shown


def test_concepts_have_the_controls_that_their_scores_need() -> None:
    """Random directions gain nothing that could be told in any seed, a prompt gains in every one."""
    folder = RESULTS / "records/steering/concepts-smollm2-135m"
    gains = {
        (label, record.seed): value.ci
        for label in ("random", "prompt")
        for record in map(read_record, sorted(folder.glob(f"{label}-seed*.json")))
        for value in record.metrics
        if value.id == "concept_steering.gain"
    }
    assert len(gains) == 6
    for (label, _), ci in gains.items():
        assert ci is not None
        assert ci.low < 0 < ci.high if label == "random" else ci.low > 0


def quoted_settings(params: Mapping[str, Any], wanted: Collection[str]) -> dict[str, str]:
    """Of a number's settings those that a row names, and always its budget: without one, the whole SAE is meant."""
    return {name: str(value) for name, value in params.items() if name in {*wanted, "budget"}}


def test_every_row_that_looks_like_a_quote_is_one() -> None:
    rows = [
        line for line in TEXT.splitlines() if line.startswith(("| papers/", "| latents/", "| real/", "| steering/"))
    ]
    assert len(rows) == len(QUOTED.findall(TEXT)) > 100


SAE_OF_DOMAIN = re.compile(r"^real/(\w+)((?: +-?\d*\.\d+){6})$", re.MULTILINE)


@pytest.mark.parametrize("row", SAE_OF_DOMAIN.findall(TEXT), ids=" ".join)
def test_what_is_said_of_three_domains_is_what_the_records_say(row: tuple[str, str]) -> None:
    name, shown = row
    (path,) = (RESULTS / "records/real" / name).glob("*.json")
    values = {(one.id, one.domain): one.value for one in read_record(path).metrics if one.budget is None}
    ids = ("explained_variance.centred", "cross_entropy.increase")
    asked = [(number, domain) for domain in ("medicine", "python_code", "general") for number in ids]
    assert [f"{values[key]:.3f}".removeprefix("0") for key in asked] == shown.split()


def test_three_domains_are_quoted() -> None:
    assert len(SAE_OF_DOMAIN.findall(TEXT)) == 3
