"""The demo in a real browser, for a visitor with a mouse and a visitor with only a keyboard."""

import re
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from browser import check_accessible
from demo_pages import MOST, trained, training
from PIL import Image
from playwright.sync_api import expect

from fedpgp.demo.federation import zero_shot
from fedpgp.demo.stage import SUBJECTS, DemoSetup

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

SCRIPT = "<script>document.title = 'run'</script>"
OUTLINED = """() => {
  const one = document.activeElement;
  const marked = [one, one.nextElementSibling, one.closest('label'), document.querySelector(`label[for="${one.id}"]`)];
  return one === document.body || marked.some(mark => mark && parseFloat(getComputedStyle(mark).outlineWidth) >= 2
    && getComputedStyle(mark).outlineStyle !== 'none');
}"""
IMAGE = "<img src=x onerror=\"document.title='run'\">"


def test_a_visitor_trains_a_federation_and_classifies_a_picture(visit, shoot):
    page = visit(color_scheme="light")
    started = time.monotonic()
    expect(page.locator("#start")).to_be_enabled(timeout=1000 * MOST)
    prepared = time.monotonic() - started
    expect(page.locator("#clients > li")).to_have_count(6)
    shoot(page, "demo-before-light")
    check_accessible(page)

    page.locator("#start").click()
    training(page, 4)
    shoot(page, "demo-round-4-light")
    seconds = trained(page)
    print(f"prepared after {prepared:.1f} s; " + page.locator("#status").inner_text())
    assert prepared + seconds < MOST
    assert page.locator("#rounds tbody tr").count() == 12
    local = float(page.locator("#figures .now").first.inner_text())
    zero_shot = float(page.locator("#figures .beside").first.inner_text().split()[-1])
    assert local > zero_shot + 3

    canvas = page.locator("#canvas")
    canvas.scroll_into_view_if_needed()
    page.get_by_label("yellow", exact=True).check(force=True)
    page.locator("#width").fill("36")
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 90)
    page.mouse.down()
    for x, y in ((90, 190), (160, 240), (240, 220), (270, 150)):
        page.mouse.move(box["x"] + x, box["y"] + y, steps=6)
    page.mouse.up()
    page.locator("#classes").fill(f"banana, lemon, bus, {SCRIPT}\n{IMAGE}")
    page.get_by_role("button", name="Classify").click()
    expect(page.locator("#answers > li")).to_have_count(8)
    page.locator("#classes").fill(f"{SCRIPT}, {IMAGE}")
    page.get_by_role("button", name="Classify").click()
    expect(page.locator("#answers")).to_contain_text(SCRIPT)
    expect(page.locator("#answers")).to_contain_text(IMAGE)
    assert page.locator("#answers script, #answers img, main script").count() == 0
    assert page.title() == "FedPGP, live"

    page.locator("#use-both").click()
    page.get_by_label("tiger, a novel class").or_(page.locator("#samples input").nth(5)).first.check(force=True)
    page.get_by_role("button", name="Classify").click()
    expect(page.locator("#answer-status")).to_contain_text("among 48 classes")
    shoot(page, "demo-trained-light")
    check_accessible(page)


def test_dark_mode_on_a_small_screen_and_two_visitors_of_whom_one_starts(visit, shoot):
    page = visit(color_scheme="dark")
    other = visit(color_scheme="dark", viewport={"width": 390, "height": 844})
    expect(page.locator("#start")).to_be_enabled(timeout=1000 * MOST)
    page.locator("#start").click()
    training(other, 2)
    check_accessible(page)
    other.locator("#stop").click()
    expect(page.locator("#status")).to_contain_text("Stopped after round", timeout=20_000)
    page.locator("#heterogeneity").fill("2")
    page.locator("#start").click()
    trained(page)
    page.locator("#samples input").nth(2).check(force=True)
    page.get_by_role("button", name="Classify").click()
    expect(page.locator("#answers > li")).to_have_count(8)
    shoot(page, "demo-trained-dark")
    check_accessible(page)
    expect(other.locator("#status")).to_contain_text("Finished")
    shoot(other, "demo-small-dark")
    check_accessible(other)
    assert other.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_photograph_is_classified_in_dark_mode_on_a_small_screen_with_a_keyboard(visit, shoot, tmp_path):
    rng = np.random.default_rng(0)
    photograph, names = tmp_path / "photograph.jpg", ["hedgehog", "pizza", "quilt"]
    Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((1200, 900)).save(photograph)
    page = visit(color_scheme="dark", viewport={"width": 390, "height": 844})
    expect(page.locator("#start")).to_be_enabled(timeout=1000 * MOST)
    expect(page.locator("#samples label")).to_have_count(16)
    expect(page.locator("#clients img").first).to_be_attached()
    page.wait_for_function("() => [...document.images].every(image => image.complete)")
    page.locator("#subjects :checked").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#source")).to_contain_text("Drop a photograph")
    expect(page.locator("#start")).to_be_enabled(timeout=1000 * MOST)
    expect(page.locator("#subjects :focus")).to_have_value("photographs")
    expect(page.locator("#subject-about")).to_contain_text("photoclip")
    expect(page.locator("#clients > li")).to_have_count(6)
    for drawing in ("#colours", "#width", "#tests"):
        expect(page.locator(drawing)).to_be_hidden()
    page.locator("#classify").click()
    expect(page.locator("#answer-fault")).to_contain_text("Drop a photograph")

    page.locator("#file").set_input_files(photograph)
    expect(page.locator("#source")).to_have_text("photograph.jpg")
    page.locator("#classes").fill(", ".join(names))
    with page.expect_response("**/api/classify") as answered:
        page.locator("#classify").click()
    expect(page.locator("#answers > li")).to_have_count(1)
    expect(page.locator("#answer-status")).to_contain_text("among 3 classes")
    (found,) = answered.value.json()["models"]
    (expected,) = zero_shot(DemoSetup.prepare(SUBJECTS["photographs"], tmp_path)).classify(photograph, names)
    assert dict(found["best"]) == pytest.approx(expected, abs=1e-4)  # of the file, not of the canvas

    page.locator("#start").click()
    training(page, 1)
    page.locator("#stop").click()
    expect(page.locator("#status")).to_contain_text("Stopped", timeout=60_000)
    page.locator("#classify").click()
    expect(page.locator("#answers > li")).to_have_count(8)
    shoot(page, "demo-photographs-small-dark")
    check_accessible(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390

    page.locator("#subjects [value=drawings]").check()
    expect(page.locator("#samples label")).to_have_count(16, timeout=1000 * MOST)
    expect(page.locator("#answers > li")).to_have_count(0)
    expect(page.locator("#rounds tbody tr")).to_have_count(0)
    expect(page.locator("#colours")).to_be_visible()


def test_everything_can_be_done_with_a_keyboard(visit, shoot):
    page = visit()
    expect(page.locator("#start")).to_be_enabled(timeout=1000 * MOST)

    def tab_to(wanted: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            assert page.evaluate(OUTLINED), page.evaluate("document.activeElement.outerHTML")
            if page.evaluate(
                "[document.activeElement.id, document.activeElement.name].includes(arguments_)".replace(
                    "arguments_", repr(wanted)
                )
            ):
                return
        raise AssertionError(f"the keyboard does not reach {wanted}")

    tab_to("heterogeneity")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#heterogeneity-value")).to_have_text("strong")
    expect(page.locator("#mixture")).to_contain_text("strong")
    tab_to("bottleneck")
    page.keyboard.press("Home")
    page.locator(".skip").focus()
    tab_to("mu")
    page.keyboard.press("End")
    tab_to("start")
    page.keyboard.press("Enter")
    training(page, 1)
    expect(page.locator("#start")).to_be_focused()  # a button that cannot be pressed now keeps the focus
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#action")).to_contain_text("You moved μ to 4.9")
    expect(page.locator("#mu")).to_be_focused()
    tab_to("stop")
    page.keyboard.press("Space")
    expect(page.locator("#status")).to_contain_text("Stopped", timeout=20_000)
    tab_to("sample")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#source")).to_contain_text("A test picture")
    tab_to("classes")
    page.keyboard.press("Control+A")
    page.keyboard.type("cat, frog, frog")
    tab_to("classify")
    page.keyboard.press("Enter")
    expect(page.locator("#answer-fault")).to_contain_text("frog")
    tab_to("use-base")
    page.keyboard.press("Enter")
    tab_to("classify")
    page.keyboard.press("Enter")
    expect(page.locator("#answers > li")).to_have_count(8)
    page.locator("#classify").focus()
    shoot(page, "demo-keyboard")


def test_the_server_refuses_what_is_too_large_at_once_and_a_second_demo_needs_another_port(address, cache):
    port = int(re.search(r":(\d+)/", address)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        head = f"POST /api/classify HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {200 * 2**20}\r\n\r\n"
        connection.sendall(head.encode())
        answer = b"".join(iter(lambda: connection.recv(4096), b""))  # the server closes early
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"8 MB" in answer
    command = [sys.executable, "-m", "fedpgp", "demo", "--port", str(port), "--cache-dir", str(cache)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 2
    *_, last = second.stderr.splitlines()
    assert re.fullmatch(r"fedpgp: error: --port \d+: .*127.0.0.1.*--port 0.*", last)
