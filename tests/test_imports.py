"""`import fedpgp` and `fedpgp --help` load no module that takes a second."""

import subprocess
import sys

import pytest

HEAVY = {
    *("torch", "transformers", "numpy", "pandas", "altair", "vl_convert"),
    *("pyarrow", "pydantic", "datasets", "optuna", "flwr", "ray"),
}
COMMANDS = (["--help"], ["--version"], ["compare", "--help"], ["doctor", "--help"], ["federate", "--help"])
CLI = f"""
import sys
from fedpgp import cli
for words in {COMMANDS}:
    sys.argv = ["fedpgp", *words]
    try: cli.main()
    except SystemExit: pass
"""


@pytest.mark.parametrize("code", ["import fedpgp; fedpgp.__version__", CLI], ids=["package", "commands"])
def test_nothing_heavy_is_imported(code):
    ask = f"{code}\nimport sys\nprint(*sys.modules, file=sys.stderr)"
    ended = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    loaded = set(ended.stderr.split())
    assert "fedpgp" in loaded
    assert not HEAVY & loaded


def test_every_public_name_can_be_imported():
    import fedpgp

    for name in fedpgp.__all__:
        assert getattr(fedpgp, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        fedpgp.runn  # noqa: B018
