"""PromptFolio's mixture."""

import math

import agreement
import pytest
import tiny
import torch
from oracle import promptfolio
from pydantic import ValidationError

from fedpgp.federation.client_runner import frozen_of
from fedpgp.methods import Batch, Frozen, Local, Params, PromptFL
from fedpgp.methods.promptfolio import PromptFolio


def first(method, backbone):
    task = tiny.task()
    return Params(
        method.init_shared(task, backbone, tiny.generator(0, "shared")),
        method.init_private(task, backbone, tiny.generator(0, "private"), 0),
    )


def test_promptfolio_agrees_with_the_oracle(backbones, monkeypatch):
    method = PromptFolio(**agreement.HYPER, mixing=0.4)
    agreement.check_agreement(method, lambda world: promptfolio.run(world, 0.4), backbones, monkeypatch, rounds=3)


def test_the_mixture_by_hand_is_not_of_unit_length():
    """z_G = (1, 0), z_L = (0, 1) of the first class and −z_G, −z_L of the second, θ = 0.25, scale 2: ±2 · 0.75."""
    method = PromptFolio(mixing=0.25)
    text = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]], [[0.0, 1.0], [0.0, -1.0]]])
    frozen = Frozen(torch.zeros(2, 2), torch.tensor(math.log(2.0)), torch.arange(2))
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = method.predict(Params({}, {}), text, images, frozen)
    assert found.flatten().tolist() == pytest.approx([1.5, -1.5, 0.5, -0.5])
    terms = method.loss(Params({}, {}), text, Batch(images, torch.tensor([0, 1])), frozen)
    assert terms["task"].item() == pytest.approx((math.log(1 + math.exp(-3)) + math.log(1 + math.exp(1))) / 2)


def test_without_the_personal_prompt_promptfolio_is_promptfl(exact):
    schedule = {"rounds": 3, "participation": 0.67}
    ours = tiny.run(PromptFolio(**agreement.HYPER, mixing=0.0), exact, **schedule)
    theirs = tiny.run(PromptFL(**agreement.HYPER), exact, **schedule)
    for one, two in zip(ours, theirs, strict=True):
        assert torch.allclose(one.shared["p_G"], two.shared["p_G"], rtol=0, atol=1e-13)
        assert one.record["loss_task"] == pytest.approx(two.record["loss_task"], rel=1e-12)
    compare_logits(PromptFolio(mixing=0.0), ours[-1], PromptFL(), theirs[-1], exact)


def test_with_only_the_personal_prompt_promptfolio_is_local(exact):
    schedule = {"rounds": 3, "participation": 0.67}
    ours = tiny.run(PromptFolio(**agreement.HYPER, mixing=1.0), exact, **schedule)
    theirs = tiny.run(Local(**agreement.HYPER), exact, **schedule)
    for one, two in zip(ours, theirs, strict=True):
        for mine, other in zip(one.private, two.private, strict=True):
            assert torch.allclose(mine["p"], other["p"], rtol=0, atol=1e-13)
        assert one.record["loss_task"] == pytest.approx(two.record["loss_task"], rel=1e-12)
    compare_logits(PromptFolio(mixing=1.0), ours[-1], Local(), theirs[-1], exact)


def compare_logits(ours, mine, theirs, other, backbone):
    """The cosines of every client, over all classes."""
    tokens, frozen = backbone.class_tokens(tiny.NAMES), frozen_of(ours, tiny.task(), backbone)
    for client in range(3):
        found = []
        for method, state in ((ours, mine), (theirs, other)):
            params = Params(state.shared, state.private[client])
            text = torch.stack(backbone.text.each(method.prompts(params, frozen), tokens, method.position))
            found.append(method.predict(params, text, agreement.test_images(backbone.logit_scale), frozen))
        assert torch.allclose(*found, rtol=0, atol=1e-11)


def test_the_shared_part_alone_predicts_with_the_global_prompt(exact):
    method, frozen = PromptFolio(**agreement.HYPER), frozen_of(PromptFolio(), tiny.task(), exact)
    params = first(method, exact)
    alone = method.without_private(params)
    assert all(torch.equal(context, params.shared["p_G"]) for context in method.prompts(alone, frozen))
    assert not torch.equal(*method.prompts(params, frozen))
    *_, last = tiny.run(PromptFolio(**agreement.HYPER), exact)
    assert last.evaluation.shared is not None


def test_both_prompts_have_their_own_draw_and_a_phrase_initializes_both(backbone):
    drawn = first(PromptFolio(), backbone)
    assert drawn.shared["p_G"].shape == drawn.private["p"].shape == (16, backbone.token_width)
    assert (drawn.shared["p_G"] * drawn.private["p"]).mean().abs() < 1e-4 < drawn.private["p"].square().mean()
    phrase = first(PromptFolio(ctx_init="a photo of a"), backbone)
    assert torch.equal(phrase.shared["p_G"], phrase.private["p"])


@pytest.mark.parametrize("mixing", [-0.1, 1.1, "0.4"])
def test_a_wrong_mixture_is_refused(mixing):
    with pytest.raises(ValidationError, match="mixing"):
        PromptFolio(mixing=mixing)
    assert PromptFolio().mixing == 0.4
