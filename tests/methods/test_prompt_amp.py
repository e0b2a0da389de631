"""FedAMP on prompts: its server's attention, and whole federations."""

import math
from dataclasses import replace

import agreement
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import prompt_amp
from pydantic import ValidationError

from fedpgp.aggregators import Server, Upload
from fedpgp.federation.state import State
from fedpgp.methods import Batch, Frozen, Local, Params
from fedpgp.methods.prompt_amp import PromptAMP

MILD = PromptAMP(**agreement.HYPER, attraction=2.5, alpha=5.0, sigma=20.0)  # no row is scaled down
STRONG = PromptAMP(**agreement.HYPER, attraction=50.0, alpha=100.0, sigma=5.0)  # every row is
HEURISTIC = PromptAMP(**agreement.HYPER, attraction=0.3, heuristic=True, sharpness=2.0, self_weight=0.2)
NAMES = ("attraction", "alpha", "sigma", "heuristic", "sharpness", "self_weight")

PROMPTS = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(st.floats(-3, 3), min_size=4, max_size=4), min_size=n, max_size=n)
)
METHODS = st.one_of(
    st.builds(PromptAMP, alpha=st.floats(1e-3, 1e4), sigma=st.floats(1e-3, 1e3)),
    st.builds(PromptAMP, heuristic=st.just(True), sharpness=st.floats(0, 100), self_weight=st.floats(0, 0.99)),
)


def hyper(method):
    return {name: getattr(method, name) for name in NAMES}


def server_of(rows):
    """Return a server that has received prompts [2, 2] from clients."""
    w = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 2, 2)
    return Server({"p": torch.zeros(2, 2, dtype=torch.float64)}, {"w": w})


def weights_of(method, rows, i):
    return method.own_aggregator(rounds=5).weights(torch.tensor(rows, dtype=torch.float64), i).tolist()


# ---------------------------------------------------------------------------------------------------------- agreement


@pytest.mark.parametrize("method", [MILD, STRONG, HEURISTIC])
def test_prompt_amp_agrees_with_the_oracle(method, backbones, monkeypatch):
    agreement.check_agreement(
        method, lambda world: prompt_amp.run(world, **hyper(method)), backbones, monkeypatch, rounds=3
    )


def test_the_compared_methods_cover_both_kinds_of_rows(exact):
    """The weights of other clients before scaling, in the last round of the comparisons above."""
    for method, low, high in ((MILD, 0.1, 0.9), (STRONG, 1.1, math.inf)):
        w = tiny.run(method, exact, rounds=2)[-1].server.memory["w"].flatten(1)
        for i in range(3):
            others = [math.exp(-prompt_amp.distance(w[i], w[j]) / method.sigma) for j in range(3) if j != i]
            assert low < method.alpha / method.sigma * sum(others) < high


def test_clients_that_miss_rounds_agree_with_the_oracle(exact):
    """A client starts from u_i in its first round. Until then, the server has the initial prompt for it."""
    data, changes = tiny.data(exact), {"rounds": 4, "participation": 0.34, "local_epochs": agreement.EPOCHS}
    found = tiny.run(MILD, exact, data, **changes)
    world = agreement.world_of(MILD, exact, data, 4)
    world.schedule = [
        {client: work[client] for client in one.record["participants"]}
        for work, one in zip(world.schedule, found, strict=True)
    ]
    assert len({tuple(work) for work in world.schedule}) > 1
    for one, (_, clients) in zip(found, prompt_amp.run(world, **hyper(MILD)).rounds, strict=True):
        for i, own in enumerate(clients):
            assert agreement.difference(one.server.memory["w"][i], own["p"]) < 1e-9
            assert not one.kept[i] or torch.equal(one.kept[i]["p"], one.server.memory["w"][i])


# ------------------------------------------------------------------------------------------------------------ by hand


def test_attention_by_hand():
    """Prompts 0, 1 and 3: squared distances 1, 9 and 4."""
    rows, method = [[0.0], [1.0], [3.0]], PromptAMP(alpha=0.5, sigma=2.0)
    near, far = 0.25 * math.exp(-0.5), 0.25 * math.exp(-4.5)
    assert weights_of(method, rows, 0) == pytest.approx([1 - near - far, near, far])
    assert weights_of(method, rows, 1) == pytest.approx([near, 1 - near - 0.25 * math.exp(-2), 0.25 * math.exp(-2)])
    scaled = replace(method, alpha=50.0)
    assert weights_of(scaled, rows, 0) == pytest.approx([0, near / (near + far), far / (near + far)])


def test_heuristic_attention_by_hand():
    """Cosines of the first with the others: 0 and −1."""
    method = PromptAMP(heuristic=True, sharpness=2.0, self_weight=0.3)
    found = weights_of(method, [[1.0, 0.0], [0.0, 5.0], [-2.0, 0.0]], 0)
    assert found == pytest.approx([0.3, 0.7 / (1 + math.exp(-2)), 0.7 * math.exp(-2) / (1 + math.exp(-2))])


def test_a_client_is_sent_the_weighted_sum_of_all_prompts():
    server = server_of([[0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 2.0]])
    xi = 0.5 / 10 * math.exp(-5 / 10)
    sent = PromptAMP(alpha=0.5, sigma=10.0).own_aggregator(rounds=5).download(server, 0).shared["p"]
    assert sent.flatten().tolist() == pytest.approx([xi, 0, 0, 2 * xi])


def test_the_attraction_and_its_gradient_by_hand():
    """w − u = (3, −1): λ/(2α) · 10 with gradient λ/α (3, −1)."""
    w, u = torch.tensor([[4.0, 1.0]], requires_grad=True), torch.tensor([[1.0, 2.0]])
    frozen, batch = Frozen(torch.eye(2), torch.tensor(0.0), torch.arange(2)), Batch(torch.eye(2), torch.arange(2))
    terms = PromptAMP(attraction=0.6, alpha=2.0).loss(Params({"p": w}, {}, {"p": u}), torch.eye(2)[None], batch, frozen)
    assert terms["attraction"].item() == pytest.approx(1.5)
    terms["attraction"].backward()
    assert w.grad.flatten().tolist() == pytest.approx([0.9, -0.3])


# --------------------------------------------------------------------------------------------------------- invariants


@given(METHODS, PROMPTS)
def test_weights_are_not_negative_and_sum_to_one(method, rows):
    for i in range(len(rows)):
        found = weights_of(method, rows, i)
        assert min(found) >= 0
        assert sum(found) == pytest.approx(1, abs=1e-12)


@given(METHODS, PROMPTS, st.randoms(use_true_random=False))
def test_the_order_of_the_clients_changes_no_bit(method, rows, random):
    order = list(range(len(rows)))
    random.shuffle(order)
    one, other = server_of(rows), server_of([rows[i] for i in order])
    rule = method.own_aggregator(rounds=5)
    for place, i in enumerate(order):
        sent = [rule.download(server, k).shared["p"] for server, k in ((one, i), (other, place))]
        assert torch.equal(*sent)


@pytest.mark.parametrize("method", [PromptAMP(), PromptAMP(sigma=100.0), PromptAMP(heuristic=True)])
def test_the_order_of_many_clients_changes_no_bit(method):
    """In float32, with prompts of the usual size."""
    w = 0.02 * torch.randn(37, 16, 128, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(37, generator=torch.Generator().manual_seed(1))
    uploads = [Upload(i, 8, {"p": w[i]}) for i in range(37)]
    rule = method.own_aggregator(rounds=5)
    server = rule.aggregate(rule.begin({"p": w[0]}, 37), uploads)
    moved = [Upload(place, 8, {"p": w[i]}) for place, i in enumerate(order.tolist())]
    other = rule.aggregate(rule.begin({"p": w[0]}, 37), moved[::-1])
    for place, i in enumerate(order.tolist()):
        sent = rule.download(server, i).shared["p"]
        assert torch.equal(sent, rule.download(other, place).shared["p"])
        assert not torch.equal(sent, w[i])


@given(METHODS, st.lists(st.floats(-3, 3), min_size=4, max_size=4), st.integers(1, 6))
def test_equal_prompts_are_sent_back_as_they_are(method, row, clients):
    """This includes the prompt of a single client, and all prompts before the first round."""
    for i in range(clients):
        sent = method.own_aggregator(rounds=5).download(server_of([row] * clients), i).shared["p"]
        assert sent.flatten().tolist() == row


# ----------------------------------------------------------------------------------------------- in whole federations


@pytest.mark.parametrize(
    "options", [{}, {"class_specific": True, "learning_rate": 0.01, "class_token_position": "middle"}]
)
def test_without_attraction_prompt_amp_is_local(options, exact):
    """From a phrase: the random starts are other draws."""
    options = {"ctx_init": "a photo", "learning_rate": 0.05, **options}
    ours = tiny.run(PromptAMP(**options, attraction=0.0), exact)
    theirs = tiny.run(Local(**options), exact)
    for one, two in zip(ours, theirs, strict=True):
        for mine, other in zip(one.kept, two.private, strict=True):
            assert torch.allclose(mine["p"], other["p"], rtol=0, atol=1e-13)
        assert {k: v.tolist() for k, v in one.evaluation.clients.items()} == {
            k: v.tolist() for k, v in two.evaluation.clients.items()
        }
    drawn = tiny.run(PromptAMP(**options), exact)
    assert not torch.allclose(drawn[-1].kept[0]["p"], theirs[-1].private[0]["p"], rtol=0, atol=1e-5)


def test_attraction_brings_clients_nearer_to_each_other(exact):
    def spread(attraction):
        method = PromptAMP(**agreement.HYPER, attraction=attraction, alpha=100.0, sigma=20.0)
        w = tiny.run(method, exact, rounds=3)[-1].server.memory["w"].flatten(1)
        return torch.pdist(w).mean().item()

    assert spread(0.0) > 1.5 * spread(100.0)


def test_a_resumed_run_gives_the_same_bits_and_the_shared_part_cannot_predict(exact, tmp_path):
    whole = tiny.run(MILD, exact, rounds=3, participation=0.67)
    State.create(tmp_path / "s").close()
    for rounds in (1, 3):
        with State.open(tmp_path / "s") as state:
            part = tiny.run(MILD, exact, rounds=rounds, participation=0.67, state=state)
    assert tiny.bits(part[-1].server.memory) == tiny.bits(whole[-1].server.memory)
    assert [tiny.bits(kept) for kept in part[-1].kept] == [tiny.bits(kept) for kept in whole[-1].kept]
    assert whole[-1].evaluation.shared is None
    assert whole[-1].record["bytes_up"] == whole[-1].record["bytes_down"] == 3 * exact.token_width * 8


# ---------------------------------------------------------------------------------------------------- hyperparameters


@pytest.mark.parametrize(
    "values",
    [{"attraction": -1.0}, {"alpha": 0.0}, {"sigma": 0.0}, {"sharpness": -1.0}, {"self_weight": 1.0}, {"heuristic": 1}],
)
def test_a_wrong_hyperparameter_is_refused(values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        PromptAMP(**values)
