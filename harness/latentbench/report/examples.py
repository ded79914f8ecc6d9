"""Examples of a page: `[domain, document, texts, places and activations, split]`, activations only where there are some."""

from __future__ import annotations

from collections.abc import Iterable

from latentbench.metrics.autointerp.details import ShownExample
from latentbench.metrics.latents.examples import PADDING, Windows
from latentbench.report.numbers import short
from latentbench.report.vocabulary import Vocabulary
from latentbench.section import Json


def of_survey(windows: Windows, number: int, domain: int, vocabulary: Vocabulary) -> list[Json]:
    """Those of one latent from a pass over the documents, without special tokens, on which no SAE is run."""
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
    """Those of one latent from an autointerp study."""
    return [
        [domain, e.document, [vocabulary.text(text) for text in e.tokens], _active(e.activations), e.split]
        for e in examples
    ]


def _active(activations: Iterable[float]) -> list[Json]:
    """Place and activation of every active token, one after the other."""
    return [x for place, value in enumerate(activations) if value for x in (place, short(value))]
