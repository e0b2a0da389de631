"""`--backbone`, and the notices about the embedded checkpoints."""

import json
import re
from pathlib import Path

import pytest
from commands import Command, refused, sets

import fedpgp
from fedpgp.config import load_config
from fedpgp.data.sources import Source

CLIP = "openai/clip-vit-base-patch16"


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--method", "fedpgp"),
        ("compare",),
        ("tune",),
        ("sweep", "--grid", "fedpgp.mu=0,1"),
        ("ablate",),
        ("reproduce", "base-to-novel"),
        ("federate", "init", "ours"),
    ],
)
def test_another_checkpoint_beside_it_is_refused(arguments: tuple[str, ...], command: Command, tmp_path: Path) -> None:
    ended = command(*arguments, "--backbone", "photoclip", "--set", "backbone.checkpoint=pictoclip")
    refused(ended, "--backbone photoclip", "--set backbone.checkpoint=pictoclip")
    assert not list(tmp_path.iterdir())


def test_it_is_short_for_the_checkpoint_which_may_be_named_twice(command: Command, small: None, tmp_path: Path) -> None:
    method = ("run", "--method", "zero-shot", *sets())
    twice = ("--backbone", "photoclip", "--set", 'backbone.checkpoint="photoclip"')
    assert command(*method, "-o", "out", *twice).code == 0
    assert 'checkpoint = "photoclip"' in (tmp_path / "out/config.toml").read_text()
    refused(command("run", "--resume", "out", "--backbone", "photoclip"), "--resume out", "--backbone")


def test_other_short_forms_do_not_contradict_either(command: Command) -> None:
    ended = command("run", "--method", "fedpgp", "--device", "cpu", "--set", "backbone.device=cuda")
    refused(ended, "--device cpu", "--set backbone.device=cuda")


@pytest.mark.slow  # takes seconds
def test_photoclip_says_once_what_a_clip_would_improve(command: Command, small: None) -> None:
    study = ("sweep", "--grid", "fedpgp.mu=0,1", "--methods", "fedpgp", "-o", "out", *sets())
    ended = command(*study, "--backbone", "photoclip")
    assert ended.code == 0
    (line,) = [line for line in ended.err.splitlines() if "backbone is photoclip" in line]
    assert f"--backbone {CLIP}" in line
    assert "backbone is photoclip" not in ended.out


def test_icons_checkpoint_on_other_images_names_photoclip(command: Command, small: None, tmp_path: Path) -> None:
    (tmp_path / "photos/ant").mkdir(parents=True)
    (tmp_path / "photos/ant/1.png").touch()  # `small` replaces what is read of it
    shown = command("run", "--method", "zero-shot", "--data", "photos", *sets())
    (line,) = [line for line in shown.err.splitlines() if "backbone is pictoclip" in line]
    assert "--backbone photoclip" in line
    chosen = command("run", "--method", "zero-shot", "--data", "photos", "--backbone", "pictoclip", *sets())
    embedded = command("run", "--method", "zero-shot", *sets())
    assert "backbone is pictoclip" not in chosen.err + embedded.err


def test_where_no_checkpoint_is_named_and_no_hub_answers_photoclip_is_named_and_not_taken(
    command: Command, small_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("fedpgp.runs.tasks.load_source", lambda data, splits: small_source)
    (tmp_path / "my.toml").write_text("[task]\nclients = 3\nshots = 2\n")
    ended = command("run", "--method", "fedpgp", "--config", "my.toml", "-o", "out")
    refused(ended, f"'{CLIP}'", "--backbone photoclip")
    assert not (tmp_path / "out").exists()


def test_photoclip_is_described_with_the_methods_that_fit(command: Command) -> None:
    ended = command("doctor", "--checkpoint", "photoclip", "--json")
    found = {finding["name"]: finding["value"] for finding in json.loads(ended.out)["findings"]}
    assert ended.code == 0 and "fast encoder" in found["text tower"]
    assert re.fullmatch(r"(\d+) × \1 pixels, \d+ features, [1-9]\d* patches", found["image tower"])
    assert {"fedpgp", "fedplot", "fedotp", "fedcocoop"} <= set(found["methods that fit"].split(", "))
    listed = json.loads(command("methods", "--checkpoint", "photoclip", "--json").out)
    misfits = {entry["name"] for entry in listed if entry["misfit"]}
    assert "fedvpt" in misfits and "fedpgp" not in misfits


def test_photoclip_brings_its_own_settings_unless_a_config_is_named() -> None:
    change = "backbone.checkpoint=photoclip"
    tuned = load_config("photographs")
    assert load_config(changes=[change]).methods == tuned.methods
    assert load_config(changes=[change, "data.source=photos"]).data.source == "photos"
    assert load_config("pictograms", [change]).methods == load_config().methods != tuned.methods


def test_cells_with_several_checkpoints_differ_only_in_the_checkpoint() -> None:
    grid = {"backbone.checkpoint": ["pictoclip", "photoclip"]}
    settings = [cell.config.methods for cell in fedpgp.sweep(grid, methods=["fedpgp"], output=None).distinct_cells]
    assert settings == [load_config().methods] * 2
