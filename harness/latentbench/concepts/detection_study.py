"""Measures `concept_detection`: values of tokens along each concept's direction, and how they rank texts and tokens."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from latentbench.concepts.detection import DETECTION, KINDS, ConceptDetection
from latentbench.concepts.directions import aurocs
from latentbench.concepts.kit import ConceptKit
from latentbench.concepts.options import VECTORS
from latentbench.concepts.texts import TextStates, concept_texts, token_states
from latentbench.interventions.latents import activations
from latentbench.latents.probing import Labels
from latentbench.study.context import StageContext
from latentbench.study.study import Findings


def measure_concept_detection(study: ConceptDetection, context: StageContext) -> Findings:
    """Statistics per concept; none where nothing has a direction."""
    kit: ConceptKit = context.subject()
    if kit.options.way not in VECTORS:
        why = f"`way: {kit.options.way}` makes no direction, so it finds nothing"
        empty = {f"{DETECTION}.concepts": np.ones(len(kit.parts))}
        return Findings({DETECTION: empty}, reasons={f"{DETECTION}.{kind}": why for kind in KINDS})
    found: dict[str, dict[str, float]] = {}
    texts = concept_texts(kit.options, context.roots)
    for number, (name, own) in enumerate(texts.items()):
        context.progress(number, len(texts), "concepts")
        held_out = own.test.first(study.texts)
        states = token_states(context, kit.options, held_out.texts)
        found[name] = detected(states, values_of(kit, name, states, context), held_out.labels)
    context.progress(len(texts), len(texts), "concepts")
    statistics = {f"{DETECTION}.{kind}": np.array([one[kind] for one in found.values()]) for kind in KINDS}
    statistics[f"{DETECTION}.concepts"] = np.ones(len(found))
    return Findings({DETECTION: statistics}, details={"concepts": found})


@torch.no_grad()
def values_of(kit: ConceptKit, name: str, states: TextStates, context: StageContext) -> Tensor:
    """[tokens] float64: what each token has of a concept."""
    if (latent := kit.latent(name)) is not None:
        sae, device = context.sae, context.device
        codes = sae.encode(states.states.float().to(device))
        return activations(codes, torch.tensor([latent], device=device))[:, 0].double().cpu()
    direction = kit.direction(name)
    assert direction is not None  # ways without one were sent away
    return states.states.double() @ direction.double()


def detected(states: TextStates, values: Tensor, labels: Labels) -> dict[str, float]:
    """AUROC by kind of values [tokens] for the labels [texts] of their texts."""
    by_text = torch.stack([states.pooled_max(values[:, None])[:, 0], states.pooled_mean(values)], 1)
    text_max, text_mean = aurocs(by_text.numpy(), labels)
    (token,) = aurocs(values[:, None].numpy(), labels[states.owner.numpy()])
    return {"text_max": float(text_max), "text_mean": float(text_mean), "token": float(token)}
