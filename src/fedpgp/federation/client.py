"""Local training of one client, and of several at once."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest
from statistics import fmean

import torch
from torch import Tensor

from fedpgp.backbone.text import TextEncoder
from fedpgp.backbone.tokens import ClassTokens
from fedpgp.errors import TrainingError
from fedpgp.methods import Batch, ClientUpdate, Frozen, Method, Params
from fedpgp.randomness import generator

ROWS = 1280  # of text in a step of a group: measured, see docs/benchmark.md


@dataclass(frozen=True)
class LocalTraining:
    """How every client trains: SGD, new in each round, so that no momentum outlives a round or meets another client."""

    local_epochs: int
    batch_size: int
    momentum: float
    weight_decay: float


@dataclass(frozen=True)
class ClientJob:
    """One client's work in one round.

    images: features [n, D] of its training images, or [n, V, D] of V augmented views of each; labels: [n] columns of
    the softmax; classes: tokens of the task's base classes; frozen: of the same classes.
    """

    method: Method
    params: Params
    images: Tensor
    labels: Tensor
    classes: ClassTokens
    frozen: Frozen
    training: LocalTraining
    seed: int
    round: int
    client: int


def train_clients(text: TextEncoder, jobs: Sequence[ClientJob]) -> list[ClientUpdate]:
    """Trains copies of the parameters of several clients, each on its own images as if it were alone.

    Step by step the text encoder reads the contexts of all of them at once; they share nothing else. Clients with fewer
    images end earlier. The jobs must come from one of `in_groups`.

    Raises TrainingError, naming client, round and step, where a loss is not finite.
    """
    first = jobs[0]
    params = [Params(_trainable(job.params.shared), _trainable(job.params.private)) for job in jobs]
    rates, training = first.method.learning_rates, first.training
    optimizer = torch.optim.SGD(  # the state of each tensor is its own: no momentum meets another client
        [
            {"params": [tensor for own in params for tensor in own.shared.values()], "lr": rates["shared"]},
            {"params": [tensor for own in params for tensor in own.private.values()], "lr": rates["private"]},
        ],
        momentum=training.momentum,
        weight_decay=training.weight_decay,
    )
    history: list[dict[str, list[Tensor]]] = [defaultdict(list) for _ in jobs]
    for batches in zip_longest(*map(_batches, jobs)):
        working = [i for i, batch in enumerate(batches) if batch is not None]
        contexts = [jobs[i].method.prompts(params[i]) for i in working]
        features = text(torch.cat(contexts), first.classes).split([len(some) for some in contexts])
        losses = []
        for i, z in zip(working, features, strict=True):
            for name, term in jobs[i].method.loss(params[i], z, batches[i], jobs[i].frozen).items():
                history[i][name].append(term.detach())
                losses.append(term)
        optimizer.zero_grad()  # to None, which leaves alone whoever has no batch in this step
        torch.stack(losses).sum().backward()
        optimizer.step()
    return [_update(job, own, terms) for job, own, terms in zip(jobs, params, history, strict=True)]


def in_groups(text: TextEncoder, jobs: Sequence[ClientJob]) -> list[Sequence[ClientJob]]:
    """Shares jobs of one method and task out to groups that are trained together, which never depends on who works.

    A group's step has about ROWS rows of text, where the matrix products are large enough to be fast and the numbers
    between them still near. There are a multiple of four groups, so that two or four processes have equally much to do.
    """
    job = jobs[0]
    contexts = job.method.prompts(job.params)
    rows = len(jobs) * len(contexts) * text.rows(job.classes, contexts.shape[1])
    count = min(len(jobs), 4 * max(1, math.ceil(rows / (4 * ROWS))))
    sizes = [len(jobs) // count + (i < len(jobs) % count) for i in range(count)]
    ends = list(accumulate(sizes))
    return [jobs[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _batches(job: ClientJob) -> Iterator[Batch]:
    """The batches of a round, in an order drawn per epoch; of several views of an image, one drawn per epoch."""
    rng, count = generator(job.seed, "order", job.round, job.client), len(job.labels)
    for _ in range(job.training.local_epochs):
        order, images = torch.randperm(count, generator=rng), job.images
        if images.dim() == 3:
            images = images[torch.arange(count), torch.randint(images.shape[1], (count,), generator=rng)]
        for chosen in order.split(job.training.batch_size):
            yield Batch(images[chosen], job.labels[chosen])


def _update(job: ClientJob, params: Params, history: Mapping[str, Sequence[Tensor]]) -> ClientUpdate:
    """What a client brings home, after a look at all of its losses: a look in every step would hold up a GPU."""
    terms = {name: torch.stack(list(values)) for name, values in history.items()}
    finite = torch.stack(list(terms.values())).isfinite().all(0)
    if not finite.all():
        raise _diverged(job, 1 + int((~finite).nonzero()[0]), "loss")
    if not all(tensor.isfinite().all() for tensor in (*params.shared.values(), *params.private.values())):
        raise _diverged(job, len(finite), "prompt")
    return ClientUpdate(
        client=job.client,
        examples=len(job.labels),
        params=Params(_finished(params.shared), _finished(params.private)),
        losses={name: fmean(values.tolist()) for name, values in terms.items()},
    )


def _diverged(job: ClientJob, step: int, what: str) -> TrainingError:
    return TrainingError(
        f"the {what} of client {job.client} is not finite in round {job.round}, step {step}:"
        f" change the settings of [{job.method.name}], most often to a lower learning_rate"
    )


def _trainable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}


def _finished(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in tensors.items()}
