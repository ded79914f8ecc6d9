"""`attention_shift` and `persistence`: how the vector's effect travels through the layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from harness.metrics.base import Estimator
from harness.metrics.mechanism.base import DOMAIN, MechanismStudy, injection_of
from harness.metrics.study import Findings
from harness.section import Json

if TYPE_CHECKING:
    from torch import Tensor

    from harness.lab import Lab


def _mean(name: str, total: str, count: str, unit: str) -> Estimator:
    return Estimator(
        id=name,
        version=1,
        unit=unit,
        higher_is_better=None,
        inputs=(f"{name}.{total}", f"{name}.{count}"),
        formula=lambda summed, number: summed / number,
        units="problems",
    )


class AttentionShift(MechanismStudy):
    """Change of attention patterns and MLP outputs over the steered model's own text.

    * `heads`: mean over heads, layers and tokens of ½ Σ_s |a_steered(t, s) − a_plain(t, s)|;
    * `mlp`: mean over blocks and tokens of ‖Δmlp‖ / ‖mlp‖.

    By head and block in the steering report. Source: Small Vectors, Big Effects (arXiv 2509.06608), section 7.
    """

    metric: Literal["attention_shift"] = "attention_shift"

    def numbers(self) -> tuple[Estimator, ...]:
        heads = _mean("attention_shift.heads", "total", "count", "total variation")
        return heads, _mean("attention_shift.mlp", "total", "count", "ratio")

    def run(self, lab: Lab) -> Findings:
        from harness.steering.mechanism.attention import movement

        found = movement(lab.model(), lab.subject(), self.passages(lab))
        statistics: dict[str, Tensor] = {}
        for name, values in (("heads", found.heads.flatten(1)), ("mlp", found.mlps)):
            statistics[f"attention_shift.{name}.total"] = values.sum(1)
            statistics[f"attention_shift.{name}.count"] = found.tokens * values.shape[1]
        details = {
            "heads": _per_token(found.heads, found.tokens),
            "mlps": _per_token(found.mlps, found.tokens),
        }
        return Findings({DOMAIN: {name: values.numpy() for name, values in statistics.items()}}, details=details)


class Persistence(MechanismStudy):
    """Δ_j(t) = h_j^steered(t) − h_j^plain(t) after every block j from the first steered one on.

    * `diff_diff`: mean over tokens and blocks of cos(Δ_j(t), mean_t Δ_j): 1 where the perturbation is the same at every
      token;
    * `diff_vector`: the same with the vector trained at block j, over the blocks that have one.

    By block in the steering report, with the logit lens of the mean Δ after the last block.
    Source: Small Vectors, Big Effects (arXiv 2509.06608), section 5.
    """

    metric: Literal["persistence"] = "persistence"

    def numbers(self) -> tuple[Estimator, ...]:
        return tuple(_mean(f"persistence.{name}", "total", "count", "cosine") for name in ("diff_diff", "diff_vector"))

    def run(self, lab: Lab) -> Findings:
        from harness.steering.mechanism.lens import read_vector
        from harness.steering.mechanism.persistence import persistence

        lm, injection = lab.model(), injection_of(lab)
        vectors = injection.vectors.vectors
        found = persistence(lm, injection, self.passages(lab), injection.vectors.layers[0], vectors)
        statistics: dict[str, Tensor] = {}
        for name, values in (("diff_diff", found.diff_diff), ("diff_vector", found.diff_vector)):
            known = ~values.isnan().any(0)
            statistics[f"persistence.{name}.total"] = values[:, known].sum(1)
            statistics[f"persistence.{name}.count"] = found.tokens * int(known.sum())
        lens = read_vector(lm, found.means[found.layers[-1]])
        layers = {"layers": list(found.layers), "lens": {"top": lens.top, "bottom": lens.bottom}}
        parts = {"diff_diff": found.diff_diff, "diff_vector": found.diff_vector, "relative": found.relative}
        curves = {name: _per_token(values, found.tokens) for name, values in parts.items()}
        arrays = {name: values.numpy() for name, values in statistics.items()}
        return Findings({DOMAIN: arrays}, details=layers | curves)


def _per_token(values: Tensor, tokens: Tensor) -> Json:
    """Sums [B, …] as means over all tokens, NaN as null."""
    mean = values.sum(0) / tokens.sum()
    return _without_nan(mean.tolist())


def _without_nan(value: Json) -> Json:
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if value != value else round(value, 6)
