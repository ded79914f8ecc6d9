"""Figures that are committed: one JSON file per benchmark in `results/bench/`, with the machine they came from.

The tables in `docs/speed.md` between `<!-- NAME -->` and `<!-- end -->` are pure functions of these files;
`python -m latentbench.bench.kept` writes them.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from latentbench.core.errors import InvalidInput
from latentbench.core.spec_model import Json
from latentbench.core.text import plural
from latentbench.execute.cell_record import git_checkout, processor_name
from latentbench.store.files import read_json, write_json

CHECKOUT = Path(__file__).parents[3]
FOLDER, PAGE = "results/bench", "docs/speed.md"


def keep(file: Path, figures: Json) -> None:
    """Writes figures beside what they were measured on. Raises StoreError."""
    checkout = git_checkout(CHECKOUT)
    machine = {
        "processor": processor_name(),
        "python": platform.python_version(),
        "platform": platform.system(),
        "load": round(os.getloadavg()[1], 1),  # of the last five minutes: what else wanted the processors
    }
    commit = None if checkout is None else checkout.commit[:12] + "+" * checkout.dirty
    write_json(file, {"machine": machine, "commit": commit, "date": datetime.now(UTC).date().isoformat(), **figures})


def tables_page(found: Json) -> str:
    """Of `bench tables`."""
    lines = [
        f"{found['records']:,} records on {_machine(found)}:",
        "",
        "| | wall s | CPU s | memory MiB |",
        "| :-- | --: | --: | --: |",
    ]
    for task in found["tasks"]:
        for state in ("cold", "warm"):
            if spent := task[state]:
                times = f"{spent['seconds']:.1f} | {spent['cpu_seconds']:.1f} | {spent['peak_bytes'] / 2**20:,.0f}"
                lines.append(f"| {task['task']}, {state} | {times} |")
    if times := found["browser"]:
        lines += [
            "",
            f"In headless Chromium its page of {_page_bytes(found) / 1e6:.1f} MB shows its first text after {times['paint']:.0f} ms"
            f" and its first rows after {times['rows']:.0f} ms; sorting takes {times['sort']:.0f} ms,"
            f" filtering {times['filter']:.0f} ms.",
        ]
    return "\n".join(lines)


def startup_page(found: Json) -> str:
    """Of `bench startup`."""
    lines = [
        f"On {_machine(found)}, the best of {found['rounds']} processes:",
        "",
        "| | user s | wall s |",
        "| :-- | --: | --: |",
    ]
    for one in found["commands"]:
        about = "" if one["specs"] is None else f", {one['specs']:,} specs of {found['cells']} cells"
        about = ", all processors busy" if one["command"] == "doctor" else about
        lines.append(f"| `{one['command']}`{about} | {one['user_seconds']:.2f} | {one['wall_seconds']:.2f} |")
    return "\n".join(lines)


def train_page(found: Json) -> str:
    """Of `bench train`."""
    counted = "processor seconds" if found["clock"] == "process_time" else "wall seconds"
    lines = [
        f"{counted.capitalize()} of {plural(found['threads'], 'thread')} on {_machine(found)}"
        f" ({', '.join(found['instructions'])}), {found['rounds']} alternating rounds, medians of the ratios:",
        "",
        "| d, latents, batch | step | tokens/s | × sae-lens' speed | × sae-lens' with autocast | × TopK's time |",
        "| :-- | :-- | --: | --: | --: | --: |",
    ]
    for one in found["timings"]:
        ratios = [one["speedup_over_sae_lens"], one["speedup_over_autocast"], one["cost_over_topk"]]
        numbers = " | ".join("" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
        lines.append(f"| {_step_size(one)} | {one['candidate']} | {one['tokens_per_second']:,.0f} | {numbers} |")
    lines += [
        "",
        "| d, latents, batch | k | TopK MiB | in bfloat16 | HierarchicalTopK |",
        "| :-- | --: | --: | --: | --: |",
    ]
    for one in found["memory"]:
        sizes = " | ".join(f"{one[name] / 2**20:,.0f}" for name in ("topk", "rounded", "hierarchical"))
        lines.append(f"| {_step_size(one)} | {one['k']} | {sizes} |")
    return "\n".join(lines)


def rollouts_page(found: Json) -> str:
    """Of `bench rollouts`."""
    counted = "Processor seconds of one thread" if found["cpu_time"] else "Wall seconds"
    lines = [
        f"{counted} on {_machine(found)}, {plural(found['rounds'], 'alternating round')}, answers of at most"
        f" {found['tokens']} tokens at temperature 1:",
        "",
        "| model | data type | prompt tokens | mean answer | tokens/s in batches | continuous | ratio |",
        "| :-- | :-- | --: | --: | --: | --: | --: |",
    ]
    for one in found["timings"]:
        speeds = f"{one['batches']:,.0f} | {one['continuous']:,.0f} | {one['ratio']:.2f}"
        about = f"{one['model']} | {one['dtype']} | {one['shortest']}–{one['longest']} | {one['answer_tokens']:.1f}"
        lines.append(f"| {about} | {speeds} |")
    return "\n".join(lines)


def _step_size(one: Json) -> str:
    shape = one["shape"]
    return f"{shape['d_in']}, {shape['width']:,}, {shape['batch']:,}"


PAGES: Mapping[str, Callable[[Json], str]] = {
    "tables": tables_page,
    "startup": startup_page,
    "train": train_page,
    "rollouts": rollouts_page,
}


def page(text: str, folder: Path) -> str:
    """The page with the tables of the files in a folder in their places. Raises InvalidInput for a place without a file."""

    def filled(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in PAGES or not (folder / f"{name}.json").is_file():
            raise InvalidInput(f"{folder / name}.json is wanted by a page and not there")
        return f"<!-- {name} -->\n{PAGES[name](read_json(folder / f'{name}.json'))}\n<!-- end -->"

    return re.sub(r"<!-- (?P<name>[a-z]+) -->\n.*?<!-- end -->", filled, text, flags=re.DOTALL)


def _machine(found: Json) -> str:
    machine = found["machine"]
    load = f", at a load of {machine['load']:g}" if "load" in machine else ""
    return f"{machine['processor']}, Python {machine['python']}, {found['date']}{load}"


def _page_bytes(found: Json) -> int:
    return next(int(task["written_bytes"]) for task in found["tasks"] if task["task"] == "page")


def main() -> int:
    """Writes the page anew."""
    path = CHECKOUT / PAGE
    path.write_text(page(path.read_text("utf-8"), CHECKOUT / FOLDER), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
