"""Uses of a finished run: classification of images, and exports."""

import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cards import code_of, run_card
from commands import refused
from PIL import Image
from raising import raises

import fedpgp
from fedpgp.backbone.load import configured_backbone
from fedpgp.errors import CheckpointError, ConfigError, DataError, OutputError
from fedpgp.evaluation.metrics import calibration_error
from fedpgp.runs.execution import Execution
from fedpgp.runs.setup import open_setup
from fedpgp.serving.classifier import Classifier, calibrated, load
from fedpgp.serving.export import export
from fedpgp.serving.memory import with_images

# One method of each kind: shared only, kept, received, deep and visual prompts, memory, image adapter, network.
KINDS = (
    "fedpgp",
    "prompt-per",
    "prompt-amp",
    "pfedmoap",
    "fedpromptsrc",
    "fedmaple",
    "pfedprompt",
    "fedclip",
    "fedtpg",
)
SHORT = ["task.clients=3", "task.shots=2", "federation.rounds=1", "federation.local_epochs=1"]


@pytest.fixture(scope="module", autouse=True)
def small(small_source, compact):
    """Use the small part of the data, and the compact checkpoint, for runs and models of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedpgp.runs.tasks.load_source", lambda data, splits: small_source)
        for module in ("runs.setup", "serving.classifier"):
            patch.setattr(f"fedpgp.{module}.configured_backbone", lambda *_: compact)
        yield


@pytest.fixture(scope="module")
def pictures(pictograms, tmp_path_factory):
    directory = tmp_path_factory.mktemp("pictures")
    for i in range(3):
        pictograms.test.image(i * 7).save(directory / f"{i}.png")
    return directory


@pytest.fixture(scope="module")
def runs(small, cache, tmp_path_factory):
    """A run of each kind, and a run with a mixture of prompts, by name of the method."""
    directory = tmp_path_factory.mktemp("runs") / "out"
    fedpgp.compare([*KINDS, "promptfolio"], changes=SHORT, output=directory, cache=cache)
    return {name: directory / name / "seed-0" for name in (*KINDS, "promptfolio")}


@pytest.fixture
def run(runs):
    return runs["fedpgp"]


@pytest.mark.parametrize("name", KINDS)
def test_a_loaded_model_answers_as_it_did_in_the_run(runs, cache, name):
    run = fedpgp.load_run(runs[name])
    with open_setup(run.config, [name], [0], Execution(cache=cache)) as setup:
        task, tests = setup.tasks[0], setup.data(run.config.methods[name], 0).tests
    for client in (0, len(task.clients) - 1):
        (model,) = with_images([load(run, client)], run, cache, None)
        for kind in ("base", "novel"):
            test = task.tests[kind]
            names = [test.dataset.class_names[label] for label in test.classes]
            right = model.answer(tests[kind], model.read(names)).argmax(-1).numpy() == test.targets
            assert np.array_equal(right, run.outcomes.unpack(kind)[client])
    if run.results["shared"] is None:
        with raises(ConfigError, where="client", problem=name, remedy="--client 0"):
            load(run)
    else:
        model = load(run)
        right = model.answer(tests["base"], model.read()).argmax(-1).numpy() == task.tests["base"].targets
        assert 100 * right.mean() == pytest.approx(run.results["shared"]["base"])


def test_any_class_names_are_accepted(run, pictures, tmp_path):
    model = load(run, 1)
    (known,) = model.classify(pictures / "0.png")
    assert set(known) == set(model.base)
    assert sum(known.values()) == pytest.approx(1)
    assert list(known.values()) == sorted(known.values(), reverse=True)
    new = model.classify([pictures / "0.png", Image.open(pictures / "1.png")], ["zebra", "red panda", "<b>x</b>"])
    assert [set(one) for one in new] == [{"zebra", "red panda", "<b>x</b>"}] * 2
    content, opened = (pictures / "0.png").read_bytes(), Image.open(pictures / "0.png")
    assert model.classify(content) == model.classify([opened]) == model.classify(np.asarray(opened)) == [known]
    for wrong, got in (([3], "int"), (opened.tobytes, "method")):
        with raises(DataError, where="image 0", got=got):
            model.classify(wrong)
    with raises(DataError, where="image 1", problem="float64"):
        model.classify([content, np.zeros((4, 4))])
    with raises(ConfigError, where="classes", got="caf\udce9") as caught:
        model.classify(content, ["caf\udce9", "tea"])
    str(caught.value).encode()
    for names, fields in (
        ([], {"allowed": "at least two class names", "got": []}),
        (["zebra"], {"allowed": "at least two class names", "got": ["zebra"]}),
        (["cat", "Cat"], {"allowed": "different", "got": ["cat", "Cat"]}),
        (["!"], {"allowed": "letter", "got": "!"}),
    ):
        with raises(ConfigError, where="classes", **fields):
            model.classify(pictures / "0.png", names)
    with raises(DataError, where="no.png"):
        model.classify(pictures / "no.png")
    (tmp_path / "cut.png").write_bytes((pictures / "0.png").read_bytes()[:80])
    with raises(DataError, where="cut.png", remedy="Leave it out"):
        model.classify([pictures / "0.png", str(tmp_path / "cut.png")])


@pytest.mark.slow
def test_ten_thousand_class_names_are_accepted(run, pictures):
    (many,) = load(run, 1).classify(pictures / "0.png", [f"thing number {i}" for i in range(10_000)])
    assert len(many) == 10_000


def test_a_model_that_does_not_exist_is_refused(run):
    with raises(ConfigError, where="client", allowed="0 to 2", got=3):
        load(run, 3)
    with pytest.raises(OutputError, match=str(run.parent)):
        load(run.parent)
    found = fedpgp.load_run(run)
    object.__setattr__(found, "provenance", {**found.provenance, "checkpoint": "another"})
    with raises(CheckpointError, where="pictoclip", problem="SHA-256", remedy="--checkpoint"):
        load(found)


def test_the_temperature_is_the_one_that_makes_logits_likeliest(run, cache):
    model = load(run, 0)
    rng = torch.Generator().manual_seed(3)
    logits = 8 * torch.randn(400, 5, generator=rng)
    targets = torch.multinomial((logits / 2.5).softmax(-1), 1, generator=rng)[:, 0]
    tried = torch.logspace(-1, 1, 2001)
    losses = [torch.nn.functional.cross_entropy(logits / t, targets) for t in tried]
    assert calibrated(model, logits, targets).temperature == pytest.approx(float(tried[np.argmin(losses)]), rel=2e-3)
    (found,) = with_images([model], fedpgp.load_run(run), cache, None, calibrate=True)
    assert 1e-3 < found.temperature < 1e3
    assert found.temperature != 1.0


def test_the_calibration_error_is_that_of_a_naive_loop():
    rng = np.random.default_rng(0)
    confidence = np.concatenate([rng.uniform(size=300), [1.0, 1 / 15, 0.0]])
    correct = rng.uniform(size=303) < confidence**2
    expected = 0.0
    for k in range(15):
        inside = [
            (c, r) for c, r in zip(confidence, correct, strict=True) if k / 15 < c <= (k + 1) / 15 or (k == c == 0)
        ]
        if inside:
            gap = np.mean([r for _, r in inside]) - np.mean([c for c, _ in inside])
            expected += len(inside) / 303 * abs(gap)
    assert calibration_error(confidence, correct) == pytest.approx(100 * expected)


def test_predict_reads_files_directories_patterns_and_standard_input(run, pictures, command, monkeypatch):
    model = load(run, 1)

    def predicted(images):
        done = command("predict", str(run), str(images), "--client", "1", "--format", "json", "--quiet")
        assert done.code == 0, done.err
        return json.loads(done.out)["images"]

    told = command("predict", str(run), str(pictures)).err
    assert "6 classes that the run was trained on" in told and "--classes" in told
    assert "trained on" not in command("predict", str(run), str(pictures), "--classes", "zebra,red panda").err
    whole = predicted(pictures)
    assert [Path(row["image"]).name for row in whole] == ["0.png", "1.png", "2.png"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(str(pictures / f"{i}.png") for i in range(3))))
    assert predicted(pictures / "*.png") == predicted("-") == whole
    (one,) = model.classify(pictures / "2.png")
    assert {name: pytest.approx(p, abs=1e-6) for name, p in one.items()} == whole[2]["probabilities"]
    for name in ("._a.png", "__MACOSX/a.png", ".ipynb_checkpoints/0-checkpoint.png", "@eaDir/0.png", "desktop.ini"):
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        Path("photos", name).write_bytes(b"no image")
    shutil.copy(pictures / "0.png", os.fsencode("photos/") + b"caf\xe9[1].png")
    for images in ("photos", "photos/**/*.png"):
        assert [row["image"] for row in predicted(images)] == ["photos/caf\\xe9[1].png"]
    monkeypatch.setattr("sys.stdin", io.StringIO("photos/*.png\n"))
    refused(command("predict", str(run), "-"), r"photos/*.png")
    found = command("predict", str(run), "photos", "--quiet", "--format", "csv", "-o", "found.csv")
    assert found.code == 0 and "caf\\xe9[1].png" in Path("found.csv").read_text()
    assert "caf\\xe9[1].png" in command("predict", str(run), "photos", "--quiet").out
    Path("names.txt").write_text("red panda\nzebra\n")
    arguments = ["predict", str(run), str(pictures), "--quiet", "--classes"]
    command(*arguments, "names.txt", "--format", "csv", "-o", "found.csv")
    rows = list(csv.DictReader(Path("found.csv").read_text().splitlines()))
    assert [row["class"] in ("red panda", "zebra") for row in rows] == [True] * 3
    assert "red panda" in command(*arguments, "zebra,red panda", "--top", "2").out


@pytest.mark.parametrize("top", [1, 2, 9])
def test_csv_and_json_have_as_many_classes_as_top(run, pictures, command, top):
    Path("broken.png").write_bytes(b"")
    arguments = ("predict", str(run), str(pictures / "0.png"), "broken.png", "--quiet", "--classes", "a,b,c")
    every = json.loads(command(*arguments, "--format", "json").out)["images"][0]["probabilities"]
    best = sorted(every.items(), key=lambda pair: -pair[1])[:top]
    asked = (*arguments, "--top", str(top), "--format")
    assert list(json.loads(command(*asked, "json").out)["images"][0]["probabilities"].items()) == best
    row, broken = csv.DictReader(command(*asked, "csv").out.splitlines())
    assert row.pop("image") == str(pictures / "0.png") and row.pop("error") == "" and broken["error"]
    assert list(row) == [f"{what}_{i}" for i in range(1, len(best) + 1) for what in ("class", "probability")]
    assert list(row.values()) == [str(cell) for pair in best for cell in pair]
    assert [broken[name] for name in row] == [""] * len(row)
    assert ("class 3" in command(*asked, "table").out) == (top == 9)


def test_broken_images_among_good_ones_are_named(run, pictures, command):
    good = (pictures / "0.png").read_bytes()
    for name, content in (("a.png", good), ("b.png", good[:80]), ("c.jpg", b""), ("d.png", b"<script>")):
        Path(name).write_bytes(content)
    done = command("predict", str(run), "a.png", "b.png", "c.jpg", "d.png", "--format", "json", "--quiet")
    assert done.code == 2
    assert "3 of 4 images" in done.err
    first, *others = json.loads(done.out)["images"]
    assert first["probabilities"]
    assert all("error" in row and "probabilities" not in row for row in others)
    Path("empty").mkdir()
    for argument, says in (
        ("no.png", "no.png is not"), ("*.gif", "*.gif is not"), ("empty", "empty contains no image")
    ):  # fmt: skip
        refused(command("predict", str(run), argument), says)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["safetensors", "clip-head", "onnx", "hf"])
def test_what_is_exported_gives_the_same_without_fedpgp(run, pictures, tmp_path, form, command):
    directory = tmp_path / "exported"
    assert command("export", str(run), "--client", "1", "--format", form, "-o", "exported").code == 0
    assert len(code_of(directory).splitlines()) <= 16
    printed = run_card(directory, pictures / "1.png")
    model = load(run, 1)
    names = model.base if form in ("clip-head", "onnx") else model.base[:3]
    (expected,) = model.classify(pictures / "1.png", names)
    found = printed if form in ("clip-head", "onnx") else dict(zip(names, printed[0], strict=True))
    assert found == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize(("position", "place"), [("middle", 19), ("front", 0)])
def test_other_positions_of_the_class_name_are_exported(position, place, cache, tmp_path):
    changes = [*SHORT, "task.clients=1", f"promptfl.class_token_position={position}"]
    run = fedpgp.run("promptfl", 0, changes=changes, cache=cache)
    template = json.loads((export(run, tmp_path / "hf", "hf") / "prompt.json").read_text())
    assert template["hypothesis_template"].index("{}") == place


def test_exports_that_are_not_possible_are_refused(run, runs, tmp_path):
    with raises(ConfigError, where="method fedclip", remedy="fedpgp predict"):
        export(runs["fedclip"], tmp_path / "no", "clip-head", client=0)
    mixed = runs["promptfolio"]
    with raises(ConfigError, where="format", remedy="--format clip-head"):
        export(mixed, tmp_path / "no", client=0)
    assert export(mixed, tmp_path / "head", "clip-head", client=0, classes=["cat", "dog"]).is_dir()
    with pytest.raises(OutputError, match="--force"):
        export(mixed, tmp_path / "head", "clip-head", client=0)
    export(mixed, tmp_path / "head", "clip-head", client=1, force=True)
    with raises(ConfigError, where="client", remedy="--client"):
        export(runs["pfedprompt"], tmp_path / "no", "clip-head", client=0)
    with raises(ConfigError, where="classes", problem="the format hf"):
        export(run, tmp_path / "no", "hf", classes=["cat"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(OutputError, match=str(tmp_path / "mine")):
        export(run, tmp_path / "mine", force=True)
    assert not (tmp_path / "no").exists()


def test_a_checkpoint_that_the_hub_has_is_named_and_not_copied(run, tmp_path):
    found = fedpgp.load_run(run)
    config = found.config
    object.__setattr__(config.backbone, "checkpoint", "openai/clip-vit-base-patch16")
    directory = export(found, tmp_path / "named")
    assert sorted(p.name for p in directory.iterdir()) == ["README.md", "prompt.safetensors", "read_image.py"]
    assert 'from_pretrained("openai/clip-vit-base-patch16")' in (directory / "README.md").read_text()


def test_what_clients_answered_is_kept_and_agrees_with_what_they_got_right(run, cache):
    run = fedpgp.load_run(run)
    model = load(run, 2)
    with open_setup(run.config, ["fedpgp"], [0], Execution(cache=cache)) as setup:
        task, tests = setup.tasks[0], setup.data(run.config.methods["fedpgp"], 0).tests
    errors = []
    for name in ("base", "novel"):
        predicted, labels = run.answers[f"{name}/predicted"], run.answers[f"{name}/labels"]
        assert np.array_equal((predicted == labels).numpy(), run.outcomes.unpack(name))
        names = run.results["task"][f"{name}_names"]
        sure, said = model.probabilities(model.answer(tests[name], model.read(names))).max(-1)
        assert torch.equal(said.to(torch.int16), predicted[2])
        assert torch.allclose(sure, run.answers[f"{name}/confidence"][2].double(), atol=1e-3)
        images = run.answers[f"{name}/images"].tolist()
        truth = [task.tests[name].dataset.class_names[label] for label in task.tests[name].dataset.labels]
        at = {task.tests[name].dataset.number(i): truth[i] for i in range(len(truth))}
        assert [at[i] for i in images] == [names[label] for label in labels.tolist()]
        errors.append(
            np.mean([calibration_error(s.numpy(), (p == labels).numpy())
                     for s, p in zip(run.answers[f"{name}/confidence"], predicted, strict=True)])
        )  # fmt: skip
    found = run.results["calibration_error"]
    assert [found["base"], found["novel"]] == pytest.approx(errors)
    assert 0 < found["local"] < 100


def test_predict_writes_answers_as_they_come(run, pictures, command, monkeypatch):
    """With many class names, the probabilities of all images together do not fit in memory."""
    alive: list[int] = []

    class Counted(dict):
        def __init__(self, *of):
            super().__init__(*of)
            alive.append(1)

        def __del__(self):
            alive.pop()

    most = []
    stream = Classifier.stream

    def counted(self, images, classes, workers=1):
        for answer in stream(self, list(images), classes, workers):
            yield answer._replace(probabilities=Counted(answer.probabilities))
            most.append(len(alive))

    monkeypatch.setattr(Classifier, "stream", counted)
    several = [str(pictures / f"{i % 3}.png") for i in range(20)]
    for form in ("json", "csv", "table"):
        most.clear()
        ended = command("predict", str(run), *several, "--format", form, "--quiet")
        assert ended.code == 0 and len(most) == 20 and max(most) <= 2
    command("predict", str(run), *several[:2], "--format", "json", "--quiet", "-o", "found.json")
    content = json.loads(Path("found.json").read_text())
    assert Path("found.json").read_text() == json.dumps(content, indent=2) + "\n" and len(content["images"]) == 2
    assert not list(Path().glob(".*partial"))


def test_predict_reads_a_checkpoint_that_was_moved(run, pictures, command, compact_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("fedpgp.serving.classifier.configured_backbone", configured_backbone)
    moved = shutil.copytree(compact_checkpoint, tmp_path / "elsewhere")
    gone = shutil.copytree(run, tmp_path / "run")
    config = (gone / "config.toml").read_text().replace('checkpoint = "pictoclip"', 'checkpoint = "./gone"')
    (gone / "config.toml").write_text(config)
    refused(command("predict", "run", str(pictures / "0.png")), "checkpoint", "'./gone'", "--checkpoint")
    refused(command("predict", "run", str(pictures / "0.png"), "--checkpoint", "pictoclip"), "pictoclip", "SHA-256")
    ended = command("predict", "run", str(pictures / "0.png"), "--checkpoint", str(moved), "--format", "json")
    (answer,) = json.loads(ended.out)["images"]
    (expected,) = load(gone, checkpoint=str(moved)).classify(pictures / "0.png")
    assert answer["probabilities"] == pytest.approx(expected)
