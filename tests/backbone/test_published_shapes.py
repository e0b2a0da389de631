"""A comparison and a federation on dual encoders of published shapes, with random weights."""

import sys
from pathlib import Path

import pytest

import fedpgp
from fedpgp.flower.deployment.local import local_federation

sys.path.append(str(Path(__file__).parents[2] / "tools"))
from federation_kills import new_federation
from published_shapes import save

pytestmark = [pytest.mark.by_hand, pytest.mark.xdist_group("federation")]

SETTINGS = ["task.clients=2", "task.shots=1", "federation.rounds=1", "federation.local_epochs=1"]
SETTINGS += ["federation.path_points=1", "federation.deadline=300"]
CLASSES, IMAGES = 10, {"train": 2, "validation": 1, "test": 4}


@pytest.fixture(scope="module")
def pictures(pictograms, tmp_path_factory):
    """Write a few embedded images to a directory for each class."""
    directory = tmp_path_factory.mktemp("pictures")
    for split, count in IMAGES.items():
        dataset = getattr(pictograms, split)
        for label in range(0, 6 * CLASSES, 6):
            place = directory / split / dataset.class_names[label]
            place.mkdir(parents=True)
            for index in dataset.of_classes([label])[:count]:
                dataset.image(int(index)).save(place / f"{index}.png")
    return directory


@pytest.mark.parametrize(("kind", "nodes"), [("MobileCLIP2-S0", 2), ("BiomedCLIP", 0)])
def test_a_comparison_ends_and_a_federation_of_nodes_has_its_figures(
    kind, nodes, pictures, in_processes, tmp_path, cache, monkeypatch
):
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    monkeypatch.setenv("FLWR_DISABLE_UPDATE_CHECK", "1")
    save(kind, tmp_path / kind)
    settings = [*SETTINGS, f"data.source={pictures}", f"backbone.checkpoint={tmp_path / kind}"]
    compared = fedpgp.compare(["promptfl", "fedpgp"], changes=settings, cache=cache)
    assert [run.results["rounds"] for run in compared.runs] == [1, 1]
    if nodes:
        layout = new_federation(tmp_path / "federation", "fedpgp", nodes, settings)
        with local_federation(layout, nodes, str(cache)) as federation:
            federation.complete(layout.runs / "local", pytest.fail)
        found = fedpgp.load_run(layout.runs / "local")
        assert found.results["final"] == compared.runs[1].results["final"]
