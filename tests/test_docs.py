"""The tutorial's code and commands, run as a reader would."""

import re
import shlex
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedpgp import cli

ROOT = Path(__file__).parents[1]
TUTORIAL = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8").partition("## Add a method")[2]
SHORT = ["federation.rounds=1", "federation.local_epochs=1", "task.clients=2", "task.shots=1"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TUTORIAL, flags=re.DOTALL)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the tutorial's file, as the working directory."""
    (tmp_path / "two_prompts.py").write_text(blocks("python")[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_tutorials_commands_run(written, small, cache, monkeypatch):
    for console in (cli.out, cli.err):  # another test may have left its own stream there
        monkeypatch.setattr(console, "_file", None)
    commands = [line.removeprefix("$ ").partition("#")[0] for line in "".join(blocks("console")).splitlines()]
    assert len(commands) == 3
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "fedpgp"
        if arguments[0] != "methods":
            arguments += [part for change in SHORT for part in ("--set", change)] + ["--cache-dir", str(cache)]
            arguments += ["--workers", "1"]
        done = CliRunner().invoke(cli.app, arguments)
        assert done.exit_code == 0, "".join(traceback.format_exception(done.exception))
        assert "two-prompts" in done.stdout


def test_the_tutorials_check_passes(written):
    done = subprocess.run([sys.executable, "-c", blocks("python")[1]], capture_output=True, text=True, check=False)
    assert re.fullmatch(r"\d+ checks passed\n", done.stdout), done.stderr


def test_the_tutorials_python_runs(written, small, cache, monkeypatch):
    import fedpgp

    plain = fedpgp.run
    monkeypatch.setattr(fedpgp, "run", lambda method: plain(method, changes=SHORT, cache=cache), raising=False)
    monkeypatch.syspath_prepend(str(written))
    content: dict[str, object] = {}
    exec(blocks("python")[2], content)  # the tutorial's own code is what is tested
    assert content["run"].method == "two-prompts"
    sys.modules.pop("two_prompts")


def test_the_tutorial_names_what_the_contract_has():
    from fedpgp.methods import Method, Params

    table = TUTORIAL.partition("### What else")[2]
    named = re.findall(r"^\| (.*?) \|", table, flags=re.MULTILINE)[2:]
    words = [word.partition("(")[0].partition(" ")[0] for row in named for word in re.findall(r"`([^`]+)`", row)]
    for word in words:
        owner, _, field = word.rpartition(".")
        assert field in Params.__dataclass_fields__ if owner else hasattr(Method, word), word


USING = (ROOT / "docs" / "using.md").read_text(encoding="utf-8")


def test_what_is_to_be_done_with_a_run_can_be_done(small, pictograms, cache, tmp_path, monkeypatch):
    import fedpgp

    for console in (cli.out, cli.err):
        monkeypatch.setattr(console, "_file", None)
    monkeypatch.chdir(tmp_path)
    fedpgp.compare(["promptfl", "fedpgp"], 1, changes=["task.clients=4", *SHORT[:2]], output="out", cache=cache)
    Path("photos").mkdir()
    for i in range(2):
        pictograms.test.image(i).save(f"photos/{i}.png")
    commands = [
        line.removeprefix("$ ").partition("#")[0]
        for block in re.findall(r"```console\n(.*?)```", USING, flags=re.DOTALL)
        for line in block.splitlines()
    ]
    assert len(commands) == 11
    for command in commands:
        program, *arguments = shlex.split(command)
        if program == "pip":
            continue
        done = CliRunner().invoke(cli.app, arguments)
        assert done.exit_code == 0, "".join(traceback.format_exception(done.exception))
    assert {path.name for path in tmp_path.iterdir()} == {
        *("out", "photos", "report.html", "figures", "found.csv", "prompt", "head", "clip", "served")
    }
    ear, classify = re.findall(r"```python\n(.*?)```", USING, flags=re.DOTALL)
    plain = fedpgp.compare
    monkeypatch.setattr(fedpgp, "compare", lambda *given, **more: plain(*given, **more, cache=cache), raising=False)
    exec(classify + ear, {})  # the page's own code is what is tested
