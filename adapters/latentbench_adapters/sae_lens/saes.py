"""sae-lens' SAEs behind the harness's interface: loaded ones, ones trained here, and both taken apart into linear weights.

Of training, architecture and loss are sae-lens'; the loop, the data order and the seeds are the harness's. Weights taken
apart are what boosting, its baselines and exports need of a loaded SAE.
"""

from __future__ import annotations

from pathlib import Path

import torch
from sae_lens import SAE
from sae_lens.saes.sae import TrainCoefficientConfig, TrainingSAE, TrainStepInput
from torch import Tensor

from latentbench.core.border import foreign
from latentbench.core.errors import InvalidInput, NotAvailable, RefusedFile
from latentbench.sae.autoencoder import Codes, SparseAutoencoder, TrainableSAE, TrainingLoss
from latentbench.sae.linear import LatentGroup, LinearWeights, ThresholdRule, TopKRule, folded_bias
from latentbench.sae.sources.base import mlp_between, other_output
from latentbench_adapters.sae_lens import classes  # noqa: F401  (so that sae-lens knows the classes that exports may need)
from latentbench_adapters.sae_lens.options import SaeLensOptions

_NORMALISING = ("layer_norm", "constant_norm_rescale")
"""Normalisations that sae-lens applies to every token; the others are folded into the weights or not applied."""


def weights_of(inner: SAE) -> LinearWeights:
    """Weights of a standard, topk, jumprelu or gated SAE as one group that reads x; of a group SAE as its groups.

    Raises InvalidInput for other classes and where the input is normalised or reshaped at run time.
    """
    config = inner.cfg
    if config.normalize_activations in _NORMALISING or config.reshape_activations != "none":
        raise InvalidInput(
            f"this sae-lens SAE normalises or reshapes its input at run time ({config.normalize_activations}, "
            f"{config.reshape_activations}), so it has no equivalent linear encoder"
        )
    kind, rows = config.architecture(), inner.W_enc.t()
    if kind == "gated":
        groups: tuple[LatentGroup, ...] = (_gated(inner, rows),)
    elif kind == "latentbench_groups":
        groups = _groups(inner, rows)
    elif kind in ("standard", "topk", "jumprelu"):
        groups = (_plain(inner, rows, kind),)
    else:
        raise InvalidInput(f"sae-lens' class {kind!r} has no equivalent linear encoder with top-k or thresholds")
    shift = inner.b_dec if config.apply_b_dec_to_input else None
    read = tuple(LatentGroup(g.W_enc, folded_bias(g.W_enc, g.b_enc, shift), g.W_dec, g.rule) for g in groups)
    return LinearWeights(tuple(_float32(group) for group in read), inner.b_dec.float())


def _plain(inner: SAE, rows: Tensor, kind: str) -> LatentGroup:
    if kind == "jumprelu":
        return LatentGroup(rows, inner.b_enc, inner.W_dec, ThresholdRule(inner.threshold.detach()))
    if kind == "standard":
        return LatentGroup(rows, inner.b_enc, inner.W_dec, ThresholdRule(torch.zeros_like(inner.b_enc)))
    if inner.cfg.rescale_acts_by_decoder_norm:
        # sae-lens ranks activations times the decoder norms and divides the rows by them; here the weights do both.
        norm = inner.W_dec.norm(dim=-1)
        return LatentGroup(
            rows * norm[:, None], inner.b_enc * norm, inner.W_dec / norm[:, None], TopKRule(int(inner.cfg.k))
        )
    return LatentGroup(rows, inner.b_enc, inner.W_dec, TopKRule(int(inner.cfg.k)))


def _gated(inner: SAE, rows: Tensor) -> LatentGroup:
    """The gate is open where the magnitude's pre-activation exceeds b_mag − e^r b_gate."""
    gain = inner.r_mag.exp()
    threshold = ThresholdRule((inner.b_mag - gain * inner.b_gate).detach())
    return LatentGroup(rows * gain[:, None], inner.b_mag, inner.W_dec, threshold)


def _groups(inner: SAE, rows: Tensor) -> tuple[LatentGroup, ...]:
    found, start = [], 0
    for width, k in inner.cfg.groups:
        part = slice(start, start + width)
        rule = ThresholdRule(inner.threshold[part].detach()) if k is None else TopKRule(k)
        found.append(LatentGroup(rows[part], inner.b_enc[part], inner.W_dec[part], rule))
        start += width
    return tuple(found)


def _float32(group: LatentGroup) -> LatentGroup:
    rule = ThresholdRule(group.rule.threshold.float()) if isinstance(group.rule, ThresholdRule) else group.rule
    return LatentGroup(group.W_enc.float(), group.b_enc.float(), group.W_dec.float(), rule)


class LoadedFromSaeLens(SparseAutoencoder):
    """Encodes and decodes exactly as sae-lens does, run-time normalisation of the input included."""

    def __init__(self, inner: SAE) -> None:
        """Raises RefusedFile for a transcoder, which sae-lens loads through the same door; see `loaded`."""
        super().__init__()
        self._check(inner)
        self.inner = inner
        self.d_in, self.width = int(inner.cfg.d_in), int(inner.cfg.d_sae)

    @property
    def trained_k(self) -> int | None:
        config = self.inner.cfg
        match config.architecture():
            case "topk" | "abstopk":
                return int(config.k)
            case "matching_pursuit":
                return None if config.max_iterations is None else int(config.max_iterations)
        return None

    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        if budget is not None and self.trained_k is not None and budget > self.trained_k:
            raise InvalidInput(f"sae-lens keeps {self.trained_k} latents active: use a budget up to that, not {budget}")
        codes = Codes.from_dense(self.inner.encode(x.to(self.inner.dtype)))
        return codes if budget is None else codes.truncated(budget)

    def decode(self, codes: Codes) -> Tensor:
        # sae-lens may undo its input normalisation in decode, so the dense latents go through its own code.
        out: Tensor = self.inner.decode(codes.dense(self.width).to(self.inner.dtype))
        return out

    def decoder_rows(self) -> Tensor:
        rows: Tensor = self.inner.W_dec
        return rows

    def linear_weights(self) -> LinearWeights:
        """The weights as groups that read x. Raises InvalidInput where sae-lens' class has no such equivalent."""
        return weights_of(self.inner)

    def _check(self, inner: SAE) -> None:
        metadata = inner.cfg.metadata
        names = (getattr(metadata, name, None) for name in ("hook_name", "hook_name_out"))
        if other := other_output(inner.cfg.architecture(), *names):
            raise RefusedFile(other)


class LoadedTranscoder(LoadedFromSaeLens):
    """A transcoder between both sides of an MLP; it reads pairs [N, 2 d_in], as `latentbench.sae.variants.transcoder` does."""

    paired = True

    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        return super().encode(x[:, : self.d_in], budget)

    def reconstruct(self, x: Tensor, codes: Codes) -> Tensor:
        found = self.decode(codes)
        skip = getattr(self.inner, "W_skip", None)
        return found if skip is None else found + x[:, : self.d_in].to(self.inner.dtype) @ skip.t()

    def compared(self, x: Tensor) -> Tensor:
        return x[:, self.d_in :]

    def linear_weights(self) -> LinearWeights:
        """Refused. Raises InvalidInput: its decoder writes something else than its encoder reads."""
        raise InvalidInput("a transcoder is no SAE: it predicts another hidden state than it reads")

    def _check(self, inner: SAE) -> None:
        if inner.cfg.d_out != inner.cfg.d_in:
            raise RefusedFile(f"this transcoder reads {inner.cfg.d_in} dimensions and predicts {inner.cfg.d_out}")
        metadata = inner.cfg.metadata
        if mlp_between(lambda name: getattr(metadata, name, None)) is None:
            # It may be one between other places, or one that does not say between which: as little as any SAE is.
            super()._check(inner)


def loaded(inner: SAE) -> LoadedFromSaeLens:
    """An SAE or a transcoder. Raises RefusedFile for a transcoder between other places than both sides of an MLP."""
    return (LoadedTranscoder if "transcoder" in inner.cfg.architecture() else LoadedFromSaeLens)(inner)


def from_registry(release: str, sae_id: str) -> LoadedFromSaeLens:
    """A registered SAE. Raises NotAvailable with the nearest names, or with what to do when the hub is out of reach."""
    with foreign(f"sae-lens cannot load {release!r} / {sae_id!r}", kind=NotAvailable):
        return loaded(SAE.from_pretrained(release, sae_id, device="cpu"))


def from_disk(folder: Path) -> LoadedFromSaeLens:
    """An SAE that sae-lens saved. Raises RefusedFile when the files do not fit together."""
    with foreign(f"{folder.name} is not an SAE that sae-lens can read"), torch.random.fork_rng(devices=[]):
        made = loaded(SAE.load_from_disk(folder, device="cpu"))
        with torch.no_grad():
            made(torch.zeros(1, made.d_in))  # sae-lens checks neither k nor groups when it loads
        return made


class TrainedBySaeLens(TrainableSAE):
    """Wraps a sae-lens `TrainingSAE`; weights keep sae-lens' names and layout below `inner`."""

    def __init__(self, options: SaeLensOptions, d_in: int, generator: torch.Generator) -> None:
        super().__init__()
        self.options, self.d_in, self.width = options, d_in, options.width
        config = {"architecture": options.architecture, "d_in": d_in, "d_sae": options.width, **options.config()}
        with torch.random.fork_rng(devices=[]):
            # sae-lens draws its weights from the global generator and ignores any configured seed.
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            self.inner = TrainingSAE.from_dict(config)

    def encode(self, x: Tensor, budget: int | None = None) -> Codes:
        codes = Codes.from_dense(self.inner.encode(x))
        return codes if budget is None else codes.truncated(budget)

    def decode(self, codes: Codes) -> Tensor:
        rows = torch.nn.functional.embedding_bag(
            codes.indices, self.inner.W_dec, per_sample_weights=codes.values, mode="sum"
        )
        out: Tensor = rows + self.inner.b_dec
        return out

    def decoder_rows(self) -> Tensor:
        rows: Tensor = self.inner.W_dec
        return rows

    def linear_weights(self) -> LinearWeights:
        """The weights as one group that reads x."""
        return weights_of(self.inner)

    def loss(self, x: Tensor, dead: Tensor, step: int, steps: int) -> TrainingLoss:
        given = TrainStepInput(x, self._coefficients(step, steps), dead, step, is_logging_step=False)
        out = self.inner.training_forward_pass(given)
        fit = out.losses["mse_loss"]
        firing = (out.feature_acts.detach() != 0).sum(0)
        return TrainingLoss(out.loss, fit.detach(), (out.loss - fit).detach(), firing)

    def fold_input_scale(self, scale: float) -> None:
        self.inner.fold_activation_norm_scaling_factor(scale)

    def _coefficients(self, step: int, steps: int) -> dict[str, float]:
        rise = min(1.0, (step + 1) / max(1.0, self.options.penalty_warmup * steps))
        # Warmed up here and not by sae-lens' trainer, which is not used: the harness's loop knows the step.
        given = self.inner.get_coefficients().items()
        return {name: (c.value if isinstance(c, TrainCoefficientConfig) else c) * rise for name, c in given}
