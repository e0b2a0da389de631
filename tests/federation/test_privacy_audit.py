"""Every reported ε compared with an accountant and with an audit by draws; `python tools/privacy_audit.py` has more."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dp_accounting import get_epsilon_gaussian

sys.path.append(str(Path(__file__).parents[2] / "tools"))
import privacy_audit

from fedpgp.federation import privacy as accounting
from fedpgp.federation.privacy import epsilon
from fedpgp.federation.settings import PrivacyConfig

MECHANISMS = privacy_audit.mechanisms()
NAMES = [mechanism.name for mechanism in MECHANISMS]
# Mechanisms of which a draw does not run a client, and the number of draws in a fast test.
FAST = [(MECHANISMS[0], 1500), (MECHANISMS[3], 450), (MECHANISMS[6], 300)]


@pytest.fixture(autouse=True)
def noise():
    """Keep the state of NumPy's generator, from which other tests draw."""
    state = np.random.get_state()
    np.random.seed(0)
    yield
    np.random.set_state(state)


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=NAMES)
def test_epsilon_is_that_of_an_accountant_to_four_digits(mechanism):
    for rounds in privacy_audit.ROUNDS:
        assert mechanism.reported(rounds) == pytest.approx(mechanism.accounted(rounds, step=4e-3), rel=5e-5)


def check_audit(mechanism, rounds, draws):
    """A reported ε may not be below the audit's bound, and the audit must find a part of it."""
    found, reported = mechanism.audited(rounds, draws), mechanism.reported(rounds)
    assert 0.2 * reported < found <= reported


@pytest.mark.parametrize(("mechanism", "draws"), FAST, ids=[mechanism.name for mechanism, _ in FAST])
def test_no_audit_finds_more_than_epsilon(mechanism, draws):
    check_audit(mechanism, 1, draws)


SLOW = [mechanism for mechanism in MECHANISMS if mechanism not in [fast for fast, _ in FAST]]


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", SLOW, ids=[mechanism.name for mechanism in SLOW])
def test_no_audit_finds_more_than_epsilon_with_clients(mechanism):
    check_audit(mechanism, 1, 400)


@pytest.mark.by_hand
@pytest.mark.parametrize("rounds", [5, 25])
@pytest.mark.parametrize("mechanism", MECHANISMS, ids=NAMES)
def test_no_audit_finds_more_than_epsilon_over_rounds(mechanism, rounds):
    check_audit(mechanism, rounds, 400)


def mu_with_adaptive_clipping(clients, draws, **settings):
    privacy = PrivacyConfig(differential_privacy="central", clipping="adaptive", **settings)
    draw = privacy_audit.with_adaptive_norm(privacy, clients)
    return privacy_audit.least_mu(draw(1, draws, False), draw(1, draws, True))


def test_the_audit_notices_that_the_number_of_clipped_changes_counted_half(monkeypatch):
    """Before, 1/z² = 1/z_Δ² + 1/(2 σ_b)²: ε was 4.38 for z = 1, and the truth for 11 clients was 9.18 (μ = 1.87)."""
    monkeypatch.setattr(accounting, "_multiplier", lambda z, deviation: (z**-2 - (2 * deviation) ** -2) ** -0.5)
    mu = mu_with_adaptive_clipping(11, 450)
    assert 1.2 < mu < 1.9
    assert get_epsilon_gaussian(1 / mu, 1e-5) > 1.2 * epsilon(PrivacyConfig(differential_privacy="central"), 1)


@pytest.mark.parametrize("norm", [1e-6, 0.4])
def test_a_client_that_was_not_clipped_differs_from_a_clipped_one_by_no_more(norm):
    """The neighbour changes nothing; with a short change in the same direction instead, the difference is smaller."""
    privacy = PrivacyConfig(differential_privacy="central", clipping="adaptive", count_noise=1.2)
    releases = []
    for length in (norm, privacy_audit.LONG):
        clients = privacy_audit.Clients(privacy, torch.tensor([[length], [0.0], [0.0]]))
        drawn = (privacy_audit.released(clients, 1) for _ in range(450))
        releases.append(np.array([[*moved, clipped] for moved, clipped in drawn]))
    assert privacy_audit.least_mu(*releases) <= privacy.noise_multiplier


def test_the_audit_notices_half_of_the_noise(monkeypatch):
    (fixed, *_) = MECHANISMS
    halved = PrivacyConfig(differential_privacy="central", noise_multiplier=0.5)
    wrong = replace(fixed, draw=privacy_audit.with_fixed_norm(halved, 100))
    assert wrong.audited(1, 1500) > fixed.reported(1)


def test_the_lower_bound_is_a_bound_of_gaussian_mechanisms():
    """At most five of a hundred audits find more than μ, and the audits find most of μ."""
    for mu in (0.0, 0.5, 3.0):
        draws = np.random.normal(size=(2, 100, 1500, 1))
        found = [privacy_audit.least_mu(first, second + mu) for first, second in zip(*draws, strict=True)]
        assert sum(bound > mu for bound in found) <= 5
        assert np.mean(found) >= 0.6 * mu
