"""SAEs of a flow through many layers are read when they are needed, and few are in memory at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from weakref import WeakSet

import pytest
import torch

from latentbench.core.sites import Site
from latentbench.core.stage import Stage
from latentbench.execute.sae_loading import SaeCache, bytes_of
from latentbench.flow.activity import SITES_AT_ONCE
from latentbench.flow.metrics import FlowAgreement, FlowDeactivation, FlowMatching, FlowTransition
from latentbench.flow.options import Flow
from latentbench.flow.steering_metric import FlowSteering
from latentbench.plan.stages import SaeStages
from latentbench.sae.autoencoder import SparseAutoencoder
from latentbench.sae.options import TopKOptions
from latentbench.study.context import Content, StageContext
from latentbench.study.study import Study
from tests.support.flow_studies import WIDTH, K, pocket, random_sae, studying

pytestmark = pytest.mark.usefixtures("one_thread")

SITES = [Site.model_validate({"index": i, "point": p}) for i in range(6) for p in ("attn_out", "mlp_out", "resid_post")]


class Library:
    """Makes SAEs when they are asked for and knows which of them are still there."""

    def __init__(self, kept: int) -> None:
        self.reads: Counter[str] = Counter()
        self.most = 0
        self._alive: WeakSet[SparseAutoencoder] = WeakSet()
        self.shelf = SaeCache(self._read, kept)
        options = TopKOptions(width=WIDTH, k=K)
        made = {site: SaeStages(options, Stage("sae", str(site), str(site)), site) for site in SITES}
        self.saes = self.shelf.at(made)

    def _read(self, made: SaeStages) -> SparseAutoencoder:
        sae = random_sae(SITES.index(made.site))
        self._alive.add(sae)
        self.reads[str(made.site)] += 1
        self.most = max(self.most, len(self._alive))
        return sae


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StageContext]:
    with torch.no_grad():
        yield studying(pocket(), tmp_path_factory.mktemp("lab"))


def flow(**options: object) -> Flow:
    return Flow.model_validate({"thresholds": {"chance": 1, "cut": -1}, **options})


def with_maps(lab: StageContext, library: Library, options: Flow | None = None) -> StageContext:
    options = options or flow()
    content = options.make(replace(lab, saes=lambda: {site: library.saes[site] for site in SITES}))
    maps = options.read(Content({n: t.clone() for n, t in content.tensors.items()}, content.meta), lab)
    library.most = 0
    return replace(lab, saes=lambda: library.saes, subject=lambda: maps)


@pytest.mark.parametrize(
    ("options", "most"),
    [
        (flow(), 2),
        (flow(matching="permutation"), 2),
        (flow(matching="random"), 2),
        (flow(matching="pearson"), SITES_AT_ONCE),
        (flow(matching="folded", fold="activation"), SITES_AT_ONCE),
    ],
)
def test_matching_holds_two_saes_or_those_of_one_layer(lab: StageContext, options: Flow, most: int) -> None:
    library, whole = Library(kept=0), Library(kept=1 << 30)
    made = options.make(replace(lab, saes=lambda: library.saes))
    wanted = options.make(replace(lab, saes=lambda: {site: whole.saes[site] for site in SITES}))
    assert whole.most == len(SITES)
    assert library.most == most
    assert made.tensors.keys() == wanted.tensors.keys()
    assert all(torch.equal(made.tensors[name], tensor) for name, tensor in wanted.tensors.items())


@pytest.mark.parametrize(
    ("study", "most"),
    [
        (FlowMatching(), SITES_AT_ONCE),
        (FlowAgreement(), SITES_AT_ONCE),
        (FlowTransition(scales=("norm", "activation")), SITES_AT_ONCE),
        (FlowTransition(), 2),
        (FlowDeactivation(documents=2, tokens=1, latents=2), SITES_AT_ONCE),
        (FlowSteering(target="chemistry", prompts=2, prompt_tokens=4, tokens=2), SITES_AT_ONCE),
        (FlowSteering(target="chemistry", prompts=2, prompt_tokens=4, tokens=2, fold="none"), 2),
    ],
    ids=lambda value: getattr(value, "metric", None),
)
def test_a_study_holds_the_saes_of_one_layer(lab: StageContext, study: Study, most: int) -> None:
    library = Library(kept=0)
    prepared = with_maps(lab, library)
    study.run(prepared)
    assert library.most == most


def test_what_fits_is_read_once(lab: StageContext) -> None:
    library = Library(kept=1 << 30)
    prepared = with_maps(lab, library)
    FlowAgreement().run(prepared)
    FlowTransition().run(prepared)
    assert set(library.reads.values()) == {1}


def test_a_shelf_keeps_the_most_recent_and_whatever_is_held() -> None:
    library = Library(kept=2 * bytes_of(random_sae(0)))
    one, two, three = SITES[:3]
    first = library.saes[one]
    for site in (two, three, two):
        assert library.saes[site].width == WIDTH
    assert library.saes[one] is first  # held, so not read again
    assert library.reads == {str(one): 1, str(two): 1, str(three): 1}
    del first
    _ = library.saes[three], library.saes[two]
    assert library.reads[str(three)] == 2  # one and two were used after it
    _ = library.saes[one]
    assert library.reads[str(one)] == 2
    assert library.most == 3


def test_looking_at_the_sites_reads_nothing(tmp_path: Path) -> None:
    library = Library(kept=0)
    assert list(library.saes) == SITES
    assert len(library.saes) == len(SITES)
    assert SITES[0] in library.saes
    assert not library.reads
