"""The classes and images of each client, and what is tested."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from raising import raises

import fedpgp
from fedpgp import assets
from fedpgp.config import load_config
from fedpgp.data.partition import deal_classes, deal_domains, draw_shots
from fedpgp.errors import ConfigError, DataError
from fedpgp.evaluation.metrics import own_images
from fedpgp.runs.tasks import make_task


def classes_of(dataset, images):
    return set(dataset.labels[images].tolist())


@settings(max_examples=50)
@given(data=st.data(), classes=st.integers(4, 11), domains=st.integers(1, 4), seed=st.integers(0, 1000))
def test_base_classes_are_dealt_out_once_and_nothing_else_is_trained_on(data, classes, domains, seed):
    probes = st.sets(st.integers(0, classes - 1), max_size=classes - 4).filter(lambda drawn: len(drawn) != 1)
    probe = tuple(sorted(data.draw(probes)))
    known = [label for label in range(classes) if label not in probe]
    half = math.ceil(len(known) / 2)
    base, novel = known[:half], known[half:]
    clients = data.draw(st.integers(1, len(base)))
    per_client = data.draw(st.none() | st.integers(1, len(base) // clients))
    shots = data.draw(st.integers(1, 3 * domains))
    source = tiny.source(classes, domains=domains, probe=probe)
    task = tiny.base_to_novel(source, clients=clients, classes_per_client=per_client, shots=shots, seed=seed)

    assert [client.id for client in task.clients] == list(range(clients))
    assert list(task.base) == base
    assert {name: list(test.classes) for name, test in task.tests.items()} == {
        "base": base,
        "novel": novel,
        **({"unseen": list(probe)} if probe else {}),
    }
    dealt = [label for client in task.clients for label in client.classes]
    assert len(dealt) == len(set(dealt)) and set(dealt) <= set(base)
    sizes = [len(client.classes) for client in task.clients]
    if per_client is None:
        assert set(dealt) == set(base) and max(sizes) - min(sizes) <= 1
    else:
        assert sizes == [per_client] * clients
    for client in task.clients:
        assert classes_of(source.train, client.train) == set(client.classes)
        assert len(set(client.train.tolist())) == len(client.train) == shots * len(client.classes)
    for test in [*task.tests.values(), task.validation]:
        assert classes_of(test.dataset, test.images) == set(test.classes)
        assert [test.classes[column] for column in test.targets] == test.dataset.labels[test.images].tolist()
        assert len(test.images) == len(test.classes) * domains * (1 if test is task.validation else 2)


@settings(max_examples=50)
@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=5), data=st.data(), seed=st.integers(0, 1000))
def test_shots_are_drawn_evenly_over_the_domains(counts, data, seed):
    if not sum(counts):
        counts = [*counts, 1]
    shots = data.draw(st.integers(1, sum(counts)))
    domains = [domain for domain, count in enumerate(counts) for _ in range(count)]
    other = [0] * len(domains)  # images of another class are in between
    labels = [label for _ in domains for label in (1, 0)]
    mixed = [d for pair in zip(domains, other, strict=True) for d in pair]
    dataset = tiny.dataset("train", labels, mixed, ("other", "it"), [f"domain {i}" for i in range(len(counts))])
    drawn = draw_shots(dataset, 1, shots, seed)
    assert len(set(drawn.tolist())) == shots and list(drawn) == sorted(drawn)
    assert classes_of(dataset, drawn) == {1}
    taken = np.bincount(dataset.domains[drawn], minlength=len(counts))
    for one, first in enumerate(counts):
        for two, _ in enumerate(counts):
            if taken[one] < first:  # a domain with images left has at most one less than any other
                assert taken[two] <= taken[one] + 1


def test_the_draw_of_a_class_does_not_depend_on_the_clients():
    source = tiny.source(8)
    draws = []
    for clients, per_client in [(1, None), (2, None), (4, 1), (3, 1)]:
        task = tiny.base_to_novel(source, clients=clients, classes_per_client=per_client, shots=4, seed=5)
        draws.append({})
        for client in task.clients:
            for label in client.classes:
                draws[-1][label] = client.train[source.train.labels[client.train] == label].tolist()
    full = draws[0]
    assert all(full[label] == images for draw in draws for label, images in draw.items())
    assert [len(draw) for draw in draws] == [4, 4, 4, 3]


def test_seeds_change_classes_and_shots():
    source = tiny.source(24)
    deals, shots = [], []
    for seed in range(4):
        task = tiny.base_to_novel(source, clients=3, classes_per_client=None, shots=3, seed=seed)
        deals.append(tuple(client.classes for client in task.clients))
        shots.append(tuple(draw_shots(source.train, 0, 3, seed)))
    assert len(set(deals)) == 4 and len(set(shots)) > 1
    assert deals[0] == deal_classes(range(12), 3, None, 0)


def test_the_authors_division_of_oxford_pets():
    """The result of `random.seed(2023); random.shuffle(list(range(19)))`, cut as in FedOTP's base_dataset.py."""
    order = [2, 7, 3, 0, 16, 6, 13, 8, 4, 11, 1, 15, 5, 17, 9, 10, 18, 14, 12]
    expected = [{2 * order[i], 2 * order[i + 1]} for i in range(0, 18, 2)] + [{2 * 12}]
    dealt = deal_classes(range(0, 38, 2), 10, None, 5, "authors")  # classes that are not a range from 0
    assert [set(own) for own in dealt] == expected
    assert all(own == tuple(sorted(own)) for own in dealt)


@pytest.mark.parametrize(
    ("classes", "clients", "each", "last"),
    [(50, 10, 5, 5), (51, 10, 5, 6), (47, 10, 5, 2), (55, 10, 6, 1), (45, 10, 4, 9), (14, 10, 1, 5), (4, 1, 4, 4)],
)
def test_the_authors_rule_gives_the_rest_to_the_last_client(classes, clients, each, last):
    dealt = deal_classes(range(classes), clients, None, 0, "authors")
    assert [len(own) for own in dealt] == [each] * (clients - 1) + [last]
    assert sorted(label for own in dealt for label in own) == list(range(classes))


def test_the_authors_division_is_one_for_all_seeds():
    config = load_config(None, ["task.clients=3", "task.shots=2", "task.class_division=authors"])
    tasks = [make_task(config, tiny.source(16), seed) for seed in range(4)]
    assert len({tuple(client.classes for client in task.clients) for task in tasks}) == 1
    assert len({tuple(task.clients[0].train) for task in tasks}) > 1, "the shots are drawn by the seed"


@pytest.mark.parametrize(("classes", "clients"), [(16, 10), (24, 15), (6, 4)])
def test_the_authors_rule_is_refused_if_it_leaves_a_client_without_classes(classes, clients):
    allowed, remedy = f'"even" for {classes} classes and {clients} clients', "--set task.class_division=even"
    with raises(DataError, where="task.class_division", allowed=allowed, got="authors", remedy=remedy):
        deal_classes(range(classes), clients, None, 0, "authors")
    assert all(deal_classes(range(classes), clients, None, 0))


def test_the_authors_rule_has_no_use_for_a_number_of_classes():
    with raises(DataError, where="task.classes_per_client", allowed='"authors"', got=2):
        deal_classes(range(12), 3, 2, 0, "authors")


@pytest.mark.parametrize(
    ("changes", "where", "allowed", "got", "remedy"),
    [
        ({"clients": 5}, "task.clients", "at most 4 (4 classes", 5, "task.clients=4"),
        ({"classes_per_client": 3}, "task.clients", "at most 1 (4 classes", 2, "task.clients=1"),
        ({"shots": 7}, "task.shots", "at most 6", 7, "task.shots=6"),
    ],
)
def test_settings_that_need_more_data_are_refused(changes, where, allowed, got, remedy):
    with raises(DataError, where=where, allowed=allowed, got=got, remedy=f"--set {remedy}"):
        tiny.base_to_novel(
            tiny.source(8), **{"clients": 2, "classes_per_client": None, "shots": 2, "seed": 0, **changes}
        )


@settings(max_examples=40)
@given(
    clients=st.integers(1, 7),
    domains=st.integers(1, 4),
    shots=st.integers(1, 3),
    seed=st.integers(0, 1000),
    split=st.sampled_from(["test", "validation"]),
)
def test_each_client_has_images_of_one_domain(clients, domains, shots, seed, split):
    source = tiny.source(14 if split == "test" else 28, domains=domains)
    task = tiny.base_to_novel(
        source,
        clients=clients,
        classes_per_client=None,
        shots=shots,
        seed=seed,
        domain_per_client=True,
        evaluate_on=split,
    )
    held = [client.domains for client in task.clients]
    counts = np.bincount([domain for (domain,) in held], minlength=domains)
    assert max(counts) - min(counts) <= 1
    for client in task.clients:
        assert set(source.train.domains[client.train].tolist()) == set(client.domains)
        assert classes_of(source.train, client.train) == set(client.classes)
        assert len(set(client.train.tolist())) == len(client.train) == shots * len(client.classes)
    assert set(task.tests["base"].dataset.domains[task.tests["base"].images].tolist()) == set(range(domains))
    plain = tiny.base_to_novel(
        source, clients=clients, classes_per_client=None, shots=shots, seed=seed, evaluate_on=split
    )
    assert [client.classes for client in task.clients] == [client.classes for client in plain.clients]
    assert all(client.domains is None for client in plain.clients)


def test_domains_are_dealt_in_an_order_of_the_seed():
    dealt = {deal_domains(4, 6, seed) for seed in range(10)}
    assert len(dealt) > 3 and all(sorted(d[:4]) == [0, 1, 2, 3] and d[4:] == d[:2] for d in dealt)


def test_shots_may_be_the_most_that_a_class_gives(pictograms):
    labels = [0] * 9 + [1] * 3 + [2] * 5
    dataset = tiny.dataset("train", labels, class_names="abc")
    counts = [len(draw_shots(dataset, label, 4, 0, at_most=True)) for label in range(3)]
    assert counts == [4, 3, 4]
    assert np.array_equal(draw_shots(dataset, 0, 4, 0, at_most=True), draw_shots(dataset, 0, 4, 0))
    with raises(DataError, where="task.shots", allowed="at most 3", got=4, remedy="--set task.fewer_shots=true"):
        draw_shots(dataset, 1, 4, 0)
    few = load_config(changes=["task.shots=40", "task.fewer_shots=true"])
    assert {len(client.train) // len(client.classes) for client in make_task(few, pictograms, 0).clients} == {36}


@settings(max_examples=50)
@given(
    data=st.data(),
    domains=st.integers(2, 5),
    seed=st.integers(0, 1000),
    split=st.sampled_from(["test", "validation"]),
)
def test_a_held_out_domain_is_neither_trained_on_nor_used_for_choices(data, domains, seed, split):
    classes, probe = 6, data.draw(st.sampled_from([(), (2,)]))
    source = tiny.source(classes, domains=domains, probe=probe)
    names = source.train.domain_names
    out = data.draw(st.sets(st.sampled_from(names), max_size=domains - (1 if split == "test" else 2)))
    kept = [i for i, name in enumerate(names) if name not in (out or {names[-1]})]
    novel = [i for i in range(domains) if i not in kept]
    if split == "validation":
        if len(kept) < 2:
            return
        kept, novel = kept[:-1], kept[-1:]
    each = data.draw(st.integers(1, 2))
    task = tiny.leave_one_domain_out(
        source, clients=each * len(kept), held_out=sorted(out), shots=2, seed=seed, evaluate_on=split
    )
    known = {label for label in range(classes) if label not in probe}
    assert set(task.base) == known and task.novel == "domains"
    assert [client.domains for client in task.clients] == [(kept[i % len(kept)],) for i in range(each * len(kept))]
    for client in task.clients:
        assert set(source.train.domains[client.train].tolist()) == set(client.domains)
        assert classes_of(source.train, client.train) == set(client.classes)
        assert len(set(client.train.tolist())) == len(client.train) == 2 * len(client.classes)
    for domain in kept:
        dealt = [label for client in task.clients if client.domains == (domain,) for label in client.classes]
        assert sorted(dealt) == sorted(known)
    used = [(task.tests["base"], kept), (task.tests["novel"], novel), (task.validation, kept)]
    for test, expected in used:
        assert set(test.dataset.domains[test.images].tolist()) == set(expected)
        assert classes_of(test.dataset, test.images) == known
        assert len(test.images) == len(known) * len(expected) * (2 if test.dataset is source.test else 1)
    if split == "validation":
        assert all(test.dataset is source.validation for test, _ in used)
    own = own_images(task, task.clients, "base")
    assert own.any(1).all()
    for client, row in zip(task.clients, own, strict=True):
        images = task.tests["base"].images[row]
        assert set(task.tests["base"].dataset.domains[images].tolist()) == set(client.domains)
        assert classes_of(task.tests["base"].dataset, images) == set(client.classes)


@pytest.mark.parametrize(
    ("changes", "where", "fields"),
    [
        ({"held_out": ["domain"]}, "task.held_out", {"got": "domain", "remedy": "'domain 0'"}),
        ({"held_out": ["domain 0", "domain 1", "domain 2"]}, "task.held_out", {"problem": "domain 0, domain 1"}),
        ({"clients": 3}, "task.clients", {"allowed": "domain 0, domain 1", "got": 3, "remedy": "task.clients=2"}),
        ({"shots": 4}, "task.shots", {"allowed": "in domain 'domain ", "got": 4}),
        ({"evaluate_on": "validation", "held_out": ["domain 0", "domain 1"]}, "task.held_out", {"problem": "domain 2"}),
    ],
)
def test_domains_that_cannot_be_held_out(changes, where, fields):
    given = {"clients": 2, "held_out": [], "shots": 2, "seed": 0, **changes}
    with raises(DataError, where=where, **fields):
        tiny.leave_one_domain_out(tiny.source(4, domains=3), **given)


def test_a_client_without_test_images_in_its_domain_is_refused():
    source = tiny.source(4, domains=2)
    few = source.test.select(np.flatnonzero((source.test.labels != 1) | (source.test.domains == 0)))
    with raises(DataError, where="made-up", problem="class 'class 1' has no test image in domain 'domain 1'"):
        for seed in range(9):
            tiny.base_to_novel(
                replace(source, test=few),
                clients=2,
                classes_per_client=None,
                shots=1,
                seed=seed,
                domain_per_client=True,
            )


def test_test_images_that_were_not_read():
    source = replace(tiny.source(8), test=None)
    given = {"clients": 2, "classes_per_client": None, "shots": 2, "seed": 0}
    assert tiny.base_to_novel(source, **given, evaluate_on="validation").tests["base"].dataset is source.validation
    with raises(DataError, where="made-up", problem="test split", remedy="--set task.evaluate_on=validation"):
        tiny.base_to_novel(source, **given)


@pytest.mark.parametrize(
    ("protocol", "change", "field"),
    [
        ("base-to-novel", 'task.held_out=["noto"]', "held_out"),
        ("leave-one-domain-out", "task.domain_per_client=true", "domain_per_client"),
        ("base-to-novel", "task.concentration=2.0", "concentration"),
        ("personalization", 'task.targets=["noto"]', "targets"),
    ],
)
def test_a_field_of_another_protocol_is_refused(protocol, change, field):
    config = load_config(changes=[f"task.protocol={protocol}", change])
    with raises(ConfigError, where=f"task.{field}", allowed=protocol):
        make_task(config, tiny.source(8), 0)


def test_held_out_domains_survive_the_config_file(tmp_path):
    config = load_config(changes=['task.held_out=["noto", "twemoji"]'])
    (tmp_path / "c.toml").write_text(config.to_toml())
    assert load_config(tmp_path / "c.toml").task.held_out == ("noto", "twemoji")


@pytest.mark.slow
def test_choosing_settings_needs_no_test_file(tmp_path, cache, monkeypatch):
    """Without the test split of the assets, a run on validation images works; another run names the missing file."""
    shutil.copytree(assets.DIRECTORY, tmp_path / "assets", ignore=shutil.ignore_patterns("test.parquet"))
    monkeypatch.setattr(assets, "DIRECTORY", tmp_path / "assets")
    changes = ["task.clients=2", "task.shots=1", "federation.rounds=1", "federation.local_epochs=1"]
    run = fedpgp.run("promptfl", changes=[*changes, "task.evaluate_on=validation"], cache=cache)
    assert run.results["task"]["evaluated_on"] == "validation" and set(run.provenance["images"]) == {
        "train",
        "validation",
    }
    with pytest.raises(DataError, match=r"test\.parquet"):
        fedpgp.run("promptfl", changes=changes, cache=cache)


def test_a_class_without_test_images_is_refused():
    with raises(DataError, where="made-up", problem="class 'class 0' has no test image"):
        tiny.base_to_novel(tiny.source(4, per_domain=(3, 1, 0)), clients=1, classes_per_client=None, shots=1, seed=0)


@pytest.mark.parametrize("classes", [10, 11])
def test_settings_are_chosen_without_test_images_and_novel_classes(classes):
    source = tiny.source(classes, probe=(1,))
    known = [label for label in range(classes) if label != 1]
    base = known[: math.ceil(len(known) / 2)]
    task = tiny.base_to_novel(source, clients=2, classes_per_client=None, shots=2, seed=0, evaluate_on="validation")
    assert set(task.tests) == {"base", "novel"}
    assert all(test.dataset is source.validation for test in [*task.tests.values(), task.validation])
    assert [*task.tests["base"].classes, *task.tests["novel"].classes] == base
    assert task.tests["base"].classes == task.base == task.validation.classes == tuple(base[: math.ceil(len(base) / 2)])
    assert {label for client in task.clients for label in client.classes} == set(task.base)


def test_the_embedded_task_leaks_no_picture(pictograms):
    """Pictures are compared by their bytes, not by their indices."""
    task = tiny.base_to_novel(pictograms, clients=10, classes_per_client=None, shots=16, seed=0)
    trained = tiny.picture_bytes(pictograms.train, np.concatenate([client.train for client in task.clients]))
    assert len(trained) == 16 * len(task.base)
    held_out = {name: tiny.picture_bytes(test.dataset, test.images) for name, test in task.tests.items()}
    held_out["validation"] = tiny.picture_bytes(pictograms.validation, task.validation.images)
    for pictures in held_out.values():
        assert pictures and not trained & pictures
    assert not held_out["validation"] & (held_out["base"] | held_out["novel"])
    assert not set(pictograms.probe) & {label for client in task.clients for label in client.classes}


PRINT_TASK = """
import hashlib, json
from fedpgp.data.sources import pictograms
from fedpgp.data.protocols import base_to_novel, leave_one_domain_out
from fedpgp.data.settings import TaskConfig
source = pictograms.read()
other = leave_one_domain_out(source, TaskConfig(clients=8, shots=2, held_out=("noto", "fxemoji")), 3)
task = base_to_novel(source, TaskConfig(clients=7, shots=5), 3)
print(json.dumps([task.class_names, task.base, [c.classes for c in task.clients],
                  [c.train.tolist() for c in task.clients],
                  {n: [t.classes, t.images.tolist()] for n, t in task.tests.items()},
                  [[c.domains, c.classes, c.train.tolist()] for c in other.clients], other.validation.images.tolist()]))
"""


def task_under(hash_seed):
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    done = subprocess.run(
        [sys.executable, "-c", PRINT_TASK], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_task_is_the_same_under_every_hash_seed():
    first, *others = [task_under(seed) for seed in range(3)]
    assert all(other == first for other in others)
    assert len(first[0]) > 100 and len(first[2]) == 7
