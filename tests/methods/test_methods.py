"""The methods' formulas, their limits, and their hyperparameters."""

import inspect
import math
from dataclasses import replace

import pytest
import tiny
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from raising import raises

from fedpgp.aggregators import FedAvg, Upload
from fedpgp.errors import ConfigError
from fedpgp.evaluation.inference import Question, answer, image_features, kind_of
from fedpgp.federation.client_runner import frozen_of
from fedpgp.methods import METHODS, Batch, FedPGP, Frozen, Local, Params, PromptFL, ZeroShot
from fedpgp.methods.plugins import find_method
from fedpgp.runs.choices import HEADLINE
from fedpgp.runtime.randomness import generator

SMALL = {"context_length": 3, "learning_rate": 0.05}


def parameters(method, backbone, seed=0):
    """Client 0's before the first round, with its images in memory where the method keeps some."""
    data, frozen = tiny.data(backbone), frozen_of(method, tiny.task(), backbone).select(tiny.BASE)
    own = data.task.clients[0].train
    columns = torch.tensor([tiny.BASE.index(label) for label in data.task.train.labels[own]])
    shared = method.init_shared(data.task, backbone, generator(seed, "shared"))
    return Params(
        shared,
        method.init_private(data.task, backbone, generator(seed, "private"), 0),
        shared,
        method.memory(data.train.pooled[torch.from_numpy(own)], columns, frozen),
    )


def read(method, params, backbone, classes, extra=(), constant=()):
    """Text features [K, C, D], and what is frozen, for some classes of the tiny task; constant: further contexts."""
    frozen = frozen_of(method, tiny.task(), backbone).select(classes)
    tokens = backbone.class_tokens([*(tiny.NAMES[label] for label in classes), *extra], method.tail)
    features = backbone.text.each([*method.prompts(params, frozen), *constant], tokens, method.position)
    return torch.stack(features) if features else torch.empty(0, len(classes), 0), frozen


def loss_and_gradients(method, params, backbone, loss_of=None, rng=None):
    """The terms of the loss on four images and the base classes, and the gradients of their sum."""
    leaves = {name: t.clone().requires_grad_() for name, t in {**params.shared, **params.private}.items()}
    params = replace(
        params,
        shared={name: leaves[name] for name in params.shared},
        private={name: leaves[name] for name in params.private},
    )
    of_step = method.for_step(params, rng or torch.Generator())
    seen = image_features(backbone.towers(method.reads), method, tiny.images(4, backbone, kind_of(method)), of_step)
    batch = Batch(seen, torch.tensor([0, 1, 2, 1]))
    frozen = frozen_of(method, tiny.task(), backbone).select(tiny.BASE)
    further = [*method.constant_prompts(params), *method.conditional_prompts(of_step, seen, frozen)]
    text, frozen = read(method, of_step, backbone, tiny.BASE, method.extra_names, further)
    terms = (loss_of or method.loss)(of_step, text, batch, frozen)
    gradients = torch.autograd.grad(sum(terms.values()), list(leaves.values()), allow_unused=True)
    return terms, dict(zip(leaves, gradients, strict=True))


# ----------------------------------------------------------------------------------------------------------- formulas


def test_the_contrastive_term_by_hand():
    """Cosines 0.6 and 0.8 in the first class, 0 and −1 in the second, τ = 0.5, μ = 2."""
    guidance = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    z_G, z_i = torch.tensor([[0.6, 0.8], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    batch = Batch(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    terms = FedPGP(mu=2.0, tau=0.5).loss(
        Params({}, {}), torch.stack([z_G, z_i]), batch, Frozen(guidance, torch.tensor(math.log(3.0)), torch.arange(2))
    )
    first = -math.log(math.exp(0.6 / 0.5) / (math.exp(0.6 / 0.5) + math.exp(0.8 / 0.5)))
    second = -math.log(math.exp(0.0) / (math.exp(0.0) + math.exp(-1 / 0.5)))
    assert (first, second) == (pytest.approx(0.9130153), pytest.approx(0.1269280))
    assert terms["contrastive"].item() == pytest.approx(2 * (first + second) / 2, rel=1e-6)
    # logits 3 · (0, −1) of the personal features, the second column is right: ln(1 + e³)
    assert terms["task"].item() == pytest.approx(math.log(1 + math.exp(3.0)), rel=1e-6)


def test_the_contrastive_term_pulls_the_global_prompt_to_clip_and_pushes_the_personal_one_away():
    """Down its gradient z_G moves towards z_C and z_i away from z_G."""
    rng = torch.Generator().manual_seed(0)
    guidance, z_G, z_i = (F.normalize(torch.randn(4, 6, generator=rng), dim=-1) for _ in range(3))
    leaves = [z_G.requires_grad_(), z_i.requires_grad_()]
    batch = Batch(torch.zeros(1, 6), torch.tensor([0]))
    frozen = Frozen(guidance, torch.tensor(0.0), torch.arange(4))
    FedPGP(mu=1.0).loss(Params({}, {}), torch.stack(leaves), batch, frozen)["contrastive"].backward()
    assert ((guidance * -z_G.grad).sum(-1) > 0).all()
    assert ((z_G * -z_i.grad).sum(-1) < 0).all()
    with torch.no_grad():
        moved = z_G - 0.01 * z_G.grad
        before, after = ((guidance * z).sum(-1) - (z * z_i).sum(-1) for z in (z_G, moved))
    assert (after > before).all()


@pytest.mark.parametrize("name", METHODS)
def test_predictions_have_one_column_per_class(name, backbone):
    """Base classes, novel ones, and some of both: whatever the softmax."""
    method = tiny.small(find_method(name))
    images, params = tiny.images(7, backbone, kind_of(method)), parameters(method, backbone)
    for classes in (tiny.BASE, tiny.NOVEL, range(5)):
        text, frozen = read(method, params, backbone, classes)
        tokens = backbone.class_tokens([tiny.NAMES[label] for label in classes], method.tail)
        question = Question(method, params, text, images, tokens, frozen)
        found = answer(backbone.towers(method.reads), question)
        assert found.shape == (7, len(classes)) and found.isfinite().all()


@pytest.mark.parametrize("name", HEADLINE)
def test_predictions_have_the_scale_of_clip(name, backbone):
    """exp(logit scale) times a cosine, whatever the number of contexts."""
    method, images = find_method(name)(), tiny.random_features(7, backbone.logit_scale)
    params = parameters(method, backbone)
    text, frozen = read(method, params, backbone, range(5))
    found = method.predict(params, text, images, frozen)
    features = text[-1] if len(text) else frozen.guidance
    expected = [[100 * (i @ z).item() for z in features] for i in images]
    assert found.shape == (7, 5)
    assert torch.allclose(found * 100 / backbone.logit_scale.exp(), torch.tensor(expected), atol=1e-4)


# ------------------------------------------------------------------------------------------------------------- limits


def test_without_personal_part_and_guidance_fedpgp_is_promptfl(exact):
    schedule = {"rounds": 3, "participation": 0.67}
    ours = tiny.run(FedPGP(**SMALL, bottleneck=0, mu=0.0), exact, **schedule)
    theirs = tiny.run(PromptFL(**SMALL), exact, **schedule)
    for one, two in zip(ours, theirs, strict=True):
        assert torch.allclose(one.shared["p_G"], two.shared["p_G"], rtol=0, atol=1e-13)
        assert one.record["loss_task"] == pytest.approx(two.record["loss_task"], rel=1e-12)
        assert one.record["loss_contrastive"] == 0
        assert {k: v.tolist() for k, v in one.evaluation.clients.items()} == {
            k: v.tolist() for k, v in two.evaluation.clients.items()
        }
    with_guidance = tiny.run(FedPGP(**SMALL, bottleneck=0, mu=1.0), exact, **schedule)
    assert not torch.allclose(with_guidance[-1].shared["p_G"], theirs[-1].shared["p_G"], atol=1e-4)


def test_without_personal_part_fedpgp_is_promptfl_with_guidance(exact):
    """cos(z_G, z_i) is 1: the term is μ · mean of ln(1 + exp((1 − cos(z_C, z_G))/τ))."""
    method = FedPGP(**SMALL, bottleneck=0, mu=0.7, tau=0.4)
    params = parameters(method, exact)

    def guided(params, text, batch, frozen):
        logits = frozen.logit_scale.exp() * batch.features @ text[0].T
        cosine = torch.stack([torch.dot(z_C, z) for z_C, z in zip(frozen.guidance, text[0], strict=True)])
        return {
            "task": -torch.log_softmax(logits, -1)[torch.arange(len(logits)), batch.labels].mean(),
            "contrastive": 0.7 * torch.log(1 + torch.exp((1 - cosine) / 0.4)).mean(),
        }

    found, gradients = loss_and_gradients(method, params, exact)
    expected, reference = loss_and_gradients(method, params, exact, guided)
    assert {k: v.item() for k, v in found.items()} == pytest.approx({k: v.item() for k, v in expected.items()})
    assert torch.allclose(gradients["p_G"], reference["p_G"], rtol=0, atol=1e-13)
    assert gradients["U"].numel() == gradients["V"].numel() == 0


def test_without_guidance_fedpgp_is_low_rank_personalization(exact):
    """μ = 0: the cross-entropy of the prompt p_G + U V, by the chain rule from PromptFL's gradient there."""
    method = FedPGP(**SMALL, bottleneck=2, mu=0.0)
    params = parameters(method, exact)
    U, V = params.private["U"], params.private["V"]
    terms, gradients = loss_and_gradients(method, params, exact)
    there = Params({"p_G": params.shared["p_G"] + U @ V}, {})
    plain, slope = loss_and_gradients(PromptFL(**SMALL), there, exact)
    assert terms["contrastive"].item() == 0
    assert terms["task"].item() == pytest.approx(plain["task"].item(), rel=1e-12)
    expected = {"p_G": slope["p_G"], "U": slope["p_G"] @ V.T, "V": U.T @ slope["p_G"]}
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, expected[name], rtol=0, atol=1e-13)


def test_the_global_prompt_alone_predicts_without_the_personal_part(backbone):
    method = FedPGP(**SMALL, bottleneck=2)
    params, frozen = parameters(method, backbone), frozen_of(method, tiny.task(), backbone)
    contexts = method.prompts(method.without_private(params), frozen)
    assert torch.equal(contexts[0], params.shared["p_G"]) and torch.equal(contexts[1], params.shared["p_G"])
    assert not torch.equal(*method.prompts(params, frozen))
    assert PromptFL().without_private(Params({"p_G": contexts[0]}, {})) is not None
    assert Local().without_private(Params({}, {"p": contexts[0]})) is None


def test_mu_is_the_weight_of_the_contrastive_term(backbone):
    found = {}
    for mu in (0.0, 0.5, 1.0):
        method = FedPGP(**SMALL, bottleneck=2, mu=mu)
        found[mu] = loss_and_gradients(method, parameters(method, backbone), backbone)[0]["contrastive"].item()
    assert found[1.0] > 0.1
    assert (found[0.0], found[0.5]) == (0.0, pytest.approx(found[1.0] / 2, rel=1e-6))


# ---------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("name", [name for name in METHODS if name != "zero-shot"])
def test_gradients_reach_everything_that_is_learned_and_nothing_else(name, backbone):
    """In the second round, after some steps, because a factor may be zero at the start.

    A step may use only some of the learned parameters. In the first round, no client has prompts of other clients.
    """
    method = tiny.small(find_method(name))
    params, rng = parameters(method, backbone), torch.Generator().manual_seed(0)
    shared, private = (
        {key: t + 0.01 * torch.randn(t.shape, generator=rng) for key, t in part.items()}
        for part in (params.shared, params.private)
    )
    aggregator = method.own_aggregator(rounds=2) or FedAvg()
    uploads = [Upload(i, n, params.shared) for i, n in enumerate(tiny.EXAMPLES)]
    server = aggregator.aggregate(aggregator.begin(params.shared, len(uploads)), uploads)
    params = replace(params, shared=shared, private=private, received=aggregator.download(server, 0).shared)
    steps = [loss_and_gradients(method, params, backbone, rng=rng)[1] for _ in range(1 if name in HEADLINE else 8)]
    assert set(steps[0]) == {*shared, *private} and len(steps[0]) == len(shared) + len(private) > 0
    known = {"fedpgp": {"p_G", "U", "V"}, "promptfl": {"p_G"}, "local": {"p"}}
    assert set(steps[0]) == known.get(name, set(steps[0]))
    for key in steps[0].keys() - {"places"}:  # which fedmgp draws
        reached = [gradients[key].abs() for gradients in steps if gradients[key] is not None]
        assert reached, key
        rows = sum(reached).sum(-1) > 0
        assert rows.all() if name in HEADLINE else rows.any(), key
    assert not any(
        weight.requires_grad
        for weight in (backbone.text.tokens, backbone.text.projection, *backbone.text.layers.weights[0].up)
    )
    assert not any(weight.requires_grad for weight in backbone.image.model.parameters())
    assert not backbone.logit_scale.requires_grad


def test_the_private_part_has_a_learning_rate_of_its_own(backbone):
    """One step of SGD is the rate times the gradient: twice the rate changes twice as much, only in U and V."""
    once = {"rounds": 1, "local_epochs": 1, "batch_size": 7, "weight_decay": 0.0}
    start = parameters(FedPGP(**SMALL, bottleneck=2), backbone)

    def steps(**changes):
        (only,) = tiny.run(FedPGP(**SMALL, bottleneck=2, **changes), backbone, **once)
        return {
            "p_G": only.shared["p_G"] - start.shared["p_G"],
            **{name: tensor - start.private[name] for name, tensor in only.private[0].items()},
        }

    same, double = steps(), steps(private_learning_rate=0.1)
    for name, factor in {"p_G": 1, "U": 2, "V": 2}.items():
        assert torch.allclose(double[name], factor * same[name], rtol=1e-3, atol=1e-7)
    assert FedPGP(learning_rate=0.3).learning_rates == {"shared": 0.3, "private": 0.3}


# ------------------------------------------------------------------------------------------------------- first values


@pytest.mark.parametrize("cls", [FedPGP, PromptFL, Local])
def test_a_phrase_starts_from_its_token_embeddings(cls, backbone):
    rank = {"bottleneck": 4} if cls is FedPGP else {}
    params = parameters(cls(ctx_init="a photo of a", **rank), backbone)
    ids = backbone.tokenizer("a photo of a", add_special_tokens=False)["input_ids"]
    embedding = backbone.image.model.text_model.embeddings.token_embedding.weight
    (context,) = [t for name, t in {**params.shared, **params.private}.items() if name.startswith("p")]
    assert torch.equal(context, embedding[ids])
    assert context.data_ptr() != embedding.data_ptr()
    if cls is FedPGP:
        assert params.private["U"].shape == (len(ids), 4)


def test_random_starts_are_small_normal_numbers_in_every_precision(backbone, exact):
    method = FedPGP()
    params = parameters(method, backbone)
    shapes = {name: tuple(t.shape) for name, t in {**params.shared, **params.private}.items()}
    assert shapes == {"p_G": (16, 128), "U": (16, 8), "V": (8, 128)}
    assert params.shared["p_G"].std().item() == pytest.approx(0.02, rel=0.1)
    assert params.private["V"].std().item() == pytest.approx(0.02, rel=0.1)
    assert abs(params.shared["p_G"].mean().item()) < 0.002
    double = parameters(method, exact)
    assert double.shared["p_G"].dtype == torch.float64
    assert torch.equal(double.shared["p_G"].float(), params.shared["p_G"])
    assert torch.equal(double.private["U"].float(), params.private["U"])


def test_the_placeholder_guidance_differs_from_the_template(backbone):
    task = tiny.task()
    assert FedPGP().templates(task) == ("a photo of a {}.",)
    assert FedPGP(context_length=4, guidance="placeholder").templates(task) == ("X X X X {}.",)
    paper, code = (
        frozen_of(FedPGP(**SMALL, guidance=kind), task, backbone).guidance for kind in ("template", "placeholder")
    )
    assert paper.shape == code.shape
    assert ((paper - code).norm(dim=-1) > 0.05).all()


# ---------------------------------------------------------------------------------------------------- hyperparameters


@pytest.mark.parametrize(
    "values",
    [
        {"bottleneck": -1},
        {"bottleneck": 2.5},
        {"mu": -0.1},
        {"mu": "1"},
        {"tau": 0.0},
        {"tau": -1.0},
        {"learning_rate": 0.0},
        {"private_learning_rate": 0.0},
        {"context_length": 0},
        {"ctx_init": ""},
        {"guidance": "none"},
        {"mew": 1.0},
    ],
)
def test_a_wrong_hyperparameter_is_refused(values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        FedPGP(**values)


def test_a_rank_that_the_context_does_not_have_is_refused(backbone):
    remedy = "--set fedpgp.bottleneck=3"
    with raises(ConfigError, where="fedpgp.bottleneck", allowed="at most 3", got=4, remedy=remedy):
        parameters(FedPGP(**SMALL, bottleneck=4), backbone)
    assert parameters(FedPGP(**SMALL, bottleneck=3), backbone).private["U"].shape == (3, 3)


def test_limits_and_defaults_of_the_paper_are_allowed():
    found = FedPGP()
    assert (found.context_length, found.bottleneck, found.mu, found.tau, found.learning_rate) == (16, 8, 0.5, 0.5, 1e-3)
    assert FedPGP(bottleneck=0, mu=0.0, private_learning_rate=None).bottleneck == 0
    assert FedPGP(mu=1).mu == 1.0


def test_an_unknown_method_is_refused_with_the_nearest_name():
    with raises(ConfigError, where="method", got="fedpgpp", remedy="'fedpgp'"):
        find_method("fedpgpp")
    assert find_method("zero-shot") is ZeroShot


@pytest.mark.parametrize("name", METHODS)
def test_the_line_of_a_method_in_a_list_is_a_whole_sentence(name):
    (first, *_) = inspect.getdoc(METHODS[name]).split("\n\n")
    assert first.endswith(".")
