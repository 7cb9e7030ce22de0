"""A video in pieces: whatever happens in between, the file is the same."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path

import av
import footage
import numpy as np
import pytest
from test_swap import RECIPE, swapper, weights
from test_video import make_clip, packets, picture, planes, redrawn, times

from faceswap import console, files, found, segments, swap, video
from faceswap.detectors import Face
from faceswap.errors import FacesetError, MediaError, OutputExistsError, UsageError
from faceswap.provenance import Marker
from faceswap.segments import Parts, Plan
from faceswap.video import Frame, VideoWriter, form_like, probe, read_frames, read_from, time_stamps

Change = Callable[[Frame], Frame]


class Killed(BaseException):
    """Stands for a signal that lets nobody finish."""


def draw(frames: Iterator[Frame], wanted: range, change: Change = lambda frame: frame) -> Iterator[tuple[Frame, int]]:
    """Marks each frame as changed; looks at all frames it is given, as a swapper does."""
    for frame in frames:
        if frame.index in wanted:
            yield change(frame), 1


def work(
    plan: Plan, run: range, tick: Callable[[], None], change: Change = lambda frame: frame, stop_at: int | None = None
) -> int | None:
    """`segments.write` that is killed at the frame `stop_at`."""

    def counted() -> None:
        nonlocal stop_at
        tick()
        if stop_at is not None:
            stop_at -= 1
            if stop_at < 0:
                raise Killed

    return segments.write(plan, run, partial(draw, change=change), counted)


def plan_for(like: Path, out: Path, length: int = 10, **more: object) -> Plan:
    given = {"crf": 20, "reach": 3, "batch": 4} | more
    form = form_like(like, crf=given["crf"], preset="ultrafast")  # type: ignore[arg-type]
    key = segments.key_of({"video": segments.identity(like), "length": length, **given})
    return Plan(like, segments.folder_of(out), key, form, length, given["reach"], given["batch"])  # type: ignore[arg-type]


def make(like: Path, out: Path, do: object = work, *, workers: int = 1, length: int = 10, **more: object) -> Path:
    plan = plan_for(like, out, length, **more)
    made_from = {"key": plan.key}
    with (
        segments.opened(plan, out, made_from) as parts,
        VideoWriter(out, like, form=plan.form, overwrite=True) as writer,
    ):
        parts.fill(do, workers)  # type: ignore[arg-type]
        parts.write_to(writer)
    return out


def kill(like: Path, out: Path, frames: int, **more: object) -> Path:
    """Die after so many frames; what a killed process leaves lies in the folder that is returned."""
    with pytest.raises(Killed):
        make(like, out, partial(work, stop_at=frames), **more)
    return segments.folder_of(out)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the user was told."""
    messages: list[str] = []
    monkeypatch.setattr(console, "say", messages.append)
    monkeypatch.setattr(console, "warn", messages.append)
    return messages


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=45)


# Reading from the middle


@pytest.mark.parametrize("start", [0, 1, 6, 17, 44, 45, 90])
def test_frames_from_the_middle_are_those_of_the_whole(clip: Path, start: int) -> None:
    whole = list(read_frames(clip))[start:]
    for stamps in (time_stamps(clip), None):
        found = list(read_from(clip, start, stamps))
        assert [(f.index, f.time) for f in found] == [(f.index, f.time) for f in whole]
        assert [planes(f) for f in found] == [planes(f) for f in whole]


def test_formats_without_an_index_say_nothing(tmp_path: Path) -> None:
    for name in ("in.ts", "raw.h264"):
        assert time_stamps(make_clip(tmp_path / name, sound=False)) is None
    assert time_stamps(make_clip(tmp_path / "in.mkv", sound=False)) == [40 * i for i in range(24)]


def test_a_refresh_bit_by_bit_is_no_place_to_begin(tmp_path: Path) -> None:
    path = tmp_path / "refresh.mp4"
    with av.open(str(path), "w") as out:
        options = {"preset": "ultrafast", "x264-params": "intra-refresh=1:keyint=10:bframes=0"}
        stream = out.add_stream("libx264", rate=25, options=options, width=64, height=48, pix_fmt="yuv420p")
        for index in range(40):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index, 64, 48), "rgb24")))
        out.mux(stream.encode(None))
    stamps, whole = time_stamps(path), [planes(frame) for frame in read_frames(path)][25:]
    with suppress(video.SeekError):
        assert [planes(frame) for frame in read_from(path, 25, stamps)] == whole  # it began at the very first


def test_stamps_that_do_not_fit_are_an_error(clip: Path) -> None:
    stamps = time_stamps(clip)
    assert stamps is not None
    wrong = [*stamps[:30], stamps[30] + 1, *stamps[31:]]
    for given in (wrong, stamps[:-1], [*stamps, stamps[-1] + 512]):
        with pytest.raises(video.SeekError, match="does not decode from frame 20 on"):
            list(read_from(clip, 20, given))


# The same file


def test_a_file_in_segments_has_the_frames_times_and_sound_of_the_old(clip: Path, tmp_path: Path) -> None:
    out = make(clip, tmp_path / "out.mp4", crf=0)
    assert times(out) == times(clip) and packets(out) == packets(clip)
    assert [planes(frame) for frame in read_frames(out)] == [planes(frame) for frame in read_frames(clip)]
    assert probe(out).rate == probe(clip).rate and probe(out).frames == 45
    assert names(tmp_path) == ["out.mp4"]
    with av.open(str(out)) as container:
        stamps = [(p.dts, p.pts, p.is_keyframe) for p in container.demux(video=0) if p.size]
    assert all(a[0] < b[0] for a, b in pairwise(stamps)) and all(dts <= pts for dts, pts, _ in stamps)
    keys = {time for _, time, is_key in stamps if is_key}
    assert {stamps[0][1] + 512 * number for number in range(0, 45, 10)} <= keys


@pytest.mark.parametrize("length", [1, 2, 9, 44, 45, 46])
def test_any_length_gives_all_frames(clip: Path, tmp_path: Path, length: int) -> None:
    out = make(clip, tmp_path / "out.mp4", length=length, crf=0)
    assert times(out) == times(clip)
    assert [planes(frame) for frame in read_frames(out)] == [planes(frame) for frame in read_frames(clip)]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_killed_anywhere_the_file_is_the_same(clip: Path, tmp_path: Path, suffix: str, told: list[str]) -> None:
    whole = make(clip, tmp_path / f"whole{suffix}").read_bytes()
    out = tmp_path / f"out{suffix}"
    for frames in (3, 12, 9, 10, 21):  # more at each start
        kill(clip, out, frames)
        assert not out.exists()
    assert make(clip, out).read_bytes() == whole
    assert names(tmp_path) == [f"out{suffix}", f"whole{suffix}"]
    assert any("20 frames in 2 segments are kept from an earlier start" in line for line in told)


def test_what_is_finished_is_not_made_again(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    folder = kill(clip, out, 35)
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("0*")}
    assert len(before) == 6
    kill(clip, out, 5)
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("0*")} == before
    ran: list[range] = []
    make(clip, out, lambda plan, run, tick: ran.append(run) or work(plan, run, tick))
    assert ran == [range(3, 5)]


def test_killed_when_all_was_made(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, out = make(clip, tmp_path / "whole.mp4").read_bytes(), tmp_path / "out.mp4"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Parts, "write_to", lambda *_: (_ for _ in ()).throw(Killed()))
        make(clip, out)
    assert make(clip, out, lambda *_: pytest.fail("made again")).read_bytes() == whole


def test_a_damaged_or_lost_part_is_made_again(clip: Path, tmp_path: Path, told: list[str]) -> None:
    whole, out = make(clip, tmp_path / "whole.mp4").read_bytes(), tmp_path / "out.mp4"
    folder = kill(clip, out, 44)
    data = bytearray((folder / "00001.stream").read_bytes())
    data[20] ^= 1
    (folder / "00001.stream").write_bytes(data)
    (folder / "00002.json").write_text("{")
    (folder / "00000.stream").unlink()
    ran: list[range] = []
    make(clip, out, lambda plan, run, tick: ran.append(run) or work(plan, run, tick))
    assert out.read_bytes() == whole and ran == [range(3), range(4, 5)]
    assert len([line for line in told if "damaged, or of other work; it is made again" in line]) == 3


def test_another_job_throws_the_parts_away_and_says_so(clip: Path, tmp_path: Path, told: list[str]) -> None:
    out = tmp_path / "out.mp4"
    kill(clip, out, 25)
    whole = make(clip, tmp_path / "whole.mp4", crf=30).read_bytes()
    assert make(clip, out, crf=30).read_bytes() == whole
    assert any("2 segments of another key are thrown away" in line for line in told)


def test_frames_at_odd_times(tmp_path: Path) -> None:
    marks = [0, 40, 80, 160, 163, 400, 401, 402, 1000, 1011, 1012, 1013, 1014, 3000, 3001, 3002, 3900, 3901, 3902, 4000]
    stamps = {"ticks": lambda index: 500 + marks[index], "time_base": Fraction(1, 600)}
    like = make_clip(tmp_path / "in.mp4", frames=20, **stamps)
    for suffix in (".mp4", ".mkv"):
        out = tmp_path / f"out{suffix}"
        whole = make(like, tmp_path / f"whole{suffix}", length=4).read_bytes()
        for frames in (5, 6, 7):
            kill(like, out, frames, length=4)
        assert make(like, out, length=4).read_bytes() == whole
        late = [abs(a - b) for a, b in zip(times(out), times(like), strict=True)]
        assert max(late) <= (0 if suffix == ".mp4" else Fraction(1, 2000))


@pytest.mark.parametrize(
    "more",
    [
        {"frames": 1},
        {"sound": False},
        {"pixel_format": "yuv420p10le"},
        {"size": (63, 47), "pixel_format": "yuv444p"},
        {"rate": Fraction(30000, 1001)},
        {"rotation": 90},
    ],
    ids=str,
)
def test_all_kinds_of_clips(tmp_path: Path, more: dict[str, object]) -> None:
    like = make_clip(tmp_path / "in.mp4", **more)  # type: ignore[arg-type]
    change = partial(work, change=redrawn)
    whole, out = make(like, tmp_path / "whole.mp4", change), tmp_path / "out.mp4"
    assert times(whole) == times(like) and probe(whole).pixel_format == probe(like).pixel_format
    assert probe(like).has_audio == probe(whole).has_audio
    assert not probe(like).has_audio or packets(whole) == packets(like)
    for frames in range(0, len(times(like)), 7):
        with pytest.raises(Killed):
            make(like, out, partial(work, change=redrawn, stop_at=frames))
        if frames > 10:
            break
    assert make(like, out, change).read_bytes() == whole.read_bytes()


def test_sound_in_six_channels(tmp_path: Path) -> None:
    like = tmp_path / "in.mkv"
    make_clip(tmp_path / "silent.mp4", sound=False)
    with av.open(str(tmp_path / "silent.mp4")) as source, av.open(str(like), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        audio = out.add_stream("ac3", rate=48000, layout="5.1")
        found = []
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                found.append(packet)
        for start in range(0, 46080, 1536):
            wave = np.sin(np.arange(start, start + 1536) / np.arange(10, 16)[:, None]).astype(np.float32) / 8
            frame = av.AudioFrame.from_ndarray(wave, "fltp", "5.1")
            frame.sample_rate, frame.pts = 48000, start
            found += audio.encode(frame)
        for packet in sorted([*found, *audio.encode(None)], key=lambda packet: packet.dts * packet.time_base):
            out.mux(packet)
    whole, out_path = make(like, tmp_path / "whole.mp4"), tmp_path / "out.mp4"
    kill(like, out_path, 15)
    assert make(like, out_path).read_bytes() == whole.read_bytes()
    with av.open(str(whole)) as container:
        assert container.streams.audio[0].layout.name.startswith("5.1")
    assert [data for _, data in packets(whole)] == [data for _, data in packets(like)]


@pytest.mark.parametrize("name", ["in.ts", "in.mkv"])
def test_a_damaged_video_goes_on_too(
    tmp_path: Path, name: str, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames that do not decode have no number: those after them can't be found by their times."""
    like = make_clip(tmp_path / name, frames=45, sound=False)
    data = bytearray(like.read_bytes())
    middle = len(data) // 3
    data[middle : middle + 600] = np.random.default_rng(0).bytes(600)
    like.write_bytes(data)
    whole, out = make(like, tmp_path / "whole.mp4"), tmp_path / "out.mp4"
    assert 20 < len(times(whole)) <= 45 and times(whole) == sorted(set(times(whole)))
    for frames in (12, 12):
        kill(like, out, frames)
    assert make(like, out).read_bytes() == whole.read_bytes()
    monkeypatch.setattr(segments, "_processes", lambda count, stop: ThreadPoolExecutor(count))
    assert make(like, tmp_path / "other.mp4", workers=2).read_bytes() == whole.read_bytes()


def test_packets_that_promise_a_frame_which_is_not_there(clip: Path, tmp_path: Path, told: list[str]) -> None:
    whole, out = make(clip, tmp_path / "whole.mp4").read_bytes(), tmp_path / "out.mp4"
    kill(clip, out, 12)
    seen: list[tuple[bool, range]] = []

    def unlucky(plan: Plan, run: range, tick: Callable[[], None]) -> int | None:
        seen.append((plan.stamps is not None, run))
        if plan.stamps is not None:
            work(plan, range(run.start, run.start + 2), tick)
            raise video.SeekError("does not decode as its packets say")
        return work(plan, run, tick)

    assert make(clip, out, unlucky).read_bytes() == whole
    assert [sought for sought, _ in seen] == [True, False]
    assert [run.start for _, run in seen] == [1, 1], "what was found by times is not believed"
    assert any("read from the beginning" in line for line in told)


# Room


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_says_how_much_is_missing_and_goes_on(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    whole, out = make(clip, tmp_path / "whole.mp4").read_bytes(), tmp_path / "out.mp4"
    sync, calls = files.sync, 0

    def full(path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls > 10:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", full)
        patch.setattr(segments, "_processes", lambda count, stop: ThreadPoolExecutor(count))
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 0))  # type: ignore[attr-defined]
        with pytest.raises(MediaError, match=r"disk full in .*: about 1 MB more are needed; \d segments") as error:
            make(clip, out, workers=workers)
    assert "start the same command again" in str(error.value)
    assert names(tmp_path) == [".out.mp4.parts", "whole.mp4"]
    assert make(clip, out).read_bytes() == whole


def test_a_disk_that_is_full_at_the_end(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, out = make(clip, tmp_path / "whole.mp4").read_bytes(), tmp_path / "out.mp4"

    def full(*_: object) -> None:
        raise av.error.OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(VideoWriter, "_mux", full)
        with pytest.raises(MediaError, match=r"more are needed; 5 segments \(45 frames\) are kept"):
            make(clip, out)
    assert make(clip, out, lambda *_: pytest.fail("made again")).read_bytes() == whole


def test_an_early_error_leaves_nothing(clip: Path, tmp_path: Path) -> None:
    kill(clip, tmp_path / "out.mp4", 3)
    assert names(tmp_path) == []


def test_one_at_a_time(clip: Path, tmp_path: Path) -> None:
    plan = plan_for(clip, tmp_path / "out.mp4")
    with segments.opened(plan, tmp_path / "out.mp4", {}):
        with pytest.raises(UsageError, match="another process is making it"):
            make(clip, tmp_path / "out.mp4")
        assert plan.folder.exists()


# Faces


def test_faces_that_are_kept_are_those_that_were_found(clips: dict[str, Path], tmp_path: Path) -> None:
    faces = swap.detecting(clips["target"], RECIPE.extract, "cpu")
    bare = Face(np.float32([1, 2, 3, 4]), np.zeros((5, 2), np.float32), 0.5, mask=tmp_path / "a.png")
    faces[5] = [bare]
    found.write(tmp_path / "faces.npz", faces)
    again = found.read(tmp_path / "faces.npz")
    assert found.digest(again) == found.digest(faces) and sorted(again) == sorted(faces)
    assert again[5][0].place is None and again[5][0].landmarks is None and again[5][0].mask == bare.mask
    one, other = faces[0][0], again[0][0]
    assert np.array_equal(one.matrix(64), other.matrix(64)) and one.track == other.track
    del again[0]
    assert found.digest(again) != found.digest(faces)
    found.write(tmp_path / "none.npz", {})
    assert found.read(tmp_path / "none.npz") == {}
    (tmp_path / "none.npz").write_bytes((tmp_path / "faces.npz").read_bytes()[:300])
    with pytest.raises(FacesetError, match="damaged"):
        found.read(tmp_path / "none.npz")


def test_faces_are_found_once(clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = (clips["target"], RECIPE.extract, "cpu", None, tmp_path / "out.mp4")
    first = swap.detecting(*given)
    with monkeypatch.context() as patch:
        patch.setattr(swap, "Finder", lambda *_: pytest.fail("looked for again"))
        assert found.digest(swap.detecting(*given)) == found.digest(first)
    (kept,) = segments.folder_of(tmp_path / "out.mp4").iterdir()
    kept.write_bytes(b"no")
    assert found.digest(swap.detecting(*given)) == found.digest(first)
    other = RECIPE.extract.model_copy(update={"min_size": 41})
    swap.detecting(clips["target"], other, "cpu", None, tmp_path / "out.mp4")
    assert len(names(kept.parent)) == 1 and not kept.exists(), "the faces of another search make room"


# A real merge


BARE = Marker(True, None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights(tmp_path_factory.mktemp("model") / "pair.safetensors")


def test_a_merge_draws_the_same_whatever_the_segments(model: Path, clips: dict[str, Path], tmp_path: Path) -> None:
    faces = swap.detecting(clips["target"], RECIPE.extract, "cpu")
    made = []
    for length in (5, 240):
        out = tmp_path / f"{length}.mp4"
        report = swap.swap_video(
            clips["target"], out, swapper(model, segment=length, crf=0, steady=3, batch=2), faces, marks=BARE
        )
        assert (report.frames, report.frames_swapped) == (16, 14)
        made.append([planes(frame) for frame in read_frames(out)])
    assert made[0] == made[1]


def test_killed_when_the_file_had_its_name(
    model: Path, clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    """The parts are put away by whoever comes next, and by nobody while the file is not theirs."""
    faces, out = swap.detecting(clips["target"], RECIPE.extract, "cpu"), tmp_path / "out.mp4"

    def make(overwrite: bool = False) -> None:
        swap.swap_video(clips["target"], out, swapper(model, segment=5), faces, marks=BARE, overwrite=overwrite)

    def killed() -> None:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(segments, "_remove", lambda _: (_ for _ in ()).throw(Killed()))
            make(overwrite=True)

    killed()
    whole, folder = out.read_bytes(), segments.folder_of(out)
    assert len(list(folder.glob("*.stream"))) == 4 and (folder / "whole.json").exists()
    out.write_bytes(b"of somebody else")
    with pytest.raises(OutputExistsError):
        make()
    assert len(list(folder.glob("*.stream"))) == 4
    killed()
    assert out.read_bytes() == whole
    with pytest.raises(OutputExistsError, match="exists already"):
        make()
    assert names(tmp_path) == ["out.mp4"] and any("put away its parts" in line for line in told)


def test_workers_make_the_same_file(model: Path, clips: dict[str, Path], tmp_path: Path) -> None:
    faces = swap.detecting(clips["target"], RECIPE.extract, "cpu")
    made = []
    for workers in (1, 2):
        out = tmp_path / f"{workers}.mp4"
        drawer = swapper(model, segment=5, steady=3, batch=2)
        report = swap.swap_video(clips["target"], out, drawer, faces, marks=BARE, workers=workers)
        assert report.frames_swapped == report.faces_swapped == 14
        made.append(out.read_bytes())
    assert made[0] == made[1] and names(tmp_path) == ["1.mp4", "2.mp4"]


KILLS = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from faceswap import found, swap
from faceswap.config import MergeRecipe
from faceswap.provenance import Marker

clip, whole, out, model, faces = map(Path, sys.argv[1:6])
kills, lot = int(sys.argv[6]), random.Random(int(sys.argv[7]))
drawer, faces = swap.Swapper(model, MergeRecipe(segment=4), torch.device("cpu")), found.read(faces)

def start(out):
    child = os.fork()  # sooner there than a new process
    if not child:
        swap.swap_video(clip, out, drawer, faces, marks=Marker(True, None))
        os._exit(0)
    return child

began = time.monotonic()
os.waitpid(start(whole), 0)
seconds = 0.6 * (time.monotonic() - began)
for number in range(kills + 1):
    child = start(out)
    if number < kills:
        time.sleep(lot.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    parts = out.with_name(f".{out.name}.parts")
    print(status, len(list(parts.glob("[0-9]*.json"))), len(list(parts.glob(".*partial*"))), out.exists(), flush=True)
    if out.exists():
        break
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no kill -9")
def test_kill_9_at_random_moments(model: Path, tmp_path: Path, kills: int = 6, seed: int = 0) -> None:
    clip, out = footage.write_clip(tmp_path / "in.mp4", footage.performance("target", 60)), tmp_path / "out.mp4"
    faces = swap.detecting(clip, RECIPE.extract, "cpu")
    found.write(tmp_path / "faces.npz", faces)
    words = [str(word) for word in (clip, tmp_path / "whole.mp4", out, model, tmp_path / "faces.npz", kills, seed)]
    places = str(Path(segments.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", KILLS, *words],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"},
    )
    print(done.stdout)
    assert done.stdout.startswith("9 ")  # killed while it worked
    assert out.read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    with pytest.raises(OutputExistsError):  # a kill may have come just after the file had its name
        swap.swap_video(clip, out, swapper(model, segment=4), faces, marks=BARE)
    assert names(tmp_path) == ["faces.npz", "in.mp4", "out.mp4", "whole.mp4"]


def test_a_folder_goes_but_for_what_is_not_ours(tmp_path: Path) -> None:
    for name in ("000000.stream", "000000.json", "job.json", "lock", "found.npz", "notes.txt"):
        (tmp_path / "parts" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "parts" / name).write_text("x")
    segments._remove(tmp_path / "parts")
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["notes.txt"]
    (tmp_path / "parts" / "notes.txt").unlink()
    segments._remove(tmp_path / "parts")
    assert not (tmp_path / "parts").exists()
