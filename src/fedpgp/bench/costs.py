"""What every method costs: time, memory, bytes and operations, beside PromptFL.

A round of PromptFL is run right before each round that counts, so that both meet the same machine.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from torch import Tensor

from fedpgp.backbone import Towers
from fedpgp.backbone.layers import Prompt
from fedpgp.bench.flops import packed, tower
from fedpgp.bench.machine import peak_memory
from fedpgp.bench.shapes import BATCH, Scene
from fedpgp.config import load_config
from fedpgp.data.tasks import Task
from fedpgp.errors import ConfigError
from fedpgp.evaluation.inference import kind_of
from fedpgp.federation.client import ClientJob, train_clients
from fedpgp.federation.client_runner import Data
from fedpgp.federation.rounds import federate
from fedpgp.federation.settings import FederationConfig
from fedpgp.federation.state import State
from fedpgp.methods import Method
from fedpgp.methods.promptfl import PromptFL
from fedpgp.runtime.randomness import generator
from fedpgp.testing import Recording, made_up_data, made_up_images

FORGOTTEN = 2  # first rounds, in which caches fill and some methods read less, because nobody has sent anything yet
PARTICIPANTS = {True: 2, False: 10}  # of ten clients, by whether the shape is made up, and so large
ENDLESS = 1_000_000  # rounds: no run comes to its last, which would be evaluated


@dataclass(frozen=True)
class MethodCost:
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

    def map(self, function: Callable[[Towers, Any], Any], jobs: Iterable[Any]) -> list[Any]:
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
) -> list[MethodCost]:
    """Runs rounds of every method that trains something, with its default settings; the first is PromptFL."""
    task, backbone = scene.task, scene.backbone
    settings = FederationConfig(
        rounds=ENDLESS,
        eval_every=ENDLESS,
        local_epochs=1,
        batch_size=BATCH,
        participation=min(1.0, PARTICIPANTS[scene.made_up] / len(task.clients)),
    )
    chosen = [_settings(cls, scene) for cls in methods if cls is not PromptFL]
    pool = _Last(backbone.towers([what for method in chosen for what in method.reads]))
    with ExitStack() as stack:

        def rounds(method: Method) -> Iterator[Mapping[str, Any]]:
            train = made_up_images(len(task.train), backbone, kind_of(method), seed)
            shorter = scene.made_up and "image tower" in method.reads
            data = Data(
                _one_step(task) if shorter else task,
                train,
                made_up_data(task, backbone, None, seed).tests,  # on which nothing is tested
            )
            return federate(method, data, backbone, settings, seed, pool, stack.enter_context(State.create()))

        def cost(method: Method) -> MethodCost:
            say(f"methods: {method.name}")
            running = rounds(method)
            _, memory = peak_memory(lambda: [next(running) for _ in range(FORGOTTEN)])
            times, ratios = [], []
            for _ in range(repeat):
                base = next(reference)["seconds_training"] / pool.steps
                record = next(running)
                times.append(record["seconds_training"])
                ratios.append(times[-1] / pool.steps / base)
            return MethodCost(
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
        return [cost(method) for method in [PromptFL(), *chosen] if _trains(method, scene)]


def _one_step(task: Task) -> Task:
    """The same with a batch of images for each client: a step through a large image tower takes many seconds."""
    return replace(task, clients=tuple(replace(client, train=client.train[:BATCH]) for client in task.clients))


def _settings(cls: type[Method], scene: Scene) -> Method:
    """Its default settings, or the embedded recipe's where the defaults are too deep for the embedded checkpoint."""
    method, rng = cls(), generator(0, "shared")
    try:
        method.init_shared(scene.task, scene.backbone, rng)
        method.init_private(scene.task, scene.backbone, rng, 0)
    except ConfigError:
        return load_config().methods[cls.name]
    return method


def _trains(method: Method, scene: Scene) -> bool:
    rng = generator(0, "shared")
    task, backbone = scene.task, scene.backbone
    return bool(method.init_shared(task, backbone, rng) or method.init_private(task, backbone, rng, 0))


def count(job: ClientJob, scene: Scene, terms: int) -> int:
    """Operations of both towers in one local step; contexts that no step changes are shared out to the steps.

    terms: of the loss. Products with image features and networks of a method's own are not counted.
    """
    method, params = job.method, job.params
    examples = min(BATCH, len(job.labels))
    part = method.for_step(params, generator(0, "step"))
    passes = (examples if method.per_example else terms) if method.custom_gradient else 1
    total = 0.0
    for context in method.prompts(part, job.frozen):
        total += _operations(context, job, scene, passes)
    if "text per image" in method.reads:
        for context in method.conditional_prompts(part, job.images.pooled[:examples], job.frozen):
            total += _operations(context, job, scene, passes)
    steps = job.training.local_epochs * math.ceil(len(job.labels) / BATCH)
    for context in method.constant_prompts(params):
        total += _operations(context, job, scene, 0) / steps
    for prompt in method.visual_prompts(part):
        vision, width = scene.config.vision_config, scene.config.projection_dim
        forward, both = (
            tower(vision, width, examples, len(prompt.vectors), method.first_layer, backward=backward).total
            for backward in (False, True)
        )
        total += forward + passes * (both - forward)
    return round(total)


def _operations(context: Tensor | Prompt, job: ClientJob, scene: Scene, passes: int) -> int:
    """Of one context with the classes of a job: forward, and so many times backward."""
    prompt = Prompt.of(context)
    vectors, beside = prompt.vectors, min(prompt.adapters, default=0)
    lowest = 0 if len(vectors) else beside + 1
    tokens, head = (job.classes.end + 1 - job.classes.head).tolist(), job.classes.head
    config, length = scene.config.text_config, vectors.shape[-2]
    forward = packed(config, 1, length, tokens, head=head, backward=False).total
    both = packed(config, 1, length, tokens, head=head, lowest=lowest).total
    return forward + passes * (both - forward)
