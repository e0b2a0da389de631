"""The first local step of a client, which all stages compute."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedpgp.bench.naive import Naive, make_naive, see
from fedpgp.bench.shapes import BATCH, Scene
from fedpgp.data.image_features import ImageFeatures
from fedpgp.federation.client import ClientJob
from fedpgp.federation.client_runner import ClientRunner
from fedpgp.federation.run_spec import RunSpec
from fedpgp.federation.settings import FederationConfig
from fedpgp.methods import Batch, Params
from fedpgp.methods.fedpgp import FedPGP
from fedpgp.testing import made_up_data

if TYPE_CHECKING:
    pass

RATE = 512.0  # a power of two: parameters before and after one step of SGD give its gradient without rounding


@dataclass(frozen=True)
class Outcome:
    """loss: []; gradients: by parameter."""

    loss: Tensor
    gradients: Mapping[str, Tensor]


@dataclass(frozen=True)
class Step:
    """The first local step of a client.

    job: the client's work in the library, one epoch of one batch of plain SGD; pixels: [B, 3, side, side], of which the
    job has the features; naive: the client's model in public code.
    """

    scene: Scene
    job: ClientJob
    pixels: Tensor
    naive: Naive

    @property
    def values(self) -> dict[str, Tensor]:
        """The parameters, such as p_G, U and V, as new leaves."""
        together = {**self.job.start, **self.job.own.private}
        return {name: value.detach().clone().requires_grad_() for name, value in together.items()}

    def contexts(self, values: Mapping[str, Tensor]) -> tuple[Params, Tensor]:
        """The method's parameters, and the contexts [K, M, d] that the text encoder reads in the step."""
        job = self.job
        shared, private = ({name: values[name] for name in part} for part in (job.start, job.own.private))
        params = Params(shared, private)
        prompts = job.method.prompts(params, job.frozen)
        return params, torch.stack(
            [*prompts, *job.method.conditional_prompts(params, job.images.pooled, job.frozen)]  # type: ignore[list-item]
        )

    def outcome(self, text: Callable[[Tensor], Tensor]) -> Outcome:
        """The loss and its gradients; text: contexts [K, M, d] -> text features [K, C, D]."""
        job, values = self.job, self.values
        params, contexts = self.contexts(values)
        terms = job.method.loss(params, text(contexts), Batch(job.images.pooled, job.labels), job.frozen)
        return backward(torch.stack(list(terms.values())).sum(), values)


def first_step(scene: Scene, seed: int) -> Step:
    """Client 0's first batch with the first parameters of FedPGP and all base classes."""
    chosen = scene.task.clients[0].train[:BATCH]
    pixels = scene.pixels["train"] if scene.made_up else scene.pixels["train"][chosen]
    with torch.no_grad():
        features = see(scene.model, pixels)
    task = replace(scene.task, clients=(replace(scene.task.clients[0], train=chosen),))
    method = FedPGP(learning_rate=RATE, private_learning_rate=None)
    settings = FederationConfig(local_epochs=1, batch_size=BATCH, momentum=0.0, weight_decay=0.0)
    spec = RunSpec(method, task, scene.backbone, settings, seed)
    runner = ClientRunner(spec, made_up_data(task, scene.backbone, None, seed))
    job = runner.job(1, 0, spec.aggregator.download(spec.begin(), 0), spec.first(0))
    job = replace(job, images=ImageFeatures(features))
    return prepared(Step(scene, job, pixels, make_naive(scene, method, task.base)))


def prepared(step: Step) -> Step:
    """The same, when the text encoder has computed what it computes only once for the class names."""
    _, contexts = step.contexts(step.values)
    step.scene.backbone.text.rows(contexts[0], step.job.classes)
    return step


def backward(loss: Tensor, values: Mapping[str, Tensor]) -> Outcome:
    gradients = torch.autograd.grad(loss, list(values.values()))
    return Outcome(loss.detach(), dict(zip(values, gradients, strict=True)))
