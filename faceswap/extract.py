"""Footage to faceset: find the faces, follow them, choose whose they are, crop them, write them with their origin."""

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faceswap import align, console, files, tracks
from faceswap.config import ExtractRecipe
from faceswap.detectors import Face
from faceswap.errors import FacesetError, UsageError
from faceswap.faceset import FaceMeta, refuse_foreign, write_face
from faceswap.tracks import Footage, Track
from faceswap.video import Frame, frame_count, read_frames
from faceswap.who import Finder, Who, described

MOST_WAITING = 16  # faces, with their frames, that wait to be written


@dataclass(frozen=True)
class Report:
    """What an extraction found."""

    faceset: Path
    frames: int  # looked at
    faces: int
    frames_without_face: int
    tracks: int  # taken, of those found
    tracks_found: int
    frames_detected: int  # on which the detector looked, the rest was followed
    jitter_before: float | None  # percent of the eye distance, see tracks.jitter; None: no three frames in a row
    jitter: float | None  # after smoothing
    seconds: float


def extract(
    inputs: Sequence[Path],  # videos, folders of images, single images
    out: Path,
    recipe: ExtractRecipe,
    *,
    who: Who | None = None,  # whose faces; None: as the recipe says
    device: str = "cpu",
    overwrite: bool = False,  # replaces a faceset, and nothing but a faceset
) -> Report:
    """Extract faces into the new faceset `out`, which appears when it is complete.

    `MediaError` for an input that cannot be read, `FacesetError` if no face is found at all, `UsageError` if those
    that were found are not of who was asked for.
    """
    files.refuse_same(out, inputs)
    files.refuse_existing(out, overwrite)
    if out.exists():
        refuse_foreign(out)
    names = _names(inputs)
    for path in inputs:
        frame_count(path)  # a wrong name is said before the work begins
    if who is not None and who.tracks and len(inputs) > 1:
        raise UsageError(f"--track names a track of one input, found {len(inputs)} inputs; extract them one by one")
    find = Finder(recipe, device, who)
    started = time.monotonic()
    faces = frames = empty = detected = 0
    chosen: list[Track] = []
    found: list[Track] = []
    with files.whole_folder(out, overwrite=overwrite) as folder:
        for number, (path, name) in enumerate(zip(inputs, names, strict=True)):
            footage, wanted = _of_whom(find, path, alone=len(inputs) == 1)
            if not footage.tracks:
                console.warn(f"{path}: no face found in {footage.frames} frames")
            count_ = f"{len(footage.tracks)} tracks in {footage.shots} shots"
            console.detail(f"{path}: {count_}: {described(footage.tracks)}")
            by_frame = footage.faces(wanted)
            written = sum(_write(path, folder / name, number, by_frame, recipe))
            faces, frames, detected = faces + written, frames + footage.frames, detected + footage.detected
            empty += footage.frames - len(by_frame)
            chosen, found = chosen + wanted, found + footage.tracks
        if not faces:
            raise FacesetError(
                f"{', '.join(map(str, inputs))}: no face of at least {recipe.min_size:g} px found in "
                f"{frames} frames; try --min-size {recipe.min_size / 2:g} or --set extract.threshold=0.7"
            )
    before, after = (_jitter(chosen, smoothed=smoothed, every=recipe.every) for smoothed in (False, True))
    seconds = time.monotonic() - started
    return Report(out, frames, faces, empty, len(chosen), len(found), detected, before, after, seconds)


def _of_whom(find: Finder, path: Path, *, alone: bool) -> tuple[Footage, list[Track]]:
    """What was found in footage, and the tracks of who was asked for; of several inputs one may be without them."""
    footage = find.follow(path)
    try:
        return footage, find.choose(footage, path)
    except UsageError as error:
        if alone:
            raise
        console.warn(str(error))
        return footage, []


def _write(
    path: Path, stem: Path, number: int, by_frame: Mapping[int, list[Face]], recipe: ExtractRecipe
) -> Iterator[int]:
    """Read the footage again and write the faces, several side by side; gives the number of each frame's."""
    frames = (frame for frame in read_frames(path, every=recipe.every) if frame.index in by_frame)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting: deque[Future[None]] = deque()
        for frame in console.track(frames, f"cutting out faces of {path.name}", len(by_frame), "frames"):
            chosen = by_frame[frame.index][: recipe.max_faces or None]
            for rank, face in enumerate(chosen):
                meta = meta_of(face, frame.source.name, frame.index, float(frame.time), rank, number, recipe)
                target = stem.with_name(f"{stem.name}_{frame.index:06d}_{rank}.{recipe.format}")
                waiting.append(pool.submit(_write_one, target, frame, meta))
                if len(waiting) > min(2 * (os.cpu_count() or 1), MOST_WAITING):
                    waiting.popleft().result()
            yield len(chosen)
        for job in waiting:
            job.result()


def _write_one(path: Path, frame: Frame, meta: FaceMeta) -> None:
    """Write a face, for which only its part of the frame is made."""
    where, matrix = align.around(np.array(meta.matrix), meta.size, frame.shape)
    write_face(path, align.crop(frame.part(*where), matrix, meta.size), meta)


def meta_of(
    face: Face, source: str, frame: int, time: float, rank: int, number: int, recipe: ExtractRecipe
) -> FaceMeta:
    """What a face image tells of where it comes from."""
    return FaceMeta(
        input=number,
        source=source,
        frame=frame,
        time=round(time, 6),
        face=rank,
        box=[round(float(v), 3) for v in face.box],
        points=_rounded(face.points, 3),
        matrix=face.matrix(recipe.size).tolist(),
        size=recipe.size,
        detector=recipe.detector,
        probability=round(face.probability, 5),
        landmarks=None if face.landmarks is None else _rounded(face.landmarks, 2),
        fit=round(face.fit, 4),
        track=face.track,
    )


def _rounded(points: NDArray[Any], digits: int) -> list[list[float]]:
    rounded: list[list[float]] = np.round(np.asarray(points, np.float64), digits).tolist()
    return rounded


def _jitter(chosen: Iterable[Track], *, smoothed: bool, every: int) -> float | None:
    """How much the crops of all tracks shake, see `tracks.jitter`."""
    places: list[align.Matrix | None] = []
    for track in chosen:
        first, last = track.span
        for index in range(first, last + 1, every):
            face = track.faces.get(index)
            raw = None if face is None else face.matrix(1) if smoothed else align.crop_matrix(face.points, 1)
            places.append(raw)
        places.append(None)
    return tracks.jitter(places)


def _names(inputs: Sequence[Path]) -> list[str]:
    """A name per input for its files; inputs that share one get a number."""
    if not inputs:
        raise UsageError("expected at least one video, folder of images or image")
    names: list[str] = []
    for path in inputs:
        stem = path.absolute().stem.lstrip(".") or "input"
        numbered = (f"{stem}-{number}" for number in count(2))
        names.append(next(name for name in chain([stem], numbered) if name not in names))
    return names
