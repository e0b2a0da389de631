"""The embedded comparison whole: its four methods, every core; and how much of the machine it uses.

After every round as many processes multiply matrices for a moment, all at once, at the shapes of local training. So
both sides meet the same machine, with its neighbours, its clock and its shared memory.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from statistics import fmean

import torch
from torch import Tensor

from fedpgp.backbone import Backbone, Towers, load_backbone
from fedpgp.bench.flops import Count, Product, packed
from fedpgp.config import ExperimentConfig, load_config
from fedpgp.data.sources import Source, load_source
from fedpgp.federation.client import ROWS
from fedpgp.methods import Frozen, Params
from fedpgp.methods.fedpgp import FedPGP
from fedpgp.reporting import Silent
from fedpgp.results.run import Run
from fedpgp.runs.run import compare
from fedpgp.runtime.workers import Workers

MULTIPLYING = 0.2  # seconds, after every round


@dataclass(frozen=True)
class RecipeCost:
    """Seconds in rounds, and counted operations, of one method with all seeds."""

    training: float
    evaluation: float
    training_flops: int
    evaluation_flops: int


@dataclass(frozen=True)
class RecipeFigures:
    """workers: processes; total: seconds from the call to the result, image features cached, less what multiplying
    took; methods: what each took; gemm: operations per second of torch.mm in all processes together, after each round.
    """

    workers: int
    total: float
    methods: Mapping[str, RecipeCost]
    gemm: Sequence[float]

    @property
    def shares(self) -> dict[str, float]:
        """Counted operations per second over those of torch.mm: of training, of rounds, of everything."""
        speed, sums = fmean(self.gemm), _sum(self.methods.values())
        counted = sums.training_flops + sums.evaluation_flops
        return {
            "training": sums.training_flops / sums.training / speed,
            "rounds": counted / (sums.training + sums.evaluation) / speed,
            "everything": counted / self.total / speed,
        }


class _Multiplying(Silent):
    """Measures torch.mm whenever a round has ended; its seconds are in no round's."""

    def __init__(self, pool: Workers[Towers], workers: int, shapes: Sequence[Product]):
        self._pool, self._workers, self._shapes = pool, workers, shapes
        self.speeds: list[float] = []
        self.elapsed = 0.0

    def progress(self, what: str, done: int, total: int, detail: str = "") -> None:
        if not detail:  # nothing has been trained yet
            return
        started = time.perf_counter()
        self.speeds.append(sum(self._pool.map(_multiply, [self._shapes] * self._workers)))
        self.elapsed += time.perf_counter() - started


def measure_recipe(
    seeds: int, say: Callable[[str], None], config: ExperimentConfig | None = None, workers: int | None = None
) -> RecipeFigures:
    """Runs the methods that `compare` takes by itself; images that no cache holds are encoded before.

    config: None takes the embedded recipe; workers: None takes all cores.
    """
    config, workers = config or load_config(), workers or os.cpu_count() or 1
    backbone, source = load_backbone(config.backbone.checkpoint), load_source(config.data)
    say("recipe: image features")
    compare("zero-shot", config=config)
    say(f"recipe: all methods, {seeds} seeds")
    with Workers(backbone.towers(), workers) as pool:
        shapes = _shapes(backbone, source)
        pool.map(_multiply, [shapes] * workers)  # starts the processes
        multiplying = _Multiplying(pool, workers, shapes)
        started = time.perf_counter()
        runs = compare(seeds=seeds, config=config, workers=workers, reporter=multiplying).runs
        total = time.perf_counter() - started - multiplying.elapsed
    costs = [(run.method, _cost(run, backbone, source)) for run in runs]
    methods = {name: _sum(cost for of, cost in costs if of == name) for name, _ in costs}
    return RecipeFigures(workers, total, methods, multiplying.speeds)


def _sum(costs: Iterable[RecipeCost]) -> RecipeCost:
    return RecipeCost(*map(sum, zip(*map(astuple, costs), strict=True)))


def _multiply(towers: Towers, products: Sequence[Product]) -> float:
    """Operations per second of multiplying at these shapes for a moment."""
    work = [(torch.randn(p.rows, p.inputs), torch.randn(p.inputs, p.outputs), p) for p in products]
    done, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < MULTIPLYING:
        for x, weight, product in work:
            for _ in range(product.times):
                torch.mm(x, weight)
            done += product.flops
    return done / elapsed


def _cost(run: Run, backbone: Backbone, source: Source) -> RecipeCost:
    """Every local step of every client; and in evaluation the text of every context that differs, over all class names.

    Products with image features, and what a method's loss does with text features, are too little to count.
    """
    settings, method = run.config.federation, run.config.methods[run.method]
    names, trained = source.train.class_names, {name for c in run.results["clients"] for name in c["classes"]}
    base = [name for name in names if name in trained]
    places = torch.tensor([base.index(name) if name in trained else -1 for name in names])
    frozen = Frozen(torch.empty(len(names), 0), backbone.logit_scale, places)  # no context is made of the guidance
    contexts = [[c for c in method.prompts(params, frozen) if isinstance(c, Tensor)] for params in _clients(run)]
    training, evaluation = 0, 0
    if K := len(contexts[0]):
        M = len(contexts[0][0])
        steps = sum(math.ceil(client["examples"] / settings.batch_size) for client in run.results["clients"])
        of_step = _count(backbone, K, M, base).total
        training = len(run.rounds) * settings.local_epochs * steps * of_step
        differ = len(torch.stack([context for of_client in contexts for context in of_client]).unique(dim=0))
        of_reading = _count(backbone, differ, M, names, backward=False).total
        evaluation = of_reading * sum("local" in record for record in run.rounds)
    return RecipeCost(
        sum(record["seconds_training"] for record in run.rounds),
        sum(record["seconds_evaluation"] for record in run.rounds),
        training,
        evaluation,
    )


def _clients(run: Run) -> Iterator[Params]:
    """What each client's model consists of after the last round."""

    def part(start: str) -> dict[str, Tensor]:
        return {name.removeprefix(start): t for name, t in run.prompts.items() if name.startswith(start)}

    shared = part("shared/")
    return (Params(shared, part(f"private/{client['client']}/")) for client in run.results["clients"])


def _shapes(backbone: Backbone, source: Source) -> Sequence[Product]:
    """Those of a local step of a group of clients, with half of the class names in the softmax."""
    names, M = source.train.class_names[::2], FedPGP().context_length
    prompts = max(1, ROWS // backbone.text.rows(torch.empty(M, 0), backbone.class_tokens(names)))
    return _count(backbone, prompts, M, names).products


def _count(backbone: Backbone, prompts: int, M: int, names: Sequence[str], *, backward: bool = True) -> Count:
    tokens = (backbone.class_tokens(names).end + 1).tolist()
    return packed(backbone.image.model.config.text_config, prompts, M, tokens, backward=backward)
