"""Measure the time of a report about 20 methods × 3 seeds × 100 clients: copies of one run with 100 clients.

    python tools/report_scale.py [DIRECTORY]

Prints seconds and the size of the page.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fedpgp
from fedpgp.methods import METHODS

METHODS_WANTED, SEEDS = 20, 3
CHANGES = ("task.clients=100", "task.partition=iid", "federation.rounds=25", "federation.participation=0.02")


def main() -> None:
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    original, comparison = directory / "original", directory / "comparison"
    if not original.exists():
        fedpgp.run("fedpgp", 0, changes=[*CHANGES, "federation.eval_every=5"], output=original)
    shutil.rmtree(comparison, ignore_errors=True)
    names = list(METHODS)[:METHODS_WANTED]
    names = [*(name for name in names if name != "fedpgp"), "fedpgp"][-METHODS_WANTED:]
    for name in names:
        for seed in range(SEEDS):
            copy = comparison / name / f"seed-{seed}"
            shutil.copytree(original, copy)
            results = json.loads((copy / "results.json").read_text()) | {"method": name, "seed": seed}
            (copy / "results.json").write_text(json.dumps(results))
    (comparison / "plan.json").write_text(json.dumps({"seeds": {name: list(range(SEEDS)) for name in names}}))
    page = directory / "report.html"
    page.unlink(missing_ok=True)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "fedpgp", "report", comparison, "-o", page, "--quiet"], check=True)
    seconds = time.perf_counter() - started
    print(f"{len(names)} methods, {SEEDS} seeds, 100 clients: {seconds:.1f} s, {page.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
