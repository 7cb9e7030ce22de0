"""What a faceset looks like: figures of each face, of each track and of the whole.

Convention: one number per face in arrays (N,) in the order of the faceset; NaN where an image does not decode.
"""

from collections import Counter
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import compress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from faceswap import console, heads, metrics, pack
from faceswap.embedding import Embedder, find_embedder
from faceswap.errors import FaceswapError
from faceswap.faceset import FaceMeta, Faceset, own_mask, read_images

Numbers = NDArray[np.float64]
Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]  # of faces
Picture = NDArray[np.uint8]

SIZE = 128  # px, at which faces are looked at
INNER = (0.28, 0.28, 0.70, 0.78)  # x0, y0, x1, y1 of brows to mouth, in units of the side
THUMB = 16  # px, side of the small pictures whose correlation is likeness where there is no embedder
EMBED_SIZE = 192  # px, for the embedder
BINS = np.arange(-90, 91, 15)  # degrees, of the histograms of yaw and pitch


# ---------------------------------------------------------------- of each face


@dataclass(frozen=True)
class Looks:
    """What the pixels say."""

    sharpness: Numbers  # variance of the Laplacian of the 8-bit luma inside `INNER` at `SIZE` px
    brightness: Numbers  # mean luma there, 0 to 1
    hashes: NDArray[np.uint64]  # dHash (Krawetz, 2013) of `INNER`: 64 signs of the change from left to right
    thumbs: NDArray[np.float32]  # (N, THUMB**2) of length 1 and mean 0: their dot product is a correlation


class Faces:
    """A faceset that is measured when a measure is first asked for, once."""

    def __init__(self, faceset: Faceset) -> None:
        self.folder, self.entries = faceset.folder, faceset.entries

    def __len__(self) -> int:
        return len(self.entries)

    def only(self, kept: Mask) -> "Faces":
        """Some of the faces (N,), with what was measured of them."""
        some, measured = copy(self), self.__dict__
        some.entries = list(compress(self.entries, kept))
        for name in measured.keys() & {"pose", "size", "fit"}:
            some.__dict__[name] = measured[name][kept]
        if "places" in measured:
            some.__dict__["places"] = list(compress(self.places, kept))
        if "looks" in measured:
            some.__dict__["looks"] = Looks(*(numbers[kept] for numbers in vars(self.looks).values()))
        if "likeness" in measured:
            means, points = self.likeness
            some.__dict__["likeness"] = means, points[kept[self.whole]]
        return some

    @cached_property
    def places(self) -> list["Place"]:
        entries = console.track(self.entries, "reading metadata", len(self), "faces")
        return [Place.of(entry.meta) for entry in entries]

    @cached_property
    def pose(self) -> Numbers:
        """Yaw and pitch (N, 2) in degrees, see `head_pose`."""
        entries = console.track(self.entries, "turning heads", len(self), "faces")
        return np.array([head_pose(entry.meta) for entry in entries], np.float64).reshape(-1, 2)

    @cached_property
    def size(self) -> Numbers:
        """How large the face is in its frame, in px: the side of a square as large as its box."""
        return np.array([place.size for place in self.places], np.float64)

    @cached_property
    def fit(self) -> Numbers:
        """How well the landmarks fit; 0 for a face that has none."""
        return np.array([place.fit for place in self.places], np.float64)

    @cached_property
    def looks(self) -> Looks:
        images = read_images([entry.path for entry in self.entries], SIZE)
        found = [look(image) for image in console.track(images, "looking at faces", len(self), "faces")]
        sharpness, brightness, hashes, thumbs = zip(*found, strict=True)
        return Looks(np.array(sharpness), np.array(brightness), np.array(hashes, np.uint64), np.array(thumbs))

    @property
    def whole(self) -> Mask:
        """Which images decode."""
        return ~np.isnan(self.looks.sharpness)

    @cached_property
    def embedder(self) -> Embedder:
        """`FaceswapError` if none works."""
        found = find_embedder()
        if found is None:
            raise FaceswapError("no face embedder works here; pip install 'faceswap[identity]'")
        return found

    def embeddings(self, rows: Rows) -> NDArray[np.float32]:
        """(len(rows), D); NaN where an image does not decode. Slow: dlib knows some five faces a second on a CPU."""
        found: list[NDArray[np.float32]] = []
        with console.Meter("knowing faces again", len(rows), "faces") as meter:
            for start in range(0, len(rows), 32):
                paths = [self.entries[row].path for row in rows[start : start + 32]]
                found.append(embed(self.embedder, list(read_images(paths, EMBED_SIZE))))
                meter.advance(len(paths))
        return np.concatenate(found)

    @cached_property
    def likeness(self) -> tuple[str, NDArray[np.float32]]:
        """What tells the whole faces from each other, and points (M, D) of them that are near where they are alike.

        That is the embedder, or the pictures' correlation where none works.
        """
        rows = np.flatnonzero(self.whole)
        try:
            return f"face embeddings ({self.embedder.name})", self.embeddings(rows)
        except FaceswapError as error:
            console.warn(f"{error}; faces are compared by the correlation of their pictures")
            return "the correlation of pictures (no embedder)", self.looks.thumbs[rows]


@dataclass(frozen=True)
class Place:
    """The part of a face's metadata that choosing needs: small, so that 100,000 fit."""

    input: int
    source: str
    time: float
    track: int | None
    size: float
    fit: float
    has_landmarks: bool
    side: int

    @classmethod
    def of(cls, meta: FaceMeta) -> "Place":
        x0, y0, x1, y1 = meta.box
        side = float(np.sqrt(max(x1 - x0, 0) * max(y1 - y0, 0)))
        marked = meta.landmarks is not None
        fit = meta.fit if marked else 0.0
        return cls(meta.input, meta.source, meta.time, meta.track, side, fit, marked, meta.size)


def look(image: Picture | None) -> tuple[float, float, int, NDArray[np.float32]]:
    """The numbers of `Looks` for one crop (SIZE, SIZE, 3).

    Sharpness counts the detail that a crop of `SIZE` px can show: a small face that was enlarged has little, however
    well it was in focus, and faces larger than that do not gain. It compares faces under the same light.
    """
    if image is None:
        return np.nan, np.nan, 0, np.zeros(THUMB * THUMB, np.float32)
    x0, y0, x1, y1 = (round(edge * SIZE) for edge in INNER)
    where = np.zeros((1, SIZE, SIZE), np.float32)
    where[:, y0:y1, x0:x1] = 1
    sharpness = float(metrics.laplacian(np.asarray(image[None] / 255, np.float32), where)[0]) * 255**2
    luma = cv2.cvtColor(image[y0:y1, x0:x1], cv2.COLOR_RGB2GRAY).astype(np.float32)
    small = cv2.resize(luma, (9, 8), interpolation=cv2.INTER_AREA)
    bits = np.packbits(small[:, 1:] > small[:, :-1])
    thumb = cv2.resize(luma, (THUMB, THUMB), interpolation=cv2.INTER_AREA).ravel()
    thumb = np.asarray(thumb - thumb.mean(), np.float32)
    length = np.float32(max(float(np.linalg.norm(thumb)), 1e-6))
    return sharpness, float(luma.mean()) / 255, int.from_bytes(bits.tobytes()), thumb / length


@cache
def average_head() -> NDArray[np.float64]:
    """iBUG's 68 points (68, 3) on the average of our rendered heads: mm; x to the image's right, y down, z away."""
    who, calm = heads.Identity(), heads.Expression()
    head = heads.Head(who)
    points = head.locate(head.deform(calm), heads.landmark_template(who, calm))
    return np.asarray(points, np.float64) * [1, -1, -1]


def head_pose(meta: FaceMeta) -> tuple[float, float]:
    """Yaw (positive: the nose to the image's right) and pitch (positive: looks up) in degrees; the roll is taken out.

    From 68 of the landmarks on an average head, or from the five points where there are none: of rendered faces the
    mean error is then 5 degrees of yaw and 6 of pitch, 3 and 3 with true landmarks. NaN if no head fits.
    """
    if meta.landmarks is None:
        turn = metrics.rotation(meta.crop_points(SIZE), SIZE)
    else:
        turn = metrics.rotation(meta.crop_outline(SIZE)[:68], SIZE, average_head())
    yaw, pitch = np.arctan2(turn[2, 0], turn[2, 2]), np.arcsin(np.clip(-turn[2, 1], -1, 1))
    return float(np.degrees(yaw)), float(np.degrees(pitch))


def embed(embedder: Embedder, images: Sequence[Picture | None]) -> NDArray[np.float32]:
    """Embeddings (N, D); NaN for a None."""
    found = embedder([np.zeros((EMBED_SIZE, EMBED_SIZE, 3), np.uint8) if image is None else image for image in images])
    found[[image is None for image in images]] = np.nan
    return found


# ---------------------------------------------------------------- of tracks and of the whole


@dataclass(frozen=True)
class Track:
    """Faces of one person over time."""

    input: int
    source: str
    track: int | None
    faces: int
    size: float  # median, px in the frame
    start: float  # seconds
    end: float

    @property
    def name(self) -> str:
        return "none" if self.track is None else str(self.track)

    @property
    def span(self) -> str:
        return "-".join(f"{int(second) // 60}:{int(second) % 60:02}" for second in (self.start, self.end))


def groups(faces: Faces, by: str) -> list[Rows]:
    """Rows of the faces that share a track, a source or just the set, in their order."""
    found: dict[Any, list[int]] = {}
    for row, place in enumerate(faces.places):
        key = (place.input, place.source, place.track)
        found.setdefault(key[: {"track": 3, "source": 2, "all": 0}[by]], []).append(row)
    return [np.array(rows) for rows in found.values()]


def track_of(faces: Faces, rows: Rows) -> Track:
    """What faces that belong together have in common; the names are the first one's."""
    places = [faces.places[row] for row in rows]
    times, first = [place.time for place in places], places[0]
    size = round(float(np.median(faces.size[rows])), 1)
    return Track(first.input, first.source, first.track, len(rows), size, min(times), max(times))


@dataclass(frozen=True)
class Info:
    """What is in a faceset. An extent is (smallest, median, largest), None if there is nothing to measure."""

    faceset: Path
    faces: int
    skipped: int  # images that are no faces of ours
    damaged: int  # do not decode
    masks: int  # drawn by the user
    bytes: int
    side: list[int]  # px, of the crops
    sources: dict[str, int]
    tracks: list[Track]
    landmarks: int  # faces that have them
    size: list[float] | None  # px in the frame
    fit: list[float] | None
    sharpness: list[float] | None
    brightness: list[float] | None
    bins: list[int]  # degrees, edges
    yaw: list[int]
    pitch: list[int]


def info(path: Path) -> Info:
    """Measure a faceset."""
    faceset = Faceset.open(path)
    faces = Faces(faceset)
    marked = np.array([place.has_landmarks for place in faces.places])
    yaw, pitch = (np.histogram(np.clip(of[np.isfinite(of)], -90, 90), BINS)[0].tolist() for of in faces.pose.T)
    held = pack.opened(path) if pack.is_pack(path) else None
    return Info(
        faceset=path,
        faces=len(faces),
        skipped=len(faceset.skipped),
        damaged=int((~faces.whole).sum()),
        masks=sum(own_mask(entry.path) is not None for entry in faces.entries),
        bytes=path.stat().st_size if held else sum(entry.path.stat().st_size for entry in faces.entries),
        side=sorted({place.side for place in faces.places}),
        sources=dict(Counter(place.source for place in faces.places).most_common()),
        tracks=[track_of(faces, rows) for rows in groups(faces, "track")],
        landmarks=int(marked.sum()),
        size=_extent(faces.size),
        fit=_extent(faces.fit[marked]),
        sharpness=_extent(faces.looks.sharpness),
        brightness=_extent(faces.looks.brightness),
        bins=BINS.tolist(),
        yaw=yaw,
        pitch=pitch,
    )


def _extent(values: Numbers) -> list[float] | None:
    sound = values[np.isfinite(values)]
    return [round(float(v), 4) for v in (sound.min(), np.median(sound), sound.max())] if len(sound) else None


def info_text(found: Info) -> str:
    """An `Info` as lines, with histograms."""
    many = f"{found.skipped} other images, {found.damaged} damaged, {found.masks} own masks"
    sides = ", ".join(map(str, found.side))
    lines = [f"{found.faceset}: {found.faces} faces of {sides} px, {found.bytes / 1e6:.1f} MB; {many}"]
    lines += [f"{count:8} from {source}" for source, count in found.sources.items()]
    extents = {"size in the frame, px": found.size, "sharpness": found.sharpness, "brightness": found.brightness}
    extents[f"fit of the landmarks ({found.landmarks} faces)"] = found.fit
    lines += ["", f"{'':36}{'smallest':>10}{'median':>10}{'largest':>10}"]
    lines += [
        f"{name:36}" + "".join(f"{value:10.4g}" for value in extent) for name, extent in extents.items() if extent
    ]
    if any(track.track is not None for track in found.tracks):
        lines += ["", f"{'track':>8}{'faces':>8}{'size':>8}  time"]
        lines += [f"{t.name:>8}{t.faces:8}{t.size:8.0f}  {t.span} of {t.source}" for t in found.tracks]
    lines += ["", f"{'degrees':>12}  {'yaw':28}  pitch (positive: to the image's right; up)"]
    most = max(*found.yaw, *found.pitch, 1)
    for low, high, yaw, pitch in zip(found.bins, found.bins[1:], found.yaw, found.pitch, strict=False):
        bars = [f"{_bar(20 * number / most)} {number or ''}" for number in (yaw, pitch)]
        lines.append(f"{low:5} to {high:3}  {bars[0]:28}  {bars[1]}".rstrip())
    return "\n".join(lines)


def _bar(length: float) -> str:
    """A bar in eighths of a character; what is there is seen."""
    eighths = max(round(length * 8), int(length > 0))
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
