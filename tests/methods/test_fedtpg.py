import math
from types import SimpleNamespace

import agreement
import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracle import fedtpg
from pydantic import ValidationError
from raising import raises
from torch import nn

from fedpgp.errors import ConfigError
from fedpgp.federation.client_runner import frozen_of
from fedpgp.methods import Frozen, Params
from fedpgp.methods.fedtpg import FedTPG


def first(d, D, seed=0, **values):
    """Return initial parameters for a checkpoint with these widths, in float64."""
    like = SimpleNamespace(token_width=d, image=SimpleNamespace(width=D), logit_scale=torch.zeros(()).double())
    return FedTPG(**values).init_shared(tiny.task(), like, tiny.generator(seed, "shared"))


def names_of(features):
    return Frozen(features, torch.tensor(1.0, dtype=torch.float64), torch.arange(len(features)))


def random(seed, *shape):
    return F.normalize(torch.randn(*shape, generator=tiny.generator(seed, "test"), dtype=torch.float64), dim=-1)


@pytest.mark.parametrize(("heads", "images"), [(4, "random"), (1, "real")])
def test_fedtpg_agrees_with_the_oracle(heads, images, backbones, monkeypatch):
    method = FedTPG(context_length=3, learning_rate=0.0003, heads=heads)
    agreement.check_agreement(method, lambda world: fedtpg.run(world, heads), backbones, monkeypatch, images=images)


@pytest.mark.parametrize(("d", "D", "heads"), [(8, 8, 2), (8, 12, 4), (12, 8, 1)])
def test_the_generator_is_made_of_pytorch_s_layers(d, D, heads):
    """Widths of tokens and features may differ."""
    theta, T = first(d, D, context_length=3, heads=heads), random(1, 5, D)
    theta = {name: value + 0.1 * random(len(name), *value.shape) for name, value in theta.items()}

    def load(layer, **tensors):
        layer.load_state_dict(tensors)
        return layer

    def named(layer, name):
        return load(layer, weight=theta[f"{name}.weight"], bias=theta[f"{name}.bias"])

    parts = {f"{part[0]}_proj_weight": theta[part] for part in ("query", "key", "value")}
    if d == D:
        parts = {"in_proj_weight": torch.cat(list(parts.values()))}
    attention = load(
        nn.MultiheadAttention(d, heads, kdim=D, vdim=D).double(),
        **parts,
        **{"in_proj_bias": theta["bias"], "out_proj.weight": theta["out.weight"], "out_proj.bias": theta["out.bias"]},
    )
    names = named(nn.LayerNorm(D).double(), "norm_names")(T)
    X, _ = attention(named(nn.LayerNorm(d).double(), "norm_queries")(theta["queries"]), names, names)
    up = named(nn.Linear(d, 8 * d).double(), "up")(named(nn.LayerNorm(d).double(), "norm_up")(X))
    expected = X + named(nn.Linear(4 * d, d).double(), "down")(up[:, : 4 * d] * F.gelu(up[:, 4 * d :]))
    (found,) = FedTPG(heads=heads).prompts(Params(theta, {}), names_of(T))
    assert found.shape == (3, d) and torch.allclose(found, expected, atol=1e-12)


def test_the_generator_has_the_size_and_the_start_of_the_public_one():
    """4 · 512 queries, attention, three normalisations and the feed-forward part: 4,206,080 numbers."""
    theta = first(512, 512)
    assert sum(value.numel() for value in theta.values()) == 4_206_080
    bounds = {"query": math.sqrt(6 / 2048), "key": math.sqrt(6 / 2048), "value": math.sqrt(6 / 2048)}
    bounds |= {f"{name}.weight": 1 / math.sqrt(512) for name in ("out", "up")} | {"up.bias": 1 / math.sqrt(512)}
    bounds |= {"down.weight": 1 / math.sqrt(2048), "down.bias": 1 / math.sqrt(2048)}
    for name, bound in bounds.items():
        assert theta[name].abs().max().item() == pytest.approx(bound, rel=0.02), name
        assert theta[name].std().item() == pytest.approx(bound / math.sqrt(3), rel=0.06), name
        assert abs(theta[name].mean().item()) < 0.1 * bound, name
    assert theta["queries"].shape == (4, 512) and theta["queries"].std().item() == pytest.approx(0.02, rel=0.1)
    norms = {f"{name}.weight" for name in ("norm_queries", "norm_names", "norm_up")}
    assert all((theta[name] == 1).all() for name in norms)
    zeros = {"bias", "out.bias", *(name.replace("weight", "bias") for name in norms)}
    assert all((theta[name] == 0).all() for name in zeros)
    assert theta.keys() == {"queries", *bounds, *norms, *zeros}


def test_the_prompt_by_hand():
    """Keys of zero attend to all names alike, values and output are what they are, nothing is fed forward.

    (1, 0) is normalised to (1, −1) and (0, 1) to (−1, 1), so that of three names (1, 0), (1, 0), (0, 1) the mean is
    (1/3, −1/3); a bias of the down projection is added.
    """
    theta = {name: torch.zeros_like(value) for name, value in first(2, 2, context_length=1, heads=1).items()}
    theta |= {"value": torch.eye(2).double(), "out.weight": torch.eye(2).double()}
    theta |= {"norm_names.weight": torch.ones(2).double(), "down.bias": torch.tensor([0.0, 1.0]).double()}
    T = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).double()
    (found,) = FedTPG(heads=1).prompts(Params(theta, {}), names_of(T))
    assert found.tolist() == [pytest.approx([1 / 3, 2 / 3], abs=1e-4)]


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_the_prompt_depends_on_which_names_there_are_not_on_their_order(seed, classes):
    theta, T = first(8, 6, seed, context_length=2, heads=2), random(seed, classes, 6)
    method = FedTPG(heads=2)
    (found,) = method.prompts(Params(theta, {}), names_of(T))
    order = torch.randperm(classes, generator=tiny.generator(seed, "order"))
    (other,) = method.prompts(Params(theta, {}), names_of(T[order]))
    assert torch.allclose(found, other, atol=1e-12)
    (twice,) = method.prompts(Params(theta, {}), names_of(torch.cat([T, T])))
    assert torch.allclose(found, twice, atol=1e-12)
    (more,) = method.prompts(Params(theta, {}), names_of(torch.cat([T, random(seed + 1, 1, 6)])))
    assert not torch.allclose(found, more, atol=1e-6)


def test_the_inputs_are_the_bare_names_and_base_and_novel_ones_have_prompts_of_their_own(backbone):
    method, task = FedTPG(), tiny.task()
    frozen = frozen_of(method, task, backbone)
    assert torch.allclose(frozen.guidance, backbone.template_features("{}", tiny.NAMES))
    assert not torch.allclose(frozen.guidance, backbone.template_features("{}.", tiny.NAMES), atol=1e-2)
    params = Params(method.init_shared(task, backbone, tiny.generator(0, "shared")), {})
    (base,), (novel,) = (method.prompts(params, frozen.select(some)) for some in (tiny.BASE, tiny.NOVEL))
    assert base.shape == novel.shape == (4, 128) and (base - novel).norm() > 0.01 * base.norm()


def test_clients_of_one_class_change_nothing(exact):
    """Their softmax has one column. In a federation with other clients, they only slow down the average."""
    method = FedTPG(context_length=3)
    start = method.init_shared(tiny.task(), exact, tiny.generator(0, "shared"))
    alone, mixed = (
        tiny.run(method, exact, tiny.data(exact, classes=classes), rounds=1, weight_decay=0.0)[0]
        for classes in (((1,), (2,), (3,)), ((1,), (2, 7), (3,)))
    )
    assert alone.record["loss_task"] == 0 < mixed.record["loss_task"]
    assert tiny.bits(alone.shared) == tiny.bits(start)
    assert tiny.bits(mixed.shared) != tiny.bits(start)


@pytest.mark.parametrize("values", [{"heads": 0}, {"context_length": 0}, {"learning_rate": 0.0}, {"ctx_init": "a"}])
def test_a_wrong_hyperparameter_is_refused(values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        FedTPG(**values)


def test_heads_that_do_not_divide_the_width_are_refused_and_the_remedy_works(backbone):
    with raises(ConfigError, where="fedtpg.heads", allowed="128", got=6, remedy="--set fedtpg.heads=2"):
        FedTPG(heads=6).init_shared(tiny.task(), backbone, tiny.generator(0, "shared"))
    FedTPG(heads=2).init_shared(tiny.task(), backbone, tiny.generator(0, "shared"))
