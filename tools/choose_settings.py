"""Chooses the methods' settings of the embedded recipe, from validation images of base classes alone.

    python tools/choose_settings.py --out src/fedpgp/recipes/pictograms-grid.csv

Every method has six settings. Each is run with three seeds on the base-to-novel protocol *within* the base classes of
pictograms: 25 of the 50 are base, dealt to 5 clients, the other 25 play the novel ones; the images are the validation
captures. No novel class and no test capture is used. The setting with the highest mean CM is chosen, because CM weighs
a client's own classes and everything else equally, as the library's purpose does. Write the chosen ones into
src/fedpgp/recipes/pictograms.toml. Takes twelve minutes on two cores.
"""

import argparse
import os
from pathlib import Path

import fedpgp
from fedpgp.bootstrap import METRICS

from common import write_table

VALIDATION = ["task.evaluate_on=validation", "task.clients=5"]
SEEDS = 3
PHRASE = '"a photo of a"'
GRID: dict[str, list[dict[str, str]]] = {
    "local": [
        {"ctx_init": init, "learning_rate": rate} for init in ("random", PHRASE) for rate in ("0.03", "0.07", "0.2")
    ],
    "promptfl": [
        {"ctx_init": init, "learning_rate": rate} for init in ("random", PHRASE) for rate in ("0.05", "0.1", "0.2")
    ],
    "fedpgp": [
        {"ctx_init": "random", "learning_rate": "0.01", "mu": "0.5"},
        {"ctx_init": "random", "learning_rate": "0.02", "mu": "0.5"},
        {"ctx_init": "random", "learning_rate": "0.01", "mu": "2"},
        {"ctx_init": "random", "learning_rate": "0.1", "private_learning_rate": "0.01", "mu": "2"},
        {"ctx_init": PHRASE, "learning_rate": "0.02", "private_learning_rate": "0.1", "mu": "0.5"},
        {"ctx_init": PHRASE, "learning_rate": "0.05", "private_learning_rate": "0.2", "mu": "0.5"},
    ],
}


def measure(method: str, setting: dict[str, str], workers: int) -> dict[str, str]:
    """A row of the grid: the setting, and mean and standard deviation of every metric over the seeds."""
    changes = VALIDATION + [f"{method}.{key}={value}" for key, value in setting.items()]
    figures = fedpgp.compare([method], SEEDS, changes=changes, workers=workers).mean(method)
    row = {"method": method, "setting": ", ".join(f"{key} = {value}" for key, value in setting.items())}
    for name in METRICS:
        mean, deviation = figures[name]
        row |= {name: f"{mean:.2f}", f"{name}_std": f"{deviation:.2f}"}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the CSV file to write")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: all cores)")
    options = parser.parse_args()
    rows = []
    for method, settings in GRID.items():
        for setting in settings:
            rows.append(measure(method, setting, options.workers))
            print({key: value for key, value in rows[-1].items() if not key.endswith("_std")}, flush=True)
    for method in GRID:
        best = max((row for row in rows if row["method"] == method), key=lambda row: float(row["cm"]))
        print(f"chosen for {method}: {best['setting']} (CM {best['cm']})")
    write_table(options.out, list(rows[0]), [list(row.values()) for row in rows])


if __name__ == "__main__":
    main()
