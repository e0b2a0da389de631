"""A federation of real processes with checkpoints of other families than CLIP."""

import sys
from pathlib import Path

import pytest
import torch

import fedpgp
from fedpgp.flower.deployment.local import local_federation
from fedpgp.flower.deployment.node_directory import NodeDirectory

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from federation_kills import new_federation

pytestmark = pytest.mark.xdist_group("federation")

SETTINGS = ["task.clients=2", "task.shots=1", "federation.rounds=1", "federation.local_epochs=1"]
SETTINGS += ["federation.path_points=2", "federation.deadline=60", "fedpgp.context_length=4"]


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("mobileclip", marks=pytest.mark.slow),
        *(pytest.param(kind, marks=pytest.mark.by_hand) for kind in ("siglip", "timm-siglip", "biomedclip")),
    ],
)
def test_two_nodes_have_the_local_engines_figures(kind, made, in_processes, tmp_path, cache, monkeypatch):
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    monkeypatch.setenv("FLWR_DISABLE_UPDATE_CHECK", "1")
    settings = [*SETTINGS, f"backbone.checkpoint={made(kind).directory}"]
    local = fedpgp.run("fedpgp", 0, changes=settings, cache=cache)  # encodes the images for all nodes
    layout = new_federation(tmp_path / "federation", "fedpgp", 2, settings)
    NodeDirectory.read(layout.node(0), cache=str(cache)).check()
    with local_federation(layout, 2, str(cache)) as federation:
        federation.complete(layout.runs / "local", pytest.fail)
    found = fedpgp.load_run(layout.runs / "local")
    assert torch.equal(found.prompts["shared/p_G"], local.prompts["shared/p_G"])
    assert found.results["final"] == local.results["final"]
