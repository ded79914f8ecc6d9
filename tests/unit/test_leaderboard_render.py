"""The board as Markdown, terminal text, JSON, CSV and HTML source: the same records, the same bytes, nothing live."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from latentbench.core.errors import InvalidInput
from latentbench.core.text import visible
from latentbench.leaderboard.api import leaderboard, write_leaderboard_md
from latentbench.leaderboard.build import board_of
from latentbench.leaderboard.load import load
from latentbench.leaderboard.render.html import embedded
from latentbench.leaderboard.render.text import decimals, markdown, number, p_value, seconds, spread
from latentbench.leaderboard.row_details import provenance
from tests.unit.leaderboard_factory import HOSTILE, Planted, rewritten, write

FORMATS = ("md", "terminal", "json", "csv", "html")
GOLDEN = Path(__file__).parent / "golden" / "LEADERBOARD.md"
CELLS = (
    *(Planted(name="quickstart/topk", label=f"sae.k={k}", seed=s, l0=k, error=e) for k, e in ((8, 0.3), (16, 0.2)) for s in (0, 1)),
    Planted(name="quickstart/gated", label="sae.k=8", l0=8, error=0.303, dirty=True),
    Planted(name="quickstart/gated", label="sae.k=8", seed=1, status="timeout"),
    Planted(name="mine/kron", error=0.1, facts={"context": 256}),
    Planted(name="mine/other", error=0.1),
    Planted(name="mine/third", error=0.15),
)  # fmt: skip


@pytest.fixture
def results(tmp_path: Path) -> Path:
    write(tmp_path, *CELLS)
    return tmp_path


def hostile(results: Path) -> Path:
    path = write(results, Planted(message=HOSTILE, status="failed"), Planted(seed=1, warnings=(HOSTILE,)))
    spec = {"name": f"quickstart/{HOSTILE}", "path": f"specs/{HOSTILE}.yaml", "digest": HOSTILE}
    for written in path:
        rewritten(written, spec=spec, label=HOSTILE)
    return results


def test_markdown_is_what_it_was(results: Path) -> None:
    """Fails when the page's form changes; if that is meant, delete the golden file and run this test once."""
    page = leaderboard(results, "md")
    if not GOLDEN.exists():
        GOLDEN.write_text(page, encoding="utf-8")
        pytest.fail("wrote a new golden file; look at it")
    assert page == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_records_give_the_same_bytes_anywhere(tmp_path: Path, format: str) -> None:
    for name, cells in (("one", CELLS), ("two/deeper", CELLS[::-1])):
        write(tmp_path / name, *cells)
    pages = [leaderboard(tmp_path / name, format) for name in ("one", "two/deeper")]  # type: ignore[arg-type]
    assert pages[0] == pages[1]
    assert str(tmp_path) not in pages[0]


def test_leaderboard_md_is_written_whole(results: Path) -> None:
    path = write_leaderboard_md(results)
    assert path == results / "LEADERBOARD.md"
    assert path.read_text(encoding="utf-8") == leaderboard(results, "md")


@pytest.mark.parametrize("format", FORMATS)
def test_an_empty_results_folder_is_not_an_error(tmp_path: Path, format: str) -> None:
    assert leaderboard(tmp_path, format)  # type: ignore[arg-type]


def test_markdown_marks_best_ties_and_badges(results: Path) -> None:
    page = leaderboard(results, "md", suite="quickstart")
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in page.splitlines() if line.startswith("| quick")}
    assert "**0." in lines["quickstart/topk<br>sae.k=16"]
    assert "1 of 2 seeds" in lines["quickstart/gated<br>sae.k=8"]
    assert "timeout (seed 1)" in lines["quickstart/gated<br>sae.k=8"]
    assert max(line.count("|") for line in page.splitlines()) == 10, "one table per domain, for narrow screens"
    assert "## mine" not in page
    assert "context: 256 (there: 128)" in leaderboard(results, "md", suite="mine")


def test_numbers_measured_with_more_latents_than_in_training_are_marked(tmp_path: Path) -> None:
    (path,) = write(tmp_path, Planted(domains=("general",)))
    (dead,) = (metric for metric in json.loads(path.read_text())["metrics"] if metric["id"] == "dead_fraction")
    at = {k: dead | {"params": {**dead["params"], "budget": k}, "value": k / 1000} for k in (8, 64)}
    at[64]["trained_k"] = 16
    rewritten(path, metrics=[*json.loads(path.read_text())["metrics"], *at.values()])
    marks = {"md": "†", "terminal": "†", "latex": r"$^\dagger$"}
    for format, mark in marks.items():
        page = leaderboard(tmp_path, format, columns=["dead_fraction"])  # type: ignore[arg-type]
        numbers = re.findall(rf"0\.\d+(?:{re.escape(mark)})?", page)
        assert [n for n in numbers if "0.008" in n or "0.064" in n] == ["0.008", f"0.064{mark}"], format
        assert "with more active latents per token than the SAE was trained with" in page
        assert mark not in leaderboard(tmp_path, format, columns=["l0"]), "nothing is marked there"  # type: ignore[arg-type]
    lines = csv.DictReader(io.StringIO(leaderboard(tmp_path, "csv", columns=["dead_fraction"])))
    assert [(line["budget"], line["trained_k"]) for line in lines] == [("", ""), ("8", ""), ("64", "16")]


def test_refused_files_are_named(results: Path) -> None:
    (results / "records" / "bad.json").write_text("{")
    for format in ("md", "terminal", "json", "html"):
        assert "records/bad.json" in leaderboard(results, format, width=300)


def test_terminal_text_is_inert(tmp_path: Path) -> None:
    text = leaderboard(hostile(tmp_path), "terminal", width=400)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]", text)
    assert "\\u001b" in text


@pytest.mark.parametrize("width", [50, 80, 119])
def test_columns_that_do_not_fit_stand_below_each_other_unharmed(results: Path, width: int) -> None:
    whole, narrow = (leaderboard(results, "terminal", columns=["all"], width=w) for w in (1000, width))
    assert max(map(len, narrow.splitlines())) <= width
    numbers = [Counter(re.findall(r"(?<!±)(?<!±<)\b\d\.\d+", page)) for page in (whole, narrow)]
    assert numbers[0] == numbers[1]
    assert numbers[0].total() > 50


def test_terminal_markup_is_text(tmp_path: Path) -> None:
    rewritten(write(tmp_path, Planted())[0], label="[bold red]x[/]")
    assert "[bold red]x[/]" in leaderboard(tmp_path, "terminal", width=300)


def test_markdown_is_inert(tmp_path: Path) -> None:
    page = leaderboard(hostile(tmp_path), "md")
    assert "<img" not in page
    assert "<!--" not in page
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]", page)
    table = [line for line in page.splitlines() if line.startswith("|")]
    # An unescaped bar would add cells to a row.
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1


def test_html_is_one_inert_file(tmp_path: Path) -> None:
    page = leaderboard(hostile(tmp_path), "html")
    assert "<img" not in page
    assert "\u2028" not in page
    assert "default-src 'none'" in page
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    pieces = dict(re.findall(r'<script type="application/json" id="([^"]*)">(.*?)</script>', page, re.DOTALL))
    assert page.count("</script>") == page.count("<script") == len(pieces) + 1
    assert {"board", "details-0-0"} <= set(pieces)
    for name, data in pieces.items():
        assert ("pwned" in str(json.loads(data))) == (name in ("board", "details-0-0"))
        assert not set(data) & set("<>&\u2028\u2029")


def test_embedded_json_survives() -> None:
    data = {"text": HOSTILE, "surrogate": "\ud800"}
    shown = embedded(data)
    assert not set("<>&\u2028\u2029") & set(shown)
    assert json.loads(shown)["text"] == HOSTILE


def test_json_holds_every_number(results: Path) -> None:
    data = json.loads(leaderboard(results, "json", columns=["all"]))
    rows = {(r["spec"], r["label"]): r for group in data["groups"] for r in group["rows"]}
    found = rows["quickstart/topk", "sae.k=16"]
    ev = next(n for n in found["numbers"] if n["metric"] == "explained_variance.centred" and n["domain"] == "general")
    assert ev["standing"] == "behind", "mine/other was measured alike and is better"
    assert ev["low"] < ev["value"] < ev["high"]
    assert rows["quickstart/gated", "sae.k=8"]["complete"] is False


def test_csv_has_one_line_per_number_and_keeps_all_digits(results: Path) -> None:
    lines = list(csv.DictReader(io.StringIO(leaderboard(results, "csv", columns=["explained_variance"]))))
    assert {line["metric"] for line in lines if line["value"]} == {"explained_variance.centred"}
    data = json.loads(leaderboard(results, "json", columns=["explained_variance"]))
    exact = [n["value"] for group in data["groups"] for r in group["rows"] for n in r["numbers"]]
    assert [float(line["value"]) for line in lines if line["value"]] == [v for v in exact if v is not None]


def test_csv_text_is_no_formula(tmp_path: Path) -> None:
    rewritten(write(tmp_path, Planted())[0], label="=HYPERLINK(1)")
    lines = list(csv.DictReader(io.StringIO(leaderboard(tmp_path, "csv"))))
    assert {line["label"] for line in lines} == {"'=HYPERLINK(1)"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"format": "pdf"}, "unknown format"),
        ({"suite": "absent"}, "there are mine, quickstart"),
        ({"columns": ["explained"]}, "explained_variance.centred"),
    ],
)
def test_unknown_choices_are_errors_that_name_what_there_is(results: Path, arguments: dict, says: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(InvalidInput, match=re.escape(says)):
        leaderboard(results, **arguments)


def test_numbers_as_text() -> None:
    assert number(None, "fraction") == "–"
    assert number(0.84567, "fraction") == "0.846"
    assert number(31.96, "latents/token") == "32.0"
    assert number(0.0001234, "fraction") == "1.23e-04"
    assert number(0.0, "fraction") == "0.000"
    assert number(12345.6, "other") == "12,346"
    assert number(0.99918, "fraction", decimals("fraction", [2e-4, 1e-4, 3e-5])) == "0.9992"
    assert decimals("fraction", [0.02]) == decimals("fraction") == decimals("fraction", [0.0]) == 3
    assert decimals("fraction", [1e-9]) == 5
    assert decimals("other", [1e-9]) is None
    assert spread(0.00001, "fraction") == "<0.001"
    assert spread(0.0, "fraction") == "0.000"
    assert [seconds(x) for x in (None, 4.2, 90.0, 7200.0)] == ["–", "4.2 s", "1.5 min", "2.0 h"]
    assert [p_value(p) for p in (None, 0.0001, 0.0321)] == ["", "p < 0.001", "p = 0.032"]


def test_each_domain_has_a_table_with_its_best_row_first(tmp_path: Path) -> None:
    write(tmp_path, Planted(name="a/wide"), Planted(name="a/narrow", error=0.3, domains=("general",)))
    write(tmp_path, Planted(name="a/lost", status="failed", message="lost"))
    page = leaderboard(tmp_path, "md")
    tables = [part.splitlines() for part in page.split("\n\n") if part.startswith("| spec")]
    assert [[line.split(" | ")[0] for line in table[2:]] for table in tables] == [
        ["| a/wide", "| a/narrow", "| a/lost"],
        ["| a/wide", "| a/lost"],
    ]


def test_the_command_runs_only_the_cells_of_its_row(tmp_path: Path) -> None:
    write(tmp_path, Planted(label="sae.k=8"), Planted(label=""))
    rows = [row for group in board_of(load(tmp_path)).groups for row in group.rows]
    start = "latentbench run specs/quickstart/topk.yaml"
    assert {provenance(row)["command"] for row in rows} == {start, f"{start} --filter '[sae.k=8]'"}


def test_plain_text_shows_what_it_neutralises() -> None:
    assert visible("a\x1b[31mb\u202ec\x9b") == "a\\u001b[31mb\\u202ec\\u009b"
    assert visible("Ω – 漢字\n") == "Ω – 漢字\n"


def test_markdown_keeps_words_and_escapes_marks() -> None:
    assert markdown("resid_post a*b [x](y) _z_ | <b>") == r"resid_post a\*b \[x\](y) \_z\_ \| &lt;b&gt;"
    assert "://" not in markdown("https://example.org")


def test_importing_the_leaderboard_is_light() -> None:
    code = "import sys, latentbench.leaderboard; print([m for m in ('torch', 'transformers', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
