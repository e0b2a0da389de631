"""The plan of a comparison, and its estimate of the time."""

from types import SimpleNamespace

import pytest
import tiny

import fedpgp
from fedpgp.federation.client_runner import ClientRunner
from fedpgp.federation.run_spec import RunSpec
from fedpgp.federation.settings import FederationConfig
from fedpgp.methods import FedPGP, Local, PromptFL
from fedpgp.reporting import Silent
from fedpgp.runs import runtime_estimate, work
from fedpgp.runs.comparison_plan import ComparisonPlan
from fedpgp.runtime.workers import Workers


class Listening(Silent):
    """Keep the notices."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def notice(self, text: str) -> None:
        self.said.append(text)


def runner_of(method, backbone, settings) -> ClientRunner:
    """Return the runner of all clients of the tiny task."""
    data = tiny.data(backbone)
    return ClientRunner(RunSpec(method, data.task, backbone, settings, 0), data)


def test_plan_in_a_line() -> None:
    seconds = {("a", 0): 30.0, ("b", 0): 30.0, ("c", 0): 90.0, ("a", 1): 30.0, ("b", 1): 30.0}
    assert ComparisonPlan(seconds).describe(2) == (
        "5 runs, about 4 min in 2 processes: a, b with seeds 0, 1; c with seed 0"  # 210 s
    )
    assert ComparisonPlan({("a", 3): 12.0}).describe(1) == "1 run, about 12 s in 1 process: a with seed 3"


def test_finished_runs_correct_the_estimate_of_the_others() -> None:
    plan = ComparisonPlan({("a", seed): 10.0 for seed in range(4)})
    assert plan.seconds == 40
    plan.done(("a", 0), 20)  # twice as long as estimated
    assert (plan.finished, plan.runs) == (1, 4)
    assert plan.seconds == pytest.approx(30 * (20 + 4) / (10 + 4))
    for seed in (1, 2, 3):
        plan.done(("a", seed), 20)
    assert (plan.seconds, plan.in_words) == (0, "")


def test_plan_without_estimates() -> None:
    plan = ComparisonPlan({("a", 0): 0.0, ("a", 1): 0.0})
    plan.done(("a", 0), 3)
    assert plan.seconds == 0


@pytest.mark.parametrize(
    ("method", "models", "points"), [(FedPGP(), 4, 11), (Local(), 4, 1), (PromptFL(), 1, 1)], ids=lambda m: str(m)[:8]
)
def test_a_round_of_two_clients_is_multiplied(method, models, points, backbone, monkeypatch) -> None:
    """Two of the three clients have 11 of the 18 images; `models` is the number of evaluated models."""
    seen = {}

    def federate(runner, workers, state):
        short = runner.spec.settings
        seen.update(clients=len(runner.data.task.clients), rounds=short.rounds, epochs=short.local_epochs)
        state.client = lambda client: SimpleNamespace(private={} if models == 1 else {"U": 1})
        yield {"round": 1, "seconds_training": 11.0, "seconds_evaluation": 3.0}

    monkeypatch.setattr(runtime_estimate, "federate", federate)
    settings = FederationConfig(rounds=7, local_epochs=3, participation=0.5, eval_every=2)
    found = runtime_estimate.seconds_of_run(runner_of(method, backbone, settings), Workers(None, 1))
    one_model = 3.0 / 3 if models > 1 else 3.0
    assert found == pytest.approx(11 * 7 * 3 * 0.5 * 18 / 11 + one_model * models * (4 + points - 1))
    assert seen == {"clients": 2, "rounds": 1, "epochs": 1}


@pytest.mark.parametrize(("first", "clients"), [(0.3, [2, 3]), (0.7, [2, 2]), (5.0, [2])])
def test_a_short_round_warms_up_and_a_second_counts(first, clients, backbone, monkeypatch) -> None:
    """The second round has as many clients as the time allows; a long first round is not repeated."""
    seen = []

    def federate(runner, workers, state):
        seen.append(len(runner.data.task.clients))
        state.client = lambda client: None
        yield {"round": 1, "seconds_training": first if len(seen) == 1 else 0.1, "seconds_evaluation": 0.0}

    monkeypatch.setattr(runtime_estimate, "federate", federate)
    settings = FederationConfig(rounds=1, local_epochs=1)
    found = runtime_estimate.seconds_of_run(runner_of(PromptFL(), backbone, settings), Workers(None, 1))
    assert seen == clients
    examples = {2: 11, 3: 18}[clients[-1]]
    assert found == pytest.approx((first if len(clients) == 1 else 0.1) * 18 / examples)


def test_the_timed_round_has_a_client_for_every_process(backbone, monkeypatch) -> None:
    seen = []

    def federate(runner, workers, state):
        seen.append(len(runner.data.task.clients))
        state.client = lambda client: None
        yield {"round": 1, "seconds_training": 9.0, "seconds_evaluation": 0.0}

    monkeypatch.setattr(runtime_estimate, "federate", federate)
    runtime_estimate.seconds_of_run(runner_of(PromptFL(), backbone, FederationConfig()), SimpleNamespace(count=3))
    assert seen == [3]


@pytest.mark.usefixtures("small")
def test_the_time_of_a_method_that_fine_tunes_is_estimated(tmp_path) -> None:
    listening = Listening()
    changes = ["promptfl.finetuning=1", "federation.rounds=2", "federation.eval_every=2", "task.clients=3"]
    fedpgp.compare(["promptfl"], seeds=2, changes=changes, reporter=listening, cache=tmp_path)
    assert any("2 runs, about" in text for text in listening.said)


@pytest.mark.usefixtures("small")
def test_the_estimate_of_a_stopped_run_counts_only_its_remaining_rounds(tmp_path, monkeypatch) -> None:
    """Processes are started before the timing; the estimate is proportional to the remaining rounds."""
    calls = []

    class Stopping(Silent):
        def round(self, method: str, seed: int, record) -> None:
            if (method, record["round"]) == ("promptfl", 3):
                raise KeyboardInterrupt

    changes = [*tiny.SHORT_RUN, "federation.rounds=4"]
    out, cache = tmp_path / "out", tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        fedpgp.compare(["promptfl", "local"], changes=changes, output=out, cache=cache, reporter=Stopping())
    monkeypatch.setattr(Workers, "start", lambda workers: calls.append("start"))
    monkeypatch.setattr(work, "seconds_of_run", lambda *arguments: calls.append("timed") or 400.0)
    listening = Listening()
    fedpgp.resume(out, cache=cache, reporter=listening)
    assert calls == ["start", "timed", "timed"]
    assert "2 runs, about 8 min in 1 process: promptfl, local with seed 0" in listening.said  # 100 s and 400 s
