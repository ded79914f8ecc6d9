"""Content keys: sha256 over canonical JSON, so that the same content has the same key on every machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from latentbench.core.spec_model import Json

_CHUNK = 1 << 20


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical(value: Json) -> str:
    """JSON with sorted keys, no spaces and shortest floats; refuses NaN and infinity (ValueError)."""
    return _CANONICAL.encode(value)


def digest(kind: str, value: Json) -> str:
    """Hex sha256 of a value of some kind; the kind keeps equal payloads of different meaning apart."""
    return hashlib.sha256(f"{kind}\n{canonical(value)}".encode()).hexdigest()


def seed_of(*parts: Json) -> int:
    """A seed below 2**63 derived from the parts."""
    return int(digest("seed", list(parts))[:16], 16) >> 1


def file_digest(*paths: Path) -> str:
    """Hex sha256 of a file's bytes; of several, of their bytes one file behind the other."""
    sha = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                sha.update(chunk)
    return sha.hexdigest()
