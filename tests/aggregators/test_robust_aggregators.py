"""Krum, Multi-Krum, Bulyan and geometric median, compared with their papers; median and trimmed mean, with Flower's."""

import math
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import agreement
import numpy as np
import pytest
import tiny
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.app.message import arrayrecord
from flwr.serverapp import strategy as flower
from hypothesis import assume, given
from hypothesis import strategies as st
from raising import raises

from fedpgp.aggregators import Bulyan, GeometricMedian, Krum, Median, MultiKrum, Server, TrimmedMean, Upload
from fedpgp.errors import ConfigError, TooFewError
from fedpgp.methods import Local, PromptFL

SHAPES = {"p_G": (3, 4), "gate": (2,)}
START = {"gate": torch.tensor([1.0, -2.0], dtype=torch.float64), "p_G": torch.full((3, 4), 5.0, dtype=torch.float64)}
SEEDS = st.integers(0, 2**32 - 1)
SELECTING = {"krum": (Krum, 2), "multi-krum": (MultiKrum, 2), "bulyan": (Bulyan, 4)}


@st.composite
def rounds(draw, multiple):
    """Draw the number of hostile clients f, and the uploads of n ≥ `multiple` · f + 3 clients."""
    f = draw(st.integers(0, 2))
    return f, uploads_of(draw(SEEDS), multiple * f + 3 + draw(st.integers(0, 4)), hostile=f)


def uploads_of(seed, clients, hostile=0, spread=0.1, dtype=torch.float64):
    """Clients near START, some of them far off."""
    rng, uploads = np.random.default_rng(seed), []
    for client in rng.permutation(clients).tolist():
        scale = 30.0 if client < hostile else spread
        shared = {name: START[name] + torch.from_numpy(rng.normal(0, scale, shape)) for name, shape in SHAPES.items()}
        uploads.append(
            Upload(client, int(rng.integers(1, 50)), {name: value.to(dtype) for name, value in shared.items()})
        )
    return uploads


def flat(shared):
    return np.concatenate([shared[name].double().numpy().ravel() for name in SHAPES])


def aggregated(aggregator, uploads, start=START):
    return aggregator.aggregate(aggregator.begin(start, len(uploads)), uploads).shared


def by_client(uploads):
    return [flat(upload.shared) for upload in sorted(uploads, key=lambda upload: upload.client)]


# ------------------------------------------------------------------------------------------------------- the papers


def naive_scores(vectors, f):
    """Blanchard et al. 2017, section 4: Σ ‖V_i − V_j‖² over the n − f − 2 vectors V_j nearest to V_i."""
    n, scores = len(vectors), []
    for i in range(n):
        squares = sorted(float(((vectors[i] - vectors[j]) ** 2).sum()) for j in range(n) if j != i)
        scores.append(sum(squares[: n - f - 2]))
    return scores


def naive_bulyan(vectors, f):
    """El Mhamdi et al. 2018, section 4, second step, of the θ = n − 2f first in Krum's ranking: coordinate by
    coordinate the mean of the β = θ − 2f values that are nearest to the median."""
    theta, scores = len(vectors) - 2 * f, naive_scores(vectors, f)
    chosen = [vectors[i] for i in sorted(range(len(vectors)), key=lambda i: scores[i])[:theta]]
    found = []
    for column in zip(*chosen, strict=True):
        median = float(np.median(column))
        found.append(np.mean(sorted(column, key=lambda value: abs(value - median))[: theta - 2 * f]))
    return np.array(found)


@given(rounds(2))
def test_krum_takes_one_update_whole_which_is_the_papers(case):
    f, uploads = case
    vectors, found = by_client(uploads), flat(aggregated(Krum(malicious=f), uploads))
    scores = naive_scores(vectors, f)
    (place,) = (i for i, vector in enumerate(vectors) if (vector == found).all())
    assert scores[place] <= min(scores) * (1 + 1e-9)  # of two that are nearest to each other either may be taken


@given(rounds(2))
def test_multi_krum_is_the_mean_of_the_n_minus_f_with_the_least_scores_whatever_their_examples(case):
    f, uploads = case
    vectors = by_client(uploads)
    best = np.argsort(naive_scores(vectors, f), kind="stable")[: len(vectors) - f]
    found = flat(aggregated(MultiKrum(malicious=f), uploads))
    assert found == pytest.approx(np.mean([vectors[i] for i in best], axis=0), rel=1e-9, abs=1e-9)


@given(rounds(4))
def test_bulyan_is_the_papers(case):
    f, uploads = case
    found = flat(aggregated(Bulyan(malicious=f), uploads))
    assert found == pytest.approx(naive_bulyan(by_client(uploads), f), rel=1e-9, abs=1e-9)


def naive_geometric_median(vectors, smoothing, iterations):
    """Pillutla et al. 2022, algorithm 2, with equal weights: Weiszfeld's smoothed iterations from the mean."""
    v = sum(vectors) / len(vectors)
    for _ in range(iterations):
        weights = [1 / max(smoothing, float(np.sqrt(((v - w) ** 2).sum()))) for w in vectors]
        v = sum(beta * w for beta, w in zip(weights, vectors, strict=True)) / sum(weights)
    return v


@given(SEEDS, st.integers(3, 9), st.floats(0.01, 0.5))
def test_the_geometric_median_is_the_papers(seed, clients, smoothing):
    uploads = uploads_of(seed, clients, hostile=1)
    found = flat(aggregated(GeometricMedian(smoothing=smoothing, iterations=500), uploads))
    assert found == pytest.approx(naive_geometric_median(by_client(uploads), smoothing, 500), abs=1e-4)


@given(SEEDS, st.integers(3, 9))
def test_no_other_point_has_a_smaller_sum_of_distances_than_the_geometric_median(seed, clients):
    uploads = uploads_of(seed, clients, hostile=1)
    vectors, found = np.array(by_client(uploads)), flat(aggregated(GeometricMedian(), uploads))

    def total(point):
        return np.linalg.norm(vectors - point, axis=1).sum()

    rng = np.random.default_rng(seed)
    others = [*vectors, vectors.mean(0), *(found + rng.normal(0, 0.01, found.shape) for _ in range(5))]
    assert all(total(found) <= total(other) * (1 + 1e-6) for other in others)


@given(SEEDS, st.integers(1, 4), st.floats(1e2, 1e9))
def test_a_minority_that_agrees_moves_the_geometric_median_little(seed, f, distance):
    """Its distance to the honest clients is bounded, however far away the hostile ones are (theorem 2 of the paper)."""
    honest = uploads_of(seed, 2 * f + 1)
    far = {name: value + distance for name, value in START.items()}
    uploads = [replace(one, shared=far) if one.client < f else one for one in honest]
    kept = np.array([flat(one.shared) for one in honest if one.client >= f])
    spread = np.linalg.norm(kept - kept.mean(0), axis=1).max()
    bound = spread * (1 + 2 * (f + 1))  # 2 (n - f) / (n - 2 f) times the largest distance
    assert np.linalg.norm(flat(aggregated(GeometricMedian(), uploads)) - kept.mean(0)) <= bound


@given(st.sampled_from(sorted(SELECTING)), SEEDS, st.integers(1, 2))
def test_hostile_clients_that_agree_are_outvoted(name, seed, f):
    kind, multiple = SELECTING[name]
    honest = uploads_of(seed, multiple * f + 3)
    far = {name: value + 1e6 for name, value in START.items()}
    uploads = [Upload(one.client, 10**9, far) if one.client < f else one for one in honest]
    found, kept = flat(aggregated(kind(malicious=f), uploads)), [one for one in honest if one.client >= f]
    vectors = np.array([flat(one.shared) for one in kept])
    assert (found >= vectors.min(0) - 1e-9).all()
    assert (found <= vectors.max(0) + 1e-9).all()


# ------------------------------------------------------------------------------------------------------- invariants


@pytest.mark.parametrize("name", sorted(SELECTING))
@given(seed=SEEDS, f=st.integers(0, 2), random=st.randoms(use_true_random=False))
def test_neither_the_order_of_uploads_nor_that_of_names_changes_a_bit(name, seed, f, random):
    kind, multiple = SELECTING[name]
    uploads = uploads_of(seed, multiple * f + 3, hostile=f)
    one = aggregated(kind(malicious=f), uploads)
    random.shuffle(uploads)
    turned = [
        Upload(u.client, u.examples, dict(sorted(u.shared.items(), reverse=random.random() < 0.5))) for u in uploads
    ]
    start = dict(sorted(START.items(), reverse=random.random() < 0.5))
    assert tiny.bits(aggregated(kind(malicious=f), turned, start)) == tiny.bits(one)


@pytest.mark.parametrize("name", sorted(SELECTING))
def test_small_changes_of_large_float32_numbers_are_told_apart(name):
    """The squared norms are 10⁸, whose rounding is larger than all distances; the changes' are not."""
    kind, multiple = SELECTING[name]
    start = {name: torch.full(shape, 3000.0) for name, shape in SHAPES.items()}
    uploads = []
    for client in range(multiple + 3):
        step = 0.5 if client == 2 else 0.01 + 0.001 * client
        uploads.append(Upload(client, 1, {name: value + step for name, value in start.items()}))
    for value in aggregated(kind(malicious=1), uploads, start).values():
        assert (value - 3000 < 0.05).all()
        assert value.dtype == torch.float32


# ----------------------------------------------------------------------------------------------------- against Flower


def by_flower(strategy, uploads):
    """Return the result of Flower's strategy for the same updates, each of one example."""
    messages = []
    for upload in sorted(uploads, key=lambda upload: upload.client):
        arrays = ArrayRecord({name: Array(upload.shared[name].numpy()) for name in SHAPES})
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})
        messages.append(SimpleNamespace(content=content, has_error=lambda: False))  # a Message is made in a run only
    arrays, _ = strategy.aggregate_train(1, messages)
    return np.concatenate([arrays[name].numpy().ravel() for name in SHAPES])


@given(SEEDS, st.integers(1, 9))
def test_the_median_is_flowers(seed, clients):
    uploads = uploads_of(seed, clients, hostile=1)
    assert flat(aggregated(Median(), uploads)) == pytest.approx(by_flower(flower.FedMedian(), uploads), abs=1e-12)


@given(SEEDS, st.integers(1, 9), st.floats(0, 0.49))
def test_the_trimmed_mean_is_flowers(seed, clients, trim):
    assume(math.floor(trim * clients + 1e-9) == int(trim * clients))  # a share that is a whole number but for rounding
    uploads = uploads_of(seed, clients, hostile=1)
    found = flat(aggregated(TrimmedMean(trim=trim), uploads))
    assert found == pytest.approx(by_flower(flower.FedTrimmedAvg(beta=trim), uploads), abs=1e-12)


@given(rounds(2))
def test_krum_and_multi_krum_are_flowers_strategies(case):
    f, uploads = case
    assume(len(uploads) - f - 2 > 1)  # else the two nearest tie, and rounding decides
    assert (
        flat(aggregated(Krum(malicious=f), uploads)) == by_flower(flower.Krum(num_malicious_nodes=f), uploads)
    ).all()
    strategy = flower.MultiKrum(num_malicious_nodes=f, num_nodes_to_select=len(uploads) - f)
    assert flat(aggregated(MultiKrum(malicious=f), uploads)) == pytest.approx(by_flower(strategy, uploads), abs=1e-9)


@given(rounds(4))
def test_bulyan_is_flowers_strategy(case):
    f, uploads = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            arrayrecord, "gc", SimpleNamespace(collect=lambda: 0)
        )  # it collects after each record that it reads
        found = by_flower(flower.Bulyan(num_malicious_nodes=f), uploads)
    assert flat(aggregated(Bulyan(malicious=f), uploads)) == pytest.approx(found, abs=1e-9)


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("name", sorted(SELECTING))
def test_too_few_clients_are_refused_before_the_first_round_and_too_few_updates_in_one(name):
    kind, multiple = SELECTING[name]
    clients = multiple + 3
    enough = multiple * 2 + 3
    with raises(ConfigError, where="task.clients", allowed=f"at least {enough}", got=clients) as caught:
        kind(malicious=2).begin(START, clients)
    assert f"--set task.clients={enough}" in caught.value.remedy
    assert f"--set {name}.malicious=1" in caught.value.remedy
    kind(malicious=2).begin(START, enough)
    with raises(ConfigError, where="task.clients", allowed="at least 3", got=2, remedy="another aggregator"):
        kind(malicious=0).begin(START, 2)
    server = kind(malicious=1).begin(START, clients)
    with raises(TooFewError, where="updates in a round", allowed=f"at least {clients}", got=clients - 1) as caught:
        kind(malicious=1).aggregate(server, uploads_of(0, clients - 1))
    assert f"{name}.malicious" in caught.value.remedy


@pytest.mark.parametrize("name", sorted(SELECTING))
def test_a_rejected_update_counts_as_one_hostile_client(name):
    kind, multiple = SELECTING[name]
    clients, f = multiple * 3 + 3, 3
    for refused in (2, 3):
        left = uploads_of(0, clients - refused, hostile=f - refused)
        with pytest.raises(TooFewError):
            kind(malicious=f).aggregate(Server(START), left)
        found = kind(malicious=f).without(refused).aggregate(Server(START), left).shared
        assert np.abs(flat(found) - flat(START)).max() < 1
    assert kind(malicious=1).without(2).malicious == 0


@pytest.mark.slow
def test_fedpgp_alone_does_not_import_flower():
    code = "import sys, fedpgp, fedpgp.aggregators; assert not any(name.startswith('flwr') for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --------------------------------------------------------------------------------------------- in whole federations


@pytest.mark.parametrize("name", sorted(SELECTING))
def test_a_federation_in_this_process_takes_them_by_name(name, exact):
    from fedpgp.config import load_config

    chosen = load_config(None, [f"federation.aggregator={name}", f"{name}.malicious=0"]).aggregator
    assert chosen == SELECTING[name][0](malicious=0)
    first, second = (
        tiny.run(PromptFL(**agreement.HYPER), exact, aggregator=chosen, rounds=2, local_epochs=1) for _ in "12"
    )
    assert [tiny.bits(one.shared) for one in first] == [tiny.bits(one.shared) for one in second]
    local = tiny.run(Local(**agreement.HYPER), exact, aggregator=SELECTING[name][0](), rounds=1, local_epochs=1)
    assert local[-1].shared == {}


def test_a_round_with_too_few_participants_says_so(exact):
    with raises(TooFewError, where="updates in a round", got=2, remedy="raise federation.participation"):
        tiny.run(PromptFL(**agreement.HYPER), exact, aggregator=Krum(malicious=0), rounds=1, participation=0.67)
