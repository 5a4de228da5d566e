"""The playground in a real browser: from disk and with a real server, by pointer, keyboard and swipe, on a phone."""

from __future__ import annotations

import base64
import io
import re
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest
from conftest import ROOT, launch, serving
from digitserve_client.image import read_bytes
from http_requests import http_address
from PIL import Image, ImageDraw, ImageOps
from playground_page import SEVEN, STATIC, needs_browser, page_of, size, started_chrome, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from selenium.webdriver import Chrome

pytest.importorskip("selenium", reason="selenium is not installed: pip install -e '.[dev]'")
axe = pytest.importorskip("axe_core_python.base", reason="axe-core-python is not installed: pip install -e '.[dev]'")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

FROM_DISK = (STATIC / "index.html").as_uri()
SLUGS = re.findall(
    r'"([a-z0-9-]+)"', (ROOT / "playground/web/src/tour.ts").read_text().split("SLUGS = [")[1].split("]")[0]
)
SAMPLES = 10 + 6
ROWS = """return [...document.querySelectorAll(arguments[0])].map(
    (row) => [...row.cells].map((cell) => cell.textContent))"""


@pytest.fixture(scope="module")
def page(model_path: Path) -> Iterator[str]:
    """A page with one server on the default transport; the page does not depend on the transport."""
    with serving(model_path) as service, page_of(service.address) as address:
        yield address


@pytest.fixture(scope="module")
def chrome() -> Iterator[Chrome]:
    with started_chrome() as driver:
        yield driver


@pytest.fixture
def browser(chrome: Chrome) -> Chrome:
    """The page from disk, without a server."""
    size(chrome, 1440, 900)
    opened(chrome, FROM_DISK)
    return chrome


def opened(chrome: Chrome, page: str, chapter: str = "draw") -> None:
    chrome.get("about:blank")  # otherwise a new chapter alone would not load the page
    chrome.get(f"{page}#/{chapter}")
    until(lambda: len(chrome.find_elements(By.CSS_SELECTOR, ".samples button")) == SAMPLES)


def text(browser: Chrome, element: str) -> str:
    return str(browser.find_element(By.ID, element).get_property("textContent"))


def said(browser: Chrome) -> str:
    return text(browser, "verdict")


def one(digit: int) -> str:
    return f"an {digit}" if digit == 8 else f"a {digit}"


def reads(browser: Chrome, digit: int) -> bool:
    return text(browser, "digit") == str(digit) and f"Reads {one(digit)}," in said(browser)


def take(browser: Chrome, label: int) -> None:
    browser.find_elements(By.CSS_SELECTOR, "#samples button")[label].click()


def press(browser: Chrome, element: str) -> None:
    browser.find_element(By.ID, element).click()


def draw(browser: Chrome, places: list[tuple[int, int]]) -> None:
    pad = browser.find_element(By.ID, "pad")
    scale = pad.size["width"] / 280
    (x, y), *others = [(round(x * scale), round(y * scale)) for x, y in places]
    pen = ActionChains(browser, duration=20).move_to_element_with_offset(pad, x, y).click_and_hold()
    for x, y in others:
        pen.move_to_element_with_offset(pad, x, y)
    pen.release().perform()


def slide(browser: Chrome, element: str, value: float) -> None:
    """Move a slider to a value, as a user does."""
    browser.execute_script(
        "const one = document.getElementById(arguments[0]); one.value = arguments[1];"
        "one.dispatchEvent(new Event('input', { bubbles: true }))",
        element,
        value,
    )


def pixels(browser: Chrome) -> np.ndarray:
    """Return the pixels that the page classifies, (784,)."""
    return np.array(browser.execute_script("return playground.pixels()"), np.uint8)


def on_the_pad(browser: Chrome) -> np.ndarray:
    """Return the client's pixels of the drawing on the pad, (784,)."""
    drawn = browser.execute_script("return document.getElementById('pad').toDataURL()")
    return read_bytes(base64.b64decode(drawn.split(",")[1]), polarity="light-on-dark")[0]


def inked(browser: Chrome) -> float:
    """Return the mean of the pad, 0 to 255."""
    drawn = browser.execute_script("return document.getElementById('pad').toDataURL()")
    return float(np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn.split(",")[1]))).convert("L")).mean())


def drawn_seven() -> bytes:
    picture, content = Image.new("RGBA", (280, 280), "black"), io.BytesIO()
    ImageDraw.Draw(picture).line([(140 + x, 140 + y) for x, y in SEVEN], fill="white", width=22, joint="curve")
    picture.save(content, "PNG")
    return content.getvalue()


# --- from disk, without a server -------------------------------------------------------------------------------------


@needs_browser
@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_the_page_computes_the_results_of_onnx_runtime(
    browser: Chrome, make_model: Callable[..., Path], digits: np.ndarray, activation: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 784), dtype=np.uint8)
    images = np.concatenate([digits, noise])
    session = onnxruntime.InferenceSession(make_model(activation), providers=["CPUExecutionProvider"])
    expected = session.run(["layer1", "layer2", "activations", "digit"], {"pixels": images})
    script = "return arguments[0].map((pixels) => playground.read(pixels, arguments[1]))"
    found = browser.execute_script(script, images.tolist(), activation)
    for layer in range(3):
        np.testing.assert_allclose([answer["layers"][layer] for answer in found], expected[layer], rtol=1e-5, atol=1e-5)
    assert [answer["digit"] for answer in found] == expected[3].tolist()


@needs_browser
def test_from_disk_an_example_is_read_without_network_requests(browser: Chrome) -> None:
    browser.get_log("browser")
    until(lambda: reads(browser, 7))
    asked = browser.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert {address.partition(":")[0] for address in asked} <= {"file", "data"}
    assert text(browser, "served") == "computed in this page"
    assert not browser.find_element(By.ID, "photograph").is_displayed()
    assert browser.get_log("browser") == []


@needs_browser
def test_a_seven_drawn_with_the_pointer_is_read_as_one(browser: Chrome) -> None:
    draw(browser, SEVEN)
    until(lambda: reads(browser, 7))
    assert browser.find_element(By.ID, "stage").get_attribute("aria-label").startswith("The network. Shown: output 7,")


@needs_browser
@pytest.mark.parametrize(
    "strokes",
    [
        SEVEN,
        [(-120, -120), (-60, -125), (-100, -50)],
        [(90, -100), (90, 100)],
        [(x, y) for i, y in enumerate(range(-110, 111, 20)) for x in ((-100, 100) if i % 2 else (100, -100))],
    ],
    ids=["seven", "in the corner", "a line", "dense"],
)
def test_the_page_makes_of_a_drawing_the_same_pixels_as_the_client(
    browser: Chrome, strokes: list[tuple[int, int]]
) -> None:
    draw(browser, strokes)
    until(lambda: said(browser).startswith("Reads"))
    difference = np.abs(pixels(browser).astype(int) - on_the_pad(browser))
    assert difference.max() <= 1, "the rounding of a half depends on the version of Pillow"
    assert (difference == 0).mean() > 0.99


@needs_browser
def test_a_digit_in_a_corner_is_shown_before_and_after_it_is_moved(browser: Chrome) -> None:
    draw(browser, [(-120, -120), (-60, -125), (-100, -50)])
    until(lambda: said(browser).startswith("Reads"))
    browser.find_element(By.LINK_TEXT, "Why was my digit moved?").click()
    until(lambda: text(browser, "title") == "Why was my digit moved?")
    assert re.search(r"Without this step it reads \d \(activation 0\.\d\d\)\. With it: 7", text(browser, "words"))


@needs_browser
def test_a_stroke_on_a_sample_begins_a_new_drawing(browser: Chrome) -> None:
    take(browser, 4)
    until(lambda: reads(browser, 4))
    draw(browser, [(0, -90), (0, 90)])
    until(lambda: reads(browser, 1))


@needs_browser
def test_the_eraser_takes_ink_away_and_undo_brings_it_back(browser: Chrome) -> None:
    draw(browser, SEVEN)
    full = inked(browser)
    press(browser, "eraser")
    draw(browser, [(-60, -72), (60, -72)])
    erased = inked(browser)
    assert erased < 0.8 * full
    press(browser, "undo")
    assert inked(browser) == full
    until(lambda: reads(browser, 7))
    press(browser, "undo")
    assert inked(browser) == 0
    assert said(browser).endswith(" is drawn yet.")
    assert not browser.find_element(By.ID, "undo").is_enabled()


@needs_browser
@pytest.mark.parametrize("width", [1440, 390])
def test_the_pen_is_as_broad_as_the_pad_is_large(chrome: Chrome, width: int) -> None:
    size(chrome, width, 844)
    opened(chrome, FROM_DISK)
    chrome.find_element(By.ID, "pad").send_keys(Keys.SPACE)
    pen, pad = (chrome.find_element(By.ID, name).rect["width"] for name in ("pen", "pad"))
    assert pen / pad == pytest.approx(20 / 256, rel=0.05)


@needs_browser
@pytest.mark.parametrize(("start", "end"), [("#draw-title", "#verdict"), ("#title", "#words"), ("#pad", "#title")])
def test_a_stroke_from_outside_the_pad_or_over_its_edge_selects_no_text(browser: Chrome, start: str, end: str) -> None:
    pad, first, last = (browser.find_element(By.CSS_SELECTOR, name) for name in ("#pad", start, end))
    ActionChains(browser, duration=20).move_to_element(first).click_and_hold().move_to_element(pad).move_by_offset(
        -20, 80
    ).perform()
    until(lambda: said(browser).startswith("Reads"))
    ActionChains(browser, duration=20).move_to_element(last).perform()
    assert browser.execute_script("return getSelection().toString()") == ""
    ActionChains(browser).release().perform()
    assert browser.execute_script("return getSelection().toString()") == ""


@needs_browser
def test_a_dot_is_too_little_for_a_digit(browser: Chrome) -> None:
    press(browser, "clear")
    press(browser, "pad")
    until(lambda: said(browser).endswith(": too little yet for a digit."))


@needs_browser
def test_the_keyboard_alone_draws_a_one(browser: Chrome) -> None:
    browser.find_element(By.ID, "pad").send_keys(Keys.SPACE, *[Keys.ARROW_DOWN] * 17, Keys.SPACE)
    until(lambda: reads(browser, 1))


@needs_browser
def test_the_keyboard_walks_the_network(browser: Chrome) -> None:
    stage = browser.find_element(By.ID, "stage")
    stage.send_keys(Keys.ARROW_LEFT)
    until(lambda: "Shown: layer 2, neuron" in stage.get_attribute("aria-label"))
    stage.send_keys(Keys.ARROW_LEFT)
    until(lambda: "Shown: layer 1, neuron" in stage.get_attribute("aria-label"))
    before = stage.get_attribute("aria-label")
    stage.send_keys(Keys.ARROW_DOWN)
    until(lambda: stage.get_attribute("aria-label") != before)
    assert text(browser, "title") == "A network reads a digit", "the arrow keys stay on the stage"
    assert text(browser, "lens-caption").startswith("Layer 1, neuron")


@needs_browser
def test_samples_are_clear_or_hard_and_named_so(browser: Chrome) -> None:
    wrong = 0
    for row, name in (("samples", r"A handwritten (\d)"), ("hard", r"A (\d) that is hard to read")):
        for button in browser.find_elements(By.CSS_SELECTOR, f"#{row} button"):
            label = re.fullmatch(name, button.get_attribute("aria-label"))
            assert label
            button.click()
            mistaken = said(browser).endswith(f"; it is {one(int(label[1]))}.")
            assert mistaken != reads(browser, int(label[1]))
            wrong += mistaken
            assert not (mistaken and row == "samples")
    assert wrong


@needs_browser
def test_the_tables_hold_every_number_that_is_shown(browser: Chrome) -> None:
    take(browser, 2)
    browser.find_element(By.CSS_SELECTOR, "summary").click()
    until(lambda: len(browser.find_elements(By.CSS_SELECTOR, "#tables tbody tr")) == 42)
    answer = browser.execute_script("return playground.read(playground.pixels())")
    rows = browser.execute_script(ROWS, "#tables tbody tr")
    expected = [value for layer in (2, 0, 1) for value in answer["layers"][layer]]
    np.testing.assert_allclose([float(row[1]) for row in rows], expected, atol=6e-7)
    body = np.array(
        [[float(cell) for cell in row[1:]] for row in browser.execute_script(ROWS, "#looked tbody tr")[:16]]
    )
    np.testing.assert_allclose(body[:, 0] * body[:, 1], body[:, 2], atol=1e-5)
    foot = browser.execute_script(ROWS, "#looked tfoot tr")
    assert body[:, 2].sum() + float(foot[0][-1]) == pytest.approx(float(foot[1][-1]), abs=1e-4)


# --- the tour --------------------------------------------------------------------------------------------------------


@needs_browser
def test_next_and_back_go_through_every_chapter_and_each_has_its_own_address(browser: Chrome) -> None:
    titles = []
    for slug in SLUGS:
        assert browser.execute_script("return location.hash") == f"#/{slug}"
        titles.append(text(browser, "title"))
        assert browser.title.startswith(titles[-1])
        assert text(browser, "words").strip()
        if slug != SLUGS[-1]:
            press(browser, "next")
            until(lambda: text(browser, "title") != titles[-1])
    assert len(set(titles)) == len(SLUGS)
    assert not browser.find_element(By.ID, "next").is_displayed()
    press(browser, "previous")
    until(lambda: text(browser, "title") == titles[-2])


@needs_browser
@pytest.mark.parametrize("slug", ["sigmoid", "gallery", "service"])
def test_a_link_leads_into_a_chapter(chrome: Chrome, slug: str) -> None:
    size(chrome, 1440, 900)
    opened(chrome, FROM_DISK, slug)
    current = chrome.find_element(By.CSS_SELECTOR, "#chapters a[aria-current]")
    assert current.get_attribute("href").endswith(f"#/{slug}")
    assert text(chrome, "title") == current.get_attribute("aria-label")


@needs_browser
def test_the_keyboard_goes_through_the_chapters(browser: Chrome) -> None:
    body = browser.find_element(By.TAG_NAME, "body")
    for key, place in ((Keys.ARROW_RIGHT, "1 of"), (Keys.PAGE_DOWN, "2 of"), (Keys.ARROW_LEFT, "1 of")):
        body.send_keys(key)
        until(lambda place=place: text(browser, "place").startswith(place))
    assert browser.switch_to.active_element.get_attribute("id") == "title"


@needs_browser
def test_a_swipe_turns_the_page(chrome: Chrome) -> None:
    size(chrome, 390, 844)
    opened(chrome, FROM_DISK, "bias")
    for start, end, title in ((300, 60, "The sigmoid"), (60, 300, "The bias")):
        for kind, x in (
            ("touchStart", start),
            ("touchMove", (start + end) // 2),
            ("touchMove", end),
            ("touchEnd", None),
        ):
            points = [] if x is None else [{"x": x, "y": 150}]
            chrome.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        until(lambda title=title: text(chrome, "title") == title)


@needs_browser
def test_the_chapters_show_the_numbers_of_the_picture(browser: Chrome) -> None:
    take(browser, 3)
    answer = browser.execute_script("return playground.read(playground.pixels())")
    browser.execute_script("location.hash = '#/sigmoid'")
    until(lambda: text(browser, "title") == "The sigmoid")
    slide(browser, "first", 11)
    until(lambda: f"{answer['layers'][0][11]:.3f}" in text(browser, "words"))
    browser.execute_script("location.hash = '#/outputs'")
    until(lambda: f"Here: 3 with {answer['layers'][2][3]:.2f}" in text(browser, "words"))


# --- motion ----------------------------------------------------------------------------------------------------------


def position(browser: Chrome) -> int:
    return int(browser.find_element(By.ID, "scrub").get_property("value"))


@needs_browser
def test_a_new_picture_flows_through_and_can_be_paused_and_scrubbed(chrome: Chrome) -> None:
    size(chrome, 1440, 900, motion="no-preference")
    opened(chrome, FROM_DISK, "learning")  # the longest
    until(lambda: 0 < position(chrome) < 1000)
    press(chrome, "play")
    until(lambda: chrome.find_element(By.ID, "play").get_attribute("aria-label") == "Play")
    slide(chrome, "scrub", 500)
    until(lambda: text(chrome, "reached").startswith("epoch 8."))
    press(chrome, "play")
    until(lambda: position(chrome) > 500)
    until(lambda: position(chrome) == 1000)
    assert text(chrome, "reached") == "epoch 30.0"


@needs_browser
def test_the_flow_goes_from_the_pixels_to_the_outputs(chrome: Chrome) -> None:
    size(chrome, 1440, 900, motion="no-preference")
    opened(chrome, FROM_DISK)
    reached = []
    for at in (50, 300, 600, 800, 1000):
        slide(chrome, "scrub", at)
        until(lambda at=at: position(chrome) == at)
        chrome.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        reached.append(text(chrome, "reached"))
    assert reached == ["pixels", "layer 1", "layer 2", "outputs", "all layers"]


@needs_browser
def test_no_animation_starts_if_motion_is_reduced(browser: Chrome) -> None:
    for slug in ("draw", "learning"):
        browser.execute_script("location.hash = arguments[0]", f"#/{slug}")
        take(browser, 5)
        until(lambda: position(browser) == 1000)
        assert browser.find_element(By.ID, "play").get_attribute("aria-label") == "Play"


@needs_browser
def test_the_stage_is_one_canvas(browser: Chrome) -> None:
    for slug in SLUGS:
        browser.execute_script("location.hash = arguments[0]", f"#/{slug}")
        until(lambda slug=slug: browser.execute_script("return document.body.dataset.chapter") == slug)
        assert len(browser.find_elements(By.CSS_SELECTOR, "*")) < 450


# --- changes ---------------------------------------------------------------------------------------------------------


@needs_browser
def test_a_changed_network_answers_differently_and_undo_restores_it(chrome: Chrome) -> None:
    size(chrome, 1440, 900)
    opened(chrome, FROM_DISK, "change")
    take(chrome, 7)
    before = said(chrome)
    press(chrome, "off")  # the output of the digit read
    until(lambda: not said(chrome).startswith("Reads a 7"))
    assert "as you changed it" in said(chrome)
    press(chrome, "undo-change")
    until(lambda: said(chrome) == before)
    for slider, value in (("bias", -20), ("weight", -10), ("noise", 0.7)):
        slide(chrome, slider, value)
        until(lambda: "as you changed it" in said(chrome))
        press(chrome, "undo-change")
        until(lambda: said(chrome) == before)
    press(chrome, "randomise")
    until(lambda: "as you changed it" in said(chrome))
    press(chrome, "reset")
    until(lambda: said(chrome) == before)


# --- on every screen -------------------------------------------------------------------------------------------------


@needs_browser
def test_a_phone_shows_drawing_answer_and_network_on_one_screen(chrome: Chrome) -> None:
    size(chrome, 390, 844)
    opened(chrome, FROM_DISK)
    bottom = chrome.find_element(By.CSS_SELECTOR, ".turn").rect["y"]
    for name in ("stage", "pad", "digit", "verdict", "samples", "clear"):
        box = chrome.find_element(By.ID, name).rect
        assert box["y"] >= 0
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        assert box["y"] + box["height"] <= bottom, name


@needs_browser
@pytest.mark.parametrize("width", [320, 390, 761, 1024, 1241, 1440])
def test_no_chapter_is_wider_than_its_screen(chrome: Chrome, width: int) -> None:
    size(chrome, width, 844)
    opened(chrome, FROM_DISK)
    for slug in SLUGS:
        chrome.execute_script("location.hash = arguments[0]", f"#/{slug}")
        until(lambda slug=slug: chrome.execute_script("return document.body.dataset.chapter") == slug)
        assert chrome.execute_script("return document.documentElement.scrollWidth - innerWidth") <= 0, slug


@needs_browser
@pytest.mark.parametrize("width", [320, 390, 761, 1241, 1440])
def test_every_control_is_at_least_24_pixels_high_and_wide(chrome: Chrome, width: int) -> None:
    size(chrome, width, 800)
    opened(chrome, FROM_DISK, "change")
    small = chrome.execute_script(
        "return [...document.querySelectorAll('button, .button, summary, header a, .turn a, input[type=range]')]"
        ".map((one) => [one.id || one.textContent, one.getBoundingClientRect()]).filter(([, box]) => box.width)"
        ".filter(([, box]) => Math.min(box.width, box.height) < 24).map(([name, box]) => `${name} ${box.width}`)"
    )
    assert small == []


@needs_browser
@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (1440, "dark"), (390, "light"), (390, "dark")])
def test_axe_finds_no_violation_in_any_chapter(chrome: Chrome, page: str, width: int, scheme: str) -> None:
    size(chrome, width, 900, scheme)
    opened(chrome, page)
    draw(chrome, SEVEN)
    until(lambda: reads(chrome, 7))
    chrome.execute_script(axe.AXE_SCRIPT)
    for slug in SLUGS:
        chrome.execute_script("location.hash = arguments[0]", f"#/{slug}")
        until(lambda slug=slug: chrome.execute_script("return document.body.dataset.chapter") == slug)
        found = chrome.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
        assert [(slug, v["id"], [node["html"] for node in v["nodes"]]) for v in found["violations"]] == []
        assert len(found["passes"]) > 20


# --- over a server ---------------------------------------------------------------------------------------------------


@needs_browser
def test_with_a_service_each_drawing_is_a_call_that_is_shown(chrome: Chrome, page: str) -> None:
    size(chrome, 1440, 900)
    opened(chrome, page, "service")
    draw(chrome, SEVEN)
    read_as_seven = r"service reads7 \(0\.\d{3}\).*difference to this page"
    until(lambda: re.search(read_as_seven, text(chrome, "words")))
    words = text(chrome, "words")
    assert "The same network answers over gRPC." in words
    assert re.search(r"this call[\d.]+ ms at the gateway, [\d.]+ ms here", words)
    assert "runs onCPUExecutionProvider" in words
    difference = re.search(r"difference to this page(\d)e-(\d+)", words)
    assert difference
    assert float(f"{difference[1]}e-{difference[2]}") < 1e-5
    messages = [one.get_property("textContent") for one in chrome.find_elements(By.CSS_SELECTOR, "#calls .message")]
    assert messages[0].startswith('pixels: "')
    assert messages[1].startswith("digits: 7\n")
    press(chrome, "burst")
    until(lambda: re.search(r"64 at once[\d.]+ ms; runs by images: 1?", text(chrome, "words")))


@needs_browser
def test_an_answer_to_an_earlier_picture_is_not_compared_with_the_one_that_is_shown(chrome: Chrome, page: str) -> None:
    size(chrome, 1440, 900)
    opened(chrome, page, "service")
    take(chrome, 3)
    until(lambda: re.search(r"service reads3 .*difference to this page\de-", text(chrome, "words")))
    chrome.execute_script("fetch = () => new Promise(() => {})")  # the service does not answer from here on
    take(chrome, 4)
    until(lambda: reads(chrome, 4))
    assert "service reads3" in text(chrome, "words")
    assert "difference to this page" not in text(chrome, "words")


@needs_browser
def test_over_http_the_page_says_so_and_shows_the_json(chrome: Chrome, model_path: Path) -> None:
    with serving(model_path, "--http-port", "0") as service, page_of(f"http://{http_address(service)}") as page:
        size(chrome, 1440, 900)
        opened(chrome, page, "service")
        draw(chrome, SEVEN)
        until(lambda: re.search(r"service reads7 \(0\.\d{3}\)", text(chrome, "words")))
        words = text(chrome, "words")
        assert "The same network answers over HTTP." in words
        assert f"serverhttp://{http_address(service)}, version 1, over HTTP" in words
        assert "gRPC" not in words + text(chrome, "calls")
        assert text(chrome, "calls").startswith("POST /v1/predict, ")
        messages = [one.get_property("textContent") for one in chrome.find_elements(By.CSS_SELECTOR, "#calls .message")]
        assert messages[0].startswith('{"pixels": [')
        assert messages[1].startswith('{"digits":[7],')
        press(chrome, "burst")
        until(lambda: re.search(r"64 at once[\d.]+ ms; runs by images: 1?", text(chrome, "words")))


@needs_browser
def test_both_variants_that_are_served_are_compared(
    chrome: Chrome, model_path: Path, make_model: Callable[..., Path]
) -> None:
    size(chrome, 1440, 900)
    with (
        serving(make_model("relu")) as first,
        serving(model_path) as second,
        page_of(first.address, "--compare", second.address) as page,
    ):
        opened(chrome, page, "relu")
        until(lambda: "the ReLU network (served) reads" in text(chrome, "words"))
        assert "the sigmoid network (served) reads" in text(chrome, "words")
        chrome.execute_script("location.hash = '#/layer-1'")
        until(lambda: "ReLU(" in text(chrome, "words"))


@needs_browser
def test_a_photograph_is_read_and_an_invalid_file_is_reported(chrome: Chrome, page: str, tmp_path: Path) -> None:
    size(chrome, 1440, 900)
    opened(chrome, page)
    photograph, notes = tmp_path / "seven.png", tmp_path / "notes.txt"
    ImageOps.invert(Image.open(io.BytesIO(drawn_seven())).convert("L")).save(photograph)
    notes.write_text("no picture")
    until(lambda: chrome.find_element(By.ID, "photograph").is_displayed())
    take(chrome, 4)
    chrome.find_element(By.ID, "photo").send_keys(str(photograph))
    until(lambda: reads(chrome, 7))
    np.testing.assert_array_equal(pixels(chrome), read_bytes(photograph.read_bytes())[0])
    chrome.find_element(By.ID, "photo").send_keys(str(notes))
    until(lambda: said(chrome).startswith("The picture is no picture (PNG"))
    draw(chrome, [(0, -90), (0, 90)])
    until(lambda: reads(chrome, 1))


@needs_browser
def test_a_stopped_server_is_reported_and_a_restarted_one_answers(chrome: Chrome, model_path: Path) -> None:
    with serving(model_path) as service, page_of(service.address) as page:
        size(chrome, 1440, 900)
        opened(chrome, page, "service")
        until(lambda: "service reads" in text(chrome, "words"))
        assert service.stop() == 0
        take(chrome, 6)
        trouble = chrome.find_element(By.ID, "trouble")
        until(lambda: "The service does not answer" in trouble.text)
        assert reads(chrome, 6), "the page computes locally"
        port = service.address.rsplit(":", 1)[1]
        again = launch("--model", model_path, "--port", port, "--metrics-port", "0")
        try:
            again.wait_for("serving")
            until(lambda: not trouble.is_displayed())
            until(lambda: "service reads6" in text(chrome, "words"))
        finally:
            again.close()


@needs_browser
def test_the_page_breaks_no_rule_of_its_own_policy(chrome: Chrome, page: str) -> None:
    size(chrome, 1440, 900)
    opened(chrome, page)
    chrome.get_log("browser")
    opened(chrome, page)
    draw(chrome, SEVEN)
    until(lambda: reads(chrome, 7))
    for slug in SLUGS:
        chrome.execute_script("location.hash = arguments[0]", f"#/{slug}")
        until(lambda slug=slug: chrome.execute_script("return document.body.dataset.chapter") == slug)
    assert chrome.get_log("browser") == []
