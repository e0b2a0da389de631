"""Small data and short runs that several test files share."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPModel

from fedpgp.aggregators import FedAdam, FedAvg, FedAvgM, FedDyn, FedYogi, Median, Scaffold, Server, TrimmedMean
from fedpgp.data import protocols
from fedpgp.data.image_features import ImageFeatures
from fedpgp.data.settings import TaskConfig
from fedpgp.data.sources import ImageDataset, Source
from fedpgp.data.tasks import Client, EvaluationSet, Task
from fedpgp.evaluation.evaluator import Evaluation
from fedpgp.evaluation.inference import kind_of
from fedpgp.federation.client_runner import ClientRunner, Data
from fedpgp.federation.rounds import federate
from fedpgp.federation.run_spec import RunSpec
from fedpgp.federation.settings import FederationConfig
from fedpgp.federation.state import State
from fedpgp.report import comparison, style
from fedpgp.runs import setup as run_setup
from fedpgp.runs import tasks as run_tasks
from fedpgp.runtime.randomness import generator
from fedpgp.runtime.workers import Workers

NAMES = ("ant", "red apple", "fire_engine", "alarm clock", "octopus", "jar", "bus", "tree")
BASE = (1, 2, 3, 5, 6, 7)  # neither the first classes nor a range, so that labels and columns differ
NOVEL = (0, 4)
CLASSES = ((1, 5), (2, 7), (3, 6))  # the classes of the three clients
EXAMPLES = (6, 5, 7)

AGGREGATORS = [
    FedAvg(),
    FedAvg(weighting="uniform"),
    FedAvgM(),
    FedAdam(),
    FedYogi(),
    Median(),
    TrimmedMean(trim=0.2),
    Scaffold(),
    FedDyn(),
]  # the aggregators that work with any number of clients

# Changes to the embedded recipe that make a run take a second: two rounds of three clients.
SHORT_RUN = ["task.clients=3", "task.shots=4", "federation.rounds=2", "federation.local_epochs=1"]


def dataset(split, labels, domains=None, class_names=NAMES, domain_names=("photo",)) -> ImageDataset:
    """Return a split of generated images, each with one colour."""
    labels = np.asarray(labels, dtype=np.int64)
    domains = np.zeros_like(labels) if domains is None else np.asarray(domains, dtype=np.int64)
    shade = {"train": 0, "validation": 80, "test": 160}[split]
    return ImageDataset(
        name="made-up",
        split=split,
        class_names=tuple(class_names),
        domain_names=tuple(domain_names),
        labels=labels,
        domains=domains,
        image=lambda i: Image.new("RGB", (8, 8), (shade, i % 256, int(labels[i]))),
        fingerprint=hashlib.sha256(f"{split}{labels.tolist()}".encode()).hexdigest(),
    )


def source(classes=8, per_domain=(3, 1, 2), domains=2, probe=()) -> Source:
    """Return a source with every class in every domain, with interleaved labels.

    per_domain: number of images of each class and domain in train, validation and test.
    """

    def split(name, count):
        pairs = [(label, domain) for _ in range(count) for domain in range(domains) for label in range(classes)]
        return dataset(
            name,
            [label for label, _ in pairs],
            [domain for _, domain in pairs],
            [f"class {i}" for i in range(classes)],
            [f"domain {i}" for i in range(domains)],
        )

    train, validation, test = per_domain
    return Source("made-up", split("train", train), split("validation", validation), split("test", test), probe)


def picture_bytes(dataset, images) -> set[bytes]:
    """Return the bytes of some images of a split."""
    return {dataset.image(int(i)).tobytes() for i in images}


def base_to_novel(source: Source, *, seed, **task) -> Task:
    return protocols.base_to_novel(source, TaskConfig(**task), seed)


def leave_one_domain_out(source: Source, *, seed, **task) -> Task:
    return protocols.leave_one_domain_out(source, TaskConfig(**task), seed)


def random_features(count: int, like: torch.Tensor, width: int = 128, seed: int = 0) -> torch.Tensor:
    """Return random features of unit length, drawn in float32 so that both precisions have the same values."""
    drawn = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return F.normalize(drawn, dim=-1).to(like)


def random_clip(config, seed: int, dtype) -> CLIPModel:
    """Return a frozen CLIPModel with weights from N(0, 0.5²)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(config)
        for weight in model.parameters():
            weight.data = 0.5 * torch.randn_like(weight)
    return model.to(dtype).eval().requires_grad_(False)


def task(classes=CLASSES, examples=EXAMPLES, base=BASE, novel=NOVEL, templates=("a photo of a {}.",)) -> Task:
    """Return a task whose clients have different numbers of images of alternating classes."""
    labels = [own[k % len(own)] for own, n in zip(classes, examples, strict=True) for k in range(n)]
    starts = np.cumsum([0, *examples])
    order = np.random.default_rng(0).permutation(len(labels))  # so that a client's images are not contiguous
    place = np.argsort(order)
    train = dataset("train", np.array(labels)[order])
    test, validation = dataset("test", [*base, *novel, *base]), dataset("validation", base)
    return Task(
        name="tiny",
        class_names=NAMES,
        base=base,
        train=train,
        clients=tuple(
            Client(i, own, np.sort(place[starts[i] : starts[i + 1]]).astype(np.int64)) for i, own in enumerate(classes)
        ),
        tests={
            "base": EvaluationSet(test, base, test.of_classes(base)),
            "novel": EvaluationSet(test, novel, test.of_classes(novel)),
        },
        validation=EvaluationSet(validation, base, validation.of_classes(base)),
        templates=templates,
    )


def images(count: int, backbone, kind=None, seed: int = 0) -> ImageFeatures:
    """Return random features of `count` images, with tokens of a kind that have the scale of real ones."""
    pooled = random_features(count, backbone.logit_scale, seed=seed)
    if kind is None:
        return ImageFeatures(pooled)
    shape = backbone.image.shape(kind)
    kept = torch.randn(count, *shape, generator=torch.Generator().manual_seed(1000 + seed))
    kept = F.normalize(kept, dim=-1) if kind == "patches" else kept
    return ImageFeatures(pooled, [kept.to(pooled)], torch.arange(count))


def data(backbone, train=None, kind=None, **changes) -> Data:
    """Return the task with random images, or with the given training images. kind: kind of tokens, as in `kind_of`."""
    made = task(**changes)
    tests = {**made.tests, "validation": made.validation}
    return Data(
        task=made,
        train=images(len(made.train), backbone, kind) if train is None else train,
        tests={name: images(len(test.images), backbone, kind, 1 + i) for i, (name, test) in enumerate(tests.items())},
    )


SETTINGS = {"rounds": 2, "local_epochs": 2, "batch_size": 4, "momentum": 0.9, "weight_decay": 5e-4, "path_points": 1}


@dataclass(frozen=True)
class Round:
    """The state after a round. private, kept: for every client, including clients that never took part."""

    number: int
    shared: Mapping[str, torch.Tensor]
    private: Sequence[Mapping[str, torch.Tensor]]
    kept: Sequence[Mapping[str, torch.Tensor]]
    server: Server
    evaluation: Evaluation
    record: Mapping


def run(method, backbone, data_=None, seed=0, workers=None, state=None, aggregator=None, **changes) -> list[Round]:
    """Run a federation in this process and return all rounds.

    The default is two rounds with all clients, and two local epochs in batches of four.
    """
    found, settings = data_ or data(backbone, kind=kind_of(method)), FederationConfig(**{**SETTINGS, **changes})
    workers = workers or Workers(backbone.towers(method.reads), 1)
    spec, rounds = RunSpec(method, found.task, backbone, settings, seed, aggregator), []
    with nullcontext(state) if state else State.create() as state:
        clients = spec.states(state.client)
        for record in federate(ClientRunner(spec, found), workers, state):
            server, own = state.server(), list(clients)
            private, kept = [client.private for client in own], [client.kept for client in own]
            rounds.append(Round(record["round"], server.shared, private, kept, server, state.evaluation(), record))
    return rounds


def small(cls, **changes):
    """Return a small method: small values for the fields that it has, and the given changes."""
    values = {"context_length": 3, "bottleneck": 2, "rank": 2, "prompts_learned": 4, "learning_rate": 0.05}
    values |= {"depth": 2, "visual_length": 1, "groups": 2, "selected": 1, "start_layer": 3, "ratio": 0.5}
    known = {field.name for field in fields(cls)}
    return cls(**{name: value for name, value in values.items() if name in known} | changes)


def bools(correct, images: int) -> np.ndarray:
    """Unpack the bits of an evaluation to [clients, images]."""
    return np.unpackbits(correct, axis=1, count=images).astype(bool)


def order(seed: int, round_number: int, client: int, images: int, epochs: int) -> list:
    """Return the permutations of a client's images in a round, one for each epoch."""
    rng = generator(seed, "order", round_number, client)
    return [torch.randperm(images, generator=rng) for _ in range(epochs)]


def bits(tensors) -> dict:
    """Return the bytes of a dictionary of tensors, to compare them exactly."""
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def use_small_source(patch, source: Source, backbone) -> None:
    """Make experiments read this source and this backbone, without the test split if they do not need it.

    patch: a pytest.MonkeyPatch.
    """
    patch.setattr(
        run_tasks, "load_source", lambda data, splits: source if "test" in splits else replace(source, test=None)
    )
    patch.setattr(run_setup, "configured_backbone", lambda *_: backbone)


def draw_nothing(patch) -> None:
    """Omit the charts of comparisons and write other figures as numbers, because drawing takes longer than training.

    patch: a pytest.MonkeyPatch.
    """
    patch.setattr(comparison, "write_chart", lambda directory, *_: (directory / "comparison.svg").touch())
    patch.setattr(style, "rendered", lambda chart, suffix: f"{suffix}: {chart.data.to_csv()}".encode())
