import math

import agreement
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import fedpha
from pydantic import ValidationError
from raising import raises

from fedpgp.config import ExperimentConfig, load_config
from fedpgp.errors import ConfigError, TrainingError
from fedpgp.methods import Batch, Frozen, Local, Params, PromptFL
from fedpgp.methods.fedpha import FedPHA
from fedpgp.studies.tuning.space import search_spaces


def random(seed, *shape):
    return torch.randn(*shape, generator=tiny.generator(seed, "test"), dtype=torch.float64)


@pytest.mark.parametrize(
    ("projection", "ratio", "images"),
    [pytest.param("code", 0.5, "random", marks=pytest.mark.slow), ("complement", 0.6, "real")],
)
def test_fedpha_agrees_with_the_oracle(projection, ratio, images, backbones, monkeypatch):
    weights, active = {"margin": 0.5, "pull": 30.0, "push": 2.0}, []
    method = FedPHA(context_length=3, learning_rate=0.02, lengths=(2, 5), ratio=ratio, projection=projection, **weights)
    agreement.check_agreement(
        method,
        lambda world: fedpha.run(world, ratio, projection, **weights, active=active),
        backbones,
        monkeypatch,
        epochs=2,
        images=images,
    )
    assert 10 <= sum(active) <= len(active) - 10, (sum(active), len(active))  # both sides of the margin


def test_without_pull_and_push_fedpha_is_promptfl_and_local_in_parallel(exact):
    for lengths, ctx_init in (((3,), "random"), ((4,), "a photo of a")):
        common = {**agreement.HYPER, "ctx_init": ctx_init}
        ours = tiny.run(FedPHA(**common, lengths=lengths, ratio=0.6, pull=0.0, push=0.0), exact)
        shared, alone = (tiny.run(cls(**common), exact) for cls in (PromptFL, Local))
        for one, two, three in zip(ours, shared, alone, strict=True):
            assert torch.allclose(one.shared["p_G"], two.shared["p_G"], rtol=0, atol=1e-13)
            for own, other in zip(one.private, three.private, strict=True):
                assert torch.allclose(own["p"], other["p"], rtol=0, atol=1e-13)
            assert one.record["loss_global"] == pytest.approx(two.record["loss_task"], rel=1e-12)
            assert one.record["loss_task"] == pytest.approx(three.record["loss_task"], rel=1e-12)
            assert one.evaluation.shared == two.evaluation.shared
            assert {k: v.tolist() for k, v in one.evaluation.clients.items()} == {
                k: v.tolist() for k, v in three.evaluation.clients.items()
            }
    whole = tiny.run(FedPHA(**agreement.HYPER, lengths=(3,), ratio=0.6), exact)
    assert whole[-1].record["loss_push"] > 0
    assert not torch.allclose(whole[-1].private[0]["p"], ours[-1].private[0]["p"][:3], atol=1e-4)


def test_the_projection_by_hand():
    """p_G has the singular values 3, 2 along e₁ and e₂ of three dimensions; a half of them is left: 2."""
    p_G, p = torch.tensor([[0.0, 2.0, 0.0], [3.0, 0.0, 0.0]]), torch.tensor([[1.0, 2.0, 3.0]])
    params = Params({"p_G": p_G}, {"p": p})

    def projected(**values):
        own, found, shared = FedPHA(**values).prompts(params, None)
        assert own is p and shared is p_G
        return found.tolist()

    assert projected(ratio=0.5) == [pytest.approx([0.0, 2.0, 3.0])]
    assert projected(ratio=0.5, projection="code") == [pytest.approx([0.0, 2.0, 0.0])]


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 4), st.sampled_from(["complement", "code"]))
def test_the_projection_is_one_whatever_the_lengths(seed, M, own, projection):
    method = FedPHA(ratio=0.5, projection=projection)
    p, p_G = random(seed, own, 6), random(seed + 1, M, 6)
    once = method._projected(p, p_G)
    assert once.shape == p.shape and once.norm() <= p.norm() * (1 + 1e-9)
    assert torch.allclose(method._projected(once, p_G), once, atol=1e-9)
    assert torch.allclose(((p - once) * once).sum(), torch.zeros(()).double(), atol=1e-9)
    if M > 1:
        top = torch.linalg.svd(p_G).Vh[0]
        assert torch.allclose(once @ top, torch.zeros(own).double(), atol=1e-9)


def test_the_loss_by_hand():
    """s = 2, one image (1, 0) of class 0 of two.

    z_i = (1, 0), (0, 1): logits 2, 0. z_G = (0.6, 0.8), (0, 1): logits 1.2, 0. z_o differs in four numbers by 0, 0,
    0.6 and 0.2. The distances of z_i and z_G are √0.8 and 0.
    """
    text = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.6, 0.8]], [[0.6, 0.8], [0.0, 1.0]]])
    frozen = Frozen(torch.eye(2), torch.tensor(math.log(2.0)), torch.arange(2))
    batch = Batch(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    terms = FedPHA(margin=0.9, pull=5.0, push=3.0).loss(Params({}, {}), text, batch, frozen)
    assert {name: value.item() for name, value in terms.items()} == {
        "task": pytest.approx(math.log(1 + math.exp(-2))),
        "global": pytest.approx(math.log(1 + math.exp(-1.2))),
        "pull": pytest.approx(5 * (0.36 + 0.04) / 4),
        "push": pytest.approx(3 * (0.9 - math.sqrt(0.8) + 0.9) / 2, rel=1e-5),
    }
    assert FedPHA(margin=0.5).loss(Params({}, {}), text, batch, frozen)["push"].item() == pytest.approx(0.25)


def test_clients_have_the_lengths_of_their_turn_and_start_from_a_phrase(backbone, exact):
    def first(client, like=backbone, **values):
        method = FedPHA(lengths=(2, 6), **values)
        return method.init_private(tiny.task(), like, tiny.generator(0, "private"), client)["p"]

    assert [len(first(client)) for client in range(4)] == [2, 6, 2, 6]
    phrase = backbone.phrase("a photo of a")
    short, long = (first(client, ctx_init="a photo of a") for client in (0, 1))
    assert torch.equal(short, phrase[-2:]) and torch.equal(long[2:], phrase)
    assert long[:2].std().item() == pytest.approx(0.02, rel=0.2)
    assert torch.equal(first(1, exact).float(), first(1))
    # clients with different lengths are trained together as if separately, and two rounds change all prompts
    rounds = tiny.run(FedPHA(**agreement.HYPER, lengths=(2, 6), ratio=0.6), backbone)
    assert [len(own["p"]) for own in rounds[-1].private] == [2, 6, 2]


def test_no_gradient_reaches_the_shared_prompt_through_the_decomposition():
    params = Params({"p_G": random(0, 4, 6).requires_grad_()}, {"p": random(1, 3, 6).requires_grad_()})
    _, projected, _ = FedPHA(ratio=0.5).prompts(params, None)
    projected.square().sum().backward()
    assert params.shared["p_G"].grad is None and params.private["p"].grad.norm() > 0


def test_a_new_client_uses_the_shared_prompt():
    params = Params({"p_G": torch.ones(3, 4)}, {"p": torch.zeros(2, 4)})
    method = FedPHA()
    assert torch.equal(method.prompts(method.without_private(params), None)[0], torch.ones(3, 4))


def test_lengths_survive_a_config_file(tmp_path):
    path = tmp_path / "config.toml"
    method = FedPHA(lengths=(4, 7))
    path.write_text(ExperimentConfig(methods={"fedpha": method}).to_toml(), encoding="utf-8")
    assert load_config(path, methods=[FedPHA]).methods["fedpha"] == method
    changed = load_config(path, ["fedpha.lengths=[3, 5, 9]"], methods=[FedPHA]).methods["fedpha"]
    assert changed.lengths == (3, 5, 9) and hash(changed) != hash(method)
    with pytest.raises(ConfigError, match=r"fedpha\.lengths"):
        load_config(path, ["fedpha.lengths=[3.5]"], methods=[FedPHA])


@pytest.mark.parametrize(
    "values",
    [
        {"lengths": ()},
        {"lengths": (0,)},
        {"lengths": (1.0,)},
        {"lengths": 4},
        {"ratio": 0.0},
        {"ratio": 1.0},
        {"margin": -1.0},
        {"projection": "none"},
    ],
)
def test_a_wrong_hyperparameter_is_refused(values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        FedPHA(**values)


def test_numbers_that_are_not_finite_are_reported_with_client_round_and_step(backbone):
    """Before the decomposition fails with its own message."""
    method = FedPHA(context_length=3, learning_rate=1e3, lengths=(2,), ratio=0.6)
    with raises(TrainingError, where="client 0 in round 1, step ", problem="not finite", remedy="fedpha.learning_rate"):
        tiny.run(method, backbone, weight_decay=1e3, local_epochs=10)


@pytest.mark.parametrize(("length", "left_out"), [(5, 1), (10, 2), (15, 3), (16, 3)])
def test_a_fifth_of_the_directions_is_taken_out_whatever_the_rounding(length, left_out):
    p_G, p = (torch.randn(length, 32, generator=torch.Generator().manual_seed(s)).double() for s in (0, 1))
    projected = FedPHA(ratio=0.8)._projected(p, p_G)
    assert int(torch.linalg.matrix_rank(p - projected)) == left_out


def first_shared(backbone, **values):
    return FedPHA(**values).init_shared(tiny.task(), backbone, tiny.generator(0, "shared"))["p_G"]


@pytest.mark.parametrize(
    ("values", "M", "most", "vectors"),
    [
        ({"ratio": 0.78, "ctx_init": "a photo of a"}, 4, 0.75, 5),
        ({"ratio": 0.95}, 16, 0.9375, 20),
        ({"ratio": 0.7, "context_length": 3}, 3, 0.6666, 4),
    ],
)
def test_a_ratio_with_which_nothing_is_projected_out_is_refused(values, M, most, vectors, backbone):
    """Its pull would be 0. Both remedies work."""
    with raises(ConfigError, where="fedpha.ratio", allowed=f"{most} for a shared prompt of M = {M}") as caught:
        first_shared(backbone, **values)
    assert caught.value.got == values["ratio"]
    assert f"--set fedpha.ratio={most}" in caught.value.remedy and f"{vectors} vectors" in caught.value.remedy
    p_G = first_shared(backbone, **{**values, "ratio": most})
    method, p = FedPHA(ratio=most), torch.randn(2, 128, generator=tiny.generator(0, "test"))
    assert not torch.allclose(method._projected(p, p_G), p)
    assert len(first_shared(backbone, ratio=values["ratio"], context_length=vectors)) == vectors


def test_a_shared_prompt_of_one_vector_is_refused_with_the_remedy_that_is_left(backbone):
    with raises(ConfigError, where="fedpha.ratio", got=0.5, remedy="2 vectors or more") as caught:
        first_shared(backbone, ratio=0.5, context_length=1)
    assert "--set" not in caught.value.remedy


def test_the_recipe_and_the_search_space_have_ratios_that_project_something_out(backbone):
    recipe = load_config().methods["fedpha"]
    space = search_spaces({"fedpha": recipe})["fedpha"]
    for start in space["ctx_init"].choices:
        for ratio in (recipe.ratio, space["ratio"].low, space["ratio"].high):
            first_shared(backbone, ratio=ratio, ctx_init=start)
