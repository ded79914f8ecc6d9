"""Results of the LM Evaluation Harness (`results_*.json`): every task is a domain, every metric and filter a number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from latentbench.core.errors import RefusedFile
from latentbench.core.spec_model import Json
from latentbench.exchange.foreign import ForeignResult, domain_of, mapping, metric_value, word
from latentbench.metrics.value import MetricValue

TOOL = "lm_eval"
_NOT_NUMBERS = frozenset({"alias", "name", "sample_len", "sample_count", " "})
_MODEL = ("pretrained", "model", "path")


def recognises(data: Json) -> bool:
    """Whether this is a result of lm-eval."""
    return (
        isinstance(data, dict)
        and isinstance(data.get("results"), dict)
        and {"versions", "configs"} & data.keys() != set()
    )


def read(data: Json, name: str) -> ForeignResult:
    """A result. Raises RefusedFile."""
    whole = mapping(data, name)
    tasks = {
        task: mapping(v, f"{name}: results.{task}") for task, v in mapping(whole["results"], f"{name}: results").items()
    }
    found = tuple(number for task, values in tasks.items() for number in _numbers(whole, task, values, name))
    if not found:
        raise RefusedFile(f"{name}: no task of results has a number")
    domains = {domain_of(task): task for task in tasks}
    if len(domains) < len(tasks):
        raise RefusedFile(f"{name}: two tasks have the same name when written as words: {', '.join(tasks)}")
    config = mapping(whole.get("config") or {}, f"{name}: config")
    model, steered = _model(whole, config), config.get("model") == "steered"
    return ForeignResult(
        tool=TOOL,
        version=str(whole["lm_eval_version"]) if whole.get("lm_eval_version") else None,
        name=word(model),
        label="steered" if steered else "",
        metrics=found,
        facts={domain: _facts(whole, config, task, model) for domain, task in domains.items()},
        resolved={"model": {"id": model}, **({"steering": {"method": "lm_eval steered"}} if steered else {})},
        created=_created(whole.get("date")),
        warnings=tuple(_cautions(config, steered)),
    )


def _numbers(whole: Mapping[str, Json], task: str, values: Mapping[str, Json], name: str) -> Iterator[MetricValue]:
    better = mapping(
        mapping(whole.get("higher_is_better") or {}, "higher_is_better").get(task) or {}, "higher_is_better"
    )
    counts = mapping(mapping(whole.get("n-samples") or {}, "n-samples").get(task) or {}, "n-samples")
    n = counts.get("effective")
    for key, value in values.items():
        metric, _, chosen = key.partition(",")
        if key in _NOT_NUMBERS or metric.endswith("_stderr") or value in ("N/A", " "):
            continue
        direction = better.get(metric)
        yield metric_value(
            f"lm_eval.{word(metric)}",
            value,
            unit="as reported",
            better=direction if isinstance(direction, bool) else None,
            domain=domain_of(task),
            n=n if isinstance(n, int) and n > 0 else None,
            params={} if chosen in ("", "none") else {"filter": chosen},
            stderr=values.get(f"{metric}_stderr,{chosen}"),
            what=f"{name}: results.{task}.{key}",
        )


def _facts(whole: Mapping[str, Json], config: Mapping[str, Json], task: str, model: str) -> dict[str, Json]:
    def of(key: str) -> Json:
        found = whole.get(key)
        return found.get(task) if isinstance(found, dict) else None

    return {
        "imported": TOOL,
        "task": task,
        "version": of("versions"),
        "n-shot": of("n-shot"),
        "n-samples": of("n-samples"),
        "task_hash": of("task_hashes"),
        "limit": config.get("limit"),
        "generation": config.get("gen_kwargs"),
        "chat_template": whole.get("chat_template_sha"),
        "system_instruction": whole.get("system_instruction_sha"),
        "model": model,
    }


def _model(whole: Mapping[str, Json], config: Mapping[str, Json]) -> str:
    arguments = config.get("model_args")
    if isinstance(arguments, str):
        arguments = dict(part.split("=", 1) for part in arguments.split(",") if "=" in part)
    stated = arguments if isinstance(arguments, dict) else {}
    return str(whole.get("model_name") or next((stated[k] for k in _MODEL if stated.get(k)), "unknown"))


def _cautions(config: Mapping[str, Json], steered: bool) -> Iterator[str]:
    if config.get("limit") is not None:
        yield f"Only a part of each task was run (limit {config['limit']})."
    if steered and config.get("use_cache"):
        yield "lm-eval's cache does not know the steering vector: these may be the numbers of another coefficient."


def _created(date: Json) -> str | None:
    try:
        return datetime.fromtimestamp(float(date), UTC).isoformat(timespec="seconds")
    except (TypeError, ValueError, OverflowError, OSError):
        return None
