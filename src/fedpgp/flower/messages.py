"""The messages of a federation, as Flower's records. Nothing else crosses the network.

The server sends shared parts and an aggregator's control variates. A client sends the same, and its number of training
examples, losses and accuracies. Private parts, features, images and labels are never sent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor

from fedpgp.aggregators import Download, Tensors
from fedpgp.backbone import Backbone
from fedpgp.data.tasks import Task
from fedpgp.evaluation.evaluator import Evaluation, Point
from fedpgp.evaluation.metrics import summary
from fedpgp.federation.client import ClientUpdate
from fedpgp.flower.client_app import ABOUT, CONTROL, LOSSES, SHARED
from fedpgp.flower.update_validation import Refused, arrays, check_round, facts, figures, line, read_any
from fedpgp.runtime.version import __version__

FIGURES, CORRECT, DIAGNOSTICS, ALONE = "figures", "correct", "diagnostics", "alone"
PREDICTED, CONFIDENCE = "predicted", "confidence"
FAULT = "fault"  # the record that replaces a reply: the reason why there is none, as text

Rows = Mapping[str, NDArray[Any]]  # test set -> one row for each client


def terms_of(backbone: Backbone, task: Task) -> dict[str, Any]:
    """Return what the server and the clients must have in common: fedpgp's version, the checkpoint, the class names."""
    return {"fedpgp": __version__, "checkpoint": backbone.fingerprint, "classes": list(task.class_names)}


def check_terms(content: RecordDict, node: Mapping[str, Any]) -> None:
    """Raise Refused if a node's terms differ from the terms in the server's message; the reason is the difference."""
    fedpgp, checkpoint, classes = facts(content, fedpgp=str, checkpoint=str, classes=list)
    if fedpgp != node["fedpgp"]:
        raise Refused(
            f"the node has fedpgp {node['fedpgp']}, but the server has {line(fedpgp)}",
            where="the version of fedpgp",
            remedy="Install the same version on both",
        )
    if checkpoint != node["checkpoint"]:
        raise Refused(
            "the node's checkpoint differs from the server's (their fingerprints are not equal)",
            where="backbone.checkpoint",
            remedy="Use the same files on both",
        )
    if classes != node["classes"]:
        here, there = {*node["classes"]}, {*map(str, classes)}
        lists = (("only the node has", sorted(here - there)), ("only the server has", sorted(there - here)))
        parts = [f"{who} {', '.join(map(repr, names[:5]))}" for who, names in lists if names]
        raise Refused(
            f"the node's class names differ from the server's: {'; '.join(parts) or 'their order is different'}",
            where="the class names",
            remedy="Use the same class names in the same order on both",
        )


@dataclass(frozen=True)
class Request:
    """A request to a client to train or to evaluate.

    Attributes
    ----------
    run
        Id of the run.
    number
        Number of the round.
    counted
        The client's last round that counts.
    download
        What the client receives.
    alone
        In an evaluation: the tensors of the server's shared part that differ from what this client receives.
    alphas
        In an evaluation: the values of alpha, see `Evaluator`. Empty for training.
    """

    run: str
    number: int
    counted: int
    download: Download
    alone: Tensors = field(default_factory=dict)
    alphas: tuple[float, ...] = ()

    def content(self) -> RecordDict:
        """Return the message with this request."""
        about: dict[str, Any] = {"run": self.run, "round": self.number, "counted": self.counted}
        about |= self.download.figures
        if self.alphas:
            about["alphas"] = list(self.alphas)
        content = RecordDict({SHARED: arrays(self.download.shared), ABOUT: ConfigRecord(about)})
        for name, tensors in ((CONTROL, self.download.control), (ALONE, self.alone)):
            if tensors:
                content[name] = arrays(tensors)
        return content

    @classmethod
    def of(cls, content: RecordDict, device: torch.device) -> "Request":
        """Read a request from a message; raise Refused if the message is not a valid request."""
        run, number, counted = facts(content, run=str, round=int, counted=int)
        alphas = content.config_records[ABOUT].get("alphas", [])
        if not isinstance(alphas, list) or not all(isinstance(alpha, float) for alpha in alphas):
            raise Refused(
                "the server's message has values that are not numbers",
                where="alphas",
                remedy="Install the same version of fedpgp on the server and on its nodes",
            )
        shared, control, alone = (
            {name: tensor.to(device) for name, tensor in _tensors(content, record).items()}
            for record in (SHARED, CONTROL, ALONE)
        )
        return cls(run, number, counted, Download(shared, control), alone, tuple(map(float, alphas)))


def trained(request: Request, update: ClientUpdate, after: int, sends: bool) -> RecordDict:
    """Return a client's reply to training.

    Parameters
    ----------
    request
        The server's request.
    update
        The result of the training.
    after
        The round from whose private part the client continued.
    sends
        Whether the reply includes the shared part.
    """
    upload = update.upload
    about: dict[str, Any] = {"run": request.run, "round": request.number, "examples": upload.examples, "after": after}
    content = RecordDict({ABOUT: ConfigRecord(about), LOSSES: _figures(update.losses)})
    content[SHARED] = arrays(upload.shared if sends else {})
    if sends and upload.control:
        content[CONTROL] = arrays(upload.control)
    return content


def evaluated(request: Request, evaluation: Evaluation, outcomes: bool) -> RecordDict:
    """Return a client's reply to evaluation.

    Parameters
    ----------
    request
        The server's request.
    evaluation
        The result of the evaluation.
    outcomes
        Whether the reply tells which images the client classified correctly. Another machine must not learn this.
    """
    content = RecordDict({ABOUT: ConfigRecord({"run": request.run, "round": request.number})})
    content[DIAGNOSTICS] = _figures(evaluation.diagnostics)
    if evaluation.shared is not None:
        content[SHARED] = _figures(evaluation.shared)
    by_image: dict[str, Rows] = {PREDICTED: evaluation.predicted, CONFIDENCE: evaluation.confidence}
    for alpha, point in {**evaluation.path, 1.0: evaluation}.items():
        content[f"{FIGURES}/{alpha!r}"] = _figures({name: values[0] for name, values in point.clients.items()})
        by_image[f"{CORRECT}/{alpha!r}"] = point.correct
    if outcomes:
        for record, rows in by_image.items():
            content[record] = ArrayRecord({name: Array(values) for name, values in rows.items()})
    return content


def evaluation(content: RecordDict, request: Request, names: Sequence[str], outcomes: bool) -> Evaluation:
    """Read the reply that `evaluated` wrote.

    Parameters
    ----------
    content
        The reply.
    request
        The server's request.
    names
        Names of the expected figures.
    outcomes
        Whether to read which images the client classified correctly. The server does so only if all clients belong to
        one party.

    Raises
    ------
    Refused
        If the reply is not an evaluation of this round with these figures.
    """
    check_round(content.config_records.get(ABOUT, {}), request.run, request.number)
    points = {}
    for alpha in request.alphas:
        accuracies = figures(content, f"{FIGURES}/{alpha!r}", names)
        if not all(0 <= accuracy <= 100 for accuracy in accuracies.values()):
            raise Refused("the accuracies are not all from 0 to 100", where=f"alpha {alpha}")
        points[alpha] = Point(
            {name: np.array([accuracy]) for name, accuracy in accuracies.items()},
            _rows(content, f"{CORRECT}/{alpha!r}") if outcomes else {},
        )
    own = points.pop(1.0)
    return Evaluation(
        clients=own.clients,
        correct=own.correct,
        shared=figures(content, SHARED, summary(own.clients)) if SHARED in content else None,
        diagnostics=figures(content, DIAGNOSTICS),
        path=points,
        predicted=_rows(content, PREDICTED) if outcomes else {},
        confidence=_rows(content, CONFIDENCE) if outcomes else {},
    )


def together(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Combine evaluations of one client each into the evaluation that all clients would have had at once."""

    def joined(parts: Sequence[Rows]) -> Rows:
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    own = Point.joined(evaluations)
    shared = [evaluation.shared for evaluation in evaluations if evaluation.shared is not None]
    # A client with a single point has its own model at every alpha.
    alphas = sorted({alpha for evaluation in evaluations for alpha in evaluation.path})
    diagnostics = [evaluation.diagnostics for evaluation in evaluations]
    return Evaluation(
        clients=own.clients,
        correct=own.correct,
        shared=summary({name: [means[name] for means in shared] for name in own.clients}) if shared else None,
        diagnostics={name: fmean(each[name] for each in diagnostics) for name in diagnostics[0]},
        path={alpha: Point.joined([each.path.get(alpha, each) for each in evaluations]) for alpha in alphas},
        predicted=joined([each.predicted for each in evaluations]),
        confidence=joined([each.confidence for each in evaluations]),
    )


def _tensors(content: RecordDict, record: str) -> dict[str, Tensor]:
    return read_any(content.array_records.get(record, ArrayRecord()))


def _rows(content: RecordDict, record: str) -> Rows:
    return {name: tensor.numpy() for name, tensor in _tensors(content, record).items()}


def _figures(values: Mapping[str, float]) -> MetricRecord:
    return MetricRecord({name: float(value) for name, value in values.items()})
