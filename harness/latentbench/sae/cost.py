"""What a variant costs, by formula: parameters and operations per token (KronSAE, arXiv 2505.22255, eq. 7).

As in that paper a multiply-accumulate counts as one operation, and biases, selection and activations are left out:
a linear encoder costs d_in · width, KronSAE's d_in · h(m + n) + h·m·n, matching pursuit's k · d_in · width, a
decoder d_in · (active latents).
"""

from __future__ import annotations

from typing import NamedTuple

from latentbench.sae.options import (
    BoostedOptions,
    EnsembleOptions,
    ExtendedOptions,
    IdentityOptions,
    KronJumpReLUOptions,
    KronOptions,
    MatchingPursuitOptions,
    MeanOptions,
    PCAOptions,
    TranscoderOptions,
    Variant,
)


class SaeCost(NamedTuple):
    """Cost of one SAE."""

    parameters: int
    """Numbers stored, biases included."""
    encoder: int
    """Multiply-accumulates per token to encode."""
    decoder: float
    """Multiply-accumulates per token to decode."""

    @property
    def per_token(self) -> float:
        """Multiply-accumulates per token, encoder and decoder."""
        return self.encoder + self.decoder


def cost(options: Variant, d_in: int, active: float | None = None, bases: tuple[SaeCost, ...] = ()) -> SaeCost:
    """Cost of a variant over `d_in` dimensions.

    `active`: latents per token (measured L0), by default the variant's k; `bases`: cost of the SAEs it starts from.
    Raises ValueError where the variant fixes no k and `active` is missing.
    """
    match options:
        case EnsembleOptions():
            raise ValueError(
                "an ensemble's cost is counted with its base, which its boosts have in common: variant_cost"
            )
        case IdentityOptions():
            return SaeCost(0, 0, 0)
        case MeanOptions():
            return SaeCost(d_in, 0, 0)
        case PCAOptions(k=k):
            return SaeCost(d_in * k + d_in, d_in * k, d_in * (k if active is None else active))
        case BoostedOptions() | ExtendedOptions():
            return _on_base(options, d_in, active, bases)
        case MatchingPursuitOptions():
            # Encoder and decoder are the same rows, and each of k steps compares all of them with what is left.
            compared = options.k * options.width * d_in
            return SaeCost(options.width * d_in + d_in, compared, d_in * _active(options, active))
        case TranscoderOptions():
            skip = d_in**2 if options.skip else 0
            plain = _dictionary(d_in, options.width, options.width, _active(options, active))
            return plain._replace(parameters=plain.parameters + skip, encoder=plain.encoder + skip)
        case KronOptions() | KronJumpReLUOptions():
            rows = options.head_count * (options.m + options.n)
            plain = _dictionary(d_in, rows, options.width, _active(options, active), pairs=options.width)
            # Biases belong to rows, thresholds to latents.
            return plain._replace(parameters=plain.parameters + (options.scalars - 1) * options.width)
    if bases:  # fine-tuned and stitched SAEs have the shape of their base
        return bases[0] if active is None else bases[0]._replace(decoder=d_in * active)
    width = getattr(options, "width", 0)
    # One bias per latent is counted there; `scalars` says how many numbers of that kind the variant has.
    plain = _dictionary(d_in, width, width, _active(options, active))
    return plain._replace(parameters=plain.parameters + (options.scalars - 1) * width)


def variant_cost(options: Variant, d_in: int, active: float | None = None) -> SaeCost:
    """Cost of a variant together with the SAEs it starts from.

    `active`: latents per token in all (measured L0), by default what the variants fix. Raises ValueError where they fix
    none and `active` is missing, and on top of a loaded SAE.
    """
    bases = tuple(variant_cost(base, d_in, active) for base in options.base_sections if isinstance(base, Variant))
    if len(bases) < len(options.base_sections):
        raise ValueError("the cost of an SAE on top of a loaded one is not known before it is loaded")
    if isinstance(options, EnsembleOptions):
        return _ensemble(variant_cost(options.boosts[0].base, d_in, active), bases, d_in, active)
    return cost(options, d_in, active, bases)


def tokens_at_equal_cost(reference: SaeCost, tokens: int, other: SaeCost) -> int:
    """How many tokens `other` may be trained on for the operations that `reference` needs for `tokens` (iso-FLOPs)."""
    return round(tokens * reference.per_token / other.per_token)


def linear_cost(d_in: int, width: int, active: float) -> SaeCost:
    """Cost of any SAE with a linear encoder, e.g. a loaded one."""
    return _dictionary(d_in, width, width, active)


def _dictionary(d_in: int, rows: int, width: int, active: float, pairs: int = 0) -> SaeCost:
    parameters = rows * (d_in + 1) + width * d_in + d_in
    return SaeCost(parameters, d_in * rows + pairs, d_in * active)


def _active(options: Variant, active: float | None) -> float:
    k = getattr(options, "k", None) if active is None else active
    if k is None:
        raise ValueError(f"{options.variant} does not fix its number of active latents: pass the measured L0")
    return float(k)


def _ensemble(base: SaeCost, boosts: tuple[SaeCost, ...], d_in: int, active: float | None) -> SaeCost:
    """The base's cost once, and of every boost what it adds to that."""
    parameters, encoder, decoder = (
        below + sum(boost[part] - below for boost in boosts) for part, below in enumerate(base)
    )
    return SaeCost(int(parameters), int(encoder), decoder if active is None else d_in * active)


def _on_base(
    options: BoostedOptions | ExtendedOptions, d_in: int, active: float | None, bases: tuple[SaeCost, ...]
) -> SaeCost:
    width, k = (
        (options.extra_width, options.extra_k) if isinstance(options, ExtendedOptions) else (options.width, options.k)
    )
    (base,) = bases
    own = _dictionary(d_in, width, width, k)
    decoder = base.decoder + own.decoder if active is None else d_in * active
    # `own` counts a decoder bias, which the two have in common.
    return SaeCost(base.parameters + own.parameters - d_in, base.encoder + own.encoder, decoder)
