"""Versions, device, disk and hub: what a run will find here."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from harness.doctor.check import Check, Finding
from harness.project import Project

ENOUGH = 2 << 30
"""Free bytes below which a run may well fail."""


def surroundings_checks(project: Project) -> list[Check]:
    """All of them; none opens a connection."""
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
    from harness.registry import GROUPS, sections

    counts = [f"{len(sections(group))} {group}" for group in GROUPS]
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
    """Whether a run will ask the hub; reaching it is not tried."""
    offline = any(
        os.environ.get(name, "").upper() in ("1", "TRUE", "YES", "ON")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface")
    cached = len(list((home / "hub").glob("models--*"))) if (home / "hub").is_dir() else 0
    known = distribution("huggingface_hub").version
    mode = (
        "offline: only what is cached can be read"
        if offline
        else "online: what is not cached is fetched by pinned revision"
    )
    return Finding(None, f"{mode}; {cached} cached models, huggingface_hub {known}")
