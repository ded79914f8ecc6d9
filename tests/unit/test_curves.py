"""Figures and paper pages: which rows are joined, which stand apart, and pages that say what the records say."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import fmean

import pytest

from latentbench.core.errors import InvalidInput
from latentbench.leaderboard.api import suite_board
from latentbench.leaderboard.board import Board
from latentbench.records.results import read_record
from latentbench.report.curves import Axes, curves, figure, words
from latentbench.report.paper_pages import Pages
from latentbench.report.row_patterns import RowPatterns

RESULTS = Path(__file__).parents[2] / "results"
EV = "explained_variance.centred"


@pytest.fixture(scope="module")
def board() -> Board:
    return suite_board(RESULTS, "papers/hierarchical_topk/pocket")


def test_rows_of_a_variant_are_joined_and_a_row_that_was_cut_is_a_curve_of_its_own(board: Board) -> None:
    found = {curve.name: curve for curve in curves(board, Axes(EV, "general"))}
    assert {name: curve.cut for name, curve in found.items()} == {"topk": False, "hierarchical": True, "topk-64": True}
    assert [point.row for point in found["topk"].points] == ["topk-8", "topk-16", "topk-32", "topk-64"]
    assert [point.x for point in found["hierarchical"].points] == pytest.approx([8, 16, 32, 64], abs=0.1)
    (whole,) = (row for group in board.groups for row in group.rows if row.label == "hierarchical")
    (column,) = (
        c for group in board.groups for c in group.columns if c.key.startswith(f"general/{EV}@") and c.budget == 8
    )
    shown = whole.values[column.key]
    assert (found["hierarchical"].points[0].y, found["hierarchical"].points[0].low) == (shown.value, shown.low)


def test_patterns_choose_rows_and_leave_out(board: Board) -> None:
    names = {
        p.row
        for curve in curves(board, Axes(EV, "general", rows=RowPatterns(("topk-*", "!*-64"))))
        for p in curve.points
    }
    assert names == {"topk-8", "topk-16", "topk-32"}


def test_the_same_curves_give_the_same_file_and_text_stays_text(board: Board) -> None:
    axes = Axes(EV, "general")
    found, said = curves(board, axes), words(board, axes)
    assert said == ("L0 (latents/token)", "EV centred (fraction) on general")
    first = figure(found, *said)
    assert first == figure(found, *said)
    for text in ("hierarchical, cut", *said):
        assert f">{text}<".encode() in first
    assert figure(found, *said, "png").startswith(b"\x89PNG")
    assert figure(found, *said, "pdf") == figure(found, *said, "pdf")


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (Axes(EV, "cooking"), "no row has numbers on 'cooking'; there are: chemistry, general"),
        (Axes("accuracy", "general"), "no row has 'accuracy' on general; there are: .*explained_variance.centred"),
        (Axes(EV, "general", rows=RowPatterns(("x*",))), "no row that x. names has both"),
    ],
)
def test_what_cannot_be_drawn_is_said(board: Board, axes: Axes, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        curves(board, axes)
    if axes.domain == "general":
        with pytest.raises(InvalidInput, match="written as svg, png, pdf, not 'gif'"):
            figure([], "x", "y", "gif")


def pages(tmp_path: Path, text: str) -> Pages:
    (tmp_path / "docs/papers/figures").mkdir(parents=True)
    (tmp_path / "docs/papers/one.md").write_text(text)
    (tmp_path / "results").symlink_to(RESULTS)
    return Pages(tmp_path)


def test_a_page_is_filled_from_the_records_and_nothing_else_of_it_changes(tmp_path: Path, board: Board) -> None:
    suite = "papers/hierarchical_topk/pocket"
    text = (
        f"Before.\n<!-- table {suite} general/{EV} general/{EV}@8 rows=topk-* -->\nold\n<!-- end -->\nBetween.\n"
        f"<!-- figure {suite} general {EV} l0 -->\nold\n<!-- end -->\nAfter.\n"
    )
    made = pages(tmp_path, text).files()
    page = made[tmp_path / "docs/papers/one.md"].decode()
    rows = re.findall(r"^\| topk-(\d+) \| (\S+) ±\S+ \| (\S+)", page, re.MULTILINE)
    assert {row: value for row, value, _ in rows}["8"] == "0.821"
    assert {row: cut for row, _, cut in rows} == {"64": "0.484", "32": "–", "16": "–", "8": "–"}
    (drawn,) = re.findall(r"!\[.*?\]\((figures/\S+\.svg)\)", page)
    assert made[tmp_path / "docs/papers" / drawn].startswith(b"<?xml")
    parts = re.split(r"(?<=-->\n).*?(?=<!-- end)", page, flags=re.DOTALL)
    assert parts == re.split(r"(?<=-->\n).*?(?=<!-- end)", text, flags=re.DOTALL)
    (tmp_path / "docs/papers/one.md").write_text(page)
    assert Pages(tmp_path).files()[tmp_path / "docs/papers/one.md"].decode() == page


def test_what_two_things_distinguish_is_a_matrix_of_the_records_means(tmp_path: Path) -> None:
    suite = "papers/steering_vectors/pocket-scales"
    text = f"<!-- matrix {suite} pocket_problems/reasoning_accuracy.gain rows=all*,penultimate* -->\n<!-- end -->\n"
    page = pages(tmp_path, text).files()[tmp_path / "docs/papers/one.md"].decode()
    heading, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")
    ]
    scales = ("0.25", "0.5", "1.0", "2.0")
    assert heading[1:] == [f"steering.scale={scale}" for scale in scales]
    assert [line[0] for line in lines] == ["all", "penultimate"]
    for label, *cells in lines:
        for scale, cell in zip(scales, cells, strict=True):
            paths = sorted((RESULTS / "records" / suite).glob(f"{label}_steering.scale={scale}-seed*.json"))
            assert len(paths) == 3
            found = [
                value.value
                for path in paths
                for value in read_record(path).metrics
                if (value.id, value.domain) == ("reasoning_accuracy.gain", "pocket_problems")
            ]
            shown, half = cell.replace("\\-", "-").split(" ±")
            assert float(shown) == pytest.approx(fmean(v for v in found if v is not None), abs=6e-4)
            assert float(half) >= 0


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("matrix papers/steering_vectors/pocket pocket_problems/reasoning_accuracy.gain", "told by one thing alone"),
        ("matrix papers/steering_vectors/pocket-scales pocket_problems/none", "no row has this column"),
        ("matrix papers/steering_vectors/pocket-scales", "has 1 words where 2 are meant"),
        ("table papers/none general/x", "no records of a spec or folder 'papers/none'"),
        ("table papers/kronsae/pocket general/none", "no row has these columns"),
        ("table papers/kronsae/pocket none", "'none' is no column: write domain/number"),
        ("figure papers/kronsae/pocket general", "has 2 words where 4 are meant"),
    ],
)
def test_a_block_that_cannot_be_made_is_named(tmp_path: Path, block: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=f"docs/papers/one.md: .*{message}"):
        pages(tmp_path, f"<!-- {block} -->\n<!-- end -->\n").files()
