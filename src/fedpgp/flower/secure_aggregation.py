"""A round of SecAgg+ (Bell et al. 2020) with Flower's own protocol, which exists only for Flower's older API.

The server receives masked integers from each client and learns only their sum. The clients' integers are their changes
of the shared part, clipped to ± `value_range`, quantized in 2²² steps and weighted with w ≤ 1. For m clients with the
weights w_i, the error of the mean is therefore at most 2 m · 2 `value_range` / 2²² / Σ w_i.
"""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common import FitIns, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key
from flwr.compat.common.recorddict_compat import parameters_to_arrayrecord
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import WorkflowState

from fedpgp.aggregators import Tensors
from fedpgp.errors import TooFewError
from fedpgp.federation.settings import PrivacyConfig
from fedpgp.flower.update_validation import MASKED, is_array

FEWEST, MOST = 3, 1000  # clients in a round: of two, each can compute the other's update; more may overflow 32 bits
STEPS = 1 << 22
EVERY_ROUND = "Read the logs of the nodes if this happens in every round"

Send = Callable[[Sequence[Message]], Sequence[Message]]
Facts = Mapping[int, Mapping[str, Any]]  # node -> the values that it sends in the clear, in addition to its update


def secure_sum(
    send: Send,
    number: int,
    contents: Mapping[int, RecordDict],
    received: Tensors,
    privacy: PrivacyConfig,
    most_examples: float,
) -> tuple[Tensors, Facts]:
    """Run one round of secure aggregation.

    Parameters
    ----------
    send
        Sends messages and returns the replies that arrive in time.
    number
        Number of the round.
    contents
        Messages by node.
    received
        The shared part that the clients received.
    privacy
        The section [privacy] of the config.
    most_examples
        Number of examples of a client with weight 1.

    Returns
    -------
    tuple[Tensors, Facts]
        The weighted mean of the changes, and the facts of the clients in it.

    Raises
    ------
    TooFewError
        If there are too few valid replies to compute a sum.
    """
    if not FEWEST <= len(contents) <= MOST:
        raise TooFewError(
            where="the number of clients in a round of secure aggregation",
            allowed=f"{FEWEST} to {MOST}",
            got=len(contents),
            remedy="Use --set privacy.secure_aggregation=false, or change --set federation.participation=…",
        )
    workflow = SecAggPlusWorkflow(
        num_shares=float(privacy.shares),
        reconstruction_threshold=float(privacy.threshold),
        max_weight=most_examples,
        clipping_range=privacy.value_range,
        quantization_range=STEPS,
    )
    nothing = ndarrays_to_parameters([])
    taking_part = [(SimpleNamespace(node_id=node), FitIns(nothing, {})) for node in contents]
    # The workflow uses only these two functions of a strategy: the clients of the round, and the result of the sum. The
    # result is read from the state below.
    strategy: Any = SimpleNamespace(configure_fit=lambda *_: taking_part, aggregate_fit=lambda *_: (None, {}))
    context = LegacyContext(Context(0, 0, {}, RecordDict(), {}), strategy=strategy)
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: number})
    context.state.array_records[MAIN_PARAMS_RECORD] = parameters_to_arrayrecord(nothing, True)
    names = sorted(received)
    shapes = [(1,), *(tuple(received[name].shape) for name in names)]

    def exchange(messages: Sequence[Message], timeout: float | None) -> Sequence[Message]:
        """Exchange messages, and ignore replies whose masked numbers have another form."""
        return [reply for reply in send(list(messages)) if reply.has_error() or _fits(reply.content, shapes)]

    grid: Any = SimpleNamespace(send_and_receive=exchange)
    state = WorkflowState()
    before_keys = workflow.setup_stage, workflow.share_keys_stage
    try:
        for stage in (*before_keys, workflow.collect_masked_vectors_stage, workflow.unmask_stage):
            if not stage(grid, context, state):
                raise _too_few(stage.__name__.removesuffix("_stage").replace("_", " "))
            if stage in before_keys:
                _forget_absent(state)
                state.nid_to_fitins = dict(contents)  # our own messages instead of the older API's
    except TooFewError:
        raise
    except Exception as error:  # a client's reply can cause any exception in Flower's code
        raise TooFewError(
            f"a client's reply ended secure aggregation with {type(error).__name__}", remedy=EVERY_ROUND
        ) from error
    if not state.legacy_results:
        raise _too_few("unmask")
    means = parameters_to_ndarrays(state.legacy_results[0][1].parameters)
    change = {
        name: torch.from_numpy(np.asarray(mean, dtype=np.float64)).reshape(received[name].shape).to(received[name])
        for name, mean in zip(names, means, strict=True)
    }
    # A wrong masked vector or share turns the sum into noise, whose values are too large.
    if not all(value.isfinite().all() and value.abs().max() <= privacy.value_range * 1.01 for value in change.values()):
        raise TooFewError(
            f"the sum of secure aggregation is not within ± {privacy.value_range:g}, so a client sent no valid update",
            remedy=EVERY_ROUND,
        )
    return change, {proxy.node_id: dict(result.metrics) for proxy, result in state.legacy_results}


def _forget_absent(state: WorkflowState) -> None:
    """Remove clients that left before any other client had a share of their keys: Flower would ask for such shares."""
    here = set(state.active_node_ids)
    state.sampled_node_ids = here
    state.nid_to_neighbours = {node: state.nid_to_neighbours[node] & here for node in here}


def _too_few(stage: str) -> TooFewError:
    return TooFewError(f"too few clients were left for secure aggregation in the stage {stage!r}", remedy=EVERY_ROUND)


def _fits(content: RecordDict, shapes: Sequence[tuple[int, ...]]) -> bool:
    masked = content.config_records.get(RECORD_KEY_CONFIGS, ConfigRecord()).get(Key.MASKED_PARAMETERS)
    if masked is None:
        return True
    if not isinstance(masked, list) or len(masked) != len(shapes):
        return False
    return all(is_array(array, MASKED, shape) for array, shape in zip(masked, shapes, strict=True))
