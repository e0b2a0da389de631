"""FedVPT: visual prompts without text prompts."""

import math

import agreement
import pytest
import tiny
import torch
from oracle import clip_image, fedvpt
from pydantic import ValidationError
from raising import raises

from fedpgp.errors import ConfigError
from fedpgp.evaluation.inference import Question, answer, image_features, kind_of
from fedpgp.federation.client_runner import frozen_of
from fedpgp.methods import Batch, Frozen, Params, ZeroShot
from fedpgp.methods.fedvpt import FedVPT

NO_TEXT = torch.empty(0, 3, 2)


def first(method, backbone):
    return Params(method.init_shared(tiny.task(), backbone, tiny.generator(0, "shared")), {})


@pytest.mark.parametrize(("depth", "rate", "images"), [(None, 0.01, "real"), (1, 0.002, "random")])
def test_fedvpt_agrees_with_the_oracle(depth, rate, images, both_precisions, monkeypatch):
    method = FedVPT(visual_length=2, depth=depth, learning_rate=rate)
    agreement.check_agreement(method, fedvpt.run, both_precisions, monkeypatch, images=images)


def test_prediction_and_loss_by_hand():
    """Of the two features of each image the second counts: (1, 0) against the texts (1, 0), (0, 1), (−0.6, 0.8)."""
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-0.6, 0.8]])
    frozen = Frozen(text, torch.tensor(math.log(2.0)), torch.arange(3))
    images, params = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), Params({}, {})
    assert FedVPT().predict(params, NO_TEXT, images, frozen).tolist() == [pytest.approx([2, 0, -1.2])]
    found = FedVPT().loss(params, NO_TEXT, Batch(images, torch.tensor([1])), frozen)
    assert found["task"].item() == pytest.approx(math.log(math.exp(2) + 1 + math.exp(-1.2)))


@pytest.mark.parametrize("guidance", ["template", "ensemble"])
def test_the_text_is_zero_shot_clip_s_and_the_images_are_not(guidance, exact):
    """The logits are zero-shot CLIP's for the feature of the tower with prompts, which differs from the frozen one."""
    method, plain = FedVPT(visual_length=2, guidance=guidance), ZeroShot(guidance=guidance)
    params, frozen = first(method, exact), frozen_of(method, tiny.task(), exact)
    assert torch.equal(frozen.guidance, frozen_of(plain, tiny.task(), exact).guidance)
    assert not method.prompts(params, frozen)
    some = agreement.real_images(exact, kind_of(method))
    tokens = exact.class_tokens(tiny.NAMES, method.tail)
    found = answer(exact.towers(method.reads), Question(method, params, NO_TEXT, some, tokens, frozen))
    prompted = clip_image.tower_features(exact.image.model, some.tokens, fedvpt.layers(params.shared, "visual"))
    assert torch.allclose(found, plain.predict(params, NO_TEXT, prompted, frozen), rtol=0, atol=1e-10)
    assert (found - plain.predict(params, NO_TEXT, some.pooled, frozen)).abs().max() > 0.1


def test_every_layer_s_vectors_matter_and_their_order_does_not(exact):
    """They have no places: in another order, the same in all layers, they are the same prompt."""
    method = FedVPT(visual_length=3)
    some, towers = tiny.images(3, exact, kind_of(method)), exact.towers(method.reads)
    params = first(method, exact)
    leaves = {name: value.clone().requires_grad_() for name, value in params.shared.items()}
    seen = image_features(towers, method, some, Params(leaves, {}))
    assert torch.equal(seen[:, 0], some.pooled)
    weights = tiny.random_features(3, exact.logit_scale, seed=5)
    gradients = torch.autograd.grad((seen[:, 1] * weights).sum(), list(leaves.values()))
    assert [len(gradient) for gradient in gradients] == [3, 4]
    assert all((vector.abs().max() > 1e-8).all() for gradient in gradients for vector in gradient.flatten(0, -2))
    turned = {name: value[..., [2, 0, 1], :] for name, value in params.shared.items()}
    other = image_features(towers, method, some, Params(turned, {}))
    assert torch.allclose(other, seen, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("depth", "deeper"), [(None, 4), (5, 4), (2, 1), (1, None)])
def test_what_is_learned_and_sent(depth, deeper, backbone):
    method = FedVPT(visual_length=3, depth=depth)
    shared = first(method, backbone).shared
    shapes = {"visual": (3, 160)} | ({} if deeper is None else {"visual_deeper": (deeper, 3, 160)})
    assert {name: tuple(value.shape) for name, value in shared.items()} == shapes
    for value in shared.values():
        assert value.mean().abs() < 5e-3 and value.std().item() == pytest.approx(0.02, rel=0.15)
    if depth == 2:
        (only,) = tiny.run(method, backbone, rounds=1)
        assert only.record["bytes_up"] == only.record["bytes_down"] == 2 * 3 * 160 * 4
        assert only.evaluation.shared is not None


def test_more_layers_than_the_tower_has_are_refused(backbone):
    with raises(ConfigError, where="fedvpt.depth", allowed="image tower", got=6, remedy="--set fedvpt.depth=5"):
        first(FedVPT(depth=6), backbone)
    first(FedVPT(depth=5), backbone)


@pytest.mark.parametrize(
    "values", [{"visual_length": 0}, {"depth": 0}, {"guidance": "none"}, {"learning_rate": 0.0}, {"context_length": 4}]
)
def test_a_wrong_hyperparameter_is_refused(values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        FedVPT(**values)
