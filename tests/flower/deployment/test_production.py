"""A day in production: the commands of docs/production.md, in its order, on machines made of namespaces."""

import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from machines import HOME, Machine, install, machines, wheel

from fedpgp.data.sources import pictograms
from fedpgp.runtime.version import __version__

ROOT = Path(__file__).parents[3]
sys.path.append(str(ROOT / "tools"))
from attack_gate import Machines

pytestmark = [
    pytest.mark.by_hand,
    pytest.mark.xdist_group("federation"),
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="network namespaces need root and iproute2"),
]

PAGE = (ROOT / "docs" / "production.md").read_text(encoding="utf-8")
NAMES = ["server", "node-0", "node-1", "node-2", "office"]
CLASSES = ["bee", "bicycle", "cat", "church", "frog", "lemon", "rabbit face", "umbrella"]
OF_NODE = {"node-0": CLASSES[:6], "node-1": CLASSES[2:], "node-2": [*CLASSES[:3], *CLASSES[5:]]}
REPEATED = ("fedpgp federate status", "fedpgp show", "flwr ls", "flwr supernode", "tail", "grep")
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
    """Return a text in which every number is 0 and every space is single, because times and ids differ."""
    text = re.sub(r"\b[0-9a-f]{16,}\b|\d[\d.,:]*", "0", text)
    text = re.sub(r"[─━]+", "─", text)
    return re.sub(r"\s+", " ", text).strip()


def pattern(shown: str) -> re.Pattern[str]:
    """Return the pattern of an output; an ellipsis stands for any text."""
    return re.compile(".*".join(re.escape(part.strip()) + " ?" for part in plain(shown).split("…")).replace("\\ ", " ?"))


def take(step: Step, machine: Machine) -> tuple[str, bool]:
    """Run a command until its output is what the page shows; return the last output, and whether this is so."""
    expected, end = pattern(step.shown), time.monotonic() + PATIENCE
    while True:
        said, code = machine.run(step.command)
        fits = code == 0 and bool(expected.fullmatch(plain(said)))
        if fits or not step.command.startswith(REPEATED) or time.monotonic() > end:
            return said, fits
        time.sleep(1)


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
    (version,) = set(re.findall(r"pip install fedpgp-(\S+)-py3", PAGE))
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
            begun, log = time.monotonic(), tmp_path / "day.log"
            with log.open("w", encoding="utf-8") as file:
                heading = ""
                for step in steps_of(PAGE):
                    if step.heading != heading:
                        heading = step.heading
                        file.write(f"\n== {heading} ==\n\n")
                    since = time.monotonic()
                    said, fits = take(step, shells[step.machine])
                    now = time.monotonic()
                    file.write(f"[{now - begun:6.1f} s, took {now - since:5.1f} s] {step.machine}$ {step.command}\n")
                    file.write(said.rstrip() + "\n" if said.strip() else "")
                    file.flush()
                    assert fits, f"{step.machine}$ {step.command}\nprinted:\n{said}\nthe page shows:\n{step.shown}"
