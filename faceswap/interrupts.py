"""Signals become wishes: a training is asked to stop, and leaves in time."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from faceswap import console

PATIENCE = 8.0  # seconds between SIGTERM and the end, whatever hangs: schedulers kill soon after
STATUS = 130  # of a process that left in the middle, as shells have it


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM become a wish that the loop reads between two steps; a second Ctrl-C stops at once.

    After SIGTERM a process that has not left after 8 seconds (a step of a large model on a CPU, a disk that hangs)
    ends where it is: the last state on the disk is whole.
    """
    wishes: list[int] = []
    timers: list[threading.Timer] = []

    def wish(number: int, _: object) -> None:
        if wishes and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGTERM and not timers:
            timers.append(threading.Timer(PATIENCE, _leave))
            timers[0].daemon = True
            timers[0].start()
        if not wishes:
            console.say("stopping after this step; Ctrl-C again to stop at once")
        wishes.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    old = {number: signal.signal(number, wish) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(wishes)
    finally:
        for timer in timers:
            timer.cancel()
        for number, handler in old.items():
            signal.signal(number, handler)


def _leave() -> None:
    console.warn(f"no end of the step in {PATIENCE:g} s: leaving without it; the last checkpoint is whole")
    os._exit(STATUS)


def end_with_parent() -> None:
    """In a process that works for another: leave Ctrl-C to the parent, and end when it does, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
