"""What a vector does inside of the model: the panels of the mechanism studies."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from latentbench.report import figures
from latentbench.report.steered_cell import Panel, SteeredCell
from latentbench.report.tables import tokens, visible_token


def shift(cell: SteeredCell) -> Iterator[Panel]:
    details = cell.details("token_shift")
    if details and details["tokens"]:
        groups: dict[str, tuple[list[str], list[float]]] = {"first token": ([], []), "other tokens": ([], [])}
        for token in details["tokens"][:12]:
            for name, key in (("first token", "first"), ("other tokens", "later")):
                groups[name][0].extend([token["token"]] * len(token[key]))
                groups[name][1].extend(token[key])
        about = "Increase in probability of the most boosted tokens, at the first generated token and at all others."
        yield Panel("What steering boosts", about, figures.boxes(groups, "p steered − p plain"))
    test = cell.details("first_token_test")
    if test and "token" in test:
        values = {name: test[name] for name in ("base", "substituted", "steered")}
        values |= {f"“{visible_token(text)}”": value for text, value in test.get("stated", {}).items()}
        about = f"Accuracy when the token “{visible_token(test['token'])}” is appended to the prompt and the vector removed."
        yield Panel("First-token test", about, figures.bars(values, "accuracy"))


def movement(cell: SteeredCell) -> Iterator[Panel]:
    details = cell.details("attention_shift")
    if details:
        about = "Total variation between steered and plain attention patterns, by layer and head."
        yield Panel("Attention", about, figures.heatmap(details["heads"], "head", "layer"))
        values = {str(layer): value for layer, value in enumerate(details["mlps"])}
        yield Panel("MLP outputs", "Relative change by layer.", figures.bars(values, "‖Δ‖ / ‖mlp‖"))
    found = cell.details("persistence")
    if found:
        curves = {name: (found["layers"], found[name]) for name in ("diff_diff", "diff_vector", "relative")}
        known = {name: curve for name, curve in curves.items() if any(y is not None for y in curve[1])}
        about = (
            f"{_PERSISTS} {_COMPARED[found.get('vectors')] if 'diff_vector' in known else 'No later vector is known.'}"
        )
        plot = (
            figures.lines(known, "layer", "cosine or ratio", markers=True)
            if known
            else Markup("<p>No later block.</p>")
        )
        lens = Markup("<p>Mean change after the last block: {}</p>").format(tokens(found["lens"]["top"]))
        yield Panel("Persistence", about, plot + lens)
    if found and "matrix" in found:
        about = "Cosines between the mean changes after the last block that single vectors make."
        plot = figures.heatmap(found["matrix"]["cosines"], "vector", "vector", found["matrix"]["vectors"])
        yield Panel("Single vectors", about, plot)


_PERSISTS = (
    "What steering at earlier blocks has made of each later block's output: cosine to its own mean over tokens "
    "(diff_diff) and size relative to the plain output."
)
_COMPARED = {
    "named": "diff_vector: its cosine to the separately trained vector of that block.",
    "own": "diff_vector: its cosine to the vector that this cell itself adds at that block.",
    None: "diff_vector: its cosine to this cell's own vector of that block (1 where it is added; an older definition).",
}


_WAYS = {"": "", "_residual": ", for the residual stream alone", "_mlp": ", for the MLP alone"}
"""Where patched attention goes, by the ending of the names of what was measured."""


def paths(cell: SteeredCell) -> Iterator[Panel]:
    details = cell.details("path_patching")
    if details:
        about = "KL from the plain model when parts of the last block see the plain input."
        yield Panel("Path patching", about, figures.bars(details["modes"], "KL (nats)"))
        for part, about in (
            ("heads", "One head's output"),
            ("groups", "The output of heads that share keys and values"),
        ):
            for path, way in _WAYS.items():
                bars = {f"{part[:-1]} {n}": value for n, value in enumerate(details.get(f"{part}{path}", ()))}
                bars |= {f"only {n}": value for n, value in enumerate(details.get(f"only_{part}{path}", ()))}
                if bars:
                    said = f"{about} plain, or every other's{way}."
                    yield Panel(part.capitalize() + path.replace("_", ": "), said, figures.bars(bars, "KL (nats)"))
        if "entropies" in details:
            said = "Mean entropy of the distributions of the plain model and of every mode."
            yield Panel("Entropies", said, figures.bars(details["entropies"], "entropy (nats)"))
        positions = details["positions"]
        curve = {"no_patch": (list(range(len(positions))), positions)}
        yield Panel("By position", "KL at each generated token.", figures.lines(curve, "generated token", "KL (nats)"))
    found = cell.details("logit_attribution")
    if found and "layers" in found:
        curves = {name: (list(range(len(v))), v) for name, v in found["layers"].items()}
        about = f"Shares of the rise of “{visible_token(found['token'])}” at the first generated token."
        yield Panel("Logit attribution", about, figures.lines(curves, "layer", "logits", markers=True))


def pairs(cell: SteeredCell) -> Iterator[Panel]:
    details = cell.details("layer_pairs")
    if details:
        labels = [single["layer"] for single in details["alone"]]
        table: list[list[float | None]] = [[None] * len(labels) for _ in labels]
        for place, single in enumerate(details["alone"]):
            table[place][place] = single["accuracy"]
        for pair in details["pairs"]:
            first, second = (labels.index(layer) for layer in pair["layers"])
            table[first][second] = table[second][first] = pair["accuracy"]
        about = f"Accuracy with the vectors of two layers (diagonal: one); all together {details['together']:.3f}."
        yield Panel("Pairs of layers", about, figures.heatmap(table, "layer", "layer", labels))
