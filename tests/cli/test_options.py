"""Options that several commands share: which command takes which, and what their values mean."""

import json
from pathlib import Path

import pytest
from commands import Command, all_commands, refused, sets
from raising import raises

import fedpgp
from fedpgp.errors import ConfigError, OutputError
from fedpgp.federation import rounds

EXPERIMENT = {"--config", "--data", "--backbone", "--rounds", "--set", "--device", "--precision"}
OUTPUT = {"--output", "--force", "--json", "--cache-dir", "--quiet"}
WORK = OUTPUT | {"--resume", "--workers", "--skip-bad-images"}
SHARED = EXPERIMENT | WORK | {"--settings", "--track", "--dry-run"}

TAKES = {  # command -> the shared options that it takes
    "compare": SHARED,
    "run": SHARED - {"--dry-run"},
    "tune": EXPERIMENT | WORK,
    "sweep": EXPERIMENT | WORK | {"--dry-run"},
    "ablate": EXPERIMENT | WORK | {"--dry-run"},
    "reproduce": EXPERIMENT - {"--config"} | WORK | {"--dry-run"},  # a recipe is its config
    "federate init": EXPERIMENT | {"--force"},
    "federate up": EXPERIMENT | OUTPUT,
    "config": EXPERIMENT,
    "methods": EXPERIMENT | {"--json"},
    "data check": EXPERIMENT - {"--data"} | {"--json", "--workers", "--skip-bad-images"},  # the dataset is its argument
    "data show": EXPERIMENT | {"--json", "--output"},
    "join": {"--data", "--set", "--device", "--skip-bad-images"} | OUTPUT,  # the run has the other settings
    "predict": {"--device", "--output", "--cache-dir", "--quiet"},
    "score": {"--set", "--device"} | OUTPUT,
    "export": {"--output", "--force"},
    "report": {"--output", "--force", "--quiet"},
    "show": {"--json"},
    "bench": {"--precision", "--json", "--quiet"},
    "doctor": {"--backbone", "--cache-dir", "--json"},
    "demo": {"--cache-dir"},
    "cache list": {"--cache-dir", "--json"},
    "cache clear": {"--cache-dir"},
    "data get": set(),
    "data layouts": {"--json"},
    "federate renew": set(),
    "federate key": set(),
    "federate upgrade": set(),
    "federate server": set(),
    "federate status": {"--json"},
    "federate node": {"--data", "--cache-dir", "--device"},
    "federate app-hash": set(),
}


@pytest.mark.parametrize("name", all_commands())
def test_a_command_takes_the_shared_options_of_the_table(name: str) -> None:
    given = {option for parameter in all_commands()[name].params for option in parameter.opts}
    assert given & SHARED == TAKES[name]
    if "--config" in given:  # so that the options of a run can be pasted
        assert given >= EXPERIMENT - ({"--data"} if name == "data check" else set())


@pytest.mark.parametrize("name", [name for name, takes in TAKES.items() if "--resume" in takes])
def test_the_help_of_resume_names_only_options_of_the_command(name: str) -> None:
    parameters = all_commands()[name].params
    (text,) = [parameter.help for parameter in parameters if parameter.name == "resume"]  # type: ignore[attr-defined]
    named = {word.strip(",.") for word in text.split() if word.startswith("--")}
    assert named >= {"--workers", "--quiet"}
    assert named <= {option for parameter in parameters for option in parameter.opts}


def test_short_options_are_the_same_settings_in_every_command(command: Command, tmp_path: Path) -> None:
    typed = ["--data", "photos", "--backbone", "photoclip", "--rounds", "3", "--device", "cuda", "--precision", "bf16"]
    typed += ["--set", "task.shots=2"]
    (tmp_path / "my.toml").write_text(command("config", *typed).out)
    found = fedpgp.load_config(tmp_path / "my.toml")
    assert (found.data.source, found.backbone.checkpoint, found.federation.rounds) == ("photos", "photoclip", 3)
    assert (found.backbone.device, found.backbone.precision, found.task.shots) == ("cuda", "bf16", 2)
    for name in ("sweep --grid task.shots=2 --dry-run", "ablate --dry-run", "data check photos", "methods"):
        refused(command(*name.split(), "--device", "cuda:0,cuda:1"), "backbone.device", "one device", "cuda:0,cuda:1")
        refused(command(*name.split(), "--rounds", "+3"), "--rounds", "'+3'")


def test_one_method_is_one_method(command: Command, small: None) -> None:
    for name in ("run", "ablate", "federate init ours"):
        refused(command(*name.split(), "--method", "all"), "method", "one method", "'all'", "`fedpgp compare`")


def test_a_device_that_a_client_joins_with_is_checked(compared: Path) -> None:
    with raises(ConfigError, where="backbone.device", allowed="one device", got="warp"):
        fedpgp.join(compared / "fedpgp/seed-0", "photos", device="warp")


MINE = '''
from typing import ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedpgp.methods import PromptFL


@dataclass(frozen=True, kw_only=True)
class Mine(PromptFL):
    """PromptFL with a smaller loss."""

    name: ClassVar[str] = "mine"
    source: ClassVar[str] = "none"
    factor: float = Field(default=0.5, gt=0, description="Factor of the loss (ours)")

    def loss(self, params, text, batch, frozen):
        return {name: self.factor * term for name, term in super().loss(params, text, batch, frozen).items()}
'''


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sweep", "ablate"])
def test_a_study_takes_a_method_of_a_file(kind, command: Command, small: None, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "s.toml").write_text('[factor]\n"1" = ["mine.factor=1"]\n')
    asked, option = {
        "sweep": (["--grid", "mine.factor=0.5,1"], "--methods"),
        "ablate": (["--file", "s.toml", "--seeds", "1"], "--method"),
    }[kind]
    again = [option, "mine.py:Mine"]
    train, pending = rounds.train_clients, [True]

    def interrupt(text: object, jobs: list) -> object:
        if pending and jobs[0].method.name == "mine" and jobs[0].round == 1:
            pending.clear()
            raise KeyboardInterrupt
        return train(text, jobs)  # type: ignore[arg-type]

    monkeypatch.setattr(rounds, "train_clients", interrupt)
    short = sets("task.clients=2", "task.shots=1", "federation.rounds=1", "federation.path_points=1")
    stopped = command(kind, *asked, *again, "-o", "out", *short)
    assert stopped.code == 130 and f"`fedpgp {kind} --resume out`" in stopped.err
    refused(command(kind, "--resume", "out"), "out", "'mine'", "path/to/file.py:Name")
    (tmp_path / "changed.py").write_text(MINE.replace("smaller", "larger"))
    refused(command(kind, "--resume", "out", option, "changed.py:Mine"), "out", "the code of mine")
    resumed = command(kind, "--resume", "out", *again)
    assert resumed.code == 0, resumed.err
    rows = json.loads(command(kind, "--resume", "out", *again, "--json").out)["rows"]
    assert len([row for row in rows if row["method"] == "mine"]) == {"sweep": 2, "ablate": 1}[kind]
    load = fedpgp.load_sweep if kind == "sweep" else fedpgp.load_ablation
    assert load("out", methods=["mine.py:Mine"]).rows() == rows
    with raises(OutputError, where="out", problem="'mine'", remedy="path/to/file.py:Name"):
        load("out")
