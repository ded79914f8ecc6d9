"""The cache of what follows from files: what was put in comes out, and whatever is wrong with its file, nothing raises."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentbench.store import derived
from latentbench.store.derived import DERIVED, Derived

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text(alphabet="0123456789abcdef", min_size=4, max_size=8), JSON, max_size=6))
def test_what_was_put_in_comes_out(tmp_path_factory: pytest.TempPathFactory, values: dict) -> None:
    kept = Derived(tmp_path_factory.mktemp("store"))
    kept.put_many("numbers/1", values)
    assert kept.get_many("numbers/1", [*values, "ffffffffff"]) == values
    assert kept.get_many("numbers/2", list(values)) == {}, "another namespace knows nothing of them"


def test_thousands_of_keys_are_asked_for_at_once_and_the_last_value_holds(tmp_path: Path) -> None:
    kept = Derived(tmp_path / "not" / "there")
    kept.put_many("a", {f"{i:04x}": [i] for i in range(3000)})
    kept.put_many("a", {f"{i:04x}": [-i] for i in range(0, 3000, 2)})
    found = kept.get_many("a", [f"{i:04x}" for i in range(4000)])
    assert found == {f"{i:04x}": [i if i % 2 else -i] for i in range(3000)}


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "altered", "folder"])
def test_a_damaged_file_counts_as_empty_and_is_used_again(tmp_path: Path, damage: str) -> None:
    kept = Derived(tmp_path)
    kept.put_many("a", {f"{i:04x}": ["x" * 100, i] for i in range(500)})
    whole = kept.path.read_bytes()
    changed = {"truncated": whole[:5000], "garbage": os.urandom(9000), "empty": b""}
    if damage == "folder":
        kept.path.unlink()
        kept.path.mkdir()
    elif damage == "altered":
        at = whole.index(b'"' + b"x" * 100) + 20
        kept.path.write_bytes(whole[:at] + b"y" + whole[at + 1 :])
    else:
        kept.path.write_bytes(changed[damage])
    found = kept.get_many("a", [f"{i:04x}" for i in range(500)])
    assert all(value == ["x" * 100, int(key, 16)] for key, value in found.items()), "no altered value comes out"
    kept.put_many("b", {"0000": 1})
    kept.put_many("b", {"0000": 1})  # the first may only have found out that the file is no database
    assert kept.get_many("b", ["0000"]) == ({} if damage == "folder" else {"0000": 1})


def test_one_altered_value_costs_no_others(tmp_path: Path) -> None:
    kept = Derived(tmp_path)
    kept.put_many("a", {"00": 1, "01": 2})
    with sqlite3.connect(kept.path) as database:
        database.execute("UPDATE derived SET value = '7' WHERE key = '00'")
    database.close()
    assert kept.get_many("a", ["00", "01"]) == {"01": 2}


def test_a_folder_that_cannot_be_written_means_working_it_out_again(tmp_path: Path) -> None:
    file = tmp_path / "store"
    file.write_text("a file where the store would be")
    kept = Derived(file)
    kept.put_many("a", {"00": 1})
    assert kept.get_many("a", ["00"]) == {}


def test_a_locked_file_is_not_waited_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derived, "_WAIT", 0.05)
    kept = Derived(tmp_path)
    kept.put_many("a", {"00": 1})
    holder = sqlite3.connect(kept.path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    assert kept.get_many("a", ["00"]) == {}
    kept.put_many("a", {"01": 2})
    holder.execute("COMMIT")
    holder.close()
    assert kept.get_many("a", ["00", "01"]) == {"00": 1}


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from latentbench.store.derived import Derived\n"
        "for i in range(40): Derived(Path(sys.argv[1])).put_many('a', {f'{sys.argv[2]}{i:03x}': [i] * 20})"
    )
    made = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path), name]) for name in "bcd"]
    assert [process.wait(60) for process in made] == [0, 0, 0]
    found = Derived(tmp_path).get_many("a", [f"{name}{i:03x}" for name in "bcd" for i in range(40)])
    assert len(found) == 120
    assert all(value == [int(key[1:], 16)] * 20 for key, value in found.items())


def test_the_file_does_not_grow_beyond_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derived, "LIMIT", 200_000)
    kept = Derived(tmp_path)
    for i in range(100):
        kept.put_many("a", {f"{i:04x}": "x" * 10_000})
    assert kept.path.stat().st_size < 300_000
    found = kept.get_many("a", [f"{i:04x}" for i in range(100)])
    assert "0063" in found, "the newest stays"
    assert "0000" not in found, "the oldest went"


def test_planning_does_not_load_the_database() -> None:
    program = "import sys, latentbench.plan.plan, latentbench.cli.app, latentbench.store.derived; sys.exit('sqlite3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_removing_is_for_good(tmp_path: Path) -> None:
    kept = Derived(tmp_path)
    kept.put_many("a", {"00": 1})
    kept.remove()
    kept.remove()
    assert not (tmp_path / DERIVED).exists()
    assert kept.get_many("a", ["00"]) == {}
