"""What crosses the network, as Flower's records; nothing else does.

From the server: shared parts and an aggregator's control variates. From a client: the same, how many examples it
trained on, losses and accuracies. Private parts, features, images and labels never.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedpgp.aggregators import Download, Tensors
from fedpgp.evaluation.evaluator import Evaluation, Point
from fedpgp.evaluation.metrics import summary
from fedpgp.federation.client import ClientUpdate
from fedpgp.flower.update_validation import ABOUT, CONTROL, LOSSES, SHARED, Refused, arrays, excerpt, figures, read_any

FIGURES, CORRECT, DIAGNOSTICS, ALONE = "figures", "correct", "diagnostics", "alone"
PREDICTED, CONFIDENCE = "predicted", "confidence"


@dataclass(frozen=True)
class Request:
    """What a client is asked to do.

    run: the run's id; counted: the last round of this client that counts. Of an evaluation, alone: what of the server's
    shared part is another than is sent to this client; alphas: see `Evaluator`, and empty for training.
    """

    run: str
    number: int
    counted: int
    download: Download
    alone: Tensors = field(default_factory=dict)
    alphas: tuple[float, ...] = ()

    def content(self) -> RecordDict:
        about: dict[str, Any] = {"run": self.run, "round": self.number, "counted": self.counted}
        about |= self.download.figures
        if self.alphas:
            about["alphas"] = list(self.alphas)
        records: dict[str, Any] = {SHARED: arrays(self.download.shared), ABOUT: ConfigRecord(about)}
        records |= {
            name: arrays(tensors)
            for name, tensors in ((CONTROL, self.download.control), (ALONE, self.alone))
            if tensors
        }
        return RecordDict(records)

    @classmethod
    def of(cls, content: RecordDict, device: torch.device) -> "Request":
        """What a message asks; raises Refused where it is no request of ours."""
        try:
            about = content.config_records[ABOUT]
            run, number, counted, alphas = about["run"], about["round"], about["counted"], about.get("alphas", [])
        except KeyError as error:
            raise Refused(
                f"the server's message has no {excerpt(error.args[0])}: is its fedpgp of this version?"
            ) from error
        if not isinstance(run, str) or type(number) is not int or type(counted) is not int:
            raise Refused("the server's message is none of this version of fedpgp")
        if not isinstance(alphas, list) or not all(isinstance(alpha, float) for alpha in alphas):
            raise Refused("the server's message is none of this version of fedpgp")
        shared, control, alone = (
            {name: tensor.to(device) for name, tensor in read_any(content.array_records[record]).items()}
            if record in content.array_records
            else {}
            for record in (SHARED, CONTROL, ALONE)
        )
        return cls(run, number, counted, Download(shared, control), alone, tuple(float(alpha) for alpha in alphas))


def trained(request: Request, update: ClientUpdate, after: int, sends: bool) -> RecordDict:
    """A client's reply to training. after: the round that it went on from; sends: whether its shared part is sent."""
    upload = update.upload
    about: dict[str, Any] = {"run": request.run, "round": request.number}
    about |= {"examples": upload.examples, "after": after}
    records: dict[str, Any] = {
        SHARED: arrays(upload.shared if sends else {}),
        LOSSES: _figures(update.losses),
        ABOUT: ConfigRecord(about),
    }
    if sends and upload.control:
        records[CONTROL] = arrays(upload.control)
    return RecordDict(records)


def evaluated(request: Request, found: Evaluation, outcomes: bool) -> RecordDict:
    """A client's reply to evaluation. outcomes: with which images it got right, as no other machine is to know."""
    content = RecordDict({ABOUT: ConfigRecord({"run": request.run, "round": request.number})})
    for alpha, point in {**found.path, 1.0: found}.items():
        content[f"{FIGURES}/{alpha!r}"] = _figures({name: values[0] for name, values in point.clients.items()})
        if outcomes:
            content[f"{CORRECT}/{alpha!r}"] = ArrayRecord({n: Array(values) for n, values in point.correct.items()})
    if outcomes:
        for kind, arrays_of in ((PREDICTED, found.predicted), (CONFIDENCE, found.confidence)):
            content[kind] = ArrayRecord({name: Array(values) for name, values in arrays_of.items()})
    content[DIAGNOSTICS] = _figures(found.diagnostics)
    if found.shared is not None:
        content[SHARED] = _figures(found.shared)
    return content


def evaluation(content: RecordDict, request: Request, names: Sequence[str]) -> Evaluation:
    """The reverse of `evaluated`; raises Refused for what is no evaluation of this round with these figures."""
    about: Mapping[str, Any] = content.config_records.get(ABOUT, {})
    if about.get("run") != request.run or about.get("round") != request.number:
        raise Refused(f"it answers round {excerpt(about.get('round'))} of run {excerpt(about.get('run'))}")
    points = {}
    for alpha in request.alphas:
        if f"{FIGURES}/{alpha!r}" not in content:
            raise Refused(f"it sent no accuracies at {alpha}")
        accuracies = figures(content[f"{FIGURES}/{alpha!r}"], names)
        if not all(0 <= accuracy <= 100 for accuracy in accuracies.values()):
            raise Refused(f"its accuracies are not percentages: {excerpt(accuracies)}")
        correct = content.array_records.get(f"{CORRECT}/{alpha!r}")
        points[alpha] = Point(
            {name: np.array([accuracy]) for name, accuracy in accuracies.items()},
            {} if correct is None else {name: tensor.numpy() for name, tensor in read_any(correct).items()},
        )
    own = points.pop(1.0)
    shared = figures(content[SHARED]) if SHARED in content else None
    said = {kind: content.array_records[kind] for kind in (PREDICTED, CONFIDENCE) if kind in content.array_records}
    return Evaluation(
        own.clients,
        own.correct,
        shared,
        figures(content.get(DIAGNOSTICS)),
        points,
        **{kind: {name: tensor.numpy() for name, tensor in read_any(found).items()} for kind, found in said.items()},
    )


def together(found: Sequence[Evaluation]) -> Evaluation:
    """Evaluations of one client each -> one of all of them, with the means that one of all at once has."""

    def joined(points: Sequence[Point]) -> Point:
        return Point(
            {name: np.concatenate([one.clients[name] for one in points]) for name in points[0].clients},
            {name: np.concatenate([one.correct[name] for one in points]) for name in points[0].correct},
        )

    own = joined(found)
    shared = [one.shared for one in found if one.shared is not None]
    # A client whose way is one point is at its own model all along it.
    alphas = sorted({alpha for one in found for alpha in one.path})
    return Evaluation(
        clients=own.clients,
        correct=own.correct,
        shared=summary({name: [one[name] for one in shared] for name in own.clients}) if shared else None,
        diagnostics=_means([one.diagnostics for one in found]),
        path={alpha: joined([one.path.get(alpha, one) for one in found]) for alpha in alphas},
        predicted=_rows([one.predicted for one in found]),
        confidence=_rows([one.confidence for one in found]),
    )


def _rows(found: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def _figures(found: Mapping[str, float]) -> MetricRecord:
    return MetricRecord({name: float(figure) for name, figure in found.items()})


def _means(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: fmean(one[name] for one in found) for name in found[0]}
