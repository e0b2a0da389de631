"""The command line: its output, its errors and its exit codes."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Command, all_commands, refused, sets
from PIL import Image
from raising import raises

import fedpgp
from fedpgp import assets
from fedpgp.cli import options
from fedpgp.config import SECTIONS, load_config
from fedpgp.data.sources import Source
from fedpgp.errors import ConfigError, FedPGPError
from fedpgp.federation import rounds
from fedpgp.federation.client import ClientJob
from fedpgp.federation.state import State
from fedpgp.methods import METHODS
from fedpgp.runs import features as run_features
from fedpgp.runs import tasks as run_tasks
from fedpgp.runs.tasks import make_task


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


# Commands that succeed


def test_compare_prints_a_plan_and_a_table_and_writes_a_directory(
    command: Command, small: None, tmp_path: Path
) -> None:
    changes = sets("fedpgp.private_learning_rate=0.3")  # so that α matters after two rounds
    ended = command("compare", "--methods", "zero-shot,fedpgp", "--seeds", "2", "-o", "out", *changes)
    assert ended.code == 0
    plan = r"4 runs, about \d+ s in 1 process: zero-shot, fedpgp with seeds 0, 1\n.*zero-shot, seed 0"
    assert re.search(plan, ended.err, re.DOTALL)
    assert "all runs: 4/4" in ended.err
    for method in ("zero-shot", "fedpgp", "fedpgp, shared part"):
        assert re.search(rf"^\s*{method} +\d+\.\d ± \d", ended.out, re.MULTILINE), ended.out
    cells = {
        f"{method}/seed-{seed}/{name}"
        for method in ("zero-shot", "fedpgp")
        for seed in (0, 1)
        for name in (
            "config.toml", "results.json", "rounds.jsonl", "prompts.safetensors", "outcomes.safetensors",
            "provenance.json", "answers.safetensors",
        )
    }  # fmt: skip
    table = {f"comparison.{suffix}" for suffix in ("svg", "pdf", "png", "html", "md", "tex", "csv", "json")}
    table |= {"plan.json", "runs.csv", "path.csv", "differences.csv"}
    assert files(tmp_path / "out") == cells | table
    assert (tmp_path / "out/comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "out/comparison.svg").read_text()
    assert command("show", "out/fedpgp/seed-0").code == 0
    assert command("show", "out").out == command("show", "out", "--alpha", "1").out == ended.out
    moved = command("show", "out", "--alpha", "0").out
    shared = np.mean([run.results["shared"]["local"] for run in fedpgp.load_comparison("out").of("fedpgp")])
    assert re.search(rf"^fedpgp +{shared:.1f} ", moved, re.MULTILINE) and moved != ended.out
    assert "α" in command("show", "out", "--alpha", "validation").out
    refused(command("show", "out", "--alpha", "x"), "--alpha", "validation", "'x'")
    refused(command("show", "out", "--alpha", "0.55"), "alpha", "'validation'", "0, 0.1,", "0.55")


def test_json_is_the_only_thing_on_standard_output_and_progress_is_plain_lines_on_standard_error(
    command: Command, small: None
) -> None:
    loud = command("run", "--method", "fedpgp", "--json", *sets())
    printed = json.loads(loud.out)
    assert set(printed) == {"task", "rows"}
    (row,) = printed["rows"]
    assert set(row) == {
        "method", "seed", "alpha", "local", "base", "novel", "unseen", "hm", "cm", "area",
        "bytes_up_per_client_round", "seconds",
    }  # fmt: skip
    assert (row["method"], row["seed"], row["bytes_up_per_client_round"]) == ("fedpgp", 0, 16 * 128 * 4)
    assert 1 < row["novel"] <= 100
    assert re.search(r"^fedpgp, seed 0: 2/2  Local \d", loud.err, re.MULTILINE)
    assert "\x1b" not in loud.err
    quiet = command("run", "--method", "zero-shot", "-q", "-o", "quiet", *sets())
    assert re.fullmatch(r".* quiet\. .* \d+ s .* \d+ s\.\n", quiet.err)


def test_costly_methods_may_have_fewer_seeds(command: Command, small: None, tmp_path: Path) -> None:
    options = ["--methods", "zero-shot,fedcocoop", "--seeds", "2", "--costly-seeds", "1"]
    tiny = ("task.clients=1", "task.shots=1", "federation.rounds=1", "fedcocoop.context_length=1")
    ended = command("compare", *options, "-o", "out", *sets(*tiny))
    assert re.search(r"zero-shot +\d", ended.out) and re.search(r"fedcocoop \(seed 0\) +\d", ended.out)
    assert not (tmp_path / "out/fedcocoop/seed-1").exists()
    assert command("show", "out").out == ended.out


def test_show_prints_the_table_in_other_forms(command: Command, compared: Path) -> None:
    for form, suffix in (("markdown", "md"), ("latex", "tex"), ("csv", "csv")):
        shown = command("show", str(compared), "--format", form)
        assert shown.out == (compared / f"comparison.{suffix}").read_text()
    assert "promptfl minus" in command("show", str(compared), "--reference", "promptfl").out


def test_force_replaces_a_directory_whole(command: Command, small: None, own_comparison: Path) -> None:
    ended = command("compare", "--methods", "zero-shot", "-o", "out", "--force", *sets())
    assert ended.code == 0 and "about" not in ended.err  # one run needs no plan
    assert (own_comparison / "zero-shot").exists() and not (own_comparison / "promptfl").exists()


def test_force_does_not_replace_what_fedpgp_did_not_write(command: Command, small: None, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").write_text("mine")
    refused(command("run", "--method", "zero-shot", "-o", "out", "--force"), "out", "-o")
    assert files(tmp_path) == {"out/precious"}


def test_effective_config_can_be_read_again(command: Command, tmp_path: Path) -> None:
    printed = command("config", "--set", "fedpgp.mu=1.5")
    (tmp_path / "mine.toml").write_text(printed.out)
    again = fedpgp.load_config(tmp_path / "mine.toml")
    assert again == fedpgp.load_config(changes=["fedpgp.mu=1.5"])
    assert re.search(r"^mu = 1\.5 +# .*\[--set\]$", printed.out, re.MULTILINE)
    assert re.search(r"^checkpoint = \"pictoclip\" +# .*\[the embedded recipe\]$", printed.out, re.MULTILINE)
    assert re.search(r"^momentum = 0\.9 +# .*authors.*\[default\]$", printed.out, re.MULTILINE)


def test_a_config_extends_a_recipe(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('extends = "pictograms"\n[task]\nshots = 2\n[fedpgp]\nmu = 1.5\n')
    found = fedpgp.load_config(tmp_path / "mine.toml", ["fedpgp.tau=0.7"])
    assert found == fedpgp.load_config(changes=["task.shots=2", "fedpgp.mu=1.5", "fedpgp.tau=0.7"])
    printed = command("config", "-c", "mine.toml").out
    assert re.search(r"^shots = 2 +# .*\[mine.toml\]$", printed, re.MULTILINE)
    assert re.search(r"^clients = 10 +# .*\[the embedded recipe\]$", printed, re.MULTILINE)


def test_a_recipe_is_named_and_a_file_of_that_name_comes_first(command: Command, tmp_path: Path) -> None:
    assert "held_out = [" in command("config", "-c", "pictograms-styles").out
    assert fedpgp.load_config("pictograms") == fedpgp.load_config()
    (tmp_path / "pictograms-styles").write_text("[task]\nshots = 3\n")
    assert "shots = 3" in command("config", "-c", "pictograms-styles").out


@pytest.mark.slow  # takes seconds
def test_tune_and_ablate_print_tables_and_are_resumed(command: Command, small: None, tmp_path: Path) -> None:
    short = sets("task.clients=2", "task.shots=1", "federation.rounds=1")
    ended = command("tune", "--methods", "promptfl,fedpgp", "--trials", "1", "--seeds", "1", "-o", "t", *short)
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[0].startswith("best of 1 trials of each method on validation images")
    assert "fedpgp compare --config t/tuned.toml" in ended.err and "trials: 2/2" in ended.err
    printed = json.loads(command("tune", "--resume", "t", "--trials", "2", "--json").out)
    assert [len(printed["trials"]), printed["objective"], set(printed["best"])] == [4, "cm", {"promptfl", "fedpgp"}]
    refused(command("tune", "--resume", "t", "--seeds", "1"), "--resume t", "--seeds")
    (tmp_path / "s.toml").write_text('[mu]\n"0" = ["fedpgp.mu=0"]\n"0.5" = []\n')
    ended = command("ablate", "--file", "s.toml", "--seeds", "1", "-o", "a", *short)
    assert ended.code == 0, ended.err
    assert "mu of fedpgp: base-to-novel" in ended.out and "as it stands" in ended.out
    assert "2 settings of fedpgp" in ended.err and ended.err.endswith(" a.\nNext: fedpgp report a -o a.html\n")
    assert len(json.loads(command("ablate", "--resume", "a", "--json").out)["rows"]) == 2
    refused(command("ablate", "--resume", "a", "--seeds", "1"), "--resume a", "--seeds")


def test_resuming_a_finished_run_says_so_and_prints_its_table(command: Command, small: None, tmp_path: Path) -> None:
    options = ["--precision", "float64", "--device", "cpu"]
    table = command("run", "--method", "zero-shot", "-o", "out", *options, *sets()).out
    assert "±" not in table
    again = command("run", "--resume", "out")
    assert (again.code, again.out) == (0, table)
    assert "out is finished" in again.err
    written = (tmp_path / "out/config.toml").read_text()
    assert re.search(r'^precision = "float64" +# .*\[--set\]$', written, re.MULTILINE)
    assert re.search(r'^device = "cpu" +# .*\[--set\]$', written, re.MULTILINE)


def test_help_and_version(command: Command) -> None:
    for name in ([], ["compare"], ["run"], ["config"]):
        assert "fedpgp" in command(*name, "--help").out
    assert command("--version").out == f"fedpgp {fedpgp.__version__}\n"


def test_every_argument_and_option_has_a_help_text() -> None:
    for command in all_commands().values():
        assert command.help and command.help.endswith(".")
        for parameter in command.params:
            text = getattr(parameter, "help", None)
            assert text and text.endswith("."), (command.name, parameter.name, text)
            assert re.match(r"[A-Z]|--", text) or text.split()[0].isidentifier(), (command.name, parameter.name, text)


@pytest.mark.parametrize("name", all_commands())
def test_the_help_has_a_text_for_each_argument_and_option(name: str, command: Command, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # so that no text is wrapped
    rows = re.findall(r"^│ (.*?) *│$", command(*name.split(), "--help").out, re.MULTILINE)
    assert len(rows) == len(all_commands()[name].params) + 1  # and --help
    for row in rows:
        assert re.search(r" {2}\S.*\.( *\[.*\])?$", row), row


def test_every_command_has_examples_that_can_be_typed() -> None:
    commands = all_commands("federate")
    assert len(commands) == 23
    for command in commands.values():
        lines = re.findall(r"\[bold\](?:.*\| )?fedpgp (.*?)(?: > .*)?\[/\]", command.epilog or "")
        assert lines, command.name
        for line in lines:
            words = shlex.split(line.replace("\\[", "["))
            command.make_context(command.name, words[words.index(command.name) + 1 :])


def test_methods_are_listed_with_their_source_and_what_they_send(command: Command) -> None:
    entries = {entry["name"]: entry for entry in json.loads(command("methods", "--json").out)}
    assert list(entries) == list(METHODS)
    assert all(entry["year"] and entry["venue"] and entry["source"] and entry["summary"] for entry in entries.values())
    counts = {name: (entry["shared"], entry["private"]) for name, entry in entries.items()}
    b = fedpgp.load_config().methods["fedpgp"].bottleneck
    assert counts["zero-shot"] == (0, 0) and counts["fedpgp"] == (16 * 128, 16 * b + b * 128)
    assert "2405.09771" in entries["fedpgp"]["source"] and "2405.09771" in command("methods", "fedpgp").out
    listing = command("methods").out
    for name in entries:
        assert re.search(rf"^ ?{name} +\d{{4}} ", listing, re.MULTILINE), listing


@pytest.mark.parametrize(
    ("line", "following"),
    [
        ("run --method zero-shot -o out", "report out -o out.html"),
        ("compare --methods zero-shot --dry-run --seeds 2 -o 'my out'", "compare --methods zero-shot --seeds 2 "),
        (
            "sweep --grid task.shots=1,2 --methods zero-shot --dry-run",
            "sweep --grid task.shots=1,2 --methods zero-shot",
        ),
        ("show {run}", "report {run} -o {run}.html"),
        ("predict {run} {image}", "export {run}"),
        ("export {run} --client 1 -o prompt", "predict {run} IMAGES --client 1"),
        ("methods fedpgp", "run --method fedpgp"),
        ("config --rounds 3 --set fedpgp.mu=1", "compare --rounds 3 --set fedpgp.mu=1"),
        ("data show --set task.clients=3 --seed 1", "compare --set task.clients=3"),
        ("data layouts", "data check DIRECTORY"),
        ("reproduce --list", "reproduce base-to-novel --embedded"),
        ("cache list --cache-dir features", "cache clear --stale --cache-dir features"),
        ("cache clear --cache-dir features --yes", "cache list --cache-dir features"),
        ("federate init ours --method zero-shot", "federate server ours"),
    ],
)
@pytest.mark.slow  # takes seconds
def test_a_command_ends_with_the_next_command(
    line: str, following: str, command: Command, small: None, compared: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    places = {"run": compared / "fedpgp/seed-0", "image": "a.png"}
    words = shlex.split(line.format(**places))
    short = sets("federation.rounds=1") if words[0] in ("run", "compare", "sweep") else []
    ended = command(*words, *short)
    assert ended.code == 0, ended.err
    *_, last = ended.err.splitlines()
    assert last.startswith(f"Next: fedpgp {following.format(**places)}")
    assert ended.err.count("Next: ") == 1 and "--dry-run" not in last
    next_words = shlex.split(last.removeprefix("Next: fedpgp "))
    name = " ".join(next_words[: 2 if next_words[0] in ("data", "cache", "federate") else 1])
    all_commands()[name].make_context(name, next_words[len(name.split()) :])  # it can be typed
    taken = (
        {option for parameter in all_commands()[words[0]].params for option in parameter.opts}
        if (words[0] in all_commands())
        else set()
    )
    for option in {"--json", "--quiet"} & taken:
        assert "Next: " not in command(*words, *short, option, "--force" if "--force" in taken else option).err


def test_a_line_is_printed_before_libraries_are_loaded(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")  # as in a new process
    assert command("data", "layouts").err.startswith("fedpgp: loading libraries …\n")
    assert "loading" not in command("join", "--from", "out", "--quiet").err


# Commands that are refused


def test_unknown_method(command: Command) -> None:
    refused(command("run", "--method", "fedpgpp"), "'fedpgpp'", "'fedpgp'?")
    refused(command("compare", "--methods", "zero-shot,Prompt-FL"), "'Prompt-FL'", "'promptfl'?")


def test_unknown_key_names_file_line_and_nearest_key(command: Command, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("[data]\nsource = 'pictograms'\n\n[fedpgp]\nbotleneck = 4\n")
    refused(command("run", "--method", "fedpgp", "-c", "my.toml"), "my.toml:5", "fedpgp.botleneck", "'bottleneck'")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fedpgp.mo = 1", ("my.toml:1", "fedpgp.mo")),
        ("fedpgp = {tu = 3}", ("my.toml:1", "fedpgp.tu")),
        ("[fedpgp]\nmu.x = 1", ("my.toml:1", "fedpgp.mu", "{'x': 1}")),
        ("[fedpgp]\n\nmu = nan", ("my.toml:3", "fedpgp.mu", "nan")),
        ("[[fedpgp]]\nmu = 1", ("my.toml:1", "fedpgp")),
        ("[fedpgp]\n[fedpgp]", ("my.toml", "line 2")),
    ],
)
def test_odd_toml(command: Command, tmp_path: Path, text: str, expected: tuple[str, ...]) -> None:
    (tmp_path / "my.toml").write_text(text)
    refused(command("config", "-c", "my.toml"), *expected)


def test_file_that_is_missing_or_no_toml(command: Command, tmp_path: Path) -> None:
    refused(command("config", "-c", "none.toml"), "none.toml", "pictograms")
    (tmp_path / "my.toml").write_text("rounds 4\n")
    refused(command("config", "-c", "my.toml"), "my.toml", "line 1")
    (tmp_path / "my.toml").write_text("[federated]\nrounds = 4\n")
    refused(command("config", "-c", "my.toml"), "my.toml:1", "[federated]", "'federation'?")
    (tmp_path / "my.toml").write_text("rounds = 4\n")
    refused(command("config", "-c", "my.toml"), "my.toml:1", "rounds", "[federation]")
    (tmp_path / "my.toml").write_text('# mine\nextends = "pictogram"\n')
    refused(command("config", "-c", "my.toml"), "my.toml:2: extends", "'pictogram'", "'pictograms'?")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("federation.rounds=0", "greater than or equal to 1"),
        ("federation.rounds=2.5", "an integer"),
        ("federation.participation=1.5", "less than or equal to 1"),
        ("fedpgp.bottleneck=-1", "greater than or equal to 0"),
        ("fedpgp.tau=0", "greater than or equal to 0.000001"),
        ("fedpgp.mu=strong", "a number"),
        ("fedpgp.guidance=none", "'template' or 'placeholder'"),
        ("fedpgp.learning_rate=1e300", "less than or equal to 1000"),
        ("fedpgp.bottleneck=1000000000", "less than or equal to 1024"),
        ("backbone.device=warp", "cuda"),
        ("backbone.device=cuda:0,cuda:1", "one device"),
        ("fedpgp.mu=1\ntau=3", "a number"),
    ],
)
def test_bad_values(command: Command, change: str, expected: str) -> None:
    place, _, value = change.partition("=")
    refused(command("run", "--method", "fedpgp", "--set", change), place, value[:1], expected)
    with raises(ConfigError, where=place, allowed=expected, remedy="`fedpgp config`"):
        fedpgp.load_config(changes=[change])


def test_a_whole_number_that_is_too_small_is_refused_before_any_work(pictograms: Source) -> None:
    for name in ("task", "federation"):
        for field in dataclasses.fields(SECTIONS[name]):
            for value in (0, -1) if field.type in (int, int | None) else ():
                with suppress(FedPGPError):  # another error would be printed with a traceback
                    make_task(fedpgp.load_config(changes=[f"{name}.{field.name}={value}"]), pictograms, 0)
    with raises(ConfigError, where="task.shards_per_client", allowed="greater than or equal to 1", got=0):
        fedpgp.load_config(changes=["task.partition=shards", "task.shards_per_client=0"])


@pytest.mark.parametrize("key", ["task.held_out", "task.targets", "task.class_names", "fedpha.lengths"])
def test_a_single_value_is_a_list_with_one_value(key: str, tmp_path: Path) -> None:
    section, _, field = key.partition(".")
    value: Any = 4 if field == "lengths" else "sketch"
    (tmp_path / "my.toml").write_text(f"[{section}]\n{field} = {json.dumps(value)}\n")
    for found in (load_config(changes=[f"{key}={value}"]), load_config(tmp_path / "my.toml")):
        assert getattr(getattr(found, section, found.methods.get(section)), field) == (value,)
    with raises(ConfigError, where="federation.betas", allowed="a list", got=0.9):
        load_config(changes=["federation.betas=0.9"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("fedpgp.mu", "--set fedpgp.mu=0.5"),
        ("mu=1", "--set fedpgp.mu=1 or promptprox.mu=1"),
        ("clients=6", "--set task.clients=6"),
        ("context_length=8", "--set fedpgp.context_length=8 or centralized.context_length=8 or "),
        ("no_such=8", "--set fedpgp.mu=0.5"),
    ],
)
def test_a_change_of_another_form_has_an_example(command: Command, change: str, expected: str) -> None:
    refused(command("run", "--method", "fedpgp", "--set", change), "section.key=value", repr(change), expected)


@pytest.mark.parametrize(
    ("change", "expected"), [("fedpgp.muh=1", "'mu'?"), ("zero-shot.mu=1", "guidance"), ("median.mu=1", "mu")]
)
def test_an_unknown_key_has_the_known_ones(change: str, expected: str) -> None:
    place = change.partition("=")[0]
    with raises(ConfigError, where="--set", problem=place, remedy=expected):
        fedpgp.load_config(changes=[change])


def test_all_faults_of_a_config_are_reported_together(command: Command) -> None:
    ended = command("config", "--set", "fedpgp.mu=-1", "--set", "federation.rounds=0")
    assert ended.code == 2
    first, second = ended.err.splitlines()
    assert "federation.rounds" in first and "fedpgp.mu" in second


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("task.clients=51", ("task.clients", "51", "--set task.clients=50")),
        ("task.classes_per_client=6", ("task.clients", "at most 8", "10")),
        ("task.shots=37", ("task.shots", "at most 36", "37")),
        ("data.source=cifar", ("data.source", "'cifar'")),
        ("task.classes_per_client=51", ("task.classes_per_client", "at most 50", "51")),
        ("backbone.checkpoint=./nowhere", ("checkpoint", "./nowhere")),
        ("backbone.checkpoint=~/clip", ("checkpoint", "~/clip", "openai/clip-vit-base-patch16", "photoclip")),
        ("backbone.checkpoint=nowhere", ("checkpoint", "nowhere")),
        ("fedpgp.ctx_init=' '", ("fedpgp.ctx_init", "' '")),
        ("fedpgp.context_length=60", ("fedpgp", "at most", "60")),
        ("backbone.device=cuda:7", ("device", "cuda:7")),
    ],
)
def test_what_does_not_fit_data_or_checkpoint(
    command: Command, change: str, expected: tuple[str, ...], pictograms: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedpgp.data.sources.pictograms.read", lambda *_: pictograms)
    refused(command("run", "--method", "fedpgp", "-o", "out", "--set", change), *expected)


def test_seeds(command: Command, small: None) -> None:
    refused(command("compare", "--seeds", "0"), "seeds", "1 or more", "got 0")
    refused(command("compare", "--seeds", "-1"), "seeds", "1 or more", "got -1")
    refused(command("run", "--method", "fedpgp", "--seed", "-1"), "seed", "0 or more", "got -1")
    refused(command("run", "--method", "fedpgp", "--seed", "one"), "--seed", "'one'")
    allowed = command("run", "--method", "zero-shot", "--seed", "0", "--json", *sets())
    assert json.loads(allowed.out)["rows"][0]["seed"] == 0


def test_other_usage_errors(command: Command) -> None:
    refused(command("run"), "--method")
    refused(command("run", "--method", "fedpgp", "--rounds", "0"), "federation.rounds", "0")
    refused(command("compare", "--methods", ""), "methods", "got []")
    refused(command("run", "--resume", "out", "--seed", "0"), "--resume out", "Leave out --seed")
    refused(command("compare", "--resume", "out", "--set", "fedpgp.mu=1"), "--resume out", "Leave out --set")
    refused(command("run", "--method", "fedpgp", "--workers", "0"), "workers", "1 or more", "got 0")
    refused(command("run", "--method", "fedpgp", "--precision", "half"), "backbone.precision", "'half'")
    refused(command("run", "--method", "fedpgp", "--set", "federation.eval_every=0"), "federation.eval_every", "0")


def test_resuming_what_is_no_run(command: Command, tmp_path: Path) -> None:
    refused(command("run", "--resume", "nowhere"), "nowhere", "`fedpgp compare`")


def test_existing_output_is_kept(command: Command, small: None, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").write_text("mine")
    for arguments in (["compare"], ["run", "--method", "fedpgp"]):
        refused(command(*arguments, "-o", "out"), "out", "-o", "--force")
    assert files(tmp_path) == {"out/precious"}


def test_output_that_cannot_be_written_is_refused_before_any_work(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_tasks, "load_source", lambda data, splits: pytest.fail("work was done"))
    (tmp_path / "file").write_text("")
    refused(command("compare", "-o", "file/out"), "file/out", "-o")
    refused(command("compare", "-o", "/proc/fedpgp/out"), "/proc/fedpgp/out", "-o")


def test_damaged_asset(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shipped/pictograms").mkdir(parents=True)
    (tmp_path / "shipped/checksums.json").write_text('{"pictograms/classes.csv": "00"}')
    monkeypatch.setattr(assets, "DIRECTORY", tmp_path / "shipped")
    refused(command("run", "--method", "zero-shot"), "classes.csv", "Install fedpgp again")
    (tmp_path / "shipped/pictograms/classes.csv").write_text("name\n")
    refused(command("run", "--method", "zero-shot"), "classes.csv", "Install fedpgp again")


def written(directory: Path, seeds: dict[str, list[int]]) -> None:
    """Write the files of a comparison, without the figures."""
    directory.mkdir(parents=True)
    (directory / "plan.json").write_text(json.dumps({"seeds": seeds}))
    for name, of_method in seeds.items():
        for seed in of_method:
            (directory / name / f"seed-{seed}").mkdir(parents=True)
            (directory / name / f"seed-{seed}" / "results.json").write_text("{}")


def test_an_error_about_a_directory_without_a_run_lists_the_runs_nearby(command: Command, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    for read in (["predict", "nowhere", "a.png"], ["export", "nowhere"], ["join", "--from", "nowhere", "--data", "."]):
        refused(command(*read), "nowhere", "`fedpgp run`")
    (tmp_path / "empty").mkdir()
    refused(command("predict", "empty", "a.png"), "empty", "config.toml", "`fedpgp run`")
    refused(command("show", "empty"), "empty", "`fedpgp compare`")

    written(tmp_path / "out", {"local": [0, 1], "fedpgp": [0, 1, 2]})
    refused(
        command("predict", "out", "a.png"),
        "out/local/seed-0, out/fedpgp/seed-0, out/local/seed-1, out/fedpgp/seed-1",
        "and 1 more",
    )
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/plan.json").write_text(json.dumps({"seeds": {"local": [0]}}))
    refused(command("predict", "begun", "a.png"), "begun: ", "`fedpgp compare --resume begun`")

    written(tmp_path / "fedpgp-runs/old", {"local": [0]})
    written(tmp_path / "fedpgp-runs/study/new", {"local": [0]})
    os.utime(tmp_path / "fedpgp-runs/old", (1, 1))
    refused(
        command("show", "fedpgp-runs"),
        "fedpgp-runs: ",
        ": fedpgp-runs/study/new, ",
        ", fedpgp-runs/old\n",
    )
    refused(
        command("predict", "fedpgp-runs", "a.png"), "fedpgp-runs/study/new/local/seed-0, fedpgp-runs/old/local/seed-0"
    )


LONG = "a very long text " * 20


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("export", LONG), "`fedpgp run`"),
        (("show", LONG), "`fedpgp run`"),
        (("data", "check", LONG), "data.source"),
        (("doctor", "--checkpoint", LONG), "checkpoint"),
        (("run", "--method", f"{LONG}.py:Mine"), ".py:Mine"),
        (("config", "-c", LONG), "recipe"),
        (("run", "--method", "zero-shot", "-o", LONG), "too long"),
    ],
)
def test_a_text_that_is_too_long_for_a_path_is_no_file(
    arguments: tuple[str, ...], names: str, command: Command
) -> None:
    refused(command(*arguments), names)


def test_a_long_class_name_is_a_class_name(tmp_path: Path) -> None:
    assert options.class_names(LONG) == [LONG.strip()]
    assert options.class_names(f"{LONG},cat") == [LONG.strip(), "cat"]
    (tmp_path / "names").write_text("cat\ndog, brown\n")
    assert options.class_names(str(tmp_path / "names")) == ["cat", "dog, brown"]


def test_show_of_something_else(command: Command, tmp_path: Path) -> None:
    refused(command("show", "nowhere"), "nowhere", "`fedpgp compare`")


def test_training_that_diverges_names_client_round_and_step(command: Command, small: None) -> None:
    ended = command(
        "run",
        "--method",
        "promptfl",
        "-q",
        *sets("promptfl.learning_rate=1e3", "federation.weight_decay=1e3", "federation.rounds=9"),
    )
    refused(ended, "round 4", "[promptfl]", "learning_rate")


# Ctrl-C


@pytest.fixture
def interrupted_in_round_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send Ctrl-C once, in the second round of PromptFL."""
    train, pending = rounds.train_clients, [True]

    def interrupt(text: object, jobs: list[ClientJob]) -> object:
        if pending and jobs[0].method.name == "promptfl" and jobs[0].round == 2:
            pending.clear()
            raise KeyboardInterrupt
        return train(text, jobs)  # type: ignore[arg-type]

    monkeypatch.setattr(rounds, "train_clients", interrupt)


def test_interrupted_run_is_kept_and_resumed(
    command: Command, small: None, tmp_path: Path, interrupted_in_round_two: None
) -> None:
    ended = command("run", "--method", "promptfl", "-o", "out", *sets())
    assert ended.code == 130
    assert ended.err.splitlines()[-1].endswith("`fedpgp run --resume out`.")
    assert files(tmp_path / "out") - {"rounds.jsonl"} == {"config.toml", "state.sqlite"}
    assert json.loads(command("show", "out", "--json").out) == {"task": None, "rows": []}
    shown = command("show", "out")
    assert shown.code == 0
    assert re.search(r"^promptfl, seed 0 was stopped after round 1 of 2: Local \d", shown.err)
    assert shown.err.endswith("`fedpgp run --resume out`.\n")
    assert shown.out == ""
    refused(command("run", "--method", "promptfl", "-o", "out"), "out", "--force", "`fedpgp run --resume out`")
    remedy = re.search(r"`fedpgp (.*)`", ended.err)
    assert remedy is not None
    resumed = command(*remedy[1].split())
    assert resumed.code == 0
    assert "promptfl, seed 0: 2/2" in resumed.err
    assert command("show", "out").out == resumed.out


@pytest.mark.slow  # takes seconds
def test_interrupted_comparison_keeps_the_finished_methods(
    command: Command, small: None, tmp_path: Path, interrupted_in_round_two: None
) -> None:
    ended = command("compare", "--methods", "zero-shot,promptfl,fedpgp", "-o", "out", *sets())
    assert ended.code == 130
    assert ended.err.endswith("`fedpgp compare --resume out`.\n")
    shown = command("show", "out")
    assert "zero-shot" in shown.out
    assert "promptfl, seed 0 was stopped after round 1 of 2: Local" in shown.err
    assert "fedpgp, seed 0 was stopped before " in shown.err
    found = fedpgp.load_comparison(tmp_path / "out")
    assert (found.methods, [stopped.method for stopped in found.unfinished]) == (["zero-shot"], ["promptfl", "fedpgp"])
    with State.open(Path("out/promptfl/seed-0/state.sqlite")):
        shown = command("show", "out")
        refused(command("compare", "--resume", "out"), "promptfl/seed-0", "another process")
        refused(command("show", "out/promptfl/seed-0"), "promptfl/seed-0", "another process")
    assert "zero-shot" in shown.out
    assert re.match(r"promptfl, seed 0 with 2 rounds .* another process\n", shown.err)


def test_methods_that_share_no_finished_seed_are_shown_side_by_side(command: Command, own_comparison: Path) -> None:
    shutil.rmtree(own_comparison / "fedpgp")
    (own_comparison / "plan.json").write_text('{"seeds": {"zero-shot": [0, 1], "promptfl": [0, 1]}}')
    for cell in (own_comparison / "promptfl/seed-0", own_comparison / "zero-shot/seed-1"):
        (cell / "results.json").unlink()
        about = {"run": "1", "method": cell.parent.name, "seed": int(cell.name[-1]), "config": ""}
        about["provenance"] = json.loads((cell / "provenance.json").read_text())
        State.create(cell / "state.sqlite", about).close()
    shown = command("show", "out")
    assert shown.code == 0
    assert re.search(r"zero-shot \(seed 0\) +\d", shown.out) and re.search(r"promptfl \(seed 1\) +\d", shown.out)
    assert "no common seed" in shown.out


def test_interruption_before_the_first_round_is_reported(
    command: Command, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_features, "split_features", interrupt)
    ended = command("compare", "-o", "out", *sets())
    assert (ended.code, ended.err) == (130, "Interrupted before the first round.\n")
    assert not (tmp_path / "out").exists()


def test_damaged_run_directory(command: Command, own_comparison: Path) -> None:
    (own_comparison / "zero-shot/seed-0/outcomes.safetensors").write_bytes(b"nothing")
    refused(command("show", "out"), "out/zero-shot/seed-0", "damaged")


def test_percentages_agree_with_the_outcomes(compared: Path) -> None:
    saved = fedpgp.load_run(compared / "fedpgp/seed-0")
    base, owned = saved.outcomes.unpack("base"), saved.outcomes.unpack("own")
    local = [100 * np.mean(right[own]) for right, own in zip(base, owned, strict=True)]
    assert saved.results["final"]["local"] == pytest.approx(np.mean(local))


@pytest.mark.parametrize(
    ("line", "hints"),
    [
        ("run --shots 3", ("--set task.shots=…", "`fedpgp run --help`")),
        ("compare --mu 1", ("--set SECTION.mu=…", "fedpgp.mu, promptprox.mu", "`fedpgp compare --help`")),
        ("compare --methods fedpgp promptfl", ("--methods promptfl,fedpgp",)),
        ("compare --sedes 3", ("'--seeds'",)),
        ("federate up --nodez 3", ("'--nodes'?", "`fedpgp federate up --help`")),
    ],
)
def test_a_line_that_cannot_be_parsed_gets_a_hint(line: str, hints: tuple[str, ...], command: Command) -> None:
    refused(command(*line.split()), *hints)


@pytest.mark.parametrize(
    ("arguments", "first", "others"),
    [
        (
            ["sweep", "--grid", "task.shots=2,4", "--methods", "local,fedpgp", "--seeds", "3"],
            "2 cells × 2 methods (local, fedpgp) × 3 (seeds 0, 1, 2): 12 runs",
            ["  task.shots 2", "  task.shots 4"],
        ),
        (
            ["ablate", "--studies", "bottleneck", "--seeds", "2"],
            " settings of fedpgp, 2 seeds each",
            ["  as-it-stands", "  study bottleneck, setting '16'"],
        ),
        (
            ["compare", "--seeds", "2"],
            " s in 1 process: zero-shot, local, promptfl, fedpgp with seeds 0, 1",
            [],
        ),
    ],
    ids=["sweep", "ablate", "compare"],
)
def test_a_dry_run_prints_the_plan_and_writes_nothing(arguments, first, others, command, small, tmp_path) -> None:
    ended = command(*arguments, *sets(), "--dry-run")
    line, *rest = ended.out.splitlines()
    assert ended.code == 0 and first in line
    assert set(others) <= set(rest)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["compare", "sweep", "ablate"])
def test_a_dry_run_refuses_the_same_as_the_run_and_resuming(name, command, small, tmp_path) -> None:
    chosen = {"compare": [], "sweep": ["--grid", "task.shots=2"], "ablate": ["--studies", "mu"]}[name]
    ended = command(name, *chosen, "--dry-run", "--set", "task.clients=9999")
    assert ended.code == 2 and "9999" in ended.err
    ended = command(name, "--dry-run", "--resume", "out")
    assert ended.code == 2 and "--resume out" in ended.err and "--dry-run" in ended.err
    assert not list(tmp_path.iterdir())
