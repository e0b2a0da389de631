"""Does a method keep the contract? A battery for anybody's method; our own are tested with it.

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
BASE, NOVEL = (1, 2, 3, 5, 6, 7), (0, 4)  # neither the first classes nor a range: labels and columns differ
CLIENTS = ((1, 5), (2, 7), (3, 6))
EXAMPLES = (6, 5, 7)
SETTINGS = FederationConfig(rounds=3, local_epochs=1, batch_size=4, weight_decay=0.0, eval_every=3, path_points=1)
EXACT = 1e-9  # relative, in float64


class ConformanceError(AssertionError):
    """A method that does not keep the contract; the message says in what, and what to do."""


def check_method(method: Method, backbone: Backbone | None = None) -> list[str]:
    """Runs every check on a method, with its hyperparameters, and returns their names.

    Three clients train for three rounds on made-up image features, many times over: it takes seconds to a minute. What
    is private and sent in another form than it has, added up or scaled, no check finds.
    backbone: a CLIP in float64; None takes the embedded one. Raises ConformanceError at the first check that fails.
    """
    trial = _Trial(method, backbone or load_backbone("pictoclip", "float64"))
    for check in CHECKS:
        try:
            check(trial)
        except Exception as error:
            place = f"failed in the check “{check.__doc__}”: {type(error).__name__}: "
            reason = f"{'' if isinstance(error, ConformanceError) else place}{error}"
            raise ConformanceError(f"{getattr(method, 'name', type(method).__name__)} {reason}") from error
    return [str(check.__doc__) for check in CHECKS]


class Recording(Workers[Towers]):
    """Works in this process and keeps every group of jobs of local training, and what came of it."""

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
        """Every job with what came of it, in the order of the work."""
        return [pair for group in self.groups for pair in zip(*group, strict=True)]


def made_up_data(task: Task, backbone: Backbone, kind: str | None, seed: int = 0) -> Data:
    """A task with random images; kind: what is kept of them beside a feature of each, as `kind_of` a method."""
    tests = {
        name: made_up_images(len(test.images), backbone, kind, seed + i)
        for i, (name, test) in enumerate(evaluation_sets(task).items(), 1)
    }
    return Data(task, made_up_images(len(task.train), backbone, kind, seed), tests)


def made_up_images(count: int, backbone: Backbone, kind: str | None = None, seed: int = 0) -> ImageFeatures:
    """Random images: features, and patch features, of unit length, and states of the image tower."""
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
    """A split of which only the labels exist."""
    return ImageDataset(name, split, class_names, ("none",), labels, np.zeros_like(labels), _no_picture, split)


def _no_picture(index: int) -> Any:
    raise NotImplementedError("a made-up image has no picture")


class _Trial:
    """A method on a tiny task."""

    def __init__(self, method: Method, backbone: Backbone):
        self.method, self.backbone = method, backbone
        self.task = _task()
        self.frozen = frozen_of(method, self.task, backbone)
        self.towers = backbone.towers(method.reads)
        self.data = made_up_data(self.task, backbone, kind_of(method))
        self.images = made_up_images(5, backbone, kind_of(method), seed=9)

    def spec(self, aggregator: Aggregator | None = None) -> RunSpec:
        """A run of the method with seed 0."""
        return RunSpec(self.method, self.task, self.backbone, SETTINGS, 0, aggregator)

    def first(self, client: int = 0) -> Params:
        """A client's parameters before the first round."""
        spec = self.spec()
        received = spec.aggregator.download(spec.begin(), client).shared
        return Params(spec.shared, spec.first(client).private, received)

    def question(
        self, params: Params, images: ImageFeatures, classes: Sequence[int] = BASE, extra_names: Sequence[str] = ()
    ) -> Question:
        """Some images for a model, with the text features of some classes, and of extra names behind them."""
        method, frozen = self.method, self.frozen.select(classes)
        tokens = self.backbone.class_tokens([*(CLASS_NAMES[label] for label in classes), *extra_names], method.tail)
        contexts = [*method.prompts(params, frozen), *method.constant_prompts(params)]
        read = self.backbone.text.each(contexts, tokens, method.position)
        text = torch.stack(read) if read else frozen.guidance[None][:0]
        return Question(method, params, text, images, tokens, frozen)

    def run(self, seed: int = 0, interrupted: bool = False) -> tuple[dict[str, bytes], Recording]:
        """The state after three rounds, and every local training.

        interrupted: after each round, everything is closed, and a copy of the method goes on.
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
        """Every local training of a run."""
        return self.once[1].trained

    def models(self) -> Iterator[Params]:
        """A client's parameters before the first round, and then, if it trains, before its last."""
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
    """it declares name, paper, year and venue, and describes its settings"""
    method = trial.method
    fault = fault_of(type(method)) or misread(method)
    _ask(fault is None, str(fault))
    _ask((type(method).__doc__ or "").strip(), "must have a docstring: fedpgp methods prints it")
    for name, info in type(method).__pydantic_fields__.items():  # type: ignore[attr-defined]
        _ask(info.description, f"must describe {name}: Field(default=…, description='what (source)')")
    first = trial.first()
    for group, tensors in (("shared", first.shared), ("private", first.private)):
        rated = not tensors or group in method.learning_rates
        _ask(rated, f"must give a learning rate for {group!r}, which it trains: learning_rates")
    _ask(not (method.pooled and first.private), "must keep nothing private, because it pools all images")


def _survives_files(trial: _Trial) -> None:
    """its settings survive a config file, and it can be sent to a process"""
    method = trial.method
    config = ExperimentConfig(methods={method.name: method})
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "config.toml"
        path.write_text(config.to_toml(), encoding="utf-8")
        read = load_config(path, methods=[type(method)]).methods[method.name]
    _ask(read == method, f"must be the same when its section is read again: {read} is not {method}")
    _ask(pickle.loads(pickle.dumps(method)) == method, "must be the same after pickling: define it in a module")


def _parameters(trial: _Trial) -> None:
    """its first parameters are finite floats in the checkpoint's precision, drawn from the given generator alone"""
    like = trial.backbone.logit_scale
    for client in range(len(CLIENTS)):
        first, again = trial.first(client), trial.first(client)
        both = {*first.shared} & {*first.private}
        _ask(not both, f"must not use a name twice, in shared and private: {both}")
        twice = {**again.shared, **again.private}
        for name, tensor in {**first.shared, **first.private}.items():
            _ask("/" not in name, f"must not have / in a parameter's name: {name}")
            _ask(
                tensor.dtype == like.dtype and tensor.device == like.device,
                f"must make {name} {like.dtype} on {like.device}, like backbone.logit_scale: .to(backbone.logit_scale)",
            )
            _ask(tensor.isfinite().all(), f"must start {name} with finite numbers")
            _ask(not tensor.requires_grad, f"must not track gradients of {name}: the engine does")
            same = name in twice and torch.equal(twice[name], tensor)
            _ask(same, f"must draw {name} from rng alone: two draws from equal ones differ")


def _functions(trial: _Trial) -> None:
    """its functions give what the contract says for any classes, and change none of their arguments"""
    method, width = trial.method, trial.backbone.token_width
    alone = method.without_private(method.for_prediction(trial.first()))
    models = chain(trial.models(), () if alone is None else (alone,))
    for model, classes in ((model, some) for model in models for some in (BASE, NOVEL, (3,), (4, 6, 1))):
        frozen, images = trial.frozen.select(classes), trial.images
        with _unchanged("in place", model, frozen, images.pooled):
            params = method.for_prediction(model)
            of_images = method.conditional_prompts(params, images.pooled, frozen)
            for context in [*method.prompts(params, frozen), *method.constant_prompts(params), *of_images]:
                deep, shape = isinstance(context, Prompt), Prompt.of(context).vectors.shape
                fits = shape[-1] == width and (len(shape) == 2 or shape[:-2] == (len(classes),))
                _ask(fits, f"must make contexts [M, {width}], or [{len(classes)}, M, {width}]: {list(shape)}")
                _ask(not deep or "deep text" in method.reads, 'must declare that it reads "deep text"')
            for what, prompts in (("text per image", of_images), ("image tower", method.visual_prompts(params))):
                _ask(not prompts or what in method.reads, f'must declare that it reads "{what}"')
            _ask(len(of_images) in (0, 5), f"must make a conditional prompt for each image: {len(of_images)} of 5")
            question = trial.question(params, images, classes)
            logits = answer(trial.towers, question)
            _ask(
                logits.shape == (5, len(classes)) and logits.isfinite().all(),
                f"must predict finite logits [images, classes] [5, {len(classes)}]: got {list(logits.shape)}",
            )
        by_one = torch.cat([answer(trial.towers, question._replace(images=images[i : i + 1])) for i in range(5)])
        _ask(_near(by_one, logits), "must predict every image for itself, whatever else is in the batch")


def _path(trial: _Trial) -> None:
    """its path, where it has one, goes from what the shared part predicts alone to what the whole model predicts"""
    method = trial.method
    for whole in map(method.for_prediction, trial.models()):
        ends = method.path(whole, 0.0), method.path(whole, 1.0)
        _ask((ends[0] is None) == (ends[1] is None), "must have a path for every α or for none")
        for end, expected, where in zip(ends, (method.without_private(whole), whole), ("begin", "end"), strict=True):
            if end is not None and expected is not None:
                logits = [answer(trial.towers, trial.question(model, trial.images)) for model in (end, expected)]
                _ask(_near(*logits), f"must {where} its path with the model that is there, in what it predicts")


def _losses(trial: _Trial) -> None:
    """its loss has finite terms of no dimension, by name"""
    method = trial.method
    for job, _ in trial.trained:
        classes = CLIENTS[job.client] if method.own_classes else BASE
        part = method.for_step(job.params, generator(0, "step"))
        text = trial.question(part, job.images[:4], classes, method.extra_names).whole_text(trial.towers)
        batch = Batch(image_features(trial.towers, method, job.images[:4], part), job.labels[:4])
        with _unchanged("in place, in loss", part, job.frozen, batch.features):
            terms = method.loss(part, text, batch, job.frozen)
        _ask(terms, "must have a loss of one term or more, because it has parameters")
        for name, value in terms.items():
            number = value.shape == () and value.isfinite()
            _ask(number, f"must give the term {name!r} of its loss as one finite number: got {list(value.shape)}")
            if method.per_example:
                ones = [Batch(batch.features[e : e + 1], batch.labels[e : e + 1]) for e in range(len(batch.labels))]
                mean = torch.stack([method.loss(part, text, one, job.frozen)[name] for one in ones]).mean()
                what = f"a loss whose term {name!r} is the mean of its examples'"
                _ask(_near(mean, value), f"must have {what}, because it is per_example")


def _learns(trial: _Trial) -> None:
    """everything that it declares as trained is changed by training, and nothing becomes infinite"""
    moved: dict[str, bool] = defaultdict(bool)
    for job, update in trial.trained:
        before = {**job.start, **job.own.private}
        for name, tensor in _parts(update).items():
            moved[name] |= not tensor.numel() or not torch.equal(tensor, before[name])
    still = [name for name in moved if not moved[name]]
    _ask(not still, f"must train {still}, which no local training has changed: a gradient does not reach it")


def _ends(trial: _Trial) -> None:
    """what it makes of its parameters after training has their names and shapes, and changes none of its arguments"""
    for job, _ in trial.trained:
        params = job.params
        with _unchanged("in after_training", params, job.frozen, job.images.pooled):
            after = trial.method.after_training(params, generator(0, "after"))
        for group in ("shared", "private"):
            forms = [{k: (t.shape, t.dtype) for k, t in getattr(some, group).items()} for some in (params, after)]
            _ask(forms[0] == forms[1], f"must keep names and shapes of its {group} part in after_training")


def _private(trial: _Trial) -> None:
    """nothing private is in what leaves a client: no row of a private tensor, of a memory or of an image's features"""
    for job, update in trial.trained:
        sent = b"".join(map(_bits, [*update.upload.shared.values(), *update.upload.control.values()]))
        own = {**job.own.private, **update.own.private, **job.params.memory, "the images": job.images.pooled}
        own |= {} if job.images.kept is None else {"the images' tokens": job.images.tokens}
        for name, tensor in own.items():
            rows = tensor.reshape(-1, tensor.shape[-1]) if tensor.dim() and tensor.is_floating_point() else ()
            for row in rows:
                leaks = len(row) > 1 and bool(row.count_nonzero()) and _bits(row) in sent
                _ask(not leaks, f"must not send {name}, which is private: its bytes are in the upload")


def _batched(trial: _Trial) -> None:
    """clients that are trained together end as if each were alone"""
    alone = not trial.method.batchable or trial.method.own_classes
    for _, group in groupby(() if alone else trial.trained, lambda pair: pair[0].round):
        pairs = list(group)
        together = train_clients(trial.towers, [job for job, _ in pairs])
        for (job, update), other in zip(pairs, together, strict=True):
            for name, tensor in _parts(update).items():
                what = f"{name} of client {job.client} alike alone and with others"
                _ask(_near(_parts(other)[name], tensor), f"must train {what}: declare batchable = False")


def _repeats(trial: _Trial) -> None:
    """the same seed gives the same bytes, another one others, and what was interrupted goes on to the same"""
    bits, _ = trial.once
    _ask(trial.run()[0] == bits, "must give the same numbers for the same seed: it has a state of its own")
    _ask(not trial.trained or trial.run(seed=1)[0] != bits, "must depend on the seed")
    _ask(
        trial.run(interrupted=True)[0] == bits,
        "must go on to the same numbers in a copy of itself: what it remembers belongs into parameters or the server",
    )


def _travels(trial: _Trial) -> None:
    """a local training gives the same bytes in another process"""
    for jobs, updates in trial.once[1].groups:
        again = train_clients(trial.towers, pickle.loads(pickle.dumps(jobs)))
        for before, after in zip(map(_parts, updates), map(_parts, again), strict=True):
            changed = [name for name in before if not torch.equal(after[name], before[name])]
            _ask(not changed, f"must train {changed} to the same numbers in another process")


def _controls(trial: _Trial) -> None:
    """it trains under an aggregator that turns gradients"""
    method = trial.method
    own_server = method.own_aggregator(SETTINGS.rounds) is not None
    if not own_server and not method.pooled and not method.swaps and trial.trained:
        with State.create() as state:
            workers = Recording(trial.towers)
            rounds = federate(ClientRunner(trial.spec(Scaffold()), trial.data), workers, state)
            for record, _ in zip(rounds, range(2), strict=False):
                _ask(record["participants"] == [0, 1, 2], "must train every client under scaffold")


def _order(trial: _Trial) -> None:
    """the order of the clients changes nothing, and equal updates are their own average"""
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
            _ask(_near(mine[name], yours[name]), f"must aggregate {name} alike in any order of the clients")
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
        raise ConformanceError(message)


@contextmanager
def _unchanged(where: str, params: Params, frozen: Frozen, features: Tensor) -> Iterator[None]:
    """Asks that what is done here changes no number of a model, of what is frozen or of an image."""
    groups = (params.shared, params.private, params.received, params.memory)
    tensors = [*(t for group in groups for t in group.values()), frozen.guidance, frozen.base, features]
    before = list(map(_bits, tensors))
    yield
    _ask(list(map(_bits, tensors)) == before, f"must not change its arguments {where}")


def _parts(update: ClientUpdate) -> dict[str, Tensor]:
    """All that a client trained."""
    return {**update.upload.shared, **update.own.private}


def _near(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return not one.numel() or bool((one - other).abs().max() <= EXACT * max(1e-3, float(other.abs().max())))


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
