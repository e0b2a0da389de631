"""The numbers behind each figure, as pandas frames: one row for each mark."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedpgp.evaluation.bootstrap import Outcomes
from fedpgp.report.page.collect import Going
from fedpgp.results.run import Comparison, Run, spread

SHOWN = ("local", "base", "novel", "cm")
MOST_CONFUSED = 30  # pairs of classes


def rounds(comparison: Comparison, going: Sequence[Going], named: Mapping[str, str]) -> pd.DataFrame:
    """method, metric, round, mean, low, high: one standard deviation over seeds; of unfinished runs each by itself."""
    rows = []
    for method in comparison.methods:
        for (number, name), values in _by_round(comparison.of(method), SHOWN.__contains__).items():
            mean, deviation = spread(values)
            rows.append([method, named.get(name, name), number, mean, mean - (deviation or 0), mean + (deviation or 0)])
    for one in going:
        for record in one.records:
            rows += [
                [f"{one.name} (running)", named.get(name, name), record["round"], *[record[name]] * 3]
                for name in SHOWN
                if name in record
            ]
    return pd.DataFrame(rows, columns=["method", "metric", "round", "mean", "low", "high"])


def cosines(comparison: Comparison) -> pd.DataFrame:
    """method, between, round, cosine: how near text features are to each other, means over clients and seeds."""
    rows = []
    for method in comparison.methods:
        found = _by_round(comparison.of(method), lambda name: name.startswith("cosine_"))
        for (number, name), values in found.items():
            first, second = name.removeprefix("cosine_").split("_")
            symbols = {"guidance": "z_C", "global": "z_G", "personal": "z_i"}
            pair = f"cos({symbols.get(first, first)}, {symbols.get(second, second)})"
            rows.append([method, pair, number, fmean(values)])
    return pd.DataFrame(rows, columns=["method", "between", "round", "cosine"])


def _by_round(runs: Sequence[Run], wanted: Callable[[str], bool]) -> dict[tuple[int, str], list[float]]:
    """Round and name -> the figure of each run that has it, for the figures of records that are wanted."""
    found: dict[tuple[int, str], list[float]] = {}
    for run in runs:
        for record in run.rounds:
            for name in filter(wanted, record):
                found.setdefault((record["round"], name), []).append(record[name])
    return found


def tradeoff(comparison: Comparison) -> pd.DataFrame:
    """method, alpha, local, others: means over the seeds, of the path from the shared part to the clients' own."""
    rows = []
    for method in comparison.methods:
        points: dict[float, list[tuple[float, float]]] = {}
        for run in comparison.of(method):
            for point in run.results["path"]:
                points.setdefault(point["alpha"], []).append((point["local"], point["others"]))
        rows += [
            [method, alpha, fmean(p[0] for p in found), fmean(p[1] for p in found)]
            for alpha, found in sorted(points.items())
            if len(found) == len(points[1.0]) or alpha == 1.0
        ]
    return pd.DataFrame(rows, columns=["method", "alpha", "local", "others"])


def clients(comparison: Comparison) -> pd.DataFrame:
    """method, seed, client, local, gain, over, classes: what a client's own model changes of its Local.

    over: of which model: the shared part alone, or else zero-shot CLIP with the same seed.
    """
    rows = []
    zero = {run.seed: run for run in comparison.runs if run.method == "zero-shot"}
    for run in comparison.runs:
        before, over = _local_of_shared(run), "shared part"
        if before is None and run.seed in zero and run.method != "zero-shot":
            before, over = [one["local"] for one in zero[run.seed].results["clients"]], "zero-shot"
        for place, one in enumerate(run.results["clients"]):
            if before is not None and place < len(before):
                names = ", ".join(one["classes"][:8]) + (", …" if len(one["classes"]) > 8 else "")
                gain = one["local"] - before[place]
                rows.append([run.method, run.seed, one["client"], one["local"], gain, over, names])
    return pd.DataFrame(rows, columns=["method", "seed", "client", "local", "gain", "over", "classes"])


def _local_of_shared(run: Run) -> list[float] | None:
    """Local of each client with the shared part alone, where clients have a part of their own; else None."""
    outcomes: Outcomes | None = run.outcomes
    if outcomes is None:
        return None
    if len(outcomes.alphas) < 2:  # the path was one point: own models answer as the shared part does
        stands = run.results["private"] and run.results["shared"] is not None
        return [one["local"] for one in run.results["clients"]] if stands else None
    own, right = outcomes.unpack("own"), outcomes.unpack("base", point=0)
    return list(100 * (own & right).sum(1) / np.maximum(own.sum(1), 1))


def confusion(run: Run) -> pd.DataFrame:
    """truth, predicted, share: of the images of a class, how many clients' answers are another class, in percent."""
    if "base/predicted" not in run.answers:
        return pd.DataFrame(columns=["truth", "predicted", "share"])
    names, labels = run.results["task"]["base_names"], run.answers["base/labels"].numpy()
    predicted = run.answers["base/predicted"].numpy()
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (np.broadcast_to(labels, predicted.shape), predicted), 1)
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    np.fill_diagonal(shares, 0)
    places = np.argsort(-shares, axis=None)[:MOST_CONFUSED]
    rows = [
        [names[i], names[j], shares[i, j]]
        for i, j in zip(*np.unravel_index(places, shares.shape), strict=True)
        if shares[i, j] > 0
    ]
    return pd.DataFrame(rows, columns=["truth", "predicted", "share"])


def client_by_class(run: Run) -> pd.DataFrame:
    """client, class, accuracy, own: percent of a class's test images that a client gets right; own: trained on."""
    if "base/predicted" not in run.answers:
        return pd.DataFrame(columns=["client", "class", "accuracy", "own"])
    names, labels = run.results["task"]["base_names"], run.answers["base/labels"].numpy()
    right = run.answers["base/predicted"].numpy() == labels
    rows = []
    for place, one in enumerate(run.results["clients"]):
        mine = set(one["classes"])
        for column in np.unique(labels):
            accuracy = 100 * right[place, labels == column].mean()
            rows.append([one["client"], names[column], round(float(accuracy), 1), names[column] in mine])
    return pd.DataFrame(rows, columns=["client", "class", "accuracy", "own"])


def singular_values(run: Run) -> pd.DataFrame:
    """client, index, value: of the change from the shared context to a client's own, U V where the method has these."""
    rows = []
    for one in run.results["clients"]:
        change = personal_change(run, one["client"])
        if change is not None:
            values = torch.linalg.svdvals(change.double())
            keep = values[values > 1e-6 * values.max().clamp(min=1e-12)]
            rows += [[one["client"], i + 1, float(value)] for i, value in enumerate(keep)]
    return pd.DataFrame(rows, columns=["client", "index", "value"])


def personal_change(run: Run, client: int) -> Tensor | None:
    """[M, d] by which a client's context differs from the shared one, for the methods whose tensors say so."""
    own = {
        name.rpartition("/")[2]: run.prompts[name]
        for name in run.prompts
        if name.startswith((f"private/{client}/", f"kept/{client}/"))
    }
    shared = {name.rpartition("/")[2]: run.prompts[name] for name in run.prompts if name.startswith("shared/")}
    matrices = [tensor for tensor in own.values() if tensor.dim() == 2 and tensor.is_floating_point()]
    if {"U", "V"} <= set(own) and own["U"].dim() == own["V"].dim() == 2:
        return own["U"] @ own["V"]
    contexts = [tensor for tensor in shared.values() if tensor.dim() == 2]
    if len(matrices) == 1 and len(contexts) == 1 and matrices[0].shape == contexts[0].shape:
        return matrices[0] if "W" in own else matrices[0] - contexts[0]
    return None


def costs(comparison: Comparison) -> pd.DataFrame:
    """method, KiB up and down of a client in a round, seconds of training and of evaluation, calibration errors."""
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
            if all(name in one for one in errors):
                row[f"calibration error, {name}"] = round(fmean(one[name] for one in errors), 1)
        rows.append(row)
    return pd.DataFrame(rows)
