"""Measure how well a curious server infers the classes of a client from its updates: the table of docs/privacy.md.

    python tools/privacy_attack.py -o attack.csv

The server has CLIP, the class names and the method, but no image. For each class, it trains one step on the
hand-written text feature of the class instead of an image, and compares the direction of the change with the update of
a client. The server guesses that the client has the classes with the most similar directions. AUC is the probability
that a class of the client has a higher rank than another class; 0.5 is guessing. Results are means over clients and
seeds; "sum" uses the sum of the updates of all rounds.
"""

import argparse
import csv
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch
from fedpgp.aggregators import Download, Tensors
from fedpgp.config import load_config
from fedpgp.data.image_features import ImageFeatures
from fedpgp.federation.client import ClientUpdate, train_clients
from fedpgp.federation.client_runner import ClientRunner
from fedpgp.federation.rounds import LocalClients, run_rounds
from fedpgp.federation.run_spec import RunSpec
from fedpgp.federation.state import ClientState, State
from fedpgp.runs.execution import Execution
from fedpgp.runs.setup import open_setup
from flwr.supercore.differential_privacy import add_gaussian_noise_inplace, compute_clip_model_update
from scipy.stats import rankdata

ROUNDS = 5
SETTINGS = [f"federation.rounds={ROUNDS}", f"federation.eval_every={ROUNDS}", "federation.path_points=1"]
NORM, DELTA = 0.5, 1e-5


class Watching(LocalClients):
    """A server that remembers every update and the message that it had sent."""

    seen: list[tuple[Download, ClientUpdate]]

    def train(self, number, downloads):  # type: ignore[no-untyped-def]
        updates = super().train(number, downloads)
        self.seen.extend((downloads[update.upload.client], update) for update in updates)
        return updates


def flat(shared: Tensors) -> np.ndarray:
    return torch.cat([shared[name].double().flatten() for name in sorted(shared)]).numpy()


def auc(scores: np.ndarray, members: np.ndarray) -> float:
    """Return the AUC of a ranking of members before others (Mann and Whitney)."""
    ranks, count = rankdata(scores), members.sum()
    return float((ranks[members].sum() - count * (count + 1) / 2) / (count * (~members).sum()))


def directions(runner: ClientRunner, spec: RunSpec, download: Download, number: int, towers) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Return the changes [C, n] by a step on the text feature of each base class."""
    own = spec.first(0)
    job = runner.job(number, next(iter(runner._clients)), download, ClientState(own.private, {}, own.control))
    guidance, found = job.frozen.guidance, []
    for label in range(len(guidance)):
        one = replace(
            job,
            images=ImageFeatures(guidance[label][None]),
            labels=torch.tensor([label]),
            training=replace(job.training, local_epochs=1, batch_size=1),
        )
        (update,) = train_clients(towers, [one])
        found.append(flat(update.upload.shared) - flat(download.shared))
    return np.stack(found)


def seen_through(protection: str, changes: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Return what the server sees of the change of each client."""
    if protection == "nothing":
        return changes
    if protection == "SecAgg+":
        return [np.mean(changes, axis=0)] * len(changes)
    epsilon = float(protection.rpartition("=")[2])
    found = []
    for change in changes:
        arrays, zeros = [change.copy()], [np.zeros_like(change)]
        compute_clip_model_update(arrays, zeros, NORM)
        add_gaussian_noise_inplace(arrays, 2 * NORM * math.sqrt(2 * math.log(1.25 / DELTA)) / epsilon)
        found.append(arrays[0])
    return found


PROTECTIONS = ("nothing", "local DP, ε=1000", "local DP, ε=100", "local DP, ε=10", "SecAgg+")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="promptfl,fedpgp")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    names, seeds, config = options.methods.split(","), list(range(options.seeds)), load_config(None, SETTINGS)
    rows = []
    with open_setup(config, names, seeds, Execution()) as setup:
        for name in names:
            found: dict[tuple[str, str], list[float]] = defaultdict(list)
            for seed in seeds:
                np.random.seed(seed)  # seed of Flower's noise, so that the table can be reproduced
                opened = setup.open(name, seed)
                task, spec, runner = opened.task, opened.spec, opened.runner
                with State.create() as state:
                    watching = Watching(runner, spec.states(state.client), setup.workers)
                    object.__setattr__(watching, "seen", [])
                    for _ in run_rounds(spec, watching, state):
                        pass
                members = {c.id: np.isin(np.array(task.base), c.classes) for c in task.clients}
                sums: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
                for number in range(1, ROUNDS + 1):
                    batch = watching.seen[(number - 1) * len(members) : number * len(members)]
                    download = batch[0][0]
                    guesses = directions(runner, spec, download, number, setup.workers.towers)
                    guesses /= np.linalg.norm(guesses, axis=1, keepdims=True)
                    changes = [flat(update.upload.shared) - flat(sent.shared) for sent, update in batch]
                    for protection in PROTECTIONS:
                        seen = seen_through(protection, changes, np.random.default_rng(seed))
                        for (_, update), change in zip(batch, seen, strict=True):
                            client = update.upload.client
                            scores = guesses @ change / np.linalg.norm(change)
                            sums[protection][client] = sums[protection].get(client, 0) + scores
                            if number == 1:
                                found[protection, "first round"].append(auc(scores, members[client]))
                for protection, of_clients in sums.items():
                    found[protection, "sum"] += [auc(scores, members[client]) for client, scores in of_clients.items()]
            for (protection, when), values in found.items():
                rows.append(
                    {
                        "method": name,
                        "protection": protection,
                        "seen": when,
                        "auc": round(fmean(values), 3),
                        "std_over_clients": round(stdev(values), 3),
                    }
                )
                print(rows[-1], flush=True)
    with options.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
