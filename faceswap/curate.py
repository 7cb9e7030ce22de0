"""Look through a faceset and choose from it: figures, order, contact sheets, what to leave out, packs.

Nothing is ever deleted. What `filter_faces` takes out moves to `removed/REASON/` inside the faceset, where a reader of
facesets does not look; moving a file back brings the face back. A face's own mask, `NAME.mask.png`, goes wherever its
face goes. A sort key is one function in `SORTS`, a reason to take a face out one in `REASONS`.

Convention: one number per face in arrays (N,) in the order of the faceset; NaN where an image does not decode.
"""

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from faceswap import console, files, heads, metrics, pack
from faceswap.embedding import Embedder, distances, find_embedder
from faceswap.errors import FacesetError, FaceswapError, UsageError
from faceswap.faceset import (
    SUFFIXES,
    Entry,
    FaceMeta,
    Faceset,
    mask_path,
    open_all,
    read_bytes,
    read_images,
    read_meta,
    refuse_foreign,
)

Numbers = NDArray[np.float64]
Mask = NDArray[np.bool_]
Order = NDArray[np.int64]
Picture = NDArray[np.uint8]
T = TypeVar("T")

SIZE = 128  # px, at which faces are looked at
INNER = (0.28, 0.28, 0.70, 0.78)  # x0, y0, x1, y1 of brows to mouth, in units of the side
THUMB = 16  # px, side of the small pictures whose correlation is likeness where there is no embedder
EMBED_SIZE = 192  # px, for the embedder
CHAIN = 4096  # faces that one chain of nearest neighbours orders: its time grows with the square
ALIKE, AS_BRIGHT = 0.95, 0.04  # of near duplicates: least correlation, and greatest difference of brightness
BLOCK = 512  # faces held against all others at once
CORE = 1000  # faces that stand for a set or a person

PREFIX = re.compile(r"\d{5,}--")  # what `sort` puts before a name
BINS = np.arange(-90, 91, 15)  # degrees, of the histograms of yaw and pitch
REMOVED = "removed"

CELL, COLUMNS, ROWS = 112, 12, 40  # of a contact sheet: px, faces in a line, lines on a page
LABEL, NARROWEST = 26, 6  # px; cells that a label needs
NO_EMBEDDER = "no face embedder works here; pip install 'faceswap[identity]'"


# ---------------------------------------------------------------- measuring


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
        self.likeness = "nothing yet"  # what told faces from each other
        self._embedder: Embedder | None = None

    def __len__(self) -> int:
        return len(self.entries)

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
        images = console.track(self._images(SIZE), "looking at faces", len(self), "faces")
        found = [look(image) for image in images]
        sharpness, brightness, hashes, thumbs = zip(*found, strict=True)
        return Looks(np.array(sharpness), np.array(brightness), np.array(hashes, np.uint64), np.array(thumbs))

    @property
    def whole(self) -> Mask:
        """Which images decode."""
        return ~np.isnan(self.looks.sharpness)

    @property
    def embedder(self) -> Embedder:
        """`FaceswapError` if none works."""
        self._embedder = self._embedder or find_embedder()
        if self._embedder is None:
            raise FaceswapError(NO_EMBEDDER)
        return self._embedder

    def embeddings(self, rows: Order) -> NDArray[np.float32]:
        """(len(rows), D); NaN where an image does not decode. Slow: dlib knows some five faces a second on a CPU."""
        found: list[NDArray[np.float32]] = []
        with console.Meter("knowing faces again", len(rows), "faces") as meter:
            for start in range(0, len(rows), 32):
                paths = [self.entries[row].path for row in rows[start : start + 32]]
                found.append(embed(self.embedder, list(read_images(paths, EMBED_SIZE))))
                meter.advance(len(paths))
        return np.concatenate(found)

    def _images(self, size: int) -> Iterator[Picture | None]:
        return read_images([entry.path for entry in self.entries], size)


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


def _average_head() -> NDArray[np.float64]:
    """iBUG's 68 points (68, 3) on the average of our rendered heads: mm; x to the image's right, y down, z away."""
    who, calm = heads.Identity(), heads.Expression()
    head = heads.Head(who)
    points = head.locate(head.deform(calm), heads.landmark_template(who, calm))
    return np.asarray(points, np.float64) * [1, -1, -1]


_HEAD: list[NDArray[np.float64]] = []  # made when first needed


def head_pose(meta: FaceMeta) -> tuple[float, float]:
    """Yaw (positive: the nose to the image's right) and pitch (positive: looks up) in degrees; the roll is taken out.

    From 68 of the landmarks on an average head, or from the five points where there are none: of rendered faces the
    mean error is then 5 degrees of yaw and 6 of pitch, 3 and 3 with true landmarks. NaN if no head fits.
    """
    if meta.landmarks is None:
        turn = metrics.rotation(meta.crop_points(SIZE), SIZE)
    else:
        turn = _rotation(meta.crop_outline(SIZE)[:68])
    if not np.isfinite(turn).all():
        return np.nan, np.nan
    return float(np.degrees(np.arctan2(turn[2, 0], turn[2, 2]))), float(
        np.degrees(np.arcsin(np.clip(-turn[2, 1], -1, 1)))
    )


def _rotation(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Like `metrics.rotation`, for 68 points."""
    if not _HEAD:
        _HEAD.append(_average_head())
    middle, focal = (SIZE - 1) / 2, metrics.FOCAL * SIZE
    camera = np.array([[focal, 0, middle], [0, focal, middle], [0, 0, 1]])
    found, turn, _ = cv2.solvePnP(_HEAD[0], points, camera, None, flags=cv2.SOLVEPNP_SQPNP)
    return np.asarray(cv2.Rodrigues(turn)[0]) if found else np.full((3, 3), np.nan)


def embed(embedder: Embedder, images: Sequence[Picture | None]) -> NDArray[np.float32]:
    """Embeddings (N, D); NaN for a None."""
    found = embedder([np.zeros((EMBED_SIZE, EMBED_SIZE, 3), np.uint8) if image is None else image for image in images])
    found[[image is None for image in images]] = np.nan
    return found


# ---------------------------------------------------------------- info


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


@dataclass(frozen=True)
class Info:
    """What is in a faceset. A spread is (smallest, median, largest), None if there is nothing to measure."""

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
        tracks=[_track(faces, rows) for rows in groups(faces, "track")],
        landmarks=int(marked.sum()),
        size=_spread(faces.size),
        fit=_spread(faces.fit[marked]),
        sharpness=_spread(faces.looks.sharpness),
        brightness=_spread(faces.looks.brightness),
        bins=BINS.tolist(),
        yaw=yaw,
        pitch=pitch,
    )


def _spread(values: Numbers) -> list[float] | None:
    sound = values[np.isfinite(values)]
    return [round(float(v), 4) for v in (sound.min(), np.median(sound), sound.max())] if len(sound) else None


def _track(faces: Faces, rows: Order) -> Track:
    places = [faces.places[row] for row in rows]
    times, first = [place.time for place in places], places[0]
    size = round(float(np.median(faces.size[rows])), 1)
    return Track(first.input, first.source, first.track, len(rows), size, min(times), max(times))


def info_text(found: Info) -> str:
    """An `Info` as lines, with histograms."""
    many = f"{found.skipped} other images, {found.damaged} damaged, {found.masks} own masks"
    sides = ", ".join(map(str, found.side))
    lines = [f"{found.faceset}: {found.faces} faces of {sides} px, {found.bytes / 1e6:.1f} MB; {many}"]
    lines += [f"{count:8} from {source}" for source, count in found.sources.items()]
    spreads = {"size in the frame, px": found.size, "sharpness": found.sharpness, "brightness": found.brightness}
    spreads[f"fit of {found.landmarks} landmarks"] = found.fit
    lines += ["", f"{'':28}{'smallest':>10}{'median':>10}{'largest':>10}"]
    lines += [
        f"{name:28}" + "".join(f"{value:10.4g}" for value in spread) for name, spread in spreads.items() if spread
    ]
    if any(track.track is not None for track in found.tracks):
        lines += ["", f"{'track':>8}{'faces':>8}{'size':>8}  time"]
        lines += [f"{named(t.track):>8}{t.faces:8}{t.size:8.0f}  {_span(t)} of {t.source}" for t in found.tracks]
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


def named(track: int | None) -> str:
    return "none" if track is None else str(track)


def _span(track: Track) -> str:
    return "-".join(f"{int(second) // 60}:{int(second) % 60:02}" for second in (track.start, track.end))


# ---------------------------------------------------------------- sorting


@dataclass(frozen=True)
class Sorted:
    """What a sort did."""

    faceset: Path
    by: str
    means: str  # what was compared
    faces: int
    renamed: int
    damaged: int  # sorted to the end


def sort_faces(folder: Path, by: str) -> Sorted:
    """Rename the faces so that a file browser shows them in order: `00042--NAME`; by time the names come back."""
    _refuse_pack(folder, "sorted")
    faceset = open_all([folder])[0]
    faces = Faces(faceset)
    order = SORTS[by].order(faces)
    originals = _originals([entry.path for entry in faces.entries])
    width = max(5, len(str(len(order) - 1)))
    moves: list[tuple[Path, Path]] = []
    for place, row in enumerate(order):
        path = faces.entries[row].path
        name = originals[row] if by == "time" else f"{place:0{width}}--{originals[row]}"
        moves.append((path, path.with_name(name)))
    renamed = rename(moves)
    damaged = 0 if by in UNSEEN else int((~faces.whole).sum())
    means = SORTS[by].means
    if by == "similarity":
        means += f", by {faces.likeness}"
    return Sorted(folder, by, means, len(faces), renamed, damaged)


def _originals(paths: Sequence[Path]) -> list[str]:
    """The names without what `sort` put before them; a second face of one name gets a number."""
    taken: set[str] = set()
    found = []
    for path in paths:
        plain = Path(PREFIX.sub("", path.name, count=1))
        numbered = (f"{plain.stem}-{number}{plain.suffix}" for number in count(2))
        # the stem alone must differ too, since a mask is named by it
        name = next(n for n in chain([plain.name], numbered) if Path(n).stem not in taken)
        taken.add(Path(name).stem)
        found.append(name)
    return found


def rename(moves: Sequence[tuple[Path, Path]]) -> int:
    """Rename faces with their masks; how many got another name.

    One file at a time, each in one step onto a name that is free: killed at any point, every face is there under its
    old name or its new one.
    """
    waiting = {old: new for old, new in moves if old != new}
    renamed = len(waiting)
    while waiting:
        ready = [(old, new) for old, new in waiting.items() if new not in waiting and not _stem_waits(new, waiting)]
        if not ready:  # names go round in a circle: one steps aside
            old, new = next(iter(waiting.items()))
            aside = free_name(old.with_name(f"aside-{old.name}"))
            _move(old, aside)
            del waiting[old]
            waiting[aside] = new
            continue
        for old, new in ready:
            _move(old, free_name(new))
            del waiting[old]
    return renamed


def _stem_waits(new: Path, waiting: dict[Path, Path]) -> bool:
    """Whether a face that still waits has the mask's name of `new`."""
    return any(new.with_suffix(suffix) in waiting for suffix in SUFFIXES if suffix != new.suffix)


def _move(face: Path, onto: Path) -> None:
    """Move a face. Its mask is there under the new name before, and under the old one until after."""
    mask = own_mask(face)
    if mask is not None:
        shutil.copy2(mask, mask_path(onto))
    face.rename(onto)
    if mask is not None:
        mask.unlink()


def own_mask(face: Path) -> Path | None:
    """The user's own mask of a face, None if there is none."""
    path = mask_path(face)
    if pack.is_pack(path.parent):
        return path if path.name in pack.opened(path.parent) else None
    return path if path.is_file() else None


def free_name(path: Path) -> Path:
    """`path`, or with the first number that makes it, and its mask, a name that nothing has."""
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return next(p for p in chain([path], numbered) if not (p.exists() or mask_path(p).exists()))


def _refuse_pack(path: Path, done: str) -> None:
    if pack.is_pack(path):
        raise UsageError(f"{path}: a pack cannot be {done}; faceswap faceset unpack it first, or copy what you want")


def chained(points: NDArray[np.float32]) -> Order:
    """An order (N,) in which neighbours are alike.

    From one end of the main axis on, always to the nearest face that is left. Beyond `CHAIN` faces they are first cut
    into pieces along that axis, so that 100,000 need a minute and no matrix of distances.
    """
    if not len(points):
        return np.empty(0, np.int64)
    centred = points - points.mean(0)
    axis = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    along = np.argsort(centred @ axis, kind="stable")
    found: list[int] = []
    for piece in np.array_split(along, -(-len(along) // CHAIN)):
        left = points[piece]
        half = (left * left).sum(1) / 2
        at = left[0] if not found else points[found[-1]]
        for _ in range(len(piece)):
            near = int(np.argmin(half - left @ at))  # half the squared distance, less what is the same for all
            half[near] = np.inf
            at = left[near]
            found.append(int(piece[near]))
    return np.array(found, np.int64)


def _ascending(values: Numbers) -> Order:
    return np.argsort(values, kind="stable")  # NaN comes last


def by_blur(faces: Faces) -> Order:
    return _ascending(-faces.looks.sharpness)


def by_yaw(faces: Faces) -> Order:
    return _ascending(faces.pose[:, 0])


def by_pitch(faces: Faces) -> Order:
    return _ascending(faces.pose[:, 1])


def by_size(faces: Faces) -> Order:
    return _ascending(-faces.size)


def by_brightness(faces: Faces) -> Order:
    return _ascending(faces.looks.brightness)


def by_time(faces: Faces) -> Order:
    return np.arange(len(faces))


def by_similarity(faces: Faces) -> Order:
    """By face embedding, or by the pictures' correlation where no embedder works."""
    whole = np.flatnonzero(faces.whole)
    try:
        faces.likeness = f"face embeddings ({faces.embedder.name})"
        points = faces.embeddings(whole)
    except FaceswapError as error:
        console.warn(f"{error}; faces are compared by the correlation of their pictures")
        faces.likeness, points = "the correlation of pictures (no embedder)", faces.looks.thumbs[whole]
    return np.concatenate([whole[chained(points)], np.flatnonzero(~faces.whole)])


# ---------------------------------------------------------------- filtering


@dataclass(frozen=True)
class Limits:
    """What makes a face leave; None or empty asks for nothing."""

    blur: float | None = None  # lowest sharpness, see `look`
    min_size: float | None = None  # px in the frame
    fit: float | None = None  # lowest fit of the landmarks
    duplicates: int | None = None  # most bits of 64 in which a near duplicate's hash differs
    person: bool = False  # whoever is not the references' person
    references: tuple[Path, ...] = ()  # face images or facesets; none: the largest group of the set itself
    tracks: tuple[int, ...] = ()  # that stay


@dataclass(frozen=True)
class Filtered:
    """What a filter did, or would do."""

    faceset: Path
    kept: int
    removed: dict[str, list[str]]  # by reason, names of files
    notes: list[str]  # how a person was told from others
    folder: Path  # where they went
    dry_run: bool


def filter_faces(folder: Path, limits: Limits, *, dry_run: bool = False) -> Filtered:
    """Move the faces that `limits` exclude to `removed/REASON/` inside the faceset.

    `FacesetError`, and nothing moves, if no face would be left.
    """
    _refuse_pack(folder, "filtered")
    if limits == Limits():
        raise UsageError("expected something to filter by, found nothing; add --blur, --min-size, --fit, ...")
    faces = Faces(open_all([folder])[0])
    reasons, notes = judge(faces, limits)
    place = folder / REMOVED
    removed: dict[str, list[str]] = {}
    for reason, rows in reasons.items():
        paths = [faces.entries[row].path for row in np.flatnonzero(rows)]
        removed[reason] = [path.name for path in paths]
        if dry_run or not paths:
            continue
        (place / reason).mkdir(parents=True, exist_ok=True)
        for path in paths:
            _move(path, free_name(place / reason / path.name))
    kept = len(faces) - sum(map(len, removed.values()))
    return Filtered(folder, kept, removed, notes, place, dry_run)


def judge(faces: Faces, limits: Limits) -> tuple[dict[str, Mask], list[str]]:
    """Which faces leave, by the first reason that applies, and notes on how that was found.

    `FacesetError` if none would be left.
    """
    _check_references(limits)
    left = np.ones(len(faces), bool)
    found: dict[str, Mask] = {}
    notes: list[str] = []
    for name, excluded in REASONS.items():
        rows = excluded(faces, limits, left, notes)
        if rows is not None:
            found[name] = rows & left
            left &= ~rows
        if not left.any():
            break
    if not left.any():
        most = ", ".join(f"{rows.sum()} {name}" for name, rows in found.items() if rows.any())
        raise FacesetError(f"{faces.folder}: none of {len(faces)} faces would be left ({most}); loosen the limits")
    return found, notes


Excluded = Mask | None  # None: not asked for


def damaged(faces: Faces, limits: Limits, left: Mask, notes: list[str]) -> Excluded:
    """Images that do not decode, where images are looked at."""
    seen = limits.blur is not None or limits.duplicates is not None or limits.person
    return ~faces.whole if seen else None


def other_track(faces: Faces, limits: Limits, left: Mask, notes: list[str]) -> Excluded:
    if not limits.tracks:
        return None
    there = {place.track for place in faces.places}
    missing = [track for track in limits.tracks if track not in there]
    if missing:
        known = ", ".join(map(str, sorted(t for t in there if t is not None))) or "none"
        raise UsageError(f"{faces.folder}: has no track {missing[0]}, but {known}; look with faceset sheet")
    return np.array([place.track not in limits.tracks for place in faces.places])


def too_small(faces: Faces, limits: Limits, left: Mask, notes: list[str]) -> Excluded:
    return None if limits.min_size is None else faces.size < limits.min_size


def bad_fit(faces: Faces, limits: Limits, left: Mask, notes: list[str]) -> Excluded:
    """Landmarks that fit badly, or none at all."""
    if limits.fit is None:
        return None
    if not any(place.has_landmarks for place in faces.places):
        raise FacesetError(f"{faces.folder}: --fit needs landmarks, no face has any; extract the faces again")
    return faces.fit < limits.fit


def too_blurred(faces: Faces, limits: Limits, left: Mask, notes: list[str]) -> Excluded:
    return None if limits.blur is None else faces.looks.sharpness < limits.blur


def other_person(faces: Faces, limits: Limits, left: Mask, notes: list[str]) -> Excluded:
    """Faces that no known face of the person is near to.

    Near is the embedder's `same` for the largest group, that with `other` half way for references, which are few.
    """
    if not limits.person:
        return None
    try:
        embedder = faces.embedder
    except FaceswapError as error:
        raise FaceswapError(f"--person: {error}, or choose with --track N (look with faceset sheet)") from None
    known = _known(embedder, limits.references)
    rows = np.flatnonzero(left)
    embeddings = faces.embeddings(rows)
    if known is None:
        known, of, line = _largest_group(embeddings, embedder.same), "the set's largest group", embedder.same
    else:
        of, line = "the references", (embedder.same + embedder.other) / 2
    notes.append(f"other person: further than {line:.2f} from all of {len(known)} faces of {of} ({embedder.name})")
    blocks = (embeddings[start : start + 4096] for start in range(0, len(rows), 4096))
    goes = np.zeros(len(faces), bool)
    goes[rows] = np.concatenate([distances(block, known).min(1) > line for block in blocks])
    return goes


def near_duplicates(faces: Faces, limits: Limits, left: Mask, notes: list[str]) -> Excluded:
    """All but the sharpest of those alike.

    From the sharpest on, a face goes if one that stays is like it: faces that lead over to each other in small steps,
    as in slow footage, are thinned out and not taken for one.
    """
    if limits.duplicates is None:
        return None
    rows = np.flatnonzero(left)
    rows = rows[_ascending(-faces.looks.sharpness[rows])]
    goes = np.zeros(len(faces), bool)
    goes[repeats(faces.looks, rows, limits.duplicates)] = True
    return goes


def repeats(looks: Looks, rows: Order, bits: int) -> Order:
    """Those of `rows` that are like an earlier one that is itself no repeat: all pairs are looked at, in blocks.

    Alike are faces whose hashes differ in at most `bits`, whose pictures correlate by `ALIKE`, and whose brightness
    differs by at most `AS_BRIGHT`: the hash finds them fast, the others keep two people of one pose apart.
    """
    kept = np.empty(0, np.int64)
    found: list[int] = []
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        near = np.zeros(len(block), bool)
        for first in range(0, len(kept), 8192):
            near |= _alike(looks, block, kept[first : first + 8192], bits)
        fresh: list[int] = []
        for i in np.flatnonzero(~near):
            near[i] = _alike(looks, block[i : i + 1], block[fresh], bits)[0]
            if not near[i]:
                fresh.append(int(i))
        kept = np.concatenate([kept, block[fresh]])
        found += block[near].tolist()
    return np.array(found, np.int64)


def _alike(looks: Looks, some: Order, others: Order, bits: int) -> Mask:
    """Which of `some` are like any of `others`."""
    between = np.bitwise_count(looks.hashes[some, None] ^ looks.hashes[None, others])
    first, second = np.nonzero(between <= bits)
    a, b = some[first], others[second]
    dim = np.abs(looks.brightness[a] - looks.brightness[b]) <= AS_BRIGHT
    found = np.zeros(len(some), bool)
    for at in np.array_split(np.flatnonzero(dim), len(a) // 65536 + 1):
        alike = (looks.thumbs[a[at]] * looks.thumbs[b[at]]).sum(1) >= ALIKE
        found[first[at[alike]]] = True
    return found


def _check_references(limits: Limits) -> None:
    if limits.references and not limits.person:
        raise UsageError("--reference belongs to --person")


def _known(embedder: Embedder, references: Sequence[Path]) -> NDArray[np.float32] | None:
    """Embeddings of the references, of at most `CORE`; None for none. `FacesetError` for what is no face of ours."""
    if not references:
        return None
    paths: list[Path] = []
    for path in references:
        if path.is_dir() or pack.is_pack(path):
            paths += [entry.path for entry in Faceset.open(path).entries]
        elif path.is_file() and read_meta(path) is not None:
            paths.append(path)
        else:
            raise FacesetError(f"{path}: expected an extracted face or a faceset; faceswap extract {path.name} first")
    images = list(read_images(spread(paths, CORE), EMBED_SIZE))
    if any(image is None for image in images):
        raise FacesetError(f"{paths[images.index(None)]}: the reference does not decode; choose another")
    return embed(embedder, images)


def _largest_group(embeddings: NDArray[np.float32], same: float) -> NDArray[np.float32]:
    """Of at most `CORE` of the faces, the largest group that steps of at most `same` lead through."""
    sound = embeddings[np.isfinite(embeddings).all(1)]
    some = sound[spread(range(len(sound)), CORE)]
    group = connected_components(distances(some, some) <= same)[1]
    return np.asarray(some[group == np.bincount(group).argmax()])


# ---------------------------------------------------------------- contact sheets


@dataclass(frozen=True)
class Sheet:
    """The pages that were written."""

    pages: list[Path]
    groups: list[Track]


def sheet(path: Path, out: Path, *, by: str = "track", shown: int = COLUMNS, overwrite: bool = False) -> Sheet:
    """Write contact sheets of a faceset: for each group, evenly spread over its time, `shown` faces and a label.

    The groups with the most faces come first. What does not fit on one page goes on in `NAME-2.png` and so on.
    """
    if out.suffix.lower() != ".png":
        raise UsageError(f"{out}: expected NAME.png, found {out.suffix or 'no suffix'}; choose another -o")
    faces = Faces(open_all([path])[0])
    found = sorted(groups(faces, by), key=len, reverse=True)
    pages = _pages(found, shown)
    names = [out, *(out.with_stem(f"{out.stem}-{number}") for number in range(2, len(pages) + 1))]
    for name in names:
        files.refuse_existing(name, overwrite)
    for name, rows_of_page in zip(names, console.track(pages, "sheets", len(pages), "pages"), strict=True):
        page = np.concatenate([_strip(faces, rows, by, shown) for rows in rows_of_page])
        with files.whole_file(name, overwrite=overwrite) as partial:
            partial.write_bytes(cv2.imencode(".png", cv2.cvtColor(page, cv2.COLOR_RGB2BGR))[1].tobytes())
    return Sheet(names, [_track(faces, rows) for rows in found])


def groups(faces: Faces, by: str) -> list[Order]:
    """Rows of the faces that share a track, a source or just the set, in their order."""
    found: dict[Any, list[int]] = {}
    for row, place in enumerate(faces.places):
        key = (place.input, place.source, place.track)
        found.setdefault(key[: {"track": 3, "source": 2, "all": 0}[by]], []).append(row)
    return [np.array(rows) for rows in found.values()]


def _strip(faces: Faces, rows: Order, by: str, shown: int) -> Picture:
    """One group: a label, and lines of faces below it."""
    chosen = spread(rows.tolist(), shown)
    images = list(read_images([faces.entries[row].path for row in chosen], CELL))
    lines, columns = -(-len(images) // COLUMNS), min(max(shown, NARROWEST), COLUMNS)
    strip = np.full((LABEL + lines * CELL, columns * CELL, 3), 24, np.uint8)
    for i, image in enumerate(images):
        y, x = LABEL + i // COLUMNS * CELL, i % COLUMNS * CELL
        if image is None:
            _write(strip, "damaged", (x + 8, y + CELL // 2), 0.5)
        else:
            strip[y : y + CELL, x : x + CELL] = image
    about = _track(faces, rows)
    words = {"track": f"track {named(about.track)}   ", "source": "", "all": ""}[by]
    source = "" if by == "all" else f"   {_span(about)} of {about.source}"
    _write(
        strip, f"{words}{about.faces} face{(about.faces > 1) * 's'}   {about.size:.0f} px{source}", (6, LABEL - 8), 0.55
    )
    return strip


def _write(image: Picture, words: str, at: tuple[int, int], scale: float) -> None:
    """White text; what the font of OpenCV lacks becomes a question mark."""
    plain = words.encode("ascii", "replace").decode()
    cv2.putText(image, plain, at, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), 1, cv2.LINE_AA)


def _pages(found: Sequence[Order], shown: int) -> list[list[Order]]:
    """The groups page by page: as many lines of faces as fit, a group is not torn."""
    pages: list[list[Order]] = []
    free = 0
    for rows in found:
        lines = -(-min(len(rows), shown) // COLUMNS)
        if lines > free:
            pages.append([])
            free = max(ROWS, lines)
        pages[-1].append(rows)
        free -= lines
    return pages


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, evenly spread."""
    return [items[round(i)] for i in np.linspace(0, len(items) - 1, most)] if len(items) > most else list(items)


# ---------------------------------------------------------------- copies and packs


@dataclass(frozen=True)
class Copied:
    """What a copy, a pack or an unpacking made."""

    out: Path
    faces: int
    masks: int
    bytes: int
    notes: list[str]


def copy(
    path: Path,
    out: Path,
    limits: Limits,
    *,
    every: int = 1,  # of the faces that the limits leave
    most: int | None = None,  # evenly spread
    overwrite: bool = False,  # replaces a faceset, and nothing but a faceset
) -> Copied:
    """Copy chosen faces into the new faceset `out`, which appears when it is complete."""
    _check_folder(path, out, overwrite)
    faces = Faces(open_all([path])[0])
    reasons, notes = judge(faces, limits)
    left = ~np.logical_or.reduce([np.zeros(len(faces), bool), *reasons.values()])
    rows = np.flatnonzero(left)[::every].tolist()
    chosen = [faces.entries[row] for row in (rows if most is None else spread(rows, most))]
    return _write_folder(chosen, out, overwrite, notes)


def unpack_faces(path: Path, out: Path, *, overwrite: bool = False) -> Copied:
    """The faces of a pack as a folder again, byte by byte as they were."""
    if not pack.is_pack(path):
        raise UsageError(f"{path}: expected a pack, NAME{pack.SUFFIX}; a folder needs no unpacking")
    _check_folder(path, out, overwrite)
    return _write_folder(Faceset.open(path).entries, out, overwrite, [])


def pack_faces(path: Path, out: Path, *, overwrite: bool = False) -> Copied:
    """Put a faceset into one file that opens wherever a faceset does."""
    pack.check_name(out)
    files.refuse_same(out, [path])
    files.refuse_existing(out, overwrite)
    faceset = open_all([path])[0]
    others = _left_out(faceset)
    if others:
        console.warn(f"{path}: {len(others)} files and folders that are no faces are not packed, as {others[0].name}")
    counts = Counter[str]()

    def members() -> Iterator[tuple[str, str | None, bytes]]:
        for entry, name, content in _contents(faceset.entries, "packing"):
            counts.update(faces=int(entry is not None), masks=int(entry is None), bytes=len(content))
            yield name, entry.key if entry else None, content

    pack.write(out, members(), overwrite=overwrite)
    return Copied(out, counts["faces"], counts["masks"], counts["bytes"], [])


def _check_folder(path: Path, out: Path, overwrite: bool) -> None:
    files.refuse_same(out, [path])
    files.refuse_existing(out, overwrite)
    if out.exists():
        refuse_foreign(out)


def _left_out(faceset: Faceset) -> list[Path]:
    """What lies in a faceset's folder and is neither a face nor a face's mask."""
    if pack.is_pack(faceset.folder):
        return []
    ours = {path for entry in faceset.entries for path in (entry.path, mask_path(entry.path))}
    return sorted(path for path in faceset.folder.iterdir() if path not in ours and path.name[0] != ".")


def _contents(entries: Sequence[Entry], label: str) -> Iterator[tuple[Entry | None, str, bytes]]:
    """Entry, name and bytes of all files of the faces; the entry is None for a mask."""
    for entry in console.track(entries, label, len(entries), "faces"):
        yield entry, entry.path.name, read_bytes(entry.path)
        mask = own_mask(entry.path)
        if mask is not None:
            yield None, mask.name, read_bytes(mask)


def _write_folder(entries: Sequence[Entry], out: Path, overwrite: bool, notes: list[str]) -> Copied:
    counts = Counter[str]()
    with files.whole_folder(out, overwrite=overwrite) as folder:
        for entry, name, content in _contents(entries, f"writing {out.name}"):
            with (folder / name).open("xb") as file:
                file.write(content)
            counts.update(faces=int(entry is not None), masks=int(entry is None), bytes=len(content))
    return Copied(out, counts["faces"], counts["masks"], counts["bytes"], notes)


# ---------------------------------------------------------------- tables


@dataclass(frozen=True)
class SortKey:
    """An order, and what it means."""

    order: Callable[[Faces], Order]
    means: str


SORTS: dict[str, SortKey] = {
    "blur": SortKey(by_blur, "sharpest first, by the variance of the Laplacian"),
    "yaw": SortKey(by_yaw, "from the image's left to its right"),
    "pitch": SortKey(by_pitch, "from looking down to looking up"),
    "size": SortKey(by_size, "largest in the frame first"),
    "brightness": SortKey(by_brightness, "darkest first"),
    "similarity": SortKey(by_similarity, "the most alike beside each other"),
    "time": SortKey(by_time, "as in the footage, under the names that extract gave"),
}
UNSEEN = ("yaw", "pitch", "size", "time")  # keys that look at no image

REASONS: dict[str, Callable[[Faces, Limits, Mask, list[str]], Excluded]] = {  # the folders' names, in this order
    "damaged": damaged,
    "track": other_track,
    "small": too_small,
    "fit": bad_fit,
    "blurred": too_blurred,
    "person": other_person,
    "duplicate": near_duplicates,  # last: the sharpest of those that are left stays
}
