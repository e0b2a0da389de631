"""Give fedpgp files that are damaged or made to harm it, and check that only its own errors occur.

    python tools/fuzz.py checkpoints --minutes 10
    python tools/fuzz.py cifar --inputs 5000

Inputs depend only on the seed, the kind of file and their number. Each kind runs in a process of its own, with a limit
on its address space. An input fails if another error than fedpgp's own occurs, if the process ends or takes more than
2 GiB more memory, or if the input takes more than 60 s. New kinds: add a function to `KINDS` of
fuzz_files.py, fuzz_inputs.py or fuzz_runs.py.
"""

import argparse
import json
import os
import random
import resource
import select
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedpgp.errors import FedPGPError

import fuzz_files
import fuzz_inputs
import fuzz_runs

KINDS = {**fuzz_files.KINDS, **fuzz_inputs.KINDS, **fuzz_runs.KINDS}
GROUPS = {**fuzz_files.GROUPS, **fuzz_runs.GROUPS}
GIB = 1 << 30
MEMORY = 2 * GIB  # that an input may take in addition
SECONDS = 60.0  # for one input, on busy cores
TOO_LARGE = ("MemoryError", "allocate", "bad_alloc")  # in the cause of an error of our own: the limit was needed


def trials(kind: str, seed: int, numbers: Iterator[int], directory: Path) -> Iterator[tuple[int, str]]:
    """Yield the number of each input and what went wrong: "" for success, "refused" for an error of our own."""
    attack = KINDS[kind](directory)
    for number in numbers:
        try:
            attack(random.Random(f"{seed} {kind} {number}"))
        except FedPGPError as error:
            cause = repr(error.__cause__)
            yield number, f"takes too much memory: {cause}" if any(word in cause for word in TOO_LARGE) else "refused"
        except BaseException as error:  # a panic in Rust is not an Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            yield number, traceback.format_exc(limit=-4)
        else:
            yield number, ""


def child(kind: str, seed: int, numbers: Iterator[int]) -> None:
    """Try inputs, and write one line of JSON for each, and one before the first."""
    results = os.fdopen(os.dup(1), "w", buffering=1)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)  # libraries print warnings
    os.dup2(silent, 2)
    with TemporaryDirectory() as made:
        os.environ |= {"XDG_CACHE_HOME": made, "HF_HUB_OFFLINE": "1"}
        print(json.dumps({"number": -1, "peak": _peak()}), file=results)
        size = 0
        for number, outcome in trials(kind, seed, numbers, Path(made)):
            print(json.dumps({"number": number, "outcome": outcome, "peak": _peak()}), file=results)
            if not size:  # everything is imported
                size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def fuzz(kind: str, seed: int, inputs: int | None, seconds: float) -> dict[str, Any]:
    """Return a summary of inputs of one kind; a process that ends is started again after the input that ended it."""
    ends, first, failed, refused, peak, base = time.monotonic() + seconds, 0, [], 0, 0, 0
    while (inputs is None or first < inputs) and time.monotonic() < ends:
        options = ["--child", str(first), "--seed", str(seed), *(["--inputs", str(inputs)] if inputs else [])]
        process = subprocess.Popen([sys.executable, __file__, kind, *options], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        reason = ""
        while not reason and time.monotonic() < ends:
            if not select.select([process.stdout], [], [], SECONDS)[0]:
                reason = f"takes more than {SECONDS:.0f} s"
                break
            line = process.stdout.readline()
            if not line:
                process.wait()
                reason = f"the process ended with {process.returncode}" if process.returncode else "complete"
                break
            outcome = json.loads(line)
            peak = max(peak, outcome["peak"])
            base = base or outcome["peak"]
            first = max(first, outcome["number"] + 1)
            refused += outcome.get("outcome") == "refused"
            if outcome.get("outcome") not in ("", "refused", None):
                failed.append({"number": outcome["number"], "reason": outcome["outcome"]})
        process.kill()
        process.communicate()
        if reason not in ("", "complete"):
            failed.append({"number": first, "reason": reason})
            first += 1
    return {"kind": kind, "inputs": first, "refused": refused, "failed": failed, "peak": peak, "start": base}


def main(arguments: list[str] | None = None) -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=[*GROUPS, *KINDS], help="kind of file, or a group of kinds")
    parser.add_argument("--minutes", type=float, default=1.0, help="time for all kinds together")
    parser.add_argument("--inputs", type=int, help="number of inputs of each kind")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child is not None:
        child(given.kind, given.seed, iter(range(given.child, given.inputs)) if given.inputs else count(given.child))
        return 0
    kinds = GROUPS.get(given.kind, [given.kind])
    faults = 0
    for kind in kinds:
        found = fuzz(kind, given.seed, given.inputs, 60 * given.minutes / len(kinds))
        faults += len(found["failed"]) + (found["peak"] > found["start"] + MEMORY)
        print(
            f"{kind:17} {found['inputs']:7,} inputs, {found['refused']:7,} refused, {len(found['failed'])} failed,"
            f" peak {found['peak'] / GIB:.2f} GiB (at the start {found['start'] / GIB:.2f})",
            flush=True,
        )
        for failure in found["failed"][:5]:
            print(f"  input {failure['number']} (--seed {given.seed}): {failure['reason']}")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
