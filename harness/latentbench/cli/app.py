"""The command line: verbs, shared options, and how errors reach people.

Exit codes: 0 ok, 1 failed, 2 invalid input, 3 finished but incomplete, 130 interrupted.
"""

from __future__ import annotations

import sys
from typing import Any

import typer

from latentbench.cli import diagnostics, exports, reports, results, runs, specs, stores
from latentbench.core.errors import LatentbenchError
from latentbench.core.text import printable

app = typer.Typer(
    name="latentbench",
    help="One YAML spec, one trustworthy row: train, load and compare sparse autoencoders and steering vectors.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
VERBS = (
    *(specs.new, specs.list_, specs.show, specs.validate, specs.schema),
    *(runs.plan, runs.run, runs.retry, runs.status),
    *(results.leaderboard, results.compare, results.import_, results.publish),
    *(exports.export, exports.export_vectors),
    diagnostics.doctor,
)
"""In the order of `latentbench --help`; a function's name is its verb."""
for verb in VERBS:
    app.command(verb.__name__.rstrip("_").replace("_", "-"))(verb)
app.add_typer(stores.app, name="store")
app.add_typer(diagnostics.app, name="bench")
app.add_typer(reports.app, name="report")

INTERRUPTED = 130

# Typer brings its own copy of click or uses the installed one, depending on its version: this is the one it raises.
_Unusable: Any = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")


def run(arguments: list[str]) -> int:
    """Runs the command line and returns its exit code."""
    try:
        code = int(app(args=arguments, prog_name="latentbench", standalone_mode=False) or 0)
        if code == INTERRUPTED:  # typer swallows Ctrl-C
            raise KeyboardInterrupt
        return code
    except LatentbenchError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except _Unusable as error:
        error.show()
        return int(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):  # typer makes the one the other
        print("interrupted: what was finished is kept, run the same command to continue", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 0
