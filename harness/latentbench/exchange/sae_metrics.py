"""Numbers that SAEBench's core evaluation and sae-lens' evaluator report, under our names.

Both write the same nested categories. A number of the same definition gets our id; one of another definition gets an id
of its own and no direction, and is shown but never ranked:

=============================  ==========================================================================================
theirs                         ours
=============================  ==========================================================================================
`explained_variance`           `explained_variance.centred` where the tool's version computes that, else
                               `explained_variance.as_imported`: older code adds Σ(E x²)² where Σ(E x)² is meant
`explained_variance_legacy`    `explained_variance.token_ratio` (mean over batches instead of the whole domain)
`ce_loss_*`, `kl_div_*`        `cross_entropy.*`; zero-ablation there hits special tokens too, with us it does not
`mse`                          `mse.as_imported`: summed over dimensions, and in SAEBench divided by the batch size again
`frac_alive`                   `dead_fraction` = 1 − frac_alive, over the tokens that were looked at
`cossim`, `l2_ratio`, `l0`     `cosine`, `norm_ratio`, `l0`
=============================  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from latentbench.core.errors import RefusedFile
from latentbench.core.spec_model import Json
from latentbench.exchange.foreign import MINUS_ONE, mapping, metric_value, optional_mapping
from latentbench.metrics.value import MetricValue

CATEGORIES = (
    "model_behavior_preservation", "model_performance_preservation", "reconstruction_quality", "shrinkage", "sparsity",
    "misc_metrics",
)  # fmt: skip
CENTRED, AS_IMPORTED = "explained_variance.centred", "explained_variance.as_imported"


@dataclass(frozen=True)
class MetricName:
    """Our name of a foreign number."""

    id: str
    unit: str
    better: bool | None


NAMES: Mapping[str, MetricName] = {
    "explained_variance_legacy": MetricName("explained_variance.token_ratio", "fraction", True),
    "kl_div_score": MetricName("cross_entropy.kl_recovered", "fraction", True),
    "kl_div_with_sae": MetricName("cross_entropy.kl", "nats/token", False),
    "kl_div_with_ablation": MetricName("cross_entropy.kl_zero", "nats/token", None),
    "ce_loss_score": MetricName("cross_entropy.loss_recovered_zero", "fraction", True),
    "ce_loss_with_sae": MetricName("cross_entropy.sae", "nats/token", False),
    "ce_loss_without_sae": MetricName("cross_entropy.clean", "nats/token", None),
    "ce_loss_with_ablation": MetricName("cross_entropy.zero", "nats/token", None),
    "mse": MetricName("mse.as_imported", "as reported", None),
    "cossim": MetricName("cosine", "cosine", True),
    "l2_ratio": MetricName("norm_ratio", "ratio", None),
    "l0": MetricName("l0", "latents/token", None),
}
RANKED_EV, UNRANKED_EV = MetricName(CENTRED, "fraction", True), MetricName(AS_IMPORTED, "as reported", None)


def numbers(
    metrics: Mapping[str, Json], domain: str, *, centred: bool, where: str
) -> tuple[list[MetricValue], list[str]]:
    """The numbers of a result's categories, and what is odd about them. Raises RefusedFile."""
    given = {name: value for category in CATEGORIES for name, value in _flat(metrics, category, where)}
    if not given:
        raise RefusedFile(f"{where} has none of the categories {', '.join(CATEGORIES)}")
    tokens = optional_mapping(metrics.get("token_stats")).get("total_tokens_eval_sparsity_variance")
    names = {**NAMES, "explained_variance": RANKED_EV if centred else UNRANKED_EV}
    found = [
        _dead(value, domain, tokens) if name == "frac_alive" else _named(name, value, names.get(name), domain, where)
        for name, value in given.items()
    ]
    increase = _increase(given, domain)
    return [*found, *([increase] if increase else [])], list(_oddities(found))


def _named(name: str, value: Json, known: MetricName | None, domain: str, where: str) -> MetricValue:
    known = known or MetricName(f"{name}.as_imported", "as reported", None)
    what = f"{where}: {name}"
    return _checked(metric_value(known.id, value, unit=known.unit, better=known.better, domain=domain, what=what))


def _flat(metrics: Mapping[str, Json], category: str, where: str) -> Iterator[tuple[str, Json]]:
    if metrics.get(category) is not None:
        yield from mapping(metrics[category], f"{where}.{category}").items()


def _dead(alive: Json, domain: str, tokens: Json) -> MetricValue:
    made = metric_value("dead_fraction", alive, unit="fraction", better=False, domain=domain, what="frac_alive")
    if made.value is None or not 0 <= made.value <= 1:
        return made.model_copy(update={"value": None, "null_reason": made.null_reason or MINUS_ONE})
    params = {"tokens": tokens} if isinstance(tokens, int) and tokens > 0 else {}
    return made.model_copy(update={"value": 1 - made.value, "params": params})


def _checked(made: MetricValue) -> MetricValue:
    """−1 stands for NaN in both tools."""
    if made.value != -1:
        return made
    return made.model_copy(update={"value": None, "null_reason": MINUS_ONE, "ci": None})


def _oddities(found: list[MetricValue]) -> Iterator[str]:
    if missing := [m.id for m in found if m.null_reason == MINUS_ONE]:
        yield f"−1, which both tools write for NaN, is taken as missing: {', '.join(missing)}"
    for m in found:
        if m.id.startswith("explained_variance") and m.value is not None and m.value > 1:
            yield f"{m.id} is {m.value:.4g}: no explained variance exceeds 1"


def _increase(found: Mapping[str, Json], domain: str) -> MetricValue | None:
    sae, clean = (_number(found.get(name)) for name in ("ce_loss_with_sae", "ce_loss_without_sae"))
    if sae is None or clean is None:
        return None
    return metric_value("cross_entropy.increase", sae - clean, unit="nats/token", better=False, domain=domain)


def _number(value: Json) -> float | None:
    return float(value) if isinstance(value, int | float) and value != -1 else None
