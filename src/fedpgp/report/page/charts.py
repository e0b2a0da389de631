"""The figures of a page, in Vega-Lite: one description for the screen, for paper and for the numbers behind."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import pandas as pd

from fedpgp.report.style import COLOURS

alt.data_transformers.disable_max_rows()
SHAPES = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right", "stroke"]
COLUMN = 240  # width in pixels of a panel in one column of a two-column paper, at 72 to the inch
CONFIG = {
    "font": "Helvetica, Arial, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "gridOpacity": 0.4,
        "labelFontSize": 9,
        "titleFontSize": 9,
        "titleFontWeight": "normal",
        "labelLimit": 110,
    },
    "legend": {"labelFontSize": 9, "titleFontSize": 9, "symbolLimit": 60, "columns": 1, "labelLimit": 170},
    "header": {"labelFontSize": 9, "titleFontSize": 9},
}


@dataclass(frozen=True)
class Chart:
    """name: of its files; title, text: what it shows; frame: the numbers behind it; spec: of Vega-Lite."""

    name: str
    title: str
    text: str
    frame: pd.DataFrame
    spec: dict[str, Any]


def _made(name: str, title: str, text: str, frame: pd.DataFrame, chart: Any) -> Chart:
    spec = chart.properties(background="transparent").configure(**CONFIG).to_dict()
    spec["description"] = f"{title}. {text}"
    return Chart(name, title, text, frame, spec)


def _colour(methods: Sequence[str], **more: Any) -> alt.Color:
    """Colour-blind safe; beyond eight methods colours come again, with other marks."""
    # Black would vanish on a dark page.
    colours = ["#7F7F7F", *COLOURS[1:]]
    scale = alt.Scale(domain=list(methods), range=[colours[i % len(colours)] for i in range(len(methods))])
    return alt.Color("method:N", scale=scale, legend=alt.Legend(title=None, **more))


def _shape(methods: Sequence[str]) -> alt.Shape:
    shapes = [SHAPES[(i + i // len(SHAPES)) % len(SHAPES)] for i in range(len(methods))]
    return alt.Shape("method:N", scale=alt.Scale(domain=list(methods), range=shapes), legend=alt.Legend(title=None))


def _picked() -> alt.Parameter:
    """A click in the legend leaves one method; a click beside it brings the others back."""
    return alt.selection_point(fields=["method"], bind="legend")


def rounds(frame: pd.DataFrame) -> Chart:
    methods, picked = list(dict.fromkeys(frame["method"])), _picked()
    base = alt.Chart().encode(
        x=alt.X("round:Q", axis=alt.Axis(tickMinStep=1, format="d")),
        color=_colour(methods),
    )
    line = base.mark_line(strokeWidth=1.5, point=alt.OverlayMarkDef(size=18)).encode(
        y=alt.Y("mean:Q", title="%", scale=alt.Scale(zero=False)),
        opacity=alt.condition(picked, alt.value(1), alt.value(0.08)),
        tooltip=["method", "metric", "round", alt.Tooltip("mean:Q", format=".1f")],
    )
    band = base.mark_area(opacity=0.12, aria=False).encode(
        y=alt.Y("low:Q", title="%", scale=alt.Scale(zero=False)), y2="high:Q"
    )
    band = band.add_params(picked).transform_filter(picked)  # a legend answers to its first layer
    metrics = list(dict.fromkeys(frame["metric"]))
    chart = (
        alt.layer(band, line, data=frame)
        .properties(width=COLUMN, height=150)
        .facet(facet=alt.Facet("metric:N", sort=metrics, title=None), columns=2)
        .resolve_scale(y="independent")
    )
    return _made(
        "rounds",
        "Learning curves",
        "Accuracy after each round; bands are one standard deviation over the seeds. Click a name to see one alone.",
        frame,
        chart,
    )


def tradeoff(frame: pd.DataFrame, others: str) -> Chart:
    methods, picked = list(dict.fromkeys(frame["method"])), _picked()
    x = alt.X("local:Q", title="Local (%)", scale=alt.Scale(zero=False))
    y = alt.Y("others:Q", title=f"{others} (%)", scale=alt.Scale(zero=False))
    shown = alt.condition(picked, alt.value(1), alt.value(0.1))
    path = (
        alt.Chart(frame).mark_line(strokeWidth=1.2).encode(x, y, order="alpha:Q", color=_colour(methods), opacity=shown)
    )
    points = (
        alt.Chart(frame[frame["alpha"] == 1])
        .mark_point(size=70, filled=True)
        .encode(
            x,
            y,
            color=_colour(methods),
            shape=_shape(methods),
            opacity=shown,
            tooltip=["method", alt.Tooltip("local:Q", format=".1f"), alt.Tooltip("others:Q", format=".1f")],
        )
    )
    return _made(
        "tradeoff",
        "What each method trades",
        f"Local against {others}: marks are the clients' own models, lines lead to the shared part alone.",
        frame,
        alt.layer(path.add_params(picked), points).properties(width=1.6 * COLUMN, height=300),
    )


def clients(frame: pd.DataFrame) -> Chart:
    methods = list(dict.fromkeys(frame["method"]))
    dots = (
        alt.Chart()
        .mark_circle(size=28, opacity=0.6)
        .encode(
            x=alt.X("gain:Q", title="change of a client's Local (percentage points)"),
            y=alt.Y("method:N", sort=methods, title=None),
            yOffset="jitter:Q",
            color=alt.condition("datum.gain < 0", alt.value(COLOURS[3]), alt.value(COLOURS[6])),
            tooltip=[
                "method",
                "client",
                "seed",
                alt.Tooltip("local:Q", format=".1f"),
                alt.Tooltip("gain:Q", format="+.1f"),
                "over",
                "classes",
            ],
        )
        .transform_calculate(jitter="sin(datum.client * 12.9898 + datum.seed * 78.233)")
    )
    rule = alt.Chart().mark_rule(strokeDash=[3, 3], color="#888888", aria=False).encode(x=alt.datum(0))
    return _made(
        "clients",
        "Who gains from a model of its own, and who loses",
        "A dot for each client and seed: its Local with its own model minus that with the shared part alone (or, for a"
        " method without one, with zero-shot CLIP).",
        frame,
        alt.layer(rule, dots, data=frame).properties(width=1.8 * COLUMN, height=alt.Step(26)),
    )


def confusion(frame: pd.DataFrame, method: str) -> Chart:
    chart = (
        alt.Chart(frame)
        .mark_circle()
        .encode(
            x=alt.X("predicted:N", title="answered", axis=alt.Axis(labelAngle=-60)),
            y=alt.Y("truth:N", title="is"),
            size=alt.Size("share:Q", title="%"),
            color=alt.Color("share:Q", scale=alt.Scale(scheme="viridis", reverse=True), title="%"),
            tooltip=["truth", "predicted", alt.Tooltip("share:Q", format=".1f")],
        )
        .properties(width=alt.Step(18), height=alt.Step(14))
    )
    return _made(
        "confusion",
        f"What {method} confuses",
        "The pairs of classes that are confused most: percent of a class's test images, over all clients.",
        frame,
        chart,
    )


def client_by_class(frame: pd.DataFrame, method: str) -> Chart:
    base = alt.Chart(frame).encode(
        x=alt.X("class:N", title=None, axis=alt.Axis(labelAngle=-60)), y=alt.Y("client:O", title="client")
    )
    cells = base.mark_rect().encode(
        color=alt.Color("accuracy:Q", scale=alt.Scale(scheme="viridis", domain=[0, 100]), title="%"),
        tooltip=["client", "class", "accuracy", "own"],
    )
    own = base.transform_filter("datum.own").mark_rect(filled=False, stroke=COLOURS[3], strokeWidth=1.5)
    return _made(
        "client-by-class",
        f"Clients and classes, {method}",
        "Percent of a class's test images that each client gets right; outlined: classes that the client trained on.",
        frame,
        alt.layer(cells, own).properties(
            width=alt.Step(13), height=alt.Step(13 if frame["client"].nunique() < 40 else 5)
        ),
    )


def cosines(frame: pd.DataFrame) -> Chart:
    methods, picked = list(dict.fromkeys(frame["method"])), _picked()
    chart = (
        alt.Chart(frame)
        .mark_line(strokeWidth=1.5, point=alt.OverlayMarkDef(size=18))
        .encode(
            x=alt.X("round:Q", axis=alt.Axis(tickMinStep=1, format="d")),
            y=alt.Y("cosine:Q", scale=alt.Scale(zero=False)),
            color=_colour(methods),
            opacity=alt.condition(picked, alt.value(1), alt.value(0.08)),
            tooltip=["method", "between", "round", alt.Tooltip("cosine:Q", format=".3f")],
        )
        .add_params(picked)
        .properties(width=COLUMN, height=150)
        .facet(facet=alt.Facet("between:N", title=None), columns=2)
    )
    return _made(
        "cosines",
        "What moved",
        "Cosines of text features, means over classes and clients: z_C of the hand-written prompt, z_G of the global"
        " one, z_i of a client's own.",
        frame,
        chart,
    )


def singular_values(frame: pd.DataFrame, method: str) -> Chart:
    chart = (
        alt.Chart(frame)
        .mark_line(point=alt.OverlayMarkDef(size=18), opacity=0.6, strokeWidth=1)
        .encode(
            x=alt.X("index:O", title="singular value", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("value:Q", title="size"),
            detail="client:N",
            color=alt.Color("client:N", legend=None, scale=alt.Scale(scheme="viridis")),
            tooltip=["client", "index", alt.Tooltip("value:Q", format=".3f")],
        )
        .properties(width=1.4 * COLUMN, height=180)
    )
    return _made(
        "singular-values",
        f"Size and rank of the personal part, {method}",
        "Singular values of what each client's context adds to the shared one; a line for each client.",
        frame,
        chart,
    )


def features(frame: pd.DataFrame, method: str) -> Chart:
    base = alt.Chart(frame).encode(
        x=alt.X("x:Q", axis=None), y=alt.Y("y:Q", axis=None), tooltip=["prompt", "class", "projection"]
    )
    points = base.mark_point(filled=True, size=34, opacity=0.8).encode(
        color=alt.Color("prompt:N", title=None, sort=None, scale=alt.Scale(range=["#7F7F7F", *COLOURS[1:]])),
        shape=alt.Shape(
            "kind:N",
            legend=alt.Legend(title=None, symbolFillColor="#7F7F7F"),
            scale=alt.Scale(range=["circle", "diamond", "cross"]),
        ),
    )
    chart = points.properties(width=1.3 * COLUMN, height=260).facet(
        facet=alt.Facet("projection:N", title=None), columns=2
    )
    return _made(
        "text-features",
        f"Text features, {method}",
        "Each class behind the hand-written prompt, the shared one and some clients' own, in two dimensions. Distances"
        " in t-SNE have no scale; principal components (PCA) keep that.",
        frame,
        chart.resolve_scale(x="independent", y="independent"),
    )
