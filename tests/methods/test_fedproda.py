import math
from collections import Counter

import agreement
import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracle import fedproda
from pydantic import ValidationError
from raising import raises

from fedpgp.errors import ConfigError
from fedpgp.methods import Batch, Frozen, Params, PromptFL
from fedpgp.methods.fedproda import FedProDA

HYPER = {"context_length": 3, "prompts_learned": 4, "prompts_per_step": 2}


def first(method, backbone):
    return method.init_shared(tiny.task(), backbone, tiny.generator(0, "shared"))["P"]


def test_fedproda_agrees_with_the_oracle(backbones, monkeypatch):
    method = FedProDA(**HYPER, learning_rate=0.02, orthogonality=0.7)
    agreement.check_agreement(method, lambda world: fedproda.run(world, 2, 0.7), backbones, monkeypatch, images="real")


@pytest.mark.parametrize("ctx_init", ["random", "a photo of a"])
def test_with_one_prompt_fedproda_is_promptfl(ctx_init, exact):
    common = {**agreement.HYPER, "ctx_init": ctx_init}
    ours = tiny.run(FedProDA(**common, prompts_learned=1, prompts_per_step=1), exact)
    theirs = tiny.run(PromptFL(**common), exact)
    for one, two in zip(ours, theirs, strict=True):
        assert torch.allclose(one.shared["P"][0], two.shared["p_G"], rtol=0, atol=1e-13)
        assert one.record["loss_task"] == pytest.approx(two.record["loss_task"], rel=1e-12)
        assert one.record["loss_orthogonality"] == 0
        assert one.record["cosine_guidance_global"] == pytest.approx(two.record["cosine_guidance_global"], rel=1e-12)
        assert {k: v.tolist() for k, v in one.evaluation.clients.items()} == {
            k: v.tolist() for k, v in two.evaluation.clients.items()
        }


def test_the_loss_by_hand():
    """Two prompts, two classes, s = 2, an image (1, 0) of the first class.

    Class 0 has the features (1, 0) and (0.6, 0.8), class 1 has (0, 1) twice. Only the first dimension counts: means
    0.8 and 0, S_00 = (0.2² + 0.2²) / 3 = 0.08 / 3, S_11 = S_01 = 0. Logits 1.6 and 0 + 2 · 0.08 / 3.
    """
    text = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], [[0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]]])
    frozen = Frozen(torch.eye(2), torch.tensor(math.log(2.0)), torch.arange(2))
    batch = Batch(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    terms = FedProDA(orthogonality=0.5).loss(Params({}, {}), text, batch, frozen)
    assert terms["task"].item() == pytest.approx(math.log(1 + math.exp(2 * 0.08 / 3 - 1.6)))
    assert terms["orthogonality"].item() == pytest.approx(0.5 * 0.6)  # the last column's: (1, 0) and (−0.6, 0.8)
    predicted = FedProDA().predict(Params({}, {}), text[:, :2], batch.features, frozen)
    assert predicted.tolist() == [pytest.approx([1.6, 0.0])]


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 6), st.integers(1, 4))
def test_the_task_is_no_less_than_that_of_the_mean_features(seed, prompts, classes, images):
    """v ≥ 0 and v_y = 0: the variance makes only the other classes' logits larger."""
    rng = tiny.generator(seed, "test")
    text = F.normalize(torch.randn(prompts, classes + 1, 5, generator=rng, dtype=torch.float64), dim=-1)
    features = F.normalize(torch.randn(images, 5, generator=rng, dtype=torch.float64), dim=-1)
    batch = Batch(features, torch.randint(classes, (images,), generator=rng))
    frozen = Frozen(text[0, :-1], torch.tensor(1.0, dtype=torch.float64), torch.arange(classes))
    terms = FedProDA(orthogonality=1.0).loss(Params({}, {}), text, batch, frozen)
    plain = F.cross_entropy(math.e * features @ text[:, :-1].mean(0).T, batch.labels)
    assert terms["task"] >= plain - 1e-9
    assert 0 <= terms["orthogonality"] <= 1 + 1e-9


def test_a_step_draws_different_prompts_from_its_generator_alone():
    method = FedProDA(**HYPER)
    params = Params({"P": torch.arange(4.0)[:, None, None].requires_grad_()}, {}, {"P": torch.zeros(4, 1, 1)})

    def draws(seed):
        rng = torch.Generator().manual_seed(seed)
        return [tuple(method.for_step(params, rng).shared["P"].flatten().tolist()) for _ in range(400)]

    once = draws(1)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    assert draws(1) == once and draws(2) != once
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(len(set(drawn)) == 2 for drawn in once)
    assert all(150 < count < 250 for count in Counter(k for drawn in once for k in drawn).values())
    of_step = method.for_step(params, torch.Generator())
    assert of_step.received is params.received
    of_step.shared["P"].sum().backward()
    assert sorted(params.shared["P"].grad.flatten().tolist()) == [0, 0, 1, 1]


def test_all_prompts_predict_and_none_without_a_name(backbone):
    method = FedProDA(**HYPER)
    P = first(method, backbone)
    contexts = method.prompts(Params({"P": P}, {}), Frozen(torch.eye(2), backbone.logit_scale, torch.arange(2)))
    assert torch.equal(torch.stack(list(contexts)), P) and P.shape == (4, 3, 128)


def test_prompts_start_apart(backbone, exact):
    """With a phrase, the first prompt is its token embeddings, and the other prompts are near."""
    ids = backbone.tokenizer("a photo of a", add_special_tokens=False)["input_ids"]
    phrase = backbone.image.model.text_model.embeddings.token_embedding.weight[ids]
    method = FedProDA(prompts_learned=8, ctx_init="a photo of a")
    P = first(method, backbone)
    assert P.shape == (8, *phrase.shape) and torch.equal(P[0], phrase)
    assert (P[1:] - phrase).std().item() == pytest.approx(0.02, rel=0.1)
    random = first(FedProDA(prompts_learned=8), backbone)
    assert random.std().item() == pytest.approx(0.02, rel=0.1)
    for some in (P, random):
        assert all((some[i] - some[j]).abs().max() > 0.01 for i in range(8) for j in range(i))
    assert torch.equal(first(FedProDA(prompts_learned=8), exact).float(), random)


@pytest.mark.parametrize(
    "values",
    [{"prompts_learned": 0}, {"prompts_per_step": 0}, {"prompts_per_step": 1.5}, {"orthogonality": -0.1}],
)
def test_a_wrong_hyperparameter_is_refused(values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        FedProDA(**values)


def test_more_prompts_in_a_step_than_there_are_are_refused(backbone):
    remedy = "--set fedproda.prompts_per_step=2"
    with raises(ConfigError, where="fedproda.prompts_per_step", allowed="2", got=3, remedy=remedy):
        first(FedProDA(prompts_learned=2, prompts_per_step=3), backbone)
    assert len(first(FedProDA(prompts_learned=2, prompts_per_step=2), backbone)) == 2


def test_one_of_several_prompts_in_a_step_is_refused(backbone):
    """It would have neither a variance nor an orthogonality."""
    with raises(ConfigError, where="fedproda.prompts_per_step", allowed="2 to 4", got=1):
        first(FedProDA(prompts_learned=4, prompts_per_step=1), backbone)
