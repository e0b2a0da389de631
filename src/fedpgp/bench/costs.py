"""Costs of every method, compared with PromptFL: time, memory, bytes and operations.

A round of PromptFL precedes each measured round, so that both rounds are affected by the same state of the machine.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from statistics import median
from typing import Any

from fedpgp.bench.machine import count_operations, peak_memory, ratio
from fedpgp.bench.options import Bench
from fedpgp.bench.shapes import BATCH, Scene
from fedpgp.config import load_config
from fedpgp.data.tasks import Task
from fedpgp.errors import ConfigError
from fedpgp.evaluation.inference import kind_of
from fedpgp.federation.client import ClientJob, train_clients
from fedpgp.federation.client_runner import ClientRunner, Data
from fedpgp.federation.rounds import federate
from fedpgp.federation.run_spec import RunSpec
from fedpgp.federation.settings import FederationConfig
from fedpgp.federation.state import State
from fedpgp.methods import METHODS, Method
from fedpgp.methods.plugins import find_method
from fedpgp.methods.promptfl import PromptFL
from fedpgp.testing import Recording, made_up_data, made_up_images

FORGOTTEN = 2  # first rounds, not measured: caches fill, and some methods read less before clients send updates
PARTICIPANTS = {True: 2, False: 10}  # participants out of ten clients; made-up shapes are large, and so have fewer
ENDLESS = 1_000_000  # number of rounds; no run reaches its last round, which would be evaluated


def measure_costs(bench: Bench) -> list[dict[str, Any]]:
    """Run rounds of PromptFL and of every other method that trains something, with default settings.

    Returns
    -------
    list
        For each method a dictionary with these keys. `name`. `seconds`: local training and aggregation in a round of
        all participants, by repetition. `steps`: local steps of all participants in a round. `step`: seconds of one
        local step of one client. `ratio`: median ratio of the time of a step to a step of PromptFL in the preceding
        round. `memory`: peak growth of the process in the first rounds, in bytes. `bytes_up`, `bytes_down`: bytes of
        one client in a round. `flops`: operations of one local step of one client.
    """
    scene, options = bench.step.scene, bench.options
    backbone, seed = scene.backbone, options.seed
    settings = FederationConfig(
        rounds=ENDLESS,
        eval_every=ENDLESS,
        local_epochs=1,
        batch_size=BATCH,
        participation=min(1.0, PARTICIPANTS[scene.made_up] / len(scene.task.clients)),
    )
    others = [
        _trained_method(cls, scene) for cls in map(find_method, options.methods or METHODS) if cls is not PromptFL
    ]
    chosen = [PromptFL(), *(method for method in others if method is not None)]
    pool = Recording(backbone.towers([what for method in chosen for what in method.reads]))

    def play(rounds: Iterator[dict[str, Any]]) -> dict[str, Any]:
        """Return the record of the next round, with the seconds of a local step."""
        pool.groups.clear()
        record = next(rounds)
        steps = sum(_steps(job) for job, _ in pool.trained)
        return {**record, "steps": steps, "step": record["seconds_training"] / steps}

    with ExitStack() as stack:

        def rounds(method: Method) -> Iterator[dict[str, Any]]:
            task = _one_step(scene.task) if scene.made_up and "image tower" in method.reads else scene.task
            train = made_up_images(len(task.train), backbone, kind_of(method), seed)
            data = Data(task, train, made_up_data(task, backbone, None, seed).tests)  # test sets are not used
            runner = ClientRunner(RunSpec(method, task, backbone, settings, seed), data)
            return federate(runner, pool, stack.enter_context(State.create()))

        def cost(method: Method) -> dict[str, Any]:
            bench.say(f"methods: {method.name}")
            running = rounds(method)
            _, memory = peak_memory(lambda: [play(running) for _ in range(FORGOTTEN)])
            pairs = [(play(reference), play(running)) for _ in range(options.repeat)]
            before, records = zip(*pairs, strict=True)
            job, _ = pool.trained[0]
            _, operations = count_operations(lambda: train_clients(pool.towers, [job]))
            return {
                "name": method.name,
                "seconds": [record["seconds_training"] for record in records],
                "ratio": ratio([record["step"] for record in records], [record["step"] for record in before]),
                "memory": memory,
                "flops": round(operations.total / _steps(job)),
                "step": median(record["step"] for record in records),
                **{key: records[-1][key] for key in ("steps", "bytes_up", "bytes_down")},
            }

        reference = rounds(PromptFL())
        for _ in range(FORGOTTEN):
            play(reference)
        return [cost(method) for method in chosen]


def _steps(job: ClientJob) -> int:
    return math.ceil(len(job.labels) / BATCH)


def _one_step(task: Task) -> Task:
    """Return the task with one batch for each client, because a step through a large image tower takes many seconds."""
    return replace(task, clients=tuple(replace(client, train=client.train[:BATCH]) for client in task.clients))


def _trained_method(cls: type[Method], scene: Scene) -> Method | None:
    """Return a method with its default settings, or None if it trains nothing.

    If the defaults are too deep for the embedded checkpoint, the settings of the embedded recipe are used.
    """

    def spec(method: Method) -> RunSpec:
        return RunSpec(method, scene.task, scene.backbone, FederationConfig(), 0)

    try:
        chosen = spec(cls())
    except ConfigError:
        chosen = spec(load_config().methods[cls.name])
    return chosen.method if chosen.trains else None
