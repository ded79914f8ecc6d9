"""`adapter: files`: documents from text, JSON Lines or Parquet files of the project."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from adapters.protocols import DatasetAdapter, Roots
from harness.border import foreign
from harness.canonical import file_digest
from harness.errors import InvalidInput, NotAvailable, RefusedFile
from harness.section import Json

KINDS = (".txt", ".jsonl", ".parquet")


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
        digests = [_digest(path, path.stat().st_size, path.stat().st_mtime_ns) for path in self.files(roots)]
        return {"files": digests, "field": self.field, "split_on": self.split_on}

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
        text = _decoded(path)
        if self.split_on == "file":
            yield text
        else:
            parts = text.splitlines() if self.split_on == "line" else text.split("\n\n")
            yield from (part.strip() for part in parts if part.strip())

    def _json_lines(self, path: Path) -> Iterator[str]:
        for number, row in parsed_lines(path):
            yield self._text(row, f"{path.name}:{number}")

    def _parquet(self, path: Path) -> Iterator[str]:
        import pyarrow.parquet as parquet

        with foreign(f"{path.name} is not a readable Parquet file"):
            table = parquet.ParquetFile(path)
            if self.field not in table.schema_arrow.names:
                raise InvalidInput(
                    f"{path.name} has no column {self.field!r}; it has {', '.join(table.schema_arrow.names)}"
                )
            batches = table.iter_batches(columns=[self.field])
            rows = (text for batch in batches for text in batch.column(0).to_pylist())
            for number, text in enumerate(rows, 1):
                yield self._text({self.field: text}, f"{path.name}: row {number}")

    def _text(self, row: Json, where: str) -> str:
        text = row.get(self.field) if isinstance(row, dict) else None
        if not isinstance(text, str):
            has = f"it has {', '.join(map(str, row))[:200]}" if isinstance(row, dict) else "the line is not an object"
            raise InvalidInput(f"{where}: no text under {self.field!r}; {has}")
        return text if text.isascii() else text.encode(errors="replace").decode()  # JSON can hold halves of characters


def parsed_lines(path: Path) -> Iterator[tuple[int, Json]]:
    """Number and content of every line of a JSON Lines file that is not blank. Raises RefusedFile."""
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, _parsed(line, path, number)


@lru_cache(maxsize=1024)
def _digest(path: Path, size: int, modified: int) -> str:
    return file_digest(path)


def _split_glob(path: str) -> tuple[str, str]:
    """`data/*/x.txt` as ("data", "*/x.txt"); a path without wildcards as (path, "")."""
    parts = path.split("/")
    first = next((i for i, part in enumerate(parts) if any(c in part for c in "*?[")), None)
    if first is None:
        return path, ""
    if ".." in parts[first:]:
        raise ValueError(f"{path!r}: no '..' after a wildcard")
    return "/".join(parts[:first]) or (path[:1] if path.startswith("/") else "."), "/".join(parts[first:])


def _decoded(path: Path) -> str:
    return path.read_text("utf-8-sig", errors="replace")


def _parsed(line: str, path: Path, number: int) -> Json:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RefusedFile(f"{path.name}:{number}: not JSON: {error}") from None
