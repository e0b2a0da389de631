"""What every method costs: time, memory, bytes and operations, beside PromptFL.

A round of PromptFL is run right before each round that counts, so that both meet the same machine.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

from fedpgp.backbone.text import TextEncoder
from fedpgp.bench.flops import packed
from fedpgp.bench.machine import peak_memory
from fedpgp.bench.shapes import BATCH, Scene, random_features
from fedpgp.config import FederationConfig
from fedpgp.evaluate import evaluation_sets
from fedpgp.federation.client import ClientJob, train_clients
from fedpgp.federation.rounds import Data, federate
from fedpgp.federation.state import State
from fedpgp.methods import Method, PromptFL
from fedpgp.randomness import generator
from fedpgp.testing import Recording

FORGOTTEN = 2  # first rounds, in which caches fill and some methods read less, because nobody has sent anything yet
PARTICIPANTS = {True: 2, False: 10}  # of ten clients, by whether the shape is made up, and so large
ENDLESS = 1_000_000  # rounds: no run comes to its last, which would be evaluated


@dataclass(frozen=True)
class Cost:
    """Of one method.

    seconds: of local training and aggregation in a round of all participants, by repetition; steps: local steps of all
    participants in a round; ratio: of the seconds of a step to those of PromptFL in the round before it, the median;
    memory: bytes that the process grew by at most; bytes_up, bytes_down: of one client in a round; flops: operations of
    one client's local step.
    """

    name: str
    seconds: Sequence[float]
    ratio: float
    steps: int
    memory: int | None
    bytes_up: int
    bytes_down: int
    flops: int

    @property
    def step(self) -> float:
        """Seconds of one client's local step."""
        return median(self.seconds) / self.steps


class _Last(Recording):
    """Remembers the local trainings of the last round alone."""

    def map(self, function: Callable[[TextEncoder, Any], Any], jobs: Iterable[Any]) -> list[Any]:
        if function is train_clients:
            self.groups.clear()
        return super().map(function, jobs)

    @property
    def jobs(self) -> list[ClientJob]:
        return [job for job, _ in self.trained]

    @property
    def steps(self) -> int:
        """Local steps of all of them together."""
        return sum(math.ceil(len(job.labels) / BATCH) for job in self.jobs)


def measure_costs(
    scene: Scene, methods: Sequence[type[Method]], seed: int, repeat: int, say: Callable[[str], None]
) -> list[Cost]:
    """Runs rounds of every method that trains something, with its default settings; the first is PromptFL."""
    task, backbone = scene.task, scene.backbone
    like, width = backbone.logit_scale, scene.config.projection_dim
    tests = {name: random_features(len(test.images), like, width, seed) for name, test in evaluation_sets(task).items()}
    data = Data(task, random_features(len(task.train), like, width, seed), tests)
    settings = FederationConfig(
        rounds=ENDLESS,
        eval_every=ENDLESS,
        local_epochs=1,
        batch_size=BATCH,
        participation=min(1.0, PARTICIPANTS[scene.made_up] / len(task.clients)),
    )
    pool = _Last(backbone.text)
    with ExitStack() as stack:

        def rounds(method: Method) -> Iterator[Mapping[str, Any]]:
            return federate(method, data, backbone, settings, seed, pool, stack.enter_context(State.create()))

        def cost(method: Method) -> Cost:
            say(f"methods: {method.name}")
            running = rounds(method)
            _, memory = peak_memory(lambda: [next(running) for _ in range(FORGOTTEN)])
            times, ratios = [], []
            for _ in range(repeat):
                base = next(reference)["seconds_training"] / pool.steps
                record = next(running)
                times.append(record["seconds_training"])
                ratios.append(times[-1] / pool.steps / base)
            return Cost(
                name=method.name,
                seconds=times,
                ratio=median(ratios),
                steps=pool.steps,
                memory=memory,
                bytes_up=record["bytes_up"],
                bytes_down=record["bytes_down"],
                flops=count(pool.jobs[0], scene, sum(name.startswith("loss_") for name in record)),
            )

        reference = rounds(PromptFL())
        for _ in range(FORGOTTEN):
            next(reference)
        others = [cls() for cls in methods if cls is not PromptFL]
        return [cost(method) for method in [PromptFL(), *others] if _trains(method, scene)]


def _trains(method: Method, scene: Scene) -> bool:
    rng = generator(0, "shared")
    task, backbone = scene.task, scene.backbone
    return bool(method.init_shared(task, backbone, rng) or method.init_private(task, backbone, rng, 0))


def count(job: ClientJob, scene: Scene, terms: int) -> int:
    """Operations of the text encoder in one local step; contexts that no step changes are shared out to the steps.

    terms: of the loss. Products with image features and networks of a method's own are not counted.
    """
    method, params = job.method, job.params
    config = scene.config.text_config
    tokens = (job.classes.end + 1).tolist()
    examples = min(BATCH, len(job.labels))

    def operations(context_length: int, *, backward: bool) -> int:
        return packed(config, 1, context_length, tokens, backward=backward).total

    total = 0.0
    for context in method.prompts(method.for_step(params, generator(0, "step")), job.frozen):
        forward = operations(context.shape[-2], backward=False)
        backward = operations(context.shape[-2], backward=True) - forward
        passes = (examples if method.per_example else terms) if method.turns_gradient else 1
        total += forward + passes * backward
    steps = job.training.local_epochs * math.ceil(len(job.labels) / BATCH)
    for context in method.constant_prompts(params):
        total += operations(context.shape[-2], backward=False) / steps
    return round(total)
