"""What is planned, and how long it is said to take."""

from types import SimpleNamespace

import pytest
import tiny

from fedpgp.aggregators import FedAvg
from fedpgp.config import FederationConfig
from fedpgp.federation import pilot
from fedpgp.federation.jobs import Data
from fedpgp.methods import FedPGP, Local, PromptFL
from fedpgp.plan import Plan


def test_plan_in_a_line() -> None:
    seconds = {("a", 0): 30.0, ("b", 0): 30.0, ("c", 0): 90.0, ("a", 1): 30.0, ("b", 1): 30.0}
    assert Plan(seconds).describe(2) == (
        "5 runs, about 4 min in 2 processes: a, b with seeds 0, 1; c with seed 0"  # 210 s
    )
    assert Plan({("a", 3): 12.0}).describe(1) == "1 run, about 12 s in 1 process: a with seed 3"


def test_what_is_done_corrects_what_is_left() -> None:
    plan = Plan({("a", seed): 10.0 for seed in range(4)})
    assert plan.seconds == 40
    plan.done(("a", 0), 20)  # twice as long as estimated
    assert (plan.finished, plan.runs) == (1, 4)
    assert plan.seconds == pytest.approx(30 * (20 + 4) / (10 + 4))
    for seed in (1, 2, 3):
        plan.done(("a", seed), 20)
    assert (plan.seconds, plan.in_words) == (0, "")


def test_plan_without_estimates() -> None:
    plan = Plan({("a", 0): 0.0, ("a", 1): 0.0})
    plan.done(("a", 0), 3)
    assert plan.seconds == 0


@pytest.mark.parametrize(
    ("method", "models", "points"), [(FedPGP(), 4, 11), (Local(), 4, 1), (PromptFL(), 1, 1)], ids=lambda m: str(m)[:8]
)
def test_a_round_of_two_clients_is_multiplied(method, models, points, monkeypatch) -> None:
    """Two of the three clients hold 11 of the 18 images; models: read in an evaluation, the shared part's included."""
    data = Data(tiny.task(), None, {})
    seen = {}

    def federate(method, data, backbone, settings, seed, workers, state, aggregator):
        seen.update(clients=len(data.task.clients), rounds=settings.rounds, epochs=settings.local_epochs)
        state.client = lambda client: SimpleNamespace(private={} if models == 1 else {"U": 1})
        yield {"round": 1, "seconds_training": 11.0, "seconds_evaluation": 3.0}

    monkeypatch.setattr(pilot, "federate", federate)
    settings = FederationConfig(rounds=7, local_epochs=3, participation=0.5, eval_every=2)
    found = pilot.seconds_of_run(method, data, None, settings, 0, None, FedAvg())
    one_model = 3.0 / 3 if models > 1 else 3.0
    assert found == pytest.approx(11 * 7 * 3 * 0.5 * 18 / 11 + one_model * models * (4 + points - 1))
    assert seen == {"clients": 2, "rounds": 1, "epochs": 1}
