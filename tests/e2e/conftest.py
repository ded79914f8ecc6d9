"""A browser for the tests of pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.browser import Browser, started


@pytest.fixture(scope="module")
def driver() -> Iterator[Browser]:
    """Headless Chromium, one for the tests of a file."""
    with started() as browser:
        yield browser
