"""A small federation, round by round, with the figures and pictures that the page shows.

Letters: N clients, C classes, D feature width.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import torch

from fedpgp.backbone import Backbone
from fedpgp.backbone.text import TextEncoder
from fedpgp.demo.prompts import Plane, Words, cosines, offsets
from fedpgp.demo.stage import MIXTURES, Choices, DemoSetup
from fedpgp.federation.client_runner import frozen_of
from fedpgp.federation.rounds import federate
from fedpgp.federation.state import State
from fedpgp.methods import Params
from fedpgp.methods.fedpgp import FedPGP
from fedpgp.methods.zero_shot import ZeroShot
from fedpgp.runs.setup import OpenRun
from fedpgp.serving.classifier import Classifier

FIGURES = ("local", "base", "novel")
SHOWN = 12  # pictures shown of a client

Models = Mapping[str, Classifier]  # "zero-shot", "global", "client 1" … "client N" -> classifier


@dataclass(frozen=True)
class Moment:
    """A federation after a round, or before the first one.

    Attributes
    ----------
    view
        The figures for the page, in JSON's types.
    models
        The classifiers after this round.
    """

    view: dict[str, Any]
    models: Models


def holdings(stage: DemoSetup, choices: Choices) -> dict[str, Any]:
    """Return the data of each client, in JSON's types: its classes, most frequent first, and some of its pictures.

    There are no pictures if only their features are on this machine.
    """
    task = stage.task(choices)
    labels, names = task.train.labels, task.class_names
    clients = []
    for client in task.clients:
        counts = np.bincount(labels[client.train], minlength=len(names))
        held = [label for label in np.argsort(-counts, kind="stable") if counts[label]]
        of_class = [client.train[labels[client.train] == label].tolist() for label in held]
        in_turn = [image for turn in zip_longest(*of_class) for image in turn if image is not None]
        shown = in_turn[:SHOWN] if stage.has_images else []
        clients.append(
            {
                "classes": [[names[label], int(counts[label])] for label in held],
                "examples": len(client.train),
                "pictures": [[image, names[labels[image]]] for image in shown],
            }
        )
    mixture = MIXTURES[choices.heterogeneity]
    return {"title": mixture.title, "about": mixture.about, "clients": clients}


def zero_shot(stage: DemoSetup) -> Classifier:
    """Return the classifier of CLIP without training."""
    return Classifier(
        ZeroShot(), Params({}, {}), _separate_copy(stage.backbone), stage.source.class_names, ("a photo of a {}.",)
    )


def untrained(stage: DemoSetup, choices: Choices) -> dict[str, Any]:
    """Return the figures of zero-shot CLIP: the means, and Local of every client."""
    with stage.open(choices, ZeroShot.name) as run, State.create() as state:
        (record,) = federate(run.runner, run.workers, state)
        return _figures(record) | {"clients": state.evaluation().clients["local"].tolist()}


def rounds(stage: DemoSetup, choices: Choices, stop: threading.Event) -> Iterator[Moment]:
    """Train FedPGP and yield the state of the federation before the first round and after each round.

    Training ends early, after the current round, when `stop` is set.
    """
    with stage.open(choices, FedPGP.name) as run, State.create() as state:
        view_of = _RoundView(run, state)
        yield view_of({"round": 0}, [])
        for record in federate(run.runner, run.workers, state):
            figures = _figures(record) | {
                "round": record["round"],
                "shared": _figures(record["shared"]),
                "seconds": record["seconds_training"] + record["seconds_evaluation"],
                "bytes_up": record["bytes_up"],
            }
            yield view_of(figures, state.evaluation().clients["local"].tolist())
            if stop.is_set():
                return


class _RoundView:
    """Computes the view of a round. It stores the prompts' positions of earlier rounds for the trails on the map."""

    def __init__(self, run: OpenRun, state: State):
        self._run, self._state = run, state
        self._reading, self._words = _separate_copy(run.backbone), Words(run.backbone)
        self._base = tuple(run.task.class_names[label] for label in run.task.base)
        self._tokens = run.backbone.class_tokens(self._base, run.method.tail)
        self._guidance = frozen_of(run.method, run.task, run.backbone).select(run.task.base).guidance
        self._plane: Plane | None = None
        self._trail: list[torch.Tensor] = []

    @torch.no_grad()
    def __call__(self, figures: dict[str, Any], local: Sequence[float]) -> Moment:
        run = self._run
        server = self._state.server() or run.spec.begin()
        clients = [Params(server.shared, own.private, server.shared) for own in run.spec.states(self._state.client)]
        p_G = server.shared["p_G"]
        prompts = torch.stack([p_G, *(p_G + client.private["U"] @ client.private["V"] for client in clients)])
        text = run.backbone.text(prompts, self._tokens, run.method.position)
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
        shared = run.method.without_private(clients[0])
        assert shared is not None, "FedPGP's shared part predicts by itself"
        models = {"global": self._model(shared)}
        return Moment(view, models | {f"client {i + 1}": self._model(own, i) for i, own in enumerate(clients)})

    def _model(self, params: Params, client: int | None = None) -> Classifier:
        return Classifier(self._run.method, params, self._reading, self._base, self._run.task.templates, client)


def _figures(record: Mapping[str, float]) -> dict[str, Any]:
    return {name: record[name] for name in FIGURES}


def _separate_copy(backbone: Backbone) -> Backbone:
    """Return the same CLIP with a separate cache of class names: classification and training use different threads."""
    text = backbone.text
    return replace(backbone, text=replace(text, _prepared={})) if isinstance(text, TextEncoder) else backbone
