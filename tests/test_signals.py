"""The first signal asks, the second leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from cdiff.signals import SIGNALS, Interrupted, StopRequest, as_interrupt, stopped_by


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_waits_where_it_is_deferred_and_the_second_does_not(number):
    stop = StopRequest()
    with pytest.raises(KeyboardInterrupt) as left, stop.listening(), stop.deferred():
        os.kill(os.getpid(), number)
        assert stop.asked == number.name == stopped_by()
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert not isinstance(left.value, Interrupted)


def test_the_first_stops_at_once_where_nothing_has_to_be_finished():
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(Interrupted, match="Stopped by SIGUSR1"), StopRequest().listening():
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(5)
    assert signal.getsignal(signal.SIGUSR1) == before


def test_one_that_nobody_asked_for_is_told_at_the_end():
    stop = StopRequest()
    with pytest.raises(Interrupted), stop.listening():
        with stop.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the request was lost")


def test_an_interruption_is_no_exception_that_libraries_catch():
    assert issubclass(Interrupted, KeyboardInterrupt) and not issubclass(Interrupted, Exception)


def test_sigusr1_outside_of_a_training_does_not_kill():
    with pytest.raises(KeyboardInterrupt), as_interrupt():
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(5)


def test_a_third_leaves_although_the_cleaning_hangs():
    script = (
        "import os, signal, time\nfrom cdiff.signals import StopRequest\n"
        "with StopRequest().listening() as stop, stop.deferred():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    print('first', flush=True)\n"
        "    try:\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    finally:\n        os.kill(os.getpid(), signal.SIGTERM)\n        time.sleep(30)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (130, "first\n")


def test_another_thread_listens_without_harm():
    heard = []
    thread = threading.Thread(target=lambda: heard.append(StopRequest().listening().__enter__().asked))
    thread.start()
    thread.join()
    assert heard == [None]


SLOW_MODULE = """
import os, signal, time
os.kill(os.getpid(), signal.SIGTERM)
try:
    time.sleep(0.2)
except BaseException:
    raise RuntimeError("the library's own error")
WHOLE = True
"""


@pytest.mark.parametrize("listening", [as_interrupt, lambda: StopRequest().listening()], ids=["before", "training"])
def test_one_that_comes_inside_an_import_waits_for_its_end(listening, tmp_path, monkeypatch):
    """Libraries turn an interrupt there into an error of theirs (diffusers' lazy modules, numpy)."""
    (tmp_path / "slow_module.py").write_text(SLOW_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "slow_module", raising=False)
    with pytest.raises(KeyboardInterrupt), listening():
        import slow_module

        assert slow_module.WHOLE
        time.sleep(5)
    assert sys.modules.pop("slow_module").WHOLE


def test_inside_an_import_a_second_leaves_a_training_at_once(tmp_path, monkeypatch):
    (tmp_path / "hanging_module.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.3)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(30)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt) as left, StopRequest().listening():
        import hanging_module  # noqa: F401
    assert time.monotonic() - start < 10 and not isinstance(left.value, Interrupted)


def test_what_stopped_an_earlier_command_does_not_stop_the_next():
    with pytest.raises(Interrupted), StopRequest().listening():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert stopped_by() == "SIGTERM"
    with as_interrupt():
        assert stopped_by() is None
