"""A federation of one node, as `fedpgp federate init` writes it; needs the fixture `command`."""

from pathlib import Path

import pytest

from fedpgp.flower.deployment.app_policy import AppPolicy
from fedpgp.flower.deployment.layout import FederationLayout


@pytest.fixture(autouse=True)
def no_wheel(request, monkeypatch):
    """Leave the wheel of 49 MB out of federations, except in tests of the wheel and of containers."""
    if request.path.stem not in ("test_containers", "test_wheel"):
        monkeypatch.setattr("fedpgp.flower.deployment.layout.write_wheel", lambda directory: None)


@pytest.fixture
def layout(command):
    assert command("federate", "init", "ours", "--nodes", "1").code == 0
    return FederationLayout(Path("ours").absolute())


@pytest.fixture
def policy(layout):
    return AppPolicy(layout.node(0) / "experiment.toml")
