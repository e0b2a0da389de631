"""Protection against hostile clients: the limits of a round, compared with a naive transcription, and its errors."""

import math
from dataclasses import replace

import agreement
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from raising import raises

from fedpgp.aggregators import (
    Bulyan,
    FedAvg,
    GeometricMedian,
    Krum,
    Median,
    MultiKrum,
    Scaffold,
    TrimmedMean,
    Upload,
)
from fedpgp.errors import ConfigError
from fedpgp.federation.client import ClientUpdate
from fedpgp.federation.protection import (
    HEAVIEST,
    IMPLAUSIBLE,
    LARGEST,
    check_protection,
    protect,
    protection_notes,
    with_protection,
)
from fedpgp.federation.settings import FederationConfig, PrivacyConfig
from fedpgp.federation.state import ClientState
from fedpgp.methods import METHODS, PromptFL

SHAPES = {"p_G": (3, 4), "gate": (2,)}
ON = FederationConfig(protection=True)


def start(client=0):
    return {name: torch.full(shape, float(client)) for name, shape in SHAPES.items()}


def update(client, norm, examples=8, seed=0, control=0.0):
    rng = np.random.default_rng([seed, client])
    change = rng.standard_normal(14)
    change *= norm / np.linalg.norm(change)
    parts = {"p_G": change[:12].reshape(3, 4), "gate": change[12:]}
    shared = {name: (value + torch.from_numpy(parts[name])).float() for name, value in start(client).items()}
    controls = {"gate": torch.tensor([control, 0.0])} if control else {}
    return ClientUpdate(Upload(client, examples, shared, controls), ClientState(), {})


def protected(updates, examples=()):
    return protect(updates, {one.upload.client: start(one.upload.client) for one in updates}, examples)


def norm_of(one):
    received = start(one.upload.client)
    changes = [(value.double() - received[name]).flatten() for name, value in one.upload.shared.items()]
    return float(torch.cat(changes).norm())


@given(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=9), st.integers(0, 100))
def test_no_change_is_longer_than_the_limit_and_a_shorter_one_keeps_its_bytes(norms, seed):
    updates = [update(client, norm, seed=seed) for client, norm in enumerate(norms)]
    median = sorted(map(norm_of, updates))[(len(norms) - 1) // 2]
    found = protected(updates)
    assert {*found.refused} == {u.upload.client for u in updates if norm_of(u) > IMPLAUSIBLE * median}
    assert [u.upload.client for u in found.updates] == [i for i in range(len(norms)) if i not in found.refused]
    for after in found.updates:
        before = updates[after.upload.client]
        if after.upload.client in found.clipped:
            assert norm_of(before) > LARGEST * median
            assert norm_of(after) == pytest.approx(LARGEST * median, rel=1e-3)
            for name, received in start(after.upload.client).items():  # the direction stays
                shorter = (before.upload.shared[name] - received) * LARGEST * median / norm_of(before)
                assert torch.allclose(after.upload.shared[name] - received, shorter, atol=1e-3, rtol=1e-3)
        else:
            assert norm_of(before) <= LARGEST * median
            assert tiny.bits(after.upload.shared) == tiny.bits(before.upload.shared)


def test_hostile_clients_below_half_cannot_raise_the_limit_above_an_honest_change():
    honest = [update(client, 1.0 + client / 10) for client in range(3)]
    for norm in (5.0, 1e9, math.inf, math.nan):
        found = protected([*honest, update(3, norm), update(4, norm)])
        assert max(map(norm_of, found.updates)) <= LARGEST * 1.2 * (1 + 1e-6)
        assert {one.upload.client for one in found.updates} >= {0, 1, 2}


def test_weights_are_at_most_the_median_or_the_operators():
    updates = [update(client, 1.0, examples) for client, examples in enumerate((4, 9, 10**8))]
    assert [one.upload.examples for one in protected(updates).updates] == [4, 9, int(9 * HEAVIEST)]
    assert [one.upload.examples for one in protected(updates, (30, 20, 10)).updates] == [30, 20, 10]
    assert [one.upload.examples for one in protected(updates[1:], (30, 20, 10)).updates] == [20, 10]


def test_control_variates_have_their_own_limit():
    updates = [update(client, 1.0, control=control) for client, control in enumerate((1.0, 1.0, 5.0, 1e6))]
    found = protected(updates)
    assert found.clipped == [2]
    assert "control" in found.refused[3]
    assert float(found.updates[2].upload.control["gate"].norm()) == pytest.approx(LARGEST)


def test_a_round_without_updates_or_with_one_is_left_as_it_is():
    assert protect([], {}) == ([], [], {})
    (only,) = protected([update(0, 1e6)]).updates
    assert tiny.bits(only.upload.shared) == tiny.bits(update(0, 1e6).upload.shared)


def test_a_round_without_a_finite_update_changes_nothing():
    found = protected([update(client, math.nan) for client in range(3)])
    assert (found.updates, {*found.refused}) == ([], {0, 1, 2})


@pytest.mark.parametrize("aggregator", [FedAvg(), Scaffold(), Median()], ids=lambda one: one.name)
def test_a_run_records_the_clients_that_were_limited(aggregator, exact):
    def run(**changes):
        method = PromptFL(**agreement.HYPER)
        return tiny.run(method, exact, rounds=2, local_epochs=1, aggregator=aggregator, **changes)

    plain, limited = run(), run(protection=True)
    assert all(one.record["clipped"] for one in limited)
    assert all("clipped" not in one.record for one in plain)
    assert tiny.bits(plain[-1].shared) != tiny.bits(limited[-1].shared)


@pytest.mark.parametrize("name", ["prompt-amp", "pfedmoap", "local", "zero-shot"])
def test_methods_with_downloads_of_their_own_or_without_a_shared_part_have_limits_too(name, exact):
    (round_,) = tiny.run(tiny.small(METHODS[name]), exact, rounds=1, local_epochs=1, protection=True)
    assert "dropped" not in round_.record
    assert bool(round_.record.get("clipped")) == (name in ("prompt-amp", "pfedmoap"))


def test_an_implausible_update_is_dropped_from_the_round_with_the_reason(exact, monkeypatch):
    monkeypatch.setattr("fedpgp.federation.protection.IMPLAUSIBLE", 1.0)
    record = tiny.run(PromptFL(**agreement.HYPER), exact, rounds=1, protection=True)[0].record
    (dropped,) = record["dropped"]
    assert "times the median" in dropped["reason"]
    assert sorted([*record["participants"], dropped["client"]]) == [0, 1, 2]


# ------------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("aggregator", "clients", "survived"),
    [
        (Median(), 5, 2),
        (Median(), 20, 9),
        (GeometricMedian(), 5, 2),
        (TrimmedMean(trim=0.2), 5, 1),
        (TrimmedMean(), 20, 2),
        (TrimmedMean(trim=0.29), 100, 29),
        (Krum(), 5, 1),
        (MultiKrum(malicious=2), 7, 2),
        (Bulyan(), 7, 1),
    ],
)
def test_a_run_says_how_many_hostile_clients_its_aggregator_survives(aggregator, clients, survived):
    check_protection(FederationConfig(), PrivacyConfig(), aggregator, clients)
    (note,) = protection_notes(FederationConfig(), PrivacyConfig(), aggregator, clients)
    assert f"{aggregator.name} survives {survived} hostile client" in note
    assert f"among the {clients} clients of a round" in note


@pytest.mark.parametrize(
    ("aggregator", "clients", "remedy"),
    [
        (TrimmedMean(), 5, "--set trimmed-mean.trim=0.2"),
        (TrimmedMean(), 3, "--set trimmed-mean.trim=0.34"),
        (TrimmedMean(trim=0.3), 2, "at least 3 clients"),
        (Median(), 2, "at least 3 clients"),
        (GeometricMedian(), 1, "at least 3 clients"),
        (Krum(malicious=0), 9, "--set krum.malicious=1"),
        (MultiKrum(malicious=4), 9, "--set multi-krum.malicious=3"),
        (Bulyan(malicious=1), 6, "at least 7 clients"),
    ],
)
def test_a_setting_that_protects_against_nobody_is_refused_with_one_that_does(aggregator, clients, remedy):
    with raises(ConfigError, problem="no hostile client", remedy=remedy) as caught:
        check_protection(FederationConfig(), PrivacyConfig(), aggregator, clients)
    if "--set" in remedy:
        key, value = caught.value.remedy.split("--set ")[1].split()[0].split("=")
        check_protection(
            FederationConfig(),
            PrivacyConfig(),
            replace(aggregator, **{key.split(".")[1]: float(value) if "." in value else int(value)}),
            clients,
        )


def test_the_clients_of_a_round_count_and_not_all_clients():
    few = FederationConfig(participation=0.1)
    with raises(ConfigError, problem="2 clients take part", remedy="federation.participation"):
        check_protection(few, PrivacyConfig(), Median(), 20)
    assert "among the 10 clients" in protection_notes(replace(few, participation=0.5), PrivacyConfig(), Median(), 20)[0]


@pytest.mark.parametrize(
    ("privacy", "reason"),
    [
        (PrivacyConfig(secure_aggregation=True), "does not see the change of a single client"),
        (PrivacyConfig(differential_privacy="central"), "would make ε wrong"),
    ],
)
def test_protection_cannot_be_combined_with_settings_that_hide_or_bound_single_changes(privacy, reason):
    with raises(ConfigError, where="federation.protection", allowed=reason, remedy="federation.protection=false"):
        check_protection(ON, privacy, FedAvg(), 5)
    assert not with_protection(FederationConfig(), privacy).protection
    assert with_protection(FederationConfig(), PrivacyConfig(differential_privacy="local")).protection


def test_a_deployment_without_protection_says_what_a_hostile_client_can_do():
    deployed = FederationConfig(engine="deployment")
    (note,) = protection_notes(deployed, PrivacyConfig(), FedAvg(), 5)
    assert "protection is off, so a single hostile client can ruin" in note
    (note,) = protection_notes(deployed, PrivacyConfig(secure_aggregation=True), FedAvg(), 5)
    assert "does not see the change of a single client" in note
    assert not protection_notes(FederationConfig(), PrivacyConfig(), FedAvg(), 5)
    assert len(protection_notes(ON, PrivacyConfig(), FedAvg(), 5)) == 1
    assert "no hostile client" in protection_notes(ON, PrivacyConfig(), FedAvg(), 2)[1]


def test_the_operators_numbers_are_one_for_each_client_and_need_protection():
    with raises(ConfigError, where="federation.examples", allowed="a list of 3 numbers"):
        check_protection(FederationConfig(protection=True, examples=(5, 6)), PrivacyConfig(), FedAvg(), 3)
    with raises(ConfigError, where="federation.examples", remedy="federation.protection=true"):
        check_protection(FederationConfig(examples=(5, 6, 7)), PrivacyConfig(), FedAvg(), 3)
    check_protection(FederationConfig(protection=True, examples=(5, 6, 7)), PrivacyConfig(), FedAvg(), 3)
