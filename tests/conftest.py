"""What many tests share: the embedded checkpoint and data set, loaded once."""

import pytest

from fedpgp.backbone import Backbone, load_backbone
from fedpgp.data.sources import Source, load_source


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    return load_backbone("pictoclip")


@pytest.fixture(scope="session")
def exact() -> Backbone:
    """The embedded checkpoint in float64."""
    return load_backbone("pictoclip", precision="float64")


@pytest.fixture(scope="session")
def pictograms() -> Source:
    return load_source("pictograms")
