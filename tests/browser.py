"""Pages in Debian's chromium, for the tests that look at them."""

import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import expect, sync_playwright

    executable = shutil.which("chromium")
    if not executable:
        pytest.skip("chromium is missing, in which the tests look at pages: make chromium")
    expect.set_options(timeout=30_000)  # the cores may have other work, too
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def shoot(tmp_path):
    """Takes a picture of a whole page, to be looked at: in FEDPGP_SCREENSHOTS, or the test's own directory."""
    directory = Path(os.environ.get("FEDPGP_SCREENSHOTS", tmp_path))
    directory.mkdir(parents=True, exist_ok=True)
    return lambda page, name: page.screenshot(path=directory / f"{name}.png", full_page=True)


def check_accessible(page) -> None:
    """Ask axe for all faults of a page; there are none."""
    from axe_playwright_python.sync_playwright import Axe

    page.evaluate("Promise.allSettled(document.getAnimations().map(one => one.finished))")  # colours change gradually
    found = Axe().run(page).response["violations"]
    assert {one["id"]: one["nodes"][0]["html"] for one in found} == {}
