"""Headless Chromium for tests of pages: `driver` in tests/e2e/conftest.py starts it, these speak to it."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver import ActionChains

CHROMIUM = os.environ.get("LATENTBENCH_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
CHROMEDRIVER = shutil.which("chromedriver")
HOSTILE = "</script><script>document.title=1</script><img src=x onerror=document.title=1>"
PHONE = 390
"""Width of a small phone, in CSS pixels."""
Browser = Any


@contextmanager
def started() -> Iterator[Browser]:
    """A browser of its own; without Chromium the test that asks for one skips and says so."""
    if not CHROMIUM or not CHROMEDRIVER:
        pytest.skip("no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1400,1000"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def opened(driver: Browser, page: Path, fragment: str = "", ready: str = "document.readyState === 'complete'") -> None:
    """The page, with empty logs and nothing remembered of the page before, once `ready` is true."""
    driver.get("about:blank")
    driver.get_log("browser")
    driver.get_log("performance")
    # Without it a page in the background, as every headless page may be, gets no focus events.
    driver.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
    driver.get(page.as_uri() + fragment)
    driver.execute_script("try { localStorage.clear() } catch {}")
    wait(driver, ready)


@contextmanager
def screen(driver: Browser, width: int = PHONE) -> Iterator[None]:
    """A screen of that width, a phone's when it is narrow."""
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 2, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        yield
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def wait(driver: Browser, condition: str) -> None:
    """Until a JavaScript expression is true; fails after ten seconds."""
    deadline = time.monotonic() + 10
    while not driver.execute_script(f"return {condition}"):
        assert time.monotonic() < deadline, f"never became true: {condition}"
        time.sleep(0.02)


def one(driver: Browser, selector: str) -> Any:
    """The first element of a CSS selector."""
    return driver.find_element("css selector", selector)


def texts(driver: Browser, selector: str) -> list[str]:
    """Text of every element of a CSS selector, hidden ones too."""
    script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
    return list(driver.execute_script(script, selector))


def press(driver: Browser, *keys: str) -> None:
    """Keys pressed and released, wherever the focus is."""
    ActionChains(driver).send_keys(*keys).perform()


def requested(driver: Browser) -> list[str]:
    """Addresses asked for since the log was last read."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def fetched(driver: Browser) -> str:
    """`refused` where the page's policy forbids to fetch from elsewhere."""
    script = (
        "const done = arguments[0]; fetch('https://example.org').then(() => done('fetched'), () => done('refused'))"
    )
    return str(driver.execute_async_script(script))


def contrast(first: str | Sequence[int], second: str | Sequence[int]) -> float:
    """Contrast of two colours (WCAG 2): `rgb(r, g, b)` or [r, g, b, …]."""
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str | Sequence[int]) -> float:
    parts = [int(x) / 255 for x in (re.findall(r"\d+", colour) if isinstance(colour, str) else colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
