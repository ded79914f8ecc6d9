"""The spec's `flow:` section: how latents of neighbouring sites are matched, and when a match counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from latentbench.errors import InvalidInput
from latentbench.flow.checks import unfoldable, unread
from latentbench.lab import Content, Lab, Subject
from latentbench.section import Json, Section

if TYPE_CHECKING:
    from latentbench.flow.maps import FlowMaps
    from latentbench.spec.experiment import Experiment
    from latentbench_adapters.protocols import DatasetAdapter, Roots

Matching = Literal["cosine", "folded", "encoder", "permutation", "pearson", "random"]
Cosine = Annotated[float, Field(ge=-1, le=1)]


class High(Section):
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


class Flow(Subject):
    """Maps between the SAE latents of neighbouring sites (Feature Flow, arXiv 2502.03032)."""

    version: ClassVar[int] = 1
    many_sites: ClassVar[bool] = True

    matching: Matching = "cosine"
    """Which latent matches: `cosine` and `folded` take the nearest decoder rows, `encoder` compares decoder rows with
    the next site's encoder rows (of W_dec W_enc only which latents are the best is kept: activations are carried 0 or 1
    times; `flow_transition.encoded` carries by the whole operator), `permutation` takes the best one-to-one assignment (SAE Match, arXiv 2410.07656),
    `pearson` the latents that fire together, `random` any of the `candidates` nearest."""
    k: PositiveInt = 1
    """Matches kept per latent."""
    fold: Literal["none", "threshold", "activation"] | None = None
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
    def folding(self) -> Literal["none", "threshold", "activation"]:
        """What scales decoder rows before they are compared."""
        return self.fold or ("threshold" if self.matching == "folded" else "none")

    @property
    def reads_tokens(self) -> bool:
        """Whether maps depend on texts and not on the SAEs alone."""
        return self.matching == "pearson" or self.folding == "activation"

    def identity(self, experiment: Experiment, roots: Roots) -> Json:
        """Every field, the sites, and the texts where any are read."""
        sites: list[Json] = [str(site) for site in experiment.sites]
        texts = self.texts(experiment, roots) if self.reads_tokens else None
        return {**self.plain(), "sites": sites, "texts": texts}

    def made_of(self, experiment: Experiment, roots: Roots) -> str:
        return f"{self.matching} maps between {len(experiment.sites)} sites"

    def complaints(self, experiment: Experiment, roots: Roots) -> tuple[str, ...]:
        folded = unfoldable(experiment) if self.folding == "threshold" else ()
        texts = unread(self, experiment) if self.reads_tokens or self.domain is not None else ()
        return (*folded, *texts)

    def make(self, lab: Lab) -> Content:
        from latentbench.flow.making import made

        return made(self, lab)

    def read(self, content: Content, lab: Lab) -> FlowMaps:
        """The maps by pair of sites."""
        from latentbench.flow.maps import FlowMaps

        return FlowMaps.from_content(content, self)

    def texts(self, experiment: Experiment, roots: Roots) -> Json:
        """Identity of what is read by maps and studies that need activations. Raises InvalidInput where there is none."""
        chosen, name = self.source(experiment)
        given = {"skip": chosen.skip, "documents": chosen.documents, "context": chosen.context}
        return {"from": "training texts" if name is None else "evaluation", "data": chosen.identity(roots), **given}

    def source(self, experiment: Experiment) -> tuple[DatasetAdapter, str | None]:
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
