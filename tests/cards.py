"""Run the code of a model card with only the packages that the card names, and what these packages need."""

import json
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from references import FOLDER

CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
INSTALL = re.compile(r"^\$ pip install (.+)$", re.MULTILINE)
# A finder that returns nothing makes an import fail, and a library that only looks for a package finds none.
RUNNER = """
import json, sys
from importlib.machinery import PathFinder

refused, code = json.load(sys.stdin)

class Named(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in refused else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Named
printed = []
exec(code, {"print": printed.append})
(value,) = printed
print(json.dumps(value if isinstance(value, dict) else value.tolist()))
"""


def code_of(directory: Path) -> str:
    """Return the Python code of an export's card."""
    (code,) = CODE.findall((directory / "README.md").read_text(encoding="utf-8"))
    return code


def packages_of(directory: Path) -> list[str]:
    """Return the packages that an export's card names."""
    (line,) = INSTALL.findall((directory / "README.md").read_text(encoding="utf-8"))
    return shlex.split(line)


def run_card(directory: Path, image: Path, path: str = "") -> Any:
    """Return what the card's code prints for an image, in a process that has no other packages; `path`: PYTHONPATH."""
    (directory / "image.png").write_bytes(image.read_bytes())
    given = json.dumps([_refused(packages_of(directory)), code_of(directory)])
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    command = [sys.executable, "-c", RUNNER]
    ended = subprocess.run(
        command, input=given, cwd=directory, env=settings, capture_output=True, text=True, check=False, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def _refused(packages: list[str]) -> list[str]:
    """Return the modules that belong to no named package and to nothing that a named package needs."""
    installed = {canonicalize_name(found.name): found for found in distributions(path=[*sys.path, str(FOLDER)])}
    waiting, needed = [Requirement(name) for name in packages], set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        marker = requirement.marker
        if name in needed or name not in installed or (marker and not marker.evaluate({"extra": ""})):
            continue
        needed.add(name)
        waiting += [Requirement(text) for text in installed[name].requires or ()]
    allowed = set().union(*(_modules(installed[name]) for name in needed))
    every = set().union(*map(_modules, installed.values()))
    return sorted((every | {"fedpgp"}) - allowed)


def _modules(found: Distribution) -> set[str]:
    """Return the names that one can import from a distribution."""
    return {file.parts[0].partition(".")[0] for file in found.files or () if file.suffix in (".py", ".so")}
