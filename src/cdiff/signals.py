"""What SIGINT (Ctrl-C), SIGTERM and SIGUSR1 do to a training: the first asks it to stop, the second leaves at once.

Schedulers send SIGTERM or SIGUSR1 some time before they kill.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
LEFT_NOW = 130  # exit code
PATIENCE = 0.05  # seconds until a signal that came inside an import is sent again


class Interrupted(KeyboardInterrupt):
    """A run stopped in good order because it was asked to; what is needed to go on is on disk.

    A KeyboardInterrupt, so that no `except Exception` of a library takes it for a fault of its own.
    """


_last: StopRequest | None = None


def stopped_by() -> str | None:
    """The signal that asked this command's last training to stop; None when none did."""
    return _last.asked if _last is not None else None


class StopRequest:
    """Whether this process was asked to stop. Works in the main thread; elsewhere nothing is ever asked."""

    def __init__(self) -> None:
        self.asked: str | None = None  # the signal's name
        self._presses = 0
        self._deferred = False
        self._sent_again = False

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Take the signals over; they are given back at the end."""
        global _last
        _last = self
        with _handling(SIGNALS, self._pressed):
            yield self

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

    def _pressed(self, number: int, frame: FrameType | None) -> None:
        self._presses += not self._sent_again
        self._sent_again = False
        self.asked = self.asked or signal.Signals(number).name
        if self._presses == 1 and not self._deferred:
            if _importing(frame):
                return _send_again(number, self._expect_again)
            raise Interrupted(f"Stopped by {self.asked}")
        if self._presses == 2:
            raise KeyboardInterrupt
        if self._presses > 2:  # whatever cleans up hangs
            os._exit(LEFT_NOW)

    def _expect_again(self) -> None:
        self._sent_again = True


@contextmanager
def as_interrupt() -> Iterator[None]:
    """Outside of a training, SIGTERM and SIGUSR1 end a command as Ctrl-C does: the run is marked, trackers close."""
    global _last
    _last = None  # of an earlier command of this process

    def interrupt(number: int, frame: FrameType | None) -> None:
        if _importing(frame):
            return _send_again(number, lambda: None)
        raise KeyboardInterrupt

    with _handling(SIGNALS, interrupt):
        yield


_open: list[object] = []  # the _handling that are open, the innermost last


@contextmanager
def _handling(numbers: tuple[signal.Signals, ...], handler: object) -> Iterator[None]:
    """Take signals over in here; outside of the main thread nothing is changed."""
    mark, before = object(), {}
    with contextlib.suppress(ValueError):  # not the main thread
        for number in numbers:
            before[number] = signal.signal(number, handler)
    _open.append(mark)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        _open.remove(mark)


def _importing(frame: FrameType | None) -> bool:
    """Whether the main thread is inside an import. An exception there becomes some library's own error, or leaves a
    module half loaded that can't be loaded again in this process."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _send_again(number: int, announce: Callable[[], None]) -> None:
    mark = _open[-1]

    def send() -> None:
        if mark in _open:  # else it was taken already, and whoever listens now was not meant
            announce()
            os.kill(os.getpid(), number)

    timer = threading.Timer(PATIENCE, send)
    timer.daemon = True
    timer.start()
