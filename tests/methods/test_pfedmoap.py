import math

import agreement
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import pfedmoap
from pydantic import ValidationError
from raising import raises

from fedpgp.aggregators import Server, Upload
from fedpgp.errors import ConfigError
from fedpgp.federation.run_spec import participants
from fedpgp.methods import Batch, Frozen, Params, PromptFL
from fedpgp.methods.pfedmoap import NearestExperts, PFedMoAP

SMALL = {**agreement.HYPER, "gate_width": 32, "heads": 4}


def random(seed, *shape):
    return torch.randn(*shape, generator=tiny.generator(seed, "test"), dtype=torch.float64)


def upload(client, *p):
    return Upload(client, 1 + client, {"p": torch.tensor(p, dtype=torch.float64)[:, None]})


@pytest.mark.parametrize(
    ("experts", "images", "participation"), [pytest.param(10, "random", 1.0, marks=pytest.mark.slow), (2, "real", 0.67)]
)
def test_pfedmoap_agrees_with_the_oracle(experts, images, participation, backbones, monkeypatch):
    """With a part of the clients, some have no experts while others do, and client 0 predicts before it has trained."""
    method = PFedMoAP(**SMALL, experts=experts, mixing=0.7, scaling=8.0, gate_learning_rate=0.1)
    present = [participants(3, participation, "nearest", 0, number) for number in (1, 2, 3)]
    if participation < 1:
        assert len(set(map(tuple, present))) > 1

    def oracle(world):
        pairs = zip(world.schedule, present, strict=True)
        world.schedule = [{i: batches for i, batches in work.items() if i in some} for work, some in pairs]
        return pfedmoap.run(world, experts, 0.7, 4, 8.0, 0.1)

    agreement.check_agreement(
        method, oracle, backbones, monkeypatch, rounds=3, images=images, settings={"participation": participation}
    )


def test_without_experts_pfedmoap_trains_as_promptfl_and_keeps_its_gate(exact):
    ours = tiny.run(PFedMoAP(**SMALL, experts=1), exact)
    theirs = tiny.run(PromptFL(**agreement.HYPER), exact)
    for one, two in zip(ours, theirs, strict=True):
        assert torch.allclose(one.shared["p"], two.shared["p_G"], rtol=0, atol=1e-13)
        assert one.record["loss_task"] == pytest.approx(two.record["loss_task"], rel=1e-12)
        assert one.evaluation.shared == pytest.approx(two.evaluation.shared)
        assert one.private[0].keys() == {"gate"}
    assert all(tiny.bits(own) == tiny.bits(ours[0].private[0]) for one in ours for own in one.private)
    mixed = tiny.run(PFedMoAP(**SMALL), exact)
    assert torch.allclose(
        mixed[0].shared["p"], theirs[0].shared["p_G"], rtol=0, atol=1e-13
    )  # the server has no prompts of clients yet
    assert not torch.allclose(mixed[1].shared["p"], theirs[1].shared["p_G"], atol=1e-4)
    assert tiny.bits(mixed[0].private[0]) == tiny.bits(ours[0].private[0]) != tiny.bits(mixed[1].private[0])


def test_what_is_sent_counts_the_experts(backbone):
    prompt = 3 * 128 * 4
    first, second = (one.record for one in tiny.run(PFedMoAP(**SMALL), backbone))
    assert (first["bytes_down"], first["bytes_up"]) == (prompt, prompt)
    assert (second["bytes_down"], second["bytes_up"]) == (3 * prompt, prompt)


def test_the_server_sends_the_nearest_of_those_that_it_knows():
    rule = NearestExperts(others=2)
    server = rule.begin({"p": torch.zeros(2, 1, dtype=torch.float64)}, 5)
    assert rule.download(server, 0).shared["experts"].shape == (0, 2, 1)
    server = rule.aggregate(server, [upload(0, 0, 0), upload(2, 3, 0), upload(3, 0, -1), upload(4, 1, 1)])
    found = rule.download(server, 0).shared
    assert found["experts"].flatten(1).tolist() == [[0, -1], [1, 1]]  # at 1 and √2, not that at 3
    assert found["p"].flatten().tolist() == pytest.approx([(3 * 3 + 5 * 1) / 13, (4 * -1 + 5 * 1) / 13])
    assert rule.download(server, 2).shared["experts"].flatten(1).tolist() == [[1, 1], [0, 0]]
    assert rule.download(server, 1).shared["experts"].shape == (0, 2, 1)  # client 1 has not taken part
    later = rule.aggregate(server, [upload(4, 5, 5)])
    assert rule.download(later, 0).shared["experts"].flatten(1).tolist() == [[0, -1], [3, 0]]
    assert rule.download(server, 0).shared["experts"].flatten(1).tolist() == [[0, -1], [1, 1]]  # unchanged


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(0, 5))
def test_no_expert_is_nearer_than_one_that_is_sent(seed, clients, others):
    prompts = random(seed, clients, 2, 3)
    known = torch.rand(clients, generator=tiny.generator(seed, "known")) < 0.7
    rule = NearestExperts(others=others)
    server = Server({"p": prompts[0]}, {"prompts": prompts, "known": known})
    for i in range(clients):
        sent = rule.download(server, i).shared["experts"]
        rest = [j for j in known.nonzero().flatten().tolist() if j != i] if known[i] else []
        assert len(sent) == min(others, len(rest))
        chosen = [j for j in rest if any(torch.equal(prompts[j], expert) for expert in sent)]
        assert len(chosen) == len(sent)
        left = [j for j in rest if j not in chosen]
        assert all((prompts[j] - prompts[i]).norm() <= (prompts[k] - prompts[i]).norm() for j in chosen for k in left)


def test_the_logits_by_hand():
    """One head of width two, R = 2, W_q = W_k = W_v = W_o = I, no biases, scaling ln 2, λ = 0.5, s = 3.

    The image (1, 0, 0, 0) pools to (1, 0); its query meets keys (1, 0) and (0, 1) of class 0 with weights 2/3 and 1/3,
    so h = (2/3, 1/3) and the logit is 0.5 · 3 · 1 + 3 · 2/3. Of class 1 own and expert are (0, 0) and (1, 0): weights
    1/3 and 2/3, h = (2/3, 0), and the own logit is 0.
    """
    text = torch.zeros(2, 2, 4)
    text[0, 0, 0] = text[1, 0, 2] = text[1, 1, 0] = 1
    text[0, 1, 1] = 1  # a number that pooling leaves out
    gate = {"gate": torch.eye(2, 3).expand(4, 2, 3)}
    frozen = Frozen(torch.zeros(2, 4), torch.tensor(math.log(3.0)), torch.arange(2))
    method = PFedMoAP(gate_width=2, heads=1, scaling=math.log(2.0), mixing=0.5)
    image = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    found = method.predict(Params({}, gate), text, image, frozen)
    assert found.tolist() == [pytest.approx([1.5 + 2.0, 2.0])]
    loss = method.loss(Params({}, gate), text, Batch(image, torch.tensor([0])), frozen)
    assert loss["task"].item() == pytest.approx(math.log(1 + math.exp(-1.5)))
    assert method.predict(Params({}, gate), text[:1], image, frozen).tolist() == [[3.0, 0.0]]  # plain CLIP


@given(st.integers(0, 10_000), st.integers(2, 5))
def test_the_gate_takes_experts_in_any_order_and_equal_ones_as_one(seed, experts):
    """If the experts equal the own prompt, the mixture is the output layer of its value for any attention."""
    method, params = PFedMoAP(gate_width=4, heads=2), Params({}, {"gate": random(seed, 4, 4, 5)})
    text, images = random(seed + 1, experts, 3, 9), random(seed + 2, 5, 9)
    frozen = Frozen(text[0], torch.tensor(1.0, dtype=torch.float64), torch.arange(3))
    found = method.predict(params, text, images, frozen)
    turned = torch.cat([text[:1], text[1:].flip(0)])
    assert torch.allclose(method.predict(params, turned, images, frozen), found)
    ones = torch.ones(3, 1, dtype=torch.float64)
    h = text[0, :, 0:8:2]
    for weight_and_bias in params.private["gate"][2:]:
        h = torch.cat([h, ones], dim=1) @ weight_and_bias.T
    expected = math.e * (0.5 * images @ text[0].T + images[:, 0:8:2] @ h.T)
    assert torch.allclose(method.predict(params, text[:1].expand(experts, -1, -1), images, frozen), expected)


def test_a_new_client_uses_the_average(backbone):
    method = PFedMoAP(**SMALL)
    received = {"p": torch.ones(3, 128), "experts": torch.zeros(2, 3, 128)}
    gate = method.init_private(tiny.task(), backbone, tiny.generator(0, "private"), 0)
    params = Params({"p": received["p"]}, gate, received)
    assert len(method.constant_prompts(params)) == 2
    alone = method.without_private(params)
    assert not method.constant_prompts(alone) and torch.equal(method.prompts(alone, None)[0], received["p"])


def test_a_gate_starts_as_pytorch_s_linear_layers(backbone):
    gate = PFedMoAP().init_private(tiny.task(), backbone, tiny.generator(0, "private"), 0)["gate"]
    bound = 1 / math.sqrt(128)
    assert gate.shape == (4, 128, 129) and gate.abs().max() <= bound
    assert gate.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)


@pytest.mark.parametrize(
    "values", [{"experts": 0}, {"heads": 0}, {"gate_width": 0}, {"mixing": -1.0}, {"gate_learning_rate": 0.0}]
)
def test_a_wrong_hyperparameter_is_refused(values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        PFedMoAP(**values)


@pytest.mark.parametrize(
    ("values", "where", "allowed", "got", "remedy"),
    [
        ({"gate_width": 129, "heads": 1}, "pfedmoap.gate_width", "128", 129, {"gate_width": 128}),
        ({"gate_width": 100}, "pfedmoap.heads", "100", 8, {"heads": 4}),
    ],
)
def test_a_gate_that_does_not_fit_is_refused_and_the_remedy_works(values, where, allowed, got, remedy, backbone):
    ((key, value),) = remedy.items()
    with raises(ConfigError, where=where, allowed=allowed, got=got, remedy=f"--set pfedmoap.{key}={value}"):
        PFedMoAP(**values).init_private(tiny.task(), backbone, tiny.generator(0, "private"), 0)
    PFedMoAP(**{**values, **remedy}).init_private(tiny.task(), backbone, tiny.generator(0, "private"), 0)
