"""Footage in and out: the only module that knows codecs, pixel formats and time stamps.

Reading gives `Frame`s one at a time, upright and in constant memory. Writing gives a file that matches the
one it was made from: size, frame times, pixel format, colour tags and sound.

Convention: pictures are (H, W, 3) uint8, RGB, full range, in the transfer function and primaries of the file
(no tone mapping); times are exact fractions of a second. YUV becomes RGB, and RGB YUV, with the matrix and
range that the file names. A file that names none is taken as players take it: BT.709 if its shorter side has
720 pixels, BT.601 if it has less; limited range, unless its pixel format is of the full-range `yuvj` kind.
"""

import errno
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self, SupportsBytes, cast

import av
import cv2
import numpy as np
from av.audio.stream import AudioStream
from av.codec.context import CodecContext, Flags
from av.container import InputContainer, OutputContainer
from av.stream import Disposition, Stream
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType
from av.video.reformatter import Colorspace, Interpolation
from av.video.stream import VideoStream
from numpy.typing import NDArray

from faceswap import console
from faceswap.errors import MediaError, UsageError
from faceswap.files import refuse_existing, whole_file

Image = NDArray[np.uint8] | NDArray[np.uint16]
Part = tuple[Fraction | None, Fraction | None]  # from, up to; in seconds of a video's own times; None: no such limit

WHOLE: Part = (None, None)
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"})
CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}  # what `VideoWriter` makes, by suffix


@dataclass(frozen=True)
class Codec:
    """How pictures are coded."""

    name: str  # as people call it
    encoder: str  # FFmpeg's name
    depths: tuple[int, ...]  # bits of a sample, ascending
    suffixes: frozenset[str]  # of the files that hold it
    tag: str  # in mp4 and mov; "": the muxer's own


CODECS = {
    "h264": Codec("H.264", "libx264", (8, 10), frozenset(CONTAINERS), ""),
    "h265": Codec("H.265", "libx265", (8, 10, 12), frozenset(CONTAINERS), "hvc1"),  # QuickTime plays no other tag
    "prores": Codec("ProRes", "prores_ks", (10,), frozenset({".mov", ".mkv"}), ""),
}
AUTO = "auto"  # H.264, or H.265 of footage with more bits than that takes

DURATION = "DURATION"  # Matroska's tag of a stream
TS_DISCONT = 0x0200  # FFmpeg's flag of formats whose clock may jump and start anywhere
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")

LIMITED, FULL = 1, 2  # colour ranges as FFmpeg numbers them
BT709_TAG, BT601_TAG = 1, 6  # ITU-T H.273 on matrices
MATRICES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}
SCALING = (  # swscale's fast paths darken each trip to RGB and back by a level and repeat chroma samples
    Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
)
DEEP = "gbrp16le"  # 16 bits of RGB; swscale gets green wrong where it makes rgb48 of 4:2:0 (FFmpeg 8)
CODER_THREADS = 4  # of an encoder: what x264 and x265 make depends on their number, so this is not the machine's
X265_DELAY = 2  # frames after which it knows when the first was decoded; so few are in order
PART_MARGIN, PART_STEP = 8, 16  # px that chroma needs around a part of a frame; where a part may begin
PART_KEPT = 32  # px at multiples of which a part that is kept begins and ends
SOUND_RATE = 44_100  # samples/s of the sound that `write_video` makes
USUAL_RATE = Fraction(25)  # frames/s of a file that names none, as FFmpeg takes it
# what a muxer says of itself: the new file has its own
MUXER_KEYS = frozenset({"major_brand", "minor_version", "compatible_brands", "encoder"})


@dataclass(frozen=True)
class Colors:
    """What a file says of its colour: ITU-T H.273 numbers (2: nothing), range 0 unsaid, 1 limited, 2 full."""

    primaries: int
    transfer: int
    matrix: int
    range: int


@dataclass(frozen=True)
class Mastering:
    """What a file says of the display it was graded on, and how bright it gets (SMPTE ST 2086, CTA-861.3)."""

    display: tuple[int, ...] = ()  # x, y of green, blue, red, white in 1/50000, most and least light in 1/10000 cd/m2
    brightest: tuple[int, ...] = ()  # cd/m2: pixel, frame on average

    def words(self, display: str, brightest: str) -> list[str]:
        """As x264 and x265 are told, which call the options differently."""
        named = "G({},{})B({},{})R({},{})WP({},{})L({},{})".format(*self.display) if self.display else ""
        given = ((display, named), (brightest, ",".join(map(str, self.brightest))))
        return [f"{name}={value}" for name, value in given if value]


class SeekError(MediaError):
    """A video does not decode from the middle as its packets say: read it from the beginning."""


@dataclass(frozen=True)
class VideoInfo:
    """A video as it will be read: sizes and pixel format are those of the upright frames."""

    path: Path
    width: int  # pixels
    height: int
    rate: Fraction  # frames/s on average, exact; 25 if the file does not say
    frames: int | None  # by the header, or duration times rate; None: the file says neither
    duration: float | None  # seconds
    has_audio: bool
    pixel_format: str  # FFmpeg's name
    time_base: Fraction  # seconds in one unit of its time stamps
    colors: Colors
    mastering: Mastering
    pixel_aspect: Fraction | None  # width / height of one pixel; None: not said
    interlaced: bool


class Frame:
    """One picture of a video or of a folder, with its place in time.

    `index` counts from 0, `time` is in seconds as in the file (an image's is its index), `source` the file.
    """

    def __init__(
        self,
        index: int,
        time: Fraction,
        source: Path,
        image: Image | None = None,
        *,
        native: av.VideoFrame | None = None,
    ) -> None:
        if (image is None) == (native is None):
            raise UsageError(f"{source}: frame {index}: expected an image or a decoded frame, one of the two")
        self.index, self.time, self.source = index, time, source
        self.native = native  # upright, as decoded; None once the image was replaced
        self._image = image
        self._part: tuple[tuple[int, int, int, int], bool, Image] | None = None  # what `part` made last: where, deep

    @property
    def image(self) -> Image:
        """(H, W, 3) RGB uint8, or uint16 from a 16-bit image file or a deep part put in; made when first asked for.

        That of a video is read-only, as an edit in place would never reach the file: copy it, edit the copy
        and use `with_image`.
        """
        if self._image is None:
            assert self.native is not None
            self._image = _rgb_from(self.native)
        return self._image

    @property
    def draft(self) -> Image:
        """Like `image`, to look at, quickly made: colours of a video are those of the usual matrix and range."""
        if self.native is None or self._image is not None:
            return self.image
        halves = self.native.format.name in ("yuv420p", "yuvj420p") and not (self.native.width | self.native.height) % 2
        if halves:
            return np.asarray(cv2.cvtColor(self.native.to_ndarray(), cv2.COLOR_YUV2RGB_I420), np.uint8)
        return self.native.to_ndarray(format="rgb24").astype(np.uint8, copy=False)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        if self._image is not None:
            return self._image.shape[0], self._image.shape[1]
        assert self.native is not None
        return self.native.height, self.native.width

    def part(self, x0: int, y0: int, x1: int, y1: int, *, deep: bool = False) -> Image:
        """`image[y0:y1, x0:x1]`, without making the rest of it; the rectangle lies inside the frame.

        deep: what was decoded in more than 8 bits is given as uint16, 65535 for white, and not in 8 bits.
        """
        deep = deep and self.native is not None and _bits(self.native.format) > 8
        if self.native is None or (self._image is not None and not deep):
            return self.image[y0:y1, x0:x1]
        made = self._part
        if made is None or made[1] != deep or not _inside((x0, y0, x1, y1), made[0]):
            made = self._part = self._made_part(x0, y0, x1, y1, deep)
        (left, top, _, _), _, image = made
        return image[y0 - top : y1 - top, x0 - left : x1 - left]

    def _made_part(
        self, x0: int, y0: int, x1: int, y1: int, deep: bool
    ) -> tuple[tuple[int, int, int, int], bool, Image]:
        """Where, whether deep, and pixels of a part that is a little larger: who wants one soon wants another there."""
        assert self.native is not None
        high, wide = self.shape
        x0, y0 = (first // PART_KEPT * PART_KEPT for first in (x0, y0))
        x1, y1 = min(-(-x1 // PART_KEPT) * PART_KEPT, wide), min(-(-y1 // PART_KEPT) * PART_KEPT, high)
        left, top = (max(0, first - PART_MARGIN) // PART_STEP * PART_STEP for first in (x0, y0))
        right, bottom = (-(-(last + PART_MARGIN) // PART_STEP) * PART_STEP for last in (x1, y1))
        right, bottom = min(right, wide), min(bottom, high)
        cut = _graph(self.native, f"crop={right - left}:{bottom - top}:{left}:{top}:exact=1")
        cut.vpush(self.native)
        around = _rgb_from(cut.vpull(), _conversion(_colors(self.native), wide, high), deep)
        return (x0, y0, x1, y1), deep, around[y0 - top : y1 - top, x0 - left : x1 - left]

    def with_part(self, x0: int, y0: int, part: Image, shown: NDArray[np.bool_]) -> "Frame":
        """The same moment with other pixels at a place: `part` (h, w, 3) RGB where `shown` (h, w) is true.

        Samples of a video that are not shown stay as they were decoded; only where the chroma is coarser it changes for
        whole cells. `part` is of the kind that `part(..., deep=True)` gives; x0 and y0 are even. What does not lie in
        planes, as RGB, becomes RGB as a whole.
        """
        high, wide = part.shape[:2]
        if self.native is None or not _in_planes(self.native.format):
            image = self.part(0, 0, *reversed(self.shape), deep=True).copy()
            place = image[y0 : y0 + high, x0 : x0 + wide]
            place[shown] = part[shown]
            return self.with_image(image)
        native = _copy(self.native)
        name, colors = native.format.name, _colors(native)
        fresh = _yuv_from(part, name, colors, _conversion(colors, native.width, native.height))
        for i, (ours, theirs) in enumerate(zip(planes(native), planes(fresh), strict=True)):
            if i < 3:  # the fourth is transparency
                across, down = -(-native.width // ours.shape[1]), -(-native.height // ours.shape[0])
                left, top = x0 // across, y0 // down
                place = ours[top : top + theirs.shape[0], left : left + theirs.shape[1]]
                where = shown if across == down == 1 else _any(shown, across, down)
                np.copyto(place, theirs, where=where)
        return Frame(self.index, self.time, self.source, native=native)

    def with_image(self, image: Image) -> "Frame":
        """The same moment with other pixels: (H, W, 3) RGB uint8, or uint16."""
        return Frame(self.index, self.time, self.source, image)

    def __repr__(self) -> str:
        return f"Frame({self.index}, {float(self.time):.3f} s, {self.source.name})"


def _inside(part: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return other[0] <= part[0] and other[1] <= part[1] and part[2] <= other[2] and part[3] <= other[3]


def is_image(path: Path) -> bool:
    """Whether `path` is a file with an image's suffix."""
    return path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES


def probe(path: Path) -> VideoInfo:
    """Header and first frame of a video. `MediaError`: missing, unreadable or not a video."""
    container, stream = _open(path)
    with container:
        first = next(_decode(container, stream, _Health()), None)
        if first is None:
            raise _undecodable(path, stream)
        upright = _Upright()(first)
        aspect = stream.sample_aspect_ratio or None
        seconds = _seconds(container, stream)
        return VideoInfo(
            path=path,
            width=upright.width,
            height=upright.height,
            rate=_rate(stream),
            frames=_expected(container, stream),
            duration=None if seconds is None else float(seconds),
            has_audio=bool(container.streams.audio),
            pixel_format=upright.format.name,
            time_base=_time_base(stream),
            colors=_colors(first),
            mastering=_mastering(first),
            pixel_aspect=1 / aspect if aspect and "transpose" in _turns(first) else aspect,
            interlaced=first.interlaced_frame,
        )


def frame_count(path: Path) -> int | None:
    """How many frames `read_frames` should give, by the header alone; None: the file does not say."""
    if path.is_dir() or is_image(path):
        return len(image_files(path))
    container, stream = _open(path)
    with container:
        return _expected(container, stream)


def file_tags(path: Path) -> dict[str, str]:
    """The tags of a video file. `MediaError`: see `probe`."""
    container, _ = _open(path)
    with container:
        return dict(container.metadata)


def read_frames(path: Path, *, every: int = 1) -> Iterator[Frame]:
    """The frames of a video, of a folder of images (natural order, no subfolders) or of one image.

    Only those whose index is a multiple of `every` are given. What does not decode is skipped, and told at
    the end; a skipped image keeps its index, a skipped frame of a video has none.
    `MediaError`: missing, not footage, or nothing in it decodes.
    """
    if every < 1:
        raise UsageError(f"every={every}: expected 1 (each frame) or more")
    if path.is_dir() or is_image(path):
        return _read_images(path, image_files(path), every)
    return _read_video(path, *_open(path), every)


def read_from(path: Path, start: int, stamps: Sequence[int] | None) -> Iterator[Frame]:
    """The frames of a video from number `start` on, as `read_frames` gives them.

    With the video's `time_stamps` it begins at the key frame before, and holds each frame against them: `SeekError` if
    one is damaged, missing or at another time, as then all that follow may have other numbers. None: decodes from the
    beginning.
    """
    if stamps is None:
        return (frame for frame in read_frames(path) if frame.index >= start)
    return _read_sought(path, *_open(path), start, stamps)


def time_stamps(path: Path) -> list[int] | None:
    """When each frame of a video is shown, in units of its time base, in order, as its packets say; nothing is decoded.

    None: its packets do not say, or it is of a format in which nothing can be found by time.
    """
    container, stream = _open(path)
    health, stamps = _Health(), []
    with container:
        if not container.format.name.startswith(("mov", "matroska")):
            return None
        for packet in _packets(container, stream, health):
            if packet is None or packet.size == 0 or packet.is_discard:
                continue
            if packet.pts is None or packet.is_corrupt:
                return None
            stamps.append(packet.pts)
    sound = health.fault_after is None and len(set(stamps)) == len(stamps) > 0
    return sorted(stamps) if sound else None


def frame_times(path: Path) -> list[Fraction]:
    """When each frame of a video is shown, in seconds: as its packets say, or else by decoding all of it."""
    stamps = time_stamps(path)
    if stamps is None:
        return [frame.time for frame in read_frames(path)]
    container, stream = _open(path)
    with container:
        base = _time_base(stream)
    return [stamp * base for stamp in stamps]


def start_of(path: Path) -> Fraction:
    """What in a video's own times, in seconds, players call 0."""
    container, _ = _open(path)
    with container:
        return _origin(container)


# Images


def exr(image: NDArray[np.float32]) -> bytes:
    """A picture (H, W, 3 or 4) RGB or RGBA as an OpenEXR file of half floats, in blocks of 16 lines (ZIP)."""
    high, wide, channels = image.shape
    nearest = image.astype(np.float16).astype(np.float32)  # FFmpeg cuts off what does not fit
    frame = av.VideoFrame.from_ndarray(nearest, "gbrpf32le" if channels == 3 else "gbrapf32le")
    coder = CodecContext.create("exr", "w")
    coder.width, coder.height, coder.pix_fmt, coder.time_base = wide, high, frame.format.name, 1 / USUAL_RATE
    coder.options, coder.thread_count = {"format": "half", "compression": "zip16"}, 1
    return b"".join(bytes(packet) for packet in [*coder.encode(frame), *coder.encode(None)])


def image_files(path: Path) -> list[Path]:
    """The images of a folder in the order of their frames, or the one image `path`. `MediaError` if there is none."""
    if not path.is_dir():
        return [path]
    files = (file for file in path.iterdir() if is_image(file) and not file.name.startswith("."))
    found = sorted(files, key=_natural)
    if not found:
        kinds = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
        raise MediaError(f"{path}: no image in this folder; expected files of type {kinds}")
    return found


def _natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Sort key by which frame2 comes before frame10."""
    parts = re.findall(r"\d+|\D+", path.name.lower())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], path.name


def _read_images(path: Path, files: list[Path], every: int) -> Iterator[Frame]:
    wanted = range(0, len(files), every)
    bad: list[str] = []
    for index in wanted:
        image = _load_image(files[index])
        if image is None:
            bad.append(files[index].name)
        else:
            yield Frame(index, Fraction(index), files[index], image)
    if len(bad) == len(wanted):
        raise MediaError(f"{path}: not one image decodes (the first is {bad[0]}); check or convert the files")
    if bad:
        console.warn(f"{path}: skipped {len(bad)} of {len(wanted)} images that do not decode, first {bad[0]}")


def _load_image(path: Path) -> Image | None:
    """RGB uint8 or uint16, upright by its EXIF tag, without alpha; None if it does not decode."""
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
        bgr = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except (OSError, cv2.error):
        return None
    if bgr is None or bgr.dtype not in (np.uint8, np.uint16):
        return None
    rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    return rgb.astype(np.uint16, copy=False) if rgb.dtype == np.uint16 else rgb.astype(np.uint8, copy=False)


# Video in


@dataclass
class _Health:
    """What decoding met."""

    decoded: int = 0
    fault_after: int | None = None  # frames decoded when the first fault was seen

    def fault(self) -> None:
        self.fault_after = self.decoded if self.fault_after is None else self.fault_after


def _open(path: Path) -> tuple[InputContainer, VideoStream]:
    if path.is_dir():
        raise MediaError(f"{path}: expected a video file, found a folder")
    if not path.exists():
        raise MediaError(f"{path}: no such file; check the name")
    try:
        container = av.open(str(path.absolute()), metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        raise _unreadable(path, error) from error
    stream = container.streams.best("video")
    still = container.format.name in ("tty", "image2") or container.format.name.endswith("_pipe")
    cover = stream is not None and bool(stream.disposition & Disposition.attached_pic)
    if not isinstance(stream, VideoStream) or still or cover or stream.codec_context is None:
        container.close()
        raise MediaError(f"{path}: expected a video, found no moving picture in it; give a video file")
    stream.thread_type = "AUTO"
    return container, stream


def _unreadable(path: Path, error: Exception) -> MediaError:
    if isinstance(error, PermissionError):
        return MediaError(f"{path}: may not be read; change its permissions")
    reason = getattr(error, "strerror", None) or str(error)
    return MediaError(f"{path}: expected a video, found no readable one ({reason}); give a file that plays")


def _undecodable(path: Path, stream: VideoStream) -> MediaError:
    return MediaError(f"{path}: {stream.codec_context.name} video of which no frame decodes; export it again")


def _rate(stream: VideoStream) -> Fraction:
    return stream.average_rate or stream.guessed_rate or stream.base_rate or USUAL_RATE


def _time_base(stream: VideoStream) -> Fraction:
    return stream.time_base or 1 / _rate(stream)


def _seconds(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """How long the video stream is, or else the whole file."""
    if stream.duration:
        return stream.duration * _time_base(stream)
    tag = re.match(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get(DURATION, ""))  # Matroska's: its end
    if tag:
        end = int(tag[1]) * 3600 + int(tag[2]) * 60 + Fraction(tag[3])
        return end - (stream.start_time or 0) * _time_base(stream)
    return Fraction(container.duration, av.time_base) if container.duration else None


def _expected(container: InputContainer, stream: VideoStream) -> int | None:
    """Frames to be shown, by the header."""
    if stream.frames > 0:
        if container.format.name.startswith("mov"):  # less what an edit list hides
            return sum(not entry.is_discard for entry in stream.index_entries) or stream.frames
        return stream.frames
    seconds = _seconds(container, stream)
    return None if seconds is None else max(1, round(seconds * _rate(stream)))


def _packets(
    container: InputContainer, stream: VideoStream, health: _Health
) -> Iterator["av.Packet[VideoStream] | None"]:
    """Packets up to the end or the first unreadable one; an empty last one empties the decoder."""
    try:
        yield from container.demux(stream)
    except av.FFmpegError:
        health.fault()
        yield None


def _decode(container: InputContainer, stream: VideoStream, health: _Health) -> Iterator[av.VideoFrame]:
    for packet in _packets(container, stream, health):
        if packet is not None and packet.is_corrupt:
            health.fault()
        try:
            frames = stream.codec_context.decode(packet)
        except av.FFmpegError:
            health.fault()
            continue
        for frame in frames:
            if frame.is_corrupt:
                health.fault()
            health.decoded += 1
            yield frame


def _decode_alike(
    path: Path, container: InputContainer, stream: VideoStream, health: _Health
) -> Iterator[av.VideoFrame]:
    """As `_decode`, but damage looks the same each time: from the first on one thread decodes, from the beginning."""
    whole, base, last = 0, _time_base(stream), None
    _tell_at_once(stream)
    for frame in _decode(container, stream, health):
        if health.fault_after is not None:
            break
        last = last if frame.pts is None else frame.pts * base
        yield frame
        whole += 1
    if health.fault_after is None and not _is_short(container, stream, whole, last):
        return
    console.say(f"{path.name}: damaged: decoded again, by one thread")
    health.decoded, health.fault_after = 0, None
    container, stream = _open(path)
    stream.thread_type, stream.codec_context.thread_count = "NONE", 1
    with container:
        yield from islice(_decode(container, stream, health), whole, None)


def _tell_at_once(stream: VideoStream) -> None:
    """Let damage be an error when it is met, not a mark on the frame that is shown later: others are made of it."""
    stream.codec_context.options = {"err_detect": "explode"}


def _read_video(path: Path, container: InputContainer, stream: VideoStream, every: int) -> Iterator[Frame]:
    base, rate, health, upright = _time_base(stream), _rate(stream), _Health(), _Upright()
    ticks = _Ticks(path.name, step=max(1, round(1 / (rate * base))))
    time: Fraction | None = None
    with container:
        for index, native in enumerate(_decode_alike(path, container, stream, health)):
            time = ticks.next(native.pts) * base
            if index % every == 0:
                yield Frame(index, time, path, native=upright(native))
        if health.decoded == 0:
            raise _undecodable(path, stream)
        _tell_damage(path, container, stream, health, time)


def _read_sought(
    path: Path, container: InputContainer, stream: VideoStream, start: int, stamps: Sequence[int]
) -> Iterator[Frame]:
    base, health, upright, index = _time_base(stream), _Health(), _Upright(), start
    error = SeekError(f"{path}: does not decode from frame {start} on as its packets say")
    with container:
        if start >= len(stamps):
            return
        if start:
            container.seek(stamps[start], stream=stream)
        _tell_at_once(stream)
        anchored = False  # by a picture that needs no other; a stream that is refreshed bit by bit has none
        for native in _decode(container, stream, health):
            if native.pts is None or health.fault_after is not None:
                raise error
            if index == start and native.pts <= stamps[start]:
                anchored = anchored or native.pict_type == PictureType.I
                if native.pts < stamps[start]:
                    continue
            if not anchored or index == len(stamps) or native.pts != stamps[index]:
                raise error
            yield Frame(index, native.pts * base, path, native=upright(native))
            index += 1
        if index != len(stamps) or health.fault_after is not None:
            raise error


def _is_short(container: InputContainer, stream: VideoStream, decoded: int, last: Fraction | None) -> bool:
    """Whether decoding ended before the header says: by frames where it counts them, else by time."""
    if stream.frames > 0:
        expected = _expected(container, stream)
        return expected is not None and decoded < expected
    seconds, step = _seconds(container, stream), 1 / _rate(stream)
    start = (stream.start_time or 0) * _time_base(stream)
    # Matroska says where the picture ends; the length of a whole file may be that of its sound.
    slack = Fraction(1, 10) if DURATION in stream.metadata else Fraction(1)
    return seconds is not None and last is not None and last + step + slack < start + seconds


def _tell_damage(
    path: Path, container: InputContainer, stream: VideoStream, health: _Health, last: Fraction | None
) -> None:
    """Warn if decoding met a fault, or ended before the header says. `last` is the last frame's time in seconds."""
    expected = _expected(container, stream)
    if health.fault_after is None and not _is_short(container, stream, health.decoded, last):
        return
    after = health.decoded if health.fault_after is None else health.fault_after
    total = "an unknown number" if expected is None else expected
    console.warn(
        f"{path.name}: damaged after frame {after} (of {total} expected): used what decodes, "
        f"{health.decoded} frames; export it again to have all"
    )


class _Ticks:
    """Time stamps that only grow: one that is missing or not later than the last is moved, and told once."""

    def __init__(self, name: str, step: int) -> None:
        self._name, self._step = name, step
        self._last: int | None = None
        self._told = False

    def next(self, wanted: int | None) -> int:
        """`wanted`, or the nearest time after the last one; in units of the time base."""
        last, tick = self._last, wanted
        if tick is None:
            tick = 0 if last is None else last + self._step
        elif last is not None and tick <= last:
            tick = last + 1
        if tick != wanted and not self._told:
            self._told = True
            console.warn(f"{self._name}: time stamps missing or repeated: moved so that each frame follows the last")
        self._last = tick
        return tick


# Upright


def _turns(frame: av.VideoFrame) -> str:
    """The filters that show `frame` as its display matrix asks: a transposition, then mirrors; "" for none.

    The matrix (nine int32, by rows, a b u c d v ...) sends the pixel (x, y) to (a x + c y, b x + d y). Not for
    every frame: one whose side data was looked at is freed late, by the cycle collector (PyAV 18).
    """
    sides = cast("Mapping[str, SupportsBytes]", frame.side_data)
    if "DISPLAYMATRIX" not in sides:
        return ""
    a, b, _, c, d = np.frombuffer(bytes(sides["DISPLAYMATRIX"]), np.int32)[:5].tolist()
    turned = abs(b) > abs(a)
    across, down = (c, b) if turned else (a, d)
    mirrors = [("transpose=cclock_flip", turned), ("hflip", across < 0), ("vflip", down < 0)]
    return ",".join(name for name, wanted in mirrors if wanted)


class _Upright:
    """Turns frames on their own planes, sample by sample.

    Where that cannot be (4:2:2 on its side is no format), FFmpeg first widens the chroma to 4:4:4.
    """

    def __init__(self) -> None:
        self._rotation: int | None = None
        self._turns = ""
        self._key: object = None
        self._graph = av.filter.Graph()

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        if frame.rotation != self._rotation:
            self._rotation, self._turns = frame.rotation, _turns(frame)
        turns = self._turns
        if not turns:
            return frame
        key = (turns, frame.width, frame.height, frame.format.name)
        if key != self._key:
            self._key, self._graph = key, _graph(frame, turns)
        self._graph.vpush(frame)
        return self._graph.vpull()


def _graph(frame: av.VideoFrame, turns: str) -> av.filter.Graph:
    graph = av.filter.Graph()
    buffer = graph.add(
        "buffer",
        video_size=f"{frame.width}x{frame.height}",
        pix_fmt=frame.format.name,
        time_base=str(frame.time_base or Fraction(1, av.time_base)),
        colorspace=str(int(frame.colorspace)),
        range=str(int(frame.color_range)),
    )
    filters = [graph.add(*turn.split("=", 1)) for turn in turns.split(",")]
    graph.link_nodes(buffer, *filters, graph.add("buffersink")).configure()
    return graph


# Colours


def _colors(frame: av.VideoFrame) -> Colors:
    """The tags of a YUV frame; an RGB one gets those of the YUV that will be made of it."""
    primaries, transfer = int(frame.color_primaries), int(frame.color_trc)
    if _is_rgb(frame.format):
        return Colors(primaries, transfer, _usual(frame.width, frame.height), LIMITED)
    spread = FULL if frame.format.name.startswith("yuvj") else int(frame.color_range)
    return Colors(primaries, transfer, int(frame.colorspace), spread)


def _mastering(frame: av.VideoFrame) -> Mastering:
    """By FFmpeg's AVMasteringDisplayMetadata (ten fractions, two flags) and AVContentLightMetadata."""
    sides = cast("Mapping[str, SupportsBytes]", frame.side_data)
    display: tuple[int, ...] = ()
    if "MASTERING_DISPLAY_METADATA" in sides:
        numbers = np.frombuffer(bytes(sides["MASTERING_DISPLAY_METADATA"]), np.int32)[:22].tolist()
        if all(numbers[20:]):
            top, bottom = numbers[:20:2], numbers[1:20:2]
            order = [*range(2, 6), 0, 1, 6, 7, 9, 8]  # from red, green, blue, white, least, most
            display = tuple(round(top[i] / bottom[i] * (50_000 if i < 8 else 10_000)) for i in order)
    brightest: tuple[int, ...] = ()
    if "CONTENT_LIGHT_LEVEL" in sides:
        brightest = tuple(np.frombuffer(bytes(sides["CONTENT_LIGHT_LEVEL"]), np.uint32)[:2].tolist())
    return Mastering(display, brightest)


def _usual(width: int, height: int) -> int:
    """The matrix of a picture that does not say it."""
    return BT709_TAG if min(width, height) >= 720 else BT601_TAG


def _is_rgb(pixels: av.VideoFormat) -> bool:
    return pixels.is_rgb or pixels.has_palette


def _conversion(colors: Colors, width: int, height: int) -> tuple[Colorspace, int]:
    """Matrix and range to compute with, also where the tags say nothing."""
    matrix = MATRICES.get(colors.matrix, MATRICES[_usual(width, height)])
    return matrix, FULL if colors.range == FULL else LIMITED


def _rgb_from(frame: av.VideoFrame, conversion: tuple[Colorspace, int] | None = None, deep: bool = False) -> Image:
    """(H, W, 3) RGB, read-only, uint8 or, if deep, uint16; a part of a frame needs the whole one's `_conversion`."""
    if deep and _is_rgb(frame.format):
        return _deep_rgb(frame)
    matrix, spread = conversion or _conversion(_colors(frame), frame.width, frame.height)
    rgb = frame.reformat(
        format=DEEP if deep else "rgb24",
        src_colorspace=matrix,
        src_color_range=FULL if _is_rgb(frame.format) else spread,
        dst_color_range=FULL,
        interpolation=SCALING,
        threads=1,  # starting more costs more than they gain
    )
    image: Image = rgb.to_ndarray()  # type: ignore[assignment]
    if deep:
        bits = _bits(frame.format) if spread == FULL else 8
        white = (2**bits - 1) << (16 - bits)  # as swscale makes it
        image = np.minimum((image.astype(np.uint32) * 65535 + white // 2) // white, 65535).astype(np.uint16)
    image.flags.writeable = False
    return image


def _deep_rgb(frame: av.VideoFrame) -> Image:
    """(H, W, 3) uint16, read-only, of an RGB frame of more than 8 bits: swscale's white is not always 65535."""
    white = 65535
    if re.fullmatch(rf"gbra?p1[0246]{sys.byteorder[0]}e", frame.format.name):
        green, blue, red = planes(frame)[:3]
        stacked, white = np.stack([red, green, blue], 2), 2 ** _bits(frame.format) - 1
    else:
        stacked = frame.reformat(format="rgb48le", threads=1).to_ndarray()
    image = ((stacked.astype(np.uint32) * 65535 + white // 2) // white).astype(np.uint16)
    image.flags.writeable = False
    return image


def _yuv_from(
    image: Image, pixel_format: str, colors: Colors, conversion: tuple[Colorspace, int] | None = None
) -> av.VideoFrame:
    """A picture (H, W, 3) RGB, uint8 or uint16, that may be part of another, whose conversion it needs."""
    if image.dtype == np.uint8 and _bits(av.VideoFormat(pixel_format)) > 8:
        image = image.astype(np.uint16) * np.uint16(257)
    if image.dtype == np.uint8:
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(image, np.uint8), "rgb24")
    else:
        dimmed = (image.astype(np.uint32) * 256 + 128) // 257  # swscale's white is 65280 on this way
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(dimmed, np.uint16), DEEP)
    return _fitted(rgb, pixel_format, colors, conversion)


def _limited(frame: av.VideoFrame, bits: int) -> av.VideoFrame:
    """A full-range YUV frame in limited range (ITU-T H.273, 8.3); `bits`: those that its samples had before."""
    copy, deep = _copy(frame), _bits(frame.format)
    white, unit = (2**bits - 1) * 2.0 ** (deep - bits), 2 ** (deep - 8)
    for i, plane in enumerate(planes(copy)[:3]):
        zero, black, span = (0, 16 * unit, 219 * unit) if i == 0 else (128 * unit, 128 * unit, 224 * unit)
        plane[:] = np.round((plane.astype(np.float32) - zero) * (span / white) + black)
    copy.color_range = LIMITED
    return copy


def _fitted(
    frame: av.VideoFrame, pixel_format: str, colors: Colors, conversion: tuple[Colorspace, int] | None = None
) -> av.VideoFrame:
    """`frame` in another pixel format, with matrix and range of `colors`; itself if it has that format.

    A part of a frame needs the whole one's `_conversion`.
    """
    if frame.format.name == pixel_format:
        return frame
    matrix, spread = conversion or _conversion(colors, frame.width, frame.height)
    return frame.reformat(
        format=pixel_format,
        src_colorspace=matrix,
        dst_colorspace=matrix,
        src_color_range=FULL if _is_rgb(frame.format) else spread,
        dst_color_range=spread,
        interpolation=SCALING,
        threads=1,
    )


# Planes


def _bits(pixels: av.VideoFormat) -> int:
    return int(pixels.components[0].bits)


def _in_planes(pixels: av.VideoFormat) -> bool:
    """Whether each component of a YUV format has a plane of its own, in this machine's byte order."""
    own = [component.plane for component in pixels.components] == list(range(len(pixels.components)))
    swapped = _bits(pixels) > 8 and pixels.is_big_endian != (sys.byteorder == "big")
    return own and len(pixels.components) >= 3 and not _is_rgb(pixels) and not swapped


def planes(frame: av.VideoFrame) -> list[Image]:
    """Views (h, w) of a frame's planes, uint8 or uint16."""
    kind: type[np.uint8] | type[np.uint16] = np.uint8 if _bits(frame.format) == 8 else np.uint16
    return [
        np.frombuffer(plane, kind).reshape(plane.height, -1)[:, : plane.width]  # type: ignore[call-overload]
        for plane in frame.planes
    ]


def _copy(frame: av.VideoFrame) -> av.VideoFrame:
    """A frame of its own with the same samples, colours and time: the decoder may still need the other."""
    copy = av.VideoFrame(frame.width, frame.height, frame.format.name)
    for ours, theirs in zip(planes(copy), planes(frame), strict=True):
        ours[:] = theirs
    if frame.time_base is not None:
        copy.pts, copy.time_base = frame.pts, frame.time_base
    copy.colorspace, copy.color_range = frame.colorspace, frame.color_range
    copy.color_primaries, copy.color_trc = frame.color_primaries, frame.color_trc
    return copy


def _any(shown: NDArray[np.bool_], across: int, down: int) -> NDArray[np.bool_]:
    """Whether anything is shown in each cell of `across` x `down` pixels; the last may be cut off."""
    high, wide = shown.shape
    cells = np.pad(shown, ((0, -high % down), (0, -wide % across)))
    places = [cells[y::down, x::across] for y in range(down) for x in range(across)]
    return np.asarray(np.logical_or.reduce(places))


def _encodable(info: VideoInfo, codec: str) -> str:
    """The pixel format of the output: the input's, or the nearest that the encoder takes, told if it differs.

    Nearest: YUV with no fewer bits and no less chroma, where there is such; RGB becomes 4:4:4, and so do odd sizes,
    which only ProRes halves. Transparency is kept by ProRes alone.
    """
    pixels = av.VideoFormat(info.pixel_format, info.width, info.height)
    bits, prores, made = _bits(pixels), codec == "prores", CODECS[codec]
    across, down = pixels.chroma_width(8) < 8, pixels.chroma_height(8) < 8
    odd = not prores and bool((across and info.width % 2) or (down and info.height % 2))
    taken = {pixels.name for pixels in av.Codec(made.encoder, "w").video_formats or ()}
    clear = _is_transparent(pixels)
    if info.pixel_format in taken and not odd and not _is_rgb(pixels) and (prores or not clear):
        return info.pixel_format
    chroma = "444" if odd or _is_rgb(pixels) or not across or (prores and clear) else "420" if down else "422"
    if prores and chroma == "420":
        chroma = "422"
    depth = next((depth for depth in made.depths if depth >= bits), made.depths[-1])
    found = f"yuv{'a' if prores and clear else ''}{chroma}p{'' if depth == 8 else f'{depth}le'}"
    reason = f"has no {info.width}x{info.height} in" if odd else "does not take"
    advice = "; --codec prores keeps its transparency" if clear and not prores else ""
    advice += "; --codec h265 keeps 12 bits" if bits > depth < 12 else ""
    lost = bits > depth or (clear and not prores) or odd or _is_rgb(pixels)
    tell = console.warn if lost else console.say
    tell(f"{info.path.name}: {made.name} {reason} {info.pixel_format}: written as {found}{advice}")
    return found


def _is_transparent(pixels: av.VideoFormat) -> bool:
    return not pixels.has_palette and len(pixels.components) in (2, 4) and "a" in pixels.name


# Video out


def check_name(path: Path, codec: str = AUTO) -> None:
    """`UsageError` unless a video can be written under this name, by `codec` of CODECS."""
    if path.suffix.lower() not in CONTAINERS:
        known, found = ", ".join(CONTAINERS), path.suffix or "no suffix"
        raise UsageError(f"{path}: expected a name ending in one of {known}, found {found}; rename it")
    if path.is_dir():
        raise UsageError(f"{path}: expected the name of a video, found a folder; choose another -o")
    if codec != AUTO and path.suffix.lower() not in CODECS[codec].suffixes:
        raise UsageError(f"{path}: {path.suffix} files do not take {CODECS[codec].name}; name it {path.stem}.mov")


def write_video(
    path: Path,
    images: Iterable[NDArray[np.uint8]],  # (H, W, 3) RGB, of one size, H and W even
    rate: Fraction,  # frames/s
    *,
    sound: NDArray[np.float32] | None = None,  # (samples,) mono in [-1, 1] at `SOUND_RATE`
    crf: int = 12,
    metadata: Mapping[str, str] | None = None,  # tags of the file
    overwrite: bool = False,
) -> int:
    """Write pictures that come from no other file as H.264 (4:2:0, 8 bit, BT.709) with AAC sound; gives how many.

    `UsageError` for an unknown suffix, `OutputExistsError`, `MediaError` if there is no picture or the disk is full.
    """
    check_name(path)
    colors, count = Colors(BT709_TAG, BT709_TAG, BT709_TAG, LIMITED), 0
    with whole_file(path, overwrite=overwrite) as partial, _explained(path):
        kind = CONTAINERS[path.suffix.lower()]
        options = {} if kind == "matroska" else {"movflags": "use_metadata_tags+faststart"}
        with av.open(str(partial), "w", format=kind, container_options=options) as output:
            output.metadata.update(dict(metadata or {}))
            quality = {"crf": str(crf), "preset": "veryfast", "x264-params": _x264_params()}
            video = output.add_stream("libx264", rate=rate, options=quality)
            video.pix_fmt, coder = "yuv420p", video.codec_context
            coder.thread_count = CODER_THREADS
            coder.color_primaries, coder.color_trc = colors.primaries, colors.transfer
            coder.colorspace, coder.color_range = colors.matrix, colors.range
            audio = None if sound is None else output.add_stream("aac", rate=SOUND_RATE, layout="mono")
            for image in images:
                if not count:
                    video.height, video.width = image.shape[:2]
                rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24")
                native = _fitted(rgb, "yuv420p", colors)
                native.pts, native.time_base, count = count, 1 / rate, count + 1
                output.mux(video.encode(native))
            if not count:
                raise MediaError(f"{path}: no frame was given, so no file was made")
            output.mux(video.encode(None))
            if audio is not None and sound is not None:
                samples = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
                samples.sample_rate = SOUND_RATE
                output.mux(audio.encode(samples))
                output.mux(audio.encode(None))
    return count


def _x264_params(*words: str) -> str:
    """Options of x264, and those by which it makes the same bits each time, and on any processor.

    Its code for AVX-512 reads memory that nobody wrote (seen in x264 165 of PyAV 18.1): AVX2 has to do.
    """
    has = {word.lstrip("*") for word in cv2.getCPUFeaturesLine().split()}
    best = ["asm=avx2,fma3,lzcnt,bmi1,bmi2"] if "AVX2" in has else []
    return ":".join(["cpu-independent=1", *best, *words])


@dataclass(frozen=True)
class Form:
    """How frames are encoded so that the result is like the video `info.path`: all that decides the bits."""

    info: VideoInfo
    codec: str  # of CODECS
    colors: Colors  # as tagged
    origin: Fraction  # seconds in that video's clock which are 0 in the new file
    pixel_format: str  # FFmpeg's name
    crf: int
    preset: str
    end: Fraction | None = None  # seconds in that clock up to which its sound is taken; None: all
    begins_within: bool = False  # whether sound from before `origin` is left out

    def takes(self, time: Fraction) -> bool:
        """Whether sound that begins at a time in seconds of the old file belongs to the new one."""
        return (time >= self.origin or not self.begins_within) and (self.end is None or time < self.end)

    def apply(self, coder: VideoCodecContext) -> None:
        """Set up its encoder."""
        info, colors = self.info, self.colors
        coder.width, coder.height, coder.pix_fmt = info.width, info.height, self.pixel_format
        coder.framerate, coder.time_base = info.rate, info.time_base
        coder.color_primaries, coder.color_trc = colors.primaries, colors.transfer
        coder.colorspace, coder.color_range = colors.matrix, colors.range
        if info.pixel_aspect:
            coder.sample_aspect_ratio = info.pixel_aspect
        coder.options = self.options
        coder.thread_count, coder.thread_type = CODER_THREADS, "FRAME"

    @property
    def options(self) -> dict[str, str]:
        """Those of the encoder."""
        light = self.info.mastering
        if self.codec == "prores":
            return {"profile": "4444" if "444" in self.pixel_format else "hq"}
        if self.codec == "h264":
            told = _x264_params(*light.words("mastering-display", "cll"))
            quality = {"crf": str(self.crf)} if self.crf else {"qp": "0"}
            return {"preset": self.preset, **quality, "x264-params": told}
        alike = ["log-level=none", "info=0", f"pools={CODER_THREADS}"]  # on any machine; info names that
        told = ":".join([*alike, *([] if self.crf else ["lossless=1"]), *light.words("master-display", "max-cll")])
        return {"preset": self.preset, "crf": str(self.crf), "x265-params": told}

    def tick(self, time: Fraction) -> int:
        """A time in seconds of the old file in units of the new one: one that is later is never less."""
        return math.floor((time - self.origin) / self.info.time_base + Fraction(1, 2))


def form_like(
    like: Path,
    *,
    crf: int = 15,  # quality: 0 lossless, 15 hardly visible loss, 23 x264's usual, 51 worst; ProRes has its own
    preset: str = "veryfast",  # x264, x265: ultrafast ... veryslow; slower makes smaller files
    codec: str = AUTO,  # or one of CODECS
    part: Part = WHOLE,  # what of `like` is made: its beginning is 0 in the new file
) -> Form:
    """How to encode like the video `like`, or a part of it; what will differ is told.

    `UsageError`: images; `MediaError`: as `probe`.
    """
    if like.is_dir() or is_image(like):
        raise UsageError(f"{like}: expected a video, found images; make a video of them, or write images")
    if not 0 <= crf <= 51 or preset not in PRESETS:
        raise UsageError(f"crf={crf}, preset={preset}: expected 0 to 51 and one of {', '.join(PRESETS)}")
    info = probe(like)
    if info.interlaced:
        console.warn(f"{like.name}: interlaced: written as progressive; deinterlace it first")
    if codec == AUTO:
        bits = _bits(av.VideoFormat(info.pixel_format))
        codec = "h264" if bits <= CODECS["h264"].depths[-1] else "h265"
        if codec == "h265":
            console.say(f"{like.name}: has {bits} bits: written as H.265; --codec h264 makes 10 bits")
    colors = info.colors
    if codec == "prores" and colors.matrix not in MATRICES:  # or FFmpeg guesses, by the height alone
        colors = replace(colors, matrix=_usual(info.width, info.height))
    if codec == "prores" and colors.range == FULL:
        console.warn(f"{like.name}: full range: ProRes has the limited one, to which it is converted")
        colors = replace(colors, range=LIMITED)
    if codec == "prores" and info.mastering != Mastering():
        console.warn(f"{like.name}: what it says of its mastering display (HDR10) is left out of ProRes")
    begin, end = part
    origin = start_of(like) if begin is None else begin
    return Form(info, codec, colors, origin, _encodable(info, codec), crf, preset, end, begin is not None)


class Encoder:
    """Frames of one stretch of a video, in order, to packets that need no others; None: the end."""

    def __init__(self, form: Form, coder: VideoCodecContext | None = None) -> None:
        self._form = form
        if coder is None:
            coder = cast(VideoCodecContext, CodecContext.create(CODECS[form.codec].encoder, "w"))
            coder.flags |= Flags.global_header
            form.apply(coder)
            coder.open()
        self._coder = coder
        self._ticks = _Ticks(form.info.path.name, step=1)
        self._count = 0

    @property
    def header(self) -> bytes:
        """What a decoder needs before the first packet."""
        return bytes(self._coder.extradata or b"")

    def __call__(self, frame: Frame | None) -> "list[av.Packet[VideoStream]]":
        """`UsageError`: size or type differ from those of the video."""
        native = None
        if frame is not None:
            self._count += 1
            native = self._native(frame)
            native.pts, native.time_base = self._ticks.next(self._form.tick(frame.time)), self._form.info.time_base
            native.pict_type = PictureType.NONE  # the encoder decides, not the encoder that made the input
        packets = self._coder.encode(native)
        if self._form.codec == "h265" and self._count <= X265_DELAY:
            for packet in packets:  # x265 has not set its clock yet, and gives times of decoding at random
                packet.dts = packet.pts
        return packets

    def _native(self, frame: Frame) -> av.VideoFrame:
        """The samples to encode: those decoded, or else made of the image."""
        form, info = self._form, self._form.info
        if frame.native is not None:
            shape, kind = (frame.native.height, frame.native.width, 3), "uint8"
        else:
            shape, kind = frame.image.shape, str(frame.image.dtype)
        wanted = (info.height, info.width, 3)
        kinds = ["uint8", "uint16"] if _bits(av.VideoFormat(info.pixel_format)) > 8 else ["uint8"]
        if shape != wanted or kind not in kinds:
            raise UsageError(
                f"{frame.source}: frame {frame.index}: expected {wanted} {' or '.join(kinds)} as in {info.path.name}, "
                f"found {shape} {kind}; convert it first"
            )
        if frame.native is None or (_is_rgb(frame.native.format) and _bits(frame.native.format) > 8):
            image = frame.part(0, 0, info.width, info.height, deep=True)
            return _yuv_from(image, form.pixel_format, form.colors)
        native = _fitted(frame.native, form.pixel_format, info.colors)
        return native if form.colors.range == info.colors.range else _limited(native, _bits(frame.native.format))


class VideoWriter:
    """Writes H.264, or what the form says, into a file that is otherwise like the video `like`; use it in a `with`.

    Size, frame times, rate, pixel format, colour tags, tags of the file and all sound (packet by packet, at
    its own times) come from `like`; subtitles and data streams are dropped. Give it either frames, or packets that
    `Encoder`s of the same form made. A frame whose image was not replaced is encoded from the samples that were
    decoded. mp4 and mov keep the unit of time; mkv rounds times to milliseconds. The file is there under its name only
    when the `with` ends without an error, and what it holds depends on nothing but what went in.
    """

    def __init__(
        self,
        path: Path,
        like: Path,
        *,
        crf: int = 15,  # as in `form_like`
        preset: str = "veryfast",
        codec: str = AUTO,
        form: Form | None = None,  # default: `form_like(like, crf, preset, codec)`
        overwrite: bool = False,
        metadata: Mapping[str, str] | None = None,  # tags of the file; before those of `like`
        finish: Callable[[Path], None] | None = None,  # may change the whole file before it takes its name
    ) -> None:
        """`UsageError`: unknown suffix; `OutputExistsError`; what `form_like` raises."""
        check_name(path)
        refuse_existing(path, overwrite)
        self.path, self.like = path, like
        self.form = form or form_like(like, crf=crf, preset=preset, codec=codec)
        check_name(path, self.form.codec)
        self.written = 0  # frames
        self._overwrite, self._metadata, self._finish = overwrite, dict(metadata or {}), finish
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack, _explained(self.path):
            partial = self._partial = stack.enter_context(whole_file(self.path, overwrite=self._overwrite))
            source, stream = _open(self.like)
            stack.enter_context(source)
            self._output = self._new_output(partial, _timescale(source, stream, self.form))
            stack.push(self._close)
            self._add_tags(source)
            self._video = self._add_video()
            self._sound = _Sound(source, self._output, self.like, self.path, self.form)
            self._begin()
            self._encoder = Encoder(self.form, self._video.codec_context)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:  # the caller's own, not to be explained
            self._stack.__exit__(kind, error, trace)
            return
        with _explained(self.path):
            self._stack.close()

    @property
    def header(self) -> bytes:
        """What a decoder needs before the first packet: packets that are written have to fit it."""
        return self._encoder.header

    def write(self, frame: Frame) -> None:
        """Add `frame`; times must grow. `UsageError`: size or type differ; `MediaError`: disk full."""
        with _explained(self.path):
            self._mux(self._encoder(frame))
        self.written += 1

    def write_packet(self, packet: "av.Packet[VideoStream]") -> None:
        """Add a frame that is encoded; in the order of decoding. `MediaError`: disk full."""
        with _explained(self.path):
            self._mux([packet])
        self.written += 1

    def _mux(self, packets: "Iterable[av.Packet[VideoStream]]") -> None:
        """Write packets, with the sound that belongs before them."""
        for packet in packets:
            if packet.dts is not None:
                self._sound.copy_until(packet.dts * self.form.info.time_base)
            packet.stream = self._video
            self._output.mux(packet)

    def _new_output(self, partial: Path, timescale: int) -> OutputContainer:
        kind = CONTAINERS[self.path.suffix.lower()]
        options = {
            "avoid_negative_ts": "disabled",  # or mkv moves all times by the encoder delay of the sound
            "fflags": "+bitexact",  # or mkv carries numbers drawn by lot
        }
        if kind != "matroska":
            options["movflags"] = "use_metadata_tags+faststart"
            options["movie_timescale"] = str(timescale)
        return av.open(str(partial.absolute()), "w", format=kind, container_options=options)

    def _add_tags(self, source: InputContainer) -> None:
        kept = {key: value for key, value in source.metadata.items() if key.lower() not in MUXER_KEYS}
        self._output.metadata.update(kept | self._metadata)

    def _add_video(self) -> VideoStream:
        codec = CODECS[self.form.codec]
        stream = cast(VideoStream, self._output.add_stream(codec.encoder, rate=self.form.info.rate))
        self.form.apply(stream.codec_context)
        if codec.tag and CONTAINERS[self.path.suffix.lower()] != "matroska":
            stream.codec_context.codec_tag = codec.tag
        stream.time_base = self.form.info.time_base
        return stream

    def _begin(self) -> None:
        """Write the header: here the container says whether it takes the sound."""
        self._video.codec_context.open()
        try:
            self._output.start_encoding()
        except av.ArgumentError as error:
            names = ", ".join(stream.codec_context.name for stream in self._output.streams.audio)
            raise MediaError(_refused(self.path, names)) from error

    def _close(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Finish the file, or after an error give it up: `whole_file` then removes it."""
        if error is not None:
            with suppress(av.FFmpegError, OSError):  # the error that counts is on its way already
                self._output.close()
            return
        if self.written == 0:
            raise MediaError(f"{self.path}: no frame was written, so no file was made; check {self.like.name}")
        self._mux(self._encoder(None))
        self._sound.copy_until(None)
        self._output.close()
        if self._finish is not None:
            self._finish(self._partial)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what FFmpeg and the system say while `path` is written into a `MediaError`."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        if error.errno == errno.ENOSPC:
            place = path.absolute().parent
            message = f"{path}: disk full in {place}; nothing was left there; free some space and repeat"
            raise MediaError(message) from error
        raise MediaError(f"{path}: cannot be written ({error.strerror or error})") from error


class _Sound:
    """The sound of one file on its way into another: packets as they are, read no further than needed."""

    def __init__(self, source: InputContainer, output: OutputContainer, like: Path, path: Path, form: Form) -> None:
        self._like, self._output, self._form = like, output, form
        self._streams = {stream.index: _copied(stream, output, path) for stream in source.streams.audio}
        self._packets = self._read(source)
        self._next = next(self._packets, None)

    def copy_until(self, time: Fraction | None) -> None:
        """Write the packets up to `time`, in seconds of the new file; None: all that are left."""
        while self._next is not None:
            packet, moment = self._next
            if time is not None and moment > time:
                return
            self._output.mux(packet)
            self._next = next(self._packets, None)

    def _read(self, source: InputContainer) -> Iterator[tuple["av.Packet[Stream]", Fraction]]:
        try:
            for packet in source.demux(*source.streams.audio) if self._streams else ():
                stamp = packet.pts if packet.dts is None else packet.dts
                if stamp is None or packet.size == 0:  # the mark at the end
                    continue
                if not self._form.takes(stamp * packet.time_base):
                    continue
                shift = round(self._form.origin / packet.time_base)
                packet.pts = None if packet.pts is None else packet.pts - shift
                packet.dts = None if packet.dts is None else packet.dts - shift
                moment = (stamp - shift) * packet.time_base
                packet.stream = self._streams[packet.stream.index]
                yield packet, moment
        except av.FFmpegError:
            console.warn(f"{self._like.name}: damaged: its sound was copied up to where it can be read")


def _copied(stream: AudioStream, output: OutputContainer, path: Path) -> Stream:
    """A stream of `output` that takes the packets of `stream`."""
    name = getattr(stream.codec_context, "name", "of unknown kind")
    try:
        copy = output.add_stream_from_template(stream)
    except (ValueError, av.FFmpegError) as error:
        raise MediaError(_refused(path, name)) from error
    copy.metadata.update(stream.metadata)
    copy.disposition = stream.disposition
    return copy


def _refused(path: Path, codecs: str) -> str:
    found = f"the sound is {codecs}, which {path.suffix} files do not take"
    return f"{path}: {found}; write to a file ending in .mkv"


def _timescale(source: InputContainer, video: VideoStream, form: Form) -> int:
    """Units per second in which mp4 says when a stream starts (rounded down): the coarsest that harms none.

    The sound of a part starts with any of its packets.
    """
    if form.begins_within:
        return 90_000
    starts = [
        (stream.start_time * stream.time_base - form.origin, stream.time_base)
        for stream in (video, *source.streams.audio)
        if stream.start_time is not None and stream.time_base is not None
    ]
    exact = math.lcm(*(base.denominator for _, base in starts))
    for scale in (1000, 90_000, exact):
        lost = [start - Fraction(math.floor(start * scale), scale) for start, _ in starts]
        if scale <= 2**31 - 1 and all(2 * late < base for late, (_, base) in zip(lost, starts, strict=True)):
            return scale
    return 90_000


def _origin(source: InputContainer) -> Fraction:
    """What is 0 s in the new file: the start of `source` if its clock has no zero (MPEG-TS), else its 0."""
    if source.format.flags & TS_DISCONT and source.start_time:
        return Fraction(source.start_time, av.time_base)
    return Fraction(0)
