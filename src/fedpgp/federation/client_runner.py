"""What every client of a run is given to do in a round, and what its model is made of."""

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
    """A task with what is kept of its images: `train` of the whole training split, `tests` of each test set."""

    task: Task
    train: ImageFeatures
    tests: Mapping[str, ImageFeatures]

    @classmethod
    def of(cls, task: Task, images: Callable[[ImageDataset], ImageFeatures]) -> "Data":
        """images: what is kept of all images of a split."""
        sets = evaluation_sets(task).items()
        tests = {name: images(test.dataset)[torch.from_numpy(test.images)] for name, test in sets}
        return cls(task, images(task.train), tests)


@dataclass(frozen=True)
class _TrainingSoftmax:
    """Classes of a softmax in training; tokens: theirs, and those of the method's extra names.

    columns: by label, the place among the classes or −1.
    """

    tokens: ClassTokens
    frozen: Frozen
    columns: Tensor


class ClientRunner:
    """What the clients of a task do in a run: all of them, or those whose images are here.

    Clients go by their numbers in the run, whatever their places in the task.
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
        """A client's work in a round."""
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
        """The clients' models, the shared part alone, and at each α < 1 what lies between the two.

        shared: the server's; sent, own: what a client is sent, and what it keeps.
        """
        method = self.spec.method

        def model(client: int) -> Params:
            kept, download = own(client), sent(client)
            received = self._received(download)
            return method.for_prediction(
                Params(kept.kept or received, kept.private, download.shared, self.memory(client))
            )

        first = self._task.clients[0].id
        alone = method.without_private(method.for_prediction(Params(shared, own(first).private, sent(first).shared)))
        return self._evaluator(number, alone, model, workers, alphas)

    def memory(self, client: int) -> Tensors:
        """What a client predicts with of its own images."""
        images, labels, softmax = self._holding(self._clients[client])
        return remembered(self.spec.method, images, labels, softmax.frozen)

    def _received(self, download: Download) -> Tensors:
        """The shared part as a client is sent it, perhaps beside other things."""
        return {name: download.shared[name] for name in self.spec.shared}

    def _holding(self, client: Client) -> tuple[ImageFeatures, Tensor, _TrainingSoftmax]:
        """A client's training images, their columns [n], and the softmax that these are of."""
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
    """z_C [C, D] of any class names; of the task the templates are read, and no more."""
    templates = [backbone.template_features(template, class_names) for template in method.templates(task)]
    return templates[0] if len(templates) == 1 else F.normalize(torch.stack(templates).mean(0), dim=-1)


def frozen_of(method: Method, task: Task, backbone: Backbone) -> Frozen:
    """What never changes during a task, for all of its classes."""
    guidance = guidance_of(method, task, task.class_names, backbone)
    base = _places(task.base, len(task.class_names)).to(guidance.device)
    return Frozen(guidance, backbone.logit_scale, base)


def _places(classes: Sequence[int], count: int) -> Tensor:
    """By label, of so many, the place among some classes or −1."""
    places = torch.full((count,), -1)
    places[list(classes)] = torch.arange(len(classes))
    return places
