"""lm-eval without its ways to code of others: what it falls back to is out of reach while a task is loaded and scored."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from latentbench_adapters.lm_eval.quiet import quiet
from latentbench_adapters.templates import Sandbox, task_templates

_LAST_RESORT = "evaluate"
"""The library that lm-eval asks for a metric it does not know: it runs a module from a folder or from the hub."""


@contextmanager
def sealed() -> Iterator[None]:
    """While open, `evaluate` cannot be imported, templates are rendered in a bounded sandbox, and nothing is printed.

    The lists of a task file's names (task_schema.py) are what refuses code; this holds where they have a hole, and for
    the tasks that ship with lm-eval: their code is installed, but they may fetch more.
    """
    from lm_eval import utils

    if not isinstance(utils.env, Sandbox):  # without it a template could reach any Python object
        utils.env = task_templates()
    before = {_LAST_RESORT: sys.modules[_LAST_RESORT]} if _LAST_RESORT in sys.modules else {}
    sys.modules[_LAST_RESORT] = None  # type: ignore[assignment]  # what Python has for "not to be imported"
    try:
        with quiet():
            yield
    finally:
        del sys.modules[_LAST_RESORT]
        sys.modules.update(before)


def asked_for_code(error: BaseException) -> bool:
    """Whether an error says that `evaluate` was wanted."""
    return isinstance(error, ImportError) and error.name == _LAST_RESORT
