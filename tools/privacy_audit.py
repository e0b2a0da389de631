"""Compare each reported ε with an accountant and with an audit by draws: the table of docs/privacy.md.

    python tools/privacy_audit.py -o docs/results/privacy-audit.csv

The audit runs the code of a round many times, with each of two neighbouring inputs, and guesses the input from what the
round releases. The rates of wrong guesses, with intervals of Clopper and Pearson, bound μ of a Gaussian mechanism from
below at a confidence of 95 %, and ε at the δ of the report follows from μ. A reported ε below this bound is wrong.
"""

import argparse
import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from dp_accounting import GaussianDpEvent, get_epsilon_gaussian
from dp_accounting.pld import PLDAccountant
from fedpgp.aggregators import Download, Tensors, Upload
from fedpgp.federation import privacy as accounting
from fedpgp.federation.privacy import NORM, Private, longest_change
from fedpgp.federation.settings import PrivacyConfig
from fedpgp.flower.client_app import ABOUT, LOSSES, SHARED, client_app
from fedpgp.flower.secure_aggregation import secure_sum
from fedpgp.flower.update_validation import Asked, arrays, check
from fedpgp.methods import Params
from fedpgp.methods.dp_fpl import DPFPL
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.supercore.task_identity import TaskIdentity
from scipy.stats import beta, norm

ROUNDS = (1, 5, 25)
CONFIDENCE = 0.95
RUN, LONG = "0" * 32, 1e3  # a change of this length is clipped
EPOCHS = 2  # local epochs of dp-fpl in a round
TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # as in Flower's own processes


@dataclass(frozen=True)
class Mechanism:
    """A mechanism to audit.

    Attributes
    ----------
    name
        Its name in the table.
    delta
        δ of the report.
    reported
        Returns the reported ε by number of rounds.
    events
        The Gaussian mechanisms of a round, for an accountant.
    draw
        Returns, for a number of rounds, a number of draws and one of the two inputs, what is released: an array
        [draws, figures], summed over the rounds.
    cost
        The number of draws is divided by it, because a draw takes long.
    """

    name: str
    delta: float
    reported: Callable[[int], float]
    events: Sequence[GaussianDpEvent]
    draw: Callable[[int, int, bool], np.ndarray]
    cost: int = 1

    def accounted(self, rounds: int, step: float = 1e-3) -> float:
        """Return ε by the accountant for privacy loss distributions, with the loss in steps of `step`."""
        accountant = PLDAccountant(value_discretization_interval=step)
        for event in self.events:
            accountant.compose(event, rounds)
        return float(accountant.get_epsilon(self.delta))

    def audited(self, rounds: int, draws: int) -> float:
        """Return a lower bound of ε from draws with each of the two inputs, which are the same in each call."""
        np.random.seed(0)
        draws //= self.cost
        mu = least_mu(self.draw(rounds, draws, False), self.draw(rounds, draws, True))
        return float(get_epsilon_gaussian(1 / mu, self.delta)) if mu > 0 else 0.0


def least_mu(first: np.ndarray, second: np.ndarray) -> float:
    """Return a lower bound of μ from releases [draws, figures] with two neighbouring inputs.

    A third of the draws determines a linear test and its threshold. The other draws count its errors.
    """
    fitted = len(first) // 3
    means = first[:fitted].mean(0), second[:fitted].mean(0)
    spread = np.cov(first[:fitted].T) + np.cov(second[:fitted].T)
    weights = np.linalg.solve(np.atleast_2d(spread), means[1] - means[0])
    threshold = weights @ (means[0] + means[1]) / 2
    wrong = (first[fitted:] @ weights > threshold).sum(), (second[fitted:] @ weights <= threshold).sum()
    count, each = len(first) - fitted, 1 - (1 - CONFIDENCE) / 2
    return max(0.0, float(sum(norm.isf(beta.ppf(each, errors + 1, count - errors)) for errors in wrong)))


class Clients:
    """Clients whose change of the shared part is the same in each round, behind the mods of their ClientApps.

    Parameters
    ----------
    privacy
        The section [privacy].
    changes
        The changes [clients, values], before they are clipped.
    """

    def __init__(self, privacy: PrivacyConfig, changes: torch.Tensor):
        self.privacy, self.changes = privacy, changes
        self.app = client_app(self._answer, vars(privacy))
        self.contexts = [Context(1, node, {}, RecordDict(), {}) for node in range(len(changes))]

    def _answer(self, kind: str, content: RecordDict, context: Context) -> RecordDict:
        received = torch.from_numpy(content.array_records[SHARED]["p"].numpy().copy())
        about = ConfigRecord({"run": RUN, "round": 1, "examples": 1, "after": 0})
        trained = arrays({"p": received + self.changes[context.node_id]})
        return RecordDict({SHARED: trained, LOSSES: MetricRecord({"task": 1.0}), ABOUT: about})

    def _content(self, download: Download) -> RecordDict:
        return RecordDict({SHARED: arrays(download.shared), ABOUT: ConfigRecord(dict(download.figures))})

    def _replies(self, messages: Sequence[Message]) -> list[Message]:
        replies = []
        for message in messages:
            node, content = message.metadata.dst_node_id, recorddict_to_proto(message.content)
            arrived = Message(recorddict_from_proto(content), node, message.metadata.message_type)
            arrived.metadata.__dict__["_message_id"] = "1"
            replies.append(self.app(arrived, self.contexts[node]))
        return replies

    def train(self, private: Private, download: Download) -> list[Upload]:
        """Return the updates of all clients, as the server has them after its checks."""
        clients = range(len(self.changes))
        if not self.app_changes_updates:
            return [Upload(client, 1, {"p": download.shared["p"] + self.changes[client]}) for client in clients]
        if self.privacy.secure_aggregation:
            contents = {client: self._content(download) for client in clients}
            change, _ = secure_sum(self._replies, 1, contents, download.shared, self.privacy, 1)
            return [Upload(client, 1, {"p": download.shared["p"] + change["p"]}) for client in clients]
        replies = self._replies([Message(self._content(download), client, "train") for client in clients])
        asked = {"shared": download.shared, "control": {}, "received": download.shared, "most_examples": 1}
        asked |= {"largest_change": longest_change(download), "figures": private.answered}
        return [
            check(reply.content, Asked(client=client, round=1, run=RUN, **asked)).upload
            for client, reply in enumerate(replies)
        ]

    @property
    def app_changes_updates(self) -> bool:
        """Whether an update differs from the change that the client made."""
        return self.privacy.differential_privacy == "local" or self.privacy.clipped_by == "client"


def released(clients: Clients, rounds: int) -> tuple[np.ndarray, float]:
    """Return the sum over rounds of the change of the prompts, in units of C / m, and of the number of clipped changes.

    The number follows from C of two rounds, which everyone can know with adaptive clipping.
    """
    private, privacy = Private(privacy=clients.privacy), clients.privacy
    count = len(clients.changes)
    server = private.begin({"p": torch.zeros(clients.changes.shape[1])}, count)
    moved, clipped = np.zeros(clients.changes.shape[1]), 0.0
    for _ in range(rounds):
        after = private.aggregate(server, clients.train(private, private.download(server, 0)))
        bound = float(server.memory[NORM])
        moved += (after.shared["p"].double() - server.shared["p"].double()).numpy() * count / bound
        within = privacy.target_quantile - np.log(float(after.memory[NORM]) / bound) / privacy.clipping_rate
        clipped += count * (1 - within)
        server = after
    return moved, clipped


def with_fixed_norm(privacy: PrivacyConfig, group: int) -> Callable[[int, int, bool], np.ndarray]:
    """Return draws of the mean. Each client of a group of clients changes a value of its own, or nothing.

    The noise of two values is independent, so each client is a draw.
    """

    def draw(rounds: int, draws: int, changed: bool) -> np.ndarray:
        changes = LONG * float(changed) * torch.eye(group)
        drawn = [released(Clients(privacy, changes), rounds)[0] for _ in range(-(-draws // group))]
        return np.concatenate(drawn)[:draws, None]

    return draw


def with_adaptive_norm(privacy: PrivacyConfig, clients: int) -> Callable[[int, int, bool], np.ndarray]:
    """Return draws of the mean and of the number of clipped changes. One client changes its update, or nothing."""

    def draw(rounds: int, draws: int, changed: bool) -> np.ndarray:
        changes = torch.zeros(clients, 1)
        changes[0] = LONG * float(changed)
        drawn = [released(Clients(privacy, changes), rounds) for _ in range(draws)]
        return np.array([[*moved, clipped] for moved, clipped in drawn])

    return draw


def of_updates(privacy: PrivacyConfig) -> Callable[[int, int, bool], np.ndarray]:
    """Return draws of the update of one client, as the server sees it, whose change has one sign or the other."""

    def draw(rounds: int, draws: int, changed: bool) -> np.ndarray:
        clients = Clients(privacy, torch.full((draws, 1), LONG if changed else -LONG))
        download = Download({"p": torch.zeros(1)})
        private = Private(privacy=privacy)
        moved = sum(
            np.array([upload.shared["p"].numpy() for upload in clients.train(private, download)]) for _ in range(rounds)
        )
        return np.asarray(moved)

    return draw


def of_images(method: DPFPL) -> Callable[[int, int, bool], np.ndarray]:
    """Return draws of the two noisy gradients of each local epoch of dp-fpl, in which one image has a large gradient.

    The gradient of p_L that the method follows has the noise of g_u in the direction of this image's gradient.
    """
    left, right = torch.tensor([[0.0, 1.0, 0.0]]).T, torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    p_L = torch.tensor([[1.0, 0.0, 0.0]]).T @ right  # the columns of u are orthogonal to `left`, and v is ± `right`
    params = Params({"p_G": torch.zeros(3, 4)}, {"p_L": p_L})

    def draw(rounds: int, draws: int, changed: bool) -> np.ndarray:
        gradients = torch.zeros(2, 3, 4)
        gradients[0] = LONG * float(changed) * left @ right
        both: dict[str, Tensors] = {"task": {"p_G": gradients, "p_L": gradients}}
        drawn = []
        for seed in np.random.randint(2**62, size=draws):
            rng = torch.Generator().manual_seed(int(seed))
            steps = [method.direction(both, params, rng) for _ in range(EPOCHS * rounds)]
            drawn.append([sum(float(left.T @ step[name] @ right.T) for step in steps) for name in ("p_G", "p_L")])
        return np.array(drawn)

    return draw


def central(name: str, **settings: object) -> Mechanism:
    """Return the mechanism of central privacy with these settings of the section [privacy]."""
    privacy = PrivacyConfig(differential_privacy="central", **settings)  # type: ignore[arg-type]
    if privacy.clipping == "fixed":
        noise = [privacy.noise_multiplier]
        draw, cost = (
            (with_fixed_norm(privacy, 3), 5) if privacy.secure_aggregation else (with_fixed_norm(privacy, 100), 1)
        )
    else:
        assert privacy.count_noise is not None
        noise = [accounting._multiplier(privacy.noise_multiplier, privacy.count_noise), privacy.count_noise]
        draw, cost = with_adaptive_norm(privacy, 3), 2 if privacy.clipped_by == "client" else 1
    events = [*map(GaussianDpEvent, noise)]
    return Mechanism(name, privacy.delta, lambda rounds: _epsilon(privacy, rounds), events, draw, cost)


def local(name: str, epsilon: float) -> Mechanism:
    """Return the mechanism of local privacy with this ε of a round."""
    privacy = PrivacyConfig(differential_privacy="local", local_epsilon=epsilon)
    noise = np.sqrt(2 * np.log(1.25 / privacy.delta)) / epsilon
    events = [GaussianDpEvent(noise)]
    return Mechanism(name, privacy.delta, lambda rounds: _epsilon(privacy, rounds), events, of_updates(privacy))


def images(name: str, multiplier: float) -> Mechanism:
    """Return the mechanism of dp-fpl with this noise multiplier."""
    method = DPFPL(rank=1, noise_multiplier=multiplier)
    events = [GaussianDpEvent(multiplier)] * 2 * EPOCHS
    reported = lambda rounds: method.privacy_spent(EPOCHS * rounds)["epsilon"]  # noqa: E731
    return Mechanism(name, method.delta, reported, events, of_images(method))


def _epsilon(privacy: PrivacyConfig, rounds: int) -> float:
    return Private(privacy=privacy).privacy_spent(rounds)["epsilon"]


def mechanisms() -> list[Mechanism]:
    """Return every mechanism of fedpgp. The noise is small enough for an audit with thousands of draws."""
    adaptive = {"clipping": "adaptive", "count_noise": 1.2}
    return [
        central("central, fixed norm, clipped by the server"),
        central("central, fixed norm, clipped by the client", clipped_by="client"),
        central("central, fixed norm, SecAgg+", clipped_by="client", secure_aggregation=True),
        central("central, adaptive norm, clipped by the server", **adaptive),
        central("central, adaptive norm, clipped by the client", clipped_by="client", **adaptive),
        local("local, ε = 4 a round", 4.0),
        images("dp-fpl, z = 2, two epochs a round", 2.0),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="CSV file of the table")
    parser.add_argument("--draws", type=int, default=400, help="largest number of draws with each of the two inputs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with arguments.output.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["mechanism", "rounds", "ε, reported", "ε, accountant", "ε, audit"])
        for mechanism in mechanisms():
            for rounds in ROUNDS:
                figures = mechanism.reported(rounds), mechanism.accounted(rounds)
                row = [mechanism.name, rounds, *(f"{figure:.3f}" for figure in figures)]
                row.append(f"{mechanism.audited(rounds, arguments.draws):.2f}")
                table.writerow(row)
                file.flush()
                print(*row, flush=True)


if __name__ == "__main__":
    main()
