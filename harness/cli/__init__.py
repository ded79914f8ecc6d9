"""The command `latentbench`. Every verb imports what it needs when it runs, so that reading verbs start fast."""

from __future__ import annotations

import sys

from harness.errors import LatentbenchError
from harness.words import printable


def main() -> None:
    """Entry point: runs the command line and turns our errors into one message and an exit code."""
    try:
        from harness.cli.app import run  # reads every installed plug-in, of which one may be broken
    except LatentbenchError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(run(sys.argv[1:]))
