"""Protocols: which classes and images each client trains on, and on what it is tested."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from fedpgp.data.partition import deal_classes, deal_domains, draw_shots
from fedpgp.data.sources import ImageDataset, Source
from fedpgp.errors import DataError, nearest


@dataclass(frozen=True)
class Client:
    """What one client holds: its classes, and the indices of its images in the training split.

    domains: those of its images, where they are not of all.
    """

    id: int
    classes: tuple[int, ...]
    train: NDArray[np.int64]
    domains: tuple[int, ...] | None = None


@dataclass(frozen=True)
class EvaluationSet:
    """Images to classify, and the classes in the softmax.

    classes: indices of class names; images: indices into `dataset`, all of them of those classes.
    """

    dataset: ImageDataset
    classes: tuple[int, ...]
    images: NDArray[np.int64]

    @property
    def targets(self) -> NDArray[np.int64]:
        """[n] the right column of the softmax for each image."""
        column = {label: i for i, label in enumerate(self.classes)}
        return np.array([column[label] for label in self.dataset.labels[self.images]], dtype=np.int64)


@dataclass(frozen=True)
class Task:
    """A protocol applied to a data set with a seed.

    clients: by id, which is the place in the tuple.
    base: the classes that the clients train on, and the columns of the softmax in training, Local and Base.
    validation: images of the base classes that are neither trained on nor tested.
    templates: hand-written prompts that suit the data set's images.
    novel: what nobody trains on, and Novel tests.
    """

    name: str
    class_names: tuple[str, ...]
    base: tuple[int, ...]
    train: ImageDataset
    clients: tuple[Client, ...]
    tests: dict[str, EvaluationSet]
    validation: EvaluationSet
    templates: tuple[str, ...] = ("a photo of a {}.",)
    novel: Literal["classes", "domains"] = "classes"


def base_to_novel(
    source: Source,
    *,
    clients: int,
    classes_per_client: int | None,
    shots: int,
    seed: int,
    domain_per_client: bool = False,
    evaluate_on: str = "test",
) -> Task:
    """The paper's base-to-novel protocol: the first half of the classes is base, the second half novel.

    Base classes are dealt out to the clients without overlap; each class has `shots` training images. Base is tested on
    all base classes; Novel on the novel classes with only their names in the softmax; Unseen, where the source has
    probe classes, on those, likewise.

    domain_per_client: a client's training images, and the test images of its Local, are of one domain; domains are
    dealt out in turn. Base and Novel are tested in all domains.
    evaluate_on: "test", or "validation" for choosing settings: the same protocol within the base classes (their first
    half is base, their second half novel) on validation images, so that neither a novel class nor a test image is used.
    Raises DataError if the data do not suffice.
    """
    classes = [label for label in range(len(source.class_names)) if label not in source.probe]
    probe = source.probe if evaluate_on == "test" else ()
    if evaluate_on == "validation":
        classes = classes[: _half(classes)]
    dataset = _evaluated(source, evaluate_on)
    base, novel = tuple(classes[: _half(classes)]), tuple(classes[_half(classes) :])
    if not novel:
        raise DataError(f"base-to-novel needs at least 2 classes, half of them novel; {source.name} has {len(classes)}")
    tests = {"base": _test_set(dataset, base), "novel": _test_set(dataset, novel)}
    if probe:
        tests["unseen"] = _test_set(dataset, probe)
    dealt = deal_classes(base, clients, classes_per_client, seed)
    domains: Sequence[int | None] = [None] * clients
    if domain_per_client:
        domains = deal_domains(len(source.train.domain_names), clients, seed)
    return _checked(
        Task(
            name="base-to-novel",
            class_names=source.class_names,
            base=base,
            train=source.train,
            clients=tuple(
                _client(source, i, *own, shots, seed) for i, own in enumerate(zip(dealt, domains, strict=True))
            ),
            tests=tests,
            validation=_test_set(source.validation, base),
            templates=source.templates,
        )
    )


def leave_one_domain_out(
    source: Source, *, clients: int, held_out: Sequence[str], shots: int, seed: int, evaluate_on: str = "test"
) -> Task:
    """The paper's leave-one-domain-out protocol: a client for each domain but one, which nobody trains on.

    Every client has `shots` training images of each class, of its own domain; where several clients share a domain, its
    classes are dealt out to them without overlap. Probe classes are left out. Local is tested on the images of a
    client's classes in its domain; Base on those of all classes in all domains that are trained on; Novel on those of
    the same classes in the held-out domain. No image of that domain is trained on or in the validation set.

    clients: a multiple of the number of domains that are trained on. held_out: by name; several are held out together,
    as two drawings of one kind should be; none takes the last.
    evaluate_on: "test", or "validation" for choosing settings: the last of the domains that are trained on plays the
    held-out one, on validation images, so that neither a held-out domain nor a test image is used.
    Raises DataError if the data do not suffice.
    """
    names = source.train.domain_names
    out = {names.index(name) if name in names else _unknown(name, names) for name in held_out} or {len(names) - 1}
    kept, novel = [i for i in range(len(names)) if i not in out], sorted(out)
    if evaluate_on == "validation":
        kept, novel = kept[:-1], kept[-1:]
    if not kept:
        raise DataError(
            f"leave-one-domain-out needs a domain to train on beside those held out; {source.name} has"
            f" {', '.join(names)}: hold out fewer (task.held_out)"
        )
    if clients % len(kept):
        raise DataError(
            f"task.clients must be a multiple of {len(kept)}, got {clients}: the domains that are trained on are"
            f" {', '.join(names[i] for i in kept)}"
        )
    dataset = _evaluated(source, evaluate_on)
    classes = tuple(label for label in range(len(source.class_names)) if label not in source.probe)
    dealt = deal_classes(classes, clients // len(kept), None, seed)
    return _checked(
        Task(
            name="leave-one-domain-out",
            class_names=source.class_names,
            base=classes,
            train=source.train,
            clients=tuple(
                _client(source, i, dealt[i // len(kept)], kept[i % len(kept)], shots, seed) for i in range(clients)
            ),
            tests={"base": _test_set(dataset, classes, kept), "novel": _test_set(dataset, classes, novel)},
            validation=_test_set(source.validation, classes, kept),
            templates=source.templates,
            novel="domains",
        )
    )


def _unknown(name: str, names: Sequence[str]) -> NoReturn:
    raise DataError(f"task.held_out must name domains of the data set, got {name!r}; {nearest(name, names)}")


def _evaluated(source: Source, split: str) -> ImageDataset:
    """The split that is tested on."""
    if split == "validation":
        return source.validation
    if source.test is None:
        raise DataError(
            f"the test split of {source.name} was not read: read it with load_source, or test on validation"
        )
    return source.test


def _client(source: Source, number: int, classes: tuple[int, ...], domain: int | None, shots: int, seed: int) -> Client:
    drawn = [draw_shots(source.train, label, shots, seed, domain) for label in classes]
    return Client(number, classes, np.concatenate(drawn), None if domain is None else (domain,))


def _checked(task: Task) -> Task:
    """The task, in which every client has images of its own to be tested on."""
    for test in (task.tests["base"], task.validation):
        dataset = test.dataset
        held = set(zip(dataset.labels[test.images].tolist(), dataset.domains[test.images].tolist(), strict=True))
        for client in task.clients:
            for label, domain in product(client.classes, client.domains or ()):
                if (label, domain) not in held:
                    raise DataError(
                        f"class {dataset.class_names[label]!r} of {dataset.name} has no {dataset.split} image in domain"
                        f" {dataset.domain_names[domain]!r}, which client {client.id} is to be tested on"
                    )
    return task


def _half(classes: Sequence[int]) -> int:
    """The middle class of an odd number is base, as in CoOp's split."""
    return (len(classes) + 1) // 2


def _test_set(dataset: ImageDataset, classes: Sequence[int], domains: Sequence[int] | None = None) -> EvaluationSet:
    """The images of some classes in some domains; None: in all."""
    images = dataset.of_classes(classes)
    where = ""
    if domains is not None:
        images = images[np.isin(dataset.domains[images], domains)]
        where = f" in {', '.join(dataset.domain_names[i] for i in domains)}"
    empty = set(classes) - set(dataset.labels[images].tolist())
    if empty:
        raise DataError(
            f"class {dataset.class_names[min(empty)]!r} of {dataset.name} has no {dataset.split} image{where}"
        )
    return EvaluationSet(dataset, tuple(classes), images)
