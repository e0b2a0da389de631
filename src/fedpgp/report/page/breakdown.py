"""Clients and classes of one method: tables and charts that stay small for a thousand clients or a thousand classes.

Letters: N clients, C classes.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Literal

import altair as alt
import numpy as np
import pandas as pd
from altair.typing import ChartType
from numpy.typing import NDArray

from fedpgp.evaluation.scoring import confusion
from fedpgp.report import charts
from fedpgp.report.style import COLOURS
from fedpgp.report.tables import text_table, titles
from fedpgp.results.formats import Table
from fedpgp.results.run import Comparison, Run

FEW = 10  # fewest clients whose Local is shown as a histogram
DOTS = 600  # most clients, over all runs, with a dot each
CLIENTS, CLASSES = 30, 100  # most clients and classes in a chart with one row or column for each
PAIRS = 100  # most confused pairs of classes in the table
Set = Literal["base", "novel"]
SETS: tuple[Set, ...] = ("base", "novel")


def shown_clients(run: Run) -> Run:
    """Return the run with at most 30 clients: half with the lowest Local, half with the highest."""
    clients = run.results["clients"]
    if len(clients) <= CLIENTS:
        return run
    order = sorted(range(len(clients)), key=lambda place: clients[place]["local"])
    places = sorted(order[: CLIENTS // 2] + order[-CLIENTS // 2 :])
    answers = {
        name: tensor[places] if name.endswith(("predicted", "confidence")) else tensor
        for name, tensor in run.answers.items()
    }
    return replace(run, answers=answers, results={**run.results, "clients": [clients[place] for place in places]})


def shown_classes(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a frame with the columns class and accuracy for at most 100 classes, the hardest ones."""
    means = frame.groupby("class", sort=False)["accuracy"].mean()
    return frame if len(means) <= CLASSES else frame[frame["class"].isin(means.nsmallest(CLASSES).index)]


def client_table(run: Run, gains: pd.DataFrame) -> Table:
    """Return a table with a row for each client of a run.

    Parameters
    ----------
    run
        The run.
    gains
        Result of `frames.clients`.
    """
    of_classes, names = run.class_accuracies("local"), run.results["task"]["base_names"]
    mine = gains[(gains["method"] == run.method) & (gains["seed"] == run.seed)]
    change: Mapping[int, float] = dict(zip(mine["client"], mine["gain"], strict=True))
    tests = [name for name in ("local", *SETS) if name in run.results["clients"][0]]
    named = titles(Comparison([run]))
    rows = []
    for place, client in enumerate(run.results["clients"]):
        hardest = ""
        if of_classes is not None and not np.isnan(of_classes[place]).all():
            worst = int(np.nanargmin(of_classes[place]))
            hardest = f"{names[worst]} ({of_classes[place, worst]:.0f} %)"
        figures = [f"{client[name]:.1f}" for name in tests]
        gain = f"{change[client['client']]:+.1f}" if client["client"] in change else ""
        counts = [str(len(client["classes"])), str(client["examples"])]
        rows.append([str(client["client"]), *counts, *figures, gain, hardest])
    over = next(iter(mine["over"]), "shared part")
    header = ["client", "classes", "training images", *(named[name] for name in tests), "change", "hardest own class"]
    return text_table(
        f"{run.method}, seed {run.seed}, percent",
        header,
        rows,
        f"change: Local of the client's own model minus Local of the {over}, in percentage points. hardest own class:"
        " the class of the client with the lowest accuracy, and this accuracy.",
    )


def histogram(run: Run, gains: pd.DataFrame) -> pd.DataFrame:
    """Return model, local and clients: the number of clients in each bin of five percentage points of Local."""
    mine = gains[(gains["method"] == run.method) & (gains["seed"] == run.seed)]
    models = {"own model": np.array([client["local"] for client in run.results["clients"]])}
    if len(mine):
        models[str(mine["over"].iloc[0])] = (mine["local"] - mine["gain"]).to_numpy()
    edges = np.arange(0, 101, 5)
    rows = [
        (name, int(low), int(low) + 5, int(count))
        for name, values in models.items()
        for low, count in zip(edges, np.histogram(values, edges)[0], strict=False)
    ]
    return pd.DataFrame(rows, columns=["model", "low", "high", "clients"])


def histogram_chart(frame: pd.DataFrame) -> ChartType:
    """Return a chart of `histogram` with a panel for each model."""
    return (
        alt.Chart(frame, width=charts.COLUMN, height=150)
        .mark_bar()
        .encode(
            alt.X("low:Q", bin="binned", title="Local of a client (%)"),
            alt.X2("high:Q"),
            alt.Y("clients:Q", title="clients", axis=alt.Axis(tickMinStep=1, format="d")),
            tooltip=["model", "low", "high", "clients"],
        )
        .facet(alt.Facet("model:N", title=None, sort=None), columns=2)
    )


def gain_quantiles(gains: pd.DataFrame) -> pd.DataFrame:
    """Return method, the 5, 25, 50, 75 and 95 % quantiles of the gains of its clients, and percent that lose."""
    grouped = gains.groupby("method", sort=False)["gain"]
    named = {"p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}
    frame = pd.DataFrame({name: grouped.quantile(share) for name, share in named.items()})
    return frame.assign(
        losing=grouped.apply(lambda gain: 100 * (gain < 0).mean()), clients=grouped.size()
    ).reset_index()


def gain_quantiles_chart(frame: pd.DataFrame) -> ChartType:
    """Return a chart of `gain_quantiles` with a box for each method."""
    base = alt.Chart().encode(
        alt.Y("method:N", sort=list(frame["method"]), title=None),
        tooltip=["method", *(alt.Tooltip(f"{name}:Q") for name in frame.columns[1:])],
    )
    title = "change of a client's Local (percentage points)"
    layers = [
        alt.Chart().mark_rule(strokeDash=[3, 3], color="#888888", aria=False).encode(x=alt.datum(0)),
        base.mark_rule(color="#888888").encode(alt.X("p5:Q", title=title), x2="p95:Q"),
        base.mark_bar(size=11, color=COLOURS[6]).encode(alt.X("p25:Q", title=title), x2="p75:Q"),
        base.mark_tick(size=15, thickness=2, color=COLOURS[1]).encode(alt.X("p50:Q", title=title)),
    ]
    explained = "Box: half of the clients, with the median. Line: 90 % of the clients."
    return alt.layer(*layers, data=frame, title=explained, width=1.8 * charts.COLUMN, height=alt.Step(22))


def class_table(comparison: Comparison, method: str) -> Table:
    """Return a table with a row for each class of Base and Novel: the accuracy of a method and of the others."""
    accuracies = {name: {each: _of_classes(comparison, each, name) for each in comparison.methods} for name in SETS}
    several = len(comparison.methods) > 1
    rows = []
    for name, of_methods in accuracies.items():
        known = {each: found for each, found in of_methods.items() if found}
        for label, (accuracy, images) in known.get(method, {}).items():
            best = max(known, key=lambda each, label=label: known[each].get(label, (-1.0, 0))[0])  # type: ignore[misc]
            mean = np.mean([found[label][0] for found in known.values() if label in found])
            others = [f"{mean:.1f}", best, f"{known[best][label][0]:.1f}"] if several else []
            rows.append([label, name, str(images), f"{accuracy:.1f}", *others])
    others = ["mean of all methods", "best method", "its accuracy"] if several else []
    return text_table(
        "Percent of a class's test images that the clients' own models get right; mean over clients and seeds",
        ["class", "set", "test images", method, *others],
        rows,
        "best method: the first of the methods with the highest accuracy." if several else "",
    )


def _of_classes(comparison: Comparison, method: str, name: Set) -> dict[str, tuple[float, int]]:
    """Return class -> its accuracy in percent, the mean over clients and seeds, and its images."""
    rows: dict[str, list[float]] = {}
    images: dict[str, int] = {}
    for run in comparison.of(method):
        found = run.class_accuracies(name)
        if found is None:
            continue
        names = run.results["task"][f"{name}_names"]
        counts = np.bincount(run.answers[f"{name}/labels"].numpy(), minlength=len(names))
        for label, accuracy, count in zip(names, found.mean(0).tolist(), counts.tolist(), strict=True):
            if count:
                rows.setdefault(label, []).append(accuracy)
                images[label] = count
    return {label: (float(np.mean(values)), images[label]) for label, values in rows.items()}


def confusions(run: Run) -> NDArray[np.int64] | None:
    """Return the number of answers [C, C] of all clients by true class and predicted class; None without answers."""
    if "base/predicted" not in run.answers:
        return None
    count = len(run.results["task"]["base_names"])
    labels, predicted = run.answers["base/labels"].numpy(), run.answers["base/predicted"].numpy()
    total = np.zeros((count, count), dtype=np.int64)
    for row in predicted:
        total += confusion(labels.astype(np.int64), row, count)
    return total


def confusion_frame(run: Run) -> pd.DataFrame:
    """Return truth, predicted and share, in percent of the answers for the true class; at most 100 classes.

    The classes with the lowest accuracies are chosen. They keep the order of the task.
    """
    counts = confusions(run)
    frame = pd.DataFrame(columns=["truth", "predicted", "share"])
    if counts is None:
        return frame
    names = run.results["task"]["base_names"]
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    chosen = np.sort(np.argsort(np.diag(shares), kind="stable")[:CLASSES])
    part = shares[np.ix_(chosen, chosen)].round(1)
    rows = [(names[chosen[i]], names[chosen[j]], part[i, j]) for i, j in np.argwhere(part > 0)]
    return pd.DataFrame(rows, columns=frame.columns)


def confusion_chart(frame: pd.DataFrame) -> ChartType:
    """Return the confusion matrix: a row for each true class, a column for each predicted class."""
    scale = alt.Scale(domain=list(dict.fromkeys([*frame["truth"], *frame["predicted"]])))
    axis = partial(alt.Axis, labelFontSize=8, labelOverlap=False, labelLimit=120)
    return (
        alt.Chart(frame, width=alt.Step(10), height=alt.Step(10), view=alt.ViewBackground(fill="#ffffff"))
        .mark_rect()
        .encode(
            alt.X("predicted:N", title="predicted class", scale=scale, axis=axis(labelAngle=-90)),
            alt.Y("truth:N", title="true class", scale=scale, axis=axis()),
            color=alt.Color(
                "share:Q",
                title="%",
                scale=alt.Scale(scheme="blues", type="sqrt", domain=[0, 100]),
                legend=charts.STEPS,
            ),
            tooltip=["truth", "predicted", "share"],
        )
    )


def confused_pairs(run: Run) -> Table | None:
    """Return a table of the most confused pairs of classes; None if there is none."""
    counts = confusions(run)
    if counts is None:
        return None
    names, images = run.results["task"]["base_names"], np.maximum(counts.sum(1), 1)
    shares = 100 * counts / images[:, None]
    np.fill_diagonal(shares, 0)
    order = np.argsort(-shares, axis=None, kind="stable")[:PAIRS]
    pairs = [divmod(int(place), len(names)) for place in order if shares.flat[place] > 0]
    if not pairs:
        return None
    clients = len(run.results["clients"])
    return text_table(
        f"{run.method}, seed {run.seed}: percent of the answers of all clients for the images of the true class",
        ["true class", "predicted class", "test images", "confused"],
        [[names[i], names[j], str(counts[i].sum() // clients), f"{shares[i, j]:.1f}"] for i, j in pairs],
    )
