import math
from dataclasses import replace

import agreement
import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracle import fedkgcoop
from pydantic import ValidationError

from fedpgp.methods import Batch, Frozen, Params, PromptFL
from fedpgp.methods.fedkgcoop import FedKgCoOp

ENSEMBLE = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


def guidance_term(z, z_C, weight):
    frozen = Frozen(z_C, torch.tensor(0.0), torch.arange(len(z_C)))
    batch = Batch(z_C[:1], torch.tensor([0]))
    return FedKgCoOp(weight=weight).loss(Params({}, {}), z[None], batch, frozen)["guidance"].item()


@pytest.mark.parametrize(("guidance", "templates"), [("template", ("a photo of a {}.",)), ("ensemble", ENSEMBLE)])
def test_fedkgcoop_agrees_with_the_oracle(guidance, templates, backbones, monkeypatch):
    method = FedKgCoOp(**agreement.HYPER, weight=3.0, guidance=guidance)
    agreement.check_agreement(method, lambda world: fedkgcoop.run(world, 3.0, templates), backbones, monkeypatch)


def test_without_weight_fedkgcoop_is_promptfl(exact):
    ours = tiny.run(FedKgCoOp(**agreement.HYPER, weight=0.0), exact)
    theirs = tiny.run(PromptFL(**agreement.HYPER), exact)
    for one, two in zip(ours, theirs, strict=True):
        assert torch.allclose(one.shared["p_G"], two.shared["p_G"], rtol=0, atol=1e-13)
    guided = tiny.run(FedKgCoOp(**agreement.HYPER), exact)
    assert not torch.allclose(guided[-1].shared["p_G"], theirs[-1].shared["p_G"], atol=1e-4)
    assert guided[-1].record["cosine_guidance_global"] > theirs[-1].record["cosine_guidance_global"]


def test_the_guidance_term_by_hand():
    """(0.6, 0.8) − (1, 0) = (−0.4, 0.8), of squared length 0.8; (0, −1) − (0, 1) = (0, −2), of 4: the mean is 2.4."""
    z, z_C = torch.tensor([[0.6, 0.8], [0.0, -1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    batch, frozen = (
        Batch(torch.tensor([[1.0, 0.0]]), torch.tensor([1])),
        Frozen(z_C, torch.tensor(0.0), torch.arange(2)),
    )
    terms = FedKgCoOp(weight=0.5).loss(Params({}, {}), z[None], batch, frozen)
    assert terms["guidance"].item() == pytest.approx(1.2)
    assert terms["task"].item() == pytest.approx(math.log(1 + math.exp(0.6)))  # logits 0.6 and 0, the second is right


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 9), st.floats(0, 100))
def test_the_term_is_twice_that_of_the_public_code(seed, classes, width, weight):
    drawn = torch.randn(2, classes, width, generator=tiny.generator(seed, "test"), dtype=torch.float64)
    z, z_C = F.normalize(drawn, dim=-1)
    cosine = sum(float(one @ two) for one, two in zip(z, z_C, strict=True)) / classes
    assert guidance_term(z, z_C, weight) == pytest.approx(weight * 2 * (1 - cosine), abs=1e-9)


def test_the_guidance_chooses_the_templates():
    task = tiny.task()
    assert FedKgCoOp().templates(task) == ("a photo of a {}.",)
    assert FedKgCoOp(guidance="dataset").templates(task) is task.templates
    assert FedKgCoOp(guidance="ensemble").templates(task) == ENSEMBLE


def test_the_authors_have_a_prompt_of_their_own_for_textures():
    """As in their trainers/kgcoop.py; CoOp, from which the others are, has "{} texture."."""
    textures = replace(tiny.task(templates=("{} texture.",)), train=replace(tiny.task().train, name="dtd"))
    assert FedKgCoOp(guidance="authors").templates(textures) == ("a photo of a {}, a type of texture.",)
    assert FedKgCoOp(guidance="dataset").templates(textures) == ("{} texture.",)
    assert FedKgCoOp(guidance="authors").templates(tiny.task()) == tiny.task().templates


@pytest.mark.parametrize("values", [{"weight": -1.0}, {"weight": math.inf}, {"guidance": "none"}, {"mu": 1.0}])
def test_a_wrong_hyperparameter_is_refused(values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        FedKgCoOp(**values)
