"""Differential privacy: clipping, averaging and noise as computed by hand and by Flower, and ε from the literature."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st
from raising import raises
from scipy.optimize import brentq
from scipy.stats import norm

from fedpgp.aggregators import Download, FedAvg, Median, Server, Upload
from fedpgp.errors import ConfigError, TooFewError
from fedpgp.federation.privacy import BIT, NORM, Private, assumptions, check_privacy, epsilon, longest_change
from fedpgp.federation.settings import FederationConfig, PrivacyConfig
from fedpgp.flower.client_app import ABOUT, LOSSES, SHARED, mods
from fedpgp.flower.messages import _figures
from fedpgp.flower.update_validation import Asked, Refused, arrays, check, read_any
from fedpgp.methods import PromptFL
from fedpgp.methods.dp_fpl import DPFPL

SHAPES = {"p_G": (3, 4), "gate": (2,)}


@pytest.fixture(autouse=True)
def inside_flower():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def tensors(rng, scale=1.0):
    return {name: torch.from_numpy(scale * rng.standard_normal(shape)).float() for name, shape in SHAPES.items()}


def uploads(rng, server, count, scale=1.0):
    found = []
    for client in range(count):
        change = tensors(rng, scale * (client + 1))
        found.append(Upload(client, 5 + client, {name: server[name] + change[name] for name in server}))
    return found


def flat(shared):
    return np.concatenate([shared[name].double().numpy().ravel() for name in sorted(shared)])


def cut(change, largest):
    return change * min(1.0, largest / np.linalg.norm(change)) if change.any() else change


def aggregated(privacy, server, sent, memory=None):
    private = Private(privacy=privacy)
    before = private.begin(server, len(sent))
    return private.aggregate(Server(server, before.memory if memory is None else memory), sent)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0.01, 10))
def test_without_noise_it_is_the_mean_of_changes_cut_to_the_norm_whatever_their_examples(seed, clients, largest):
    rng = np.random.default_rng(seed)
    server = tensors(rng)
    sent = uploads(rng, server, clients)
    found = aggregated(
        PrivacyConfig(differential_privacy="central", clipping_norm=largest, noise_multiplier=0), server, sent
    )
    expected = flat(server) + np.mean([cut(flat(one.shared) - flat(server), largest) for one in sent], axis=0)
    np.testing.assert_allclose(flat(found.shared), expected, atol=2e-6)
    assert all(value.dtype == torch.float32 for value in found.shared.values())


def test_the_noise_has_the_standard_deviation_of_those_that_were_averaged():
    rng = np.random.default_rng(0)
    server = {"p_G": torch.zeros(200, 100)}
    sent = [Upload(client, 1, {"p_G": torch.zeros(200, 100)}) for client in range(4)]
    privacy = PrivacyConfig(differential_privacy="central", clipping_norm=2.0, noise_multiplier=3.0)
    found = flat(aggregated(privacy, server, sent).shared)
    assert rng is not None
    assert found.std() == pytest.approx(3.0 * 2.0 / 4, rel=0.03)
    assert abs(found.mean()) < 0.05
    again = flat(aggregated(privacy, server, sent).shared)
    assert not np.array_equal(found, again)  # the noise does not depend on the run's seed


def test_updates_that_change_nothing_are_survived():
    server = {"p_G": torch.zeros(3), "gate": torch.ones(2)}
    same = [Upload(client, 1, dict(server)) for client in range(3)]
    for clipping in ("fixed", "adaptive"):
        privacy = PrivacyConfig(differential_privacy="central", clipping=clipping, noise_multiplier=0)
        found = aggregated(privacy, server, same).shared
        np.testing.assert_allclose(flat(found), flat(server), atol=1e-5)


def test_the_adaptive_norm_follows_the_quantile_and_goes_on_where_it_was():
    rng = np.random.default_rng(1)
    server = tensors(rng)
    privacy = PrivacyConfig(
        differential_privacy="central", clipping="adaptive", clipping_norm=3.0, noise_multiplier=0, count_noise=1e-9
    )
    sent = uploads(rng, server, 5)
    first = aggregated(privacy, server, sent)
    within = np.mean([np.linalg.norm(flat(one.shared) - flat(server)) <= 3.0 for one in sent])
    assert float(first.memory[NORM]) == pytest.approx(3.0 * math.exp(-0.2 * (within - 0.5)), rel=1e-6)
    expected = flat(server) + np.mean([cut(flat(one.shared) - flat(server), 3.0) for one in sent], axis=0)
    np.testing.assert_allclose(flat(first.shared), expected, atol=2e-6)
    again = aggregated(privacy, server, sent, memory=first.memory)
    within = np.mean([np.linalg.norm(flat(one.shared) - flat(server)) <= float(first.memory[NORM]) for one in sent])
    ratio = float(again.memory[NORM]) / float(first.memory[NORM])
    assert ratio == pytest.approx(math.exp(-0.2 * (within - 0.5)), rel=1e-6)


def test_the_adaptive_noise_is_for_the_norm_that_updates_were_cut_to():
    """Not for C of the next round, which is smaller if no update was clipped."""
    server = {"p_G": torch.zeros(200, 100)}
    sent = [Upload(client, 1, {"p_G": torch.zeros(200, 100)}) for client in range(100)]
    privacy = PrivacyConfig(
        differential_privacy="central", clipping="adaptive", clipping_norm=5.0, noise_multiplier=1.0, clipping_rate=2.0
    )
    found = aggregated(privacy, server, sent)
    assert float(found.memory[NORM]) < 5.0 / 1.5  # no update was clipped: the quantile is below C
    multiplier = (1.0 - (100 / 20) ** -2) ** -0.5
    assert flat(found.shared).std() == pytest.approx(multiplier * 5.0 / 100, rel=0.03)


@pytest.mark.parametrize(("clients", "count_noise"), [(20, None), (40, 1.0), (3, 0.3)])
def test_too_little_noise_in_the_count_is_refused_with_a_remedy_that_works(clients, count_noise):
    server = {"p_G": torch.zeros(3)}
    sent = [Upload(client, 1, dict(server)) for client in range(clients)]
    settings = {"differential_privacy": "central", "clipping": "adaptive"}
    with raises(TooFewError, where="privacy.count_noise", allowed="above 1", remedy="more than 20 clients") as error:
        aggregated(PrivacyConfig(**settings, count_noise=count_noise), server, sent)
    enough = float(error.value.remedy.split("count_noise=")[1].split(",")[0])
    aggregated(PrivacyConfig(**settings, count_noise=enough), server, sent)


def test_changes_that_clients_clipped_are_clipped_again():
    """An update within the tolerance of the server's check has no more weight than another one."""
    privacy = PrivacyConfig(differential_privacy="central", clipped_by="client", clipping_norm=2.0, noise_multiplier=0)
    server = {"p_G": torch.zeros(3, dtype=torch.float64)}
    found = aggregated(privacy, server, [Upload(0, 1, {"p_G": torch.tensor([2.002, 0, 0], dtype=torch.float64)})])
    assert found.shared["p_G"].tolist() == [2.0, 0, 0]


def through_mods(privacy, server, upload, norm_sent):
    """A client's reply as it leaves."""
    about = {"run": "r", "round": 1, NORM: norm_sent}
    message = Message(
        RecordDict({SHARED: arrays(server), ABOUT: ConfigRecord(about)}), dst_node_id=5, message_type="train"
    )

    def call(message, context):
        content = RecordDict({SHARED: arrays(upload.shared), LOSSES: _figures({"task": 1.0}), ABOUT: ConfigRecord({})})
        return Message(content, dst_node_id=1, message_type="train")

    for mod in mods(vars(privacy)):
        call = lambda message, context, mod=mod, inner=call: mod(message, context, inner)  # noqa: E731
    return call(message, Context(1, 5, {}, RecordDict(), {})).content


@pytest.mark.parametrize("clipping", ["fixed", "adaptive"])
def test_cut_by_the_client_it_is_the_same_as_cut_by_the_server(clipping):
    rng = np.random.default_rng(2)
    server = tensors(rng)
    sent = uploads(rng, server, 4)
    common = {"clipping": clipping, "clipping_norm": 2.0, "noise_multiplier": 0.0, "count_noise": 1e-9}
    there = PrivacyConfig(differential_privacy="central", clipped_by="client", **common)
    private = Private(privacy=there)
    norm_sent = private.download(private.begin(server, 4), 0).figures[NORM]
    arrived = []
    for upload in sent:
        content = through_mods(there, server, upload, norm_sent)
        bit = content[LOSSES].get(BIT, 0)
        assert (BIT in content[LOSSES]) == (BIT in private.answered) == (clipping == "adaptive")
        arrived.append(replace(upload, shared=read_any(content[SHARED]), figures={BIT: float(bit)}))
    here = aggregated(PrivacyConfig(differential_privacy="central", **common), server, sent)
    found = aggregated(there, server, arrived)
    np.testing.assert_allclose(flat(found.shared), flat(here.shared), atol=2e-6)
    assert float(found.memory[NORM]) == pytest.approx(float(here.memory[NORM]), rel=1e-6)


@pytest.mark.parametrize(("kind", "clipping"), [("local", "fixed"), ("central", "fixed"), ("central", "adaptive")])
def test_a_client_that_changes_nothing_sends_an_update(kind, clipping):
    server = {"p_G": torch.ones(200, 100), "gate": torch.ones(())}
    privacy = PrivacyConfig(differential_privacy=kind, clipped_by="client", clipping=clipping)
    content = through_mods(privacy, server, Upload(0, 1, dict(server)), 0.5)
    found = read_any(content[SHARED])
    assert found.keys() == server.keys() and found["gate"].shape == ()
    assert (found["p_G"].std() > 0) == (kind == "local")
    assert content[LOSSES].get(BIT, 0) == 0


@pytest.mark.parametrize("records", [{"fault": ConfigRecord({"reason": "ours"})}, {SHARED: arrays({})}])
def test_an_error_and_a_round_of_fine_tuning_leave_a_client_as_they_are(records):
    """Flower's mods would send an error of their own instead."""
    (mod,) = mods(vars(PrivacyConfig(differential_privacy="central", clipped_by="client")))
    sent = RecordDict({SHARED: arrays({"p_G": torch.zeros(3)}), ABOUT: ConfigRecord({NORM: 0.5})})
    message = Message(sent, dst_node_id=5, message_type="train")
    reply = Message(RecordDict(dict(records)), dst_node_id=1, message_type="train")
    assert mod(message, Context(1, 5, {}, RecordDict(), {}), lambda *_: reply).content == RecordDict(dict(records))


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.floats(1e-5, 10), st.sampled_from(["float16", "float32", "float64"]))
def test_the_server_accepts_what_an_honest_client_clipped_and_nothing_longer(seed, norm, dtype):
    rng = np.random.default_rng(seed)
    privacy = PrivacyConfig(differential_privacy="central", clipped_by="client")
    server = {name: value.to(getattr(torch, dtype)) for name, value in tensors(rng).items()}
    longer = {name: value + 100 * norm * (1 + value.abs()) for name, value in server.items()}
    content = through_mods(privacy, server, Upload(0, 1, longer), norm)
    content[ABOUT] = ConfigRecord({"run": "r", "round": 1, "examples": 1, "after": 0})
    download = Download(server, figures={NORM: norm})
    asked = Asked(0, 1, "r", server, {}, server, most_examples=1, largest_change=longest_change(download))
    assert check(content, asked).upload.examples == 1
    if dtype == "float64":
        upload = {name: value + 1.002 * (read_any(content[SHARED])[name] - value) for name, value in server.items()}
        content[SHARED] = arrays(upload)
        with pytest.raises(Refused, match="more than the allowed"):
            check(content, asked)
    assert longest_change(Download(server)) == math.inf


def test_local_noise_is_flowers_for_twice_the_norm():
    server = {"p_G": torch.zeros(200, 100)}
    privacy = PrivacyConfig(differential_privacy="local", clipping_norm=0.5, local_epsilon=4.0, delta=1e-4)
    content = through_mods(privacy, server, Upload(0, 1, {"p_G": torch.full((200, 100), 1.0)}), 0.0)
    found = flat(read_any(content[SHARED]))
    expected = 1.0 * math.sqrt(2 * math.log(1.25 / 1e-4)) / 4.0
    assert found.std() == pytest.approx(expected, rel=0.03)


def analytic_delta(eps, multiplier):
    """Balle & Wang 2018, theorem 8, of a Gaussian mechanism."""
    second = math.exp(eps + norm.logcdf(-0.5 / multiplier - eps * multiplier))
    return norm.cdf(0.5 / multiplier - eps * multiplier) - second


@pytest.mark.parametrize("rounds", [1, 10, 30])
@pytest.mark.parametrize("multiplier", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-3])
def test_epsilon_is_that_of_an_independent_computation(rounds, multiplier, delta):
    privacy = PrivacyConfig(differential_privacy="central", noise_multiplier=multiplier, delta=delta)
    composed = multiplier / math.sqrt(rounds)
    expected = brentq(lambda eps: analytic_delta(eps, composed) - delta, 0, 2000)
    assert epsilon(privacy, rounds) == pytest.approx(expected, rel=1e-5)


def test_a_local_round_costs_no_more_than_it_says():
    """The classic noise for ε₀ is more than enough, where ε₀ ≤ 1."""
    for wanted in (0.2, 1.0):
        privacy = PrivacyConfig(differential_privacy="local", local_epsilon=wanted)
        assert 0.5 * wanted < epsilon(privacy, 1) <= wanted
    assert epsilon(privacy, 0) == 0
    assert epsilon(PrivacyConfig(differential_privacy="central", noise_multiplier=0), 3) == math.inf


def test_the_page_gives_the_exact_epsilon_of_local_privacy():
    page = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text(encoding="utf-8")
    found = {
        wanted: epsilon(PrivacyConfig(differential_privacy="local", local_epsilon=wanted), 1) for wanted in (1, 4, 10)
    }
    assert f"{found[1]:.2f} for `local_epsilon` 1, {found[4]:.2f} for 4, and {found[10]:.2f} for\n" in page


def test_a_run_with_differential_privacy_reports_its_assumptions():
    privacy = PrivacyConfig(differential_privacy="central", noise_multiplier=2.0)
    told = " ".join(assumptions(privacy, FederationConfig(), PromptFL(), 10, 5))
    assert f"ε = {epsilon(privacy, 5):.3g} at δ = 1e-05 after 5 rounds, with 10 clients" in told
    assert "all clients have the same weight" in told
    assert "losses, accuracies and numbers of images are not protected" in told
    assert assumptions(PrivacyConfig(), FederationConfig(), PromptFL(), 10, 5) == []


@pytest.mark.parametrize(
    ("kind", "within"),
    [
        ("none", "± 2 (privacy.value_range)"),
        ("local", "± 2 (privacy.value_range)"),
        ("central", "at most 0.25 (privacy"),
    ],
)
def test_a_run_with_secure_aggregation_says_what_the_server_cannot_check(kind, within):
    privacy = PrivacyConfig(secure_aggregation=True, differential_privacy=kind, clipping_norm=0.25, value_range=2.0)
    told = assumptions(privacy, FederationConfig(), PromptFL(), 10, 5)[0]
    assert "the server cannot check any single update" in told and within in told


def test_the_assumptions_of_a_noisy_method_count_the_local_epochs_of_a_client():
    settings, method = FederationConfig(local_epochs=3), DPFPL()
    assert assumptions(PrivacyConfig(), settings, method, 10, 5) == method.assumptions(15) != []
    central = PrivacyConfig(**CENTRAL)
    of_server = assumptions(central, settings, PromptFL(), 10, 5)
    assert assumptions(central, settings, method, 10, 5) == [*method.assumptions(15), *of_server]


CENTRAL, SECURE = {"differential_privacy": "central"}, {"secure_aggregation": True}


@pytest.mark.parametrize(
    ("changes", "engine", "aggregator", "own", "where", "got", "remedy"),
    [
        (CENTRAL, "local", FedAvg(), False, "federation.engine", "local", "--set federation.engine=simulation"),
        (CENTRAL, "simulation", Median(), False, "privacy.differential_privacy", "median", "fedavg"),
        (CENTRAL, "simulation", FedAvg(), True, "privacy.differential_privacy", "mine", "Use a method without"),
        (SECURE, "simulation", Median(), False, "privacy.secure_aggregation", "median", "fedavg"),
        (
            {**SECURE, **CENTRAL},
            "simulation",
            FedAvg(),
            False,
            "privacy.clipped_by",
            "server",
            "--set privacy.clipped_by=client",
        ),
        (
            {**SECURE, **CENTRAL, "clipped_by": "client", "clipping": "adaptive"},
            "simulation",
            FedAvg(),
            False,
            "privacy.clipping",
            "adaptive",
            "--set privacy.clipping=fixed",
        ),
        (
            {"differential_privacy": "local", "clipping": "adaptive"},
            "simulation",
            FedAvg(),
            False,
            "privacy.clipping",
            "adaptive",
            "--set privacy.clipping=fixed",
        ),
    ],
)
def test_settings_that_cannot_be_combined_are_refused(changes, engine, aggregator, own, where, got, remedy):
    with raises(ConfigError, where=where, got=got, remedy=remedy):
        check_privacy(PrivacyConfig(**changes), engine, "mine", aggregator, own)
    check_privacy(PrivacyConfig(), engine, "mine", aggregator, own)
    if remedy.startswith("--set privacy."):
        key, value = remedy.removeprefix("--set privacy.").split("=")
        check_privacy(PrivacyConfig(**{**changes, key: value}), engine, "mine", aggregator, own)
