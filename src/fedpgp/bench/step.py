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

RATE = 512.0  # a power of two: the change of the parameters in one step of SGD gives the gradient without rounding


@dataclass(frozen=True)
class Outcome:
    """Loss [] and gradients, by the name of the parameter."""

    loss: Tensor
    gradients: Mapping[str, Tensor]


@dataclass(frozen=True)
class Step:
    """The first local step of a client.

    Attributes
    ----------
    scene
        Model and task.
    job
        Job of the client in the library: one epoch of one batch of plain SGD.
    pixels
        Images [B, 3, side, side] whose features the job has.
    naive
        Model of the client in public code.
    """

    scene: Scene
    job: ClientJob
    pixels: Tensor
    naive: Naive

    @property
    def values(self) -> dict[str, Tensor]:
        """Parameters, such as p_G, U and V, as new leaf tensors."""
        together = {**self.job.start, **self.job.own.private}
        return {name: value.detach().clone().requires_grad_() for name, value in together.items()}

    def contexts(self, values: Mapping[str, Tensor]) -> tuple[Params, Tensor]:
        """Return the parameters of the method, and the contexts [K, M, d] that the text encoder reads in the step."""
        job = self.job
        shared, private = ({name: values[name] for name in part} for part in (job.start, job.own.private))
        params = Params(shared, private)
        prompts = job.method.prompts(params, job.frozen)
        return params, torch.stack(
            [*prompts, *job.method.conditional_prompts(params, job.images.pooled, job.frozen)]  # type: ignore[list-item]
        )

    def outcome(self, text: Callable[[Tensor], Tensor]) -> Outcome:
        """Return the loss and its gradients; `text` maps contexts [K, M, d] to text features [K, C, D]."""
        job, values = self.job, self.values
        params, contexts = self.contexts(values)
        terms = job.method.loss(params, text(contexts), Batch(job.images.pooled, job.labels), job.frozen)
        return backward(torch.stack(list(terms.values())).sum(), values)


def first_step(scene: Scene, seed: int) -> Step:
    """Return the step of client 0 on its first batch, with the initial parameters of FedPGP and all base classes."""
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
    """Return the step after the text encoder has computed the constants of its class names."""
    _, contexts = step.contexts(step.values)
    step.scene.backbone.text.rows(contexts[0], step.job.classes)
    return step


def backward(loss: Tensor, values: Mapping[str, Tensor]) -> Outcome:
    gradients = torch.autograd.grad(loss, list(values.values()))
    return Outcome(loss.detach(), dict(zip(values, gradients, strict=True)))
