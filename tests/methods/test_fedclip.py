import math

import agreement
import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracle import fedclip
from pydantic import ValidationError

from fedpgp.methods import Batch, Frozen, Params, ZeroShot
from fedpgp.methods.fedclip import FedCLIP

NO_TEXT = torch.empty(0, 4, 5)


def random(seed, *shape):
    return torch.randn(*shape, generator=tiny.generator(seed, "test"), dtype=torch.float64)


def adapter(seed, D):
    return {
        "W_1": random(seed, D, D),
        "b_1": random(seed + 1, D),
        "W_2": random(seed + 2, D, D),
        "b_2": random(seed, D),
    }


def frozen_of(text, scale=1.0):
    return Frozen(text, torch.tensor(scale, dtype=torch.float64), torch.arange(len(text)))


@pytest.mark.parametrize(("objective", "images"), [("cross-entropy", "random"), ("contrastive", "real")])
def test_fedclip_agrees_with_the_oracle(objective, images, backbones, monkeypatch):
    """Client 1 has five images, so that every second batch has one."""
    method = FedCLIP(learning_rate=0.05, objective=objective)
    agreement.check_agreement(
        method, lambda world: fedclip.run(world, objective == "contrastive"), backbones, monkeypatch, images=images
    )


def test_an_adapter_of_zeros_is_zero_shot_clip(exact):
    zeros = {name: torch.zeros_like(value) for name, value in adapter(0, 128).items()}
    images, text = tiny.random_features(9, exact.logit_scale), tiny.random_features(5, exact.logit_scale, seed=1)
    found = FedCLIP().predict(Params(zeros, {}), NO_TEXT, images, frozen_of(text))
    expected = ZeroShot().predict(Params({}, {}), NO_TEXT, images, frozen_of(text))
    assert torch.allclose(found, expected, atol=1e-12)


def test_the_adapter_by_hand():
    """W₁ f + b₁ = (artanh ½, 0), W₂ of it (ln 3, 0): a = (3/4, 1/4), and of f = (0.6, 0.8) v is (9, 4) / √97."""
    W_1, W_2 = torch.zeros(2, 2), torch.zeros(2, 2)
    W_1[0, 0], W_2[0, 0] = math.atanh(0.5) / 0.6 - 1, math.log(9.0)
    b_1 = torch.tensor([0.6, 0.0])
    theta = {"W_1": W_1, "b_1": b_1, "W_2": W_2, "b_2": torch.tensor([1.0, 1.0])}
    frozen = Frozen(torch.eye(2), torch.tensor(math.log(2.0)), torch.arange(2))
    found = FedCLIP().predict(Params(theta, {}), NO_TEXT, torch.tensor([[0.6, 0.8]]), frozen)
    assert found[0].tolist() == pytest.approx([18 / math.sqrt(97), 8 / math.sqrt(97)], rel=1e-6)


def test_the_losses_by_hand():
    """Images (1, 0) and (0, 1) of the classes 2 and 0 among three, s = 1: S = ((1, 0), (0.6, 0.8)) within the batch."""
    text = torch.tensor([[0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]])
    zeros = {"W_1": torch.zeros(2, 2), "b_1": torch.zeros(2), "W_2": torch.zeros(2, 2), "b_2": torch.zeros(2)}
    frozen = Frozen(text, torch.tensor(0.0), torch.arange(3))
    batch = Batch(torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([2, 0]))
    found = FedCLIP().loss(Params(zeros, {}), NO_TEXT, batch, frozen)["task"].item()
    rows = math.log(1 + math.exp(-1.0)) + math.log(1 + math.exp(-0.2))
    columns = math.log(1 + math.exp(-0.4)) + math.log(1 + math.exp(-0.8))
    assert found == pytest.approx((rows + columns) / 4)
    plain = FedCLIP(objective="cross-entropy").loss(Params(zeros, {}), NO_TEXT, batch, frozen)["task"].item()
    of_first = math.log(1 + math.exp(-1.0) + math.exp(-2.0))
    of_second = math.log(1 + math.exp(-0.2) + math.exp(-1.4))
    assert plain == pytest.approx((of_first + of_second) / 2)


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(2, 7))
def test_the_contrastive_loss_of_a_batch(seed, B, D):
    """The order in it does not matter; of one class it cannot be below ln B; of one image it is 0, and so its slope."""
    frozen = frozen_of(F.normalize(random(seed + 4, 4, D), dim=-1))
    theta = {name: value.requires_grad_() for name, value in adapter(seed, D).items()}
    labels = torch.randint(0, 4, (B,), generator=tiny.generator(seed, "labels"))
    images = F.normalize(random(seed + 5, B, D), dim=-1)

    def loss(images, labels):
        return FedCLIP().loss(Params(theta, {}), NO_TEXT, Batch(images, labels), frozen)["task"]

    order = torch.randperm(B, generator=tiny.generator(seed, "order"))
    assert loss(images, labels).item() == pytest.approx(loss(images[order], labels[order]).item())
    assert loss(images, labels[:1].expand(B)).item() >= math.log(B) - 1e-9
    one = loss(images[:1], labels[:1])
    one.backward()
    assert one.item() == 0 and all((value.grad == 0).all() for value in theta.values())


@given(st.integers(0, 10_000), st.integers(2, 7))
def test_adapted_images_have_unit_length_and_no_sign_turns(seed, D):
    """Logits against the axes are s times the numbers of v."""
    images = F.normalize(random(seed + 5, 3, D), dim=-1)
    v = FedCLIP().predict(Params(adapter(seed, D), {}), NO_TEXT, images, frozen_of(torch.eye(D).double(), 0.0))
    assert torch.allclose(v.norm(dim=-1), torch.ones(3).double()) and (v * images >= 0).all()


def test_an_adapter_starts_as_pytorch_s_linear_layers_and_is_sent_whole(backbone):
    theta = FedCLIP().init_shared(tiny.task(), backbone, tiny.generator(0, "shared"))
    assert {name: tuple(value.shape) for name, value in theta.items()} == {
        "W_1": (128, 128),
        "b_1": (128,),
        "W_2": (128, 128),
        "b_2": (128,),
    }
    for value in theta.values():
        assert value.abs().max().item() == pytest.approx(1 / math.sqrt(128), rel=0.05)
        assert value.std().item() == pytest.approx(1 / math.sqrt(3 * 128), rel=0.1)
    (only,) = tiny.run(FedCLIP(), backbone, rounds=1)
    assert only.record["bytes_up"] == only.record["bytes_down"] == 4 * 2 * (128**2 + 128)


def test_the_hand_written_prompt_can_be_chosen():
    assert FedCLIP().templates(tiny.task()) == ("a photo of a {}.",)
    assert len(FedCLIP(guidance="ensemble").templates(tiny.task())) == 7


@pytest.mark.parametrize("values", [{"objective": "mse"}, {"guidance": "none"}, {"learning_rate": 0.0}, {"loss": "x"}])
def test_a_wrong_hyperparameter_is_refused(values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        FedCLIP(**values)
