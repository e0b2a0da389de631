"""Local training of one client, or of several clients at the same time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from fedpgp.aggregators import Aggregator, Download, Tensors, Upload
from fedpgp.backbone import Towers
from fedpgp.backbone.tokens import ClassTokens
from fedpgp.data.image_features import ImageFeatures
from fedpgp.errors import ConfigError, TrainingError
from fedpgp.evaluation.inference import image_features
from fedpgp.federation.optimization import LocalTraining, restore, state_of
from fedpgp.federation.state import ClientState
from fedpgp.methods import Batch, Frozen, Method, Params
from fedpgp.runtime.randomness import generator

ROWS = 1280  # rows of text in a step of a group of clients: measured, see docs/benchmark.md


@dataclass(frozen=True)
class ClientJob:
    """The work of one client in one round.

    Attributes
    ----------
    method, aggregator, training
        The method, the aggregator and the settings of local training.
    start
        The shared part from which training starts.
    download
        The message from the server.
    own
        The state that the client kept from its previous round.
    images
        The client's n training images, possibly with several views of each.
    labels
        [n], the column of each image's class in the softmax.
    classes
        Tokens of the classes of the softmax, followed by the method's extra names.
    frozen
        Constants of the classes of the softmax, without the extra names.
    seed, round, client
        Seed of the run, number of the round, and number of the client.
    """

    method: Method
    aggregator: Aggregator
    start: Mapping[str, Tensor]
    download: Download
    own: ClientState
    images: ImageFeatures
    labels: Tensor
    classes: ClassTokens
    frozen: Frozen
    training: LocalTraining
    seed: int
    round: int
    client: int

    @property
    def params(self) -> Params:
        """The client's parameters before training."""
        memory = remembered(self.method, self.images, self.labels, self.frozen)
        return Params(self.start, self.own.private, self.download.shared, memory)


@dataclass(frozen=True)
class ClientUpdate:
    """The result of a client's round. Only the upload is sent to the server.

    Attributes
    ----------
    upload
        The message to the server.
    own
        The state that the client keeps.
    losses
        Mean over the steps of the round, for each term of the loss.
    """

    upload: Upload
    own: ClientState
    losses: Mapping[str, float]


_Term = tuple[str, int]  # name of a term of the loss, and index of the example in the batch for `per_example`


@dataclass
class _Training:
    """A client during training: parameters that change in place, and a record of its steps.

    constant: text features of the constant prompts.
    """

    job: ClientJob
    params: Params
    constant: Sequence[Tensor]
    rng: torch.Generator
    terms: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    gradient: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0

    @classmethod
    def of(cls, towers: Towers, job: ClientJob) -> _Training:
        first, method = job.params, job.method
        params = replace(first, shared=_trainable(first.shared), private=_trainable(first.private))
        with torch.no_grad():
            constant = towers.text.each(method.constant_prompts(params), job.classes, method.position)
        return cls(job, params, constant, generator(job.seed, "step", job.round, job.client))

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {**self.params.shared, **self.params.private}

    @property
    def epoch_steps(self) -> int:
        """Number of steps in an epoch of this client."""
        return math.ceil(len(self.job.labels) / self.job.training.batch_size)

    def correct(self) -> None:
        """Sum up the gradient of the shared part, then let the aggregator correct it."""
        for name, value in self.params.shared.items():
            if value.grad is not None:
                self.gradient[name] = self.gradient.get(name, 0) + value.grad
                own, download = self.job.own.control, self.job.download
                value.grad = self.job.aggregator.correct(name, value.grad, value.detach(), download, own)

    def after_step(self) -> None:
        self.steps += 1


def remembered(method: Method, images: ImageFeatures, labels: Tensor, frozen: Frozen) -> Tensors:
    """Return the method's memory of a client's images, or of the first view of each."""
    return method.memory(images.pooled[:, 0] if images.viewed else images.pooled, labels, frozen)


def train_clients(towers: Towers, jobs: Sequence[ClientJob]) -> list[ClientUpdate]:
    """Train several clients together, with the same result as if each were trained separately.

    In each step, the text encoder reads the contexts of all clients in one batch. The clients share nothing else.
    Clients with fewer images finish earlier.

    Parameters
    ----------
    towers
        The frozen encoders.
    jobs
        A group of `in_groups`. Its tensors are copied and not changed.

    Raises
    ------
    TrainingError
        A loss or a parameter is not finite. The error names client, round and step.
    """
    first = jobs[0]
    method, training = first.method, first.training
    clients = [_Training.of(towers, job) for job in jobs]
    optimizer = _optimizer(clients)
    for step, batches in enumerate(zip_longest(*map(_batches, jobs))):
        working = [(client, *batch) for client, batch in zip(clients, batches, strict=True) if batch is not None]
        parts, prompts, given = [], [], []
        for client, images, labels in working:
            job = client.job
            parts.append(method.for_step(client.params, client.rng))
            try:
                seen = image_features(towers, method, images, parts[-1])
                own = method.prompts(parts[-1], job.frozen)
                of_images = method.conditional_prompts(parts[-1], images.pooled, job.frozen)
            except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined] # some numbers are not finite
                raise _diverged(job, client.steps + 1, "prompt") from error
            given.append((client, Batch(seen, labels)))
            prompts.append((own, of_images))
        contexts = [context for own, of_images in prompts for context in (*own, *of_images)]
        features = iter(towers.text.each(contexts, first.classes, method.position))
        terms: dict[_Term, list[Tensor]] = defaultdict(list)
        for part, (own, of_images), (client, batch) in zip(parts, prompts, given, strict=True):
            z = [next(features) for _ in own]
            z += [*client.constant, *(next(features) for _ in of_images)]
            try:
                text = torch.stack(z) if z else client.job.frozen.guidance[None][:0]
                losses = _losses(client, part, text, batch)
            except TrainingError as error:
                raise TrainingError(
                    error.problem or str(error),
                    where=_place(client.job, client.steps + 1),
                    got=error.got,
                    remedy=error.remedy or _remedy(method),
                ) from error
            for term, value in losses.items():
                terms[term].append(value)
        optimizer.zero_grad()  # sets gradients to None, so that clients without a batch in this step do not change
        if method.custom_gradient:
            _turn(method, terms, given)
        else:
            torch.stack([value for values in terms.values() for value in values]).sum().backward()
        if first.aggregator.controls:
            for client, _ in given:
                client.correct()
        for group in optimizer.param_groups:
            group["lr"] = training.rate(group["name"], first.round, step, group["epoch_steps"])
        optimizer.step()
        for client, _ in given:
            client.after_step()
    keeps = training.keeps_state(first.round)
    return [_update(client, state_of(optimizer, client.tensors) if keeps else {}) for client in clients]


def _optimizer(clients: Sequence[_Training]) -> torch.optim.Optimizer:
    """Return one optimizer for several clients. It keeps a separate state for each tensor."""
    training, number = clients[0].job.training, clients[0].job.round
    groups: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
    for client in clients:
        # Learning rates can only differ between clients if the schedule depends on the steps of an epoch.
        steps = 1 if training.schedule_over == "rounds" else client.epoch_steps
        groups["private", steps] += client.params.private.values()
        if not training.private_alone:
            groups["shared", steps] += client.params.shared.values()
    optimizer = training.new_optimizer(groups)
    if training.keeps_state(number):
        for client in clients:
            restore(optimizer, client.tensors, client.job.own.optimizer)
    return optimizer


def _losses(client: _Training, params: Params, text: Tensor, batch: Batch) -> dict[_Term, Tensor]:
    """Return and record the terms of a client's loss in a step, for each example with `per_example`."""
    method, examples = client.job.method, [batch]
    if method.per_example:
        examples = list(map(Batch, batch.features.split(1), batch.labels.split(1)))
    losses: dict[_Term, Tensor] = {}
    for number, example in enumerate(examples):
        found = method.loss(params, text, example, client.job.frozen)
        if not isinstance(found, Mapping) or not all(isinstance(x, Tensor) and x.dim() == 0 for x in found.values()):
            raise ConfigError(
                where=f"loss of method {method.name!r}",
                allowed='a dictionary with a tensor of one number for each term, such as {"task": …}',
                got=type(found).__name__,
                remedy="Fix the return value of the method's loss",
            )
        losses |= {(name, number): value for name, value in found.items()}
    for name in dict.fromkeys(name for name, _ in losses):
        values = [value.detach() for (term, _), value in losses.items() if term == name]
        client.terms[name].append(torch.stack(values).mean())
    return losses


def _turn(method: Method, terms: Mapping[_Term, Sequence[Tensor]], working: Sequence[tuple[_Training, Batch]]) -> None:
    """Set the gradients to the method's `direction`, after a separate backward pass for each term of the loss."""
    places = [(i, name) for i, (client, _) in enumerate(working) for name in client.tensors]
    tensors = [working[i][0].tensors[name] for i, name in places]
    gradients_of: list[dict[str, dict[str, list[Tensor]]]] = [defaultdict(lambda: defaultdict(list)) for _ in working]
    for number, ((term, example), values) in enumerate(terms.items(), 1):
        last = number == len(terms)
        gradients = torch.autograd.grad(
            torch.stack(list(values)).sum(), tensors, retain_graph=not last, allow_unused=True, materialize_grads=True
        )
        for (i, name), gradient in zip(places, gradients, strict=True):
            if example < len(working[i][1].labels):
                gradients_of[i][term][name].append(gradient)
    with torch.no_grad():
        for (client, _), of_terms in zip(working, gradients_of, strict=True):
            parts = {
                term: {name: torch.stack(rows) if method.per_example else rows[0] for name, rows in by_name.items()}
                for term, by_name in of_terms.items()
            }
            for name, gradient in method.direction(parts, client.params, client.rng).items():
                client.tensors[name].grad = gradient


def in_groups(towers: Towers, jobs: Sequence[ClientJob]) -> list[Sequence[ClientJob]]:
    """Split jobs of one method and task into groups that are trained together.

    The groups do not depend on the number of processes. A step of a group has about ROWS rows of text: the matrix
    products are then large enough to be fast, and the intermediate results still fit into the cache. The number of
    groups is a multiple of four, so that two or four processes have the same amount of work. The images of one client
    are enough work for the image tower, so methods that use it train each client separately.
    """
    if not jobs:
        return []  # no client takes part in the round
    job = jobs[0]
    method = job.method
    if method.own_classes or not method.batchable or "image tower" in method.reads:
        return [[job] for job in jobs]
    params = method.for_step(job.params, torch.Generator())
    contexts = [*method.prompts(params, job.frozen)]
    if "text per image" in method.reads:
        images, _ = next(_batches(job))
        contexts += method.conditional_prompts(params, images.pooled, job.frozen)
    rows = len(jobs) * sum(towers.text.rows(context, job.classes, method.position) for context in contexts)
    count = min(len(jobs), 4 * max(1, math.ceil(rows / (4 * ROWS))))
    return [[jobs[i] for i in group] for group in np.array_split(np.arange(len(jobs)), count)]


def _batches(job: ClientJob) -> Iterator[tuple[ImageFeatures, Tensor]]:
    """Yield the images of each step of a round, and their columns [B] in the softmax.

    The order of the images, and one of the views of each image, are drawn again in each epoch.
    """
    rng, count = generator(job.seed, "order", job.round, job.client), len(job.labels)
    for _ in range(job.training.local_epochs):
        order, images = torch.randperm(count, generator=rng), job.images
        if images.viewed:
            images = images.views(torch.randint(images.pooled.shape[1], (count,), generator=rng))
        for chosen in order.split(job.training.batch_size):
            yield images[chosen], job.labels[chosen]


def _update(client: _Training, optimizer: Tensors) -> ClientUpdate:
    """Return the result of a round. optimizer: the state of the optimizer to keep.

    It checks the losses of all steps here, because a check in each step would make a GPU wait.
    """
    job, steps = client.job, client.steps
    terms = {name: torch.stack(values) for name, values in client.terms.items()}
    finite = torch.stack(list(terms.values())).isfinite().all(0)
    if not finite.all():
        raise _diverged(job, 1 + int((~finite).nonzero()[0]), "loss")
    params = client.params
    trained = replace(params, shared=_detached(params.shared), private=_detached(params.private))
    after = job.method.after_training(trained, client.rng)
    if not all(tensor.isfinite().all() for tensor in (*after.shared.values(), *after.private.values())):
        raise _diverged(job, steps, "prompt")
    shared = dict(after.shared)
    control: Tensors = job.own.control
    sent: Tensors = {}
    if job.aggregator.controls:
        gradient = {name: client.gradient.get(name, torch.zeros_like(value)) / steps for name, value in shared.items()}
        control, sent = job.aggregator.finish(job.download, shared, gradient, control)
    return ClientUpdate(
        upload=Upload(job.client, len(job.labels), shared, sent),
        own=ClientState(
            private=dict(after.private),
            kept=shared if job.method.personalizes_shared else {},
            control=control,
            optimizer=optimizer,
        ),
        losses={name: fmean(values.tolist()) for name, values in terms.items()},
    )


def _place(job: ClientJob, step: int) -> str:
    return f"client {job.client} in round {job.round}, step {step}"


def _remedy(method: Method) -> str:
    return f"Lower {method.name}.learning_rate, or change other settings of [{method.name}]"


def _diverged(job: ClientJob, step: int, what: str) -> TrainingError:
    return TrainingError(f"the {what} is not finite", where=_place(job, step), remedy=_remedy(job.method))


def _detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _trainable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}
