"""Accuracies and their summaries."""

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace
from weakref import WeakSet

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from raising import raises

from fedpgp.backbone import Towers
from fedpgp.errors import TrainingError
from fedpgp.evaluation import evaluator as evaluate
from fedpgp.evaluation import inference as reading
from fedpgp.evaluation.evaluator import Evaluator, path_alphas, without_standing_path
from fedpgp.evaluation.inference import Question, answer, kind_of
from fedpgp.evaluation.metrics import (
    accuracies,
    area,
    class_accuracies,
    evaluation_sets,
    macro_accuracy,
    own_images,
    summary,
)
from fedpgp.federation.client_runner import frozen_of
from fedpgp.methods import FedCoCoOp, FedMGP, FedOTP, FedPGP, FedVPT, Local, Params, PromptFL, PromptFolio
from fedpgp.methods.pfedprompt import PFedPrompt
from fedpgp.runtime.workers import Workers

FEDPGP = FedPGP(context_length=3, bottleneck=2)
ACCURACY = st.integers(0, 10_000).map(lambda hundredths: hundredths / 100)


def harmonic(*values):
    """n over the sum of reciprocals, and 0 where a value is 0, in exact fractions."""
    exact = [Fraction(value) for value in values]
    return len(exact) / sum(1 / value for value in exact) if all(exact) else Fraction(0)


@given(local=ACCURACY, base=ACCURACY, novel=ACCURACY)
def test_hm_and_cm(local, base, novel):
    found = summary({"local": [local], "base": [base], "novel": [novel]})
    assert found["hm"] == pytest.approx(float(harmonic(local, base, novel)), rel=1e-12)
    assert found["cm"] == pytest.approx(float((Fraction(local) + harmonic(base, novel)) / 2), rel=1e-12)
    assert (found["local"], found["base"], found["novel"]) == (local, base, novel)


@pytest.mark.parametrize(
    ("accuracies", "hm", "cm"),
    [
        ((60.0, 30.0, 20.0), 30.0, 42.0),
        ((0.0, 30.0, 20.0), 0.0, 12.0),
        ((60.0, 30.0, 0.0), 0.0, 30.0),
        ((0.0, 0.0, 0.0), 0.0, 0.0),
    ],
)
def test_hm_and_cm_by_hand(accuracies, hm, cm):
    found = summary({name: [value] for name, value in zip(("local", "base", "novel"), accuracies, strict=True)})
    assert (found["hm"], found["cm"]) == (pytest.approx(hm), pytest.approx(cm))


def correct(task, base, novel, validation=((), (), ())):
    """Return correct answers except at the given indices: one tuple of indices for each client."""
    found = {}
    for name, wrong in {"base": base, "novel": novel, "validation": validation}.items():
        found[name] = np.ones((len(wrong), len(evaluation_sets(task)[name].images)), bool)
        for row, places in zip(found[name], wrong, strict=True):
            row[list(places)] = False
    return found


def test_local_base_and_novel_of_hand_made_outcomes():
    """12 base images: classes 1 2 3 5 6 7 twice over (images 0-5 and 6-11); clients hold (1, 5), (2, 7), (3, 6)."""
    task = tiny.task()
    assert task.tests["base"].dataset.labels[task.tests["base"].images].tolist() == [1, 2, 3, 5, 6, 7] * 2
    found = correct(task, base=[(0, 1, 2), (1, 5, 7), ()], novel=[(0,), (0, 1), ()], validation=[(3,), (), (2, 4)])
    clients = accuracies(task, task.clients, found)
    assert clients["local"].tolist() == [75.0, 25.0, 100.0]  # own: 0, 3, 6, 9; 1, 5, 7, 11; the others
    assert clients["base"].tolist() == [75.0, 75.0, 100.0]
    assert clients["novel"].tolist() == [50.0, 0.0, 100.0]
    assert clients["validation_local"].tolist() == [50.0, 100.0, 0.0]
    assert clients["validation_base"] == pytest.approx([500 / 6, 100, 400 / 6])
    means = summary(clients)
    assert (means["local"], means["base"], means["novel"]) == pytest.approx((200 / 3, 250 / 3, 50.0))
    assert means["hm"] == pytest.approx(float(harmonic(*(Fraction(n) for n in ("200/3", "250/3", "50")))))
    second = accuracies(task, task.clients[1:], {name: rows[1:] for name, rows in found.items()})
    assert second["local"].tolist() == [25.0, 100.0]


@settings(max_examples=30)
@given(wrong=st.sets(st.integers(0, 11)))
def test_for_equal_splits_one_model_has_local_equal_to_base(wrong):
    """Whether it is given once for all clients, or for each of them."""
    task = tiny.task()
    places = tuple(sorted(wrong))
    for rows in (1, 3):
        same = correct(task, base=[places] * rows, novel=[()] * rows, validation=[()] * rows)
        means = summary(accuracies(task, task.clients, same))
        assert means["local"] == pytest.approx(means["base"])
        assert means["base"] == pytest.approx(100 * (12 - len(wrong)) / 12)


def test_own_images_cover_the_base_set_once():
    task = tiny.task()
    own = own_images(task, task.clients, "base")
    assert np.sum(own, axis=0).tolist() == [1] * 12


def counting(text):
    """Towers whose text encoder records the number of contexts of each call."""
    calls = []

    def each(contexts, tokens, position):
        calls.append(len(contexts))
        return text.each(contexts, tokens, position)

    return SimpleNamespace(towers=Towers(SimpleNamespace(each=each)), calls=calls)


def evaluated(method, clients, backbone, workers=None, lend=list):
    """Evaluate the given clients, all with the classes of the tiny task. lend: holds the clients."""
    data = tiny.data(backbone)
    three = data.task.clients
    data = replace(
        data, task=replace(data.task, clients=tuple(replace(three[i % 3], id=i) for i in range(len(clients))))
    )
    frozen = frozen_of(method, data.task, backbone)
    evaluator = Evaluator(method, data.task, data.tests, backbone.class_tokens(tiny.NAMES), frozen)
    model, workers = lend(clients).__getitem__, workers or Workers(backbone.towers(), 1)
    return data, evaluator(1, method.without_private(clients[0]), model, workers)


def many(count, seed=0):
    """Clients of FedPGP with a global prompt and private parts of their own."""
    rng = torch.Generator().manual_seed(seed)
    p_G = torch.randn(3, 128, generator=rng)
    return [
        Params({"p_G": p_G}, {"U": torch.randn(3, 2, generator=rng), "V": torch.randn(2, 128, generator=rng)})
        for _ in range(count)
    ]


def test_equal_contexts_are_encoded_once(backbone):
    counter = counting(backbone.text)
    one, two, _ = many(3)
    twin = Params(one.shared, {name: tensor.clone() for name, tensor in one.private.items()})
    evaluated(FEDPGP, [one, twin, two], backbone, Workers(counter.towers, 1))
    assert counter.calls == [1, 1, 1]  # p_G, which the shared model also needs, and two personal prompts
    counter.calls.clear()
    evaluated(PromptFL(context_length=3), [Params(one.shared, {})] * 4, backbone, Workers(counter.towers, 1))
    assert counter.calls == [1]


def test_in_chunks_every_context_is_read_once(backbone, monkeypatch):
    monkeypatch.setattr(evaluate, "CHUNK", 3)
    counter = counting(backbone.text)
    evaluated(FEDPGP, many(7), backbone, Workers(counter.towers, 1))
    assert counter.calls == [1] * (1 + 7)  # p_G, and one of each client in chunks of three, three and one


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_the_size_of_the_chunks_does_not_matter(backbone, chunk, monkeypatch):
    _, whole = evaluated(FEDPGP, many(7), backbone)
    monkeypatch.setattr(evaluate, "CHUNK", chunk)
    _, found = evaluated(FEDPGP, many(7), backbone)
    for kind in ("clients", "correct"):
        for name, values in getattr(whole, kind).items():
            assert (getattr(found, kind)[name] == values).all()
    assert found.shared == whole.shared
    assert found.diagnostics == pytest.approx(whole.diagnostics, abs=1e-6)


def test_features_that_are_not_finite_stop_the_run(backbone):
    clients = many(3)
    clients[1].private["U"][0, 0] = torch.inf
    with raises(TrainingError, where="client 1 after round 1, in evaluation", problem="finite", remedy="[fedpgp]"):
        evaluated(FEDPGP, clients, backbone)


def test_private_parts_are_held_a_chunk_at_a_time(backbone, monkeypatch):
    monkeypatch.setattr(evaluate, "CHUNK", 2)
    held, most = WeakSet(), []

    class Lent(list):
        """Models whose private parts are made when they are asked for."""

        def __getitem__(self, client):
            params = super().__getitem__(client)
            private = dict(params.private, U=torch.randn(3, 2))
            held.add(private["U"])
            most.append(len(held))
            return replace(params, private=private)

    evaluated(FEDPGP, many(9), backbone, lend=Lent)
    assert len(most) == 9
    assert max(most) <= 4  # two of this chunk and two of the last, or that one


def test_each_softmax_runs_over_the_classes_of_its_test_set(backbone):
    """Novel: the nearest of the novel names, though a base name may be nearer; Base: only base names."""
    method, clients = PromptFL(context_length=3), [Params({"p_G": torch.randn(3, 128)}, {})]
    data, found = evaluated(method, clients, backbone)
    contexts = method.prompts(clients[0], frozen_of(method, data.task, backbone))
    (text,) = backbone.text(torch.stack(contexts), backbone.class_tokens(tiny.NAMES))
    outside = Counter()
    for name, test in evaluation_sets(data.task).items():
        cosines = data.tests[name].pooled @ text.T
        expected = [max(range(len(test.classes)), key=lambda c: row[test.classes[c]]) for row in cosines]
        right = np.array(expected) == test.targets
        assert found.clients[name if name != "validation" else "validation_base"] == pytest.approx(100 * right.mean())
        if name != "validation":
            assert (tiny.bools(found.correct[name], len(right)) == right).all()
            assert found.shared[name] == pytest.approx(100 * right.mean())
        outside[name] = sum(int(row.argmax()) not in test.classes for row in cosines)
    assert outside["novel"] > 0 and outside["base"] > 0  # so the set of columns decides


def test_equal_visual_prompts_are_seen_once(exact):
    """Two groups of every client are what the server sent; the third is its own."""
    method = FedMGP(groups=3, selected=2, context_length=3, visual_length=2)
    task, calls = tiny.task(), Counter()
    shared = method.init_shared(task, exact, tiny.generator(0, "shared"))
    places = torch.eye(3, dtype=torch.float64)[:2]
    clients = [
        Params(shared, {**own, "places": places})
        for own in (method.init_private(task, exact, tiny.generator(i, "private"), i) for i in range(3))
    ]

    def each(states, prompts, first):
        calls["images"] += len(states) * len(prompts)
        return exact.image.tower.each(states, prompts, first)

    data = tiny.data(exact, kind=kind_of(method))
    frozen = frozen_of(method, data.task, exact)
    evaluator = Evaluator(method, data.task, data.tests, exact.class_tokens(tiny.NAMES, method.tail), frozen)
    counting = Workers(Towers(exact.text, SimpleNamespace(each=each)), 1)
    found = evaluator(1, method.without_private(clients[0]), clients.__getitem__, counting)
    images = sum(map(len, data.tests.values()))
    assert calls["images"] == images * (2 + 3)
    for i, params in enumerate(clients):
        for name, test in data.task.tests.items():
            tokens = exact.class_tokens([tiny.NAMES[label] for label in test.classes], method.tail)
            of_set = frozen.select(test.classes)
            text = torch.stack(exact.text.each(method.prompts(params, of_set), tokens))
            question = Question(method, params, text, data.tests[name], tokens, of_set)
            right = answer(exact.towers(method.reads), question).argmax(-1).numpy() == test.targets
            assert tiny.bools(found.correct[name], len(right))[i].tolist() == right.tolist()


def test_clients_with_the_same_prompt_are_told_apart_by_what_they_remember(exact):
    """Every client remembers images of one class only, and its memory outweighs the prompt."""
    method = PFedPrompt(context_length=3, alpha=1e6)
    shared = method.init_shared(tiny.task(), exact, tiny.generator(0, "shared"))
    keys = tiny.random_features(4, exact.logit_scale)
    clients = [Params(shared, {}, {}, {"keys": keys, "labels": torch.full((4,), label)}) for label in range(3)]
    _, found = evaluated(method, clients, exact)
    assert [set(row.tolist()) for row in found.predicted["base"]] == [{0}, {1}, {2}]


ALPHAS = (0.0, 0.25, 0.75, 1.0)


def along_a_path(method, params, backbone):
    """The evaluation of three equal clients at ALPHAS, the data, and a function: context -> logits of a test set."""
    data = tiny.data(backbone)
    frozen = frozen_of(method, data.task, backbone)
    evaluator = Evaluator(method, data.task, data.tests, backbone.class_tokens(tiny.NAMES), frozen)
    workers = Workers(backbone.towers(), 1)
    found = evaluator(1, method.without_private(params), lambda _: params, workers, ALPHAS)

    def logits(name, context=None):
        test = evaluation_sets(data.task)[name]
        of_set = frozen.select(test.classes)
        text = of_set.guidance
        if context is not None:
            (text,) = backbone.text(context[None], backbone.class_tokens([tiny.NAMES[c] for c in test.classes]))
        return frozen.logit_scale.exp() * data.tests[name].pooled @ text.T, test.targets

    return data, found, logits


def assert_path(found, data, expected):
    """expected: (α, test set) -> logits and targets."""
    assert list(found.path) == list(ALPHAS[:-1])
    for alpha, point in found.path.items():
        for name in data.task.tests:
            answers, targets = expected(alpha, name)
            right = answers.argmax(-1).numpy() == targets
            for row in tiny.bools(point.correct[name], len(targets)):
                assert row.tolist() == right.tolist()
            assert point.clients[name] == pytest.approx(100 * right.mean())


def test_fedpgps_path_is_the_global_prompt_and_a_share_of_the_personal_part(backbone):
    params, *_ = many(1)
    data, found, logits = along_a_path(FEDPGP, params, backbone)
    own = params.private["U"] @ params.private["V"]
    assert_path(found, data, lambda alpha, name: logits(name, params.shared["p_G"] + alpha * own))
    assert summary(found.path[0.0].clients) == pytest.approx(found.shared)
    _, plain = evaluated(FEDPGP, [params] * 3, backbone)
    assert not plain.path and summary(plain.clients) == summary(found.clients)


def test_another_method_s_path_mixes_logits_from_the_shared_part_on(backbone):
    rng = torch.Generator().manual_seed(2)
    p_G, p = (torch.randn(3, 128, generator=rng) for _ in range(2))
    method = PromptFolio(context_length=3, mixing=1.0)
    data, found, logits = along_a_path(method, Params({"p_G": p_G}, {"p": p}), backbone)

    def expected(alpha, name):
        (shared, targets), (own, _) = logits(name, p_G), logits(name, p)
        return (1 - alpha) * shared + alpha * own, targets

    assert_path(found, data, expected)


def test_where_no_shared_part_predicts_the_path_begins_at_the_hand_written_prompts(backbone):
    p = torch.randn(3, 128, generator=torch.Generator().manual_seed(3))
    data, found, logits = along_a_path(Local(context_length=3), Params({}, {"p": p}), backbone)

    def expected(alpha, name):
        (written, targets), (own, _) = logits(name), logits(name, p)
        return (1 - alpha) * written + alpha * own, targets

    assert found.shared is None
    assert_path(found, data, expected)


def test_a_path_that_no_client_moves_along_is_a_point(backbone):
    p = torch.randn(3, 128, generator=torch.Generator().manual_seed(3))
    _, found, _ = along_a_path(PromptFL(context_length=3), Params({"p_G": p}, {}), backbone)
    assert found.path
    assert without_standing_path(found, ("base", "novel")).path == {}
    without_bits = replace(
        found, correct={}
    )  # as for clients on other machines, of which only the accuracies are known
    assert without_standing_path(without_bits, ("base", "novel")).path == {}
    (alpha, *_), other = found.path, replace(found.path[0.0], clients={**found.clients, "novel": np.full(3, 1.0)})
    moved = replace(without_bits, path={**found.path, alpha: other})
    assert without_standing_path(moved, ("base", "novel")) is moved


def test_points_of_a_path_are_evenly_spaced():
    assert path_alphas(1) == (1.0,)
    assert path_alphas(5) == (0.0, 0.25, 0.5, 0.75, 1.0)


@given(st.lists(st.tuples(ACCURACY, ACCURACY), min_size=1, max_size=6))
def test_area_is_that_of_all_rectangles_together(points):
    """In slices: above every Local, the best HM of the points that reach it."""
    ends = sorted({0.0, *(local for local, _ in points)})
    slices = ((high - low, max(y for x, y in points if x >= high)) for low, high in pairwise(ends))
    expected = sum(width * height for width, height in slices) / 100
    assert area(*(np.array(axis) for axis in zip(*points, strict=True))) == pytest.approx(expected)


def test_area_of_many_at_once_and_in_any_order():
    local, others = np.array([[10.0, 50.0], [60.0, 20.0]]), np.array([[80.0, 30.0], [40.0, 70.0]])
    assert area(local, others) == pytest.approx([0.1 * 80 + 0.5 * 40, 0.2 * 70 + 0.3 * 30])
    assert area(local[::-1], others[::-1]) == pytest.approx(area(local, others))


class Twice(FedVPT):
    """Sees every image with the same visual prompt twice."""

    name = "twice"

    def visual_prompts(self, params):
        return [*super().visual_prompts(params)] * 2

    def predict(self, params, text, images, frozen):
        assert images.shape[1] == 3
        return super().predict(params, text, images[:, 1:], frozen)


def test_equal_visual_prompts_of_one_model_have_a_place_each(exact):
    *_, twice = tiny.run(Twice(visual_length=2), exact, rounds=1)
    *_, once = tiny.run(FedVPT(visual_length=2), exact, rounds=1)
    for name, rows in once.evaluation.correct.items():
        assert rows.tolist() == twice.evaluation.correct[name].tolist()


@pytest.mark.parametrize("method", [FedCoCoOp(), FedOTP(context_length=3), FedVPT(visual_length=2)])
def test_images_in_pieces_are_classified_as_all_at_once(method, exact, monkeypatch):
    *_, whole = tiny.run(method, exact, rounds=1)
    monkeypatch.setattr(reading, "PIECE", 5)
    *_, found = tiny.run(method, exact, rounds=1)
    for name, rows in whole.evaluation.correct.items():
        assert rows.tolist() == found.evaluation.correct[name].tolist()
    assert whole.record["local"] == found.record["local"]


def test_macro_accuracy_is_that_of_a_naive_loop():
    rng = np.random.default_rng(0)
    targets = np.repeat([0, 1, 2, 4], [20, 3, 5, 1])  # no image of class 3
    correct, own = rng.random((2, 29)) < 0.5, rng.random((2, 29)) < 0.7
    own[0, targets == 2] = False
    of_classes = class_accuracies(correct, targets, 5, own)
    means = []
    for client in range(2):
        per_class = []
        for label in range(5):
            images = [i for i in range(29) if targets[i] == label and own[client, i]]
            if images:
                per_class.append(100 * sum(correct[client, i] for i in images) / len(images))
                assert of_classes[client, label] == pytest.approx(per_class[-1])
            else:
                assert np.isnan(of_classes[client, label])
        means.append(sum(per_class) / len(per_class))
    assert macro_accuracy(of_classes) == pytest.approx(sum(means) / 2)
