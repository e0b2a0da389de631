"""Optimizers and schedules of local training, compared with their oracle and with PyTorch's schedulers."""

import math
from dataclasses import replace
from functools import partial
from typing import ClassVar

import agreement
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import fedclip, fedpgp, promptfl
from pydantic import ValidationError

from fedpgp import run
from fedpgp.config import load_config
from fedpgp.errors import ConfigError
from fedpgp.federation.client import train_clients
from fedpgp.federation.optimization import LocalTraining, remarks
from fedpgp.federation.settings import FederationConfig
from fedpgp.federation.state import State
from fedpgp.methods import METHODS, FedPGP, Method, PromptFL
from fedpgp.methods.fedclip import FedCLIP
from fedpgp.testing import Recording

METHOD = PromptFL(context_length=3, learning_rate=0.05)
PERSONAL = FedPGP(context_length=3, bottleneck=2, learning_rate=0.05)
ADAM = {"betas": (0.8, 0.95), "eps": 1e-2, "weight_decay": 0.3, "learning_rate": 0.01}


def rate(method, number, step, epoch_steps, group="shared", **settings):
    return LocalTraining.of(method, FederationConfig(**settings)).rate(group, number, step, epoch_steps)


# --------------------------------------------------------------------------------------------------------- optimizers


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_adam_and_adamw_agree_with_transcriptions(optimizer, both_precisions, monkeypatch):
    """ε is not much smaller than the gradients. Otherwise only their signs would count, in any precision."""
    method = replace(PERSONAL, optimizer=optimizer, **ADAM)
    run = partial(fedpgp.run, mu=method.mu, tau=method.tau)
    agreement.check_agreement(method, run, both_precisions, monkeypatch)


def test_fedclip_uses_its_authors_optimizer_by_default(backbones, monkeypatch):
    method = FedCLIP(learning_rate=0.01)
    assert (method.optimizer, method.betas, method.eps, method.weight_decay) == ("adam", (0.9, 0.98), 1e-6, 0.2)
    agreement.check_agreement(method, lambda world: fedclip.run(world, True), backbones, monkeypatch, images="real")


def test_the_section_of_a_method_overrides_the_federation(exact):
    general = {"optimizer": "adam", "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.3}
    own = tiny.run(replace(METHOD, **general), exact)[-1]
    assert tiny.bits(own.shared) == tiny.bits(tiny.run(METHOD, exact, **general)[-1].shared)
    plain = replace(METHOD, optimizer="sgd", momentum=0.9, weight_decay=5e-4)
    assert tiny.bits(tiny.run(plain, exact, **general)[-1].shared) == tiny.bits(tiny.run(METHOD, exact)[-1].shared)


def test_a_method_without_its_own_optimizer_uses_the_federations():
    class Own(Method):
        momentum = "of another kind"
        learning_rates: ClassVar = {"shared": 1.0}
        prompts = loss = predict = None

    assert LocalTraining.of(Own(), FederationConfig(momentum=0.5)).momentum == 0.5


def test_the_private_part_may_decay_otherwise_than_the_shared_one(exact):
    once = {"rounds": 1, "local_epochs": 1, "batch_size": 7}
    plain, decayed = (
        tiny.run(replace(PERSONAL, weight_decay=0.1, private_weight_decay=decay), exact, **once)[0]
        for decay in (0.1, 0.5)
    )
    assert tiny.bits(plain.shared) == tiny.bits(decayed.shared)
    first = PERSONAL.init_private(tiny.task(), exact, tiny.generator(0, "private"), 0)
    for less, more in zip(plain.private, decayed.private, strict=True):
        for name, start in first.items():
            assert torch.allclose(more[name], less[name] - 0.05 * 0.4 * start, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize(
    ("settings", "rate_of"),
    [
        (
            {"schedule": "cosine", "schedule_over": "steps"},
            lambda number, client, step: 0.05 * (1 + math.cos(math.pi * step / 4)) / 2,
        ),
        (
            {"schedule": "cosine", "warmup": 1, "warmup_rate": 1e-3},
            lambda number, client, step: {1: 1e-3, 2: 0.05}[number],
        ),
    ],
)
def test_every_step_has_the_learning_rate_of_its_place(settings, rate_of, backbones, monkeypatch):
    """Three clients with 6, 5 and 7 images in batches of 4, two epochs: 4 steps each."""
    method = replace(METHOD, **settings)
    agreement.check_agreement(method, promptfl.run, backbones, monkeypatch, epochs=2, rate_of=rate_of)


@given(
    st.sampled_from(["cosine", "step"]), st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.floats(0.1, 0.9)
)
def test_schedules_are_those_of_pytorch(schedule, period, every, number, factor):
    tensor = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([tensor], lr=0.05)
    kinds = {
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, period),
        "step": lambda: torch.optim.lr_scheduler.StepLR(optimizer, every, factor),
    }
    theirs = kinds[schedule]()
    settings = {"schedule": schedule, "step_every": every, "step_factor": factor}
    for place in range(period):
        expected = pytest.approx(theirs.get_last_lr()[0], rel=1e-9, abs=1e-15)
        assert rate(METHOD, place + 1, 0, 3, rounds=period, **settings) == expected
        over = {**settings, "local_epochs": period}
        assert rate(METHOD, number, 3 * place + 2, 3, **over, schedule_over="epochs") == expected
        assert rate(METHOD, number, place, period, local_epochs=1, **settings, schedule_over="steps") == expected
        optimizer.step()
        theirs.step()


def test_the_warm_up_is_at_the_beginning_of_the_run_and_the_schedule_begins_behind_it():
    """Dassl, with MAX_EPOCH = 5 and one warm-up epoch: 1e-5, then the cosine from its beginning, with T_max = 5."""
    settings = {"schedule": "cosine", "schedule_over": "epochs", "warmup": 1, "warmup_rate": 1e-5, "local_epochs": 5}
    cosine = [0.05 * (1 + math.cos(math.pi * t / 5)) / 2 for t in range(5)]
    assert [rate(METHOD, 1, epoch, 1, **settings) for epoch in range(5)] == pytest.approx([1e-5, *cosine[:4]])
    assert [rate(METHOD, 2, epoch, 1, **settings) for epoch in range(5)] == pytest.approx(cosine)
    rising = {"warmup": 3, "schedule_over": "steps", "local_epochs": 1}
    assert [rate(METHOD, 1, step, 2, **rising) for step in range(2)] == pytest.approx([0.0125, 0.025])
    assert [rate(METHOD, 2, step, 2, **rising) for step in range(2)] == pytest.approx([0.0375, 0.05])


def test_after_the_rounds_there_is_no_warm_up_and_no_end_of_a_schedule_over_rounds():
    """Fine-tuning and joining clients train in rounds after the last round."""
    settings = {"rounds": 4, "local_epochs": 3, "schedule": "cosine", "warmup": 9, "warmup_rate": 1e-5}
    assert rate(METHOD, 5, 7, 3, **settings) == rate(METHOD, 6, 0, 3, **settings) == 0.05
    assert rate(METHOD, 5, 3, 3, **settings, schedule_over="epochs") == pytest.approx(0.05 * 0.75)


def test_the_private_part_may_have_a_schedule_and_a_rate_of_its_own():
    method = replace(PERSONAL, schedule="cosine", private_schedule="constant", private_learning_rate=0.2)
    settings = {"rounds": 3}
    assert rate(method, 2, 0, 1, **settings) == pytest.approx(0.05 * 0.75)
    assert rate(method, 2, 0, 1, "private", **settings) == 0.2


@pytest.mark.parametrize(("over", "optimizer"), [("epochs", "adamw"), ("steps", "sgd")])
def test_clients_of_other_sizes_that_are_trained_at_once_have_their_own_places_in_the_schedule(
    over, optimizer, exact, backbone
):
    """Batches of two: 3, 3 and 4 steps in an epoch."""
    method = replace(PERSONAL, optimizer=optimizer, schedule="cosine", schedule_over=over, warmup=2)
    for clip, tolerance in [(exact, 1e-9), (backbone, 1e-4)]:
        workers = Recording(clip.towers(method.reads))
        tiny.run(method, clip, workers=workers, batch_size=2, rounds=2)
        jobs = [job for job, _ in workers.trained if job.round == 2]
        for job, together in zip(jobs, train_clients(clip.towers(), jobs), strict=True):
            (alone,) = train_clients(clip.towers(), [job])
            for name, value in {**alone.upload.shared, **alone.own.private}.items():
                mine = {**together.upload.shared, **together.own.private}[name]
                assert (mine - value).abs().max() < tolerance * value.abs().max()


# ------------------------------------------------------------------------------------------------ state between rounds


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_an_optimizer_that_is_kept_goes_on_as_if_the_round_had_not_ended(optimizer, exact):
    """One client that always sees all of its images: two rounds of an epoch are one round of two."""
    task = tiny.task()
    data = replace(tiny.data(exact), task=replace(task, clients=task.clients[:1]))
    method = replace(PERSONAL, optimizer=optimizer)
    whole = {"batch_size": 100, "weight_decay": 0.1}
    once = tiny.run(method, exact, data, **whole, rounds=1, local_epochs=2)[-1]

    def twice(state):
        return tiny.run(method, exact, data, **whole, rounds=2, local_epochs=1, optimizer_state=state)[-1]

    for name, value in {**once.shared, **once.private[0]}.items():
        kept, fresh = ({**run.shared, **run.private[0]}[name] for run in (twice("keep"), twice("reset")))
        assert torch.allclose(kept, value, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(fresh, value, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["fedpgp", "centralized"])
def test_what_is_kept_of_an_optimizer_survives_a_stop(name, backbone, tmp_path):
    method, file = tiny.small(METHODS[name], optimizer="adam"), tmp_path / "state.sqlite"
    through = tiny.run(method, backbone, rounds=3, optimizer_state="keep")[-1]
    with State.create(file) as state:
        tiny.run(method, backbone, state=state, rounds=2, optimizer_state="keep")
    with State.open(file) as state:
        assert {entry.split("/")[0] for entry in state.client(0).optimizer} == {"step", "exp_avg", "exp_avg_sq"}
        resumed = tiny.run(method, backbone, state=state, rounds=3, optimizer_state="keep")[-1]
    assert tiny.bits(resumed.shared) == tiny.bits(through.shared)
    assert [tiny.bits(own) for own in resumed.private] == [tiny.bits(own) for own in through.private]
    fresh = tiny.run(method, backbone, rounds=3)[-1]
    assert tiny.bits(fresh.shared) != tiny.bits(through.shared)


# -------------------------------------------------------------------------------------------------------------- faults


def test_what_has_no_effect_and_a_long_warm_up_are_told_before_a_run():
    general = ["federation.schedule=cosine", "federation.optimizer=adamw", "federation.rounds=10"]

    def told(name, *changes):
        config = load_config(changes=changes)
        asked = {key for key, origin in config.origins.items() if origin == "--set"}
        return remarks(config.methods[name], config.federation, asked)

    assert told("fedclip", *general, "fedclip.optimizer=adam") == [
        "federation.optimizer = 'adamw' has no effect on fedclip, because fedclip.optimizer is 'adam'."
        " Set fedclip.optimizer instead"
    ]
    assert told("promptfl", *general) == told("zero-shot", *general) == []
    assert told("promptfl", *general, "promptfl.warmup=30") == [
        "the warm-up of promptfl takes 10 of 10 rounds. Lower promptfl.warmup, or raise federation.rounds"
    ]
    assert told("promptfl", "federation.warmup=2") == []


def test_an_optimizer_is_not_kept_for_prompts_that_change_places(small, cache):
    with pytest.raises(ConfigError, match=r"federation\.optimizer_state.*fedmgp"):
        run("fedmgp", changes=["federation.optimizer_state=keep", "task.clients=2"], cache=cache)


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer": "adagrad"},
        {"betas": (0.9, 1.0)},
        {"betas": (0.9,)},
        {"eps": 0.0},
        {"schedule": "linear"},
        {"schedule_over": "batches"},
        {"warmup": -1},
        {"warmup_rate": 0.0},
        {"step_every": 0},
        {"step_factor": 1.5},
    ],
)
def test_values_out_of_range_are_refused_for_all_methods_and_for_one(values):
    for section in (FederationConfig, PromptFL):
        with pytest.raises(ValidationError):
            section(**values)
