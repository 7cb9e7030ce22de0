"""A video made in pieces: work that is killed goes on, and the file is the same as if nothing had happened.

A video is cut at fixed frame numbers into segments. Each is encoded on its own, from a key frame on, into a hidden
folder beside the output: `00012.stream`, which appears when it is whole, and then `00012.json`, which says what it
holds, with its sha256. `job.json` says what all of it was made from, so that nothing of another job is used. At the
end the packets are copied into one file; `whole.json` says which, so that the folder goes even if we are killed
before that. Any process that sees the folder can make any run of segments: `write` is given plain values, and nothing
but files comes of it.

Convention: frames and segments are counted from 0; a run is a range of segments, made from one reading of the video.
"""

import ctypes
import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain, groupby, takewhile
from pathlib import Path
from typing import Any

import av
import cv2
from av import library_versions

from faceswap import console, files
from faceswap.ahead import ahead
from faceswap.errors import FaceswapError, MediaError, UsageError
from faceswap.interrupts import end_with_parent
from faceswap.video import (
    Encoder,
    Form,
    Frame,
    SeekError,
    VideoWriter,
    frame_count,
    image_files,
    read_from,
    time_stamps,
)

VERSION = 2  # of what lies in the folder
WHOLE = range(10**12)  # frames: up to the end of the video, wherever that is
RUNS = 4  # per process: fewer waste less on frames that two runs need, more keep all busy to the end
AHEAD = 4  # frames that are drawn and wait for the encoder
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # glibc's names for mallopt, M_ before them
WHOLE_NOTE = "whole.json"  # what tells the video from others, once nothing of the parts is needed
POLL = 0.5  # seconds between looks at what other processes have made

Packet = tuple[int, int, int, bool]  # time and duration in units of the form, bytes, whether it is a key frame
Draw = Callable[[Iterator[Frame], range], Iterator[tuple[Frame, int]]]  # frames -> those wanted, and faces replaced
Pool = Callable[[Path], AbstractContextManager[Executor]]  # the file `stop` -> what runs `Work`
Work = Callable[["Plan", range, Callable[[], None]], int | None]  # as `write`, with what draws


@dataclass(frozen=True)
class Plan:
    """How a video is made in segments: all plain values."""

    video: Path
    folder: Path  # of the parts
    key: str  # of what the parts are made from
    form: Form
    length: int  # frames of a segment
    reach: int  # frames before and after a frame that have a say in it
    batch: int  # frames drawn together: reading begins and ends at a multiple of it
    frames: range = WHOLE  # of the video, that are made: the first segment begins with the first of them
    stamps: tuple[int, ...] | None = None  # `time_stamps` of the video if they can be relied on

    def path(self, number: int, suffix: str) -> Path:
        return self.folder / f"{number:05d}.{suffix}"

    def inside(self, run: range) -> range:
        """The frames of a run of segments."""
        return self.frames[run.start * self.length : run.stop * self.length]

    def count(self, frames: int | None) -> int | None:
        """How many frames are made, if the video has so many."""
        return None if frames is None else len(range(frames)[self.frames.start : self.frames.stop])


@dataclass(frozen=True)
class Note:
    """What a segment holds."""

    key: str
    number: int
    swapped: int  # frames in which a face was replaced
    faces: int
    sought: bool  # read with the help of time stamps
    header: str  # of the encoder, in hexadecimal
    sha256: str
    packets: list[Packet] = field(repr=False)  # in the order of decoding

    @property
    def bytes(self) -> int:
        return sum(size for _, _, size, _ in self.packets)

    @property
    def times(self) -> list[int]:
        """When its frames are shown."""
        return sorted(time for time, _, _, _ in self.packets)

    @property
    def delay(self) -> int:
        """How many packets a decoder has to take in before the first frame can be shown."""
        rank = {time: place for place, time in enumerate(self.times)}
        return max(place - rank[time] for place, (time, _, _, _) in enumerate(self.packets))


class Stopped(Exception):  # noqa: N818
    """The process that asked for this work wants no more of it."""


# Making segments: in any process


def write(plan: Plan, run: range, draw: Draw, tick: Callable[[], None] = lambda: None) -> int | None:
    """Make the segments `run`; returns how many frames are made in all, if the end of the video was met.

    Raises `SeekError` if the plan's time stamps are wrong; the segments that are there are not to be used then.
    """
    wanted = plan.inside(run)
    start = max(0, wanted.start - plan.reach) // plan.batch * plan.batch
    stop = -(-(wanted.stop + plan.reach) // plan.batch) * plan.batch
    end: list[int] = []

    def reading() -> Iterator[Frame]:
        count = start
        for frame in read_from(plan.video, start, plan.stamps):
            if frame.index >= stop:
                return
            count = frame.index + 1
            yield frame
        end.append(count)

    with closing(ahead(draw(reading(), wanted), AHEAD)) as drawn:
        made = takewhile(lambda one: one[0].index < wanted.stop, drawn)
        for number, frames in groupby(made, lambda one: (one[0].index - plan.frames.start) // plan.length):
            _write_one(plan, number, frames, tick)
    return plan.count(end[0]) if end else None


def _write_one(plan: Plan, number: int, made: Iterable[tuple[Frame, int]], tick: Callable[[], None]) -> None:
    encoder, check, stop = Encoder(plan.form), hashlib.sha256(), plan.folder / "stop"
    packets: list[Packet] = []
    swapped = faces = 0
    with files.whole_file(plan.path(number, "stream"), overwrite=True) as partial, partial.open("wb") as file:
        for frame, count in chain(made, [(None, 0)]):
            for packet in encoder(frame):
                assert packet.pts is not None
                packets.append((packet.pts, packet.duration or 0, packet.size, packet.is_keyframe))
                check.update(packet)
                file.write(packet)
            swapped, faces = swapped + bool(count), faces + count
            if frame is not None:
                tick()
            if stop.exists():
                raise Stopped
    sought = plan.stamps is not None
    note = Note(plan.key, number, swapped, faces, sought, encoder.header.hex(), check.hexdigest(), packets)
    _write_json(plan.path(number, "json"), asdict(note))


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    with files.whole_file(path, overwrite=True) as partial:
        partial.write_text(json.dumps(values))


# Putting it together: in the process that was asked for the video


def folder_of(out: Path) -> Path:
    """Where the parts of `out` lie until it is whole."""
    return out.with_name(f".{out.name}.parts")


def versions() -> dict[str, Any]:
    """Of the libraries that decode, encode and change frames: with another one the bits may differ."""
    return {"av": av.__version__, **library_versions, "cv2": cv2.__version__}


def identity(video: Path) -> dict[str, Any]:
    """What tells a file, or a folder of images, from another, without reading all of it."""
    if video.is_dir():
        return {"folder": str(video.resolve()), "images": [identity(path) for path in image_files(video)]}
    facts = video.stat()
    return {"file": str(video.resolve()), "bytes": facts.st_size, "modified": facts.st_mtime_ns}


def key_of(made_from: Mapping[str, Any]) -> str:
    """A hash of what something is made from."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


class Parts:
    """The segments of a video to be; `opened` gives them."""

    def __init__(self, plan: Plan, out: Path) -> None:
        self.plan, self.out = plan, out
        self.notes: dict[int, Note] = {}  # by number; without their packets, which are read again
        self._frames: int | None = None  # that are made in all; None: not known yet
        self._bytes = self._done = 0  # of the segments that are there; their frames

    @property
    def folder(self) -> Path:
        return self.plan.folder

    def look(self) -> None:
        """See which segments are there; damaged ones, and those of another job, are said and go."""
        self.notes, self._bytes, self._done = {}, 0, 0
        (self.folder / "stop").unlink(missing_ok=True)
        files.sweep_inside(self.folder)
        for path in sorted(self.folder.glob("[0-9]*.json")):
            note = _read_note(path)
            data = path.with_suffix(".stream")
            if note is None or note.key != self.plan.key or not data.is_file() or files.sha256(data) != note.sha256:
                console.warn(f"{data}: damaged, or of other work; it is made again")
                self._drop(int(path.stem))
            else:
                self._keep(note)
        known = _read_json(self.folder / "end.json")
        self._frames = known["frames"] if known.get("key") == self.plan.key else None

    def fill(self, work: Work, workers: int = 1, pool: Pool | None = None) -> None:
        """Make the segments that are missing; `work` draws frames and calls `write`: here, in so many other processes,
        or where `pool` brings it."""
        if self._done:
            console.say(f"{self.out}: {self._done} frames in {len(self.notes)} segments are kept from an earlier start")
        try:
            self._fill(work, workers, pool)
        except SeekError:
            self._distrust()
            self._fill(work, 1, None)

    def _fill(self, work: Work, workers: int, pool: Pool | None) -> None:
        apart = workers > 1 or pool is not None
        seek = apart or any(self.plan.inside(run).start for run in self._missing(1))
        if seek and not (self.folder / "distrust").exists():
            self._find_stamps()
        if apart and self.plan.stamps is None:
            console.say(f"{self.plan.video.name}: made by one worker, as the others cannot find their frames in it")
            workers, apart = 1, False
        runs, total = self._missing(workers), self._total()
        with console.Meter(f"merging {self.plan.video.name}", total, "frames") as meter:
            meter.start_at(self._done)
            if not apart or not runs:
                _keep_freed()
                with _threads(_share(1)):
                    for run in runs:
                        end = work(self.plan, run, meter.advance)
                        if end is not None and self._frames is None:
                            self._end(end)
                        self._meet(run)
            else:
                with (pool or partial(_processes, min(workers, len(runs))))(self.folder / "stop") as executor:
                    self._spread(executor, work, runs, meter)

    def _spread(
        self,
        pool: Executor,
        work: Work,
        runs: list[range],
        meter: console.Meter,
    ) -> None:
        waiting = {pool.submit(work, self.plan, run, _nothing): run for run in runs}
        try:
            while waiting:
                done, _ = wait(waiting, POLL, FIRST_COMPLETED)
                before = self._done
                for run in waiting.values():
                    self._meet(run)
                meter.advance(self._done - before)
                for one in done:
                    one.result()
                    del waiting[one]
        except BrokenProcessPool:
            raise FaceswapError(
                "a process that makes segments died: out of memory (use fewer --workers), or it was started by a "
                'script without if __name__ == "__main__"; what is finished is kept, the same command goes on'
            ) from None

    def write_to(self, writer: VideoWriter) -> tuple[int, int, int]:
        """Copy all segments, in order; returns frames, those in which a face was replaced, and faces."""
        packets, base = self._packets(writer.header.hex()), self.plan.form.info.time_base
        for data, dts, (pts, duration, _, is_key) in packets:
            packet: av.Packet[Any] = av.Packet(data)
            packet.pts, packet.dts, packet.duration, packet.time_base = pts, dts, duration, base
            packet.is_keyframe = is_key
            writer.write_packet(packet)
        notes = self.notes.values()
        return writer.written, sum(note.swapped for note in notes), sum(note.faces for note in notes)

    def _packets(self, header: str) -> Iterator[tuple[bytes, int, Packet]]:
        """Content, time of decoding and the rest. The times of decoding are those of one encoder that made it all."""
        delay = max((_read(self.plan.path(number, "json")).delay for number in self.notes), default=0)
        head: list[int] = []
        for number in sorted(self.notes):
            if len(head) > delay:
                break
            head += _read(self.plan.path(number, "json")).times
        # Before the first frame can be shown `delay` others are decoded, at times as far apart as the first frames.
        late = head[min(delay, len(head) - 1)] - head[0] if head else 0
        times = deque(time - late for time in head[:delay])
        for number in sorted(self.notes):
            note = _read(self.plan.path(number, "json"))
            if note.header != header:
                raise MediaError(
                    f"{self.plan.path(number, 'stream')}: encoded otherwise; delete {self.folder} and repeat"
                )
            times.extend(note.times)
            with self.plan.path(number, "stream").open("rb") as file:
                for packet in note.packets:
                    yield file.read(packet[2]), times.popleft(), packet

    def shortage(self) -> str:
        """How much room is missing, in words: what is to come, by the size of what is there."""
        total = self._total()
        if not self._done or not total:
            return "how much is missing cannot be said before a segment is whole"
        whole = self._bytes * max(total, self._done) / self._done
        free = shutil.disk_usage(self.folder).free
        missing = max(1, 2 * whole - self._bytes - free)  # the rest of the segments, and the file itself
        return f"about {max(1, round(missing / 1e6))} MB more are needed"

    def _total(self) -> int | None:
        """Frames that are made in all, or should be by the video's header."""
        return self._frames or self.plan.count(frame_count(self.plan.video))

    def kept(self) -> str:
        """What a later start will find, in words."""
        return f"{len(self.notes)} segments ({self._done} frames) are kept in {self.folder}"

    def _meet(self, run: range) -> None:
        """Count the segments of `run` that have been made meanwhile."""
        for number in run:
            if number not in self.notes:
                path = self.plan.path(number, "json")
                if path.exists():
                    self._keep(_read(path))
                elif len(run) > 10**6:
                    return

    def _keep(self, note: Note) -> None:
        self.notes[note.number] = replace(note, packets=[])
        self._bytes, self._done = self._bytes + note.bytes, self._done + len(note.packets)

    def _drop(self, number: int) -> None:
        self.notes.pop(number, None)
        for suffix in ("json", "stream"):
            self.plan.path(number, suffix).unlink(missing_ok=True)

    def _missing(self, workers: int) -> list[range]:
        """Runs of segments to be made; the last may be endless."""
        stop = -(-(len(self.plan.frames) if self._frames is None else self._frames) // self.plan.length)
        gaps: list[range] = []
        start = 0
        for number in [*sorted(self.notes), stop]:
            if number > start:
                gaps.append(range(start, number))
            start = number + 1
        if workers == 1:
            return gaps
        step = max(1, sum(map(len, gaps)) // (RUNS * workers))
        return [gap[place : place + step] for gap in gaps for place in range(0, len(gap), step)]

    def _find_stamps(self) -> None:
        """Learn where frames lie, if what the video's packets say fits the segments that are there."""
        stamps, form = time_stamps(self.plan.video), self.plan.form
        if stamps is not None:
            base = form.info.time_base
            for number in self.notes:
                inside = self.plan.inside(range(number, number + 1))
                said = [form.tick(stamp * base) for stamp in stamps[inside.start : inside.stop]]
                if said != _read(self.plan.path(number, "json")).times:
                    stamps = None
                    break
        if stamps is None:
            self._distrust()
        else:
            self.plan, self._frames = replace(self.plan, stamps=tuple(stamps)), self.plan.count(len(stamps))

    def _distrust(self) -> None:
        """From now on read from the beginning: also after another start, for the same numbers of frames."""
        console.say(f"{self.plan.video.name}: its frames cannot be found by their times: read from the beginning")
        self.plan = replace(self.plan, stamps=None)
        self.look()
        for number in [number for number, note in self.notes.items() if note.sought]:
            self._drop(number)
        (self.folder / "distrust").touch()  # last: if we are killed before, all this happens again
        self.look()

    def _end(self, frames: int) -> None:
        self._frames = frames
        _write_json(self.folder / "end.json", {"key": self.plan.key, "frames": frames})


def _told_by(video: Path) -> dict[str, int]:
    """What a file keeps when it is renamed."""
    facts = video.stat()
    return {"bytes": facts.st_size, "modified": facts.st_mtime_ns}


def _nothing() -> None:
    pass


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _read(path: Path) -> Note:
    note = _read_note(path)
    if note is None:
        raise MediaError(f"{path}: damaged while the work went on; start the same command again")
    return note


def _read_note(path: Path) -> Note | None:
    try:
        values = json.loads(path.read_text())
        note = Note(**{**values, "packets": [(int(p), int(d), int(s), bool(k)) for p, d, s, k in values["packets"]]})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return note if note.packets and path.stem == f"{note.number:05d}" else None


@contextmanager
def opened(plan: Plan, out: Path, made_from: Mapping[str, Any]) -> Iterator[Parts]:
    """The parts of `out` as far as they are there, to go on from; they go when the `with` ends without an error.

    What lies there of another job is said and thrown away. `UsageError` if another process works at them; after an
    error what is finished stays, and that is said.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    parts = Parts(plan, out)
    with alone(plan.folder, out):
        try:
            known = _read_json(plan.folder / "job.json")
            if known.get("key") != plan.key:
                _clear(plan.folder, known, made_from)
                _write_json(plan.folder / "job.json", {"key": plan.key, "made from": made_from})
            (plan.folder / WHOLE_NOTE).unlink(missing_ok=True)  # of a video that is made anew
            parts.look()
            yield parts
        except BaseException as error:
            _leave(parts, error)
            raise
        _remove(plan.folder)


OURS = ("*.stream", "*.json", "*.npz", "lock", "stop", "distrust", ".*.partial")  # what may lie in the folder


def refuse_existing(out: Path, overwrite: bool) -> None:
    """`OutputExistsError` if `out` is there and `overwrite` is false. If it is the video of a process that was killed
    before it had put its parts away, that is done first."""
    folder = folder_of(out)
    told = _read_json(folder / WHOLE_NOTE)
    if told and not overwrite and out.is_file() and told == _told_by(out):
        with suppress(OSError), alone(folder, out):
            _remove(folder)
            console.say(f"{out}: is whole; an earlier start was killed while it put away its parts")
    files.refuse_existing(out, overwrite)


def not_needed(folder: Path, whole: Path) -> None:
    """Note that nothing in `folder` is needed once the file `whole` has taken the name of the video."""
    with suppress(OSError):  # a help after a crash: no reason to lose the video
        _write_json(folder / WHOLE_NOTE, _told_by(whole))


def _remove(folder: Path) -> None:
    """Take away what we put into the folder, and the folder if nothing else is in it."""
    last = [folder / WHOLE_NOTE, folder / "lock"]  # until then another start can go on with this, and nobody comes in
    for path in [path for pattern in OURS for path in folder.glob(pattern) if path not in last] + last:
        path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _clear(folder: Path, known: Mapping[str, Any], made_from: Mapping[str, Any]) -> None:
    old = known.get("made from", {})
    count = len(list(folder.glob("[0-9]*.json")))
    if count:
        changed = [name for name in made_from if old.get(name) != made_from[name]] or ["work"]
        console.say(f"{folder}: {count} segments of another {' and '.join(changed)} are thrown away")
    for path in folder.iterdir():
        if path.suffix in (".stream", ".json") or path.name == "distrust":
            path.unlink()


def _leave(parts: Parts, error: BaseException) -> None:
    """After an error: say what is kept, or take away a folder in which nothing is."""
    with suppress(OSError):
        parts.look()
        if is_full(error):
            raise MediaError(
                f"{parts.out}: disk full in {parts.out.absolute().parent}: {parts.shortage()}; {parts.kept()}: free "
                "space and start the same command again"
            ) from error
        if parts.notes:
            console.say(f"{parts.kept()}; the same command goes on from there")
        elif not list(parts.folder.glob("faces-*")):
            _remove(parts.folder)


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what led to it, is that of a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return True
        error = error.__cause__
    return False


@contextmanager
def alone(folder: Path, out: Path) -> Iterator[None]:
    """Keep other processes out; the system forgets it if this one is killed."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"{out}: another process is making it; wait for its end, or choose another -o") from None
        yield


@contextmanager
def _processes(count: int, stop: Path) -> Iterator[Executor]:
    """Processes of their own; after an error they are asked to stop, by the file `stop`."""
    fresh = multiprocessing.get_context("spawn")  # a fork would copy torch's threads in an unknown state
    with ProcessPoolExecutor(count, mp_context=fresh, initializer=_start_worker, initargs=(_share(count),)) as pool:
        try:
            yield pool
        except BaseException:
            with suppress(OSError):
                stop.touch()
            pool.shutdown(cancel_futures=True)
            raise


def _share(workers: int) -> int:
    """Threads for the network of one of so many processes: decoding, laying in and encoding go on beside it, and
    threads that wait for a core that is taken burn the other."""
    return max(1, (os.cpu_count() or 1) // (2 * workers))


def _set_threads(torch_: int, opencv: int) -> None:
    import torch

    torch.set_num_threads(torch_)
    cv2.setNumThreads(opencv)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Networks and OpenCV have so many threads, and in the end as many as before."""
    import torch

    before = torch.get_num_threads(), cv2.getNumThreads()
    _set_threads(count, count)
    try:
        yield
    finally:
        _set_threads(*before)


def _keep_freed() -> None:
    """Let glibc keep the memory that a frame frees for the next one: to get it anew from the system, page by page,
    takes as long as a blend. Other C libraries do as they like."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "mallopt"):
        libc.mallopt(MMAP_THRESHOLD, 2**25)  # bytes, the most that it takes
        libc.mallopt(TRIM_THRESHOLD, 2**27)


def _start_worker(threads: int) -> None:
    """In a process that makes segments: a share of the cores, and an end with the parent, which alone hears Ctrl-C."""
    _set_threads(threads, threads)
    _keep_freed()
    end_with_parent()
