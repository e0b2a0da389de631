"""Both precisions of the embedded checkpoint, as the agreement with an oracle is tested in."""

import pytest


@pytest.fixture(scope="session")
def backbones(exact, compact):
    return {"float64": exact, "float32": compact}
