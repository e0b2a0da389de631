"""PLOT's prompts, averaged."""

import math
from dataclasses import replace

import agreement
import pytest
import tiny
import torch
from oracle import fedplot
from pydantic import ValidationError
from raising import raises

from fedpgp.errors import TrainingError
from fedpgp.federation.client_runner import Data
from fedpgp.methods import Frozen, Params, PromptFL
from fedpgp.methods.fedplot import FedPLOT

NOTHING = Params({}, {})


def frozen_of(text, scale=1.0):
    return Frozen(text[0], torch.tensor(scale).to(text).log(), torch.arange(text.shape[1]))


def random(seed, *shape):
    """Features of unit length."""
    return torch.nn.functional.normalize(
        torch.randn(*shape, generator=tiny.generator(seed, "test"), dtype=torch.float64), dim=-1
    )


def with_equal_patches(backbone) -> Data:
    """The tiny task, every patch of whose images has the feature of the whole."""
    data = tiny.data(backbone, kind="patches")

    def equal(images):
        return replace(images, kept=[images.pooled[:, None].expand_as(images.tokens).clone()])

    return replace(data, train=equal(data.train), tests={name: equal(test) for name, test in data.tests.items()})


@pytest.mark.parametrize(
    ("prompts", "epsilon", "images"), [(3, 0.1, "random"), pytest.param(2, 0.03, "real", marks=pytest.mark.slow)]
)
def test_fedplot_agrees_with_the_oracle(prompts, epsilon, images, backbones, monkeypatch):
    """A plan that ends a turn earlier in float32 differs by a part of the tolerance."""
    method = FedPLOT(context_length=2, learning_rate=0.02, prompts_learned=prompts, epsilon=epsilon, tolerance=1e-5)
    agreement.check_agreement(
        method, lambda world: fedplot.run(world, epsilon, 1e-5), backbones, monkeypatch, images=images
    )


def test_the_logits_by_hand():
    """ε = 1 / ln 3 and patches on the axes: of class 0, with a prompt on each, K = ((3, 1), (1, 3)) and T = K / 8.

    So its logit is 2 (3/8 + 3/8), that of class 1, with both prompts on the second axis, 2 (1/4 + 1/4); the pooled
    feature says nothing.
    """
    method = FedPLOT(epsilon=1 / math.log(3), tolerance=1e-6)
    text = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    images = torch.tensor([[[0.6, 0.8], [1.0, 0.0], [0.0, 1.0]]])
    found = method.predict(NOTHING, text, images, frozen_of(text, 2.0))
    assert found.tolist() == [pytest.approx([1.5, 1.0])]


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 10.0])
def test_one_prompt_is_compared_with_the_mean_of_all_patches(epsilon):
    images, text = random(0, 5, 1 + 9, 8), random(1, 1, 4, 8)
    found = FedPLOT(epsilon=epsilon).predict(NOTHING, text, images, frozen_of(text, 50.0))
    assert torch.allclose(found, 50 * images[:, 1:].mean(1) @ text[0].T, rtol=0, atol=1e-12)


def test_equal_prompts_are_one(exact):
    images, text = random(2, 5, 1 + 9, 8), random(3, 1, 4, 8)
    found = [FedPLOT().predict(NOTHING, z, images, frozen_of(text)) for z in (text, text.expand(3, -1, -1))]
    assert torch.allclose(*found, rtol=0, atol=1e-14)


def test_a_great_epsilon_takes_the_mean_of_everything():
    images, text = random(4, 5, 1 + 9, 8), random(5, 3, 4, 8)
    found = FedPLOT(epsilon=1e3, tolerance=1e-9).predict(NOTHING, text, images, frozen_of(text))
    assert torch.allclose(found, images[:, 1:].mean(1) @ text.mean(0).T, atol=1e-3)
    assert not torch.allclose(FedPLOT().predict(NOTHING, text, images, frozen_of(text)), found, atol=1e-2)


def test_neither_the_order_of_patches_nor_that_of_prompts_matters():
    images, text = random(6, 5, 1 + 9, 8), random(7, 3, 4, 8)
    order = [0, 9, 3, 1, 2, 8, 7, 5, 6, 4]
    found = FedPLOT().predict(NOTHING, text, images, frozen_of(text))
    turned = FedPLOT().predict(NOTHING, text[[2, 0, 1]], images[:, order], frozen_of(text))
    assert torch.allclose(found, turned, rtol=0, atol=1e-13)


def test_one_prompt_and_patches_that_are_like_the_whole_are_promptfl(exact):
    data, schedule = with_equal_patches(exact), {"rounds": 3, "participation": 0.67}
    ours = tiny.run(FedPLOT(**agreement.HYPER, prompts_learned=1), exact, data, **schedule)
    theirs = tiny.run(PromptFL(**agreement.HYPER), exact, data, **schedule)
    for one, two in zip(ours, theirs, strict=True):
        assert torch.allclose(one.shared["P"][0], two.shared["p_G"], rtol=0, atol=1e-13)
        assert one.record["loss_task"] == pytest.approx(two.record["loss_task"], rel=1e-12)
        assert all((one.evaluation.correct[name] == two.evaluation.correct[name]).all() for name in data.task.tests)


def test_the_first_prompts(backbone):
    """Drawn apart; of a phrase all but the first with noise, without which they would stay equal."""
    for ctx_init, near in (("random", False), ("a photo of a", True)):
        P = FedPLOT(ctx_init=ctx_init).init_shared(tiny.task(), backbone, tiny.generator(0, "shared"))["P"]
        assert P.shape == (4, 4 if near else 16, backbone.token_width)
        if near:
            assert torch.equal(P[0], backbone.phrase(ctx_init))
        for n in range(1, 4):
            assert (P[n] - P[0]).std().item() == pytest.approx(0.02 if near else 0.02 * math.sqrt(2), rel=0.1)


def test_a_plan_that_does_not_converge_ends_the_run(exact):
    method = tiny.small(FedPLOT, iterations=1, epsilon=0.01, tolerance=1e-6)
    with raises(TrainingError, where="client ", remedy="iterations"):
        tiny.run(method, exact, rounds=1)


@pytest.mark.parametrize(
    "values", [{"epsilon": 0.0}, {"iterations": 0}, {"tolerance": 1.0}, {"prompts_learned": 0}, {"mass": 0.8}]
)
def test_a_wrong_setting_is_refused(values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        FedPLOT(**values)
