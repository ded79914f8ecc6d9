"""A look at a GGUF file before it is given to the gguf package, which believes every count and length that it reads.

Format: github.com/ggml-org/ggml, docs/gguf.md. Little endian: magic, version, number of tensors, number of metadata pairs;
then pairs of key, type and value; then name, shape, type and offset of every tensor.
"""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path
from typing import BinaryIO

from latentbench.core.errors import RefusedFile

_VERSIONS, _LARGEST_COUNT, _LARGEST_HEADER, _DIMENSIONS = (2, 3), 4096, 1 << 24, 4
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of the plain types by number."""
_TEXT, _LIST = 8, 9
_PER_BYTE = 8
"""Most elements of a quantised tensor in a byte."""


def check_header(path: Path) -> None:
    """Raises RefusedFile when a count, length or offset in the header cannot be true, or lists hold lists."""
    with path.open("rb") as file:
        header = _Header(file, path)
        if header.take(4) != b"GGUF" or header.number(4) not in _VERSIONS:
            raise RefusedFile(f"{path.name} is no GGUF file of version 2 or 3")
        tensors, pairs = header.count(), header.count()
        for _ in range(pairs):
            header.text()
            header.value(header.number(4))
        for _ in range(tensors):
            header.tensor()


class _Header:
    """Reads forward and never believes more than the file can hold."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.name = file, path.name
        self.size = path.stat().st_size

    def take(self, count: int) -> bytes:
        if count > min(self.size, _LARGEST_HEADER) or self.file.tell() > _LARGEST_HEADER:
            raise self.wrong()
        found = self.file.read(count)
        if len(found) != count:
            raise self.wrong()
        return found

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def count(self) -> int:
        found = self.number(8)
        if found > _LARGEST_COUNT:
            raise self.wrong()
        return found

    def text(self) -> None:
        self.take(self.number(8))

    def value(self, kind: int, inside: bool = False) -> None:
        if kind == _TEXT:
            self.text()
        elif kind == _LIST and not inside:
            of, count = struct.unpack("<IQ", self.take(12))
            if of == _TEXT and count <= _LARGEST_COUNT:
                for _ in range(count):
                    self.text()
            else:
                self.take(self.width(of) * count)
        else:
            self.take(self.width(kind))

    def width(self, kind: int) -> int:
        if kind not in _SIZES:
            raise self.wrong()
        return _SIZES[kind]

    def tensor(self) -> None:
        self.text()
        dimensions = self.number(4)
        if not 1 <= dimensions <= _DIMENSIONS:
            raise self.wrong()
        elements = prod(self.number(8) for _ in range(dimensions))
        self.number(4)  # its type
        # The gguf package adds in 64 bits: beyond, an offset comes round to the header and is read as numbers.
        if not 1 <= elements <= _PER_BYTE * self.size or self.number(8) > self.size:
            raise self.wrong()

    def wrong(self) -> RefusedFile:
        return RefusedFile(f"{self.name} is no sound GGUF file: its header promises what is not there")
