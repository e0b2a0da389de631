"""Kill nodes and server apps of a federation at random moments, and check that no result changes.

    python tools/federation_kills.py --kills 30 -o kills.json

Each federation has three clients, TLS and keys. SIGKILL ends the processes of a node or the server app of the run
several times; in federations with only one kill, it may also end the whole server. Ended processes are started again,
as by a service manager. At the end of the run, the private parts on the nodes and the prompt must be bit-identical to a
run in one process with the same participants in each round.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from fedpgp.config import ExperimentConfig, load_config
from fedpgp.federation.rounds import LocalClients, run_rounds
from fedpgp.federation.state import State
from fedpgp.flower.deployment.layout import FederationLayout, FederationPlan, create
from fedpgp.flower.deployment.local import LocalFederation, free_ports, local_federation
from fedpgp.flower.node import OwnStates
from fedpgp.results.run import Run
from fedpgp.results.run_store import load_run
from fedpgp.runs.execution import Execution
from fedpgp.runs.setup import open_run
from fedpgp.runtime.files import write_json

CLIENTS, ROUNDS, METHOD = 3, 8, "fedpgp"
TARGETS = ("node", "server app", "server")
LONGEST_ROUND = 6.0  # seconds; a kill may come at any moment of a round
SETTINGS = [
    f"task.clients={CLIENTS}",
    f"federation.rounds={ROUNDS}",
    f"federation.eval_every={ROUNDS}",
    "federation.path_points=1",
    "federation.deadline=15",
    "task.shots=4",
]


def new_federation(
    directory: Path,
    method: str = METHOD,
    clients: int = CLIENTS,
    settings: Sequence[str] = SETTINGS,
    insecure: bool = False,
) -> FederationLayout:
    """Federation on this machine that distributes the embedded dataset."""
    config = load_config(None, [*settings, "federation.engine=deployment"], foreign=True)
    port, inner = free_ports(2)
    plan = FederationPlan("local", "127.0.0.1", port, inner, clients, config, method, 0, insecure)
    return create(directory, plan)


def disturbed(layout: FederationLayout, kills: int, rng: random.Random, cache: Path | None) -> list[dict[str, object]]:
    """Run a federation to its end while some of its processes are killed, and return the list of kills."""
    done: list[dict[str, object]] = []
    moments = sorted((rng.randint(0, ROUNDS - 2), rng.random() * LONGEST_ROUND) for _ in range(kills))
    targets = [rng.choice(TARGETS[:2] if kills > 1 else TARGETS) for _ in moments]
    with local_federation(layout, CLIENTS, None if cache is None else str(cache)) as federation:

        def disturb() -> None:
            for (number, delay), target in zip(moments, targets, strict=True):
                while last_round(layout) < number:
                    time.sleep(0.05)
                time.sleep(delay)
                done.append({**_kill(federation, target, rng), "round": last_round(layout)})

        thread = threading.Thread(target=disturb, daemon=True)
        thread.start()
        federation.complete(layout.runs / "local", lambda text: None)
    return done


def last_round(layout: FederationLayout) -> int:
    """Return the last round in which a client has trained; 0 before the first."""
    files = layout.directory.glob("nodes/*/state/*/*/round-*.safetensors")
    return max((int(file.stem.removeprefix("round-")) for file in files), default=0)


def _kill(federation: LocalFederation, target: str, rng: random.Random) -> dict[str, object]:
    if target == "server app":
        for process in processes_of(federation.layout, "flwr-serverapp"):
            os.kill(process, signal.SIGKILL)
        return {"target": target}
    name = "server" if target == "server" else f"node-{rng.randrange(CLIENTS)}"
    with suppress(ProcessLookupError):  # it is ended already, and is being started again
        os.killpg(federation.processes[name].pid, signal.SIGKILL)
    return {"target": name}


def processes_of(layout: FederationLayout, program: str) -> list[int]:
    """Return the ids of the processes of a program that belong to the server of a federation."""
    address = layout.connection.address
    command = ["ps", "-ww", "-eo", "pid,args"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [int(line.split()[0]) for line in listed if program in line and f"--runtime-api-address {address}" in line]


def undisturbed(config: ExperimentConfig, method: str, run: Run, cache: Path | None) -> State:
    """Run in one process, with the clients in each round whose updates were used in another run."""
    participants = {record["round"]: record["participants"] for record in run.rounds}
    with open_run(config, method, 0, Execution(cache=cache)) as opened:
        spec = opened.spec
        everybody = spec.downloads

        def downloads(number, server):  # type: ignore[no-untyped-def]
            found = everybody(number, server)
            return {client: found[client] for client in participants[number]}

        spec.downloads = downloads  # type: ignore[method-assign]
        state = State.create()
        pool = LocalClients(opened.runner, spec.states(state.client), opened.workers)
        for _ in run_rounds(spec, pool, state):
            pass
        return state


def differences(layout: FederationLayout, run: Run, expected: State) -> list[str]:
    """Return messages about a prompt or private parts that differ from the expected ones."""
    found = []
    server = expected.server()
    assert server is not None
    for name, value in server.shared.items():
        if not torch.equal(value, run.prompts[f"shared/{name}"]):
            found.append(f"shared {name}")
    for client in range(run.config.task.clients):
        counted = max((r["round"] for r in run.rounds if client in r["participants"]), default=0)
        (directory,) = (layout.node(client) / "state").glob("*/*")
        kept, own = OwnStates(directory).after(counted)[1], expected.client(client)
        if counted and (kept is None or own is None):
            found.append(f"client {client} has no private part")
        elif kept is not None and own is not None:
            found += [f"client {client} {n}" for n, v in own.private.items() if not torch.equal(v, kept.private[n])]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--each", type=int, default=3, help="number of kills in one federation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache-dir", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    rng, runs = random.Random(options.seed), []
    while (left := options.kills - sum(len(run["kills"]) for run in runs)) > 0:
        with tempfile.TemporaryDirectory() as place:
            layout = new_federation(Path(place) / "federation")
            began = time.monotonic()
            kills = disturbed(layout, min(left, options.each), rng, options.cache_dir)
            run = load_run(layout.runs / "local")
            wrong = differences(layout, run, undisturbed(run.config, METHOD, run, options.cache_dir))
            lost = [record["round"] for record in run.rounds if len(record["participants"]) < CLIENTS]
            runs.append(
                {
                    "kills": kills,
                    "seconds": round(time.monotonic() - began),
                    "rounds": len(run.rounds),
                    "rounds_without_some": lost,
                    "differences": wrong,
                }
            )
            write_json(options.output, {"runs": runs})
            print(json.dumps(runs[-1]), flush=True)


if __name__ == "__main__":
    main()
