"""Who holds which class and image, and what is tested."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpgp.data.partition import deal_classes, draw_shots
from fedpgp.data.tasks import base_to_novel
from fedpgp.errors import DataError


def classes_of(dataset, images):
    return set(dataset.labels[images].tolist())


def picture_bytes(dataset, images):
    return {dataset.image(int(i)).tobytes() for i in images}


@settings(max_examples=50, deadline=None)
@given(data=st.data(), classes=st.integers(2, 11), domains=st.integers(1, 4), seed=st.integers(0, 1000))
def test_base_classes_are_dealt_out_once_and_nothing_else_is_trained_on(data, classes, domains, seed):
    probe = tuple(sorted(data.draw(st.sets(st.integers(0, classes - 1), max_size=classes - 2))))
    known = [label for label in range(classes) if label not in probe]
    half = math.ceil(len(known) / 2)
    base, novel = known[:half], known[half:]
    clients = data.draw(st.integers(1, len(base)))
    per_client = data.draw(st.none() | st.integers(1, len(base) // clients))
    shots = data.draw(st.integers(1, 3 * domains))
    source = tiny.source(classes, domains=domains, probe=probe)
    task = base_to_novel(source, clients=clients, classes_per_client=per_client, shots=shots, seed=seed)

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


@settings(max_examples=50, deadline=None)
@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=5), data=st.data(), seed=st.integers(0, 1000))
def test_shots_are_drawn_evenly_over_the_domains(counts, data, seed):
    if not sum(counts):
        counts = [*counts, 1]
    shots = data.draw(st.integers(1, sum(counts)))
    domains = [domain for domain, count in enumerate(counts) for _ in range(count)]
    other = [0] * len(domains)  # images of another class stand between
    labels = [label for _ in domains for label in (1, 0)]
    mixed = [d for pair in zip(domains, other, strict=True) for d in pair]
    dataset = tiny.dataset("train", labels, mixed, ("other", "it"), [f"domain {i}" for i in range(len(counts))])
    drawn = draw_shots(dataset, 1, shots, seed)
    assert len(set(drawn.tolist())) == shots and list(drawn) == sorted(drawn)
    assert classes_of(dataset, drawn) == {1}
    taken = np.bincount(dataset.domains[drawn], minlength=len(counts))
    for one, first in enumerate(counts):
        for two, _ in enumerate(counts):
            if taken[one] < first:  # a domain with images left is not behind any other by more than one
                assert taken[two] <= taken[one] + 1


def test_the_draw_of_a_class_does_not_depend_on_the_clients():
    source = tiny.source(8)
    draws = []
    for clients, per_client in [(1, None), (2, None), (4, 1), (3, 1)]:
        task = base_to_novel(source, clients=clients, classes_per_client=per_client, shots=4, seed=5)
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
        task = base_to_novel(source, clients=3, classes_per_client=None, shots=3, seed=seed)
        deals.append(tuple(client.classes for client in task.clients))
        shots.append(tuple(draw_shots(source.train, 0, 3, seed)))
    assert len(set(deals)) == 4 and len(set(shots)) > 1
    assert deals[0] == deal_classes(range(12), 3, None, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clients": 5}, r"task\.clients must be at most 4, got 5: the task has 4 classes to deal out"),
        ({"classes_per_client": 3}, r"task\.clients must be at most 1, got 2: .* 3 to each client"),
        ({"shots": 7}, r"task\.shots must be at most 6, got 7: class 'class \d' of made-up has 6 train images"),
    ],
)
def test_what_the_data_do_not_suffice_for_is_refused(changes, message):
    with pytest.raises(DataError, match=message):
        base_to_novel(tiny.source(8), **{"clients": 2, "classes_per_client": None, "shots": 2, "seed": 0, **changes})


def test_a_class_without_test_images_is_refused():
    with pytest.raises(DataError, match="class 'class 0' of made-up has no test image"):
        base_to_novel(tiny.source(4, per_domain=(3, 1, 0)), clients=1, classes_per_client=None, shots=1, seed=0)


@pytest.mark.parametrize("classes", [10, 11])
def test_settings_are_chosen_without_test_images_and_novel_classes(classes):
    source = tiny.source(classes, probe=(1,))
    known = [label for label in range(classes) if label != 1]
    base = known[: math.ceil(len(known) / 2)]
    task = base_to_novel(source, clients=2, classes_per_client=None, shots=2, seed=0, evaluate_on="validation")
    assert set(task.tests) == {"base", "novel"}
    assert all(test.dataset is source.validation for test in [*task.tests.values(), task.validation])
    assert [*task.tests["base"].classes, *task.tests["novel"].classes] == base
    assert task.tests["base"].classes == task.base == task.validation.classes == tuple(base[: math.ceil(len(base) / 2)])
    assert {label for client in task.clients for label in client.classes} == set(task.base)


def test_the_embedded_task_leaks_no_picture(pictograms):
    """By the bytes of the pictures, not by their indices."""
    task = base_to_novel(pictograms, clients=10, classes_per_client=None, shots=16, seed=0)
    trained = picture_bytes(pictograms.train, np.concatenate([client.train for client in task.clients]))
    assert len(trained) == 16 * len(task.base)
    held_out = {name: picture_bytes(test.dataset, test.images) for name, test in task.tests.items()}
    held_out["validation"] = picture_bytes(pictograms.validation, task.validation.images)
    for pictures in held_out.values():
        assert pictures and not trained & pictures
    assert not held_out["validation"] & (held_out["base"] | held_out["novel"])
    assert not set(pictograms.probe) & {label for client in task.clients for label in client.classes}


def test_the_class_order_is_that_of_the_label_file(pictograms):
    from fedpgp.assets import DIRECTORY

    lines = (DIRECTORY / "pictograms" / "classes.csv").read_text(encoding="utf-8").splitlines()[1:]
    names = tuple(line.split(",")[0] for line in lines)
    task = base_to_novel(pictograms, clients=10, classes_per_client=None, shots=1, seed=0)
    assert pictograms.class_names == task.class_names == names
    known = [i for i, line in enumerate(lines) if not line.endswith(",unseen")]
    assert [*task.base, *task.tests["novel"].classes] == known


PRINT_TASK = """
import hashlib, json
from fedpgp.data.sources import load_source
from fedpgp.data.tasks import base_to_novel
task = base_to_novel(load_source("pictograms"), clients=7, classes_per_client=None, shots=5, seed=3)
print(json.dumps([task.class_names, task.base, [c.classes for c in task.clients],
                  [c.train.tolist() for c in task.clients],
                  {n: [t.classes, t.images.tolist()] for n, t in task.tests.items()}]))
"""


def task_under(hash_seed):
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    done = subprocess.run(
        [sys.executable, "-c", PRINT_TASK], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("hash_seeds", [(0, 1), pytest.param(range(2, 7), marks=pytest.mark.slow)])
def test_the_task_is_the_same_under_every_hash_seed(hash_seeds):
    first, *others = [task_under(seed) for seed in hash_seeds]
    assert all(other == first for other in others)
    assert len(first[0]) > 100 and len(first[2]) == 7
