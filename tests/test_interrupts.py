"""Tests of faceswap.interrupts: a signal is a wish, and after SIGTERM there is an end."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from faceswap.interrupts import interrupts


def test_a_signal_is_a_wish_and_the_old_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for number in (signal.SIGINT, signal.SIGTERM):
        with interrupts() as asked:
            assert not asked()
            os.kill(os.getpid(), number)
            assert asked()
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_a_second_ctrl_c_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_another_thread_is_asked_nothing() -> None:
    found: list[bool] = []

    def work() -> None:
        with interrupts() as asked:
            found.append(asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


HANGS = """
import os, signal, time
from faceswap import console, interrupts
console.configure(console.NORMAL)
interrupts.PATIENCE = 0.5
with interrupts.interrupts():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep({first})
time.sleep(1)
print("went on")
"""


@pytest.mark.parametrize(("first", "status", "said"), [(60, 130, ""), (0, 0, "went on\n")])
def test_what_hangs_after_sigterm_is_left_and_what_ends_in_time_is_not(first: int, status: int, said: str) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HANGS.format(first=first)], capture_output=True, text=True, check=False
    )
    assert done.returncode == status and done.stdout == said and time.monotonic() - began < 30
    assert ("leaving without it; the last checkpoint is whole" in done.stderr) == (status == 130)
