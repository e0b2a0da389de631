"""Accuracies and their summaries."""

from collections import Counter
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpgp.evaluate import (
    client_accuracies,
    combined,
    evaluate,
    own_images,
    shared_accuracies,
    summary,
    validation_accuracies,
)
from fedpgp.methods import FedPGP, Frozen, Params, PromptFL
from fedpgp.workers import Workers

ACCURACY = st.integers(0, 10_000).map(lambda hundredths: hundredths / 100)


def harmonic(*values):
    """n over the sum of reciprocals, and 0 where a value is 0, in exact fractions."""
    exact = [Fraction(value) for value in values]
    return len(exact) / sum(1 / value for value in exact) if all(exact) else Fraction(0)


@given(local=ACCURACY, base=ACCURACY, novel=ACCURACY)
def test_hm_and_cm(local, base, novel):
    found = combined({"local": local, "base": base, "novel": novel})
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
    found = combined(dict(zip(("local", "base", "novel"), accuracies, strict=True)))
    assert (found["hm"], found["cm"]) == (pytest.approx(hm), pytest.approx(cm))


def wrong_at(targets, *places):
    """The right predictions but for some places."""
    predicted = targets.astype(np.int16).copy()
    predicted[list(places)] = (predicted[list(places)] + 1) % (targets.max() + 1)
    return predicted


def predictions(task, base, novel, validation=((), (), ())):
    """Right but for the given places: one tuple of places for each client."""
    sets = {"base": (task.tests["base"], base), "novel": (task.tests["novel"], novel)}
    sets["validation"] = (task.validation, validation)
    return {name: np.stack([wrong_at(test.targets, *row) for row in rows]) for name, (test, rows) in sets.items()}


def test_local_base_and_novel_of_hand_made_predictions():
    """12 base images: classes 1 2 3 5 6 7 twice over (images 0-5 and 6-11); clients hold (1, 5), (2, 7), (3, 6)."""
    task = tiny.task()
    assert task.tests["base"].dataset.labels[task.tests["base"].images].tolist() == [1, 2, 3, 5, 6, 7] * 2
    wrong = predictions(task, base=[(0, 1, 2), (1, 5, 7), ()], novel=[(0,), (0, 1), ()], validation=[(3,), (), (2, 4)])
    clients = client_accuracies(task, wrong)
    assert clients == [
        {"local": 75.0, "base": 75.0, "novel": 50.0},  # of 4 own images (0, 3, 6, 9) one is wrong
        {"local": 25.0, "base": 75.0, "novel": 0.0},  # own: 1, 5, 7, 11
        {"local": 100.0, "base": 100.0, "novel": 100.0},
    ]
    means = summary(clients)
    assert (means["local"], means["base"], means["novel"]) == pytest.approx((200 / 3, 250 / 3, 50.0))
    assert means["hm"] == pytest.approx(float(harmonic(*(Fraction(n) for n in ("200/3", "250/3", "50")))))
    validation = validation_accuracies(task, wrong)
    assert validation["validation_local"] == pytest.approx((50 + 100 + 0) / 3)
    assert validation["validation_base"] == pytest.approx(100 * (5 + 6 + 4) / 18)


@settings(max_examples=30)
@given(wrong=st.sets(st.integers(0, 11)))
def test_for_equal_splits_a_shared_prompt_has_local_equal_to_base(wrong):
    task = tiny.task()
    places = tuple(sorted(wrong))
    same = predictions(task, base=[places] * 3, novel=[()] * 3)
    means = summary(client_accuracies(task, same))
    assert means["local"] == pytest.approx(means["base"])
    assert means["base"] == pytest.approx(100 * (12 - len(wrong)) / 12)
    shared = shared_accuracies(task, {name: rows[:1] for name, rows in same.items()})
    assert (shared["local"], shared["base"]) == (pytest.approx(means["local"]), pytest.approx(means["base"]))


def test_own_images_cover_the_base_set_once():
    own = own_images(tiny.task(), "base")
    assert np.sum(own, axis=0).tolist() == [1] * 12


def counting(text):
    """The text encoder, and a list of how many contexts each call reads."""
    calls = []

    def encode(contexts, tokens):
        calls.append(len(contexts))
        return text(contexts, tokens)

    return SimpleNamespace(encode=encode, calls=calls)


def evaluated(method, clients, backbone, workers):
    data = tiny.data(backbone)
    frozen = Frozen(backbone.template_features(method.template, tiny.NAMES), backbone.logit_scale)
    tokens = backbone.class_tokens(tiny.NAMES)
    return data, frozen, evaluate(method, clients, data.task, data.tests, tokens, frozen, workers)


def test_equal_contexts_are_encoded_once(backbone):
    counter = counting(backbone.text)
    p_G, U, V = torch.randn(3, 128), torch.randn(3, 2), torch.randn(2, 128)
    clients = [
        Params({"p_G": p_G}, {"U": U, "V": V}),
        Params({"p_G": p_G.clone()}, {"U": U.clone(), "V": V.clone()}),
        Params({"p_G": p_G}, {"U": 2 * U, "V": V}),
    ]
    evaluated(FedPGP(context_length=3, bottleneck=2), clients, backbone, Workers(counter.encode, 1))
    assert counter.calls == [1, 1, 1]  # p_G, and two personal prompts
    counter.calls.clear()
    evaluated(PromptFL(context_length=3), [Params({"p_G": p_G}, {})] * 4, backbone, Workers(counter.encode, 1))
    assert counter.calls == [1]


def test_each_softmax_runs_over_the_classes_of_its_test_set(backbone):
    """Novel: the nearest of the novel names, though a base name may be nearer; Base: only base names."""
    method, clients = PromptFL(context_length=3), [Params({"p_G": torch.randn(3, 128)}, {})]
    data, _, found = evaluated(method, clients, backbone, Workers(backbone.text, 1))
    text = backbone.text(method.prompts(clients[0]), backbone.class_tokens(tiny.NAMES))[0]
    outside = Counter()
    for name, classes in {"base": tiny.BASE, "novel": tiny.NOVEL, "validation": tiny.BASE}.items():
        cosines = data.tests[name] @ text.T
        expected = [max(range(len(classes)), key=lambda column: row[classes[column]]) for row in cosines]
        assert found.clients[name].tolist() == found.shared[name].tolist() == [expected]
        outside[name] = sum(int(row.argmax()) not in classes for row in cosines)
    assert outside["novel"] > 0 and outside["base"] > 0  # so the set of columns decides
