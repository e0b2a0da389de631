"""FedOTP's global and personal prompt."""

import agreement
import pytest
import tiny
import torch
from oracle import fedotp
from pydantic import ValidationError
from raising import raises
from test_fedplot import NOTHING, frozen_of, random, with_equal_patches

from fedpgp.errors import TrainingError
from fedpgp.federation.client_runner import frozen_of as frozen_of_task
from fedpgp.methods import Params
from fedpgp.methods.fedotp import FedOTP
from fedpgp.methods.fedplot import FedPLOT
from fedpgp.methods.promptfolio import PromptFolio


@pytest.mark.parametrize(("mass", "images"), [(0.8, "random"), pytest.param(1.0, "real", marks=pytest.mark.slow)])
def test_fedotp_agrees_with_the_oracle(mass, images, both_precisions, monkeypatch):
    """A plan that ends a turn earlier in float32 differs by a part of the tolerance."""
    method = FedOTP(context_length=2, learning_rate=0.02, mass=mass, tolerance=1e-5)
    agreement.check_agreement(
        method, lambda world: fedotp.run(world, 0.1, mass, 1e-5), both_precisions, monkeypatch, images=images
    )


def test_the_logits_by_hand():
    """Both prompts like patch 1 of two by 1 and patch 2 by 0, with ε = 1 / ln 9: K has rows (9, 9) and (1, 1).

    Without the limit a prompt would take 9/10 of its mass from patch 1. With γ = 0.5 that is 0.45 of both together,
    below 1/2: the logit is 0.45. With γ = 0.8 it would be 0.72: patch 1 gives its 1/2, patch 2 the other 0.3.
    """
    text = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])
    images = torch.tensor([[[0.6, 0.8], [1.0, 0.0], [0.0, 1.0]]])
    epsilon = float(1 / torch.tensor(9.0).log())
    for mass, expected in ((0.5, 0.45), (0.8, 0.5), (1.0, 0.5)):
        method = FedOTP(mass=mass, epsilon=epsilon, tolerance=1e-6)
        assert method.predict(NOTHING, text, images, frozen_of(text)).item() == pytest.approx(expected, rel=1e-5)


def test_of_all_patches_fedotp_is_plot_with_two_prompts():
    images, text = random(0, 5, 1 + 9, 8), random(1, 2, 4, 8)
    ours = FedOTP(mass=1.0).predict(NOTHING, text, images, frozen_of(text))
    assert torch.equal(ours, FedPLOT().predict(NOTHING, text, images, frozen_of(text)))


def test_equal_prompts_and_all_patches_are_the_mean_patch():
    images, text = random(2, 5, 1 + 9, 8), random(3, 1, 4, 8).expand(2, -1, -1)
    found = FedOTP(mass=1.0).predict(NOTHING, text, images, frozen_of(text, 50.0))
    assert torch.allclose(found, 50 * images[:, 1:].mean(1) @ text[0].T, rtol=0, atol=1e-12)


def test_patches_unlike_the_prompts_are_left_out():
    """A fifth of the patches turns round: with γ = 0.8 and a small ε it is as if they were not there."""
    near = random(4, 1, 8)
    patches = torch.nn.functional.normalize(near + 0.02 * random(5, 10, 8), dim=-1)
    text = near.expand(2, 1, 8)
    images = torch.cat([near, patches])[None]
    images[:, [3, 7]] *= -1
    method = FedOTP(epsilon=0.02, tolerance=1e-6, iterations=10_000)
    found = method.predict(NOTHING, text, images, frozen_of(text))
    kept = images[:, [1, 2, 4, 5, 6, 8, 9, 10]]
    assert found.item() == pytest.approx(0.8 * (kept @ near[0]).mean().item(), rel=1e-5)


def test_patches_that_are_like_the_whole_are_promptfolio(exact):
    """With γ = 1 half of every patch goes to either prompt."""
    data, schedule = with_equal_patches(exact), {"rounds": 3, "participation": 0.67}
    ours = tiny.run(FedOTP(**agreement.HYPER, mass=1.0), exact, data, **schedule)
    theirs = tiny.run(PromptFolio(**agreement.HYPER, mixing=0.5), exact, data, **schedule)
    for one, two in zip(ours, theirs, strict=True):
        assert torch.allclose(one.shared["p_G"], two.shared["p_G"], rtol=0, atol=1e-13)
        for mine, other in zip(one.private, two.private, strict=True):
            assert torch.allclose(mine["p_i"], other["p"], rtol=0, atol=1e-13)
        assert one.record["loss_task"] == pytest.approx(two.record["loss_task"], rel=1e-12)
        assert all((one.evaluation.correct[name] == two.evaluation.correct[name]).all() for name in data.task.tests)


def test_the_shared_part_alone_predicts_with_the_global_prompt_twice(exact):
    method, frozen = FedOTP(**agreement.HYPER), frozen_of_task(FedOTP(), tiny.task(), exact)
    params = Params(
        method.init_shared(tiny.task(), exact, tiny.generator(0, "shared")),
        method.init_private(tiny.task(), exact, tiny.generator(0, "private"), 0),
    )
    alone = method.without_private(params)
    assert all(torch.equal(context, params.shared["p_G"]) for context in method.prompts(alone, frozen))
    assert not torch.equal(*method.prompts(params, frozen))
    *_, last = tiny.run(method, exact)
    assert last.evaluation.shared is not None
    assert last.evaluation.diagnostics.keys() == {"cosine_guidance_global", "cosine_global_personal"}


def test_both_prompts_are_drawn_apart_and_a_phrase_starts_both(backbone):
    def first(method):
        shared = method.init_shared(tiny.task(), backbone, tiny.generator(0, "shared"))["p_G"]
        return shared, method.init_private(tiny.task(), backbone, tiny.generator(0, "private"), 0)["p_i"]

    p_G, p_i = first(FedOTP())
    assert p_G.shape == p_i.shape == (16, backbone.token_width)
    assert (p_G * p_i).mean().abs() < 1e-4 < p_i.square().mean()
    assert torch.equal(*first(FedOTP(ctx_init="a photo of a")))


@pytest.mark.parametrize("values", [{"mass": 0.0}, {"mass": 1.01}, {"epsilon": -0.1}, {"tolerance": 0.0}])
def test_a_wrong_setting_is_refused(values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        FedOTP(**values)
    assert FedOTP().mass == 0.8


def test_transport_that_does_not_converge_names_the_place_and_the_remedy(backbone):
    method = FedOTP(context_length=3, epsilon=0.01, iterations=1, tolerance=1e-6)
    with raises(TrainingError, where="client 0 in round 1, step 1", problem="residual", got=1, remedy="iterations"):
        tiny.run(method, backbone, rounds=1)
