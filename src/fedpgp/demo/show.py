"""The federation of a demo, which other threads start, watch and stop."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from PIL.Image import Image

from fedpgp.data.features import Progress
from fedpgp.data.image_features import ImageFeatures
from fedpgp.demo.federation import Models, holdings, rounds, untrained, zero_shot
from fedpgp.demo.stage import SUBJECTS, Choices, DemoSetup, Subject
from fedpgp.errors import ConfigError, FedPGPError
from fedpgp.serving.classifier import Classes

MOST_NAMES, LONGEST_NAME = 100, 80
BEST = 5  # classes in the answer of each model
FIRST = "drawings"  # the subject at the start

log = logging.getLogger(__name__)


class BusyError(FedPGPError):
    """A request that is not possible at this time."""


@dataclass
class _LiveRun:
    """A federation that was started; `seconds` is the time from its start to its last finished round."""

    number: int
    choices: Choices
    clients: dict[str, Any]
    started: float
    stop: threading.Event = field(default_factory=threading.Event)
    zero_shot: dict[str, Any] | None = None
    rounds: list[dict[str, Any]] = field(default_factory=list)
    models: Models = field(default_factory=dict)
    seconds: float = 0.0


class Show:
    """Prepares its stage, then runs one federation at a time. Any thread may call every method.

    The phase of a show is "preparing", "ready", "running", "stopping", "finished", "stopped" or "failed".

    Parameters
    ----------
    prepare
        Function that makes the stage of a subject, called in a separate thread. There is only one stage at a time, so
        only one checkpoint is in memory, and all browsers show the same.
    """

    def __init__(self, prepare: Callable[[Subject, Progress], DemoSetup]):
        self._prepare = prepare
        self._lock, self._classifying = threading.RLock(), threading.Lock()
        self._subject = SUBJECTS[FIRST]
        self._stage: DemoSetup | None = None
        self._zero_shot: Models = {}
        self._read: tuple[object, Mapping[str, Classes]] = (None, {})  # class names as the current models read them
        self._run: _LiveRun | None = None
        self._started = 0  # number of started federations
        self._thread: threading.Thread | None = None
        self._phase, self._error = "preparing", ""
        self._progress: tuple[str, int, int] = ("starting", 0, 1)
        self._version = 0
        self.closing = False

    def open(self, subject: Subject = SUBJECTS[FIRST]) -> None:
        """Begin to prepare the stage of a subject, which replaces the current stage.

        Raises
        ------
        BusyError
            If a stage is being prepared, or a federation is running.
        """
        with self._lock:
            if self._thread is not None and self._phase in ("preparing", "running", "stopping"):
                raise BusyError(
                    "the images cannot be changed now", remedy="Stop the federation, or wait until it has finished"
                )
            self._subject, self._stage, self._run = subject, None, None
            self._zero_shot, self._read = {}, (None, {})
            self._thread = threading.Thread(target=self._open, args=(subject,), name="stage", daemon=True)
            self._say("preparing", ("starting", 0, 1))
            self._thread.start()

    def close(self) -> None:
        """End a running federation after its current round, and end the streams of news."""
        self.closing = True
        with self._lock:
            if self._run is not None:
                self._run.stop.set()

    def wait(self, seconds: float) -> bool:
        """Wait until the preparation or federation has ended; return False if it has not after `seconds` seconds."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)
        return thread is None or not thread.is_alive()

    def stage(self) -> DemoSetup:
        """Return the stage; raise BusyError if it is not prepared yet, or its preparation failed."""
        if self._stage is None and self._error:
            raise BusyError(self._error)
        if self._stage is None:
            raise BusyError("CLIP and the pictures are still being read", remedy="Try again in a few seconds")
        return self._stage

    # --------------------------------------------------------------------------------------------------- federation

    def start(self, choices: Choices) -> int:
        """Start a federation and return its number; raise BusyError if another one is running."""
        with self._lock:
            stage = self.stage()
            if self._phase in ("running", "stopping"):
                raise BusyError("a federation is already running", remedy="Stop it, or wait until it has finished")
            self._started += 1
            number = self._started
            run = self._run = _LiveRun(number, choices, holdings(stage, choices), time.monotonic())
            self._thread = threading.Thread(
                target=self._work, args=(stage, run), name=f"federation {number}", daemon=True
            )
            self._say("running", ("testing zero-shot CLIP", 0, choices.rounds))
            self._thread.start()
            return number

    def stop(self) -> None:
        """End the federation after its current round; do nothing if none is running."""
        with self._lock:
            if self._phase == "running" and self._run is not None:
                self._run.stop.set()
                self._say("stopping", self._progress)

    def view(self, run: int = 0, seen: int = 0) -> tuple[int, dict[str, Any]]:
        """Return the version of the view, which increases with every change, and the view in JSON's types.

        Parameters
        ----------
        run
            Number of the federation that the caller knows.
        seen
            Number of its rounds that the caller knows. The view has only later rounds.
        """
        with self._lock:
            what, done, total = self._progress
            view: dict[str, Any] = {"phase": self._phase, "error": self._error, "subject": self._subject.title}
            view["progress"] = {"what": what, "done": done, "total": total}
            if (now := self._run) is not None:
                view["run"] = {
                    "number": now.number,
                    "choices": asdict(now.choices),
                    "clients": now.clients,
                    "zero_shot": now.zero_shot,
                    "rounds": now.rounds[seen if run == now.number else 0 :],
                    "seconds": now.seconds,
                }
            return self._version, view

    # ------------------------------------------------------------------------------------------------ classification

    def classify(self, picture: Image, names: list[str]) -> dict[str, Any]:
        """Classify a picture with every current model; return the most probable classes first, in JSON's types.

        Raises
        ------
        ConfigError
            If there are too many class names, or class names are too long or not distinct.
        """
        check_size(names)
        with self._lock:
            stage, run = self.stage(), self._run
            models = {**self._zero_shot, **(run.models if run is not None else {})}
            after = run.rounds[-1]["round"] if run is not None and run.rounds else None
            key = (stage.subject, run and run.number, after, tuple(names))
        found = []
        with self._classifying:  # one at a time: the models' caches of class names do not support several threads
            torch.set_num_threads(1)  # the operations are too small for several threads, and training needs the cores
            if key != self._read[0]:
                self._read = (key, {title: model.read(names) for title, model in models.items()})
            # `clone` gives a tensor outside inference mode, which methods need.
            feature = ImageFeatures(stage.backbone.image([picture]).clone())
            for title, model in models.items():
                classes = self._read[1][title]
                shares = model.probabilities(model.answer(feature, classes))[0].tolist()
                best = sorted(zip(classes.names, shares, strict=True), key=lambda pair: -pair[1])
                found.append({"model": title, "best": best[:BEST]})
        return {"names": names, "models": found, "round": after}

    # ----------------------------------------------------------------------------------------------------- in threads

    def _open(self, subject: Subject) -> None:
        try:
            stage = self._prepare(subject, self._preparing)
            with self._lock:
                self._zero_shot = {"zero-shot": zero_shot(stage)}
                self._stage = stage
                self._say("ready", ("ready", 1, 1))
        except Exception as error:
            self._fail(error)

    def _preparing(self, what: str, done: int, total: int, detail: str = "") -> None:
        self._say("preparing", (what, done, total))

    def _work(self, stage: DemoSetup, run: _LiveRun) -> None:
        try:
            run.zero_shot = untrained(stage, run.choices)
            for moment in rounds(stage, run.choices, run.stop):
                with self._lock:
                    run.rounds.append(moment.view)
                    run.models, run.seconds = moment.models, time.monotonic() - run.started
                    phase = "stopping" if run.stop.is_set() else "running"
                    self._say(phase, ("training", moment.view["round"], run.choices.rounds))
            finished = run.rounds[-1]["round"] == run.choices.rounds
            self._say("finished" if finished else "stopped", self._progress)
        except Exception as error:
            self._fail(error)

    def _say(self, phase: str, progress: tuple[str, int, int], error: str = "") -> None:
        with self._lock:
            self._phase, self._progress, self._error, self._version = phase, progress, error, self._version + 1

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, FedPGPError):
            log.exception("the demo failed")
        text = str(error) if isinstance(error, FedPGPError) else "the demo failed. Read the message in the terminal."
        self._say("failed", self._progress, text)


def check_size(names: list[str]) -> None:
    """Raise ConfigError if there are more class names than a page can show, or longer ones."""
    if len(names) > MOST_NAMES:
        raise ConfigError(
            where="the number of class names",
            allowed=f"at most {MOST_NAMES}",
            got=len(names),
            remedy="Remove some class names",
        )
    for name in names:
        if len(name) > LONGEST_NAME:
            raise ConfigError(
                where=f"the length of the class name {name[:20]!r}…",
                allowed=f"at most {LONGEST_NAME} characters",
                got=len(name),
                remedy="Use a shorter name",
            )
