"""Generating with and without steering, and looking at where the texts went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentbench.activations.site import Site
from latentbench.activations.tokens import EvalTokens, special_mask
from latentbench.errors import InvalidInput
from latentbench.flow.activity import Texts, mean_active, texts_of
from latentbench.flow.folding import decoder_rows, thresholds
from latentbench.flow.graph import Node
from latentbench.flow.maps import FlowMaps
from latentbench.flow.steering import along, only, removal
from latentbench.flow.studies.choosing import Chosen, chosen
from latentbench.flow.studies.classifier import DomainClassifier, Text
from latentbench.flow.studies.generating import losses, write
from latentbench.flow.studies.rating import rated
from latentbench.lab import Lab
from latentbench.metrics.base import Array
from latentbench.metrics.flow.steering import FlowSteering, Schedule, cumulative, schedule_of, setting_name
from latentbench.metrics.study import Findings
from latentbench.metrics.units import Units
from latentbench.record import MetricValue
from latentbench.section import Json
from latentbench.steering.intervention import Intervention, Receipt, Untouched


@torch.no_grad()
def run(study: FlowSteering, lab: Lab) -> Findings:
    """See harness/latentbench/metrics/flow/steering.py."""
    plan = _planned(study, lab)
    statistics: dict[str, Array] = {"texts": np.ones(len(plan.prompts))}
    shown: dict[str, Json] = {}
    settings: list[tuple[str, Intervention]] = [("base", Untouched())]
    settings += [(setting_name(*setting), plan.intervention(*setting)) for setting in plan.settings()]
    for done, (name, intervention) in enumerate(settings):
        found, receipt, texts = plan.measured(intervention)
        statistics |= {f"{name}.{key}": values for key, values in found.items() if key != "predictions"}
        statistics["predictions"] = found["predictions"]
        shown[name] = {"receipt": vars(receipt), "texts": texts}
        lab.progress(done + 1, len(settings))
    domain = study.beginning(lab.experiment)
    named = {f"flow_steering.{name}": values for name, values in statistics.items()}
    details = {**plan.told(), "settings": shown}
    return Findings(
        {domain: named},
        (_accuracy(plan, domain),),
        details,
        warnings=plan.warnings(),
        reasons=plan.reasons(),
        units={domain: plan.units},
    )


@dataclass(frozen=True)
class _Plan:
    """Everything that is decided before the first text is written."""

    study: FlowSteering
    lab: Lab
    classifier: DomainClassifier
    accuracy: tuple[float, int]
    chosen: Chosen
    atoms: Mapping[Node, Tensor]
    """Folded decoder rows [d] of all latents that are steered with; empty where they are removed."""
    prompts: Tensor
    """[prompts, prompt tokens] int64."""
    documents: Texts
    """The whole documents of the prompts."""
    units: Units
    """Which of these documents are one."""

    def settings(self) -> list[tuple[Schedule, float]]:
        """What is measured: cumulative schedules only where they differ from a single layer."""
        lone = self.chosen.degenerate()
        return [(way, s) for way, s in self.study.settings() if not (lone and cumulative(way))]

    def intervention(self, way: Schedule, strength: float) -> Intervention:
        """What one setting does to the model."""
        routes: list[tuple[Node, ...]] = [(seed,) for seed in self.chosen.seeds]
        if cumulative(way):
            routes = list(self.chosen.routes.values())
        if way.startswith("random"):
            routes = [tuple(self.chosen.strangers[node] for node in nodes) for nodes in routes]
        together = [node for nodes in routes for node in nodes]
        if self.study.action == "deactivate":
            return removal(self.lab.saes(), together, strength)
        if not cumulative(way):
            return only(self.atoms, together, strength)
        return along(self.atoms, routes, schedule_of(way), strength, alpha=self.study.alpha)

    def told(self) -> dict[str, Json]:
        """What was chosen, for reports."""
        routes = self.chosen.routes
        return {
            "seeds": [str(seed) for seed in routes],
            "paths": {str(seed): [str(node) for node in nodes] for seed, nodes in routes.items()},
            "path_lengths": {str(seed): len(nodes) for seed, nodes in routes.items()},
            "random": {str(node): str(other) for node, other in self.chosen.strangers.items()},
        }

    def warnings(self) -> tuple[str, ...]:
        """What is less than was asked for."""
        routes, said = self.chosen.routes, []
        if len(routes) < self.chosen.wanted:
            said.append(f"flow_steering: only {len(routes)} of {self.chosen.wanted} seeds fire in the target domain more "
                        "often than elsewhere and match a latent of another layer")  # fmt: skip
        if any(map(cumulative, self.study.schedules)) and any(len(nodes) < 2 for nodes in routes.values()):
            said.append(f"flow_steering: the seeds' paths have {self.chosen.lengths()} latents; on one latent cumulative "
                        "schedules do what a single layer does")  # fmt: skip
        return tuple(said)

    def reasons(self) -> dict[str, str]:
        """Why the numbers of settings that were left out are null."""
        left = set(self.study.settings()) - set(self.settings())
        why = f"nothing cumulative: no match of any seed counts, the paths have {self.chosen.lengths()} latents"
        names = tuple(f"flow_steering.{setting_name(*setting)}." for setting in left)
        inputs = (name for number in self.study.numbers() for name in number.inputs)
        return {name: why for name in inputs if name.startswith(names)} if left else {}

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


def _planned(study: FlowSteering, lab: Lab) -> _Plan:
    maps: FlowMaps = lab.subject()
    halves = {name: _halves(lab, lab.tokens(name)) for name in study.domains(lab.experiment)}
    vocabulary = lab.model().model.config.get_text_config().vocab_size
    classifier = DomainClassifier.trained({name: half.train_texts for name, half in halves.items()}, vocabulary)
    cut = slice(study.prompt_tokens, study.prompt_tokens + study.tokens)
    held_out = {name: [text[cut] for text in half.test_texts if len(text) > cut.start] for name, half in halves.items()}
    prompts, documents, units = _prompts(study, halves[study.beginning(lab.experiment)])
    found = chosen(study, lab, maps, {name: half.train for name, half in halves.items()})
    steered = (*found.nodes, *found.strangers.values())
    atoms = _atoms(study, lab, maps, steered) if study.action == "activate" else {}
    accuracy = classifier.accuracy(held_out)
    return _Plan(study, lab, classifier, accuracy, found, atoms, prompts.to(lab.device), documents, units)


@dataclass(frozen=True)
class _Halves:
    """A domain's documents, every second one (its repeats with it) for training and for testing."""

    train: Texts
    test: Texts
    train_texts: list[Text]
    """Ordinary tokens of each document."""
    test_texts: list[Text]
    units: Units
    """Of the documents for testing."""


def _halves(lab: Lab, tokens: EvalTokens) -> _Halves:
    special = special_mask(tokens.ids, lab.tokenizer())
    texts = [
        row[: int(n)][~mask[: int(n)]].long().numpy()
        for row, n, mask in zip(tokens.ids, tokens.lengths, special, strict=True)
    ]
    first, second = (np.flatnonzero(tokens.units.numbers % 2 == side) for side in (0, 1))
    train, test = (Texts(tokens.ids[chosen], tokens.lengths[chosen]) for chosen in (first, second))
    train_texts, test_texts = ([texts[i] for i in chosen] for chosen in (first, second))
    return _Halves(train, test, train_texts, test_texts, tokens.units.of(second))


def _prompts(study: FlowSteering, half: _Halves) -> tuple[Tensor, Texts, Units]:
    """The first tokens of the test documents that are long enough, those documents, and which of them are one."""
    fitting = (half.test.lengths > study.prompt_tokens).nonzero()[:, 0][: study.prompts]
    if not len(fitting):
        raise InvalidInput(f"flow_steering: no document is longer than prompt_tokens = {study.prompt_tokens}")
    ids, lengths = half.test.ids[fitting], half.test.lengths[fitting]
    return ids[:, : study.prompt_tokens].long(), Texts(ids, lengths), half.units.of(fitting.numpy())


def _atoms(study: FlowSteering, lab: Lab, maps: FlowMaps, nodes: Sequence[Node]) -> dict[Node, Tensor]:
    latents: dict[Site, list[Node]] = {}
    for node in dict.fromkeys(nodes):
        latents.setdefault(node.site, []).append(node)
    means = mean_active(lab, texts_of(maps.options, lab), latents) if study.fold == "activation" else {}
    found: dict[Node, Tensor] = {}
    for site, here in latents.items():
        sae, indices = lab.saes()[site], [node.index for node in here]
        rows = decoder_rows(sae, site)[indices].float()
        scale = thresholds(sae, site) if study.fold == "threshold" else means.get(site)
        found |= zip(here, rows if scale is None else rows * scale.to(rows)[indices, None], strict=True)
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
