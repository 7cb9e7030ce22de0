"""Faces over time: found on key frames, followed in between, held still.

A face is looked for with the detector on key frames only: every few frames, half as often while there are but one or
two faces, and on a cut. In between, the landmark network looks where the face was in the frame before, which costs five
milliseconds; where landmarks do not fit, as in profiles, optical flow carries the face to the next key frame.
A face that a key frame finds anew is followed back to the key frame before. So a track arises: one face in one shot.
Short gaps in it are filled in; its places are smoothed with a filter that has no lag.

All of it needs no frame twice and keeps few of them; only where the faces are is kept of the whole footage.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from faceswap import align
from faceswap.config import ExtractRecipe
from faceswap.detectors import Detector, Face
from faceswap.landmarks import Landmarker, Landmarks, look_at
from faceswap.video import Frame

T = TypeVar("T")

CUT_ALIKE, CUT_APART = 0.5, 12.0  # a cut: frames correlate less than this, and differ by more levels than that
LOOKALIKE = 0.3  # least correlation of a face's picture with that of the frame before
SAME_PLACE = 0.4  # least overlap (IoU) of a followed face and a detected one
ONE_FACE = 0.6  # two followed faces that overlap more are one
GROWTH = 1.4  # most that a face's size changes from a frame to the next
FLOW, FLOW_ERROR = 64, 1.0  # px: a face's side where its flow is measured; error there and back of a point that counts
FEW = 2  # faces: with one or two the detector looks half as often
SURER = 2  # by how much doubt shrinks about a face whose landmarks never fit
MOST_AHEAD = 24  # frames that are read before it is their turn
UNSEEN = 6  # key frames in a row on which a detector may miss a face that is followed well
LENIENT = 0.9  # smaller faces, by this factor, are looked for: a track counts if it is large enough somewhere
PORTRAIT, PORTRAITS = 160, 5  # px and number of the pictures that tell who a track is


@dataclass(eq=False)
class Track:
    """One face in one shot."""

    number: int
    shot: int
    faces: dict[int, Face] = field(default_factory=dict)  # by frame index
    filled: set[int] = field(default_factory=set)  # frames in which it was not found but put in between
    portraits: list[tuple[float, NDArray[np.uint8]]] = field(default_factory=list)  # worth, canonical crop: the best

    @property
    def side(self) -> float:
        """Median size of its boxes in pixels."""
        return float(np.median([face.side for face in self.faces.values()]))

    @property
    def area(self) -> float:
        """Sum of its boxes' squared sides: how much of the footage it fills."""
        return float(sum(face.side**2 for face in self.faces.values()))

    @property
    def span(self) -> tuple[int, int]:
        """First and last frame."""
        return min(self.faces), max(self.faces)


@dataclass(frozen=True)
class Footage:
    """What was found in a video."""

    tracks: list[Track]  # by number: in the order of their appearance, the largest first
    frames: int  # looked at
    detected: int  # frames on which the detector looked
    shots: int

    def faces(self, tracks: Sequence[Track] | None = None) -> dict[int, list[Face]]:
        """The faces of `tracks` (all) by frame index, in each frame the largest first."""
        found: dict[int, list[Face]] = {}
        for track in self.tracks if tracks is None else tracks:
            for index, face in track.faces.items():
                found.setdefault(index, []).append(face)
        return {index: sorted(faces, key=lambda face: -face.side) for index, faces in found.items()}


def follow(
    frames: Iterable[Frame],
    detector: Detector,  # with the recipe's limits, times `LENIENT`
    landmarker: Landmarker,
    recipe: ExtractRecipe,
    *,
    portraits: bool = False,  # keep pictures of each track, to tell who it is
) -> Footage:
    """The tracks in footage, smoothed. In a folder of images, which may have no order, the detector looks at each."""
    tracker = _Tracker(detector, landmarker, recipe, portraits)
    workers = max(1, min(os.cpu_count() or 1, recipe.batch))
    with _one_thread_each(), ThreadPoolExecutor(workers) as pool:
        depth = min(-(-recipe.key_every // recipe.every) * workers + 1, MOST_AHEAD)
        for look in _ahead(_looks(frames, detector, recipe, pool), depth):
            tracker.step(look)
        tracker.end()
    return tracker.footage()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Networks side by side are faster than one after the other on all cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_END: Any = object()


def _ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """`items`, up to `depth` of them made beforehand in a thread of their own."""
    with ThreadPoolExecutor(1) as reader:
        waiting = deque(reader.submit(next, items, _END) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not _END:
                waiting.append(reader.submit(next, items, _END))
                yield item
        finally:
            for left in waiting:
                left.cancel()


@dataclass
class _Look:
    """A frame and what is known of it before it is its turn."""

    index: int
    image: NDArray[np.uint8]
    cut: bool
    detection: "Future[list[list[Face]]] | None"  # on its way, of a key frame

    def detect(self, detector: Detector) -> list[Face]:
        return detector([self.image])[0] if self.detection is None else self.detection.result()[0]


def _looks(
    frames: Iterable[Frame], detector: Detector, recipe: ExtractRecipe, pool: ThreadPoolExecutor
) -> Iterator[_Look]:
    before, key, detections = None, None, deque[Future[list[list[Face]]]](maxlen=2)
    for frame in frames:
        image = align.as_uint8(frame.draft)
        step = max(1, image.shape[1] // 96)
        small = cv2.resize(np.ascontiguousarray(image[::step, ::step]), (32, 18), interpolation=cv2.INTER_AREA)
        small = small.astype(np.float32)
        photos = before is not None and before[0] != frame.source
        cut = before is None or before[1] != image.shape or _is_cut(before[2], small, photos=photos)
        due = cut or photos or key is None or frame.index - key >= recipe.key_every
        if due and len(detections) == 2 and key is not None and not (cut or photos):
            few = 0 < len(detections[0].result()[0]) <= FEW  # of the key frame before last, which is done by now
            due = not few or frame.index - key >= 2 * recipe.key_every
        if due:
            key = frame.index
            detections.append(pool.submit(detector, [image]))
        yield _Look(frame.index, image, cut, detections[-1] if due else None)
        before = frame.source, image.shape, small


def _is_cut(before: NDArray[Any], now: NDArray[Any], *, photos: bool) -> bool:
    """Whether two frames, shrunk to a few pixels, belong to different shots. A fade is none: each step is small.

    Two `photos`, which may show two people at the same place, need not look different in shape.
    """
    apart = float(np.abs(now - before).mean()) > CUT_APART
    return apart and (photos or _alike(before.ravel(), now.ravel()) < CUT_ALIKE)


def _alike(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The correlation of two pictures."""
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum() + 1e-6))


def overlap(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1."""
    wide, high = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    both = max(float(wide), 0.0) * max(float(high), 0.0)
    either = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - both
    return both / either if either > 0 else 0.0


@dataclass(eq=False)
class _Active:
    """A track that goes on, and what following it needs."""

    track: Track
    face: Face  # where it was last
    look: NDArray[np.float32]  # its picture there
    index: int  # of that frame
    image: NDArray[np.uint8]  # that frame
    unseen: int = 0  # key frames since the detector saw it


class _Tracker:
    """Frames in their order -> tracks."""

    def __init__(self, detector: Detector, landmarker: Landmarker, recipe: ExtractRecipe, portraits: bool) -> None:
        self.detector, self.landmarker, self.recipe, self.portraits = detector, landmarker, recipe, portraits
        self.tracks: list[Track] = []
        self.active: list[_Active] = []
        self.lost: list[_Active] = []
        self.past: list[_Look] = []  # frames since the last key frame
        self.recent: deque[_Look] = deque(maxlen=recipe.gap + 2 * recipe.key_every + 1)
        self.frames = self.detected = self.begun = 0
        self.shot = -1

    def step(self, look: _Look) -> None:
        self.frames += 1
        if look.cut:
            if self.past:
                self._look_for_faces()  # who came late in the shot is followed back
            self.active, self.lost, self.past, self.shot = [], [], [], self.shot + 1
        key = look.detection is not None
        alive = self._distinct(self._follow(look, self.active))
        if not key:
            alive = [(one, face) for one, carried in alive if (face := self._check(one, carried, look)) is not None]
        self.lost += [one for one in self.active if all(one is not other for other, _ in alive)]
        for one, face in alive:
            self._extend(one, look, face)
        self.active = [one for one, _ in alive]
        reach = self.recipe.every * (self.recipe.gap + 1) + 2 * self.recipe.key_every
        self.lost = [one for one in self.lost if look.index - one.index <= reach]
        self.past.append(look)
        self.recent.append(look)
        if key:
            self._look_for_faces()

    def end(self) -> None:
        """The last frame is a key frame too: who came after the one before is followed back."""
        if self.past:
            self._look_for_faces()

    def footage(self) -> Footage:
        """The tracks that hold, numbered in the order of their appearance."""
        kept = [track for track in self.tracks if self._holds(track)]
        kept.sort(key=lambda track: (track.span[0], -track.faces[track.span[0]].side))
        for number, track in enumerate(kept):
            track.number = number
            track.faces = {index: replace(track.faces[index], track=number) for index in sorted(track.faces)}
            smooth(track, self.recipe.smooth, self.recipe.every)
        return Footage(kept, self.frames, self.detected, self.shot + 1)

    def _holds(self, track: Track) -> bool:
        """Whether a track is a face that is wanted: large and sure enough somewhere. Where landmarks never fit it must
        be surer: so are profiles, and plants and hands are not."""
        faces = track.faces.values()
        doubt = 1 - self.recipe.threshold
        if all(face.landmarks is None for face in faces):
            doubt /= SURER
        large = max(face.side for face in faces) >= self.recipe.min_size
        return large and max(face.probability for face in faces) >= 1 - doubt

    def _follow(self, look: _Look, active: Sequence[_Active]) -> list[tuple[_Active, Face]]:
        """The active tracks that are found in this frame, with their faces; `look` is taken over by the track."""
        seen = [one for one in active if one.face.landmarks is not None]
        found = self.landmarker([look.image] * len(seen), [one.face.points for one in seen])
        faces: dict[int, Face | None] = {}
        for one, marks in zip(seen, found, strict=True):
            faces[id(one)] = self._accept(one, marks)
        alive = []
        for one in active:
            face = faces.get(id(one)) or _flow(one.image, look.image, one.face)
            if face is not None:
                alive.append((one, face))
        return alive

    def _check(self, one: _Active, face: Face, look: _Look) -> Face | None:
        """A face whose landmarks do not fit any more, and which only the flow carries on: is it one still? The detector
        looks around it, which costs little."""
        if face.landmarks is not None or one.face.landmarks is None:
            return face
        x0, y0 = np.maximum(face.box[:2] - face.side, 0).astype(int)
        x1, y1 = np.maximum(face.box[2:] + face.side, 1).astype(int)
        around, corner = look.image[y0:y1, x0:x1], np.array([x0, y0], np.float32)
        for seen in self.detector([around])[0] if around.size else []:
            seen = replace(seen, box=seen.box + np.tile(corner, 2), points=seen.points + corner)
            if overlap(seen.box, face.box) >= SAME_PLACE:
                (marks,) = self.landmarker([look.image], [seen.points], passes=2)
                return self._with(seen, marks)
        return None

    def _accept(self, one: _Active, marks: Landmarks) -> Face | None:
        """The face that was followed; None if what was found is no face, or hardly this one."""
        moved = align.similarity(one.face.points, marks.five)
        alike = _alike(one.look, marks.look)
        if marks.fit < self.recipe.min_fit or alike < LOOKALIKE or not 1 / GROWTH < align.scale_of(moved) < GROWTH:
            return None
        one.look = marks.look
        return replace(_moved(one.face, moved), points=marks.five, landmarks=marks.points, fit=marks.fit)

    @staticmethod
    def _distinct(alive: Sequence[tuple[_Active, Face]]) -> list[tuple[_Active, Face]]:
        """Without tracks that ran onto the face of another: the older stays."""
        kept: list[tuple[_Active, Face]] = []
        for one, face in sorted(alive, key=lambda pair: pair[0].track.number):
            if all(overlap(face.box, other.box) < ONE_FACE for _, other in kept):
                kept.append((one, face))
        return kept

    @staticmethod
    def _extend(one: _Active, look: _Look, face: Face) -> None:
        one.track.faces[look.index] = face
        one.face, one.index, one.image = face, look.index, look.image

    def _look_for_faces(self) -> None:
        """Match what the detector finds with what is followed; the rest are lost faces found again, or new ones."""
        self.detected += 1
        look = self.past.pop()
        detected = look.detect(self.detector)
        pairs = _matched([one.face for one in self.active], detected, SAME_PLACE)
        for row, column in pairs:
            self._confirm(self.active[row], look, detected[column])
        seen, taken = {row for row, _ in pairs}, {column for _, column in pairs}
        due = look.detection is not None  # and not looked at for the sake of another face
        for row, one in enumerate(self.active):
            one.unseen = 0 if row in seen else one.unseen + due
            if row not in seen and one.face.landmarks is None:  # only the flow says that there is a face
                del one.track.faces[look.index]
                one.index = max(one.track.faces)
                one.face, one.unseen = one.track.faces[one.index], UNSEEN + 1
        self.lost += [one for one in self.active if one.unseen > UNSEEN]
        self.active = [one for one in self.active if one.unseen <= UNSEEN]
        fresh = [face for column, face in enumerate(detected) if column not in taken]
        marks = self.landmarker([look.image] * len(fresh), [face.points for face in fresh], passes=2)
        for face, mark in zip(fresh, marks, strict=True):
            self._begin(look, face, mark)
        self.past = []
        if self.portraits:
            for one in self.active:
                self._portray(one, look)

    def _confirm(self, one: _Active, look: _Look, found: Face) -> None:
        """A followed face that the detector sees too. Its landmarks stay as followed, so that key frames do not stand
        out; one without is looked at anew."""
        face = replace(one.face, box=found.box, probability=found.probability)
        if face.landmarks is None:
            (marks,) = self.landmarker([look.image], [found.points], passes=2)
            face = self._with(found, marks)
            one.look = marks.look if face.landmarks is not None else look_at(look.image, face.points)
        self._extend(one, look, face)

    def _with(self, face: Face, marks: Landmarks) -> Face:
        """A detected face with its landmarks, if they fit."""
        if marks.fit < self.recipe.min_fit:
            return face
        return replace(face, points=marks.five, landmarks=marks.points, fit=marks.fit)

    def _begin(self, look: _Look, face: Face, marks: Landmarks) -> None:
        """A face that was not followed here: one that was lost, or a new track, followed back as far as it goes."""
        face = self._with(face, marks)
        if any(overlap(face.box, one.face.box) > ONE_FACE for one in self.active):
            return
        where = marks.look if face.landmarks is not None else look_at(look.image, face.points)
        one = _Active(Track(self.begun, self.shot), face, where, look.index, look.image)
        self.begun += 1
        self.tracks.append(one.track)
        self.active.append(one)
        self._extend(one, look, face)
        self._resume(one, self._follow_back(one))

    def _resume(self, one: _Active, start: _Active) -> None:
        """If `one`, whose track starts with `start`, is a face that was lost shortly before, go on with its track."""
        reach = self.recipe.every * (self.recipe.gap + 1)
        for other in sorted(self.lost, key=lambda other: -other.index):
            near = start.index - other.index <= reach and overlap(other.face.box, start.face.box) > SAME_PLACE / 2
            both = (old for index, old in other.track.faces.items() if index in one.track.faces)
            two = any(face.landmarks is not None for face in both)  # both were seen at once; flow alone may have erred
            if near and not two and _alike(other.look, start.look) >= LOOKALIKE:
                self.lost = [left for left in self.lost if left is not other]
                self.tracks.remove(one.track)
                other.track.faces |= one.track.faces
                one.track = other.track
                self._bridge(other, start)
                return

    def _bridge(self, before: _Active, after: _Active) -> None:
        """Put faces into the gap of a track, wherever the picture there still looks like the face: an empty frame stays
        empty. Their probability is 0."""
        known = look_at(after.image, after.face.points)
        for look in self.recent:
            if before.index < look.index < after.index:
                face = _between(before.face, after.face, (look.index - before.index) / (after.index - before.index))
                if self._is_taken(look.index, face, before.track):
                    continue
                if _alike(look_at(look.image, face.points), known) >= LOOKALIKE:
                    before.track.faces[look.index] = face
                    before.track.filled.add(look.index)

    def _follow_back(self, one: _Active) -> _Active:
        """Follow a face back to the key frame before; gives it as it was in the first frame in which it was seen."""
        here = replace(one)
        for look in reversed(self.past):
            found = self._follow(look, [here])
            if not found or (found[0][1].landmarks is None) != (one.face.landmarks is None):
                break  # there is nobody yet
            if self._is_taken(look.index, found[0][1], one.track):
                break
            self._extend(here, look, found[0][1])
        return here

    def _is_taken(self, index: int, face: Face, mine: Track) -> bool:
        """Whether another track has a face there."""
        others = (one.track.faces.get(index) for one in self.active + self.lost if one.track is not mine)
        return any(other is not None and overlap(face.box, other.box) > SAME_PLACE for other in others)

    def _portray(self, one: _Active, look: _Look) -> None:
        worth = one.face.side * max(one.face.fit, 0.01) * one.face.probability
        portraits = one.track.portraits
        if len(portraits) < PORTRAITS or worth > portraits[-1][0]:
            crop = align.as_uint8(align.crop(look.image, one.face.matrix(PORTRAIT), PORTRAIT))
            portraits.append((worth, crop))
            portraits.sort(key=lambda pair: -pair[0])
            del portraits[PORTRAITS:]


def _moved(face: Face, matrix: align.Matrix) -> Face:
    """A face carried along by a similarity transform between two frames; landmarks are not."""
    half = (face.box[2:] - face.box[:2]) / 2 * align.scale_of(matrix)
    (middle,) = align.apply(matrix, ((face.box[:2] + face.box[2:]) / 2)[None])
    box = np.concatenate([middle - half, middle + half]).astype(np.float32)
    points = align.apply(matrix, face.points).astype(np.float32)
    return replace(face, box=box, points=points, landmarks=None, fit=0.0)


def _flow(before: NDArray[np.uint8], now: NDArray[np.uint8], face: Face) -> Face | None:
    """A face carried along by the optical flow of a grid of points on it (Lucas and Kanade, 1981, in pyramids); None if
    fewer than half of them come back to where they started when followed there and back."""
    if before.shape != now.shape:
        return None
    scale = FLOW / face.side
    x0, y0 = (face.box[:2] + face.box[2:]) / 2 - face.side  # twice as wide as the face
    there = np.array([[scale, 0, -scale * x0], [0, scale, -scale * y0]])
    side = 2 * FLOW
    one, two = (
        cv2.cvtColor(align.as_uint8(align.glimpse(image, there, side)), cv2.COLOR_RGB2GRAY) for image in (before, now)
    )
    steps = np.linspace(-0.35, 0.35, 6) * FLOW + side / 2
    grid = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 1, 2).astype(np.float32)
    ahead, found, _ = cv2.calcOpticalFlowPyrLK(one, two, grid, grid.copy(), winSize=(15, 15), maxLevel=2)
    back, again, _ = cv2.calcOpticalFlowPyrLK(two, one, ahead, ahead.copy(), winSize=(15, 15), maxLevel=2)
    good = (np.linalg.norm(back - grid, axis=2) < FLOW_ERROR) & (found > 0) & (again > 0)
    good = good.ravel()
    if good.sum() * 2 < len(good):
        return None
    back_to_frame = align.invert(there)
    start, end = (align.apply(back_to_frame, points.reshape(-1, 2)[good]) for points in (grid, ahead))
    moved = align.similarity(start, end)
    if not 1 / GROWTH < align.scale_of(moved) < GROWTH:
        return None
    carried = _moved(face, moved)
    same = _alike(look_at(before, face.points), look_at(now, carried.points)) >= LOOKALIKE
    return carried if same else None


def _matched(followed: Sequence[Face], detected: Sequence[Face], least: float) -> list[tuple[int, int]]:
    """Pairs of one of each that lie at the same place, all together as well as possible (Kuhn, 1955)."""
    if not followed or not detected:
        return []
    from scipy.optimize import linear_sum_assignment  # takes a while, and many commands look for nobody

    table = np.array([[overlap(one.box, other.box) for other in detected] for one in followed])
    rows, columns = linear_sum_assignment(-table)
    return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if table[r, c] >= least]


def _between(a: Face, b: Face, share: float) -> Face:
    def mixed(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float32]:
        return np.asarray(one * (1 - share) + other * share, np.float32)

    both = a.landmarks is not None and b.landmarks is not None
    return replace(
        a,
        box=mixed(a.box, b.box),
        points=mixed(a.points, b.points),
        probability=0.0,
        landmarks=mixed(a.landmarks, b.landmarks) if both else None,  # type: ignore[arg-type]
        fit=min(a.fit, b.fit) if both else 0.0,
    )


def smooth(track: Track, window: int, every: int = 1) -> None:
    """Smooth the places of a track: size, angle and position of the canonical crop, each with a Savitzky-Golay filter
    (Savitzky and Golay, 1964) of second order over `window` frames, which follows steady motion without lag.

    Where a run of frames is shorter than the window, the largest that fits is taken; below 5 frames nothing is done.
    """
    from scipy.signal import savgol_filter

    indices = sorted(track.faces)
    runs = np.split(np.array(indices), np.flatnonzero(np.diff(indices) > every) + 1)
    for run in runs:
        width = min(window // every, len(run))
        width -= 1 - width % 2  # odd
        if width < 5:
            continue
        values = np.array([parameters(track.faces[index].matrix(1)) for index in run])
        values[:, 1] = np.unwrap(values[:, 1])
        values = savgol_filter(values, width, 2, axis=0, mode="interp")
        for index, value in zip(run, values, strict=True):
            track.faces[index] = replace(track.faces[index], place=place(value))


def parameters(matrix: align.Matrix) -> NDArray[np.float64]:
    """Log scale, angle (radians) and the frame's (x, y) at the crop's centre, of a canonical crop of side 1."""
    cos, sin = matrix[0, 0], matrix[1, 0]
    middle = align.apply(align.invert(matrix), np.array([[0.5, 0.5]]))[0]
    return np.array([np.log(np.hypot(cos, sin)), np.arctan2(sin, cos), *middle])


def place(values: NDArray[np.float64]) -> align.Matrix:
    """The canonical crop of side 1 that has the `parameters` (4,)."""
    scale, angle = np.exp(values[0]), values[1]
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([linear, 0.5 - linear @ values[2:]])


def jitter(places: Sequence[align.Matrix | None]) -> float | None:
    """How much crops shake: percent of the distance between the eyes, per coordinate. None marks a missing frame.

    From the second differences over time of where the template's five points lie in the frame: white noise of deviation
    s has second differences of deviation s * sqrt(6). The median over frames is taken, so that motion, which also
    accelerates, counts little. None with fewer than three frames in a row.
    """
    shaking = []
    for a, b, c in zip(places, places[1:], places[2:], strict=False):
        if a is not None and b is not None and c is not None:
            before, now, after = (align.apply(align.invert(matrix), align.TEMPLATE) for matrix in (a, b, c))
            eyes = float(np.linalg.norm(now[1] - now[0]))
            shaking.append(np.sqrt(((before - 2 * now + after) ** 2).mean() / 6) / eyes)
    return float(100 * np.median(shaking)) if shaking else None
