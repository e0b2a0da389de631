"""Files and figures of a score: what `fedpgp score -o DIR` writes."""

import json
from functools import partial
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType

from fedpgp.report.style import COLOURS, write_chart
from fedpgp.results.formats import frame_to_csv
from fedpgp.runtime.files import write, write_json
from fedpgp.serving.score import Score
from fedpgp.serving.score_tables import FRAMES

RECORD = "score.json"
MOST = 100  # classes in a matrix
COUNTED = 30  # most classes of a matrix with numbers in its cells
RIGHT, WRONG = COLOURS[6], COLOURS[3]  # blue and vermilion, which colour-blind readers can tell apart
SMALL = 9  # size of a font
SIDE = 320  # pixels of the reliability diagram


def write_score(score: Score, directory: Path) -> None:
    """Write a score into an existing directory: its tables as CSV, score.json, confusion.png and reliability.png.

    The figures show `score.first`.
    """
    for name in FRAMES:
        file = directory / f"{'scores' if name == 'models' else name}.csv"
        write(file, frame_to_csv(getattr(score, name)).encode())
    write_chart(directory, "confusion", confusion_chart(score), ["png"])
    write_chart(directory, "reliability", reliability_chart(score), ["png"])
    write_json(directory / RECORD, score.as_json())


def is_score(directory: Path) -> bool:
    """Return whether a directory is empty, or contains a score."""
    if directory.is_dir() and not any(directory.iterdir()):
        return True
    try:
        return "calibration_error" in json.loads((directory / RECORD).read_text(encoding="utf-8"))["models"][0]
    except (OSError, ValueError, LookupError, TypeError):
        return False


def confusion_chart(score: Score) -> ChartType:
    """Return the confusion matrix of `score.first`, with a row for each true class.

    It has the classes that have an image or are an answer. If they are more than 100, it has the 100 with the most
    wrong answers.
    """
    counts, names = score.counts(score.first), list(score.candidates)
    both = counts.sum(0) + counts.sum(1)
    shown, subtitle = np.flatnonzero(both), ""
    if len(shown) > MOST:
        wrong = both - 2 * counts.diagonal()
        shown = np.sort(np.argsort(-wrong, kind="stable")[:MOST])
        subtitle = f"the {MOST} classes with the most wrong answers, of {np.count_nonzero(both)}; confusion.csv has all"
    rows, columns = np.nonzero(counts[np.ix_(shown, shown)])
    truth, predicted = shown[rows], shown[columns]
    images = counts[truth, predicted]
    frame = pd.DataFrame(
        {
            "truth": [names[place] for place in truth],
            "predicted": [names[place] for place in predicted],
            "answer": np.where(truth == predicted, "right", "wrong"),
            "images": images,
            "share": 100 * images / counts[truth].sum(1),
        }
    )
    order = [names[place] for place in shown]
    step = alt.Step(12 if len(order) > COUNTED else 22)
    scale = alt.Scale(domain=order)
    axis = partial(alt.Axis, labelOverlap=False, grid=True, gridOpacity=0.25, tickBand="extent", labelLimit=120)
    x = alt.X("predicted:N", title="predicted class", scale=scale, axis=axis(labelAngle=-90))
    y = alt.Y("truth:N", title="true class", scale=scale, axis=axis())
    base = alt.Chart(frame, width=step, height=step).encode(x, y)
    strength = alt.Scale(domain=[0, 100], range=[0.15, 1])
    layers = [
        base.mark_rect().encode(
            color=alt.Color(
                "answer:N", title="answer", scale=alt.Scale(domain=["right", "wrong"], range=[RIGHT, WRONG])
            ),
            opacity=alt.Opacity("share:Q", title="% of the true class", scale=strength),
        )
    ]
    if len(order) <= COUNTED:
        colour = alt.condition("datum.share > 50", alt.value("white"), alt.value("black"))
        layers.append(base.mark_text(fontSize=9).encode(text="images:Q", color=colour))
    return alt.layer(*layers, title=alt.Title(_title(score), subtitle=subtitle, subtitleFontSize=SMALL))


def reliability_chart(score: Score) -> ChartType:
    """Return accuracy against confidence of `score.first` by bin, above the number of images in each bin."""
    frame = score.reliability[score.reliability["model"] == score.first]
    model = score.models.iloc[0]
    value, low, high = (f"{model[f'calibration_error{end}']:.1f}" for end in ("", "_low", "_high"))
    explained = f"ECE {value} ({low} to {high}); lines: 95 % intervals; dashed: perfect calibration"
    title = alt.Title(_title(score), subtitle=explained, subtitleFontSize=SMALL)
    share = alt.Scale(domain=[0, 100])
    filled = alt.Chart(frame).transform_filter("datum.images > 0")
    x = alt.X("confidence:Q", title="probability of the predicted class (%), mean of the bin", scale=share)
    ideal = pd.DataFrame({"confidence": [0, 100], "accuracy": [0, 100]})
    y = alt.Y("accuracy:Q", title="accuracy (%)", scale=share)
    layers = [
        alt.Chart(ideal).mark_line(strokeDash=[4, 3], strokeWidth=1, color=COLOURS[0]).encode(x, y),
        filled.mark_rule(color=RIGHT).encode(x, alt.Y("low:Q", title="accuracy (%)", scale=share), y2="high:Q"),
        filled.mark_line(strokeWidth=1, color=RIGHT, opacity=0.5).encode(x, y),
        filled.mark_point(filled=True, size=40, color=RIGHT, opacity=1).encode(x, y),
    ]
    bars = (
        filled.mark_bar(color=COLOURS[0], binSpacing=1)
        .encode(
            alt.X("from:Q", title="probability of the predicted class (%)", scale=share, bin="binned"),
            x2="to:Q",
            y=alt.Y("images:Q", title="images"),
        )
        .properties(width=SIDE, height=SIDE // 4)
    )
    return alt.vconcat(alt.layer(*layers, width=SIDE, height=SIDE, title=title), bars)


def _title(score: Score) -> str:
    return f"{score.method}, {score.first}, on {score.folder}: {score.models['images'].iloc[0]} images"
