"""What is kept of a run: figures, prompts, outcomes and provenance."""

import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from statistics import fmean, harmonic_mean
from typing import Any

import numpy as np
from torch import Tensor

from fedpgp import __version__
from fedpgp.aggregators import Server
from fedpgp.backbone import Backbone
from fedpgp.bootstrap import Outcomes
from fedpgp.config import ExperimentConfig
from fedpgp.data.sources import SPLITS, Source
from fedpgp.data.tasks import Task
from fedpgp.evaluate import CHUNK, Evaluation, own_images
from fedpgp.federation.state import ClientState
from fedpgp.plugins import fingerprint


def figures(task: Task, name: str, seed: int, records: Sequence[Mapping[str, Any]], last: Evaluation) -> dict[str, Any]:
    """The headline is the last round; beside it the mean of the last five, and the round that validation chooses.

    The last five, and the rounds that validation chooses from, are those that were evaluated; last: of the last round.
    """
    names = ["local", *task.tests, "hm", "cm"]
    evaluated = [record for record in records if "local" in record]
    best = max(evaluated, key=lambda record: harmonic_mean([record["validation_local"], record["validation_base"]]))
    final = records[-1]
    federated = next((record for record in reversed(records) if record["bytes_up"]), final)  # fine-tuning sends nothing
    return {
        "method": name,
        "seed": seed,
        "task": _describe(task),
        "rounds": final["round"],
        "final": {key: final[key] for key in names},
        "shared": None if last.shared is None else {key: last.shared[key] for key in names},
        "last_five": {key: fmean(record[key] for record in evaluated[-5:]) for key in names},
        "best_on_validation": {"round": best["round"], **{key: best[key] for key in names}},
        "clients": [
            {
                "client": client.id,
                "classes": [task.class_names[label] for label in client.classes],
                "examples": len(client.train),
                **{key: float(last.clients[key][client.id]) for key in ("local", *task.tests)},
            }
            for client in task.clients
        ],
        "bytes_up_per_client_round": federated["bytes_up"],
        "bytes_down_per_client_round": federated["bytes_down"],
        "seconds": round(sum(record["seconds_training"] + record["seconds_evaluation"] for record in records), 3),
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


class Prompts(Mapping[str, Tensor]):
    """The trained tensors, on the CPU, read when they are asked for.

    "shared/NAME" of the server, as models predict with it, and for every client "private/CLIENT/NAME" and, where its
    model is made of a shared part of its own, "kept/CLIENT/NAME".
    """

    def __init__(self, server: Server | None, clients: Sequence[ClientState]):
        self._shared = {} if server is None else server.shared
        self._clients = clients

    def __getitem__(self, name: str) -> Tensor:
        kind, _, rest = name.partition("/")
        if kind == "shared":
            return self._shared[rest].cpu()
        client, _, key = rest.partition("/")
        if kind not in ("private", "kept") or not client.isdecimal() or int(client) >= len(self._clients):
            raise KeyError(name)
        return getattr(self._clients[int(client)], kind)[key].cpu()

    def __iter__(self) -> Iterator[str]:
        yield from (f"shared/{name}" for name in sorted(self._shared))
        for number, client in enumerate(self._clients):
            yield from (f"private/{number}/{name}" for name in sorted(client.private))
            yield from (f"kept/{number}/{name}" for name in sorted(client.kept))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def outcomes(task: Task, last: Evaluation) -> Outcomes:
    """Which test images the clients got right in an evaluation."""
    chunks = (task.clients[start : start + CHUNK] for start in range(0, len(task.clients), CHUNK))
    return Outcomes(
        base=last.correct["base"],
        novel=last.correct["novel"],
        own=np.concatenate([np.packbits(own_images(task, chunk, "base"), axis=1) for chunk in chunks]),
        base_images=len(task.tests["base"].images),
        novel_images=len(task.tests["novel"].images),
    )


def provenance(config: ExperimentConfig, name: str, seed: int, backbone: Backbone, source: Source) -> dict[str, Any]:
    """What made a run: versions, the fingerprints of the weights and of the images, seed and command."""
    packages = ("torch", "transformers", "numpy", "safetensors", "tokenizers")
    return {
        "method": asdict(config.methods[name]),
        "method_code": fingerprint(config.methods[name]),
        "seed": seed,
        "command": sys.argv,
        "fedpgp": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: version(package) for package in packages},
        "checkpoint": backbone.fingerprint,
        "images": {split: getattr(source, split).fingerprint for split in SPLITS},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
