"""The wheel as others install it: beside packages whose import names a folder of this repository has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BESIDE = "adapters==1.3.0"
"""AdapterHub's package, used with transformers by many: its import name is `adapters`. Its own requirements are older than
ours, so it is found here and not run."""
SCRIPT = """
import importlib.metadata as metadata, importlib.util as util, sysconfig
here = [sysconfig.get_paths()["purelib"]]
found = [next(iter(metadata.Distribution.discover(name=name, path=here))) for name in ("latentbench", "adapters")]
ours, theirs = ({str(file) for file in one.files} for one in found)
assert not ours & theirs, sorted(ours & theirs)
tops = {name.partition("/")[0] for name in ours if name.endswith(".py")}
assert tops == {"latentbench", "latentbench_adapters"}, tops
import latentbench.cli.app, latentbench_adapters.pocket.adapter
from latentbench.core.paths import Roots
assert latentbench_adapters.pocket.adapter.PocketModel().identity(Roots("."))  # its weights are there too
from latentbench_adapters.lm_eval.catalogue import OWN_TASKS
assert all(list(folder.glob("*.yaml")) for folder in OWN_TASKS)
assert "site-packages/adapters/" in util.find_spec("adapters").origin
print(latentbench.cli.app.__file__)
"""


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "", **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_and_adapterhubs_adapters_stand_beside_each_other(tmp_path: Path) -> None:
    source, wheels, fresh = tmp_path / "source", tmp_path / "wheels", tmp_path / "venv"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("harness", "adapters"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--wheel-dir", wheels, source)
    try:
        run(*pip, "download", "--no-deps", "--dest", wheels, BESIDE)
    except AssertionError as error:
        pytest.skip(f"{BESIDE} cannot be had here: {str(error).strip().splitlines()[-1]}")
    run(sys.executable, "-m", "venv", fresh)
    python = fresh / "bin/python"
    run(python, "-m", "pip", "--quiet", "install", "--no-deps", *wheels.glob("*.whl"))
    # What both stand on comes from the environment of the tests; installing it again would take minutes.
    where = run(python, "-c", SCRIPT, PYTHONPATH=sysconfig.get_paths()["purelib"])
    assert Path(where.strip()).is_relative_to(fresh)
