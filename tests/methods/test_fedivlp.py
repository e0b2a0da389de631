"""Independent prompts of both towers."""

from dataclasses import replace

import agreement
import pytest
import tiny
import torch
from oracle import fedivlp
from pydantic import ValidationError
from raising import raises

from fedpgp.errors import ConfigError
from fedpgp.evaluation.inference import image_features, kind_of
from fedpgp.federation.client_runner import frozen_of
from fedpgp.methods import Params, PromptFL
from fedpgp.methods.fedivlp import FedIVLP
from fedpgp.testing import CHECKS, check_method


def first(method, backbone):
    return Params(method.init_shared(tiny.task(), backbone, tiny.generator(0, "shared")), {})


@pytest.mark.parametrize(
    ("changes", "tail", "images"),
    [
        ({"visual_length": 3, "depth": 3}, "{}.", "real"),
        pytest.param({"context_length": 3, "visual_length": 0, "depth": 2}, "a {}.", "random", marks=pytest.mark.slow),
        ({"context_length": 5, "visual_length": 1, "depth": 1}, "{}.", "random"),  # longer than the phrase: drawn
    ],
)
def test_fedivlp_agrees_with_the_oracle(changes, tail, images, backbones, monkeypatch):
    method = FedIVLP(**changes, learning_rate=0.003)
    assert method.tail == tail
    agreement.check_agreement(method, lambda world: fedivlp.run(world, tail), backbones, monkeypatch, images=images)


def test_fedivlp_without_a_visual_part_keeps_the_contract(exact):
    method = FedIVLP(visual_length=0, depth=2, learning_rate=0.05)
    assert len(check_method(method, exact)) == len(CHECKS)


def test_shallow_and_without_visual_prompt_fedivlp_is_promptfl(exact):
    schedule = {"rounds": 3, "participation": 0.67}
    ours = tiny.run(FedIVLP(visual_length=0, depth=1, learning_rate=0.05), exact, **schedule)
    theirs = tiny.run(PromptFL(ctx_init="a photo of a", learning_rate=0.05), exact, **schedule)
    for one, two in zip(ours, theirs, strict=True):
        assert list(one.shared) == ["text"]
        assert torch.allclose(one.shared["text"], two.shared["p_G"], rtol=0, atol=1e-13)
        assert one.record["loss_task"] == pytest.approx(two.record["loss_task"], rel=1e-12)
        assert {k: v.tolist() for k, v in one.evaluation.clients.items()} == {
            k: v.tolist() for k, v in two.evaluation.clients.items()
        }
        assert one.evaluation.diagnostics == pytest.approx(two.evaluation.diagnostics, rel=1e-12)
    deep = tiny.run(FedIVLP(visual_length=0, depth=2, learning_rate=0.05), exact, **schedule)
    assert not torch.allclose(deep[-1].shared["text"], theirs[-1].shared["p_G"], rtol=0, atol=1e-4)


def test_shallow_prompts_start_as_the_hand_written_one(exact):
    method = FedIVLP(depth=1)
    params, frozen = first(method, exact), frozen_of(FedIVLP(), tiny.task(), exact)
    (z,) = exact.text.each(method.prompts(params, frozen), exact.class_tokens(tiny.NAMES, method.tail))
    assert torch.allclose(z, frozen.guidance, rtol=0, atol=1e-12)
    assert method.diagnostics(z[None], frozen)["cosine_guidance_global"] == pytest.approx(1)


def test_without_a_visual_prompt_images_have_their_frozen_feature(exact):
    method = FedIVLP(visual_length=0, depth=2)
    some, params = tiny.images(4, exact, kind_of(method)), first(method, exact)
    seen = image_features(exact.towers(method.reads), method, some, params)
    assert torch.equal(seen, some.pooled) and kind_of(method) is None
    frozen = frozen_of(method, tiny.task(), exact)
    z = tiny.random_features(8, exact.logit_scale, seed=3)
    expected = frozen.logit_scale.exp() * some.pooled @ z.T
    assert torch.equal(method.predict(params, z[None], seen, frozen), expected)


@pytest.mark.parametrize(
    ("changes", "shapes"),
    [
        (
            {"depth": 3},
            {"text": (4, 128), "text_deeper": (2, 4, 128), "visual": (4, 160), "visual_deeper": (2, 4, 160)},
        ),
        ({"depth": 3, "visual_length": 0}, {"text": (4, 128), "text_deeper": (2, 4, 128)}),
        ({"depth": 1, "context_length": 9}, {"text": (9, 128), "visual": (4, 160)}),
    ],
)
def test_what_is_learned_and_sent(changes, shapes, backbone):
    method = FedIVLP(**changes)
    shared = first(method, backbone).shared
    assert {name: tuple(value.shape) for name, value in shared.items()} == shapes
    for name, value in shared.items():
        if name != "text" or method.context_length > 4:  # the phrase is shorter, so that the context is drawn
            assert value.mean().abs() < 5e-3 and value.std().item() == pytest.approx(0.02, rel=0.15)
        else:
            assert torch.equal(value, backbone.phrase("a photo of a"))
    assert len(method.visual_prompts(Params(shared, {}))) == ("visual" in shared)


def test_more_layers_than_a_tower_has_are_refused(backbone):
    with raises(ConfigError, where="fedivlp.depth", allowed="text tower", got=9, remedy="--set fedivlp.depth=3"):
        first(FedIVLP(), backbone)
    layers = backbone.text.layers
    long = replace(backbone, text=replace(backbone.text, layers=replace(layers, weights=layers.weights * 3)))
    with raises(ConfigError, where="fedivlp.depth", allowed="image tower", got=9, remedy="--set fedivlp.depth=5"):
        first(FedIVLP(), long)
    assert len(first(FedIVLP(visual_length=0), long).shared["text_deeper"]) == 8


@pytest.mark.parametrize(
    "values",
    [
        {"visual_length": -1},
        {"depth": 0},
        {"depth": None},
        {"context_length": 0},
        {"ctx_init": ""},
        {"learning_rate": 0.0},
        {"guidance": "template"},
    ],
)
def test_a_wrong_hyperparameter_is_refused(values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        FedIVLP(**values)
