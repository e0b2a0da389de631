"""Everything of fedpgp to which the page on other codes leads exists: options, commands, keys and their values."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

import fedpgp
from fedpgp import cli
from fedpgp.methods import METHODS

PAGE = (Path(__file__).parents[2] / "docs" / "coming-from.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (.+?) \| (.+?) \|(?: ?(.*?) ?\|)?$", PAGE, re.MULTILINE)
QUOTED = re.compile(r"`([^`]+)`")
VALUE = re.compile(r"`[^`]+`: `([^`]+)`")  # a value there and here


@pytest.fixture(scope="module")
def known() -> set[str]:
    """All keys, options and commands."""
    found, section = set(), ""
    for line in fedpgp.load_config().to_toml().splitlines():
        if heading := re.fullmatch(r"\[(.+)\]", line):
            section = heading[1]
        elif key := re.match(r"(?:# )?(\w+) =", line):
            found.add(f"{section}.{key[1]}")
    for name, command in get_command(cli.app).commands.items():
        found |= {f"fedpgp {name}", *(option for given in command.params for option in given.opts)}
    return found | set(METHODS)


def test_the_page_has_every_table():
    assert len(ROWS) > 80
    theirs = " ".join(row[0] for row in ROWS)
    for name in ("TRAINER.COOP.N_CTX", "--eval-only", "DATASET.USERS", "--useall", "--pgp_bottleneck", "`Folio`"):
        assert name in theirs


@pytest.mark.parametrize(("theirs", "ours", "note"), [row for row in ROWS if "`" in row[1]])
def test_what_a_row_leads_to_exists(theirs, ours, note, known):
    for text in QUOTED.findall(ours):
        key, _, value = text.partition("=")
        assert key in known, f"{theirs}: {text}"
        if value:
            fedpgp.load_config(None, [text])
    if ours.startswith("`task.") and "," not in ours:
        for value in VALUE.findall(note):
            fedpgp.load_config(None, [f"{QUOTED.findall(ours)[0]}={value}", "task.held_out=['noto']"])
