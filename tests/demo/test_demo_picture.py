"""The pictures that a viewer of the demo gives: by touch, drag and drop, paste, from a camera, too large, or none."""

import numpy as np
import pytest
from browser import check_accessible
from demo_pages import MOST, READY, trained
from PIL import Image
from playwright.sync_api import expect

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
CONTROLS = (
    "button, select, summary, label.button, label.check, #subjects label, #colours label, .samples label,"
    " input[type=range]"
)
SMALL = """controls => [...document.querySelectorAll(controls)].filter(one => one.checkVisibility())
  .filter(one => one.getBoundingClientRect().height < 44).map(one => one.outerHTML)"""
INK = """() => {
  const pen = new OffscreenCanvas(320, 320).getContext('2d', {willReadFrequently: true});
  pen.drawImage(canvas, 0, 0);
  return pen.getImageData(0, 0, 320, 320).data.filter((value, i) => i % 4 === 1 && value < 250).length;
}"""
GIVE = """async ([kind, name]) => {
  const canvas = new OffscreenCanvas(64, 64);
  const pen = canvas.getContext('2d');
  pen.fillStyle = 'red';
  pen.fillRect(0, 0, 64, 64);
  const content = name.endsWith('.txt') ? 'no picture' : await canvas.convertToBlob();
  const given = new DataTransfer();
  given.items.add(new File([content], name, {type: 'image/png'}));
  const event = kind === 'paste' ? new ClipboardEvent(kind, {clipboardData: given, bubbles: true, cancelable: true})
    : new DragEvent(kind, {dataTransfer: given, bubbles: true, cancelable: true});
  document.body.dispatchEvent(event);
  return event.defaultPrevented;
}"""


def classify(page, answers: int = 1) -> None:
    with page.expect_response("**/api/classify") as answered:
        page.locator("#classify").click()
    assert answered.value.ok
    expect(page.locator("#answers > li")).to_have_count(answers)


def ink(page) -> int:
    """Return the number of pixels on the canvas that are not white."""
    return page.evaluate(INK)


def test_a_viewer_with_a_phone_trains_draws_by_touch_and_classifies(visit, shoot):
    page = visit(**PHONE)
    expect(page.locator("#status")).to_have_text(READY, timeout=1000 * MOST)
    assert page.evaluate(SMALL, CONTROLS) == []
    page.locator("#start").tap()
    trained(page)
    shoot(page, "demo-phone-light")
    check_accessible(page)
    canvas = page.locator("#canvas")
    canvas.scroll_into_view_if_needed()
    box, before = canvas.bounding_box(), page.evaluate("scrollY")
    touch = page.context.new_cdp_session(page)
    points = [(box["x"] + 60, box["y"] + 60 + 20 * i) for i in range(10)]  # upwards a page would scroll
    for i, (x, y) in enumerate(points):
        kind = "touchMove" if i else "touchStart"
        fingers = [{"x": x, "y": y, "id": 0}, {"x": x + 150, "y": box["y"] + 20, "id": 1}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers[: 1 + (i > 4)]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert page.evaluate("scrollY") == before
    expect(page.locator("#source")).to_have_text("Your drawing.")
    drawn = ink(page)
    assert 180 * 14 * 0.8 < drawn < 230 * 20 * 1.2  # one line: the second finger drew none
    classify(page, answers=8)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    expect(page.locator("label[for=camera]")).to_be_visible()
    assert page.locator("#camera").get_attribute("capture") == "environment"
    page.locator("#clear").tap()
    assert ink(page) == 0


def test_a_photograph_of_a_camera_a_dropped_and_a_pasted_picture_are_classified(visit, tmp_path):
    page = visit(**PHONE)
    expect(page.locator("#status")).to_have_text(READY, timeout=1000 * MOST)
    photograph = tmp_path / "IMG_1.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((8000, 6000)).save(photograph, quality=30)  # 48 megapixels
    page.locator("#camera").set_input_files(photograph)
    expect(page.locator("#source")).to_have_text("IMG_1.jpg, made smaller: it has 8000 × 6000 pixels.")
    classify(page)
    for kind in ("drop", "paste"):
        page.locator("#clear").click()
        page.evaluate(GIVE, [kind, f"{kind}.png"])
        expect(page.locator("#source")).to_have_text(f"{kind}.png")
        assert ink(page) == 320 * 320
        classify(page)
    assert page.evaluate(GIVE, ["dragover", "x.png"])
    assert page.evaluate(GIVE, ["drop", "<b>note</b>.txt"])  # the browser does not open the file instead of the page
    expect(page.locator("#answer-fault")).to_contain_text("<b>note</b>.txt cannot be read as a picture")


def test_files_that_are_no_pictures_or_too_large_are_refused(visit, tmp_path):
    page = visit()
    expect(page.locator("#status")).to_have_text(READY, timeout=1000 * MOST)
    text, huge = tmp_path / "../cat<b>.png", tmp_path / "huge.png"
    text.write_text("no picture")
    with huge.open("wb") as file:
        file.truncate(200 * 2**20)
    page.locator("#file").set_input_files(text)
    expect(page.locator("#answer-fault")).to_contain_text("cat<b>.png cannot be read as a picture")
    page.locator("#file").set_input_files(huge)
    expect(page.locator("#answer-fault")).to_contain_text("200 MB")
    page.locator("#clear").click()
    page.get_by_role("button", name="Classify").click()
    expect(page.locator("#answer-fault")).to_contain_text("There is no picture yet")
