"""Plans of optimal transport, compared with closed forms, other solvers and the oracle's loops."""

import math
import re

import numpy as np
import ot
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle.transport import plan, published
from raising import raises
from scipy.optimize import minimize

from fedpgp.errors import TrainingError
from fedpgp.methods.transport import transport

TIGHT = {"iterations": 20_000, "tolerance": 1e-10}


def similarities(seed, *shape, low=-1.0, high=1.0):
    drawn = torch.rand(*shape, generator=tiny.generator(seed, "test"), dtype=torch.float64)
    return low + (high - low) * drawn


def clip_like(seed, *leading, P=49, N=4):
    """Cosines as CLIP's are: about 0.2, patches differ by 0.04 and prompts by 0.02."""
    rng = tiny.generator(seed, "test")
    of_patch, of_both = (torch.randn(*leading, P, n, generator=rng, dtype=torch.float64) for n in (1, N))
    return 0.2 + 0.04 * of_patch + 0.02 * of_both


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    shape=st.sampled_from([(1, 1), (1, 3), (7, 1), (2, 2), (3, 5), (8, 3), (2, 1, 6, 4)]),
    epsilon=st.floats(0.3, 3),
    mass=st.one_of(st.just(1.0), st.floats(0.01, 0.9)),
)
def test_a_plan_satisfies_the_conditions_that_only_the_optimum_does(seed, shape, epsilon, mass):
    """T_pn = u_p K_pn v_n, columns of mass / N, and rows of 1 / P; or of at most that, and u = 1 below."""
    *_, P, N = shape
    similarity = similarities(seed, *shape)
    T = transport(similarity, epsilon=epsilon, mass=mass, **TIGHT)
    rows, columns = T.sum(-1), T.sum(-2)
    assert T.shape == similarity.shape and (T > 0).all()
    assert torch.allclose(columns, torch.full_like(columns, mass / N), rtol=1e-12, atol=0)
    assert (rows * P <= 1 + 1e-9).all()
    scaling = T.log() - similarity / epsilon  # log u_p + log v_n
    log_u = scaling[..., 0] - scaling[..., 0].amax(-1, keepdim=True)
    assert torch.allclose(scaling - scaling[..., :1, :], (log_u - log_u[..., :1])[..., None], atol=1e-9)
    if mass == 1:
        assert torch.allclose(rows * P, torch.ones_like(rows), rtol=1e-9)
    else:
        assert ((log_u > -1e-9) | ((rows * P - 1).abs() < 1e-9)).all()


@pytest.mark.parametrize(("P", "N", "epsilon"), [(6, 4, 0.1), (49, 4, 0.1), (5, 3, 0.02), (1, 3, 1.0)])
def test_the_balanced_plan_is_that_of_pot(P, N, epsilon):
    similarity = similarities(P, P, N, low=0.0)
    found = transport(similarity, epsilon=epsilon, mass=1, **TIGHT)
    a, b = np.full(P, 1 / P), np.full(N, 1 / N)
    expected = ot.sinkhorn(
        a, b, 1 - similarity.numpy(), epsilon, method="sinkhorn_log", stopThr=1e-13, numItermax=100_000
    )
    assert np.allclose(found.numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("P", "N"), [(5, 2), (3, 3)])
@pytest.mark.parametrize("mass", [0.3, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("epsilon", [0.1, 1.0])
def test_the_plan_is_what_a_general_solver_finds(P, N, mass, epsilon):
    """SciPy's SLSQP is given the objective and the constraints, and nothing of how the solution looks."""
    similarity = similarities(P, P, N)
    cost = (1 - similarity).flatten().numpy()
    of_rows, of_columns = np.kron(np.eye(P), np.ones(N)), np.kron(np.ones(P), np.eye(N))
    found = minimize(
        lambda T: T @ cost + epsilon * (T * (np.log(T) - 1)).sum(),
        np.full(P * N, mass / P / N),
        jac=lambda T: cost + epsilon * np.log(T),
        method="SLSQP",
        bounds=[(1e-12, 1)] * (P * N),
        constraints=[
            {"type": "eq", "fun": lambda T: of_columns @ T - mass / N, "jac": lambda T: of_columns},
            {"type": "ineq", "fun": lambda T: 1 / P - of_rows @ T, "jac": lambda T: -of_rows},
        ],
        options={"ftol": 1e-13, "maxiter": 1000},
    )
    ours = transport(similarity, epsilon=epsilon, mass=mass, **TIGHT).flatten().numpy()
    assert found.success and np.allclose(ours, found.x, rtol=0, atol=2e-6)


@pytest.mark.parametrize("tolerance", [0.05, 1e-3])
@pytest.mark.parametrize(("mass", "epsilon"), [(1, 0.1), (0.8, 0.1), (0.4, 0.03)])
def test_every_plan_ends_where_the_oracles_does(mass, epsilon, tolerance):
    similarity = clip_like(0, 7, P=9, N=2)
    found = transport(similarity, epsilon=epsilon, mass=mass, iterations=10_000, tolerance=tolerance)
    for ours, of_one in zip(found, similarity, strict=True):
        expected = torch.tensor(plan(of_one.tolist(), epsilon, mass, tolerance), dtype=torch.float64)
        assert torch.allclose(ours, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("mass", "turns"), [(0.5, 60), (0.8, 300), (1, 5000)])
def test_the_published_turns_lead_to_the_same_plan(mass, turns):
    """They need more iterations: with the inequality and mass near 1, thousands."""
    similarity = clip_like(5, P=9, N=2)
    found = transport(similarity, epsilon=0.1, mass=mass, **TIGHT)
    expected = torch.tensor(published(similarity.tolist(), 0.1, mass, turns), dtype=torch.float64)
    assert torch.allclose(found, expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("mass", [0.5, 0.8, 0.95, 0.99])
@pytest.mark.parametrize("epsilon", [0.1, 0.02])
def test_few_turns_are_enough_however_much_is_carried(mass, epsilon):
    """With features in random directions, unlike real features. The published iterations need up to thousands."""
    similarity = torch.tanh(1.5 * (clip_like(6, 100, P=36, N=2) - 0.2) / 0.04)
    T = transport(similarity, epsilon=epsilon, mass=mass, iterations=100 if epsilon == 0.1 else 600, tolerance=1e-3)
    assert torch.allclose(T.sum((-2, -1)), torch.full((100,), mass, dtype=torch.float64))


@pytest.mark.parametrize("mass", [1, 0.8])
def test_a_plan_does_not_depend_on_the_others_of_its_batch(mass):
    """The tolerance is so coarse that a plan would change visibly with as many iterations as other plans need."""
    similarity = clip_like(1, 2, 3) * torch.tensor([1.0, 4.0, 12.0])[:, None, None]
    coarse = {"epsilon": 0.1, "mass": mass, "tolerance": 0.1}
    together = transport(similarity, iterations=1000, **coarse)

    def needed(one):
        """Return the smallest number of iterations without an error."""
        for iterations in range(1000):
            try:
                return iterations, transport(one, iterations=iterations, **coarse)
            except TrainingError:
                pass
        raise AssertionError

    counts = set()
    for ours, one in zip(together.flatten(0, 1), similarity.flatten(0, 1), strict=True):
        count, alone = needed(one)
        counts.add(count)
        assert torch.allclose(ours, alone, rtol=1e-12, atol=0)
    assert len(counts) > 1


@pytest.mark.parametrize("mass", [1, 0.8, 0.5])
def test_float32_is_enough_where_exponentials_vanish(mass):
    """At ε = 0.01 exp(−(1 − similarity) / ε) is below e⁻⁷⁰, and a patch that no prompt is like has e⁻¹⁹⁹."""
    similarity = clip_like(2, 5, 3, P=36, N=2)
    similarity[..., 0, :] = -0.99
    problem = {"epsilon": 0.01, "mass": mass, "iterations": 5000}
    exact = transport(similarity, tolerance=1e-9, **problem | {"iterations": 100_000})
    single = transport(similarity.float(), tolerance=1e-3, **problem).double()
    assert torch.allclose(single.sum(-2), exact.sum(-2), rtol=1e-4)
    assert (single.sum(-1) * 36 < 1 + 2e-3).all()
    logits = [100 * (T * similarity).sum((-2, -1)) for T in (single, exact)]
    assert torch.allclose(*logits, rtol=0, atol=0.02)


@pytest.mark.parametrize("mass", [1, 0.8])
def test_the_default_tolerance_leaves_logits_as_they_are(mass):
    """To a hundredth, at the ε and the logit scale that CLIP is used with; classes differ by whole numbers."""
    similarity = clip_like(3, 20, 10)
    found, exact = (
        100 * (transport(similarity, epsilon=0.1, mass=mass, iterations=100, tolerance=t) * similarity).sum((-2, -1))
        for t in (1e-3, 1e-9)
    )
    assert torch.allclose(found, exact, rtol=0, atol=0.01) and not torch.allclose(found, exact, rtol=0, atol=1e-7)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 9), st.floats(0.05, 0.95), st.floats(0.1, 1))
def test_with_one_prompt_patches_have_at_most_their_mass(seed, P, mass, epsilon):
    """T_p = min(1 / P, k exp(similarity_p / ε)), with k such that the sum is the mass: found by bisection."""
    similarity = similarities(seed, P)
    K, low, high = (similarity / epsilon).exp(), 0.0, 1e9
    for _ in range(300):
        k = (low + high) / 2
        low, high = (k, high) if (k * K).clamp(max=1 / P).sum() < mass else (low, k)
    T = transport(similarity[:, None], epsilon=epsilon, mass=mass, **TIGHT)
    assert torch.allclose(T[:, 0], (k * K).clamp(max=1 / P), rtol=1e-6)


def test_a_single_prompt_takes_all_patches_alike_whatever_epsilon():
    for epsilon in (0.01, 0.1, 100.0):
        T = transport(similarities(0, 5, 7, 1), epsilon=epsilon, mass=1, iterations=1, tolerance=1e-12)
        assert torch.allclose(T, torch.full_like(T, 1 / 7), rtol=1e-12)


def test_without_a_full_patch_every_prompt_has_its_own_softmax():
    """The first iteration already gives the solution."""
    similarity = similarities(1, 4, 9, 3)
    T = transport(similarity, epsilon=1.0, mass=0.1, iterations=1, tolerance=1e-12)
    assert torch.allclose(T, 0.1 / 3 * similarity.softmax(-2), rtol=1e-12)


def test_the_limits_of_epsilon():
    """Large: all patches have equal mass. Small: only the half of the patches that is most similar to the prompt."""
    similarity = torch.tensor([0.1, 0.4, 0.0, 0.2, 0.7, 0.6, 0.3, 0.5], dtype=torch.float64)[:, None]
    T = transport(similarity, epsilon=1e9, mass=0.5, **TIGHT)
    assert torch.allclose(T, torch.full_like(T, 0.5 / 8))
    T = transport(similarity, epsilon=3e-3, mass=0.5, **TIGHT)
    assert torch.allclose(T, (similarity > 0.35).double() / 8, rtol=0, atol=1e-9)


def test_two_by_two_by_hand():
    """ε = 1 / ln 3, similarities 1 and 0: K = ((3, 1), (1, 3)); an eighth of it has rows of 1/2."""
    T = transport(torch.eye(2, dtype=torch.float64), epsilon=1 / math.log(3), mass=1, **TIGHT)
    assert T.flatten().tolist() == pytest.approx([3 / 8, 1 / 8, 1 / 8, 3 / 8])


def test_a_mass_near_1_is_near_the_balanced_plan():
    similarity = clip_like(4, 3, P=9, N=2)
    near, balanced = (transport(similarity, epsilon=0.1, mass=mass, **TIGHT) for mass in (0.9999, 1))
    assert torch.allclose(near, balanced, rtol=0, atol=2e-4) and not torch.equal(near, balanced)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.floats(-50, 50), st.sampled_from([1, 0.7]), st.sampled_from([0.1, 1e-6]))
def test_a_constant_changes_no_plan_and_orders_change_with_it(seed, constant, mass, tolerance):
    """However coarse the tolerance: the start has no scale of its own."""
    problem = {"epsilon": 0.3, "mass": mass, "iterations": 100_000, "tolerance": tolerance}
    similarity = similarities(seed, 6, 3)
    T = transport(similarity, **problem)
    assert torch.allclose(transport(similarity + constant, **problem), T, rtol=1e-9)
    turned = transport(similarity[[3, 0, 5, 1, 2, 4]][:, [2, 0, 1]], **problem)
    assert torch.allclose(turned, T[[3, 0, 5, 1, 2, 4]][:, [2, 0, 1]], rtol=1e-9)


@pytest.mark.parametrize("mass", [1, 0.6])
def test_gradients_are_those_of_finite_differences(mass):
    similarity = similarities(5, 2, 5, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: transport(s, epsilon=0.5, mass=mass, **TIGHT), similarity, eps=1e-5)


@pytest.mark.parametrize("mass", [1, 0.6])
def test_the_gradient_of_the_whole_problem_is_the_plan(mass):
    """Which is what taking the plan for a constant leaves of Σ T similarity: the entropy's part cancels the rest."""
    similarity, epsilon = similarities(6, 4, 3).requires_grad_(), 0.3
    T = transport(similarity, epsilon=epsilon, mass=mass, **TIGHT)
    value = (T * similarity).sum() - epsilon * (T * (T.log() - 1)).sum()
    (gradient,) = torch.autograd.grad(value, similarity)
    assert torch.allclose(gradient, T, rtol=0, atol=1e-8)


def test_a_plan_that_does_not_converge_is_an_error_that_says_what_to_do():
    similarity = torch.cat([similarities(7, 3, 9, 2), torch.zeros(2, 9, 2)])
    with raises(TrainingError, problem="3 of 5", got=2, remedy="iterations, epsilon or tolerance"):
        transport(similarity, epsilon=0.05, mass=1, iterations=2, tolerance=1e-6)
    with raises(TrainingError, problem="1.0e-06", got=1) as caught:
        transport(similarity, epsilon=0.05, mass=0.9, iterations=1, tolerance=1e-6)
    assert re.search(r"residual is \d\.\de", caught.value.problem)


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("mass", [1, 0.8])
def test_what_is_not_finite_goes_through_and_leaves_others_alone(mass, number):
    """A loss that is not finite is the engine's to report, with the client and the step."""
    similarity, problem = similarities(8, 3, 5, 2), {"epsilon": 0.5, "mass": mass, **TIGHT}
    whole = transport(similarity, **problem)
    similarity[1, 2, 0] = number
    T = transport(similarity, **problem)
    assert T[1].isnan().any() and torch.allclose(T[[0, 2]], whole[[0, 2]], rtol=1e-12)


def test_no_images_have_no_plans():
    assert transport(torch.empty(0, 3, 5, 2), epsilon=0.1, mass=0.8, **TIGHT).shape == (0, 3, 5, 2)
