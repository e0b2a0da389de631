"""Make the tables of docs/federation.md from the runs that tools/hostile_clients.py measured.

    python tools/hostile_tables.py docs/results/hostile-clients.csv

The tables are written next to the file, as Markdown.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev

from fedpgp.results import formats
from fedpgp.results.formats import TableCell

from hostile_clients import ATTACKS, CROWDS, RULES, SEEDS, Cell, rows_of, rule

HEADING = """# Hostile clients

Made by tools/hostile_tables.py. Local / Novel of the honest clients in percent, or the share of their test images that
a trigger turns into the class of the backdoor: mean ± standard deviation over three seeds. Values without ± have fewer
seeds. Without hostile clients: Local / Base / Novel.
"""


class Runs:
    """The runs of a file.

    Parameters
    ----------
    path
        The file.
    """

    def __init__(self, path: Path):
        self._rows: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
        for row in rows_of(path):
            self._rows[tuple(row[name] for name in Cell._fields if name != "seed")].append(row)

    def shown(self, figures: Sequence[str], *cell: object) -> str:
        """Return figures of a cell over its seeds as text, or nothing if it was not measured."""
        rows = self._rows.get(tuple(map(str, cell)), [])
        return " / ".join(_mean([float(row[name]) for row in rows]) for name in figures) if rows else ""


def _mean(values: Sequence[float]) -> str:
    """Return mean ± standard deviation, or only the mean if a seed is missing."""
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) == len(SEEDS) else "")


def _table(heading: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [list(map(TableCell, row)) for row in rows if any(row[1:])]
    return f"## {heading}\n\n{formats.markdown(formats.Table(heading, header, cells))}" if cells else ""


def tables(runs: Runs) -> str:
    """Return all tables as Markdown."""
    figures, honest = ("local", "base", "novel"), RULES[:2]
    kinds = ("equal", "dirichlet")
    rows = [[kind, *(runs.shown(figures, kind, 10, 0, "none", name) for name in honest)] for kind in kinds]
    parts = [_table("No hostile client", ["10 clients", *honest], rows)]
    backdoors = ["none", *(attack for attack in ATTACKS if attack.startswith("backdoor"))]
    for clients, hostile in sorted(CROWDS):
        rules = [name for name in RULES if rule(name, clients, hostile)]
        for kind, attacks, names in (("accuracy", ATTACKS, figures[::2]), ("backdoor", backdoors, ("backdoor",))):
            rows = [
                [attack, *(runs.shown(names, "equal", clients, hostile, attack, name) for name in rules)]
                for attack in attacks
            ]
            parts.append(_table(f"{hostile} of {clients} clients, {kind}", ["attack", *rules], rows))
    return "\n".join([HEADING, *filter(None, parts)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="CSV file of the runs")
    path = parser.parse_args().file
    path.with_suffix(".md").write_text(tables(Runs(path)), encoding="utf-8")


if __name__ == "__main__":
    main()
