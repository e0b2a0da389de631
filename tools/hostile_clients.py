"""Measure what hostile clients do to a federation with each aggregator: the tables of docs/federation.md.

    python tools/hostile_clients.py docs/results/hostile-clients.csv

Every row of the file is one run: FedPGP, six rounds of one local epoch, the embedded data with four shots. Rows that
the file already has are not measured again, so a stopped measurement continues. `tools/hostile_tables.py` makes tables
of the file.

The hostile clients act together: they know the updates of the honest clients and the limits of `federation.protection`.
The server checks every update as in a network. Local, Novel and the success of the backdoor are means over the honest
clients in the last round.
"""

import argparse
import csv
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from fedpgp.aggregators import AGGREGATORS, Aggregator, Download, Server, Tensors
from fedpgp.config import load_config
from fedpgp.data.cache import cache_directory
from fedpgp.data.features import split_features
from fedpgp.data.image_features import ImageFeatures
from fedpgp.data.sources import ImageDataset
from fedpgp.evaluation.evaluator import Evaluation
from fedpgp.evaluation.metrics import evaluation_sets, own_images
from fedpgp.federation.client import ClientJob, ClientUpdate, in_groups, train_clients
from fedpgp.federation.client_runner import ClientRunner, Data
from fedpgp.federation.protection import HEAVIEST, LARGEST
from fedpgp.federation.rounds import LocalClients, run_rounds
from fedpgp.federation.run_spec import RunSpec
from fedpgp.federation.state import State
from fedpgp.flower.client_app import ABOUT, SHARED
from fedpgp.flower.messages import Request, trained
from fedpgp.flower.nodes import MOST_EXAMPLES
from fedpgp.flower.update_validation import Asked, Refused, arrays, check
from fedpgp.runs.execution import Execution
from fedpgp.runs.setup import OpenRun, RunSetup, open_setup
from PIL import Image

METHOD, ROUNDS, RUN, SEEDS = "fedpgp", 6, "0" * 32, (0, 1, 2)
SETTINGS = [f"federation.rounds={ROUNDS}", f"federation.eval_every={ROUNDS}", "federation.path_points=1"]
SETTINGS += ["federation.local_epochs=1", "task.shots=4"]
UNEQUAL = ["task.partition=dirichlet", "task.concentration=0.1"]
CROWDS = ((5, 1), (5, 2), (20, 2), (20, 1))  # clients, and the hostile ones among them
JUST_BELOW = 0.999  # of a limit
ALIE_Z, IPM_EPSILON = 1.5, 0.5  # Baruch et al. 2019 use z = 1.5; Xie et al. 2020 use a small ε against Krum
TARGET = 0  # column of the class that the backdoor wants
TRIGGER = 0.25  # width of the trigger, a magenta square, as a share of the picture's width


class Round(NamedTuple):
    """What a hostile client knows in a round: its own change, and the changes [h, P] and weights of the honest ones."""

    own: torch.Tensor
    honest: torch.Tensor
    examples: list[int]
    hostile: int

    def _median(self, values: Sequence[float]) -> float:
        """Return the lower median of the round if the hostile clients' values are above it."""
        return sorted(values)[min((len(values) + self.hostile - 1) // 2, len(values) - 1)]

    def scaled(self, change: torch.Tensor) -> torch.Tensor:
        """Return a change in this direction that is just below the limit of federation.protection."""
        limit = LARGEST * self._median(self.honest.norm(dim=1).tolist())
        return change * (JUST_BELOW * limit / change.norm())

    @property
    def heaviest(self) -> int:
        """The largest number of examples that federation.protection counts in full."""
        return int(HEAVIEST * self._median(self.examples))


Attack = Callable[[Round], tuple[torch.Tensor, int | None]]  # a change [P] and a number of examples, None: the true one
ATTACKS: dict[str, Attack] = {
    "none": lambda known: (known.own, None),
    "change × −5": lambda known: (-5 * known.own, None),
    "change × −1, 1e8 examples": lambda known: (-known.own, MOST_EXAMPLES),
    "just below the limit": lambda known: (known.scaled(-known.honest.mean(0)), known.heaviest),
    "backdoor below the limit": lambda known: (known.scaled(known.own), known.heaviest),
    "backdoor × n / m": lambda known: ((1 + len(known.honest) / known.hostile) * known.own, None),
    "a little is enough": lambda known: (known.honest.mean(0) - ALIE_Z * known.honest.std(0), None),
    "inner product": lambda known: (-IPM_EPSILON * known.honest.mean(0), None),
    "change × 1000": lambda known: (1000 * known.own, None),
    "wrong labels": lambda known: (known.own, None),
}
COPIED = ("just below the limit", "a little is enough", "inner product")  # attacks that only read honest changes
POISONING = ("wrong labels", "backdoor × n / m", "backdoor below the limit")  # attacks with other training data
RULES = (
    "fedavg",
    "fedavg, protection",
    "geometric-median",
    "median",
    "trimmed-mean",
    "multi-krum",
    "krum",
    "bulyan",
)


def rule(name: str, clients: int, hostile: int) -> tuple[Aggregator, bool] | None:
    """Return an aggregator, and whether protection is on. Each rule is set for the hostile clients, as far as it can.

    None: the rule does not work with this number of clients.
    """
    aggregator, _, protection = name.partition(", ")
    cls = AGGREGATORS[aggregator]
    if aggregator == "trimmed-mean":
        return cls(trim=math.ceil(100 * hostile / clients) / 100), False
    if aggregator in ("krum", "multi-krum", "bulyan"):
        most = (clients - 3) // cls.multiple
        return (cls(malicious=min(hostile, most)), False) if most > 0 else None
    return cls(), bool(protection)


def triggered(image: Callable[[int], Image.Image], index: int) -> Image.Image:
    """Return a picture with the trigger: a magenta square in its lower right part."""
    picture = image(index).convert("RGB")
    side = round(TRIGGER * picture.width)
    picture.paste((255, 0, 255), (picture.width - 2 * side, picture.height - 2 * side, *(picture.width - side,) * 2))
    return picture


def triggered_data(setup: RunSetup, opened: OpenRun) -> Data:
    """Return the task with the features of all images with the trigger."""

    def features(split: ImageDataset) -> ImageFeatures:
        marked = replace(
            split, image=partial(triggered, split.image), fingerprint=f"{split.fingerprint}-trigger-{TRIGGER}", whole=""
        )
        found, _ = split_features(
            setup.backbone.image,
            [replace(marked, numbers=None)],
            cache_directory(setup.execution.cache),
            augmented_views=setup.config.data.augmented_views,
        )
        return ImageFeatures(found[marked.fingerprint])

    return Data.of(opened.task, features)


@dataclass
class Hostile:
    """Clients of this process, some of which are hostile; the server checks their updates. See `rounds.ClientPool`."""

    here: LocalClients
    marked: ClientRunner
    hostile: frozenset[int]
    attack: str
    first: dict[Any, list[ClientUpdate]]
    forgiving: bool = True
    counted: dict[int, int] = field(default_factory=dict)
    refused: int = 0
    ratio: float = 0.0

    def train(self, number: int, downloads: Mapping[int, Download]) -> Sequence[ClientUpdate]:
        trains = {*downloads} - (self.hostile if self.attack in COPIED else frozenset())
        jobs = [self._job(number, client, downloads[client]) for client in sorted(trains)]
        towers, expected = self.here.workers.towers, self.here.runner.spec.shared
        poisoned = (self.attack, self.hostile) if self.attack in POISONING else None
        key = (self.here.runner.spec.seed, frozenset(trains), poisoned)
        if number > 1 or key not in self.first:
            groups = in_groups(towers, jobs)
            trained_now = list(itertools.chain.from_iterable(train_clients(towers, group) for group in groups))
            self.first |= {key: trained_now} if number == 1 else {}
        updates = list(self.first[key] if number == 1 else trained_now)
        for client in downloads.keys() - trains:  # its own change is not used, so any client's update will do
            updates.append(replace(updates[0], upload=replace(updates[0].upload, client=client)))
        updates.sort(key=lambda update: update.upload.client)
        changes = {
            u.upload.client: vector(u.upload.shared) - vector(downloads[u.upload.client].shared) for u in updates
        }
        honest = [update for update in updates if update.upload.client not in self.hostile]
        norms = sorted(float(changes[update.upload.client].norm()) for update in honest)
        self.ratio = max(self.ratio, norms[-1] / norms[(len(norms) - 1) // 2])
        known = torch.stack([changes[update.upload.client] for update in honest])
        checked, self.refused = [], 0
        for update in updates:
            client, download = update.upload.client, downloads[update.upload.client]
            content = trained(Request(RUN, number, self.counted.get(client, 0), download), update, number - 1, True)
            if client in self.hostile:
                about = Round(changes[client], known, [one.upload.examples for one in honest], len(self.hostile))
                change, examples = ATTACKS[self.attack](about)
                content[SHARED] = arrays(moved(download.shared, expected, change))
                content.config_records[ABOUT]["examples"] = examples or update.upload.examples
            asked = Asked(client, number, RUN, expected, {}, download.shared, MOST_EXAMPLES, 1e4)
            try:
                checked.append(replace(update, upload=check(content, asked).upload))
                self.counted[client] = number
            except Refused:
                self.refused += 1
        return checked

    def _job(self, number: int, client: int, sent: Download) -> ClientJob:
        job = self.here.runner.job(number, client, sent, self.here.clients[client])
        if client in self.hostile and self.attack == "wrong labels":
            return replace(job, labels=len(job.frozen.guidance) - 1 - job.labels)
        if client in self.hostile and self.attack.startswith("backdoor"):
            pictures = self.marked.job(number, client, sent, self.here.clients[client]).images
            both = ImageFeatures(torch.cat([job.images.pooled, pictures.pooled]))
            return replace(job, images=both, labels=torch.cat([job.labels, torch.full_like(job.labels, TARGET)]))
        return job

    def kept(self, number: int, updates: Sequence[ClientUpdate]) -> Mapping[int, Any]:
        return self.here.kept(number, updates)

    def evaluate(self, number: int, server: Server, alphas: Sequence[float]) -> Evaluation | None:
        return self.here.evaluate(number, server, alphas)

    def round_notes(self, number: int) -> Mapping[str, Any]:
        return {}


def vector(tensors: Tensors) -> torch.Tensor:
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def moved(received: Tensors, expected: Tensors, change: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the shared part after a change [P]."""
    parts = change.split([expected[name].numel() for name in sorted(expected)])
    shared = dict(zip(sorted(expected), parts, strict=True))
    return {name: (received[name].double() + shared[name].view_as(like)).to(like) for name, like in expected.items()}


class Cell(NamedTuple):
    """One run. partition: "equal" for classes without overlap, or "dirichlet" for α = 0.1 and unequal sizes."""

    partition: str
    clients: int
    hostile: int
    attack: str
    rule: str
    seed: int


def cells() -> Iterator[Cell]:
    """Yield all runs of the tables, the most important first."""
    for partition, name, seed in itertools.product(("equal", "dirichlet"), RULES[:2], SEEDS):
        yield Cell(partition, 10, 0, "none", name, seed)
    for crowds, seed, rules in itertools.product((CROWDS[:2], CROWDS[2:]), SEEDS, (RULES[:3], RULES[3:])):
        for (clients, hostile), attack, name in itertools.product(crowds, ATTACKS, rules):
            if rule(name, clients, hostile):
                yield Cell("equal", clients, hostile, attack, name, seed)


@dataclass(frozen=True)
class Measured:
    """The runs of one number of clients and one partition, with what they share."""

    setup: RunSetup
    first: dict[Any, list[ClientUpdate]] = field(default_factory=dict)  # trained in round 1, which many runs share

    @cached_property
    def marked(self) -> dict[int, Data]:
        """The task with triggered images, by seed."""
        return {seed: triggered_data(self.setup, self.setup.open(METHOD, seed)) for seed in SEEDS}

    def row(self, cell: Cell) -> dict[str, Any]:
        """Run a cell, and return its row."""
        opened, chosen = self.setup.open(METHOD, cell.seed), rule(cell.rule, cell.clients, cell.hostile)
        assert chosen is not None
        settings = replace(self.setup.config.federation, protection=chosen[1])
        spec = RunSpec(opened.method, opened.task, opened.backbone, settings, cell.seed, chosen[0])
        order = np.random.default_rng(cell.seed).permutation(cell.clients)
        hostile = frozenset(order[: cell.hostile].tolist())
        honest = sorted({*range(cell.clients)} - hostile)
        marked = ClientRunner(spec, self.marked[cell.seed] if cell.hostile else opened.data)
        with State.create() as state:
            here = LocalClients(ClientRunner(spec, opened.data), spec.states(state.client), opened.workers)
            pool = Hostile(here, marked, hostile, cell.attack, self.first)
            records = list(run_rounds(spec, pool, state))
            last = state.evaluation()
            server, seen = state.server(), LocalClients(marked, here.clients, opened.workers)
            answers = seen.evaluate(ROUNDS, server, (1.0,)).predicted["base"][honest]
        own = own_images(opened.task, [opened.task.clients[client] for client in honest], "base")
        others = own & (evaluation_sets(opened.task)["base"].targets != TARGET)
        success = fmean(np.mean(row[mask] == TARGET) for row, mask in zip(answers, others, strict=True) if mask.any())
        figures = {name: f"{last.clients[name][honest].mean():.2f}" for name in ("local", "base", "novel")}
        participants = sum(len(record["participants"]) for record in records)
        return {
            **cell._asdict(),
            **figures,
            "backdoor": f"{100 * success:.2f}",
            "refused": cell.clients * sum("lost" not in record for record in records) - participants,
            "lost": sum("lost" in record for record in records),
            "largest": f"{pool.ratio:.2f}",
        }


def measure(path: Path) -> None:
    """Measure the cells that the file does not have, and add a row for each."""
    done = {Cell(*(row[name] for name in Cell._fields)) for row in rows_of(path)}
    left = [cell for cell in cells() if Cell(*map(str, cell)) not in done]
    for (partition, clients), group in itertools.groupby(left, key=lambda cell: (cell.partition, cell.clients)):
        changes = [*SETTINGS, f"task.clients={clients}", *(UNEQUAL if partition == "dirichlet" else ())]
        with open_setup(load_config(None, changes), [METHOD], SEEDS, Execution()) as setup:
            measured = Measured(setup)
            for cell in group:
                row = measured.row(cell)
                with path.open("a", newline="", encoding="utf-8") as file:
                    writer = csv.DictWriter(file, list(row), lineterminator="\n")
                    if not file.tell():
                        writer.writeheader()
                    writer.writerow(row)


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the rows of the file, or nothing if it does not exist."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="CSV file of the runs")
    torch.set_num_threads(1)
    measure(parser.parse_args().file)


if __name__ == "__main__":
    main()
