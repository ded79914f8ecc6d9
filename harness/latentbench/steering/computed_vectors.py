"""Vectors that are drawn, read or computed without gradient steps: the implementations of `baselines` and `contrastive`."""

from __future__ import annotations

import torch
from torch import Tensor

from latentbench.core.errors import InvalidInput
from latentbench.core.protocols import LanguageModel
from latentbench.core.sites import OUTPUT
from latentbench.interventions.ablation import orthonormal
from latentbench.interventions.vectors import SteeringVectors, model_tag, read_vectors
from latentbench.steering.ablation import AblateMethod
from latentbench.steering.baselines import LoadMethod, RandomMethod, vector_file
from latentbench.steering.build import (
    by_layer,
    content_of,
    layers_of,
    neutral_texts,
    residual_norms,
    residuals,
    unit,
    width_of,
)
from latentbench.steering.contrastive import ContrastiveMethod, SaeLatentMethod
from latentbench.steering.grading import read_problems
from latentbench.steering.method import of_part
from latentbench.study.context import Content, StageContext


def random_vectors(method: RandomMethod, context: StageContext) -> Content:
    """Directions uniform on the sphere, with the norms that the method asks for."""
    lm = context.model()
    layers = layers_of(method, lm)
    norms = residual_norms(lm, layers, neutral_texts(context), method.place)
    sizes = _sizes(method, layers, norms)
    generator = torch.Generator().manual_seed(context.seed("steering", "random"))
    # Independent normal coordinates have no preferred direction, so their direction is uniform.
    directions = {layer: unit(torch.randn(width_of(lm.model), generator=generator)) for layer in layers}
    vectors = {layer: sizes[layer] * direction for layer, direction in directions.items()}
    return content_of(vectors, norms, place=method.place)


def _sizes(method: RandomMethod, layers: tuple[int, ...], norms: dict[int, float]) -> dict[int, float]:
    """Norm of each layer's vector. Raises InvalidInput where it cannot be told."""
    if method.like is not None:
        if not norms:
            raise InvalidInput("random: `like` measures the residual stream on texts; the spec has no `dataset.eval`")
        return {layer: method.like * norms[layer] for layer in layers}
    if isinstance(method.norm, tuple):
        if len(method.norm) != len(layers):
            raise InvalidInput(f"random: {len(method.norm)} norms for {len(layers)} layers")
        return dict(zip(layers, method.norm, strict=True))
    assert method.norm is not None  # the method was validated: one of the two is stated
    return dict.fromkeys(layers, method.norm)


def loaded_vectors(method: LoadMethod, context: StageContext) -> Content:
    """The file's vectors of the layers asked for. Raises what `vectors_from` raises."""
    lm, vectors = context.model(), vectors_from(method.path, context, method.other_model)
    if vectors.place not in (OUTPUT, method.place):
        raise InvalidInput(
            f"load: the vectors of {method.path} were made for {vectors.place}; say `place: {vectors.place}`"
        )
    if method.layers != "all":
        vectors = vectors.only(*layers_of(method, lm))
    # The file may hold norms too, but of a model in another data type or of other texts: relative scales mean this cell's.
    norms = residual_norms(lm, vectors.layers, neutral_texts(context), method.place)
    return content_of(vectors.vectors, norms, place=method.place, made_for=vectors.model)


def vectors_from(path: str, context: StageContext, other_model: bool = False) -> SteeringVectors:
    """The vectors in a file of the project.

    Raises RefusedFile for a malformed or unsafe file and, unless `other_model`, for another model's; InvalidInput where
    they do not fit the cell's model.
    """
    vectors = read_vectors(vector_file(path, context.roots))
    if not other_model:
        vectors.made_for(model_tag(context.experiment.model.identity(context.roots)), path)
    vectors.check(context.model().model)
    return vectors


def contrastive_vectors(method: ContrastiveMethod, context: StageContext) -> Content:
    """One vector per layer from the paired differences of the texts' states (CAA, arXiv 2312.06681)."""
    lm = context.model()
    layers = layers_of(method, lm)
    positive, negative = _texts(method, context)
    states = [_states(lm, layers, texts, method) for texts in (positive, negative)]
    differences = {layer: states[0][layer] - states[1][layer] for layer in layers}
    vectors = {layer: direction_of(pairs, method.estimate) for layer, pairs in differences.items()}
    norms = residual_norms(lm, layers, negative, method.place)
    return content_of(vectors, norms, place=method.place, pairs=len(positive))


def direction_of(pairs: Tensor, estimate: str) -> Tensor:
    """[d] from paired differences [N, d]: their mean m, or (m · c) c for their first right singular vector c (`pca`)."""
    mean: Tensor = pairs.mean(0)
    if estimate == "mean":
        return mean
    component: Tensor = torch.linalg.svd(pairs.double(), full_matrices=False).Vh[0].to(mean.dtype)
    return component * torch.dot(mean, component)  # the sign of a component is arbitrary; the mean's is not


def _texts(method: ContrastiveMethod, context: StageContext) -> tuple[list[str], list[str]]:
    """The positive and as many negative texts, behind every prompt where there are problems."""
    if method.problems is None:
        return list(method.positive), list(method.negative)
    prompts = [problem.prompt for problem in read_problems(method.problems, context, method.prompts)]
    positive, negative = (
        [prompt + text for prompt in prompts for text in texts] for texts in (method.positive, method.negative)
    )
    return positive, negative


def _states(
    lm: LanguageModel, layers: tuple[int, ...], texts: list[str], method: ContrastiveMethod
) -> dict[int, Tensor]:
    """Layer to the texts' states [N, d], in float32 on the CPU."""
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for batch in residuals(lm, layers, texts, place=method.place):
        weights = batch.real.double() / batch.real.sum(1, keepdim=True).clamp_min(1)
        for layer, states in batch.states.items():
            mean = (weights[..., None] * states.double()).sum(1)
            # Texts are padded on the left, so the last column is every text's last token.
            found[layer].append((states[:, -1].double() if method.token == "last" else mean).float().cpu())
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def sae_latent_vector(method: SaeLatentMethod, context: StageContext) -> Content:
    """The latent's decoder row with norm one.

    Raises InvalidInput where there is no such latent, or the SAE reads what is not the residual stream.
    """
    sae, site = context.sae, next(iter(context.saes()))
    rows = sae.decoder_rows()
    if rows is None or method.latent >= len(rows):
        raise InvalidInput(f"sae_latent: there is no latent {method.latent}; the dictionary width is {sae.width}")
    # What attention or MLP add has the residual stream's directions; what enters a block leaves the one before.
    at_itself = method.place == site.point
    layer = site.index - (site.point == "resid_pre" and not at_itself)
    if layer < 0:
        raise InvalidInput(
            "sae_latent: no block ends where an SAE of the input of block 0 reads; say `place: resid_pre`"
        )
    norms = residual_norms(context.model(), (layer,), neutral_texts(context), method.place)
    return content_of({layer: unit(rows[method.latent].detach().float().cpu())}, norms, place=method.place)


def ablated_directions(method: AblateMethod, context: StageContext) -> Content:
    """Orthonormal rows [k, d] by layer: of one direction at all layers asked for, else those of each layer at that layer.

    Raises InvalidInput for a layer that is asked for by number and has no direction.
    """
    made = [by_layer(part.make(of_part(context, number))) for number, part in enumerate(method.directions)]
    asked = layers_of(method, context.model())
    spread = [dict.fromkeys(asked, *own.values()) if len(own) == 1 else own for own in made]
    found = {layer: [own[layer] for own in spread if layer in own] for layer in asked}
    if method.layers == "all":
        found = {layer: directions for layer, directions in found.items() if directions}
    if missing := [layer for layer, directions in found.items() if not directions]:
        raise InvalidInput(f"ablate: no direction is made at layers {missing}; leave them out of `layers`")
    bases = {layer: orthonormal(torch.stack(directions)) for layer, directions in found.items()}
    return content_of(bases, place=method.place)
