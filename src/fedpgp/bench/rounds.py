"""Time of a round with evaluation, of 25 rounds, and of a first round without cached images.

The round of the library is always run. The naive round is run for the small shape (pictoclip), and both rounds must end
with the same parameters and the same correct answers. For shapes that would take hours, the time of the naive round is
computed from counted calls and from units measured in the same run.
"""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpgp.bench import stages
from fedpgp.bench.machine import peak_memory, take_turns
from fedpgp.bench.naive import count_calls, naive_round, read, see
from fedpgp.bench.options import TOLERANCE, Bench
from fedpgp.bench.shapes import BATCH, LOCAL_EPOCHS, ROUNDS, Scene
from fedpgp.bench.stages import REMEDY, DifferentWorkError
from fedpgp.data.image_features import ImageFeatures
from fedpgp.federation.client_runner import ClientRunner, Data
from fedpgp.federation.rounds import federate
from fedpgp.federation.run_spec import RunSpec
from fedpgp.federation.settings import FederationConfig
from fedpgp.federation.state import State
from fedpgp.methods.fedpgp import FedPGP
from fedpgp.runtime.workers import Workers
from fedpgp.testing import made_up_data

SETTINGS = FederationConfig(rounds=1, local_epochs=LOCAL_EPOCHS, batch_size=BATCH, path_points=1)
ENCODED_AT_ONCE = 64


def measure_round(bench: Bench) -> dict[str, Any]:
    """Run a round of the library, and a naive round if it does not take hours.

    Returns
    -------
    dict
        Times are in seconds; bytes are sums over all participants.
        `naive`, `naive_measured`: time of the naive round, and whether it was run instead of computed.
        `calls`, `units`: number and time of the steps, image passes and text passes without gradient of a naive round.
        `ours_training`, `ours_evaluation`, `ours`: time of a round of the library with cached image features.
        `ours_once`: time of the library before its first round, without encoding; `encoding`: time to encode images.
        `ratios`: naive time over library time for a round, for a first round that encodes the images, and for 25
        rounds that include the encoding.
        `memory`: peak growth of the process in the round of the library, in bytes.
        `parameters_differ`: relative difference of p_G after the round; None if the naive round was not run.
        `answers_differ`: number of answers, over all clients, that are correct on only one side, or None.

    Raises
    ------
    DifferentWorkError
        If both rounds were run and their results differ.
    """
    scene, calls = bench.step.scene, count_calls(bench.step.scene.task)
    units = _units(bench)
    bench.say(f"round: {scene.images} images to encode" if not scene.made_up else "round: library")
    data, encoding = _data(scene, units["image"], bench.options.seed)
    (record, elapsed, p_G, correct), memory = peak_memory(lambda: _library_round(bench, data))
    naive = (
        calls["steps"] * units["step"] + calls["images"] * units["image"] + calls["text_passes"] * units["text pass"]
    )
    differences: dict[str, Any] = {"parameters_differ": None, "answers_differ": None}
    if not scene.made_up:
        bench.say("round: naive")
        started = time.perf_counter()
        naive_p_G, naive_correct = naive_round(scene, SETTINGS, bench.options.seed)
        naive = time.perf_counter() - started
        parameters = ((p_G - naive_p_G).abs().max() / naive_p_G.abs().max()).item()
        answers = sum(int((correct[name] != right).sum()) for name, right in naive_correct.items())
        _check(parameters, answers, sum(right.size for right in correct.values()), bench.options.precision)
        differences = {"parameters_differ": parameters, "answers_differ": answers}
    training, evaluation = record["seconds_training"], record["seconds_evaluation"]
    ours, participants = training + evaluation, len(record["participants"])
    once = elapsed - ours
    return {
        "naive": naive,
        "naive_measured": not scene.made_up,
        "calls": calls,
        "units": units,
        "ours_training": training,
        "ours_evaluation": evaluation,
        "ours_once": once,
        "encoding": encoding,
        "images_encoded": scene.images,
        "memory": memory,
        "bytes_up": participants * record["bytes_up"],
        "bytes_down": participants * record["bytes_down"],
        "ours": ours,
        "ratios": {
            "round": naive / ours,
            "cold first round": naive / (encoding + once + ours),
            f"{ROUNDS} rounds": ROUNDS * naive / (encoding + once + ROUNDS * ours),
        },
        **differences,
    }


def _units(bench: Bench) -> dict[str, float]:
    """Return median seconds of the repeated work of the naive code; a step is not measured twice."""
    step, model, known = bench.step, bench.step.scene.model, {}
    if "step" in bench.result:
        known["step"] = median(bench.result["step"]["stages"][0]["seconds"])
    works: dict[str, Callable[[], Tensor]] = {
        "step": lambda: stages.naive(step).loss,
        "image": torch.no_grad()(lambda: see(model, step.pixels)),
        "text pass": torch.no_grad()(lambda: read(model, step.naive.prompt, step.job.start["p_G"])),
    }
    new = {name: work for name, work in works.items() if name not in known}
    measured = take_turns(new, bench.options.repeat, lambda text: bench.say(f"round: naive {text}"))
    units = {name: median(unit.seconds) for name, unit in measured.items()}
    return {**known, **units, "image": units["image"] / len(step.pixels)}


def _data(scene: Scene, image: float, seed: int) -> tuple[Data, float]:
    """Return the task with image features, and the seconds to encode all images (computed if images are made up).

    Reading and decoding files is excluded on both sides, although public code repeats it in every epoch.
    """
    if scene.made_up:
        return made_up_data(scene.task, scene.backbone, None, seed), scene.images * image
    started = time.perf_counter()
    with torch.no_grad():
        features = {
            split: torch.cat([see(scene.model, batch) for batch in pixels.split(ENCODED_AT_ONCE)])
            for split, pixels in scene.pixels.items()
        }
    elapsed = time.perf_counter() - started
    return Data.of(scene.task, lambda split: ImageFeatures(features[split.split])), elapsed


def _library_round(bench: Bench, data: Data) -> tuple[Mapping[str, Any], float, Tensor, dict[str, NDArray[np.bool_]]]:
    """Return the record of a round, the total seconds, p_G, and the correct test images [N, n] of each client."""
    backbone, options = bench.step.scene.backbone, bench.options
    started = time.perf_counter()
    with State.create() as state, Workers(backbone.towers(), options.threads) as pool:
        spec = RunSpec(FedPGP(), data.task, backbone, SETTINGS, options.seed)
        (record,) = federate(ClientRunner(spec, data), pool, state)
        elapsed = time.perf_counter() - started
        server = state.server()
        assert server is not None
        correct = {
            name: np.unpackbits(packed, axis=1, count=len(data.task.tests[name].images)).astype(bool)
            for name, packed in state.evaluation().correct.items()
        }
        return record, elapsed, server.shared["p_G"], correct


def _check(parameters: float, answers: int, of: int, precision: str) -> None:
    # If two classes have nearly equal logits in float32, either can be the answer.
    allowed = {"float32": 1e-4, "float64": 0.0}[precision] * of
    if not (parameters <= TOLERANCE[precision] and answers <= allowed):
        raise DifferentWorkError(
            f"the results differ from the naive round (p_G by {parameters:.1e}, and {answers} of {of} answers), so the"
            " times cannot be compared",
            where="round",
            remedy=REMEDY,
        )
