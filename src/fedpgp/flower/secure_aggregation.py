"""A round of SecAgg+ (Bell et al. 2020) by Flower's own protocol, which exists for its older API alone.

The server gets masked integers from each client, and of them the sum. What is summed are changes of the shared part,
cut to ± `value_range` and quantised in 2²² steps, each weighted by w ≤ 1: so of m clients with the weights w_i the mean
is off by at most 2 m · 2 `value_range` / 2²² / Σ w_i.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common import FitIns, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key
from flwr.compat.common.recorddict_compat import parameters_to_arrayrecord
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.strategy import Strategy
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import WorkflowState

from fedpgp.aggregators import Tensors
from fedpgp.errors import TooFewError
from fedpgp.flower.update_validation import MASKED, is_array

FEWEST, MOST = 3, 1000  # clients of a round: with two each knows the other's update; more may overflow 32 bits
STEPS = 1 << 22

Send = Callable[[Sequence[Message]], Sequence[Message]]


@dataclass(frozen=True)
class SecureSum:
    """What the server gets to know.

    change: the weighted mean; facts: by node that is in it, what it says beside, in the clear.
    """

    change: Tensors
    facts: Mapping[int, Mapping[str, Any]]


def secure_sum(
    send: Send,
    number: int,
    contents: Mapping[int, RecordDict],
    received: Tensors,
    shares: float,
    threshold: float,
    value_range: float,
    most_examples: float,
) -> SecureSum:
    """One round with the nodes that are sent something.

    send: sends messages and gives the replies that came in time. most_examples: what has the weight 1. Raises
    TooFewError where so few answer, or answer so wrongly, that nothing can be summed.
    """
    if not FEWEST <= len(contents) <= MOST:
        raise TooFewError(
            f"secure aggregation needs {FEWEST} to {MOST} clients in a round, got {len(contents)}: change"
            " task.clients or federation.participation, or take privacy.secure_aggregation=false"
        )
    names = sorted(received)
    workflow = SecAggPlusWorkflow(
        num_shares=float(shares),
        reconstruction_threshold=float(threshold),
        max_weight=most_examples,
        clipping_range=value_range,
        quantization_range=STEPS,
    )
    strategy = _Strategy(list(contents))
    context = LegacyContext(Context(0, 0, {}, RecordDict(), {}), strategy=strategy)
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: number})
    context.state.array_records[MAIN_PARAMS_RECORD] = parameters_to_arrayrecord(ndarrays_to_parameters([]), True)
    grid: Any = _Grid(send, [tuple(received[name].shape) for name in names])
    state = WorkflowState()
    try:
        if not workflow.setup_stage(grid, context, state):
            raise _too_few("setup")
        _forget_absent(state)
        state.nid_to_fitins = dict(contents)  # our own message in the place of the older API's
        if not workflow.share_keys_stage(grid, context, state):
            raise _too_few("share keys")
        _forget_absent(state)
        for stage in (workflow.collect_masked_vectors_stage, workflow.unmask_stage):
            if not stage(grid, context, state):
                raise _too_few(stage.__name__.removesuffix("_stage").replace("_", " "))
    except TooFewError:
        raise
    except Exception as error:  # whatever a client's reply makes of Flower's code
        raise TooFewError(f"a client's reply broke off secure aggregation: {type(error).__name__}") from error
    return _summed(strategy, names, received, value_range)


def _forget_absent(state: WorkflowState) -> None:
    """Leaves out who is gone before anybody has a share of its key: Flower would ask for it, and nobody has it."""
    here = set(state.active_node_ids)
    state.sampled_node_ids = here
    state.nid_to_neighbours = {node: state.nid_to_neighbours[node] & here for node in here}


def _too_few(stage: str) -> TooFewError:
    return TooFewError(f"too few clients were left for secure aggregation in its stage {stage!r}")


def _summed(strategy: "_Strategy", names: Sequence[str], received: Tensors, value_range: float) -> SecureSum:
    facts = {proxy.node_id: dict(result.metrics) for proxy, result in strategy.results}
    if not strategy.results:
        raise _too_few("unmask")
    arrays = parameters_to_ndarrays(strategy.results[0][1].parameters)
    change = {
        name: torch.from_numpy(np.asarray(array, dtype=np.float64)).reshape(received[name].shape).to(received[name])
        for name, array in zip(names, arrays, strict=True)
    }
    # A masked vector or a share that is not what it should be makes noise of the sum, which is seen by its size.
    if not all(value.isfinite().all() and value.abs().max() <= value_range * 1.01 for value in change.values()):
        raise TooFewError(
            f"the sum of secure aggregation is not within ± {value_range:g}: a client sent what is no update"
        )
    return SecureSum(change, facts)


class _Strategy(Strategy):
    """Says to the workflow who takes part, and hears what comes of it."""

    def __init__(self, nodes: Sequence[int]):
        self._nodes = nodes
        self.results: list[tuple[Any, Any]] = []

    def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        empty = FitIns(ndarrays_to_parameters([]), {})
        return [(SimpleNamespace(node_id=node), empty) for node in self._nodes]

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        self.results = results
        return None, {}

    def initialize_parameters(self, client_manager: Any) -> Any:
        return None

    def configure_evaluate(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        return []

    def aggregate_evaluate(self, server_round: int, results: Any, failures: Any) -> Any:
        return None, {}

    def evaluate(self, server_round: int, parameters: Any) -> Any:
        return None


class _Grid:
    """What the workflow sends with; a reply whose masked numbers have another form is as if it had never come."""

    def __init__(self, send: Send, shapes: Sequence[tuple[int, ...]]):
        self._send, self._shapes = send, [(1,), *shapes]

    def send_and_receive(self, messages: Sequence[Message], *, timeout: float | None = None) -> Sequence[Message]:
        return [reply for reply in self._send(list(messages)) if reply.has_error() or self._fits(reply.content)]

    def _fits(self, content: RecordDict) -> bool:
        found = content.config_records.get(RECORD_KEY_CONFIGS, ConfigRecord()).get(Key.MASKED_PARAMETERS)
        if found is None:
            return True
        if not isinstance(found, list) or len(found) != len(self._shapes):
            return False
        pairs = zip(found, self._shapes, strict=True)
        return all(isinstance(one, bytes) and is_array(one, MASKED, shape) for one, shape in pairs)


def quantisation_bound(clients: int, value_range: float, weights: Sequence[float]) -> float:
    """By how much a number of the mean may be off. weights: w_i, at most 1."""
    return 2 * clients * 2 * value_range / STEPS / math.fsum(weights)
