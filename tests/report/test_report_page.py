"""The page of a report in a real browser."""

from pathlib import Path

import pytest

from fedpgp.data.sources import Source
from fedpgp.report.page import run_details
from fedpgp.report.page.write import write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def page_file(compared: Path, small_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("report") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_details, "load_source", lambda *_: small_source)
        write_report([compared], file)
    return file


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_drawn_offline_and_can_be_read(browser, page_file, scheme, shoot, check_accessible):
    page = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme=scheme)
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on(
        "request", lambda asked: None if asked.url.startswith(("file:", "data:", "blob:")) else faults.append(asked.url)
    )
    page.goto(page_file.as_uri())
    charts = page.locator("[data-chart]")
    for i in range(charts.count()):
        charts.nth(i).scroll_into_view_if_needed()
        charts.nth(i).locator("svg.marks").wait_for(timeout=15_000)
    assert charts.count() >= 7
    assert faults == []
    pictures = page.locator(".pictures img")
    assert pictures.count() > 0
    pictures.first.scroll_into_view_if_needed()
    assert pictures.first.evaluate("image => image.naturalWidth") > 0
    page.evaluate("scrollTo(0, 0)")
    shoot(page, f"report-{scheme}")
    check_accessible(page)
    page.close()


def test_a_click_in_a_legend_shows_one_method_and_the_keyboard_reaches_everything(browser, page_file):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(page_file.as_uri())
    chart = page.locator('[data-chart$="-tradeoff"]')
    chart.scroll_into_view_if_needed()
    chart.locator("svg.marks").wait_for()
    before = chart.locator("svg.marks").evaluate("svg => svg.outerHTML")
    box = chart.locator(".role-legend-symbol path").first.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_function(
        "before => document.querySelector('[data-chart$=\"-tradeoff\"] svg.marks').outerHTML != before", arg=before
    )
    reached = set()
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.textContent")
        )
    assert "Trade-off of each method" in reached
    assert any(text.startswith("Table:") for text in reached if text)
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    page.close()
