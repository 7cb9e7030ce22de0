"""Synthetic actors: rendered people whose every pose, expression, landmark and mask is known.

They serve as a demo on a machine without footage, as test material, and as the only footage on which a face swap has a
truth: the same take played by the target's head with the source's face (`Take.with_face_of`).

A `Take` says all of a clip: who plays, which performance, how long and how large. Rendering it is a pure function: the
same take gives the same pixels, in any process.
"""

import json
import multiprocessing
import os
import time
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, astuple, dataclass, fields, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from faceswap import align, console, files, video
from faceswap.errors import FaceswapError, MediaError, OutputExistsError, UsageError
from faceswap.faceset import FaceMeta, refuse_foreign, write_face
from faceswap.heads import Expression, Identity, Pose, smoothstep
from faceswap.interrupts import end_with_parent
from faceswap.provenance import rendered_tags
from faceswap.render import Actor, Light, Shot, background

Job = TypeVar("Job")
Result = TypeVar("Result")

VERSION = 1  # of truth files
SCALE = 0.62  # height of the head in units of the frame's
FRAME_PER_CROP = 1.35  # side of the frame that a single face is cropped from, in units of the crop's
SHOTS = 4  # faces per identity in a faceset, and people who meet the same moments
PITCH = 165.0  # Hz, of a voice between a man's and a woman's
MOODS = {"smile": 1.0, "pucker": 0.6, "frown": 0.9, "surprise": 1.0}  # how far each goes
AT_ONCE = 16  # frames up to 512 px that a process renders before it hands them over, fewer of larger ones


@dataclass(frozen=True)
class Moment:
    """What an actor does at one time, and in which light."""

    pose: Pose
    expression: Expression
    light: Light


@dataclass(frozen=True)
class Take:
    """A clip as it will be rendered."""

    identity: Identity
    performance: int  # seed of movement, expression, light and room
    frames: int
    size: int = 480  # px, side of the square frame, even
    rate: Fraction = Fraction(25)  # frames/s
    scale: float = SCALE

    def with_face_of(self, source: Identity) -> "Take":
        """The true swap: the same take with the source's face, in the tone of this take's skin."""
        return replace(self, identity=self.identity.with_face_of(source))

    def moments(self) -> list[Moment]:
        return perform(self.performance, self.frames, float(self.rate))

    def shots(self, wanted: Sequence[int] | None = None, *, workers: int | None = None) -> Iterator[Shot]:
        """The frames, or those numbered in `wanted`, in that order; several processes render when it pays."""
        numbers = list(range(self.frames)) if wanted is None else list(wanted)
        step = max(1, AT_ONCE * 512**2 // max(self.size, 512) ** 2)
        parts = [numbers[start : start + step] for start in range(0, len(numbers), step)]
        for shots in _spread(_render, [(self, part) for part in parts], workers):
            yield from shots

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "rate": str(self.rate)})

    @classmethod
    def from_json(cls, text: str) -> "Take":
        """The inverse of `to_json`; `ValueError`, `TypeError` or `KeyError` if it is none."""
        values = json.loads(text)
        identity, rate = Identity(**values.pop("identity")), Fraction(values.pop("rate"))
        return cls(identity=identity, rate=rate, **values)


_actor = lru_cache(maxsize=1)(Actor)  # baked once in each process


def _render(job: tuple[Take, list[int]]) -> list[Shot]:
    take, numbers = job
    actor, moments = _actor(take.identity), take.moments()
    room = background(take.performance, take.size, take.size)
    return [
        actor.render(**as_arguments(moments[number]), size=take.size, background=room, scale=take.scale)
        for number in numbers
    ]


def as_arguments(moment: Moment) -> dict[str, Any]:
    """The moment as `Actor.render` takes it."""
    return {field.name: getattr(moment, field.name) for field in fields(moment)}


def _spread(work: Callable[[Job], Result], jobs: Sequence[Job], workers: int | None) -> Iterator[Result]:
    """`work` on each job, in order, in several processes if there are several jobs; a few jobs ahead, no more."""
    workers = min(len(jobs), workers or os.cpu_count() or 1)
    if workers < 2:
        yield from map(work, jobs)
        return
    fresh = multiprocessing.get_context("spawn")  # a fork would copy torch's threads in an unknown state
    with ProcessPoolExecutor(workers, mp_context=fresh, initializer=_start_worker) as pool:
        coming: deque[Future[Result]] = deque()
        try:
            for job in jobs:
                coming.append(pool.submit(work, job))
                if len(coming) > 2 * workers:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        except BrokenProcessPool:
            raise FaceswapError(
                "a rendering process died: out of memory (render smaller), or it was started by a script without "
                'if __name__ == "__main__" (add that, or pass workers=1)'
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """In a process that renders: one core, and an end with the parent, which alone hears Ctrl-C."""
    cv2.setNumThreads(1)
    end_with_parent()


# Performances


def perform(seed: int, frames: int, rate: float) -> list[Moment]:
    """A smooth performance of so many frames at `rate` per second: turning, talking, smiling, blinking, looking around
    in a light that wanders slowly.

    Yaw within ±30°, pitch ±14°, roll ±10°, light from ±50° around and 12 to 50° above.
    """
    random = np.random.default_rng([seed, 7])
    clock = np.arange(frames) / rate

    def curve(low: float, high: float, speed: float) -> NDArray[np.float64]:
        """Three sines of about `speed`, twice and three times that (Hz) at random phases, between two bounds."""
        waves = [
            np.sin(2 * np.pi * speed * k * clock * random.uniform(0.7, 1.3) + random.uniform(0, 2 * np.pi)) / k
            for k in (1, 2, 3)
        ]
        return low + (high - low) * np.clip(0.5 + sum(waves) / 3, 0, 1)

    yaw, pitch, roll = curve(-30, 30, 0.18), curve(-14, 14, 0.18), curve(-10, 10, 0.18)
    talks = smoothstep(curve(0, 1, 0.2), 0.3, 0.6)
    jaw = curve(-0.3, 0.7, 1.3).clip(0) * talks
    smile, pucker = curve(-0.7, 1, 0.2).clip(0), curve(-1.2, 0.6, 0.3).clip(0)
    frown, surprise = curve(-1, 0.9, 0.15).clip(0), curve(-1, 1, 0.2).clip(0)
    blink = _blinks(clock, np.random.default_rng([seed, 8]))  # of their own: there are more in a longer take
    gaze_x, gaze_y = curve(-18, 18, 0.3), curve(-8, 8, 0.3)
    azimuth, elevation = curve(-50, 50, 0.06), curve(12, 50, 0.06)
    warmth = float(random.uniform(-0.5, 1))
    return [
        Moment(
            Pose(float(yaw[i]), float(pitch[i]), float(roll[i])),
            Expression(
                jaw=float(jaw[i]),
                smile=float(smile[i]),
                pucker=float(pucker[i] * (1 - smile[i])),
                frown=float(frown[i] * (1 - smile[i])),
                surprise=float(surprise[i] * (1 - frown[i])),
                blink_left=float(blink[i]),
                blink_right=float(blink[i]),
                gaze_x=float(gaze_x[i]),
                gaze_y=float(gaze_y[i]),
            ),
            Light(azimuth=float(azimuth[i]), elevation=float(elevation[i]), warmth=warmth),
        )
        for i in range(frames)
    ]


def _blinks(clock: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """Lids that close for a quarter of a second, every 1.2 to 4 seconds."""
    closed = np.zeros_like(clock)
    moment = random.uniform(0, 2)
    while len(clock) and moment < clock[-1]:
        closed = np.maximum(closed, np.clip(1.25 - np.abs(clock - moment) / 0.12 * 1.25, 0, 1))
        moment += random.uniform(1.2, 4)
    return closed


def at_random(random: np.random.Generator) -> Moment:
    """Any pose within yaw ±35°, pitch ±20° and roll ±20°, with any expression in any light."""
    draw = random.uniform
    mood = {name: float(draw(0, most) * (random.random() < 0.4)) for name, most in MOODS.items()}
    shut = float(draw(0, 1) if random.random() < 0.2 else 0)
    return Moment(
        Pose(float(draw(-35, 35)), float(draw(-20, 20)), float(draw(-20, 20))),
        Expression(
            jaw=float(draw(0, 0.8) * (random.random() < 0.5)),
            **mood,
            blink_left=shut,
            blink_right=shut,
            gaze_x=float(draw(-18, 18)),
            gaze_y=float(draw(-8, 8)),
        ),
        Light(
            azimuth=float(draw(-65, 65)),
            elevation=float(draw(12, 55)),
            warmth=float(draw(-0.5, 1)),
            key=float(draw(0.8, 1.15)),
        ),
    )


def voice(moments: Sequence[Moment], rate: float, pitch: float) -> NDArray[np.float32]:
    """A hummed voice that follows the jaw: (samples,) float32 mono in [-1, 1] at `video.SOUND_RATE`; `pitch` in Hz."""
    count = round(len(moments) / rate * video.SOUND_RATE)
    clock = np.arange(count) / video.SOUND_RATE
    frames = np.arange(len(moments)) / rate
    opening = np.interp(clock, frames, [moment.expression.jaw for moment in moments])
    phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.06 * np.sin(2 * np.pi * 2.1 * clock))) / video.SOUND_RATE
    tone = sum(np.sin(k * phase) / k**1.5 for k in range(1, 9))
    return np.asarray(0.22 * (0.03 + opening) * tone, np.float32)


# Clips


@dataclass(frozen=True)
class Report:
    """What was rendered."""

    out: Path
    truth: Path | None  # of a clip
    frames: int
    seconds: float


def truth_path(clip: Path) -> Path:
    """Where the truth of a clip lies: `actor.mp4` has `actor.truth.npz`."""
    return clip.with_suffix(".truth.npz")


def write_clip(take: Take, out: Path, *, overwrite: bool = False, workers: int | None = None) -> Report:
    """Render a take as H.264 with sound, and its truth beside it (see `truth_path`).

    The truth is a NumPy archive: `take` (JSON, all that the clip was rendered from), `pose` (N, 3) yaw, pitch and roll
    in degrees, `expression` (N, 9) and `light` (N, 6) with their `_names`, `points` (N, 5, 2) and `landmarks`
    (N, 68, 2) float32 (x, y) in pixels, pixel centres at integers, `mask` (N, S, S) uint8, 255 in the face.
    `workers` is the number of processes (all cores). `UsageError` for an odd size or a wrong name, `OutputExistsError`.
    """
    if take.size % 2 or take.frames < 1:
        raise UsageError(f"{take.size} px, {take.frames} frames: expected an even size and at least one frame")
    video.check_name(out)
    for path in (out, truth_path(out)):
        files.refuse_existing(path, overwrite)
        if path.is_dir():
            raise OutputExistsError(f"{path}: a folder, which is never replaced; choose another -o")
    moments, started = take.moments(), time.monotonic()
    points, landmarks = [], []

    def images(archive: zipfile.ZipFile) -> Generator[NDArray[np.uint8], None, None]:
        """The frames. The masks go to the archive one by one, as those of an hour fit into no memory; the rest after
        the last frame, before the video takes its name."""
        with archive.open("mask.npy", "w", force_zip64=True) as masks:
            header = {"descr": "|u1", "fortran_order": False, "shape": (take.frames, take.size, take.size)}
            np.lib.format.write_array_header_2_0(masks, header)
            for shot in console.track(take.shots(workers=workers), f"rendering {out.name}", take.frames, "frames"):
                points.append(shot.points)
                landmarks.append(shot.landmarks)
                masks.write(np.round(shot.mask * 255).astype(np.uint8).tobytes())
                yield shot.image
        facts = {
            "version": VERSION,
            "take": take.to_json(),
            "pose": np.array([astuple(moment.pose) for moment in moments], np.float32),
            "expression": np.array([astuple(moment.expression) for moment in moments], np.float32),
            "expression_names": [field.name for field in fields(Expression)],
            "light": np.array([astuple(moment.light) for moment in moments], np.float32),
            "light_names": [field.name for field in fields(Light)],
            "points": np.stack(points),
            "landmarks": np.stack(landmarks),
        }
        for name, values in facts.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, np.asarray(values), allow_pickle=False)

    with (
        files.whole_file(truth_path(out), overwrite=overwrite) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        sound = voice(moments, float(take.rate), PITCH * 2 ** (-take.identity.masculinity / 2))
        with closing(images(archive)) as frames:
            video.write_video(out, frames, take.rate, sound=sound, metadata=rendered_tags(), overwrite=overwrite)
    return Report(out, truth_path(out), take.frames, time.monotonic() - started)


def read_take(truth: Path) -> Take:
    """The take that a truth file tells of; `MediaError` if it is missing, damaged or of a later version."""
    return _read_truth(truth)[0]


def read_points(truth: Path) -> NDArray[np.float32]:
    """The true five points (N, 5, 2) of each frame, as it was rendered; `MediaError` like `read_take`."""
    return _read_truth(truth)[1]


def _read_truth(truth: Path) -> tuple[Take, NDArray[np.float32]]:
    try:
        with truth.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if (version := int(archive["version"])) > VERSION:
                raise MediaError(f"{truth}: version {version}, expected at most {VERSION}; update faceswap")
            text, points = str(archive["take"]), np.asarray(archive["points"])
        take = Take.from_json(text)
        if points.shape != (take.frames, 5, 2):
            raise ValueError(f"points of shape {points.shape} for {take.frames} frames")
        return take, points
    except FileNotFoundError:
        raise MediaError(f"{truth}: no such truth file; faceswap actors clip writes one beside its video") from None
    except (OSError, ValueError, TypeError, KeyError, EOFError, IndexError, zipfile.BadZipFile, zlib.error) as error:
        raise MediaError(f"{truth}: damaged truth file ({error}); render the clip again") from None


# Facesets


def write_faces(
    out: Path,
    count: int,
    *,
    size: int = 256,  # px, side of the crops
    seed: int = 0,
    overwrite: bool = False,
    workers: int | None = None,  # processes; None: all cores
) -> Report:
    """Render a generic faceset of many people: `SHOTS` faces each, every one in another pose, mood, light and room.

    `SHOTS` people in a row play the same moments in the same rooms: each is the true swap of the others. The crops are
    canonical by the true points. `FaceMeta.truth` holds what each was rendered from: `identity` (seed), `pose`,
    `expression`, `light`, and the 68 `landmarks` in pixels of the frame.
    """
    files.refuse_existing(out, overwrite)
    if out.exists():
        refuse_foreign(out)
    started = time.monotonic()
    with files.whole_folder(out, overwrite=overwrite) as folder:
        people = range(-(-count // SHOTS))
        jobs = [(folder, seed, person, min(SHOTS, count - person * SHOTS), size) for person in people]
        for _ in console.track(_spread(_write_person, jobs, workers), f"rendering {out.name}", len(jobs), "people"):
            pass
    return Report(out, None, count, time.monotonic() - started)


def _write_person(job: tuple[Path, int, int, int, int]) -> None:
    folder, seed, person, count, size = job
    name = int(np.random.SeedSequence([seed, person]).generate_state(1)[0] >> 1)
    actor, random = Actor(Identity.random(name)), np.random.default_rng([seed, person // SHOTS, 1])
    side = round(size * FRAME_PER_CROP)
    for number in range(count):
        moment = at_random(random)
        room = background(int(random.integers(2**31)), side, side)
        shot = actor.render(**as_arguments(moment), size=side, background=room, scale=SCALE)
        meta = _meta(name, number, shot, moment, size)
        image = align.crop(shot.image, np.array(meta.matrix), size)
        write_face(folder / f"actor{person:06d}_{number}.png", image, meta)


def _meta(identity: int, number: int, shot: Shot, moment: Moment, size: int) -> FaceMeta:
    low, high = shot.landmarks.min(0), shot.landmarks.max(0)
    return FaceMeta(
        source=f"actor-{identity}",
        frame=number,
        time=0.0,
        face=0,
        box=[round(float(v), 3) for v in (*low, *high)],
        points=[[round(float(x), 3), round(float(y), 3)] for x, y in shot.points],
        matrix=align.crop_matrix(shot.points, size).tolist(),
        size=size,
        detector="truth",
        probability=1.0,
        truth={
            "identity": identity,
            **{name: asdict(part) for name, part in as_arguments(moment).items()},
            "landmarks": np.round(shot.landmarks.astype(np.float64), 2).tolist(),
        },
    )
