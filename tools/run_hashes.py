"""Compute hashes of short runs (prompts, records and results, without times) to compare two commits on one machine.

    git worktree add ../before COMMIT
    PYTHONPATH=../before/src python tools/run_hashes.py local before.json
    python tools/run_hashes.py local after.json && diff before.json after.json

The engine is local (two processes and a new client) or simulation. The last bits of float32 depend on the processor.
"""

import argparse
import hashlib
import json
from pathlib import Path

import fedpgp

METHODS = ["zero-shot", "local", "promptfl", "fedpgp", "promptprox", "fedotp", "promptfolio", "fedtpg", "pfedmoap"]
METHODS += ["dp-fpl", "fedpha", "fedclip"]
SHORT = ["task.clients=4", "federation.rounds=2", "task.shots=2", "federation.local_epochs=1"]
TIMES = {"seconds", "seconds_training", "seconds_evaluation"}


def digest(run: fedpgp.Run) -> str:
    """Return the hash of the files of a run; an empty list in a record counts as a missing entry."""
    content = hashlib.sha256()
    for name in sorted(run.prompts):
        content.update(name.encode() + run.prompts[name].contiguous().numpy().tobytes())
    for part in [*run.rounds, run.results]:
        kept = {key: value for key, value in part.items() if key not in TIMES and value != []}
        content.update(json.dumps(kept, sort_keys=True).encode())
    return content.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=("local", "simulation"))
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    local = options.engine == "local"
    changes = [*SHORT, f"federation.engine={options.engine}", *["task.new_clients=1"] * local]
    hashes = {}
    for name in METHODS:
        hashes[name] = digest(fedpgp.run(name, 0, changes=changes, workers=2 if local else 1))
        print(name, hashes[name][:16], flush=True)
    options.output.write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":  # processes of a run import this file, too
    main()
