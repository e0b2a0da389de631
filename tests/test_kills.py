"""A few kills, failing writes and full disks; `python tools/kill_and_resume.py` makes many."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.by_hand, pytest.mark.xdist_group("processes")]

TOOL = Path(__file__).parents[1] / "tools" / "kill_and_resume.py"


def tried(kills: int = 0, limits: int = 0, full: int = 0) -> list[str]:
    """Run the tool and return the last lines of its output."""
    numbers = ["--kills", str(kills), "--limits", str(limits), "--full", str(full), "--seed", "1"]
    done = subprocess.run([sys.executable, str(TOOL), *numbers], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if "resumed bit-identically" in line]


def test_killed_runs_and_failing_writes_end_in_the_same_bytes() -> None:
    after_kills, after_limits = tried(kills=3, limits=3)
    assert after_kills.startswith("3 of 3 resumed bit-identically after SIGKILL: ")
    assert after_limits == "3 of 3 resumed bit-identically after a write beyond a limit (EFBIG)"


def test_full_disks_end_in_the_same_bytes(tmp_path: Path) -> None:
    try:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs root that may mount a tmpfs")
    subprocess.run(["umount", str(tmp_path)], check=True)
    assert tried(full=3) == ["3 of 3 resumed bit-identically after a full disk (ENOSPC)"]
