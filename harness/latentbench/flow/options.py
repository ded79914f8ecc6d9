"""The spec's `flow:`: how latents of neighbouring sites are matched and when a match counts, without torch.

Here is also what can be said against an experiment from its spec alone, for `flow:`, its metrics and `method: flow` alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from latentbench.core.errors import InvalidInput
from latentbench.core.plugins import implementation
from latentbench.core.spec_model import Json, SpecModel
from latentbench.flow.topology import block_of, parse_latent, residual_sites
from latentbench.sae.options.base import Variant
from latentbench.study.context import Content, StageContext, Subject

if TYPE_CHECKING:
    from latentbench.core.paths import Roots
    from latentbench.core.protocols import DatasetAdapter
    from latentbench.study.context import ExperimentView

Block = Annotated[int, Field(ge=0)]


def _ordered(span: tuple[int, int]) -> tuple[int, int]:
    if span[0] > span[1]:
        raise ValueError(f"the first block, {span[0]}, comes after the last, {span[1]}")
    return span


Growth = Literal["constant", "linear", "exponential"]
"""How the strength of a latent depends on its layer along a path."""
CountedFrom = Literal["path", "model"]
"""Where the layers l of s · exp(α l) are counted from: the first of the path, where strength is then s, or the model's first."""
Fold = Literal["none", "threshold", "activation"]
"""What decoder rows are multiplied by: nothing, thresholds (the paper, for JumpReLU), or mean activations."""
Latent = Annotated[str, Field(pattern=r"^\d+(\.resid_(pre|post))?:\d+$")]
"""A latent of the residual stream, `3:17` or `3.resid_post:17`."""
Span = Annotated[tuple[Block, Block], AfterValidator(_ordered)]
"""First and last decoder block."""


def unfoldable(experiment: ExperimentView) -> Iterator[str]:
    """A sentence for every kind of SAE whose thresholds cannot be folded, with where it stands.

    Loaded ones are not among them: what they are is known only when they are read.
    """
    said: dict[str, str] = {}
    for site in experiment.sites:
        sae = experiment.section_at(site)
        if isinstance(sae, Variant) and not sae.foldable:
            said.setdefault(sae.variant, str(site))
    for variant, place in said.items():
        yield f"the {variant} SAE at {place} has no positive thresholds to fold; use mean activations (`activation`) instead"


def missing_texts(flow: Flow | None, experiment: ExperimentView) -> Iterator[str]:
    """Why there are no texts to take activations on, where there are none."""
    try:
        if flow is not None:
            flow.source(experiment)
    except InvalidInput as error:
        yield str(error)


def unknown_latents(experiment: ExperimentView, latents: Iterable[str]) -> Iterator[str]:
    """Seeds that are no latents of the experiment's residual SAEs, or to which nothing can be added."""
    residual = residual_sites(experiment.sites)
    for text in latents:
        site, number = parse_latent(text)
        width = getattr(experiment.section_at(site), "width", None) if site in residual else None
        if site not in residual:
            yield f"{text}: there is no SAE at {site}; there are {', '.join(map(str, residual)) or 'none'}"
        elif block_of(site) < 0:
            yield f"{text}: nothing can be added before the first block; take a later latent of its path"
        elif width is not None and number >= width:
            yield f"{text}: the SAE at {site} has the latents 0 to {width - 1}"


def unreached_span(experiment: ExperimentView, span: tuple[int, int] | None) -> Iterator[str]:
    """A span without a residual SAE."""
    blocks = [block_of(site) for site in residual_sites(experiment.sites)]
    if span is not None and not any(span[0] <= block <= span[1] for block in blocks):
        yield f"span {span[0]} to {span[1]}: no SAE reads the residual stream behind these blocks, but behind {blocks}"


Matching = Literal["cosine", "folded", "encoder", "permutation", "pearson", "random"]
Cosine = Annotated[float, Field(ge=-1, le=1)]


class High(SpecModel):
    """From which cosine on a match counts as high (Feature Flow, arXiv 2502.03032; the values are not in the paper)."""

    residual: Cosine = 0.5
    """With the residual stream one layer before; by default where the paper cuts graphs."""
    module: Cosine = 0.25
    """With the output of the block's MLP or attention; by default the value of the paper's printed table."""


class Thresholds(High):
    """Cosines at which graphs end and latents get their labels."""

    cut: Cosine = 0.5
    """A path ends before a residual predecessor (or successor) below it; the paper's value."""
    drop: Cosine = 0.15
    """Latents of MLPs and attention below it are left out of graphs; the paper's value."""
    chance: Annotated[float, Field(gt=0, le=1)] = 0.01
    """No match counts, whatever the other values, whose cosine the best of as many random directions would exceed with
    this probability: small models have few dimensions, where 0.25 or even 0.5 means nothing. 1: not asked."""
    layers: dict[Annotated[int, Field(ge=0)], High] = Field(default_factory=dict)
    """High values of their own for single decoder blocks; the paper calls them specific to the layer."""

    def at(self, block: int) -> High:
        """The high values for the residual stream leaving decoder block `block`."""
        return self.layers.get(block, self)


Label = Literal["translated", "processed", "newborn", "unexplained"]
"""Where a latent of the residual stream comes from, by which of its matches count as high (labels.py)."""
LABELS: tuple[Label, ...] = get_args(Label)


class Flow(Subject):
    """Maps between the SAE latents of neighbouring sites (Feature Flow, arXiv 2502.03032)."""

    version: ClassVar[int] = 2
    many_sites: ClassVar[bool] = True

    matching: Matching = "cosine"
    """Which latent matches: `cosine` and `folded` take the nearest decoder rows, `encoder` compares decoder rows with
    the next site's encoder rows (of W_dec W_enc only which latents are the best is kept: activations are carried 0 or 1
    times; `flow_transition.encoded` carries by the whole operator), `permutation` takes the best one-to-one assignment (SAE Match, arXiv 2410.07656),
    `pearson` the latents that fire together, `random` any of the `candidates` nearest."""
    k: PositiveInt = 1
    """Matches kept per latent."""
    fold: Fold | None = None
    """What scales decoder rows before `folded` and `permutation` compare them: each latent's threshold (SAE Match
    eq. 4) or, for SAEs without thresholds, its mean activation where it is active. Default: `threshold` for `folded`,
    `none` for `permutation`."""
    candidates: PositiveInt | Literal["all"] = 5
    """`random` draws among so many nearest latents (the paper's control), or among all."""
    exact_width: Annotated[int, Field(ge=1, le=8192)] = 4096
    """`permutation` solves the full assignment up to this width (two width × width matrices: 0.25 GB at 4,096, 1 GB at
    8,192) and a sparse one above."""
    neighbours: PositiveInt = 64
    """Nearest latents that the sparse assignment may choose among, on either side."""
    tokens: PositiveInt = 100_000
    """Tokens that `pearson` and `fold: activation` read, as in the paper; fewer where the texts end before."""
    domain: str | None = None
    """Evaluation domain those tokens come from; default the training texts, the first domain where there are none."""
    thresholds: Thresholds = Thresholds()
    """When a match counts."""

    @model_validator(mode="after")
    def _fits(self) -> Any:
        if self.matching == "permutation" and self.k != 1:
            raise ValueError("a permutation gives every latent one match: k must be 1")
        if self.matching == "random" and self.candidates != "all" and self.k > self.candidates:
            raise ValueError(f"k = {self.k} matches cannot be drawn among {self.candidates} candidates")
        if self.fold is not None and self.matching not in ("folded", "permutation"):
            raise ValueError(f"matching: {self.matching} compares directions alone; leave out `fold`")
        if self.matching == "folded" and self.fold == "none":
            raise ValueError("matching: folded needs fold: threshold or activation")
        return self

    @property
    def folding(self) -> Fold:
        """What scales decoder rows before they are compared."""
        return self.fold or ("threshold" if self.matching == "folded" else "none")

    @property
    def reads_tokens(self) -> bool:
        """Whether maps depend on texts and not on the SAEs alone."""
        return self.matching == "pearson" or self.folding == "activation"

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        """Every field, the sites, and the texts where any are read."""
        sites: list[Json] = [str(site) for site in experiment.sites]
        texts = self.texts(experiment, roots) if self.reads_tokens else None
        return {**self.plain(), "sites": sites, "texts": texts}

    def made_of(self, experiment: ExperimentView, roots: Roots) -> str:
        return f"{self.matching} maps between {len(experiment.sites)} sites"

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        folded = unfoldable(experiment) if self.folding == "threshold" else ()
        texts = missing_texts(self, experiment) if self.reads_tokens or self.domain is not None else ()
        return (*folded, *texts)

    def make(self, context: StageContext) -> Content:
        made: Content = implementation("latentbench.flow.build:build_maps")(self, context)
        return made

    def read(self, content: Content, context: StageContext) -> Any:
        """The maps by pair of sites, as a `FlowMaps` (maps.py)."""
        return implementation("latentbench.flow.maps:FlowMaps").from_content(content, self)

    def texts(self, experiment: ExperimentView, roots: Roots) -> Json:
        """Identity of what is read by maps and studies that need activations. Raises InvalidInput where there is none."""
        chosen, name = self.source(experiment)
        given: dict[str, Json] = {"skip": chosen.skip, "documents": chosen.documents, "context": chosen.context}
        given |= {"packing": chosen.packing, "prepend_bos": chosen.prepend_bos}
        return {
            "from": "training texts" if name is None else "evaluation",
            "data": chosen.chosen_identity(roots),
            **given,
        }

    def source(self, experiment: ExperimentView) -> tuple[DatasetAdapter, str | None]:
        """The texts that maps are fitted on, and the name of their evaluation domain if they are one.

        Raises InvalidInput where the experiment has no such texts.
        """
        data = experiment.dataset
        if self.domain is None and data.train is not None:
            return data.train, None
        name = self.domain or next(iter(data.eval), None)
        if name is None or name not in data.eval:
            known = ", ".join(data.eval) or "none"
            raise InvalidInput(f"there are no texts to fit maps on: no evaluation domain {name or ''} (known: {known})")
        return data.eval[name], name
