"""What the user sees while work goes on: progress, notes and a summary, on standard error.

On a terminal a bar with rate and time left (rich); elsewhere a plain line now and then. As a library faceswap is
silent until `configure` is called.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

T = TypeVar("T")

QUIET, NORMAL, VERBOSE = 0, 1, 2
PLAIN_LINE_EVERY = 10.0  # seconds

_level = QUIET
_console = Console(stderr=True)
_listener: "Callable[[Progress], object] | None" = None


def configure(level: int) -> None:
    """Set how much is said: `QUIET` (errors only), `NORMAL` or `VERBOSE`."""
    global _level, _console
    _level = level
    _console = Console(stderr=True, soft_wrap=True, highlight=False)


def say(message: str) -> None:
    """A line on how the work goes."""
    if _level >= NORMAL:
        _console.print(Text(message))


def detail(message: str) -> None:
    """A line for `-v`."""
    if _level >= VERBOSE:
        _console.print(Text(message, style="dim"))


def warn(message: str) -> None:
    """A line that the user must not miss: something was skipped, replaced or is not as asked."""
    if _level >= NORMAL:
        _console.print(Text.assemble(("warning: ", "yellow"), message))


@dataclass(frozen=True)
class Progress:
    """How far a piece of work is."""

    label: str  # what is done, in words
    done: float  # units
    total: float | None  # units; None: not known
    unit: str
    rate: float  # units per second
    note: str  # as the loss of a training; "": none


@contextmanager
def on_progress(listener: Callable[[Progress], object]) -> Iterator[None]:
    """Inside the `with`, call `listener` after each step of whatever work this process does, in any of its threads.

    What it raises ends the work and comes out of the function that did it; nothing unfinished has its final name then;
    a training saves its state before, and the same call goes on from there.
    """
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


class Meter:
    """Progress of one piece of work: call `advance` and, if you like, set `note` (shown beside the bar).

    `total` is in `unit`s, None when it is not known beforehand.
    """

    def __init__(self, label: str, total: float | None, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done, self.note = 0.0, ""
        self._started = self._printed = time.monotonic()
        self._first = 0.0
        self._bar: Bar | None = None

    def __enter__(self) -> "Meter":
        self._started = self._printed = time.monotonic()
        if _level >= NORMAL and _console.is_terminal:
            rate, note = TextColumn("{task.fields[rate]}"), TextColumn("{task.fields[note]}")
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=14), MofNCompleteColumn(), rate)
            self._bar = Bar(*columns, TimeRemainingColumn(compact=True), note, console=_console)
            self._task = self._bar.add_task(escape(self.label), total=self.total, rate="", note="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._show()
            self._bar.stop()
        elif _level >= NORMAL:
            self._print()

    def start_at(self, done: float) -> None:
        """Work done by an earlier run: counted, but not in the rate."""
        self.done = self._first = done

    def advance(self, amount: float = 1) -> None:
        self.done += amount
        if self._bar is not None:
            self._show()
        elif _level >= NORMAL and time.monotonic() - self._printed >= PLAIN_LINE_EVERY:
            self._print()
        if _listener is not None:
            _listener(Progress(self.label, self.done, self.total, self.unit, self.rate, self.note))

    @property
    def rate(self) -> float:
        """Units per second since the work began."""
        return (self.done - self._first) / max(time.monotonic() - self._started, 1e-6)

    def _show(self) -> None:
        assert self._bar is not None
        rate = f"{self.rate:.1f} {self.unit}/s"
        self._bar.update(self._task, completed=int(self.done), total=self.total, rate=rate, note=escape(self.note))

    def _print(self) -> None:
        self._printed = time.monotonic()
        share = f"/{self.total:.0f}" if self.total else ""
        left = ""
        if self.total and self.rate > 0 and self.done < self.total:
            left = f", {(self.total - self.done) / self.rate:.0f} s left"
        note = f"  {self.note}" if self.note else ""
        line = f"{self.label}: {self.done:.0f}{share} {self.unit}, {self.rate:.1f}/s{left}{note}"
        print(line, file=sys.stderr, flush=True)


def track(items: Iterable[T], label: str, total: int | None, unit: str) -> Iterator[T]:
    """Yield `items` while a meter shows how far we are."""
    with Meter(label, total, unit) as meter:
        for item in items:
            yield item
            meter.advance()
