"""The page about latents of one SAE: which latents it shows, their examples, explanations and neighbours.

Thousands of latents make megabytes, so numbers have three digits, and each text stands once and is referred to by number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from latentbench.autointerp.scores import AutointerpDetails, LatentDetail, ShownExample
from latentbench.autointerp.windows import TokenTexts
from latentbench.core.errors import InvalidInput
from latentbench.core.spec_model import Json
from latentbench.latents.decoder_similarity import Neighbours, decoder_of, nearest
from latentbench.latents.logit_lens import Lens, logit_lens
from latentbench.latents.survey import BINS_PER_OCTAVE, LOWEST, PADDING, Survey, Windows
from latentbench.leaderboard.render.html import embedded, offline_page
from latentbench.report.cells import Sources

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def explained_latents(details: AutointerpDetails | None) -> dict[int, LatentDetail]:
    """The latents that were sampled for autointerp, with the SAE as it was trained."""
    budgets = details.budgets if details else ()
    return {latent.latent: latent for budget in budgets if budget.budget is None for latent in budget.latents}


def chosen(surveys: dict[str, Survey], sampled: dict[int, LatentDetail], most: int) -> list[int]:
    """At most `most` latents in ascending order: the sampled ones, then others that fire, evenly over their densities."""
    first = sorted(sampled)[:most]
    others = [latent for latent in _by_density(surveys).tolist() if latent not in sampled]
    room = most - len(first)
    if len(others) > room:  # evenly, for the rarest and the densest latents are the ones that show a broken SAE
        others = [others[i * len(others) // room] for i in range(room)]
    return sorted([*first, *others])


def _by_density(surveys: dict[str, Survey]) -> Tensor:
    """The latents that fire on some domain, rarest first."""
    if not surveys:
        return torch.zeros(0, dtype=torch.int64)
    firing = torch.stack([found.firing for found in surveys.values()]).sum(0)
    order = torch.argsort(firing, stable=True)
    return order[firing[order] > 0]


def of_survey(windows: Windows, number: int, domain: int, vocabulary: Vocabulary) -> list[Json]:
    """The examples of one latent from a pass over the documents, without special tokens, on which no SAE is run."""
    found = []
    for peak, document, ids, activations in zip(
        windows.peaks[number].tolist(),
        windows.documents[number].tolist(),
        windows.ids[number].tolist(),
        windows.activations[number].tolist(),
        strict=True,
    ):
        if peak > 0:
            kept = [i for i, token in enumerate(ids) if token != PADDING and token not in vocabulary.special]
            texts = [vocabulary.token(ids[i]) for i in kept]
            found.append([domain, document, texts, _active(activations[i] for i in kept)])
    return found


def of_details(examples: Iterable[ShownExample], domain: int, vocabulary: Vocabulary) -> list[Json]:
    """The examples of one latent from an autointerp study."""
    return [
        [domain, e.document, [vocabulary.text(text) for text in e.tokens], _active(e.activations), e.split]
        for e in examples
    ]


def _active(activations: Iterable[float]) -> list[Json]:
    """Place and activation of every active token, one after the other."""
    return [x for place, value in enumerate(activations) if value for x in (place, short(value))]


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
    sampled = explained_latents(sources.autointerp)
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
    """A latent's examples on every domain: those of the autointerp study where it was sampled, else the strongest of the pass."""
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
    options = experiment.section_at(experiment.sites[0]).plain()
    kind = options.get("variant") or f"loaded from {options.get('load', {}).get('adapter', 'elsewhere')}"
    model = experiment.model.label
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


@overload
def short(value: float) -> float: ...
@overload
def short(value: float | None) -> float | None: ...
def short(value: float | None) -> float | None:
    """Three significant digits; None for what is missing or not finite, which JSON cannot hold."""
    if value is None or not math.isfinite(value):
        return None
    return int(value) if value == int(value) and abs(value) < 1000 else float(f"{value:.3g}")


class Vocabulary:
    """Texts in the order of their first use."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._pieces = TokenTexts(tokenizer)
        self.special: frozenset[int] = frozenset(tokenizer.all_special_ids)
        """Ids that stand for no text."""
        self._numbers: dict[str, int] = {}

    def token(self, token: int) -> int:
        """The number of a token of the model."""
        return self.text(self._pieces[token])

    def text(self, text: str) -> int:
        """The number of any text."""
        return self._numbers.setdefault(text, len(self._numbers))

    @property
    def texts(self) -> list[str]:
        """All texts by number."""
        return list(self._numbers)
