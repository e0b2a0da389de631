"""A small federation, round by round, with what there is to see of each.

Letters: N clients, C classes, D feature width.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fedpgp.backbone import Backbone
from fedpgp.data.tasks import Task
from fedpgp.demo.prompts import Plane, Words, cosines, offsets
from fedpgp.demo.stage import MIXTURES, Choices, DemoSetup
from fedpgp.federation.client_runner import ClientRunner, frozen_of
from fedpgp.federation.rounds import federate
from fedpgp.federation.run_spec import RunSpec
from fedpgp.federation.state import State
from fedpgp.methods import Params
from fedpgp.methods.fedpgp import FedPGP
from fedpgp.methods.zero_shot import ZeroShot
from fedpgp.runtime.workers import Workers
from fedpgp.serving.classifier import Classifier

FIGURES = ("local", "base", "novel")
SHOWN = 12  # pictures of a client

Models = Mapping[str, Classifier]  # "zero-shot", "global", "client 1" … "client N" -> what classifies so


@dataclass(frozen=True)
class Moment:
    """A federation after a round, or before the first. view: in JSON's types; models: as they are now."""

    view: dict[str, Any]
    models: Models


def holdings(stage: DemoSetup, choices: Choices) -> dict[str, Any]:
    """Who holds what, in JSON's types: of each client its classes, most frequent first, and some of its pictures."""
    task = stage.task(choices)
    labels, names = task.train.labels, task.class_names
    clients = []
    for client in task.clients:
        counts = np.bincount(labels[client.train], minlength=len(names))
        clients.append(
            {
                "classes": [
                    [names[label], int(counts[label])] for label in np.argsort(-counts, kind="stable") if counts[label]
                ],
                "examples": len(client.train),
                "pictures": [[i, names[labels[i]]] for i in stage.pictures(task, client, SHOWN)],
            }
        )
    mixture = MIXTURES[choices.heterogeneity]
    return {"title": mixture.title, "about": mixture.about, "clients": clients}


def zero_shot(stage: DemoSetup) -> Classifier:
    """The CLIP as it is."""
    return Classifier(
        ZeroShot(), Params({}, {}), _apart(stage.backbone), stage.source.class_names, ("a photo of a {}.",)
    )


def untrained(stage: DemoSetup, choices: Choices) -> dict[str, Any]:
    """Zero-shot CLIP's figures: means, and every client's Local."""
    config, method = choices.config(), ZeroShot()
    data = stage.data(stage.task(choices))
    with Workers(stage.backbone.towers(method.reads), 1) as workers, State.create() as state:
        spec = RunSpec(method, data.task, stage.backbone, config.federation, choices.seed)
        (record,) = federate(ClientRunner(spec, data), workers, state)
        return _figures(record) | {"clients": state.evaluation().clients["local"].tolist()}


def rounds(stage: DemoSetup, choices: Choices, stop: threading.Event) -> Iterator[Moment]:
    """Trains FedPGP on the embedded data and yields how it stands before the first round and after each.

    It ends early, between two rounds, when `stop` is set.
    """
    config, task = choices.config(), stage.task(choices)
    method = config.methods[FedPGP.name]
    assert isinstance(method, FedPGP)
    look = _Look(stage, method, task)
    with Workers(stage.backbone.towers(method.reads), 1) as workers, State.create() as state:
        spec = RunSpec(method, task, stage.backbone, config.federation, choices.seed)
        yield look({"round": 0}, [], spec, state)
        for record in federate(ClientRunner(spec, stage.data(task)), workers, state):
            figures = _figures(record) | {
                "round": record["round"],
                "shared": _figures(record["shared"]),
                "seconds": record["seconds_training"] + record["seconds_evaluation"],
                "bytes_up": record["bytes_up"],
            }
            yield look(figures, state.evaluation().clients["local"].tolist(), spec, state)
            if stop.is_set():
                return


class _Look:
    """What there is to see of the prompts; it remembers the rounds before, for the trails on the map."""

    def __init__(self, stage: DemoSetup, method: FedPGP, task: Task):
        self._backbone, self._method = stage.backbone, method
        self._reading = _apart(stage.backbone)
        self._base = tuple(task.class_names[label] for label in task.base)
        self._tokens = stage.backbone.class_tokens(self._base, method.tail)
        self._guidance = frozen_of(method, task, stage.backbone).select(task.base).guidance
        self._words = Words(stage.backbone)
        self._templates = task.templates
        self._plane: Plane | None = None
        self._trail: list[torch.Tensor] = []

    @torch.no_grad()
    def __call__(self, figures: dict[str, Any], local: Sequence[float], spec: RunSpec, state: State) -> Moment:
        server, clients = state.server(), spec.states(state.client)
        shared = spec.begin().shared if server is None else server.shared
        privates = [dict(client.private) for client in clients]
        p_G = shared["p_G"]
        prompts = torch.stack([p_G, *(p_G + own["U"] @ own["V"] for own in privates)])
        text = self._backbone.text(prompts, self._tokens, self._method.position)
        away = offsets(text, self._guidance)
        self._plane = Plane.of(away, self._plane)
        self._trail.append(away)
        trail = [self._plane.place(earlier) for earlier in self._trail]
        view = figures | {
            "local_of": list(local),
            "to_guidance": cosines(text, self._guidance),
            "to_global": cosines(text, text[0]),
            "words": [self._words.nearest(prompt) for prompt in prompts],
            "map": {"shown": self._plane.shown, "trails": [list(of_prompt) for of_prompt in zip(*trail, strict=True)]},
        }
        return Moment(view, self._models(shared, privates))

    def _models(self, shared: Mapping[str, Any], privates: Sequence[dict[str, Any]]) -> Models:
        def model(params: Params, client: int | None = None) -> Classifier:
            return Classifier(self._method, params, self._reading, self._base, self._templates, client)

        clients = [Params(shared, private, shared) for private in privates]
        models = {f"client {i + 1}": model(params, i) for i, params in enumerate(clients)}
        return {"global": model(self._method.path(clients[0], 0)), **models}


def _figures(record: Mapping[str, float]) -> dict[str, Any]:
    return {name: record[name] for name in FIGURES}


def _apart(backbone: Backbone) -> Backbone:
    """The same CLIP with a memory of class names of its own: what classifies is another thread than what trains."""
    return replace(backbone, text=replace(backbone.text, _prepared={}))
