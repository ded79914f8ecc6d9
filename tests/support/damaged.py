"""Files that are not what they say: sound ones with bytes changed, lying headers, bombs and payloads."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.hostile import STRANGE, at, changed, places

BOMBS: dict[str, bytes] = {
    "empty": b"",
    "NULs": b"\0" * 4096,
    "not UTF-8": b"\xff\xfe\x00{",
    "deep lists": b"[" * 200_000,
    "deep maps": b'{"a":' * 100_000,
    "balanced": b"[" * 100_000 + b"]" * 100_000,
    "a huge number": b'{"d_in": ' + b"9" * 100_000 + b"}",
    "a large exponent": b'{"d_in": 1e999999999}',
    "not finite": b'{"d_in": NaN, "x": Infinity}',
    "a list": b"[1, 2]",
    "a text": b'"x"',
    "half a character": b'{"\\ud800": "\\udfff"}',
    "the same key often": b"{" + b",".join([b'"a": 1'] * 10_000) + b"}",
    "escapes": json.dumps({"name": "\x1b[2J<script>alert(1)</script>"}).encode(),
}


def safetensors_lies() -> dict[str, bytes]:
    """Safetensors files whose header is not about what follows it."""

    def file(table: Any, data: bytes = b"\0" * 64, length: int | None = None) -> bytes:
        header = table if isinstance(table, bytes) else json.dumps(table).encode()
        return struct.pack("<Q", len(header) if length is None else length) + header + data

    def tensor(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
        return {"x": {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}}

    return {
        "a length beyond the file": file({}, length=2**40),
        "the largest length": file({}, length=2**64 - 1),
        "no header": b"\x08",
        "offsets beyond the file": file(tensor([2**40], 0, 2**42)),
        "more numbers than bytes": file(tensor([1000], 0, 64)),
        "a shape that overflows": file(tensor([2**33, 2**33], 0, 64)),
        "offsets that go back": file(tensor([16], 64, 0)),
        "negative sizes": file(tensor([-16], 0, 64)),
        "an unknown type": file(tensor([16], 0, 64, "F31")),
        "overlapping tensors": file({**tensor([16], 0, 64), "y": tensor([16], 0, 64)["x"]}),
        "a hole": file(tensor([8], 32, 64)),
        "no tensors": file({}, b""),
        "deep": file(b'{"x":' + b"[" * 100_000),
        "a table of text": file(b'"x"'),
        "metadata that is no text": file({"__metadata__": {"a": 1}, **tensor([16], 0, 64)}),
        "strange names": file({"../../x\x1b": tensor([16], 0, 64)["x"]}),
    }


class Payload:
    """Unpickled, it leaves a witness."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.witness}'",)


def payloads(folder: Path, witness: Path) -> list[Path]:
    """`.pt` files that would run a command: bare pickles, torch archives old and new, compressed and nested ones."""
    bomb = pickle.dumps(Payload(witness))
    plain = folder / "bare.pt"
    plain.write_bytes(bomb)
    made = [plain]
    for name, method in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
        for inner in ("archive/data.pkl", "data.pkl", "../data.pkl", "/data.pkl"):
            path = folder / f"{name}-{len(made)}.pt"
            with zipfile.ZipFile(path, "w", method) as archive:
                archive.writestr(inner, bomb)
                archive.writestr(inner.replace("data.pkl", "version"), "3\n")
                archive.writestr(inner.replace("data.pkl", "byteorder"), "little")
            made.append(path)
    legacy = folder / "legacy.pt"
    legacy.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C) + pickle.dumps(1001) + bomb)
    zeros = folder / "zeros.pt"  # a few bytes that unpack to a gigabyte
    with zipfile.ZipFile(zeros, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("archive/data.pkl", "w") as file:
        for _ in range(64):
            file.write(bytes(1 << 20))
    return [*made, legacy, zeros]


def gguf_lies() -> dict[str, bytes]:
    """GGUF files with counts, lengths and offsets that nothing stands behind."""

    def head(tensors: int, pairs: int, version: int = 3) -> bytes:
        return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)

    def alignment(size: int) -> bytes:
        return (
            head(1, 2) + text + struct.pack("<Q", 17) + b"general.alignment" + struct.pack("<II", 4, size) + tensor(4)
        )

    def tensor(*sizes: int, called: bytes = b"direction.1", kind: int = 0, offset: int = 0) -> bytes:
        shape = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
        return struct.pack("<Q", len(called)) + called + shape + struct.pack("<IQ", kind, offset) + b"\0" * 64

    text = struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<IQ", 8, 13) + b"controlvector"
    name = struct.pack("<Q", 11) + b"direction.1"
    return {
        "magic alone": b"GGUF",
        "no such version": head(0, 0, 99),
        "many tensors": head(2**60, 0),
        "many pairs": head(0, 2**60),
        "a text beyond the file": head(0, 1) + struct.pack("<Q", 2**62) + b"x" * 64,
        "an unknown type": head(0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<I", 77) + b"\0" * 64,
        "an endless array": head(0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 0, 2**50) + b"\0" * 64,
        "arrays of arrays": head(0, 1)
        + struct.pack("<Q", 1)
        + b"a"
        + struct.pack("<I", 9)
        + struct.pack("<IQ", 9, 1) * 5000,
        "another architecture": head(0, 1) + text.replace(b"controlvector", b"llama--------"),
        "a tensor beyond the file": head(1, 1) + text + name + struct.pack("<IQIQ", 1, 2**40, 0, 0) + b"\0" * 64,
        "an offset beyond the file": head(1, 1) + text + name + struct.pack("<IQIQ", 1, 4, 0, 2**40) + b"\0" * 64,
        "many dimensions": head(1, 1) + text + name + struct.pack("<I", 2**31) + b"\1" * 4096,
        "an unknown quantisation": head(1, 1) + text + name + struct.pack("<IQIQ", 1, 4, 999, 0) + b"\0" * 64,
        "dimensions that overflow": head(1, 1) + text + tensor(2**33, 2**33),
        "dimensions that overflow to few": head(1, 1) + text + tensor(2**62, 4, 4),
        "the largest dimension": head(1, 1) + text + tensor(2**64 - 1),
        "no dimension": head(1, 1) + text + tensor(),
        "a dimension of zero": head(1, 1) + text + tensor(0),
        "the largest offset": head(1, 1) + text + tensor(4, offset=2**64 - 1),
        "an alignment of zero": alignment(0),
        "an alignment of three": alignment(3),
        "the largest alignment": alignment(2**31),
        "a layer without end": head(1, 1) + text + tensor(4, called=b"direction." + b"9" * 5000),
        "the same layer twice": head(2, 1) + text + tensor(4)[:-64] + tensor(4),
        "a name that is no text": head(1, 1) + text + tensor(4, called=b"\xff\xfe.1"),
        "an architecture that is a number": head(1, 1) + text[:28] + struct.pack("<II", 4, 7) + tensor(4),
    }


def torn(content: bytes, generator: random.Random) -> bytes:
    """The bytes with something done to them; mostly where headers stand."""
    near = generator.choice([16, 128, max(1, len(content))])
    place = generator.randrange(min(near, max(1, len(content))))
    how = generator.choice(["flip", "cut", "insert", "number", "repeat", "swap"])
    if how == "flip":
        return content[:place] + bytes([generator.randrange(256)]) + content[place + 1 :]
    if how == "cut":
        return content[:place]
    if how == "insert":
        return content[:place] + generator.randbytes(generator.randrange(1, 9)) + content[place:]
    if how == "number":
        number = generator.choice([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
        return content[:place] + struct.pack("<Q", number) + content[place + 8 :]
    if how == "repeat":
        return content[:place] + content[place : place + 64] * generator.randrange(2, 40) + content[place:]
    return content[place:] + content[:place]


def torn_table(content: bytes, generator: random.Random) -> bytes:
    """A safetensors file in whose table something is changed; its length is right, so that what is changed is read."""
    length = int.from_bytes(content[:8], "little")
    table = torn_json(content[8 : 8 + length], generator)
    return struct.pack("<Q", len(table)) + table + content[8 + length :]


def torn_archive(content: bytes, generator: random.Random) -> bytes:
    """A file of `torch.save` in which some tensor is another, or none."""
    import torch

    tree = torch.load(io.BytesIO(content), weights_only=True)
    where = generator.choice([place for place in places(tree) if place])
    shape = getattr(at(tree, where), "shape", (3,))
    file = io.BytesIO()
    torch.save(changed(tree, where, "replace", odd_tensor(tuple(shape), generator)), file)
    return file.getvalue()


def odd_tensor(shape: tuple[int, ...], generator: random.Random) -> Any:
    """What a `.pt` file may hold in place of a tensor of this shape: others, and things that are none."""
    import torch

    kinds = [torch.float64, torch.bfloat16, torch.bool, torch.complex64, torch.int8, torch.float8_e4m3fn]
    number = float(generator.choice(["nan", "inf", "-inf", "1e38", "-1", "0", "0.5"]))
    made: list[Callable[[], Any]] = [
        lambda: torch.full(shape, number),
        lambda: torch.full((), generator.choice([0, -1, 2**31, 2**62])),
        lambda: torch.zeros(generator.choices([0, 1, 2, 12, 48], k=generator.randrange(4))),
        lambda: torch.ones(shape).to(generator.choice(kinds)),
        lambda: torch.ones(1).expand(2**40),
        lambda: torch.ones(1).expand(shape),
        lambda: torch.ones(shape).to_sparse(),
        lambda: torch.empty(shape, device="meta"),
        lambda: torch.nn.Parameter(torch.ones(shape)),
        lambda: torch.ones(shape[::-1]).permute(*reversed(range(len(shape)))),
        lambda: generator.choice([None, True, 7, 2**70, "x", b"x", [], {}, (1,), [torch.ones(2)], {1: {2: {}}}]),
    ]
    return generator.choice(made)()


def torn_json(content: bytes, generator: random.Random) -> bytes:
    """JSON in which a value is replaced, removed, wrapped or renamed."""
    tree = json.loads(content)
    for _ in range(generator.randrange(1, 3)):
        how = generator.choice(["replace", "replace", "remove", "wrap", "add", "rename"])
        if isinstance(tree, dict | list):
            tree = changed(tree, generator.choice(places(tree)), how, generator.choice(STRANGE))
    return json.dumps(tree).encode()
