"""The whole embedded comparison: four methods on all cores, and the share of the machine's speed that it reaches.

After every round, the same number of processes multiply matrices with the shapes of local training for a moment, all at
the same time. Both measurements are therefore affected by the same other programs, clock rate and shared memory.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch

from fedpgp.backbone import Towers
from fedpgp.bench.machine import Operations, Shape, count_operations, seconds
from fedpgp.bench.options import Bench
from fedpgp.config import ExperimentConfig, load_config
from fedpgp.federation.client import train_clients
from fedpgp.federation.rounds import federate
from fedpgp.federation.state import State
from fedpgp.methods.fedpgp import FedPGP
from fedpgp.reporting import Silent
from fedpgp.runs.choices import HEADLINE
from fedpgp.runs.execution import Execution
from fedpgp.runs.run import compare
from fedpgp.runs.setup import open_run
from fedpgp.runtime.processes import cores
from fedpgp.runtime.workers import Workers

SEEDS = 3
MULTIPLYING = 0.2  # seconds of multiplication after every round


class _Multiplying(Silent):
    """Reporter that measures torch.mm after each round; the time is not part of a round."""

    def __init__(self, pool: Workers[None], shapes: Mapping[Shape, int]):
        self._pool, self._shapes = pool, shapes
        self.speeds: list[float] = []
        self.elapsed = 0.0

    def progress(self, what: str, done: int, total: int, detail: str = "") -> None:
        if not detail:  # before the first round
            return
        started = time.perf_counter()
        self.speeds.append(sum(self._pool.map(_multiply, [self._shapes] * self._pool.count)))
        self.elapsed += time.perf_counter() - started


def measure_recipe(bench: Bench) -> dict[str, Any]:
    """Run the default methods of `compare` on all cores. Images that are not in the cache are encoded first.

    Returns
    -------
    dict
        `workers`: number of processes. `total`: seconds from the call to the result, with image features cached and
        without the multiplications. `methods`: for each method, the seconds and operations of training and evaluation
        in the rounds of all seeds. `gemm`: operations per second of torch.mm in all processes together, after each
        round. `shares`: see `shares`.
    """
    config, workers = load_config(), cores()
    bench.say("recipe: image features, and operations of a round of each method")
    counts = {name: _count_round(config, name) for name in HEADLINE}
    bench.say(f"recipe: all methods, {SEEDS} seeds")
    with Workers(None, workers) as pool:
        shapes = counts[FedPGP.name]["training"]
        pool.map(_multiply, [shapes] * workers)  # starts the processes
        multiplying = _Multiplying(pool, shapes)
        started = time.perf_counter()
        runs = compare(seeds=SEEDS, config=config, workers=workers, reporter=multiplying).runs
        total = time.perf_counter() - started - multiplying.elapsed
    methods: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for run in runs:
        cost, flops = methods[run.method], {kind: Operations(of, 0).linear for kind, of in counts[run.method].items()}
        for record in run.rounds:
            cost["training"] += record["seconds_training"]
            cost["evaluation"] += record["seconds_evaluation"]
            cost["training_flops"] += flops["training"]
            cost["evaluation_flops"] += flops["evaluation"] * ("local" in record)
    return {
        "workers": workers,
        "total": total,
        "methods": methods,
        "gemm": multiplying.speeds,
        "shares": shares(methods, total, multiplying.speeds),
    }


class _Counting(Workers[Towers]):
    """Worker in this process that counts products with weights in local training and in evaluation."""

    def __init__(self, towers: Towers):
        super().__init__(towers, 1)
        self.products: dict[str, Counter[Shape]] = {"training": Counter(), "evaluation": Counter()}

    def map(self, function: Callable[..., Any], jobs: Iterable[Any]) -> list[Any]:
        results, operations = count_operations(lambda: super(_Counting, self).map(function, jobs))
        self.products["training" if function is train_clients else "evaluation"].update(operations.products)
        return results


def _count_round(config: ExperimentConfig, name: str) -> Mapping[str, Mapping[Shape, int]]:
    """Return the products of a round with evaluation; other rounds and seeds have the same number."""
    config = replace(config, federation=replace(config.federation, rounds=1, path_points=1))
    with open_run(config, name, 0, Execution()) as opened, State.create() as state:
        pool = _Counting(opened.backbone.towers(opened.method.reads))
        next(federate(opened.runner, pool, state))
    return pool.products


def shares(methods: Mapping[str, Mapping[str, float]], total: float, gemm: Sequence[float]) -> dict[str, float]:
    """Return operations per second of training, of rounds, and of everything, as fractions of the speed of torch.mm."""
    training, evaluation, training_flops, evaluation_flops = (
        sum(cost[key] for cost in methods.values())
        for key in ("training", "evaluation", "training_flops", "evaluation_flops")
    )
    counted, speed = training_flops + evaluation_flops, fmean(gemm)
    return {
        "training": training_flops / training / speed,
        "rounds": counted / (training + evaluation) / speed,
        "everything": counted / total / speed,
    }


def _multiply(towers: None, products: Mapping[Shape, int]) -> float:
    """Multiply matrices of these shapes for a moment, and return operations per second."""
    work = [
        (torch.randn(rows, inputs), torch.randn(inputs, outputs), times)
        for (rows, inputs, outputs), times in products.items()
    ]

    def multiply() -> None:
        for x, weight, times in work:
            for _ in range(times):
                torch.mm(x, weight)

    return Operations(products, 0).linear / seconds(multiply, MULTIPLYING)
