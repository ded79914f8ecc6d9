"""Which rows were measured alike, and in what groups of them differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from latentbench.canonical import canonical
from latentbench.leaderboard.board import Fact, Group
from latentbench.record import Record
from latentbench.section import Json

UNMEASURED = ""
"""Key of the group of rows that have no numbers and no siblings with numbers."""


def group_key(record: Record) -> str:
    """Rows with equal keys were measured alike on the same domains."""
    keys = {domain: agreed.key for domain, agreed in record.comparability.items()}
    return canonical(keys) if keys else UNMEASURED


def merged_groups(records: Iterable[Record]) -> dict[str, str]:
    """Each record's own key to that of its group: records that share a domain and agree on all they share.

    Within a group every domain has one key, so each column can be ranked; a row that was not measured on a domain is
    blank there. Records with most domains come first, and one that fits several groups joins the first.
    """
    domains = {group_key(r): {d: agreed.key for d, agreed in r.comparability.items()} for r in records}
    groups: list[tuple[dict[str, str], list[str]]] = []
    for own in sorted(domains, key=lambda key: (-len(domains[key]), key)):
        fits = (g for g in groups if domains[own].items() & g[0].items() and _agree(domains[own], g[0]))
        home = next(fits, None)
        if home is None:
            groups.append(home := ({}, []))
        home[0].update(domains[own])
        home[1].append(own)
    return {own: canonical(keys) if keys else UNMEASURED for keys, members in groups for own in members}


def _agree(ours: Mapping[str, str], theirs: Mapping[str, str]) -> bool:
    return all(theirs.get(domain, key) == key for domain, key in ours.items())


def apart(group: Group, first: Group) -> tuple[Fact, ...]:
    """Why a group is not the first one; a domain that only one of them has is one fact."""
    shared = group.facts.keys() & first.facts.keys()
    here, there = ({d: facts for d, facts in g.facts.items() if d in shared} for g in (group, first))
    domains = {d: (d in group.facts, d in first.facts) for d in (*first.facts, *group.facts) if d not in shared}
    said = {True: "measured", False: "not measured"}
    alone = (Fact(d, said[ours], said[theirs]) for d, (ours, theirs) in domains.items())
    return (*differing_facts(here, there), *alone) if group is not first else ()


def differing_facts(here: Mapping[str, Json], there: Mapping[str, Json]) -> tuple[Fact, ...]:
    """Facts that are not the same, by dotted path; a side that lacks one has None.

    A fact that differs alike on every domain is named once, without the domain.
    """
    found = list(_differences(here, there, ""))
    alike = Counter((fact.path.partition(".")[2], canonical([fact.here, fact.there])) for fact in found)
    shared = {leaf for (leaf, _), times in alike.items() if leaf and times == len(here) == len(there)}
    merged = (Fact(leaf, f.here, f.there) if (leaf := f.path.partition(".")[2]) in shared else f for f in found)
    return tuple({fact.path: fact for fact in merged}.values())


def _differences(here: Json, there: Json, path: str) -> Iterator[Fact]:
    """Where nested data differs; what only one side has is one fact, however much it holds."""
    ours, theirs = _named(here), _named(there)
    if ours is None or theirs is None:
        if here != there:
            yield Fact(path, here, there)
        return
    for name in sorted({*ours, *theirs}):
        yield from _differences(ours.get(name), theirs.get(name), f"{path}.{name}" if path else name)


def _named(value: Json) -> dict[str, Json] | None:
    """The parts of nested data by name: metrics by theirs, for their order means nothing; None for a leaf."""
    if isinstance(value, Mapping):
        return {str(name): part for name, part in value.items()}
    if isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
        names = [str(part.get("metric", i)) for i, part in enumerate(value)]
        return dict(zip(names if len({*names}) == len(names) else map(str, range(len(names))), value, strict=True))
    return None
