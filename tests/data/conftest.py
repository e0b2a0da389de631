"""Small directories of images, and small copies of known datasets in the layout in which they are distributed."""

from pathlib import Path

import pytest
from disk import save
from PIL import Image

from fedpgp.data.sources import Source


@pytest.fixture(scope="session")
def some_pictures(pictograms: Source) -> list[Image.Image]:
    """Twelve embedded pictures, 32 pixels wide."""
    return [pictograms.train.image(index).resize((32, 32)) for index in range(12)]


@pytest.fixture
def put(tmp_path: Path, some_pictures: list[Image.Image]):
    """Write the pictures in turn to paths below a directory, and return the directory."""

    def write(*paths: str) -> Path:
        for number, path in enumerate(paths):
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            some_pictures[number % len(some_pictures)].save(file)
        return tmp_path

    return write


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache directory, so that no test writes to the real one."""
    directory = tmp_path / "user cache"
    monkeypatch.setattr("platformdirs.user_cache_path", lambda _: directory)
    return directory


@pytest.fixture
def tree(tmp_path: Path):
    """Write an image of its own shade to each path, and return the directory."""

    def write(*paths: str) -> Path:
        for shade, path in enumerate(paths):
            save(tmp_path / "set" / path, shade)
        return tmp_path / "set"

    return write
