"""pFedMMA's adapters, their shared part, and the gradient that they follow."""

from types import SimpleNamespace

import agreement
import pytest
import tiny
import torch
import torch.nn.functional as F
from oracle import pfedmma
from pydantic import ValidationError
from raising import raises

from fedpgp.backbone.image import state_below
from fedpgp.errors import ConfigError
from fedpgp.evaluation.inference import image_features
from fedpgp.federation.client_runner import frozen_of
from fedpgp.methods import Batch, Params, ZeroShot
from fedpgp.methods.pfedmma import PFedMMA
from fedpgp.testing import CHECKS, check_method

SMALL = {"rank": 4, "learning_rate": 0.01}


def first(method, backbone, client=0):
    task = tiny.task()
    return Params(
        method.init_shared(task, backbone, tiny.generator(0, "shared")),
        method.init_private(task, backbone, tiny.generator(0, "private"), client),
    )


def read(method, params, backbone, images):
    """Return the input of the method: text features, and two features of each image."""
    contexts = method.prompts(params, frozen_of(method, tiny.task(), backbone))
    tokens = backbone.class_tokens([tiny.NAMES[label] for label in tiny.BASE], method.tail)
    text = backbone.text.each(contexts, tokens, method.position)
    frozen = frozen_of(method, tiny.task(), backbone).select(tiny.BASE)
    text = torch.stack(text) if text else frozen.guidance[None][:0]
    return text, image_features(backbone.towers(method.reads), method, images, params), frozen


def logits_of(method, params, backbone, images):
    text, seen, frozen = read(method, params, backbone, images)
    return method.predict(params, text, seen, frozen)


def zero_shot(backbone, images):
    """The logits of "a photo of a {}." and the images' frozen features."""
    frozen = frozen_of(ZeroShot(), tiny.task(), backbone).select(tiny.BASE)
    return ZeroShot().predict(Params({}, {}), frozen.guidance[None][:0], images.pooled, frozen)


@pytest.mark.parametrize(
    ("start_layer", "scale", "images"),
    [(2, 0.3, "random"), (5, 0.001, "real")],
    ids=["both towers", "as published, without a layer of text"],
)
def test_pfedmma_agrees_with_the_oracle(start_layer, scale, images, backbones, monkeypatch):
    method = PFedMMA(**SMALL, start_layer=start_layer, scale=scale)
    agreement.check_agreement(
        method, lambda world: pfedmma.run(world, scale, start_layer), backbones, monkeypatch, images=images
    )


def test_pfedmma_without_an_adapted_text_layer_keeps_the_contract(exact):
    assert len(check_method(PFedMMA(**SMALL, start_layer=5), exact)) == len(CHECKS)


def test_adapters_that_say_nothing_are_zero_shot_clip(exact):
    """Without weights and biases in the middle, a ReLU lets nothing through, and a bias of zeros adds nothing."""
    method = PFedMMA(**SMALL, start_layer=2, scale=1.0)
    images = agreement.real_images(exact, state_below(1))
    params = first(method, exact)
    nothing = Params({name: torch.zeros_like(value) for name, value in params.shared.items()}, params.private)
    expected = zero_shot(exact, images)
    assert torch.allclose(logits_of(method, nothing, exact, images), expected, rtol=0, atol=1e-11)
    assert (logits_of(method, params, exact, images) - expected).abs().max() > 0.1


def test_with_little_weight_pfedmma_stays_zero_shot_clip_however_long_it_trains(exact):
    """Its parameters still change, because they follow the gradient for α = 1."""
    method = PFedMMA(**SMALL, start_layer=2, scale=1e-12)
    images = agreement.real_images(exact, state_below(1))
    *_, last = tiny.run(method, exact, tiny.data(exact, images, state_below(1)))
    start = first(method, exact)
    for name, value in last.shared.items():
        assert (value - start.shared[name]).abs().max() > 1e-6, name
    trained = Params(last.shared, last.private[0])
    assert torch.allclose(logits_of(method, trained, exact, images), zero_shot(exact, images), rtol=0, atol=1e-8)


def test_the_followed_gradient_is_that_of_a_scale_of_one_in_the_adapter_itself(exact):
    """In the last layer nothing lies above, so that a small α leaves only itself in the gradient of what comes out."""
    small = PFedMMA(**SMALL, start_layer=5, scale=1e-9)
    params = first(small, exact)
    params.private["image.4.up.weight"].requires_grad_()
    images = tiny.images(3, exact, state_below(4))
    text, seen, frozen = read(small, params, exact, images)
    loss = small.loss(params, text, Batch(seen, torch.tensor([0, 1, 2])), frozen)["task"]
    (gradient,) = torch.autograd.grad(loss, [params.private["image.4.up.weight"]])
    followed = small.direction({"task": {"image.4.up.weight": gradient}}, params, tiny.generator(0, "step"))
    assert torch.equal(followed["image.4.up.weight"], gradient / 1e-9)
    step = 1e-3 * torch.randn(gradient.shape, generator=tiny.generator(1, "step")).double()

    def loss_at(distance):
        moved = params.private | {"image.4.up.weight": params.private["image.4.up.weight"].detach() + distance * step}
        ones = PFedMMA(**SMALL, start_layer=5, scale=1e-3)
        text, seen, frozen = read(ones, Params(params.shared, moved), exact, images)
        return ones.loss(params, text, Batch(seen, torch.tensor([0, 1, 2])), frozen)["task"].item()

    slope = (loss_at(1) - loss_at(-1)) / 2 / 1e-3
    assert (followed["image.4.up.weight"] * step).sum().item() == pytest.approx(slope, rel=1e-2)


def test_an_adapter_by_hand():
    """Down (1, −1) of x = 2: relu (2, 0); middle gives (2 + 1, −2): relu (3, 0); up 3 · 0.5 + 0.25; α = 0.1."""
    theta = {
        "image.0.down.weight": torch.tensor([[1.0], [-1.0]]),
        "image.0.down.bias": torch.zeros(2),
        "image.0.up.weight": torch.tensor([[0.5, 7.0]]),
        "image.0.up.bias": torch.tensor([0.25]),
    }
    shared = {
        "middle.0.weight": torch.tensor([[1.0, 9.0], [-1.0, 5.0]]),
        "middle.0.bias": torch.tensor([1.0, 0.0]),
    }
    method = PFedMMA(start_layer=1, scale=0.1, rank=2)
    (adapter,) = method.adapters(Params(shared, theta), "image").values()
    assert adapter(torch.tensor([2.0])).tolist() == pytest.approx([0.175])
    assert method.adapters(Params(shared, theta), "text") == {} == PFedMMA().adapters(Params(shared, theta), "image")


def test_the_middle_is_common_to_both_towers(exact):
    method = PFedMMA(**SMALL, start_layer=2, scale=0.1)
    images, params = tiny.images(3, exact, state_below(1)), first(method, exact)
    before = read(method, params, exact, images)
    for number, of_text in ((1, True), (2, True), (3, False), (4, False)):
        changed = params.shared | {f"middle.{number}.weight": params.shared[f"middle.{number}.weight"] + 0.5}
        after = read(method, Params(changed, params.private), exact, images)
        assert torch.equal(before[0], after[0]) != of_text
        assert not torch.allclose(before[1], after[1], atol=1e-4)
    assert torch.equal(before[1][:, 0], images.pooled)


def test_first_values_are_those_of_the_public_code_and_the_same_for_everybody(backbone):
    method = PFedMMA(start_layer=2)
    params = first(method, backbone)
    for name, value in {**params.shared, **params.private}.items():
        if name.endswith("bias"):
            assert not value.any()
        else:
            expected = (2 / len(value)) ** 0.5  # fan out: the numbers that come out
            assert value.std().item() == pytest.approx(expected, rel=0.1), name
            assert abs(value.mean().item()) < 0.1 * expected
    other = first(method, backbone, client=2)
    assert tiny.bits(params.private) == tiny.bits(other.private)
    found = {name: tuple(value.shape) for name, value in params.private.items() if name.startswith("text.2")}
    assert found == {
        "text.2.down.weight": (32, 128),
        "text.2.down.bias": (32,),
        "text.2.up.weight": (128, 32),
        "text.2.up.bias": (128,),
    }
    assert {name.rpartition(".")[0] for name in params.shared} == {f"middle.{n}" for n in (1, 2, 3, 4)}
    assert "text.3.down.weight" not in params.private and "image.4.up.weight" in params.private


def towers(text, image):
    """The sizes of a checkpoint: layers and width of each tower."""
    return SimpleNamespace(
        text=SimpleNamespace(layers=range(text[0])),
        token_width=text[1],
        image=SimpleNamespace(layers=image[0], token_width=image[1]),
        logit_scale=torch.tensor(0.0),
    )


def test_sizes_at_the_width_of_vit_b_16():
    """Eight layers: 2 · 32 · 768 + 32 + 768 and 2 · 32 · 512 + 32 + 512, and 32² + 32 of both."""
    params = first(PFedMMA(), towers((12, 512), (12, 768)))
    sent, kept = (sum(t.numel() for t in part.values()) for part in (params.shared, params.private))
    assert (sent, sent + kept) == (8448, 674560) == (8 * 1056, 8 * (1056 + 49952 + 33312))


def test_towers_of_different_depth():
    """ViT-L/14 has 12 layers of text, and 24 of the image."""
    params = first(PFedMMA(start_layer=10), towers((12, 768), (24, 1024)))
    assert {int(name.split(".")[1]) for name in params.shared} == {*range(9, 24)}
    numbers = {
        tower: {int(name.split(".")[1]) for name in params.private if name.startswith(tower)}
        for tower in ("text", "image")
    }
    assert numbers == {"text": {9, 10, 11}, "image": {*range(9, 24)}}
    deeper_text = first(PFedMMA(start_layer=4), towers((6, 8), (4, 8)))
    assert {int(name.split(".")[1]) for name in deeper_text.shared} == {3, 4, 5}


def test_only_the_middle_is_sent(backbone):
    (only,) = tiny.run(PFedMMA(start_layer=2, **SMALL), backbone, rounds=1)
    assert only.record["bytes_up"] == only.record["bytes_down"] == 4 * 4 * (4 * 4 + 4)
    assert only.evaluation.shared is None


def test_text_without_adapters_is_the_hand_written_prompt(exact):
    method = PFedMMA(**SMALL, start_layer=4)
    params, images = first(method, exact), tiny.images(3, exact, state_below(3))
    assert method.prompts(params, frozen_of(method, tiny.task(), exact)) == []
    text, seen, frozen = read(method, params, exact, images)
    assert text.shape == (0, 6, 128) and seen.shape == (3, 2, 128)
    expected = frozen.logit_scale.exp() * F.normalize(seen[:, 1], dim=-1) @ frozen.guidance.T
    assert torch.allclose(method.predict(params, text, seen, frozen), expected, rtol=0, atol=1e-12)


def test_a_first_layer_above_the_image_tower_is_refused(backbone):
    remedy = "--set pfedmma.start_layer=5"
    with raises(ConfigError, where="pfedmma.start_layer", allowed="image tower", got=6, remedy=remedy):
        first(PFedMMA(start_layer=6), backbone)
    assert first(PFedMMA(start_layer=5), backbone).private.keys() == {
        f"image.4.{part}.{of}" for part in ("down", "up") for of in ("weight", "bias")
    }


@pytest.mark.parametrize(
    "values", [{"rank": 0}, {"start_layer": 0}, {"scale": 0.0}, {"scale": -0.1}, {"learning_rate": 0.0}, {"width": 8}]
)
def test_a_wrong_hyperparameter_is_refused(values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        PFedMMA(**values)


def test_the_published_configuration():
    method = PFedMMA()
    assert (method.start_layer, method.rank, method.scale, method.tail) == (5, 32, 1e-3, "a photo of a {}.")
    assert method.first_layer == 4
