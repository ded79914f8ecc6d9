"""The spec language: what a spec file can say. `Experiment` is one cell; `Spec` adds what makes many cells of one file."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import ByteSize, Field, PositiveInt, SerializerFunctionWrapHandler, WithJsonSchema, model_serializer

from latentbench.concepts.options import Concepts
from latentbench.core.held_out import HeldOut
from latentbench.core.plugins import GROUPS, Choice, plugins
from latentbench.core.protocols import DatasetAdapter, ModelAdapter
from latentbench.core.sites import Point, Site
from latentbench.core.spec_model import Json, SpecModel, without_default
from latentbench.core.token_rule import DEFAULT_MULTIPLE, TokenRule
from latentbench.flow.options import Flow
from latentbench.metrics.base import Metric
from latentbench.reconstruction.left_out import EveryToken, LeftOutShare
from latentbench.sae.options import EnsembleOptions, Variant
from latentbench.sae.options.base import LoadedSae
from latentbench.sae.options.training import TrainingOptions
from latentbench.steering.choice import SteeringChoice
from latentbench.store.state_cache import CacheMode
from latentbench.study.context import Subject
from latentbench.study.study import Study

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Name = Annotated[str, Field(pattern=NAME, max_length=120)]
"""Words of letters, digits, `.`, `_` and `-`, joined by `/`; used as a folder name."""
Domain = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=40)]
Dataset = Annotated[DatasetAdapter, Choice("datasets", "adapter")]


def desugared(name: str, value: Json) -> Json:
    """A section of an experiment with its short forms written out: `layer: 3` or `3.mlp_out`, and metrics as names or one-key maps.

    Done on plain data, before validation, because what a pydantic validator returns is no longer read as JSON.
    """
    if name == "layer":
        return _long_site(value)
    if name == "layers" and isinstance(value, list):
        return [_long_site(layer) for layer in value]
    if name == "metrics" and isinstance(value, list):
        return [_long_metric(metric) for metric in value]
    if name == "steering" and isinstance(value, dict) and isinstance(auto := value.get("auto"), dict):
        return {**value, "auto": {**auto, "gain": _long_metric(auto["gain"])}} if "gain" in auto else value
    return value


def _long_site(value: Json) -> Json:
    if isinstance(value, int) and not isinstance(value, bool):
        return {"index": value}
    if isinstance(value, str) and (written := re.fullmatch(r"(-?\d+)\.([a-z_]+)", value)):
        return {"index": int(written[1]), "point": written[2]}
    return value


def _long_metric(value: Json) -> Json:
    if isinstance(value, str):
        return {"metric": value}
    if isinstance(value, dict) and "metric" not in value and len(value) == 1:
        name, options = next(iter(value.items()))
        return (
            {"metric": name, **options} if isinstance(options, dict) else {"metric": name} if options is None else value
        )
    return value


class Data(SpecModel):
    """The texts of an experiment."""

    train: Dataset | None = None
    """What the SAE is trained on; not needed when it is loaded."""
    base: Dataset | None = None
    """What the base SAE of a variant with `base:` is trained on; default: the same as `train`."""
    domains: dict[Domain, Dataset] = Field(default_factory=dict)
    """What the boosts of a `boost_ensemble` are trained on, by the names that its `domains` gives."""
    eval: dict[Domain, Dataset] = Field(default_factory=dict)
    """What is measured: every named domain is a column group of the table. Only metrics that read no text do without."""
    overlap: Literal["warn", "remove", "refuse"] = "warn"
    """What becomes of training documents whose text, white space aside, is also in `eval`: a warning in the record counts
    evaluation documents that were trained on letter for letter; `remove` leaves them out of training and counts them; `refuse`
    fails the cell."""

    @property
    def held_out(self) -> HeldOut | None:
        """The evaluation texts that nothing may be trained on; None where a warning is enough."""
        return None if self.overlap == "warn" else HeldOut(self.overlap, self.eval)

    @property
    def trained_on(self) -> dict[tuple[str, ...], DatasetAdapter]:
        """All texts that SAEs may be trained on, by their place under `dataset`."""
        single = {(name,): data for name in ("train", "base") if (data := getattr(self, name)) is not None}
        return single | {("domains", name): data for name, data in self.domains.items()}

    def below(self, options: Variant, texts: DatasetAdapter | None) -> tuple[DatasetAdapter | None, ...]:
        """What each SAE that `options` starts from is trained on, where it is itself trained on `texts`."""
        if isinstance(options, EnsembleOptions):
            return tuple(map(self.domains.get, options.domains)) or (texts,) * len(options.boosts)
        return (self.base or texts,) * len(options.base_sections)

    @model_serializer(mode="wrap")
    def _as_before(self, made: SerializerFunctionWrapHandler) -> dict[str, Json]:
        """Records of specs without domains read as they always did: rows are compared by what is resolved."""
        return without_default(type(self), ("domains", "overlap"), made(self))


Sae = Annotated[Variant | LoadedSae, Choice("variants", "variant", load=LoadedSae)]


class Resources(SpecModel):
    """What a cell may use. Never part of a result's identity."""

    gpus: Annotated[float, Field(ge=0)] = 0
    """Accelerators; fractions allowed where the executor can share one."""
    cpus: PositiveInt | None = None
    """Processor threads; default the machine's, divided among the workers."""
    memory: ByteSize | None = None
    """Memory limit of the process, e.g. `8GiB`; a cell that exceeds it is stopped."""
    timeout: Annotated[str, Field(pattern=r"^\d+(\.\d+)?[smhd]$")] | None = None
    """Longest time for a cell, e.g. `30m` or `2h`."""
    cache: CacheMode = "auto"
    """Whether hidden states of training texts are stored for other seeds, variants and specs: `auto` does where computing them
    takes much longer than storing them and they fit (`LATENTBENCH_STATES`)."""

    @model_serializer(mode="wrap")
    def _without_new_defaults(self, made: SerializerFunctionWrapHandler) -> dict[str, Json]:
        return without_default(type(self), ("cache",), made(self))

    @property
    def timeout_seconds(self) -> float | None:
        """The timeout in seconds, or None."""
        if self.timeout is None:
            return None
        return float(self.timeout[:-1]) * _SECONDS[self.timeout[-1]]


class Experiment(SpecModel):
    """One fully resolved cell, apart from its seed."""

    model: Annotated[ModelAdapter, Choice("models", "adapter")]
    """The language model whose hidden states are studied."""
    layer: Site | None = None
    """Where the SAE reads: a decoder block (an integer, its output is meant; -1 is the last one), `3.mlp_out` or
    `{index, point}`."""
    layers: tuple[Site, ...] = ()
    """Several such places, for `flow:` and `method: flow`: one SAE each."""
    dataset: Data = Data()
    """Texts to train on and to measure on."""
    sae: Sae | None = None
    """The SAE variant to train, or `load:` for a trained one, in which `{layer}` stands for the block's number."""
    sae_at: dict[Point, Sae] = Field(default_factory=dict)
    """For `layers`: another SAE for all places of this kind, e.g. `mlp_out: {load: …}`."""
    steering: Annotated[Subject, Choice("methods", "method")] | None = None
    """What changes the model's behaviour: a vector and how it comes to be, or a baseline for one."""
    flow: Flow | None = None
    """How latents of the SAEs at `layers` are matched to each other."""
    concepts: Concepts | None = None
    """Concepts by labelled texts, and one way to write about them."""
    training: TrainingOptions = TrainingOptions()
    """How the SAE is trained."""
    massive: Literal["keep"] | Annotated[float, Field(gt=1)] = DEFAULT_MULTIPLE
    """Tokens whose hidden state, where the SAE reads, is longer than so many times the median there are left out of training
    and of every number of reconstruction, and keep their own state in substitutions; `keep` leaves none out."""
    leave_out: tuple[Annotated[str, Field(min_length=1, max_length=100)], ...] = ()
    """Tokens that are left out as well, e.g. `["<|im_start|>", "\\n"]`: as the vocabulary spells them, or as their text."""
    metrics: Annotated[tuple[Annotated[Metric, Choice("metrics", "metric")], ...], Field(min_length=1)]
    """What is measured: names, or one-key maps from a name to its options."""
    resources: Resources = Resources()
    """Limits for the executor."""

    @model_serializer(mode="wrap")
    def _without_new_defaults(self, made: SerializerFunctionWrapHandler) -> dict[str, Json]:
        # `leave_out` is as new and yet always written: records have it.
        return without_default(Experiment, ("massive", "concepts"), made(self))

    @property
    def token_rule(self) -> TokenRule:
        """Which tokens count where its SAEs read."""
        return TokenRule(None if self.massive == "keep" else self.massive, self.leave_out)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where its SAEs read; empty without one."""
        if self.sae is None:
            return ()
        return self.layers if self.many_sites else (self.layer,) if self.layer else ()

    @property
    def many_sites(self) -> bool:
        """Whether it has one SAE for each of its `layers`."""
        return self.subject is not None and self.subject.many_sites

    def section_at(self, site: Site) -> Variant | LoadedSae:
        """What the spec says of the SAE that reads at `site`."""
        options = self.sae_at.get(site.point, self.sae) if self.many_sites else self.sae
        assert isinstance(options, Variant | LoadedSae)  # there are sites only with an SAE
        return options.at(site.index) if isinstance(options, LoadedSae) else options

    @property
    def devices(self) -> int:
        """Devices that train an SAE of it together; 1 where none is trained."""
        trained = any(isinstance(self.section_at(site), Variant) for site in self.sites)
        return self.training.devices if trained else 1

    @property
    def subject(self) -> Subject | None:
        """What is studied, when that is more than SAEs: steering vectors, flow maps or concepts."""
        return self.flow or self.steering or self.concepts

    @property
    def studies(self) -> tuple[Study, ...]:
        """The metrics that measure on their own, and what `auto` under `steering:` has chosen."""
        asked = tuple(metric for metric in self.metrics if isinstance(metric, Study))
        chosen = getattr(self.steering, "auto", None) is not None
        return asked if not chosen or any(isinstance(s, SteeringChoice) for s in asked) else (*asked, SteeringChoice())

    @property
    def shared_metrics(self) -> tuple[Metric, ...]:
        """The metrics of the SAE that share one pass over the documents, and the share that all of them leave out."""
        asked = tuple(metric for metric in self.metrics if not isinstance(metric, Study))
        said = any(isinstance(metric, LeftOutShare) for metric in asked)
        return asked if said or not asked else (*asked, LeftOutShare())

    @property
    def every_token(self) -> EveryToken | None:
        """The metric that counts what the rule leaves out, where a spec asks for it."""
        return next((metric for metric in self.metrics if isinstance(metric, EveryToken)), None)


class Header(SpecModel):
    """What turns one file into many cells."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    """Version of the spec language."""
    name: Name | None = None
    """Unique name; default: the path below specs/ without `.yaml`."""
    description: str | None = None
    """What question the experiment answers."""
    extends: Annotated[Any, WithJsonSchema({"type": ["string", "array"], "items": {"type": "string"}})] = None
    """Path, relative to this file, of a parent spec, or a list of them."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1, max_length=1000)] = (0,)
    """One cell per seed; seeds drive initialisation and the order of the training data."""
    matrix: dict[str, Annotated[tuple[Json, ...], Field(min_length=1)]] = Field(default_factory=dict)
    """Dotted path to list of values: the cartesian product of all of them."""
    cases: tuple[dict[str, Json], ...] = ()
    """Named combinations: each a `label` and the sections it changes."""


class Spec(Header, Experiment):
    """A spec file in full, for the published JSON Schema and the reference page."""


def known_names() -> dict[str, list[str]]:
    """Everything a spec can name, by group."""
    return {group: list(plugins(group)) for group in GROUPS}


def valid_name(text: str) -> bool:
    """Whether `text` can be a spec's name."""
    return re.fullmatch(NAME, text) is not None and len(text) <= 120
