"""Conformance checks of the contract for methods, for your own method and for the built-in ones.

>>> from fedpgp.testing import check_method
>>> check_method(MyMethod(learning_rate=0.05))  # doctest: +SKIP
"""

import pickle
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fedpgp.aggregators import Aggregator, Server, Tensors, Upload
from fedpgp.aggregators.controlled import Scaffold
from fedpgp.backbone import Backbone, Towers, load_backbone
from fedpgp.backbone.image import PATCHES
from fedpgp.backbone.layers import Prompt
from fedpgp.config import ExperimentConfig, load_config
from fedpgp.data.image_features import ImageFeatures
from fedpgp.data.sources import ImageDataset
from fedpgp.data.tasks import Client, EvaluationSet, Task
from fedpgp.evaluation.inference import Question, answer, image_features, kind_of
from fedpgp.evaluation.metrics import evaluation_sets
from fedpgp.federation.client import ClientJob, ClientUpdate, train_clients
from fedpgp.federation.client_runner import ClientRunner, Data, frozen_of
from fedpgp.federation.rounds import federate
from fedpgp.federation.run_spec import RunSpec
from fedpgp.federation.settings import FederationConfig
from fedpgp.federation.state import State, grouped
from fedpgp.methods import Batch, Frozen, Method, Params
from fedpgp.methods.plugins import fault_of, misread
from fedpgp.runtime.randomness import generator
from fedpgp.runtime.workers import Workers

CLASS_NAMES = ("ant", "red apple", "fire engine", "alarm clock", "octopus", "jar", "bus", "tree")
BASE, NOVEL = (1, 2, 3, 5, 6, 7), (0, 4)  # neither the first classes nor a range, so that labels and columns differ
CLIENTS = ((1, 5), (2, 7), (3, 6))
EXAMPLES = (6, 5, 7)
SETTINGS = FederationConfig(rounds=3, local_epochs=1, batch_size=4, weight_decay=0.0, eval_every=3, path_points=1)
EXACT = 1e-9  # relative tolerance in float64


class ConformanceError(AssertionError):
    """A method that violates the contract. The message says how, and how to fix it."""


def check_method(method: Method, backbone: Backbone | None = None) -> list[str]:
    """Run all checks on a method with its hyperparameters, and return the names of the checks.

    Three clients train for three rounds on random image features, several times. This takes seconds to a minute. The
    checks cannot find private tensors that are sent in another form, for example summed or scaled.

    Parameters
    ----------
    method
        The method.
    backbone
        A CLIP checkpoint in float64; None for the embedded one.

    Returns
    -------
    The name of each check, which is a statement about the method.

    Raises
    ------
    ConformanceError
        A check failed. The remaining checks do not run.
    """
    trial = _Trial(method, backbone or load_backbone("pictoclip", "float64"))
    for check in CHECKS:
        try:
            check(trial)
        except Exception as error:
            place = f"the check “{check.__doc__}” failed with {type(error).__name__}: "
            reason = f"{'' if isinstance(error, ConformanceError) else place}{error}"
            raise ConformanceError(f"{getattr(method, 'name', type(method).__name__)}: {reason}") from error
    return [str(check.__doc__) for check in CHECKS]


class Recording(Workers[Towers]):
    """Workers in this process that record every group of jobs of local training with its updates."""

    def __init__(self, towers: Towers):
        super().__init__(towers, 1)
        self.groups: list[tuple[Sequence[ClientJob], Sequence[ClientUpdate]]] = []

    def map(self, function: Callable[..., Any], jobs: Any) -> list[Any]:
        given = list(jobs)
        results = super().map(function, given)
        if function is train_clients:
            self.groups += zip(given, results, strict=True)
        return results

    @property
    def trained(self) -> list[tuple[ClientJob, ClientUpdate]]:
        """Every job with its update, in the order in which the jobs ran."""
        return [pair for group in self.groups for pair in zip(*group, strict=True)]


def made_up_data(task: Task, backbone: Backbone, kind: str | None, seed: int = 0) -> Data:
    """Return a task with random image features.

    Parameters
    ----------
    task
        The task.
    backbone
        The checkpoint that determines the widths.
    kind
        The kind of tokens in addition to image features, as in `kind_of`; None for no tokens.
    seed
        Seed of the random numbers.
    """
    tests = {
        name: made_up_images(len(test.images), backbone, kind, seed + i)
        for i, (name, test) in enumerate(evaluation_sets(task).items(), 1)
    }
    return Data(task, made_up_images(len(task.train), backbone, kind, seed), tests)


def made_up_images(count: int, backbone: Backbone, kind: str | None = None, seed: int = 0) -> ImageFeatures:
    """Return random images.

    Parameters
    ----------
    count
        Number of images.
    backbone
        The checkpoint that determines the widths.
    kind
        The kind of tokens in addition to image features, as in `kind_of`; None for no tokens.
    seed
        Seed of the random numbers.

    Returns
    -------
    Image features and patch features of unit length, or states of the image tower.
    """
    like = backbone.logit_scale
    drawn = torch.randn(count, backbone.image.width, generator=generator(seed, "images"))
    pooled = F.normalize(drawn, dim=-1).to(like)
    if kind is None:
        return ImageFeatures(pooled)
    kept = torch.randn(count, *backbone.image.shape(kind), generator=generator(seed, "tokens"))
    if kind == PATCHES:
        kept = F.normalize(kept, dim=-1)
    return ImageFeatures(pooled, [kept.to(like)], torch.arange(count))


def made_up_split(name: str, split: str, class_names: tuple[str, ...], labels: NDArray[np.int64]) -> ImageDataset:
    """Return a split of a dataset that has labels but no images."""
    return ImageDataset(name, split, class_names, ("none",), labels, np.zeros_like(labels), _no_picture, split)


def _no_picture(index: int) -> Any:
    raise NotImplementedError("a random image feature has no image")


class _Trial:
    """A method with a tiny task."""

    def __init__(self, method: Method, backbone: Backbone):
        self.method, self.backbone = method, backbone
        self.task = _task()
        self.frozen = frozen_of(method, self.task, backbone)
        self.towers = backbone.towers(method.reads)
        self.data = made_up_data(self.task, backbone, kind_of(method))
        self.images = made_up_images(5, backbone, kind_of(method), seed=9)

    def spec(self, aggregator: Aggregator | None = None) -> RunSpec:
        """Return the specification of a run with seed 0."""
        return RunSpec(self.method, self.task, self.backbone, SETTINGS, 0, aggregator)

    def first(self, client: int = 0) -> Params:
        """Return a client's parameters before the first round."""
        spec = self.spec()
        received = spec.aggregator.download(spec.begin(), client).shared
        return Params(spec.shared, spec.first(client).private, received)

    def question(
        self, params: Params, images: ImageFeatures, classes: Sequence[int] = BASE, extra_names: Sequence[str] = ()
    ) -> Question:
        """Return some images as a question for a model, with some classes, followed by extra names."""
        method, frozen = self.method, self.frozen.select(classes)
        tokens = self.backbone.class_tokens([*(CLASS_NAMES[label] for label in classes), *extra_names], method.tail)
        contexts = [*method.prompts(params, frozen), *method.constant_prompts(params)]
        read = self.backbone.text.each(contexts, tokens, method.position)
        text = torch.stack(read) if read else frozen.guidance[None][:0]
        return Question(method, params, text, images, tokens, frozen)

    def run(self, seed: int = 0, interrupted: bool = False) -> tuple[dict[str, bytes], Recording]:
        """Return the state after three rounds, and a record of local training.

        interrupted: whether to close everything after each round and continue with a copy of the method.
        """
        workers = Recording(self.towers)
        with tempfile.TemporaryDirectory() as directory:
            path, method = Path(directory) / "state", self.method
            State.create(path).close()
            while True:
                with State.open(path) as state:
                    spec = RunSpec(method, self.task, self.backbone, SETTINGS, seed)
                    for _ in federate(ClientRunner(spec, self.data), workers, state):
                        if interrupted:
                            break
                    else:
                        break
                method = pickle.loads(pickle.dumps(method))
            with State.open(path) as state:
                server = state.server() or Server({})
                bits = {f"server/{k}": _bits(t) for k, t in grouped(server).items()}
                for i, own in enumerate(spec.states(state.client)):
                    bits |= {f"client {i}/{k}": _bits(t) for k, t in grouped(own).items()}
        return bits, workers

    @cached_property
    def once(self) -> tuple[dict[str, bytes], Recording]:
        return self.run()

    @property
    def trained(self) -> list[tuple[ClientJob, ClientUpdate]]:
        """Every job of a run with its update."""
        return self.once[1].trained

    def models(self) -> Iterator[Params]:
        """Yield a client's parameters before the first round and, if the method trains, before its last round."""
        yield self.first()
        yield from (job.params for job, _ in self.trained[-1:])


def _task() -> Task:
    labels = [own[k % len(own)] for own, count in zip(CLIENTS, EXAMPLES, strict=True) for k in range(count)]
    ends = np.cumsum([0, *EXAMPLES])

    def split(name: str, of: Sequence[int]) -> ImageDataset:
        return made_up_split("made-up", name, CLASS_NAMES, np.array(of))

    def test(dataset: ImageDataset, classes: tuple[int, ...]) -> EvaluationSet:
        return EvaluationSet(dataset, classes, dataset.of_classes(classes))

    seen, held = split("test", [*BASE, *NOVEL, *BASE]), split("validation", BASE)
    return Task(
        name="conformance",
        class_names=CLASS_NAMES,
        base=BASE,
        train=split("train", labels),
        clients=tuple(Client(i, own, np.arange(*ends[i : i + 2])) for i, own in enumerate(CLIENTS)),
        tests={"base": test(seen, BASE), "novel": test(seen, NOVEL)},
        validation=test(held, BASE),
    )


# --------------------------------------------------------------------------------------------------------- the checks


def _declares(trial: _Trial) -> None:
    """it declares name, source, year and venue, and describes its settings"""
    method = trial.method
    if fault := fault_of(type(method)) or misread(method):
        raise ConformanceError(str(fault)) from fault
    _ask((type(method).__doc__ or "").strip(), "must have a docstring, which fedpgp methods prints")
    for name, info in type(method).__pydantic_fields__.items():  # type: ignore[attr-defined]
        _ask(info.description, f"must describe {name}. Write Field(default=…, description='Meaning (source)')")
    first = trial.first()
    for group, tensors in (("shared", first.shared), ("private", first.private)):
        rated = not tensors or group in method.learning_rates
        _ask(rated, f"must have a learning rate for {group!r}, which it trains. Add it to learning_rates")
    _ask(not (method.pooled and first.private), "must not have private parameters, because it pools all images")


def _survives_files(trial: _Trial) -> None:
    """its settings are the same after writing and reading a config file, and it can be sent to another process"""
    method = trial.method
    config = ExperimentConfig(methods={method.name: method})
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "config.toml"
        path.write_text(config.to_toml(), encoding="utf-8")
        read = load_config(path, methods=[type(method)]).methods[method.name]
    _ask(read == method, f"must be the same after its section is written and read, but {read} is not {method}")
    _ask(pickle.loads(pickle.dumps(method)) == method, "must be the same after pickling. Define it in a module")


def _parameters(trial: _Trial) -> None:
    """its initial parameters are finite floats in the checkpoint's precision, drawn only from the given generator"""
    like = trial.backbone.logit_scale
    for client in range(len(CLIENTS)):
        first, again = trial.first(client), trial.first(client)
        both = {*first.shared} & {*first.private}
        _ask(not both, f"must not use a name twice, but shared and private both have {both}")
        twice = {**again.shared, **again.private}
        for name, tensor in {**first.shared, **first.private}.items():
            _ask("/" not in name, f"must not have / in the name of a parameter, but has {name}")
            _ask(
                tensor.dtype == like.dtype and tensor.device == like.device,
                f"must create {name} with {like.dtype} on {like.device}, like backbone.logit_scale. Call"
                " .to(backbone.logit_scale)",
            )
            _ask(tensor.isfinite().all(), f"must initialize {name} with finite numbers")
            _ask(not tensor.requires_grad, f"must not track gradients of {name}, because the engine does it")
            same = name in twice and torch.equal(twice[name], tensor)
            _ask(same, f"must draw {name} only from rng, but two equal generators gave different values")


def _functions(trial: _Trial) -> None:
    """its functions return what the contract requires for any classes, and do not change their arguments"""
    method, width = trial.method, trial.backbone.token_width
    common = method.without_private(method.for_prediction(trial.first()))
    models = chain(trial.models(), () if common is None else (common,))
    for model, classes in ((model, some) for model in models for some in (BASE, NOVEL, (3,), (4, 6, 1))):
        frozen, images = trial.frozen.select(classes), trial.images
        with _unchanged("in place", model, frozen, images.pooled):
            params = method.for_prediction(model)
            of_images = method.conditional_prompts(params, images.pooled, frozen)
            for context in [*method.prompts(params, frozen), *method.constant_prompts(params), *of_images]:
                deep, shape = isinstance(context, Prompt), Prompt.of(context).vectors.shape
                fits = shape[-1] == width and (len(shape) == 2 or shape[:-2] == (len(classes),))
                _ask(fits, f"must return contexts [M, {width}] or [{len(classes)}, M, {width}], not {list(shape)}")
                _ask(not deep or "deep text" in method.reads, 'must declare that it reads "deep text"')
            for what, prompts in (("text per image", of_images), ("image tower", method.visual_prompts(params))):
                _ask(not prompts or what in method.reads, f'must declare that it reads "{what}"')
            _ask(
                len(of_images) in (0, 5),
                f"must return one conditional prompt for each image, not {len(of_images)} for 5 images",
            )
            question = trial.question(params, images, classes)
            logits = answer(trial.towers, question)
            _ask(
                logits.shape == (5, len(classes)) and logits.isfinite().all(),
                f"must predict finite logits [images, classes] of shape [5, {len(classes)}], not {list(logits.shape)}",
            )
        by_one = torch.cat([answer(trial.towers, question._replace(images=images[i : i + 1])) for i in range(5)])
        _ask(_near(by_one, logits), "must predict each image independently of the other images in the batch")


def _path(trial: _Trial) -> None:
    """its path, if it has one, starts with the predictions of the shared model and ends with the personal model's"""
    method = trial.method
    for whole in map(method.for_prediction, trial.models()):
        ends = method.path(whole, 0.0), method.path(whole, 1.0)
        _ask((ends[0] is None) == (ends[1] is None), "must have a path for every α or for none")
        models = {"start": method.without_private(whole), "end": whole}
        for end, (where, expected) in zip(ends, models.items(), strict=True):
            if end is not None and expected is not None:
                logits = [answer(trial.towers, trial.question(model, trial.images)) for model in (end, expected)]
                which = "without_private" if where == "start" else "the whole model"
                _ask(_near(*logits), f"must {where} its path with the predictions of {which}")


def _losses(trial: _Trial) -> None:
    """its loss is a dictionary of finite numbers, by the name of the term"""
    method = trial.method
    for job, _ in trial.trained:
        classes = CLIENTS[job.client] if method.own_classes else BASE
        part = method.for_step(job.params, generator(0, "step"))
        text = trial.question(part, job.images[:4], classes, method.extra_names).whole_text(trial.towers)
        batch = Batch(image_features(trial.towers, method, job.images[:4], part), job.labels[:4])
        with _unchanged("in place, in loss", part, job.frozen, batch.features):
            terms = method.loss(part, text, batch, job.frozen)
        _ask(terms, "must have a loss with at least one term, because it has parameters")
        for name, value in terms.items():
            number = value.shape == () and value.isfinite()
            _ask(
                number,
                f"must return the term {name!r} of its loss as one finite number, not a tensor {list(value.shape)}",
            )
            if method.per_example:
                ones = [Batch(batch.features[e : e + 1], batch.labels[e : e + 1]) for e in range(len(batch.labels))]
                mean = torch.stack([method.loss(part, text, one, job.frozen)[name] for one in ones]).mean()
                what = f"a loss whose term {name!r} is the mean of the losses of its examples"
                _ask(_near(mean, value), f"must have {what}, because it is per_example")


def _learns(trial: _Trial) -> None:
    """training changes every parameter, and all parameters stay finite"""
    moved: dict[str, bool] = defaultdict(bool)
    for job, update in trial.trained:
        before = {**job.start, **job.own.private}
        for name, tensor in _parts(update).items():
            moved[name] |= not tensor.numel() or not torch.equal(tensor, before[name])
    still = [name for name in moved if not moved[name]]
    _ask(not still, f"must train {still}, which did not change in local training because it gets no gradient")


def _ends(trial: _Trial) -> None:
    """after_training returns parameters with the same names and shapes, and does not change its arguments"""
    for job, _ in trial.trained:
        params = job.params
        with _unchanged("in after_training", params, job.frozen, job.images.pooled):
            after = trial.method.after_training(params, generator(0, "after"))
        for group in ("shared", "private"):
            forms = [{k: (t.shape, t.dtype) for k, t in getattr(some, group).items()} for some in (params, after)]
            _ask(forms[0] == forms[1], f"must keep the names and shapes of its {group} part in after_training")


def _private(trial: _Trial) -> None:
    """a client does not send any row of a private tensor, of its memory or of its image features"""
    for job, update in trial.trained:
        sent = b"".join(map(_bits, [*update.upload.shared.values(), *update.upload.control.values()]))
        own = {**job.own.private, **update.own.private, **job.params.memory, "the images": job.images.pooled}
        own |= {} if job.images.kept is None else {"the images' tokens": job.images.tokens}
        for name, tensor in own.items():
            rows = tensor.reshape(-1, tensor.shape[-1]) if tensor.dim() and tensor.is_floating_point() else ()
            for row in rows:
                leaks = len(row) > 1 and bool(row.count_nonzero()) and _bits(row) in sent
                _ask(not leaks, f"must not send {name}, which is private. Its bytes are in the upload")


def _batched(trial: _Trial) -> None:
    """clients that are trained together get the same parameters as clients that are trained separately"""
    separate = not trial.method.batchable or trial.method.own_classes
    for _, group in groupby(() if separate else trial.trained, lambda pair: pair[0].round):
        pairs = list(group)
        together = train_clients(trial.towers, [job for job, _ in pairs])
        for (job, update), other in zip(pairs, together, strict=True):
            for name, tensor in _parts(update).items():
                what = f"{name} of client {job.client} to the same values separately and together with other clients"
                _ask(_near(_parts(other)[name], tensor), f"must train {what}, or declare batchable = False")


def _repeats(trial: _Trial) -> None:
    """the same seed gives the same bytes, another seed gives others, and a resumed run gives the same bytes"""
    bits, _ = trial.once
    _ask(trial.run()[0] == bits, "must give the same numbers for the same seed, but the object has its own state")
    _ask(not trial.trained or trial.run(seed=1)[0] != bits, "must depend on the seed")
    _ask(
        trial.run(interrupted=True)[0] == bits,
        "must give the same numbers when a copy of it resumes a run. Keep state in the parameters or on the server",
    )


def _travels(trial: _Trial) -> None:
    """local training gives the same bytes in another process"""
    for jobs, updates in trial.once[1].groups:
        again = train_clients(trial.towers, pickle.loads(pickle.dumps(jobs)))
        for before, after in zip(map(_parts, updates), map(_parts, again), strict=True):
            changed = [name for name in before if not torch.equal(after[name], before[name])]
            _ask(not changed, f"must train {changed} to the same numbers in another process")


def _controls(trial: _Trial) -> None:
    """it trains with an aggregator that corrects gradients"""
    method = trial.method
    own_server = method.own_aggregator(SETTINGS.rounds) is not None
    if not own_server and not method.pooled and not method.swaps and trial.trained:
        with State.create() as state:
            workers = Recording(trial.towers)
            rounds = federate(ClientRunner(trial.spec(Scaffold()), trial.data), workers, state)
            for record, _ in zip(rounds, range(2), strict=False):
                _ask(record["participants"] == [0, 1, 2], "must train every client with the aggregator scaffold")


def _order(trial: _Trial) -> None:
    """aggregation does not depend on the order of the clients, and equal updates give that update"""
    spec = trial.spec()
    if not spec.shared or trial.method.pooled:
        return
    rule, server = spec.aggregator, spec.begin()
    rng = generator(0, "updates")

    def moved() -> dict[str, Tensor]:
        return {k: t + 0.01 * torch.randn(t.shape, generator=rng).to(t) for k, t in spec.shared.items()}

    def received(uploads: Sequence[Upload]) -> list[Tensors]:
        after = rule.aggregate(server, uploads)
        return [rule.download(after, client).shared for client in range(len(CLIENTS))]

    uploads = [Upload(client, count, moved()) for client, count in enumerate(EXAMPLES)]
    for mine, yours in zip(received(uploads), received(uploads[::-1]), strict=True):
        for name in mine:
            _ask(_near(mine[name], yours[name]), f"must aggregate {name} to the same value in any order of the clients")
    equal = moved()
    for sent in received([Upload(client, count, equal) for client, count in enumerate(EXAMPLES)]):
        for name, tensor in equal.items():
            _ask(_near(sent[name], tensor), f"must aggregate equal updates of {name} to that update")


CHECKS: Sequence[Callable[[_Trial], None]] = (
    _declares,
    _survives_files,
    _parameters,
    _functions,
    _path,
    _losses,
    _learns,
    _ends,
    _private,
    _batched,
    _travels,
    _repeats,
    _controls,
    _order,
)


def _ask(holds: object, message: str) -> None:
    if not holds:
        raise ConformanceError(f"it {message}")


@contextmanager
def _unchanged(where: str, params: Params, frozen: Frozen, features: Tensor) -> Iterator[None]:
    """Ask that the code in this context does not change a model, its constants or image features."""
    groups = (params.shared, params.private, params.received, params.memory)
    tensors = [*(t for group in groups for t in group.values()), frozen.guidance, frozen.base, features]
    before = list(map(_bits, tensors))
    yield
    _ask(list(map(_bits, tensors)) == before, f"must not change its arguments {where}")


def _parts(update: ClientUpdate) -> dict[str, Tensor]:
    """Return all tensors that a client trained."""
    return {**update.upload.shared, **update.own.private}


def _near(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return not one.numel() or bool((one - other).abs().max() <= EXACT * max(1e-3, float(other.abs().max())))


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
