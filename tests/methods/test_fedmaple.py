"""FedMaPLe: visual prompts that are linear functions of the text prompts."""

import math
from dataclasses import replace

import agreement
import pytest
import tiny
import torch
import torch.nn.functional as F
from oracle import fedmaple
from pydantic import ValidationError
from raising import raises

from fedpgp.errors import ConfigError
from fedpgp.evaluation.inference import image_features, kind_of
from fedpgp.federation.client_runner import frozen_of
from fedpgp.methods import Batch, Params
from fedpgp.methods.fedivlp import FedIVLP
from fedpgp.methods.fedmaple import FedMaPLe
from fedpgp.testing import CHECKS, check_method


def first(method, backbone):
    return Params(method.init_shared(tiny.task(), backbone, tiny.generator(0, "shared")), {})


def loss_and_gradients(method, shared, backbone):
    """Return the loss and gradients for four images and the base classes."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in shared.items()}
    params, some = Params(leaves, {}), tiny.images(4, backbone, kind_of(method))
    frozen = frozen_of(method, tiny.task(), backbone).select(tiny.BASE)
    tokens = backbone.class_tokens([tiny.NAMES[label] for label in tiny.BASE], method.tail)
    text = torch.stack(backbone.text.each(method.prompts(params, frozen), tokens))
    batch = Batch(image_features(backbone.towers(method.reads), method, some, params), torch.tensor([0, 1, 2, 1]))
    loss = method.loss(params, text, batch, frozen)["task"]
    return loss.item(), dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


@pytest.mark.parametrize(
    ("changes", "tail", "images"),
    [
        ({"depth": 3}, "of a {}.", "real"),
        pytest.param({"depth": 1, "context_length": 3, "ctx_init": "random"}, "{}.", "random", marks=pytest.mark.slow),
    ],
)
def test_fedmaple_agrees_with_the_oracle(changes, tail, images, both_precisions, monkeypatch):
    method = FedMaPLe(**changes, learning_rate=0.005)
    assert method.tail == tail
    agreement.check_agreement(
        method, lambda world: fedmaple.run(world, tail), both_precisions, monkeypatch, images=images
    )


def test_fedmaple_without_a_visual_part_keeps_the_contract(exact):
    assert len(check_method(FedMaPLe(depth=2, learning_rate=0.05, visual=False), exact)) == len(CHECKS)


def test_without_visual_prompts_fedmaple_is_fedivlp_without_them(exact):
    changes = {"context_length": 4, "depth": 3, "learning_rate": 0.05}
    ours = tiny.run(FedMaPLe(**changes, visual=False), exact)
    theirs = tiny.run(FedIVLP(**changes, visual_length=0), exact)
    for one, two in zip(ours, theirs, strict=True):
        assert one.shared.keys() == two.shared.keys() == {"text", "text_deeper"}
        for name, value in one.shared.items():
            assert torch.allclose(value, two.shared[name], rtol=0, atol=1e-13)
        assert one.record["loss_task"] == pytest.approx(two.record["loss_task"], rel=1e-12)
        assert one.evaluation.clients["base"].tolist() == two.evaluation.clients["base"].tolist()
    coupled = tiny.run(FedMaPLe(**changes), exact)
    assert not torch.allclose(coupled[-1].shared["text"], theirs[-1].shared["text"], rtol=0, atol=1e-4)


def test_fedmaple_is_fedivlp_with_visual_prompts_from_the_text_by_the_chain_rule(exact):
    """∂P = ∂P of the text tower + ∂V W, ∂W = ∂Vᵀ P, ∂b = Σ ∂V, in every layer."""
    method, other = FedMaPLe(depth=3, context_length=4), FedIVLP(depth=3)
    shared = {**first(method, exact).shared, "b": tiny.random_features(3, exact.logit_scale, 160, seed=4)}
    P, W, b = [shared["text"], *shared["text_deeper"]], shared["W"], shared["b"]
    V = [P[n] @ W[n].T + b[n] for n in range(3)]
    text = {name: shared[name] for name in ("text", "text_deeper")}
    loss, found = loss_and_gradients(method, shared, exact)
    expected, g = loss_and_gradients(other, {**text, "visual": V[0], "visual_deeper": torch.stack(V[1:])}, exact)
    assert loss == pytest.approx(expected, rel=1e-12)
    of_text, of_visual = [g["text"], *g["text_deeper"]], [g["visual"], *g["visual_deeper"]]
    of_P = [found["text"], *found["text_deeper"]]
    for n in range(3):
        assert of_visual[n].abs().max() > 1e-8
        for one, two in (
            (of_P[n], of_text[n] + of_visual[n] @ W[n]),
            (found["W"][n], of_visual[n].T @ P[n]),
            (found["b"][n], of_visual[n].sum(0)),
        ):
            assert agreement.difference(one, two) < 1e-11


def test_the_visual_prompts_by_hand():
    """d = 2, w = 1: W = (1, 2) and b = 10 of (1, 1) and (0, 3) at the first layer, (−1, 0) and 1 of (2, 5) deeper."""
    shared = {
        "text": torch.tensor([[1.0, 1.0], [0.0, 3.0]]),
        "text_deeper": torch.tensor([[[2.0, 5.0], [0.5, 0.0]]]),
        "W": torch.tensor([[[1.0, 2.0]], [[-1.0, 0.0]]]),
        "b": torch.tensor([[10.0], [1.0]]),
    }
    (prompt,) = FedMaPLe(depth=2).visual_prompts(Params(shared, {}))
    assert prompt.vectors.tolist() == [[13.0], [16.0]] and prompt.deeper.tolist() == [[[-1.0], [0.5]]]
    shallow = {"text": shared["text"], "W": shared["W"][:1], "b": shared["b"][:1]}
    (prompt,) = FedMaPLe(depth=1).visual_prompts(Params(shallow, {}))
    assert prompt.vectors.tolist() == [[13.0], [16.0]] and prompt.deeper is None


def test_two_words_are_learned_and_two_stay(exact):
    """So that a shallow prompt starts as the hand-written one."""
    method = FedMaPLe(depth=1)
    params, frozen = first(method, exact), frozen_of(method, tiny.task(), exact)
    assert method.tail == "of a {}." and torch.equal(params.shared["text"], exact.phrase("a photo"))
    (z,) = exact.text.each(method.prompts(params, frozen), exact.class_tokens(tiny.NAMES, method.tail))
    assert torch.allclose(z, frozen.guidance, rtol=0, atol=1e-12)
    whole = replace(method, context_length=4)
    assert whole.tail == "{}." and torch.equal(first(whole, exact).shared["text"], exact.phrase("a photo of a"))


def test_the_maps_start_as_pytorch_s_the_deeper_ones_alike(backbone):
    shared = first(FedMaPLe(depth=3), backbone).shared
    W, b = shared["W"], shared["b"]
    assert {name: tuple(value.shape) for name, value in shared.items()} == {
        "text": (2, 128),
        "text_deeper": (2, 2, 128),
        "W": (3, 160, 128),
        "b": (3, 160),
    }
    for value in (W[0], W[1], b[0], b[1]):
        assert value.abs().max().item() == pytest.approx(1 / math.sqrt(128), rel=0.05)
        assert value.std().item() == pytest.approx(1 / math.sqrt(3 * 128), rel=0.15)
    assert torch.equal(W[1], W[2]) and torch.equal(b[1], b[2])
    assert (F.cosine_similarity(W[0].flatten(), W[1].flatten(), dim=0)).abs() < 0.05


def test_more_layers_than_a_tower_has_are_refused(backbone):
    with raises(ConfigError, where="fedmaple.depth", allowed="text tower", got=9, remedy="--set fedmaple.depth=3"):
        first(FedMaPLe(), backbone)
    layers = backbone.text.layers
    long = replace(backbone, text=replace(backbone.text, layers=replace(layers, weights=layers.weights * 3)))
    with raises(ConfigError, where="fedmaple.depth", allowed="image tower", got=9, remedy="--set fedmaple.depth=5"):
        first(FedMaPLe(), long)
    assert first(FedMaPLe(visual=False), long).shared.keys() == {"text", "text_deeper"}


@pytest.mark.parametrize(
    "values",
    [{"context_length": 0}, {"depth": 0}, {"visual": 1}, {"visual_length": 4}, {"learning_rate": 0.0}],
)
def test_a_wrong_hyperparameter_is_refused(values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        FedMaPLe(**values)
