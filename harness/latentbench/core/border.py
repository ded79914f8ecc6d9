"""The border to libraries of others: whatever one of them raises becomes one sentence with where, what and what to do.

What a library raises cannot be listed. A file that is broken gives KeyError, ZeroDivisionError or RecursionError deep inside
of one; a new version has other classes (the hub's client went from httpx to httpx2); code in Rust that panics raises a
BaseException that is no Exception. So everything is mapped but our own errors and what is meant to end the process.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from latentbench.core.errors import InvalidInput, LatentbenchError, NotAvailable, Panicked, RefusedFile
from latentbench.core.text import one_line

ENDING = (KeyboardInterrupt, SystemExit, GeneratorExit)
"""What ends a process or a generator: never an answer about a file."""
_LONGEST = 300
_STRUCK = "[secret]"
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")
_SECRET = re.compile(r"\b(?:hf|api_org)_\w{6,}|(?<=Bearer )[^\s'\"]+|(?<=://)[^/\s@]+(?=@)")


@contextmanager
def foreign(failure: str, advice: str = "", kind: type[InvalidInput] = RefusedFile) -> Iterator[None]:
    """While open, a library of others is at work; what it raises becomes `failure: what it said (its type); advice`.

    `failure` says where and what: "the tokenizer of './model' cannot be loaded". Raises NotAvailable where the system, the
    network, a package or memory is to blame, otherwise `kind`.
    """
    try:
        yield
    except (LatentbenchError, *ENDING):
        raise
    except BaseException as error:
        lacking = isinstance(error, OSError | ImportError) or _out_of_memory(error)
        message = f"{failure}: {reason(error)}" + (f"; {advice}" if advice else "")
        raise (NotAvailable if lacking else kind)(message) from error


def contained(error: BaseException) -> Exception:
    """The error as one that can be kept while others go on. Raises it where it is meant to end the process.

    For the places where one cell's failure must not cost others, which therefore catch BaseException.
    """
    if isinstance(error, ENDING):
        raise error
    if isinstance(error, Exception):
        return error
    kept = Panicked(f"native code of a library gave up: {reason(error)}")
    kept.__cause__ = error
    return kept


def reason(error: BaseException) -> str:
    """What an error says and its type, on one line of bounded length and without secrets."""
    name, said = type(error).__name__, _struck(" ".join(_text(error).split()))
    return one_line(f"{said[:_LONGEST]} ({name})" if said else name)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # some classes compose their text of what may not be there; the type is told all the same
        return ""


def _struck(text: str) -> str:
    """The text without the hub's token, whether from the environment or told by its form, and without passwords in addresses."""
    for token in filter(None, (os.environ.get(name, "").strip() for name in _TOKENS)):
        text = text.replace(token, _STRUCK)
    return _SECRET.sub(_STRUCK, text)


def _out_of_memory(error: BaseException) -> bool:
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    )  # torch's, without importing torch
