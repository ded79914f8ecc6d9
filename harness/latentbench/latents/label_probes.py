"""The study `labelled_probing` (labelled_probing.py): the state of each text's last token, and probes for its label.

What needs the model is made once for all SAEs at a place: the states of every set, and what they tell by themselves.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentbench.activations.batching import TOKENS_PER_FORWARD
from latentbench.activations.capture import hidden_states
from latentbench.activations.massive import OrdinaryTokens
from latentbench.activations.tokens import EvalTokens, evaluation_tokens
from latentbench.activations.vocabulary import embedding_rows, positions
from latentbench.core.errors import CellFailed, InvalidInput
from latentbench.core.sites import Site
from latentbench.core.spec_model import Json
from latentbench.core.text_digests import digest_of, folded_digest_of
from latentbench.core.texts import chosen
from latentbench.core.token_rule import TokenRule
from latentbench.latents.labelled_probing import DOMAIN, SETS, STATES, LabelledProbing, auc_from, gain_from
from latentbench.latents.probing import Labels, Probe, by_mean_difference, columns, fit, sparse_matrix
from latentbench.reconstruction.documents import DocumentBatch, Domain
from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench.statistics.arrays import Array
from latentbench.study.context import Content
from latentbench.study.study import Findings

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from latentbench.core.protocols import DatasetAdapter, LanguageModel
    from latentbench.study.context import StageContext

LEAST_TEXTS = 8
"""Of each label among the texts of training and among those of the test; a set with fewer is left out."""
STRENGTHS = np.logspace(-5, 5, 10)
"""Inverse L2 penalties that are tried, those of arXiv 2502.16681."""
VALIDATION_SHARE, MOST_VALIDATION, FEW, FOLDS = 0.2, 100, 128, 6
"""A fifth of the training texts but at most so many choose the penalty; of fewer than `FEW`, six folds do."""
_STATES_AT_ONCE = 4096


@dataclass(frozen=True)
class LabelledSet:
    """A set's texts in the order of their digests, which has nothing to do with what they are about."""

    name: str
    texts: tuple[str, ...]
    labels: Labels
    """[texts] whether it has the second label."""
    test: Labels
    """[texts] whether it is tested on."""

    @staticmethod
    def of(
        name: str, rows: Iterable[tuple[str, str]], data: DatasetAdapter, study: LabelledProbing
    ) -> LabelledSet | str:
        """The set, or why it is left out."""
        found = labels_of(rows, data, study.texts)
        names = sorted(set(found.values()))
        if len(names) != 2:
            return f"{name} has {len(names)} labels"
        ordered = sorted(found, key=place_of)
        places = np.array([place_of(text) for text in ordered])
        made = LabelledSet(
            name, tuple(ordered), np.array([found[text] == names[1] for text in ordered]), places < study.test_share
        )
        return f"{name} has too few texts of a label" if made.too_small else made

    @property
    def too_small(self) -> bool:
        """Whether a label has too few texts to be learnt or tested."""
        halves = [self.labels[half] for half in (self.test, ~self.test)]
        return min(int(count) for half in halves for count in (half.sum(), (~half).sum())) < LEAST_TEXTS

    @property
    def digest(self) -> str:
        """Of its texts in their order."""
        return hashlib.sha256(b"".join(digest_of(text).to_bytes(8, "big") for text in self.texts)).hexdigest()

    def kept(self, rows: NDArray[np.bool_]) -> LabelledSet:
        """Some of its texts."""
        texts = tuple(text for text, keep in zip(self.texts, rows, strict=True) if keep)
        return replace(self, texts=texts, labels=self.labels[rows], test=self.test[rows])


def labels_of(rows: Iterable[tuple[str, str]], data: DatasetAdapter, most: int | None) -> dict[str, str]:
    """Label by text, of the first `most` texts that the dataset means, none twice; a text with two labels has none."""
    labels: dict[int, set[str]] = {}
    first: dict[int, str] = {}
    stop = None if data.documents is None else data.skip + data.documents
    for text, label in islice(rows, data.skip, stop):
        folded = folded_digest_of(text)
        if folded not in first and len(first) == most:
            continue
        first.setdefault(folded, text)
        labels.setdefault(folded, set()).add(label)
    taken = chosen(iter(first.values()), data.by_text, distinct=False)
    both = {text: labels[folded_digest_of(text)] for text in taken}
    return {text: next(iter(given)) for text, given in both.items() if len(given) == 1}


def place_of(text: str) -> float:
    """Where a text stands between 0 and 1; another order than that of `by_text`, which may have taken a part already."""
    sha = hashlib.sha256(f"labelled_probing/{folded_digest_of(text):016x}".encode())
    return int.from_bytes(sha.digest()[:8], "big") / 2.0**64


def measure_labelled_probing(study: LabelledProbing, context: StageContext) -> Findings:
    """AUROC of every set from every number of latents. Raises CellFailed where no set can be used."""
    sae = context.sae.to(context.device).eval()
    given = study.sets.labelled(context.roots)
    found: dict[str, dict[str, float]] = {}
    left_out: list[str] = []
    for number, (name, rows) in enumerate(given.items()):
        context.progress(number, len(given), "sets")
        labelled = LabelledSet.of(name, rows, study.sets, study)
        probed = labelled if isinstance(labelled, str) else _probed(labelled, sae, study, context)
        if isinstance(probed, str):
            left_out.append(probed)
        else:
            found[name] = probed
    context.progress(len(given), len(given), "sets")
    if not found:
        raise CellFailed(f"labelled_probing: none of {len(given)} sets can be used: {'; '.join(left_out[:3])}")
    statistics = {key: np.array([one[key] for one in found.values()]) for key in next(iter(found.values()))}
    return Findings({DOMAIN: statistics}, details={"sets": found}, warnings=_left_out(left_out))


def _left_out(reasons: list[str]) -> tuple[str, ...]:
    if not reasons:
        return ()
    more = f" and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    return (f"labelled_probing: {len(reasons)} sets were left out: {'; '.join(reasons[:5])}{more}",)


def _probed(
    labelled: LabelledSet, sae: SparseAutoencoder, study: LabelledProbing, context: StageContext
) -> dict[str, float] | str:
    """The statistics of a set, or why it is left out."""
    site, rule = next(iter(context.saes())), context.experiment.token_rule
    asked: Json = {
        "texts": labelled.digest,
        "context": study.sets.context,
        "prepend_bos": study.sets.prepend_bos,
        "site": site.plain(),
        "token_rule": rule.plain(),
        "version": study.version,
    }
    stored = context.shared(
        "last_states", asked, lambda: _content(last_states(context.model(), site, rule, labelled.texts, study))
    )
    states = stored.tensors["states"]
    readable = states.isfinite().all(1).numpy()
    labelled, states = labelled.kept(readable), states[torch.from_numpy(readable)]
    if labelled.too_small:
        return f"{labelled.name} has too few texts with a token that counts"
    from_states = context.shared(
        "state_probe",
        {**asked, "labels": labelled.labels.tolist(), "test_share": study.test_share},
        lambda: Content(meta={"auc": auc_of(states.double().numpy(), labelled)}),
    )
    return statistics_of(codes_of(sae, states), float(from_states.meta["auc"]), labelled, study)


def statistics_of(
    latents: csr_array, states_auc: float, labelled: LabelledSet, study: LabelledProbing
) -> dict[str, float]:
    """What one set gives: AUROC from every number of latents and from the states, and their difference."""
    train = ~labelled.test
    strongest = by_mean_difference(latents[train], labelled.labels[train], max(study.k))
    found = {SETS: 1.0, STATES: states_auc}
    for k in dict.fromkeys(study.k):
        found[auc_from(k)] = auc_of(columns(latents, strongest[:k]), labelled)
        found[gain_from(k)] = found[auc_from(k)] - states_auc
    return found


def _content(states: Tensor) -> Content:
    return Content({"states": states})


@torch.no_grad()
def last_states(
    model: LanguageModel, site: Site, rule: TokenRule, texts: tuple[str, ...], study: LabelledProbing
) -> Tensor:
    """[texts, d] float32: the hidden state of each text's last token that counts; NaN where none does."""
    context = study.sets.context
    room = positions(model.model)
    if room is not None and context > room:
        raise InvalidInput(f"sets.context: the model has positions for {room} tokens, not {context}")
    tokens = evaluation_tokens(
        texts,
        model.tokenizer,
        context=context,
        known_ids=embedding_rows(model.model),
        prepend_bos=study.sets.prepend_bos,
    )
    found = _last_of_rows(Domain(model, tokens, TOKENS_PER_FORWARD, None, rule), site, tokens)
    # Texts of fewer than two tokens have no row.
    row_of = {digest: row for row, digest in enumerate(tokens.digests)}
    rows = [row_of.get(f"{digest_of(text):016x}", -1) for text in texts]
    made = found[torch.tensor(rows)]
    made[torch.tensor(rows) < 0] = torch.nan
    return made


def _last_of_rows(domain: Domain, site: Site, tokens: EvalTokens) -> Tensor:
    counted = OrdinaryTokens(limits=domain.limits([site]))

    def last(whole: DocumentBatch) -> tuple[Tensor, Tensor]:
        states = hidden_states(domain.model, [site], whole.ids, whole.real.long())[site]
        ordinary = whole.at(site, states, counted).ordinary
        place = (ordinary * torch.arange(1, ordinary.shape[1] + 1, device=ordinary.device)).argmax(1)
        chosen_states = states[torch.arange(len(states), device=states.device), place].float()
        chosen_states[~ordinary.any(1)] = torch.nan
        return whole.documents, chosen_states.cpu()

    found: Tensor | None = None
    for documents, states in domain.run(last):
        if found is None:
            found = torch.full((len(tokens.ids), states.shape[1]), torch.nan)
        found[documents] = states
    assert found is not None  # `evaluation_tokens` raises where there is no row
    return found


@torch.no_grad()
def codes_of(sae: SparseAutoencoder, states: Tensor) -> csr_array:
    """[texts, width] the latents of hidden states [texts, d]."""
    from scipy.sparse import csr_array, vstack

    device = next(sae.parameters()).device
    parts = [sae.encode(part.to(device)) for part in torch.split(states, _STATES_AT_ONCE)]
    return csr_array(vstack([sparse_matrix(codes, sae.width) for codes in parts]))


def auc_of(x: Array, labelled: LabelledSet) -> float:
    """Test AUROC of a logistic regression on features [texts, n], its penalty chosen on part of the training texts."""
    train, y = ~labelled.test, labelled.labels
    return auroc(probe_of(x[train], y[train]).scores(x[labelled.test]), y[labelled.test])


def probe_of(x: Array, labels: Labels) -> Probe:
    """A logistic regression on features [texts, n] with the penalty that `best_strength` chooses."""
    return _fitted(x, labels, best_strength(x, labels))


def best_strength(x: Array, labels: Labels) -> float:
    """The inverse penalty with the best AUROC on texts that were not fitted on; the strongest penalty of equals."""
    folds = _folds(labels)
    scores = [
        np.mean([auroc(_fitted(x[~held], labels[~held], c).scores(x[held]), labels[held]) for held in folds])
        for c in STRENGTHS
    ]
    return float(STRENGTHS[int(np.argmax(scores))])


def _folds(labels: Labels) -> list[Labels]:
    """Which texts each attempt is judged by, as bools [texts]. Texts are in no order, so that those at the end are any."""
    count = len(labels)
    number = np.arange(count)
    if count >= FEW:
        held = number >= count - min(int(VALIDATION_SHARE * count), MOST_VALIDATION)
        if min(labels[held].sum(), (~labels[held]).sum()) > 0:
            return [held]
    # Every label is dealt out by itself, so that no fold is without one.
    rank = np.where(labels, np.cumsum(labels), np.cumsum(~labels)) - 1
    return [rank % FOLDS == fold for fold in range(FOLDS)]


def _fitted(x: Array, labels: Labels, strength: float) -> Probe:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # Weak penalties on features that separate the labels have no optimum; the AUROC of where it stopped decides.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return fit(x, labels, per_feature=True, strength=strength)


def auroc(scores: Array, labels: Labels) -> float:
    """Share of pairs of one text of each label whose scores are in the right order; ties count half."""
    from scipy.stats import rankdata

    positive: Any = int(labels.sum())
    ranks = rankdata(scores)[labels].sum() - positive * (positive + 1) / 2
    return float(ranks / (positive * (len(labels) - positive)))
