"""What `flow_steering` does: generates with and without steering and looks at where the texts went.

Before the first text is written a plan settles what the study acts on: the seed latents, their routes through the layers, and
for controls random latents in their place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from latentbench.activations.massive import OrdinaryTokens
from latentbench.activations.tokens import EvalTokens, special_mask
from latentbench.core.errors import InvalidInput
from latentbench.core.sites import Site
from latentbench.core.spec_model import Json
from latentbench.flow.activity import TokenRows, activity, firing_rates, groups, ordinary_tokens
from latentbench.flow.effects import losses, write
from latentbench.flow.folded_rows import folded_rows
from latentbench.flow.graph import LatentNode, parse_node
from latentbench.flow.interventions import along, graph_nodes, only, removal, route
from latentbench.flow.maps import FlowMaps
from latentbench.flow.steering_metric import FlowSteering, Schedule, cumulative, growth_of, setting_name
from latentbench.flow.text_scores import DomainClassifier, Text, rated
from latentbench.flow.topology import block_of
from latentbench.interventions.generation import prompt_ids
from latentbench.interventions.intervention import Intervention, Receipt, Untouched
from latentbench.metrics.value import MetricValue
from latentbench.statistics.arrays import Array
from latentbench.statistics.units import Units
from latentbench.study.context import StageContext
from latentbench.study.study import Findings


@dataclass(frozen=True)
class SteeredLatents:
    """The latents that a study acts on."""

    routes: Mapping[LatentNode, tuple[LatentNode, ...]]
    """Seed to what cumulative schedules act on for its sake, first layer to last: its path, or to remove it its graph."""
    controls: Mapping[LatentNode, LatentNode]
    """A random latent of the same site in the place of every seed and of every latent of a route; empty where none is
    asked for."""
    wanted: int
    """Seeds that were asked for."""

    @property
    def seeds(self) -> tuple[LatentNode, ...]:
        """The seeds."""
        return tuple(self.routes)

    @property
    def nodes(self) -> tuple[LatentNode, ...]:
        """Seeds and routes, each latent once."""
        return tuple(dict.fromkeys(node for seed, nodes in self.routes.items() for node in (seed, *nodes)))

    def lengths(self) -> str:
        """Latents per route as text."""
        return ", ".join(str(len(nodes)) for nodes in self.routes.values())

    def degenerate(self) -> bool:
        """Whether no route goes beyond one latent, so that cumulative schedules would repeat what one layer does."""
        return all(len(nodes) < 2 for nodes in self.routes.values())


def steered_latents(
    study: FlowSteering, context: StageContext, maps: FlowMaps, texts: Mapping[str, TokenRows]
) -> SteeredLatents:
    """Seeds, routes and controls; `texts` are the documents of each domain that latents may be chosen on."""
    seeds = tuple(dict.fromkeys(map(parse_node, study.seeds))) or _telling(study, context, maps, texts)
    routes = {seed: _route(study, maps, seed) for seed in seeds}
    found = SteeredLatents(routes, {}, len(set(study.seeds)) or study.select)
    if not any(schedule.startswith("random") for schedule in study.schedules):
        return found
    return SteeredLatents(routes, _controls(study, context, texts, found.nodes), found.wanted)


def _route(study: FlowSteering, maps: FlowMaps, seed: LatentNode) -> tuple[LatentNode, ...]:
    follow = graph_nodes(maps, (seed,), study.span) if study.action == "deactivate" else route(maps, seed, study.span)
    return tuple(follow)


def _telling(
    study: FlowSteering, context: StageContext, maps: FlowMaps, texts: Mapping[str, TokenRows]
) -> tuple[LatentNode, ...]:
    """The latents that fire more often in the target domain, by how much, and lead somewhere; else the first of all."""
    site = _seed_site(study, maps)
    rates = {name: found[site] for name, found in _rates(context, texts, (site,)).items()}
    telling = rates[study.target] - np.mean([rate for name, rate in rates.items() if name != study.target], axis=0)
    order = [LatentNode(site, int(latent)) for latent in np.argsort(-telling, kind="stable")]
    apt = (node for node in order if telling[node.index] > 0 and len(_route(study, maps, node)) > 1)
    return tuple(islice(apt, study.select)) or tuple(order[: study.select])


def _seed_site(study: FlowSteering, maps: FlowMaps) -> Site:
    if study.layer is None:
        return maps.residual[len(maps.residual) // 2]
    found = next((site for site in maps.residual if block_of(site) == study.layer), None)
    if found is None:
        raise InvalidInput(f"flow_steering: there is no SAE on the residual stream leaving layer {study.layer}")
    return found


def _controls(
    study: FlowSteering, context: StageContext, texts: Mapping[str, TokenRows], nodes: Iterable[LatentNode]
) -> dict[LatentNode, LatentNode]:
    """Random latents that fire (to be removed: in the target domain) and are none of `nodes`; all different."""
    here: dict[Site, list[LatentNode]] = {}
    for node in nodes:
        here.setdefault(node.site, []).append(node)
    where = {study.target: texts[study.target]} if study.action == "deactivate" else texts
    rates = list(_rates(context, where, here).values())
    found: dict[LatentNode, LatentNode] = {}
    for site, taken in here.items():
        firing = np.flatnonzero(np.sum([rate[site] for rate in rates], axis=0) > 0)
        others = np.setdiff1d(firing, [node.index for node in taken])
        if len(others) < len(taken):
            raise InvalidInput(
                f"flow_steering: only {len(others)} other latents fire at {site}, too few to stand in for {len(taken)}"
            )
        # The purpose is a name of its own: what controls are called in code must not change which are drawn.
        drawn = np.random.default_rng(context.seed("strangers", str(site))).permutation(others)
        found |= {node: LatentNode(site, int(latent)) for node, latent in zip(taken, drawn, strict=False)}
    return found


def _rates(
    context: StageContext, texts: Mapping[str, TokenRows], sites: Collection[Site]
) -> dict[str, dict[Site, Array]]:
    """[width] by domain and site: share of tokens on which each latent fires."""
    rates: dict[str, dict[Site, Array]] = {name: {} for name in texts}
    for group in groups(sites):
        for name, given in texts.items():
            found = activity(context, given, group)
            rates[name] |= {site: firing_rates(active.matrix()) for site, active in found.items()}
    return rates


@torch.no_grad()
def measure_steering(study: FlowSteering, context: StageContext) -> Findings:
    """The findings of `flow_steering` (steering_metric.py): statistics per prompt, and the texts of every setting."""
    plan = _planned(study, context)
    statistics: dict[str, Array] = {"texts": np.ones(len(plan.prompts))}
    shown: dict[str, Json] = {}
    settings: list[tuple[str, Intervention]] = [("base", Untouched())]
    settings += [(setting_name(*setting), plan.intervention(*setting)) for setting in plan.settings()]
    context.progress(0, len(settings), "settings")
    for done, (name, intervention) in enumerate(settings):
        found, receipt, texts = plan.measured(intervention)
        statistics |= {f"{name}.{key}": values for key, values in found.items() if key != "predictions"}
        statistics["predictions"] = found["predictions"]
        shown[name] = {"receipt": vars(receipt), "texts": texts}
        context.progress(done + 1, len(settings), "settings")
    domain = study.beginning(context.experiment)
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
    context: StageContext
    classifier: DomainClassifier
    accuracy: tuple[float, int]
    chosen: SteeredLatents
    atoms: Mapping[LatentNode, Tensor]
    """Folded decoder rows [d] of all latents that are steered with; empty where they are removed."""
    prompts: Tensor
    """[prompts, prompt tokens] int64."""
    documents: TokenRows
    """The whole documents of the prompts."""
    units: Units
    """Which of these documents are one."""

    def settings(self) -> list[tuple[Schedule, float]]:
        """What is measured: cumulative schedules only where they differ from a single layer."""
        lone = self.chosen.degenerate()
        return [(schedule, s) for schedule, s in self.study.settings() if not (lone and cumulative(schedule))]

    def intervention(self, schedule: Schedule, strength: float) -> Intervention:
        """What one setting does to the model."""
        routes: list[tuple[LatentNode, ...]] = [(seed,) for seed in self.chosen.seeds]
        if cumulative(schedule):
            routes = list(self.chosen.routes.values())
        if schedule.startswith("random"):
            routes = [tuple(self.chosen.controls[node] for node in nodes) for nodes in routes]
        together = [node for nodes in routes for node in nodes]
        if self.study.action == "deactivate":
            return removal(self.context.saes(), together, strength, self.counted)
        if not cumulative(schedule):
            return only(self.atoms, together, strength)
        study, growth = self.study, growth_of(schedule)
        return along(self.atoms, routes, growth, strength, alpha=study.alpha, counted_from=study.counted_from)

    @cached_property
    def counted(self) -> OrdinaryTokens:
        """Which tokens count where latents are removed, by the documents of the prompts."""
        return ordinary_tokens(self.context, self.documents, tuple(self.context.saes()))

    def told(self) -> dict[str, Json]:
        """What was chosen, for reports."""
        routes = self.chosen.routes
        return {
            "seeds": [str(seed) for seed in routes],
            "paths": {str(seed): [str(node) for node in nodes] for seed, nodes in routes.items()},
            "path_lengths": {str(seed): len(nodes) for seed, nodes in routes.items()},
            "random": {str(node): str(other) for node, other in self.chosen.controls.items()},
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
        study, context = self.study, self.context
        lm = context.model()
        written, receipt = write(
            lm,
            self.prompts,
            intervention,
            tokens=study.tokens,
            temperature=study.temperature,
            top_p=study.top_p,
            seed=context.seed("texts"),
        )
        loss, predictions = losses(lm, self.documents, intervention)
        found = {
            "target": np.array([self.classifier.classify(text) == study.target for text in written.generated()], float),
            "loss": loss,
            "predictions": predictions,
            "text_loss": written.loss,
            "text_tokens": written.counts,
        }
        texts = written.decoded(context.tokenizer())
        if study.judge is not None:
            theme, remove = study.theme or study.target, study.action == "deactivate"
            found |= rated(texts, theme, study.judge, context.roots, context.cache, remove=remove)
        return found, receipt, texts


def _planned(study: FlowSteering, context: StageContext) -> _Plan:
    maps: FlowMaps = context.subject()
    halves = {name: _halves(context, context.tokens(name)) for name in study.domains(context.experiment)}
    # The classifier counts tokens: every id that the model can write has a column, whatever the tokenizer knows.
    vocabulary = context.model().model.config.get_text_config().vocab_size
    classifier = DomainClassifier.trained({name: half.train_texts for name, half in halves.items()}, vocabulary)
    # Held-out texts are cut as generated ones are, so that `accuracy` is that of texts of their length.
    cut = slice(study.prompt_tokens, study.prompt_tokens + study.tokens)
    held_out = {name: [text[cut] for text in half.test_texts if len(text) > cut.start] for name, half in halves.items()}
    prompts, documents, units = _prompts(study, halves[study.beginning(context.experiment)])
    if study.opening is not None:
        # As many texts as documents, whose loss is measured all the same; every row is drawn with numbers of its own.
        (opening,) = prompt_ids(context.model(), [study.opening])
        prompts = torch.tensor([opening] * len(prompts))
    found = steered_latents(study, context, maps, {name: half.train for name, half in halves.items()})
    steered = (*found.nodes, *found.controls.values())
    atoms = folded_rows(study.fold, maps.options, context, steered) if study.action == "activate" else {}
    accuracy = classifier.accuracy(held_out)
    return _Plan(study, context, classifier, accuracy, found, atoms, prompts.to(context.device), documents, units)


@dataclass(frozen=True)
class _Halves:
    """A domain's documents, every second one (its repeats with it) for training and for testing."""

    train: TokenRows
    test: TokenRows
    train_texts: list[Text]
    """Ordinary tokens of each document."""
    test_texts: list[Text]
    units: Units
    """Which of the documents for testing are one unit."""


def _halves(context: StageContext, tokens: EvalTokens) -> _Halves:
    special = special_mask(tokens.ids, context.tokenizer())
    texts = [
        row[: int(n)][~mask[: int(n)]].long().numpy()
        for row, n, mask in zip(tokens.ids, tokens.lengths, special, strict=True)
    ]
    first, second = (np.flatnonzero(tokens.units.numbers % 2 == side) for side in (0, 1))
    train, test = (TokenRows(tokens.ids[chosen], tokens.lengths[chosen]) for chosen in (first, second))
    train_texts, test_texts = ([texts[i] for i in chosen] for chosen in (first, second))
    return _Halves(train, test, train_texts, test_texts, tokens.units.of(second))


def _prompts(study: FlowSteering, half: _Halves) -> tuple[Tensor, TokenRows, Units]:
    """The first tokens of the test documents that are long enough, those documents, and which of them are one."""
    fitting = (half.test.lengths > study.prompt_tokens).nonzero()[:, 0][: study.prompts]
    if not len(fitting):
        raise InvalidInput(f"flow_steering: no document is longer than prompt_tokens = {study.prompt_tokens}")
    ids, lengths = half.test.ids[fitting], half.test.lengths[fitting]
    return ids[:, : study.prompt_tokens].long(), TokenRows(ids, lengths), half.units.of(fitting.numpy())


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
