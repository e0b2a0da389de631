"""Reference implementations: libraries that only tests import, in `references` of the environment.

OpenCLIP imports torchvision, which does not load together with the CPU build of PyTorch unless two of its operators
are declared. If torchvision were always on the path, transformers would try to import it in every process of a test.
Therefore its folder is on the path only if a test asks for it.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

FOLDER = Path(sys.prefix) / "references"
OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # lives as long as the process, as the operators do


@contextmanager
def references() -> Iterator[None]:
    """Let a test import the libraries; skip the test if they are not installed."""
    if not FOLDER.is_dir():
        pytest.skip("the references are not installed: make .venv/.installed")
    if not _declared:
        _declared.append(torch.library.Library("torchvision", "DEF"))
        for operator in OPERATORS:
            _declared[0].define(operator)
    import transformers.utils.import_utils

    transformers.utils.import_utils.is_torchvision_available()  # remembers that there is none, as for users here
    sys.path.append(str(FOLDER))
    try:
        yield
    finally:
        sys.path.remove(str(FOLDER))


SITE = f"""
import sys
from importlib.abc import MetaPathFinder

class Declares(MetaPathFinder):
    # Declares the operators when a module looks for torchvision, without importing torch before that.
    libraries = []

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision" and not self.libraries:
            import torch
            self.libraries.append(torch.library.Library("torchvision", "DEF"))
            for operator in {OPERATORS}:
                self.libraries[0].define(operator)

sys.meta_path.insert(0, Declares())
"""


def path_of_processes(directory: Path) -> str:
    """A PYTHONPATH with which the processes that a test starts can import the libraries, too.

    directory: where a module may be written that these processes import at their start.
    """
    (directory / "sitecustomize.py").write_text(SITE)
    return os.pathsep.join([str(directory), *filter(None, [os.environ.get("PYTHONPATH")]), str(FOLDER)])
