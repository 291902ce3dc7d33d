"""What SIGINT (Ctrl-C), SIGTERM and SIGUSR1 do to a training: the first asks it to stop, the second leaves at once.

Schedulers send SIGTERM or SIGUSR1 some time before they kill.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
LEFT_NOW = 130  # exit code


class Interrupted(KeyboardInterrupt):
    """A run stopped in good order because it was asked to; what is needed to go on is on disk.

    A KeyboardInterrupt, so that no `except Exception` of a library takes it for a fault of its own.
    """


_last: StopRequest | None = None


def stopped_by() -> str | None:
    """The signal that asked this process's last training to stop; None when none did."""
    return _last.asked if _last is not None else None


class StopRequest:
    """Whether this process was asked to stop. Works in the main thread; elsewhere nothing is ever asked."""

    def __init__(self) -> None:
        self.asked: str | None = None  # the signal's name
        self._presses = 0
        self._deferred = False

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Take the signals over; they are given back at the end."""
        global _last
        _last = self
        before = {}
        with contextlib.suppress(ValueError):  # not the main thread
            for number in SIGNALS:
                before[number] = signal.signal(number, self._pressed)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """In here a first signal only sets `asked`: whoever asks for it stops when the moment is good."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.asked is not None:  # it came too late for whoever was to ask
            raise Interrupted(f"Stopped by {self.asked}")

    def _pressed(self, number: int, _frame: object) -> None:
        self._presses += 1
        self.asked = self.asked or signal.Signals(number).name
        if self._presses == 1 and not self._deferred:
            raise Interrupted(f"Stopped by {self.asked}")
        if self._presses == 2:
            raise KeyboardInterrupt
        if self._presses > 2:  # whatever cleans up hangs
            os._exit(LEFT_NOW)


@contextmanager
def as_interrupt() -> Iterator[None]:
    """Outside of a training, SIGTERM and SIGUSR1 end a process as Ctrl-C does: the run is marked, trackers close."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {}
    with contextlib.suppress(ValueError):  # not the main thread
        for number in SIGNALS:
            if number != signal.SIGINT:
                before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
