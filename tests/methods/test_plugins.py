"""Methods by users: in a file or an installed package, and the errors for methods that do not work."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from raising import raises

import fedpgp
from fedpgp.aggregators import AGGREGATORS
from fedpgp.config import SECTIONS, load_config
from fedpgp.errors import ConfigError, OutputError
from fedpgp.methods import METHODS, FedPGP, PromptFL, plugins
from fedpgp.methods.plugins import find_method
from fedpgp.results.run_store import resume_command
from fedpgp.runs.catalogue import about, catalogue
from fedpgp.runtime import code_files

SHORT = ["federation.rounds=2", "federation.local_epochs=1", "task.clients=2", "task.shots=2"]

MINE = '''
"""A method of my own."""
from typing import ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedpgp.methods import PromptFL
from fedpgp.methods.base import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Mine(PromptFL):
    """PromptFL with a smaller loss."""

    name: ClassVar[str] = "mine"
    source: ClassVar[str] = "none"
    factor: float = Field(default=0.5, gt=0, description="Factor of the loss (ours)")

    def loss(self, params, text, batch, frozen):
        return {name: self.factor * term for name, term in super().loss(params, text, batch, frozen).items()}
'''


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE, encoding="utf-8")
    return path


def test_a_file_with_one_method_needs_no_name(mine):
    assert find_method(f"{mine}:Mine") is find_method(str(mine))
    assert issubclass(find_method(str(mine)), PromptFL)


def test_a_method_of_a_file_runs_and_its_results_are_read_also_without_its_code(
    mine, small, tmp_path, cache, monkeypatch
):
    out = tmp_path / "out"
    found = fedpgp.run(f"{mine}:Mine", changes=[*SHORT, "mine.factor=0.25"], output=out, cache=cache)
    assert found.method == "mine"
    assert "factor = 0.25  # Factor of the loss (ours) [--set]" in (out / "config.toml").read_text(encoding="utf-8")
    assert fedpgp.load_run(out).results == found.results
    plain = fedpgp.run(PromptFL(), changes=SHORT, cache=cache)
    assert not torch.equal(found.prompts["shared/p_G"], plain.prompts["shared/p_G"])
    ratio = found.rounds[0]["loss_task"] / plain.rounds[0]["loss_task"]
    assert ratio == pytest.approx(0.25, rel=1e-3)
    installs(monkeypatch, "mine", "nowhere_at_all:Mine")
    assert fedpgp.load_run(out).method == "mine"


def test_a_comparison_with_it_is_resumed_only_when_it_is_named(mine, small, tmp_path, cache, monkeypatch):
    import fedpgp.runs.work as work

    out, plain, done = tmp_path / "out", work.federate, []

    def stopping(*args, **kwargs):
        for record in plain(*args, **kwargs):
            yield record
            done.append(record)
            if len(done) == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(work, "federate", stopping)
    with pytest.raises(KeyboardInterrupt):
        fedpgp.compare([str(mine), "promptfl"], changes=SHORT, output=out, cache=cache)
    with pytest.raises(OutputError, match=r"'mine'.*--method path/to/file.py:Name"):
        fedpgp.resume(out, cache=cache)
    assert [stopped.method for stopped in fedpgp.load_comparison(out).unfinished] == ["mine", "promptfl"]
    assert fedpgp.resume(out, methods=[str(mine)], cache=cache).methods == ["mine", "promptfl"]
    assert fedpgp.load_comparison(out).methods == ["mine", "promptfl"]


def test_a_method_object_is_run_with_its_hyperparameters_and_is_in_the_config(mine, small, tmp_path, cache):
    method = find_method(str(mine))(context_length=3, factor=0.25)
    for output in (None, tmp_path / "out"):
        found = fedpgp.run(method, changes=SHORT, cache=cache, output=output)
        assert found.config.methods["mine"] == method
    assert found.prompts["shared/p_G"].shape == (3, 128)
    assert found.provenance["method"]["context_length"] == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1 +\n", r"SyntaxError.* in line 1"),
        (
            "import os\n\nraise RuntimeError('no luck')\n",
            r"RuntimeError: no luck in bad.py, line 3: raise RuntimeError",
        ),
        ("import json\njson.loads('[')\n", r"JSONDecodeError.*in bad.py, line 2: json.loads"),
        ("import nowhere_at_all\n", r"ModuleNotFoundError.*line 1"),
    ],
)
def test_a_file_that_cannot_be_imported_names_the_line(content, message, tmp_path):
    path = tmp_path / "bad.py"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        find_method(str(path))
    assert path not in code_files.loaded_files()  # it is read again after it is fixed


HALF = "from fedpgp.methods import Method\nclass Half(Method):\n    name = 'half'\n"


@pytest.mark.parametrize(
    ("content", "name", "fields"),
    [
        ("x = 1\n", "", {"where": "bad.py", "problem": "no complete method", "remedy": "fedpgp.methods.Method"}),
        (MINE + MINE.replace("class Mine", "class Two"), "", {"problem": "Mine, Two", "remedy": "bad.py:Mine"}),
        ("class Mine:\n    pass\n", ":Mine", {"allowed": "derived from fedpgp.methods.Method", "remedy": "Derive"}),
        (MINE, ":Mime", {"where": "bad.py", "problem": "'Mime'", "remedy": "Mine"}),
        (MINE.replace('"mine"', '"fedpgp"'), ":Mine", {"where": "bad.py:Mine", "problem": "'fedpgp'"}),
        (MINE.replace('"mine"', '"../mine"'), ":Mine", {"allowed": "lowercase letters, digits", "got": "../mine"}),
        (MINE.replace("default=0.5, ", ""), ":Mine", {"where": "bad.py:Mine", "remedy": "default"}),
        (HALF, ":Half", {"where": "bad.py:Half", "problem": "prompts", "remedy": "Define prompts"}),
        (HALF, "", {"where": "bad.py", "remedy": "abstract functions"}),
    ],
)
def test_a_file_without_a_usable_method_says_why(content, name, fields, tmp_path):
    path = tmp_path / "bad.py"
    path.write_text(content, encoding="utf-8")
    with raises(ConfigError, **fields):
        find_method(f"{path}{name}")


QUICK = """
import dataclasses
import pydantic.dataclasses
from fedpgp.methods import PromptFL

DECORATOR
class Mine(PromptFL):
    name = "mine"
"""
PYDANTIC = "@pydantic.dataclasses.dataclass(frozen=True, kw_only=True)"


@pytest.fixture
def quick(tmp_path: Path) -> Callable[[str, str], Path]:
    """A file with a method that was written quickly."""
    path = tmp_path / "quick.py"

    def write(body: str, decorator: str = "") -> Path:
        path.write_text(QUICK.replace("DECORATOR", decorator) + body, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("decorator", "body"),
    [("", ""), ("", '    """ """\n'), (PYDANTIC, "    factor: float = 0.5\n")],
    ids=["no docstring", "an empty docstring", "a setting without a description"],
)
def test_a_method_written_quickly_runs_and_its_config_is_read_again(decorator, body, quick, tmp_path, small, cache):
    path = quick(body, decorator)
    one = ["federation.rounds=1", "federation.path_points=1", *SHORT[1:]]
    fedpgp.run(str(path), changes=one, output=tmp_path / "out", cache=cache)
    method = find_method(str(path))
    assert load_config(tmp_path / "out/config.toml", methods=[method]).methods["mine"] == method()
    written = (tmp_path / "out/config.toml").read_text(encoding="utf-8")
    assert "None" not in written and "# None" not in about(str(path))


@pytest.mark.parametrize(
    ("decorator", "body", "fields"),
    [
        ("", "    factor: float = 0.5\n", {"problem": "'factor'", "remedy": "@dataclass"}),
        (
            "@dataclasses.dataclass(frozen=True)",
            "    factor: float = 0.5\n",
            {"problem": "pydantic", "remedy": "@dataclass"},
        ),
        (
            PYDANTIC,
            "    table: dict = dataclasses.field(default_factory=lambda: {'a': 1})\n",
            {"where": "table of ", "got": {"a": 1}},
        ),
        ("", "    name = 5\n", {"where": "the name of ", "got": 5}),
        ("", "    reads = 'text'\n", {"where": "reads of ", "got": "text", "remedy": "reads = ('text',)"}),
    ],
)
def test_attributes_that_are_not_settings_are_refused_in_one_line(decorator, body, fields, quick):
    with raises(ConfigError, **fields) as error:
        find_method(str(quick(body, decorator)))
    assert "\n" not in str(error.value)


LOSS = "    def loss(self, params, text, *of):\n        return "
THREE = "    def predict(self, *of):\n        return 3\n"


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (LOSS + "super().loss(params, text, *of)['task']\n", {"where": "loss of method 'mine'", "got": "Tensor"}),
        (LOSS + "{'task': 0.5}\n", {"where": "loss of method 'mine'", "got": "dict"}),
        (THREE, {"where": "method 'mine'", "problem": "TypeError"}),
        (LOSS + "{'task': text.sum()}\n" + THREE, {"where": "predict of method 'mine'", "got": "int"}),
    ],
)
def test_a_wrong_return_value_of_a_method_is_reported_in_one_line(body, fields, quick, small, cache):
    with raises(ConfigError, **fields) as error:
        fedpgp.run(str(quick(body)), changes=SHORT, cache=cache)
    assert "\n" not in str(error.value)


def test_no_method_has_a_name_with_another_meaning_in_a_config(tmp_path):
    """All sections of a written config, and the other sections that a config file may have besides methods."""
    written = tomllib.loads(load_config().to_toml())
    sections = {*written, *SECTIONS, *AGGREGATORS} - {*METHODS}
    assert {"privacy", "fedadam"} <= sections
    for name in {*sections, "recipe", "extends", "all"}:
        path = tmp_path / f"{name}.py"
        path.write_text(MINE.replace('"mine"', f'"{name}"'), encoding="utf-8")
        with raises(ConfigError, where=f"{name}.py:Mine", problem=f"'{name}' has another meaning", remedy="name"):
            find_method(f"{path}:Mine")


def test_a_missing_file_is_named():
    with raises(ConfigError, where="nowhere.py:Mine", problem="no file nowhere.py", remedy="path/to/file.py:Name"):
        find_method("nowhere.py:Mine")


def installs(monkeypatch, name, value):
    point = EntryPoint(name, value, plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point] if group == plugins.GROUP else [])


def test_a_method_of_an_installed_package_is_found_listed_and_configured(mine, monkeypatch):
    monkeypatch.syspath_prepend(str(mine.parent))
    installs(monkeypatch, "mine", "mine:Mine")
    assert find_method("mine").name == "mine"
    entry = next(entry for entry in catalogue() if entry.name == "mine")
    assert (entry.shared, entry.private, entry.summary) == (16 * 128, 0, "PromptFL with a smaller loss.")
    assert load_config(None, ["mine.factor=0.1"]).methods["mine"].factor == 0.1
    assert "factor = 0.5  # Factor of the loss (ours)" in about("mine")
    recipe = load_config().methods["fedpgp"]
    assert f"mu = 0.5  # μ, weight of the contrastive term (authors' script); here {recipe.mu}" in about("fedpgp")


def test_an_installed_method_that_fails_does_not_stop_the_others(monkeypatch):
    installs(monkeypatch, "lost", "nowhere_at_all:Lost")
    entries = {entry.name: entry for entry in catalogue()}
    assert "cannot be imported: ModuleNotFoundError" in entries["lost"].summary
    assert set(METHODS) <= set(entries)
    assert load_config().methods.keys() == METHODS.keys()
    with raises(ConfigError, where="method 'lost'", problem="ModuleNotFoundError", remedy="uninstall the package"):
        find_method("lost")


def test_an_installed_method_cannot_take_the_place_of_ours(mine, monkeypatch):
    installs(monkeypatch, "fedpgp", "mine:Mine")
    assert find_method("fedpgp") is METHODS["fedpgp"]


BROKEN = (
    MINE
    + """

    def init_shared(self, task, backbone, rng):
        return {"p_G": nowhere}
"""
)


def test_a_method_that_fails_says_in_which_of_its_lines_before_training(tmp_path, small, cache, monkeypatch):
    path = tmp_path / "mine.py"
    path.write_text(BROKEN, encoding="utf-8")
    line = BROKEN.splitlines().index('        return {"p_G": nowhere}') + 1
    with raises(ConfigError, where="method 'mine'", problem="NameError") as caught:
        fedpgp.run(f"{path}:Mine", changes=SHORT, cache=cache)
    assert f" in mine.py, line {line}: return" in caught.value.problem
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    installs(monkeypatch, "mine", "mine:Mine")
    assert {entry.name: entry.summary for entry in catalogue()}["mine"].startswith(
        "method 'mine': it fails with NameError"
    )


def test_two_methods_of_one_name_are_refused(mine):
    for methods, name in (([FedPGP(mu=0.0), FedPGP(mu=1.0)], "fedpgp"), ([PromptFL(eps=0.1), "promptfl"], "promptfl")):
        with pytest.raises(ConfigError, match=name):
            fedpgp.compare(methods)

    class Nameless(PromptFL):
        """It has PromptFL's name."""

    with raises(ConfigError, where="method Nameless", problem="'promptfl'", remedy="Choose another name"):
        fedpgp.run(Nameless())


def test_a_run_is_not_resumed_with_other_code(mine, small, tmp_path, cache, monkeypatch):
    import fedpgp.runs.work as work

    plain = work.federate

    def stopping(*args, **kwargs):
        yield next(plain(*args, **kwargs))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(work, "federate", stopping)
        fedpgp.run(str(mine), changes=SHORT, output=tmp_path / "out", cache=cache)
    assert resume_command(tmp_path / "out").endswith("out --method path/to/file.py:Name")
    mine.write_text(MINE + "\n# changed\n", encoding="utf-8")
    with pytest.raises(OutputError, match="'mine'"):
        fedpgp.resume(tmp_path / "out", methods=[str(mine)], cache=cache)
    mine.write_text(MINE, encoding="utf-8")
    assert fedpgp.resume(tmp_path / "out", methods=[str(mine)], cache=cache).methods == ["mine"]


def typed(source: str) -> type:
    """A method as a notebook's cell defines it."""
    cell: dict[str, object] = {"__name__": "a_notebook"}
    exec(compile(source, "<cell 3>", "exec"), cell)
    return cell["Mine"]


def test_a_method_typed_into_a_notebook_runs_and_says_where_it_fails(small, cache):
    runs = [
        fedpgp.run(typed(source)(), changes=SHORT, cache=cache)
        for source in (MINE, MINE, MINE.replace("* term", "+ term"))
    ]
    codes = [run.provenance["method_code"] for run in runs]
    assert codes[0] == codes[1] != codes[2]
    broken = MINE.replace("super().loss", "nowhere")
    line = next(number for number, text in enumerate(broken.splitlines(), 1) if "nowhere" in text)
    with raises(ConfigError, where="method 'mine'", problem=f" in <cell 3>, line {line}: "):
        fedpgp.run(typed(broken)(), changes=SHORT, cache=cache)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_method_that_fails_in_training_says_in_which_of_its_lines(workers, tmp_path, small, cache):
    path = tmp_path / "mine.py"
    path.write_text(MINE.replace("super().loss", "nowhere"), encoding="utf-8")
    with raises(ConfigError, where="method 'mine'", problem="NameError") as caught:
        fedpgp.run(f"{path}:Mine", changes=SHORT, cache=cache, workers=workers)
    assert re.search(r" in mine.py, line \d+: return", caught.value.problem)


def test_an_exception_of_a_reporter_is_not_changed(mine, small, cache):
    class Stopping(fedpgp.Silent):
        def round(self, method, seed, record):
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        fedpgp.run(f"{mine}:Mine", changes=SHORT, cache=cache, reporter=Stopping())


def test_an_exception_of_a_reporter_in_the_methods_file_is_not_changed(tmp_path, small, cache):
    path = tmp_path / "mine.py"
    reporter = "\nclass Stopping:\n    def round(self, *of):\n        raise RuntimeError('enough')\n"
    path.write_text(MINE + reporter, encoding="utf-8")
    stopping = type("Listening", (vars(code_files.load_file(path))["Stopping"], fedpgp.Silent), {})()
    with pytest.raises(RuntimeError, match="enough"):
        fedpgp.run(f"{path}:Mine", changes=SHORT, cache=cache, reporter=stopping)


TYPED = """
import torch
from typing import ClassVar
from fedpgp.methods import PromptFL

class Base(PromptFL):
    @property
    def finetune_epochs(self):
        return 2

class Mine(Base):
    name: ClassVar[str] = "mine"

    @torch.no_grad()
    def begun(self, kind):
        return kind in {"first", "second", "third"}

    @staticmethod
    def half(value):
        return value / 2
"""


def test_every_edit_of_a_method_in_a_notebook_changes_its_fingerprint():
    edits = [("return 2", "return 3"), ("third", "fourth"), ("/ 2", "/ 3"), ('= "mine"', '= "ours"')]
    changed = [TYPED.replace(*edit) for edit in edits]
    assert len({plugins.fingerprint(typed(source)()) for source in (TYPED, TYPED, *changed)}) == 1 + len(edits)


@pytest.mark.slow
def test_the_fingerprint_of_a_method_in_a_notebook_is_the_same_in_every_process():
    source = f"{TYPED}\nfrom fedpgp.methods import plugins\nprint(plugins.fingerprint(Mine()))"

    def printed(hash_seed: str) -> str:
        command = [sys.executable, "-c", f"exec(compile({source!r}, '<cell 3>', 'exec'))"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert printed("1") == printed("2")
