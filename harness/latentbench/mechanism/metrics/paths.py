"""`path_patching` and `logit_attribution`: which way the vector takes to the logits."""

from __future__ import annotations

from typing import ClassVar, Literal

from latentbench.mechanism.metrics.study import MechanismStudy
from latentbench.metrics.base import Estimator

Mode = Literal["no_patch", "skip_attention", "skip_layer", "queries", "keys", "values"]
MODES: tuple[Mode, ...] = ("no_patch", "skip_attention", "skip_layer", "queries", "keys", "values")
"""What of the last block is computed from the plain input; see `latentbench.mechanism.paths`."""


class PathPatching(MechanismStudy):
    """KL(p_plain ‖ p_mode) per position, in float64, for a vector at the penultimate layer.

    The last block runs on the steered input with parts of it computed from the plain one: `no_patch`, `skip_attention`
    (what attention adds is the plain one), `skip_layer` (the vector acts on the unembedding alone), `queries`, `keys`,
    `values`; single heads and all heads but one are in the steering report. `kept_…` is a mode's KL as a share of
    `no_patch`'s. Source: Small Vectors, Big Effects (arXiv 2509.06608), section 7.
    """

    implementation: ClassVar[str] = "latentbench.mechanism.paths:measure_path_patching"

    metric: Literal["path_patching"] = "path_patching"

    def numbers(self) -> tuple[Estimator, ...]:
        kl = [
            Estimator(
                id=f"path_patching.kl_{mode}",
                version=1,
                unit="nats",
                higher_is_better=None,
                inputs=(f"path_patching.{mode}", "path_patching.tokens"),
                formula=lambda total, tokens: total / tokens,
                units="problems",
            )
            for mode in MODES
        ]
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
            for mode in MODES[1:]
        ]
        return (*kl, *kept)


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
