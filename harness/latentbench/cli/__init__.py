"""The command `latentbench`. Every verb imports what it needs when it runs, so that reading verbs start fast."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point: runs the command line."""
    from latentbench.cli.app import run

    sys.exit(run(sys.argv[1:]))
