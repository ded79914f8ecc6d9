"""Generating with and without steering, and looking at where the texts went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harness.activations.site import Site
from harness.activations.tokens import EvalTokens, special_mask
from harness.errors import InvalidInput
from harness.flow.activity import Texts, activity, mean_active, texts_of
from harness.flow.folding import decoder_rows, thresholds
from harness.flow.graph import Node, parse_node, traced
from harness.flow.maps import FlowMaps
from harness.flow.steering import along, block_of, graph_nodes, only, removal
from harness.flow.studies.classifier import DomainClassifier, Text
from harness.flow.studies.firing import firing_rates
from harness.flow.studies.generating import losses, write
from harness.flow.studies.rating import rated
from harness.lab import Lab
from harness.metrics.base import Array
from harness.metrics.flow.steering import FlowSteering, Schedule, setting_name
from harness.metrics.study import Findings
from harness.record import MetricValue
from harness.section import Json
from harness.steering.intervention import Intervention, Receipt, Untouched


@torch.no_grad()
def run(study: FlowSteering, lab: Lab) -> Findings:
    """See harness/metrics/flow/steering.py."""
    plan = _planned(study, lab)
    statistics: dict[str, Array] = {"texts": np.ones(len(plan.prompts))}
    shown: dict[str, Json] = {}
    settings: list[tuple[str, Intervention]] = [("base", Untouched())]
    settings += [(setting_name(*setting), plan.intervention(*setting)) for setting in study.settings()]
    for done, (name, intervention) in enumerate(settings):
        found, receipt, texts = plan.measured(intervention)
        statistics |= {f"{name}.{key}": values for key, values in found.items() if key != "predictions"}
        statistics["predictions"] = found["predictions"]
        shown[name] = {"receipt": vars(receipt), "texts": texts}
        lab.progress(done + 1, len(settings))
    domain = study.beginning(lab.experiment)
    details = {"seeds": [str(seed) for seed in plan.seeds], "paths": plan.paths(), "settings": shown}
    named = {f"flow_steering.{name}": values for name, values in statistics.items()}
    return Findings({domain: named}, (_accuracy(plan, domain),), details)


@dataclass(frozen=True)
class _Plan:
    """Everything that is decided before the first text is written."""

    study: FlowSteering
    lab: Lab
    maps: FlowMaps
    classifier: DomainClassifier
    accuracy: tuple[float, int]
    seeds: tuple[Node, ...]
    strangers: tuple[Node, ...]
    """As many random latents that fire, for the `random` control."""
    atoms: Mapping[Node, Tensor]
    """Folded decoder rows [d] of the seeds, the strangers, and the seeds' paths."""
    prompts: Tensor
    """[prompts, prompt tokens] int64."""
    documents: Texts
    """The whole documents of the prompts."""

    def intervention(self, way: Schedule, strength: float) -> Intervention:
        """What one setting does to the model."""
        study = self.study
        if study.action == "deactivate":
            nodes = list(self.seeds) if way == "single" else graph_nodes(self.maps, self.seeds, study.span)
            return removal(self.lab.saes(), nodes, strength)
        if way in ("single", "random"):
            return only(self.atoms, self.seeds if way == "single" else self.strangers, strength)
        assert way in ("constant", "linear", "exponential")
        return along(self.maps, self.atoms, self.seeds, way, strength, alpha=study.alpha, span=study.span)

    def measured(self, intervention: Intervention) -> tuple[dict[str, Array], Receipt, list[str]]:
        """Statistics per prompt, the receipt, and the texts."""
        study, lab = self.study, self.lab
        lm = lab.model()
        written, receipt = write(
            lm,
            self.prompts,
            intervention,
            tokens=study.tokens,
            temperature=study.temperature,
            top_p=study.top_p,
            seed=lab.seed("texts"),
        )
        loss, predictions = losses(lm, self.documents, intervention)
        found = {
            "target": np.array([self.classifier.classify(text) == study.target for text in written.generated()], float),
            "loss": loss,
            "predictions": predictions,
            "text_loss": written.loss,
            "text_tokens": written.counts,
        }
        texts = written.decoded(lab.tokenizer())
        if study.judge is not None:
            theme, remove = study.theme or study.target, study.action == "deactivate"
            found |= rated(texts, theme, study.judge, lab.roots, lab.cache, remove=remove)
        return found, receipt, texts

    def paths(self) -> dict[str, list[str]]:
        """Latents of each seed's graph."""
        return {str(seed): [str(node) for node in graph_nodes(self.maps, (seed,))] for seed in self.seeds}


def _planned(study: FlowSteering, lab: Lab) -> _Plan:
    maps: FlowMaps = lab.subject()
    halves = {name: _halves(lab, lab.tokens(name)) for name in study.domains(lab.experiment)}
    vocabulary = lab.model().model.config.get_text_config().vocab_size
    classifier = DomainClassifier.trained({name: half.train_texts for name, half in halves.items()}, vocabulary)
    cut = slice(study.prompt_tokens, study.prompt_tokens + study.tokens)
    held_out = {name: [text[cut] for text in half.test_texts if len(text) > cut.start] for name, half in halves.items()}
    site = _seed_site(study, maps)
    seeds, strangers = _seeds(study, lab, maps, site, halves)
    prompts, documents = _prompts(study, halves[study.beginning(lab.experiment)])
    accuracy = classifier.accuracy(held_out)
    paths = [node for seed in seeds for node in traced(maps, seed).path()]
    atoms = _atoms(study, lab, maps, (*strangers, *paths)) if study.action == "activate" else {}
    return _Plan(study, lab, maps, classifier, accuracy, seeds, strangers, atoms, prompts.to(lab.device), documents)


@dataclass(frozen=True)
class _Halves:
    """A domain's documents, every second one for training and for testing."""

    train: Texts
    test: Texts
    train_texts: list[Text]
    """Ordinary tokens of each document."""
    test_texts: list[Text]


def _halves(lab: Lab, tokens: EvalTokens) -> _Halves:
    special = special_mask(tokens.ids, lab.tokenizer())
    texts = [
        row[: int(n)][~mask[: int(n)]].long().numpy()
        for row, n, mask in zip(tokens.ids, tokens.lengths, special, strict=True)
    ]
    train, test = (Texts(tokens.ids[start::2], tokens.lengths[start::2]) for start in (0, 1))
    return _Halves(train, test, texts[0::2], texts[1::2])


def _seed_site(study: FlowSteering, maps: FlowMaps) -> Site:
    if study.layer is None:
        return maps.residual[len(maps.residual) // 2]
    found = next((site for site in maps.residual if block_of(site) == study.layer), None)
    if found is None:
        raise InvalidInput(f"flow_steering: there is no SAE on the residual stream leaving layer {study.layer}")
    return found


def _seeds(
    study: FlowSteering, lab: Lab, maps: FlowMaps, site: Site, halves: Mapping[str, _Halves]
) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    """The latents to steer with, and as many random ones of the same site that fire."""
    rates = {name: firing_rates(activity(lab, half.train, (site,))[site].matrix()) for name, half in halves.items()}
    others = [rate for name, rate in rates.items() if name != study.target]
    telling = rates[study.target] - np.mean(others, axis=0)
    best = np.argsort(-telling, kind="stable")[: study.select]
    seeds = tuple(parse_node(text) for text in study.seeds) or tuple(Node(site, int(latent)) for latent in best)
    firing = np.flatnonzero(np.sum(list(rates.values()), axis=0) > 0)
    drawn = np.random.default_rng(lab.seed("strangers")).permutation(np.setdiff1d(firing, best))[: len(seeds)]
    return seeds, tuple(Node(site, int(latent)) for latent in drawn)


def _prompts(study: FlowSteering, half: _Halves) -> tuple[Tensor, Texts]:
    """The first tokens of the test documents that are long enough, and those documents."""
    fitting = (half.test.lengths > study.prompt_tokens).nonzero()[:, 0][: study.prompts]
    if not len(fitting):
        raise InvalidInput(f"flow_steering: no document is longer than prompt_tokens = {study.prompt_tokens}")
    ids, lengths = half.test.ids[fitting], half.test.lengths[fitting]
    return ids[:, : study.prompt_tokens].long(), Texts(ids, lengths)


def _atoms(study: FlowSteering, lab: Lab, maps: FlowMaps, nodes: Sequence[Node]) -> dict[Node, Tensor]:
    latents: dict[Site, list[Node]] = {}
    for node in dict.fromkeys(nodes):
        latents.setdefault(node.site, []).append(node)
    means = mean_active(lab, texts_of(maps.options, lab), latents) if study.fold == "activation" else {}
    found: dict[Node, Tensor] = {}
    for site, here in latents.items():
        sae, chosen = lab.saes()[site], [node.index for node in here]
        rows = decoder_rows(sae, site)[chosen].float()
        scale = thresholds(sae, site) if study.fold == "threshold" else means.get(site)
        found |= zip(here, rows if scale is None else rows * scale.to(rows)[chosen, None], strict=True)
    return found


def _accuracy(plan: _Plan, domain: str) -> MetricValue:
    value, texts = plan.accuracy
    return MetricValue(
        id="flow_steering.accuracy",
        version=1,
        domain=domain,
        value=value,
        unit="fraction",
        higher_is_better=None,
        n=texts,
        params={"classifier": "naive Bayes", "tokens": plan.study.tokens},
    )
