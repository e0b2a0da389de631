"""Measure the effect of hostile clients on a federation with each aggregator: the table of docs/federation.md.

    python tools/hostile_clients.py -o hostile.csv

The server checks every update as in a network; updates of hostile clients are changed before this check. There are
twenty clients with the embedded data. The results are means over the honest clients in the last round.
"""

import argparse
import csv
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from fedpgp.aggregators import AGGREGATORS, Aggregator, Download, Server
from fedpgp.config import load_config
from fedpgp.evaluation.evaluator import Evaluation
from fedpgp.federation.client import ClientUpdate, in_groups, train_clients
from fedpgp.federation.client_runner import ClientRunner
from fedpgp.federation.rounds import LocalClients, run_rounds
from fedpgp.federation.run_spec import RunSpec
from fedpgp.federation.state import State
from fedpgp.flower.client_app import SHARED
from fedpgp.flower.messages import Request, trained
from fedpgp.flower.update_validation import Asked, Refused, check
from fedpgp.runs.execution import Execution
from fedpgp.runs.setup import open_setup
from flwr.app import Array, RecordDict

CLIENTS, ROUNDS, RUN = 20, 8, "0" * 32
AGGREGATOR_NAMES = ("fedavg", "median", "trimmed-mean", "krum", "multi-krum", "bulyan")
SHARES = (0.1, 0.2, 0.4)
SETTINGS = [
    f"task.clients={CLIENTS}",
    f"federation.rounds={ROUNDS}",
    f"federation.eval_every={ROUNDS}",
    "federation.path_points=1",
]

Attack = Callable[[RecordDict, Mapping[str, torch.Tensor], dict[str, Any], np.random.Generator], None]


def _arrays(content: RecordDict, change: Callable[[str, np.ndarray], np.ndarray]) -> None:
    record = content.array_records[SHARED]
    for name, array in list(record.items()):
        record[name] = Array(change(name, array.numpy()))


def sign_flip(content, received, memory, rng):  # type: ignore[no-untyped-def]
    """Return five times the change in the opposite direction."""
    _arrays(content, lambda name, value: received[name].numpy() - 5 * (value - received[name].numpy()))


def scaled_noise(content, received, memory, rng):  # type: ignore[no-untyped-def]
    """Return noise that is ten times as large as the change."""

    def noise(name: str, value: np.ndarray) -> np.ndarray:
        size = 10 * np.sqrt(np.mean((value - received[name].numpy()) ** 2))
        return (received[name].numpy() + size * rng.standard_normal(value.shape)).astype(value.dtype)

    _arrays(content, noise)


def label_flip(content, received, memory, rng):  # type: ignore[no-untyped-def]
    """Train honestly on false labels: class C − 1 − c instead of class c. See `Hostile.train`."""


def nan(content, received, memory, rng):  # type: ignore[no-untyped-def]
    """Return values that are not numbers."""
    _arrays(content, lambda name, value: np.full_like(value, np.nan))


def wrong_shape(content, received, memory, rng):  # type: ignore[no-untyped-def]
    """Return tensors with one row less."""
    _arrays(content, lambda name, value: value[:-1].copy())


def replay(content, received, memory, rng):  # type: ignore[no-untyped-def]
    """Return the message of the first round again."""
    first = memory.setdefault("first", content.copy())
    content.clear()
    content.update(first)


ATTACKS: dict[str, Attack] = {
    "sign flip": sign_flip,
    "scaled noise": scaled_noise,
    "label flip": label_flip,
    "NaN": nan,
    "wrong shape": wrong_shape,
    "replay": replay,
}


@dataclass
class Hostile:
    """Clients of this process, some of which are hostile; the server checks their updates. See `rounds.ClientPool`."""

    here: LocalClients
    spec: RunSpec
    hostile: frozenset[int]
    attack: str
    rng: np.random.Generator
    forgiving: bool = True
    memories: dict[int, dict[str, Any]] = field(default_factory=dict)
    counted: dict[int, int] = field(default_factory=dict)
    refused: int = 0
    all_refused: int = 0

    def train(self, number: int, downloads: Mapping[int, Download]) -> Sequence[ClientUpdate]:
        federation, states = self.here.federation, self.here.clients
        jobs = [federation.job(number, client, download, states[client]) for client, download in downloads.items()]
        if self.attack == "label flip":
            flipped = [replace(job, labels=len(job.frozen.guidance) - 1 - job.labels) for job in jobs]
            jobs = [f if job.client in self.hostile else job for job, f in zip(jobs, flipped, strict=True)]
        towers, updates, self.refused = self.here.workers.towers, [], 0
        for update in itertools.chain.from_iterable(train_clients(towers, group) for group in in_groups(towers, jobs)):
            client, download = update.upload.client, downloads[update.upload.client]
            request = Request(RUN, number, self.counted.get(client, 0), download)
            content = trained(request, update, request.counted, True)
            if client in self.hostile:
                memory = self.memories.setdefault(client, {})
                ATTACKS[self.attack](content, download.shared, memory, self.rng)
            asked = Asked(client, number, RUN, self.spec.shared, {}, download.shared, 10**6, 1e4)
            try:
                updates.append(replace(update, upload=check(content, asked).upload))
                self.counted[client] = number
            except Refused:
                self.refused += 1
        self.all_refused += self.refused
        return updates

    def kept(self, number: int, updates: Sequence[ClientUpdate]) -> Mapping[int, Any]:
        return self.here.kept(number, updates)

    def evaluate(self, number: int, server: Server, alphas: Sequence[float]) -> Evaluation | None:
        return self.here.evaluate(number, server, alphas)

    def round_notes(self, number: int) -> Mapping[str, Any]:
        return {}


def aggregator(name: str, hostile: int) -> Aggregator:
    """Return the aggregator for a number of hostile clients, or for the most that it tolerates among twenty."""
    cls = AGGREGATORS[name]
    if name in ("krum", "multi-krum"):
        return cls(malicious=max(1, min(hostile, (CLIENTS - 3) // 2)))
    if name == "bulyan":
        return cls(malicious=max(1, min(hostile, (CLIENTS - 3) // 4)))
    if name == "trimmed-mean":
        return cls(trim=min(0.45, max(0.1, hostile / CLIENTS)))
    return cls()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="fedpgp")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    config = load_config(None, SETTINGS)
    cases: list[tuple[str, float, str]] = [("none", 0.0, name) for name in AGGREGATOR_NAMES]
    cases += [(a, s, n) for a, s, n in itertools.product(ATTACKS, SHARES, AGGREGATOR_NAMES)]
    rows = []
    with open_setup(config, [options.method], list(range(options.seeds)), Execution()) as setup:
        for attack, share, name in cases:
            found: dict[str, list[float]] = {"local": [], "base": [], "novel": []}
            refused, lost = 0, 0
            for seed in range(options.seeds):
                rng = np.random.default_rng(seed)
                hostile = frozenset(rng.permutation(CLIENTS)[: round(share * CLIENTS)].tolist())
                opened = setup.open(options.method, seed)
                rule = aggregator(name, len(hostile))
                spec = RunSpec(opened.method, opened.task, opened.backbone, config.federation, seed, rule)
                with State.create() as state:
                    here = LocalClients(ClientRunner(spec, opened.data), spec.states(state.client), opened.workers)
                    pool = Hostile(here, spec, hostile, attack, rng)
                    records = list(run_rounds(spec, pool, state))
                    last = state.evaluation()
                honest = [client for client in range(CLIENTS) if client not in hostile]
                for figure, values in found.items():
                    values.append(float(last.clients[figure][honest].mean()))
                refused += pool.all_refused
                lost += sum("lost" in record for record in records)
            rows.append(
                {
                    "attack": attack,
                    "hostile": share,
                    "aggregator": name,
                    **{figure: round(fmean(values), 1) for figure, values in found.items()},
                    **{f"{f}_std": round(stdev(v), 1) if len(v) > 1 else "" for f, v in found.items()},
                    "refused": refused,
                    "lost_rounds": lost,
                }
            )
            print(rows[-1], flush=True)
            with options.output.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    main()
