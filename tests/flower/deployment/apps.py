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
    """Return files as a FAB; the names of `more` entries may be duplicates."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in [*files.items(), *more]:
            archive.writestr(zipfile.ZipInfo(name), content)
    return stream.getvalue()


def sent(content: bytes, files: Mapping[str, bytes], **differing: str) -> tuple[Run, Fab]:
    """Return a run as a server describes it, and its app. `differing` has wrong values of the description."""
    about, digest = tomllib.loads(files[PYPROJECT].decode()), hashlib.sha256(content).hexdigest()
    run = Run.create_empty(7)
    run.fab_id, run.fab_version = f"fedpgp/{about['project']['name']}", about["project"]["version"]
    run.fab_hash = digest
    for name, value in differing.items():
        setattr(run, name, value)
    return run, Fab(digest, content, {})
