"""Small files of others: what is too large, no JSON or no number is refused with where it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from latentbench.core import untrusted_files
from latentbench.core.errors import NotAvailable, RefusedFile
from latentbench.core.untrusted_files import config_object, optional_positive, positive, read_json


@pytest.mark.parametrize("value", [0, -1, 2.0, "3", True, [1]])
def test_only_whole_numbers_from_one_on_are_sizes(value: Any) -> None:
    with pytest.raises(RefusedFile, match=r"x/cfg\.json: d_in must be a whole number of at least 1"):
        positive({"d_in": value}, "d_in", "x/cfg.json")


def test_a_size_may_be_absent_where_it_is_optional() -> None:
    assert optional_positive({"d_in": None}, "d_in", "x") is None
    assert optional_positive({}, "d_in", "x") is None
    assert positive({"d_in": 7}, "d_in", "x") == 7
    with pytest.raises(RefusedFile, match="x: d_in is missing"):
        positive({}, "d_in", "x")


def test_a_configuration_is_an_object() -> None:
    assert config_object({"k": 1}, "x") == {"k": 1}
    with pytest.raises(RefusedFile, match="x must hold a JSON object"):
        config_object([1], "x")


def test_configurations_are_read_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.json"
    with pytest.raises(NotAvailable, match="No such file"):
        read_json(file)
    file.write_text('{"k": 1}')
    assert read_json(file) == {"k": 1}
    for broken in ("{", "[" * 100_000, ""):
        file.write_text(broken)
        with pytest.raises(RefusedFile, match="is not JSON"):
            read_json(file)
    monkeypatch.setattr(untrusted_files, "_MAX_CONFIG", 4)
    file.write_text('{"k": 1}')
    with pytest.raises(RefusedFile, match="larger than a configuration"):
        read_json(file)
