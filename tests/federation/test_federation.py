"""A round: its participants, its average, the private parts of the clients, and that nothing leaks."""

import multiprocessing
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from raising import raises

from fedpgp.aggregators import Download, FedAvg, Server, Upload
from fedpgp.backbone import Towers
from fedpgp.data.image_features import ImageFeatures
from fedpgp.errors import TrainingError
from fedpgp.federation.client import ROWS, ClientJob, in_groups, train_clients
from fedpgp.federation.client_runner import frozen_of
from fedpgp.federation.run_spec import participants
from fedpgp.federation.state import ClientState
from fedpgp.methods import FedPGP, Local, Params, PromptFL, ZeroShot
from fedpgp.runtime.randomness import generator
from fedpgp.runtime.workers import Workers
from fedpgp.testing import Recording

METHOD = FedPGP(context_length=3, bottleneck=2, learning_rate=0.05)


def recorded(backbone, method=METHOD, data=None, **changes):
    """Return the rounds of a federation and its local training."""
    workers = Recording(backbone.towers(method.reads))
    return tiny.run(method, backbone, data, workers=workers, **changes), workers.trained


def everything(rounds):
    """Return all parameters, accuracies and answers of all rounds, as bytes."""
    return [
        (
            tiny.bits(r.shared),
            [tiny.bits(own) for own in r.private],
            {name: rows.tobytes() for name, rows in [*r.evaluation.clients.items(), *r.evaluation.correct.items()]},
        )
        for r in rounds
    ]


def update_bits(update):
    return tiny.bits(update.upload.shared), tiny.bits(update.own.private), dict(update.losses)


# ---------------------------------------------------------------------------------------------------------- averaging

UPDATES = st.integers(1, 5).flatmap(
    lambda n: st.tuples(
        st.lists(st.lists(st.floats(-10, 10), min_size=3, max_size=3), min_size=n, max_size=n),
        st.lists(st.integers(1, 50), min_size=n, max_size=n),
    )
)


def averaged(rows, counts):
    parts = [{"p": torch.tensor(row, dtype=torch.float64)} for row in rows]
    uploads = [Upload(i, count, part) for i, (part, count) in enumerate(zip(parts, counts, strict=True))]
    return FedAvg().aggregate(Server(parts[0]), uploads).shared["p"]


@given(UPDATES)
def test_the_average_is_weighted_by_examples(updates):
    """As if every example sent its client's update and all were averaged alike."""
    rows, counts = updates
    by_example = np.array([row for row, count in zip(rows, counts, strict=True) for _ in range(count)])
    assert averaged(rows, counts).numpy() == pytest.approx(by_example.mean(axis=0), rel=1e-12, abs=1e-12)


@given(UPDATES, st.randoms(use_true_random=False))
def test_the_average_is_convex_and_does_not_depend_on_the_order(updates, random):
    rows, counts = updates
    found = averaged(rows, counts).numpy()
    assert (found >= np.min(rows, axis=0) - 1e-12).all() and (found <= np.max(rows, axis=0) + 1e-12).all()
    pairs = list(zip(rows, counts, strict=True))
    random.shuffle(pairs)
    assert averaged(*zip(*pairs, strict=True)).numpy() == pytest.approx(found, rel=1e-12, abs=1e-12)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=4), st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_equal_updates_average_to_themselves(row, counts):
    assert averaged([row] * len(counts), counts).numpy() == pytest.approx(np.array(row), rel=1e-12, abs=1e-12)


def test_the_average_by_hand():
    uploads = [Upload(0, 3, {"a": torch.tensor([1.0, -2.0])}), Upload(1, 1, {"a": torch.tensor([5.0, 2.0])})]
    found = FedAvg().aggregate(Server({"a": torch.tensor([9.0, 9.0])}), uploads)
    assert found.shared["a"].tolist() == [2.0, -1.0] and not found.memory


# ------------------------------------------------------------------------------------------------------ participation


@given(st.integers(1, 40), st.floats(0.001, 1), st.integers(0, 100), st.integers(1, 100))
def test_participants_are_a_fraction_of_the_clients(clients, share, seed, number):
    chosen = participants(clients, share, "nearest", seed, number)
    assert chosen == sorted(set(chosen)) and set(chosen) <= set(range(clients))
    assert len(chosen) >= 1 and abs(len(chosen) - share * clients) <= max(0.5, 1 - share * clients)
    assert chosen == participants(clients, share, "nearest", seed, number)


@pytest.mark.parametrize(("share", "count"), [(1.0, 10), (0.5, 5), (0.34, 3), (0.1, 1), (0.01, 1)])
def test_how_many_take_part(share, count):
    assert len(participants(10, share, "nearest", 0, 1)) == count


@pytest.mark.parametrize(
    ("clients", "share", "count"), [(10, 0.99, 9), (10, 0.5, 5), (10, 0.01, 1), (3, 1.0, 3), (100, 0.29, 28)]
)
def test_how_many_take_part_by_the_authors_rule(clients, share, count):
    assert count == max(int(share * clients), 1), "their expression; the product 0.29 * 100 is below 29"
    down = participants(clients, share, "down", 0, 1)
    assert len(down) == count
    assert set(down) <= set(participants(clients, share, "nearest", 0, 1)), "the draw is the same"


@pytest.mark.parametrize(("rounding", "count"), [("nearest", 2), ("down", 1)])
def test_a_run_rounds_participation_as_its_settings_say(rounding, count, backbone):
    (found,) = tiny.run(METHOD, backbone, rounds=1, participation=0.6, participation_rounding=rounding)
    assert len(found.record["participants"]) == count


def test_participants_differ_by_round_and_seed_and_every_client_takes_part():
    by_round = [tuple(participants(10, 0.3, "nearest", 0, number)) for number in range(1, 31)]
    assert len(set(by_round)) > 20
    assert set().union(*by_round) == set(range(10))
    assert by_round[:5] != [tuple(participants(10, 0.3, "nearest", 1, number)) for number in range(1, 6)]


@pytest.mark.parametrize(("everyone_first", "counts"), [(False, [1, 1, 1]), (True, [3, 1, 1])])
def test_everyone_first(everyone_first, counts, backbone):
    found = tiny.run(METHOD, backbone, rounds=3, participation=0.34, everyone_first=everyone_first, local_epochs=1)
    assert [len(r.record["participants"]) for r in found] == counts


# ----------------------------------------------------------------------------------------------------- private parts


def absences(rounds):
    """(round before, round, client) for every client that was absent from a round after the first."""
    return [
        (before, after, client)
        for before, after in pairwise(rounds)
        for client in range(3)
        if client not in after.record["participants"]
    ]


def test_the_private_part_survives_the_round_and_is_kept_by_the_absent(backbone):
    found, trained = recorded(backbone, rounds=4, participation=0.67, local_epochs=1)
    home = {(job.round, job.client): (job, update) for job, update in trained}
    first = tiny.bits(METHOD.init_private(tiny.task(), backbone, generator(0, "private"), 0))
    for client in range(3):
        held = first
        for r in found:
            if client in r.record["participants"]:
                job, update = home[r.number, client]
                assert tiny.bits(job.params.private) == held  # it trains from what it kept
                held = tiny.bits(update.own.private)
                assert held != tiny.bits(job.params.private)
            assert tiny.bits(r.private[client]) == held
    assert len(absences(found)) == 3  # one in each of rounds 2 to 4


def test_an_absent_client_predicts_with_the_new_global_prompt_and_its_old_private_part(backbone):
    method = FedPGP(context_length=3, bottleneck=2, learning_rate=0.05, private_learning_rate=1.0)
    data = tiny.data(backbone)
    found = tiny.run(method, backbone, data, rounds=4, participation=0.67, local_epochs=1)
    tokens = backbone.class_tokens([tiny.NAMES[label] for label in tiny.BASE])
    frozen = frozen_of(method, data.task, backbone).select(tiny.BASE)

    def predicted(shared, private):
        params = Params(shared, private)
        text = backbone.text(torch.stack(method.prompts(params, frozen)), tokens)
        test = data.task.tests["base"]
        return (
            method.predict(params, text, data.tests["base"].pooled, frozen).argmax(-1).numpy() == test.targets
        ).tolist()

    stale = forgotten = 0
    for before, after, client in absences(found):
        expected = predicted(after.shared, before.private[client])
        assert tiny.bools(after.evaluation.correct["base"], len(expected))[client].tolist() == expected
        stale += expected != predicted(before.shared, before.private[client])
        forgotten += expected != predicted(after.shared, found[0].private[client])
    assert stale > 0 and forgotten > 0  # the old global prompt, or the first U and V, would have been noticed


def test_nothing_private_reaches_the_server_or_is_averaged(backbone, monkeypatch):
    seen, aggregate = [], FedAvg.aggregate

    def average(self, server, uploads):
        seen.append(list(uploads))
        return aggregate(self, server, uploads)

    monkeypatch.setattr(FedAvg, "aggregate", average)
    found, trained = recorded(backbone, rounds=1)
    (uploads,) = seen
    for i, (upload, (_, update)) in enumerate(zip(uploads, trained, strict=True)):
        assert upload is update.upload
        assert vars(upload).keys() == {"client", "examples", "shared", "control", "figures"}
        assert (upload.client, upload.examples, upload.shared.keys()) == (i, tiny.EXAMPLES[i], {"p_G"})
        assert (upload.control, upload.figures) == ({}, {})
    server = found[0].server
    assert (set(server.shared), server.memory) == ({"p_G"}, {})
    for name in ("U", "V"):
        parts = [own[name] for own in found[0].private]
        mean = torch.stack(parts).mean(0)
        assert all(not torch.equal(one, two) for one, two in combinations([*parts, mean], 2))
        assert all(torch.equal(parts[job.client], update.own.private[name]) for job, update in trained)
    expected = sum(tiny.EXAMPLES[job.client] * update.upload.shared["p_G"] for job, update in trained) / 18
    assert torch.allclose(found[0].shared["p_G"], expected, rtol=0, atol=1e-6)


def test_all_clients_start_from_the_same_private_part_unless_told_otherwise(backbone):
    def untouched(**changes):
        """The first private parts of the two clients that round 1 leaves out."""
        (only,) = tiny.run(METHOD, backbone, rounds=1, participation=0.34, local_epochs=1, **changes)
        absent = set(range(3)) - set(only.record["participants"])
        return [tiny.bits(only.private[client]) for client in sorted(absent)]

    one, two = untouched()
    assert one == two == tiny.bits(METHOD.init_private(tiny.task(), backbone, generator(0, "private"), 0))
    one, two = untouched(independent_private=True)
    assert one["U"] != two["U"] and one["V"] != two["V"]


def test_bytes_up_only_count_the_global_prompt(backbone):
    for method, size in [(METHOD, 3 * 128 * 4), (Local(context_length=3), 0), (ZeroShot(), 0)]:
        *_, last = tiny.run(method, backbone, rounds=1, local_epochs=1)
        assert (last.record["bytes_up"], last.record["bytes_down"]) == (size, size)


# ------------------------------------------------------------------------------------------------ nothing is leaked


def test_training_again_or_in_another_order_gives_the_same_update(backbone):
    _, trained = recorded(backbone)
    for job, update in reversed(trained):
        before = tiny.bits(job.params.shared), tiny.bits(job.params.private)
        assert update_bits(train_clients(backbone.towers(), [job])[0]) == update_bits(update)
        assert (tiny.bits(job.params.shared), tiny.bits(job.params.private)) == before


def test_an_update_does_not_depend_on_who_else_takes_part(backbone):
    _, together = recorded(backbone, rounds=1)
    _, alone = recorded(backbone, rounds=1, participation=0.34)
    ((job, update),) = alone
    assert update_bits(update) == update_bits(together[job.client][1])


@pytest.mark.parametrize("method", [METHOD, PromptFL(context_length=3), Local(context_length=3)])
@pytest.mark.parametrize("views", [1, 3])
def test_clients_trained_at_once_are_as_if_each_were_alone(method, views, backbone, exact):
    """Three clients with 6, 5 and 7 images: their last batches differ in size, and so does their number of steps."""
    for clip, tolerance in [(exact, 1e-9), (backbone, 1e-5)]:
        data = tiny.data(clip)
        if views > 1:
            train = torch.stack([data.train.pooled.roll(i, 0) for i in range(views)], dim=1)
            data = replace(data, train=ImageFeatures(train))
        _, trained = recorded(clip, method, data, rounds=1, batch_size=2)
        jobs = [job for job, _ in trained]
        alone = [train_clients(clip.towers(), [job])[0] for job in jobs]
        for one, other in zip(train_clients(clip.towers(), jobs), alone, strict=True):
            assert (one.upload.client, one.upload.examples) == (other.upload.client, other.upload.examples)
            assert one.losses == pytest.approx(other.losses, rel=tolerance)
            assert one.upload.shared.keys() == other.upload.shared.keys()
            assert one.own.private.keys() == other.own.private.keys()
            for name, expected in {**one.upload.shared, **one.own.private}.items():
                found = {**other.upload.shared, **other.own.private}[name]
                assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@given(st.integers(1, 40), st.integers(1, 400), st.integers(1, 3))
def test_groups_share_the_clients_evenly_and_keep_their_order(clients, rows, contexts):
    class Text:
        def rows(self, context, classes, position):
            return rows

    towers = Towers(Text())

    job = ClientJob(
        method=FedPGP(),
        aggregator=FedAvg(),
        start={},
        download=Download({}),
        own=ClientState(),
        images=ImageFeatures(torch.empty(0, 8)),
        labels=torch.empty(0),
        classes=None,
        frozen=None,
        training=None,
        seed=0,
        round=1,
        client=0,
    )
    jobs = [replace(job, client=i) for i in range(clients)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FedPGP, "prompts", lambda self, params, frozen: [torch.empty(16, 8)] * contexts)
        groups = in_groups(towers, jobs)
    assert [job.client for group in groups for job in group] == list(range(clients))
    sizes = [len(group) for group in groups]
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)
    assert len(groups) % 4 == 0 or len(groups) == clients
    assert max(sizes) == 1 or (max(sizes) - 1) * contexts * rows <= ROWS


def test_without_participants_there_are_no_groups():
    assert in_groups(None, []) == []


def test_of_several_views_each_epoch_sees_one_drawn_for_each_image(backbone, monkeypatch):
    seen, plain = [], PromptFL.loss

    def loss(method, params, text, batch, frozen):
        seen.append(batch.features)
        return plain(method, params, text, batch, frozen)

    monkeypatch.setattr(PromptFL, "loss", loss)
    data = tiny.data(backbone)
    viewed = replace(data, train=ImageFeatures(torch.stack([data.train.pooled, -data.train.pooled], dim=1)))
    tiny.run(PromptFL(context_length=2), backbone, viewed, batch_size=100, rounds=1, local_epochs=30)
    for client in data.task.clients:
        own = data.train.pooled[torch.from_numpy(client.train)]
        epochs = [images for images in seen if len(images) == len(own)]
        signs = []
        for images in epochs:
            cosines = images @ own.T
            assert sorted(cosines.abs().argmax(1).tolist()) == list(range(len(own)))  # each image once
            signs += torch.sign(cosines.gather(1, cosines.abs().argmax(1, keepdim=True))).flatten().tolist()
        assert 0.3 < signs.count(1.0) / len(signs) < 0.7


def test_momentum_ends_with_the_round(backbone):
    """With one step a round, momentum that starts at zero has no effect; with two it has."""
    one = {"batch_size": 7, "local_epochs": 1, "rounds": 3}
    assert everything(tiny.run(METHOD, backbone, **one, momentum=0.9)) == everything(
        tiny.run(METHOD, backbone, **one, momentum=0.0)
    )
    two = {**one, "local_epochs": 2}
    assert everything(tiny.run(METHOD, backbone, **two, momentum=0.9)) != everything(
        tiny.run(METHOD, backbone, **two, momentum=0.0)
    )


def test_weight_decay_is_of_every_part(backbone):
    """One step, by hand: θ − η(∇ + λθ), so decay moves each part by −ηλθ."""
    one = {"batch_size": 7, "local_epochs": 1, "rounds": 1}
    _, plain = recorded(backbone, **one, weight_decay=0.0)
    _, decayed = recorded(backbone, **one, weight_decay=0.5)
    for (job, without), (_, with_decay) in zip(plain, decayed, strict=True):
        plainly, decaying = ({**u.upload.shared, **u.own.private} for u in (without, with_decay))
        starts = {**job.params.shared, **job.params.private}
        assert set(starts) == set(plainly) == {"p_G", "U", "V"}
        for name, start in starts.items():
            moved = decaying[name] - plainly[name]
            assert torch.allclose(moved, -METHOD.learning_rate * 0.5 * start, rtol=1e-3, atol=1e-7)


def test_every_image_is_seen_once_an_epoch_in_an_order_of_its_own(backbone, monkeypatch):
    """The labels of the batches tell: sizes 4 and the rest, and another order in each epoch, round and client."""
    seen, plain = [], PromptFL.loss

    def loss(method, params, text, batch, frozen):
        seen.append(batch.features)
        return plain(method, params, text, batch, frozen)

    monkeypatch.setattr(PromptFL, "loss", loss)
    data = tiny.data(backbone)
    tiny.run(PromptFL(context_length=2), backbone, data)
    assert [len(images) for images in seen] == [4, 2, 4, 2, 4, 1, 4, 1, 4, 3, 4, 3] * 2
    epochs = [torch.cat(pair) for pair in zip(seen[::2], seen[1::2], strict=True)]
    for number, epoch in enumerate(epochs):
        client = data.task.clients[number // 2 % 3]
        own = data.train.pooled[torch.from_numpy(client.train)]
        assert sorted(epoch.tolist()) == sorted(own.tolist())
        expected = own[tiny.order(0, 1 + number // 6, client.id, len(own), 2)[number % 2]]
        assert torch.equal(epoch, expected)


@pytest.mark.slow
def test_one_and_two_processes_give_the_same_bytes(backbone):
    with Workers(backbone.towers(), 2) as two:
        before = set(multiprocessing.active_children())
        two.start()
        assert len(set(multiprocessing.active_children()) - before) == 2  # both are there before the first job
        in_two = tiny.run(METHOD, backbone, workers=two)
    assert everything(in_two) == everything(tiny.run(METHOD, backbone))


def test_seed_zero_is_a_seed_like_any_other(backbone):
    zero, again, one = (everything(tiny.run(METHOD, backbone, rounds=1, seed=seed)) for seed in (0, 0, 1))
    assert zero == again != one


def test_a_loss_that_is_not_finite_stops_the_run(backbone):
    """One bad image of client 1: the error names the step in which it was used."""
    data = tiny.data(backbone)
    bad = 3
    data.train.pooled[data.task.clients[1].train[bad]] = torch.nan
    (place,) = (tiny.order(0, 1, 1, 5, 1)[0] == bad).nonzero().flatten().tolist()
    step = 1 + place // 2
    with raises(TrainingError, where=f"client 1 in round 1, step {step}", problem="not finite", remedy="[fedpgp]"):
        tiny.run(METHOD, backbone, data, batch_size=2)


# ---------------------------------------------------------------------------------------------------------- generators

ARGUMENTS = st.tuples(
    st.integers(0, 300), st.sampled_from(["order", "shared", "private"]), st.lists(st.integers(0, 300), max_size=2)
)


def draw(arguments):
    seed, purpose, index = arguments
    return torch.randint(0, 2**62, (2,), generator=generator(seed, purpose, *index)).tolist()


@given(st.lists(ARGUMENTS, min_size=2, max_size=6, unique_by=str))
def test_generators_only_depend_on_their_arguments(arguments):
    forward = [draw(one) for one in arguments]
    torch.randn(3)  # other draws do not matter
    assert [draw(one) for one in reversed(arguments)] == forward[::-1]
    assert len({tuple(numbers) for numbers in forward}) == len(arguments)


def test_generators_do_not_confuse_neighbouring_numbers():
    alike = [(1, "order", [23]), (12, "order", [3]), (1, "order", [2, 3]), (1, "order", []), (0, "order", [])]
    assert len({tuple(draw(one)) for one in alike}) == len(alike)
