"""Swapped frames as a folder of images, for a compositor: whole, or the drawn faces alone over nothing.

An image is called by the number of its frame, `000012.png`, and appears under that name when it is whole. It carries
what it shows, the marks of `provenance` and a hash of its own pixels as XMP, so that work which was killed goes on by
looking at the images that are there. `faces.json` appears last: what lies where in which frame.

Convention: images are RGB in the transfer function and primaries of the footage, full range, in as many bits as it has:
8, or 16 for all that has more. With alpha they are RGBA, straight (unassociated): the colour is that of the drawn face.
EXR is another world, as compositors expect: half float, linear light (see `light`), alpha associated (premultiplied).
A matrix maps frame to crop, (x, y) with pixel centres at integers.
"""

import hashlib
import json
import os
import re
import shutil
import struct
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

import faceswap
from faceswap import align, blend, console, files, light, segments
from faceswap.errors import OutputExistsError, UsageError
from faceswap.found import FoundFaces
from faceswap.provenance import Marker, marker, noted, packet
from faceswap.segments import WHOLE
from faceswap.swap import Laid, Swapper, lay_in, soft, what_decides
from faceswap.video import CONTAINERS, Frame, frame_count, is_image, probe, read_frames
from faceswap.video import exr as coded_exr

Image = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.float32]

VERSION = 1  # of what lies in the folder
INDEX = "faces.json"
OURS = re.compile(r"\d{6,}\.(png|tiff|exr)")
MADE_BY = "faceswap"
PNG = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_AVG, cv2.IMWRITE_PNG_COMPRESSION, 1]  # quick, and smaller
PNG_HEAD = 33  # bytes: signature and IHDR
EXR_HEAD = 8  # bytes: signature and version
KEYWORD = b"XML:com.adobe.xmp"  # of the PNG chunk in which programs look for XMP
MOST_WAITING = 8  # frames drawn and not yet written


@dataclass(frozen=True)
class Report:
    """What was made."""

    folder: Path
    frames: int
    kept: int  # of them, those that were there already
    frames_swapped: int  # frames in which a face was drawn
    faces_swapped: int
    seconds: float


@dataclass(frozen=True)
class Note:
    """What an image says of itself."""

    key: str  # of what it is made from
    frame: int
    time: float  # seconds
    source: str  # file name of the footage, or of this image of it
    faces: list[dict[str, Any]]  # track, matrix, size
    bytes: int  # of the coded pixels, which end the file
    sha256: str  # of them


# ---------------------------------------------------------------- one picture


def picture(
    frame: Frame,
    faces: Iterable[Laid],
    alpha: bool,
    table: NDArray[np.float32] | None = None,  # the light of each code value: gives light and associated alpha
) -> tuple[Image, list[Laid]]:
    """The frame (H, W, 3) with faces laid in, or those faces alone (H, W, 4), and the faces that show.

    Laid over the frame, the faces alone give what the frame with them is, within a code value; light laid over the
    frame's light too. Their alpha is the soft mask; with a blend that does more than a cross-fade it is as much more as
    the change of a pixel asks for.
    """
    high, wide = frame.shape
    plate = frame.part(0, 0, wide, high, deep=True)
    eight = plate.dtype == np.uint8
    if eight and (alpha or table is not None):  # or the soft edge would be coarse
        plate = plate.astype(np.uint16) * np.uint16(257)
    swapped, shown = frame.with_image(plate), []
    through = np.ones((high, wide) if alpha else (0, 0), np.float32)  # what of the frame is seen
    for laid in faces:
        before, swapped = swapped, lay_in(swapped, laid)
        if swapped is before:
            continue
        shown.append(laid)
        through_it = soft(laid, frame.shape)
        where = blend.covered(through_it, laid.matrix, frame.shape)
        if alpha and where is not None:
            x0, y0, x1, y1 = where
            spread = align.uncrop_mask(through_it, laid.matrix, where)
            through[y0:y1, x0:x1] *= 1 - spread
    if not alpha:
        return swapped.image if table is None else table[swapped.image], shown
    return _alone(plate, swapped.image, 1 - through, 255 if eight else 65535, table), shown


def _alone(
    plate: NDArray[Any],
    merged: NDArray[Any],
    opacity: NDArray[np.float32],
    white: int,
    table: NDArray[np.float32] | None = None,
) -> Image:
    """The picture (H, W, 4) that is `merged` over `plate`, both (H, W, 3) uint16, by its opacity (H, W)."""
    kind = np.float32 if table is not None else np.uint8 if white == 255 else np.uint16
    out: Image = np.zeros((*plate.shape[:2], 4), kind)
    x, y, wide, high = cv2.boundingRect((opacity > 0).astype(np.uint8))
    place = np.s_[y : y + high, x : x + wide]
    under, apart = plate[place].astype(np.float32), merged[place].astype(np.float32)
    apart -= under
    room = np.where(apart > 0, 65535 - under, under)  # how far the colour of a pixel can go that way
    least = (np.maximum(np.abs(apart) - 1, 0) / np.maximum(room, 1)).max(2, initial=0)  # rounding asks for nothing
    solid = np.maximum(opacity[place], least)
    if table is not None:
        solid = solid.astype(np.float16).astype(np.float32)  # as it is written
        clear = (1 - solid)[..., None]
        out[place][..., :3] = np.where(clear < 1, table[merged[place]] - clear * table[plate[place]], 0)
        out[place][..., 3] = solid
        return out
    color = under + apart / np.maximum(solid, np.float32(1e-6))[..., None]
    scale = np.float32(white / 65535)
    out[place][..., :3] = np.clip(color, 0, 65535) * scale + np.float32(0.5)
    out[place][..., 3] = solid * white + np.float32(0.5)
    out[out[..., 3] == 0] = 0
    return out


# ---------------------------------------------------------------- files


def png(image: Image, say: Callable[[bytes], bytes]) -> bytes:
    """A PNG file of (H, W, 3 or 4) uint8 or uint16 RGB; `say` gives its XMP, knowing the coded pixels."""
    order = cv2.COLOR_RGBA2BGRA if image.shape[2] == 4 else cv2.COLOR_RGB2BGR
    coded = cv2.imencode(".png", cv2.cvtColor(image, order), PNG)[1].tobytes()
    body = b"iTXt" + KEYWORD + b"\0\0\0\0\0" + say(coded[PNG_HEAD:])
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return coded[:PNG_HEAD] + chunk + coded[PNG_HEAD:]


def tiff(image: Image, say: Callable[[bytes], bytes]) -> bytes:
    """The same as a TIFF file, of one strip; OpenCV's own does not say what the fourth channel is.

    TIFF 6.0, with deflate as in Adobe's technical notes of 2002; the predictor is the pixel to the left.
    """
    high, wide, channels = image.shape
    steps = image.copy()
    steps[:, 1:] -= image[:, :-1]
    coded = zlib.compress(steps.astype(steps.dtype.newbyteorder("<"), copy=False).tobytes(), 1)
    xmp, bits = say(coded), struct.pack(f"<{channels}H", *[8 * image.itemsize] * channels)
    xmp += b" " * (len(xmp) % 2)
    count = 13 + (channels == 4)
    after = 8 + 2 + 12 * count + 4  # header and directory
    short, long = 3, 4  # kinds of values; 1: bytes
    directory = [
        (256, long, 1, wide),
        (257, long, 1, high),
        (258, short, channels, after),  # bits per sample
        (259, short, 1, 8),  # deflate
        (262, short, 1, 2),  # RGB
        (273, long, 1, after + len(bits) + len(xmp)),  # where the strip lies
        (274, short, 1, 1),  # upright
        (277, short, 1, channels),
        (278, long, 1, high),  # rows of a strip
        (279, long, 1, len(coded)),
        (284, short, 1, 1),  # channels side by side
        (317, short, 1, 2),  # differences
        *([(338, short, 1, 2)] if channels == 4 else []),  # straight alpha
        (700, 1, len(xmp), after + len(bits)),
    ]
    entries = b"".join(struct.pack("<HHII", *entry) for entry in directory)
    return b"II*\0" + struct.pack("<IH", 8, count) + entries + bytes(4) + bits + xmp + coded


def exr(image: Image, say: Callable[[bytes], bytes], curve: light.Curve, primaries: int = 2) -> bytes:
    """The same of light (H, W, 3 or 4) float32 as an EXR file of half floats, which says by what formula it is light.

    The header is that of FFmpeg with attributes more; `primaries` as ITU-T H.273 numbers them, 2: unsaid.
    """
    coded = coded_exr(np.asarray(image, np.float32))
    end = EXR_HEAD
    while coded[end]:  # name, kind, size, value; an empty name ends the header
        kind = coded.index(b"\0", end) + 1
        size = coded.index(b"\0", kind) + 1
        end = size + 4 + int.from_bytes(coded[size : size + 4], "little")
    blocks = -(-image.shape[0] // 16)
    places = struct.unpack_from(f"<{blocks}Q", coded, end + 1)
    pixels = coded[end + 1 + 8 * blocks :]
    values = [("comments", "string", curve.says.encode()), ("xmp", "string", say(pixels))]
    if primaries in light.PRIMARIES:
        values.append(("chromaticities", "chromaticities", struct.pack("<8f", *light.PRIMARIES[primaries])))
    if curve.nits:
        values.append(("whiteLuminance", "float", struct.pack("<f", curve.nits)))
    more = b"".join(
        name.encode() + b"\0" + kind.encode() + b"\0" + struct.pack("<I", len(value)) + value
        for name, kind, value in values
    )
    moved = struct.pack(f"<{blocks}Q", *(place + len(more) for place in places))
    return coded[:end] + more + b"\0" + moved + pixels


Coder = Callable[[Image, Callable[[bytes], bytes]], bytes]
FORMATS: dict[str, Coder] = {"png": png, "tiff": tiff}  # and EXR, see `_lit`


def _lit(footage: Path, form: str) -> tuple[Coder, light.Curve | None]:
    """What codes images of a kind, and the curve that makes light of them, if they hold light.

    `UsageError`: unknown kind, or the footage's transfer function is unknown. Images are taken for sRGB.
    """
    if form != "exr":
        return FORMATS[form], None
    images = footage.is_dir() or is_image(footage)
    if images:
        return partial(exr, curve=light.CURVES[light.SRGB], primaries=1), light.CURVES[light.SRGB]
    colors = probe(footage).colors
    curve = light.curve(colors.transfer, footage.name)
    return partial(exr, curve=curve, primaries=colors.primaries), curve


def read_note(path: Path) -> tuple[Note, bool] | None:
    """What an image of ours says of itself, and whether its pixels are those that were written; None: not ours."""
    content = path.read_bytes()
    try:
        note = Note(**json.loads(noted(content) or "null"))
    except (ValueError, TypeError):
        return None
    return note, note.bytes > 0 and hashlib.sha256(content[-note.bytes :]).hexdigest() == note.sha256


def _index(folder: Path) -> dict[str, Any] | None:
    """What `faces.json` in a folder holds, {} if there is none, None if it is not ours."""
    try:
        held = json.loads((folder / INDEX).read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        return None
    return held if isinstance(held, dict) and str(held.get("made by", "")).startswith(MADE_BY) else None


# ---------------------------------------------------------------- the folder


def check(folder: Path, footage: Path, form: str = "png") -> None:
    """`UsageError` unless images of `footage` may be written into `folder`, beside those of ours that are there."""
    if folder.suffix.lower() in CONTAINERS or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{folder}: expected a folder for --frames, found the name of a file; a video is made with -o")
    files.refuse_same(folder, [footage])
    _ours(folder)
    _lit(footage, form)


def _ours(folder: Path) -> dict[Path, tuple[Note, bool]]:
    """What the images in `folder` say; `UsageError` if anything else is in it. What is hidden is left alone."""
    found, strange = {}, []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        known = read_note(path) if OURS.fullmatch(path.name) and path.is_file() else None
        if known is not None:
            found[path] = known
        elif path.name[0] != "." and (path.name != INDEX or _index(folder) is None):
            strange.append(path.name)
    if strange:
        raise UsageError(f"{folder}: found other files in it, such as {strange[0]}; choose another folder for --frames")
    return found


def _keep(folder: Path, key: str, made_from: Mapping[str, Any], overwrite: bool) -> dict[int, Note]:
    """The images in `folder` that are part of this work, by frame. Others, and changed ones, go if `overwrite`."""
    files.sweep_inside(folder)
    kept, old = {}, []
    for path, (note, whole) in _ours(folder).items():
        if note.key == key and whole and path.stem == f"{note.frame:06d}":
            kept[note.frame] = note
            continue
        old.append(path)
        if note.key == key and not overwrite:
            raise OutputExistsError(f"{path}: changed or damaged since it was made; move it away, or add --overwrite")
    if old and not overwrite:
        before = (_index(folder) or {}).get("made from", {})
        changed = [name for name in made_from if name in before and before[name] != made_from[name]]
        of = f"another {' and '.join(changed)}" if changed else "other work"
        raise OutputExistsError(f"{folder}: holds images of {of}; choose another folder or add --overwrite")
    if (_index(folder) or {}).get("key", key) != key:
        (folder / INDEX).unlink()  # first: it is said to be whole
    for path in old:
        path.unlink()
    return kept


def write_stills(
    footage: Path,  # a video, a folder of images, or one image
    folder: Path,
    swapper: Swapper,
    found: FoundFaces,
    *,
    alpha: bool = False,
    form: str = "png",  # or tiff, exr
    overwrite: bool = False,
    marks: Marker | None = None,  # default: `provenance.marker(folder)`
    part: range = WHOLE,  # frames of which images are made; each is called, and the same, as in the whole
) -> Report:
    """Swap the faces in `footage` into the folder of images `folder`, a file per frame, and `faces.json`.

    What is there of the same work is kept, also beside `part`; the images are the same, bit for bit, as without an
    interruption. `alpha` gives the drawn faces alone. `UsageError`: the folder holds other files, or `overwrite`
    is false and it holds images of other work, or one that was changed.
    """
    started = time.monotonic()
    check(folder, footage)
    frame_count(footage)  # a wrong name is said before anything is made
    marks = marks or marker(folder, stills=True)
    coder, curve = _lit(footage, form)
    made_from = {
        **what_decides(footage, swapper, found),
        "kind of image": {"alpha": alpha, "format": form, "marks": marks.on, "version": VERSION},
    }
    made_from = json.loads(json.dumps(made_from))  # as it will be read
    key = segments.key_of(made_from)
    tags = marks.tags(swapper.name)
    work = segments.folder_of(folder)  # where `swap.detecting` keeps what it found
    work.mkdir(parents=True, exist_ok=True)
    with segments.alone(work, folder):
        folder.mkdir(exist_ok=True)
        notes = _keep(folder, key, made_from, overwrite)
        kept = len(notes)
        if not _is_done(folder, key, notes, part):
            if kept:
                console.say(f"{folder}: {kept} images are kept from an earlier start")
            writer = _Writer(folder, form, coder, key, tags)
            for note in writer.write(_drawn(footage, swapper, found, alpha, curve, set(notes), part)):
                notes[note.frame] = note
            _write_index(folder, footage, swapper, key, made_from, tags, form, curve, notes, part)
    shutil.rmtree(work)
    faces = [len(note.faces) for note in notes.values()]
    if not any(faces):
        console.warn(f"{footage}: no face found in {len(notes)} frames; nothing was drawn")
    swapped = sum(count > 0 for count in faces)
    return Report(folder, len(notes), kept, swapped, sum(faces), time.monotonic() - started)


def _is_done(folder: Path, key: str, notes: Mapping[int, Note], part: range) -> bool:
    index = _index(folder) or {}
    if index.get("key") != key or not all(row["frame"] in notes for row in index["frames"]):
        return False
    return bool(index["whole"]) or (part != WHOLE and all(number in notes for number in part))


def _drawn(
    footage: Path,
    swapper: Swapper,
    found: FoundFaces,
    alpha: bool,
    curve: light.Curve | None,
    there: set[int],
    part: range,
) -> Iterator[tuple[Frame, Image, list[Laid]]]:
    """The pictures of `part` that are not there. Frames are drawn with those of their batch, and with all that they
    depend on."""
    batch, reach = swapper.recipe.batch, swapper.reach
    table = None if curve is None else curve.table()

    def needed() -> Iterator[Frame]:
        total = frame_count(footage)
        for frame in console.track(read_frames(footage), f"merging {footage.name}", total, "frames"):
            first = frame.index // batch * batch
            if first - reach >= part.stop:
                return
            near = range(max(part.start, first - reach), min(first + batch + reach, part.stop))
            if any(index not in there for index in near):
                yield frame

    for frame, faces in swapper.faces((frame, found.get(frame.index, [])) for frame in needed()):
        if frame.index in part and frame.index not in there:
            yield frame, *picture(frame, faces, alpha, table)


class _Writer:
    """Codes and writes images, several side by side."""

    def __init__(self, folder: Path, form: str, coder: Coder, key: str, tags: Mapping[str, str]) -> None:
        self.folder, self.form, self.coder, self.key, self.tags = folder, form, coder, key, tags

    def write(self, drawn: Iterable[tuple[Frame, Image, list[Laid]]]) -> Iterator[Note]:
        """Gives what each image says, once it is there."""
        waiting: deque[Future[Note]] = deque()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for frame, image, faces in drawn:
                rows = [{"track": one.track, "matrix": one.matrix.tolist(), "size": len(one.mask)} for one in faces]
                facts = (frame.index, float(frame.time), frame.source.name, rows)
                waiting.append(pool.submit(self._write_one, image, *facts))
                if len(waiting) > MOST_WAITING:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _write_one(self, image: Image, frame: int, time: float, source: str, faces: list[dict[str, Any]]) -> Note:
        notes: list[Note] = []

        def say(pixels: bytes) -> bytes:
            check = hashlib.sha256(pixels).hexdigest()
            notes.append(Note(self.key, frame, time, source, faces, len(pixels), check))
            return packet(self.tags, json.dumps(asdict(notes[0])))

        content = self.coder(image, say)
        with files.whole_file(self.folder / f"{frame:06d}.{self.form}", overwrite=False) as unfinished:
            unfinished.write_bytes(content)
        return notes[0]


def _write_index(
    folder: Path,
    footage: Path,
    swapper: Swapper,
    key: str,
    made_from: Mapping[str, Any],
    tags: Mapping[str, str],
    form: str,
    curve: light.Curve | None,
    notes: Mapping[int, Note],
    part: range,
) -> None:
    images = footage.is_dir() or is_image(footage)
    info = None if images else probe(footage)
    held = {
        "made by": f"{MADE_BY} {faceswap.__version__}",
        "marks": dict(tags),
        "convention": "matrix: (x, y) px of the frame, pixel centres at integers, to px of a crop of size x size",
        "footage": footage.name,
        "rate": None if info is None else str(info.rate),  # frames/s
        "colors": None if info is None else asdict(info.colors),  # by ITU-T H.273
        "source": swapper.name,  # who is drawn
        "whole": part == WHOLE,  # or only some of the footage's frames
        "light": None if curve is None else curve.says,  # None: the footage's own values
        "alpha": ("associated" if curve else "straight") if made_from["kind of image"]["alpha"] else None,
        "frames": [
            {"file": f"{number:06d}.{form}", "frame": number, "time": note.time, "footage": note.source}
            | {"faces": note.faces}
            for number, note in sorted(notes.items())
        ],
        "key": key,
        "made from": made_from,
    }
    with files.whole_file(folder / INDEX, overwrite=True) as unfinished:
        unfinished.write_text(json.dumps(held, indent=1))
