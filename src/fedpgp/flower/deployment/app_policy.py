"""The policy for apps on a node: it runs the app of its own installed fedpgp, and apps that its owner agreed to.

An app is code that the server sends. A SuperNode imports this module, so it imports nothing that takes long.
"""

import hashlib
import io
import json
import re
import tomllib
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run

from fedpgp.errors import FedPGPError, OutputError
from fedpgp.runtime.version import __version__

NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")  # name of a federation and of its app
PYPROJECT, EXPERIMENT, MANIFEST = "pyproject.toml", "federation/experiment.toml", ".info/CONTENT"
CODE = ("server_app.py", "client_app.py")  # templates that an app has unchanged
LARGEST = 16 << 20  # bytes of an unpacked app; Flower accepts packed apps of 10 MB
QUOTED = 80  # characters of a quoted text
OWN_APP = "Ask the server's operator for an app that fedpgp federate init wrote"
RUN_CONFIG = {"method": str, "seed": int, "output": str}  # settings that may differ between two federations' apps


class AppRefused(FedPGPError):  # noqa: N818 # the result for one app, not an error of the node
    """An app that a node does not run. The message is the reason, in one line."""


@dataclass(frozen=True)
class AppPolicy:
    """The apps that the owner of a node agrees to run.

    Attributes
    ----------
    experiment
        File of the experiment. fedpgp's own app must have exactly the same file.
    agreed
        Hashes of other apps.
    """

    experiment: Path
    agreed: Collection[str] = ()

    def check(self, run: Run, fab: Fab) -> None:
        """Check that an app may run.

        Parameters
        ----------
        run
            The run, as the server describes it.
        fab
            The packed app.

        Raises
        ------
        AppRefused
            If the app may not run.
        """
        files = unpacked(fab.content)
        digest = app_hash(files)
        fault = None if digest in self.agreed else self._difference(files)
        fault = fault or _misnamed(run, fab, files)
        if fault is not None:
            problem, remedy = fault
            raise AppRefused(problem, where=f"app {_quoted(run.fab_id)} with the hash {digest}", remedy=remedy)

    def _difference(self, files: Mapping[str, bytes]) -> tuple[str, str] | None:
        """Return how an app differs from the app that this version of fedpgp writes, and what to do."""
        agree = "If it may run here all the same, write its hash into apps in node.toml and start the node again"
        upgrade = (
            f"Ask the server's operator to install fedpgp {__version__}, the version of this node, and to write the app"
            f" again with fedpgp federate upgrade. {agree}"
        )
        own = own_code()
        expected = {*own, PYPROJECT, EXPERIMENT, MANIFEST}
        if more := files.keys() - expected:
            return f"fedpgp's own app does not have the file {_quoted(min(more))}", agree
        if missing := expected - files.keys():
            return f"the file {min(missing)} is missing", upgrade
        for name, content in own.items():
            if files[name] != content:
                return f"the file {name} differs from the same file of this node's fedpgp", upgrade
        if not _is_own_project(files[PYPROJECT]):
            return f"the file {PYPROJECT} differs from fedpgp's in more than name and configuration", upgrade
        if files[EXPERIMENT] != self.experiment.read_bytes():
            return f"the file {EXPERIMENT} differs from {self.experiment}", "If you agree to it, copy it there"
        return None


def _misnamed(run: Run, fab: Fab, files: Mapping[str, bytes]) -> tuple[str, str] | None:
    """Compare an app with what the server says about it: Flower starts the files at the app's name and version."""
    remedy = "Ask the server's operator to start the run with fedpgp's own app and an unchanged flwr run"
    about = tomllib.loads(files[PYPROJECT].decode())
    name = f"{about['tool']['flwr']['app']['publisher']}/{about['project']['name']}"
    packed = hashlib.sha256(fab.content).hexdigest()
    named = run.fab_id, run.fab_version, run.fab_hash, fab.hash_str
    if named != (name, about["project"]["version"], packed, packed):
        return "the server gives it the name, version or hash of another app", remedy
    if run.primary_task_type != TaskType.SERVER_APP:
        return f"the run is a {_quoted(run.primary_task_type)} instead of a {TaskType.SERVER_APP}", remedy
    return None


def own_code() -> dict[str, bytes]:
    """Return the Python files of an app, by their path in the app, as the installed fedpgp writes them."""
    templates = resources.files("fedpgp.flower.deployment") / "templates"
    return {"federation/__init__.py": b""} | {f"federation/{name}": (templates / name).read_bytes() for name in CODE}


def project(name: str, method: str, seed: int, output: str) -> bytes:
    """Return the pyproject.toml of an app, as the installed fedpgp writes it."""
    template = resources.files("fedpgp.flower.deployment") / "templates" / "app-pyproject.toml"
    return template.read_text(encoding="utf-8").format(name=name, method=method, seed=seed, output=output).encode()


def _is_own_project(content: bytes) -> bool:
    """Return whether a pyproject.toml differs from fedpgp's only in its name and the values of its configuration."""
    try:
        given, expected = tomllib.loads(content.decode()), tomllib.loads(project("", "", 0, "").decode())
        name, config = given["project"]["name"], given["tool"]["flwr"]["app"]["config"]
        kinds = {key: type(value) for key, value in config.items()}
    except (KeyError, TypeError, AttributeError, ValueError):
        return False
    expected["project"]["name"], expected["tool"]["flwr"]["app"]["config"] = name, config
    return isinstance(name, str) and bool(NAME.fullmatch(name)) and kinds == RUN_CONFIG and given == expected


def unpacked(content: bytes) -> dict[str, bytes]:
    """Return the files of a packed app (a FAB, which is a ZIP file); raise AppRefused if it is not an app."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > LARGEST:
                raise AppRefused(f"the app is larger than {LARGEST >> 20} MiB", remedy=OWN_APP)
            files = {entry.filename: archive.read(entry) for entry in entries}
    except AppRefused:
        raise
    except Exception as error:  # bytes from the network can cause any exception in zipfile
        raise AppRefused("the app is not a ZIP file", remedy=OWN_APP) from error
    if len(files) != len(entries):
        raise AppRefused("the app has two files of the same name", remedy=OWN_APP)
    return files


def app_hash(files: Mapping[str, bytes]) -> str:
    """Return the SHA-256 hash of the names and contents of an app's files, independent of how they are packed."""
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items() if name != MANIFEST}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def hash_of_directory(app: Path) -> str:
    """Return the hash of the app in a directory; raise OutputError if there is no app."""
    from flwr.cli.build import build_fab_from_disk

    try:
        return app_hash(unpacked(build_fab_from_disk(app)))
    except Exception as error:  # errors of Flower, TOML or the disk
        raise OutputError(
            f"this is not a Flower app: {error}", where=str(app), remedy=f"Use a directory with a {PYPROJECT}"
        ) from error


def names(listed: str) -> tuple[str, ...]:
    """Return the names in a setting of node.toml, which are separated by commas or spaces."""
    return tuple(listed.replace(",", " ").split())


def _quoted(text: Any) -> str:
    return ascii(text)[:QUOTED]
