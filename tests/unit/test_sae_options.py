"""What the options of SAEs refuse, and what a variant costs."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from latentbench.core.plugins import plugins
from latentbench.reconstruction.sparsity_and_cost import ComputeCost as CostMetric
from latentbench.sae.cost import SaeCost, cost, linear_cost, tokens_at_equal_cost, variant_cost
from latentbench.sae.dictionary import default_aux_k
from latentbench.sae.options import (
    AbsTopKOptions,
    AuxiliaryLoss,
    BoostedOptions,
    EnsembleOptions,
    ExtendedOptions,
    FineTunedOptions,
    GatedOptions,
    IdentityOptions,
    JumpReLUOptions,
    KronJumpReLUOptions,
    KronOptions,
    MatchingPursuitOptions,
    MeanOptions,
    MultiTopKOptions,
    PAnnealOptions,
    PCAOptions,
    StandardOptions,
    TopKOptions,
    TranscoderOptions,
    UntrainedOptions,
)
from latentbench.sae.options.training import TrainingOptions
from latentbench_adapters.sae_lens.options import SaeLensGatedOptions as SaeLensGated
from latentbench_adapters.sae_lens.options import SaeLensJumpReluOptions as SaeLensJumpReLU

VARIANTS = plugins("variants")
TOPK = {"width": 64, "k": 4}


@pytest.mark.parametrize(
    ("variant", "options", "message"),
    [
        ("topk", {"width": 8, "k": 9}, "k = 9 active latents cannot exceed the dictionary width 8"),
        ("topk", {"width": 0, "k": 1}, "greater than 0"),
        ("topk", {"width": 8, "k": 2, "kk": 1}, "Extra inputs"),
        ("batch_topk", {"width": 8, "k": 9}, "cannot exceed the dictionary width"),
        ("batch_topk", {**TOPK, "threshold_momentum": 0}, "greater than 0"),
        ("hierarchical_topk", {**TOPK, "budgets": [2, 5]}, "budget 5 exceeds k = 4"),
        ("hierarchical_topk", {**TOPK, "budgets": []}, "one or more different"),
        ("hierarchical_topk", {**TOPK, "budgets": [2, 2]}, "one or more different"),
        ("matryoshka", {**TOPK, "groups": [16, 32]}, "add up to 48 latents, not to the width 64"),
        ("matryoshka", {**TOPK, "groups": []}, "at least 1"),
        ("kron", {**TOPK, "m": 3, "n": 5}, "m·n = 3·5 = 15 does not divide the width 64"),
        ("kron", {**TOPK, "m": 2, "n": 4, "heads": 9}, "heads·m·n = 9·2·4 = 72 is not the width 64"),
        ("kron", {**TOPK, "m": 2, "n": 4, "budgets": [2]}, "budgets need selection: hierarchical, not topk"),
        ("kron", {**TOPK, "m": 2, "n": 4, "selection": "hierarchical", "budgets": [7]}, "budget 7 exceeds k = 4"),
        ("kron", {"width": 64, "k": 65, "m": 2, "n": 4}, "cannot exceed the dictionary width"),
        ("kron", {**TOPK, "m": 2, "n": 4, "groups": [16, 32]}, "add up to 48 latents, not to the width 64"),
        (
            "kron",
            {**TOPK, "m": 2, "n": 4, "groups": [12, 52]},
            "a group of 12 latents cuts a head: take multiples of m·n = 8",
        ),
        (
            "kron",
            {**TOPK, "m": 2, "n": 4, "groups": [16, 48], "selection": "hierarchical"},
            "groups need selection: topk or batch_topk",
        ),
        ("kron_jumprelu", {"width": 64, "m": 3, "n": 5}, "does not divide the width 64"),
        ("kron_jumprelu", {"width": 64, "m": 2, "n": 4, "target_l0": 65}, "cannot exceed the dictionary width 64"),
        ("abs_topk", {"width": 8, "k": 9}, "cannot exceed the dictionary width"),
        ("matching_pursuit", {"width": 8, "k": 9}, "cannot exceed the dictionary width"),
        ("multi_topk", {"width": 15, "k": 4}, "multiple · k = 16 active latents cannot exceed the dictionary width 15"),
        ("multi_topk", {**TOPK, "multiple": 1}, "greater than or equal to 2"),
        ("p_anneal", {"width": 8, "p_end": 1}, "less than 1"),
        ("p_anneal", {"width": 8, "p_end": 0}, "greater than 0"),
        ("jumprelu", {"width": 8, "target_l0": 9}, "target_l0 = 9.0 cannot exceed the dictionary width 8"),
        ("untrained", {"width": 8, "k": 9}, "cannot exceed the dictionary width"),
        ("random_decoder", {"width": 8, "k": 9}, "cannot exceed the dictionary width"),
    ],
)
def test_impossible_options_are_refused_with_the_reason(variant: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VARIANTS[variant].model_validate(options)


def test_boosting_refuses_more_active_latents_than_it_has() -> None:
    with pytest.raises(ValidationError, match="cannot exceed the dictionary width 4"):
        BoostedOptions(base=TopKOptions(**TOPK), width=4, k=5)


BATCH = {"variant": "batch_topk", **TOPK}
BASE = {"variant": "topk", **TOPK}
BOOST = {"variant": "boosted", "base": BASE, "width": 8, "k": 2}


@pytest.mark.parametrize("variant", ["fine_tuned", "extended", "stitched"])
@pytest.mark.parametrize(
    ("base", "message"),
    [
        (BATCH, "the base has thresholds: say with k"),
        ({"variant": "jumprelu", "width": 64}, "the base has thresholds: say with k"),
        ({"variant": "sae_lens_gated", "width": 64, "l1": 1.0}, "the base has thresholds: say with k"),
        ({"variant": "fine_tuned", "base": BATCH, "k": 2}, "the base has thresholds: say with k"),
        ({"variant": "kron", **TOPK, "m": 2, "n": 4}, "'kron' is not one dictionary with a linear encoder"),
        ({"variant": "abs_topk", **TOPK}, "'abs_topk' is not one dictionary with a linear encoder"),
        ({"variant": "matching_pursuit", **TOPK}, "'matching_pursuit' is not one dictionary with a linear encoder"),
        (BOOST, "'boosted' is not one dictionary"),
        ({"variant": "mean"}, "'mean' is not one dictionary"),
        ("topk", "must be an SAE"),
    ],
    ids=lambda value: value["variant"] if isinstance(value, dict) else None,
)
def test_bases_that_cannot_be_trained_on_are_refused(variant: str, base: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VARIANTS[variant].model_validate({"base": base, "extra_width": 4} if variant == "extended" else {"base": base})


@pytest.mark.parametrize(
    ("variant", "options", "message"),
    [
        ("fine_tuned", {"k": 65}, "k = 65 active latents cannot exceed the dictionary width 64"),
        ("fine_tuned", {"base": BATCH, "k": 65}, "cannot exceed the dictionary width 64"),
        ("extended", {"extra_width": 8, "extra_k": 69}, r"k \+ extra_k = 73 active .* width 72"),
        ("extended", {"extra_width": 65, "init": "most_active"}, "only 64 latents to copy"),
        ("stitched", {"grafted": 65}, "the base has only 64 latents"),
        ("stitched", {"grafted": 1, "k": 65}, "cannot exceed the dictionary width"),
        ("boost_ensemble", {"boosts": []}, "at least 1"),
        ("boost_ensemble", {"boosts": [BASE]}, "'topk' cannot stand among the boosts"),
        ("boost_ensemble", {"boosts": [BOOST, {**BOOST, "base": BATCH}]}, "must have the same base"),
    ],
)
def test_what_a_base_is_too_small_for_is_refused(variant: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VARIANTS[variant].model_validate(options if "boosts" in options else {"base": BASE, **options})


def test_what_fits_a_base_is_taken() -> None:
    fitting: list[tuple[str, dict[str, Any], int, int | None]] = [
        ("fine_tuned", {"k": 64}, 64, 64),
        ("fine_tuned", {"base": BATCH, "k": 4}, 64, None),
        ("extended", {"extra_width": 80, "extra_k": 9}, 144, 13),
        ("extended", {"extra_width": 64, "init": "most_active"}, 128, 9),
        ("stitched", {"grafted": 64}, 64, 4),
        ("fine_tuned", {"base": {"variant": "extended", "base": BASE, "extra_width": 8, "extra_k": 1}}, 72, 5),
    ]
    for variant, options, latents, budget in fitting:
        made = VARIANTS[variant].model_validate({"base": BASE, **options})
        assert (made.latents, made.max_budget) == (latents, budget), (variant, options)
    assert BoostedOptions.model_validate(BOOST).latents == 72


def test_kron_counts_its_heads() -> None:
    assert KronOptions(width=64, k=4, m=2, n=4).head_count == 8
    assert KronOptions(width=64, k=4, m=2, n=4, heads=8).head_count == 8


def test_newer_options_of_training_are_written_only_where_they_are_used() -> None:
    """Keys and rows of specs that say nothing of them stay what they were."""
    newer = {"weight_decay", "schedule", "decay"}
    assert not newer & {*TrainingOptions().plain(), *TrainingOptions().determining()}
    used = TrainingOptions(weight_decay=0.01, schedule="linear", decay=0.2)
    assert {name: used.determining()[name] for name in newer} == {
        "weight_decay": 0.01,
        "schedule": "linear",
        "decay": 0.2,
    }
    assert TrainingOptions.model_validate(used.plain()) == used
    with pytest.raises(ValidationError, match="a constant learning rate has no decay"):
        TrainingOptions(schedule="constant", decay=0.5)


@pytest.mark.parametrize("variant", sorted(name for name, one in VARIANTS.items() if issubclass(one, AuxiliaryLoss)))
def test_the_kind_of_auxk_is_written_only_where_it_is_not_plain(variant: str) -> None:
    made = VARIANTS[variant].model_construct(variant=variant)
    assert "aux_loss" not in made.plain()
    assert made.model_copy(update={"aux_loss": "normalised"}).plain()["aux_loss"] == "normalised"


def test_budgets_are_known_where_they_are_fixed() -> None:
    assert TopKOptions(**TOPK).max_budget == 4
    assert KronOptions(**TOPK, m=2, n=4, selection="batch_topk").max_budget is None
    assert KronOptions(**TOPK, m=2, n=4).max_budget == 4
    assert UntrainedOptions(**TOPK).max_budget == 4
    assert MultiTopKOptions(**TOPK).max_budget == 16


@pytest.mark.parametrize(("d_in", "aux_k"), [(64, 32), (288, 128), (768, 512), (2304, 512), (1, 1)])
def test_aux_k_is_the_power_of_two_nearest_to_half_of_d_in(d_in: int, aux_k: int) -> None:
    assert default_aux_k(d_in) == aux_k


def test_cost_of_top_k() -> None:
    d, width, k = 768, 16384, 32
    wanted = SaeCost(parameters=2 * d * width + width + d, encoder=d * width, decoder=d * k)
    assert cost(TopKOptions(width=width, k=k), d) == wanted == linear_cost(d, width, k)
    assert cost(TopKOptions(width=width, k=k), d, active=30.5).decoder == d * 30.5


@pytest.mark.parametrize(
    ("m", "n", "ratio"),
    [(1, 8, 1.126), (1, 16, 1.063), (2, 4, 0.751), (2, 8, 0.626), (4, 4, 0.501), (4, 8, 0.376), (8, 8, 0.251)],
)
def test_kron_encoder_costs_the_published_share_of_top_k(m: int, n: int, ratio: float) -> None:
    """KronSAE's encoder width over F at d = 1536, pairs included (papers.md of the project, from eq. 7)."""
    kron, topk = KronOptions(width=32768, k=50, m=m, n=n), TopKOptions(width=32768, k=50)
    assert cost(kron, 1536).encoder / cost(topk, 1536).encoder == pytest.approx(ratio, abs=6e-4)


def test_matching_pursuit_compares_all_rows_once_per_step() -> None:
    assert cost(MatchingPursuitOptions(**TOPK), 24, active=3.5) == SaeCost(64 * 24 + 24, 4 * 64 * 24, 3.5 * 24)


def test_groups_of_kron_are_written_only_where_they_are_used() -> None:
    assert "groups" not in KronOptions(**TOPK, m=2, n=4).plain()
    assert KronOptions(**TOPK, m=2, n=4, groups=(16, 48)).plain()["groups"] == [16, 48]


def test_iso_flops_gives_the_cheaper_variant_more_tokens() -> None:
    topk, kron = cost(TopKOptions(width=4096, k=8), 128), cost(KronOptions(width=4096, k=8, m=4, n=8), 128)
    tokens = tokens_at_equal_cost(topk, 1_000_000, kron)
    assert tokens > 2_000_000
    assert tokens * kron.per_token == pytest.approx(1_000_000 * topk.per_token, rel=1e-5)


def test_cost_counts_real_parameters() -> None:
    import torch

    d = 24
    for options in (
        TopKOptions(**TOPK),
        KronOptions(**TOPK, m=2, n=4),
        StandardOptions(width=64),
        GatedOptions(width=64),
        JumpReLUOptions(width=64),
        AbsTopKOptions(**TOPK),
        MultiTopKOptions(**TOPK),
        MatchingPursuitOptions(**TOPK),
        PAnnealOptions(width=64),
        KronJumpReLUOptions(width=64, m=2, n=4),
        TranscoderOptions(**TOPK),
        TranscoderOptions(**TOPK, skip=True),
    ):
        sae = options.build(d, torch.Generator())
        assert cost(options, d, active=4).parameters == sum(p.numel() for p in sae.parameters()), options.variant


BASES = [
    TopKOptions(**TOPK),
    KronOptions(**TOPK, m=2, n=4),
    StandardOptions(width=64),
    GatedOptions(width=64),
    JumpReLUOptions(width=64),
    SaeLensGated(width=64, l1=1.0),
    SaeLensJumpReLU(width=64, l0=1.0),
]


@pytest.mark.parametrize("base", BASES, ids=lambda o: o.variant)
def test_the_cost_metric_counts_the_real_parameters_of_all_that_stands_on_a_base(base: Any) -> None:
    """The residuals' decoder bias is none: it stays zero. Decoding costs what is active in all."""
    import torch

    def stored(sae: torch.nn.Module) -> int:
        return sum(p.numel() for name, p in sae.named_parameters() if not name.startswith("residual.b_dec"))

    d, l0, generator = 24, 7.5, torch.Generator()
    options = [BoostedOptions(base=base, width=w, k=2) for w in (10, 20)]
    below = base.build(d, generator)
    boosts = [o.build(d, generator, (below,)) for o in options]
    both = EnsembleOptions(boosts=tuple(options))
    wanted = [
        (base, stored(below)),
        *((o, stored(below) + stored(boost)) for o, boost in zip(options, boosts, strict=True)),
        (both, stored(below) + sum(map(stored, boosts))),
    ]
    encoder = variant_cost(base, d, l0).encoder
    for section, parameters in wanted:
        values = {v.id: v.value for v in CostMetric().of_sae(section, d, section.latents or 94, l0)}
        assert values["cost.parameters"] == parameters, section.variant
        fixed = isinstance(base, TopKOptions | KronOptions)
        assert fixed or values["cost.decoder"] == d * l0
        extra = {"boosted": d * getattr(section, "width", 0), "boost_ensemble": d * 30}.get(section.variant, 0)
        assert values["cost.encoder"] == encoder + extra


def test_cost_of_controls_and_of_variants_on_a_base() -> None:
    d, base = 24, cost(TopKOptions(**TOPK), 24)
    assert cost(IdentityOptions(), d) == SaeCost(0, 0, 0)
    assert cost(MeanOptions(), d) == SaeCost(d, 0, 0)
    assert cost(PCAOptions(k=3), d) == SaeCost(4 * d, 3 * d, 3 * d)
    boosted = cost(BoostedOptions(base=TopKOptions(**TOPK), width=10, k=2), d, bases=(base,))
    assert boosted == SaeCost(base.parameters + 2 * d * 10 + 10, base.encoder + 10 * d, base.decoder + 2 * d)
    extended = ExtendedOptions(base=TopKOptions(**TOPK), extra_width=10, extra_k=2)
    assert cost(extended, d, bases=(base,)) == boosted
    assert cost(FineTunedOptions(base=TopKOptions(**TOPK)), d, bases=(base,)) == base
    with pytest.raises(ValueError, match="pass the measured L0"):
        cost(StandardOptions(width=64), d)
