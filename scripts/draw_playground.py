"""Take the pictures of the playground for the documentation, from the page on disk, or measure its frames.

    python scripts/draw_playground.py [FOLDER]      docs/images: playground.gif and pictures of chapters
    python scripts/draw_playground.py --all FOLDER  every chapter at three widths, light and dark
    python scripts/draw_playground.py --frames      times between frames while it moves, with a slowed processor

It needs chromium and chromium-driver. Build the page first, with `make web`.
"""

from __future__ import annotations

import argparse
import io
import math
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "playground/static/index.html").as_uri()
CHAPTERS = re.findall(
    r'"([a-z0-9-]+)"', (ROOT / "playground/web/src/tour.ts").read_text().split("SLUGS = [")[1].split("]")[0]
)
WIDTHS = {1440: 900, 1024: 768, 390: 844}
"""Widths in CSS pixels, with their heights."""

PICTURES = {
    "inside-desktop": (1440, "light", "layer-1"),
    "inside-neuron": (1440, "dark", "weights"),
    "inside-phone": (390, "dark", "draw"),
}
"""File -> width, colour scheme, chapter."""

THREE = [
    (radius * math.cos(math.radians(angle)), y + radius * math.sin(math.radians(angle)))
    for y, radius, angles in ((-44, 42, range(-160, 81, 20)), (40, 46, range(-80, 161, 20)))
    for angle in angles
]
"""A stroke, in pixels from the middle of a pad of 280."""

FILM = (1280, 720)
"""Size of the animation in CSS pixels; it is shown at 70%."""
TENTH = 100
"""Milliseconds per frame of the animation."""

THROTTLING = {390: (1, 4, 6), 1440: (1,)}
"""Slowdown of this machine's processor, by width."""

FRAMES = """
const done = arguments[arguments.length - 1], times = [], ends = performance.now() + arguments[0];
const play = document.getElementById("play");
let last = 0;
requestAnimationFrame(function next(now) {
  if (last) times.push(now - last);
  last = now;
  if (play.getAttribute("aria-label") === "Play") play.click();
  if (performance.now() < ends) requestAnimationFrame(next); else done(times);
});
"""


def main() -> None:
    """Run the command that the arguments select."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "docs/images", help="folder of the pictures")
    parser.add_argument("--all", action="store_true", help="every chapter at three widths, light and dark")
    parser.add_argument("--frames", action="store_true", help="measure the frames instead")
    args = parser.parse_args()
    browser = _browser()
    try:
        if args.frames:
            _measure(browser)
        elif args.all:
            _take_all(browser, args.folder)
        else:
            _take_pictures(browser, args.folder)
            _film(browser, args.folder / "playground.gif")
    finally:
        browser.quit()


def _browser() -> Any:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver") or ""))


def _open(browser: Any, width: int, height: int, scheme: str, chapter: str, motion: str = "reduce") -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 2 if width < 500 else 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
    features = [{"name": name, "value": value} for name, value in media.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get("about:blank")
    browser.get(f"{PAGE}#/{chapter}")
    browser.execute_async_script("document.fonts.ready.then(arguments[0])")


def _go(browser: Any, chapter: str) -> None:
    browser.execute_script("location.hash = arguments[0]", f"#/{chapter}")
    _settle(browser)


def _settle(browser: Any) -> None:
    """Wait until the page is painted."""
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(arguments[0])))")


def _take_all(browser: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for width, height in WIDTHS.items():
        for scheme in ("light", "dark"):
            _open(browser, width, height, scheme, "draw")
            for chapter in CHAPTERS:
                _go(browser, chapter)
                if chapter == "centring":
                    _draw(browser, [(x / 3 - 70, y / 3 - 60) for x, y in THREE])
                _settle(browser)
                browser.save_screenshot(str(folder / f"{width}-{scheme}-{chapter}.png"))
    print(f"wrote {len(WIDTHS) * 2 * len(CHAPTERS)} pictures to {folder}")


def _take_pictures(browser: Any, folder: Path) -> None:
    for name, (width, scheme, chapter) in PICTURES.items():
        _open(browser, width, WIDTHS[width], scheme, chapter)
        _draw(browser, THREE)
        _settle(browser)
        shown = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
        path = folder / f"{name}.png"
        # A palette by area would omit the accents, which are thin.
        shown.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1).save(path, optimize=True)
        print(f"wrote {path}")


def _film(browser: Any, path: Path) -> None:
    """Record the drawing of a digit, its flow through the network, and three chapters."""
    _open(browser, *FILM, "dark", "draw")
    browser.find_element(By.ID, "clear").click()
    frames = [*_drawing(browser), *_playing(browser, 22), *_still(browser, 6)]
    for chapter, n in (("weights", 10), ("sum", 14), ("sigmoid", 9), ("layer-2", 9)):
        _go(browser, chapter)
        frames += [*_playing(browser, n), *_still(browser, 6)]
    small = [frame.resize((FILM[0] * 7 // 10, FILM[1] * 7 // 10), Image.Resampling.LANCZOS) for frame in frames]
    palette = _palette(small)
    shown = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in small]
    shown[0].save(path, save_all=True, append_images=shown[1:], duration=TENTH, loop=0, optimize=True)
    print(f"wrote {path}: {len(frames)} frames, {path.stat().st_size / 1e3:,.0f} kB")


def _drawing(browser: Any) -> Iterator[Image.Image]:
    for last in range(4, len(THREE) + 1, 3):
        browser.find_element(By.ID, "clear").click()
        _draw(browser, THREE[:last])
        yield _shot(browser)


def _playing(browser: Any, n: int) -> Iterator[Image.Image]:
    for i in range(n + 1):
        browser.execute_script(
            "const scrub = document.getElementById('scrub'); scrub.value = arguments[0];"
            "scrub.dispatchEvent(new Event('input'))",
            1000 * i // n,
        )
        yield _shot(browser)


def _still(browser: Any, n: int) -> Iterator[Image.Image]:
    yield from [_shot(browser)] * n


def _shot(browser: Any) -> Image.Image:
    _settle(browser)
    return Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")


def _palette(frames: list[Image.Image]) -> Image.Image:
    """Create one palette for all frames, so that unchanged areas keep their colour."""
    chosen = frames[:: max(1, len(frames) // 6)]
    width, height = chosen[0].size
    sheet = Image.new("RGB", (width, height * len(chosen)))
    for i, frame in enumerate(chosen):
        sheet.paste(frame, (0, i * height))
    return sheet.quantize(64, Image.Quantize.MAXCOVERAGE, kmeans=1)


def _draw(browser: Any, stroke: list[tuple[float, float]]) -> None:
    pad = browser.find_element(By.ID, "pad")
    scale = pad.size["width"] / 280
    (x, y), *others = [(round(x * scale), round(y * scale)) for x, y in stroke]
    pen = ActionChains(browser, duration=20).move_to_element_with_offset(pad, x, y).click_and_hold()
    for x, y in others:
        pen.move_to_element_with_offset(pad, x, y)
    pen.release().perform()


def _measure(browser: Any) -> None:
    print("| width | processor | chapter | frames/s | median ms | p95 ms | main thread, ms a frame |")
    print("|---:|---:|---|---:|---:|---:|---:|")
    browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    for width, rates in THROTTLING.items():
        for rate in rates:
            for chapter in ("draw", "sum", "layer-1", "layer-2", "learning"):
                browser.execute_cdp_cmd("Emulation.setCPUThrottlingRate", {"rate": 1})
                _open(browser, width, WIDTHS[width], "dark", chapter, "no-preference")
                browser.execute_cdp_cmd("Emulation.setCPUThrottlingRate", {"rate": rate})
                time.sleep(0.5)
                before = _busy(browser)
                times = sorted(browser.execute_async_script(FRAMES, 3000))
                each = (_busy(browser) - before) * 1e3 / len(times)
                median, p95 = times[len(times) // 2], times[int(0.95 * len(times))]
                rate_shown = 1000 * len(times) / sum(times)
                print(f"| {width} | 1/{rate} | {chapter} | {rate_shown:.0f} | {median:.1f} | {p95:.1f} | {each:.1f} |")


def _busy(browser: Any) -> float:
    """Return the seconds of work of the page's main thread."""
    metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return float(next(one["value"] for one in metrics if one["name"] == "TaskDuration"))


if __name__ == "__main__":
    main()
