"""The command `latentbench`. Every verb imports what it needs when it runs, so that reading verbs start fast."""

from __future__ import annotations

import gc
import sys

_YOUNG = 50_000
"""New objects after which garbage is looked for. Specs and records are many objects that stay: at Python's own 700 a tenth of
`validate` went into looking at them."""


def main() -> None:
    """Entry point: runs the command line."""
    gc.set_threshold(_YOUNG)
    from latentbench.cli.app import run

    sys.exit(run(sys.argv[1:]))
