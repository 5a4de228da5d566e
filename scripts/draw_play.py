"""Takes the pictures of the page for the documents, and measures what passes from a stroke to its answer.

python scripts/draw_play.py [FOLDER]     needs model.onnx, chromium and chromium-driver
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

FOLDER = Path("docs/images")
SEVEN = [(-60, -72), (0, -74), (60, -72), (35, -10), (10, 40), (-10, 85)]
THREE = [
    (round(radius * math.cos(math.radians(angle))), round(y + radius * math.sin(math.radians(angle))))
    for y, radius, angles in ((-44, 42, range(-160, 81, 20)), (40, 46, range(-80, 161, 20)))
    for angle in angles
]
"""Pixels from the pad's middle."""

WARM_UP = 10

SCENES: dict[str, tuple[int, int, str, str]] = {
    "page": (1280, 818, "dark", ""),
    "inside-desktop": (1440, 880, "light", ""),
    "inside-neuron": (1440, 880, "dark", "first"),
    "inside-phone": (390, 1660, "dark", ""),
}
"""File -> width and height in pixels, colour scheme, and the layer of the neuron that is looked at."""


def main() -> None:
    """Serve the model and the page on free ports, draw, and write the pictures."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    service = _started("service", "--port", "0", "--metrics-port", "0", "--log-format", "json", stderr=subprocess.PIPE)
    assert service.stderr is not None
    address = _first_match(service.stderr, r'"address": ?"([^"]+)"')
    page = _started("playground", "--address", address, "--port", "0", stdout=subprocess.PIPE)
    assert page.stdout is not None
    browser = _browser()
    try:
        url = _first_match(page.stdout, r"(http://\S+)")
        for name, scene in SCENES.items():
            _take(browser, url, scene, folder / f"{name}.png")
        _measure(browser, url)
    finally:
        browser.quit()
        for process in (page, service):
            process.terminate()
            process.wait()


def _started(module: str, *arguments: str, **pipes: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", module, *arguments], text=True, **pipes)  # type: ignore[call-overload, no-any-return]


def _first_match(lines: IO[str], pattern: str) -> str:
    for line in lines:
        if match := re.search(pattern, line):
            return str(match[1])
    sys.exit(f"it ended without saying {pattern}")


def _browser() -> Any:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or sys.exit("no chromium: apt install chromium chromium-driver")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver") or ""))


def _open(browser: Any, url: str, width: int, height: int, scheme: str) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(url)
    time.sleep(1)


def _take(browser: Any, url: str, scene: tuple[int, int, str, str], path: Path) -> None:
    width, height, scheme, layer = scene
    _open(browser, url, width, height, scheme)
    _warm_up(browser)
    if layer:
        browser.find_elements(By.CSS_SELECTOR, "#samples button")[4].click()
        time.sleep(1)
        browser.execute_script("document.querySelectorAll('.cell')[5].focus()")
    else:
        _draw(browser, THREE if path.stem == "page" else SEVEN)
    time.sleep(1.5)
    browser.save_screenshot(str(path))
    # A palette by area alone has no place for the accents, which are thin.
    shown = Image.open(path).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1)
    shown.save(path, optimize=True)
    print(f"wrote {path}: {browser.find_element(By.ID, 'verdict').text}")


def _measure(browser: Any, url: str) -> None:
    _open(browser, url, 1440, 860, "light")
    _warm_up(browser)
    _draw(browser)
    time.sleep(1)
    print(browser.find_element(By.ID, "latency").get_attribute("textContent"))


def _warm_up(browser: Any) -> None:
    """Sevens, so that the time on the page is not that of its first strokes alone."""
    for _ in range(WARM_UP):
        _draw(browser)
        time.sleep(0.3)
        browser.find_element(By.ID, "clear").click()


def _draw(browser: Any, stroke: list[tuple[int, int]] = SEVEN) -> None:
    pad = browser.find_element(By.ID, "pad")
    scale = pad.size["width"] / 280
    (x, y), *others = [(round(x * scale), round(y * scale)) for x, y in stroke]
    pen = ActionChains(browser, duration=60).move_to_element_with_offset(pad, x, y).click_and_hold()
    for x, y in others:
        pen.move_to_element_with_offset(pad, x, y)
    pen.release().perform()


if __name__ == "__main__":
    main()
