"""The embedded checkpoint, for tests that compare its towers with transformers' own."""

import shutil
from pathlib import Path

import pytest

from fedpgp.backbone import Backbone, load_backbone


@pytest.fixture(scope="session")
def exact() -> Backbone:
    return load_backbone("pictoclip", precision="float64")


@pytest.fixture
def copy(compact_checkpoint: Path, tmp_path: Path) -> Path:
    """A small checkpoint that a test may damage."""
    return shutil.copytree(compact_checkpoint, tmp_path / "checkpoint")
