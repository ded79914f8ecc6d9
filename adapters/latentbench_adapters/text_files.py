"""Files with texts in them, plain or compressed, read by and by: their rows, and the documents of a plain text.

CSV and TSV (with a header), JSON Lines and Parquet give rows with columns; of each may be read more than memory holds. Whatever
is wrong with a file is told with the place where it is: a line, or a row of a Parquet file.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from latentbench.core.border import foreign, reason
from latentbench.core.errors import InvalidInput, RefusedFile
from latentbench.core.spec_model import Json

KINDS = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
SplitOn = Literal["file", "blank_line", "line"]
_CHARACTERS_AT_ONCE, _ROWS_AT_ONCE, _BYTES_AT_ONCE = 1 << 20, 64, 1 << 20
_LONGEST_LINE = 1 << 28
"""Characters: a compressed file of some kilobytes can hold a line that no memory holds."""
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
"""JSON can hold halves of characters; `surrogateescape` makes such of bytes that are not UTF-8."""


@dataclass(frozen=True)
class TextFile:
    """A file and how it is to be read, as the endings of its name say."""

    path: Path
    kind: str
    """One of `KINDS`."""
    compression: str | None = None
    """One of the values of `COMPRESSED`; None where it is not compressed."""

    @staticmethod
    def at(path: Path) -> TextFile:
        """Raises RefusedFile for a name that ends otherwise."""
        compression = COMPRESSED.get(path.suffix)
        kind = Path(path.stem).suffix if compression else path.suffix
        if kind not in KINDS or (kind == ".parquet" and compression):
            packed = " and ".join(COMPRESSED)
            raise RefusedFile(f"{path.name}: texts are read from {', '.join(KINDS)} files ({packed} but of Parquet)")
        return TextFile(path, kind, compression)

    @property
    def name(self) -> str:
        """Its name, for messages."""
        return self.path.name

    @property
    def stem(self) -> str:
        """Its name without the endings."""
        return self.name.removesuffix(self.path.suffix if self.compression else "").removesuffix(self.kind)

    def place(self, number: int) -> str:
        """How messages call what `rows` gives with this number."""
        words = {".parquet": ": row ", ".txt": ": document "}
        return f"{self.name}{words.get(self.kind, ':')}{number}"

    @contextmanager
    def opened(self, errors: str = "replace", newline: str | None = None) -> Iterator[IO[str]]:
        """Its text, UTF-8 with or without a byte order mark. What is wrong with its compression raises RefusedFile."""
        if self.compression is None:
            with self.path.open(encoding="utf-8-sig", errors=errors, newline=newline) as plain:
                yield plain
            return
        import pyarrow as arrow

        try:
            with arrow.input_stream(str(self.path), compression=self.compression) as packed:
                unpacked = io.BufferedReader(packed, _BYTES_AT_ONCE)
                yield io.TextIOWrapper(unpacked, encoding="utf-8-sig", errors=errors, newline=newline)
        except (OSError, arrow.ArrowInvalid) as error:
            raise RefusedFile(f"{self.name} is not whole {self.compression} data: {reason(error)}") from None

    def rows(self, columns: Collection[str], split_on: SplitOn = "file") -> Iterator[tuple[int, Mapping[str, Json]]]:
        """Its rows with their numbers for `place`; of a .txt file its documents, under each of the `columns`.

        Raises InvalidInput for a table without one of the columns, RefusedFile for what is no file of its kind.
        """
        if self.kind == ".txt":
            return ((n, dict.fromkeys(columns, text)) for n, text in enumerate(self._documents(split_on), 1))
        readers = {".csv": self._separated, ".tsv": self._separated, ".parquet": self._parquet}
        return readers[self.kind](columns) if self.kind in readers else self.objects()

    def objects(self) -> Iterator[tuple[int, Json]]:
        """Number and content of every line of a JSON Lines file that is not blank."""
        with self.opened() as file:
            for number, line in enumerate(self._lines(file), 1):
                if not line.isspace():
                    yield number, self._parsed(line, number)

    def _parsed(self, line: str, number: int) -> Json:
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RefusedFile(f"{self.place(number)}: not JSON: {error}") from None

    def _documents(self, split_on: SplitOn) -> Iterator[str]:
        with self.opened() as file:
            if split_on == "file":
                yield self._whole(file)
            else:
                parts = _parts(file, _lines if split_on == "line" else _blocks)
                yield from filter(None, map(str.strip, parts))

    def _whole(self, file: IO[str]) -> str:
        if self.compression is None:
            return file.read()
        text = file.read(_LONGEST_LINE)
        if file.read(1):
            raise RefusedFile(f"{self.name}: longer than {_LONGEST_LINE:,} characters; divide it with `split_on`")
        return text

    def _lines(self, file: IO[str]) -> Iterator[str]:
        """Lines with their ends. What fails while they are read is told with the line."""
        number = 0
        try:
            while line := file.readline(_LONGEST_LINE):
                number += 1
                if len(line) == _LONGEST_LINE:
                    raise RefusedFile(f"{self.place(number)}: a line longer than {_LONGEST_LINE:,} characters")
                yield line
        except OSError as error:
            what = f"not whole {self.compression} data" if self.compression else "cannot be read"
            raise RefusedFile(f"{self.place(number + 1)}: {what}: {reason(error)}") from None

    def _separated(self, columns: Collection[str]) -> Iterator[tuple[int, Mapping[str, Json]]]:
        csv.field_size_limit(_LONGEST_LINE)  # of all readers in this process; its default is 131,072
        with self.opened(errors="surrogateescape", newline="") as file:
            reader = csv.reader(self._utf8(file), delimiter="\t" if self.kind == ".tsv" else ",", strict=True)
            rows = self._cells(reader)
            header = next(rows, (1, []))[1]
            self._check(header, columns)
            for line, cells in rows:
                if len(cells) != len(header):
                    raise RefusedFile(
                        f"{self.place(line)}: {len(cells)} cells, and the header has {len(header)} columns"
                    )
                yield line, dict(zip(header, cells, strict=True))

    def _utf8(self, file: IO[str]) -> Iterator[str]:
        for number, line in enumerate(self._lines(file), 1):
            if not line.isascii() and _HALF_CHARACTER.search(line):
                raise RefusedFile(f"{self.place(number)}: not UTF-8; save the file as UTF-8")
            yield line

    def _cells(self, reader: Any) -> Iterator[tuple[int, list[str]]]:
        """The rows that are not blank, with the lines at which they begin."""
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise RefusedFile(f"{self.place(line)}: not a row of {self.kind[1:].upper()}: {error}") from None
            if cells:
                yield line, cells

    def _parquet(self, columns: Collection[str]) -> Iterator[tuple[int, Mapping[str, Json]]]:
        import pyarrow.parquet as parquet

        with foreign(f"{self.name} is not a readable Parquet file"):
            table = parquet.ParquetFile(self.path, buffer_size=_BYTES_AT_ONCE)
            self._check(table.schema_arrow.names, columns)
            batches = table.iter_batches(_ROWS_AT_ONCE, columns=list(columns))
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)

    def _check(self, names: list[str], columns: Collection[str]) -> None:
        if not names:
            raise InvalidInput(f"{self.name} is empty: its first line names its columns")
        if doubled := next((name for name in names if names.count(name) > 1), None):
            raise InvalidInput(f"{self.name} has two columns {doubled!r}")
        if missing := next((column for column in columns if column not in names), None):
            raise InvalidInput(f"{self.name} has no column {missing!r}; it has {', '.join(names)[:200]}")


def text_of(row: Json, column: str, where: str) -> str:
    """The text in a column of a row, halves of characters as `?`. Raises InvalidInput where there is none."""
    text = row.get(column) if isinstance(row, Mapping) else None
    if not isinstance(text, str):
        has = f"it has {', '.join(map(str, row))[:200]}" if isinstance(row, Mapping) else "the line is not an object"
        raise InvalidInput(f"{where}: no text under {column!r}; {has}")
    return text if text.isascii() else _HALF_CHARACTER.sub("?", text)


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
