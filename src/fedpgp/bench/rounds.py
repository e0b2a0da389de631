"""A whole round with evaluation, 25 of them, and a first one on a machine that has never seen the images.

The library's round is always run. The naive one is run where the shape is small (pictoclip), and both must then end
with the same parameters and right answers; where it takes hours it is computed from units measured in the same run and
counted calls.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpgp.aggregators import FedAvg, Server, Upload
from fedpgp.bench.machine import peak_memory, seconds
from fedpgp.bench.naive import TEST_BATCH, Naive, make_naive, read, see, train
from fedpgp.bench.shapes import BATCH, LOCAL_EPOCHS, ROUNDS, Scene, random_features
from fedpgp.bench.stages import TOLERANCE, DifferentWorkError, Step
from fedpgp.data.image_features import ImageFeatures
from fedpgp.data.tasks import Client, Task
from fedpgp.evaluation.metrics import evaluation_sets
from fedpgp.federation.client_runner import Data
from fedpgp.federation.rounds import federate
from fedpgp.federation.settings import FederationConfig
from fedpgp.federation.state import State
from fedpgp.methods.fedpgp import FedPGP
from fedpgp.runtime.randomness import generator
from fedpgp.runtime.workers import Workers

SETTINGS = FederationConfig(rounds=1, local_epochs=LOCAL_EPOCHS, batch_size=BATCH, path_points=1)
ENCODED_AT_ONCE = 64


@dataclass(frozen=True)
class Calls:
    """What one naive round calls: local steps, images in evaluation, and text passes over C classes in evaluation."""

    steps: int
    images: int
    text_passes: int


@dataclass(frozen=True)
class RoundFigures:
    """Seconds but for the bytes, which are of all participants.

    naive_measured: whether the naive round was run; otherwise it is computed from units and calls.
    ours_once: what ours does before its first round, but for encoding images.
    units: seconds of a naive step, of an image, of a text pass without gradient.
    memory: bytes that the process grew by in the library's round at most.
    parameters_differ: relative, of p_G after the round.
    answers_differ: how many test images, of all clients together, only one side gets right.
    """

    naive: float
    naive_measured: bool
    calls: Calls
    units: Mapping[str, float]
    ours_training: float
    ours_evaluation: float
    ours_once: float
    encoding: float
    images_encoded: int
    memory: int | None
    bytes_up: int
    bytes_down: int
    parameters_differ: float | None
    answers_differ: int | None

    @property
    def ours(self) -> float:
        """A round with evaluation, features cached."""
        return self.ours_training + self.ours_evaluation

    @property
    def ratios(self) -> dict[str, float]:
        """Naive over ours: a round with features cached, a first round that encodes them, and 25 rounds with that."""
        once = self.encoding + self.ours_once
        return {
            "round": self.naive / self.ours,
            "cold first round": self.naive / (once + self.ours),
            f"{ROUNDS} rounds": ROUNDS * self.naive / (once + ROUNDS * self.ours),
        }


def measure_round(
    step: Step,
    naive_step: float | None,
    precision: str,
    seed: int,
    workers: int,
    repeat: int,
    say: Callable[[str], None],
) -> RoundFigures:
    """Runs a round; naive_step: seconds of a naive step if they are known already.

    Raises DifferentWorkError where both rounds were run and do not agree.
    """
    scene = step.scene
    units = _units(step, naive_step, repeat, say)
    say(f"round: {scene.images} images to encode" if not scene.made_up else "round: the library's")
    features, encoding = _features(scene, units["image"], seed)
    data = _data(scene.task, features)
    ours, memory = peak_memory(lambda: _ours(scene, data, seed, workers))
    calls = count_calls(scene.task)
    naive, parameters, answers = _computed(calls, units), None, None
    if not scene.made_up:
        say("round: naive")
        started = time.perf_counter()
        p_G, correct = naive_round(scene, seed)
        naive = time.perf_counter() - started
        parameters = ((ours.context - p_G).abs().max() / p_G.abs().max()).item()
        answers = sum(int((ours.correct[name] != correct[name]).sum()) for name in correct)
        _check(parameters, answers, sum(found.size for found in correct.values()), precision)
    participants = len(ours.record["participants"])
    return RoundFigures(
        naive=naive,
        naive_measured=not scene.made_up,
        calls=calls,
        units=units,
        ours_training=ours.record["seconds_training"],
        ours_evaluation=ours.record["seconds_evaluation"],
        ours_once=ours.seconds - ours.record["seconds_training"] - ours.record["seconds_evaluation"],
        encoding=encoding,
        images_encoded=scene.images,
        memory=memory,
        bytes_up=participants * ours.record["bytes_up"],
        bytes_down=participants * ours.record["bytes_down"],
        parameters_differ=parameters,
        answers_differ=answers,
    )


def count_calls(task: Task) -> Calls:
    """Of the naive code, in one round of all clients: four text passes for each test batch, every image anew."""
    clients, tests = len(task.clients), [len(test.images) for test in task.tests.values()]
    return Calls(
        steps=LOCAL_EPOCHS * sum(math.ceil(len(client.train) / BATCH) for client in task.clients),
        images=clients * sum(tests),
        text_passes=4 * clients * sum(math.ceil(count / TEST_BATCH) for count in tests),
    )


def _computed(calls: Calls, units: Mapping[str, float]) -> float:
    return calls.steps * units["step"] + calls.images * units["image"] + calls.text_passes * units["text pass"]


def _units(step: Step, naive_step: float | None, repeat: int, say: Callable[[str], None]) -> dict[str, float]:
    """Seconds of what the naive code does again and again, medians."""
    model, naive, p_G = step.scene.model, step.naive, step.params.shared["p_G"]

    def naive_loss() -> None:
        naive.loss(step.values, see(model, step.pixels), step.labels).backward()

    say("round: naive units")
    with torch.no_grad():
        image = median(seconds(lambda: see(model, step.pixels)) for _ in range(repeat)) / len(step.pixels)
        text = median(seconds(lambda: read(model, naive.prompt, p_G)) for _ in range(repeat))
    return {"step": naive_step or median(seconds(naive_loss) for _ in range(repeat)), "image": image, "text pass": text}


def _features(scene: Scene, image: float, seed: int) -> tuple[dict[str, Tensor], float]:
    """Image features [n, D] by split, and the seconds that encoding all images takes: computed for made-up ones.

    Reading and decoding the files is left out on both sides, though public code does it in every epoch.
    """
    if scene.made_up:
        splits = {test.dataset.split: test.dataset for test in evaluation_sets(scene.task).values()}
        width, like = scene.config.projection_dim, scene.backbone.logit_scale
        sizes = {split: len(dataset) for split, dataset in splits.items()} | {"train": len(scene.task.train)}
        return {split: random_features(n, like, width, seed) for split, n in sizes.items()}, scene.images * image
    started = time.perf_counter()
    with torch.no_grad():
        features = {
            split: torch.cat([see(scene.model, batch) for batch in pixels.split(ENCODED_AT_ONCE)])
            for split, pixels in scene.pixels.items()
        }
    return features, time.perf_counter() - started


def _data(task: Task, features: Mapping[str, Tensor]) -> Data:
    tests = {
        name: ImageFeatures(features[test.dataset.split][torch.from_numpy(test.images)])
        for name, test in evaluation_sets(task).items()
    }
    return Data(task, ImageFeatures(features["train"]), tests)


@dataclass(frozen=True)
class _Ours:
    seconds: float
    record: Mapping[str, Any]
    context: Tensor
    correct: Mapping[str, NDArray[np.bool_]]


def _ours(scene: Scene, data: Data, seed: int, workers: int) -> _Ours:
    started = time.perf_counter()
    with State.create() as state, Workers(scene.backbone.towers(), workers) as pool:
        (record,) = federate(FedPGP(), data, scene.backbone, SETTINGS, seed, pool, state)
        elapsed = time.perf_counter() - started
        server = state.server()
        assert server is not None
        correct = {
            name: np.unpackbits(packed, axis=1, count=len(scene.task.tests[name].images)).astype(bool)
            for name, packed in state.evaluation().correct.items()
        }
        return _Ours(elapsed, record, server.shared["p_G"], correct)


def naive_round(scene: Scene, seed: int) -> tuple[Tensor, dict[str, NDArray[np.bool_]]]:
    """A round of all clients: p_G after it, and which test images [N, n] each client gets right."""
    task, method, backbone = scene.task, FedPGP(), scene.backbone
    shared = method.init_shared(task, backbone, generator(seed, "shared"))
    private = method.init_private(task, backbone, generator(seed, "private"), 0)  # the same for all
    model = _naive(scene, method, task.base)
    trained = [
        train(
            model,
            {**shared, **private},
            _batches(scene, client, seed),
            rate=method.learning_rate,
            momentum=SETTINGS.momentum,
            weight_decay=SETTINGS.weight_decay,
        )
        for client in task.clients
    ]
    uploads = [Upload(c.id, len(c.train), {"p_G": t["p_G"]}) for c, t in zip(task.clients, trained, strict=True)]
    p_G = FedAvg().aggregate(Server(shared), uploads).shared["p_G"]
    correct = {}
    for name, test in task.tests.items():
        model, pixels = _naive(scene, method, test.classes), scene.pixels[test.dataset.split][test.images]
        predicted = [model.predict({**values, "p_G": p_G}, pixels).numpy() for values in trained]
        correct[name] = np.stack(predicted) == test.targets
    return p_G, correct


def _naive(scene: Scene, method: FedPGP, classes: Sequence[int]) -> Naive:
    names = [scene.task.class_names[label] for label in classes]
    return make_naive(scene.backbone, scene.model, names, method.context_length, method.mu, method.tau)


def _batches(scene: Scene, client: Client, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The client's batches of round 1 in the library's order."""
    pixels = scene.pixels["train"][torch.from_numpy(client.train)]
    columns = {label: column for column, label in enumerate(scene.task.base)}
    labels = torch.tensor([columns[label] for label in scene.task.train.labels[client.train].tolist()])
    rng = generator(seed, "order", 1, client.id)
    for _ in range(LOCAL_EPOCHS):
        for chosen in torch.randperm(len(labels), generator=rng).split(BATCH):
            yield pixels[chosen], labels[chosen]


def _check(parameters: float, answers: int, of: int, precision: str) -> None:
    # Where two classes are equally near in float32, either may win.
    allowed = {"float32": 1e-4, "float64": 0.0}[precision] * of
    if not (parameters <= TOLERANCE[precision] and answers <= allowed):
        raise DifferentWorkError(
            f"a round must end as the naive one does, p_G differs by {parameters:.1e} and {answers} of {of}"
            " answers do: the times would compare different work; please report this with your machine's name"
        )
