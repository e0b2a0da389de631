"""Published settings: the files, the order in which values override others, and what is not applied."""

import re
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from commands import Command, sets
from pydantic.dataclasses import dataclass
from raising import raises
from tiny import SHORT_RUN

import fedpgp
from fedpgp.backbone import Backbone
from fedpgp.config import load_config
from fedpgp.errors import ConfigError
from fedpgp.methods import METHODS, FedPGP
from fedpgp.methods.published import PUBLISHED, files, published_settings
from fedpgp.reporting import Silent
from fedpgp.runs.choices import chosen_methods
from fedpgp.runs.published import fitted

OF_TASK = {
    "federation": {"rounds", "local_epochs", "batch_size", "everyone_first", "optimizer_state"},
    "data": {"augmented_views"},
    "fedavg": {"weighting"},
}
PAGE = Path(__file__).parents[2] / "docs" / "published-settings.md"


class Listening(Silent):
    """Keeps the notices."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def notice(self, text: str) -> None:
        self.heard.append(text)


def value(config: fedpgp.ExperimentConfig, name: str) -> Any:
    """The value of "section.key" in a config, as TOML has it."""
    section, key = name.split(".")
    found = getattr({**vars(config), **config.aggregators, **config.methods}[section], key)
    return list(found) if isinstance(found, tuple) else found


# The files


def test_every_method_has_a_file_and_its_page_links_to_it() -> None:
    assert list(files()) == sorted(METHODS)
    page = PAGE.read_text(encoding="utf-8")
    for name in METHODS:
        assert f"(../src/fedpgp/recipes/published/{name}.toml)" in page


@pytest.mark.parametrize("name", METHODS)
def test_a_file_has_fields_that_exist_with_a_source_behind_every_value(name: str) -> None:
    settings = published_settings(name)
    text = files()[name].read_text(encoding="utf-8")
    assert len(settings) == sum(map(len, tomllib.loads(text).values())) == len(re.findall(r"^\w.* # \S", text, re.M))
    for setting in settings:
        assert setting.of_method or setting.key in OF_TASK[setting.section], setting
    config = load_config(published=settings)
    for setting in settings:
        assert value(config, setting.name) == setting.value
        assert config.origins[setting.name] == PUBLISHED


@pytest.mark.parametrize("name", METHODS)
def test_a_context_length_comes_with_its_first_context(name: str) -> None:
    keys = {setting.key for setting in published_settings(name) if setting.of_method}
    if "context_length" in keys and "ctx_init" in {
        field.name for field in fields(METHODS[name])
    }:  # a phrase in the config has its own length
        assert "ctx_init" in keys


@pytest.mark.parametrize("name", METHODS)
def test_crops_are_as_many_as_epochs_and_never_more_than_fifty(name: str) -> None:
    task = {setting.name: setting.value for setting in published_settings(name) if not setting.of_method}
    views = task.get("data.augmented_views", 1)
    assert views <= 50
    if views > 1 and "federation.rounds" in task:
        assert views == min(task["federation.rounds"] * task["federation.local_epochs"], 50)


# The order in which values override others


def test_published_values_replace_those_of_the_file_and_changes_replace_both(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[fedpgp]\nmu = 3.0\ntau = 0.7\nfull_rank = true\n[federation]\nrounds = 4\n")
    changes = ["fedpgp.tau=0.9", "federation.local_epochs=3"]
    _, config = chosen_methods("fedpgp", tmp_path / "mine.toml", changes, PUBLISHED, of_task=True)
    method = config.methods["fedpgp"]
    assert isinstance(method, FedPGP)
    assert (method.mu, method.tau, method.full_rank) == (0.5, 0.9, True)
    assert (config.federation.rounds, config.federation.local_epochs) == (25, 3)
    written = config.to_toml()
    assert re.search(r"^mu = 0\.5 .*\[published\]$", written, re.M)
    assert re.search(r"^tau = 0\.9 .*\[--set; published for fedpgp: 0\.5\]$", written, re.M)
    assert re.search(r"^local_epochs = 3 .*\[--set; published for fedpgp: 2\]$", written, re.M)
    assert re.search(r"^full_rank = true .*\[mine\.toml\]$", written, re.M)


def test_a_comparison_takes_the_values_of_methods_and_says_which_of_the_task_it_leaves_out() -> None:
    before = load_config()
    _, config = chosen_methods(["promptfl", "fedpgp"], None, (), PUBLISHED)
    assert (config.methods["fedpgp"].mu, config.methods["promptfl"].learning_rate) == (0.5, 0.001)
    assert (config.federation, config.data) == (before.federation, before.data)
    assert config.aggregators == before.aggregators
    assert config.methods["local"] == before.methods["local"]
    (line,) = re.findall(r"^rounds = .*$", config.to_toml(), re.M)
    assert line.endswith("[the embedded recipe; published for promptfl: 20; published for fedpgp: 25]")


def test_without_settings_everything_is_as_in_the_file() -> None:
    assert chosen_methods("fedpgp", None, ())[1] == load_config()


def test_a_command_prints_the_values_and_their_sources_and_a_run_is_resumed_without_the_option(
    command: Command, small: None, tmp_path: Path
) -> None:
    ended = command("run", "-m", "fedpgp", "--settings", "published", "-o", "out", *sets("data.augmented_views=1"))
    assert ended.code == 0, ended
    assert "fedpgp: published settings of fedpgp:\n" in ended.err
    mu = next(setting for setting in published_settings("fedpgp") if setting.key == "mu")
    assert f"\n  fedpgp.mu = 0.5  # {mu.source}\n" in ended.err
    assert "not used: federation.rounds = 25 (here 2), " in ended.err
    assert fedpgp.load_run("out").config.methods["fedpgp"].mu == 0.5
    again = command("run", "--resume", "out")
    assert (again.code, again.out) == (0, ended.out)
    assert "published" not in again.err


def test_a_comparison_tells_what_it_leaves_out_and_a_dry_run_does_too(command: Command, small: None) -> None:
    options = ["--methods", "zero-shot,promptfl", "--settings", "published", *sets()]
    for more in (["-o", "out"], ["--dry-run"]):
        ended = command("compare", *options, *more)
        assert ended.code == 0, ended
        assert '\n  zero-shot.guidance = "dataset"  # code: ' in ended.err
        assert "federation.rounds = 20 (here 2)" in ended.err
        assert 'fedavg.weighting = "uniform" (here "examples")' in ended.err
    written = fedpgp.load_run("out/promptfl/seed-0").config
    assert (written.methods["promptfl"].learning_rate, written.federation.rounds) == (0.001, 2)


def test_a_method_without_published_values_says_so(small: None, cache: Path) -> None:
    reporter = Listening()
    fedpgp.run("pfedprompt", settings=PUBLISHED, changes=SHORT_RUN, cache=cache, reporter=reporter)
    assert "published settings of pfedprompt: none" in reporter.heard


def test_methods_shows_published_values_beside_the_defaults(command: Command) -> None:
    told = " ".join(command("methods", "fedpgp").out.split())
    assert "here 1.9; published 0.5 " in told
    assert "`fedpgp run --settings published` also sets federation.rounds = 25, " in told
    assert "published" not in command("methods", "zero-shot").out.split("guidance")[0]


# What is refused


@dataclass(frozen=True, kw_only=True)
class Mine(FedPGP):
    name = "mine"


@pytest.mark.parametrize(
    "method, config, settings, expected",
    [
        ("mine.py", None, PUBLISHED, "published settings of mine"),
        (FedPGP(mu=1.0), None, PUBLISHED, "settings"),
        ("fedpgp", fedpgp.ExperimentConfig(), PUBLISHED, "settings"),
        ("fedpgp", None, "tuned", "'tuned'"),
    ],
)
def test_settings_that_cannot_be_taken(
    method: Any, config: Any, settings: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("from test_published import Mine as Base\n\nclass Mine(Base):\n    pass\n")
    for call in (fedpgp.run, fedpgp.compare, fedpgp.rounds):
        with pytest.raises(ConfigError, match=re.escape(expected)):
            call(method, config=config, settings=settings)


def test_resuming_takes_no_settings(command: Command) -> None:
    for name in ("run", "compare"):
        ended = command(name, "--resume", "out", "--settings", "published")
        assert ended.code == 2 and "--resume" in ended.err and "settings" in ended.err


# What a checkpoint does not have


@pytest.mark.parametrize(
    "name, published, depth, tower",
    [("fedivlp", 9, 3, "text"), ("fedmaple", 9, 3, "text"), ("fedpromptsrc", 9, 3, "text"), ("fedvpt", 12, 5, "image")],
)
def test_published_depths_are_at_most_the_layers_of_the_towers(
    name: str, published: int, depth: int, tower: str, backbone: Backbone
) -> None:
    _, config = chosen_methods(name, None, (), PUBLISHED)
    assert config.methods[name].depth == published
    found, told = fitted(config, [name], backbone)
    assert found.methods == {**config.methods, name: replace(config.methods[name], depth=depth)}
    reason = f"the checkpoint's {tower} tower has {depth} layers"
    assert len(told) == 1 and all(text in told[0] for text in (f"{name}.depth is {depth}", f"{published}", reason))
    assert f"depth = {depth} " in found.to_toml() and f"[published: {published}; {reason}]" in found.to_toml()
    assert fitted(found, [name], backbone) == (found, [])


def test_a_depth_that_the_user_sets_is_not_reduced(small: None) -> None:
    for settings in (None, PUBLISHED):
        with raises(ConfigError, where="fedivlp.depth", allowed="at most 3", got=4):
            fedpgp.run("fedivlp", settings=settings, changes=[*SHORT_RUN, "fedivlp.depth=4"])


# All of them


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_with_its_published_settings(name: str, small: None, cache: Path) -> None:
    changes = ["task.clients=2", "task.shots=1", "federation.rounds=2", "federation.local_epochs=1"]
    changes += ["data.augmented_views=2", "federation.path_points=1", "federation.eval_every=2"]
    reporter = Listening()
    run = fedpgp.run(name, settings=PUBLISHED, changes=changes, cache=cache, reporter=reporter)
    printed = reporter.heard[0].splitlines()
    changed = {change.partition("=")[0] for change in changes}
    for setting in published_settings(name):
        if setting.name not in changed:
            assert f"  {setting}  # {setting.source}" in printed
            assert value(run.config, setting.name) == setting.value or setting.key == "depth"
    assert len(run.rounds) == (1 if name == "zero-shot" else 2)
