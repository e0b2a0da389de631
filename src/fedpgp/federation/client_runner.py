"""The jobs of the clients in a round, and the clients' models for evaluation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp.aggregators import Download, Tensors
from fedpgp.backbone import Backbone, Towers
from fedpgp.backbone.tokens import ClassTokens
from fedpgp.data.image_features import ImageFeatures
from fedpgp.data.sources import ImageDataset
from fedpgp.data.tasks import Client, Task
from fedpgp.evaluation.evaluator import Evaluation, Evaluator
from fedpgp.evaluation.metrics import evaluation_sets
from fedpgp.federation.client import ClientJob, remembered
from fedpgp.federation.run_spec import RunSpec
from fedpgp.federation.state import ClientState
from fedpgp.methods import Frozen, Method, Params
from fedpgp.runtime.workers import Workers


@dataclass(frozen=True)
class Data:
    """A task with its image features.

    Attributes
    ----------
    task
        The task.
    train
        Features of the whole training split.
    tests
        Features of each of `evaluation_sets(task)`, by name.
    """

    task: Task
    train: ImageFeatures
    tests: Mapping[str, ImageFeatures]

    @classmethod
    def of(cls, task: Task, images: Callable[[ImageDataset], ImageFeatures]) -> "Data":
        """Collect the features of a task. images: a function that returns the features of all images of a split."""
        sets = evaluation_sets(task).items()
        tests = {name: images(test.dataset)[torch.from_numpy(test.images)] for name, test in sets}
        return cls(task, images(task.train), tests)


@dataclass(frozen=True)
class _TrainingSoftmax:
    """The classes of a softmax in training.

    tokens: tokens of the classes, followed by the method's extra names. columns: for each label, the index of the class
    in the softmax, or −1.
    """

    tokens: ClassTokens
    frozen: Frozen
    columns: Tensor


class ClientRunner:
    """Makes the jobs of a task's clients and evaluates their models.

    The task may have only some clients of the run, for example on a machine that only has their images. Clients are
    always named by their numbers in the run, whatever their positions in the task.

    Parameters
    ----------
    spec
        The specification of the run.
    data
        The task with its image features.
    """

    def __init__(self, spec: RunSpec, data: Data):
        method, task, backbone = spec.method, data.task, spec.backbone
        self.spec, self.data, self._task = spec, data, task
        self._clients = {client.id: client for client in task.clients}
        self._frozen = frozen_of(method, task, backbone)
        self._names = backbone.class_tokens([*task.class_names, *method.extra_names], method.tail)
        self._base = self._softmax(task.base)
        tokens = backbone.class_tokens(task.class_names, method.tail)
        self._evaluator = Evaluator(method, task, data.tests, tokens, self._frozen)

    def job(self, number: int, client: int, download: Download, own: ClientState) -> ClientJob:
        """Return the job of a client in a round.

        Parameters
        ----------
        number
            Number of the round.
        client
            Number of the client.
        download
            The message from the server.
        own
            The state that the client kept.
        """
        spec, holder = self.spec, self._clients[client]
        if spec.method.pooled and not spec.finetunes(number):
            holder = Client(0, self._task.base, np.concatenate([each.train for each in self._task.clients]))
        images, labels, softmax = self._holding(holder)
        return ClientJob(
            method=spec.method,
            aggregator=spec.aggregator_of(number),
            start=(own.kept if spec.method.continues_shared else {}) or self._received(download),
            download=download,
            own=own,
            images=images,
            labels=labels,
            classes=softmax.tokens,
            frozen=softmax.frozen,
            training=spec.training(number),
            seed=spec.seed,
            round=number,
            client=holder.id,
        )

    def evaluate(
        self,
        number: int,
        shared: Tensors,
        sent: Callable[[int], Download],
        own: Callable[[int], ClientState],
        workers: Workers[Towers],
        alphas: Sequence[float],
    ) -> Evaluation:
        """Evaluate the clients' models, the shared model, and the models between them for each α < 1.

        Parameters
        ----------
        number
            Number of the round.
        shared
            The shared part on the server.
        sent
            Returns the message that the server sends to a client.
        own
            Returns the state that a client keeps.
        workers
            Worker processes with the towers.
        alphas
            Values of α, ascending; the last is 1.
        """
        method = self.spec.method

        def model(client: int) -> Params:
            kept, download = own(client), sent(client)
            received = self._received(download)
            return method.for_prediction(
                Params(kept.kept or received, kept.private, download.shared, self.memory(client))
            )

        first = self._task.clients[0].id
        common = method.without_private(method.for_prediction(Params(shared, own(first).private, sent(first).shared)))
        return self._evaluator(number, common, model, workers, alphas)

    def memory(self, client: int) -> Tensors:
        """Return the memory of its own images with which a client predicts."""
        images, labels, softmax = self._holding(self._clients[client])
        return remembered(self.spec.method, images, labels, softmax.frozen)

    def _received(self, download: Download) -> Tensors:
        """Return the shared part in a download, without other tensors of the aggregator."""
        return {name: download.shared[name] for name in self.spec.shared}

    def _holding(self, client: Client) -> tuple[ImageFeatures, Tensor, _TrainingSoftmax]:
        """Return a client's training images, their columns [n], and the softmax of these columns."""
        softmax = self._softmax(client.classes) if self.spec.method.own_classes else self._base
        labels = torch.from_numpy(self._task.train.labels[client.train])
        return self.data.train[torch.from_numpy(client.train)], softmax.columns[labels], softmax

    def _softmax(self, classes: Sequence[int]) -> _TrainingSoftmax:
        count = len(self._task.class_names)
        tokens = self._names.select([*classes, *range(count, len(self._names))])
        return _TrainingSoftmax(
            tokens, self._frozen.select(classes), _places(classes, count).to(self._frozen.base.device)
        )


def guidance_of(method: Method, task: Task, class_names: Sequence[str], backbone: Backbone) -> Tensor:
    """Return z_C [C, D] of any class names. Only the templates of the task are used."""
    templates = [backbone.template_features(template, class_names) for template in method.templates(task)]
    return templates[0] if len(templates) == 1 else F.normalize(torch.stack(templates).mean(0), dim=-1)


def frozen_of(method: Method, task: Task, backbone: Backbone) -> Frozen:
    """Return the constants of a task, for all of its classes."""
    guidance = guidance_of(method, task, task.class_names, backbone)
    base = _places(task.base, len(task.class_names)).to(guidance.device)
    return Frozen(guidance, backbone.logit_scale, base)


def _places(classes: Sequence[int], count: int) -> Tensor:
    """Return for each of `count` labels its index in `classes`, or −1."""
    places = torch.full((count,), -1)
    places[list(classes)] = torch.arange(len(classes))
    return places
