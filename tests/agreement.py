"""The library against naive transcriptions of the methods (tests/oracle): three clients, two rounds or more.

The oracle always works in float64. "Relative" is the largest difference over the oracle's largest entry.
`pytest tests/methods -rP` prints the largest differences.
"""

from collections import defaultdict
from dataclasses import dataclass, field

import tiny
import torch
from oracle.training import Settings, World

from fedpgp.data.image_features import ImageFeatures
from fedpgp.data.sources import pictograms
from fedpgp.evaluation.evaluator import Evaluator
from fedpgp.evaluation.inference import Question, answer, kind_of
from fedpgp.federation.client import _Training
from fedpgp.federation.client_runner import frozen_of

EPOCHS, BATCH = 1, 4
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}
HYPER = {"context_length": 3, "learning_rate": 0.05}
NAMES = [tiny.NAMES[label].replace("_", " ") for label in tiny.BASE]
ALL_NAMES = [name.replace("_", " ") for name in tiny.NAMES]


@dataclass
class Watched:
    """What the library does, seen from outside: loss and followed gradient of every step, by round and client."""

    steps: dict = field(default_factory=lambda: defaultdict(list))
    models: dict = field(default_factory=dict)  # client -> Params, of the last evaluation
    frozen: object = None

    def watch(self, monkeypatch) -> None:
        after_step, evaluate = _Training.after_step, Evaluator.__call__

        def stepped(client):
            loss = sum(values[-1] for values in client.terms.values()).item()
            gradient = {name: t.grad.clone() for name, t in client.tensors.items() if t.grad is not None}
            self.steps[client.job.round, client.job.client].append((loss, gradient))
            after_step(client)

        def evaluated(evaluator, number, shared, model, workers, alphas):
            self.models = {client: model(client) for client in range(len(tiny.CLASSES))}
            return evaluate(evaluator, number, shared, model, workers, alphas)

        monkeypatch.setattr(_Training, "after_step", stepped)
        monkeypatch.setattr(Evaluator, "__call__", evaluated)


def difference(found, expected) -> float:
    """The largest difference over the largest entry of what is expected, or over 1 where that is smaller than 1e-12."""
    found, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (found, expected))
    assert found.shape == expected.shape
    if not expected.numel():
        return 0.0
    largest = float(expected.abs().max())
    return float((found - expected).abs().max()) / (largest if largest > 1e-12 else 1.0)


def real_images(backbone, kind=None) -> ImageFeatures:
    """As many real pictures as the tiny task trains on."""
    pictures = pictograms.read().train
    some = [pictures.image(7 * i) for i in range(sum(tiny.EXAMPLES))]
    pooled = backbone.image(some).clone()
    if kind is None:
        return ImageFeatures(pooled)
    pixels = backbone.image.processor(images=some, return_tensors="pt")["pixel_values"]
    return ImageFeatures(pooled, [backbone.image.encode(pixels, kind).clone()], torch.arange(len(some)))


def test_images(like) -> torch.Tensor:
    """Features of the pictures that every model classifies at last."""
    return tiny.random_features(9, like, seed=9)


def settings_of(method) -> Settings:
    """Return the settings of a method, its own values first."""
    own = {key: getattr(method, key, None) for key in ("momentum", "weight_decay", "optimizer", "betas", "eps")}
    given = {name: value for name, value in own.items() if value is not None}
    return Settings(
        **{"momentum": tiny.SETTINGS["momentum"], "weight_decay": tiny.SETTINGS["weight_decay"]} | given,
        learning_rate=method.learning_rates["shared"],
    )


def world_of(method, exact, data, rounds, seed=0, epochs=EPOCHS) -> World:
    """What the oracle is given: the library's first values, and its draws of the images' order."""
    task, kind = data.task, kind_of(method)
    shared = method.init_shared(task, exact, tiny.generator(seed, "shared"))
    first = [
        {**shared, **method.init_private(task, exact, tiny.generator(seed, "private"), client.id)}
        for client in task.clients
    ]
    clients = []
    for client in task.clients:
        columns = torch.tensor([tiny.BASE.index(label) for label in task.train.labels[client.train]])
        images = data.train[torch.from_numpy(client.train)]
        clients.append((images.pooled if images.kept is None else images, columns))
    sizes = {0: sum(tiny.EXAMPLES)} if method.pooled else {c.id: len(c.train) for c in task.clients}
    schedule = [
        {
            client: [
                batch
                for permutation in tiny.order(seed, number, client, images, epochs)
                for batch in permutation.split(BATCH)
            ]
            for client, images in sizes.items()
        }
        for number in range(1, rounds + 1)
    ]
    return World(
        clip=getattr(exact.image, "model", exact),
        tokenizer=exact.tokenizer,
        names=NAMES,
        clients=clients,
        first=first,
        schedule=schedule,
        settings=settings_of(method),
        generator=lambda number, client: tiny.generator(seed, "step", number, client),
        all_names=ALL_NAMES,
        base=[tiny.BASE.index(label) if label in tiny.BASE else -1 for label in range(len(tiny.NAMES))],
        images=test_images(exact.logit_scale) if kind is None else tiny.images(9, exact, kind, seed=9),
    )


def check_agreement(
    method, oracle, backbones, monkeypatch, *, rounds=2, epochs=EPOCHS, images="random", settings=None, rate_of=None
) -> None:
    """Fails where losses, followed gradients, parameters after a round or logits differ from the oracle's.

    oracle: World -> Record; backbones: {"float64": …, "float32": …}, the first is what the oracle reads with.
    settings: further fields of FederationConfig for the library; rate_of: the oracle's learning rates.
    """
    exact, kind = backbones["float64"], kind_of(method)
    real = images == "real"
    first = tiny.data(exact, real_images(exact, kind) if real else None, kind)
    world = world_of(method, exact, first, rounds, epochs=epochs)
    world.settings.rate_of = rate_of
    expected = oracle(world)
    for precision, ours in backbones.items():
        data = tiny.data(ours, real_images(ours, kind) if real else None, kind)
        watched = Watched()
        with monkeypatch.context() as patch:
            watched.watch(patch)
            found = tiny.run(
                method, ours, data, rounds=rounds, local_epochs=epochs, batch_size=BATCH, **(settings or {})
            )
        assert watched.steps.keys() == expected.steps.keys()
        worst = defaultdict(float)

        def see(what, one, other, worst=worst):
            worst[what] = max(worst[what], difference(one, other))

        for key, steps in expected.steps.items():
            assert len(watched.steps[key]) == len(steps) > 0
            for (loss, gradient), (reference, gradients) in zip(watched.steps[key], steps, strict=True):
                see("loss", loss, reference)
                assert gradient.keys() == gradients.keys()
                for name, g in gradients.items():
                    see("gradients", gradient[name], g)
        assert len(found) == len(expected.rounds)
        for one, (server, clients) in zip(found, expected.rounds, strict=True):
            assert one.shared.keys() == server.keys()
            for name, value in server.items():
                see("parameters", one.shared[name], value)
            for private, kept, own in zip(one.private, one.kept, clients, strict=True):
                mine = {**private, **kept}
                assert mine.keys() == own.keys()
                for name, value in own.items():
                    see("parameters", mine[name], value)
        tokens, frozen = ours.class_tokens(tiny.NAMES, method.tail), frozen_of(method, data.task, ours)
        for client, reference in enumerate(expected.logits):
            params = watched.models[client]
            contexts = [*method.prompts(params, frozen), *method.constant_prompts(params)]
            read = ours.text.each(contexts, tokens, method.position)
            text = torch.stack(read) if read else frozen.guidance[None][:0]
            last = tiny.images(9, ours, kind, seed=9)
            question = Question(method, params, text, last, tokens, frozen)
            see("logits", answer(ours.towers(method.reads), question), reference)
        print(f"{method.name}, {precision}: " + ", ".join(f"{what} {size:.1e}" for what, size in worst.items()))
        assert max(worst.values()) < TOLERANCE[precision], dict(worst)
