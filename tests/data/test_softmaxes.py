"""No figure comes from a softmax over one class."""

import json
from dataclasses import replace

import pytest
import tiny
from raising import raises

from fedpgp.data.client_task import classes_of
from fedpgp.data.protocols import PROTOCOLS
from fedpgp.data.settings import TaskConfig
from fedpgp.errors import DataError


@pytest.mark.parametrize(
    ("protocol", "changes", "too_few", "enough"),
    [
        ("base-to-novel", {}, 3, 4),
        ("base-to-novel", {"evaluate_on": "validation"}, 6, 7),
        ("personalization", {}, 1, 2),
        ("leave-one-domain-out", {}, 1, 2),
        ("global", {}, 1, 2),
    ],
)
def test_one_class_in_a_softmax_is_refused(protocol, changes, too_few, enough):
    task = TaskConfig(protocol=protocol, clients=1, shots=1, **changes)
    for classes in range(1, too_few + 1):
        with raises(DataError, where="made-up", problem=f"task.protocol {protocol} needs at least {enough} "):
            PROTOCOLS[protocol](tiny.source(classes), task, 0)
    tests = PROTOCOLS[protocol](tiny.source(enough), task, 0).tests
    assert all(len(test.classes) >= 2 for test in tests.values())


def test_a_target_of_one_class_is_refused():
    made = tiny.source(3)
    target = made.test.select(made.test.of_classes([0]))
    target = replace(target, class_names=("class 0",))
    task = TaskConfig(protocol="cross-data-set", clients=1, shots=1, targets=("x",))
    with raises(DataError, where="made-up", problem="novel has 1 class"):
        PROTOCOLS["cross-data-set"](replace(made, targets={"x": target}), task, 0)


@pytest.mark.parametrize("names", [("ant", "bee"), ("ant", "bee", "cat")])
def test_the_same_holds_for_nodes_with_their_own_images(names):
    task = TaskConfig(partition="own", class_names=names)
    with raises(DataError, where="the federation", remedy="task.class_names") as error:
        classes_of(task)
    assert "--set task.protocol=personalization" in error.value.remedy
    four = TaskConfig(partition="own", class_names=(*names, "dog", "elk")[:4])
    assert list(map(len, classes_of(four))) == [2, 2]


def test_the_remedy_works(command, tmp_path):
    for name in ("ant", "bee", "cat"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(6):
            tiny.Image.new("RGB", (8, 8), (number, 9, 9)).save(tmp_path / "photos" / name / f"{number}.png")
    base = (
        "run",
        "--method",
        "zero-shot",
        "--data",
        "photos",
        "--json",
        "--set",
        "task.clients=1",
        "--set",
        "task.shots=1",
    )
    refused = command(*base)
    (remedy,) = [words for words in refused.err.replace(",", " ").split() if words.startswith("task.protocol=")]
    assert refused.code == 2
    ended = command(*base, "--set", remedy)
    assert ended.code == 0 and json.loads(ended.out)["task"]["base_classes"] == 3
