"""The parts that the playground's tests share: its gateway to a real server, and a real browser."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from conftest import ANSWERS_WITHIN, ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Test
    from selenium.webdriver import Chrome

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
_has_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no browser: install chromium and chromium-driver (Debian's packages)"
)
STATIC = ROOT / "playground" / "static"
RAW = "application/octet-stream"
SEVEN = [(-60, -72), (0, -74), (60, -72), (35, -10), (10, 40), (-10, 85)]
"""Strokes, in pixels from the middle of a pad of 280."""


def needs_browser(test: Test) -> Test:
    """Mark a test as slow, and skip it without a browser."""
    return pytest.mark.slow(_has_browser(test))


@contextlib.contextmanager
def page_of(address: str, *arguments: str | Path) -> Iterator[str]:
    """Start `python -m playground` for that server; yield the page's address."""
    command = [sys.executable, "-m", "playground", "--address", address, "--port", "0", *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line.startswith("look inside at http://127.0.0.1:"), line
            yield line.split()[-1]
        finally:
            process.terminate()
    assert process.returncode in (0, -signal.SIGTERM)


def get(page: str, path: str) -> Any:
    with urllib.request.urlopen(f"{page}/{path}", timeout=ANSWERS_WITHIN) as reply:
        return json.load(reply)


def post(page: str, path: str, body: bytes, kind: str = RAW) -> Any:
    request = urllib.request.Request(f"{page}/{path}", body, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=ANSWERS_WITHIN) as reply:
        return json.load(reply)


@contextlib.contextmanager
def started_chrome() -> Iterator[Chrome]:
    from selenium import webdriver  # noqa: PLC0415 (the modules that use it are skipped without it)

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    driver.set_script_timeout(ANSWERS_WITHIN)  # axe checks more than 100 rows
    try:
        yield driver
    finally:
        driver.quit()


def size(chrome: Chrome, width: int, height: int, scheme: str = "light", motion: str = "reduce") -> None:
    """Set the window's size and the user's preferences; without motion by default, for stable clicks."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
    features = [{"name": name, "value": value} for name, value in media.items()]
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def until(true: Any) -> None:
    """Wait until the condition is true, or fail the test."""
    ends = time.monotonic() + ANSWERS_WITHIN
    while not true():
        assert time.monotonic() < ends, f"condition still false after {ANSWERS_WITHIN} s"
        time.sleep(0.02)
