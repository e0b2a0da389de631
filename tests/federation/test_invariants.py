"""What must hold for every method with any aggregator, participation and seed."""

import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from test_federation import recorded

from fedpgp.methods import METHODS


def rows(tensors) -> list[bytes]:
    """The bytes of every row of some tensors that could tell something."""
    found = [
        row for tensor in tensors.values() if tensor.is_floating_point() for row in tensor.reshape(-1, tensor.shape[-1])
    ]
    return [row.contiguous().numpy().tobytes() for row in found if len(row) > 1 and row.count_nonzero()]


@given(
    name=st.sampled_from([name for name in METHODS if name != "zero-shot"]),
    aggregator=st.sampled_from(tiny.AGGREGATORS),
    participation=st.sampled_from([0.34, 0.67, 1.0]),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=30)
def test_nothing_private_is_in_the_bytes_that_leave_a_client(name, aggregator, participation, seed, backbone):
    method = tiny.small(METHODS[name])
    own_server = method.own_aggregator(rounds=2) is not None or method.pooled
    _, trained = recorded(
        backbone,
        method,
        rounds=2,
        local_epochs=1,
        seed=seed,
        participation=participation,
        aggregator=None if own_server else aggregator,
    )
    assert trained
    for job, update in trained:
        sent = save(
            {f"{k}/{n}": t.contiguous() for k in ("shared", "control") for n, t in getattr(update.upload, k).items()}
        )
        own = {**job.own.private, **update.own.private}
        memory = {f"memory/{n}": t for n, t in job.params.memory.items()}
        for row in rows({**own, **memory, "images": job.images.pooled}):
            assert row not in sent
        assert update.upload.shared.keys() == method.init_shared(tiny.task(), backbone, torch.Generator()).keys()
