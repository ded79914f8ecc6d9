"""`path_patching` and `logit_attribution`: which way the vector takes to the logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from latentbench.mechanism.metrics.study import DOMAIN, MechanismStudy, injection_of
from latentbench.metrics.base import Estimator
from latentbench.study.study import Findings

if TYPE_CHECKING:
    from latentbench.interventions.injection import VectorInjection
    from latentbench.study.context import StageContext

_MODES = ("no_patch", "skip_attention", "skip_layer", "queries", "keys", "values")


class PathPatching(MechanismStudy):
    """KL(p_plain ‖ p_mode) per position, in float64, for a vector at the penultimate layer.

    The last block runs on the steered input with parts of it computed from the plain one: `no_patch`, `skip_attention`
    (what attention adds is the plain one), `skip_layer` (the vector acts on the unembedding alone), `queries`, `keys`,
    `values`; single heads and all heads but one are in the steering report. `kept_…` is a mode's KL as a share of
    `no_patch`'s. Source: Small Vectors, Big Effects (arXiv 2509.06608), section 7.
    """

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
            for mode in _MODES
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
            for mode in _MODES[1:]
        ]
        return (*kl, *kept)

    def run(self, lab: StageContext) -> Findings:
        from latentbench.mechanism.paths import path_patching

        lm, injection = lab.model(), _penultimate(lab)
        if injection is None:
            return Findings(warnings=("path_patching: there is no vector at the penultimate layer",))
        found = path_patching(lm, injection, self.passages(lab))
        statistics = {f"path_patching.{mode}": values.numpy() for mode, values in found.modes.items()}
        statistics["path_patching.tokens"] = found.tokens.numpy()
        total = found.tokens.sum()
        details = {
            "heads": (found.heads.sum(0) / total).tolist(),
            "only_heads": (found.only_heads.sum(0) / total).tolist(),
            "modes": {mode: float(values.sum() / total) for mode, values in found.modes.items()},
            "positions": found.positions[:256].tolist(),
        }
        return Findings({DOMAIN: statistics}, details=details, units=self.units(lab))


class LogitAttribution(MechanismStudy):
    """Shares of the first generated token's logit change that take the direct path, attention and MLPs.

    To first order in the final residual stream, for the token that steering boosts most often there: `direct` is the
    vector's own share, `attention` and `mlp` what later blocks add otherwise; `change` is the whole in nats. The rest is
    what the linearisation leaves. Source: Small Vectors, Big Effects (arXiv 2509.06608), section 7.
    """

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

    def run(self, lab: StageContext) -> Findings:
        import torch

        from latentbench.mechanism.output_tokens import probability_shift, token_text
        from latentbench.mechanism.paths import attribution

        lm, injection, passages = lab.model(), injection_of(lab), self.passages(lab)
        token = probability_shift(lm, injection, passages).top()
        if token is None:
            return Findings(warnings=("logit_attribution: the steered model wrote nothing",))
        found = attribution(lm, injection, passages, token)
        parts = {"direct": found.direct, "attention": found.attention, "mlp": found.mlp}
        sums = {name: values.sum(1) for name, values in parts.items()} | {"change": found.change, "rest": found.rest}
        statistics = {f"logit_attribution.{name}": values.numpy() for name, values in sums.items()}
        statistics["logit_attribution.passages"] = torch.ones(len(found.change), dtype=torch.float64).numpy()
        layers = {name: values.mean(0).tolist() for name, values in parts.items()}
        details = {"token": token_text(lm, token), "layers": layers}
        return Findings({DOMAIN: statistics}, details=details, units=self.units(lab))


def _penultimate(lab: StageContext) -> VectorInjection | None:
    """The cell's injection with the vector of the penultimate layer alone; None without one."""
    from latentbench.activations.blocks import decoder_blocks
    from latentbench.interventions.injection import VectorInjection

    made = injection_of(lab)
    layer = len(decoder_blocks(lab.model().model)) - 2
    if layer not in made.vectors.layers:
        return None
    return VectorInjection(made.vectors.only(layer), made.scale, made.scope, made.relative)
