"""The header of a GGUF file, read bounded and without torch: what it says of a model, and the shapes of its tensors.

The gguf package believes every count and length that it reads, so a file's header is looked through here before it is given
to that package or to transformers (format: github.com/ggml-org/ggml, docs/gguf.md).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, TypeAlias

from latentbench.core.errors import NotAvailable, RefusedFile

Value: TypeAlias = "int | float | bool | str"

_VERSIONS, _DIMENSIONS = (2, 3), 4
_PLAIN = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""How the plain metadata types are packed, by number."""
_TEXT, _LIST = 8, 9
_PER_BYTE = 8
"""Most elements of a quantised tensor in a byte."""


@dataclass(frozen=True)
class GgufLimits:
    """How much a header may hold."""

    count: int
    """Metadata pairs, tensors and texts in a list: most of each."""
    bytes: int


FEW = GgufLimits(4096, 1 << 24)
"""Of steering vectors."""
MODEL = GgufLimits(1 << 22, 1 << 27)
"""Of a model with its vocabulary: those with 262,144 tokens have about 8 MB."""


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of itself."""

    values: Mapping[str, Value]
    """Numbers and texts by key, e.g. `llama.block_count`."""
    lists: Mapping[str, int]
    """Lengths of its lists by key; what they hold is not kept."""
    tensors: Mapping[str, tuple[int, ...]]
    """Shape of every tensor by its name, the dimension that moves fastest last, as torch has it."""

    @property
    def architecture(self) -> str:
        """What llama.cpp calls the model's kind; empty where that is not said."""
        return str(self.values.get("general.architecture", ""))

    def of_model(self, key: str) -> Value | None:
        """What is said under the architecture's own name, e.g. `block_count`; None where nothing is."""
        return self.values.get(f"{self.architecture}.{key}")

    @property
    def elements(self) -> int:
        """Numbers in all tensors together."""
        return sum(map(prod, self.tensors.values()))


def read_gguf_header(paths: Sequence[Path], limits: GgufLimits) -> GgufHeader:
    """The header of a file, or of the pieces of one that continue each other.

    Raises NotAvailable where they cannot be opened, and RefusedFile when a count, length or offset cannot be true, lists
    hold lists, a key or tensor stands twice, or tensors stand for more numbers than the file can hold.
    """
    try:
        size = sum(path.stat().st_size for path in paths)
        with io.BufferedReader(_Joined(paths), 1 << 18) as file:
            return _Reader(file, paths[0].name, size, limits).header()
    except OSError as error:
        raise NotAvailable(f"{paths[0]}: {error.strerror or error}") from None


class _Joined(io.RawIOBase):
    """Files one behind the other, read forward."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__()
        self._waiting = list(paths)
        self._open: IO[bytes] | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]  # of any kind that has room for bytes
        while self._open or self._waiting:
            self._open = self._open or self._waiting.pop(0).open("rb")
            if found := self._open.read(len(view)):
                view[: len(found)] = found
                return len(found)
            self.close_one()
        return 0

    def close_one(self) -> None:
        """Lets go of the file that is being read."""
        if self._open:
            self._open.close()
            self._open = None

    def close(self) -> None:
        self.close_one()
        super().close()


class _Reader:
    """Reads forward and never believes more than the file can hold; every method takes what it is called after."""

    def __init__(self, file: IO[bytes], name: str, size: int, limits: GgufLimits) -> None:
        self.file, self.name, self.size, self.limits = file, name, size, limits
        self.taken = 0

    def header(self) -> GgufHeader:
        """Little endian: magic, version, number of tensors, number of metadata pairs; then pairs of key, type and value;
        then name, shape, type and offset of every tensor."""
        if self.take(4) != b"GGUF" or self.number(4) not in _VERSIONS:
            raise RefusedFile(f"{self.name} is no GGUF file of version 2 or 3")
        tensors, pairs = self.count(), self.count()
        values: dict[str, Value] = {}
        lists: dict[str, int] = {}
        for _ in range(pairs):
            key, kind = self.text(), self.number(4)
            if key in values or key in lists:
                raise self.wrong()
            if kind == _LIST:
                lists[key] = self.length_of_list()
            else:
                values[key] = self.value(kind)
        shapes = dict(self.tensor() for _ in range(tensors))
        # Tensors over the same bytes could each stand for the whole file.
        if len(shapes) != tensors or sum(map(prod, shapes.values())) > _PER_BYTE * self.size:
            raise self.wrong()
        return GgufHeader(values, lists, shapes)

    def take(self, count: int) -> bytes:
        self.taken += count
        if count > self.size or self.taken > self.limits.bytes:
            raise self.wrong()
        found = self.file.read(count)
        if len(found) != count:
            raise self.wrong()
        return found

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def count(self) -> int:
        found = self.number(8)
        if found > self.limits.count:
            raise self.wrong()
        return found

    def text(self) -> str:
        return self.take(self.number(8)).decode("utf-8", "replace")

    def value(self, kind: int) -> Value:
        if kind == _TEXT:
            return self.text()
        found: Value = struct.unpack("<" + self.plain(kind), self.take(self.width(kind)))[0]
        return found

    def length_of_list(self) -> int:
        of, count = struct.unpack("<IQ", self.take(12))
        if of == _TEXT and count <= self.limits.count:
            self.pass_texts(count)
        else:
            # A list has no plain width, so lists of lists end here: the gguf package would descend without limit.
            self.take(self.width(of) * count)
        return int(count)

    def pass_texts(self, count: int) -> None:
        """Tokens and merges of a vocabulary are hundred thousands, so these are read without a call of `take` for each."""
        read, taken, most = self.file.read, self.taken, min(self.size, self.limits.bytes)
        for _ in range(count):
            length = int.from_bytes(read(8), "little")
            taken += 8 + length
            if taken > most or len(read(length)) != length:
                raise self.wrong()
        self.taken = taken

    def plain(self, kind: int) -> str:
        if kind not in _PLAIN:
            raise self.wrong()
        return _PLAIN[kind]

    def width(self, kind: int) -> int:
        return struct.calcsize(self.plain(kind))

    def tensor(self) -> tuple[str, tuple[int, ...]]:
        name, dimensions = self.text(), self.number(4)
        if not 1 <= dimensions <= _DIMENSIONS:
            raise self.wrong()
        shape = tuple(self.number(8) for _ in range(dimensions))[::-1]
        self.number(4)  # its type
        # The gguf package adds in 64 bits: beyond, an offset comes round to the header and is read as numbers.
        if not 1 <= prod(shape) <= _PER_BYTE * self.size or self.number(8) > self.size:
            raise self.wrong()
        return name, shape

    def wrong(self) -> RefusedFile:
        return RefusedFile(f"{self.name} is no sound GGUF file: its header promises what is not there")
