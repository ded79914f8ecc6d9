"""An SAE whose architecture and loss are sae-lens' and whose training loop is the harness's."""

from __future__ import annotations

import torch
from sae_lens.saes.sae import TrainCoefficientConfig, TrainingSAE, TrainStepInput
from torch import Tensor

from latentbench.sae.base import Loss, TrainableSAE
from latentbench.sae.codes import Codes
from latentbench.sae.linear import LinearWeights
from latentbench_adapters.sae_lens.options import SaeLensOptions
from latentbench_adapters.sae_lens.weights import weights_of


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

    def loss(self, x: Tensor, dead: Tensor, step: int, steps: int) -> Loss:
        given = TrainStepInput(x, self._coefficients(step, steps), dead, step, is_logging_step=False)
        out = self.inner.training_forward_pass(given)
        fit = out.losses["mse_loss"]
        firing = (out.feature_acts.detach() != 0).sum(0)
        return Loss(out.loss, fit.detach(), (out.loss - fit).detach(), firing)

    def fold_input_scale(self, scale: float) -> None:
        self.inner.fold_activation_norm_scaling_factor(scale)

    def _coefficients(self, step: int, steps: int) -> dict[str, float]:
        rise = min(1.0, (step + 1) / max(1.0, self.options.penalty_warmup * steps))
        given = self.inner.get_coefficients().items()
        return {name: (c.value if isinstance(c, TrainCoefficientConfig) else c) * rise for name, c in given}
