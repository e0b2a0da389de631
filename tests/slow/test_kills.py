"""A few kills and failing writes; `python tools/kill_and_resume.py` does many."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TOOL = Path(__file__).parents[2] / "tools" / "kill_and_resume.py"


def test_killed_runs_and_failing_writes_end_in_the_same_bytes() -> None:
    done = subprocess.run(
        [sys.executable, str(TOOL), "--kills", "3", "--full", "3", "--seed", "1"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-2:] == [
        "3 of 3 resumed bit-identically after SIGKILL",
        "3 of 3 resumed bit-identically after a failing write",
    ]
