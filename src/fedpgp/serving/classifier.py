"""Classify images into any class names with the prompts of a run and its dual encoder.

Letters: B images, C classes, D feature width.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedpgp.backbone import Backbone, Towers, configured_backbone
from fedpgp.backbone.tokens import ClassTokens, check_readable
from fedpgp.data.client_task import named_task
from fedpgp.data.decode import decode
from fedpgp.data.image_features import ImageFeatures
from fedpgp.data.preprocess import CENTRE, Preparation, PreparedImages, each
from fedpgp.data.sources import ImageDataset
from fedpgp.data.sources.names import is_text, plain
from fedpgp.errors import CheckpointError, ConfigError, DataError, shown
from fedpgp.evaluation.inference import Question, answer, kind_of
from fedpgp.federation.client_runner import guidance_of
from fedpgp.methods import Frozen, Method, Params
from fedpgp.results.run import Run
from fedpgp.results.run_store import load_run
from fedpgp.runtime.files import exists
from fedpgp.runtime.tensor_files import check_tensors
from fedpgp.runtime.untrusted import DAMAGED
from fedpgp.runtime.validation import texts, whole_number

BATCH = 16  # images encoded together

AnyImage: TypeAlias = str | Path | bytes | Image.Image | np.ndarray[Any, Any]
KINDS = (str, Path, bytes, Image.Image, np.ndarray)


@dataclass(frozen=True)
class Classes:
    """Class names as read by a model.

    Attributes
    ----------
    names
        C class names.
    text
        Text features [K, C, D].
    tokens
        Tokens of the class names.
    frozen
        Other values that the method needs for these class names.
    """

    names: tuple[str, ...]
    text: Tensor
    tokens: ClassTokens
    frozen: Frozen


class Answer(NamedTuple):
    """Result for one image.

    Attributes
    ----------
    image
        Name of the image.
    probabilities
        Probability by class name, in the order of the names; empty if the image cannot be read.
    fault
        Reason why the image cannot be read.
    """

    image: str
    probabilities: dict[str, float]
    fault: str = ""

    def best(self, count: int | None = None) -> list[tuple[str, float]]:
        """Return the `count` most probable classes, or all, sorted by decreasing probability."""
        return sorted(self.probabilities.items(), key=lambda pair: -pair[1])[:count]


@dataclass(frozen=True)
class Classifier:
    """Model of a finished run: the shared part, or the personal model of a client.

    Attributes
    ----------
    method
        The method of the run.
    params
        The trained parameters.
    backbone
        The dual encoder.
    base
        Class names used in training, in the run's order.
    templates
        Templates of the task.
    client
        Number of the client; None for the shared part.
    temperature
        T > 0 by which logits are divided before the softmax.

    Examples
    --------
    >>> fedpgp.load("my-run", client=3).classify(["cat.png"], ["cat", "red panda"])  # doctest: +SKIP
    [{'cat': 0.91, 'red panda': 0.09}]
    """

    method: Method
    params: Params
    backbone: Backbone
    base: tuple[str, ...]
    templates: tuple[str, ...]
    client: int | None = None
    temperature: float = 1.0

    @property
    def owner(self) -> str:
        """Owner of the model, in words."""
        return "the shared part" if self.client is None else f"client {self.client}"

    def __repr__(self) -> str:
        return f"fedpgp.Classifier: {self.method.name}, {self.owner}, trained on {len(self.base)} classes"

    @cached_property
    def towers(self) -> Towers:
        """Parts of the dual encoder that the method needs."""
        return self.backbone.towers(self.method.reads)

    @torch.no_grad()
    def read(self, class_names: Sequence[str] | None = None) -> Classes:
        """Read class names, known or new.

        Parameters
        ----------
        class_names
            The class names; None means the names used in training.

        Raises
        ------
        ConfigError
            If there are fewer than two names, because a single class always has probability 1, or if names are
            repeated.
        """
        names = self.base if class_names is None else texts(class_names, "classes")
        check_names(names)
        if class_names is not None and len(names) == 1:
            raise ConfigError(
                where="classes",
                allowed="at least two class names, because a single class always has probability 1",
                got=list(names),
                remedy="Add the other classes that an image can show",
            )
        check_readable(self.backbone.tokenizer, names)
        task = named_task(self.base, self.templates)
        place = {plain(name): i for i, name in enumerate(self.base)}
        base = torch.tensor([place.get(plain(name), -1) for name in names], device=self.backbone.logit_scale.device)
        guidance = guidance_of(self.method, task, names, self.backbone)
        frozen = Frozen(guidance, self.backbone.logit_scale, base)
        tokens = self.backbone.class_tokens(names, self.method.tail)
        contexts = [*self.method.prompts(self.params, frozen), *self.method.constant_prompts(self.params)]
        features = [self.towers.text.each([context], tokens, self.method.position)[0] for context in contexts]
        text = torch.stack(features) if features else torch.empty(0, len(names), 0)
        return Classes(names, text, tokens, frozen)

    @torch.no_grad()
    def logits(self, pixels: Tensor, classes: Classes) -> Tensor:
        """Return logits [B, C] of preprocessed images [B, 3, H, W]."""
        encoder, kind = self.backbone.image, kind_of(self.method)
        pooled = encoder.encode(pixels).clone()  # leaves inference mode, which methods do not expect
        kept = None if kind is None else [encoder.encode(pixels, kind).clone()]
        return self.answer(ImageFeatures(pooled, kept, torch.arange(len(pooled))), classes)

    @torch.no_grad()
    def answer(self, images: ImageFeatures, classes: Classes) -> Tensor:
        """Return logits [B, C] for features of images."""
        return answer(
            self.towers, Question(self.method, self.params, classes.text, images, classes.tokens, classes.frozen)
        )

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return probabilities [B, C], which sum to 1 for each image."""
        return (logits.double() / self.temperature).softmax(-1)

    def stream(self, images: Sequence[AnyImage], classes: Classes, workers: int = 1) -> Iterator[Answer]:
        """Yield answers for images in their order; the answer for an unreadable image has a fault.

        Parameters
        ----------
        images
            As in `classify`.
        classes
            Class names that the model has read.
        workers
            As in `each` of data/preprocess; 0 processes one batch after the other in this thread, which is fastest for
            a few images.
        """
        preparation = Preparation(_dataset(images), self.backbone.image.processor, self.backbone.image.size, CENTRE)

        def finish(prepared: PreparedImages) -> tuple[list[list[float]], dict[int, str]]:
            probabilities = self.probabilities(self.logits(torch.from_numpy(prepared.pixels), classes))
            return probabilities.tolist(), {**prepared.faults, **prepared.unreadable}

        batches = [range(at, min(at + BATCH, len(images))) for at in range(0, len(images), BATCH)]
        if workers:
            finished = each(preparation, finish, batches, workers)
        else:
            finished = (finish(preparation[batch]) for batch in batches)
        for batch, (rows, faults) in zip(batches, finished, strict=True):
            for index, row in zip(batch, rows, strict=True):
                fault = faults.get(index, "")
                name = shown(image) if isinstance(image := images[index], str | Path) else f"image {index}"
                yield Answer(name, {} if fault else dict(zip(classes.names, row, strict=True)), fault)

    def classify(
        self, images: Sequence[AnyImage] | AnyImage, classes: Sequence[str] | None = None
    ) -> list[dict[str, float]]:
        """Return the probability of each class for every image, sorted by decreasing probability.

        Parameters
        ----------
        images
            One or several paths, files as bytes, Pillow images, or arrays, all read by `read_image`.
        classes
            Any class names; None means the names used in training.

        Raises
        ------
        DataError
            If a file is missing or not an image, or if an array is not an image.
        ConfigError
            If the class names cannot be distinguished.
        """
        given = list(images) if isinstance(images, Sequence) and not isinstance(images, str | bytes) else [images]
        for number, image in enumerate(given):
            if not isinstance(image, KINDS):
                kind = type(image).__name__
                raise DataError(
                    where=f"image {number}",
                    allowed="a path, bytes, a Pillow image or a NumPy array",
                    got=kind,
                    remedy="Convert it to one of these types",
                )
            if isinstance(image, str | Path) and not exists(image):
                raise DataError("the file does not exist", where=shown(image), remedy="Correct the path")
        read = self.read(classes)
        probabilities = []
        for result in self.stream(given, read, workers=0):
            if result.fault:
                raise DataError(f"the image cannot be read ({result.fault})", where=result.image, remedy="Leave it out")
            probabilities.append(dict(result.best()))
        return probabilities


def with_checkpoint(run: Run, checkpoint: str | None) -> Run:
    """Return the run with another path of its checkpoint; None leaves the run unchanged."""
    if checkpoint is None:
        return run
    return replace(run, config=replace(run.config, backbone=replace(run.config.backbone, checkpoint=checkpoint)))


def load(
    run: Run | Path | str, client: int | None = None, *, device: str | None = None, checkpoint: str | None = None
) -> Classifier:
    """Load the model of a finished run: the shared part, or the personal model of a client.

    Parameters
    ----------
    run
        The run or its directory.
    client
        Number of the client, from 0; None means the shared part.
    device
        Device of PyTorch; None means the run's device.
    checkpoint
        Current path of the run's checkpoint, if it was moved.

    Raises
    ------
    FedPGPError
        If the run has no such model, or if its checkpoint is missing or differs from the one used in training.
    """
    client = None if client is None else whole_number(client, "client", 0)
    run = with_checkpoint(run if isinstance(run, Run) else load_run(run), checkpoint)
    return model_of(run, backbone_of(run, device), client)


def model_of(run: Run, backbone: Backbone, client: int | None) -> Classifier:
    """Return a model of a run with its dual encoder, which is loaded once for several models; raises as `load`."""
    method, task = run.config.methods[run.method], run.results["task"]
    params = params_of(run, method, backbone, client)
    return Classifier(method, params, backbone, tuple(task["base_names"]), tuple(task["templates"]), client)


def backbone_of(run: Run, device: str | None) -> Backbone:
    """Return the dual encoder of a run, for models of the run; raises as `load`."""
    name = run.method
    if name not in run.config.methods:
        raise ConfigError(
            "it is neither built in nor part of an installed package",
            where=f"method {name}",
            remedy="Install its package, or use the run from Python",
        )
    settings = run.config.backbone
    try:
        backbone = configured_backbone(settings, device)
    except CheckpointError as error:
        raise CheckpointError(
            error.problem,
            where=error.where,
            allowed=error.allowed,
            got=error.got,
            remedy=f"{error.remedy}. If the checkpoint was moved, give its new path with --checkpoint",
        ) from error
    if backbone.fingerprint != run.provenance["checkpoint"]:
        raise CheckpointError(
            f"it is not the checkpoint that {name} was trained with (its SHA-256 differs)",
            where=f"checkpoint {settings.checkpoint!r}",
            remedy="Download the original again, or give its path with --checkpoint (in Python, checkpoint=)",
        )
    return backbone


def params_of(run: Run, method: Method, backbone: Backbone, client: int | None) -> Params:
    """Return the parameters with which a model of a run predicts.

    A memory of a client's own images is not part of a run, so it is empty here.

    Parameters
    ----------
    run
        The run.
    method
        Its method.
    backbone
        Its dual encoder.
    client
        Number of the client; None means the shared part.

    Raises
    ------
    ConfigError
        If the run has no such model.
    OutputError
        If the tensors of the run do not fit its method and its dual encoder.
    """
    like = backbone.logit_scale

    def tensors(prefix: str) -> dict[str, Tensor]:
        """Return the tensors under a prefix, on the backbone's device and in its precision."""
        chosen = {name.removeprefix(prefix): run.prompts[name] for name in run.prompts if name.startswith(prefix)}
        return {name: x.to(like) if x.is_floating_point() else x.to(like.device) for name, x in chosen.items()}

    shared = tensors("shared/")
    private, kept, received = (tensors(f"{group}/{client or 0}/") for group in ("private", "kept", "received"))
    task, generator = named_task(run.results["task"]["base_names"], run.results["task"]["templates"]), torch.Generator()
    first = method.init_shared(task, backbone, generator.manual_seed(0))
    drawn = method.init_private(task, backbone, generator.manual_seed(0), client or 0)
    predicting = method.for_prediction(Params(first, {}, first)).shared
    # An aggregator may also send the shared parts of other clients, stacked, as pFedMoAP's does.
    stacked = {name: x for name, x in received.items() if any(x.shape[1:] == one.shape for one in first.values())}
    for group, found, expected in (
        ("shared", shared, predicting),
        ("private", private, drawn),
        ("kept", kept, first),
        ("received", received, {**stacked, **first}),
    ):
        if found or group == "shared":
            owner = "" if group == "shared" else f" of client {client or 0}"
            check_tensors(found, expected, f"prompts.safetensors of the run: {group}{owner}", DAMAGED)
    if client is None:
        if not private and run.results["private"]:  # it stayed on the clients' machines, and its values are not used
            private = drawn
        without = method.without_private(Params(shared, private, shared))
        if without is None:
            raise ConfigError(
                f"the shared part of {method.name} cannot predict without a client's private part",
                where="client",
                remedy="Choose a client, for example with --client 0 (in Python, client=0)",
            )
        return without
    clients = run.results["task"]["clients"]
    if not 0 <= client < clients:
        raise ConfigError(
            where="client",
            allowed=f"0 to {clients - 1}, because the run has {clients} clients",
            got=client,
            remedy="Choose one of these clients",
        )
    if run.results["private"] and not private:
        raise ConfigError(
            "its private part is not available here, because it stayed on the client's machine",
            where=f"client {client}",
            remedy="Leave --client out to use the shared part, or fit a private part of your own with fedpgp join",
        )
    received = received or shared
    params = Params(kept or {name: received[name] for name in shared}, private, received)
    # Values received from the server are ready for prediction, but values that the client kept itself are not.
    return method.for_prediction(params) if kept else params


def check_names(names: Sequence[str]) -> None:
    """Raise ConfigError if there are no class names, or if a name is empty or repeated."""
    if not names:
        raise ConfigError(
            where="classes",
            allowed="at least two class names",
            got=[],
            remedy="Use, for example, --classes 'zebra,red panda'",
        )
    for name in names:
        if not is_text(name):
            raise ConfigError(
                where="every name in classes",
                allowed="UTF-8 text without control characters",
                got=name,
                remedy="Write the name in other characters",
            )
        if not any(letter.isalnum() for letter in name):
            raise ConfigError(
                where="every name in classes",
                allowed="a name with a letter or a digit",
                got=name,
                remedy="Name the class in words",
            )
    counts = Counter(map(plain, names))
    repeated = [name for name in names if counts[plain(name)] > 1]
    if repeated:
        raise ConfigError(
            where="classes",
            allowed="different from each other in more than case, spaces and underscores",
            got=repeated,
            remedy="Leave the repeated names out",
        )


def calibrated(classifier: Classifier, logits: Tensor, targets: Tensor) -> Classifier:
    """Return the classifier with the temperature that minimizes the negative log-likelihood of given targets.

    See Guo et al. 2017, section 4.2.

    Parameters
    ----------
    classifier
        The model.
    logits
        [n, C].
    targets
        [n], the right columns of the logits.
    """
    logits, targets = logits.double(), targets.to(logits.device)
    logarithm = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logarithm], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits / logarithm.exp(), targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    return replace(classifier, temperature=float(logarithm.detach().clamp(-7, 7).exp()))


@dataclass(frozen=True)
class _Pictures:
    """Decoder of images by their number, which can be pickled for other processes."""

    images: Sequence[AnyImage]

    def __call__(self, index: int) -> Image.Image:
        return decode(self.images[index])


def _dataset(images: Sequence[AnyImage]) -> ImageDataset:
    nothing = np.zeros(len(images), dtype=np.int64)
    return ImageDataset("files", "test", ("",), ("",), nothing, nothing, _Pictures(list(images)), "files")
