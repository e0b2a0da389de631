"""Let the tests of the embedded assets import the programs in tools/, which are not part of the package."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))


@pytest.fixture(scope="session")
def assets() -> Path:
    return ROOT / "src" / "fedpgp" / "assets"


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread, because these computations are so small that threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
