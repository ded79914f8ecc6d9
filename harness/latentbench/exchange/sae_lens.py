"""Evaluations of sae-lens (`python -m sae_lens.evals`): a JSON per SAE, all of them in one JSON, or a CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping

from latentbench.core.errors import RefusedFile
from latentbench.core.spec_model import Json
from latentbench.exchange.foreign import DEEPEST, ForeignResult, domain_of, mapping, optional_mapping, text, word
from latentbench.exchange.sae_metrics import numbers

TOOL = "sae_lens"
_REQUIRED = {"unique_id", "eval_cfg", "metrics"}
_CENTRED_SINCE = (6, 54)
"""The first version seen to compute the centred explained variance; of earlier ones that is not certain."""
_MAX_COLUMNS = 2000


def recognises(data: Json) -> bool:
    """Whether this is a result of sae-lens, or a list of them."""
    first = data[0] if isinstance(data, list) and data else data
    return isinstance(first, dict) and first.keys() >= _REQUIRED


def read(data: Json, name: str) -> list[ForeignResult]:
    """The results of a file. Raises RefusedFile."""
    entries = data if isinstance(data, list) else [data]
    return [_read(mapping(entry, f"{name}[{i}]"), f"{name}[{i}]") for i, entry in enumerate(entries)]


def read_csv(content: bytes, name: str) -> list[ForeignResult]:
    """The rows of `all_eval_results.csv`, whose columns are dotted paths. Raises RefusedFile."""
    try:
        csv.field_size_limit(1 << 26)
        rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig")), strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise RefusedFile(f"{name} is not CSV: {error}") from None
    columns = set(rows[0]) if rows else set()
    if not rows or len(columns) > _MAX_COLUMNS or None in columns or not {"unique_id", "eval_cfg.dataset"} <= columns:
        raise RefusedFile(f"{name} is not a table of sae-lens: it must have rows and a column unique_id")
    return [_read(_nested(row, f"{name}, line {i + 2}"), f"{name}, line {i + 2}") for i, row in enumerate(rows)]


def _read(entry: Mapping[str, Json], where: str) -> ForeignResult:
    config = mapping(entry.get("eval_cfg"), f"{where}: eval_cfg")
    dataset = text(config.get("dataset"), f"{where}: eval_cfg.dataset")
    domain = domain_of(dataset)
    version = config.get("library_version")
    centred = _version(version) >= _CENTRED_SINCE
    metrics = mapping(entry.get("metrics"), f"{where}: metrics")
    found, warnings = numbers(metrics, domain, centred=centred, where=where)
    if not centred and any(m.id.endswith("variance.as_imported") for m in found):
        warnings.append("explained_variance of this version may mix up E[x²] and E[x]: not ranked.")
    model, site = _model(mapping(entry.get("sae_cfg") or {}, f"{where}: sae_cfg"))
    # Batches decide which tokens were read; the git hash and switches do not, and must not keep rows apart.
    settings = {
        k: config.get(k)
        for k in sorted(config)
        if k.startswith(("n_eval", "batch")) or k in ("context_size", "exclude_special_tokens")
    }
    return ForeignResult(
        tool=TOOL,
        version=None if version is None else str(version),
        name=word(str(entry.get("sae_set") or entry["unique_id"])),
        label=word(str(entry.get("sae_id") or entry["unique_id"])),
        metrics=tuple(found),
        facts={domain: {"imported": TOOL, "version": version, "model": model, "layer": site, "dataset": dataset, **settings}},
        resolved={
            "model": {"id": model},
            "layer": site,
            "sae": {"load": {"adapter": TOOL, "release": entry.get("sae_set"), "id": entry.get("sae_id")}},
        },
        warnings=tuple(warnings),
    )  # fmt: skip


def _model(config: Mapping[str, Json]) -> tuple[str, str | None]:
    both = {**config, **optional_mapping(config.get("metadata"))}
    hook = both.get("hook_name")
    return str(both.get("model_name") or "unknown"), None if hook is None else str(hook)


def _version(value: Json) -> tuple[int, int]:
    match = re.match(r"(\d{1,6})\.(\d{1,6})", str(value or ""))
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _nested(row: Mapping[str, str | None], where: str) -> dict[str, Json]:
    """`metrics.sparsity.l0` → {"metrics": {"sparsity": {"l0": …}}}; columns of single features are left out."""
    made: dict[str, Json] = {}
    for path, cell in row.items():
        if cell in (None, "") or path.startswith("feature_metrics"):
            continue
        *way, last = path.split(".")
        if len(way) >= DEEPEST:
            raise RefusedFile(f"{where}: a column's path has more than {DEEPEST} parts")
        place: Json = made
        for step in way:
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                raise RefusedFile(f"{where}: column {path!r} stands below one that holds a value")
        place[last] = _cell(str(cell)) if way and way[0] in ("metrics", "eval_cfg") else cell
    return made


def _cell(text: str) -> Json:
    """A number where it is one; NaN is no number."""
    if re.fullmatch(r"[+-]?\d+", text) and len(text) < 19:
        return int(text)
    try:
        value = float(text)
    except ValueError:
        return text
    return value if value == value and abs(value) != float("inf") else None
