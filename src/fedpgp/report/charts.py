"""All charts, in Altair. The page, files and notebooks use the same charts; `frames` computes their data.

A click on a method in the legend fades all other methods; a click next to the legend shows all methods again.
"""

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd
from altair.typing import ChartType

from fedpgp.report.axes import FREE, MEANINGS, described, meanings, room, wide
from fedpgp.report.style import BLUE, COLOURS, GREY, ORANGE, RED, TEAL, Series

COLUMN = 240  # width of a panel in pixels: one column of a two-column paper at 72 pixels per inch
TOGETHER = 8  # most methods in one panel of a trade-off
ACROSS = 4  # panels in a row, if there are more methods
CROWDED = 32  # most letters of horizontal labels below one panel
FEW = 10  # rounds that all get a label
TRADE_OFF = "Trade-off of each method"
NAMED = 60  # most classes or clients that an axis can label
REVERSED = alt.Scale(scheme="viridis", reverse=True)
SHARES = alt.Scale(scheme=alt.SchemeParams("viridis", extent=[0.3, 1]), domain=[0, 100])  # visible on a dark page
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

    Bands and bars show one standard deviation. Values of round 0, or without a label, are dashed horizontal lines. The
    text above the panels says so.

    Parameters
    ----------
    frame
        Result of `frames.spreads`.
    axis
        Name of the axis that has the labels; None if the horizontal axis has the rounds.
    unit
        Unit of the vertical axis.
    title
        Addition to the title.
    legend
        Title of the legend if the lines are the points of an axis instead of methods.
    joined
        Whether lines connect the points.
    standing
        Labels with a grey background.
    """
    levels = frame["round"] == 0 if axis is None else frame["label"].isna()
    labels = [] if axis is None else list(frame["label"].dropna().unique())
    if axis is None:
        rounds = sorted(set(frame["round"]) - {0})
        # With few rounds, Vega would also put labels between two rounds.
        ticks = alt.Axis(tickMinStep=1, format="d", values=rounds if len(rounds) < FEW else alt.Undefined)
        at, level = alt.X("round:Q", axis=ticks), "datum.round == 0"
    else:
        angle = -40 if sum(map(len, labels)) > CROWDED else 0
        at = alt.X("label:O", title=axis, scale=alt.Scale(domain=labels), axis=alt.Axis(labelAngle=angle))
        level = "datum.label == null"
    look, picked = Series(list(frame["method"].unique()), legend, joined), _picked()
    mean = alt.Y("mean:Q", title=unit, scale=FREE)
    base = alt.Chart().encode(color=look.colour)
    placed = base.transform_filter(f"!({level})").encode(at)
    if not joined:  # each method has a place of its own, so that no bar covers another
        placed = placed.encode(xOffset=alt.XOffset("method:N", scale=alt.Scale(domain=list(look.names))))
    spread = placed.mark_area(opacity=0.12, aria=False) if axis is None else placed.mark_rule(aria=False)
    layers = [
        # The legend belongs to the first layer.
        look.key(base).add_params(picked),
        room(unit),
        spread.encode(alt.Y("low:Q", title=unit, scale=FREE), y2="high:Q").transform_filter(picked),
        base.transform_filter(level).mark_rule(aria=False).encode(mean, look.dash, opacity=_faded(picked)),
        look.marks(placed.mark_point(filled=True, size=24)).encode(
            mean, opacity=_faded(picked), tooltip=["method", "metric", at.shorthand, "mean"]
        ),
    ]
    if joined:
        layers.insert(3, placed.mark_line(strokeWidth=1.5).encode(mean, look.dash, opacity=_faded(picked)))
    if standing:
        stands = alt.FieldOneOfPredicate("label", list(standing))
        layers.append(alt.Chart().mark_rect(color=GREY, opacity=0.12).encode(at).transform_filter(stands))
    notes = ["Marks: mean over the clients, and over the seeds if there are several."]
    if (frame["high"] > frame["low"]).any():
        notes.append(f"{'Bands' if axis is None else 'Bars'}: one standard deviation over the seeds.")
    if levels.any():
        notes.append(f"Horizontal line: {', '.join(frame['method'][levels].unique())}, which does not train.")
    if standing:
        notes.append("Grey ground: the config without changes.")
    metrics = alt.Facet("metric:N", sort=list(frame["metric"].unique()), title=None, header=meanings(frame["metric"]))
    panels = alt.layer(*layers, data=frame, width=COLUMN, height=150).facet(metrics, columns=2)
    heading = f"Results over {axis or 'the rounds'}{title and f'; {title}'}"
    separate = panels.resolve_scale(y="independent").resolve_axis(x="independent")
    return separate.properties(title=described(heading, *notes))


def tradeoff(frame: pd.DataFrame, others: str) -> ChartType:
    """Return a chart of Local against `others`: the path of each method, and the personal models of each seed.

    With more than eight methods, each method has its own panel, with all other methods in grey. The text above the
    panels explains the marks.

    Parameters
    ----------
    frame
        Result of `frames.tradeoff`.
    others
        Name of the metric of the vertical axis.
    """
    methods, picked = list(frame["method"].unique()), _picked()
    single = len(methods) <= TOGETHER
    look = Series(methods)
    across = ["Local (%)", MEANINGS["Local"]]
    up = [f"{others} (%)", "harmonic mean of both" if others.startswith("HM") else MEANINGS["Base"]]
    x = alt.X("mean(local):Q", title=across if single else across[0], scale=wide(frame["local"]))
    y = alt.Y("mean(others):Q", title=up if single else up[0], scale=wide(frame["others"]))
    base = alt.Chart().encode(x, y, color=look.colour if single else look.colour.legend(None), opacity=_faded(picked))
    own = base.transform_filter("datum.alpha == 1")
    layers = [
        base.mark_line(strokeWidth=1.3).encode(look.dash, order="alpha:Q").add_params(picked),
        base.transform_filter("datum.alpha != 1").mark_circle(size=12, aria=False).encode(detail="alpha:Q"),
        look.marks(own.mark_point(size=30, strokeWidth=0.8)).encode(detail="seed:N"),
        look.marks(own.mark_point(size=70, filled=True)).encode(tooltip=["method", "mean(local)", "mean(others)"]),
    ]
    seeds = frame["seed"].nunique()
    notes = [f"Large mark: the clients' own models{f', mean over {seeds} seeds' if seeds > 1 else ''}."]
    if seeds > 1:
        notes.append("Small outlines: the clients' own models of each seed.")
    if (frame["alpha"] != 1).any():
        notes.append("Line with dots: from there to the shared model; each dot is a mixture of both.")
    if single:
        together = alt.layer(look.key(base), *layers, data=frame, width=1.6 * COLUMN, height=300)
        return together.properties(title=described(TRADE_OFF, *notes))
    notes += [f"{one[0]}: {one[1]}." for one in (across, up)]
    notes.append("Grey: all other methods.")
    grey = frame.rename(columns={"method": "other"})
    behind = alt.Chart(grey).encode(x, y, detail="other:N", color=alt.value(GREY), opacity=alt.value(0.5))
    layers = [
        behind.mark_line(strokeWidth=0.7).encode(order="alpha:Q"),
        behind.mark_circle(size=12).transform_filter("datum.alpha == 1"),
        *layers,
    ]
    panels = alt.layer(*layers, data=frame, width=0.6 * COLUMN, height=0.5 * COLUMN)
    faceted = panels.facet(alt.Facet("method:N", sort=methods, title=None), columns=ACROSS)
    # With shared axes, empty places in the last row would have axes.
    separate = faceted.resolve_axis(x="independent", y="independent")
    return separate.properties(title=described(TRADE_OFF, *notes))


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
    """Return a chart with a mark for each client and seed: the change of Local by the personal model."""
    look = Series(list(frame["method"].unique()))
    gain = alt.X("gain:Q", title="change of a client's Local (percentage points)")
    marks = (
        look.marks(alt.Chart().mark_point(size=30, filled=True, opacity=0.85))
        .encode(
            gain,
            alt.Y("method:N", sort=list(look.names), title=None),
            yOffset="jitter:Q",
            color=look.colour.legend(None),
            tooltip=["method", "client:N", "seed:N", "local", "gain", "over", "classes"],
        )
        .transform_calculate(jitter="sin(datum.client * 12.9898 + datum.seed * 78.233)")
    )
    zero = alt.Chart().mark_rule(strokeDash=[3, 3], color=GREY, aria=False).encode(x=alt.datum(0))
    over = " or ".join(
        {"shared part": "the shared model", "zero-shot": "zero-shot CLIP"}[one] for one in frame["over"].unique()
    )
    notes = ["A mark for each client and seed.", f"Right of the line: the client's own model is better than {over}."]
    return alt.layer(zero, marks, data=frame, width=1.8 * COLUMN, height=alt.Step(26)).properties(
        title=described("Change of Local by the clients' own models", *notes)
    )


def by_class(frame: pd.DataFrame) -> ChartType:
    """Draw a bar for each class, with base and novel classes in two colours."""
    title = described("Accuracy of each class", "Mean over the clients' own models.")
    sets = list(frame["set"].unique())
    colours = [{"base": TEAL, "novel": ORANGE}[name] for name in sets]
    return (
        alt.Chart(frame, title=title, width=alt.Step(11), height=180)
        .mark_bar()
        .encode(
            alt.X("class:N", sort="y", title=None, axis=alt.Axis(labelAngle=-60)),
            alt.Y("accuracy:Q", title="%", scale=alt.Scale(domain=[0, 100])),
            color=alt.Color("set:N", title=None, scale=alt.Scale(domain=sets, range=colours)),
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
        color=alt.Color("accuracy:Q", title="%", scale=SHARES, legend=STEPS),
        tooltip=["client:N", "class", "accuracy", "own"],
    )
    own = base.transform_filter("datum.own").mark_rect(filled=False, stroke=RED, strokeWidth=1.5)
    outlined = described("Accuracy of each client on each class", "Outlined: classes that the client trained on.")
    return alt.layer(cells, own).properties(title=outlined)


def singular_values(frame: pd.DataFrame) -> ChartType:
    """Return a chart of singular values with a line for each client."""
    title = described("Singular values of the clients' own part", "A line for each client.")
    return (
        alt.Chart(frame, title=title, width=1.4 * COLUMN, height=180)
        .mark_line(point=alt.OverlayMarkDef(size=18, color=BLUE), color=BLUE, strokeWidth=1)
        .encode(
            alt.X("index:O", title="singular value", axis=alt.Axis(labelAngle=0)),
            alt.Y("value:Q", title="value"),
            detail="client:N",
            tooltip=["client:N", "index", "value"],
        )
    )


def text_features(frame: pd.DataFrame) -> ChartType:
    """Return a chart with a panel for each projection: the text features of each prompt and class."""
    shape = alt.Shape(
        "kind:N",
        legend=alt.Legend(title=None, symbolFillColor=GREY),
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


def _faded(picked: alt.Parameter) -> Any:
    return alt.condition(picked, alt.value(1), alt.value(0.08))
