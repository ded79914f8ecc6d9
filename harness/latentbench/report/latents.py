"""The page about an SAE's latents: its data, and the HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from latentbench.errors import InvalidInput
from latentbench.leaderboard.render.offline import embedded, offline_page
from latentbench.metrics.autointerp.details import LatentDetail
from latentbench.metrics.latents.cosines import Neighbours, decoder_of, nearest
from latentbench.metrics.latents.survey import Survey
from latentbench.metrics.latents.usage import BINS_PER_OCTAVE, LOWEST
from latentbench.report.choice import chosen, explained
from latentbench.report.examples import of_details, of_survey
from latentbench.report.lens import Lens, logit_lens
from latentbench.report.numbers import short
from latentbench.report.sources import Sources
from latentbench.report.vocabulary import Vocabulary
from latentbench.section import Json

HERE = Path(__file__).parent
SCRIPTS = ("dom.js", "latents-state.js", "latents-parts.js", "latents-table.js", "latents-drawer.js", "latents-app.js")
TOKENS, NEIGHBOURS = 10, 8
"""Promoted and suppressed tokens, and nearest latents, shown for each latent."""


@dataclass(frozen=True)
class Weights:
    """What the weights say about the shown latents, row i being the i-th of them; None where it is not known."""

    lens: Lens | None
    nearest: Neighbours | None


def page(sources: Sources, most: int) -> str:
    """The HTML page with at most `most` latents."""
    record = sources.record
    name = f"{record.spec.name}[{record.label}]" if record.label else record.spec.name
    return render(f"{name}[{record.seed}]", data(sources, most))


def render(title: str, content: Json) -> str:
    """The HTML page of `data`."""
    return offline_page(
        "latents.html",
        SCRIPTS,
        styles=("style.css", "latents.css"),
        folder=HERE,
        title=title,
        notes=content["notes"],
        data=embedded(content),
    )


def data(sources: Sources, most: int) -> Json:
    """Everything the page shows. Short keys, because thousands of latents make megabytes."""
    sampled = explained(sources.autointerp)
    shown = chosen(sources.surveys, sampled, most)
    vocabulary = Vocabulary(sources.tokenizer)
    weights = _weights(sources, shown)
    domains = _domains(sources)
    latents = [
        _latent(number, row, sources, sampled.get(number), weights, vocabulary, domains)
        for row, number in enumerate(shown)
    ]
    return {
        "facts": _facts(sources),
        "notes": list(sources.notes),
        "domains": domains,
        "width": sources.sae.width,
        "alive": _alive(sources.surveys),
        "histograms": {name: found.density_histogram() for name, found in sources.surveys.items()},
        "bins": {"lowest": LOWEST, "perOctave": BINS_PER_OCTAVE},
        "autointerp": _autointerp(sources),
        "latents": latents,
        "texts": vocabulary.texts,
    }


def _latent(
    number: int,
    row: int,
    sources: Sources,
    sampled: LatentDetail | None,
    weights: Weights,
    vocabulary: Vocabulary,
    domains: list[str],
) -> Json:
    """`n` number, `u` use by domain, `k` nearest [latent, cosine], `p` and `q` promoted and suppressed [text, logit],
    `a` autointerp, `v` examples."""
    lens, near = weights.lens, weights.nearest
    uses = {domains.index(name): _use(found, number, vocabulary) for name, found in sources.surveys.items()}
    return {
        "n": number,
        "u": uses,
        "k": _pairs(near.indices[row], near.cosines[row]) if near else [],
        "p": _tokens(lens.top[row], lens.top_logits[row], vocabulary) if lens else [],
        "q": _tokens(lens.bottom[row], lens.bottom_logits[row], vocabulary) if lens else [],
        "a": _interpretation(sampled),
        "v": _examples(number, sources, sampled, vocabulary, domains),
    }


def _use(found: Survey, number: int, vocabulary: Vocabulary) -> Json:
    """One domain: `d` density, `m` largest activation, `h` token entropy, `r` multi-token ratio, `t` top tokens
    [text, share], `g` [first bin, counts] of activations by size. None for a latent that never fires."""
    firing = int(found.firing[number])
    if not firing:
        return None
    counts = [(int(t), int(c)) for t, c in zip(found.top_tokens[number], found.top_counts[number], strict=True) if c]
    sizes = found.histogram[number]
    filled = sizes.nonzero().squeeze(1)
    first, last = int(filled[0]), int(filled[-1])
    return {
        "d": short(firing / max(1, found.tokens)),
        "m": short(float(found.largest[number])),
        "h": short(float(found.entropy[number])),
        "r": short(int(found.repeated[number]) / int(found.documents[number])),
        "t": [[vocabulary.token(token), short(count / firing)] for token, count in counts],
        "g": [first, sizes[first : last + 1].tolist()],
    }


def _interpretation(sampled: LatentDetail | None) -> Json:
    """`x` explanation, `s` score, `d` and `f` detection and fuzzing, `e` why there is no score."""
    if sampled is None:
        return None
    tests = {"d": sampled.detection, "f": sampled.fuzzing}
    return {
        "x": sampled.explanation,
        "s": short(sampled.score),
        "e": sampled.excluded,
        **{key: test and {k: short(v) for k, v in test.plain().items()} for key, test in tests.items()},
    }


def _examples(
    number: int, sources: Sources, sampled: LatentDetail | None, vocabulary: Vocabulary, domains: list[str]
) -> Json:
    """Of the autointerp study on its domain, where the latent was sampled; else the strongest of the pass."""
    details, found = sources.autointerp, []
    own = details.domain if details and sampled and sampled.examples else None
    for domain, name in enumerate(domains):
        if name == own and sampled:
            found += of_details(sampled.examples, domain, vocabulary)
        elif name in sources.surveys:
            found += of_survey(sources.surveys[name].examples, number, domain, vocabulary)
    return found


def _weights(sources: Sources, shown: list[int]) -> Weights:
    try:
        rows = decoder_of(sources.sae).float()
    except InvalidInput:  # an identity has no dictionary
        return Weights(None, None)
    of = torch.tensor(shown, dtype=torch.int64)
    near = nearest(rows, NEIGHBOURS, of) if len(rows) > 1 else None
    return Weights(logit_lens(sources.model.model, rows[of], TOKENS) if sources.model else None, near)


def _pairs(indices: torch.Tensor, values: torch.Tensor) -> Json:
    return [[int(i), short(float(v))] for i, v in zip(indices, values, strict=True)]


def _tokens(ids: torch.Tensor, logits: torch.Tensor, vocabulary: Vocabulary) -> Json:
    return [[vocabulary.token(int(i)), short(float(v))] for i, v in zip(ids, logits, strict=True)]


def _domains(sources: Sources) -> list[str]:
    own = [sources.autointerp.domain] if sources.autointerp else []
    return list(dict.fromkeys([*sources.surveys, *own]))


def _alive(surveys: Mapping[str, Survey]) -> int | None:
    if not surveys:
        return None
    return int((torch.stack([found.firing for found in surveys.values()]).sum(0) > 0).sum())


def _facts(sources: Sources) -> Json:
    record, experiment = sources.record, sources.experiment
    section = experiment.section_at(experiment.sites[0]).plain()
    kind = section.get("variant") or f"loaded from {section.get('load', {}).get('adapter', 'elsewhere')}"
    model = getattr(experiment.model, "id", experiment.model.adapter)
    tokens = {name: found.tokens for name, found in sources.surveys.items()}
    return {
        "model": Path(str(model)).name if str(model).startswith(("/", "~", ".")) else str(model),
        "layer": str(experiment.sites[0]),
        "variant": kind,
        "cell": record.cell,
        "tokens": tokens,
    }


def _autointerp(sources: Sources) -> Json:
    details = sources.autointerp
    if details is None:
        return None
    trained = next((budget for budget in details.budgets if budget.budget is None), None)
    return {
        "judge": details.judge,
        "domain": details.domain,
        "sampled": len(trained.latents) if trained else 0,
        "eligible": trained.eligible if trained else 0,
        "excluded": dict(trained.excluded) if trained else {},
    }
