"""Result files of SAEBench: `<release>_<sae>_eval_results.json`, in (of every layout) and, for core numbers, out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version

from latentbench.canonical import digest
from latentbench.errors import RefusedFile
from latentbench.exchange.foreign import Foreign, domain_of, mapping, metric_value, optional_mapping, text, word
from latentbench.exchange.sae_numbers import CENTRED, NAMES, numbers
from latentbench.exchange.saebench_layouts import Result, results
from latentbench.record import MetricValue, Record
from latentbench.section import Json

TOOL, OURS = "saebench", "latentbench"
CLASS_DEFAULTS = {"n_eval_reconstruction_batches": 10, "n_eval_sparsity_variance_batches": 1}
_DATE_LIMIT = 253402300800000  # the year 10000, in milliseconds
FIELDS = {
    "model_behavior_preservation": ("kl_div_score", "kl_div_with_ablation", "kl_div_with_sae"),
    "model_performance_preservation": (
        "ce_loss_score", "ce_loss_with_ablation", "ce_loss_with_sae", "ce_loss_without_sae",
    ),
    "reconstruction_quality": ("explained_variance", "explained_variance_legacy", "mse", "cossim"),
    "shrinkage": ("l2_norm_in", "l2_norm_out", "l2_ratio", "relative_reconstruction_bias"),
    "sparsity": ("l0", "l1"),
    "misc_metrics": (
        "freq_over_1_percent", "freq_over_10_percent", "normalized_freq_over_1_percent",
        "normalized_freq_over_10_percent", "average_max_encoder_cosine_sim", "average_max_decoder_cosine_sim",
        "frac_alive",
    ),
}  # fmt: skip
"""What the schema of core results requires, by category."""
CAUTIONS = {
    "tpp": "TPP at canonical settings ranks SAEs unreliably (arXiv 2605.18229).",
    "scr": "SCR at canonical settings ranks SAEs unreliably (arXiv 2605.18229).",
    "absorption_first_letter": "absorption_fraction changed about tenfold between SAEBench 0.3.2 and 0.6.0 under one name.",
    "autointerp": "Answering “none” to everything scores 0.714; windows labelled inactive may hold activations.",
}


_SETTINGS = ("num_bins", "k")
"""Of MDL, beside the numbers: what they were measured with."""


def read(data: Json, name: str) -> list[Foreign]:
    """The results in a file. Raises RefusedFile for what is not of a published layout, and where there is none."""
    found = [_read(result) for result in results(data, name)]
    if not found:
        raise RefusedFile(f"{name} holds no result")
    return found


def _read(result: Result) -> Foreign:
    whole, name = result.whole, result.where
    kind = text(whole.get("eval_type_id"), f"{name}: eval_type_id")
    config = mapping(whole.get("eval_config"), f"{name}: eval_config")
    metrics = mapping(whole.get("eval_result_metrics"), f"{name}: eval_result_metrics")
    if ours := _of_ours(whole):
        return _returned(whole, ours, name)
    warnings: list[str] = [CAUTIONS[kind]] if kind in CAUTIONS else []
    domain = domain_of(_dataset(config)) if kind == "core" else word(kind)
    if kind == "core":
        found, oddities = numbers(metrics, domain, centred=False, where=name)
        warnings += [*oddities, *_core_cautions(config, metrics)]
    else:
        found = list(_plain_numbers(metrics, kind, domain, name))
    if result.layout:
        warnings.append(
            f"A result of SAEBench of 2024, in its layout `{result.layout}`: what its numbers mean has changed since."
        )
    release, sae = (str(whole.get(key) or "unknown") for key in ("sae_lens_release_id", "sae_lens_id"))
    if "custom_sae" in (release, sae):
        warnings.append("SAEBench names every SAE of one's own `custom_sae`: which one it was is not in the file.")
    model, site = _model(config, whole)
    older = {"layout": result.layout} if result.layout else {}
    return Foreign(
        tool=TOOL,
        version=_version(whole),
        name=word(release),
        label=f"{word(sae)},{word(kind)}",
        metrics=tuple(found),
        facts={
            domain: {"imported": TOOL, "evaluation": kind, "model": model, "layer": site, "config": config, **older}
        },
        resolved={
            "model": {"id": model},
            "layer": site,
            "sae": {"load": {"adapter": "sae_lens", "release": release, "id": sae}},
        },
        created=_created(whole.get("datetime_epoch_millis")),
        warnings=tuple(warnings),
    )


def write(record: Record, domain: str) -> Json:
    """A record's numbers on one domain as a core result.

    `explained_variance` is the centred estimator. The comparability of the record goes along, so that importing the
    file gives the same numbers under the same names.
    """
    measured = {m.id: m.value for m in record.metrics if m.domain == domain and "budget" not in m.params}
    theirs = {name: measured.get(known.id) for name, known in NAMES.items()}
    theirs |= {"explained_variance": measured.get(CENTRED), "mse": None}
    dead = measured.get("dead_fraction")
    theirs["frac_alive"] = None if dead is None else 1 - dead
    data = mapping((record.resolved.get("dataset") or {}).get("eval", {}).get(domain, {}), "dataset")
    return {
        "eval_type_id": "core",
        "eval_config": {"model_name": _name_of(record.resolved.get("model")), "dataset": domain, "context_size": data.get("context")},
        "eval_id": f"{record.cell[:32]}",
        "datetime_epoch_millis": int(datetime.fromisoformat(record.created).timestamp() * 1000),
        "eval_result_metrics": {**_categories(theirs), "token_stats": _token_stats(record, domain)},
        "eval_result_details": [],
        "sae_bench_commit_hash": "none: measured by latentbench",
        "sae_lens_id": record.label or record.spec.name,
        "sae_lens_release_id": record.spec.name,
        "sae_lens_version": None,
        "sae_cfg_dict": record.resolved.get("sae"),
        "eval_result_unstructured": {OURS: _own(record, domain)},
    }  # fmt: skip


def _own(record: Record, domain: str) -> Json:
    agreed = record.comparability.get(domain)
    return {
        "version": version("latentbench"),
        "cell": record.cell,
        "spec": record.spec.name,
        "label": record.label,
        "seed": record.seed,
        "domain": domain,
        "comparability": agreed.plain() if agreed else None,
        "resolved": record.resolved,
        "metrics": [m.plain() for m in record.metrics if m.domain in (domain, None)],
    }


def _token_stats(record: Record, domain: str) -> Json:
    """The tokens that were looked at; 0 where the record does not count them."""
    dead = next((m for m in record.metrics if m.id == "dead_fraction" and m.domain == domain), None)
    tokens = dead.params.get("tokens", 0) if dead else 0
    return {"total_tokens_eval_reconstruction": tokens, "total_tokens_eval_sparsity_variance": tokens}


def _categories(theirs: Mapping[str, float | None]) -> Json:
    """Every field that the schema requires; −1, its sign for NaN, where we have no number of that definition."""
    return {
        category: {name: -1.0 if (value := theirs.get(name)) is None else value for name in names}
        for category, names in FIELDS.items()
    }


def _of_ours(whole: Mapping[str, Json]) -> dict[str, Json] | None:
    """What `write` put along; None for a file of SAEBench itself."""
    unstructured = whole.get("eval_result_unstructured")
    ours = unstructured.get(OURS) if isinstance(unstructured, dict) else None
    return ours if isinstance(ours, dict) else None


def _returned(whole: Mapping[str, Json], ours: Mapping[str, Json], name: str) -> Foreign:
    """A file that latentbench wrote: the same numbers and names; the facts count only if their key follows from them."""
    domain = text(ours.get("domain"), f"{name}: domain")
    agreed = mapping(ours.get("comparability") or {}, f"{name}: comparability")
    facts = mapping(agreed.get("fields") or {}, f"{name}: comparability.fields")
    if not facts or digest("comparability", facts) != agreed.get("key"):
        facts = {"imported": TOOL, "cell": ours.get("cell"), "domain": domain}
    listed = ours.get("metrics")
    if not isinstance(listed, list):
        raise RefusedFile(f"{name}: metrics must be a list")
    try:
        found = tuple(MetricValue.model_validate(metric) for metric in listed)
    except ValueError as error:
        raise RefusedFile(f"{name}: not numbers of latentbench: {str(error).splitlines()[0]}") from None
    seed = ours.get("seed")
    return Foreign(
        tool=OURS,
        version=str(ours.get("version")),
        name=text(ours.get("spec"), f"{name}: spec"),
        label=str(ours.get("label") or ""),
        metrics=found,
        facts={domain: facts},
        resolved=mapping(ours.get("resolved") or {}, f"{name}: resolved"),
        created=_created(whole.get("datetime_epoch_millis")),
        seed=seed if isinstance(seed, int) else 0,
    )


def _core_cautions(config: Mapping[str, Json], metrics: Mapping[str, Json]) -> Iterator[str]:
    quality = metrics.get("reconstruction_quality") or {}
    if "explained_variance" in quality:
        yield "explained_variance there mixes up E[x²] and E[x] (SAEBench ≤ 0.6.0): kept as `as_imported`, not ranked."
    if all(config.get(name) == default for name, default in CLASS_DEFAULTS.items()):
        yield "Measured with the class defaults of 10 and 1 batches, a hundredth of what the paper used."
    if config.get("exclude_special_tokens_from_reconstruction") is not True:
        yield "Special tokens were reconstructed too, which the paper's runs excluded."


def _plain_numbers(metrics: Mapping[str, Json], kind: str, domain: str, name: str) -> Iterator[MetricValue]:
    for category, values in metrics.items():
        listed = mapping(values, f"{name}: {category}")
        given = {key: value for key, value in listed.items() if _is_number(value)}
        params = {key: given.pop(key) for key in _SETTINGS if key in given}
        for key, value in given.items():
            id = f"saebench_{word(kind)}.{word(key)}"
            yield metric_value(id, value, unit="as reported", better=None, domain=domain, params=params)


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _dataset(config: Mapping[str, Json]) -> str:
    return str(config.get("dataset") or "data")


def _model(config: Mapping[str, Json], whole: Mapping[str, Json]) -> tuple[str, str | None]:
    sae = optional_mapping(whole.get("sae_cfg_dict"))
    both = {**optional_mapping(sae.get("metadata")), **sae}
    hook = both.get("hook_name")
    return str(both.get("model_name") or config.get("model_name") or "unknown"), None if hook is None else str(hook)


def _version(whole: Mapping[str, Json]) -> str | None:
    commit = whole.get("sae_bench_commit_hash")
    return str(commit)[:12] if commit else None


def _created(millis: Json) -> str | None:
    if not isinstance(millis, int) or isinstance(millis, bool) or not 0 <= millis < _DATE_LIMIT:
        return None
    return datetime.fromtimestamp(millis / 1000, UTC).isoformat(timespec="seconds")


def _name_of(model: Json) -> str:
    return str(model.get("id") or model.get("adapter")) if isinstance(model, dict) else str(model)
