"""The study `absorption` (absorption.py): words of the vocabulary, probes for their first letters, and what latents do on them.

What needs no SAE is made once for all of them at a place: the states of the words, and the probes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentbench.activations.capture import hidden_states
from latentbench.activations.fitting import Pieces
from latentbench.activations.vocabulary import check_ids, embedding_rows, known
from latentbench.core.sites import Site
from latentbench.core.spec_model import Json
from latentbench.latents.absorption import DOMAIN, NUMBERS, Absorption
from latentbench.latents.decoder_similarity import decoder_of
from latentbench.latents.probing import Labels, Probe, by_mean_difference, columns, f1, fit, sparse_matrix
from latentbench.metrics.value import MetricValue
from latentbench.metrics.values import null_value
from latentbench.sae.autoencoder import Codes, SparseAutoencoder
from latentbench.statistics.arrays import Array
from latentbench.study.context import Content
from latentbench.study.study import Findings

if TYPE_CHECKING:
    from scipy.sparse import csr_array
    from transformers import PreTrainedTokenizerBase

    from latentbench.core.protocols import LanguageModel
    from latentbench.study.context import StageContext

ABSORBERS, LEAST_COSINE, FULL_SHARE = 3, 0.1, 0.4
"""Absorbing latents that count, their least cosine to the letter's direction, and the share of what is needed that one
must give for full absorption; see absorption.py."""
MOST_SPLITS = 10
"""Most main latents of a letter."""
LEAST_WORDS = 5
"""Fewest words of a letter, in training and held out."""
_WORD = re.compile(r"(?:[Ġ▁]|^)([A-Za-z]{2,})")
_BATCH = 256


def measure_absorption(study: Absorption, context: StageContext) -> Findings:
    """Absorption of every letter that can be read; nulls with the reason where these are too few."""
    site, rows = next(iter(context.saes())), decoder_of(context.sae)
    asked: Json = {"prefix": study.prefix, "words": study.words, "site": site.plain(), "version": study.version}

    def states() -> Content:
        return word_states(context.model(), site, study.prefix, study.words).content

    words = Words.of(context.shared("word_states", asked, states))
    letters = Letters.of(context.shared("letter_probes", asked, lambda: letters_of(words).content))
    probes, scores = letters.readable(study.min_f1), letters.scores
    details: dict[str, Json] = {"words": len(words), "f1": scores}
    if len(probes) < study.min_letters:
        reason = _refusal(len(words), scores, study)
        nulls = tuple(null_value(number, DOMAIN, reason) for number in NUMBERS)
        return Findings(values=nulls, details=details, warnings=(f"absorption: {reason}",))
    found = absorptions(words, probes, context.sae, rows, study.split_gain)
    statistics = {f"absorption.{name}": array for name, array in found.statistics.items()}
    details |= {"splits": found.splits}
    return Findings({DOMAIN: statistics}, (_splits(found.splits),), details)


def _refusal(words: int, scores: Mapping[str, float], study: Absorption) -> str:
    able = sum(score >= study.min_f1 for score in scores.values())
    best = f"; the best letter has {max(scores.values()):.2f}" if scores else ""
    return (
        f"of {words} single-token words, {able} first letters can be read from the hidden states with F1 ≥ "
        f"{study.min_f1:g}, fewer than {study.min_letters}{best}"
    )


def _splits(splits: Mapping[str, int]) -> MetricValue:
    mean = sum(splits.values()) / len(splits)
    return MetricValue(
        id="absorption.splits",
        version=1,
        domain=DOMAIN,
        value=mean,
        unit="latents/letter",
        higher_is_better=None,
        n=len(splits),
    )


@dataclass(frozen=True)
class Words:
    """Single-token words and their hidden states."""

    texts: tuple[str, ...]
    states: Tensor
    """[words, d_in] float32, on the CPU."""
    held_out: Labels

    @staticmethod
    def with_states(texts: Sequence[str], states: Tensor) -> Words:
        """Two words in five are held out, by their content: the same for every model that has the word."""
        held_out = np.array([_hashed(text)[0] % 5 < 2 for text in texts], dtype=bool)
        return Words(tuple(texts), states, held_out)

    @staticmethod
    def of(content: Content) -> Words:
        """The inverse of `content`."""
        # Copied, as of a file's memory: there kernels may sum up in another order.
        return Words.with_states(content.meta["words"], content.tensors["states"].clone())

    @property
    def content(self) -> Content:
        """For the store."""
        return Content({"states": self.states}, {"words": list(self.texts)})

    def __len__(self) -> int:
        return len(self.texts)

    def starting_with(self, letter: str) -> Labels:
        """[words] whether it starts with the letter."""
        return np.array([text[0].lower() == letter for text in self.texts], dtype=bool)


@dataclass(frozen=True)
class Letters:
    """A probe for each first letter with enough words, and how well it does on the held-out ones."""

    probes: dict[str, Probe]
    scores: dict[str, float]
    """Held-out F1."""

    @staticmethod
    def of(content: Content) -> Letters:
        """The inverse of `content`."""
        scores = content.meta["f1"]
        rows = zip(scores, content.tensors["directions"].numpy(), content.tensors["offsets"].tolist(), strict=True)
        return Letters({letter: Probe(direction.copy(), offset) for letter, direction, offset in rows}, dict(scores))

    @property
    def content(self) -> Content:
        """For the store: float64, so that nothing is rounded."""
        directions = [torch.from_numpy(probe.direction) for probe in self.probes.values()]
        offsets = torch.tensor([probe.offset for probe in self.probes.values()], dtype=torch.float64)
        return Content(
            {"directions": torch.stack(directions) if directions else torch.zeros(0, 0), "offsets": offsets},
            {"f1": self.scores},
        )

    def readable(self, min_f1: float) -> dict[str, Probe]:
        """The probes with a held-out F1 of `min_f1` or more."""
        return {letter: probe for letter, probe in self.probes.items() if self.scores[letter] >= min_f1}


@dataclass(frozen=True)
class Absorbed:
    """What was found on the held-out words that the probes get right."""

    statistics: dict[str, Array]
    """`fraction`, `full` and `words` [words]."""
    splits: dict[str, int]
    """Main latents by letter."""


def vocabulary_words(tokenizer: PreTrainedTokenizerBase, most: int, known_ids: int | None = None) -> dict[str, int]:
    """Token id by word, for tokens that are a whole word of two or more Latin letters.

    Where the tokenizer marks the start of words, only tokens with that mark. Of spellings that differ in case one is
    kept; of more than `most` words those first by their hash. Ids that are not below `known_ids`, the rows of the model's
    embedding, are no words of the model.
    """
    vocabulary = tokenizer.get_vocab().items()
    ids = {token: i for token, i in vocabulary if _WORD.fullmatch(token) and known(i, known_ids) is not None}
    marked = {token: number for token, number in ids.items() if token[0] in "Ġ▁"}
    words: dict[str, int] = {}
    for token, number in sorted((marked or ids).items(), key=lambda item: item[1]):
        words.setdefault(token.lstrip("Ġ▁").lower(), number)
    kept = sorted(words, key=_hashed)[:most]
    return {word: words[word] for word in sorted(kept)}


def word_states(model: LanguageModel, site: Site, prefix: str, most: int) -> Words:
    """Hidden states of the words, each right behind `prefix`."""
    rows_known = embedding_rows(model.model)
    words = vocabulary_words(model.tokenizer, most, rows_known)
    bos = known(model.tokenizer.bos_token_id, rows_known)
    start = [*([] if bos is None else [bos]), *model.tokenizer(prefix, add_special_tokens=False)["input_ids"]]
    check_ids(start, model.tokenizer, rows_known, f"the prefix {prefix!r}: ")
    rows = torch.tensor([[*start, number] for number in words.values()], dtype=torch.int64)
    states = [torch.zeros(0, model.model.config.get_text_config().hidden_size)]

    @torch.no_grad()
    def last(ids: Tensor) -> Tensor:
        return hidden_states(model.model, [site], ids.to(model.device))[site][:, -1].float().cpu()

    states += Pieces(_BATCH).run(last, rows)
    return Words.with_states(tuple(words), torch.cat(states))


def letters_of(words: Words) -> Letters:
    """The probes of all letters with enough words."""
    x = words.states.double().numpy()
    probes: dict[str, Probe] = {}
    scores: dict[str, float] = {}
    for letter in "abcdefghijklmnopqrstuvwxyz":
        labels = words.starting_with(letter)
        if min(labels[words.held_out].sum(), labels[~words.held_out].sum()) < LEAST_WORDS or labels.all():
            continue
        probes[letter] = fit(x[~words.held_out], labels[~words.held_out])
        scores[letter] = f1(probes[letter].scores(x[words.held_out]) > 0, labels[words.held_out])
    return Letters(probes, scores)


def absorptions(
    words: Words, letters: Mapping[str, Probe], sae: SparseAutoencoder, rows: Tensor, split_gain: float
) -> Absorbed:
    """Absorption of every readable letter; `rows` [width, d_in] are the decoder's."""
    with torch.no_grad():
        device = rows.device
        parts = [sae.encode(states.to(device)) for states in torch.split(words.states, _BATCH)]
    codes = Codes.joined([Codes(part.values.cpu(), part.indices.cpu()) for part in parts])
    latents = sparse_matrix(codes, sae.width)
    found: list[dict[str, Array]] = []
    splits: dict[str, int] = {}
    for letter, probe in letters.items():
        labels = words.starting_with(letter)
        main = main_latents(latents[~words.held_out], labels[~words.held_out], split_gain)
        splits[letter] = len(main)
        found.append(absorption_of(words, labels, probe, latents, main, rows.double().cpu().numpy()))
    statistics = {name: np.concatenate([part[name] for part in found]) for name in ("fraction", "full", "words")}
    return Absorbed(statistics, splits)


def main_latents(latents: csr_array, labels: Labels, gain: float) -> NDArray[np.int64]:
    """The latents that a letter is split into: the first k by mean difference, k grown while F1 grows by `gain`."""
    order = by_mean_difference(latents, labels, min(MOST_SPLITS, latents.shape[1]))
    best = _sparse_f1(latents, labels, order[:1])
    for k in range(2, len(order) + 1):
        score = _sparse_f1(latents, labels, order[:k])
        if score - best <= gain:
            return order[: k - 1]
        best = score
    return order


def absorption_of(
    words: Words, labels: Labels, probe: Probe, latents: csr_array, main: NDArray[np.int64], rows: Array
) -> dict[str, Array]:
    """`fraction`, `full` and `words` of the held-out words with the letter that the probe gets right."""
    x = words.states.double().numpy()
    direction = probe.direction / np.linalg.norm(probe.direction)
    right = np.flatnonzero(labels & words.held_out & (probe.scores(x) > 0))
    needed = (x[right] - x[~labels & ~words.held_out].mean(0)) @ direction
    along = rows @ direction
    norms = np.linalg.norm(rows, axis=1)
    absorber = along >= LEAST_COSINE * np.where(norms > 0, norms, np.inf)
    absorber[main] = False
    is_main = np.isin(np.arange(len(rows)), main)
    judged = [
        _absorption_of_word(latents[[word]], along, is_main, absorber, need)
        for word, need in zip(right, needed, strict=True)
    ]
    fraction, full = np.array(judged, dtype=np.float64).reshape(-1, 2).T
    return {"fraction": fraction, "full": full, "words": np.ones(len(right))}


def _absorption_of_word(
    latents: csr_array, along: Array, main: Labels, absorber: Labels, needed: float
) -> tuple[float, float]:
    """(fraction, full) of one word from its active latents [1, width]."""
    active = latents.indices
    parts = latents.data * along[active]
    by_main = float(np.maximum(parts[main[active]], 0).sum())
    others = np.sort(np.maximum(parts[absorber[active]], 0))[::-1][:ABSORBERS]
    absorbed = float(others.sum())
    lacking = absorbed > 0 and by_main < needed
    full = needed > 0 and not main[active].any() and len(others) > 0 and others[0] >= FULL_SHARE * needed
    return absorbed / (absorbed + by_main) if lacking else 0.0, float(full)


def _sparse_f1(latents: csr_array, labels: Labels, chosen: NDArray[np.int64]) -> float:
    x = columns(latents, chosen)
    return f1(fit(x, labels, per_feature=True).scores(x) > 0, labels)


def _hashed(word: str) -> bytes:
    return hashlib.sha256(f"first_letter/{word}".encode()).digest()
