"""Texts from files: what is read in which order, what is refused with its line, and what the identity follows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import latentbench_adapters.text_files as module
from latentbench.core.errors import InvalidInput, NotAvailable, RefusedFile
from latentbench.core.hashing import canonical
from latentbench.core.paths import Roots
from latentbench_adapters.datasets import FilesDataset
from tests.support.project import write_jsonl


def texts(roots: Roots, **fields: Any) -> list[str]:
    return list(FilesDataset(**fields).texts(roots))


def test_text_files_are_split_as_asked(roots: Roots) -> None:
    (roots.project / "a.txt").write_bytes("\ufeffone\nstill\n\n\n  two \n".encode())
    assert texts(roots, path="a.txt") == ["one\nstill\n\n\n  two \n"]
    assert texts(roots, path="a.txt", split_on="line") == ["one", "still", "two"]
    assert texts(roots, path="a.txt", split_on="blank_line") == ["one\nstill", "two"]


def test_globs_read_files_in_the_order_of_their_names(roots: Roots) -> None:
    for name in ("b/2.txt", "b/10.txt", "a/9.txt"):
        (roots.project / "t" / name).parent.mkdir(parents=True, exist_ok=True)
        (roots.project / "t" / name).write_text(name)
    assert texts(roots, path="t/**/*.txt") == ["a/9.txt", "b/10.txt", "b/2.txt"]
    assert texts(roots, path="t/[b]/*.txt") == ["b/10.txt", "b/2.txt"]


def test_json_lines_skip_blank_lines_and_forgive_a_byte_order_mark(roots: Roots) -> None:
    (roots.project / "a.jsonl").write_bytes('\ufeff{"body": "ü"}\n\n  \n{"body": "b\\ud800"}\r\n'.encode())
    assert texts(roots, path="a.jsonl", field="body") == ["ü", "b?"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "a.jsonl:2: not JSON"),
        ("[1]", "a.jsonl:2: no text under 'text'; the line is not an object"),
        ('{"txt": "a", "b": 1}', "a.jsonl:2: no text under 'text'; it has txt, b"),
        ('{"text": 3}', "a.jsonl:2: no text under 'text'"),
        ("[" * 5000, "a.jsonl:2: "),
    ],
)
def test_malformed_json_lines_are_named_by_their_line(roots: Roots, line: str, words: str) -> None:
    (roots.project / "a.jsonl").write_text('{"text": "a"}\n' + line + "\n")
    with pytest.raises(InvalidInput) as caught:
        texts(roots, path="a.jsonl")
    assert words in str(caught.value)


def test_parquet_is_read_by_column_and_its_rows_are_counted_over_all_batches(roots: Roots) -> None:
    path = roots.project / "a.parquet"
    rows = [f"row {i}" for i in range(70_000)]
    parquet.write_table(arrow.table({"body": rows, "n": range(70_000)}), path)
    assert texts(roots, path="a.parquet", field="body") == rows
    with pytest.raises(InvalidInput, match="has no column 'text'; it has body, n"):
        texts(roots, path="a.parquet")
    parquet.write_table(arrow.table({"text": [*rows, None]}), path)
    with pytest.raises(InvalidInput, match=r"a\.parquet: row 70001: no text"):
        texts(roots, path="a.parquet")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RefusedFile, match="not a readable Parquet file"):
        texts(roots, path="a.parquet")


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("absent.txt", NotAvailable),
        ("absent/*.txt", NotAvailable),
        ("data", NotAvailable),
        ("model/*.json", RefusedFile),
        ("../out.txt", ValueError),
        ("/etc/hostname", ValueError),
        ("links/out.txt", ValueError),
        ("links/*.txt", ValueError),
        ("folder-link/*.txt", ValueError),
        ("*/../../*.txt", ValueError),
    ],
)
def test_files_that_are_not_there_or_not_ours_are_refused(roots: Roots, path: str, error: type[Exception]) -> None:
    (roots.project.parent / "out.txt").write_text("secret")
    (roots.project / "links").mkdir()
    (roots.project / "links/out.txt").symlink_to(roots.project.parent / "out.txt")
    (roots.project / "folder-link").symlink_to(roots.project.parent)
    dataset = FilesDataset(path=path)
    for attempt in (dataset.identity, lambda r: list(dataset.texts(r))):
        with pytest.raises(error):
            attempt(roots)


def test_the_same_bytes_as_another_kind_of_file_are_other_texts(roots: Roots) -> None:
    content = '{"text": "one"}\n{"text": "two"}\n'
    sets = []
    for name in ("k.jsonl", "k.txt"):
        (roots.project / name).write_text(content)
        sets.append(FilesDataset(path=name, split_on="line"))
    assert list(sets[0].texts(roots)) != list(sets[1].texts(roots))
    assert canonical(sets[0].identity(roots)) != canonical(sets[1].identity(roots))
    assert sets[0].identity(roots).keys() == {"files", "field", "split_on"}  # as it always was


def test_the_identity_of_texts_follows_their_bytes_and_not_their_place(roots: Roots) -> None:
    def identity(**fields: Any) -> str:
        return canonical(FilesDataset(**{"path": "a/*.jsonl", **fields}).identity(roots))

    write_jsonl(roots.project / "a/x.jsonl", ["one", "two"])
    write_jsonl(roots.project / "b/y.jsonl", ["one", "two"])
    first = identity()
    assert identity(path="b/y.jsonl") == first
    assert identity(field="body") != first
    write_jsonl(roots.project / "a/x.jsonl", ["one", "twо"])
    assert identity() != first


PARTS = st.sampled_from(
    ["a", "ü", "木", "🙂", " ", "\t", "\n", "\n\n", "\n\n\n", "\r", "\r\n", "\f", "\x1c", "\x85", "\u2028"]
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.lists(PARTS.map(str.encode) | st.binary(max_size=3), max_size=30).map(b"".join),
    size=st.integers(1, 9),
)
def test_text_read_by_and_by_is_divided_as_text_read_at_once(roots: Roots, content: bytes, size: int) -> None:
    (path := roots.project / "a.txt").write_bytes(content)
    whole = path.read_text("utf-8-sig", errors="replace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHARACTERS_AT_ONCE", size)
        assert texts(roots, path="a.txt") == [whole]
        for split_on, parts in (("line", whole.splitlines()), ("blank_line", whole.split("\n\n"))):
            assert texts(roots, path="a.txt", split_on=split_on) == [p.strip() for p in parts if p.strip()]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(categories=["L", "Cs", "So"]), max_size=6), min_size=1, max_size=9))
def test_halves_of_characters_become_question_marks(roots: Roots, rows: list[str]) -> None:
    write_jsonl(path := roots.project / "a.jsonl", rows)
    parsed = [json.loads(line)["text"] for line in path.read_text("ascii").splitlines()]
    assert texts(roots, path="a.jsonl") == [text.encode(errors="replace").decode() for text in parsed]


@pytest.mark.parametrize("split_on", ["line", "blank_line"])
def test_no_more_of_a_text_is_read_than_its_first_documents_need(
    roots: Roots, split_on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the first documents is given before the file is read on, and a document as long as a file is linear."""
    monkeypatch.setattr(module, "_CHARACTERS_AT_ONCE", 100)
    (roots.project / "a.txt").write_text("one two\n\n" * 1000)
    read: list[int] = []
    opened = module.TextFile.opened

    @contextmanager
    def counted(file: module.TextFile) -> Iterator[Any]:
        with opened(file) as text:
            yield SimpleNamespace(read=lambda n: read.append(n) or text.read(n))

    monkeypatch.setattr(module.TextFile, "opened", counted)
    data = FilesDataset(path="a.txt", split_on=split_on)
    assert list(islice(data.texts(roots), 30)) == ["one two"] * 30
    assert sum(read) <= 400
    read.clear()
    (roots.project / "a.txt").write_text("x" * 100_000)
    assert texts(roots, path="a.txt", split_on=split_on) == ["x" * 100_000]
    assert len(read) < 20


def test_parquet_is_read_a_few_rows_at_a_time(roots: Roots) -> None:
    """The first row of many in one row group, with less memory than they have together."""
    rows = [str(n) + "x" * 4_000 for n in range(8_000)]
    parquet.write_table(arrow.table({"text": rows}), roots.project / "a.parquet", use_dictionary=False)
    pool = arrow.default_memory_pool()
    before = pool.bytes_allocated()
    reading = FilesDataset(path="a.parquet").texts(roots)
    assert next(reading) == rows[0]
    assert pool.bytes_allocated() - before < sum(map(len, rows)) / 3
    assert list(reading) == rows[1:]
