"""Aggregators, compared with the formulas of their papers, and properties that all of them have."""

import math

import agreement
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import aggregators as oracle

from fedpgp.aggregators import (
    AGGREGATORS,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedDyn,
    FedYogi,
    Median,
    Scaffold,
    Server,
    TrimmedMean,
    Upload,
)
from fedpgp.errors import ConfigError
from fedpgp.methods import FedPGP, Local, PromptFL

METHOD = PromptFL(**agreement.HYPER)
ALL = tiny.AGGREGATORS

ROWS = st.integers(1, 7).flatmap(
    lambda n: st.tuples(
        st.lists(st.lists(st.floats(-10, 10), min_size=3, max_size=3), min_size=n, max_size=n),
        st.lists(st.integers(1, 50), min_size=n, max_size=n),
    )
)


def label(aggregator):
    return aggregator.name + ("" if getattr(aggregator, "weighting", "examples") == "examples" else "-uniform")


def uploads_of(rows, counts, control=()):
    tensors = [torch.tensor(row, dtype=torch.float64) for row in rows]
    return [
        Upload(i, count, {"p": t}, {name: torch.zeros_like(t) for name in control})
        for i, (t, count) in enumerate(zip(tensors, counts, strict=True))
    ]


def aggregated(aggregator, rows, counts, rounds=1):
    """Return p after `rounds` rounds in which the clients send the same update, from p = (1, −2, 0.5)."""
    server = aggregator.begin({"p": torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)}, len(rows))
    for _ in range(rounds):
        server = aggregator.aggregate(server, uploads_of(rows, counts, ("p",) if aggregator.name == "scaffold" else ()))
    return server.shared["p"].numpy()


# ---------------------------------------------------------------------------------------------------------- by hand


def test_averages_by_hand():
    rows, counts = [[1.0, -2.0, 0.0], [5.0, 2.0, 0.0]], [3, 1]
    assert aggregated(FedAvg(), rows, counts).tolist() == [2.0, -1.0, 0.0]
    assert aggregated(FedAvg(weighting="uniform"), rows, counts).tolist() == [3.0, 0.0, 0.0]


def test_momentum_by_hand():
    """Two rounds from 1 with clients that send 3, then 3: Δ = 2, v = 2, θ = 3; Δ = 0, v = 1.8, θ = 4.8."""
    server = FedAvgM().begin({"p": torch.tensor([1.0])}, 1)
    for expected in (3.0, 4.8):
        server = FedAvgM().aggregate(server, [Upload(0, 5, {"p": torch.tensor([3.0])})])
        assert server.shared["p"].item() == pytest.approx(expected)


def test_adam_by_hand():
    """Δ = 2: m = 0.2, v = 0.99·10⁻⁶ + 0.01·4, θ = 1 + 0.01 · 0.2 / (√v + 0.001)."""
    server = FedAdam().aggregate(
        FedAdam().begin({"p": torch.tensor([1.0])}, 1), [Upload(0, 5, {"p": torch.tensor([3.0])})]
    )
    assert server.shared["p"].item() == pytest.approx(1 + 0.01 * 0.2 / (math.sqrt(0.99e-6 + 0.04) + 1e-3), rel=1e-6)


def test_yogi_by_hand():
    """v = 10⁻⁶ − 0.01 · 4 · sign(10⁻⁶ − 4)."""
    server = FedYogi().aggregate(
        FedYogi().begin({"p": torch.tensor([1.0])}, 1), [Upload(0, 5, {"p": torch.tensor([3.0])})]
    )
    assert server.shared["p"].item() == pytest.approx(1 + 0.01 * 0.2 / (math.sqrt(1e-6 + 0.04) + 1e-3), rel=1e-6)


@given(ROWS)
def test_the_median_is_numpys_and_does_not_look_at_the_examples(updates):
    rows, counts = updates
    assert aggregated(Median(), rows, counts) == pytest.approx(np.median(rows, axis=0), abs=1e-12)


@given(ROWS, st.floats(0, 0.49))
def test_the_trimmed_mean_is_the_mean_of_the_sorted_middle(updates, trim):
    rows, counts = updates
    left_out = math.floor(trim * len(rows))
    middle = np.sort(np.array(rows), axis=0)[left_out : len(rows) - left_out]
    assert aggregated(TrimmedMean(trim=trim), rows, counts) == pytest.approx(middle.mean(axis=0), abs=1e-12)


@given(st.floats(-1e9, 1e9), st.integers(1, 50))
def test_one_wrong_client_cannot_move_the_robust_ones_far(value, count):
    rows = [[0.0] * 3, [1.0] * 3, [2.0] * 3, [3.0] * 3, [value] * 3]
    for aggregator in (Median(), TrimmedMean(trim=0.2)):
        found = aggregated(aggregator, rows, [1, 1, 1, 1, count])
        assert ((found >= 0) & (found <= 3)).all()


# -------------------------------------------------------------------------------------------------------- invariants


@pytest.mark.parametrize("aggregator", ALL, ids=label)
@settings(max_examples=25)
@given(updates=ROWS, random=st.randoms(use_true_random=False))
def test_the_order_of_the_clients_changes_nothing_but_rounding(aggregator, updates, random):
    pairs = list(zip(*updates, strict=True))
    one = aggregated(aggregator, *zip(*pairs, strict=True), rounds=2)
    random.shuffle(pairs)
    assert aggregated(aggregator, *zip(*pairs, strict=True), rounds=2) == pytest.approx(one, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("aggregator", [FedAvg(), FedAvg(weighting="uniform"), Median(), TrimmedMean(), Scaffold()])
@settings(max_examples=25)
@given(
    row=st.lists(st.floats(-10, 10), min_size=3, max_size=3),
    counts=st.lists(st.integers(1, 50), min_size=1, max_size=6),
)
def test_equal_updates_are_their_own_average(aggregator, row, counts):
    assert aggregated(aggregator, [row] * len(counts), counts) == pytest.approx(np.array(row), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("relative", "aggregator"),
    [
        (FedAvg(), FedAvgM(server_momentum=0.0)),
        (FedAvg(weighting="uniform"), TrimmedMean(trim=0.0)),
        (FedAvg(weighting="uniform"), Scaffold()),
    ],
)
@settings(max_examples=25)
@given(updates=ROWS)
def test_limits_are_the_simpler_relatives(relative, aggregator, updates):
    assert aggregated(aggregator, *updates) == pytest.approx(aggregated(relative, *updates), rel=1e-12, abs=1e-12)


# --------------------------------------------------------------------------------------------- in whole federations


@pytest.mark.parametrize("aggregator", ALL, ids=label)
def test_a_federation_agrees_with_the_oracle(aggregator, exact):
    """Three rounds of PromptFL with two of three clients."""
    data = tiny.data(exact)
    schedule = {"rounds": 3, "participation": 0.67, "local_epochs": 1}
    found = tiny.run(METHOD, exact, data, aggregator=aggregator, **schedule)
    world = agreement.world_of(METHOD, exact, data, 3)
    world.schedule = [
        {client: batches for client, batches in work.items() if client in one.record["participants"]}
        for work, one in zip(world.schedule, found, strict=True)
    ]
    hyper = {name: getattr(aggregator, name) for name in type(aggregator).__dataclass_fields__}
    expected = oracle.run(world, aggregator.name, hyper)
    for one, reference in zip(found, expected, strict=True):
        assert agreement.difference(one.shared["p_G"], reference) < 1e-9


@pytest.mark.parametrize("aggregator", [FedAvg(), FedAdam(), Scaffold(), FedDyn()], ids=label)
def test_any_aggregator_serves_a_method_with_private_parts_and_survives_a_stop(aggregator, exact, tmp_path):
    from fedpgp.federation.state import State

    method, data = FedPGP(**agreement.HYPER, bottleneck=2), tiny.data(exact)
    whole = tiny.run(method, exact, data, aggregator=aggregator, rounds=3, participation=0.67)
    State.create(tmp_path / "s").close()
    for rounds in (1, 3):
        with State.open(tmp_path / "s") as state:
            part = tiny.run(method, exact, data, aggregator=aggregator, rounds=rounds, participation=0.67, state=state)
    assert tiny.bits(part[-1].shared) == tiny.bits(whole[-1].shared)
    assert tiny.bits(part[-1].server.memory) == tiny.bits(whole[-1].server.memory)
    assert [tiny.bits(own) for own in part[-1].private] == [tiny.bits(own) for own in whole[-1].private]


def test_control_variates_are_counted_in_the_bytes(exact):
    size = 3 * 128 * 8

    def sent(aggregator):
        *_, last = tiny.run(METHOD, exact, aggregator=aggregator, rounds=1, local_epochs=1)
        return last.record["bytes_up"], last.record["bytes_down"]

    assert sent(FedAvg()) == sent(FedDyn()) == sent(FedAdam()) == (size, size)
    assert sent(Scaffold()) == (2 * size, 2 * size)


def test_scaffolds_control_is_the_papers_option_ii_under_plain_sgd(exact):
    """c_i = c_i − c + (x − y_i)/(K η), with K steps of plain SGD, in the second round of all clients."""
    plain = {"momentum": 0.0, "weight_decay": 0.0, "local_epochs": 1}
    from fedpgp.federation.state import State

    with State.create() as state:
        rounds = tiny.run(METHOD, exact, aggregator=Scaffold(), rounds=2, state=state, **plain)
        after = [state.client(i).control["p_G"] for i in range(3)]
    with State.create() as state:
        tiny.run(METHOD, exact, aggregator=Scaffold(), rounds=1, state=state, **plain)
        before = [state.client(i).control["p_G"] for i in range(3)]
    c, x = rounds[0].server.memory["c/p_G"], rounds[0].shared["p_G"]
    moved = [
        (own - old + c) * math.ceil(n / 4) * 0.05 for own, old, n in zip(after, before, tiny.EXAMPLES, strict=True)
    ]
    ys = [x - step for step in moved]
    assert torch.allclose(rounds[1].shared["p_G"], sum(ys) / 3, rtol=0, atol=1e-12)


def test_a_local_method_takes_any_aggregator_and_sends_nothing(exact):
    for aggregator in ALL:
        *_, last = tiny.run(Local(**agreement.HYPER), exact, aggregator=aggregator, rounds=1, local_epochs=1)
        assert (last.record["bytes_up"], last.shared) == (0, {})


def test_an_unknown_aggregator_is_refused_with_the_nearest_name():
    from fedpgp.config import load_config

    with pytest.raises(ConfigError, match=r"federation.aggregator.*'fedadm'.*'fedadam'"):
        print(load_config(None, ["federation.aggregator=fedadm"]).aggregator)
    assert load_config(None, ["federation.aggregator=fedadam", "fedadam.tau=0.5"]).aggregator == FedAdam(tau=0.5)
    others = {"krum", "multi-krum", "bulyan", "geometric-median"}  # test_robust_aggregators.py
    assert set(AGGREGATORS) == {a.name for a in ALL} | others
    assert Server({}).memory == {}


@pytest.mark.parametrize("changes", [["federation.aggregator=fedadam"], ["fedavg.weighting=uniform"]])
def test_a_method_with_its_own_aggregator_refuses_another(changes, small, cache):
    import fedpgp

    for name in ("prompt-amp", "pfedmoap"):
        with pytest.raises(ConfigError, match=rf"fedavg.*{name}"):
            fedpgp.run(name, changes=[*changes, "task.clients=2"], cache=cache)
    with pytest.raises(ConfigError, match=r"federation.aggregator.*centralized"):
        fedpgp.run("centralized", changes=["federation.aggregator=scaffold", "task.clients=2"], cache=cache)
