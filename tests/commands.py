"""Run the command line in this process, and check what a command printed."""

from collections.abc import Callable
from typing import NamedTuple

import click
from tiny import SHORT_RUN
from typer.main import get_command

from fedpgp import cli


class Ended(NamedTuple):
    """A command that has ended: exit code, standard output and standard error."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]


def sets(*changes: str) -> list[str]:
    """Return the options of a short run, with further changes."""
    return [part for change in (*SHORT_RUN, *changes) for part in ("--set", change)]


def refused(ended: Ended, *expected: str) -> None:
    """Assert exit code 2, and one line on standard error that contains all of `expected`.

    expected: names of fields, files and options, values, and commands; not words of the sentence.
    """
    assert ended.code == 2, ended
    assert ended.out == ""
    assert ended.err.startswith("fedpgp: error: ")
    assert len(ended.err.splitlines()) == 1, ended.err
    for text in expected:
        assert text in ended.err


def all_commands(*left_out: str) -> dict[str, click.Command]:
    """Return all commands by name, such as "data check", and the commands of all groups except some."""
    group = get_command(cli.app)
    assert isinstance(group, click.Group)
    commands = {name: found for name, found in group.commands.items() if name not in left_out}
    inner = {f"{name} {i}": c for name, found in commands.items() for i, c in getattr(found, "commands", {}).items()}
    return {name: found for name, found in {**commands, **inner}.items() if not isinstance(found, click.Group)}
