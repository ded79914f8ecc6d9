"""Memory of reading and tokenising, against the bytes of text that a task cannot do without.

Each task runs in a process of its own, since a process's peak never falls, on generated text and the pocket tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice, repeat
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from latentbench.activations.tokens import evaluation_tokens, training_tokens
from latentbench.core.paths import Roots
from latentbench.core.plugins import plugin
from latentbench.core.protocols import DatasetAdapter
from latentbench.core.resources import memory_of

LINES, CHARACTERS = 1_000_000, 50_000_000
_CONTEXT, _WORDS_PER_LINE, _SAMPLE = 128, 6, 200


@dataclass(frozen=True)
class TextMemory:
    """What one task took."""

    task: str
    text_bytes: int
    """Of the documents it has to read, since their digests depend on all of them."""
    peak_bytes: int
    """Beyond the imports and the tokenizer."""
    seconds: float

    @property
    def ratio(self) -> float:
        """Peak over bytes of text."""
        return self.peak_bytes / self.text_bytes


Task = Callable[[DatasetAdapter, Roots, Any], object]


def run(lines: int = LINES, characters: int = CHARACTERS) -> list[TextMemory]:
    """Training on `lines` short lines, and evaluating the first tokens of one document of `characters` characters."""
    return [
        measure("train on short lines", train, "lines.txt", _lines(lines)),
        measure("evaluate one text file", evaluate, "document.txt", _document(characters)),
        measure("evaluate one JSON line", evaluate, "document.jsonl", _json_line(characters)),
    ]


def measure(name: str, task: Task, file: str, content: Iterable[str]) -> TextMemory:
    """Runs a task in a fresh process on a file with this content."""
    with TemporaryDirectory() as folder, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        path = Path(folder, file)
        with path.open("w", encoding="utf-8") as out:
            out.writelines(content)
        peak, seconds = pool.submit(_measured, task, path).result()
        return TextMemory(name, path.stat().st_size, peak, seconds)


def train(data: DatasetAdapter, roots: Roots, tokenizer: Any) -> object:
    """All tokens of all documents."""
    more_than_there_are = 1 << 40
    texts = data.texts(roots)
    return training_tokens(texts, tokenizer, context=_CONTEXT, tokens=more_than_there_are, repeat=True)


def evaluate(data: DatasetAdapter, roots: Roots, tokenizer: Any) -> object:
    """The first tokens of the first document."""
    return evaluation_tokens(data.texts(roots), tokenizer, context=_CONTEXT, documents=1)


def _measured(task: Task, path: Path) -> tuple[int, float]:
    """Peak bytes and seconds in this process."""
    roots = Roots(path.parent)
    tokenizer = plugin("models", "pocket")().load_tokenizer(roots)
    evaluation_tokens(["the first call loads what all need"], tokenizer, context=_CONTEXT)
    data = plugin("datasets", "files")(path=path.name, split_on="line" if task is train else "file")
    start = perf_counter()
    return memory_of(lambda: task(data, roots, tokenizer)), perf_counter() - start


def _words() -> list[str]:
    texts = plugin("datasets", "pocket")(domain="general").texts(Roots(Path()))  # generated: no file is read
    return " ".join(islice(texts, _SAMPLE)).split()


def _lines(count: int) -> Iterator[str]:
    words, step = _words(), _WORDS_PER_LINE
    lines = [" ".join(words[start : start + step]) + "\n" for start in range(0, len(words), step)]
    return islice(cycle(lines), count)


def _document(characters: int) -> Iterator[str]:
    piece = " ".join(_words()) + " "
    whole, rest = divmod(characters, len(piece))
    yield from repeat(piece, whole)
    yield piece[:rest]


def _json_line(characters: int) -> Iterator[str]:
    yield '{"text": "'
    yield from (json.dumps(piece)[1:-1] for piece in _document(characters))
    yield '"}\n'
