"""`latentbench store`: what is in the store, whether it is sound, and what can go."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.cli.options import AsJson, Results, StoreFolder, print_json, project_of, say
from harness.errors import DamagedArtifact
from harness.store.store import Store
from harness.words import plural

app = typer.Typer(help="Look after the store of artifacts.", no_args_is_help=True)


@app.command()
def ls(results: Results = None, store: StoreFolder = None, as_json: AsJson = False) -> None:
    """List the artifacts with their sizes."""
    found = list(Store(project_of(results, store).store).artifacts())
    if as_json:
        print_json([{"kind": a.kind, "key": a.key, "bytes": a.bytes} for a in found])
        return
    for artifact in found:
        say(f"{artifact.kind:<12} {artifact.key[:16]} {artifact.bytes / 2**20:10.2f} MiB")
    say(f"{plural(len(found), 'artifact')}, {sum(a.bytes for a in found) / 2**20:.1f} MiB")


@app.command()
def verify(results: Results = None, store: StoreFolder = None) -> None:
    """Check the bytes of every artifact; damaged ones are put in quarantine and will be rebuilt."""
    opened, damaged, sound = Store(project_of(results, store).store), 0, 0
    for artifact in opened.artifacts():
        try:
            opened.verify(artifact.kind, artifact.key)
            sound += 1
        except DamagedArtifact as error:
            damaged += 1
            say(f"damaged: {error}; moved to {opened.quarantine(artifact.folder)}", err=True)
    say(f"{plural(sound, 'artifact')} sound, {damaged} damaged")
    raise typer.Exit(1 if damaged else 0)


@app.command()
def gc(
    results: Results = None,
    store: StoreFolder = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it only say what would be deleted.")] = False,
) -> None:
    """Delete artifacts that no record refers to."""
    from harness.results import referred_keys

    project = project_of(results, store)
    opened, kept = Store(project.store), referred_keys(project.results)
    loose = [artifact for artifact in opened.artifacts() if artifact.key not in kept]
    for artifact in loose:
        say(f"{artifact.kind:<12} {artifact.key[:16]} {artifact.bytes / 2**20:10.2f} MiB")
        if yes:
            opened.remove(artifact)
    size = sum(artifact.bytes for artifact in loose) / 2**20
    say(f"{plural(len(loose), 'artifact')}, {size:.1f} MiB " + ("deleted" if yes else "would be deleted; add --yes"))
