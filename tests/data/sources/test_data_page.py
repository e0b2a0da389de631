"""The commands of docs/data.md, run as by a reader."""

import re
import shlex
import traceback
from pathlib import Path

from typer.testing import CliRunner

from fedpgp import cli

PAGE = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
SHORT = ["federation.rounds=1", "federation.local_epochs=1"]


def test_the_pages_commands_run(pictograms, tmp_path, cache, monkeypatch):
    images, rows = pictograms.validation, ["path,label"]
    for label in range(4):
        for i in images.of_classes([label])[:12]:
            file = tmp_path / "photos" / images.class_names[label] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            images.image(int(i)).save(file)
            rows.append(f"{file.relative_to(tmp_path)},{images.class_names[label]}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    monkeypatch.chdir(tmp_path)
    for console in (cli.out, cli.err):
        monkeypatch.setattr(console, "_file", None)
    commands = [
        line.removeprefix("$ ")
        for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
        for line in block.splitlines()
    ]
    assert len(commands) == 5
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "fedpgp"
        if arguments[0] == "run":
            arguments += [part for change in SHORT for part in ("--set", change)] + ["--cache-dir", str(cache)]
            arguments += ["--workers", "1"]
        done = CliRunner().invoke(cli.app, arguments)
        assert done.exit_code == 0, "".join(traceback.format_exception(done.exception)) + done.output
        assert done.stdout
