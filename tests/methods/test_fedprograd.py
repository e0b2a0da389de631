import math
from dataclasses import replace

import agreement
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import fedprograd
from pydantic import ValidationError
from raising import raises

from fedpgp.errors import ConfigError
from fedpgp.methods import Batch, Frozen, Params, PromptFL
from fedpgp.methods.fedprograd import FedProGrad


def direction(task, distillation, **changes):
    gradients = {"task": {"p_G": torch.tensor(task)}, "distillation": {"p_G": torch.tensor(distillation)}}
    return FedProGrad(**changes).direction(gradients, Params({}, {}), torch.Generator())["p_G"]


@pytest.mark.parametrize(("strength", "temperature"), [(1.0, 1.0), (0.6, 2.0)])
def test_fedprograd_agrees_with_the_oracle(strength, temperature, backbones, monkeypatch):
    method, conflicts = FedProGrad(**agreement.HYPER, strength=strength, temperature=temperature), []
    agreement.check_agreement(
        method, lambda world: fedprograd.run(world, strength, temperature, conflicts), backbones, monkeypatch
    )
    assert 3 <= sum(conflicts) <= len(conflicts) - 3, conflicts  # both cases of the formula were met


def test_without_strength_fedprograd_is_promptfl(exact):
    ours = tiny.run(FedProGrad(**agreement.HYPER, strength=0.0), exact)
    theirs = tiny.run(PromptFL(**agreement.HYPER), exact)
    for one, two in zip(ours, theirs, strict=True):
        assert torch.allclose(one.shared["p_G"], two.shared["p_G"], rtol=0, atol=1e-13)
        assert one.record["loss_task"] == pytest.approx(two.record["loss_task"], rel=1e-12)
        assert one.record["loss_distillation"] > 0
    projected = tiny.run(FedProGrad(**agreement.HYPER), exact)
    assert not torch.allclose(projected[-1].shared["p_G"], theirs[-1].shared["p_G"], atol=1e-4)


def test_the_projection_by_hand():
    """b = (0.6, 0.8) of length one: ⟨a, b⟩ = 3 · 0.6 − 6 · 0.8 = −3, so a loses −3 b = (−1.8, −2.4)."""
    assert direction([[3.0, -6.0]], [[1.5, 2.0]])[0].tolist() == pytest.approx([4.8, -3.6])
    assert direction([[3.0, -6.0]], [[1.5, 2.0]], strength=0.5)[0].tolist() == pytest.approx([3.9, -4.8])
    # a tensor is one vector, not one for each of its rows, which would give −3 and 8
    assert direction([[3.0, -6.0], [0.0, 8.0]], [[0.6, 0.8], [0.0, 1.0]]).tolist() == [[3.0, -6.0], [0.0, 8.0]]


def test_where_the_teacher_says_nothing_the_task_is_followed():
    assert direction([3.0, -6.0], [0.0, 0.0]).tolist() == [3.0, -6.0]


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 8), st.sampled_from([1e-6, 1.0, 1e6]))
def test_the_direction_never_works_against_the_teacher(seed, rows, width, size):
    a, g = torch.randn(2, rows, width, generator=tiny.generator(seed, "test"), dtype=torch.float64)
    found = direction(a.tolist(), (size * g).tolist()).double()
    length = float(a.norm())
    assert float((found * g).sum()) >= -1e-5 * length * float(g.norm())
    assert float((found * a).sum()) >= -1e-5 * length**2  # nor against the task
    if (a * g).sum() >= 0:
        assert torch.equal(found.float(), a.float())


def test_the_terms_by_hand():
    """Logits over T = 2 of (2, 0) with s = 2: teacher (2, 0) → q = σ(2), student (0, 2) → r = σ(−2)."""
    z_C, z = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    frozen = Frozen(z_C, torch.tensor(math.log(4.0)), torch.arange(2))
    batch = Batch(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    terms = FedProGrad(temperature=2.0).loss(Params({}, {}), z[None], batch, frozen)
    q = 1 / (1 + math.exp(-2.0))
    assert terms["distillation"].item() == pytest.approx(
        4 * (q * math.log(q / (1 - q)) + (1 - q) * math.log((1 - q) / q))
    )
    assert terms["task"].item() == pytest.approx(math.log(1 + math.exp(4.0)))


def test_the_first_context_of_the_authors_is_zeros_with_the_words_of_the_prompt_in_the_last_places(exact):
    """PromptLearner of their trainers/prograd.py. pictoclip's vocabulary has no comma."""
    pets = replace(tiny.task(), train=replace(tiny.task().train, name="oxford_pets"))
    method = FedProGrad(ctx_init="authors", guidance="authors", context_length=10)
    assert method.templates(pets) == ("a type of pet, a photo of a {}.",)
    first = method.init_shared(pets, exact, tiny.generator(0, "shared"))["p_G"]
    assert not first[:2].any()
    assert torch.equal(first[2:], exact.phrase("a type of pet a photo of a"))
    each = replace(method, class_specific=True).init_shared(pets, exact, tiny.generator(0, "shared"))["p_G"]
    assert torch.equal(each, first.expand(len(pets.base), -1, -1))
    plain = replace(method, context_length=4).init_shared(tiny.task(), exact, tiny.generator(0, "shared"))["p_G"]
    assert torch.equal(plain, exact.phrase("a photo of a"))
    with raises(ConfigError, where="fedprograd.context_length", allowed="at least 8", got=7):
        replace(method, context_length=7).init_shared(pets, exact, tiny.generator(0, "shared"))


@pytest.mark.parametrize(
    "values",
    [{"strength": -0.1}, {"strength": 1.1}, {"temperature": 0.0}, {"temperature": math.nan}, {"guidance": "none"}],
)
def test_a_wrong_hyperparameter_is_refused(values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        FedProGrad(**values)
