"""The page of a report in a real browser."""

from pathlib import Path

import pytest
from browser import check_accessible
from large_results import write_clients, write_methods

import fedpgp
from fedpgp.data.sources import Source
from fedpgp.report.page import run_details
from fedpgp.report.page.write import write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
SHEET = {"width": 703, "height": 1032}  # an A4 sheet of page.css without its margins, in pixels
# Elements that reach over the edge of the window, unless a box around them scrolls.
OUTSIDE = """() => [...document.querySelectorAll("body *")].filter(element => {
  const box = element.getBoundingClientRect(), width = document.documentElement.clientWidth;
  if (!box.width || !box.height || (box.right <= width + 1 && box.left >= -1)) return false;
  for (let around = element.parentElement; around; around = around.parentElement)
    if (["auto", "scroll", "hidden"].includes(getComputedStyle(around).overflowX)) return false;
  return true;
}).map(element => `${element.tagName} ${element.className.baseVal ?? element.className}`)"""


@pytest.fixture(scope="module")
def pages(compared: Path, small_source: Source, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report, the page of its comparison, and reports about many methods and about many clients."""
    directory = tmp_path_factory.mktemp("report")
    run = fedpgp.load_comparison(compared).of("fedpgp")[0]
    of = {
        "report": compared,
        "methods": write_methods(run, directory / "many-methods"),
        "clients": write_clients(run, directory / "many-clients"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_details, "load_source", lambda *_: small_source)
        for name, runs in of.items():
            write_report([runs], directory / f"{name}.html", focus="fedpgp")
    return {**{name: directory / f"{name}.html" for name in of}, "comparison": compared / "comparison.html"}


@pytest.fixture
def visit(browser):
    """Open a page; at the end, no script failed and nothing was loaded from elsewhere."""
    opened, faults = [], []

    def ask(asked) -> None:
        if not asked.url.startswith(("file:", "data:", "blob:")):
            faults.append(asked.url)

    def open_page(file: Path, width: int = 1280, **options):
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("request", ask)
        page.goto(file.as_uri())
        opened.append(page)
        return page

    yield open_page
    for page in opened:
        page.close()
    assert faults == []


def draw_all(page) -> int:
    """Scroll to every figure until it is drawn, and return their number."""
    figures = page.locator("[data-chart]")
    for i in range(figures.count()):
        figures.nth(i).scroll_into_view_if_needed()
        figures.nth(i).locator("svg.marks").wait_for()
    page.evaluate("scrollTo(0, 0)")
    return figures.count()


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [
        *((name, width, "light") for name in ("report", "comparison") for width in (360, 390, 1280, 2560)),
        *((name, width, "dark") for name in ("report", "comparison") for width in (390, 1280)),
        *(
            (name, width, scheme)
            for name in ("methods", "clients")
            for width, scheme in ((390, "light"), (2560, "dark"))
        ),
    ],
)
def test_nothing_overflows_and_everything_is_accessible(visit, pages, name, width, scheme, shoot):
    page = visit(pages[name], width, color_scheme=scheme)
    for _ in range(2):
        drawn = draw_all(page)
        assert (drawn == 0) == (name == "comparison")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(OUTSIDE) == []
        page.reload()
    draw_all(page)
    shoot(page, f"{name}-{scheme}-{width}")
    check_accessible(page)


@pytest.mark.parametrize("name", ["report", "methods", "clients", "comparison"])
def test_a_print_has_every_figure_and_row_and_cuts_nothing_off(visit, pages, name, shoot, tmp_path):
    page = visit(pages[name])
    page.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True)
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    assert page.locator("[data-chart] svg.marks").count() == page.locator("[data-chart]").count()
    page.set_viewport_size(SHEET)
    page.emulate_media(media="print")
    assert page.evaluate(OUTSIDE.replace('"auto", "scroll", "hidden"', "")) == []
    heights = page.evaluate(
        "[...document.querySelectorAll('.chart svg')].map(one => one.getBoundingClientRect().height)"
    )
    assert max(heights) <= SHEET["height"]
    rows = page.locator("tbody tr")
    assert rows.evaluate_all("rows => rows.filter(row => !row.offsetHeight).length") == 0
    for hidden in ("nav", ".tools", ".vega-embed details"):
        assert not page.locator(hidden).first.is_visible()
    shoot(page, f"{name}-print")


def test_thirty_methods_with_three_seeds_are_small_and_shown_at_once(visit, pages):
    assert pages["methods"].stat().st_size < 10e6
    page = visit(pages["methods"])
    page.wait_for_function("performance.getEntriesByType('paint').length")
    assert page.evaluate("performance.getEntriesByName('first-paint')[0].startTime") < 1000
    page.wait_for_timeout(300)
    drawn, every = page.locator("svg.marks").count(), page.locator("[data-chart]").count()
    assert drawn < every, "a figure is drawn when it comes into view"
    assert draw_all(page) == every == page.locator("svg.marks").count()


def test_tables_are_sorted_by_click_and_keyboard(visit, pages):
    page = visit(pages["methods"])
    table = page.get_by_role("region", name="Table: Results", exact=True)
    head = table.get_by_role("columnheader", name="Local")

    def column() -> list[float]:
        texts = table.locator("tbody tr td:nth-child(2)").all_text_contents()
        return [float(text.partition(" ")[0]) for text in texts]

    before = column()
    head.get_by_role("button").click()
    assert column() == sorted(before) != before and head.get_attribute("aria-sort") == "ascending"
    head.get_by_role("button").press("Enter")
    assert column() == sorted(before, reverse=True) and head.get_attribute("aria-sort") == "descending"
    names = table.get_by_role("columnheader", name="method")
    names.get_by_role("button").press("Space")
    assert names.get_attribute("aria-sort") == "ascending" and head.get_attribute("aria-sort") == "none"
    texts = table.locator("tbody th").all_text_contents()
    assert texts == sorted(texts)


def test_a_thousand_clients_are_shown_in_pages_and_found_by_a_word(visit, pages):
    page = visit(pages["clients"])
    box = page.locator(".table", has=page.get_by_role("region", name="Table: Each client"))
    shown = box.locator("tbody tr:not([hidden])")
    assert shown.count() == 40 and box.get_by_role("status").text_content() == "1 to 40 of 1,000 rows"
    box.get_by_role("button", name="Later rows of Each client").click()
    assert shown.first.locator("th").text_content() == "40"
    box.get_by_role("columnheader", name="client").get_by_role("button").click(click_count=2)
    assert shown.first.locator("th").text_content() == "999"
    name = page.evaluate("document.querySelector('[id=\"0-class-table\"] ~ .table tbody th').textContent")
    box.get_by_role("searchbox").fill(name)
    assert shown.count() > 0 and all(name in text for text in shown.all_text_contents())
    box.get_by_role("searchbox").fill("no such class")
    assert shown.count() == 0 and box.get_by_role("status").text_content() == "no row"


def test_tables_are_copied_as_csv_and_latex(visit, pages, compared):
    page = visit(pages["comparison"])
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    comparison = fedpgp.load_comparison(compared)
    page.get_by_role("button", name="Copy Results as CSV").click()
    page.wait_for_function("document.getElementById('said').textContent === 'Copied.'")
    head, first, *rest = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert head.startswith("method,Local,Base,Novel") and len(rest) == 3
    mean, deviation = comparison.mean("zero-shot")["local"]
    assert first.startswith(f"zero-shot,{mean:.1f} ± {deviation:.1f}")
    page.get_by_role("button", name="Copy Results as LaTeX").click()
    page.wait_for_function("navigator.clipboard.readText().then(text => text.includes('tabular'))")
    latex = page.evaluate("navigator.clipboard.readText()")
    assert f"zero-shot & {mean:.1f} $\\pm$ {deviation:.1f}" in latex.replace("\\textbf{", "").replace("}", "")
    assert rf"\begin{{tabular}}{{l{'r' * head.count(',')}}}" in latex and r"\bottomrule" in latex


def test_a_refused_clipboard_shows_the_text_instead(visit, pages):
    page = visit(pages["comparison"])
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('refused')); }")
    page.get_by_role("button", name="Copy Results as CSV").click()
    area = page.get_by_role("textbox", name="Text to copy")
    assert area.input_value().startswith("method,Local")
    assert area.evaluate("area => area.selectionEnd - area.selectionStart") == len(area.input_value())
    page.keyboard.press("Escape")
    assert not area.is_visible()


def test_a_reader_saves_the_settings(visit, pages, compared):
    page = visit(pages["comparison"])
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save config.toml").click()
    assert saved.value.suggested_filename == "config.toml"
    assert Path(saved.value.path()).read_text() == fedpgp.load_comparison(compared).runs[0].config.to_toml()


def test_a_click_in_a_legend_shows_one_method_and_the_keyboard_reaches_everything(visit, pages):
    page = visit(pages["report"])
    chart = page.locator('[data-chart$="-tradeoff"]')
    chart.scroll_into_view_if_needed()
    chart.locator("svg.marks").wait_for()
    before = chart.locator("svg.marks").evaluate("svg => svg.outerHTML")
    box = chart.locator(".role-legend-symbol path").first.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_function(
        "before => document.querySelector('[data-chart$=\"-tradeoff\"] svg.marks').outerHTML != before", arg=before
    )
    pictures = page.locator(".pictures img")
    assert pictures.count() > 0 and pictures.first.evaluate("image => image.naturalWidth") > 0
    reached = set()
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    for _ in range(110):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.textContent")
        )
    assert {"Trade-off of each method", "Table: Results", "Copy Results as CSV", "Local"} <= reached
