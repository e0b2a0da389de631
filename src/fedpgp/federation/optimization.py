"""Optimizers and schedules of the learning rate in local training."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from fedpgp.aggregators import Tensors
from fedpgp.federation.settings import FederationConfig
from fedpgp.methods import Method
from fedpgp.methods.base import Optimizer, Period, Schedule, TrainedMethod

LONG = 1 / 5  # of the run: a longer warm-up is reported


@dataclass(frozen=True)
class LocalTraining:
    """Settings of local training in a round, from the method's section and [federation].

    Attributes
    ----------
    rounds
        Number of rounds of the federation. Training after them, such as fine-tuning, has a new optimizer, no warm-up,
        and the full learning rate if the schedule goes over rounds.
    learning_rates, weight_decays, schedules
        Values for each group of parameters, "shared" and "private".
    private_alone
        Whether only the private part is trained.
    """

    local_epochs: int
    batch_size: int
    rounds: int
    optimizer: Optimizer
    optimizer_state: Literal["reset", "keep"]
    momentum: float
    betas: tuple[float, float]
    eps: float
    learning_rates: Mapping[str, float]
    weight_decays: Mapping[str, float]
    schedules: Mapping[str, Schedule]
    schedule_over: Period
    warmup: int
    warmup_rate: float | None
    step_every: int
    step_factor: float
    private_alone: bool

    @classmethod
    def of(
        cls, method: Method, settings: FederationConfig, epochs: int | None = None, private_alone: bool = False
    ) -> LocalTraining:
        """Return the settings of a method: its own values, and the values of [federation] for its unset fields.

        Parameters
        ----------
        method
            The method.
        settings
            The section [federation].
        epochs
            Number of local epochs; None for federation.local_epochs.
        private_alone
            Whether only the private part is trained.
        """
        values = effective(vars(method) if isinstance(method, TrainedMethod) else {}, vars(settings))
        values |= {} if epochs is None else {"local_epochs": epochs}
        return cls(
            **{field.name: values[field.name] for field in fields(cls) if field.name in values},
            learning_rates=method.learning_rates,
            weight_decays=_of_groups(values, "weight_decay"),
            schedules=_of_groups(values, "schedule"),
            private_alone=private_alone,
        )

    def keeps_state(self, number: int) -> bool:
        """Whether the optimizer continues in round `number` from its state in the client's previous round."""
        return self.optimizer_state == "keep" and number <= self.rounds

    def new_optimizer(self, groups: Mapping[tuple[str, int], Sequence[Tensor]]) -> torch.optim.Optimizer:
        """Return an optimizer of groups of tensors.

        Parameters
        ----------
        groups
            Tensors by (name of the group, "shared" or "private"; number of steps in an epoch of their clients). The
            `param_groups` of the optimizer have these two as "name" and "epoch_steps".
        """
        rates, decays = self.learning_rates, self.weight_decays
        parameters: list[dict[str, Any]] = [
            {"params": tensors, "lr": rates[name], "weight_decay": decays[name], "name": name, "epoch_steps": steps}
            for (name, steps), tensors in groups.items()
            if tensors
        ]
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, momentum=self.momentum)
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.optimizer]
        return kind(parameters, betas=self.betas, eps=self.eps)

    def rate(self, group: str, number: int, step: int, epoch_steps: int) -> float:
        """Return the learning rate of a group in one step.

        The cosine is the same as in PyTorch's CosineAnnealingLR with T_max = period. As in the library Dassl, it begins
        after the warm-up, and the warm-up does not shorten its period.

        Parameters
        ----------
        group
            Name of the group, "shared" or "private".
        number
            Number of the round.
        step
            Index of the step in the round, from 0.
        epoch_steps
            Number of steps in an epoch of the client.
        """
        over_rounds = self.schedule_over == "rounds"
        place, period = {
            "rounds": (number - 1, self.rounds),
            "epochs": (step // epoch_steps, self.local_epochs),
            "steps": (step, self.local_epochs * epoch_steps),
        }[self.schedule_over]
        before = 0 if over_rounds else (number - 1) * period
        if number > self.rounds:
            place, before = (0 if over_rounds else place), self.warmup
        full, done = self.learning_rates[group], before + place
        if done < self.warmup:
            return full * (done + 1) / (self.warmup + 1) if self.warmup_rate is None else self.warmup_rate
        after = min(place, done - self.warmup)
        match self.schedules[group]:
            case "cosine":
                return full * (1 + math.cos(math.pi * after / period)) / 2
            case "step":
                return full * self.step_factor ** (after // self.step_every)
            case _:
                return full


def effective(own: Mapping[str, Any], federation: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the values of a method's section and of [federation], by key.

    A value of the method overrides the value of [federation], unless it is None. A value private_KEY that is None
    becomes the value of KEY.
    """
    own_values = {key: value for key, value in own.items() if value is not None or key not in federation}
    values = {**federation, **own_values}
    unset = [key for key in own if key.startswith("private_") and own[key] is None]
    return values | {key: values.get(key.removeprefix("private_")) for key in unset}


def _of_groups(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {"shared": values[key], "private": values.get(f"private_{key}", values[key])}


def state_of(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the state of an optimizer for some tensors, by "KEY/NAME", such as "momentum_buffer/U"."""
    return {
        f"{key}/{name}": value
        for name, tensor in tensors.items()
        for key, value in optimizer.state.get(tensor, {}).items()
        if isinstance(value, Tensor)
    }


def restore(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], state: Tensors) -> None:
    """Restore a state that `state_of` returned."""
    for entry, value in state.items():
        key, _, name = entry.partition("/")
        if name in tensors:
            # PyTorch counts steps on the CPU
            optimizer.state[tensors[name]][key] = value.clone().cpu() if key == "step" else value.clone()


def remarks(method: Method, settings: FederationConfig, asked: Collection[str]) -> list[str]:
    """Return remarks for the user before a run: settings of [federation] without effect, and a long warm-up.

    Parameters
    ----------
    method
        The method.
    settings
        The section [federation].
    asked
        Names "section.key" of the values that were set for this run.
    """
    own = {field.name for field in fields(TrainedMethod)} if isinstance(method, TrainedMethod) else set()
    sentences = [
        f"federation.{key} = {getattr(settings, key)!r} has no effect on {method.name}, because"
        f" {method.name}.{key} is {getattr(method, key)!r}. Set {method.name}.{key} instead"
        for key in sorted(own)
        if f"federation.{key}" in asked and getattr(method, key) not in (None, getattr(settings, key))
    ]
    training = LocalTraining.of(method, settings)
    periods = {"rounds": settings.rounds, "epochs": settings.rounds * settings.local_epochs}
    whole = periods.get(training.schedule_over)
    if own and whole is not None and training.warmup > whole * LONG:
        taken = f"{min(training.warmup, whole)} of {whole} {training.schedule_over}"
        sentences.append(
            f"the warm-up of {method.name} takes {taken}. Lower {method.name}.warmup, or raise federation.rounds"
        )
    return sentences
