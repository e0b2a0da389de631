"""Data of each figure as pandas frames with one row for each mark."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedpgp.evaluation.bootstrap import Outcomes
from fedpgp.report.tables import TITLES, titles
from fedpgp.results.run import Comparison, Run

SHOWN = ("local", "base", "novel", "cm")
SYMBOLS = {"guidance": "z_C", "global": "z_G", "personal": "z_i"}
Records = Sequence[Mapping[str, Any]]  # records of the rounds of one run
Point = tuple[str, Any, Mapping[str, Any]]


def learning_curves(comparison: Comparison, running: Mapping[str, Records] = MappingProxyType({})) -> pd.DataFrame:
    """Return the metrics over the rounds, see `spreads`.

    Parameters
    ----------
    comparison
        Finished runs.
    running
        Records of unfinished runs, by name.
    """
    points = [(name, record["round"], record) for name, records in running.items() for record in records]
    named = titles(comparison) if comparison.runs else TITLES
    return spreads("round", [*points_of(comparison.runs), *points], panels(named))


def cosines(comparison: Comparison) -> pd.DataFrame:
    """Return cosines between text features over the rounds, means over clients, see `spreads`."""
    points = points_of(comparison.runs)
    names = dict.fromkeys(name for _, _, record in points for name in record if name.startswith("cosine_"))
    pairs = {name: name.removeprefix("cosine_").split("_") for name in names}
    named = {name: f"cos({', '.join(SYMBOLS.get(name, name) for name in pair)})" for name, pair in pairs.items()}
    return spreads("round", points, named)


def points_of(runs: Iterable[Run], label: str | None = None) -> list[Point]:
    """Return the records of runs as points of `spreads`, with `label` or the method of each run as name."""
    return [(label or run.method, record["round"], record) for run in runs for record in run.rounds]


def panels(named: Mapping[str, str], shown: Sequence[str] = SHOWN) -> dict[str, str]:
    """Return the mapping metric -> title of its panel for the shown metrics; `named` has the titles of all metrics."""
    return {name: named[name] for name in shown if name in named}


def spreads(at: str, points: Sequence[Point], named: Mapping[str, str]) -> pd.DataFrame:
    """Return method, metric, `at`, mean, low and high: mean ± one standard deviation of each method and place.

    Metrics that have only horizontal lines, or no values, are left out: their panels would be empty.

    Parameters
    ----------
    at
        Name of the column of places, such as "round" or "label".
    points
        For each seed: the method or another name of a line, the place (None or round 0 for a horizontal line), and
        metrics by name.
    named
        Mapping of metric -> title of its panel.
    """
    keys = ["method", "metric", at]
    rows = [
        (method, title, place, figures[name])
        for name, title in named.items()
        for method, place, figures in points
        if pd.notna(figures.get(name))
    ]
    placed = {title for _, title, place, _ in rows if place not in (None, 0)}
    rows = [row for row in rows if row[1] in placed]
    values = pd.DataFrame(rows, columns=[*keys, "value"]).groupby(keys, sort=False, dropna=False)["value"]
    mean, deviation = values.mean(), values.std().fillna(0)
    return pd.DataFrame({"mean": mean, "low": mean - deviation, "high": mean + deviation}).reset_index()


def tradeoff(comparison: Comparison) -> pd.DataFrame:
    """Return method, seed, alpha, local and others: the path of every run from the shared to the personal models."""
    rows = []
    for method in comparison.methods:
        runs = comparison.of(method)
        longest = max((run.results["path"] for run in runs), key=len)
        for run in runs:
            path = run.results["path"]
            if len(path) == 1:  # if no client left the shared part, the run has one point for all α
                path = [{**path[0], "alpha": at["alpha"]} for at in longest]
            rows += [[method, run.seed, point["alpha"], point["local"], point["others"]] for point in path]
    return pd.DataFrame(rows, columns=["method", "seed", "alpha", "local", "others"])


def clients(comparison: Comparison) -> pd.DataFrame:
    """Return method, seed, client, local, gain, over and classes: the change of Local by each personal model.

    The column `over` names the reference of the gain: the shared part or, for a method without a shared part, zero-shot
    CLIP with the same seed.
    """
    rows = []
    zero = {run.seed: run for run in comparison.runs if run.method == "zero-shot"}
    for run in comparison.runs:
        before, over = _local_of_shared(run), "shared part"
        if before is None and run.seed in zero and run.method != "zero-shot":
            before, over = [client["local"] for client in zero[run.seed].results["clients"]], "zero-shot"
        for place, client in enumerate(run.results["clients"]):
            if before is not None and place < len(before):
                names = ", ".join(client["classes"][:8]) + (", …" if len(client["classes"]) > 8 else "")
                gain = client["local"] - before[place]
                rows.append([run.method, run.seed, client["client"], client["local"], gain, over, names])
    return pd.DataFrame(rows, columns=["method", "seed", "client", "local", "gain", "over", "classes"])


def _local_of_shared(run: Run) -> list[float] | None:
    """Return Local of each client with the shared model, or None if only one of the models was evaluated."""
    outcomes: Outcomes | None = run.outcomes
    if outcomes is None:
        return None
    if len(outcomes.alphas) < 2:
        # A path was requested and has one point: personal models answer as the shared model.
        stands = run.results["private"] and run.results["shared"] is not None
        asked = run.config.federation.path_points > 1
        return [client["local"] for client in run.results["clients"]] if stands and asked else None
    return outcomes.local(outcomes.alphas[0])


def client_by_class(run: Run) -> pd.DataFrame:
    """Return client, class, accuracy in percent and own: whether the client trained on the class."""
    answers = _answers(run).rename(columns={"truth": "class"})
    right = (answers["class"] == answers["predicted"]).groupby([answers["client"], answers["class"]])
    frame = right.mean().mul(100).round(1).rename("accuracy").reset_index()
    trained = {(client["client"], name) for client in run.results["clients"] for name in client["classes"]}
    return frame.assign(own=[pair in trained for pair in zip(frame["client"], frame["class"], strict=True)])


def by_class(run: Run) -> pd.DataFrame:
    """Return set, class, accuracy and images: for each class of Base and Novel, the mean over clients in percent."""
    rows = []
    for name in ("base", "novel"):
        found = run.class_accuracies(name)
        if found is not None:
            images = np.bincount(run.answers[f"{name}/labels"].numpy(), minlength=found.shape[1])
            names = run.results["task"][f"{name}_names"]
            rows += [[name, *row] for row in zip(names, found.mean(0).tolist(), images.tolist(), strict=True)]
    return pd.DataFrame(rows, columns=["set", "class", "accuracy", "images"])


def _answers(run: Run) -> pd.DataFrame:
    """Return client, truth and predicted for each test image of base classes; empty if clients keep their answers."""
    if "base/predicted" not in run.answers:
        return pd.DataFrame(columns=["client", "truth", "predicted"])
    names = np.array(run.results["task"]["base_names"], dtype=object)
    truth, predicted = run.answers["base/labels"].numpy(), run.answers["base/predicted"].numpy()
    clients = [client["client"] for client in run.results["clients"]]
    columns = {"client": np.repeat(clients, len(truth)), "truth": np.tile(names[truth], len(clients))}
    return pd.DataFrame({**columns, "predicted": names[predicted].ravel()})


def singular_values(run: Run) -> pd.DataFrame:
    """Return client, index and value: singular values of each personal change of the context, such as U V."""
    rows = []
    for client in run.results["clients"]:
        change = personal_change(run, client["client"])
        if change is not None and change.numel():
            values = torch.linalg.svdvals(change.double())
            keep = values[values > 1e-6 * values.max().clamp(min=1e-12)]
            rows += [[client["client"], i + 1, float(value)] for i, value in enumerate(keep)]
    return pd.DataFrame(rows, columns=["client", "index", "value"])


def personal_change(run: Run, client: int) -> Tensor | None:
    """Return the difference [M, d] between a client's context and the shared context, or None for other tensors."""
    own = {
        name.rpartition("/")[2]: run.prompts[name]
        for name in run.prompts
        if name.startswith((f"private/{client}/", f"kept/{client}/"))
    }
    shared = {name.rpartition("/")[2]: run.prompts[name] for name in run.prompts if name.startswith("shared/")}
    matrices = [tensor for tensor in own.values() if tensor.dim() == 2 and tensor.is_floating_point()]
    contexts = [tensor for tensor in shared.values() if tensor.dim() == 2 and tensor.is_floating_point()]
    if {"U", "V"} <= set(own):
        U, V = own["U"], own["V"]
        fits = U.dim() == V.dim() == 2 and U.shape[1] == V.shape[0] and U.dtype == V.dtype
        # A product of other shapes could be too large.
        return U @ V if fits and any(context.shape == (len(U), V.shape[1]) for context in contexts) else None
    if len(matrices) == 1 and len(contexts) == 1 and matrices[0].shape == contexts[0].shape:
        return matrices[0] if "W" in own else matrices[0] - contexts[0]
    return None


def costs(comparison: Comparison) -> pd.DataFrame:
    """Return KiB up and down of a client in a round, seconds of training and evaluation, and calibration errors."""
    rows = []
    for method in comparison.methods:
        runs = comparison.of(method)
        row: dict[str, Any] = {"method": method}
        for key, title in (("up", "KiB up"), ("down", "KiB down")):
            row[title] = round(fmean(run.results[f"bytes_{key}_per_client_round"] for run in runs) / 1024, 2)
        for key in ("training", "evaluation"):
            row[f"seconds in {key}"] = round(fmean(sum(r[f"seconds_{key}"] for r in run.rounds) for run in runs), 2)
        errors = [run.results.get("calibration_error", {}) for run in runs]
        for name in ("local", "base", "novel"):
            if all(name in of_run for of_run in errors):
                row[f"calibration error, {name}"] = round(fmean(of_run[name] for of_run in errors), 1)
        rows.append(row)
    return pd.DataFrame(rows)
