import math

import agreement
import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracle import pfedprompt
from pydantic import ValidationError

from fedpgp.methods import Batch, Frozen, Params, PromptFL
from fedpgp.methods.pfedprompt import PFedPrompt

STRONG = {"alpha": 40.0, "beta": 1.5}  # random images are far from each other


def random(seed, *shape):
    return F.normalize(torch.randn(*shape, generator=tiny.generator(seed, "test"), dtype=torch.float64), dim=-1)


@pytest.mark.parametrize(("values", "images"), [(STRONG, "random"), ({}, "real")])
def test_pfedprompt_agrees_with_the_oracle(values, images, backbones, monkeypatch):
    method = PFedPrompt(**agreement.HYPER, **values)
    agreement.check_agreement(
        method, lambda world: pfedprompt.run(world, method.alpha, method.beta), backbones, monkeypatch, images=images
    )


def test_without_weight_pfedprompt_is_promptfl_and_with_it_trains_alike(exact):
    theirs = tiny.run(PromptFL(**agreement.HYPER), exact)
    for alpha in (0.0, 40.0):
        ours = tiny.run(PFedPrompt(**agreement.HYPER, alpha=alpha, beta=1.5), exact)
        for one, two in zip(ours, theirs, strict=True):
            assert torch.allclose(one.shared["p_G"], two.shared["p_G"], rtol=0, atol=1e-13)
            assert one.record["loss_task"] == pytest.approx(two.record["loss_task"], rel=1e-12)
            assert one.evaluation.shared == two.evaluation.shared
            assert one.evaluation.diagnostics == pytest.approx(two.evaluation.diagnostics)
            same = {name: tiny.bits({"": torch.from_numpy(found)}) for name, found in one.evaluation.correct.items()}
            plain = {name: tiny.bits({"": torch.from_numpy(found)}) for name, found in two.evaluation.correct.items()}
            assert same["novel"] == plain["novel"]  # no memory has an image of a novel class
            assert (same["base"] == plain["base"]) == (alpha == 0)


def test_a_client_with_its_own_images_to_classify_knows_them(backbone):
    """A strong memory that fades fast gives every training image its label."""
    data = tiny.data(backbone)
    method, task = PFedPrompt(alpha=1e4, beta=50.0), data.task
    for client in task.clients:
        images = data.train.pooled[torch.from_numpy(client.train)]
        labels = torch.tensor([tiny.BASE.index(label) for label in task.train.labels[client.train]])
        text = tiny.random_features(6, images, seed=3)
        frozen = Frozen(text, backbone.logit_scale, torch.arange(6))
        memory = method.memory(images, labels, frozen)
        found = method.predict(Params({}, {}, {}, memory), text[None], images, frozen)
        assert torch.equal(found.argmax(-1), labels)


def test_the_logits_by_hand():
    """f = (1, 0) meets keys (1, 0), (0, 1) and (0, 1) of the base classes 1, 0 and 0: with β = ln 4 as 1, 1/4 and 1/4.

    The softmax has base class 1, a class that no client trains on, and base class 0; α = 2, s = 3.
    """
    keys, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), torch.tensor([1, 0, 0])
    text = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8]])
    frozen = Frozen(text, torch.tensor(math.log(3.0)), torch.tensor([1, -1, 0]))
    method, image = PFedPrompt(alpha=2.0, beta=math.log(4.0)), torch.tensor([[1.0, 0.0]])
    params = Params({}, {}, {}, method.memory(keys, labels, frozen))
    assert method.predict(params, text[None], image, frozen)[0].tolist() == pytest.approx([2.0, 3.0, 1.8 + 1.0])
    assert method.predict(Params({}, {}), text[None], image, frozen)[0].tolist() == pytest.approx([0.0, 3.0, 1.8])
    loss = method.loss(params, text[None], Batch(image, torch.tensor([1])), frozen)
    assert loss["task"].item() == pytest.approx(math.log(1 + math.exp(-3.0) + math.exp(-1.2)))


@given(st.integers(0, 10_000), st.integers(1, 9), st.floats(0, 50), st.floats(0, 20))
def test_the_memory_adds_to_a_class_what_its_images_allow(seed, images, alpha, beta):
    """Nothing to classes without an image, and to others more than 0 and at most α for each of their images."""
    method = PFedPrompt(alpha=alpha, beta=beta)
    labels = torch.randint(0, 4, (images,), generator=tiny.generator(seed, "labels"))
    base = torch.tensor([3, -1, 0, 2, -1])  # base class 1 is not in this softmax
    text, some = random(seed, 1, 5, 6), random(seed + 1, 7, 6)
    frozen = Frozen(text[0], torch.tensor(1.0, dtype=torch.float64), base)
    memory = method.memory(random(seed + 2, images, 6), labels, frozen)
    plain = method.predict(Params({}, {}), text, some, frozen)
    bonus = method.predict(Params({}, {}, {}, memory), text, some, frozen) - plain
    for column, place in enumerate(base.tolist()):
        count = int((labels == place).sum())
        assert (bonus[:, column] <= alpha * count + 1e-9).all()
        assert (bonus[:, column] >= alpha * count * math.exp(-2 * beta) - 1e-9).all()
        assert count or (bonus[:, column] == 0).all()


@pytest.mark.parametrize("values", [{"alpha": -1.0}, {"beta": -0.1}, {"beta": math.inf}, {"gamma": 1.0}])
def test_a_wrong_hyperparameter_is_refused(values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        PFedPrompt(**values)
