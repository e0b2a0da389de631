"""Local training of one client."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from fedpgp.backbone.text import TextEncoder
from fedpgp.backbone.tokens import ClassTokens
from fedpgp.errors import TrainingError
from fedpgp.methods import Batch, ClientUpdate, Frozen, Method, Params
from fedpgp.randomness import generator


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

    images: features [n, D] of its training images; labels: [n] columns of the softmax; classes: tokens of the task's
    base classes; frozen: of the same classes.
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


def train_client(text: TextEncoder, job: ClientJob) -> ClientUpdate:
    """Trains a copy of the job's parameters on the client's data; the order of the images is drawn per epoch.

    Raises TrainingError, naming client, round and step, where the loss is not finite.
    """
    method, training = job.method, job.training
    params = Params(_trainable(job.params.shared), _trainable(job.params.private))
    rates = method.learning_rates
    optimizer = torch.optim.SGD(
        [
            {"params": list(params.shared.values()), "lr": rates["shared"]},
            {"params": list(params.private.values()), "lr": rates["private"]},
        ],
        momentum=training.momentum,
        weight_decay=training.weight_decay,
    )
    rng = generator(job.seed, "order", job.round, job.client)
    history: dict[str, list[float]] = defaultdict(list)
    step = 0
    for _ in range(training.local_epochs):
        for chosen in torch.randperm(len(job.labels), generator=rng).split(training.batch_size):
            step += 1
            batch = Batch(job.images[chosen], job.labels[chosen])
            terms = method.loss(params, text(method.prompts(params), job.classes), batch, job.frozen)
            loss = torch.stack(list(terms.values())).sum()
            if not torch.isfinite(loss):
                raise _diverged(job, step, "loss")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for name, term in terms.items():
                history[name].append(term.item())
    if not all(torch.isfinite(tensor).all() for tensor in (*params.shared.values(), *params.private.values())):
        raise _diverged(job, step, "prompt")
    return ClientUpdate(
        client=job.client,
        examples=len(job.labels),
        params=Params(_finished(params.shared), _finished(params.private)),
        losses={name: fmean(values) for name, values in history.items()},
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
