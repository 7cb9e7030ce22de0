"""Tests of faceswap.console: what is said, how much of it, and where."""

import io
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from rich.console import Console

from faceswap import console
from faceswap.console import NORMAL, QUIET, VERBOSE, Meter

Capture = pytest.CaptureFixture[str]


class Clock:
    """A time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def quiet_again() -> Iterator[None]:
    yield
    console.configure(QUIET)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=clock))
    return clock


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a user sees on a wide terminal."""
    screen = io.StringIO()
    console.configure(NORMAL)
    monkeypatch.setattr(console, "_console", Console(file=screen, force_terminal=True, width=200, color_system=None))
    return screen


def speak() -> None:
    console.say("said")
    console.detail("in detail")
    console.warn("odd")
    with Meter("work", 2, "frames") as meter:
        meter.advance(2)


@pytest.mark.parametrize(
    ("level", "heard"),
    [
        (QUIET, []),
        (NORMAL, ["said", "warning: odd", "work: 2/2 frames"]),
        (VERBOSE, ["said", "in detail", "warning: odd", "work: 2/2 frames"]),
    ],
)
def test_each_level_says_its_share_on_stderr(capsys: Capture, level: int, heard: list[str]) -> None:
    console.configure(level)
    speak()
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.partition(",")[0] for line in err.splitlines()] == heard


def test_a_library_is_silent_until_it_is_configured() -> None:
    code = "from faceswap import console; console.say('said'); list(console.track([1], 'work', 1, 'frames'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == done.stderr == b""


@pytest.mark.parametrize("text", ["a [bold]clip[/bold].mp4", "[/x]", "C:\\clips\\a", "x" * 500, "v[0]: 12.5 px"])
@pytest.mark.parametrize("speaker", [console.say, console.detail, console.warn])
def test_a_message_is_shown_as_it_is_on_one_line(capsys: Capture, speaker: object, text: str) -> None:
    assert callable(speaker)
    console.configure(VERBOSE)
    speaker(text)
    assert capsys.readouterr().err.removeprefix("warning: ") == f"{text}\n"


def test_a_meter_off_the_terminal_prints_a_plain_line_now_and_then(capsys: Capture, clock: Clock) -> None:
    console.configure(NORMAL)
    with Meter("reading", 100, "frames") as meter:
        for second in range(25):
            clock.now += 1
            meter.note = f"loss {second}"
            meter.advance(2)
    assert capsys.readouterr().err.splitlines() == [
        "reading: 20/100 frames, 2.0/s, 40 s left  loss 9",
        "reading: 40/100 frames, 2.0/s, 30 s left  loss 19",
        "reading: 50/100 frames, 2.0/s, 25 s left  loss 24",
    ]


def test_a_meter_without_a_total_promises_no_end(capsys: Capture, clock: Clock) -> None:
    console.configure(NORMAL)
    with Meter("reading", None, "frames") as meter:
        clock.now += 4
        meter.advance(8)
    assert capsys.readouterr().err == "reading: 8 frames, 2.0/s\n"


def test_the_rate_leaves_out_what_an_earlier_run_did(capsys: Capture, clock: Clock) -> None:
    console.configure(NORMAL)
    with Meter("training", 2000, "images") as meter:
        meter.start_at(1000)
        clock.now += 5
        meter.advance(50)
        assert meter.rate == 10
    assert capsys.readouterr().err == "training: 1050/2000 images, 10.0/s, 95 s left\n"


def test_the_rate_of_no_time_is_a_number(clock: Clock) -> None:
    with Meter("work", 2, "frames") as meter:
        assert meter.rate == 0
        meter.advance()
        assert meter.rate > 0


def test_a_failure_inside_passes_through_and_shows_how_far_it_came(capsys: Capture) -> None:
    console.configure(NORMAL)
    with pytest.raises(RuntimeError, match="stop"), Meter("work", 9, "frames") as meter:
        meter.advance(3)
        raise RuntimeError("stop")
    assert capsys.readouterr().err.startswith("work: 3/9 frames")


@pytest.mark.parametrize("level", [QUIET, NORMAL])
def test_track_yields_all_and_counts_what_was_worked_on(capsys: Capture, level: int) -> None:
    console.configure(level)
    assert list(console.track(iter("abc"), "reading", 3, "letters")) == ["a", "b", "c"]
    assert capsys.readouterr().err.startswith("reading: 3/3 letters") == (level == NORMAL)


def test_on_a_terminal_a_bar_shows_count_rate_and_note(terminal: io.StringIO, capsys: Capture) -> None:
    with Meter("reading", 10, "frames") as meter:
        meter.note = "loss [bold]0.5"
        meter.advance(7)
    shown = terminal.getvalue()
    assert all(part in shown for part in ("reading", "7/10", "frames/s", "loss [bold]0.5"))
    assert capsys.readouterr().err == ""


def test_a_bar_shows_its_label_as_it_is(terminal: io.StringIO) -> None:
    with Meter("reading [bold]clip.mp4", 10, "frames"):
        pass
    assert "reading [bold]clip.mp4" in terminal.getvalue()


@pytest.mark.parametrize("text", ["clip.mp4:100:0", "C:\\clips\\"])
def test_a_message_keeps_its_colons_and_backslashes(capsys: Capture, text: str) -> None:
    console.configure(NORMAL)
    console.say(text)
    assert capsys.readouterr().err == f"{text}\n"
