"""A new client of a finished federation."""

import json

import pytest
import torch
from commands import refused
from raising import raises
from tiny import SHORT_RUN
from typer.testing import CliRunner

import fedpgp
from fedpgp import cli
from fedpgp.data.sources import pictograms as embedded
from fedpgp.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of three classes; the federation has one of them."""
    source, directory = embedded.read(), tmp_path_factory.mktemp("photos")
    for split, count in (("train", 6), ("validation", 3), ("test", 6)):
        dataset = getattr(source, split)
        for label in (2, 60, 70):
            place = directory / split / dataset.class_names[label]
            place.mkdir(parents=True)
            for image in dataset.of_classes([label])[:count]:
                dataset.image(int(image)).save(place / f"{image}.png")
    return directory


@pytest.fixture
def run(small, cache, tmp_path):
    return fedpgp.run("fedpgp", 0, changes=SHORT_RUN, output=tmp_path / "run", cache=cache)


def test_it_fits_only_the_private_part_and_writes_a_run_of_one_client(run, photos, cache, tmp_path, monkeypatch):
    monkeypatch.undo()  # the folder is read like a folder of a user
    joined = fedpgp.join(tmp_path / "run", str(photos), shots=4, epochs=3, output=tmp_path / "mine", cache=cache)
    assert torch.equal(joined.prompts["shared/p_G"], run.prompts["shared/p_G"])
    again = fedpgp.join(tmp_path / "run", str(photos), shots=4, epochs=3, cache=cache)
    assert torch.equal(joined.prompts["private/0/U"], again.prompts["private/0/U"])
    first = fedpgp.join(tmp_path / "run", str(photos), shots=4, epochs=1, cache=cache)
    assert not torch.equal(joined.prompts["private/0/U"], first.prompts["private/0/U"])
    (client,) = joined.results["clients"]
    assert (client["examples"], len(client["classes"])) == (12, 3)
    assert joined.results["bytes_up_per_client_round"] == 0
    assert joined.provenance["joined"] == run.provenance
    loaded = fedpgp.load_run(tmp_path / "mine")
    assert loaded.results == joined.results
    arguments = ["join", "--from", str(tmp_path / "run"), "--data", str(photos), "--shots", "4", "--epochs", "3"]
    arguments += ["-o", str(tmp_path / "other"), "--cache-dir", str(cache), "--json", "--quiet"]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rows"][0]["local"] == joined.results["final"]["local"]


def test_the_remedies_of_its_errors_are_commands_that_work(compared, photos, cache, command, tmp_path):
    rows = [(path, path.parent.name, path.parent.parent.name) for path in sorted(photos.rglob("*.png"))]
    table = "picture,kind,part\n" + "".join(f"{path},{kind},{part}\n" for path, kind, part in rows)
    (tmp_path / "list.csv").write_text(table)
    (tmp_path / "photos").symlink_to(photos)
    words = ["join", "--from", str(compared / "fedpgp/seed-0"), "--data", "list.csv", "--epochs", "1", "-o", "mine"]
    words += ["--cache-dir", str(cache), "--shots", "2"]
    for key, column in (("image", "picture"), ("label", "kind")):
        ended = command(*words)
        assert ended.code == 2 and f"data.{key}_column" in ended.err, ended.err
        words += ["--set", f"data.{key}_column={column}"]
    refused(command(*words, "--set", "fedpgp.mu=1"), "--set", "fedpgp.mu", "--data")


@pytest.mark.parametrize(
    "kind", ["siglip", *(pytest.param(k, marks=pytest.mark.slow) for k in ("mobileclip", "biomedclip"))]
)
def test_a_client_joins_a_federation_on_a_checkpoint_that_is_not_clips(
    kind, made, small_source, photos, cache, tmp_path, monkeypatch
):
    changes = [*SHORT_RUN, "fedpgp.context_length=4", f"backbone.checkpoint={made(kind).directory}"]
    with monkeypatch.context() as patch:
        patch.setattr("fedpgp.runs.tasks.load_source", lambda data, splits: small_source)
        run = fedpgp.run("fedpgp", 0, changes=changes, output=tmp_path / "run", cache=cache)
    joined = fedpgp.join(tmp_path / "run", str(photos), shots=4, epochs=1, cache=cache)
    assert torch.equal(joined.prompts["shared/p_G"], run.prompts["shared/p_G"])
    assert joined.prompts["private/0/U"].abs().max() > 0
    assert joined.provenance["checkpoint"] == run.provenance["checkpoint"]


def test_what_cannot_be_joined_is_refused(run, small, photos, cache, tmp_path, monkeypatch):
    plain = fedpgp.run("promptfl", 0, changes=SHORT_RUN, cache=cache)
    monkeypatch.undo()
    with raises(ConfigError, where="promptfl", remedy="`fedpgp predict`"):
        fedpgp.join(plain, str(photos), shots=4, cache=cache)
    with raises(DataError, where="nowhere", remedy="Check the path"):
        fedpgp.join(run, str(tmp_path / "nowhere"), cache=cache)
