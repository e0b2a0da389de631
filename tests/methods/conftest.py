"""The precisions in which methods are compared with their oracles, which compute in float64."""

import pytest


@pytest.fixture(scope="session")
def backbones(exact):
    return {"float64": exact}


@pytest.fixture(scope="session")
def both_precisions(exact, compact):
    """float32, too: for one method of each kind of `reads`, since the engine's path depends on the kind only."""
    return {"float64": exact, "float32": compact}
