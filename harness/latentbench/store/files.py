"""Files that are whole or absent: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from safetensors import SafetensorError

from latentbench.core.errors import DamagedArtifact, InvalidInput, StoreError
from latentbench.core.spec_model import Json

if TYPE_CHECKING:  # reading JSON must not wait for numpy
    import numpy as np
    from numpy.typing import NDArray

Arrays: TypeAlias = "dict[str, NDArray[np.generic]]"


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces `path` atomically. Raises StoreError when the disk refuses."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write into; it becomes `path` when the block ends without error, otherwise nothing is left.

    Raises InvalidInput when `path` exists, StoreError when the disk refuses.
    """
    if path.exists() or path.is_symlink():
        raise InvalidInput(f"{path} exists already; choose another folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name[:40]}."))
        try:
            yield draft
            draft.chmod(0o755)
            os.rename(draft, path)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def write_json(path: Path, value: Json) -> None:
    """Replaces a JSON file atomically; refuses NaN and infinity (ValueError)."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, sort_keys=False)
    write_bytes(path, text.encode() + b"\n")


def read_json(path: Path) -> Json:
    """A JSON file of ours. Raises DamagedArtifact when it is not JSON, StoreError when it cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedArtifact(f"{path} is not valid JSON: {error}") from error
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from error


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Replaces a safetensors file atomically."""
    import numpy as np
    from safetensors.numpy import save

    write_bytes(path, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def read_arrays(path: Path) -> Arrays:
    """The arrays of a safetensors file. Raises DamagedArtifact or StoreError."""
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise DamagedArtifact(f"{path} is not a valid safetensors file: {error}") from error
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from error


def bytes_of(path: Path, most: int) -> bytes:
    """All bytes of a file, from one opening, so that nothing comes between a look at it and reading it.

    Raises OSError: ELOOP for a link, EFBIG for more than `most` bytes.
    """
    with open(path, "rb", opener=_opened_itself) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, "too large", str(path))
        return file.read(most)


def _opened_itself(path: str, flags: int) -> int:
    # A link is an error, and a pipe in place of a file has no bytes, instead of making its reader wait.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def arrays_of(content: bytes, name: str) -> Arrays:
    """The arrays that the bytes of a safetensors file hold. Raises DamagedArtifact.

    Thousands of files have one layout, that of their header. The library reads it and checks it against the size the first
    time; where both are the same again, the arrays are views at the same places.
    """
    import numpy as np

    known = _LAYOUTS.get(layout := (_header(content), len(content)))
    if known is not None:
        return {
            one: np.frombuffer(content, kind, size, start).reshape(shape) for one, kind, size, start, shape in known
        }
    from safetensors.numpy import load

    try:
        found = dict(load(content))
    except SafetensorError as error:
        raise DamagedArtifact(f"{name} is not a valid safetensors file: {error}") from error
    if len(_LAYOUTS) < _MOST_LAYOUTS and len(layout[0]) <= _LONGEST_HEADER:
        _LAYOUTS[layout] = _places(layout[0], found)
    return found


Place: TypeAlias = "tuple[str, np.dtype[np.generic], int, int, tuple[int, ...]]"
"""Name, type, number of elements, where they start, and shape of an array in a file."""
_LAYOUTS: dict[tuple[bytes, int], list[Place]] = {}
_MOST_LAYOUTS, _LONGEST_HEADER = 256, 1 << 16


def _header(content: bytes) -> bytes:
    return content[8 : 8 + int.from_bytes(content[:8], "little")]


def _places(header: bytes, arrays: Arrays) -> list[Place]:
    """Where a file whose header was checked holds its arrays."""
    starts = {
        name: 8 + len(header) + said["data_offsets"][0] for name, said in json.loads(header).items() if name in arrays
    }
    return [(name, array.dtype, array.size, starts[name], array.shape) for name, array in arrays.items()]


def sync_folder(folder: Path) -> None:
    """Makes renames inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
