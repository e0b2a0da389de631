"""The faults of public code in the table of docs/differences.md, each with a test of its number.

Fault 11 has two halves: the test here is about preprocessing, and tests/data/test_protocols.py tests the Dirichlet
split, which is one draw and cannot loop.
"""

import pkgutil
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import fedpgp
from fedpgp.assets import DIRECTORY
from fedpgp.backbone.layers import Prompt
from fedpgp.backbone.text import TextEncoder
from fedpgp.data.image_features import ImageFeatures
from fedpgp.errors import ConfigError
from fedpgp.evaluation.inference import kind_of
from fedpgp.methods import METHODS, FedPGP, Local, PromptFL, PromptProx
from fedpgp.methods.plugins import find_method
from fedpgp.testing import Recording

SMALL = {"context_length": 3, "learning_rate": 0.05}
OURS = {**SMALL, "bottleneck": 2}  # of FedPGP
SIX = {"classes": tuple((label,) for label in tiny.BASE), "examples": (2, 3, 2, 3, 2, 3)}  # six clients, as to skip one


class Reading:
    """A text encoder that keeps the shape of all that it reads."""

    each = TextEncoder.each

    def __init__(self, encoder):
        self._encoder, self.layers, self.rows, self.shapes = encoder, encoder.layers, encoder.rows, []

    def __call__(self, contexts, tokens, *rest):
        vectors = Prompt.of(contexts).vectors
        self.shapes.append((len(vectors), tuple(tokens.ids.shape), vectors.requires_grad))
        return self._encoder(contexts, tokens, *rest)


class Watching(Recording):
    """Also keeps the shape of all that the text encoder reads."""

    def __init__(self, backbone, method):
        reading = Reading(backbone.text)
        super().__init__(backbone.towers(method.reads)._replace(text=reading))
        self.shapes = reading.shapes


def watched(method, backbone, data=None, **changes):
    """The rounds of a federation, its local trainings, and what the text encoder read."""
    workers = Watching(backbone, method)
    return tiny.run(method, backbone, data, workers=workers, **changes), workers.trained, workers.shapes


def final_bits(rounds):
    return tiny.bits(rounds[-1].shared), [tiny.bits(own) for own in rounds[-1].private]


def test_fault_01_every_module_can_be_imported():
    names = [module.name for module in pkgutil.walk_packages(fedpgp.__path__, "fedpgp.")]
    assert {"fedpgp.methods.fedpgp", "fedpgp.federation.rounds", "fedpgp.cli"} <= set(names)
    for name in names:
        if not name.endswith("__main__"):  # importing that one runs the command
            import_module(name)


def test_fault_02_guidance_is_the_template_not_the_placeholder(backbone):
    """What local training is given as z_C is CLIP's own reading of "a photo of a {class}."."""
    _, trained, _ = watched(FedPGP(**OURS), backbone, rounds=1)
    names = [tiny.NAMES[label].replace("_", " ") for label in tiny.BASE]
    read = {}
    for prompt in ("a photo of a", "X X X"):
        ids = backbone.tokenizer(
            [f"{prompt} {name}." for name in names], return_tensors="pt", padding="max_length", max_length=40
        )["input_ids"]
        with torch.no_grad():
            read[prompt] = torch.nn.functional.normalize(
                backbone.image.model.get_text_features(input_ids=ids).pooler_output, dim=-1
            )
    for job, _ in trained:
        assert torch.allclose(job.frozen.guidance, read["a photo of a"], rtol=0, atol=1e-5)
        assert not torch.allclose(job.frozen.guidance, read["X X X"], atol=1e-2)
    _, trained, _ = watched(FedPGP(**OURS, guidance="placeholder"), backbone, rounds=1)
    assert torch.allclose(trained[0][0].frozen.guidance, read["X X X"], rtol=0, atol=1e-5)


def test_fault_03_a_step_reads_two_short_contexts_and_no_image_twice(backbone, monkeypatch):
    def encode(*_):
        raise AssertionError("the image encoder runs in a round")

    monkeypatch.setattr(type(backbone.image), "encode", encode)
    _, _, shapes = watched(FedPGP(**OURS), backbone, rounds=2, local_epochs=1)
    longest = max(len(backbone.tokenizer(f"{name}.", add_special_tokens=False)["input_ids"]) for name in tiny.NAMES)
    steps = [shape for shape in shapes if shape[2]]
    evaluations = [shape for shape in shapes if not shape[2]]
    assert len(steps) == 2 * 6  # batches of 4 of 6, 5 and 7 images
    assert {count for count, *_ in steps} == {2}  # p_G and p_i; neither U V nor z_C
    assert all(classes == len(tiny.BASE) and tokens <= longest + 1 < 40 - 4 for _, (classes, tokens), _ in steps)
    # p_G and three personal prompts a round, whatever the images
    assert sum(count for count, *_ in evaluations) == 2 * (1 + 3)


@pytest.mark.parametrize("name", METHODS)
def test_fault_04_logits_have_one_column_per_class(name, compact):
    """Local training sees logits [B, C] and labels over all of their columns."""
    method, seen = tiny.small(find_method(name)), []
    data = tiny.data(compact, kind=kind_of(method))
    cls, predict = type(method), type(method).predict

    def look(self, params, text, images, frozen):
        found = predict(self, params, text, images, frozen)
        seen.append((len(images), tuple(found.shape)))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, "predict", look)
        _, trained, _ = watched(method, compact, data, rounds=1, local_epochs=1, batch_size=8)
    assert {shape[1] for _, shape in seen} == {len(tiny.BASE), len(tiny.NOVEL)} | ({2} if method.own_classes else set())
    assert all(shape[0] == images for images, shape in seen)
    for job, _ in trained:
        client = data.task.clients[job.client]
        columns = client.classes if method.own_classes else tiny.BASE
        images = np.concatenate([one.train for one in data.task.clients]) if method.pooled else client.train
        assert [columns[column] for column in job.labels] == data.task.train.labels[images].tolist()
        assert len(job.frozen.guidance) == len(columns) == len(job.classes) - len(method.extra_names)
    trainings = 0 if name == "zero-shot" else 1 if method.pooled else 3
    assert len(trained) == trainings + (3 if method.finetune_epochs else 0)


def test_fault_05_class_order_is_that_of_the_label_file(pictograms):
    """And the labels point into it; test_tasks.py shows the same under five PYTHONHASHSEEDs."""
    lines = (DIRECTORY / "pictograms" / "classes.csv").read_text(encoding="utf-8").splitlines()[1:]
    names = np.array([line.split(",")[0] for line in lines])
    task = tiny.base_to_novel(pictograms, clients=5, classes_per_client=None, shots=1, seed=0)
    assert pictograms.class_names == task.class_names == tuple(names)
    known = [i for i, line in enumerate(lines) if not line.endswith(",unseen")]
    assert [*task.base, *task.tests["novel"].classes] == known
    for test in task.tests.values():
        softmax = names[list(test.classes)]
        assert (softmax[test.targets] == names[test.dataset.labels[test.images]]).all()
    assert list(task.base) == sorted(task.base)


def test_fault_06_the_proximal_term_has_a_gradient(backbone):
    """The second step adds μ (p − p_G), as a hand-written step does; in the first step p is p_G."""
    mu, rate = 3.0, SMALL["learning_rate"]
    settings = {"rounds": 1, "batch_size": 100, "local_epochs": 2, "momentum": 0.0, "weight_decay": 0.0}
    _, plain, _ = watched(PromptFL(**SMALL), backbone, **{**settings, "local_epochs": 1})
    _, twice, _ = watched(PromptFL(**SMALL), backbone, **settings)
    _, held, _ = watched(PromptProx(**SMALL, mu=mu), backbone, **settings)
    for (job, once), (_, free), (_, near) in zip(plain, twice, held, strict=True):
        moved = once.upload.shared["p_G"] - job.params.shared["p_G"]
        pulled = near.upload.shared["p_G"] - free.upload.shared["p_G"]
        assert torch.allclose(pulled, -rate * mu * moved, rtol=1e-3, atol=1e-6)
        assert moved.abs().max() > 1e-4


@pytest.mark.parametrize("method", [Local(**SMALL), FedPGP(**OURS)], ids=lambda m: m.name)
def test_fault_07_local_accumulates_over_rounds_and_skips_no_client(method, backbone):
    data = tiny.data(backbone, **SIX)
    rounds, trained, _ = watched(method, backbone, data, rounds=3, local_epochs=1)
    assert [r.record["participants"] for r in rounds] == [[0, 1, 2, 3, 4, 5]] * 3
    assert [(job.round, job.client) for job, _ in trained] == [(n, c) for n in (1, 2, 3) for c in range(6)]
    for number in (1, 2):
        for (_, before), (job, after) in zip(
            trained[6 * number - 6 : 6 * number], trained[6 * number : 6 * number + 6], strict=True
        ):
            assert tiny.bits(job.params.private) == tiny.bits(before.own.private)
            assert tiny.bits(job.params.shared) == tiny.bits(rounds[number - 1].shared)
            moved = {**after.upload.shared, **after.own.private}
            assert all(not torch.equal(moved[k], v) for k, v in {**job.params.shared, **job.params.private}.items())


def test_fault_08_seed_zero_is_a_seed(backbone):
    zero, again, one = (final_bits(tiny.run(FedPGP(**OURS), backbone, rounds=1, seed=seed)) for seed in (0, 0, 1))
    assert zero == again != one


def test_fault_08_momentum_does_not_leak_from_client_to_client(backbone):
    """What the others train on does not matter to a client that shares nothing; test_federation.py has the rounds."""
    data, once = tiny.data(backbone), {"rounds": 1, "local_epochs": 1}
    (plain,) = tiny.run(Local(**SMALL), backbone, data, **once)
    for client in data.task.clients:
        strange = -data.train.pooled
        strange[torch.from_numpy(client.train)] *= -1
        (among_others,) = tiny.run(Local(**SMALL), backbone, replace(data, train=ImageFeatures(strange)), **once)
        same = [tiny.bits(a) == tiny.bits(b) for a, b in zip(plain.private, among_others.private, strict=True)]
        assert same == [other is client for other in data.task.clients]


def test_fault_09_the_headline_is_the_last_round(backbone):
    """Rounds come in order to the last, whatever their accuracies, and what is trained does not depend on test data."""
    data = tiny.data(backbone)
    found = tiny.run(FedPGP(**OURS), backbone, data, rounds=3, local_epochs=1)
    assert [r.number for r in found] == [r.record["round"] for r in found] == [1, 2, 3]
    other = replace(data, tests={name: ImageFeatures(-images.pooled) for name, images in data.tests.items()})
    again = tiny.run(FedPGP(**OURS), backbone, other, rounds=3, local_epochs=1)
    assert final_bits(again) == final_bits(found)
    assert [r.record["base"] for r in again] != [r.record["base"] for r in found]
    right = tiny.bools(found[-1].evaluation.correct["base"], len(data.task.tests["base"].images))
    assert found[-1].record["base"] == pytest.approx(100 * right.mean())


@pytest.mark.parametrize("evaluate_on", ["test", "validation"])
def test_fault_10_test_images_are_disjoint_from_training_images(evaluate_on):
    """By the bytes of the pictures, every domain included; test_tasks.py does it with the embedded ones."""
    source = tiny.source(12, domains=3, probe=(4, 5))
    task = tiny.base_to_novel(source, clients=2, classes_per_client=None, shots=9, seed=0, evaluate_on=evaluate_on)
    trained = tiny.picture_bytes(task.train, np.concatenate([client.train for client in task.clients]))
    assert len(trained) == 9 * len(task.base)  # all there are
    for test in [*task.tests.values(), task.validation]:
        assert test.dataset.split != task.train.split
        assert not trained & tiny.picture_bytes(test.dataset, test.images)


def test_fault_11_images_are_resized_before_they_are_normalised(backbone):
    """A larger picture, bicubic in 8 bits to the checkpoint's size, then (x/255 − mean)/deviation of each channel."""
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    processor = backbone.image.processor
    small = np.asarray(Image.fromarray(noise).resize((48, 48), Image.Resampling.BICUBIC)) / 255
    expected = (small - processor.image_mean) / processor.image_std
    found = processor(images=[Image.fromarray(noise)], return_tensors="pt")["pixel_values"][0]
    assert np.allclose(found.permute(1, 2, 0).numpy(), expected, rtol=0, atol=1e-5)
    with torch.no_grad():
        pixels = torch.tensor(expected, dtype=torch.float32).permute(2, 0, 1)[None]
        features = backbone.image.model.get_image_features(pixel_values=pixels).pooler_output[0]
    assert torch.allclose(backbone.image([Image.fromarray(noise)])[0], features / features.norm(), rtol=0, atol=1e-5)


def test_fault_12_private_parts_survive_the_round(backbone):
    """They are what each client left, they differ, they go into its predictions, and training continues from them."""
    found, trained, _ = watched(FedPGP(**OURS), backbone, rounds=2)
    for job, update in trained:
        assert tiny.bits(found[job.round - 1].private[job.client]) == tiny.bits(update.own.private)
        if job.round == 2:
            assert tiny.bits(job.params.private) == tiny.bits(found[0].private[job.client])
    assert len({tuple(tiny.bits(own).values()) for r in found for own in r.private}) == 6


def test_fault_12_hyperparameters_are_read(backbone):
    once = {"rounds": 1, "local_epochs": 1}
    plain = final_bits(tiny.run(FedPGP(**OURS), backbone, **once))
    for change in ({"mu": 1.0}, {"tau": 1.0}, {"bottleneck": 3}, {"private_learning_rate": 0.5}):
        assert final_bits(tiny.run(FedPGP(**OURS | change), backbone, **once)) != plain, change


def test_fault_12_an_unknown_method_trains_nothing():
    with pytest.raises(ConfigError, match=r"got 'fedpgpp'.*'fedpgp'"):
        find_method("fedpgpp")
    for name, cls in METHODS.items():
        assert find_method(name) is cls and cls.name == name
