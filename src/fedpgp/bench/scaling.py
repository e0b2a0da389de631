"""Time per round and peak memory as the number of clients grows, with ten of them in every round.

A process of its own for each number, because a process's peak memory never falls. The tower is pictoclip's: a larger
one would hide what the federation itself costs.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np

from fedpgp.backbone import load_backbone
from fedpgp.bench.machine import status, threads
from fedpgp.bench.names import BASE_NAMES, NOVEL_NAMES
from fedpgp.bench.shapes import BATCH, LOCAL_EPOCHS, SHOTS, made_up_split
from fedpgp.data.tasks import Client, EvaluationSet, Task
from fedpgp.errors import TrainingError
from fedpgp.federation.rounds import federate
from fedpgp.federation.settings import FederationConfig
from fedpgp.federation.state import FILE, State
from fedpgp.methods.fedpgp import FedPGP
from fedpgp.runtime.workers import Workers
from fedpgp.testing import made_up_data

CLIENTS = (10, 100, 1_000, 10_000)
PARTICIPANTS = 10
MEASURED_ROUNDS = 4
OWN_CLASSES = 5


@dataclass(frozen=True)
class Scale:
    """seconds: of a round without evaluation, the median; evaluation: of all clients after the last round, in seconds;
    peak: bytes that the process held at most, None where that is not known.
    """

    clients: int
    seconds: float
    evaluation: float
    peak: int | None


def sweep(numbers: Sequence[int], seed: int, count: int) -> list[Scale]:
    """Measures every number of clients, each in a new process on so many threads."""
    return [_in_new_process(clients, seed, count) for clients in numbers]


def _in_new_process(clients: int, seed: int, count: int) -> Scale:
    command = [sys.executable, "-m", "fedpgp.bench.scaling", str(clients), str(seed), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise TrainingError(f"the scaling sweep with {clients} clients failed: {last}")
    return Scale(**json.loads(done.stdout.splitlines()[-1]))


def measure(clients: int, seed: int) -> Scale:
    """Some rounds of so many clients in this process, with a state on the disk; all are evaluated after the last."""
    backbone = load_backbone("pictoclip")
    task = shared_classes(clients)
    data = made_up_data(task, backbone, None, seed)
    settings = FederationConfig(
        rounds=MEASURED_ROUNDS + 2,  # the first does what a run does once, the last is evaluated
        local_epochs=LOCAL_EPOCHS,
        batch_size=BATCH,
        participation=PARTICIPANTS / clients,
        eval_every=MEASURED_ROUNDS + 2,
        path_points=1,
    )
    with (
        tempfile.TemporaryDirectory() as directory,
        State.create(Path(directory) / FILE) as state,
        Workers(backbone.towers(), 1) as pool,
    ):
        rounds = federate(FedPGP(), data, backbone, settings, seed, pool, state)
        next(rounds)
        taken = []
        for _ in range(MEASURED_ROUNDS):
            started = time.perf_counter()
            next(rounds)
            taken.append(time.perf_counter() - started)
        last = next(rounds)
    try:
        peak = status("VmHWM")
    except OSError:
        peak = None
    return Scale(clients, median(taken), last["seconds_evaluation"], peak)


def shared_classes(clients: int) -> Task:
    """Clients with five of the base classes each, which neighbours share, and eight images of each class."""
    base, novel = tuple(range(len(BASE_NAMES))), tuple(range(len(BASE_NAMES), len(BASE_NAMES) + len(NOVEL_NAMES)))
    train, test = made_up_split("train", np.repeat(base, SHOTS)), made_up_split("test", [*base, *novel])
    own = [tuple(sorted((client + k) % len(base) for k in range(OWN_CLASSES))) for client in range(clients)]
    images = {classes: train.of_classes(classes) for classes in set(own)}
    return Task(
        name="clients that share classes",
        class_names=(*BASE_NAMES, *NOVEL_NAMES),
        base=base,
        train=train,
        clients=tuple(Client(i, classes, images[classes]) for i, classes in enumerate(own)),
        tests={
            name: EvaluationSet(test, own, test.of_classes(own)) for name, own in (("base", base), ("novel", novel))
        },
        validation=EvaluationSet(test, base, test.of_classes(base)),
    )


if __name__ == "__main__":
    clients, seed, count = map(int, sys.argv[1:])
    with threads(count):
        print(json.dumps(asdict(measure(clients, seed))))
