"""Time per round and peak memory for growing numbers of clients, with ten participants in every round.

Each number is measured in a new process, because the peak memory of a process never falls. The model is pictoclip,
because a larger model would hide the cost of the federation.
"""

import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from fedpgp.backbone import load_backbone
from fedpgp.bench.machine import status
from fedpgp.bench.options import Bench
from fedpgp.bench.shapes import BATCH, LOCAL_EPOCHS, caltech_like
from fedpgp.data.tasks import Client, Task
from fedpgp.errors import TrainingError
from fedpgp.federation.client_runner import ClientRunner
from fedpgp.federation.rounds import federate
from fedpgp.federation.run_spec import RunSpec
from fedpgp.federation.settings import FederationConfig
from fedpgp.federation.state import FILE, State
from fedpgp.methods.fedpgp import FedPGP
from fedpgp.runtime.processes import context
from fedpgp.runtime.workers import Workers
from fedpgp.testing import made_up_data

CLIENTS = (10, 100, 1_000, 10_000)
PARTICIPANTS = 10
MEASURED_ROUNDS = 4
OWN_CLASSES = 5


def measure_scaling(bench: Bench) -> list[dict[str, Any]]:
    """Measure every number of clients, each in a new process; raise TrainingError if the process is killed."""
    rows = []
    for clients in CLIENTS:
        with ProcessPoolExecutor(1, context()) as pool:
            try:
                rows.append(pool.submit(measure_clients, clients, bench.options.seed).result())
            except BrokenProcessPool as error:
                raise TrainingError(
                    f"the process with {clients} clients was killed",
                    where="scaling",
                    got=clients,
                    remedy="Free memory, or leave scaling out of --parts",
                ) from error
    return rows


def measure_clients(clients: int, seed: int) -> dict[str, Any]:
    """Run some rounds with a state on disk, and evaluate all clients after the last round.

    Parameters
    ----------
    clients
        Number of clients.
    seed
        Random seed.

    Returns
    -------
    dict
        `clients`. `seconds`: median seconds of a round without evaluation. `evaluation`: seconds of the evaluation of
        all clients. `peak`: peak memory of the process in bytes, None if unknown.
    """
    backbone, task = load_backbone("pictoclip"), shared_classes(clients)
    data = made_up_data(task, backbone, None, seed)
    settings = FederationConfig(
        rounds=MEASURED_ROUNDS + 2,  # the first round has one-time work, and the last round is evaluated
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
        rounds = federate(ClientRunner(RunSpec(FedPGP(), task, backbone, settings, seed), data), pool, state)
        next(rounds)
        ends = [time.perf_counter()]
        for _ in range(MEASURED_ROUNDS):
            next(rounds)
            ends.append(time.perf_counter())
        evaluation = next(rounds)["seconds_evaluation"]
    try:
        peak = status("VmHWM")
    except OSError:
        peak = None
    elapsed = median(end - start for start, end in pairwise(ends))
    return {"clients": clients, "seconds": elapsed, "evaluation": evaluation, "peak": peak}


def shared_classes(clients: int) -> Task:
    """Return the Caltech-like task with `clients` clients.

    Each client has five base classes, which overlap with its neighbours' classes, and eight images of each class. The
    test sets have one image of each class.
    """
    task = caltech_like(0)
    classes = [tuple(sorted((client + k) % len(task.base) for k in range(OWN_CLASSES))) for client in range(clients)]
    images = {own: task.train.of_classes(own) for own in set(classes)}
    return replace(
        task,
        clients=tuple(Client(i, own, images[own]) for i, own in enumerate(classes)),
        tests={name: replace(test, images=test.images[: len(test.classes)]) for name, test in task.tests.items()},
        validation=replace(task.validation, images=task.validation.images[: len(task.base)]),
    )
