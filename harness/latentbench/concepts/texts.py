"""Texts with and without a concept, in three parts that share no text, and the hidden states of their tokens."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from latentbench.activations.batching import TOKENS_PER_FORWARD
from latentbench.activations.capture import hidden_states
from latentbench.activations.massive import NormLimit, lengths, named_ids, named_mask
from latentbench.activations.vocabulary import padding_of
from latentbench.concepts.options import Concepts
from latentbench.core.errors import CellFailed
from latentbench.core.hashing import digest
from latentbench.core.sites import Site
from latentbench.core.spec_model import Json
from latentbench.core.text_digests import folded_digest_of
from latentbench.interventions.generation import prompt_ids
from latentbench.latents.label_probes import labels_of
from latentbench.latents.probing import Labels
from latentbench.study.context import Content

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.study.context import StageContext

PARTS = {"learn": (0.0, 0.4), "judge": (0.4, 0.7), "test": (0.7, 1.0)}
"""What of all texts each part has: what ways learn from, what the classifier is trained on, what both are tested on."""
LEAST_TEXTS = 8
"""Of each kind in each part."""


@dataclass(frozen=True)
class Contrast:
    """Texts with a concept and texts without it."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """Those with the concept, then those without it."""
        return (*self.positive, *self.negative)

    @property
    def labels(self) -> Labels:
        """[texts] whether each has the concept."""
        return np.arange(len(self.texts)) < len(self.positive)

    def drawn(self, count: int, seed: int) -> Contrast:
        """As many of each kind, `count` at most, drawn at random."""
        least = min(count, len(self.positive), len(self.negative))
        draw = random.Random(seed)
        return Contrast(*(tuple(draw.sample(texts, least)) for texts in (self.positive, self.negative)))

    def first(self, count: int) -> Contrast:
        """As many of each kind, `count` at most, in the order of their digests, which has nothing to do with what they say."""
        least = min(count, len(self.positive), len(self.negative))
        return Contrast(self.positive[:least], self.negative[:least])


@dataclass(frozen=True)
class ConceptTexts:
    """The texts of one concept by part, in the order of their digests."""

    learn: Contrast
    judge: Contrast
    test: Contrast


def concept_texts(options: Concepts, roots: Roots) -> dict[str, ConceptTexts]:
    """The texts of every concept, each set read once. Raises CellFailed for a concept with too few."""
    labelled = options.sets.labelled(roots)
    sets: dict[str, dict[str, str]] = {}
    found: dict[str, ConceptTexts] = {}
    for name, concept in options.chosen.items():
        if concept.set not in sets:
            sets[concept.set] = labels_of(labelled[concept.set], options.sets, options.most)
        found[name] = _divided(name, concept.label, sets[concept.set])
    return found


def _divided(name: str, label: str, labels: Mapping[str, str]) -> ConceptTexts:
    placed = sorted((_place(text), text) for text in labels if text.strip())
    parts = {}
    for part, (low, high) in PARTS.items():
        inside = [text for place, text in placed if low <= place < high]
        with_it = tuple(text for text in inside if labels[text] == label)
        without = tuple(text for text in inside if labels[text] != label)
        if min(len(with_it), len(without)) < LEAST_TEXTS:
            raise CellFailed(
                f"concepts: {name!r} has {len(with_it)} texts labelled {label!r} and {len(without)} others in the part {part!r}, "
                f"of which {LEAST_TEXTS} each are needed; its set has the labels {', '.join(sorted(set(labels.values()))[:8])}"
            )
        parts[part] = Contrast(with_it, without)
    return ConceptTexts(**parts)


def _place(text: str) -> float:
    """Where a text stands between 0 and 1, by its words alone: the same in every set and for every concept."""
    sha = hashlib.sha256(f"concepts/{folded_digest_of(text):016x}".encode())
    return int.from_bytes(sha.digest()[:8], "big") / 2.0**64


@dataclass(frozen=True)
class TextStates:
    """Hidden states of the ordinary tokens of some texts."""

    states: Tensor
    """[tokens, d] in the model's data type, on the CPU."""
    owner: Tensor
    """[tokens] int64: number of the text that each is of."""
    texts: int
    """How many texts there are."""

    def means(self) -> Tensor:
        """[texts, d] float64: mean over the tokens of each text; 0 for a text without one."""
        return self.pooled_mean(self.states.double())

    def pooled_mean(self, values: Tensor) -> Tensor:
        """[texts, …] mean of values [tokens, …] over the tokens of each text; 0 for a text without one."""
        sums = torch.zeros(self.texts, *values.shape[1:], dtype=values.dtype).index_add_(0, self.owner, values)
        counts = torch.bincount(self.owner, minlength=self.texts).clamp_min(1)
        return sums / counts.reshape(-1, *[1] * (values.ndim - 1))

    def pooled_max(self, values: Tensor) -> Tensor:
        """[texts, n] largest of values [tokens, n] over the tokens of each text; −∞ for a text without one."""
        lowest = torch.full((self.texts, values.shape[1]), -torch.inf, dtype=values.dtype)
        place = self.owner[:, None].expand_as(values)
        return lowest.scatter_reduce(0, place, values, "amax")


def token_states(context: StageContext, options: Concepts, texts: Sequence[str]) -> TextStates:
    """The states of some texts behind the section's block, from the store where another way has asked for them."""
    asked: Json = {
        "texts": digest("texts", list(texts)),
        "layer": options.layer,
        "context": options.sets.context,
        "token_rule": context.experiment.token_rule.plain(),
    }
    stored = context.shared("concept_states", asked, lambda: _computed(context, options, texts))
    return TextStates(stored.tensors["states"], stored.tensors["owner"], len(texts))


@torch.no_grad()
def _computed(context: StageContext, options: Concepts, texts: Sequence[str]) -> Content:
    """States and owners of ordinary tokens: neither special nor named, nor massive among these."""
    lm, site, rule = context.model(), Site(index=options.layer), context.experiment.token_rule
    left_out = named_ids(rule, lm.tokenizer) | frozenset(lm.tokenizer.all_special_ids)
    states, owners = [], []
    for numbers, rows in _batches(prompt_ids(lm, texts), options.sets.context):
        ids, mask = right_padded(rows, padding_of(lm), lm.device)
        counted = mask & ~named_mask(ids, left_out)
        found = hidden_states(lm.model, [site], ids, mask.long())[site]
        states.append(found[counted].cpu())
        owners.append(torch.tensor(numbers)[:, None].expand(mask.shape)[counted.cpu()])
    every, owner = torch.cat(states), torch.cat(owners)
    size = lengths(every)
    kept = size <= NormLimit.of(size, rule.multiple).length
    return Content({"states": every[kept].contiguous(), "owner": owner[kept].contiguous()})


def _batches(rows: Sequence[Sequence[int]], context: int) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Numbers of texts and their ids, cut to `context`; texts of about one length together, so that little is padding."""
    order = sorted(range(len(rows)), key=lambda number: (min(len(rows[number]), context), number))
    each = max(1, TOKENS_PER_FORWARD // context)
    for first in range(0, len(order), each):
        numbers = order[first : first + each]
        yield numbers, [list(rows[number][:context]) for number in numbers]


def right_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids [B, T] and which of them are no padding [B, T] bool, of rows that begin together."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], device=device)
    size = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(longest, device=device)[None] < size[:, None]
