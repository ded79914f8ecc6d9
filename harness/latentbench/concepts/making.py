"""Makes what every concept gets: a unit vector, an adapter with the dose that it has by itself, or a text to put in front."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from latentbench.activations.vocabulary import padding_of
from latentbench.concepts.directions import first_component, mean_difference, probe_direction, telling_latent
from latentbench.concepts.kit import DOSE, LATENT, adapter_of
from latentbench.concepts.options import SLOT, Concepts
from latentbench.concepts.texts import Contrast, concept_texts, right_padded, token_states
from latentbench.concepts.training import LearnedEdit, LowRankAdapter, trained
from latentbench.core.errors import CellFailed
from latentbench.core.sites import Site
from latentbench.core.spec_model import Json
from latentbench.interventions.generation import prompt_ids
from latentbench.interventions.intervention import Layout
from latentbench.steering.build import INVERSE_LENGTHS, content_of, joined, neutral_texts, unit, width_of
from latentbench.steering.ordinary import ordinary_lengths
from latentbench.study.context import Content, StageContext

_SMALL = 1e-3
_TEXTS, _TOKENS = 16, 64
"""How much neutral text tells the dose that an adapter has by itself."""


def make_concepts(options: Concepts, context: StageContext) -> Content:
    """What every concept gets, in the order of the spec.

    Raises CellFailed for a concept with too few texts, and for an adapter that changes nothing.
    """
    inverse = mean_inverse_length(options, context) if options.dosed else None
    every = concept_texts(options, context.roots)
    parts = []
    for number, (name, texts) in enumerate(every.items()):
        context.progress(number, len(every), "concepts")
        learn = texts.learn.drawn(options.texts, context.seed("texts", name))
        made = _MAKERS[options.way](options, context, name, learn)
        more = {} if inverse is None else {INVERSE_LENGTHS: {str(options.layer): inverse}}
        parts.append(Content(made.tensors, {**made.meta, **more}))
    context.progress(len(every), len(every), "concepts")
    return joined(parts)


def mean_inverse_length(options: Concepts, context: StageContext) -> float:
    """Mean of 1/‖h‖ over ordinary tokens of the first evaluation texts, which doses are told by; measured once for all ways."""
    first = next(iter(context.experiment.dataset.eval.values()))
    site = Site(index=options.layer)
    asked: Json = {
        "texts": [first.chosen_identity(context.roots), first.skip, first.documents],
        "site": site.plain(),
        "token_rule": context.experiment.token_rule.plain(),
    }

    def measured() -> Content:
        return Content(meta={"mean": ordinary_lengths(context, [site])[site].mean_inverse})

    return float(context.shared("inverse_lengths", asked, measured).meta["mean"])


def _vector(options: Concepts, direction: Tensor, **meta: Json) -> Content:
    if not direction.isfinite().all() or not direction.any():
        raise CellFailed("concepts: a direction is zero or not finite: its texts are not told apart")
    return content_of({options.layer: unit(direction.float())}, **meta)


def _from_means(direction: Callable[..., Tensor]) -> Callable[..., Content]:
    def make(options: Concepts, context: StageContext, name: str, learn: Contrast) -> Content:
        states = token_states(context, options, learn.texts)
        return _vector(options, direction(states.means(), learn.labels))

    return make


def _latent(options: Concepts, context: StageContext, name: str, learn: Contrast) -> Content:
    sae, states = context.sae, token_states(context, options, learn.texts)
    latent, auroc = telling_latent(states, learn.labels, sae, context.device)
    rows = sae.decoder_rows()
    if rows is None:
        raise CellFailed("concepts: the SAE has no dictionary, so its latents have no direction")
    return _vector(options, rows[latent].detach().cpu(), **{LATENT: latent, "learn_auroc": auroc})


def _random(options: Concepts, context: StageContext, name: str, learn: Contrast) -> Content:
    return _vector(options, random_direction(width_of(context.model().model), context.seed("direction", name)))


def random_direction(width: int, seed: int) -> Tensor:
    """[width] independent normal numbers, whose direction is uniform on the sphere."""
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def _adapter(options: Concepts, context: StageContext, name: str, learn: Contrast) -> Content:
    lm, training, seed = context.model(), options.adapter, context.seed("adapter", name)
    if options.way == "lora":
        adapter: LowRankAdapter | LearnedEdit = LowRankAdapter(options.layer, training.rank, seed)
    else:
        adapter = LearnedEdit(options.layer, training.rank, seed, 1 / mean_inverse_length(options, context))
    weights, curve = trained(adapter, training, lm, learn.positive, seed)
    dose = natural_dose(options, context, weights)
    if not dose > 0:
        raise CellFailed(f"concepts: the adapter of {name!r} changes nothing; raise `adapter.learning_rate` or `steps`")
    return Content(weights, {DOSE: dose, "curve": curve})


@torch.no_grad()
def natural_dose(options: Concepts, context: StageContext, weights: dict[str, Tensor]) -> float:
    """Mean of ‖Δ‖/‖h‖ that an adapter has by itself, over the first tokens of the first evaluation texts."""
    lm = context.model()
    texts = [text for text in neutral_texts(context) if text.strip()][:_TEXTS]
    ids, real = right_padded([row[:_TOKENS] for row in prompt_ids(lm, texts)], padding_of(lm), lm.device)
    # A low-rank adapter's receipt divides by the state with the change in it, which a small one leaves as it is.
    factor = _SMALL if options.way == "lora" else 1.0
    with adapter_of(options, weights, factor).applied(lm, Layout(real=real)) as receipt:
        lm.model(input_ids=ids, attention_mask=real.long(), use_cache=False)
    return receipt.relative_size / factor


def _prompt(options: Concepts, context: StageContext, name: str, learn: Contrast) -> Content:
    said = options.prompting
    examples = "".join(f"{text.strip()}\n\n" for text in shortest(learn.positive, said.examples))
    return Content(meta={"leading": examples + said.text.replace(SLOT, options.about(name))})


def shortest(texts: Sequence[str], count: int) -> list[str]:
    """The `count` shortest texts, which a context has room for; the first of equals."""
    return sorted(texts, key=len)[:count]


def _nothing(options: Concepts, context: StageContext, name: str, learn: Contrast) -> Content:
    return Content()


_MAKERS: dict[str, Callable[[Concepts, StageContext, str, Contrast], Content]] = {
    "mean": _from_means(mean_difference),
    "pca": _from_means(first_component),
    "probe": _from_means(probe_direction),
    "latent": _latent,
    "random": _random,
    "lora": _adapter,
    "reft": _adapter,
    "prompt": _prompt,
    "none": _nothing,
}
