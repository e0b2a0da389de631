"""Content of the result files of a run: metrics, prompts, outcomes and provenance."""

import platform
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from statistics import fmean, harmonic_mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedpgp.aggregators import Server, Tensors
from fedpgp.backbone import Backbone
from fedpgp.config import ExperimentConfig
from fedpgp.data.sources import SPLITS, Source
from fedpgp.data.tasks import Client, Task
from fedpgp.evaluation.bootstrap import Outcomes
from fedpgp.evaluation.evaluator import CHUNK, Evaluation
from fedpgp.evaluation.metrics import (
    area_of,
    calibration_error,
    class_accuracies,
    macro_accuracy,
    own_images,
    summary,
)
from fedpgp.federation.run_spec import RunSpec
from fedpgp.federation.state import ClientState
from fedpgp.methods import Params
from fedpgp.methods.plugins import fingerprint
from fedpgp.runtime.version import __version__


def figures(
    task: Task, name: str, seed: int, records: Sequence[Mapping[str, Any]], last: Evaluation, private: Collection[str]
) -> dict[str, Any]:
    """Return the content of results.json.

    If clients are missing from the last evaluation, "evaluated" has the numbers of the other clients.

    The main results are from the last round. The mean of the last five evaluated rounds, and the evaluated round and
    the α that are best on validation, are reported, too. The criterion of validation is the harmonic mean of Local and
    Base on the validation images of the base classes.

    Parameters
    ----------
    task
        The task.
    name, seed
        Method and seed of the run.
    records
        Records of all rounds.
    last
        Evaluation of the last round.
    private
        Names of the tensors that each client keeps.
    """
    names = ["local", *task.tests, "hm", "cm"]
    late = {"new": final["new"]} if (final := records[-1]).get("new_clients") else {}
    evaluated = [record for record in records if "local" in record]
    best = max(evaluated, key=_on_validation)
    path = [{"alpha": alpha, **summary(point.clients)} for alpha, point in {**last.path, 1.0: last}.items()]
    best_point = max(path, key=_on_validation)
    federated = next(
        (record for record in reversed(records) if record["bytes_up"]), final
    )  # not a round of fine-tuning
    return {
        "method": name,
        "seed": seed,
        "task": _describe(task),
        "rounds": final["round"],
        **({"evaluated": final["evaluated"]} if "evaluated" in final else {}),
        "private": sorted(private),
        "final": {**{key: final[key] for key in names}, **late, "area": area_of(path)},
        "shared": None if last.shared is None else {key: last.shared[key] for key in names},
        "last_five": {key: fmean(record[key] for record in evaluated[-5:]) for key in names},
        "best_on_validation": {"round": best["round"], **{key: best[key] for key in names}},
        "path": path,
        "alpha_on_validation": best_point["alpha"],
        "clients": [
            {**_about(task, client), **{key: float(last.clients[key][place]) for key in ("local", *task.tests)}}
            for place, client in enumerate(_evaluated(task, final))
        ],
        "new_clients": [
            {**_about(task, client), **accuracies}
            for client, accuracies in zip(task.new_clients, final.get("new_clients", []), strict=True)
        ],
        "domains": _by_domain(task, _evaluated(task, final), last),
        "macro": _macro(task, _evaluated(task, final), last),
        "calibration_error": _calibration(task, _evaluated(task, final), last),
        **({"privacy": {name: final[name] for name in ("epsilon", "delta")}} if "delta" in final else {}),
        "bytes_up_per_client_round": federated["bytes_up"],
        "bytes_down_per_client_round": federated["bytes_down"],
        "seconds": round(sum(record["seconds_training"] + record["seconds_evaluation"] for record in records), 3),
    }


def _evaluated(task: Task, final: Mapping[str, Any]) -> list[Client]:
    """Return the clients of the last evaluation: all clients except the unreachable ones."""
    return [task.clients[i] for i in final["evaluated"]] if "evaluated" in final else list(task.clients)


def _on_validation(figures: Mapping[str, Any]) -> float:
    return harmonic_mean([figures["validation_local"], figures["validation_base"]])


def _by_domain(task: Task, clients: Sequence[Client], last: Evaluation) -> dict[str, float]:
    """Return the mean Local of the clients of every domain, if each client has only one domain."""
    names = task.train.domain_names
    accuracies: dict[str, list[float]] = {}
    for place, client in enumerate(clients):
        if client.domains is not None and len(client.domains) == 1:
            accuracies.setdefault(names[client.domains[0]], []).append(float(last.clients["local"][place]))
    return {name: fmean(accuracies[name]) for name in names if name in accuracies}


def _about(task: Task, client: Client) -> dict[str, Any]:
    """Describe a client for the results."""
    return {
        "client": client.id,
        **({} if client.name is None else {"name": client.name}),
        "classes": [task.class_names[label] for label in client.classes],
        "domains": None if client.domains is None else [task.train.domain_names[i] for i in client.domains],
        "examples": len(client.train),
    }


def _describe(task: Task) -> dict[str, Any]:
    novel = task.tests.get("novel")
    domains = [] if novel is None else np.unique(novel.dataset.domains[novel.images]).tolist()
    return {
        "protocol": task.name,
        "partition": task.partition,
        "data": task.train.name,
        "clients": len(task.clients),
        "new_clients": len(task.new_clients),
        "base_classes": len(task.base),
        "novel": task.novel,
        "novel_data": novel.dataset.name if novel is not None and task.novel == "data sets" else None,
        "novel_classes": 0 if novel is None else len(novel.classes),
        "base_names": [task.class_names[label] for label in task.base],
        "novel_names": [] if novel is None else [novel.dataset.class_names[label] for label in novel.classes],
        "templates": list(task.templates),
        "novel_domains": [] if novel is None else [novel.dataset.domain_names[i] for i in domains],
        "evaluated_on": task.tests["base"].dataset.split,
        "images": {name: len(test.images) for name, test in task.tests.items()},
    }


def prompts_of(spec: RunSpec, server: Server, clients: Iterable[ClientState] = ()) -> dict[str, Tensor]:
    """Return the trained tensors of a run on the CPU, with the names of `named`.

    If a method predicts with another shared part than it trains, the shared part for prediction is returned.

    Parameters
    ----------
    spec
        The run.
    server
        State of the server.
    clients
        States of all clients in order, or none if the clients keep them.
    """
    received = spec.aggregator.download(server, 0).shared
    shared = spec.method.for_prediction(Params(server.shared, {}, received)).shared
    if not spec.aggregator.personal:
        return named(shared, clients)
    return named(shared, clients, lambda client: spec.aggregator.download(server, client).shared)


def named(
    shared: Tensors, clients: Iterable[ClientState], received: Callable[[int], Tensors] = lambda client: {}
) -> dict[str, Tensor]:
    """Return the tensors of a run on the CPU: "shared/NAME", and "private/CLIENT/NAME" for each client.

    A shared part that a client keeps for its own model is "kept/CLIENT/NAME". Tensors that only one client receives are
    "received/CLIENT/NAME".
    """
    groups = {"shared": shared}
    for number, client in enumerate(clients):
        groups[f"private/{number}"], groups[f"kept/{number}"] = client.private, client.kept
        groups[f"received/{number}"] = received(number)
    return {f"{group}/{name}": tensors[name].cpu() for group, tensors in groups.items() for name in sorted(tensors)}


def outcomes(task: Task, last: Evaluation) -> Outcomes:
    """Return which test images the clients classified correctly, at every point of the path."""
    chunks = (task.clients[start : start + CHUNK] for start in range(0, len(task.clients), CHUNK))
    points, nothing = {**last.path, 1.0: last}, np.zeros((len(task.clients), 0), dtype=np.uint8)
    return Outcomes(
        alphas=np.array(list(points)),
        base=np.stack([point.correct["base"] for point in points.values()]),
        novel=np.stack([point.correct.get("novel", nothing) for point in points.values()]),
        own=np.concatenate([np.packbits(own_images(task, chunk, "base"), axis=1) for chunk in chunks]),
        base_images=len(task.tests["base"].images),
        novel_images=len(task.tests["novel"].images) if "novel" in task.tests else 0,
    )


def answers(task: Task, last: Evaluation) -> dict[str, Tensor]:
    """Return the predictions of the clients' models for every test image.

    Parameters
    ----------
    task
        The task.
    last
        The evaluation.

    Returns
    -------
    For SET "base" and "novel", with N clients and n test images: "SET/predicted", [N, n] int16, the predicted column of
    the softmax, whose names are in the results; "SET/confidence", [N, n] float16, its probability; "SET/labels", [n],
    the correct column; "SET/images", [n], the number of the image in its split.
    """
    tensors: dict[str, Tensor] = {}
    for name in ("base", "novel"):
        if name in task.tests and name in last.predicted:
            test = task.tests[name]
            tensors[f"{name}/predicted"] = torch.from_numpy(last.predicted[name])
            tensors[f"{name}/confidence"] = torch.from_numpy(last.confidence[name])
            tensors[f"{name}/labels"] = torch.from_numpy(test.targets.astype(np.int16))
            tensors[f"{name}/images"] = torch.from_numpy(test.dataset.numbers_of(test.images).astype(np.int32))
    return tensors


def _macro(task: Task, clients: Sequence[Client], last: Evaluation) -> dict[str, float]:
    """Return Local, Base and Novel averaged over classes with equal weights; empty if clients keep predictions."""
    macro: dict[str, float] = {}
    for name in ("base", "novel"):
        if name in last.predicted:
            test = task.tests[name]
            right, count = last.predicted[name] == test.targets, len(test.classes)
            if name == "base":
                own = own_images(task, clients, name)
                macro["local"] = macro_accuracy(class_accuracies(right, test.targets, count, own))
            macro[name] = macro_accuracy(class_accuracies(right, test.targets, count))
    return macro


def _calibration(task: Task, clients: Sequence[Client], last: Evaluation) -> dict[str, float]:
    """Return the expected calibration error on Local, Base and Novel in percentage points, averaged over the clients.

    The result is empty if the clients keep their predictions.
    """
    errors: dict[str, list[float]] = {}
    for name in ("base", "novel"):
        if name not in last.predicted:
            continue
        right = last.predicted[name] == task.tests[name].targets
        for place, client in enumerate(clients):
            errors.setdefault(name, []).append(calibration_error(last.confidence[name][place], right[place]))
            if name == "base":
                (own,) = own_images(task, [client], name)
                errors.setdefault("local", []).append(
                    calibration_error(last.confidence[name][place][own], right[place][own])
                )
    return {name: fmean(values) for name, values in sorted(errors.items())}


def provenance(
    config: ExperimentConfig, name: str, seed: int, backbone: Backbone, source: Source | None
) -> dict[str, Any]:
    """Return the provenance of a run: versions, fingerprints of the weights and of the images, seed and command.

    Parameters
    ----------
    config, name, seed
        Config, method and seed of the run.
    backbone
        The dual encoder.
    source
        The dataset; None if this machine has no images.
    """
    return {
        "method": asdict(config.methods[name]),
        "method_code": fingerprint(config.methods[name]),
        "seed": seed,
        "command": sys.argv,
        "fedpgp": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {**_package_versions()},
        "checkpoint": backbone.fingerprint,
        "licence": backbone.licence,
        "images": {name: split.fingerprint for name in SPLITS if (split := getattr(source, name, None)) is not None},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


@cache
def _package_versions() -> dict[str, str]:
    return {package: version(package) for package in ("torch", "transformers", "numpy", "safetensors", "tokenizers")}
