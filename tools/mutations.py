"""Check that the tests detect deliberate faults: apply each mutation of mutations.toml to a copy, and run its tests.

    python tools/mutations.py                             # all mutations
    python tools/mutations.py gate-over-classes --jobs 2  # some of them, two at a time

Each worker has its own copy of the working tree, which never changes. First, the tests run without a mutation and must
pass. Exits with 1 if a mutation was not caught, or if its tests could not run.
"""

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

MUTATIONS = Path(__file__).with_suffix(".toml")
LEFT_OUT = (".*", "__pycache__", "build", "dist", "site", "node_modules", "fedpgp-runs")  # files that are not copied
LIMIT = 1200  # seconds for the tests of one mutation
FIRST_FAILURE = re.compile(r"^(?:FAILED|ERROR) (\S+\[.*?\]|\S+)(?: - |$)", re.MULTILINE)
IMPORTED = "import fedpgp; print(fedpgp.__file__)"


@dataclass(frozen=True)
class Mutation:
    """One fault: `new` instead of `old`."""

    name: str
    file: str
    old: str
    new: str
    kind: str
    why: str
    tests: Sequence[str]

    def apply(self, root: Path) -> str:
        """Return the changed text of the file; exit with a message unless `old` occurs exactly once."""
        text = (root / self.file).read_text(encoding="utf-8")
        if (count := text.count(self.old)) != 1:
            sys.exit(
                f"mutation {self.name}: `old` must occur once in {self.file}, got {count}. Copy the text from that"
                f" file into {MUTATIONS.name} again, with more context if it occurs several times."
            )
        return text.replace(self.old, self.new)


def read_mutations(names: Sequence[str], root: Path) -> list[Mutation]:
    """Return the mutations with the given names, or all, after checking that every mutation fits its file."""
    known = [Mutation(**entry) for entry in tomllib.loads(MUTATIONS.read_text(encoding="utf-8"))["mutation"]]
    if unknown := {*names} - {one.name for one in known}:
        sys.exit(f"{MUTATIONS.name} has no mutation {', '.join(sorted(unknown))}. Use one of its names, or none.")
    for one in known:
        compile(one.apply(root), one.file, "exec")
    return [one for one in known if not names or one.name in names]


class Copy:
    """A copy of the working tree in which tests run."""

    def __init__(self, root: Path, place: Path, python: str):
        """Copy the working tree; exit with a message if the package would be imported from elsewhere."""
        self._place, self._python = shutil.copytree(root, place, ignore=shutil.ignore_patterns(*LEFT_OUT)), python
        where = self._run("-c", IMPORTED, limit=LIMIT).stdout.strip()
        if not Path(where).resolve().is_relative_to(place.resolve()):
            sys.exit(
                f"{python} must import fedpgp from the copy, got {where!r}. Name another interpreter with --python."
            )

    def test(self, tests: Sequence[str], limit: float | None = None) -> tuple[str, str]:
        """Run fast tests until one fails. Return "passed", "failed" or "error", and the failed test or last line."""
        options = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
        options += ["-m", "not slow and not by_hand"]
        try:
            done = self._run(*options, *tests, limit=limit)
        except subprocess.TimeoutExpired:
            return "error", f"no result within {limit} seconds"
        failure = FIRST_FAILURE.search(done.stdout)
        if done.returncode == 1 and failure:
            return "failed", failure[1]
        said = done.stdout.strip().splitlines() or [f"pytest exited with code {done.returncode}"]
        return "error" if done.returncode else "passed", said[-1]

    def test_mutation(self, one: Mutation) -> str:
        """Apply a mutation, run its tests, and undo it. Return the result in words."""
        file = self._place / one.file
        original = file.read_bytes()
        file.write_text(one.apply(self._place), encoding="utf-8")
        result, said = self.test(one.tests, LIMIT)
        file.write_bytes(original)
        return {"failed": f"caught by {said}", "passed": "NOT CAUGHT"}.get(result, f"error: {said}")

    def _run(self, *arguments: str, limit: float | None) -> subprocess.CompletedProcess[str]:
        # This path precedes the installed package. Cached bytecode could belong to another mutation.
        env = {**os.environ, "PYTHONPATH": str(self._place / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [self._python, *arguments]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.run(command, cwd=self._place, env=env, text=True, timeout=limit, check=False, **streams)


def check_unchanged(copy: Copy, mutations: Sequence[Mutation]) -> None:
    """Run the tests of all mutations once without a mutation; exit with a message unless they pass."""
    result, said = copy.test(sorted({test for one in mutations for test in one.tests}))
    if result != "passed":
        sys.exit(f"the tests must pass without a mutation, got {result}: {said}. Fix the tests first.")


def markdown(mutations: Sequence[Mutation], results: Sequence[str]) -> str:
    """Return a table of the mutations and their results."""
    head = "| mutation | file | kind | what a user would get wrong | result |\n| --- | --- | --- | --- | --- |\n"
    rows = [(m.name, f"`{m.file}`", m.kind, m.why, result) for m, result in zip(mutations, results, strict=True)]
    return head + "".join(f"| {' | '.join(text.replace('|', '/') for text in row)} |\n" for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutations to try (default: all)")
    parser.add_argument("--root", type=Path, default=MUTATIONS.parents[1], help="the repository")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has the test dependencies")
    parser.add_argument("--jobs", type=int, default=1, help="number of mutations tried at the same time")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="file for a table of the results")
    options = parser.parse_args()
    mutations = read_mutations(options.names, options.root)
    python = str(Path(shutil.which(options.python) or options.python).absolute())
    free: queue.Queue[Copy] = queue.Queue()

    def attempt(one: Mutation) -> str:
        copy = free.get()
        result = copy.test_mutation(one)
        free.put(copy)
        return result

    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(options.jobs) as pool:
        copies = [Copy(options.root, Path(place) / str(number), python) for number in range(options.jobs)]
        check_unchanged(copies[0], mutations)
        for copy in copies:
            free.put(copy)
        results = []
        for one, result in zip(mutations, pool.map(attempt, mutations), strict=True):
            print(f"{one.name}: {result}", flush=True)
            results.append(result)
    caught = sum(result.startswith("caught") for result in results)
    print(f"{caught} of {len(mutations)} caught")
    if options.markdown:
        options.markdown.write_text(markdown(mutations, results), encoding="utf-8")
    return 0 if caught == len(mutations) else 1


if __name__ == "__main__":
    sys.exit(main())
