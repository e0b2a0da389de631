"""Local training of one client, and of several at once."""

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

ROWS = 1280  # of text in a step of a group: measured, see docs/benchmark.md


@dataclass(frozen=True)
class ClientJob:
    """One client's work in one round.

    start: the shared part that training starts from; download, own: what it is sent, and what it has kept;
    images: its n training images, perhaps with several views of each; labels: [n] columns of the softmax;
    classes: tokens of the classes of the softmax, and of the method's extra names; frozen: of the same
    classes, without extra names.
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
        """What the client's model consists of before it is trained."""
        memory = remembered(self.method, self.images, self.labels, self.frozen)
        return Params(self.start, self.own.private, self.download.shared, memory)


@dataclass(frozen=True)
class ClientUpdate:
    """What comes of a client's round: the upload, and nothing else, is handed to the server.

    losses: mean over the round's steps of every term of the loss.
    """

    upload: Upload
    own: ClientState
    losses: Mapping[str, float]


_Term = tuple[str, int]  # its name, and the number of the example in the batch where each has its own


@dataclass
class _Training:
    """One client while it trains: parameters that change in place, and what is remembered of its steps.

    constant: text features of the contexts that no step changes.
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
        """How many steps it makes in an epoch."""
        return math.ceil(len(self.job.labels) / self.job.training.batch_size)

    def correct(self) -> None:
        """Lets the aggregator turn the gradient of the shared part, and adds up what it was before."""
        for name, value in self.params.shared.items():
            if value.grad is not None:
                self.gradient[name] = self.gradient.get(name, 0) + value.grad
                own, download = self.job.own.control, self.job.download
                value.grad = self.job.aggregator.correct(name, value.grad, value.detach(), download, own)

    def after_step(self) -> None:
        self.steps += 1


def remembered(method: Method, images: ImageFeatures, labels: Tensor, frozen: Frozen) -> Tensors:
    """What a client remembers of its images, or of the first view of each."""
    return method.memory(images.pooled[:, 0] if images.viewed else images.pooled, labels, frozen)


def train_clients(towers: Towers, jobs: Sequence[ClientJob]) -> list[ClientUpdate]:
    """Trains copies of the parameters of several clients, each on its own images as if it were alone.

    Step by step the text encoder reads the contexts of all of them at once; they share nothing else. Clients with fewer
    images end earlier. The jobs must come from one of `in_groups`.

    Raises TrainingError, naming client, round and step, where a loss is not finite.
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
            except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined] # of numbers that are no longer finite
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
                place = f"client {client.job.client} in round {client.job.round}, step {client.steps + 1}"
                raise TrainingError(f"{place}: {error}") from error
            for term, value in losses.items():
                terms[term].append(value)
        optimizer.zero_grad()  # gradients are None then, which leaves alone whoever has no batch in the next step
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
    """One optimizer of several clients, in which the state of each tensor is its own: no client's meets another's."""
    training, number = clients[0].job.training, clients[0].job.round
    groups: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
    for client in clients:
        steps = 1 if training.schedule_over == "rounds" else client.epoch_steps  # by which learning rates may differ
        groups["private", steps] += client.params.private.values()
        if not training.private_alone:
            groups["shared", steps] += client.params.shared.values()
    optimizer = training.new_optimizer(groups)
    if training.keeps_state(number):
        for client in clients:
            restore(optimizer, client.tensors, client.job.own.optimizer)
    return optimizer


def _losses(client: _Training, params: Params, text: Tensor, batch: Batch) -> dict[_Term, Tensor]:
    """The terms of a client's loss in a step, whose values it remembers; those of every example where that is asked."""
    method, examples = client.job.method, [batch]
    if method.per_example:
        examples = list(map(Batch, batch.features.split(1), batch.labels.split(1)))
    losses: dict[_Term, Tensor] = {}
    for number, example in enumerate(examples):
        found = method.loss(params, text, example, client.job.frozen)
        if not isinstance(found, Mapping) or not all(isinstance(x, Tensor) and x.dim() == 0 for x in found.values()):
            raise ConfigError(
                f"method {method.name!r} fails: loss must return a dictionary with a tensor of one number for each"
                f' term, such as {{"task": …}}, got {type(found).__name__}; mend it'
            )
        losses |= {(name, number): value for name, value in found.items()}
    for name in dict.fromkeys(name for name, _ in losses):
        values = [value.detach() for (of, _), value in losses.items() if of == name]
        client.terms[name].append(torch.stack(values).mean())
    return losses


def _turn(method: Method, terms: Mapping[_Term, Sequence[Tensor]], working: Sequence[tuple[_Training, Batch]]) -> None:
    """Sets the gradient that the method makes of those of its terms, each of which has a backward pass of its own."""
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
    """Shares jobs of one method and task out to groups that are trained together, which never depends on who works.

    A group's step has about ROWS rows of text, where the matrix products are large enough to be fast and the numbers
    between them still near. There are a multiple of four groups, so that two or four processes have equally much to do.
    The image tower is busy enough with the images of one client.
    """
    if not jobs:
        return []  # a round in which nobody takes part
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
    """The images of each step of a round, and their columns [B] of the softmax.

    The order is drawn per epoch; of several views of an image, one is drawn per epoch.
    """
    rng, count = generator(job.seed, "order", job.round, job.client), len(job.labels)
    for _ in range(job.training.local_epochs):
        order, images = torch.randperm(count, generator=rng), job.images
        if images.viewed:
            images = images.views(torch.randint(images.pooled.shape[1], (count,), generator=rng))
        for chosen in order.split(job.training.batch_size):
            yield images[chosen], job.labels[chosen]


def _update(client: _Training, optimizer: Tensors) -> ClientUpdate:
    """What comes of a round, after a look at all losses: a look in every step would hold up a GPU.

    optimizer: what is kept of its state.
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


def _diverged(job: ClientJob, step: int, what: str) -> TrainingError:
    return TrainingError(
        f"the {what} of client {job.client} is not finite in round {job.round}, step {step}:"
        f" change the settings of [{job.method.name}], most often to a lower learning_rate"
    )


def _detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _trainable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}
