"""Sets of faces that other tools made, into a faceset of ours.

Known are DeepFaceLab's aligned JPEGs and `faceset.pak`, the face PNGs of deepfakes/faceswap, FFHQ as a folder or a zip,
and any folder or zip of images with a face in each. A kind is one reader, listed in `KINDS` at the bottom.

Nothing that comes with a set is ever run: DeepFaceLab's pickled metadata goes through `faceswap.pickled`, which has
no way to call anything, images and texts are bounded before they are unpacked, names of files are never used as paths.

Convention: points are (x, y) in pixels of the image file, pixel centres at integers.
"""

import ast
import json
import math
import os
import re
import struct
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from faceswap import align, console, detectors, files, pickled
from faceswap.config import ExtractRecipe
from faceswap.errors import FacesetError, UsageError
from faceswap.faceset import JPEG_SIGNATURE, KEYWORD, PNG_SIGNATURE, FaceMeta, read_meta_of, refuse_foreign, write_face
from faceswap.landmarks import Landmarker, Landmarks, five

Image = NDArray[np.uint8]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
AT_ONCE, AT_ONCE_PIXELS = 32, 40_000_000  # images, and pixels of them, that are in memory together
LOOKED_AT = 20  # images by which a kind is recognised
MAX_FILE = 64 << 20  # bytes of one image; larger ones are no face images
MAX_PIXELS = 100_000_000  # of one image
MAX_TEXT = 4 << 20  # bytes of metadata in one PNG
MAX_LIST = 1 << 30  # bytes of the list in a faceset.pak
MAX_ENTRY = 1 << 20  # characters of one image's entry in FFHQ's JSON
CHUNK = 1 << 16  # characters of it that are read together

FFHQ_JSON = "ffhq-dataset-v2.json"
FFHQ_SIDE = 1024  # px, in which FFHQ's landmarks are told
FFHQ_FOLDERS = ("images1024x1024/", "thumbnails128x128/")  # of a whole copy: the first that is there counts
# Where FFHQ's framing puts the five points, of a mean face: in facexlib's template of 512 px, brought to FFHQ_SIDE.
FFHQ_POINTS = 0.5 + 2 * np.array(
    [
        [192.98138, 239.94708],
        [318.90277, 240.1936],
        [256.63416, 314.01935],
        [201.26117, 371.41043],
        [313.08905, 371.15118],
    ]
)


@dataclass(frozen=True)
class Report:
    """What was imported."""

    faceset: Path
    faces: int
    skipped: dict[str, int]  # images left out, by the reason
    kinds: list[str]  # of each input
    seconds: float


@dataclass(frozen=True)
class Found:
    """An image of a foreign set, as it lies there, and what the set says of it."""

    name: str  # of the file
    coded: bytes = b""
    source: str = ""  # file that the face was taken from
    frame: int = 0
    face: int = 0
    points: NDArray[np.float64] | None = None  # the five points (5, 2); None: not told
    teller: str = ""  # who tells them
    side: int | None = None  # px of the image in which they are told; None: its own
    trouble: str = ""  # why it is left out; damage shows where it is decoded


@dataclass(frozen=True)
class Shelf:
    """The image files of an input, wherever they lie, sorted so that 2 comes before 10."""

    path: Path
    names: Sequence[str]
    load: Callable[[int], bytes]
    told: dict[int, Any] = field(default_factory=dict)  # metadata that lie beside the images

    def read(self, number: int) -> bytes:
        """The bytes of an image, none if they cannot be read; `FacesetError` if they are too many."""
        try:
            coded = self.load(number)
        except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
            return b""  # gone, damaged or encrypted
        if len(coded) > MAX_FILE:
            raise FacesetError(
                f"{self.path}: {self.names[number]} unpacks to more than {MAX_FILE >> 20} MiB, too much for an image "
                "of a face; take it out and import again"
            )
        return coded


class Kind(NamedTuple):
    """A kind of foreign set: what messages call it, how it is recognised, how it is read."""

    title: str
    shows: Callable[[Shelf, Sequence[bytes]], bool]  # by the names and the first images
    read: Callable[[Shelf], Iterator[Found]]  # one per image


def import_faces(
    paths: Sequence[Path],  # folders, zips, faceset.pak or single images
    out: Path,
    recipe: ExtractRecipe,
    *,
    kind: str | None = None,  # one of KINDS; None: recognised, for each input
    device: str = "cpu",
    overwrite: bool = False,  # replaces a faceset, and nothing but a faceset
) -> Report:
    """Import foreign faces into the new faceset `out`, which appears when it is complete.

    A face's five points are those that the set tells or else the detector's, and those of the dense landmarks where
    these fit. From them the canonical crop is made at the recipe's `size`, even where the image has fewer pixels, as it
    is for footage; that faces were enlarged is said. `UsageError` for a name that is wrong, `FacesetError` for a set
    that is damaged, hostile or without any face.
    """
    _check(paths, out, overwrite)
    started, tally, written = time.monotonic(), _Tally(), set[str]()
    with ExitStack() as stack:
        shelves = [stack.enter_context(_shelf(path)) for path in paths]
        kinds = [kind or recognise(shelf) for shelf in shelves]  # a wrong input is said before the work begins
        finder = _Finder(recipe, device)
        pool = stack.enter_context(ThreadPoolExecutor(os.cpu_count()))
        folder = stack.enter_context(files.whole_folder(out, overwrite=overwrite))
        for number, (shelf, name) in enumerate(zip(shelves, kinds, strict=True)):
            total, label = len(shelf.names), f"importing {shelf.path.name}"
            console.say(f"{shelf.path}: {KINDS[name].title}, {total} images")
            for some in _groups(tally.sift(console.track(KINDS[name].read(shelf), label, total, "images"))):
                images = list(pool.map(_decode, (one.coded for one in some)))
                jobs = []
                for one, face in zip(some, finder(some, images, number), strict=True):
                    tally.count(one.name, face if isinstance(face, str) else "")
                    if not isinstance(face, str):
                        file = _free(f"{_stem(str(shelf.path))}_{_stem(one.name)}", recipe.format, written)
                        jobs.append((folder / file, *face))
                list(pool.map(lambda job: write_face(*job), jobs))
        if not tally.faces:
            raise FacesetError(
                f"{', '.join(map(str, paths))}: none of {tally.total} images could be imported ({tally.text()}); check "
                "them, try another --kind, or --set extract.threshold=0.7 for faces that are hard to find"
            )
    tally.say()
    finder.say(tally.faces)
    return Report(out, tally.faces, dict(tally.skipped), kinds, time.monotonic() - started)


def recognise(shelf: Shelf) -> str:
    """The kind of a set; `FacesetError` if it is ours already."""
    first = [shelf.read(number) for number in range(min(LOOKED_AT, len(shelf.names)))]
    if any(read_meta_of(coded, shelf.path) for coded in first):
        raise FacesetError(f"{shelf.path}: a faceset of ours already, there is nothing to import; use it as it is")
    return next(name for name, kind in KINDS.items() if kind.shows(shelf, first))


def _check(paths: Sequence[Path], out: Path, overwrite: bool) -> None:
    """Refuse what cannot be meant."""
    if not paths:
        raise UsageError("expected at least one folder, zip or faceset.pak")
    files.refuse_same(out, paths)
    inside = [path for path in paths if path.is_dir() and path.resolve() in out.resolve().parents]
    if inside:
        raise UsageError(f"{out}: lies inside {inside[0]}, which is imported; choose another -o")
    files.refuse_existing(out, overwrite)
    if out.exists():
        refuse_foreign(out)


class _Tally:
    """How many images became faces, and why the others did not."""

    def __init__(self) -> None:
        self.faces, self.total = 0, 0
        self.skipped, self.first = Counter[str](), dict[str, str]()

    def count(self, name: str, trouble: str) -> None:
        self.total += 1
        self.faces += not trouble
        if trouble:
            self.skipped[trouble] += 1
            self.first.setdefault(trouble, name)

    def sift(self, found: Iterable[Found]) -> Iterator[Found]:
        """Those without trouble; the others are counted."""
        for one in found:
            if one.trouble:
                self.count(one.name, one.trouble)
            else:
                yield one

    def text(self) -> str:
        return "; ".join(f"{number} {why}, first {self.first[why]}" for why, number in self.skipped.items())

    def say(self) -> None:
        if self.skipped:
            console.warn(f"left out {sum(self.skipped.values())} of {self.total} images: {self.text()}")


# From an image to a face


class _Finder:
    """Images to canonical crops with their metadata, or to a word on what is wrong with them."""

    def __init__(self, recipe: ExtractRecipe, device: str) -> None:
        self.recipe, self.device = recipe, device
        self.landmarker = Landmarker(device)
        self._detector: detectors.Detector | None = None  # many sets need none
        self._native, self._beyond = 0.0, 0  # sum of the crops' sides in pixels of their images; crops beyond those

    def __call__(
        self,
        found: Sequence[Found],
        images: Sequence[Image | None],  # of them, None for one that is damaged
        number: int,  # of the input
    ) -> list[tuple[Image, FaceMeta] | str]:
        places = self._places(found, images)
        sound = [(image, place) for image, place in zip(images, places, strict=True) if image is not None and place]
        dense = iter(self.landmarker([image for image, _ in sound], [place.points for _, place in sound], passes=2))
        results: list[tuple[Image, FaceMeta] | str] = []
        for one, image, place in zip(found, images, places, strict=True):
            if image is None or place is None:
                results.append("damaged" if image is None else "in which no face was found")
                continue
            marks = next(dense)
            meta = self._meta(one, place, marks if _is_face(marks.five, image.shape) else None, number)
            matrix = np.array(meta.matrix)
            self._native += self.recipe.size / align.scale_of(matrix)
            self._beyond += _is_beyond(matrix, self.recipe.size, image.shape)
            results.append((align.crop(image, matrix, self.recipe.size), meta))
        return results

    def say(self, faces: int) -> None:
        """What the images could not give."""
        native = self._native / faces
        if native < 0.8 * self.recipe.size:
            console.warn(
                f"the images hold faces of about {native:.0f} px, enlarged to {self.recipe.size} px; "
                f"--set extract.size={max(32, round(native / 16) * 16)} keeps the files small"
            )
        if self._beyond:
            console.warn(f"{self._beyond} of {faces} crops reach beyond their image, whose border is repeated there")

    def _places(self, found: Sequence[Found], images: Sequence[Image | None]) -> "list[_Place | None]":
        """Where the face is: as the set tells, else the one nearest to the middle that the detector finds."""
        places = [None if image is None else _told(one, image) for one, image in zip(found, images, strict=True)]
        shapes: dict[tuple[int, ...], list[tuple[int, Image]]] = {}  # a detector looks at images of one shape together
        for rank, (image, place) in enumerate(zip(images, places, strict=True)):
            if image is not None and place is None:
                shapes.setdefault(image.shape, []).append((rank, image))
        recipe = self.recipe
        for shape, waiting in shapes.items():
            self._detector = self._detector or detectors.build(
                recipe.detector, threshold=recipe.threshold, min_size=recipe.min_size, device=self.device
            )
            for start in range(0, len(waiting), recipe.batch):
                some = waiting[start : start + recipe.batch]
                for (rank, _), faces in zip(some, self._detector([image for _, image in some]), strict=True):
                    if faces:
                        face = min(faces, key=lambda face: _off_middle(face, shape))
                        places[rank] = _Place(face.points, face.box, recipe.detector, face.probability)
        return places

    def _meta(self, one: Found, place: "_Place", marks: Landmarks | None, number: int) -> FaceMeta:
        fits = marks is not None and marks.fit >= self.recipe.min_fit
        points = marks.five if marks and fits else place.points
        return FaceMeta(
            input=number,
            source=one.source or _base(one.name),
            frame=one.frame,
            time=0.0,
            face=one.face,
            box=[round(float(v), 3) for v in place.box],
            points=_rounded(points),
            matrix=align.crop_matrix(points, self.recipe.size).tolist(),
            size=self.recipe.size,
            detector=place.finder,
            probability=round(place.probability, 5),
            landmarks=_rounded(marks.points) if marks and fits else None,
            fit=round(marks.fit, 5) if marks and fits else 0.0,
        )


@dataclass(frozen=True)
class _Place:
    """Where a face is in an image, and who says so."""

    points: NDArray[np.float32]  # (5, 2)
    box: NDArray[np.float32]  # (4,)
    finder: str
    probability: float


def _told(one: Found, image: Image) -> _Place | None:
    """The face's place as the set tells it; None if it does not, or tells what cannot be."""
    if one.points is None or (one.side is not None and image.shape[0] != image.shape[1]):
        return None
    factor = 1.0 if one.side is None else image.shape[1] / one.side
    points = (one.points + 0.5) * factor - 0.5
    if not _is_face(points, image.shape):
        return None
    across = np.array([[0.2, 0.2], [0.8, 0.2], [0.2, 0.85], [0.8, 0.85]])  # about the face, in the canonical crop
    corners = align.apply(align.invert(align.crop_matrix(points, 1)), across)
    box = np.concatenate([corners.min(0), corners.max(0)])
    return _Place(points.astype(np.float32), box.astype(np.float32), one.teller, 1.0)


def _is_face(points: NDArray[Any], shape: tuple[int, ...]) -> bool:
    """Whether five points can be those of a face that an image of `shape` shows."""
    height, width = shape[:2]
    if not np.isfinite(points).all() or (np.abs(points) > 1e6).any():
        return False
    try:
        place = align.crop_matrix(points, 1)
    except ValueError:  # all at one place
        return False
    scale = align.scale_of(place)
    x, y = points.mean(0)
    return 0 <= x < width and 0 <= y < height and 1 / (4 * max(height, width)) < scale < 1 / 16


def _off_middle(face: detectors.Face, shape: tuple[int, ...]) -> float:
    """How far a face is from the middle of its image, in units of its side."""
    x, y = (face.box[:2] + face.box[2:]) / 2
    return math.hypot(x - shape[1] / 2, y - shape[0] / 2) / max(face.side, 1)


def _is_beyond(matrix: align.Matrix, size: int, shape: tuple[int, ...]) -> bool:
    """Whether a crop reaches more than a tenth of its side out of its image."""
    corners = np.array([[0, 0], [size, 0], [0, size], [size, size]], np.float64)
    spread, most = align.apply(align.invert(matrix), corners), 0.1 * size / align.scale_of(matrix)
    return bool((spread < -most).any() or (spread > np.array([shape[1], shape[0]]) + most).any())


def _rounded(points: NDArray[Any]) -> list[list[float]]:
    return [[round(float(x), 3), round(float(y), 3)] for x, y in points]


def _decode(coded: bytes) -> Image | None:
    """The image (H, W, 3) RGB, None if it is damaged or absurdly large."""
    width, height = _dimensions(coded) or (0, 0)
    if not coded or width * height > MAX_PIXELS or _is_cut(coded):
        return None
    try:
        image = cv2.imdecode(np.frombuffer(coded, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None
    return None if image is None else np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _is_cut(coded: bytes) -> bool:
    """Whether the end of a JPEG is missing, which decoders make up in grey."""
    pixels = 2 + sum(4 + len(body) for _, body in _segments(coded))
    return coded.startswith(JPEG_SIGNATURE) and b"\xff\xd9" not in coded[pixels:]


def _free(stem: str, suffix: str, written: set[str]) -> str:
    """A file name that is not among those written."""
    name, number = f"{stem}.{suffix}", 1
    while name.lower() in written:
        number += 1
        name = f"{stem}-{number}.{suffix}"
    written.add(name.lower())
    return name


def _groups(found: Iterable[Found]) -> Iterator[list[Found]]:
    """As many as go together."""
    some: list[Found] = []
    pixels = 0
    for one in found:
        width, height = _dimensions(one.coded) or (2000, 2000)
        if some and (len(some) == AT_ONCE or pixels + width * height > AT_ONCE_PIXELS):
            yield some
            some, pixels = [], 0
        some.append(one)
        pixels += width * height
    if some:
        yield some


def _base(name: str) -> str:
    """A file's name without its folders, of whatever system."""
    return name.replace("\\", "/").rsplit("/", 1)[-1]


def _stem(name: str) -> str:
    """What is left of a file's name, which may be anything, for ours."""
    stem = _base(name)
    stem = stem.rsplit(".", 1)[0] or stem
    return re.sub(r"[^\w-]", "_", stem)[:80] or "face"


def _number(name: str) -> int:
    """The last number in a file's name, 0 if there is none: that of a frame."""
    numbers = re.findall(r"[0-9]+", _stem(name))
    return int(numbers[-1][-9:]) if numbers else 0


# Where images lie


@contextmanager
def _shelf(path: Path) -> Iterator[Shelf]:
    """The images of a folder, a zip or a faceset.pak, or one image; `FacesetError` if there is none."""
    if path.is_dir():
        pack = path / "faceset.pak"
        if pack.is_file():  # its tool, too, reads it instead of what lies beside it
            with pack.open("rb") as file:
                yield _pack(pack, file)
            return
        found = (p.relative_to(path) for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        names = _sorted(p.as_posix() for p in found if not any(part[0] == "." for part in p.parts))
        yield _filled(Shelf(path, names, lambda number: _start(path / names[number])))
    elif path.suffix.lower() == ".zip" and path.is_file():
        with _opened(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            names = _sorted(name for name in members if name.lower().endswith(SUFFIXES) and _base(name)[:1] != ".")
            yield _filled(Shelf(path, names, lambda number: _unpack(archive, members[names[number]])))
    elif path.suffix.lower() == ".pak" and path.is_file():
        with path.open("rb") as file:
            yield _pack(path, file)
    elif path.suffix.lower() in SUFFIXES and path.is_file():
        yield Shelf(path, [path.name], lambda _: _start(path))
    else:
        there = "something else" if path.exists() else "nothing"
        raise FacesetError(f"{path}: expected a folder, a .zip, a .pak or an image, found {there}; check the name")


def _filled(shelf: Shelf) -> Shelf:
    if not shelf.names:
        kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
        raise FacesetError(f"{shelf.path}: expected images ({kinds}) in it, found none; check the name")
    return shelf


def _sorted(names: Iterable[str]) -> list[str]:
    """In the order of their numbers; of a whole copy of FFHQ the images of one size only."""
    found = sorted(names, key=_natural)
    for folder in FFHQ_FOLDERS:
        if of_one := [name for name in found if f"/{folder}" in f"/{name}"]:
            return of_one
    return found


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key by which face2 comes before face10, and folders do not count."""
    parts = re.findall(r"[0-9]+|[^0-9]+", _base(name).lower())
    return [(int(part[:18]), "") if part[0].isdigit() and part.isascii() else (-1, part) for part in parts], name


def _start(path: Path) -> bytes:
    """A file up to the size that is too much."""
    with path.open("rb") as file:
        return file.read(MAX_FILE + 1)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise FacesetError(f"{path}: damaged zip ({error}); download or copy it again") from None
    with archive:
        yield archive


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """A member up to the size that is too much, whatever it says of itself."""
    with archive.open(member) as file:
        return file.read(MAX_FILE + 1)


def _pack(path: Path, file: BinaryIO) -> Shelf:
    """A faceset.pak: version and length (uint64), a pickled list of so many bytes with a dictionary per image, offsets
    (uint64), images. The offsets count from the first image or from the file's start, and end with the file's end or
    with the last image: all four are read."""
    size = path.stat().st_size
    head = file.read(16)
    version, length = struct.unpack("<QQ", head) if len(head) == 16 else (0, 0)
    if version != 1:
        raise FacesetError(
            f"{path}: expected a faceset.pak of version 1, found another file or version; unpack it first"
        )
    if length > min(MAX_LIST, size - 16):
        raise FacesetError(f"{path}: damaged, its list of {length} bytes does not fit into it; copy it again")
    try:
        configs = pickled.read(file.read(length), str(path))
    except ValueError as error:
        raise FacesetError(f"{path}: damaged list of images ({error}); copy it again") from None
    if not isinstance(configs, list) or not configs or not all(isinstance(config, dict) for config in configs):
        raise FacesetError(f"{path}: expected a list of images in it, found none; copy it again or unpack it first")
    spans = _spans(file, len(configs), size)
    if spans is None:
        raise FacesetError(f"{path}: damaged, its table of images does not fit into it; copy it again")

    def load(number: int) -> bytes:
        file.seek(spans[number][0])
        return file.read(min(spans[number][1] - spans[number][0], MAX_FILE + 1))

    names = [_word(config.get("filename")) or f"{number:05d}.jpg" for number, config in enumerate(configs)]
    kept = ("source_filename", "landmarks")  # masks would fill the memory
    told = {number: {key: config.get(key) for key in kept} for number, config in enumerate(configs)}
    return Shelf(path, names, load, told)


def _spans(file: BinaryIO, count: int, size: int) -> list[tuple[int, int]] | None:
    """First and last byte of each image in a faceset.pak whose table begins here; None if no reading fits."""
    begin = file.tell()
    table = file.read(8 * (count + 1))
    words = [word for (word,) in struct.iter_unpack("<Q", table[: len(table) // 8 * 8])]
    for entries in (count + 1, count):
        for shift in (begin + 8 * entries, 0):
            places = [word + shift for word in words[:entries]] + [size] * (count + 1 - entries)
            rises = all(a <= b for a, b in pairwise(places))
            if len(places) == count + 1 and rises and places[0] >= begin + 8 * entries and places[-1] <= size:
                file.seek(places[0])
                if file.read(8).startswith((JPEG_SIGNATURE, PNG_SIGNATURE)):
                    return list(pairwise(places))
    return None


# What images tell


def _dimensions(coded: bytes) -> tuple[int, int] | None:
    """Width and height that the header of a PNG or JPEG tells."""
    if coded.startswith(PNG_SIGNATURE) and len(coded) >= 24:
        width, height = struct.unpack(">II", coded[16:24])
        return width, height
    for marker, body in _segments(coded):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(body) >= 5:  # start of frame
            height, width = struct.unpack(">HH", body[1:5])
            return width, height
    return None


def _segments(coded: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and body of each segment before a JPEG's pixels; none of another file."""
    place = 2
    while coded.startswith(JPEG_SIGNATURE) and place + 4 <= len(coded) and coded[place] == 0xFF:
        marker, length = coded[place + 1], int.from_bytes(coded[place + 2 : place + 4], "big")
        if marker == 0xFF:  # filling
            place += 1
            continue
        if marker in (0xD9, 0xDA) or length < 2:
            return
        yield marker, coded[place + 4 : place + 2 + length]
        place += 2 + length


def _text(coded: bytes) -> bytes:
    """The text in a PNG under the keyword that deepfakes/faceswap and we have in common; empty if there is none."""
    place = len(PNG_SIGNATURE)
    while coded.startswith(PNG_SIGNATURE) and place + 8 <= len(coded):
        length, name = struct.unpack(">I4s", coded[place : place + 8])
        body = coded[place + 8 : place + 8 + length]
        if name == b"iTXt" and body.startswith(KEYWORD + b"\0"):
            flags, fields = body[len(KEYWORD) + 1 :][:2], body[len(KEYWORD) + 3 :].split(b"\0", 2)
            text = fields[-1] if len(fields) == 3 else b""
            return text if flags[:1] != b"\1" else _inflated(text)
        place += length + 12
    return b""


def _inflated(packed: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(packed, MAX_TEXT)
    except zlib.error:
        return b""


def _points68(value: Any) -> NDArray[np.float64] | None:
    """The five points (5, 2) of what should be 68 landmarks; None if it is anything else."""
    if not isinstance(value, list | tuple | np.ndarray) or len(value) != 68:
        return None
    for pair in value:
        if not isinstance(pair, list | tuple | np.ndarray) or len(pair) != 2:
            return None
        if not all(isinstance(number, int | float | np.number) and abs(float(number)) < 1e6 for number in pair):
            return None
    return five(np.array(value, np.float64)).astype(np.float64)


def _word(value: Any) -> str:
    """A name, if it is one."""
    return value[:255] if isinstance(value, str) else ""


# DeepFaceLab


def _dfl_bytes(coded: bytes) -> bytes:
    """The pickled metadata in one of its JPEGs: the segment APP15; empty if there is none."""
    return next((body for marker, body in _segments(coded) if marker == 0xEF and body[:1] == b"\x80"), b"")


def _shows_dfl(shelf: Shelf, first: Sequence[bytes]) -> bool:
    return bool(shelf.told) or any(map(_dfl_bytes, first))


def _dfl(shelf: Shelf) -> Iterator[Found]:
    for number, name in enumerate(shelf.names):
        coded = shelf.read(number)
        told, packed = shelf.told.get(number), _dfl_bytes(coded)
        try:
            told = pickled.read(packed, f"{shelf.path}: {name}") if packed else told
        except ValueError:
            yield Found(name, trouble="with damaged metadata")
            continue
        if not isinstance(told, dict):
            yield Found(name, trouble="without metadata of DeepFaceLab" if coded else "")
            continue
        source = _base(_word(told.get("source_filename")))
        rank = re.fullmatch(re.escape(_stem(source)) + r"_([0-9]{1,4})", _stem(name)) if source else None
        frame, face = _number(source or name), int(rank[1]) if rank else 0
        yield Found(name, coded, source, frame, face, _points68(told.get("landmarks")), "dfl")


# deepfakes/faceswap


def _faceswap_told(coded: bytes) -> dict[str, Any] | None:
    """What one of its PNGs says of itself: a Python literal. Its landmarks are in pixels of the frame, which is not
    there."""
    text = _text(coded)
    if not text.startswith(b"{") or len(text) > MAX_TEXT:
        return None
    try:
        told = ast.literal_eval(text.decode())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return told if isinstance(told, dict) and isinstance(told.get("source"), dict) else None


def _shows_faceswap(shelf: Shelf, first: Sequence[bytes]) -> bool:
    return any(_faceswap_told(coded) for coded in first)


def _faceswap(shelf: Shelf) -> Iterator[Found]:
    for number, name in enumerate(shelf.names):
        coded = shelf.read(number)
        told = _faceswap_told(coded)
        if told is None:
            yield Found(name, trouble="without metadata of deepfakes/faceswap" if coded else "")
            continue
        source, face = _base(_word(told["source"].get("source_filename"))), told["source"].get("source_face_index")
        rank = face if type(face) is int and 0 <= face < 10_000 else 0
        yield Found(name, coded, source, _number(source or name), rank)


# FFHQ


NUMBERED = re.compile(r"(img)?([0-9]{5,8})")


def _shows_ffhq(shelf: Shelf, first: Sequence[bytes]) -> bool:
    """Names that are numbers of five digits, and a square image whose side is a power of two."""
    numbered = sum(NUMBERED.fullmatch(_stem(name)) is not None for name in shelf.names)
    width, height = next((size for coded in first if (size := _dimensions(coded))), (0, 1))
    return numbered > 0.9 * len(shelf.names) and width == height >= 64 and width.bit_count() == 1


def _ffhq(shelf: Shelf) -> Iterator[Found]:
    points = _ffhq_points(shelf)
    for number, name in enumerate(shelf.names):
        match = NUMBERED.fullmatch(_stem(name))
        if match is None:
            yield Found(name, trouble="without a number for a name")
            continue
        frame = int(match[2])
        place = points.get(frame, FFHQ_POINTS)
        yield Found(name, shelf.read(number), shelf.path.name, frame, 0, place, "ffhq", FFHQ_SIDE)


def _ffhq_points(shelf: Shelf) -> dict[int, NDArray[np.float64]]:
    """The five points by an image's number, of FFHQ's JSON in the folder or beside it; empty if there is none."""
    place = shelf.path.absolute()
    path = next((path for folder in (place, *place.parents[:2]) if (path := folder / FFHQ_JSON).is_file()), None)
    if path is None:
        console.say(f"{shelf.path}: no {FFHQ_JSON} in it or above it; faces are taken where FFHQ's framing puts them")
        return {}
    matches = [NUMBERED.fullmatch(_stem(name)) for name in shelf.names]
    wanted = {int(match[2]) for match in matches if match}
    points: dict[int, NDArray[np.float64]] = {}
    entries = 0
    with closing(read_entries(path)) as pairs:
        for number, entry in console.track(pairs, f"reading {path.name}", None, "entries"):
            entries += 1
            image = entry.get("image")
            told = _points68(image.get("face_landmarks")) if isinstance(image, dict) else None
            if number in wanted and told is not None:
                points[number] = told
    if any(match and match[1] for match in matches) and len(shelf.names) != entries:
        console.warn(
            f"{shelf.path}: its {len(shelf.names)} images are counted anew, so which of the {entries} in {path.name} "
            "they are is unknown; the landmarks there are not used"
        )
        return {}
    return points


def read_entries(path: Path) -> Generator[tuple[int, dict[str, Any]], None, None]:
    """Number and entry of each image in FFHQ's JSON, one at a time: of 255 MB only some are ever in memory.

    `FacesetError` if it is damaged.
    """
    decoder, text, place = json.JSONDecoder(), "", 0
    broken = FacesetError(
        f'{path}: damaged, expected {{"0": {{...}}, "1": {{...}}, ...}}; copy it again or move it away'
    )
    with path.open(encoding="utf-8-sig") as file:
        try:
            while not text.strip() and (more := file.read(CHUNK)):
                text = more
            place = text.find("{") + 1
            if text[:place].strip() != "{":
                raise broken
            while True:
                pair = _entry(decoder, text, place)
                if pair is None:
                    more = file.read(CHUNK)
                    if not more or len(text) - place > MAX_ENTRY:
                        raise broken
                    text, place = text[place:] + more, 0
                    continue
                key, entry, place = pair
                if key is None:
                    return
                if not isinstance(entry, dict):
                    raise broken
                yield int(key), entry
        except (ValueError, RecursionError):
            raise broken from None


def _entry(decoder: json.JSONDecoder, text: str, place: int) -> tuple[str | None, Any, int] | None:
    """Key and value that begin at `place`, and where they end; no key at the end of all. None: more text is needed."""
    match = _BEFORE.match(text, place)
    if match is None or match.end() == len(text):
        return None
    if text[match.end()] == "}":
        return None, None, match.end() + 1
    try:
        key, end = decoder.raw_decode(text, match.end())
        colon = _COLON.match(text, end)
        if colon is None:
            return None
        value, end = decoder.raw_decode(text, colon.end())
    except json.JSONDecodeError:
        return None
    after = _AFTER.match(text, end)
    return (str(key), value, end) if after else None


_BEFORE, _COLON, _AFTER = re.compile(r"[\s,]*"), re.compile(r"\s*:\s*"), re.compile(r"\s*[,}]")


# Any images


def _shows_images(shelf: Shelf, first: Sequence[bytes]) -> bool:
    return True


def _images(shelf: Shelf) -> Iterator[Found]:
    for number, name in enumerate(shelf.names):
        yield Found(name, shelf.read(number), frame=_number(name))


KINDS = {  # in the order in which they are tried
    "dfl": Kind("faces of DeepFaceLab", _shows_dfl, _dfl),
    "faceswap": Kind("faces of deepfakes/faceswap", _shows_faceswap, _faceswap),
    "ffhq": Kind("FFHQ", _shows_ffhq, _ffhq),
    "images": Kind("images with a face in each", _shows_images, _images),
}
