"""FedCoCoOp's contexts of images."""

import dataclasses
import math

import agreement
import pytest
import tiny
import torch
from oracle import fedcocoop
from pydantic import ValidationError
from raising import raises

from fedpgp.errors import ConfigError
from fedpgp.evaluation.inference import Question, answer
from fedpgp.federation.client_runner import frozen_of
from fedpgp.methods import Batch, Frozen, Params, PromptFL
from fedpgp.methods.fedcocoop import FedCoCoOp

SMALL = {"ctx_init": "random", "context_length": 2, "learning_rate": 0.01}


def first(method, backbone, seed=0):
    return Params(method.init_shared(tiny.task(), backbone, tiny.generator(seed, "shared")), {})


def read(method, params, images, backbone, encoder=None, names=agreement.NAMES):
    """The text features [B, C, D] of some images."""
    contexts = method.conditional_prompts(params, images, frozen_of(method, tiny.task(), backbone))
    return torch.stack((encoder or backbone.text).each(contexts, backbone.class_tokens(names), method.position))


def test_fedcocoop_agrees_with_the_oracle(both_precisions, monkeypatch):
    agreement.check_agreement(FedCoCoOp(**SMALL), fedcocoop.run, both_precisions, monkeypatch, images="real", rounds=2)


@pytest.mark.parametrize("position", ["end", "middle"])
def test_a_network_that_says_nothing_leaves_promptfl(position, exact):
    """Its prediction for known and novel classes, its loss, and the gradient of the context."""
    mine = FedCoCoOp(class_token_position=position)
    theirs = PromptFL(ctx_init="a photo of a", class_token_position=position)
    theta = {name: value.clone() for name, value in first(mine, exact).shared.items()}
    assert torch.equal(theta["p"], first(theirs, exact).shared["p_G"])
    theta["W_2"].zero_(), theta["b_2"].zero_()
    images, labels = agreement.test_images(exact.logit_scale), torch.arange(9) % 6
    frozen = frozen_of(mine, tiny.task(), exact)
    for names in (agreement.NAMES, agreement.ALL_NAMES, ["jar"]):
        p = theta["p"].clone().requires_grad_()
        params, plain = Params({**theta, "p": p}, {}), Params({"p_G": p}, {})
        batch = Batch(images, labels % len(names))
        text = read(mine, params, images, exact, names=names)
        alike = torch.stack(exact.text.each([p], exact.class_tokens(names), position))
        found, expected = mine.loss(params, text, batch, frozen), theirs.loss(plain, alike, batch, frozen)
        assert found.keys() == expected.keys()
        assert found["task"].item() == pytest.approx(expected["task"].item(), rel=1e-12)
        gradients = [torch.autograd.grad(one["task"], p)[0] for one in (found, expected)]
        assert torch.allclose(*gradients, rtol=0, atol=1e-12 * float(gradients[1].abs().max().clamp(min=1)))
        logits = [mine.predict(params, text, images, frozen), theirs.predict(plain, alike, images, frozen)]
        assert torch.allclose(*logits, rtol=0, atol=1e-11)


def test_a_prediction_does_not_depend_on_batch_mates(exact):
    method, params = FedCoCoOp(**SMALL), first(FedCoCoOp(**SMALL), exact)
    tokens, frozen = exact.class_tokens(tiny.NAMES), frozen_of(method, tiny.task(), exact)
    images = tiny.images(9, exact, seed=9)

    def logits(chosen):
        return answer(
            exact.towers(), Question(method, params, frozen.guidance[None][:0], images[chosen], tokens, frozen)
        )

    together, order = logits(torch.arange(9)), torch.tensor([4, 0, 8, 2])
    assert torch.allclose(logits(order), together[order], rtol=0, atol=1e-11)
    for i in range(9):
        assert torch.allclose(logits(torch.tensor([i])), together[i : i + 1], rtol=0, atol=1e-11)
    assert not torch.allclose(together.softmax(-1)[0], together.softmax(-1)[1])


def test_little_memory_gives_the_same_loss_and_gradients(exact):
    method, frozen = FedCoCoOp(**SMALL), frozen_of(FedCoCoOp(), tiny.task(), exact)
    images, labels = agreement.test_images(exact.logit_scale), torch.arange(9) % 6
    found = []
    for memory in (2**31, 2**20, 1):
        theta = {name: value.requires_grad_() for name, value in first(method, exact).shared.items()}
        params, encoder = Params(theta, {}), dataclasses.replace(exact.text, memory=memory)
        text = read(method, params, images, exact, encoder)
        loss = method.loss(params, text, Batch(images, labels), frozen)["task"]
        found.append([loss.detach(), *torch.autograd.grad(loss, list(theta.values()))])
    for numbers in found[1:]:
        for one, other in zip(numbers, found[0], strict=True):
            assert agreement.difference(one, other) < 1e-12


def test_a_context_and_logits_by_hand():
    """W₁ x + b₁ = (1.2, −0.8), of which (1.2, 0) is left: π = (1.2 · 2 + 1, 0.5) is added to both vectors."""
    theta = {
        "p": torch.tensor([[0.0, 0.0], [1.0, -1.0]]),
        "W_1": torch.tensor([[2.0, 0.0], [0.0, -1.0]]),
        "b_1": torch.tensor([0.0, 0.0]),
        "W_2": torch.tensor([[2.0, 5.0], [0.0, 5.0]]),
        "b_2": torch.tensor([1.0, 0.5]),
    }
    frozen = Frozen(torch.zeros(2, 2), torch.tensor(math.log(2.0)), torch.arange(2))
    images = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    one, other = FedCoCoOp().conditional_prompts(Params(theta, {}), images, frozen)
    assert one.flatten().tolist() == pytest.approx([3.4, 0.5, 4.4, -0.5])
    assert other.flatten().tolist() == pytest.approx([5.0, 0.5, 6.0, -0.5])
    text = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [-1.0, 0.0]]])
    found = FedCoCoOp().predict(Params(theta, {}), text, images, frozen)
    assert found.flatten().tolist() == pytest.approx([1.2, 1.6, 1.2, -2.0])
    terms = FedCoCoOp().loss(Params(theta, {}), text, Batch(images, torch.tensor([1, 0])), frozen)
    assert terms["task"].item() == pytest.approx((math.log(1 + math.exp(-0.4)) + math.log(1 + math.exp(-3.2))) / 2)


def test_it_starts_from_a_phrase_and_pytorch_s_linear_layers_and_is_sent_whole(backbone):
    theta = first(FedCoCoOp(), backbone).shared
    assert torch.equal(theta["p"], backbone.phrase("a photo of a")) and len(theta["p"]) == 4
    shapes = {"W_1": (8, 128), "b_1": (8,), "W_2": (128, 8), "b_2": (128,)}
    for name, shape in shapes.items():
        bound = 1 / math.sqrt(128 if name.endswith("1") else 8)
        assert theta[name].shape == shape and 0.6 * bound < theta[name].abs().max() <= bound
    assert theta["W_2"].std().item() == pytest.approx(1 / math.sqrt(3 * 8), rel=0.1)
    (only,) = tiny.run(FedCoCoOp(**SMALL), backbone, rounds=1)
    numbers = 2 * 128 + 8 * 128 + 8 + 128 * 8 + 128
    assert only.record["bytes_up"] == only.record["bytes_down"] == 4 * numbers
    assert only.evaluation.shared is not None and not any(only.private)


def test_an_image_shifts_all_vectors_alike_and_another_image_otherwise(exact):
    params, images = first(FedCoCoOp(), exact), torch.eye(128)[:3].to(exact.logit_scale)
    contexts = FedCoCoOp().conditional_prompts(params, images, frozen_of(FedCoCoOp(), tiny.task(), exact))
    shifts = [context - params.shared["p"] for context in contexts]
    for shift in shifts:
        assert torch.allclose(shift, shift[:1].expand_as(shift), rtol=0, atol=1e-15)
    assert not torch.allclose(shifts[0], shifts[1])


@pytest.mark.parametrize("values", [{"ctx_init": ""}, {"learning_rate": 0.0}, {"context_length": 0}, {"hidden": 8}])
def test_a_wrong_hyperparameter_is_refused(values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        FedCoCoOp(**values)


def test_a_phrase_without_tokens_is_refused(backbone):
    with raises(ConfigError, where="fedcocoop.ctx_init", got=" ", remedy="--set fedcocoop.ctx_init=random"):
        first(FedCoCoOp(ctx_init=" "), backbone)
