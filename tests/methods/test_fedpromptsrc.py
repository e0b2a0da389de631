"""FedPromptSRC: prompts that stay close to the frozen CLIP, and their mean over rounds."""

import math
from dataclasses import replace

import agreement
import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracle import fedpromptsrc
from pydantic import ValidationError
from raising import raises

import fedpgp
from fedpgp.aggregators import FedAvg, Upload
from fedpgp.errors import ConfigError
from fedpgp.evaluation.inference import image_features, kind_of
from fedpgp.federation.client_runner import frozen_of
from fedpgp.methods import Batch, Frozen, Params
from fedpgp.methods.fedivlp import FedIVLP
from fedpgp.methods.fedpromptsrc import FedPromptSRC, GaussianMean

SMALL = {"visual_length": 2, "depth": 2, "learning_rate": 0.005}
SHORT = {"local_epochs": 1}


def bits_of(run):
    return [tiny.bits(one.shared) for one in run]


# ---------------------------------------------------------------------------------------------------------- agreement


SMOOTH = {"text_weight": 0.0, "image_weight": 0.0}


@pytest.mark.parametrize(
    ("changes", "rounds", "images"),
    [
        ({"depth": 3, "gaussian_mean": 0.6, "gaussian_std": 0.3}, 3, "real"),
        pytest.param(
            {**SMOOTH, "depth": 1, "logits_weight": 7.0, "gaussian_mean": 1.0, "gaussian_std": 0.6},
            2,
            "random",
            marks=pytest.mark.slow,
        ),
        ({"visual_length": 0, "text_weight": 3.0, "image_weight": 40.0, "gaussian": False}, 2, "random"),
    ],
)
def test_fedpromptsrc_agrees_with_the_oracle(changes, rounds, images, backbones, monkeypatch):
    """In float32 only without |z − z_C| and |f − f_0|: where one is nearly 0, rounding turns its whole gradient."""
    method = FedPromptSRC(**SMALL | changes)
    weights = method.text_weight, method.image_weight, method.logits_weight
    over_rounds = (method.gaussian_mean, method.gaussian_std) if method.gaussian else None
    smooth = changes.items() >= SMOOTH.items()
    agreement.check_agreement(
        method,
        lambda world: fedpromptsrc.run(world, *weights, over_rounds),
        backbones if smooth else {"float64": backbones["float64"]},
        monkeypatch,
        rounds=rounds,
        images=images,
    )


def test_single_precision_is_near_the_exact_losses(compact, exact):
    """Of the same prompts, all terms."""
    found = []
    for ours in (exact, compact):
        method = FedPromptSRC(**SMALL)
        params = Params(method.init_shared(tiny.task(), ours, tiny.generator(0, "shared")), {})
        frozen = frozen_of(method, tiny.task(), ours)
        text = torch.stack(ours.text.each(method.prompts(params, frozen), ours.class_tokens(tiny.NAMES)))
        seen = image_features(ours.towers(method.reads), method, tiny.images(4, ours, kind_of(method)), params)
        terms = method.loss(params, text, Batch(seen, torch.tensor([0, 1, 2, 1])), frozen)
        found.append({name: value.item() for name, value in terms.items()})
    assert found[0] == pytest.approx(found[1], rel=1e-4)


# ------------------------------------------------------------------------------------------------------------ by hand


def test_the_losses_by_hand():
    """One image, two classes, s = 2: z = ((1, 0), (0, 1)), z_C = ((0.6, 0.8), (0, 1)), f = (0.8, 0.6), f_0 = (0, 1)."""
    z, z_C = torch.eye(2), torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    frozen = Frozen(z_C, torch.tensor(math.log(2.0)), torch.arange(2))
    batch = Batch(torch.tensor([[[0.0, 1.0], [0.8, 0.6]]]), torch.tensor([0]))
    method = FedPromptSRC(text_weight=3.0, image_weight=5.0, logits_weight=7.0)
    found = method.loss(Params({}, {}), z[None], batch, frozen)
    p = 1 / (1 + math.exp(1.2 - 1.6))
    q = 1 / (1 + math.exp(2.0 - 1.6))
    divergence = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    expected = {
        "task": -math.log(p),
        "text": 3 * (0.4 + 0.8) / 4,
        "image": 5 * (0.8 + 0.4) / 2,
        "logits": 7 * divergence / 2,
    }
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-5)


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 5))
def test_what_holds_prompts_back_is_nothing_where_they_say_what_clip_says(seed, B, C):
    rng = tiny.generator(seed, "test")

    def unit(*shape):
        return F.normalize(torch.randn(*shape, generator=rng, dtype=torch.float64), dim=-1)

    z_C, f_0, z, f = unit(C, 4), unit(B, 4), unit(C, 4), unit(B, 4)
    frozen = Frozen(z_C, torch.tensor(1.0, dtype=torch.float64), torch.arange(C))
    labels = torch.zeros(B, dtype=torch.long)

    def terms(z, f):
        found = FedPromptSRC().loss(Params({}, {}), z[None], Batch(torch.stack([f_0, f], dim=1), labels), frozen)
        return [found[name].item() for name in ("text", "image", "logits")]

    assert terms(z_C, f_0) == pytest.approx([0, 0, 0], abs=1e-12)
    text, image, divergence = terms(z, f)
    assert text > 0 and image > 0 and divergence > -1e-12


def test_shares_by_hand():
    """Mean 2, deviation 1: weights e^−½, 1, e^−½ of the first rounds, and e^−2 of the fourth."""
    rule, half = GaussianMean(mean=2.0, std=1.0), math.exp(-0.5)
    found = [rule.share(t) for t in (1, 2, 3, 4)]
    assert found == pytest.approx(
        [1, 1 / (half + 1), half / (2 * half + 1), math.exp(-2) / (2 * half + 1 + math.exp(-2))]
    )


@pytest.mark.parametrize(("T", "centre", "deviation"), [(20, 15.0, 1.0), (25, 18.75, 1.25), (10, 7.5, 0.5)])
def test_the_default_weighs_the_rounds_around_three_quarters_of_all(T, centre, deviation):
    """The share of each round in all weights. For 20 rounds, these are the weights of PromptSRC's 20 epochs."""
    mean = rounds_of(FedPromptSRC().own_aggregator(T), torch.eye(T, dtype=torch.float64))[-1][0]
    expected = torch.exp(-((torch.arange(1, T + 1) - centre) ** 2) / (2 * deviation**2)).double()
    assert torch.allclose(mean, expected / expected.sum(), rtol=0, atol=1e-7)


def test_of_five_rounds_a_wide_deviation_weighs_all_and_the_default_one():
    """The docstring has the 98 %."""
    wide, narrow = (
        rounds_of(FedPromptSRC(gaussian_std=std).own_aggregator(5), torch.eye(5, dtype=torch.float64))[-1][0]
        for std in (0.3, 0.05)
    )
    assert wide.min() > 0.05 and wide.max() < 0.31
    assert narrow[3].item() == pytest.approx(0.98, abs=0.005)


# --------------------------------------------------------------------------------------------- the mean over rounds


def rounds_of(rule, values):
    """(mean, average) that a client is sent after each round, where one client sends the rows of `values` in turn."""
    server, found = rule.begin({"text": torch.full_like(values[0], 7.0)}, 1), []
    for value in values:
        server = rule.aggregate(server, [Upload(0, 5, {"text": value})])
        sent = rule.download(server, 0).shared
        found.append((sent["mean.text"], sent["text"]))
    return found


@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=12),
    st.floats(0, 15),
    st.floats(0.5, 10),
)
def test_the_running_mean_is_the_weighted_mean(values, mean, std):
    drawn = torch.tensor(values, dtype=torch.float64)[:, None]
    for t, (found, average) in enumerate(rounds_of(GaussianMean(mean=mean, std=std), drawn), 1):
        expected = fedpromptsrc.gaussian(list(drawn[:t]), mean, std)
        assert torch.allclose(found, expected, rtol=0, atol=1e-11) and torch.equal(average, drawn[t - 1])


@pytest.mark.parametrize(("mean", "std", "last"), [(1e6, 1e-3, True), (0.0, 1e-3, False), (1e6, 1e6, None)])
def test_weights_too_small_for_a_number_still_have_shares(mean, std, last):
    """A distant mean leaves all weight on the last round, one that is past on the first, and a wide one on all."""
    values = torch.tensor([[1.0], [2.0], [4.0]])
    found = [mean.item() for mean, _ in rounds_of(GaussianMean(mean=mean, std=std), values)]
    assert found == pytest.approx({True: [1, 2, 4], False: [1, 1, 1], None: [1, 1.5, 7 / 3]}[last], rel=1e-5)


@given(st.floats(-3, 3), st.floats(0, 30), st.floats(0.01, 30))
def test_equal_averages_are_their_own_mean_to_the_bit(value, mean, std):
    values = torch.full((8, 2), value)
    assert all(torch.equal(one, values[0]) for one, _ in rounds_of(GaussianMean(mean=mean, std=std), values))


def test_before_the_first_round_the_mean_is_the_first_prompt_and_averages_are_fedavg_s():
    rule, shared = GaussianMean(mean=2.0, std=1.0), {"text": torch.randn(2, 3), "visual": torch.randn(4)}
    server = rule.begin(shared, 3)
    sent = rule.download(server, 1).shared
    assert sent.keys() == {"text", "visual", "mean.text", "mean.visual"}
    assert all(torch.equal(sent[f"mean.{name}"], sent[name]) for name in shared)
    uploads = [Upload(i, 1 + i, {name: torch.randn_like(t) for name, t in shared.items()}) for i in range(3)]
    ours, theirs = rule.aggregate(server, uploads), FedAvg().aggregate(FedAvg().begin(shared, 3), uploads)
    assert tiny.bits(ours.shared) == tiny.bits(theirs.shared)
    assert torch.equal(ours.memory["mean.text"], ours.shared["text"])  # the first round has all weight up to now
    assert ours.memory["round"].item() == 1


# ----------------------------------------------------------------------------------------------- in whole federations


def test_without_its_terms_and_the_mean_fedpromptsrc_is_fedivlp(exact):
    free = {"text_weight": 0.0, "image_weight": 0.0, "logits_weight": 0.0, "gaussian": False}
    ours = tiny.run(FedPromptSRC(**SMALL, **free), exact, **SHORT)
    theirs = tiny.run(FedIVLP(**SMALL), exact, **SHORT)
    for one, two in zip(ours, theirs, strict=True):
        assert one.shared.keys() == two.shared.keys()
        for name, value in one.shared.items():
            assert torch.allclose(value, two.shared[name], rtol=0, atol=1e-13)
        assert one.record["loss_task"] == pytest.approx(two.record["loss_task"], rel=1e-12)
        assert one.record["loss_text"] == one.record["loss_image"] == one.record["loss_logits"] == 0
        assert one.record["bytes_down"] == two.record["bytes_down"]
        assert one.evaluation.clients["base"].tolist() == two.evaluation.clients["base"].tolist()
    held = tiny.run(FedPromptSRC(**SMALL, gaussian=False), exact, **SHORT)
    assert not torch.allclose(held[-1].shared["text"], theirs[-1].shared["text"], rtol=0, atol=1e-6)


def test_the_mean_over_rounds_changes_no_training_and_is_what_clients_predict_with(exact):
    method = FedPromptSRC(**SMALL, gaussian_mean=0.5, gaussian_std=2 / 3)
    ours = tiny.run(method, exact, rounds=3, participation=0.67, **SHORT)
    plain = tiny.run(replace(method, gaussian=False), exact, rounds=3, participation=0.67, **SHORT)
    assert bits_of(ours) == bits_of(plain)
    assert {"round", *(f"mean.{name}" for name in ours[-1].shared)} == ours[-1].server.memory.keys()
    for name in ours[-1].shared:
        mean = fedpromptsrc.gaussian([one.shared[name] for one in ours], 1.5, 2.0)
        assert torch.allclose(ours[-1].server.memory[f"mean.{name}"], mean, rtol=0, atol=1e-13)
        assert not torch.allclose(mean, ours[-1].shared[name], rtol=0, atol=1e-5)
    assert ours[-1].record["bytes_down"] == 2 * plain[-1].record["bytes_down"] == 2 * ours[-1].record["bytes_up"]
    # After one round the mean is the average, and the models predict alike.
    assert ours[0].evaluation.shared == plain[0].evaluation.shared is not None
    assert ours[-1].evaluation.diagnostics != plain[-1].evaluation.diagnostics


def test_prediction_takes_the_means_where_they_came(exact):
    shared = {"text": torch.zeros(2, 3), "visual": torch.zeros(4)}
    received = {**shared, "mean.text": torch.ones(2, 3), "mean.visual": torch.ones(4)}
    found = FedPromptSRC().for_prediction(Params(shared, {}, received))
    assert all(torch.equal(found.shared[name], received[f"mean.{name}"]) for name in shared)
    assert FedPromptSRC(gaussian=False).own_aggregator(5) is None
    for others in ({}, shared):  # nothing, or no means
        assert tiny.bits(FedPromptSRC().for_prediction(Params(shared, {}, others)).shared) == tiny.bits(shared)


# ------------------------------------------------------------------------------------------------------------ settings


def test_the_teacher_is_an_ensemble_unless_another_is_chosen():
    assert FedPromptSRC().templates(tiny.task()) == fedpromptsrc.TEMPLATES
    assert FedPromptSRC(guidance="template").templates(tiny.task()) == ("a photo of a {}.",)


def test_more_layers_than_a_tower_has_are_refused(backbone):
    with raises(ConfigError, where="fedpromptsrc.depth", allowed="at most 3, the number of layers", got=9):
        FedPromptSRC().init_shared(tiny.task(), backbone, torch.Generator())


@pytest.mark.parametrize(
    "values",
    [
        {"visual_length": -1},
        {"depth": 0},
        {"text_weight": -1.0},
        {"image_weight": -1.0},
        {"logits_weight": -1.0},
        {"guidance": "none"},
        {"gaussian": 1},
        {"gaussian_mean": -1.0},
        {"gaussian_mean": 18.75},
        {"gaussian_std": 0.0},
        {"gaussian_std": 20.0},
    ],
)
def test_a_wrong_hyperparameter_is_refused(values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        FedPromptSRC(**values)


def test_a_run_writes_the_prompts_that_predict(small, cache):
    """A run writes the mean over rounds, and not the last average."""
    changes = ["task.clients=3", "task.shots=4", "federation.rounds=2", "federation.local_epochs=1"]
    changes += ["fedpromptsrc.gaussian_mean=0.5", "fedpromptsrc.gaussian_std=0.15"]
    made = fedpgp.run("fedpromptsrc", changes=changes, cache=cache)
    first = fedpgp.run("fedpromptsrc", changes=[*changes, "federation.rounds=1"], cache=cache)
    last = fedpgp.run("fedpromptsrc", changes=[*changes, "fedpromptsrc.gaussian=false"], cache=cache)
    made, first, last = (run.prompts["shared/text"] for run in (made, first, last))
    assert (made - first).norm() < 0.01 * (last - first).norm()
