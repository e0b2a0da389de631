"""FedProx on the prompt."""

from dataclasses import replace

import agreement
import pytest
import tiny
import torch
from oracle import promptprox
from pydantic import ValidationError

from fedpgp.methods import Batch, Frozen, Params, PromptFL
from fedpgp.methods.promptprox import PromptProx


def test_promptprox_agrees_with_the_oracle(backbones, monkeypatch):
    method = PromptProx(**agreement.HYPER, mu=0.7)
    agreement.check_agreement(method, lambda world: promptprox.run(world, 0.7), backbones, monkeypatch, rounds=3)


def test_the_proximal_term_and_its_gradient_by_hand():
    """p − p^t = (3, −1): μ/2 · 10 with gradient μ (3, −1); the prompt that was received has none."""
    p = torch.tensor([[4.0, 1.0]], requires_grad=True)
    received = torch.tensor([[1.0, 2.0]])
    text, batch = torch.eye(2)[None], Batch(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    frozen = Frozen(torch.eye(2), torch.tensor(0.0), torch.arange(2))
    terms = PromptProx(mu=0.5).loss(Params({"p_G": p}, {}, {"p_G": received}), text, batch, frozen)
    assert terms["proximal"].item() == pytest.approx(2.5)
    terms["proximal"].backward()
    assert p.grad.tolist() == [[1.5, -0.5]]
    assert terms["task"] == PromptFL().loss(Params({}, {}), text, batch, frozen)["task"]


@pytest.mark.parametrize("options", [{}, {"finetuning": 1}, {"class_specific": True, "class_token_position": "front"}])
def test_without_the_term_promptprox_is_promptfl(options, exact):
    hyper = {**agreement.HYPER, "learning_rate": 0.01, **options}
    ours, theirs = (tiny.run(method, exact) for method in (PromptProx(**hyper, mu=0.0), PromptFL(**hyper)))
    for one, two in zip(ours, theirs, strict=True):
        assert torch.allclose(one.shared["p_G"], two.shared["p_G"], rtol=0, atol=1e-13)
        assert one.record["loss_proximal"] == 0
        assert {k: v.tolist() for k, v in one.evaluation.clients.items()} == {
            k: v.tolist() for k, v in two.evaluation.clients.items()
        }
    held = tiny.run(replace(PromptProx(**hyper), mu=1.0), exact)
    assert not torch.allclose(held[-1].shared["p_G"], theirs[-1].shared["p_G"], rtol=0, atol=1e-5)


def test_a_larger_mu_keeps_clients_nearer_to_the_server(exact):
    """With one client in a round, its update is the server's next prompt."""
    start = PromptProx(**agreement.HYPER).init_shared(tiny.task(), exact, tiny.generator(0, "shared"))["p_G"]
    moved = []
    for mu in (0.0, 1.0, 10.0):
        (only,) = tiny.run(PromptProx(**agreement.HYPER, mu=mu), exact, rounds=1, participation=0.1, momentum=0.0)
        moved.append((only.shared["p_G"] - start).norm().item())
    assert moved[0] > moved[1] > moved[2] > 0


@pytest.mark.parametrize("mu", [-0.1, float("inf"), "0.5"])
def test_a_wrong_weight_is_refused(mu):
    with pytest.raises(ValidationError, match="mu"):
        PromptProx(mu=mu)
    assert PromptProx().mu == 0.5
