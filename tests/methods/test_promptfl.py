import agreement
import pytest
import tiny
from oracle import class_specific, promptfl
from oracle.training import cross_entropy, train

import fedpgp
from fedpgp.federation.client_runner import ClientRunner
from fedpgp.federation.rounds import federate
from fedpgp.federation.run_spec import RunSpec
from fedpgp.federation.settings import FederationConfig
from fedpgp.federation.state import State
from fedpgp.methods import PromptFL
from fedpgp.runtime.workers import Workers


def test_promptfl_agrees_with_the_oracle(backbones, monkeypatch):
    agreement.check_agreement(PromptFL(**agreement.HYPER), promptfl.run, backbones, monkeypatch, rounds=3)


@pytest.mark.parametrize(("specific", "position"), [(True, "end"), (True, "middle"), (False, "front")])
def test_contexts_of_classes_and_other_positions_agree_with_the_oracle(specific, position, backbones, monkeypatch):
    method = PromptFL(context_length=3, learning_rate=0.01, class_specific=specific, class_token_position=position)
    agreement.check_agreement(
        method, lambda world: class_specific.run(world, True, position), backbones, monkeypatch, rounds=2
    )


def test_finetuning_trains_every_client_separately_after_the_last_round(exact):
    """As the oracle's training from the last average; only two of three took part before, and nothing is sent."""
    method, data = PromptFL(**agreement.HYPER, finetuning=3), tiny.data(exact)
    *before, last = tiny.run(method, exact, data, rounds=2, participation=0.67, batch_size=4)
    assert [one.number for one in before] == [1, 2] and last.number == 3
    assert all(not any(one.kept) for one in before)
    assert last.record["participants"] == [0, 1, 2] and last.record["bytes_up"] == 0 < last.record["bytes_down"]
    assert tiny.bits(last.shared) == tiny.bits(before[-1].shared)
    world = agreement.world_of(method, exact, data, 2)

    def loss_of(theta, images, labels):
        return cross_entropy(promptfl.logits_of(world, theta["p_G"], images, world.names), labels)

    for client, kept in enumerate(last.kept):
        order = tiny.order(0, 3, client, tiny.EXAMPLES[client], 3)
        batches = [batch for permutation in order for batch in permutation.split(4)]
        expected, _ = train(loss_of, last.shared, *world.clients[client], batches, world.settings)
        assert agreement.difference(kept["p_G"], expected["p_G"]) < 1e-9
    plain = tiny.run(PromptFL(**agreement.HYPER), exact, data, rounds=2, participation=0.67, batch_size=4)
    assert last.evaluation.shared == plain[-1].evaluation.shared
    assert last.evaluation.diagnostics != plain[-1].evaluation.diagnostics


def test_a_finetuned_run_that_is_stopped_goes_on(exact, tmp_path):
    method, data = PromptFL(**agreement.HYPER, finetuning=1), tiny.data(exact)
    whole = tiny.run(method, exact, data)
    settings = FederationConfig(**tiny.SETTINGS)
    State.create(tmp_path / "s").close()
    for _ in range(3):
        with State.open(tmp_path / "s") as state:
            runner = ClientRunner(RunSpec(method, data.task, exact, settings, 0), data)
            next(federate(runner, Workers(exact.towers(), 1), state))
    with State.open(tmp_path / "s") as state:
        assert state.rounds() == 3
        kept = [state.client(client).kept for client in range(3)]
    assert [tiny.bits(own) for own in kept] == [tiny.bits(own) for own in whole[-1].kept]


def test_a_finetuned_runs_bytes_are_those_of_its_rounds(small, cache):
    changes = ["federation.rounds=1", "federation.local_epochs=1", "task.clients=2", "task.shots=1"]
    row = fedpgp.run(PromptFL(context_length=3, finetuning=1), changes=changes, cache=cache).row
    assert row["bytes_up_per_client_round"] == 3 * 128 * 4
