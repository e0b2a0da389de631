"""FedMGP's groups: which are drawn, sent and overwritten, and what pushes them apart."""

import math
from collections import Counter
from itertools import pairwise, permutations

import agreement
import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracle import fedmgp
from pydantic import ValidationError
from raising import raises

from fedpgp.errors import ConfigError
from fedpgp.evaluation.inference import Question, answer
from fedpgp.federation.client_runner import frozen_of
from fedpgp.methods import Batch, Frozen, Params, PromptFL
from fedpgp.methods.fedmgp import FedMGP

SINGLE = {"groups": 1, "selected": 1, "visual_length": 0, "context_length": 4, "noise": 0.0, "learning_rate": 0.05}


def random(seed, *shape):
    return torch.randn(*shape, generator=tiny.generator(seed, "test"), dtype=torch.float64)


def first(method, backbone):
    shared = method.init_shared(tiny.task(), backbone, tiny.generator(0, "shared"))
    private = method.init_private(tiny.task(), backbone, tiny.generator(0, "private"), 0)
    return Params(shared, private, shared)


def made_up(method, seed, placed):
    """Parameters of width 3 (text) and 2 (images); placed: the client has drawn before."""
    s, G = method.selected, method.groups
    places = torch.zeros(s, G, dtype=torch.float64)
    drawn = torch.randperm(G, generator=tiny.generator(seed, "drawn"))[:s]
    if placed:
        places[torch.arange(s), drawn] = 1
    shared, private = {}, {"places": places}
    for kind, M, width in (("text", method.context_length, 3), ("visual", method.visual_length, 2)):
        if M:
            own = random(seed, G, M, width)
            if placed:
                own[drawn] = 0
            shared[f"{kind}_G"] = random(seed + 1, s, M, width)
            private[kind] = own
    return Params(shared, private, {name: random(seed + 2, *value.shape) for name, value in shared.items()})


def effective(method, params):
    """All prompts that a client trains: text, then visual."""
    return [*method.prompts(params, None), *(prompt.vectors for prompt in method.visual_prompts(params))]


@pytest.mark.parametrize(
    "changes",
    [
        {"groups": 3, "visual_length": 0, "diversity": 2.0, "temperature": 0.05, "learning_rate": 0.01},
        pytest.param({"groups": 2, "selected": 1, "temperature": 1.0, "learning_rate": 0.002}, marks=pytest.mark.slow),
    ],
)
def test_fedmgp_agrees_with_the_oracle(changes, both_precisions, monkeypatch):
    """With two slots of three groups, and with one of two groups of a text and a visual prompt."""
    method, draws = FedMGP(**changes), {}

    def oracle(world):
        given = method.groups, method.selected, method.diversity, method.temperature
        return fedmgp.run(world, *given, method.tail, draws)

    agreement.check_agreement(method, oracle, both_precisions, monkeypatch, rounds=2)
    assert any(draws[1, i] != draws[2, i] for i in range(3))


def test_one_group_of_a_whole_phrase_is_promptfl(exact):
    """Its draw is certain; in the first round it trains its own group, from the same start as PromptFL's."""
    mine, theirs = FedMGP(**SINGLE), PromptFL(ctx_init="a photo of a", learning_rate=0.05)
    ours, plain = tiny.run(mine, exact, rounds=3), tiny.run(theirs, exact, rounds=3)
    for one, two in zip(ours, plain, strict=True):
        assert torch.allclose(one.shared["text_G"][0], two.shared["p_G"], rtol=0, atol=1e-13)
        assert one.record["loss_task"] == pytest.approx(two.record["loss_task"], rel=1e-12)
        assert one.record["loss_diversity"] == 0.0
        assert one.record["bytes_up"] == two.record["bytes_up"]
        for client in one.private:
            assert client["places"].tolist() == [[1.0]] and not client["text"].any()
    frozen, images = frozen_of(mine, tiny.task(), exact), agreement.test_images(exact.logit_scale)
    found = []
    for method, params, seen in (
        (mine, Params(ours[-1].shared, ours[-1].private[0]), images),
        (theirs, Params(plain[-1].shared, {}), images),
    ):
        text = torch.stack(exact.text.each(method.prompts(params, frozen), exact.class_tokens(tiny.NAMES, method.tail)))
        found.append(method.predict(params, text, seen, frozen))
    assert torch.allclose(*found, rtol=0, atol=1e-11)


def test_the_loss_and_the_prediction_by_hand():
    """Two groups, t = 2: the first says ±2 · 1, the second ±2 · 0.6 of an image of class 0, whose frozen feature is
    never asked. Texts are alike by (0.8 + 0.8) / 2, images by 0.6.
    """
    method, frozen = FedMGP(groups=2, diversity=3.0), Frozen(torch.zeros(2, 2), torch.tensor(math.log(2.0)), None)
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8])
    text = torch.stack([torch.stack([x, -x]), torch.stack([torch.tensor([0.8, 0.6]), torch.tensor([-0.8, -0.6])])])
    images = torch.stack([torch.full((2,), 9.0), x, y])[None]
    found = method.predict(Params({}, {}), text, images, frozen)
    assert found[0].tolist() == pytest.approx([(2 + 2 * 0.96) / 2, -(2 + 2 * 0.96) / 2])
    terms = method.loss(Params({}, {}), text, Batch(images, torch.tensor([0])), frozen)
    assert terms["task"].item() == pytest.approx((math.log(1 + math.exp(-4)) + math.log(1 + math.exp(-3.84))) / 2)
    assert terms["diversity"].item() == pytest.approx(3.0 * (0.8 + 0.6) / 2)


def test_the_likeness_by_hand_of_three_groups_without_visual_prompts():
    """The pairs of x, y, −x are alike by 0, −1 and 0; the prediction is of the frozen feature."""
    method, frozen = FedMGP(groups=3, visual_length=0), Frozen(torch.zeros(1, 2), torch.tensor(0.0), None)
    text = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[-1.0, 0.0]]])
    batch = Batch(torch.tensor([[0.6, 0.8], [1.0, 0.0]]), torch.tensor([0, 0]))
    terms = method.loss(Params({}, {}), text, batch, frozen)
    assert terms["diversity"].item() == pytest.approx(-1 / 3) and terms["task"].item() == 0
    found = method.predict(Params({}, {}), text, batch.features, frozen)
    assert found.flatten().tolist() == pytest.approx([0.8 / 3, 0.0])


@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 4), st.integers(1, 5))
def test_the_likeness_is_that_of_a_loop_and_groups_that_are_equal_are_most_alike(seed, G, C, B):
    method = FedMGP(groups=G, selected=1)
    text, images = F.normalize(random(seed, G, C, 3), dim=-1), F.normalize(random(seed + 1, B, 1 + G, 3), dim=-1)
    frozen = Frozen(text[0], torch.zeros((), dtype=torch.float64), torch.arange(C))
    batch = Batch(images, torch.zeros(B, dtype=torch.long))
    expected = (fedmgp.likeness(list(text)) + fedmgp.likeness(list(images[:, 1:].transpose(0, 1)))) / 2
    assert method.loss(Params({}, {}), text, batch, frozen)["diversity"].item() == pytest.approx(float(expected))
    same = Batch(images[:, :1].expand(-1, 1 + G, -1), batch.labels)
    alike = method.loss(Params({}, {}), text[:1].expand(G, -1, -1), same, frozen)
    assert alike["diversity"].item() == pytest.approx(1.0)


@given(st.integers(0, 10_000), st.integers(1, 5), st.data(), st.booleans(), st.integers(0, 2))
def test_what_is_sent_is_what_was_drawn_and_kept_nowhere_else(seed, G, data, placed, m):
    """If the server sent it back as it is, the client would have its groups as it trained them."""
    method = FedMGP(groups=G, selected=data.draw(st.integers(1, G)), visual_length=m)
    before = made_up(method, seed, placed)
    after = method.after_training(before, tiny.generator(seed, "step"))
    assert after.shared.keys() == before.shared.keys() and after.private.keys() == before.private.keys()
    for one, other in zip(effective(method, after), effective(method, before), strict=True):
        assert torch.equal(one, other)
    for kind in ("text", "visual") if m else ("text",):
        places, own, sent = after.private["places"], after.private[kind], after.shared[f"{kind}_G"]
        assert (places.sum(1) == 1).all() and (places.sum(0) <= 1).all() and set(places.unique().tolist()) <= {0, 1}
        taken = places.sum(0).bool()
        assert not own[taken].any() and own[~taken].all()
        rows = {tuple(row) for row in own[~taken].reshape(-1, own.shape[-1]).tolist()}
        assert not rows & {tuple(row) for row in sent.reshape(-1, sent.shape[-1]).tolist()}


def test_what_a_client_has_not_drawn_stays_and_the_slots_overwrite_the_rest():
    method = FedMGP(groups=3)
    places = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    own, slots = torch.tensor([0.0, 5.0, 0.0]).view(3, 1, 1), torch.tensor([7.0, 8.0]).view(2, 1, 1)
    params = Params({"text_G": slots, "visual_G": slots + 1}, {"text": own, "visual": 2 * own, "places": places})
    assert torch.stack(list(method.prompts(params, None))).flatten().tolist() == [8.0, 5.0, 7.0]
    assert [prompt.vectors.item() for prompt in method.visual_prompts(params)] == [9.0, 10.0, 8.0]
    assert [prompt.item() for prompt in method.prompts(method.without_private(params), None)] == [7.0, 8.0]


def drawn_by(method, params, count):
    """Count how often each ordered selection of groups was drawn."""
    found = Counter()
    for seed in range(count):
        after = method.after_training(params, tiny.generator(seed, "draw"))
        found[tuple(after.private["places"].argmax(1).tolist())] += 1
    return found


def directed(angles, sent, placed, visual=None, visual_sent=None, **settings):
    """Draw groups whose prompts are vectors at the given angles in degrees. sent: the angles of the server's groups."""

    def at(degrees):
        radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
        return torch.stack([radians.cos(), radians.sin()], dim=-1)[:, None]

    s, G, m = len(sent), len(angles), int(visual is not None)
    method = FedMGP(groups=G, selected=s, visual_length=m, context_length=1, **settings)
    shared, private, received = {}, {"places": torch.zeros(s, G, dtype=torch.float64)}, {}
    for kind, own, of_server in [("text", angles, sent), ("visual", visual, visual_sent)][: 1 + m]:
        shared[f"{kind}_G"], private[kind] = torch.zeros(s, 1, 2, dtype=torch.float64), at(own)
        received[f"{kind}_G"] = at(of_server)
        if placed:  # the first groups are in the slots
            shared[f"{kind}_G"], private[kind][:s] = private[kind][:s].clone(), 0
    if placed:
        private["places"][:, :s] = torch.eye(s)
    return method, Params(shared, private, received)


def test_at_a_low_temperature_the_groups_most_like_a_slot_are_drawn_in_that_order():
    """91° is 1° from 90°, 210° is 30° from 180°, 320° is far from both; 135° is nearest to both together."""
    method, params = directed([135, 210, 320, 91], [90, 180], placed=True, temperature=0.01)
    assert drawn_by(method, params, 20) == {(3, 1): 20}


def test_text_and_visual_prompt_of_a_group_are_drawn_together_by_the_mean_of_their_cosines():
    """One slot, at 90° in both kinds. The best text prompt, 90°, has the visual prompt 270°, and the other way round;
    the third group has 120° and 60°, whose cosines √3/2 have the largest mean."""
    angles, visual = [90, 270, 120], [270, 90, 60]
    method, params = directed(angles, [90], True, visual, [90], temperature=0.01)
    assert drawn_by(method, params, 20) == {(2,): 20}
    after = method.after_training(params, tiny.generator(0, "draw"))
    for kind in ("text", "visual"):
        assert torch.equal(after.shared[f"{kind}_G"], params.private[kind][2:])
        assert not after.private[kind][2].any()


def test_a_group_is_like_a_slot_only_if_both_of_its_prompts_are_like_that_slot():
    """Two slots: 0° and 90° in both kinds. The first group has the text of one and the visual prompt of the other."""
    method, params = directed([0, 20, 70], [0, 90], True, [90, 20, 70], [0, 90], temperature=0.01)
    assert set(drawn_by(method, params, 20)) == {(1, 2), (2, 1)}


@pytest.mark.parametrize(("placed", "temperature"), [(True, 1e6), (False, 0.01)])
def test_at_a_high_temperature_and_at_first_all_groups_are_alike(placed, temperature):
    method, params = directed([50, 200, 320], [90, 180], placed, temperature=temperature)
    found, count = drawn_by(method, params, 3000), 3000
    assert found.keys() == set(permutations(range(3), 2))
    assert sum((seen - count / 6) ** 2 / (count / 6) for seen in found.values()) < 20.5  # χ²₅ at 0.999


def test_a_draw_without_replacement_goes_by_what_is_left():
    """With w = exp(cos / τ), groups a and b come with w_a / Σ w · w_b / (Σ w − w_a)."""
    method, params = directed([90, 150, 270], [90, 90], placed=True, temperature=0.5)
    w = [math.exp(math.cos(math.radians(angle - 90)) / 0.5) for angle in (90, 150, 270)]
    found, count = drawn_by(method, params, 3000), 3000
    chi = 0.0
    for a, b in permutations(range(3), 2):
        expected = count * w[a] / sum(w) * w[b] / (sum(w) - w[a])
        chi += (found[a, b] - expected) ** 2 / expected
    assert chi < 20.5


def test_groups_start_near_a_phrase_and_the_rest_of_it_stays(backbone):
    method = FedMGP()
    assert method.tail == "of a {}."
    start = first(method, backbone)
    assert {name: tuple(value.shape) for name, value in {**start.shared, **start.private}.items()} == {
        "text_G": (2, 2, 128),
        "visual_G": (2, 2, 160),
        "text": (5, 2, 128),
        "visual": (5, 2, 160),
        "places": (2, 5),
    }
    away = start.private["text"] - backbone.phrase("a photo")
    assert away.std().item() == pytest.approx(0.01, rel=0.1) and not torch.equal(away[0], away[1])
    assert start.private["visual"].std().item() == pytest.approx(0.02, rel=0.1)
    assert not start.private["places"].any()
    quiet = first(FedMGP(noise=0.0), backbone).private["text"]
    assert torch.equal(quiet, backbone.phrase("a photo").expand(5, -1, -1))


def test_a_client_that_took_no_part_keeps_its_groups_and_sees_the_newest_slots(exact):
    settings = {"groups": 2, "selected": 1, "visual_length": 0, "learning_rate": 0.01}
    rounds = tiny.run(FedMGP(**settings), exact, rounds=3, participation=0.67, local_epochs=1)
    start = first(FedMGP(**settings), exact).private
    for before, now in pairwise(rounds):
        for i in range(3):
            if i not in now.record["participants"]:
                assert tiny.bits(now.private[i]) == tiny.bits(before.private[i])
        assert not torch.equal(before.shared["text_G"], now.shared["text_G"])
    absent = [i for i in range(3) if i not in rounds[0].record["participants"]]
    assert absent and all(tiny.bits(rounds[0].private[i]) == tiny.bits(start) for i in absent)
    assert rounds[0].record["bytes_up"] == rounds[0].record["bytes_down"] == 8 * 2 * 128


def test_without_visual_prompts_only_the_frozen_feature_is_seen(exact):
    method = FedMGP(groups=2, visual_length=0)
    params, frozen = first(method, exact), frozen_of(method, tiny.task(), exact)
    assert method.visual_prompts(params) == [] and {*params.shared} == {"text_G"}
    images, tokens = tiny.images(4, exact, "layer-0"), exact.class_tokens(tiny.NAMES, method.tail)
    text = torch.stack(exact.text.each(method.prompts(params, frozen), tokens))
    found = answer(exact.towers(method.reads), Question(method, params, text, images, tokens, frozen))
    assert torch.allclose(found, frozen.logit_scale.exp() * images.pooled @ text.mean(0).T, rtol=0, atol=1e-11)


def test_more_groups_selected_than_there_are_is_refused(backbone):
    with raises(ConfigError, where="fedmgp.selected", allowed="at most 2", got=3, remedy="--set fedmgp.selected=2"):
        first(FedMGP(groups=2, selected=3), backbone)


@pytest.mark.parametrize(
    "values",
    [
        {"groups": 0},
        {"selected": 0},
        {"visual_length": -1},
        {"diversity": -1.0},
        {"temperature": 0.0},
        {"noise": -0.1},
        {"context_length": 0},
    ],
)
def test_a_wrong_hyperparameter_is_refused(values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        FedMGP(**values)
