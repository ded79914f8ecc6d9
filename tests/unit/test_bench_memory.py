"""Memory of reading and tokenising at small sizes: it follows what is needed, not what tokenising a whole file takes."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from typer.testing import CliRunner

from latentbench.activations.tokens import training_tokens
from latentbench.bench import memory
from latentbench.bench.memory import TextMemory, evaluate, measure, train
from latentbench.cli.app import app


def growth(measured: Callable[[int], TextMemory], size: int) -> float:
    """Further bytes of memory for each further byte of text, from one size to four times of it."""
    small, large = measured(size), measured(4 * size)
    return (large.peak_bytes - small.peak_bytes) / (large.text_bytes - small.text_bytes)


def test_training_on_more_lines_needs_little_more_than_their_tokens() -> None:
    """4 bytes for each token of about 2 characters and 8 for each line of about 30; with objects for each it was 12."""
    assert growth(lambda lines: measure("", train, "a.txt", memory._lines(lines)), 50_000) < 5


def first_tokens(data, roots, tokenizer) -> object:  # type: ignore[no-untyped-def]
    lines = data.model_copy(update={"split_on": "line"})
    return training_tokens(lines.texts(roots), tokenizer, context=128, tokens=10_000)


def test_training_on_the_first_lines_of_a_longer_file_needs_no_more() -> None:
    """Whatever the length of the file; read at once it was 4 bytes for each byte."""
    assert growth(lambda lines: measure("", first_tokens, "a.txt", memory._lines(lines)), 200_000) < 0.5


@pytest.mark.parametrize(("file", "content"), [("a.txt", memory._document), ("a.jsonl", memory._json_line)])
def test_the_first_tokens_of_a_long_document_need_its_text_and_no_tokens_of_it(file: str, content) -> None:  # type: ignore[no-untyped-def]
    """The text, and once more what it was read from; tokenised whole it was 180 bytes for each byte.

    Of one long JSON line it is 4.3 or, in three runs of ten, 5.2: a buffer that grows is copied where it cannot grow in place.
    """
    assert growth(lambda characters: measure("", evaluate, file, content(characters)), 2_000_000) < 6


def test_the_verb_prints_a_table_and_json() -> None:
    def printed(*options: str) -> str:
        result = CliRunner().invoke(app, ["bench", "memory", "--lines", "1000", "--megabytes", "1", *options])
        assert result.exit_code == 0, result.output
        return result.output

    found = json.loads(printed("--json"))
    assert [item["task"] for item in found] == [
        "train on short lines",
        "evaluate one text file",
        "evaluate one JSON line",
    ]
    assert [item["text_bytes"] >= size for item, size in zip(found, (20_000, 10**6, 10**6), strict=True)] == [True] * 3
    assert all(item["ratio"] == item["peak_bytes"] / item["text_bytes"] for item in found)
    table = printed().splitlines()
    assert "× the text" in table[0]
    assert [row.split("  ")[0] for row in table[1:4]] == [item["task"] for item in found]
