"""What is kept of a run: figures, prompts, outcomes and provenance."""

import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from statistics import fmean, harmonic_mean
from typing import Any

import numpy as np
from torch import Tensor

from fedpgp import __version__
from fedpgp.backbone import Backbone
from fedpgp.bootstrap import Outcomes
from fedpgp.config import ExperimentConfig
from fedpgp.data.sources import SPLITS, Source
from fedpgp.data.tasks import Task
from fedpgp.evaluate import client_accuracies, own_images, shared_accuracies, summary
from fedpgp.federation.rounds import Round


def figures(
    task: Task,
    name: str,
    seed: int,
    last: Round,
    records: Sequence[Mapping[str, Any]],
    finished: bool,
    seconds: float,
) -> dict[str, Any]:
    """The headline is the last round; beside it the mean of the last five, and the round that validation chooses."""
    clients = client_accuracies(task, last.evaluation.clients)
    names = list(summary(clients))
    best = max(records, key=lambda record: harmonic_mean([record["validation_local"], record["validation_base"]]))
    shared = last.evaluation.shared
    return {
        "method": name,
        "seed": seed,
        "finished": finished,
        "task": _describe(task),
        "rounds": last.number,
        "final": {key: last.record[key] for key in names},
        "shared": None if shared is None else summary([shared_accuracies(task, shared)]),
        "last_five": {key: fmean(record[key] for record in records[-5:]) for key in names},
        "best_on_validation": {"round": best["round"], **{key: best[key] for key in names}},
        "clients": [
            {
                "client": client.id,
                "classes": [task.class_names[label] for label in client.classes],
                "examples": len(client.train),
                **figure,
            }
            for client, figure in zip(task.clients, clients, strict=True)
        ],
        "bytes_up_per_client_round": last.record["bytes_up"],
        "bytes_down_per_client_round": last.record["bytes_down"],
        "seconds": round(seconds, 3),
    }


def _describe(task: Task) -> dict[str, Any]:
    return {
        "protocol": task.name,
        "data": task.train.name,
        "clients": len(task.clients),
        "base_classes": len(task.base),
        "novel_classes": len(task.tests["novel"].classes),
        "evaluated_on": task.tests["base"].dataset.split,
        "images": {name: len(test.images) for name, test in task.tests.items()},
    }


def prompts(state: Round) -> dict[str, Tensor]:
    """The trained tensors: "shared/NAME", and "private/CLIENT/NAME" for every client."""
    tensors = {f"shared/{name}": tensor for name, tensor in state.shared.items()}
    for client, private in enumerate(state.private):
        tensors |= {f"private/{client}/{name}": tensor for name, tensor in private.items()}
    return tensors


def outcomes(task: Task, state: Round) -> Outcomes:
    """Which test images the clients got right after a round."""
    predicted = state.evaluation.clients
    return Outcomes(
        base=predicted["base"] == task.tests["base"].targets,
        novel=predicted["novel"] == task.tests["novel"].targets,
        own=np.stack(own_images(task, "base")),
    )


def provenance(config: ExperimentConfig, name: str, seed: int, backbone: Backbone, source: Source) -> dict[str, Any]:
    """What made a run: versions, the fingerprints of the weights and of the images, seed and command."""
    packages = ("torch", "transformers", "numpy", "safetensors", "tokenizers")
    return {
        "method": asdict(config.methods[name]),
        "seed": seed,
        "command": sys.argv,
        "fedpgp": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: version(package) for package in packages},
        "checkpoint": backbone.fingerprint,
        "images": {split: getattr(source, split).fingerprint for split in SPLITS},
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
