"""Run the code and the commands of the documentation, as a reader would."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from commands import Command, sets
from PIL import Image
from typer.main import get_command

from fedpgp import cli

ROOT = Path(__file__).parents[2]
TUTORIAL = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8").partition("## Add a method")[2]
SHORT = ["federation.rounds=1", "federation.local_epochs=1", "task.clients=2", "task.shots=1"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TUTORIAL, flags=re.DOTALL)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory, which contains the tutorial's file."""
    (tmp_path / "two_prompts.py").write_text(blocks("python")[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: Command, line: str, *more: str) -> str:
    """Run a command of a page, with more arguments if it trains, and return its output."""
    program, *arguments = shlex.split(line.removeprefix("$ ").partition("#")[0])
    assert program == "fedpgp"
    ended = command(*arguments, *(more if arguments[0] in ("run", "compare") else ()))
    assert ended.code == 0, ended.err
    return ended.out


def test_the_tutorials_commands_run(written, small, command):
    commands = "".join(blocks("console")).splitlines()
    assert len(commands) == 3
    for line in commands:
        assert "two-prompts" in run(command, line, *sets(*SHORT))


@pytest.mark.slow
def test_the_tutorials_check_passes(written):
    done = subprocess.run([sys.executable, "-c", blocks("python")[1]], capture_output=True, text=True, check=False)
    assert re.fullmatch(r"\d+ checks passed\n", done.stdout), done.stderr


def test_the_tutorials_python_runs(written, small, cache, monkeypatch):
    import fedpgp

    plain = fedpgp.run
    monkeypatch.setattr(fedpgp, "run", lambda method: plain(method, changes=SHORT, cache=cache), raising=False)
    monkeypatch.syspath_prepend(str(written))
    content: dict[str, object] = {}
    exec(blocks("python")[2], content)  # the tutorial's own code is tested
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


@pytest.mark.slow
def test_the_commands_of_the_page_on_runs_work(small, pictograms, cache, command, tmp_path, monkeypatch):
    import fedpgp

    fedpgp.compare(["promptfl", "fedpgp"], 1, changes=["task.clients=4", *SHORT[:2]], output="out", cache=cache)
    Path("photos").mkdir()
    for i in range(2):
        pictograms.test.image(i).save(f"photos/{i}.png")
        folder = Path("held-out", pictograms.class_names[pictograms.test.labels[i]])
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(f"photos/{i}.png", folder)
    lines = "".join(re.findall(r"```console\n(.*?)```", USING, flags=re.DOTALL)).splitlines()
    assert len(lines) == 11
    for line in lines:
        if not line.startswith("$ pip"):
            run(command, line)
    assert {path.name for path in tmp_path.iterdir()} == {
        *(
            "out",
            "photos",
            "held-out",
            "report.html",
            "figures",
            "found.csv",
            "scores",
            "prompt",
            "head",
            "clip",
            "served",
        )
    }
    reporter, classify, scored = re.findall(r"```python\n(.*?)```", USING, flags=re.DOTALL)
    plain = fedpgp.compare
    monkeypatch.setattr(fedpgp, "compare", lambda *given, **more: plain(*given, **more, cache=cache), raising=False)
    exec(classify + scored + reporter, {})  # the page's own code is tested


TRACKING = (ROOT / "docs" / "tracking.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_commands_and_code_of_the_page_on_tracking_work(small, cache, command, tmp_path, monkeypatch):
    import fedpgp
    from fedpgp.serving import hub

    (block,) = re.findall(r"```console\n(.*?)```", TRACKING, flags=re.DOTALL)
    lines = block.splitlines()
    assert [line.split()[1] for line in lines] == ["pip", "fedpgp", "fedpgp", "tensorboard"]
    for line in lines[1:3]:
        run(command, line, *sets(*SHORT))
    for name in ("run", "compare", "rounds"):
        plain = getattr(fedpgp, name)
        short = partial(plain, changes=SHORT, cache=cache)
        monkeypatch.setattr(fedpgp, name, short, raising=False)
    uploaded = []
    monkeypatch.setattr(hub, "upload", lambda *given: uploaded.append(given))  # tests/serving/test_hub.py has a server
    content: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", TRACKING, flags=re.DOTALL):
        exec(code, content)
    assert content["run"].results["rounds"] == 1
    assert content["best"] in ("promptfl", "fedpgp")
    assert uploaded == [("prompt", "me/icons")]
    assert {path.name for path in tmp_path.iterdir()} == {
        *("one", "out", "logs", "runs.db", "runs.db.files", "wandb", "mine", "tradeoff.pdf", "curves.svg")
    }


# All pages

PAGES = {
    path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
PROMPT = re.compile(r"[a-z0-9-]+\$ ")  # of a page with several machines
FENCE = re.compile(r"^```(console|sh|python|toml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# For each page: the test that runs its blocks, or why they take too long to run. Commands of all pages are parsed here.
DONE = {
    "README.md": "docs/test_docs.py: its Python; its commands are also on the pages that it names",
    "methods.md": "docs/test_docs.py: the tutorial; the tables of costs take an hour",
    "tracking.md": "docs/test_docs.py; uploads: serving/test_hub.py",
    "using.md": "docs/test_docs.py",
    "choosing.md": "docs/test_docs.py",
    "coming-from.md": "docs/test_docs.py, docs/test_coming_from.py",
    "tutorial.md": "docs/test_site.py, every block",
    "reproduction.md": "docs/test_docs.py: the grid; studies/test_reproduction.py, on few rounds: 80 minutes",
    "data.md": "data/sources, cli/test_cli.py",
    "data-sets.md": "data/sources: small files in the official layouts; the datasets are not available here",
    "deploy.md": "flower/deployment/test_deployment.py; three machines are not available here",
    "production.md": "flower/deployment/test_production.py, every command with its output: minutes, as root",
    "federation.md": "flower/test_simulation.py, flower/deployment/test_deployment.py: a minute each",
    "protocols.md": "data/test_protocols.py",
    "checkpoints.md": "runs/test_resume.py, test_kills.py",
    "comparing.md": "report/test_comparison.py, studies/test_tuning.py, studies/test_ablation.py: 39 minutes",
    "published-settings.md": "methods/test_published.py",
    "results.md": "docs/test_results.py: figures; studies/test_reproduction.py, on few rounds: an hour",
    "results-icons.md": "report/test_comparison.py, studies/test_ablation.py, on few rounds: an hour and a half",
    "demo.md": "demo/test_demo_federation.py, demo/test_demo_page.py",
    "benchmark.md": "bench/test_bench.py, on small shapes: minutes on an idle core",
}


def commands() -> list[tuple[str, list[str]]]:
    """Return every command of every page, as a page and the words of the command."""
    found = []
    for page, text in PAGES.items():
        for language, block in FENCE.findall(text):
            if language not in ("console", "sh"):
                continue
            lines = block.replace("\\\n", " ").splitlines()
            if PROMPT.match(block):  # the other lines are outputs
                lines = [PROMPT.sub("", line) for line in lines if PROMPT.match(line)]
            for line in lines:
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words and words[0] == "fedpgp":
                    found.append((page, [word for word in words if word not in (">", "|")]))
    return found


COMMANDS = commands()


def test_every_page_with_blocks_names_the_test_that_runs_them():
    assert {page for page, text in PAGES.items() if FENCE.search(text)} == set(DONE)
    for where in DONE.values():
        for name in re.findall(r"[\w/]+\.py", where):
            assert (ROOT / "tests" / name).is_file(), name


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=lambda value: value if isinstance(value, str) else None)
def test_every_command_has_its_options_and_settings(page, words):
    import fedpgp

    command, rest = get_command(cli.app), words[1:]
    if "--help" in rest or "--install-completion" in rest:
        return
    while hasattr(command, "commands"):
        assert rest[0] in command.commands, " ".join(words)
        command, rest = command.commands[rest[0]], rest[1:]
    target = (
        rest.index("table.tex") if "table.tex" in rest else rest.index("my.toml") if rest[-1:] == ["my.toml"] else None
    )
    given = command.make_context(command.name, rest[:target] if command.name in ("show", "config") else rest).params
    changes = [change for change in given.get("change") or () if not change.startswith("two-prompts.")]
    config = given.get("config")
    if changes or config:
        fedpgp.load_config(config if config and Path(config).suffix != ".toml" else None, changes)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["choosing.md", "coming-from.md"])
def test_the_command_of_a_page_runs(page, small_source, command, tmp_path):
    """The command of the page on choosing reads a folder of photographs."""
    for i in range(32):
        place = tmp_path / "photos" / "abcd"[i % 4] / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        small_source.test.image(i).save(place)
    (block,) = (block for language, block in FENCE.findall(PAGES[page]) if language == "console")
    assert "fedpgp, shared part" in run(command, block, *sets(*SHORT, "federation.batch_size=1"))


@pytest.mark.by_hand
def test_the_readme_shows_what_make_run_prints(tmp_path):
    """A minute on idle cores. The seconds in the last column are not compared.

    The README's second table is not compared, because its images are not in the package.
    """
    (line,) = re.findall(r"^\t\$\(BIN\)/fedpgp (compare .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    printed = subprocess.run(
        [sys.executable, "-m", "fedpgp", *line.split(), "--quiet", "-o", str(tmp_path / "out")],
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    blocks = re.findall(r"^```\w*\n(.*?)^```$", PAGES["README.md"], re.MULTILINE | re.DOTALL)
    shown = next(block for block in blocks if "on caltech101" in block).splitlines()
    for line, expected in zip(shown, printed, strict=False):
        assert re.sub(r" +\d+$", "", line) == re.sub(r" +\d+$", "", expected.rstrip())


def test_the_readmes_python_runs(small, cache, tmp_path, monkeypatch):
    import fedpgp

    compare, run = fedpgp.compare, fedpgp.run
    short = [change.replace("clients=2", "clients=4") for change in SHORT]
    monkeypatch.setattr(
        fedpgp,
        "compare",
        lambda methods, seeds, changes: compare(methods, seeds, changes=[*changes, *short], cache=cache),
        raising=False,
    )
    monkeypatch.setattr(
        fedpgp,
        "run",
        lambda method, seed, output: run(method, seed, output=output, changes=short, cache=cache),
        raising=False,
    )
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), "orange").save("cat.png")
    (code,) = (block for language, block in FENCE.findall(PAGES["README.md"]) if language == "python")
    content: dict[str, object] = {}
    exec(code, content)  # the page's own code is tested
    assert content["run"].method == "fedpgp"
    assert fedpgp.load_run("my-run").results["clients"][3]


def test_the_grid_of_the_page_is_valid(tmp_path):
    from fedpgp.studies.sweep import read_sweep

    (text,) = (block for language, block in FENCE.findall(PAGES["reproduction.md"]) if language == "toml")
    (tmp_path / "my-grid.toml").write_text(text, encoding="utf-8")
    axes, methods, config = read_sweep(tmp_path / "my-grid.toml")
    assert set(axes) == {"mu", "shots", "terms"}
    assert (methods, config) == (["promptfl", "fedpgp"], "pictograms")
