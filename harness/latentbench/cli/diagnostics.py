"""Verbs about this installation: `latentbench doctor` proves that it measures right, `latentbench bench` measures its
speed.

What `bench` prints are ratios of one run, never absolute; it also holds small experiments that need no language model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentbench.cli.options import AsJson, StoreOptions, print_json, say, with_option_groups
from latentbench.core.text import one_line, plural

if TYPE_CHECKING:
    from latentbench.bench.correlation import Scores

Output = Annotated[
    Path | None, typer.Option(help="Also write the figures and the machine's name, e.g. results/bench/tables.json.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
_MARKS = {"pass": "pass", "fail": "FAIL", "note": "    "}


@with_option_groups
def doctor(
    folders: StoreOptions,
    quick: Annotated[bool, typer.Option("--quick", help="Only the surroundings.")] = False,
    as_json: AsJson = False,
) -> None:
    """Prove the metrics on known truths and check the surroundings; at most a minute, exit code 1 if anything fails.

    Example: `latentbench doctor`
    """
    from dataclasses import asdict

    from latentbench.doctor.check import one_thread, run_checks
    from latentbench.doctor.environment import surroundings_checks

    checks = surroundings_checks(folders.project())
    if not quick:
        from latentbench.doctor.intervals import interval_checks
        from latentbench.doctor.massive import massive_checks
        from latentbench.doctor.truths import dictionary_checks, metric_checks

        checks += [*metric_checks(), *massive_checks(), *dictionary_checks(), *interval_checks()]
    done = []
    with one_thread():
        for result in run_checks(checks):
            done.append(result)
            if not as_json:
                say(
                    f"{_MARKS[result.verdict]}  {result.name} ({result.seconds:.1f} s)\n      {one_line(result.detail)}"
                )
    failed = sum(result.verdict == "fail" for result in done)
    if as_json:
        print_json({"passed": not failed, "checks": [asdict(result) for result in done]})
    else:
        say(f"{plural(len(done), 'check')} in {sum(r.seconds for r in done):.1f} s, {failed} failed")
    raise typer.Exit(1 if failed else 0)


app = typer.Typer(help="Measure speed, and small experiments without a language model.", no_args_is_help=True)


@app.command()
def train(
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 5,
    device: Device = "cpu",
    torch_path: Annotated[
        bool, typer.Option("--torch", help="Also time torch's operations without our kernels.")
    ] = False,
    one: Annotated[
        bool, typer.Option("--one-thread", help="Processor seconds of one thread: for a busy machine.")
    ] = False,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Time training steps against sae-lens' TopK, interleaved in one process, and compare their memory: in float32, and in
    bfloat16 against sae-lens with its own autocast.

    Example: `latentbench bench train --rounds 3`
    """
    from dataclasses import asdict

    from latentbench.bench.kept import keep
    from latentbench.bench.train import SHAPES, compare, compare_memory, instructions, surroundings
    from latentbench.execute.placement import resolve_device

    device = resolve_device(device)
    with surroundings(one) as (threads, clock):
        timings = [
            timing
            for shape in SHAPES
            for timing in compare(shape, rounds, clock=clock, device=device, torch_path=torch_path)
        ]
    memories = [compare_memory(shape, device) for shape in SHAPES]
    measured = {"rounds": rounds, "threads": threads, "clock": clock.__name__, "instructions": instructions()}
    sizes = [{**asdict(item), "ratio": item.ratio} for item in memories]
    figures = {**measured, "timings": [asdict(timing) for timing in timings], "memory": sizes}
    if output:
        keep(output, figures)
    if as_json:
        print_json(figures)
        return
    typer.echo(
        "d_in  width   batch  step                        tokens/s  × sae-lens' speed  × with autocast  × TopK's time"
        "  × torch's speed"
    )
    for item in timings:
        shape = f"{item.shape.d_in:<5} {item.shape.width:<7} {item.shape.batch:<6}"
        faster = f"{item.speedup_over_sae_lens:17.2f}" if item.speedup_over_sae_lens else " " * 17
        autocast = f"{item.speedup_over_autocast:16.2f}" if item.speedup_over_autocast else " " * 16
        over_torch = f" {item.speedup_over_torch:16.2f}" if item.speedup_over_torch else ""
        speed = f"{item.candidate:<27} {item.tokens_per_second:8,.0f}"
        typer.echo(f"{shape} {speed} {faster} {autocast} {item.cost_over_topk:14.2f}{over_torch}")
    typer.echo(
        "\nd_in  width   batch  peak memory of a step at k    TopK MiB  in bfloat16  HierarchicalTopK MiB  × TopK's memory"
    )
    for memory in memories:
        shape = f"{memory.shape.d_in:<5} {memory.shape.width:<7} {memory.shape.batch:<6}"
        used = f"{memory.topk / 2**20:8,.0f}  {memory.rounded / 2**20:11,.0f}  {memory.hierarchical / 2**20:20,.0f}"
        typer.echo(f"{shape} k={memory.k:<27} {used} {memory.ratio:16.2f}")


@app.command()
def correlation(
    covariances: Annotated[int, typer.Option(min=1, help="How many random covariances.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all of them.")] = 0,
    as_json: AsJson = False,
) -> None:
    """KronSAE's toy experiment: RV coefficient between true covariances and those of the SAE's atoms, with and without the
    diagonals, beside SAEs that were not trained and atoms at right angles.

    Example: `latentbench bench correlation --covariances 2`
    """
    from latentbench.bench.correlation import run

    found = run(covariances, seed)
    if as_json:
        print_json({item.model: {"rv": item.rv.values, "off_diagonal": item.off_diagonal.values} for item in found})
        return
    typer.echo(
        f"Means over {covariances} covariances; in brackets the standard deviation and the mean's 95 % interval."
    )
    for item in found:
        shown = [
            f"{name} {_scores_text(scores)}" for name, scores in (("RV", item.rv), ("off-diagonal", item.off_diagonal))
        ]
        typer.echo(f"{item.model:<28} " + "   ".join(shown))


def _scores_text(scores: Scores) -> str:
    average, spread = scores.summary
    if scores.interval is None:
        return f"{average:.3f}"
    return f"{average:.3f} ({spread:.3f}; {scores.interval[0]:.3f} to {scores.interval[1]:.3f})"


@app.command()
def flow(
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of layers; Gemma-2-2B has 25 of the residual stream.")] = 26,
    width: Annotated[int, typer.Option(min=2, help="Latents of each layer.")] = 16_384,
    d_in: Annotated[int, typer.Option(min=2, help="Dimensions of the hidden states.")] = 2_304,
    k: Annotated[int, typer.Option(min=1, help="Matches kept per latent.")] = 1,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Time the matching of layers, both ways, against the bare matrix products it is made of.

    Example: `latentbench bench flow --pairs 2 --width 4096`
    """
    from dataclasses import asdict

    from latentbench.bench.flow import run
    from latentbench.execute.placement import resolve_device

    found = run(pairs, width, d_in, k, resolve_device(device))
    if as_json:
        print_json(asdict(found))
        return
    typer.echo(f"{found.pairs} pairs of {found.width:,} × {found.d_in:,}, k = {found.k}, both directions (medians)")
    typer.echo(f"matching   {found.seconds:9.3f} s a pair, {found.seconds * found.pairs:.1f} s in all")
    typer.echo(f"products   {found.product_seconds:9.3f} s a pair")
    typer.echo(f"ratio      {found.ratio:9.2f}")
    typer.echo(f"peak       {found.peak_bytes / 2**20:9,.0f} MiB beyond the weights")


@app.command()
def gpu(
    output: Annotated[Path, typer.Option(help="Folder of the report, one file per device.")] = Path("results/gpu"),
    device: Annotated[str, typer.Option(help="cuda, cuda:N, or cpu for a dry run in a small size.")] = "cuda",
    minutes: Annotated[float, typer.Option(min=0.1, help="After which nothing more is started or waited for.")] = 8.0,
    only: Annotated[list[str] | None, typer.Option(help="A part; may be repeated. Default: all of them.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run the device tests on a GPU and measure kernels, training and reinforcement learning there, each in its own process.

    Exit code 1 if a part failed or timed out. Example: `latentbench bench gpu --only kernels`
    """
    from latentbench.bench.gpu import run
    from latentbench.bench.gpu_report import summary

    report, path = run(output, device=device, minutes=minutes, only=tuple(only or ()), announce=_told)
    if as_json:
        print_json(report.plain())
    else:
        typer.echo(f"\n{summary(report)}\n\nwritten to {path}")
    raise typer.Exit(1 if report.failed else 0)


def _told(text: str) -> None:
    """Progress, beside what is printed in the end."""
    typer.echo(text, err=True)


@app.command()
def memory(
    lines: Annotated[int, typer.Option(min=1000, help="Short lines to train on.")] = 1_000_000,
    megabytes: Annotated[int, typer.Option(min=1, help="Size of the one document to evaluate.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Measure the memory of reading and tokenising texts, against the bytes of text that are needed.

    Example: `latentbench bench memory --lines 20000 --megabytes 2`
    """
    from dataclasses import asdict

    from latentbench.bench.memory import run

    found = run(lines, megabytes * 1_000_000)
    if as_json:
        print_json([{**asdict(item), "ratio": item.ratio} for item in found])
        return
    typer.echo("task                      text MiB  peak MiB  × the text   seconds")
    for item in found:
        sizes = f"{item.text_bytes / 2**20:8,.1f}  {item.peak_bytes / 2**20:8,.1f}"
        typer.echo(f"{item.task:<24}  {sizes}  {item.ratio:10.2f}  {item.seconds:8.2f}")
    typer.echo("\npeak: beyond the imports and the tokenizer; training also holds 4 bytes a token and 8 a document")


@app.command()
def cache(
    spec: Annotated[
        str, typer.Argument(help="A spec that trains an SAE and measures it; its first cell is taken.")
    ] = "quickstart/topk",
    saes: Annotated[int, typer.Option(min=1, help="SAEs of a sweep, with different seeds.")] = 3,
    tokens: Annotated[int, typer.Option(min=2, help="Training tokens that each of them reads, at most.")] = 20_000,
    documents: Annotated[int, typer.Option(min=1, help="Documents of the first domain, at most.")] = 64,
    cpu_time: Annotated[
        bool, typer.Option("--cpu-time", help="Count processor seconds, for a machine that others use too.")
    ] = False,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Time sweeps of SAEs with hidden states from the model and from the store, and compare what comes out to the bit.

    Example: `latentbench bench cache quickstart/topk --saes 6`
    """
    from dataclasses import asdict

    from latentbench.bench.cache import CacheSizes, run
    from latentbench.execute.placement import resolve_device
    from latentbench.spec.project import find_project, load_specs

    project = find_project()
    cell = load_specs(project, [spec])[0].cells[0]
    sizes = CacheSizes(saes, tokens, documents, cpu_time)
    found = run(cell, project.roots, resolve_device(device), project.store, sizes)
    if as_json:
        print_json({**asdict(found), "ratios": found.ratios})
        return
    typer.echo(f"{found.model} in {found.dtype} on {found.processor}, {found.threads} threads")
    typer.echo(
        f"{found.saes} SAEs at {found.site}: {found.tokens:,} training tokens ({found.training_bytes / 1e6:,.1f} MB stored), "
        f"{found.document_tokens:,} tokens of documents ({found.document_bytes / 1e6:,.1f} MB)"
    )
    typer.echo(f"\n{'CPU seconds' if found.cpu_time else 'seconds':<28}{'computed':>10}{'stored':>10}")
    for name, live, stored in found.lines():
        typer.echo(f"{name:<28}{live:>10.2f}{stored:>10.2f}")
    typer.echo("")
    for name, ratio in found.ratios.items():
        typer.echo(f"{name:<36} {ratio:6.2f} ×")
    typer.echo(f"weights and numbers are {'equal' if found.equal else 'NOT equal'}")


@app.command()
def rollouts(
    tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 96,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 3,
    places: Annotated[int, typer.Option(min=1, help="Answers that are written at a time.")] = 1024,
    cpu_time: Annotated[
        bool,
        typer.Option("--cpu-time", help="Count processor seconds of one thread, for a machine that others use too."),
    ] = False,
    device: Device = "cpu",
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Time 256 rollouts of mixed length in batches and by continuous batching, taking turns in one process, on the pocket
    model and on SmolLM2-135M where its package is installed.

    Example: `latentbench bench rollouts --tokens 32 --rounds 1`
    """
    from dataclasses import asdict

    import torch

    from latentbench.bench.kept import keep
    from latentbench.bench.rollouts import RolloutSizes, run
    from latentbench.execute.placement import resolve_device
    from latentbench.spec.project import find_project

    sizes = RolloutSizes(tokens, rounds, places, cpu_time)
    found = list(run(sizes, find_project().roots, torch.device(resolve_device(device))))
    figures = {**asdict(sizes), "timings": [asdict(item) for item in found]}
    if output:
        keep(output, figures)
    if as_json:
        print_json(figures)
        return
    typer.echo("model          data type   prompts   mean answer   in batches   continuous   ratio   (tokens/s)")
    for item in found:
        prompts = f"{item.shortest}-{item.longest}"
        speeds = f"{item.answer_tokens:11.1f}  {item.batches:11,.0f}  {item.continuous:11,.0f}  {item.ratio:6.2f}"
        typer.echo(f"{item.model:<14} {item.dtype:<10}  {prompts:<8} {speeds}")


@app.command()
def startup(
    specs: Annotated[int, typer.Option(min=1, help="Specs to generate, of 20 cells each.")] = 500,
    rounds: Annotated[int, typer.Option(min=1, help="Processes per command; the best counts.")] = 3,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Time `--help`, `validate` and `plan` of this project's specs and of many generated ones, in fresh processes; and
    `doctor` while all processors are busy.

    Example: `latentbench bench startup --specs 100 --rounds 1`
    """
    from dataclasses import asdict

    from latentbench.bench.kept import keep
    from latentbench.bench.startup import CELLS, run

    found = list(run(specs, rounds))
    figures = {"rounds": rounds, "cells": CELLS, "commands": [asdict(item) for item in found]}
    if output:
        keep(output, figures)
    if as_json:
        print_json(figures)
        return
    typer.echo("command   specs                          user s    wall s")
    for item in found:
        about = "this project's" if item.specs is None else f"{item.specs:,} generated, {item.specs * CELLS:,} cells"
        shown = about if item.command in ("validate", "plan") else ""
        typer.echo(f"{item.command:<9} {shown:<28} {item.user_seconds:8.2f}  {item.wall_seconds:8.2f}")


@app.command()
def tables(
    records: Annotated[int, typer.Option(min=3, help="How many records to generate.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the records.")] = 0,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Time the table, the page and the end of a run over many generated records: cold, and with what is kept from before;
    then open the page in a headless Chromium, where there is one, and time that.

    Example: `latentbench bench tables --records 300`
    """
    from dataclasses import asdict

    from latentbench.bench.kept import keep
    from latentbench.bench.tables import run

    found = run(records, seed, lambda said: None if as_json else say(said, err=True))
    if output:
        keep(output, asdict(found))
    if as_json:
        print_json(asdict(found))
        return
    typer.echo(f"{'task':<22}  {'wall s':>8}  {'CPU s':>8}  {'memory MiB':>10}  {'MB written':>10}")
    for item in found.tasks:
        for state, spent in (("cold", item.cold), ("warm", item.warm)):
            if spent:
                used = f"{spent.seconds:8.2f}  {spent.cpu_seconds:8.2f}  {spent.peak_bytes / 2**20:10,.0f}"
                typer.echo(f"{f'{item.task}, {state}':<22}  {used}  {item.written_bytes / 1e6:10.1f}")
    typer.echo(f"\n{records:,} records of about a hundred numbers; cold: nothing kept from before")
    if times := found.browser:
        typer.echo(
            f"in Chromium: first text {times.paint:,.0f} ms, first rows {times.rows:,.0f} ms, "
            f"sort {times.sort:,.0f} ms, filter {times.filter:,.0f} ms"
        )
    else:
        typer.echo("no Chromium here: the page was not opened")
