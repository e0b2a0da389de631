"""A day in production: the commands of docs/production.md, in its order, on machines made of namespaces."""

import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from machines import HOME, Machine, install, machines, wheel

import fedpgp
from fedpgp.data.sources import pictograms
from fedpgp.runtime.version import __version__

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from attack_gate import Machines

pytestmark = [
    pytest.mark.by_hand,
    pytest.mark.xdist_group("federation"),
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="network namespaces need root and iproute2"),
]

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "production.md").read_text(encoding="utf-8")
NAMES = ["server", "node-0", "node-1", "node-2", "office"]
CLASSES = ["bee", "bicycle", "cat", "church", "frog", "lemon", "rabbit face", "umbrella"]
OF_NODE = {"node-0": CLASSES[:6], "node-1": CLASSES[2:], "node-2": [*CLASSES[:3], *CLASSES[5:]]}
REPEATED = ("fedpgp federate status", "flwr log")
PATIENCE = 300.0  # seconds until a command that is repeated must print what the page shows


class Step(NamedTuple):
    """A command of the page, with the heading above it, the machine, and what the reader sees."""

    heading: str
    machine: str
    command: str
    shown: str


def steps_of(page: str) -> list[Step]:
    found = []
    for section in page.split("\n## ")[1:]:
        for block in re.findall(r"^```console\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
            for machine, command, shown in re.findall(
                r"^([a-z0-9-]+)\$ ((?:.*\\\n)*.*)\n((?:(?![a-z0-9-]+\$ ).*\n)*)", block, re.MULTILINE
            ):
                found.append(Step(section.partition("\n")[0], machine, command, shown))
    return found


def plain(text: str) -> str:
    """Return a text in which every space is single, and every number is 0, except numbers of nodes."""
    text = re.sub(r"\b[0-9a-f]{16,}\b|\d[\d.,:]*(?! of \d nodes| nodes)", "0", text)
    text = re.sub(r"[─━]+", "─", text)
    return re.sub(r"\s+", " ", text).strip()


def pattern(shown: str) -> re.Pattern[str]:
    """Return the pattern of an output; an ellipsis stands for any text."""
    return re.compile(
        ".*".join(re.escape(part.strip()) + " ?" for part in plain(shown).split("…")).replace("\\ ", " ?")
    )


def take(step: Step, machine: Machine) -> tuple[str, bool]:
    """Run a command until its output is what the page shows; return the last output, and whether this is so."""
    expected, end = pattern(step.shown), time.monotonic() + PATIENCE
    repeated = step.command.startswith(REPEATED)
    while True:
        said, code = machine.run(step.command)
        fits = bool(expected.fullmatch(plain(said))) and (code == 0 or repeated)
        if fits or not repeated or time.monotonic() > end:
            return said, fits
        time.sleep(1)


def day(shells: Mapping[str, Machine], log: Path) -> Iterator[tuple[Step, str, bool]]:
    """Take the steps of the page; yield each with its output, and whether the page shows this output."""
    begun, heading, run = time.monotonic(), "", ""
    with log.open("w", encoding="utf-8") as file:
        for step in steps_of(PAGE):
            now = step._replace(command=step.command.replace("RUN_ID", run))
            since = time.monotonic()
            said, fits = take(now, shells[step.machine])
            if found := re.search(r"started run (\d+)", said):
                run = found[1]
            if step.heading != heading:
                heading = step.heading
                file.write(f"\n== {heading} ==\n\n")
            took = f"{since - begun:6.1f} s + {time.monotonic() - since:5.1f} s"
            file.write(f"[{took}] {now.machine}$ {now.command}\n" + (said.strip("\n") + "\n" if said.strip() else ""))
            file.flush()
            yield now, said, fits


def photographs(root: Path) -> None:
    """Give each node small images of its own, and the office images of no node."""
    (root / "server" / HOME.relative_to("/") / "names.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    source = pictograms.read()
    labels = source.train.labels.tolist()
    for number, (machine, names) in enumerate(OF_NODE.items()):
        for name in names:
            of_class = [i for i, label in enumerate(labels) if source.train.class_names[label] == name]
            folder = root / machine / "srv" / "photos" / name
            folder.mkdir(parents=True)
            for index in of_class[number::3]:
                source.train.image(index).save(folder / f"{index}.png")
    new = root / "office" / "srv" / "new"
    new.mkdir()
    for name in CLASSES[::3]:
        label = source.test.class_names.index(name)
        source.test.image(source.test.labels.tolist().index(label)).save(new / f"{name}.png")


def test_every_command_of_the_page_works_as_printed(tmp_path):
    """About ten minutes. The file day.log in the test's directory has each command, its time and its output."""
    root = tmp_path / "machines"
    (version,) = set(re.findall(r"pip install --quiet fedpgp-(\S+)-py3", PAGE))
    assert version != __version__
    present = wheel(ROOT, tmp_path / "present", {})
    after = wheel(
        ROOT,
        tmp_path / "next",
        {
            "src/fedpgp/runtime/version.py": (__version__, version),
            "src/fedpgp/flower/deployment/templates/client_app.py": ("app = ", "# the app of another version\napp = "),
        },
    )
    with Machines(NAMES) as network:
        spaces = {name: network.on(name) for name in NAMES}
        with machines(root, network.addresses, spaces) as shells:
            photographs(root)
            for name, shell in shells.items():
                install(shell, present)
                shutil.copy(after, root / name / HOME.relative_to("/"))
            for step, said, fits in day(shells, tmp_path / "day.log"):
                assert fits, f"{step.machine}$ {step.command}\nprinted:\n{said}\nthe page shows:\n{step.shown}"
            for shell in shells.values():
                processes, _ = shell.run("ps -eo args --no-headers")
                assert processes.splitlines() == ["bash --noprofile --norc", "ps -eo args --no-headers"]
        result = fedpgp.load_run(root / "office" / HOME.relative_to("/") / "three")
        assert [session["fedpgp"] for session in result.provenance["resumed"]] == [version]
        kept = {path.name for name in NAMES for path in (root / name / HOME.relative_to("/")).iterdir()}
        assert kept - {".cache"} == {".venv", after.name, "names.txt", "three"}
