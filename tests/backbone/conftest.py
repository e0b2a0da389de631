"""The embedded checkpoint, for tests that compare its towers with transformers' own."""

import pytest

from fedpgp.backbone import Backbone, load_backbone


@pytest.fixture(scope="session")
def exact() -> Backbone:
    return load_backbone("pictoclip", precision="float64")
