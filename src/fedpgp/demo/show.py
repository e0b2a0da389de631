"""The federation of a demo, which other threads start, watch and stop."""

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from PIL.Image import Image

from fedpgp.data.features import Progress
from fedpgp.data.image_features import ImageFeatures
from fedpgp.demo.federation import Models, holdings, rounds, untrained, zero_shot
from fedpgp.demo.stage import SUBJECTS, Choices, DemoSetup, Subject
from fedpgp.demo.uploads import check_size
from fedpgp.demo.views import LiveRun, difference, setting
from fedpgp.errors import FedPGPError
from fedpgp.serving.classifier import Classes

BEST = 5  # classes in the answer of each model
FIRST = "drawings"  # the subject at the start
BUSY = ("running", "restarting", "stopping")  # phases in which a federation trains

log = logging.getLogger(__name__)


class BusyError(FedPGPError):
    """A request that is not possible at this time."""


class Show:
    """Prepares its stage, then runs one federation at a time. Any thread may call every method.

    The phase of a show is "preparing", "ready", "running", "restarting", "stopping", "finished", "stopped" or "failed".
    All state of the demo is here. A page shows the last view that it received, and nothing of earlier views.

    Parameters
    ----------
    prepare
        Function that makes the stage of a subject, called in a separate thread. There is only one stage at a time, so
        only one checkpoint is in memory, and all browsers show the same.
    """

    def __init__(self, prepare: Callable[[Subject, Progress], DemoSetup]):
        self._prepare = prepare
        self._lock, self._classifying = threading.RLock(), threading.Lock()
        self._server = secrets.token_hex(8)  # a page learns from it that the server was started again
        self._subject = SUBJECTS[FIRST]
        self._stage: DemoSetup | None = None
        self._setting: dict[str, Any] | None = None
        self._zero_shot: Models = {}
        self._read: tuple[object, Mapping[str, Classes]] = (None, {})  # class names as the current models read them
        self._run: LiveRun | None = None
        self._before: LiveRun | None = None  # an earlier federation with other settings, for comparison
        self._next: Choices | None = None  # the federation that replaces the current one after this round
        self._started = 0  # number of started federations
        self._thread: threading.Thread | None = None
        self._phase, self._error = "preparing", ""
        self._progress: tuple[str, int, int] = ("starting", 0, 1)
        self._last_action = {"by": "", "what": ""}
        self._written: tuple[int, str] = (-1, "")
        self.version = 0  # increases with every change
        self.closing = False

    def open(self, subject: Subject = SUBJECTS[FIRST], by: str = "") -> None:
        """Begin to prepare the stage of a subject, which replaces the current stage.

        Parameters
        ----------
        subject
            The subject.
        by
            The page of the viewer who asks for it. The view names it, so that other pages can say who did what.

        Raises
        ------
        BusyError
            If a stage is being prepared, or a federation is running.
        """
        with self._lock:
            if self._thread is not None and self._phase in ("preparing", *BUSY):
                raise BusyError(
                    "the images cannot be changed now", remedy="Stop the federation, or wait until it has finished"
                )
            self._subject, self._stage, self._setting, self._run, self._before = subject, None, None, None, None
            self._zero_shot, self._read = {}, (None, {})
            self._thread = threading.Thread(target=self._open, args=(subject,), name="stage", daemon=True)
            self._say("preparing", ("starting", 0, 1), by=by, what=f"chose {subject.title}")
            self._thread.start()

    def close(self) -> None:
        """End a running federation after its current round, and end the streams of news."""
        self.closing = True
        with self._lock:
            self._next = None
            if self._run is not None:
                self._run.stop.set()

    def wait(self, seconds: float) -> bool:
        """Wait until the preparation or federation has ended; return False if it has not after `seconds` seconds."""
        end = time.monotonic() + seconds
        while (thread := self._thread) is not None and thread.is_alive():  # the end of one may start the next one
            thread.join(max(0.0, end - time.monotonic()))
            if time.monotonic() >= end:
                return not thread.is_alive()
        return True

    def stage(self) -> DemoSetup:
        """Return the stage; raise BusyError if it is not prepared yet, or its preparation failed."""
        if self._stage is None and self._error:
            raise BusyError(self._error)
        if self._stage is None:
            raise BusyError("CLIP and the pictures are still being read", remedy="Try again in a few seconds")
        return self._stage

    # --------------------------------------------------------------------------------------------------- federation

    def start(self, choices: Choices, by: str = "", replaces: int | None = None) -> int:
        """Start a federation and return its number.

        Parameters
        ----------
        choices
            The settings.
        by
            The page of the viewer who asks for it.
        replaces
            Number of the running federation, to start again with these settings after its current round; None to start
            a federation only if none is running.

        Raises
        ------
        BusyError
            If another federation is running, or `replaces` is not running.
        """
        with self._lock:
            stage, run = self.stage(), self._run
            if replaces is None:
                if self._phase in BUSY:
                    remedy = (
                        "Move a slider to start it again with other settings, stop it, or wait until it has finished"
                    )
                    raise BusyError("a federation is already running", remedy=remedy)
                return self._begin(stage, choices, by, "started the federation").number
            known = run is not None and (run.number == replaces or (run.by == by != ""))
            if run is None or not known or self._phase not in ("running", "restarting"):
                raise BusyError(
                    "the settings were not used, because the federation has ended or another viewer has changed it",
                    remedy="Look at the settings again, then press Start or move the slider again",
                )
            if choices != (self._next or run.choices):
                self._next = choices
                run.stop.set()
                what = f"moved {difference(run.choices, choices)}, so the federation starts again"
                self._say("restarting", self._progress, by=by, what=what)
            return run.number + 1

    def stop(self, by: str = "") -> None:
        """End the federation after its current round; do nothing if none is running."""
        with self._lock:
            if self._phase in ("running", "restarting") and self._run is not None:
                self._next = None
                self._run.stop.set()
                self._say("stopping", self._progress, by=by, what="stopped the federation")

    def view(self) -> dict[str, Any]:
        """Return all that a page shows, in JSON's types. The words and the map are only in the last round."""
        with self._lock:
            what, done, total = self._progress
            view: dict[str, Any] = {"server": self._server, "phase": self._phase, "error": self._error}
            view |= {"subject": self._subject.title, "setting": self._setting, "action": self._last_action}
            view |= {"progress": {"what": what, "done": done, "total": total}, "run": None, "before": None}
            if self._run is not None:
                view["run"] = self._run.view()
            if self._before is not None:
                view["before"] = self._before.earlier_view()
            return view

    def snapshot(self) -> tuple[int, str]:
        """Return the version of the view, and the view as JSON."""
        with self._lock:
            if self._written[0] != self.version:
                self._written = (self.version, json.dumps(self.view()))
            return self._written

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
                self._stage, self._setting = stage, setting(stage)
                self._say("ready", ("ready", 1, 1))
        except Exception as error:
            self._fail(error)

    def _preparing(self, what: str, done: int, total: int, detail: str = "") -> None:
        self._say("preparing", (what, done, total))

    def _begin(self, stage: DemoSetup, choices: Choices, by: str, what: str) -> LiveRun:
        last = self._run
        least = 0 if self._before is None else len(self._before.rounds)
        if last is not None and last.choices != choices and len(last.rounds) >= least:
            self._before = last  # not a shorter one, which ended because a slider was moved again
        self._started, self._next = self._started + 1, None
        run = self._run = LiveRun(self._started, choices, holdings(stage, choices), by, time.monotonic())
        if last is not None and replace(last.choices, mu=choices.mu, bottleneck=choices.bottleneck) == choices:
            run.zero_shot = last.zero_shot
        name = f"federation {run.number}"
        self._say("running", ("testing zero-shot CLIP", 0, choices.rounds), by=by, what=what)
        self._thread = threading.Thread(target=self._work, args=(stage, run), name=name, daemon=True)
        self._thread.start()
        return run

    def _work(self, stage: DemoSetup, run: LiveRun) -> None:
        try:
            run.zero_shot = run.zero_shot or untrained(stage, run.choices)
            for moment in rounds(stage, run.choices, run.stop):
                with self._lock:
                    run.rounds.append(moment.view)
                    run.models, run.seconds = moment.models, time.monotonic() - run.started
                    self._say(self._phase, ("training", moment.view["round"], run.choices.rounds))
            with self._lock:
                if self._next is not None:
                    self._begin(stage, self._next, **self._last_action)
                    return
                finished = run.rounds[-1]["round"] == run.choices.rounds
                self._say("finished" if finished else "stopped", self._progress)
        except Exception as error:
            self._fail(error)

    def _say(
        self, phase: str, progress: tuple[str, int, int], error: str = "", by: str | None = None, what: str = ""
    ) -> None:
        with self._lock:
            self._phase, self._progress, self._error, self.version = phase, progress, error, self.version + 1
            if by is not None:
                self._last_action = {"by": by, "what": what}

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, FedPGPError):
            log.exception("the demo failed")
        text = str(error) if isinstance(error, FedPGPError) else "the demo failed. Read the message in the terminal."
        self._next = None
        self._say("failed", self._progress, text)
