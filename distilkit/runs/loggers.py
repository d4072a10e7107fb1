"""Loggers: who is told the numbers of a run beside its store, such as TensorBoard, Weights & Biases or trackio; none by default.

    dk.run(distiller, "runs/x", loggers=[dk.TensorBoard(), dk.Tracker("wandb", project="digits")])

What is logged, by the number of outer steps done:

    outer_loss, meta_gradient_norm, seconds     of each outer step
    validation_accuracy, images                 at each look at validation: the mean over the networks, and the set on a grid
    test_accuracy/distilled                     at the end: of the set, of its first blocks (first_N) and of the baselines, by name

A network that diverged counts as never right, as where sets are chosen.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import re
import secrets
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from distilkit.data.distilled import DistilledSet
from distilkit.errors import FieldError, RunError, listing, nearest
from distilkit.evaluation.training import mean_or_zero
from distilkit.runs.record import BASELINE, FINAL, PREFIX
from distilkit.truncation import StepInfo

logger = logging.getLogger("distilkit")

Values = Mapping[str, Any]
MOST_IMAGES, ACROSS = 100, 10  # of a set in a picture, and beside each other
FLUSH = 5.0  # seconds between two times that events are made to lie on the disk


class Logger(Protocol):
    """Is told the numbers of a run. It cannot change or end the run: one that raises is told no more."""

    def start(self, folder: Path, title: str, spec: Mapping[str, Any], step: int, /) -> None:
        """A run begins, or goes on.

        Args:
            folder: of the run.
            title: for people.
            spec: the resolved spec, as nested dicts that JSON can hold.
            step: how many outer steps are done. What comes is of later ones: if more was logged before a kill, it comes again.
        """
        ...

    def log(self, step: int, values: Values, /) -> None:
        """Numbers by name, after so many outer steps; an array is a picture, uint8 (H, W, 3)."""
        ...

    def finish(self) -> None:
        """The run is at its end, or stopped."""
        ...


class TensorBoard:
    """Events for TensorBoard, in RUN/tensorboard. A run that goes on writes another file there; what it does again, TensorBoard drops.

    Raises:
        RunError: tensorboardX is not installed.

    >>> import tempfile
    >>> logger = TensorBoard()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     logger.start(Path(folder), "digits", {}, 0)
    ...     logger.log(1, {"outer_loss": 2.3})
    ...     logger.finish()
    ...     [path.name for path in Path(folder).iterdir()]
    ['tensorboard']
    """

    FOLDER = "tensorboard"

    def __init__(self) -> None:
        # Not its SummaryWriter: that writes from a thread, and waits for ever when the thread has met a full disk.
        self._events, self._summary, self._proto = (
            _imported(f"tensorboardX.{name}", "'distilkit[tensorboard]'") for name in ("event_file_writer", "summary", "proto.event_pb2")
        )
        self._due = 0.0

    def start(self, folder: Path, title: str, spec: Mapping[str, Any], step: int, /) -> None:
        """Begin a file, whose first event says from which step on it counts."""
        place, file = folder / self.FOLDER, folder / "spec.toml"
        place.mkdir(exist_ok=True)
        # Its name has the seconds of the clock, in which there may be two.
        number = len(list(place.glob("events.out.tfevents.*")))
        self._writer = self._events.EventsWriter(str(place / "events"), f".{number}")
        begin = self._proto.SessionLog(status=self._proto.SessionLog.START)
        self._write(step + 1, session_log=begin)
        text = file.read_text(encoding="utf-8") if file.is_file() else json.dumps(dict(spec), indent=1)
        self._write(0, summary=self._summary.text("spec", textwrap.indent(text, "    ")))  # which Markdown shows as it is

    def log(self, step: int, values: Values, /) -> None:
        """Numbers as scalars, arrays as images."""
        for name, value in values.items():
            picture = isinstance(value, np.ndarray)
            made = self._summary.image(name, value, dataformats="HWC") if picture else self._summary.scalar(name, value)
            self._write(step, summary=made)
        if time.monotonic() >= self._due:
            self._writer.flush()
            self._due = time.monotonic() + FLUSH

    def finish(self) -> None:
        """Close the file."""
        self._writer.close()

    def _write(self, step: int, **what: Any) -> None:
        self._writer.write_event(self._proto.Event(wall_time=time.time(), step=step, **what))


class Tracker:
    """A module with the calls of Weights & Biases: `wandb`, `trackio`, or another with `init`, `log`, `finish` and `Image`.

    A run that goes on is the same there: its name, which is its `id` too where `init` takes one, is kept in RUN/MODULE.name.

    Args:
        module: its name.
        options: for `init`, beside name, config (the spec) and resume; project is "distilkit" when it is left out.

    Raises:
        RunError: the module cannot be imported.
    """

    def __init__(self, module: str, **options: Any) -> None:
        self._module, self._name, self._options = _imported(module, module), module, options

    def start(self, folder: Path, title: str, spec: Mapping[str, Any], step: int, /) -> None:
        """Begin a run there, or go on with it."""
        file = folder / f"{self._name}.name"
        name = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
        if not name:  # also where a kill came between making the file and writing it
            name = f"{re.sub(r'[^A-Za-z0-9_-]', '-', folder.name)[:40]}-{secrets.token_hex(4)}"
            file.write_text(f"{name}\n", encoding="utf-8")
        given = {"project": "distilkit", "name": name, "config": dict(spec), "resume": "allow"}
        if "id" in inspect.signature(self._module.init).parameters:
            given["id"] = name
        with redirect_stdout(sys.stderr):  # the output may be a document of ours
            self._module.init(**given | self._options)

    def log(self, step: int, values: Values, /) -> None:
        """Numbers as they are, arrays as its images."""
        made = {name: self._module.Image(value) if isinstance(value, np.ndarray) else value for name, value in values.items()}
        self._module.log(made, step=step)

    def finish(self) -> None:
        """End the session there, which may take a while to send all."""
        with redirect_stdout(sys.stderr):
            self._module.finish()


NAMED: dict[str, Callable[[], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": lambda: Tracker("wandb"),
    "trackio": lambda: Tracker("trackio"),
}


def named(name: str) -> Logger:
    """A logger by the name that `distilkit run --log` takes.

    Raises:
        FieldError: there is none of that name.
        RunError: what it needs is not installed.
    """
    if name not in NAMED:
        raise FieldError("--log", name, listing(list(NAMED)), fix=f"--log {nearest(name, NAMED) or 'tensorboard'}")
    return NAMED[name]()


def _imported(module: str, install: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RunError(f"What logs the run cannot be imported: {error}.", fix=f"pip install {install}") from error


class Loggers:
    """All loggers of a run. One that raises is told of once, and is told nothing more: no run is lost by it."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self._there, self._started = list(loggers), False

    def start(self, folder: Path, title: str, spec: Mapping[str, Any], step: int) -> None:
        """As each of them has it."""
        self._started = True
        self._each(lambda one: one.start(folder, title, spec, step))

    def stepped(self, info: StepInfo, step: int) -> None:
        """An outer step is done, after which there are so many."""
        values = {"outer_loss": info.outer_loss, "meta_gradient_norm": info.meta_gradient_norm, "seconds": info.seconds}
        self._each(lambda one: one.log(step, values))

    def looked(self, accuracy: np.ndarray, made: DistilledSet, step: int) -> None:
        """Validation accuracy of networks (seeds,), and the set."""
        self._each(lambda one: one.log(step, {"validation_accuracy": float(mean_or_zero(accuracy))} | picture(made)))

    def tested(self, name: str, accuracy: np.ndarray, step: int) -> None:
        """Test accuracy of networks (seeds,), by the name of their score in `Record`."""
        trained_on = "distilled" if name == FINAL else name.removeprefix(BASELINE).replace(PREFIX, "first ").replace(" ", "_")
        self._each(lambda one: one.log(step, {f"test_accuracy/{trained_on}": float(mean_or_zero(accuracy))}))

    def finish(self) -> None:
        """As each of them has it, if the run has begun."""
        if self._started:
            self._each(lambda one: one.finish())

    def _each(self, tell: Callable[[Logger], None]) -> None:
        failed = []
        for one in self._there:
            try:
                tell(one)
            except Exception as error:  # of somebody else's code, which may raise anything
                failed.append(one)
                logger.warning("%s has failed, and logs no more of this run: %s: %s", type(one).__name__, type(error).__name__, error)
                with suppress(Exception):
                    one.finish()
        self._there = [one for one in self._there if not any(one is other for other in failed)]


def picture(made: DistilledSet) -> dict[str, np.ndarray]:
    """The first images of a set on a grid by class, uint8 (H, W, 3), by the name `images`; nothing of feature vectors."""
    import torch
    from torchvision.utils import make_grid

    if made.images.ndim != 4:
        return {}
    pixels = made.pixels().cpu()[torch.argsort(made.classes.cpu(), stable=True)[:MOST_IMAGES]]
    if pixels.shape[1] not in (1, 3):
        pixels = pixels.float().mean(1, keepdim=True).round().to(torch.uint8)
    return {"images": make_grid(pixels, nrow=ACROSS, padding=1).permute(1, 2, 0).numpy()}
