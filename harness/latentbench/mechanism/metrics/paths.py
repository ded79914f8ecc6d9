"""`path_patching` and `logit_attribution`: which way the vector takes to the logits."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator

from latentbench.mechanism.metrics.study import MechanismStudy
from latentbench.metrics.base import Estimator

Mode = Literal["no_patch", "skip_attention", "skip_layer", "queries", "keys", "values"]
MODES: tuple[Mode, ...] = ("no_patch", "skip_attention", "skip_layer", "queries", "keys", "values")
"""What of the last block is computed from the plain input; see `latentbench.mechanism.paths`."""
PATHS = ("residual", "mlp")
"""Where alone a patched output of attention goes, the other reading the steered one."""
Further = Literal["groups", "paths", "entropies"]


def _once_each(named: tuple[Further, ...]) -> tuple[Further, ...]:
    """Each once and in one order: the same wishes are the same experiment."""
    every: tuple[Further, ...] = ("groups", "paths", "entropies")
    return tuple(one for one in every if one in named)


class PathPatching(MechanismStudy):
    """KL(p_plain ‖ p_mode) per position, in float64, for a vector at the penultimate layer.

    The last block runs on the steered input with parts of it computed from the plain one: `no_patch`, `skip_attention`
    (what attention adds is the plain one), `skip_layer` (the vector acts on the unembedding alone), `queries`, `keys`,
    `values`; single heads and all heads but one are in the steering report. `kept_…` is a mode's KL as a share of
    `no_patch`'s. What `also` adds: with `paths`, what attention adds is the plain one for the residual stream alone, the MLP
    reading the steered one (`…_residual`), and the other way round (`…_mlp`), for `skip_attention` and in the report for every
    head; with `groups`, in the report all heads that share their keys and values at once; with `entropies`, the mean entropy
    of the plain model's distribution and of every mode's. Source: Small Vectors, Big Effects (arXiv 2509.06608), section 7,
    and its code (`patch_path`).
    """

    implementation: ClassVar[str] = "latentbench.mechanism.paths:measure_path_patching"
    newer: ClassVar[tuple[str, ...]] = (*MechanismStudy.newer, "also")

    metric: Literal["path_patching"] = "path_patching"
    also: Annotated[tuple[Further, ...], AfterValidator(_once_each)] = ()
    """What is measured besides: `groups` and `paths` run the last block again for every group, and thrice for every head."""

    @property
    def modes(self) -> tuple[str, ...]:
        """Those whose KL is a number."""
        return (*MODES, *(f"skip_attention_{path}" for path in PATHS if "paths" in self.also))

    def numbers(self) -> tuple[Estimator, ...]:
        kl = [_per_token(f"kl_{mode}", mode) for mode in self.modes]
        kept = [
            Estimator(
                id=f"path_patching.kept_{mode}",
                version=1,
                unit="fraction",
                higher_is_better=None,
                inputs=(f"path_patching.{mode}", "path_patching.no_patch"),
                formula=lambda part, whole: part / whole,
                units="problems",
            )
            for mode in self.modes[1:]
        ]
        of = ("plain", *self.modes) if "entropies" in self.also else ()
        return (*kl, *kept, *(_per_token(f"entropy_{mode}", f"entropy.{mode}") for mode in of))


def _per_token(name: str, statistic: str) -> Estimator:
    return Estimator(
        id=f"path_patching.{name}",
        version=1,
        unit="nats",
        higher_is_better=None,
        inputs=(f"path_patching.{statistic}", "path_patching.tokens"),
        formula=lambda total, tokens: total / tokens,
        units="problems",
    )


class LogitAttribution(MechanismStudy):
    """Shares of the first generated token's logit change that take the direct path, attention and MLPs.

    To first order in the final residual stream, for the token that steering boosts most often there: `direct` is the
    vector's own share, `attention` and `mlp` what later blocks add otherwise; `change` is the whole, all in logits. `rest`
    is what the linearisation leaves. Source: Small Vectors, Big Effects (arXiv 2509.06608), section 7.
    """

    implementation: ClassVar[str] = "latentbench.mechanism.paths:measure_logit_attribution"

    metric: Literal["logit_attribution"] = "logit_attribution"

    def numbers(self) -> tuple[Estimator, ...]:
        return tuple(
            Estimator(
                id=f"logit_attribution.{part}",
                version=1,
                unit="logits",
                higher_is_better=None,
                inputs=(f"logit_attribution.{part}", "logit_attribution.passages"),
                formula=lambda total, passages: total / passages,
                units="problems",
            )
            for part in ("change", "direct", "attention", "mlp", "rest")
        )
