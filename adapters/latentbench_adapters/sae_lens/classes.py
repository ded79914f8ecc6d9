"""Classes for sae-lens of SAEs that none of its own can stand for; importing this module registers them.

    import latentbench_adapters.sae_lens.classes
    sae = sae_lens.SAE.load_from_disk(folder)

`latentbench_kron`: latents are products of two linear pre-activations, which no linear encoder can give.
`latentbench_groups`: groups of latents with top-k each, or top-k beside thresholds, as in a boosted SAE.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from sae_lens import SAE, SAEConfig, register_sae_class
from sae_lens.saes.topk_sae import TopK
from torch import Tensor, nn

from latentbench.sae.variants.kron import combine

KRON, GROUPS = "latentbench_kron", "latentbench_groups"


@dataclass
class KronSAEConfig(SAEConfig):  # type: ignore[misc]
    """Sizes of a KronSAE: d_sae = heads · m · n."""

    heads: int = 1
    m: int = 1
    n: int = 1
    kernel: Literal["mand", "relu_product", "product"] = "mand"
    k: int | None = None
    """Active latents per token; None: those above `threshold`."""

    @classmethod
    def architecture(cls) -> str:
        """The name in cfg.json."""
        return KRON


@dataclass
class GroupSAEConfig(SAEConfig):  # type: ignore[misc]
    """Groups of latents."""

    groups: list[tuple[int, int | None]] = field(default_factory=list)
    """(width, k) of every group in order; k None: latents above `threshold`."""

    @classmethod
    def architecture(cls) -> str:
        """The name in cfg.json."""
        return GROUPS


class _Registered(SAE[Any]):  # type: ignore[misc]
    """What both classes share: the linear decoder and a threshold [d_sae] per latent (0 where it is not used)."""

    def initialize_weights(self) -> None:
        """Parameters of the right shapes; loading replaces them."""
        super().initialize_weights()
        for name, size in (("b_enc", self.cfg.d_sae), ("threshold", self.cfg.d_sae)):
            setattr(self, name, nn.Parameter(torch.zeros(size, dtype=self.dtype, device=self.device)))

    def decode(self, feature_acts: Tensor) -> Tensor:
        """Reconstruction [..., d_in] of activations [..., d_sae]."""
        out = self.hook_sae_recons(feature_acts @ self.W_dec + self.b_dec)
        made: Tensor = self.reshape_fn_out(self.run_time_activation_norm_fn_out(out), self.d_head)
        return made

    def fold_W_dec_norm(self) -> None:  # noqa: N802 (sae-lens' name)
        """Refused: scaled activations would be ranked differently."""
        raise NotImplementedError(f"folding decoder norms would change which latents of a {type(self).__name__} fire")


class KronSAE(_Registered):
    """Latent (head, i, j) = kernel(P_i x, Q_j x); W_enc [d_in, heads (m + n)] holds each head's P, then its Q."""

    def initialize_weights(self) -> None:
        """As above, with the encoder's own shapes."""
        super().initialize_weights()
        rows = self.cfg.heads * (self.cfg.m + self.cfg.n)
        made = {"W_enc": (self.cfg.d_in, rows), "b_enc": (rows,)}
        for name, shape in made.items():
            setattr(self, name, nn.Parameter(torch.zeros(shape, dtype=self.dtype, device=self.device)))

    def encode(self, x: Tensor) -> Tensor:
        """Activations [..., d_sae]."""
        cfg = self.cfg
        pre = self.hook_sae_acts_pre(self.process_sae_in(x) @ self.W_enc + self.b_enc)
        heads = pre.unflatten(-1, (cfg.heads, cfg.m + cfg.n))
        u, v = heads[..., : cfg.m, None], heads[..., None, cfg.m :]
        latents = combine(u, v, cfg.kernel).flatten(-3)
        if cfg.k is None:
            kept = latents > self.threshold
        else:
            # Ranked by the products, as in training: rounding of the square root must not decide.
            strength = (u * v if cfg.kernel == "product" else u.relu() * v.relu()).flatten(-3)
            chosen = strength.topk(cfg.k, dim=-1).indices
            kept = torch.zeros_like(latents, dtype=torch.bool).scatter(-1, chosen, True)
        out: Tensor = self.hook_sae_acts_post(latents * kept)
        return out


class GroupSAE(_Registered):
    """Each group's k strongest latents, or its latents above their thresholds."""

    def encode(self, x: Tensor) -> Tensor:
        """Activations [..., d_sae]."""
        pre = self.hook_sae_acts_pre(self.process_sae_in(x) @ self.W_enc + self.b_enc)
        sizes = [width for width, _ in self.cfg.groups]
        parts = zip(pre.split(sizes, -1), self.threshold.split(sizes), self.cfg.groups, strict=True)
        latents = [p.relu() * (p > limit) if k is None else TopK(k)(p) for p, limit, (_, k) in parts]
        out: Tensor = self.hook_sae_acts_post(torch.cat(latents, -1))
        return out


register_sae_class(KRON, KronSAE, KronSAEConfig)
register_sae_class(GROUPS, GroupSAE, GroupSAEConfig)
