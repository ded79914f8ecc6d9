"""`attention_shift` and `persistence`: how the vector's effect travels through the layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from latentbench.core.spec_model import Json
from latentbench.mechanism.metrics.study import DOMAIN, MechanismStudy, injection_of
from latentbench.metrics.base import Estimator
from latentbench.study.study import Findings

if TYPE_CHECKING:
    from torch import Tensor

    from latentbench.core.paths import Roots
    from latentbench.statistics.arrays import Array
    from latentbench.study.context import ExperimentView, StageContext

VectorFile = Annotated[str, Field(min_length=1, max_length=500)]


def _mean(name: str, unit: str, version: int = 1, params: Mapping[str, Json] | None = None) -> Estimator:
    return Estimator(
        id=name,
        version=version,
        unit=unit,
        higher_is_better=None,
        inputs=(f"{name}.total", f"{name}.count"),
        formula=lambda summed, number: summed / number,
        units="problems",
        params=params or {},
    )


class AttentionShift(MechanismStudy):
    """Change of attention patterns and MLP outputs over the steered model's own text.

    * `heads`: mean over heads, layers and tokens of ½ Σ_s |a_steered(t, s) − a_plain(t, s)|;
    * `mlp`: mean over blocks and tokens of ‖Δmlp‖ / ‖mlp‖.

    By head and block in the steering report. Source: Small Vectors, Big Effects (arXiv 2509.06608), section 7.
    """

    metric: Literal["attention_shift"] = "attention_shift"

    def numbers(self) -> tuple[Estimator, ...]:
        return _mean("attention_shift.heads", "total variation"), _mean("attention_shift.mlp", "ratio")

    def run(self, lab: StageContext) -> Findings:
        from latentbench.mechanism.propagation import attention_shift

        found = attention_shift(lab.model(), lab.subject(), self.passages(lab))
        statistics: dict[str, Tensor] = {}
        for name, values in (("heads", found.heads.flatten(1)), ("mlp", found.mlps)):
            statistics[f"attention_shift.{name}.total"] = values.sum(1)
            statistics[f"attention_shift.{name}.count"] = found.tokens * values.shape[1]
        details = {
            "heads": _per_token(found.heads, found.tokens),
            "mlps": _per_token(found.mlps, found.tokens),
        }
        arrays = {name: values.numpy() for name, values in statistics.items()}
        return Findings({DOMAIN: arrays}, details=details, units=self.units(lab))


class Persistence(MechanismStudy):
    """Δ_j(t), what steering has made of the output of every block j behind the first steered one: does it last?

    Δ_j(t) = h_j^steered(t) − h_j^plain(t), before the cell adds anything at block j itself; where it is first added, Δ is
    the vector, so that block does not count.

    * `diff_diff`: mean over tokens and blocks of cos(Δ_j(t), mean_t Δ_j): 1 where the perturbation is the same at every
      token;
    * `diff_vector`: mean over tokens and blocks of cos(Δ_j(t), s_j), over the blocks that have a vector s_j: those that
      `compare_with` names, trained on their own, else (marked `vectors=own`) those that the cell itself adds further up.

    By block in the steering report, with the logit lens of the mean change after the last block.
    Source: Small Vectors, Big Effects (arXiv 2509.06608), section 5.
    """

    version: ClassVar[int] = 2
    handling: ClassVar[frozenset[str]] = frozenset({"compare_with"})  # the files' content is in `identity`

    metric: Literal["persistence"] = "persistence"
    compare_with: VectorFile | Annotated[tuple[VectorFile, ...], Field(min_length=1, max_length=1000)] | None = None
    """A file of vectors trained at later layers (see `latentbench export-vectors`), or a list of such files with
    different layers, relative to the project."""

    @property
    def files(self) -> tuple[str, ...]:
        """The files it compares with."""
        return (self.compare_with,) if isinstance(self.compare_with, str) else self.compare_with or ()

    def identity(self, experiment: ExperimentView, roots: Roots) -> Json:
        from latentbench.core.hashing import file_digest
        from latentbench.steering.baselines import vector_file

        made = super().identity(experiment, roots)
        return {**made, "compare_with": sorted(file_digest(vector_file(path, roots)) for path in self.files)}

    def problems_in(self, experiment: ExperimentView, roots: Roots) -> tuple[str, ...]:
        from latentbench.steering.baselines import vector_file

        for path in self.files:
            vector_file(path, roots)
        return super().problems_in(experiment, roots)

    def numbers(self) -> tuple[Estimator, ...]:
        own = {} if self.files else {"vectors": "own"}
        return _mean("persistence.diff_diff", "cosine", 2), _mean("persistence.diff_vector", "cosine", 2, own)

    def run(self, lab: StageContext) -> Findings:
        from latentbench.mechanism.output_tokens import vector_logit_lens
        from latentbench.mechanism.propagation import persistence

        lm, injection = lab.model(), injection_of(lab)
        vectors = self._compared(lab) if self.files else injection.vectors.vectors
        found = persistence(lm, injection, self.passages(lab), injection.vectors.layers[0], vectors)
        statistics: dict[str, Tensor] = {}
        for name, values in (("diff_diff", found.diff_diff), ("diff_vector", found.diff_vector)):
            known = ~values.isnan().any(0)
            if known.any():
                statistics[f"persistence.{name}.total"] = values[:, known].sum(1)
                statistics[f"persistence.{name}.count"] = found.tokens * int(known.sum())
        lens = vector_logit_lens(lm, found.final)
        layers = {"layers": list(found.layers), "lens": {"top": lens.top, "bottom": lens.bottom}}
        parts = {"diff_diff": found.diff_diff, "diff_vector": found.diff_vector, "relative": found.relative}
        curves = {name: _per_token(values, found.tokens) for name, values in parts.items()}
        arrays = {name: values.numpy() for name, values in statistics.items()}
        reasons = self._reasons(found.layers, arrays)
        details = layers | curves | self._named
        return Findings({DOMAIN: arrays}, details=details, reasons=reasons, units=self.units(lab))

    @property
    def _named(self) -> dict[str, Json]:
        return {"vectors": "named" if self.files else "own"}

    def _compared(self, lab: StageContext) -> dict[int, Tensor]:
        """The vectors of all files. Raises InvalidInput where two of them have one for the same layer."""
        from latentbench.core.errors import InvalidInput
        from latentbench.steering.baselines import vectors_from

        found: dict[int, Tensor] = {}
        for path in self.files:
            vectors = vectors_from(path, lab).vectors
            if twice := sorted(found.keys() & vectors.keys()):
                raise InvalidInput(f"persistence: {path} is not the only file with vectors of layers {twice}")
            found |= vectors
        return found

    def _reasons(self, layers: tuple[int, ...], arrays: Mapping[str, Array]) -> dict[str, str]:
        """Why there is nothing to compute some numbers from."""
        later = "no block comes after the first steered one"
        vector = "no vector of a later block to compare with; name separately trained ones with `compare_with`"
        wanted = {name for number in self.numbers() for name in number.inputs}
        return dict.fromkeys(wanted - arrays.keys(), vector if layers else later)


def _per_token(values: Tensor, tokens: Tensor) -> Json:
    """Sums [B, …] as means over all tokens, NaN as null."""
    mean = values.sum(0) / tokens.sum()
    return _without_nan(mean.tolist())


def _without_nan(value: Json) -> Json:
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if value != value else round(value, 6)
