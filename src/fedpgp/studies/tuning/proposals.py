"""Proposals of the settings that are tried next."""

import optuna
import torch
from optuna.trial import TrialState

from fedpgp.errors import OutputError
from fedpgp.runtime.randomness import generator
from fedpgp.studies.tuning.space import Value
from fedpgp.studies.tuning.tuning import Tuning

BATCH = 4  # number of trials of a method that are proposed together, whatever the number of processes
DRAWN = 8  # number of random trials of a method before proposals use the finished trials


class Proposals:
    """Proposals for one method. A batch of proposals depends only on the trials before the batch.

    Proposals are therefore the same after a kill and for any number of processes.

    Parameters
    ----------
    tuning
        The search, with the trials that are finished.
    name
        Name of the method.

    Attributes
    ----------
    done
        Finished trials by number.
    out
        Number of trials that are being evaluated.
    """

    def __init__(self, tuning: Tuning, name: str):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.name, self.out = name, 0
        self.done = {trial.number: trial for trial in tuning.of(name)}
        self._method, self._space, self._count = tuning.before.methods[name], dict(tuning.spaces[name]), tuning.count
        self._study = optuna.create_study(direction="maximize")
        self._asked: dict[int, optuna.Trial] = {}
        self._start = 0

    def open(self) -> list[tuple[int, dict[str, Value]]]:
        """Return the numbers and settings of the next trials to evaluate; none if the search is finished.

        Raises
        ------
        OutputError
            If a finished trial has other settings than this search proposes.
        """
        while self._start < self._count:
            numbers = range(self._start, min(self._start + BATCH, self._count))
            batch = [(number, self._propose(number)) for number in numbers]
            for number, settings in batch:
                if number in self.done and self.done[number].settings != settings:
                    raise OutputError(
                        f"trial {number} of {self.name} has other settings than this search proposes: the file was"
                        " changed, or another version of Optuna wrote it",
                        where="trials.jsonl",
                        remedy="Start a new search in another directory",
                    )
            if missing := [(number, settings) for number, settings in batch if number not in self.done]:
                self.out = len(missing)
                return missing
            for number in numbers:
                if number in self._asked:  # Optuna is not told about trial 0, which may lie outside of the ranges
                    value = self.done[number].value
                    self._study.tell(self._asked[number], value, None if value is not None else TrialState.FAIL)
            self._start += BATCH
        return []

    def _propose(self, number: int) -> dict[str, Value]:
        if number == 0:
            return {field: getattr(self._method, field) for field in self._space}
        if number not in self._asked:
            seed = torch.randint(2**31, (1,), generator=generator(0, f"tuning {self.name}", number)).item()
            self._study.sampler = optuna.samplers.TPESampler(seed=int(seed), n_startup_trials=DRAWN)
            self._asked[number] = self._study.ask(self._space)
        return dict(self._asked[number].params)
