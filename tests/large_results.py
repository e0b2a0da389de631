"""Large results, written without training: many methods, and many clients."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fedpgp.methods import METHODS
from fedpgp.results.run import Run
from fedpgp.results.run_store import write_run


def _write(run: Run, directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "config.toml").write_text(run.config.to_toml())
    write_run(run, directory)


def write_methods(run: Run, directory: Path, count: int = 30, seeds: int = 3, rounds: int = 50) -> Path:
    """Write a comparison of many methods: runs with the answers of one run, but with other figures and more rounds."""
    rng = np.random.default_rng(0)
    names = list(METHODS)[:count] + [f"method-{i}" for i in range(count - len(METHODS))]
    for name in names:
        for seed in range(seeds):
            shift = float(rng.normal(scale=3))
            moved = {key: value + shift for key, value in run.results["final"].items()}
            path = [
                {**point, "local": point["local"] + shift, "others": point["others"] + shift}
                for point in run.results["path"]
            ]
            results = {**run.results, "method": name, "seed": seed, "final": moved, "path": path, "rounds": rounds}
            records = [{**run.rounds[-1], "round": at, "local": 50 + shift + at / 3} for at in range(1, rounds + 1)]
            _write(replace(run, results=results, rounds=records), directory / name / f"seed-{seed}")
    return directory


def write_clients(run: Run, directory: Path, count: int = 1000) -> Path:
    """Write a run with many clients: copies of the clients of a run, each with some other answers."""
    rng = np.random.default_rng(0)
    places = np.arange(count) % len(run.results["clients"])
    clients = [
        {**run.results["clients"][place], "client": client, "local": float(rng.uniform(20, 100))}
        for client, place in enumerate(places)
    ]
    answers = {name: tensor[places] if tensor.dim() == 2 else tensor for name, tensor in run.answers.items()}
    classes = len(run.results["task"]["base_names"])
    predicted = answers["base/predicted"].clone()
    other = torch.from_numpy(rng.random(tuple(predicted.shape)) < 0.2)
    predicted[other] = torch.from_numpy(rng.integers(0, classes, int(other.sum()))).to(predicted.dtype)
    assert run.outcomes is not None
    base, novel, own = run.outcomes.base[:, places], run.outcomes.novel[:, places], run.outcomes.own[places]
    outcomes = replace(run.outcomes, base=base, novel=novel, own=own)
    prompts = {name: tensor for name, tensor in run.prompts.items() if name.startswith("shared/")}
    for client, place in enumerate(places):
        for name in ("U", "V"):
            prompts[f"private/{client}/{name}"] = run.prompts[f"private/{place}/{name}"]
    task = {**run.results["task"], "clients": count}
    results = {**run.results, "clients": clients, "task": task}
    answers["base/predicted"] = predicted
    _write(replace(run, results=results, answers=answers, outcomes=outcomes, prompts=prompts), directory)
    return directory
