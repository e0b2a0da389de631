"""Fill the tables of the results pages from the result files, and compare the figures in their text with the files.

    python tools/results_pages.py            # write the tables
    python tools/results_pages.py --check    # exit code 1 if a page and the result files differ

A page marks where a table comes from, and this tool fills the lines between the two marks:

    <!-- table: results/photographs/reproduction.md; label-shift: last round -->
    <!-- end -->

The mark names a file below docs, and what to take from it:

FILE.md; LINE              the first table below the line that starts with LINE, in a file that fedpgp wrote
FILE.csv                   the table of a comparison that `fedpgp compare` wrote as CSV
FILE-differences.csv; NAME the differences between the method NAME and every other method
any other FILE.csv         its cells as they are

The text of a page may quote a figure with ±, an interval ("1.8 to 3.6", but not "from 1.8 to 3.6"), a ratio ("44 times
as fast", "1.8×") or a number with one decimal only if the page names the record of this number:

<!-- figures: FILE -->      a further file below docs, also another page
<!-- measured: COMMAND -->  the paragraph, list or table below the mark: the only record of what the command measured
<!-- numbers: 3.2 4.5 -->   numbers of other sources, such as settings and versions

Blocks of printed output are such records, too; tests/docs compares some of them with what fedpgp prints. A ratio may be
rounded. Whole numbers, numbers with more decimals and code are not checked.
"""

import argparse
import csv
import re
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from fedpgp.evaluation.bootstrap import METRICS, Difference
from fedpgp.report.tables import TITLES, difference_text, figure_text
from fedpgp.results import formats
from fedpgp.results.formats import Mark, TableCell

DOCS = Path(__file__).resolve().parents[1] / "docs"
OTHERS = ("fidelity.md", "published-settings.md")  # made from other files, and compared with them by other tests
PAGES = ("../README.md", *sorted(path.name for path in DOCS.glob("*.md") if path.name not in OTHERS))
TABLE = re.compile(r"^<!-- table: (.+?)(?:; (.+?))? -->\n((?:.*\n)*?)<!-- end -->$", re.MULTILINE)
FIGURES = re.compile(r"^<!-- figures: (.+?) -->$", re.MULTILINE)
NUMBERS = re.compile(r"^<!-- numbers: (.+?) -->$", re.MULTILINE)
MEASURED = re.compile(r"^ *<!-- measured: .+? -->\n\n((?:.*\S.*\n)+)", re.MULTILINE)
BLOCK = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`|\]\([^)\n]*\)|<!--.*?-->")
LINK = re.compile(r"\]\((results/[^)#]+)")
FIGURE = re.compile(r"\d+(?:\.\d+)? ± \d+(?:\.\d+)?")
NUMBER = re.compile(r"(?<![\d.])\d+\.\d(?!\.?\d)")
RATIO = re.compile(r"(?<![\d.,])(\d+(?:\.\d+)?)(?=\*{0,2}(?:×(?! \d)| times as (?:fast|much|many|large|long)))")
INTERVAL = re.compile(r"(?<![\d.])(?<!from )([+-]?\d+\.\d) to ([+-]?\d+\.\d)")


def readable(text: str) -> str:
    """Return a text with intervals as "1.8 to 3.6", and without the word "alone", which stands for "only"."""
    return re.sub(r"\balone\b", "only", re.sub(r"(\d\.\d)\.\.([+−-]?\d)", r"\1 to \2", text))


def figures_of(file: str) -> str:
    """Return a result file as text: a comparison as its table, and differences rounded, each with its interval."""
    text = (DOCS / file).read_text(encoding="utf-8")
    if file.endswith("-differences.csv"):
        rows = [map(float, list(row.values())[-3:]) for row in csv.DictReader(text.splitlines())]
        return "\n".join("{:+.1f} {:+.1f} to {:+.1f}".format(*row) for row in rows)
    return table(file, "") if "local_std" in text.partition("\n")[0] else readable(text)


def table(file: str, what: str) -> str:
    """Return one table of a result file as Markdown."""
    path = DOCS / file
    if path.suffix == ".md":
        return table_below(path, what)
    with path.open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    if file.endswith("-differences.csv"):
        return differences_from(rows, what)
    if "local_std" in rows[0]:
        return comparison(rows, path)
    return markdown(list(rows[0]), [[TableCell(text) for text in row.values()] for row in rows])


def table_below(path: Path, line: str) -> str:
    """Return the first table below the line that starts with `line`; "#" and blanks before its text do not count."""
    lines = iter(path.read_text(encoding="utf-8").splitlines())
    for text in lines:
        if text.lstrip("# ").startswith(line):
            break
    rows = []
    for text in lines:
        if text.startswith("|"):
            rows.append(text)
        elif rows or text.startswith("#"):
            break
    if not rows:
        raise SystemExit(f"{path}: no table below a line that starts with {line!r}")
    return readable("\n".join(rows))


def markdown(header: list[str], rows: list[list[TableCell]]) -> str:
    """Return a table as fedpgp writes it, in the words of the pages."""
    return readable(formats.markdown(formats.Table("", header, rows))).strip()


def comparison(rows: list[dict[str, str]], path: Path) -> str:
    """Return the table of a comparison: mean ± standard deviation, marks, rank, KiB and seconds."""
    shown = [name for name in TITLES if f"{name}_std" in rows[0]]
    own = [row for row in rows if row["part"] == "client"]
    shared = {row["method"]: row for row in rows if row["part"] == "shared"}
    every_seed = max((row["seeds"] for row in own), key=len)
    with path.with_name(f"{path.stem}-differences.csv").open(encoding="utf-8", newline="") as opened:
        differences = {(row["first"], row["second"], row["metric"]): row for row in csv.DictReader(opened)}
    lines = []
    for row in own:
        cells = [TableCell(row["method"] + ("" if row["seeds"] == every_seed else f" (seed {row['seeds']})"))]
        for name in shown:
            best = max((one for one in own if one["seeds"] == every_seed), key=lambda one: float(one[name]))
            mark: Mark | None = "best" if best is row else None
            if best is not row and name in METRICS:
                low, high = (float(differences[row["method"], best["method"], name][end]) for end in ("low", "high"))
                mark = "same" if low <= 0 <= high else "above" if low > 0 else None
            cells.append(TableCell(figure(row, name), mark if name in METRICS else None))
        kib = float(row["bytes_up_per_client_round"]) / 1024
        after = f"{float(row['rank']):.1f}", f"{kib:g}", f"{float(row['seconds']):.0f}"
        lines.append([*cells, *map(TableCell, after)])
        other = shared.get(row["method"], row)
        if any(figure(other, name) not in ("", figure(row, name)) for name in shown):
            texts = [f"{row['method']}, shared part", *(figure(other, name) for name in shown), "", "", ""]
            lines.append(list(map(TableCell, texts)))
    return markdown(["method", *(TITLES[name] for name in shown), "rank", "KiB up", "seconds"], lines)


def figure(row: dict[str, str], name: str) -> str:
    """Return mean ± standard deviation of a figure, "" if the row has none."""
    if not row[name]:
        return ""
    return figure_text(float(row[name]), float(row[f"{name}_std"]) if row[f"{name}_std"] else None)


def differences_from(rows: list[dict[str, str]], method: str) -> str:
    """Return the differences between a method and every other method, with their intervals."""
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["first"] == method:
            numbers = Difference(*(float(row[name]) for name in ("first_minus_second", "low", "high")))
            lines.setdefault(row["second"], {})[row["metric"]] = difference_text(numbers)
    shown = [name for name in METRICS if name in next(iter(lines.values()))]
    cells = [[other, *(texts[name] for name in shown)] for other, texts in lines.items()]
    return markdown(
        [f"{method} minus", *(TITLES[name] for name in shown)], [list(map(TableCell, row)) for row in cells]
    )


def filled(page: str) -> str:
    """Return a page with its tables from the result files."""

    def fill(match: re.Match[str]) -> str:
        file, what = match[1], match[2] or ""
        mark = f"{file}; {what}" if what else file
        return f"<!-- table: {mark} -->\n\n{table(file, what)}\n\n<!-- end -->"

    return TABLE.sub(fill, page)


def problems(name: str) -> Iterator[str]:
    """Yield what differs between a page and the result files, each with the page and the mark or the line."""
    page, shown = (DOCS / name).read_text(encoding="utf-8"), f"docs/{name}".removeprefix("docs/../")
    known = [*map(figures_of, FIGURES.findall(page)), *MEASURED.findall(page), *BLOCK.findall(page)]
    for match in TABLE.finditer(page):
        expected = table(match[1], match[2] or "")
        known.append(expected)
        found = match[3].strip()
        for here, there in zip_longest(found.splitlines(), expected.splitlines(), fillvalue="nothing"):
            if here != there:
                yield f"{shown}, table: {match[1]}; {match[2] or ''}\n  page: {here}\n  file: {there}"
                break
    written = "\n".join(known).replace("−", "-")
    figures = set(FIGURE.findall(written))
    intervals = {(float(low), float(high)) for low, high in INTERVAL.findall(written)}
    intervals |= {(-high, -low) for low, high in intervals}
    numbers = {*NUMBER.findall(written), *" ".join(NUMBERS.findall(page)).split()}
    ratios = {float(text) for text in RATIO.findall(written)}
    prose = page
    for left_out in (TABLE, MEASURED, BLOCK, CODE):
        prose = left_out.sub(lambda match: "\n" * match[0].count("\n"), prose)  # the lines keep their numbers
    lines = readable(prose).replace("−", "-").splitlines()
    for number, line in enumerate(lines, 1):
        joined = (
            f"{line} {lines[number].strip() if number < len(lines) else ''}"  # a figure may be split over two lines
        )
        for text in FIGURE.finditer(joined):
            if text.start() < len(line) and text[0] not in figures:
                yield f"{shown}:{number}: no file that the page names has {text[0]}"
        for text in INTERVAL.finditer(joined):
            if text.start() < len(line) and (float(text[1]), float(text[2])) not in intervals:
                yield f"{shown}:{number}: no file that the page names has the interval {text[0]}"
        for text in RATIO.finditer(joined):
            decimals = len(text[0].partition(".")[2])
            if text.start() < len(line) and not {text[0]} & {*numbers, *(f"{ratio:.{decimals}f}" for ratio in ratios)}:
                yield f"{shown}:{number}: no file that the page names has the ratio {text[0]}"
        for single in NUMBER.findall(FIGURE.sub("", INTERVAL.sub("", RATIO.sub("", line)))):
            if single not in numbers:
                yield f"{shown}:{number}: no file that the page names has {single}"
    for file in LINK.findall(page):
        if not (DOCS / file).exists():
            yield f"{shown}: {file} does not exist"


def main() -> None:
    """Write the tables, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", default=list(PAGES), help="paths of pages, relative to docs")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page differs")
    arguments = parser.parse_args()
    if not arguments.check:
        for name in arguments.pages:
            path = DOCS / name
            path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
    found = [problem for name in arguments.pages for problem in problems(name)]
    print("\n".join(found), file=sys.stderr)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
