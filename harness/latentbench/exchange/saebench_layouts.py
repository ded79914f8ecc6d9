"""The layouts that SAEBench's result files had, each read into today's.

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

from latentbench.errors import RefusedFile
from latentbench.exchange.foreign import mapping, optional_mapping
from latentbench.section import Json


@dataclass(frozen=True)
class Result:
    """One result in today's layout."""

    where: str
    whole: Mapping[str, Json]
    layout: str | None = None
    """The older layout it was in."""


_Reader = Callable[[Mapping[str, Json], str, str], Iterator[Result]]
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


def results(data: Json, file: str) -> Iterator[Result]:
    """The results in a file. Raises RefusedFile for whatever else stands among them."""
    if not isinstance(data, list):
        yield from _results(data, file)
        return
    for number, entry in enumerate(data):
        yield from _results(entry, f"{file}[{number}]")


def _results(data: Json, where: str) -> Iterator[Result]:
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


def _today(data: Mapping[str, Json], where: str, name: str) -> Iterator[Result]:
    yield Result(where, data)


def _without_categories(data: Mapping[str, Json], where: str, name: str) -> Iterator[Result]:
    found = data["eval_results"]
    listed = {str(number): entry for number, entry in enumerate(found)} if isinstance(found, list) else {"all": found}
    whole = {
        **data,
        "eval_result_metrics": {n: mapping(entry, f"{where}: eval_results.{n}") for n, entry in listed.items()},
        "sae_lens_release_id": data.get("sae_lens_release"),
        "sae_bench_commit_hash": data.get("sae_bench_version"),
        "datetime_epoch_millis": _millis(data.get("date_time")),
    }
    yield Result(where, whole, "eval_results")


def _score(data: Mapping[str, Json], where: str, name: str) -> Iterator[Result]:
    parts = _JOINED.fullmatch(name)
    release, sae = parts.groups() if parts else (None, name)
    whole = {"eval_type_id": "autointerp", "eval_config": {}, "eval_result_metrics": data}
    yield Result(where, {**whole, "sae_lens_release_id": release, "sae_lens_id": sae}, _SCORE)


def _by_sae(data: Mapping[str, Json], where: str, name: str) -> Iterator[Result]:
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
        yield Result(at, whole, "custom_eval_results")


def _basic(data: Mapping[str, Json], where: str, name: str) -> Iterator[Result]:
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
        yield Result(at, whole, "basic_eval_results")


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
