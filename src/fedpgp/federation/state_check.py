"""Check that the state of an unfinished run fits the run, before any work. Others may have written its file."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpgp.errors import OutputError
from fedpgp.evaluation.evaluator import Evaluation
from fedpgp.federation.run_spec import RunSpec
from fedpgp.federation.state import ClientState, State
from fedpgp.runtime import limits
from fedpgp.runtime.tensor_files import check_tensors

REMEDY = "Start the run again, with another -o or with --force"
OPTIMIZERS = dict.fromkeys(("adam", "adamw"), ("step", "exp_avg", "exp_avg_sq"))  # keys of their states


def check_state(spec: RunSpec, state: State) -> None:
    """Check the records, the tensors and the last evaluation of a run that has finished rounds.

    Parameters
    ----------
    spec
        The specification of the run.
    state
        Its state.

    Raises
    ------
    OutputError
        The state does not fit.
    """
    records = state.records()
    if not records:
        return
    numbers, expected = [record["round"] for record in records], [*spec.rounds[: len(records)]]
    if numbers != expected:
        raise _fault("the numbers of the finished rounds", f"{expected[:5]} and so on", numbers[:5])
    clients = {client for record in records for client in (*record["participants"], *record.get("evaluated", ()))}
    if clients and not 0 <= min(clients) <= max(clients) < spec.clients:
        raise _fault("the clients of the finished rounds", f"from 0 to {spec.clients - 1}", sorted(clients)[-5:])
    server = state.server()
    if server is None:
        raise _fault("the server", "in the state after a finished round", "nothing")
    begun = spec.begin()
    _check(server.shared, begun.shared, "the shared part of the server")
    _check(server.memory, begun.memory, "the memory of the server")
    for client in sorted(clients):
        kept = state.client(client)
        if kept is not None:
            _check_client(spec, kept, client)
    if len(records) == len(spec.rounds):
        _check_evaluation(spec, state.evaluation(), len(records[-1].get("evaluated", range(spec.clients))))


def _check_client(spec: RunSpec, kept: ClientState, client: int) -> None:
    first, whose = spec.first(client), f"of client {client}"
    _check(kept.private, first.private, f"the private part {whose}")
    _check(kept.control, first.control, f"the tensors of the aggregator {whose}")
    if kept.kept:
        _check(kept.kept, spec.shared, f"the shared part {whose}")
    training = spec.training(1)
    keys = OPTIMIZERS.get(training.optimizer, ("momentum_buffer",) if training.momentum else ())
    trained = {**spec.shared, **first.private}
    known = {f"{key}/{name}": torch.zeros(()) if key == "step" else x for name, x in trained.items() for key in keys}
    names = {name.partition("/")[2] for name in kept.optimizer}
    expected = {name: like for name, like in known.items() if name.partition("/")[2] in names}
    _check(kept.optimizer, expected, f"the state of the optimizer {whose}")


def _check_evaluation(spec: RunSpec, last: Evaluation, clients: int) -> None:
    images, names = spec.images, {"local", *spec.tests, "validation_local", "validation_base"}
    for alpha, point in {**last.path, 1.0: last}.items():
        place = f"the last evaluation at alpha {alpha:g}"
        if not 0 <= alpha <= 1:
            raise _fault("alpha of the last evaluation", "from 0 to 1", alpha)
        if point.clients.keys() != names:
            raise _fault(f"the accuracies of {place}", f"{sorted(names)}", sorted(point.clients))
        for values in point.clients.values():
            if values.shape != (clients,) or not (values >= 0).all() or not (values <= limits.PERCENT).all():
                raise _fault(f"the accuracies of {place}", f"{clients} percentages for each test set", values.shape)
        tested = {name: (clients, -(-count // 8)) for name, count in images.items()} if point.correct else {}
        _check_arrays(point.correct, tested, "u1", f"the correct answers of {place}")
    tested = {name: (clients, count) for name, count in images.items()} if last.predicted else {}
    _check_arrays(last.predicted, tested, "i2", "the answers of the last evaluation")
    _check_arrays(last.confidence, tested, "f2", "the probabilities of the last evaluation")
    for figures in (last.shared or {}, last.diagnostics):
        for name, value in figures.items():
            if type(value) not in (int, float) or not abs(value) <= limits.NUMBER:
                raise _fault(f"{name} of the last evaluation", "a finite number", value)


def _check_arrays(
    arrays: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]], kind: str, place: str
) -> None:
    found = {name: (array.dtype.str[1:], array.shape) for name, array in arrays.items()}
    if found != {name: (kind, shape) for name, shape in shapes.items()}:
        raise _fault(place, f"arrays of type {kind} with the shapes {dict(shapes)}", found)
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise _fault(place, "finite numbers", "nan or inf")


def _check(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor], place: str) -> None:
    check_tensors(tensors, like, f"the state of the run: {place}", REMEDY)


def _fault(what: str, allowed: str, got: object) -> OutputError:
    return OutputError(where=f"the state of the run: {what}", allowed=allowed, got=got, remedy=REMEDY)
