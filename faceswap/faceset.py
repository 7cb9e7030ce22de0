"""Faces and a folder of images that a person can look through and delete from.

Each image is a canonical crop and carries its own metadata as JSON: in PNG an iTXt chunk, in JPEG a COM segment, both
under the name `faceswap`, both read by common tools (`exiftool`, `identify -verbose`). There is no index beside the
images: deleting and renaming just works. A pack (`NAME.faces`, see faceswap.pack) stands for such a folder wherever one
is read; its images have paths as if it were one.
"""

import errno
import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from faceswap import align, console, pack
from faceswap.errors import FacesetError, OutputExistsError

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # damaged images are said by us, once

VERSION = 2  # 1 had no landmarks, fit and track
KEYWORD = b"faceswap"
PNG = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_AVG, cv2.IMWRITE_PNG_COMPRESSION, 1]  # quick, and smaller
SUFFIXES = (".png", ".jpg", ".jpeg")
MASK = ".mask.png"  # NAME.mask.png beside NAME.png or NAME.jpg: the user's own mask of that face
LANDMARKS = 152  # how many there are, see faceswap.landmarks
MOST_TEXT = 2**22  # bytes of packed metadata: a hostile image could hold more than fits into memory
AT_ONCE = 256  # images that wait to be read
HEAD = 1 << 16  # bytes of an image in which its metadata usually ends
T = TypeVar("T")
PNG_SIGNATURE, JPEG_SIGNATURE = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"


@dataclass(frozen=True)
class FaceMeta:
    """Where a face image comes from.

    Convention: (x, y) in pixels of the frame, pixel centres at integers; `matrix` maps frame to crop.
    """

    source: str  # file name of the video or image
    frame: int  # index in the source, from 0
    time: float  # seconds
    face: int  # 0 is the frame's largest
    box: list[float]  # x0, y0, x1, y1
    points: list[list[float]]  # five (x, y), see detectors.Face
    matrix: list[list[float]]  # (2, 3)
    size: int  # side of the crop in pixels when it was written
    detector: str
    probability: float
    input: int = 0  # number of the input among those extracted together
    landmarks: list[list[float]] | None = None  # dense ones, see faceswap.landmarks; None: none that fit
    fit: float = 0.0  # of the landmarks
    track: int | None = None  # who this is over time, within the input
    truth: dict[str, Any] | None = None  # of a rendered face: what it was rendered from, see actors.write_faces
    version: int = VERSION

    def crop_points(self, size: int, crop: str = align.CANONICAL) -> NDArray[np.float64]:
        """The five points (5, 2) in the pixels of the crop at `size`: the canonical one, or one of `align.CROPS`."""
        return self._inside(self.points, size, crop)

    def crop_outline(self, size: int, crop: str = align.CANONICAL) -> NDArray[np.float64]:
        """What a mask is drawn from, in the pixels of the crop at `size`: the landmarks (152, 2) or the five points."""
        return self._inside(self.points if self.landmarks is None else self.landmarks, size, crop)

    def _inside(self, points: list[list[float]], size: int, crop: str) -> NDArray[np.float64]:
        inside = align.apply(np.array(self.matrix), np.array(points))
        return align.apply(align.onto(crop, self.size, size), inside)


@dataclass(frozen=True)
class Entry:
    """A face image and its metadata."""

    path: Path
    meta: FaceMeta

    @property
    def key(self) -> str:
        """Names the face whatever its file is called."""
        return f"{self.meta.input}:{self.meta.source}:{self.meta.frame}:{self.meta.face}"


class PackedEntry(Entry):
    """A face inside a pack. Its metadata is read when asked for, so that opening a pack reads no image."""

    def __init__(self, path: Path, key: str) -> None:
        object.__setattr__(self, "path", path)
        object.__setattr__(self, "_key", key)

    @property
    def meta(self) -> FaceMeta:
        """`FacesetError` if it is damaged."""
        held = pack.opened(self.path.parent)
        found = read_meta_of(held.head(self.path.name, HEAD), self.path)
        found = found or read_meta_of(held.read(self.path.name), self.path)
        if found is None:
            raise FacesetError(f"{self.path}: damaged, it has no metadata; pack the faces again")
        return found

    @property
    def key(self) -> str:
        return str(self._key)  # type: ignore[attr-defined]


class Faceset:
    """The face images in a folder, in the order of source, frame and face."""

    def __init__(self, folder: Path, entries: Sequence[Entry], skipped: Sequence[Path]) -> None:
        self.folder, self.entries, self.skipped = folder, list(entries), list(skipped)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "Faceset":
        """Read the metadata of all images in `folder`; those without any are listed in `skipped`.

        `FacesetError` if the folder is missing or holds no face image of ours.
        """
        folder = Path(folder)
        if pack.is_pack(folder):
            held = pack.opened(folder)
            faces = [PackedEntry(folder / name, key) for name, key in zip(held.names, held.keys, strict=True) if key]
            if not faces:
                raise FacesetError(f"{folder}: expected a pack of faces, found none in it; make one with faceset pack")
            return cls(folder, faces, [])
        if not folder.is_dir():
            raise FacesetError(
                f"{folder}: expected a faceset (a folder of face images, or a pack); make one with faceswap extract"
            )
        entries, skipped = [], []
        images = (p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != "." and p.is_file())
        for path in sorted(p for p in images if not is_mask(p)):
            meta = read_meta(path)
            if meta is None:
                skipped.append(path)
            else:
                entries.append(Entry(path, meta))
        if not entries:
            found = f"{len(skipped)} images without face metadata" if skipped else "no image"
            raise FacesetError(f"{folder}: expected extracted faces, found {found}; run faceswap extract on them")
        entries.sort(key=lambda e: (e.meta.input, e.meta.source, e.meta.frame, e.meta.face, e.path.name))
        return cls(folder, entries, skipped)

    def __len__(self) -> int:
        return len(self.entries)


def open_all(folders: Sequence[Path]) -> list[Faceset]:
    """Facesets, see `Faceset.open`; images in them that are not ours are said."""
    facesets = [Faceset.open(folder) for folder in folders]
    for faceset in facesets:
        if faceset.skipped:
            console.warn(
                f"{faceset.folder}: {len(faceset.skipped)} images without face metadata are left out, the "
                f"first is {faceset.skipped[0].name}; run faceswap extract on them"
            )
    return facesets


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, evenly spread, from the first on."""
    return [items[round(i)] for i in np.linspace(0, len(items) - 1, most)] if len(items) > most else list(items)


def refuse_foreign(out: Path) -> None:
    """`OutputExistsError` if replacing `out` would destroy anything that is not an extracted face."""
    litter = {".DS_Store", "Thumbs.db", "desktop.ini"}  # of file browsers
    for path in sorted(p for p in out.iterdir() if p.name not in litter) if out.is_dir() else [out]:
        if is_mask(path):
            raise OutputExistsError(
                f"{out}: --overwrite would destroy {path.name}, a mask of your own; move it away, or choose another -o"
            )
        if not out.is_dir() or path.is_dir() or path.suffix.lower() not in SUFFIXES or read_meta(path) is None:
            raise OutputExistsError(
                f"{out}: --overwrite replaces facesets only, {path.name} is no extracted face; choose another -o"
            )


def write_face(path: Path, image: NDArray[Any], meta: FaceMeta, *, quality: int = 95) -> None:
    """Write `image` (S, S, 3) RGB, uint8 or (PNG only) uint16, with its metadata; the suffix chooses the format."""
    options = PNG if path.suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, quality]
    if path.suffix != ".png":
        image = align.as_uint8(image)
    ok, coded = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not ok:
        raise FacesetError(f"{path}: the image could not be encoded")
    path.write_bytes(_embed(coded.tobytes(), json.dumps(vars(meta)).encode()))


def read_bytes(path: Path) -> bytes:
    """The content of the file at `path`, which may lie inside a pack."""
    if not pack.is_pack(path.parent):
        return path.read_bytes()
    try:
        return pack.opened(path.parent).read(path.name)
    except KeyError:
        raise FileNotFoundError(errno.ENOENT, "not in the pack", str(path)) from None


def read_image(path: Path, size: int | None = None, crop: str = align.CANONICAL) -> NDArray[Any]:
    """The image (S, S, 3) RGB in its own depth, or uint8 at `size`, as one of `align.CROPS` if you like; `FacesetError`
    if it cannot be decoded."""
    coded = np.frombuffer(read_bytes(path), np.uint8)
    try:
        image = cv2.imdecode(coded, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH) if coded.size else None
    except cv2.error:  # an absurd size in a damaged header
        image = None
    if image is None:
        raise FacesetError(f"{path}: damaged, the image does not decode; delete it or extract again")
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return image if size is None else align.resize(align.as_uint8(image), size, crop)


def is_mask(path: Path) -> bool:
    """Whether a file is a user's own mask by its name, whatever it holds."""
    return path.name.lower().endswith(MASK)


def mask_path(path: Path) -> Path:
    """Where the user's own mask of the face image `path` lies, if there is one."""
    return path.with_suffix(MASK)


def own_mask(path: Path) -> Path | None:
    """The user's own mask of the face image `path`, None if there is none."""
    mask = mask_path(path)
    held = mask.name in pack.opened(mask.parent) if pack.is_pack(mask.parent) else mask.is_file()
    return mask if held else None


def read_mask(path: Path, size: int | None = None) -> NDArray[np.float32] | None:
    """The user's own mask (S, S) float32 in [0, 1] of the face image `path`: white on the face, transparent or black
    off it; None if there is none. S is `size`, or else the mask's own side, which need not be the image's.

    `FacesetError` if it does not decode or is not square.
    """
    beside = mask_path(path)
    try:
        coded = read_bytes(beside)
        png = coded.startswith(PNG_SIGNATURE)
        image = cv2.imdecode(np.frombuffer(coded, np.uint8), cv2.IMREAD_UNCHANGED) if png else None
    except FileNotFoundError:
        return None
    except (cv2.error, OSError):
        image = None
    if image is None:
        raise FacesetError(f"{beside}: damaged, the mask does not decode; save it again as PNG, or delete it")
    height, width = image.shape[:2]
    if height != width:
        raise FacesetError(
            f"{beside}: expected a square mask, as the face is, found {width} x {height} px; paint it over the face's "
            "image, or delete it"
        )
    mask = np.asarray(image, np.float32) / np.float32(65535 if image.dtype == np.uint16 else 255)
    if mask.ndim == 3:
        alpha = mask[..., 3] if mask.shape[2] == 4 else np.float32(1)
        mask = cv2.cvtColor(mask[..., :3], cv2.COLOR_BGR2GRAY) * alpha
    return np.asarray(mask if size is None else align.resize(mask, size), np.float32).clip(0, 1)


def read_images(paths: Sequence[Path], size: int, crop: str = align.CANONICAL) -> Iterator[NDArray[np.uint8] | None]:
    """The images at `size`, in order, read side by side; None for one that does not decode or is gone."""

    def read(path: Path) -> NDArray[np.uint8] | None:
        try:
            return read_image(path, size, crop)
        except (FacesetError, OSError):
            return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), AT_ONCE):  # so that Ctrl-C waits for these only
            yield from pool.map(read, paths[start : start + AT_ONCE])


def read_meta(path: Path) -> FaceMeta | None:
    """The metadata inside an image; None if it holds none of ours, or none that is sound."""
    if pack.is_pack(path.parent):
        return read_meta_of(read_bytes(path), path)
    with path.open("rb") as file:
        return _meta(_find(file), path)


def read_meta_of(content: bytes, path: Path) -> FaceMeta | None:
    """Like `read_meta`, of the bytes of an image; `path` is for messages."""
    return _meta(_find(BytesIO(content)), path)


def _meta(text: bytes | None, path: Path) -> FaceMeta | None:
    if text is None:
        return None
    try:
        values = json.loads(text)
        version = int(values["version"])
        if version > VERSION:
            raise FacesetError(f"{path}: metadata of version {version}, expected at most {VERSION}; update faceswap")
        meta = FaceMeta(**values)
        return meta if _is_sound(meta) else None
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


def _is_sound(meta: FaceMeta) -> bool:
    """Whether metadata, which anybody may have edited, has the types and shapes that the rest relies on."""
    whole = all(type(number) is int and number >= 0 for number in (meta.frame, meta.face, meta.input))
    words = isinstance(meta.source, str) and isinstance(meta.detector, str)
    words = words and isinstance(meta.truth, dict | None) and (meta.track is None or type(meta.track) is int)
    if not (whole and words and type(meta.size) is int and meta.size > 0):
        return False
    if not all(
        type(number) in (int, float) and abs(number) < 1e9 for number in (meta.time, meta.probability, meta.fit)
    ):
        return False
    shapes = [(meta.box, (4,)), (meta.points, (5, 2)), (meta.matrix, (2, 3))]
    if meta.landmarks is not None:
        shapes.append((meta.landmarks, (LANDMARKS, 2)))
    for given, shape in shapes:
        numbers = np.array(given)
        if numbers.shape != shape or numbers.dtype.kind not in "if" or not (np.abs(numbers) < 1e9).all():
            return False
    return align.scale_of(np.array(meta.matrix, np.float64)) > 1e-6


def _embed(coded: bytes, text: bytes) -> bytes:
    """`coded` with `text` behind its header, where a reader finds it without reading the pixels."""
    if coded.startswith(PNG_SIGNATURE):
        end = len(PNG_SIGNATURE) + 25  # IHDR: length, name, 13 bytes, checksum
        body = b"iTXt" + KEYWORD + b"\0\0\0\0\0" + text  # not compressed, no language, no translated keyword
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        return coded[:end] + chunk + coded[end:]
    body = KEYWORD + b" " + text
    return coded[:2] + b"\xff\xfe" + struct.pack(">H", len(body) + 2) + body + coded[2:]


def _find(file: BinaryIO) -> bytes | None:
    """What `_embed` put into a PNG or JPEG, wherever a tool may have moved it."""
    head = file.read(8)
    if head == PNG_SIGNATURE:
        return _find_png(file)
    if head[:2] == JPEG_SIGNATURE:
        file.seek(2)
        return _find_jpeg(file)
    return None


def _find_png(file: BinaryIO) -> bytes | None:
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        if name in (b"iTXt", b"tEXt", b"zTXt"):
            keyword, _, body = file.read(length).partition(b"\0")
            if keyword == KEYWORD:
                return _png_text(name, body)
            file.seek(4, os.SEEK_CUR)
        else:
            file.seek(length + 4, os.SEEK_CUR)
    return None


def _png_text(name: bytes, body: bytes) -> bytes | None:
    """The text of a chunk behind its keyword, None if it is damaged; see the PNG specification, 11.3.3."""
    packed = name == b"zTXt"
    if name == b"iTXt":
        packed, fields = body[:1] == b"\1", body[2:].split(b"\0", 2)  # language, translated keyword, text
        body = fields[-1] if len(fields) == 3 else b""
    elif packed:
        body = body[1:]
    try:
        return zlib.decompressobj().decompress(body, MOST_TEXT) if packed else body
    except zlib.error:
        return None


def _find_jpeg(file: BinaryIO) -> bytes | None:
    while len(head := file.read(4)) == 4 and head[0] == 0xFF and head[1] != 0xDA:
        length = struct.unpack(">H", head[2:])[0] - 2
        if head[1] == 0xFE and (body := file.read(length)).startswith(KEYWORD + b" "):
            return body[len(KEYWORD) + 1 :]
        if head[1] != 0xFE:
            file.seek(length, os.SEEK_CUR)
    return None
