"""What a finished run is used for: classifying images, and files that others use."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SHORT_RUN
from typer.testing import CliRunner

import fedpgp
from fedpgp import cli
from fedpgp.backbone import load_backbone
from fedpgp.errors import CheckpointError, ConfigError, DataError, FedPGPError, OutputError
from fedpgp.laboratory import laboratory
from fedpgp.metrics import calibration_error
from fedpgp.serving.classifier import calibrated, load
from fedpgp.serving.export import export
from fedpgp.serving.memory import remembers, with_memory, with_temperature

# One of each kind: shared alone, kept, received, deep and visual prompts, a memory, an image adapter, a network.
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


@pytest.fixture(autouse=True)
def own_streams(monkeypatch):
    for console in (cli.out, cli.err):  # another test may have left its own stream there
        monkeypatch.setattr(console, "_file", None)


@pytest.fixture(scope="module")
def pictures(pictograms, tmp_path_factory):
    directory = tmp_path_factory.mktemp("pictures")
    for i in range(3):
        pictograms.test.image(i * 7).save(directory / f"{i}.png")
    return directory


@pytest.fixture
def run(small, cache, tmp_path):
    fedpgp.run("fedpgp", 0, changes=SHORT_RUN, output=tmp_path / "run", cache=cache)
    return tmp_path / "run"


@pytest.mark.parametrize("name", KINDS)
def test_a_loaded_model_answers_as_it_did_in_the_run(small, cache, tmp_path, name):
    run = fedpgp.run(name, 0, changes=SHORT_RUN, output=tmp_path / "run", cache=cache)
    with laboratory(run.config, [name], [0], 1, cache, False, None) as lab:
        task, tests = lab.tasks[0], lab.data(run.config.methods[name], 0).tests
    for client in (0, len(task.clients) - 1):
        model = load(tmp_path / "run", client)
        if remembers(model.method):
            model = with_memory(model, run, cache, None)
        for kind, test in task.tests.items():
            if kind not in ("base", "novel"):
                continue
            names = [test.dataset.class_names[label] for label in test.classes]
            right = model.answer(tests[kind], model.read(names)).argmax(-1).numpy() == test.targets
            assert np.array_equal(right, run.outcomes.unpack(kind)[client])
    if run.results["shared"] is None:
        with pytest.raises(ConfigError, match=f"the shared part of {name} predicts nothing by itself: name a client"):
            load(run)
    else:
        model = load(run)
        right = model.answer(tests["base"], model.read()).argmax(-1).numpy() == task.tests["base"].targets
        assert 100 * right.mean() == pytest.approx(run.results["shared"]["base"])


def test_any_class_names_will_do(run, pictures):
    model = load(run, 1)
    (known,) = model.classify(pictures / "0.png")
    assert set(known) == set(model.base)
    assert sum(known.values()) == pytest.approx(1)
    assert list(known.values()) == sorted(known.values(), reverse=True)
    new = model.classify([pictures / "0.png", Image.open(pictures / "1.png")], ["zebra", "red panda", "<b>x</b>"])
    assert [set(one) for one in new] == [{"zebra", "red panda", "<b>x</b>"}] * 2
    for names, message in (
        ([], "at least two, got none"),
        (["zebra"], "at least two, as one cannot be told from nothing, got 'zebra'"),
        (["cat", "Cat"], "must differ, got twice: 'Cat'"),
        (["!"], "letter"),
    ):
        with pytest.raises(ConfigError, match=message):
            model.classify(pictures / "0.png", names)
    with pytest.raises(DataError, match=r"no\.png does not exist") as missing:
        model.classify(pictures / "no.png")
    assert missing.value.__suppress_context__


@pytest.mark.slow
def test_ten_thousand_class_names_will_do(run, pictures):
    (many,) = load(run, 1).classify(pictures / "0.png", [f"thing number {i}" for i in range(10_000)])
    assert len(many) == 10_000


def test_a_model_that_is_not_there_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="client must be 0 to 2, as this run has 3 clients, got 3"):
        load(run, 3)
    with pytest.raises(OutputError, match="is not a run; those in it"):
        load(tmp_path)
    found = fedpgp.load_run(run)
    older = {**found.results, "task": {k: v for k, v in found.results["task"].items() if k != "base_names"}}
    object.__setattr__(found, "results", older)
    with pytest.raises(OutputError, match="written by an earlier fedpgp"):
        load(found)
    found = fedpgp.load_run(run)
    object.__setattr__(found, "provenance", {**found.provenance, "checkpoint": "another"})
    with pytest.raises(CheckpointError, match="is not the one that fedpgp was trained with"):
        load(found)


def test_the_temperature_is_the_one_that_makes_logits_likeliest(run, cache):
    model = load(run, 0)
    rng = torch.Generator().manual_seed(3)
    logits = 8 * torch.randn(400, 5, generator=rng)
    targets = torch.multinomial((logits / 2.5).softmax(-1), 1, generator=rng)[:, 0]
    tried = torch.logspace(-1, 1, 2001)
    losses = [torch.nn.functional.cross_entropy(logits / t, targets) for t in tried]
    assert calibrated(model, logits, targets).temperature == pytest.approx(float(tried[np.argmin(losses)]), rel=2e-3)
    found = with_temperature(model, fedpgp.load_run(run), cache, None)
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


def invoke(*arguments, stdin=None):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], input=stdin)


def test_predict_reads_files_directories_patterns_and_standard_input(run, pictures, tmp_path):
    done = invoke("predict", run, pictures, "--client", 1, "--format", "json", "--quiet")
    assert done.exit_code == 0, done.output
    whole = json.loads(done.stdout)["images"]
    assert [Path(row["image"]).name for row in whole] == ["0.png", "1.png", "2.png"]
    pattern = invoke("predict", run, pictures / "*.png", "--client", 1, "--format", "json", "--quiet")
    listed = "\n".join(str(pictures / f"{i}.png") for i in range(3))
    given = invoke("predict", run, "-", "--client", 1, "--format", "json", "--quiet", stdin=listed)
    assert json.loads(pattern.stdout) == json.loads(given.stdout) == json.loads(done.stdout)
    one = load(run, 1).classify(pictures / "2.png")[0]
    assert {name: pytest.approx(p, abs=1e-6) for name, p in one.items()} == whole[2]["probabilities"]
    target = tmp_path / "found.csv"
    names = tmp_path / "names.txt"
    names.write_text("red panda\nzebra\n")
    invoke("predict", run, pictures, "--classes", names, "--format", "csv", "-o", target, "--quiet")
    rows = list(csv.DictReader(target.read_text().splitlines()))
    assert [row["class"] in ("red panda", "zebra") for row in rows] == [True] * 3
    table = invoke("predict", run, pictures, "--classes", "zebra,red panda", "--top", "2", "--quiet")
    assert "red panda" in table.stdout


def test_broken_images_among_good_ones_are_named(run, pictures, tmp_path):
    good = (pictures / "0.png").read_bytes()
    (tmp_path / "a.png").write_bytes(good)
    (tmp_path / "b.png").write_bytes(good[:80])
    (tmp_path / "c.jpg").write_bytes(b"")
    (tmp_path / "d.png").write_text("<script>")
    done = invoke("predict", run, tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.jpg", tmp_path / "d.png",
                  "--format", "json", "--quiet")  # fmt: skip
    assert isinstance(done.exception, FedPGPError)
    assert "3 of 4 images were left out" in str(done.exception)
    first, *others = json.loads(done.stdout)["images"]
    assert first["probabilities"]
    assert all("error" in row and "probabilities" not in row for row in others)
    for argument in (tmp_path / "no.png", tmp_path / "*.gif"):
        assert invoke("predict", run, argument).exit_code == 2
    (tmp_path / "empty").mkdir()
    refused = invoke("predict", run, tmp_path / "empty")  # in a box, whose lines break where a path is long
    assert refused.exit_code == 2
    assert "holds no image" in " ".join(refused.output.replace("│", " ").split())


SNIPPET = """
import sys
sys.modules["fedpgp"] = None
exec(open("snippet.py", encoding="utf-8").read())
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["safetensors", "clip-head", "onnx", "hf"])
def test_what_is_exported_gives_the_same_without_fedpgp(run, pictures, tmp_path, form):
    directory = tmp_path / "exported"
    done = invoke("export", run, "--client", 1, "--format", form, "-o", directory)
    assert done.exit_code == 0, done.output
    card = (directory / "README.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(snippet.splitlines()) <= 14
    (directory / "snippet.py").write_text(snippet, encoding="utf-8")
    (directory / "image.png").write_bytes((pictures / "1.png").read_bytes())
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    printed = subprocess.run(
        [sys.executable, "-c", SNIPPET], cwd=directory, capture_output=True, text=True, env=environment, timeout=120
    )
    assert printed.returncode == 0, printed.stderr
    model = load(run, 1)
    names = model.base if form in ("clip-head", "onnx") else model.base[:3]
    (expected,) = model.classify(pictures / "1.png", names)
    numbers = [float(n) for n in re.findall(r"\d\.\d+(?:e-\d+)?", printed.stdout)]
    assert sorted(numbers, reverse=True) == pytest.approx(list(expected.values()), abs=2e-4)


def test_a_tail_and_a_place_of_the_class_name_are_exported_too(small, cache, tmp_path):
    for position in ("middle", "front"):
        changes = [*SHORT_RUN, f"promptfl.class_token_position={position}"]
        run = fedpgp.run("promptfl", 0, changes=changes, cache=cache, output=tmp_path / position)
        template = json.loads((export(run, tmp_path / f"{position}-hf", "hf") / "prompt.json").read_text())
        assert template["hypothesis_template"].index("{}") == (0 if position == "front" else 20)


def test_what_cannot_be_exported_is_refused(small, run, cache, tmp_path):
    other = fedpgp.run("fedclip", 0, changes=SHORT_RUN, cache=cache)
    with pytest.raises(ConfigError, match="reads more of an image than its feature, or not linearly"):
        export(other, tmp_path / "no", "clip-head", client=0)
    mixed = fedpgp.run("promptfolio", 0, changes=SHORT_RUN, cache=cache)
    with pytest.raises(ConfigError, match="is not one prompt"):
        export(mixed, tmp_path / "no", client=0)
    assert export(mixed, tmp_path / "head", "clip-head", client=0, classes=["cat", "dog"]).is_dir()
    with pytest.raises(OutputError, match="exists"):
        export(mixed, tmp_path / "head", "clip-head", client=0)
    export(mixed, tmp_path / "head", "clip-head", client=1, force=True)
    remembering = fedpgp.run("pfedprompt", 0, changes=SHORT_RUN, cache=cache)
    with pytest.raises(ConfigError, match="must not leave it"):
        export(remembering, tmp_path / "no", "clip-head", client=0)
    with pytest.raises(ConfigError, match="classes must be left out for hf"):
        export(run, tmp_path / "no", "hf", classes=["cat"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(OutputError, match="did not write"):
        export(run, tmp_path / "mine", force=True)
    assert not (tmp_path / "no").exists()


def test_a_checkpoint_that_the_hub_has_is_named_and_not_copied(run, tmp_path, monkeypatch):
    found = fedpgp.load_run(run)
    config = found.config
    object.__setattr__(config.backbone, "checkpoint", "openai/clip-vit-base-patch16")
    embedded = load_backbone("pictoclip")
    monkeypatch.setattr("fedpgp.serving.classifier.load_backbone", lambda *_: embedded)
    directory = export(found, tmp_path / "named")
    assert sorted(p.name for p in directory.iterdir()) == ["README.md", "prompt.safetensors"]
    assert 'from_pretrained("openai/clip-vit-base-patch16")' in (directory / "README.md").read_text()


def test_what_clients_answered_is_kept_and_agrees_with_what_they_got_right(small, cache, tmp_path):
    fedpgp.run("fedpgp", 0, changes=SHORT_RUN, output=tmp_path / "run", cache=cache)
    run = fedpgp.load_run(tmp_path / "run")
    model = load(run, 2)
    with laboratory(run.config, ["fedpgp"], [0], 1, cache, False, None) as lab:
        task, tests = lab.tasks[0], lab.data(run.config.methods["fedpgp"], 0).tests
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
