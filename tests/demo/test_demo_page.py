"""The demo in a real browser, for a visitor with a mouse and a visitor with only a keyboard."""

import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from fedpgp.demo.federation import zero_shot
from fedpgp.demo.stage import SUBJECTS, DemoSetup

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

MOST = 60  # seconds from the start to a trained federation
KINDS = ("error", "warning")  # kinds of console messages that fail a test
SCRIPT = "<script>document.title = 'run'</script>"
IMAGE = "<img src=x onerror=\"document.title='run'\">"


@pytest.fixture
def address(cache, tmp_path):
    """Address of a demo in a separate process, which must end without an error at Ctrl-C."""
    command = [sys.executable, "-m", "fedpgp", "demo", "--port", "0", "--cache-dir", str(cache)]
    with (
        (tmp_path / "err").open("w+") as err,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True) as process,
    ):
        line = process.stdout.readline()
        yield re.search(r"http://127\.0\.0\.1:\d+/", line)[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        err.seek(0)
        assert err.read() == "fedpgp demo has stopped.\n"


@pytest.fixture
def visit(browser, address):
    """Open the page; at the end, check that it loaded nothing from other hosts and that the console has no errors."""
    faults, pages = [], []

    def open_page(**options):
        page = browser.new_page(**{"viewport": {"width": 1360, "height": 900}, **options})
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "console", lambda said: faults.append(f"{said.text} {said.location['url']}") if said.type in KINDS else None
        )
        page.on("request", lambda asked: None if asked.url.startswith((address, "blob:")) else faults.append(asked.url))
        page.goto(address)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert [
        fault for fault in faults if "status of 422" not in fault
    ] == []  # Chromium reports requests that the server refused with a message


def training(page, rounds: int) -> None:
    """Wait until a federation that is still training has finished this many rounds.

    It checks in every frame, because a check once a second could miss a round.
    """
    page.wait_for_function(
        "rounds => document.querySelectorAll('#rounds tbody tr').length >= rounds && start.disabled",
        arg=rounds,
        timeout=1000 * MOST,
    )


def trained(page) -> float:
    """Wait for the end of the training, and return the seconds."""
    started = time.monotonic()
    expect(page.locator("#status")).to_contain_text("Finished", timeout=1000 * MOST)
    return time.monotonic() - started


def test_a_visitor_trains_a_federation_and_classifies_a_picture(visit, shoot, check_accessible):
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


def test_dark_mode_on_a_small_screen_and_two_visitors_of_whom_one_starts(visit, shoot, check_accessible):
    page = visit(color_scheme="dark")
    other = visit(color_scheme="dark", viewport={"width": 390, "height": 844})
    expect(page.locator("#start")).to_be_enabled(timeout=1000 * MOST)
    page.locator("#start").click()
    training(other, 2)
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


def test_a_photograph_is_classified_in_dark_mode_on_a_small_screen_with_a_keyboard(
    visit, shoot, check_accessible, tmp_path
):
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
    tab_to("mu")
    page.keyboard.press("End")
    tab_to("bottleneck")
    page.keyboard.press("Home")
    tab_to("start")
    page.keyboard.press("Enter")
    training(page, 1)
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


def test_a_dropped_file_that_is_not_a_picture_or_too_large_is_refused(visit, tmp_path):
    page = visit()
    expect(page.locator("#start")).to_be_enabled(timeout=1000 * MOST)
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
