"""The images of each client in every partition, the tests of every protocol, and that nothing leaks."""

import csv
import json
import math
import re
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from raising import raises
from typer.testing import CliRunner

from fedpgp import cli
from fedpgp.config import load_config
from fedpgp.data import subset as narrow
from fedpgp.data.partition import PARTITIONS, Pool, largest_remainders, share_out
from fedpgp.data.protocols import PROTOCOLS, cross_data_set, one_test_set, personalization
from fedpgp.data.settings import TaskConfig
from fedpgp.data.sources import load_source
from fedpgp.errors import ConfigError, DataError
from fedpgp.evaluation.metrics import own_images
from fedpgp.runs import setup as run_setup
from fedpgp.runs.tasks import make_task, with_targets

SETTINGS = {
    "dirichlet": {"concentration": 0.3},
    "pachinko": {"concentration": 0.3, "fine_concentration": 10.0},
    "pathological": {"classes_per_client": 2},
    "shards": {"shards_per_client": 2},
    "iid": {},
    "natural": {},
}
DEALT = [name for name in SETTINGS if name != "natural"]


@st.composite
def pools(draw):
    classes, clients = draw(st.integers(2, 6)), draw(st.integers(1, 8))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=3 * clients, max_size=90))
    labels = [*range(classes), *labels]
    dataset = tiny.dataset("train", labels, class_names=[f"class {i}" for i in range(classes)])
    images = np.array(
        sorted(draw(st.sets(st.integers(0, len(labels) - 1), min_size=2 * clients, max_size=len(labels))))
    )
    return Pool(dataset, images, clients, tuple(i // 2 for i in range(classes)), draw(st.integers(0, 99)))


def held_by(pool, name, **changes):
    return PARTITIONS[name](pool, **{**SETTINGS[name], **changes})


@settings(max_examples=60)
@given(pool=pools(), name=st.sampled_from(["dirichlet", "pachinko", "shards", "iid"]))
def test_every_image_is_held_once_and_every_client_has_some(pool, name):
    held = held_by(pool, name)
    assert sorted(np.concatenate(held).tolist()) == pool.images.tolist()
    assert len(held) == pool.clients and all(len(own) for own in held)
    assert all((np.diff(own) > 0).all() for own in held)
    again = held_by(pool, name)
    assert all((one == other).all() for one, other in zip(held, again, strict=True))
    if name in ("pachinko", "iid"):
        sizes = [len(own) for own in held]
        assert max(sizes) - min(sizes) <= 1


def test_the_dirichlet_shares_are_those_that_are_drawn():
    labels = np.repeat(np.arange(5), 1000)
    pool = Pool(tiny.dataset("train", labels, class_names="abcde"), np.arange(5000), 4, None, 3)
    held = held_by(pool, "dirichlet", concentration=0.7)
    for label in range(5):
        shares = pool.rng("dirichlet", label).dirichlet([0.7] * 4)
        counts = [int((labels[own] == label).sum()) for own in held]
        assert all(abs(count - 1000 * share) <= 1 for count, share in zip(counts, shares, strict=True))


@pytest.mark.parametrize(
    ("name", "changes"), [("dirichlet", {"concentration": 1e6}), ("pathological", {"classes_per_client": 100})]
)
def test_equal_shares_of_few_images_of_each_class_are_equal_in_sum(name, changes):
    labels = np.tile(np.arange(100), 8)  # each class has fewer images than there are clients
    pool = Pool(tiny.dataset("train", labels, class_names=[str(i) for i in range(100)]), np.arange(800), 10, None, 0)
    sizes = [len(own) for own in held_by(pool, name, **changes)]
    assert sum(sizes) == 800 and min(sizes) > 65 and max(sizes) < 95


@settings(max_examples=40)
@given(weights=st.lists(st.integers(0, 50), min_size=1, max_size=9).filter(any), total=st.integers(0, 60))
def test_largest_remainders_are_those_of_exact_arithmetic(weights, total):
    quotas = [Fraction(weight * total, sum(weights)) for weight in weights]
    counts = largest_remainders(np.array(list(map(float, quotas))), total, np.random.default_rng(0))
    assert counts.sum() == total
    ups = [count > math.floor(quota) for count, quota in zip(counts, quotas, strict=True)]
    assert all(count - math.floor(quota) in (0, 1) for count, quota in zip(counts, quotas, strict=True))
    rests = [quota - math.floor(quota) for quota in quotas]
    up, down = ([rest for rest, is_up in zip(rests, ups, strict=True) if is_up == which] for which in (True, False))
    assert not up or not down or float(min(up)) >= float(max(down)) - 1e-9


@pytest.mark.parametrize(("concentration", "even"), [(1e5, True), (0.01, False)])
def test_concentration_decides_how_even_the_shares_are(concentration, even):
    labels = np.repeat(np.arange(8), 200)
    pool = Pool(tiny.dataset("train", labels, class_names="abcdefgh"), np.arange(1600), 5, tuple(range(8)), 0)
    for name, changes in (("dirichlet", {}), ("pachinko", {"fine_concentration": concentration})):
        held = held_by(pool, name, concentration=concentration, **changes)
        counts = np.stack([np.bincount(labels[own], minlength=8) for own in held])
        assert (counts.max() < 60) == even and (counts.max() > 150) != even


@settings(max_examples=40)
@given(pool=pools(), count=st.integers(1, 4))
def test_pathological_clients_have_a_number_of_classes_which_are_used_evenly(pool, count):
    classes = sorted(pool.by_class)
    if count > len(classes):
        with raises(DataError, where="task.classes_per_client", allowed=f"at most {len(classes)}", got=count):
            held_by(pool, "pathological", classes_per_client=count)
        return
    plenty = replace(pool, dataset=tiny.dataset("train", np.resize(classes, 40 * len(classes)), class_names="abcdef"))
    plenty = replace(plenty, images=np.arange(len(plenty.dataset)))
    held = held_by(plenty, "pathological", classes_per_client=count)
    labels = plenty.dataset.labels
    of_clients = [set(labels[own].tolist()) for own in held]
    assert {len(own) for own in of_clients} == {count}
    holders = [sum(label in own for own in of_clients) for label in classes]
    assert max(holders) - min(holders) <= 1
    everything = np.concatenate(held)
    assert len(set(everything.tolist())) == len(everything)


def test_a_shard_is_of_neighbouring_classes():
    labels = np.repeat(np.arange(10), 60)
    pool = Pool(tiny.dataset("train", labels, class_names="abcdefghij"), np.arange(600), 10, None, 0)
    held = held_by(pool, "shards", shards_per_client=2)
    assert all(len(set(labels[own].tolist())) <= 4 and len(own) == 60 for own in held)
    with raises(DataError, where="task.shards_per_client", allowed="at most 60", got=61, remedy="shards_per_client=60"):
        held_by(pool, "shards", shards_per_client=61)


def test_natural_clients_keep_their_own_and_those_with_most_are_taken():
    dataset = tiny.dataset("train", [0, 1, 0, 1, 0, 1, 0], class_names="ab")
    dataset = replace(dataset, clients=np.array([2, 2, 0, 1, 1, 1, 3]), client_names=("w", "x", "y", "z"))
    pool = Pool(dataset, np.arange(7), 2, None, 0)
    assert [own.tolist() for own in held_by(pool, "natural")] == [[3, 4, 5], [0, 1]]
    with raises(DataError, where="task.clients", allowed="at most 4", got=5, remedy="--set task.clients=4"):
        held_by(replace(pool, clients=5), "natural")
    with raises(DataError, where="made-up", remedy="data.client_column"):
        held_by(replace(pool, dataset=replace(dataset, clients=None)), "natural")


def test_pachinko_needs_superclasses():
    pool = Pool(tiny.dataset("train", [0, 1], class_names="ab"), np.arange(2), 1, None, 0)
    with raises(DataError, where="task.partition", got="pachinko", remedy="--set task.partition=dirichlet"):
        held_by(pool, "pachinko")


def test_more_clients_than_images_are_refused():
    with raises(DataError, where="task.clients", allowed="at most 2", got=3):
        Pool(tiny.dataset("train", [0, 1], class_names="ab"), np.arange(2), 3, None, 0)


@pytest.mark.parametrize("partition", ["classes", "iid", "dirichlet", "shards", "pathological"])
@pytest.mark.parametrize("protocol", ["base-to-novel", "leave-one-domain-out"])
@pytest.mark.parametrize("changes", [(), ("new_clients=1",), ("new_clients=600",), ("new_clients=1000000",)])
def test_the_remedy_of_too_many_clients_works(partition, protocol, changes, pictograms):
    task = [f"task.protocol={protocol}", f"task.partition={partition}", "task.clients=1000000", "task.shots=1"]
    task += [f"task.{change}" for change in changes] + ["task.shards_per_client=1"] * (partition == "shards")
    for _ in range(2):  # a multiple of the number of domains, then a smaller one
        with raises(DataError, where="task.clients", remedy="Use --set task.clients=") as refused:
            make_task(load_config(changes=task), pictograms, 0)
        task += re.findall(r"--set (\S+)", refused.value.remedy)
        if protocol == "base-to-novel" or "multiple" not in refused.value.allowed:
            break
    made = make_task(load_config(changes=task), pictograms, 0)
    assert made.new_clients if changes else len(made.clients) > 1


@settings(max_examples=40)
@given(pool=pools(), name=st.sampled_from(DEALT), per_class=st.integers(1, 30))
def test_test_images_are_shared_out_in_the_same_proportions(pool, name, per_class):
    if name == "pathological" and len(pool.by_class) < 2:
        return
    held = held_by(pool, name)
    classes = len(pool.dataset.class_names)
    test = tiny.dataset("test", np.repeat(np.arange(classes), per_class), class_names=pool.dataset.class_names)
    holdings = [pool.dataset.labels[own] for own in held]
    shared = share_out(test, holdings, np.arange(len(test)), pool)
    counts = np.stack([np.bincount(labels, minlength=classes) for labels in holdings])
    dealt = np.stack([np.bincount(test.labels[own], minlength=classes) for own in shared])
    exact = per_class * counts / np.maximum(1, counts.sum(0))
    assert all(len(own) for own in shared)
    sharing = [exact[i].max() < 1 and len(own) == 1 for i, own in enumerate(shared)]  # the client would get no image
    for one, own in enumerate(shared):
        if not sharing[one]:
            assert (np.abs(dealt[one] - exact[one]) < 1).all()
            for other in range(one):
                assert sharing[other] or not set(own.tolist()) & set(shared[other].tolist())


# ------------------------------------------------------------------------------------------- every protocol × source

TASKS = {
    "base-to-novel": [],
    "base-to-novel, dirichlet": ["task.partition=dirichlet"],
    "personalization": ["task.protocol=personalization"],
    "dirichlet": ["task.protocol=personalization", "task.partition=dirichlet", "task.shots=0"],
    "pathological": ["task.protocol=personalization", "task.partition=pathological", "task.classes_per_client=3"],
    "shards": ["task.protocol=personalization", "task.partition=shards"],
    "iid": ["task.protocol=personalization", "task.partition=iid"],
    "feature and label shift": [
        "task.protocol=personalization", "task.partition=dirichlet", "task.domain_per_client=true",
    ],
    "leave-one-domain-out": ["task.protocol=leave-one-domain-out"],
    "leave-one-domain-out, dirichlet": ["task.protocol=leave-one-domain-out", "task.partition=dirichlet"],
    "global": ["task.protocol=global", "task.partition=iid"],
    "new clients": ["task.protocol=personalization", "task.partition=dirichlet", "task.new_clients=2"],
    "natural": ["task.protocol=personalization", "task.partition=natural"],
    "pachinko": ["task.protocol=personalization", "task.partition=pachinko"],
    "cross-data-set": ["task.protocol=cross-data-set", "task.partition=iid"],
}  # fmt: skip
DOMAINS, CLASSES, CLIENTS = ("clipart", "photo", "sketch"), ("ant", "bus", "cat", "dog", "elk", "fox"), ("n", "e", "s")


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """The same images, each with its own colour, as a folder with domains and a table with clients; and a target."""
    root = tmp_path_factory.mktemp("sources")
    rows, count = [], 0
    for domain in DOMAINS:
        for label in CLASSES:
            for number in range(12):
                count += 1
                file = root / "folder" / domain / label / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (4, 4), (count % 256, count // 256, 7)).save(file)
                rows.append([file.relative_to(root).as_posix(), label, domain, CLIENTS[number % 3]])
    with (root / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "domain", "client"], *rows])
    for number in range(4):
        for label in ("Bus", "yak"):
            file = root / "target" / label / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (number, 200, 50 + len(label))).save(file)
    return root


def prepared(source, task, on_disk):
    """Return the config of a task on a source, or None if the source lacks what the task needs."""
    changes = [*TASKS[task], "task.clients=3"]
    if "shots" not in str(TASKS[task]):
        changes.append("task.shots=4")
    if (task == "natural" and source != "table") or task == "pachinko":
        return None
    if task.startswith("leave-one-domain-out"):
        changes.append(f"task.clients={5 if source == 'pictograms' else 2}")
    if task == "cross-data-set":
        changes.append(f"task.targets={json.dumps([str(on_disk / 'target')])}")
    places = {"folder": str(on_disk / "folder"), "table": str(on_disk / "table.csv"), "pictograms": "pictograms"}
    return [*changes, f"data.source={json.dumps(places[source])}"]


@pytest.mark.parametrize("source", ["pictograms", "folder", "table"])
@pytest.mark.parametrize("task", [name for name in TASKS if name != "pachinko"])
def test_no_training_image_is_tested(source, task, on_disk, pictograms):
    changes = prepared(source, task, on_disk)
    if changes is None:
        config = load_config(
            changes=[*TASKS[task], "task.clients=3", f"data.source={json.dumps(str(on_disk / 'folder'))}"]
        )
        with raises(DataError, remedy="data.client_column"):
            make_task(config, load_source(config.data), 0)
        return
    config = load_config(changes=changes)
    found = pictograms if source == "pictograms" else load_source(config.data)
    made = make_task(config, with_targets(config, found), seed=1)
    holders = [*made.clients, *made.new_clients]
    pixels = {made.train.image(int(i)).tobytes() for i in np.unique(np.concatenate([c.train for c in holders]))[:400]}
    trained = np.concatenate([client.train for client in holders])
    assert len(np.unique(trained)) == len(trained), "no image belongs to two clients"
    assert made.train.split == "train" and len(made.clients) in (2, 3, 5)
    assert set(made.train.labels[trained].tolist()) <= set(made.base)
    for name, test in {**made.tests, "validation": made.validation}.items():
        assert test.dataset.split == ("validation" if name == "validation" else "test")
        step = max(1, len(test.images) // 300)
        assert not pixels & {test.dataset.image(int(i)).tobytes() for i in test.images[::step]}
        assert [test.classes[column] for column in test.targets] == test.dataset.labels[test.images].tolist()
    for name in ("base", "validation"):
        own = own_images(made, holders, name)
        assert own.any(axis=1).all()
        test = made.tests["base"] if name == "base" else made.validation
        for client, mine in zip(holders, own, strict=True):
            images = test.images[mine]
            assert task in ("global", "natural") or set(test.dataset.labels[images].tolist()) <= set(client.classes)
            assert client.domains is None or set(test.dataset.domains[images].tolist()) <= set(client.domains)
    if made.novel == "classes":
        assert not set(made.tests["novel"].classes) & set(made.train.labels[trained].tolist())
    if made.novel == "domains":
        out = set(made.tests["novel"].dataset.domains[made.tests["novel"].images].tolist())
        assert not out & set(made.train.domains[trained].tolist())
    assert ("novel" in made.tests) == (made.novel != "nothing")


@pytest.mark.parametrize(
    "source",
    [pytest.param("folder", marks=pytest.mark.slow), "table", pytest.param("pictograms", marks=pytest.mark.by_hand)],
)
def test_every_protocol_runs_from_the_command_line(source, on_disk, cache, tmp_path, monkeypatch, backbone):
    monkeypatch.setattr(run_setup, "configured_backbone", lambda *_: backbone)
    for console in (cli.out, cli.err):  # another test may have left its own stream there
        monkeypatch.setattr(console, "_file", None)
    for number, task in enumerate(TASKS):
        changes = prepared(source, task, on_disk)
        if changes is None:
            continue
        changes += ["federation.rounds=1", "federation.local_epochs=1", "federation.path_points=2"]
        options = [part for change in changes for part in ("--set", change)]
        where = ["-o", str(tmp_path / str(number)), "--cache-dir", str(cache), "--workers", "1", "--json"]
        done = CliRunner().invoke(cli.app, ["run", "--method", "fedpgp", *options, *where])
        assert done.exit_code == 0, (task, done.exception)
        shown = json.loads(done.stdout)
        (row,) = shown["rows"]
        assert 0 <= row["local"] <= 100 and ("novel" in row) == (shown["task"]["novel"] != "nothing"), task


def test_natural_clients_are_named_and_tested_on_their_own(on_disk):
    config = load_config(changes=prepared("table", "natural", on_disk))
    made = make_task(config, load_source(config.data), 0)
    assert {client.name for client in made.clients} == set(CLIENTS)
    for client in made.clients:
        for dataset, images in ((made.train, client.train), (made.tests["base"].dataset, client.own["base"])):
            assert {dataset.client_names[i] for i in dataset.clients[images]} == {client.name}


def test_a_target_has_its_own_classes_and_shares_those_of_the_same_name(on_disk):
    config = load_config(changes=prepared("folder", "cross-data-set", on_disk))
    made = make_task(config, with_targets(config, load_source(config.data)), 0)
    assert made.class_names == (*CLASSES, "yak") and made.base == tuple(range(6))
    novel = made.tests["novel"]
    assert [made.class_names[label] for label in novel.classes] == ["bus", "yak"]
    assert {novel.dataset.class_names[label] for label in novel.dataset.labels[novel.images]} == {"bus", "yak"}
    assert len(novel.images) == 8, "all of a target that has no splits"
    bare = load_source(config.data)
    with raises(DataError, where="task.targets", allowed="folder", got=[]):
        cross_data_set(bare, TaskConfig(clients=2, shots=1), 0)
    on_validation = cross_data_set(bare, TaskConfig(clients=2, shots=1, evaluate_on="validation"), 0)
    assert "novel" not in on_validation.tests


def test_in_the_global_protocol_every_client_has_every_test_image():
    made = one_test_set(tiny.source(6), TaskConfig(clients=3, shots=2, partition="iid"), 0)
    assert own_images(made, made.clients, "base").all() and own_images(made, made.clients, "validation").all()
    assert made.name == "global" and made.novel == "nothing"


def test_new_clients_get_a_share_that_no_other_client_has():
    config = TaskConfig(clients=3, new_clients=2, shots=0, partition="iid")
    made = personalization(tiny.source(6, per_domain=(10, 2, 2)), config, 0)
    assert [client.id for client in made.clients] == [0, 1, 2] and [client.id for client in made.new_clients] == [0, 1]
    everything = np.concatenate([client.train for client in (*made.clients, *made.new_clients)])
    assert sorted(everything.tolist()) == list(range(len(made.train)))


def test_every_protocol_and_partition_has_a_config():
    fields = load_config().task.__pydantic_fields__
    assert set(fields["protocol"].annotation.__args__) == set(PROTOCOLS)
    assert set(fields["partition"].annotation.__args__) == {"classes", "own", *PARTITIONS}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (["task.partition=iid", "task.concentration=1.0"], "concentration"),
        (["task.partition=dirichlet", "task.fine_concentration=1.0"], "fine_concentration"),
        (["task.partition=dirichlet", "task.classes_per_client=2"], "classes_per_client"),
        (["task.partition=iid", "task.class_division=authors"], "class_division"),
        (["task.shards_per_client=3"], "shards_per_client"),
    ],
)
def test_a_field_of_another_partition_is_refused(changes, field):
    with raises(ConfigError, where=f"task.{field}", allowed="base-to-novel"):
        make_task(load_config(changes=changes), tiny.source(8), 0)


# ------------------------------------------------------------------------------------------------------------ narrow


def test_a_narrowed_task_is_the_same_task(monkeypatch):
    source = tiny.source(6, per_domain=(40, 2, 2))
    task = personalization(source, TaskConfig(clients=2, new_clients=1, shots=3, partition="iid"), 0)
    assert narrow.narrowed(task) is task, "few images belong to no client"
    monkeypatch.setattr(narrow, "WORTH", 100)
    less = narrow.narrowed(task)
    assert len(less.train) == 18
    for before, after in zip((*task.clients, *task.new_clients), (*less.clients, *less.new_clients), strict=True):
        assert [task.train.number(int(i)) for i in before.train] == [less.train.number(int(i)) for i in after.train]
        assert (task.train.labels[before.train] == less.train.labels[after.train]).all()
    bad = {less.train.fingerprint: np.array([0, 5])}
    kept = narrow.without(source, {less.train.fingerprint: less.train}, bad)
    gone = {less.train.number(0), less.train.number(5)}
    assert set(range(len(source.train))) - {kept.train.number(i) for i in range(len(kept.train))} == gone
    assert kept.test is source.test


# ------------------------------------------------------------------------------------------------------------- show


def test_data_show_prints_who_holds_what_and_draws_it(tmp_path, on_disk, monkeypatch):
    for console in (cli.out, cli.err):  # another test may have left its own stream there
        monkeypatch.setattr(console, "_file", None)
    arguments = ["data", "show", "--data", str(on_disk / "folder"), "--set", "task.protocol=personalization"]
    arguments += ["--set", "task.partition=dirichlet", "--set", "task.clients=3", "--set", "task.shots=0"]
    done = CliRunner().invoke(cli.app, [*arguments, "--json"])
    shown = json.loads(done.stdout)
    assert shown["classes"] == list(CLASSES)
    matrix = np.array(shown["training_images"])
    assert matrix.shape == (6, 3)
    assert matrix.sum(0).tolist() == [row["training images"] for row in shown["clients"]]
    done = CliRunner().invoke(cli.app, [*arguments, "-o", str(tmp_path / "m.svg")])
    assert "partition dirichlet" in done.stdout and "own test images" in done.stdout
    assert b"training images" in (tmp_path / "m.svg").read_bytes()
    refused = CliRunner().invoke(cli.app, [*arguments, "-o", str(tmp_path / "m.txt")])
    assert "must end in .png or .svg" in str(refused.exception)
