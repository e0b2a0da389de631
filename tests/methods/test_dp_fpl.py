import builtins
import math

import agreement
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import dp_fpl
from pydantic import ValidationError
from raising import raises

import fedpgp
from fedpgp.errors import ConfigError
from fedpgp.methods import FedPGP, Params
from fedpgp.methods.dp_fpl import DPFPL

ANYTHING = 1e6  # a norm that no gradient has


def direction(method, of_images, p_L, seed=0):
    """of_images: [B, M, d], in p_G and p_L alike."""
    params = Params({"p_G": torch.zeros_like(p_L)}, {"p_L": p_L})
    return method.direction({"task": {"p_G": of_images, "p_L": of_images}}, params, tiny.generator(seed, "noise"))


def random(seed, *shape):
    return torch.randn(*shape, generator=tiny.generator(seed, "test"), dtype=torch.float64)


@pytest.mark.parametrize(("images", "z"), [("real", 0.02), pytest.param("random", 0.0, marks=pytest.mark.slow)])
def test_dp_fpl_agrees_with_the_oracle(images, z, backbones, monkeypatch):
    clips = []
    method = DPFPL(context_length=5, learning_rate=0.005, rank=2, clip=12.0, noise_multiplier=z)
    agreement.check_agreement(
        method, lambda world: dp_fpl.run(world, 2, 12.0, z, clips), backbones, monkeypatch, epochs=2, images=images
    )
    for part in "GL":  # long and short gradients were met
        found = [clip for of, clip in clips if of == part]
        assert 5 <= sum(found) <= len(found) - 5, (part, sum(found), len(found))


def test_without_noise_and_clip_dp_fpl_of_full_rank_is_fedpgp_of_full_rank(exact):
    ours = tiny.run(DPFPL(**agreement.HYPER, rank=3, clip=ANYTHING, noise_multiplier=0.0), exact)
    theirs = tiny.run(FedPGP(**agreement.HYPER, full_rank=True, mu=0.0), exact)
    for one, two in zip(ours, theirs, strict=True):
        assert torch.allclose(one.shared["p_G"], two.shared["p_G"], rtol=0, atol=1e-13)
        for own, other in zip(one.private, two.private, strict=True):
            assert torch.allclose(own["p_L"], other["W"], rtol=0, atol=1e-13)
        assert one.record["loss_task"] == pytest.approx(two.record["loss_task"], rel=1e-12)
        assert "epsilon" not in one.record
    low = tiny.run(DPFPL(**agreement.HYPER, rank=2, clip=ANYTHING, noise_multiplier=0.0), exact)
    assert not torch.allclose(low[-1].shared["p_G"], theirs[-1].shared["p_G"], atol=1e-4)


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 4), st.integers(1, 6))
def test_the_personal_gradient_is_the_projection_on_the_tangent_space(seed, images, rank, d):
    """Of the matrices of rank k at their best: G − (I − u uᵀ) G (I − vᵀ v), and it never grows."""
    M, rank = rank + seed % 3, min(rank, d)
    p_L, of_images = random(seed, M, d), random(seed + 1, images, M, d)
    method = DPFPL(rank=rank, clip=ANYTHING, noise_multiplier=0.0)
    found = direction(method, of_images, p_L, seed)
    V = torch.randn(d, rank, generator=tiny.generator(seed, "noise")).double()
    u = torch.linalg.svd(p_L @ V, full_matrices=False).U
    v = torch.linalg.svd(p_L.T @ u, full_matrices=False).U.T
    G = of_images.mean(0)
    rest = (torch.eye(M).double() - u @ u.T) @ G @ (torch.eye(d).double() - v.T @ v)
    assert torch.allclose(found["p_L"], G - rest, atol=1e-6)
    assert torch.allclose(found["p_G"], G, atol=1e-12)
    again = direction(method, found["p_L"][None], p_L, seed)["p_L"]
    assert torch.allclose(again, found["p_L"], atol=1e-9)


@given(st.integers(0, 10_000), st.floats(0.1, 10.0))
def test_no_image_moves_a_sum_by_more_than_the_clip(seed, clip):
    """One image more or less: B times the noiseless mean differs by C at most, in p_G, and in g_u and g_v together."""
    method = DPFPL(rank=2, clip=clip, noise_multiplier=0.0)
    rng = torch.Generator()
    parts = [100 * random(seed, 3, 4, 2), 100 * random(seed + 1, 3, 2, 5)]

    def total(count):
        means = method._private_means([part[:count] for part in parts], rng)
        return torch.cat([count * mean.flatten() for mean in means])

    assert (total(3) - total(2)).norm() <= clip * (1 + 1e-9)
    assert total(1).norm() == pytest.approx(clip)
    small = [1e-3 * clip * part / part.norm() for part in parts]
    assert torch.allclose(method._private_means(small, rng)[0], small[0].mean(0), atol=1e-12)


def test_the_direction_by_hand():
    """p_L = (3, 0; 0, 0) of rank one has u = (1, 0)ᵀ and v = (1, 0) up to their signs.

    G = (1, 2; 3, 4): G vᵀ v keeps the first column, u uᵀ G the first row, and the corner is counted once. A gradient
    of 2 G clipped to half its norm is G in p_G. Of (g_u, g_v) = ((1, 3), (1, 2)) with norm √15 half is left, too.
    """
    p_L, G = torch.tensor([[3.0, 0.0], [0.0, 0.0]]), torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    free = direction(DPFPL(rank=1, noise_multiplier=0.0), G, p_L)
    assert free["p_L"].tolist() == [pytest.approx([1.0, 2.0]), pytest.approx([3.0, 0.0], abs=1e-6)]
    assert free["p_G"].tolist() == G[0].tolist()
    cut = direction(DPFPL(rank=1, noise_multiplier=0.0, clip=math.sqrt(30)), 2 * G, p_L)
    assert cut["p_G"].flatten().tolist() == pytest.approx([1.0, 2.0, 3.0, 4.0])
    joint = direction(DPFPL(rank=1, noise_multiplier=0.0, clip=math.sqrt(15) / 2), G, p_L)
    assert joint["p_L"].flatten().tolist() == pytest.approx([0.5, 1.0, 1.5, 0.0], abs=1e-6)


@pytest.mark.parametrize("images", [1, 5])
def test_the_noise_has_the_deviation_of_multiplier_times_clip_over_batch(images):
    method = DPFPL(rank=40, clip=3.0, noise_multiplier=2.0)
    zeros = torch.zeros(images, 40, 500, dtype=torch.float64)
    found = direction(method, zeros, random(0, 40, 500))
    assert found["p_G"].std().item() == pytest.approx(6 / images, rel=0.02)
    assert abs(found["p_G"].mean().item()) < 0.1 / images
    # of full rank u uᵀ = I: only the noise of g_v [40, 500] is left
    assert found["p_L"].std().item() == pytest.approx(6 / images, rel=0.02)
    assert abs(torch.corrcoef(torch.stack([found["p_G"].flatten(), found["p_L"].flatten()]))[0, 1]) < 0.03
    other = direction(method, zeros, random(0, 40, 500), seed=1)
    assert not torch.allclose(found["p_G"], other["p_G"], atol=0.1)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_personal_part_of_zeros_or_of_low_rank_has_a_finite_gradient(rank):
    G = random(1, 2, 3, 5)
    for p_L in (torch.zeros(3, 5).double(), random(2, 3, 1) @ random(3, 1, 5)):
        found = direction(DPFPL(rank=rank, clip=ANYTHING, noise_multiplier=0.0), G, p_L)["p_L"]
        assert found.isfinite().all() and 0 < found.norm() <= G.mean(0).norm() * (1 + 1e-9)


def test_the_privacy_spent_is_that_of_two_gaussian_mechanisms_per_epoch():
    """Φ(1/(2σ) − ε σ) − e^ε Φ(−1/(2σ) − ε σ) = δ of one Gaussian mechanism (Balle and Wang 2018), σ = z / √(2 E)."""

    def cdf(x):
        return 0.5 * math.erfc(-x / math.sqrt(2))

    for z, epochs, delta in ((1.0, 1, 1e-5), (4.0, 50, 1e-5), (20.0, 7, 1e-3)):
        epsilon = DPFPL(noise_multiplier=z, delta=delta).privacy_spent(epochs)["epsilon"]
        sigma = z / math.sqrt(2 * epochs)
        found = cdf(1 / (2 * sigma) - epsilon * sigma) - math.exp(epsilon) * cdf(-1 / (2 * sigma) - epsilon * sigma)
        assert found == pytest.approx(delta, rel=1e-3)
    assert DPFPL(noise_multiplier=5.0).privacy_spent(50) == {"epsilon": pytest.approx(9.9973, abs=1e-4)}
    assert DPFPL(noise_multiplier=0.0).privacy_spent(3) == {}
    assert math.isfinite(DPFPL(noise_multiplier=1e-6).privacy_spent(10**4)["epsilon"])


def test_the_privacy_spent_is_recorded_and_grows_also_over_a_stop(backbone, new_state):
    method, state = DPFPL(**agreement.HYPER, rank=2, noise_multiplier=4.0), new_state()
    (first,) = tiny.run(method, backbone, state=state, rounds=1)
    (second,) = tiny.run(method, backbone, state=state, rounds=2)
    spent = first.record["epsilon"], second.record["epsilon"]
    assert spent == (method.privacy_spent(2)["epsilon"], method.privacy_spent(4)["epsilon"])
    assert 0 < spent[0] < spent[1]


def test_a_large_epsilon_gives_a_warning_with_the_noise_that_is_enough():
    """After 50 epochs z = 1 has ε = 92, as the docstring says; z = 85 has 0.59 after 100."""
    (told,) = DPFPL().assumptions(50)
    assert "dp-fpl.noise_multiplier = 1 gives ε = 91.8" in told and "δ = 1e-05, 50 local epochs" in told
    assert told.endswith("For ε = 8, use --set dp-fpl.noise_multiplier=6")
    assert DPFPL(noise_multiplier=84.8).privacy_spent(100)["epsilon"] == pytest.approx(0.59, abs=0.005)
    for epochs, delta in ((1, 1e-5), (20, 1e-3), (400, 1e-5)):
        (told,) = DPFPL(noise_multiplier=0.1, delta=delta).assumptions(epochs)
        enough = DPFPL(noise_multiplier=float(told.split("noise_multiplier=")[1].split()[0]), delta=delta)
        assert enough.privacy_spent(epochs)["epsilon"] == pytest.approx(8, rel=0.01)
        assert enough.assumptions(epochs) == []
    assert DPFPL(noise_multiplier=0.0).assumptions(50) == []  # without noise, the user does not ask for privacy


def test_a_run_warns_once_before_it_starts_that_its_epsilon_is_large(small, cache):
    class Hearing(fedpgp.Silent):
        def __init__(self):
            self.heard = []

        def notice(self, text):
            self.heard += [text] if "dp-fpl" in text else []

        def round(self, method, seed, record):
            self.heard.append(record["round"])

    reporter = Hearing()
    changes = [*tiny.SHORT_RUN, "federation.participation=0.34", "dp-fpl.noise_multiplier=0.3"]
    found = fedpgp.run("dp-fpl", changes=changes, cache=cache, reporter=reporter)
    told, *rounds = reporter.heard
    assert f"ε = {found.rounds[-1]['epsilon']:.3g} " in told and rounds == [1, 2]


def test_the_private_part_has_a_learning_rate_of_its_own(backbone):
    """One step of SGD is the rate times the gradient: ten times the rate changes ten times as much, only in p_L."""
    once = {"rounds": 1, "local_epochs": 1, "batch_size": 7, "weight_decay": 0.0}
    same, ten = (
        tiny.run(DPFPL(**agreement.HYPER, rank=2, private_learning_rate=rate), backbone, **once)[0]
        for rate in (None, 0.5)
    )
    assert torch.equal(same.shared["p_G"], ten.shared["p_G"])
    start = DPFPL(**agreement.HYPER, rank=2).init_private(tiny.task(), backbone, tiny.generator(0, "private"), 0)
    for one, other in zip(same.private, ten.private, strict=True):
        assert torch.allclose(other["p_L"] - start["p_L"], 10 * (one["p_L"] - start["p_L"]), rtol=1e-3, atol=1e-5)


def test_without_the_package_the_remedy_is_named_before_training(backbone, monkeypatch):
    real = builtins.__import__

    def missing(name, *rest):
        if name == "dp_accounting":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    rng = tiny.generator(0, "shared")
    with raises(ConfigError, where="[dp-fpl]", problem="dp-accounting", remedy='`pip install "fedpgp[privacy]"`') as e:
        DPFPL().init_shared(tiny.task(), backbone, rng)
    assert "--set dp-fpl.noise_multiplier=0" in e.value.remedy
    assert DPFPL(noise_multiplier=0.0).init_shared(tiny.task(), backbone, rng)["p_G"].shape == (16, 128)


def test_without_its_private_part_the_global_prompt_is_left(backbone):
    params = Params({"p_G": torch.ones(2, 3)}, {"p_L": torch.full((2, 3), 5.0)})
    method = DPFPL(rank=2)
    assert method.prompts(params, None)[0].tolist() == [[6.0] * 3] * 2
    assert method.prompts(method.without_private(params), None)[0].tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize(
    "values",
    [
        {"rank": 0},
        {"clip": 0.0},
        {"noise_multiplier": -0.1},
        {"noise_multiplier": math.inf},
        {"delta": 0.0},
        {"private_learning_rate": 0.0},
    ],
)
def test_a_wrong_hyperparameter_is_refused(values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        DPFPL(**values)


def test_a_rank_above_the_context_length_is_refused(backbone):
    with raises(ConfigError, where="dp-fpl.rank", allowed="at most 3", got=4):
        DPFPL(rank=4, context_length=3).init_private(tiny.task(), backbone, tiny.generator(0, "private"), 0)
