"""All charts, in Altair. The page, files and notebooks use the same charts; `frames` computes their data.

A click on a method in the legend fades all other methods; a click next to the legend shows all methods again.
"""

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd
from altair.typing import ChartType

from fedpgp.report.style import COLOURS, series

COLUMN = 240  # width of a panel in pixels: one column of a two-column paper at 72 pixels per inch
TOGETHER = 8  # most methods in one panel of a trade-off
ACROSS = 4  # panels in a row, if there are more methods
CROWDED = 40  # most letters of horizontal labels below one panel
NAMED = 60  # most classes or clients that an axis can label
FREE = alt.Scale(zero=False)
REVERSED = alt.Scale(scheme="viridis", reverse=True)
# Vega numbers gradients during the life of a process: a figure with a gradient would have different bytes each time.
STEPS = alt.Legend(type="symbol", symbolType="square")


def curves(
    frame: pd.DataFrame,
    axis: str | None = None,
    *,
    unit: str = "%",
    title: str = "",
    legend: str | None = None,
    joined: bool = True,
    standing: Sequence[str] = (),
) -> ChartType:
    """Return a panel for each metric: the mean of each method over the rounds, or over the labels of an axis.

    Bands and bars show one standard deviation. Values of round 0, or without a label, are dashed horizontal lines.

    Parameters
    ----------
    frame
        Result of `frames.spreads`.
    axis
        Name of the axis that has the labels; None if the horizontal axis has the rounds.
    unit
        Unit of the vertical axis.
    title
        Title of the chart.
    legend
        Title of the legend.
    joined
        Whether lines connect the points.
    standing
        Labels with a grey background.
    """
    if axis is None:
        at, level = alt.X("round:Q", axis=alt.Axis(tickMinStep=1, format="d")), "datum.round == 0"
    else:
        labels, level = list(frame["label"].dropna().unique()), "datum.label == null"
        angle = -40 if sum(map(len, labels)) > CROWDED else 0
        at = alt.X("label:O", title=axis, scale=alt.Scale(domain=labels), axis=alt.Axis(labelAngle=angle))
    look, picked = series(list(frame["method"].unique()), legend), _picked()
    mean = alt.Y("mean:Q", title=unit, scale=FREE)
    base = alt.Chart().encode(color=look["color"])
    placed = base.transform_filter(f"!({level})").encode(at)
    spread = placed.mark_area(opacity=0.12, aria=False) if axis is None else placed.mark_rule(aria=False)
    layers = [
        # The legend belongs to the first layer.
        spread.encode(alt.Y("low:Q", title=unit, scale=FREE), y2="high:Q").add_params(picked).transform_filter(picked),
        base.transform_filter(level).mark_rule(strokeDash=[4, 3], aria=False).encode(mean, opacity=_faded(picked)),
        placed.mark_point(filled=True, size=24).encode(
            mean, shape=look["shape"], opacity=_faded(picked), tooltip=["method", "metric", at.shorthand, "mean"]
        ),
    ]
    if joined:
        layers.insert(1, placed.mark_line(strokeWidth=1.5).encode(mean, opacity=_faded(picked)))
    if standing:
        stands = alt.FieldOneOfPredicate("label", list(standing))
        layers.append(alt.Chart().mark_rect(color=COLOURS[0], opacity=0.12).encode(at).transform_filter(stands))
    metrics = alt.Facet("metric:N", sort=list(frame["metric"].unique()), title=None)
    panel = alt.layer(*layers, data=frame, width=COLUMN, height=150)
    return panel.facet(metrics, columns=2, title=title or alt.Undefined).resolve_scale(y="independent")


def tradeoff(frame: pd.DataFrame, others: str) -> ChartType:
    """Return a chart of Local against `others`: the path of each method, and the personal models of each seed.

    With more than eight methods, each method has its own panel, with all other methods in grey.

    Parameters
    ----------
    frame
        Result of `frames.tradeoff`.
    others
        Name of the metric of the vertical axis.
    """
    methods, picked = list(frame["method"].unique()), _picked()
    single = len(methods) <= TOGETHER
    look = series(methods) if single else {"color": alt.value(COLOURS[3])}
    x = alt.X("mean(local):Q", title=["Local (%)", "on the client's own images"], scale=FREE)
    y = alt.Y("mean(others):Q", title=[f"{others} (%)", "on images of all classes"], scale=FREE)
    base = alt.Chart().encode(x, y, color=look["color"], opacity=_faded(picked))
    own = base.transform_filter("datum.alpha == 1")
    layers = [
        base.mark_line(strokeWidth=1.3, point=alt.OverlayMarkDef(size=12)).encode(order="alpha:Q").add_params(picked),
        own.mark_circle(size=16).encode(detail="seed:N", opacity=_faded(picked, 0.4)),
        own.mark_point(size=70, filled=True).encode(**look, tooltip=["method", "mean(local)", "mean(others)"]),
    ]
    if single:
        return alt.layer(*layers, data=frame, width=1.6 * COLUMN, height=300)
    grey = frame.rename(columns={"method": "other"})
    behind = alt.Chart(grey).encode(x, y, detail="other:N", color=alt.value("#BBB"))
    layers = [
        behind.mark_line(strokeWidth=0.7).encode(order="alpha:Q"),
        behind.mark_circle(size=12).transform_filter("datum.alpha == 1"),
        *layers,
    ]
    panels = alt.layer(*layers, data=frame, width=0.6 * COLUMN, height=0.5 * COLUMN)
    return panels.facet(alt.Facet("method:N", sort=methods, title=None), columns=ACROSS)


def holdings(frame: pd.DataFrame, title: str) -> ChartType:
    """Return a chart of the number of training images of every class (rows) and client (columns); none is white."""
    clients, classes = list(frame["client"].unique()), list(frame["class"].unique())
    return (
        alt.Chart(frame, title=title, width=min(860, 12 * len(clients)), height=min(1000, 12 * len(classes)))
        .transform_filter("datum.images > 0")
        .mark_rect()
        .encode(
            alt.X("client:N", scale=alt.Scale(domain=clients), axis=_named(clients)),
            alt.Y("class:N", scale=alt.Scale(domain=classes), axis=_named(classes)),
            color=alt.Color("images:Q", title="training images", scale=REVERSED, legend=STEPS),
        )
    )


def _named(names: Sequence[str]) -> alt.Axis:
    return alt.Axis(labels=len(names) <= NAMED, ticks=len(names) <= NAMED, labelOverlap=False)


def clients(frame: pd.DataFrame) -> ChartType:
    """Return a chart with a dot for each client and seed: the change of Local by the personal model."""
    gain = alt.X("gain:Q", title="change of a client's Local (percentage points)")
    dots = (
        alt.Chart()
        .mark_circle(size=28, opacity=0.6)
        .encode(
            gain,
            alt.Y("method:N", sort=list(frame["method"].unique()), title=None),
            yOffset="jitter:Q",
            color=alt.condition("datum.gain < 0", alt.value(COLOURS[3]), alt.value(COLOURS[6])),
            tooltip=["method", "client:N", "seed:N", "local", "gain", "over", "classes"],
        )
        .transform_calculate(jitter="sin(datum.client * 12.9898 + datum.seed * 78.233)")
    )
    zero = alt.Chart().mark_rule(strokeDash=[3, 3], color="#888888", aria=False).encode(x=alt.datum(0))
    return alt.layer(zero, dots, data=frame, width=1.8 * COLUMN, height=alt.Step(26))


def confusion(frame: pd.DataFrame) -> ChartType:
    """Return a chart of confused pairs of classes; size and colour show the share."""
    return (
        alt.Chart(frame, width=alt.Step(18), height=alt.Step(14))
        .mark_circle()
        .encode(
            alt.X("predicted:N", title="predicted class", axis=alt.Axis(labelAngle=-60)),
            alt.Y("truth:N", title="true class"),
            size=alt.Size("share:Q", title="%"),
            color=alt.Color("share:Q", title="%", scale=REVERSED),
            tooltip=["truth", "predicted", "share"],
        )
    )


def by_class(frame: pd.DataFrame) -> ChartType:
    """Draw a bar for each class, with base and novel classes in two colours."""
    return (
        alt.Chart(frame, width=alt.Step(11), height=180)
        .mark_bar()
        .encode(
            alt.X("class:N", sort="y", title=None, axis=alt.Axis(labelAngle=-60)),
            alt.Y("accuracy:Q", title="%", scale=alt.Scale(domain=[0, 100])),
            color=alt.Color("set:N", title=None, scale=alt.Scale(domain=["base", "novel"], range=COLOURS[:2])),
            tooltip=["class", "set", "accuracy", "images"],
        )
    )


def client_by_class(frame: pd.DataFrame) -> ChartType:
    """Return a chart of the accuracy of each client on each class; outlined: classes that the client trained on."""
    height = alt.Step(13 if frame["client"].nunique() < 40 else 5)
    base = alt.Chart(frame, width=alt.Step(13), height=height).encode(
        alt.X("class:N", title=None, axis=alt.Axis(labelAngle=-60)), alt.Y("client:O")
    )
    cells = base.mark_rect().encode(
        color=alt.Color("accuracy:Q", title="%", scale=alt.Scale(scheme="viridis", domain=[0, 100]), legend=STEPS),
        tooltip=["client:N", "class", "accuracy", "own"],
    )
    own = base.transform_filter("datum.own").mark_rect(filled=False, stroke=COLOURS[3], strokeWidth=1.5)
    return alt.layer(cells, own)


def singular_values(frame: pd.DataFrame) -> ChartType:
    """Return a chart of singular values with a line for each client."""
    return (
        alt.Chart(frame, width=1.4 * COLUMN, height=180)
        .mark_line(point=alt.OverlayMarkDef(size=18), opacity=0.6, strokeWidth=1)
        .encode(
            alt.X("index:O", title="singular value", axis=alt.Axis(labelAngle=0)),
            alt.Y("value:Q", title="value"),
            detail="client:N",
            color=alt.Color("client:N", legend=None, scale=alt.Scale(scheme="viridis")),
            tooltip=["client:N", "index", "value"],
        )
    )


def text_features(frame: pd.DataFrame) -> ChartType:
    """Return a chart with a panel for each projection: the text features of each prompt and class."""
    shape = alt.Shape(
        "kind:N",
        legend=alt.Legend(title=None, symbolFillColor=COLOURS[0]),
        scale=alt.Scale(range=["circle", "diamond", "cross"]),
    )
    return (
        alt.Chart(frame, width=1.3 * COLUMN, height=260)
        .mark_point(filled=True, size=34, opacity=0.8)
        .encode(
            alt.X("x:Q", axis=None),
            alt.Y("y:Q", axis=None),
            color=alt.Color("prompt:N", title=None, sort=None, scale=alt.Scale(range=COLOURS)),
            shape=shape,
            tooltip=["prompt", "class", "projection"],
        )
        .facet(alt.Facet("projection:N", title=None), columns=2)
        .resolve_scale(x="independent", y="independent")
    )


def _picked() -> alt.Parameter:
    return alt.selection_point(fields=["method"], bind="legend")


def _faded(picked: alt.Parameter, opacity: float = 1.0) -> Any:
    return alt.condition(picked, alt.value(opacity), alt.value(0.08))
