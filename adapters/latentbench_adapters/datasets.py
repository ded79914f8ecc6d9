"""Text datasets: `adapter: files` reads text, JSON Lines or Parquet files of the project, `adapter: huggingface` streams one of the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Annotated, Literal, Self

from pydantic import Field

from latentbench.core.border import foreign
from latentbench.core.errors import InvalidInput, NotAvailable, RefusedFile
from latentbench.core.hashing import known_digest
from latentbench.core.hub import check_dataset, is_commit, resolved_commit
from latentbench.core.paths import Roots
from latentbench.core.protocols import DatasetAdapter
from latentbench.core.spec_model import Json

KINDS = (".txt", ".jsonl", ".parquet")
_CHARACTERS_AT_ONCE, _ROWS_AT_ONCE, _BYTES_AT_ONCE = 1 << 20, 64, 1 << 20
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


class FilesDataset(DatasetAdapter):
    """Documents in the order of the sorted file names and, within a file, of its lines or rows."""

    adapter: Literal["files"] = "files"
    path: Annotated[str, Field(min_length=1, max_length=500)]
    """File or glob such as `data/chem/*.jsonl`, relative to the project; .txt, .jsonl or .parquet."""
    field: Annotated[str, Field(min_length=1)] = "text"
    """Key or column that holds the text (.jsonl, .parquet)."""
    split_on: Literal["file", "blank_line", "line"] = "file"
    """What a document is in a .txt file."""

    def identity(self, roots: Roots) -> Json:
        files = self.files(roots)
        made = {"files": [known_digest(path) for path in files], "field": self.field, "split_on": self.split_on}
        # The same bytes are other documents as .txt and as .jsonl.
        plain = [number for number, path in enumerate(files) if path.suffix == ".txt"]
        return made | ({"plain": plain} if plain else {})

    def texts(self, roots: Roots) -> Iterator[str]:
        readers = {".txt": self._plain, ".jsonl": self._json_lines, ".parquet": self._parquet}
        for path in self.files(roots):
            yield from readers[path.suffix](path)

    def files(self, roots: Roots) -> list[Path]:
        """The files meant, sorted. Raises NotAvailable when there are none, RefusedFile for another kind."""
        fixed, pattern = _split_glob(self.path)
        base = roots.resolve(fixed)
        found = sorted(p for p in base.glob(pattern) if p.is_file()) if pattern else [base]
        if not found or not found[0].is_file():
            raise NotAvailable(
                f"no file matches {self.path!r} (paths are relative to the project {roots.project.name}/)"
            )
        for path in found:
            roots.resolve(str(path))  # a symbolic link may lead out of the project
            if path.suffix not in KINDS:
                raise RefusedFile(f"{path.name}: texts are read from {', '.join(KINDS)} files")
        return found

    def _plain(self, path: Path) -> Iterator[str]:
        with _opened(path) as file:
            if self.split_on == "file":
                yield file.read()
            else:
                parts = _parts(file, _lines if self.split_on == "line" else _blocks)
                yield from filter(None, map(str.strip, parts))

    def _json_lines(self, path: Path) -> Iterator[str]:
        for number, row in parsed_lines(path):
            yield self._text(row, f"{path.name}:{number}")

    def _parquet(self, path: Path) -> Iterator[str]:
        import pyarrow.parquet as parquet

        with foreign(f"{path.name} is not a readable Parquet file"):
            table = parquet.ParquetFile(path, buffer_size=_BYTES_AT_ONCE)
            if self.field not in table.schema_arrow.names:
                raise InvalidInput(
                    f"{path.name} has no column {self.field!r}; it has {', '.join(table.schema_arrow.names)}"
                )
            batches = table.iter_batches(_ROWS_AT_ONCE, columns=[self.field])
            rows = (text.as_py() for batch in batches for text in batch.column(0))
            for number, text in enumerate(rows, 1):
                yield self._text({self.field: text}, f"{path.name}: row {number}")

    def _text(self, row: Json, where: str) -> str:
        text = row.get(self.field) if isinstance(row, dict) else None
        if not isinstance(text, str):
            has = f"it has {', '.join(map(str, row))[:200]}" if isinstance(row, dict) else "the line is not an object"
            raise InvalidInput(f"{where}: no text under {self.field!r}; {has}")
        return text if text.isascii() else _HALF_CHARACTER.sub("?", text)  # JSON can hold halves of characters


def parsed_lines(path: Path) -> Iterator[tuple[int, Json]]:
    """Number and content of every line of a JSON Lines file that is not blank. Raises RefusedFile."""
    with _opened(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.isspace():
                yield number, _parsed(line, path, number)


def _split_glob(path: str) -> tuple[str, str]:
    """`data/*/x.txt` as ("data", "*/x.txt"); a path without wildcards as (path, "")."""
    parts = path.split("/")
    first = next((i for i, part in enumerate(parts) if any(c in part for c in "*?[")), None)
    if first is None:
        return path, ""
    if ".." in parts[first:]:
        raise ValueError(f"{path!r}: no '..' after a wildcard")
    return "/".join(parts[:first]) or (path[:1] if path.startswith("/") else "."), "/".join(parts[first:])


def _opened(path: Path) -> IO[str]:
    return path.open(encoding="utf-8-sig", errors="replace")


def _parts(file: IO[str], divided: Callable[[str], list[str]]) -> Iterator[str]:
    """What `divided` makes of the whole file, reading no more at once than the longest part and some.

    The last part of what was read may go on in the file. The longer it has become, the more is read before it is
    divided again, so that a part as long as the file costs twice its length and not its square.
    """
    rest = ""
    while read := file.read(max(_CHARACTERS_AT_ONCE, len(rest))):
        *parts, rest = divided(rest + read)
        yield from parts
    yield rest


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)  # an end that is kept says that the last line is a whole one


def _blocks(text: str) -> list[str]:
    return text.split("\n\n")


def _parsed(line: str, path: Path, number: int) -> Json:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RefusedFile(f"{path.name}:{number}: not JSON: {error}") from None


class HuggingFaceDataset(DatasetAdapter):
    """Rows of a hub dataset in their stored order."""

    adapter: Literal["huggingface"] = "huggingface"
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$", max_length=200)]
    """Hub id such as `HuggingFaceFW/fineweb`."""
    config: str | None = None
    """Configuration (subset) of the dataset."""
    split: str = "train"
    """Split of the dataset."""
    revision: Annotated[str, Field(pattern=r"^[\w./-]+$", max_length=100)] = "main"
    """Commit, tag or branch; state a commit so that the documents cannot change."""
    field: Annotated[str, Field(min_length=1)] = "text"
    """Column that holds the text."""

    def identity(self, roots: Roots) -> Json:
        check_dataset(self.id, roots.project)
        return {
            "hub": self.id,
            "config": self.config,
            "split": self.split,
            "revision": self.revision,
            "field": self.field,
        }

    def pinned(self, roots: Roots) -> Self:
        if is_commit(self.revision):
            return self
        return self.model_copy(update={"revision": resolved_commit("dataset", self.id, self.revision)})

    def texts(self, roots: Roots) -> Iterator[str]:
        for row in streamed_rows(self.id, self.config, self.split, self.revision):
            if not isinstance(row.get(self.field), str):
                raise InvalidInput(f"{self.id}: no text under {self.field!r}; columns: {', '.join(row)}")
            yield row[self.field]


def streamed_rows(name: str, config: str | None, split: str, revision: str) -> Iterator[dict[str, Json]]:
    """Rows of a hub dataset in their stored order. Raises NotAvailable with what to do when they cannot be had."""
    from datasets import load_dataset

    check_dataset(name)
    advice = "go online, or use `adapter: files` with a local copy"
    with foreign(f"the dataset {name!r} cannot be read", advice, NotAvailable):
        yield from load_dataset(name, config, split=split, revision=revision, streaming=True)
