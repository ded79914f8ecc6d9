"""`latentbench report`: pages about what is inside of a cell's artifacts, and agreement between seeds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from latentbench.cli.options import AsJson, CellArgument, FolderOptions, Results, print_json, say, with_option_groups
from latentbench.core.errors import InvalidInput
from latentbench.spec.project import find_project

if TYPE_CHECKING:
    from latentbench.latents.decoder_similarity import Agreement
    from latentbench.report.frontier import Frontier

app = typer.Typer(help="Write pages about latents; compare SAEs of several seeds.", no_args_is_help=True)


@app.command()
@with_option_groups
def latents(
    run: CellArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write; the HTML leaderboard links to the default.",
            show_default="results/pages/CELL-latents.html",
        ),
    ] = None,
    most: Annotated[int, typer.Option("--latents", min=1, help="Most latents shown.")] = 2000,
    *,
    folders: FolderOptions,
) -> None:
    """Write one offline HTML page about the latents of an SAE: explanations, examples, neighbours, tokens.

    Example: `latentbench report latents 'quickstart/topk[sae.k=8][0]'`
    """
    from latentbench.leaderboard.row_details import page_path
    from latentbench.report.cells import record_of, sources_of
    from latentbench.report.latents import page
    from latentbench.store.files import write_bytes

    project = folders.project()
    record = record_of(project.results, run)
    sources = sources_of(record, project, lambda text: say(text, err=True))
    target = output or page_path(project.results, record.cell, "latents")
    write_bytes(target, page(sources, most).encode())
    for note in sources.notes:
        say(note, err=True)
    say(f"wrote {target}")


@app.command()
@with_option_groups
def consistency(
    run: Annotated[str, typer.Argument(help="A row with several seeds: spec-name[label].")],
    folders: FolderOptions,
    as_json: AsJson = False,
) -> None:
    """Compare the decoders of one row's seeds: how far do they find the same latents?

    Example: `latentbench report consistency 'quickstart/topk[sae.k=8]'`
    """
    from latentbench.latents.decoder_similarity import consistency as compare
    from latentbench.latents.decoder_similarity import decoder_of
    from latentbench.report.cells import experiment_of, records_of, sae_of

    project = folders.project()
    records = records_of(project.results, run)
    found = compare([decoder_of(sae_of(record, experiment_of(record), project)) for record in records])
    lines = {f"{records[a].seed} – {records[b].seed}": pair for (a, b), pair in found.pairs.items()}
    lines |= {"mean": found.mean, "chance": found.chance}
    if as_json:
        print_json({name: vars(agreement) for name, agreement in lines.items()})
        return
    say(f"{'seeds':<12} best match  matched  shared (≥ 0.7)")
    for name, agreement in lines.items():
        say(_line(name, agreement))


def _line(name: str, found: Agreement) -> str:
    matched, shared = ("–" if x is None else f"{x:.3f}" for x in (found.matched, found.shared))
    return f"{name:<12} {found.best_match:>10.3f}  {matched:>7}  {shared:>6}"


@app.command()
@with_option_groups
def steering(
    runs: Annotated[list[str], typer.Argument(help="Records: cell ids, files, or spec-name[label][seed].")],
    folders: FolderOptions,
) -> None:
    """Write one offline HTML page per steered cell: accuracy, training, cost, and what its vectors do in the model.

    Example: `latentbench report steering 'papers/steering_vectors/pocket[all]'`
    """
    from latentbench.report.cells import cells_of
    from latentbench.report.steering import write

    project = folders.project()
    for record in cells_of(project.results, *runs):
        say(f"wrote {write(record, project)}")


@app.command()
def figure(
    suite: Annotated[str, typer.Argument(help="A spec, or a folder of specs, that has records.")],
    y: Annotated[str, typer.Option(help="Id of the number that is drawn.")] = "explained_variance.centred",
    x: Annotated[str, typer.Option(help="Id of the number it is drawn against.")] = "l0",
    domain: Annotated[str | None, typer.Option(help="Domain of both; default the first.", show_default=False)] = None,
    rows: Annotated[
        str, typer.Option(help="Patterns of labels, with commas between; `!untrained` leaves one out.")
    ] = "*",
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .svg, .png or .pdf.")] = Path(
        "figure.svg"
    ),
    results: Results = None,
) -> None:
    """Draw one number against another for a paper: a curve for each variant, and for each SAE that was cut to fewer latents.

    Example: `latentbench report figure papers/hierarchical_topk/pocket --domain general -o hierarchical.svg`
    """
    from latentbench.leaderboard.api import suite_board
    from latentbench.report.curves import Axes, curves, words
    from latentbench.report.curves import figure as drawn
    from latentbench.report.row_patterns import RowPatterns
    from latentbench.store.files import write_bytes

    board = suite_board(find_project(results).results, suite)
    domains = [name for group in board.groups for name in group.domains]
    axes = Axes(y, domain or (domains[0] if domains else ""), x, RowPatterns(tuple(rows.split(","))))
    written = drawn(curves(board, axes), *words(board, axes), output.suffix.removeprefix("."))
    write_bytes(output, written)
    say(f"wrote {output}")


@app.command()
def scales(
    spec: Annotated[str, typer.Argument(help="Name of a spec that sweeps `steering.scale`.")],
    selection: Annotated[
        str, typer.Option("--selection", help="Task whose accuracy chooses; not the one that is reported.")
    ],
    texts: Annotated[str | None, typer.Option(help="Domain of neutral text on which the cost is bounded.")] = None,
    most_kl: Annotated[float, typer.Option(min=0, help="Largest KL per token there, in nats.")] = float("inf"),
    results: Results = None,
    as_json: AsJson = False,
) -> None:
    """Show accuracy and cost at every scale of a sweep, and which scale the selection problems choose.

    Example: `latentbench report scales papers/steering_vectors/pocket-scales --selection pocket_problems_selection
    --texts general --most-kl 0.1`
    """
    from latentbench.leaderboard.load import load
    from latentbench.report.frontier import frontiers

    records = [cell.record for cell in load(find_project(results).results).loaded if cell.record.spec.name == spec]
    if not records:
        raise InvalidInput(f"there are no records of {spec}")
    if most_kl < float("inf") and texts is None:
        raise InvalidInput("--most-kl needs --texts, the domain on which the KL is bounded")
    found = frontiers(records, selection, texts, most_kl)
    if as_json:
        print_json([vars(one) for one in found])
        return
    for one in found:
        say("\n".join(_frontier(one)))


def _frontier(one: Frontier) -> Iterator[str]:
    yield f"{one.label}: scale {one.chosen:g}"
    widths = {name: max(len(name), 8) for name in one.columns}
    yield f"{'scale':>8}  " + "  ".join(f"{name:>{width}}" for name, width in widths.items())
    for scale in one.scales:
        numbers = [(one.columns[name].get(scale), width) for name, width in widths.items()]
        shown = "  ".join(f"{'–' if value is None else f'{value:.3f}':>{width}}" for value, width in numbers)
        yield f"{scale:>8g}  {shown}" + ("  ← chosen" if scale == one.chosen else "")


@app.command()
@with_option_groups
def flow(
    run: CellArgument,
    latent: Annotated[
        list[str] | None,
        typer.Option("--latent", help="Seed latent SITE:NUMBER, e.g. 3:17 or 3.resid_post:17; repeatable."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write.", show_default="results/pages/CELL-flow.html"),
    ] = None,
    to: Annotated[Literal["html", "json", "dot", "graphml"], typer.Option(help="What to write.")] = "html",
    explanations: Annotated[
        Path | None,
        typer.Option(
            help='JSON file {"3.resid_post:17": "…"}; by default those of autointerp studies of the same SAEs are shown.'
        ),
    ] = None,
    *,
    folders: FolderOptions,
) -> None:
    """Write the flow graphs of some latents: an offline page to explore, or one graph for other programs.

    Example: `latentbench report flow 'papers/feature_flow/pocket[cosine][0]' --latent 3:17`
    """
    from latentbench.report.flow import write

    project = folders.project()
    for line in write(project, run, latent or [], output, to, explanations):
        say(line)
