"""Axes of charts and headers of their panels."""

import json

import altair as alt
import pandas as pd

MEANINGS = {
    "Local": "each client's own test images",
    "Base": "all classes that clients train on",
    "Novel": "classes that no client trains on",
    "Held-out": "domains that no client has",
    "area": "under the curve of the trade-off",
}
FREE = alt.Scale(zero=False)
LEAST = 2.0  # least extent of an axis in percent, so that it does not magnify small differences


def described(title: str, *notes: str) -> alt.Title:
    """Return a title with lines below it that explain the marks, so that a picture needs no other text."""
    return alt.Title(title, subtitle=list(notes))


def meanings(metrics: "pd.Series[str]") -> alt.Header:
    """Return the headers of panels: each metric with what it measures."""
    other = next((name for name in metrics.unique() if name not in {"Local", "Base", "CM", "area"}), None)
    meanings = {**MEANINGS, "CM": f"mean of Local and {f'HM(Base, {other})' if other else 'Base'}"}
    texts = {name: f"{name}: {meaning}" for name, meaning in meanings.items()}
    return alt.Header(labelExpr=f"{json.dumps(texts)}[datum.value] || datum.value")


def wide(values: "pd.Series[float]") -> alt.Scale:
    """Return the scale of an axis in percent that has at least the least extent."""
    low, high = values.min(), values.max()
    if high - low >= LEAST:
        return FREE
    return alt.Scale(zero=False, domain=[(low + high - LEAST) / 2, (low + high + LEAST) / 2])


def room(unit: str) -> alt.Chart:
    """Return an invisible layer that gives the vertical axis of each panel of `charts.curves` the least extent."""
    extent = alt.Chart().transform_aggregate(low="min(low)", high="max(high)", groupby=["metric"])
    middle, half = "(datum.low + datum.high) / 2", LEAST / (2 if unit == "%" else 200)
    around = extent.transform_calculate(bottom=f"{middle} - {half}", top=f"{middle} + {half}")
    return around.mark_rule(opacity=0, aria=False).encode(alt.Y("bottom:Q", scale=FREE), y2="top:Q")
