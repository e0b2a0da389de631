"""Clients that join after training, and tasks without novel classes, from training to tables."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from PIL import Image

import fedpgp
from fedpgp.data.tasks import Client
from fedpgp.evaluation.metrics import own_images
from fedpgp.federation.client_runner import frozen_of
from fedpgp.methods import METHODS
from fedpgp.results.run import columns
from fedpgp.runs import setup as run_setup
from fedpgp.runtime.randomness import generator

SHORT = [
    "task.clients=3",
    "task.shots=4",
    "federation.rounds=2",
    "federation.local_epochs=1",
    "federation.path_points=3",
]
NOTHING_NOVEL = [*SHORT, "task.protocol=personalization", "task.partition=dirichlet"]


def with_newcomer(exact):
    """Return the tiny data with one of its three clients as a new client."""
    whole = tiny.data(exact)
    *early, late = whole.task.clients
    return replace(whole, task=replace(whole.task, clients=tuple(early), new_clients=(replace(late, id=0),)))


def test_a_new_client_fits_its_private_part_and_nothing_else(exact, new_state):
    """Against steps written out: all of its images in a batch, one epoch, plain SGD on U and V."""
    method = tiny.small(METHODS["fedpgp"], private_learning_rate=0.3)
    data = with_newcomer(exact)
    settings = {"join_epochs": 1, "batch_size": 32, "momentum": 0.0, "weight_decay": 0.0}
    state = new_state()
    rounds = tiny.run(method, exact, data, state=state, **settings)
    (found,) = rounds[-1].record["new_clients"]
    assert rounds[-1].record["new"] == found["local"] and "new_clients" not in rounds[0].record

    task, frozen = data.task, frozen_of(method, data.task, exact)
    newcomer, base = task.new_clients[0], list(task.base)
    p_G = rounds[-1].shared["p_G"]
    first = method.init_private(task, exact, generator(0, "private"), 0)  # the same for every client
    U, V = (first[name].clone().requires_grad_() for name in ("U", "V"))
    tokens = exact.class_tokens(task.class_names)

    def features(context, classes):
        return exact.text(context[None], tokens.select(classes))[0]

    z_i, z_G, z_C = features(p_G + U @ V, base), features(p_G, base), frozen.guidance[base]
    images = data.train.pooled[torch.from_numpy(newcomer.train)]
    labels = torch.tensor([base.index(label) for label in task.train.labels[newcomer.train].tolist()])
    scale = exact.logit_scale.exp()
    to_C, to_i = ((z_G * other).sum(-1) / method.tau for other in (z_C, z_i))
    contrast = -(to_C - torch.logaddexp(to_C, to_i)).mean()
    (F.cross_entropy(scale * images @ z_i.T, labels) + method.mu * contrast).backward()
    with torch.no_grad():
        context = p_G + (U - 0.3 * U.grad) @ (V - 0.3 * V.grad)
        for name, classes in (("base", base), ("novel", list(task.tests["novel"].classes))):
            answers = (data.tests[name].pooled @ features(context, classes).T).argmax(-1).numpy()
            right = answers == task.tests[name].targets
            assert found[name] == pytest.approx(100 * right.mean())


def test_new_clients_change_nothing_of_the_run(exact):
    method, data = tiny.small(METHODS["fedpgp"]), with_newcomer(exact)
    alone = replace(data, task=replace(data.task, new_clients=()))
    with_one, without = (tiny.run(method, exact, given) for given in (data, alone))
    for one, other in zip(with_one, without, strict=True):
        assert tiny.bits(one.shared) == tiny.bits(other.shared)
        assert one.record["local"] == other.record["local"]


@pytest.mark.parametrize("name", ["promptfl", "local", "zero-shot", "prompt-amp"])
def test_other_methods_take_new_clients_too(exact, name):
    rounds = tiny.run(tiny.small(METHODS[name]), exact, with_newcomer(exact), join_epochs=2)
    (found,) = rounds[-1].record["new_clients"]
    assert set(found) == {"local", "base", "novel"}
    if name in ("promptfl", "zero-shot"):  # without a private part a newcomer is the shared part
        assert found["base"] == rounds[-1].record["shared"]["base"]


@pytest.mark.usefixtures("small")
class TestNothingNovel:
    def test_from_training_to_tables(self, cache, tmp_path):
        found = fedpgp.compare(
            ["promptfl", "fedpgp"], seeds=2, changes=[*NOTHING_NOVEL, "task.new_clients=1"], cache=cache,
            output=tmp_path / "out",
        )  # fmt: skip
        run = found.of("fedpgp")[0]
        assert columns(run) == ["local", "base", "new", "hm", "cm", "area"]
        final = run.results["final"]
        assert final["cm"] == pytest.approx((final["local"] + final["base"]) / 2)
        assert final["hm"] == pytest.approx(2 / (1 / final["local"] + 1 / final["base"]))
        assert final["new"] == pytest.approx(np.mean([c["local"] for c in run.results["new_clients"]]))
        assert run.resampled["cm"][0] == pytest.approx(final["cm"])
        assert "novel" not in run.resampled and set(found.against("fedpgp", "promptfl")) == set(run.resampled)
        again = fedpgp.load_comparison(tmp_path / "out")
        assert again.of("fedpgp")[0].results == run.results
        table = (tmp_path / "out" / "comparison.md").read_text()
        assert "| method | Local | Base | New clients | HM | CM | area |" in table
        assert "3 clients (dirichlet)" in table and "ranks in Local and Base" in table


def test_domains_have_figures_of_their_own(cache, tmp_path, monkeypatch, backbone):
    monkeypatch.setattr(run_setup, "configured_backbone", lambda *_: backbone)
    for domain in ("photo", "sketch"):
        for shade, label in enumerate(("ant", "bus", "cat")):
            for number in range(8):
                file = tmp_path / "set" / domain / label / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (80 * shade, 10 * number, len(domain))).save(file)
    changes = [*NOTHING_NOVEL, "task.shots=0", "task.clients=4", "task.domain_per_client=true"]
    run = fedpgp.run("promptfl", changes=[*changes, f"data.source={tmp_path / 'set'}"], cache=cache)
    assert list(run.results["domains"]) == ["photo", "sketch"]
    for domain, figure in run.results["domains"].items():
        of_clients = [client["local"] for client in run.results["clients"] if client["domains"] == [domain]]
        assert len(of_clients) == 2 and figure == pytest.approx(np.mean(of_clients))


def test_a_client_has_the_test_images_that_it_is_given():
    task = tiny.task()
    images = task.tests["base"].images[[0, 4]]
    own = {"base": images, "validation": task.validation.images[:1]}
    clients = [Client(0, task.clients[0].classes, task.clients[0].train, own=own)]
    (mine,) = own_images(task, clients, "base")
    assert task.tests["base"].images[mine].tolist() == images.tolist()
    assert own_images(task, clients, "validation").sum() == 1
