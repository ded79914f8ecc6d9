"""Versions, device, disk and hub: what a run will find here."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from latentbench.doctor.check import Check, Finding
from latentbench.spec.project import Project

ENOUGH = 2 << 30
"""Free bytes below which a run may well fail."""
_PATIENCE = 3.0
"""Seconds to wait for the hub."""


def surroundings_checks(project: Project) -> list[Check]:
    """All of them; only the last opens a connection, to the hub, unless this machine is told to stay offline."""
    return [
        Check("packages fit", "surroundings", _packages),
        Check("plug-ins load", "surroundings", _plug_ins),
        Check("device", "surroundings", _device),
        Check("the store can be written", "surroundings", lambda: _disk(project.store)),
        Check("hub", "surroundings", _hub),
    ]


def _packages() -> Finding:
    """Every requirement of this distribution that applies here, against what is installed."""
    problems, seen = [], 0
    for text in requires("latentbench") or []:
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            continue
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            seen += 1
            problems += _misfit(wanted)
    python = ".".join(map(str, sys.version_info[:3]))
    return Finding(not problems, f"Python {python}; " + ("; ".join(problems) or f"{seen} requirements met"))


def _misfit(wanted: Requirement) -> list[str]:
    try:
        found = version(wanted.name)
    except PackageNotFoundError:
        return [f"{wanted.name} is not installed"]
    fits = wanted.specifier.contains(found, prereleases=True)
    return [] if fits else [f"{wanted.name} {found} is not {wanted.specifier}"]


def _plug_ins() -> Finding:
    from latentbench.core.plugins import GROUPS, plugins

    counts = [f"{len(plugins(group))} {group}" for group in GROUPS]
    return Finding(True, ", ".join(counts))


def _device() -> Finding:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if not torch.cuda.is_available():
        return Finding(None, f"CPU, {cores} cores, torch {torch.__version__}")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    x = torch.eye(8, device="cuda")
    return Finding(bool((x @ x).trace().item() == 8), f"{', '.join(names)}; torch {torch.__version__}")


def _disk(store: Path) -> Finding:
    place = next(folder for folder in (store, *store.parents) if folder.exists())
    free, writable = shutil.disk_usage(place).free, os.access(place, os.W_OK)
    detail = f"{place}: {free / 2**30:.1f} GiB free" + ("" if writable else ", not writable")
    return Finding(writable and free >= ENOUGH, detail)


def _hub() -> Finding:
    """Whether a run that needs the hub will get an answer, which is asked for."""
    from latentbench.core.hub import cache_folder, silence

    cached, known = len(list(cache_folder().glob("models--*"))), distribution("huggingface_hub").version
    return Finding(None, f"{_hub_now(silence)}; {cached} cached models, huggingface_hub {known}")


def _hub_now(silence: Callable[[float], str | None]) -> str:
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    told = next((name for name in names if os.environ.get(name, "").upper() in ("1", "TRUE", "YES", "ON")), None)
    if told:
        return f"offline, because {told} is set: only what is cached can be read"
    if why := silence(_PATIENCE):
        return f"unreachable ({why}): only what is cached can be read"
    return "online, it answered: what is not cached is fetched by pinned revision"
