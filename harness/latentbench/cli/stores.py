"""`latentbench store`: what is in the store, why, whether it is sound, and what can go."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from latentbench.cli.options import AsJson, Quota, StoreOptions, print_json, say, with_option_groups
from latentbench.core.errors import DamagedArtifact
from latentbench.core.spec_model import Json
from latentbench.core.text import plural
from latentbench.store.store import Artifact, Store

if TYPE_CHECKING:
    from latentbench.records.lineage import Lineage, Relative

app = typer.Typer(help="Look after the store of artifacts.", no_args_is_help=True)


@app.command()
@with_option_groups
def ls(folders: StoreOptions, as_json: AsJson = False) -> None:
    """List the artifacts with their sizes, and what live workers are making."""
    opened = Store(folders.project().store)
    found = list(opened.artifacts())
    if as_json:
        print_json([{"kind": a.kind, "key": a.key, "bytes": a.bytes} for a in found])
        return
    for artifact in found:
        say(_line(artifact))
    for held in opened.leases.live():
        kind, _, key = held.name.rpartition("-")
        if kind != "use":
            say(f"{kind:<12} {key[:16]} being made by {opened.leases.owner(held) or 'a worker that has just ended'}")
    say(f"{plural(len(found), 'artifact')}, {sum(a.bytes for a in found) / 2**20:.1f} MiB")


@app.command()
@with_option_groups
def verify(folders: StoreOptions) -> None:
    """Check the bytes of every artifact; damaged ones are put in quarantine and will be rebuilt."""
    opened, damaged, sound = Store(folders.project().store), 0, 0
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
@with_option_groups
def why(
    key: Annotated[str, typer.Argument(help="Key of an artifact or cell, or its first digits.")],
    folders: StoreOptions,
    as_json: AsJson = False,
) -> None:
    """Say what an artifact was made from, what was made from it, and which records refer to it.

    Example: `latentbench store why 3f9a`
    """
    from latentbench.records.lineage import lineage

    project = folders.project()
    found = lineage(Store(project.store), project.results, key)
    if as_json:
        print_json(_as_json(found))
        return
    for line in _told(found):
        say(line)


@app.command()
@with_option_groups
def gc(
    folders: StoreOptions,
    quota: Quota = None,
    quarantine: Annotated[bool, typer.Option("--quarantine", help="Delete damaged artifacts put aside too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it only say what would be deleted.")] = False,
) -> None:
    """Delete artifacts that no record refers to, and what dead workers left behind.

    With a quota only the least recently used go, until the store is that small. What live workers make or use stays.

    Examples: `latentbench store gc --yes`, `latentbench store gc --quota 50GiB`
    """
    from latentbench.records.results import referred_keys
    from latentbench.store.cleaning import beyond, evict, forgettable, litter, loose, parse_size, size_of

    limit = None if quota is None else parse_size(quota)
    project = folders.project()
    opened = Store(project.store)
    for piece in [*litter(opened, project.results, quarantine), *forgettable(opened, limit)]:
        say(f"{piece.what:<12} {piece.path.name[:40]} {piece.bytes / 2**20:10.2f} MiB")
        if yes:
            piece.remove()
    artifacts = loose(opened, referred_keys(project.results))
    chosen = artifacts if limit is None else beyond(opened, limit, artifacts)
    gone: Iterable[Artifact] = evict(opened, chosen) if yes else chosen
    sizes = [_said(artifact) for artifact in gone]
    if yes:
        opened.leases.sweep()
    done = "deleted" if yes else "would be deleted; add --yes"
    say(f"{plural(len(sizes), 'artifact')}, {sum(sizes) / 2**20:.1f} MiB {done}")
    if limit is not None and (left := size_of(opened.root) - (0 if yes else sum(sizes))) > limit:
        say(f"the store keeps {left / 2**20:.1f} MiB, more than the quota: records refer to the rest", err=True)


def _said(artifact: Artifact) -> int:
    say(_line(artifact))
    return artifact.bytes


def _line(artifact: Artifact) -> str:
    return f"{artifact.kind:<12} {artifact.key[:16]} {artifact.bytes / 2**20:10.2f} MiB"


def _told(found: Lineage) -> Iterable[str]:
    size = f", {found.artifact.bytes / 2**20:.2f} MiB, made {found.created}" if found.artifact else ""
    yield f"{found.artifact.kind if found.artifact else 'key'} {found.key}: {found.state}{size}"
    if found.made_from is not None:
        yield f"made from {json.dumps(found.made_from, ensure_ascii=False)}"
    yield from (f"  parent {_name(parent)}" for parent in found.parents)
    yield from (f"  child  {_name(child)}" for child in found.children)
    yield from (f"  record {record}" for record in found.records)
    if not found.records:
        yield "no record refers to it"


def _name(relative: Relative) -> str:
    return f"{relative.kind or 'not in the store':<16} {relative.key[:16]}"


def _as_json(found: Lineage) -> Json:
    plain = asdict(found)
    plain["artifact"] = found.artifact and {"kind": found.artifact.kind, "bytes": found.artifact.bytes}
    return plain
