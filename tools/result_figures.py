"""Draw the figures of docs/results again, with the charts of fedpgp.

    python tools/result_figures.py                                  # the figures whose numbers are in docs/results
    python tools/result_figures.py --study DIRECTORY --into FOLDER  # the figures of a finished reproduction

Learning curves, the figures of photographs, and the paths of styles.png and styles-classes.png need the directories of
the runs, because docs/results does not have their numbers. A figure is drawn only if it already exists. PNG files have
128 colours, which makes them three times smaller.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from altair.typing import ChartType
from fedpgp.report import charts, frames
from fedpgp.report.ablation import SHOWN as ABLATED
from fedpgp.report.grid import write_figures
from fedpgp.report.style import rendered
from fedpgp.report.tables import TITLES
from fedpgp.studies.axes import is_numeric, slug
from fedpgp.studies.reproduction import load_reproduction
from PIL import Image

from common import ROOT, read_table  # isort: skip

RESULTS = ROOT / "docs" / "results"
ICONS = RESULTS / "icons"
PRINTED = {  # figure -> file with mean ± standard deviation, axis
    "base-to-novel-shots": ("base-to-novel", "shots"),
    "personalization-shots": ("personalization", "shots"),
    "leave-one-domain-out-held-out": ("leave-one-domain-out", "held-out"),
    "new-clients-shots": ("new-clients", "shots"),
    "full-rank-personal-part": ("full-rank", "personal-part"),
    **{f"{name}-{name}": (name, name) for name in ("bottleneck", "shots", "mu", "terms", "context-length")},
    **{f"{name}-{name}": (name, name) for name in ("participation", "clients")},
}
METRICS = {name: TITLES[name] for name in frames.SHOWN}


def save(chart: ChartType, path: Path) -> None:
    """Write a chart as PNG, and as PDF if there is one."""
    save_png(rendered(chart, "png"), path)
    if path.with_suffix(".pdf").exists():
        path.with_suffix(".pdf").write_bytes(rendered(chart, "pdf"))


def save_png(content: bytes, path: Path) -> None:
    """Write a PNG with 128 colours."""
    picture = Image.open(io.BytesIO(content)).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")


def of_runs(rows: Sequence[dict[str, str]], axis: str) -> list[frames.Point]:
    """Return the points of a file with a row for each run."""
    return [(row["method"], row[axis], {name: float(row[name]) for name in TITLES if row.get(name)}) for row in rows]


def of_texts(rows: Sequence[dict[str, str]], axis: str) -> pd.DataFrame:
    """Return the frame of a table with texts such as "64.2 ± 0.1"; labels are in a column, or before the metrics."""
    found = []
    for row in rows:
        for name, text in row.items():
            label, _, metric = name.rpartition(" ") if axis not in row else (row[axis], "", name)
            if metric in {*METRICS.values(), "Held-out"} and "shared part" not in row["method"]:
                mean, _, deviation = map(str.strip, text.partition("±"))
                low, high = (float(mean) + sign * float(deviation or 0) for sign in (-1, 1))
                found.append([row["method"], metric, label, float(mean), low, high])
    return pd.DataFrame(found, columns=["method", "metric", "label", "mean", "low", "high"])


def draw_committed() -> None:
    """Draw every figure whose numbers are committed."""
    for path, figure in (
        (RESULTS / "photographs" / "path.csv", RESULTS / "photographs" / "comparison.png"),
        (RESULTS / "base-to-novel-path.csv", RESULTS / "base-to-novel.png"),
    ):
        save(charts.tradeoff(pd.read_csv(path), "HM(Base, Novel)"), figure)
    for name, (file, axis) in PRINTED.items():
        frame = of_texts(read_table(ICONS / f"{file}.csv"), axis)
        joined = is_numeric(list(frame["label"].unique()))
        save(charts.curves(frame, axis, joined=joined), RESULTS / "reproduction" / f"{name}.png")
    draw_ablations()


def draw_ablations() -> None:
    """Draw the ablations on icons; zero-shot CLIP is in the comparison with the same config."""
    (zero,) = (row for row in read_table(RESULTS / "base-to-novel.csv") if row["method"] == "zero-shot" and row["area"])
    level = [("zero-shot", None, {name: float(zero[name]) for name in ABLATED})]
    named = {name: TITLES[name] for name in ABLATED}
    rows = read_table(RESULTS / "ablations" / "ablation.csv")
    same = {(row["seed"], row["cm"]) for row in rows if row["setting"] == "as it stands"}
    for study in dict.fromkeys(row["study"] for row in rows):
        of_study = [row for row in rows if row["study"] == study]
        standing = {row["setting"] for row in of_study if (row["seed"], row["cm"]) in same}
        frame = frames.spreads("label", [*of_runs(of_study, "setting"), *level], named)
        drawn = charts.curves(frame, study, title=of_study[0]["method"], standing=sorted(standing))
        save(drawn, RESULTS / "ablations" / f"{study}.png")


def draw_study(directory: Path, folder: Path) -> None:
    """Draw the figures of a finished reproduction that exist in a folder, also the learning curves."""
    study = load_reproduction(directory)
    with TemporaryDirectory() as temporary:
        for part in study.parts:
            for name in write_figures(study, part, Path(temporary), f"{slug(part.name or directory.name)}-"):
                if (folder / f"{name}.png").exists():
                    save_png((Path(temporary) / f"{name}.png").read_bytes(), folder / f"{name}.png")
                if (folder / f"{name}.pdf").exists():
                    (folder / f"{name}.pdf").write_bytes((Path(temporary) / f"{name}.pdf").read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, help="directory of a finished reproduction")
    parser.add_argument("--into", type=Path, default=RESULTS / "photographs", help="folder of its figures")
    asked = parser.parse_args()
    if asked.study:
        draw_study(asked.study, asked.into.resolve())
    else:
        draw_committed()


if __name__ == "__main__":
    main()
