"""Result files of SAEBench (`<release>_<sae>_eval_results.json`): import of every layout, export of core numbers.

The layouts that these files had, each read into today's:

=========================  =============  ============================================================================
layout                     in use         what a file is
=========================  =============  ============================================================================
(today's)                  since 10/2024  `eval_type_id`, `eval_config`, `eval_result_metrics` by category; one SAE, or, from
                                          autointerp and unlearning, `{name: result}`
`eval_results`             10–11/2024     the same without categories, dates as text; also `{name: result}`. MDL lists one
                                          result per setting
`autointerp_metrics`       11/2024        `{name: {"autointerp_metrics": numbers}}`, without configuration
`custom_eval_results`      09–11/2024     numbers by SAE and one `custom_eval_config`; what kind of evaluation it was only
                                          the names of its numbers tell. Numbers by dataset beside it are details
`basic_eval_results`       09–11/2024     `<release>_data.json`: losses and sparsity by SAE, measured by dictionary_learning,
                                          with the configurations of the SAEs
=========================  =============  ============================================================================

Numbers of all but today's core results keep SAEBench's names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

from latentbench.core.errors import RefusedFile
from latentbench.core.hashing import digest
from latentbench.core.protocols import model_name
from latentbench.core.spec_model import Json
from latentbench.exchange.foreign import ForeignResult, domain_of, mapping, metric_value, optional_mapping, text, word
from latentbench.exchange.sae_metrics import CENTRED, NAMES, numbers
from latentbench.metrics.value import MetricValue
from latentbench.records.record import Record


@dataclass(frozen=True)
class SaeBenchResult:
    """One result in today's layout."""

    where: str
    whole: Mapping[str, Json]
    layout: str | None = None
    """The older layout it was in."""


_Reader = Callable[[Mapping[str, Json], str, str], Iterator[SaeBenchResult]]
"""Takes an object, where it stands and the name it stands under."""
_BESIDE = ("custom_eval_config",)
"""What `{name: result}` files may hold besides results."""
_SCORE = "autointerp_metrics"
_JOINED = re.compile(r"(.+?)_((?:blocks\.|layer_)\d.*)", re.DOTALL)
"""How a release and an SAE of it are joined to a name."""
_SELECTION = ("selected_saes_dict", "sae_releases", "sae_release", "trainer_ids", "include_checkpoints")
"""Parts of a configuration that say which SAEs were looked at, not how."""
_KINDS = (
    ("scr_", "scr"), ("tpp_", "tpp"), ("sae_top_", "sparse_probing"), ("sae_test_", "sparse_probing"),
    ("mean_absorption", "absorption"), ("unlearning_", "unlearning"), ("autointerp_", "autointerp"),
)  # fmt: skip
"""How the numbers of an evaluation begin."""
_DATA = "_data.json"
_LONGEST_NAME = 80


def recognises(data: Json) -> bool:
    """Whether this is a result of SAEBench in any layout, or holds one."""
    return any(_reader(entry) or _wrapped(entry) for entry in (data if isinstance(data, list) else [data]))


def results(data: Json, file: str) -> Iterator[SaeBenchResult]:
    """The results in a file. Raises RefusedFile for whatever else stands among them."""
    if not isinstance(data, list):
        yield from _results(data, file)
        return
    for number, entry in enumerate(data):
        yield from _results(entry, f"{file}[{number}]")


def _results(data: Json, where: str) -> Iterator[SaeBenchResult]:
    """Those of one object, which may be `{name: result}`."""
    one = _reader(data) is not None or not _wrapped(data)
    named = [("", data)] if one else [item for item in data.items() if item[0] not in _BESIDE]
    for key, entry in named:
        at = f"{where}: {key[:_LONGEST_NAME]}" if key else where
        reader = _reader(entry)
        if reader is None:
            raise RefusedFile(f"{at} is no result of SAEBench, as others in this file are")
        yield from reader(entry, at, key)


def _wrapped(data: Json) -> bool:
    return isinstance(data, dict) and any(_reader(entry) for entry in data.values())


def _reader(data: Json) -> _Reader | None:
    if not isinstance(data, dict):
        return None
    if "eval_type_id" in data:
        return _today if "eval_result_metrics" in data else _without_categories if "eval_results" in data else None
    if "custom_eval_results" in data:
        return _by_sae
    if "basic_eval_results" in data:
        return _basic
    return _score if data.keys() == {_SCORE} else None


def _today(data: Mapping[str, Json], where: str, name: str) -> Iterator[SaeBenchResult]:
    yield SaeBenchResult(where, data)


def _without_categories(data: Mapping[str, Json], where: str, name: str) -> Iterator[SaeBenchResult]:
    found = data["eval_results"]
    listed = {str(number): entry for number, entry in enumerate(found)} if isinstance(found, list) else {"all": found}
    whole = {
        **data,
        "eval_result_metrics": {n: mapping(entry, f"{where}: eval_results.{n}") for n, entry in listed.items()},
        "sae_lens_release_id": data.get("sae_lens_release"),
        "sae_bench_commit_hash": data.get("sae_bench_version"),
        "datetime_epoch_millis": _millis(data.get("date_time")),
    }
    yield SaeBenchResult(where, whole, "eval_results")


def _score(data: Mapping[str, Json], where: str, name: str) -> Iterator[SaeBenchResult]:
    parts = _JOINED.fullmatch(name)
    release, sae = parts.groups() if parts else (None, name)
    whole = {"eval_type_id": "autointerp", "eval_config": {}, "eval_result_metrics": data}
    yield SaeBenchResult(where, {**whole, "sae_lens_release_id": release, "sae_lens_id": sae}, _SCORE)


def _by_sae(data: Mapping[str, Json], where: str, name: str) -> Iterator[SaeBenchResult]:
    config = mapping(data.get("custom_eval_config") or {}, f"{where}: custom_eval_config")
    settings = {key: value for key, value in config.items() if key not in _SELECTION}
    for sae, at, values in _entries(data, "custom_eval_results", where):
        release = _release(config, sae)
        whole = {
            "eval_type_id": next((kind for prefix, kind in _KINDS if any(n.startswith(prefix) for n in values)), "custom"),
            "eval_config": settings,
            "eval_result_metrics": {"all": values},
            "sae_lens_release_id": release,
            "sae_lens_id": sae.removeprefix(f"{(release or '').removeprefix('sae_bench_')}/"),
        }  # fmt: skip
        yield SaeBenchResult(at, whole, "custom_eval_results")


def _basic(data: Mapping[str, Json], where: str, name: str) -> Iterator[SaeBenchResult]:
    configs = optional_mapping(data.get("sae_config_dictionary_learning"))
    release = where.removesuffix(_DATA) if where.endswith(_DATA) else None
    for sae, at, values in _entries(data, "basic_eval_results", where):
        config = optional_mapping(configs.get(sae))
        trainer = optional_mapping(config.get("trainer"))
        whole = {
            "eval_type_id": "basic",
            "eval_config": optional_mapping(values.get("hyperparameters")),
            "eval_result_metrics": {"all": values},
            "sae_lens_release_id": release,
            "sae_lens_id": sae.removeprefix(f"{(release or '').removeprefix('sae_bench_')}/"),
            "sae_cfg_dict": {
                **config,
                "model_name": trainer.get("lm_name"),
                "hook_name": trainer.get("submodule_name"),
            },
        }
        yield SaeBenchResult(at, whole, "basic_eval_results")


def _entries(data: Mapping[str, Json], key: str, where: str) -> Iterator[tuple[str, str, dict[str, Json]]]:
    """The SAEs with where each stands and its numbers."""
    for sae, values in mapping(data[key], f"{where}: {key}").items():
        at = f"{where}: {sae[:_LONGEST_NAME]}"
        yield sae, at, mapping(values, at)


def _release(config: Mapping[str, Json], sae: str) -> str | None:
    """The release an SAE is of, as far as the configuration tells."""
    selected = optional_mapping(config.get("selected_saes_dict"))
    listing = [release for release, saes in selected.items() if isinstance(saes, list | dict) and sae in saes]
    every = config.get("sae_releases")
    known: list[Json] = [
        *listing,
        config.get("sae_release"),
        *(every if isinstance(every, list) and len(every) == 1 else []),
    ]
    return next((release for release in known if isinstance(release, str)), None)


def _millis(date: Json) -> int | None:
    """An ISO date, in UTC where it does not say, as milliseconds since 1970."""
    try:
        when = datetime.fromisoformat(date if isinstance(date, str) else "")
        return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        return None


TOOL, OURS = "saebench", "latentbench"
CLASS_DEFAULTS = {"n_eval_reconstruction_batches": 10, "n_eval_sparsity_variance_batches": 1}
"""Of SAEBench's configuration class: a file with both was measured by somebody who set neither."""
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
"""What MDL writes beside its numbers and measured them with: parameters, not numbers."""


def read(data: Json, name: str) -> list[ForeignResult]:
    """The results in a file. Raises RefusedFile for what is not of a published layout, and where there is none."""
    found = [_read(result) for result in results(data, name)]
    if not found:
        raise RefusedFile(f"{name} holds no result")
    return found


def _read(result: SaeBenchResult) -> ForeignResult:
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
    return ForeignResult(
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


def _returned(whole: Mapping[str, Json], ours: Mapping[str, Json], name: str) -> ForeignResult:
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
    return ForeignResult(
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
    return model_name(model)
