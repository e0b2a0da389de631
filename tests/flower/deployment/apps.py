"""Flower apps as a server sends them: fedpgp's own, and others."""

import hashlib
import io
import tomllib
import zipfile
from collections.abc import Mapping

from flwr.supercore.fab import Fab
from flwr.supercore.run import Run

from fedpgp.flower.deployment.app_policy import PYPROJECT


def packed(files: Mapping[str, bytes], *more: tuple[str, bytes]) -> bytes:
    """Files as a FAB; more: entries whose names may be there already."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in [*files.items(), *more]:
            archive.writestr(zipfile.ZipInfo(name), content)
    return stream.getvalue()


def sent(content: bytes, files: Mapping[str, bytes], **differing: str) -> tuple[Run, Fab]:
    """What a server says of the run of an app, and the app. differing: what it says that is not so."""
    about, digest = tomllib.loads(files[PYPROJECT].decode()), hashlib.sha256(content).hexdigest()
    run = Run.create_empty(7)
    run.fab_id, run.fab_version = f"fedpgp/{about['project']['name']}", about["project"]["version"]
    run.fab_hash = digest
    for name, value in differing.items():
        setattr(run, name, value)
    return run, Fab(digest, content, {})
