"""`fedpgp.score` and `fedpgp score`: figures, names, images that are left out, files and exit codes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import refused
from PIL import Image
from raising import raises
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix

import fedpgp
from fedpgp.data.sources import load_source
from fedpgp.errors import ConfigError, DataError
from fedpgp.evaluation.metrics import calibration_error

SHORT = ["task.clients=3", "task.shots=2", "federation.rounds=1", "federation.local_epochs=1"]
METHODS = ("fedpgp", "local", "promptfl", "pfedprompt", "fedmaple")
IMAGES = 3  # of each class in the folder
FILES = {
    *("scores.csv", "classes.csv", "confusion.csv", "confusion.png", "reliability.csv", "reliability.png"),
    *("predictions.csv", "score.json"),
}


@pytest.fixture(scope="module", autouse=True)
def small(small_source, compact):
    """Use the small part of the data, and the compact checkpoint, for runs and models of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedpgp.runs.tasks.load_source", lambda data, splits: small_source)
        patch.setattr("fedpgp.serving.labelled.load_source", lambda data: small_source)
        for module in ("runs.setup", "serving.classifier"):
            patch.setattr(f"fedpgp.{module}.configured_backbone", lambda *_: compact)
        yield


@pytest.fixture(scope="module")
def runs(small, cache, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "out"
    fedpgp.compare(METHODS, changes=SHORT, output=directory, cache=cache)
    return {name: directory / name / "seed-0" for name in METHODS}


@pytest.fixture(scope="module")
def run(runs):
    return runs["fedpgp"]


@pytest.fixture(scope="module")
def names(run):
    return fedpgp.load_run(run).results["task"]["base_names"]


def write_images(source, folder: Path, labels, images=IMAGES):
    for label in labels:
        place = folder / source.class_names[label]
        place.mkdir(parents=True)
        for number, image in enumerate(np.flatnonzero(source.test.labels == label)[:images]):
            source.test.image(int(image)).save(place / f"{number}.png")


@pytest.fixture(scope="module")
def held_out(small_source, tmp_path_factory):
    """A folder with the classes of the training, and three of the novel classes."""
    folder = tmp_path_factory.mktemp("images") / "held-out"
    write_images(small_source, folder, range(9))
    return folder


@pytest.fixture
def folder(held_out, tmp_path):
    """A copy of the folder, for a test that changes it."""
    return Path(shutil.copytree(held_out, tmp_path / "photos"))


@pytest.fixture
def score(run, cache):
    """A function that scores the shared part of the run."""
    return lambda folder, **options: fedpgp.score(run, folder, **{"client": None, "cache": cache, **options})


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("method", METHODS)
def test_figures_are_those_of_scikit_learn_on_the_answers_of_the_models(runs, held_out, cache, method):
    run = runs[method]
    found = fedpgp.score(run, held_out, cache=cache)
    clients = {"local": [0, 1, 2], "promptfl": [None], "fedmaple": [None]}.get(method, [None, 0, 1, 2])
    assert found.models["client"].astype(object).where(found.models["client"].notna(), None).tolist() == clients
    assert (found.models["images"] == 9 * IMAGES).all()
    for (_, row), client in zip(found.models.iterrows(), clients, strict=True):
        said = found.predictions[found.predictions["model"] == row["model"]]
        assert [Path(image).parent.name for image in said["image"]] == said["truth"].tolist()
        if method != "pfedprompt" or client is None:  # clients of pfedprompt predict with a memory of the run's images
            model = fedpgp.load(run, client)
            answers = model.classify(said["image"].tolist(), found.candidates)
            assert [max(answer, key=answer.get) for answer in answers] == said["predicted"].tolist()
            assert said["probability"].tolist() == pytest.approx([max(a.values()) for a in answers], rel=1e-4)
        truth, predicted, right = said["truth"], said["predicted"], (said["truth"] == said["predicted"]).to_numpy()
        assert row["accuracy"] == pytest.approx(100 * accuracy_score(truth, predicted))
        assert row["macro_accuracy"] == pytest.approx(100 * balanced_accuracy_score(truth, predicted))
        assert row["calibration_error"] == pytest.approx(calibration_error(said["probability"].to_numpy(), right))
        expected = confusion_matrix(truth, predicted, labels=found.candidates)
        assert np.array_equal(found.counts(row["model"]), expected)
        of_class = found.classes[found.classes["model"] == row["model"]]
        assert of_class["class"].tolist() == list(found.candidates)
        assert of_class["images"].tolist() == expected.sum(1).tolist()
        assert of_class["accuracy"].dropna().tolist() == pytest.approx(
            [100 * right[truth == name].mean() for name in found.candidates if (truth == name).any()]
        )
        own = of_class.loc[of_class["own"], "class"].tolist()
        if client is None:
            assert not own and np.isnan(row["own_accuracy"])
        else:
            assert own == fedpgp.load_run(run).results["clients"][client]["classes"]
            assert row["own_accuracy"] == pytest.approx(100 * right[truth.isin(own)].mean())


def test_the_images_that_the_run_tested_give_its_own_figures(run, names, score):
    results = fedpgp.load_run(run).results
    found = score("pictograms", classes=names, client="all")
    assert found.models["accuracy"].tolist() == pytest.approx(
        [results["shared"]["base"], *(client["base"] for client in results["clients"])]
    )
    assert found.models["own_accuracy"].tolist()[1:] == pytest.approx([c["local"] for c in results["clients"]])
    assert "trained on images of pictograms" in found.notes[0]


def test_names_are_matched_without_order_case_and_underscores(score, held_out, tmp_path, names):
    expected = score(held_out)
    folders = sorted(path.name for path in held_out.iterdir())
    rows = [(f"{name}/{number}.png", name.upper()) for name in reversed(folders) for number in range(IMAGES)]
    shutil.copytree(held_out, tmp_path / "images")
    (tmp_path / "images/classes.txt").write_text(
        "\n".join(name.upper().replace(" ", "_") for name in reversed(folders))
    )
    pd.DataFrame(rows, columns=["path", "label"]).to_csv(tmp_path / "images/list.csv", index=False)
    found = score(tmp_path / "images/list.csv")
    assert found.models.loc[0, "accuracy"] == expected.models.loc[0, "accuracy"]
    assert found.candidates[: len(names)] == tuple(names)
    assert not found.left_out
    assert any("another order" in note for note in found.notes)
    assert not any("another order" in note for note in expected.notes)
    assert found.predictions.loc[0, "image"] == str(tmp_path / "images" / rows[0][0])


def test_unknown_names_are_new_classes_and_novel_classes_are_known(score, folder, small_source, names):
    (folder / names[1]).rename(folder / f"{names[1]}s")
    (folder / small_source.class_names[8]).rename(folder / "zeppelin")
    found = score(folder)
    novel = [small_source.class_names[label] for label in (6, 7)]
    assert set(found.candidates) == {*names, *novel, f"{names[1]}s", "zeppelin"}
    assert found.models.loc[0, "images"] == 9 * IMAGES
    (unknown,) = found.left_out
    assert "zeppelin" in unknown and f"{names[1]}s" in unknown
    assert f"{names[1]}s' is similar to the run's '{names[1]}'" in unknown
    assert any(all(name in note for name in novel) for note in found.notes)
    assert any(f"without an image, 1 of {len(found.candidates)}: {names[1]}" in note for note in found.notes)
    assert found.classes.set_index("class")["trained"][names[1]]
    assert not found.classes.set_index("class")["trained"]["zeppelin"]


def test_images_without_a_label_and_unreadable_images_are_left_out(score, folder, names):
    Image.new("RGB", (8, 8)).save(folder / "loose.png")
    (folder / names[0] / "junk.png").write_bytes(b"not an image")
    found = score(folder)
    assert found.models.loc[0, "images"] == 9 * IMAGES
    assert "without a label: 1" in found.left_out[0]
    assert str(folder / names[0] / "junk.png") in found.left_out[1]
    assert len(found.left_out) == 2


def test_rows_without_a_label_are_left_out(score, folder, names):
    rows = [(f"{name}/0.png", name) for name in names]
    pd.DataFrame([*rows, (f"{names[0]}/1.png", "")], columns=["path", "kind"]).to_csv(folder / "list.csv", index=False)
    found = score(folder / "list.csv", changes="data.label_column=kind")
    assert found.models.loc[0, "images"] == len(names)
    assert "without a label: 1" in found.left_out[0]
    with raises(ConfigError, where="--set", got="task.shots"):
        score(folder, changes=["task.shots=1"])


def test_candidates_can_be_chosen(score, held_out, names):
    found = score(held_out, classes=[*names[:2], "zeppelin"])
    assert found.candidates == (*names[:2], "zeppelin")
    assert found.models.loc[0, "images"] == 2 * IMAGES
    assert "21 of 27 images" in found.left_out[0]
    with raises(ConfigError, where="classes", got=["zeppelin", "lion"]):
        score(held_out, classes=["zeppelin", "lion"])


def test_one_class_is_scored_among_the_classes_of_the_run(score, held_out, tmp_path, names):
    shutil.copytree(held_out / names[0], tmp_path / "one" / names[0])
    found = score(tmp_path / "one")
    assert found.candidates == tuple(names)
    assert found.models.loc[0, "accuracy"] == pytest.approx(found.models.loc[0, "macro_accuracy"])


def test_only_the_test_split_counts(score, held_out, tmp_path, names):
    for split, labels in (("train", names), ("test", names[:3])):
        for name in labels:
            shutil.copytree(held_out / name, tmp_path / "split" / split / name)
    found = score(tmp_path / "split")
    assert found.models.loc[0, "images"] == 3 * IMAGES
    assert f"Only the test split of {tmp_path / 'split'} counts: 9 of 27 images." in found.notes
    assert not found.left_out
    shutil.rmtree(tmp_path / "split/train")
    assert score(tmp_path / "split").models.loc[0, "images"] == 3 * IMAGES


def test_folders_without_labelled_images_are_refused(score, tmp_path):
    (tmp_path / "empty/ant").mkdir(parents=True)
    with raises(DataError, where="empty"):
        score(tmp_path / "empty")
    (tmp_path / "empty/ant/1.png").write_bytes(b"")
    with raises(DataError, where="empty", problem="none of 1 images can be read"):
        score(tmp_path / "empty")


def test_a_class_may_have_the_name_of_a_column(score, folder, names):
    (folder / names[0]).rename(folder / "truth")
    (folder / names[1]).rename(folder / "model")
    found = score(folder, client="all")
    counts = found.counts("client 2")
    assert counts.sum() == 9 * IMAGES
    assert counts[found.candidates.index("model")].sum() == IMAGES


def test_the_command_prints_figures_and_writes_files(run, held_out, command, cache, names):
    arguments = ["score", str(run), str(held_out), "--cache-dir", str(cache), "--quiet"]
    ended = command(*arguments, "-o", "scores")
    assert ended.code == 0, ended.err
    for text in ("shared part", "client 0", "client 2", "macro accuracy", "own classes", "ECE", "hardest classes"):
        assert text in ended.out
    assert max(map(len, ended.out.splitlines())) < 133
    assert {path.name for path in Path("scores").iterdir()} == FILES
    for name in ("confusion.png", "reliability.png"):
        with Image.open(f"scores/{name}") as picture:
            picture.load()
            assert min(picture.size) > 500
    models = pd.read_csv("scores/scores.csv")
    record = json.loads(Path("scores/score.json").read_text())
    assert [row["accuracy"] for row in record["models"]] == models["accuracy"].tolist()
    confusion = pd.read_csv("scores/confusion.csv")
    assert confusion.columns.tolist() == ["model", "truth", *record["candidates"]]
    assert len(confusion) == 4 * 9
    assert len(pd.read_csv("scores/predictions.csv")) == 4 * 9 * IMAGES
    assert len(pd.read_csv("scores/reliability.csv")) == 4 * 15
    refused(command(*arguments, "-o", "scores"), "scores", "--force")
    one = command(*arguments, "-o", "scores", "--force", "--client", "1", "--json")
    assert [row["model"] for row in json.loads(one.out)["models"]] == ["client 1"]
    assert pd.read_csv("scores/scores.csv")["model"].tolist() == ["client 1"]


def test_the_exit_code_is_for_scripts(run, folder, command, cache, names):
    arguments = ["score", str(run), str(folder), "--cache-dir", str(cache), "--quiet", "--client", "shared"]
    ended = command(*arguments, "--json")
    accuracy = json.loads(ended.out)["models"][0]["accuracy"]
    assert ended.code == 0
    assert command(*arguments, "--min-accuracy", f"{accuracy - 0.1}").code == 0
    below = command(*arguments, "--min-accuracy", f"{min(100, accuracy + 0.1)}")
    assert (below.code, "below" in below.err) == (1, True)
    Image.new("RGB", (8, 8)).save(folder / "loose.png")
    left_out = command(*arguments)
    assert (left_out.code, "warning: " in left_out.err) == (1, True)
    refused(command(*arguments[:1], str(run), "nowhere"), "nowhere")
    refused(command(*arguments[:3], "--client", "x"), "--client", "'x'")
    refused(command(*arguments[:3], "--client", "7"), "client", "0 to 2", "7")


def test_a_narrow_terminal_has_intervals_below_the_figures(run, held_out, command, cache, monkeypatch):
    from fedpgp import cli

    monkeypatch.setattr(cli.out, "_width", 80)
    ended = command("score", str(run), str(held_out), "--cache-dir", str(cache), "--quiet")
    assert max(map(len, ended.out.splitlines())) <= 80
    assert "…" not in ended.out


def test_the_matrix_of_many_classes_has_the_hardest_hundred(score, held_out):
    from fedpgp.report.score import confusion_chart

    found = score(held_out)
    many = tuple(f"class {number:03}" for number in range(130))
    counts = 20 * np.eye(130, dtype=int)
    counts[129, 0], counts[5, 6] = 7, 3
    rows = pd.DataFrame({"model": "shared part", "truth": many})
    confusion = pd.concat([rows, pd.DataFrame(counts, columns=list(many))], axis=1)
    chart = confusion_chart(replace(found, candidates=many, confusion=confusion)).to_dict()
    domain = chart["layer"][0]["encoding"]["x"]["scale"]["domain"]
    assert len(domain) == 100
    assert {"class 129", "class 000", "class 005", "class 006"} <= set(domain)
    assert "of 130" in chart["title"]["subtitle"]


def test_the_dataset_of_the_run_is_known_under_another_path(run, held_out, cache, small_source, monkeypatch):
    monkeypatch.setattr("fedpgp.serving.labelled.load_source", load_source)
    found = fedpgp.load_run(run)
    data = replace(found.config.data, source=str(held_out))
    whole = load_source(data)
    trained = {**found.provenance, "images": {"train": whole.train.fingerprint}}
    moved = replace(found, config=replace(found.config, data=replace(data, source="gone")), provenance=trained)
    assert fedpgp.score(moved, held_out, client=None, cache=cache).models.loc[0, "images"] == len(whole.test)


def test_clients_whose_parts_stayed_elsewhere_are_named(runs, held_out, cache):
    def without_clients(name):
        found = fedpgp.load_run(runs[name])
        shared = {key: found.prompts[key] for key in found.prompts if key.startswith("shared/")}
        return replace(found, prompts=shared)

    found = fedpgp.score(without_clients("fedpgp"), held_out, cache=cache)
    assert found.models["model"].tolist() == ["shared part"]
    assert "stayed on their machines" in found.notes[0]
    with raises(ConfigError, where="client", problem="cannot predict without"):
        fedpgp.score(without_clients("local"), held_out, cache=cache)
