"""Stopping a run: by Ctrl-C, by the signals of terminals and schedulers, or after a time that was given.

What asks for a stop is noted, and the run ends with the outer step that it is in, or the networks. What takes longer than a few seconds is
given up: the state from before is whole. A second Ctrl-C does that at once. While results are written, nothing interrupts.

Where several processes take a run, nothing is given up: the others wait for what this one is at.

A time that was given ends nothing before something was done, so that pieces come to the end however short they are.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

GRACE = 5.0  # seconds that an outer step, or networks that are trained together, may still take
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class GivenUp(KeyboardInterrupt):
    """Raised in the middle of the work that is given up."""


class Stop:
    """Watches for a request to stop, inside of a `with` block. Signals are handled in the main thread only, as Python has it.

    Args:
        after: seconds from now after which to stop by itself, or None.
    """

    def __init__(self, after: float | None = None) -> None:
        self.reason: str | None = None
        self.timed = False  # whether it was the time that was given
        self.progressed = False  # whether there is more than when this began; told from outside
        self.patient = False  # whether nothing is given up, since other processes wait for it; told from outside
        self.lost = False  # whether those are gone; told from outside
        self._deadline = None if after is None else time.monotonic() + after
        self._over = False  # nothing is to be interrupted any more
        self._shielded = 0
        self._pending = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is signal.SIG_IGN:  # as nohup has it
                    continue
                self._before[number] = signal.signal(number, self._asked)
            if hasattr(signal, "SIGALRM"):
                self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._enough)
                if self._deadline is not None:
                    signal.setitimer(signal.ITIMER_REAL, max(1e-3, self._deadline - time.monotonic()) + GRACE)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over = True
        if hasattr(signal, "SIGALRM") and signal.SIGALRM in self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def asked(self) -> bool:
        """Whether to stop now."""
        if self.progressed and self._deadline is not None and time.monotonic() >= self._deadline:
            self._time_is_over()
        return self.reason is not None

    @contextmanager
    def shielded(self) -> Generator[None, None, None]:
        """Nothing interrupts the block; what came meanwhile does so at its end."""
        self._shielded += 1
        try:
            yield
        finally:
            self._shielded -= 1
        if self._pending and not self._shielded:
            self._pending = False
            raise GivenUp

    def ending(self) -> None:
        """From here on nothing interrupts: what is left is to write."""
        self._over = True
        if hasattr(signal, "SIGALRM") and signal.SIGALRM in self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        self._shielded += 1

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None and number == signal.SIGINT:
            self._give_up()
        elif self.reason is None:
            self.reason = signal.Signals(number).name
            if hasattr(signal, "SIGALRM"):
                signal.setitimer(signal.ITIMER_REAL, GRACE)

    def _enough(self, number: int, frame: FrameType | None) -> None:
        if self._over:
            return
        if self.reason is None and not self.progressed:
            signal.setitimer(signal.ITIMER_REAL, GRACE)
            return
        self._time_is_over()  # or else something was asked for before
        self._give_up()

    def _time_is_over(self) -> None:
        if self.reason is None:
            self.reason, self.timed = "the time that was given is over", True

    def _give_up(self) -> None:
        if self.patient:
            return
        if self._shielded:
            self._pending = True
        else:
            raise GivenUp
