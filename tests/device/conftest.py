"""Tests of what is another thing on a GPU: kernels, training, process groups, models. `make gpu` runs them there.

`pytest tests/device --device cuda`. Without the option they take the GPU where there is one, and otherwise the CPU: that only
shows that the tests themselves are right, and is left to the slow tests.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default=None, help="Where the device tests run: cpu, cuda or cuda:N.")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the tests run, with its number."""
    # Not known where pytest was called for all folders: options of one of them are then not looked for.
    name = request.config.getoption("--device", default=None) or ("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device("cuda:0" if name == "cuda" else name)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--device", default=None) or torch.cuda.is_available():
        return
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.slow)
