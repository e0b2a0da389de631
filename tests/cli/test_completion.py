"""Shell completion: what the shells get for a line, and the file of names."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from fedpgp.cli import completion

ROOT = Path(__file__).parents[2]


def in_shell(shell: str, words: list[str]) -> list[str]:
    """Return the completions of the last word, as a new process prints them for a shell."""
    given = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    given |= {"_TYPER_COMPLETE_ARGS": " ".join(words), "_FEDPGP_COMPLETE": f"complete_{shell}"}
    # If PyTorch is imported, the process fails: that would take seconds after each key.
    code = "import sys; sys.modules['torch'] = None; from fedpgp.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **given}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and not done.stderr, done
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fedpgp swe", ["sweep"]),
        ("fedpgp data che", ["check"]),
        ("fedpgp run --method promptp", ["promptprox"]),
        ("fedpgp compare --methods promptfl,fedpg", ["promptfl,fedpgp"]),
        ("fedpgp run -c photo", ["photographs"]),
        ("fedpgp reproduce photo", ["photographs"]),
        ("fedpgp data show --data cifar10", ["cifar10", "cifar100"]),
        (
            "fedpgp tune --set task.cl",
            ["task.class_names=", "task.clients=", "task.classes_per_client=", "task.class_division="],
        ),
        (
            "fedpgp tune --set federation.eng",
            [f"federation.engine={name}" for name in ("local", "simulation", "deployment")],
        ),
        ("fedpgp tune --set federation.eval", ["federation.eval_every=", "federation.eval_every=…"]),
        ("fedpgp sweep --grid task.protocol = pers", ["personalization"]),
        ("fedpgp run --set task.protocol =", list(completion.known()["settings"]["task.protocol"])),
        ("fedpgp run --set federation.rounds = 3 --device cuda:", ["cuda:1"]),
    ],
)
def test_bash_which_splits_words_at_equals_signs(line: str, expected: list[str]) -> None:
    assert in_shell("bash", line.split()) == expected


def test_other_shells_get_whole_words() -> None:
    found = in_shell("zsh", ["fedpgp", "run", "--set", "task.protocol=pers"])
    assert any("task.protocol=personalization" in line for line in found)


def test_a_section_is_completed_before_its_keys() -> None:
    sections = completion.of_settings("")
    assert {"task.", "fedpgp.", "fedavgm."} <= set(sections) and len(sections) == len(set(sections))
    assert set(completion.of_settings("fedpgp.m")) == {"fedpgp.mu=", "fedpgp.momentum="}
    assert completion.of_settings("no.such=") == []


def test_the_file_of_names_is_up_to_date() -> None:
    tool = runpy.run_path(str(ROOT / "tools/completion_names.py"))
    assert completion.FILE.read_text(encoding="utf-8") == tool["content"](), "run python tools/completion_names.py"
