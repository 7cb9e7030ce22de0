"""Tests of faceswap.video on small clips rendered here, and on real ones where they lie beside the project."""

import errno
import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from faceswap import console, files, video
from faceswap.errors import MediaError, OutputExistsError, UsageError
from faceswap.video import (
    Encoder,
    Frame,
    VideoWriter,
    form_like,
    frame_count,
    is_image,
    probe,
    read_frames,
    write_video,
)

CLIPS = Path(__file__).parents[1].parent / "shared/data/clips"
Picture = NDArray[np.uint8]


def picture(index: int, width: int, height: int) -> Picture:
    """A soft gradient without any symmetry, and a white block that moves; (H, W, 3) RGB."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([40 + 160 * x / width, 40 + 120 * y / height, np.full_like(x, 90.0, float)], axis=2)
    left = 2 * index % max(1, width - 16)
    image[4:16, left : left + 12] = 230
    return image.astype(np.uint8)


def tone(rate: int, seconds: float) -> NDArray[np.float32]:
    """A sine of 440 Hz, (1, N)."""
    return np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)[None].astype(np.float32)


def make_clip(
    path: Path,
    *,
    frames: int = 24,
    size: tuple[int, int] = (64, 48),
    rate: Fraction = Fraction(25),
    sound: bool = True,
    pixel_format: str = "yuv420p",
    codec: str = "libx264",
    audio_codec: str = "aac",
    layout: str = "mono",
    rotation: int = 0,
    matrix: Sequence[int] | None = None,
    colors: tuple[int, int, int, int] = (2, 2, 2, 0),  # primaries, transfer, matrix, range
    flat: tuple[int, int, int] | None = None,  # Y, U, V of all pixels, instead of `picture`
    ticks: Callable[[int], int] | None = None,  # time stamps in `time_base`
    time_base: Fraction | None = None,
    metadata: dict[str, str] | None = None,
    crf: int = 12,
) -> Path:
    """Render a clip: video of `frames` pictures and a sine wave of the same length."""
    base = time_base or 1 / rate
    options = {".mp4": {"movflags": "faststart"}, ".ts": {"output_ts_offset": "5"}}.get(path.suffix, {})
    with av.open(str(path), "w", container_options=options) as out:
        out.metadata.update(metadata or {})
        coder = {"crf": str(crf), "preset": "ultrafast", "g": "6", "bf": "2"} if codec == "libx264" else {}
        stream = out.add_stream(codec, rate=rate, options=coder, width=size[0], height=size[1], pix_fmt=pixel_format)
        stream.time_base = stream.codec_context.time_base = base
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = colors
        if rotation:
            stream.set_display_rotation(rotation)
        if matrix:
            stream.set_display_matrix(matrix)
        packets = []
        audio = out.add_stream(audio_codec, rate=48000, layout=layout) if sound else None
        for index in [*range(frames), None]:
            frame = None if index is None else yuv(index, size, pixel_format, flat)
            if frame is not None:
                frame.pts, frame.time_base = ticks(index) if ticks else index, base
            packets += stream.encode(frame)
        if audio is not None:
            channels = av.AudioLayout(layout).nb_channels
            wave = av.AudioFrame.from_ndarray(np.repeat(tone(48000, frames / rate), channels, 0), "fltp", layout)
            wave.sample_rate, wave.pts, wave.time_base = 48000, 0, Fraction(1, 48000)
            resampler = av.AudioResampler(audio.codec_context.format, layout, 48000, audio.frame_size or 960)
            for piece in [*resampler.resample(wave), *resampler.resample(None), None]:
                packets += audio.encode(piece)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            out.mux(packet)
    return path


def yuv(index: int, size: tuple[int, int], pixel_format: str, flat: tuple[int, int, int] | None) -> av.VideoFrame:
    if flat is None:
        return av.VideoFrame.from_ndarray(picture(index, *size), "rgb24").reformat(format=pixel_format)
    frame = av.VideoFrame(*size, pixel_format)
    for plane, value in zip(frame.planes, flat, strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    return frame


def encode(out: Path, like: Path, change: Callable[[Frame], Frame] = lambda frame: frame, **options: object) -> Path:
    with VideoWriter(out, like, **({"preset": "ultrafast"} | options)) as writer:  # type: ignore[arg-type]
        for frame in read_frames(like):
            writer.write(change(frame))
    return out


def redrawn(frame: Frame) -> Frame:
    return frame.with_image(frame.image.copy())


def times(path: Path) -> list[Fraction]:
    return [frame.time for frame in read_frames(path)]


def packets(path: Path, kind: str = "audio") -> list[tuple[Fraction, bytes]]:
    """Time and content of each packet of the first stream of a kind."""
    with av.open(str(path)) as container:
        stream = next(stream for stream in container.streams if stream.type == kind)
        found = container.demux(stream)
        return [(packet.pts * packet.time_base, bytes(packet)) for packet in found if packet.pts is not None]


def planes(frame: Frame) -> list[bytes]:
    """The samples of a decoded frame, without the padding of its lines."""
    assert frame.native is not None
    found = []
    for plane in frame.native.planes:
        lines = np.frombuffer(bytes(plane), np.uint8).reshape(plane.height, plane.line_size)
        found.append(lines[:, : plane.width].tobytes())
    return found


def psnr(a: video.Image, b: video.Image) -> float:
    return float(cv2.PSNR(np.ascontiguousarray(a), np.ascontiguousarray(b)))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the user was warned of."""
    messages: list[str] = []
    monkeypatch.setattr(console, "warn", messages.append)
    monkeypatch.setattr(console, "say", messages.append)
    return messages


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", metadata={"title": "a clip"})


# Reading


def test_probe_tells_what_the_file_holds(clip: Path) -> None:
    info = probe(clip)
    assert (info.width, info.height, info.rate, info.frames) == (64, 48, 25, 24)
    assert info.duration == pytest.approx(0.96, abs=0.05)
    assert info.has_audio and info.pixel_format == "yuv420p"
    assert frame_count(clip) == 24
    assert not is_image(clip)


def test_frames_come_in_order_with_their_times_and_colours(clip: Path, told: list[str]) -> None:
    frames = list(read_frames(clip))
    assert [frame.index for frame in frames] == list(range(24))
    assert [frame.time for frame in frames] == [Fraction(index, 25) for index in range(24)]
    assert all(frame.source == clip for frame in frames)
    assert frames[7].image.dtype == np.uint8
    assert psnr(frames[7].image, picture(7, 64, 48)) > 30
    assert frames[7].image is frames[7].image
    assert told == []


def test_an_image_of_a_video_cannot_be_edited_in_place(clip: Path) -> None:
    frame = next(read_frames(clip))
    with pytest.raises(ValueError, match="read-only"):
        frame.image[:] = 0
    other = frame.with_image(np.zeros((48, 64, 3), np.uint8))
    assert (other.index, other.time, other.source) == (frame.index, frame.time, frame.source)
    assert other.native is None and not other.image.any()


@pytest.mark.parametrize("every", [1, 5, 100])
def test_every_keeps_the_index(clip: Path, every: int) -> None:
    assert [frame.index for frame in read_frames(clip, every=every)] == list(range(0, 24, every))


def test_every_below_one_is_refused(clip: Path) -> None:
    with pytest.raises(UsageError, match="every=0"):
        read_frames(clip, every=0)


def test_frames_are_not_kept(clip: Path) -> None:
    alive: list[weakref.ref[Frame]] = []
    most = 0
    for frame in read_frames(clip):
        assert frame.image.any()
        alive.append(weakref.ref(frame))
        most = max(most, sum(ref() is not None for ref in alive))
    assert len(alive) == 24 and most <= 2


@pytest.mark.parametrize("rotation", [0, 90])
def test_decoded_frames_are_freed_at_once(tmp_path: Path, rotation: int) -> None:
    source = make_clip(tmp_path / "clip.mp4", sound=False, rotation=rotation)

    def alive() -> int:
        return sum(issubclass(type(item), av.VideoFrame) for item in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = alive()  # other tests may hold some
        assert sum(frame.image.shape[2] for frame in read_frames(source)) == 3 * 24
        assert alive() <= before + 2
    finally:
        gc.enable()


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_is_carried_out(tmp_path: Path, rotation: int) -> None:
    source = make_clip(tmp_path / "turned.mp4", frames=8, rotation=rotation)
    with av.open(str(source)) as container:
        assert next(container.decode(video=0)).rotation % 360 == rotation  # counter-clockwise, to show it upright
    upright = np.rot90(picture(3, 64, 48), rotation // 90)
    frame = list(read_frames(source))[3]
    assert frame.image.shape == upright.shape and psnr(frame.image, upright) > 30
    assert (probe(source).width, probe(source).height) == (upright.shape[1], upright.shape[0])
    copy = encode(tmp_path / "upright.mp4", source, crf=0)
    with av.open(str(copy)) as container:
        assert next(container.decode(video=0)).rotation == 0
    assert [planes(frame) for frame in read_frames(copy)] == [planes(frame) for frame in read_frames(source)]


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),  # a telephone held upright
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
    ],
)
def test_display_matrix_turns_and_mirrors(
    tmp_path: Path, matrix: tuple[int, int, int, int], shown: Callable[[Picture], Picture]
) -> None:
    a, b, c, d = (value << 16 for value in matrix)
    source = make_clip(tmp_path / "clip.mp4", frames=3, sound=False, matrix=(a, b, 0, c, d, 0, 0, 0, 1 << 30))
    frame = next(read_frames(source))
    expected = shown(picture(0, 64, 48))
    assert frame.image.shape == expected.shape and psnr(frame.image, expected) > 30


def test_rotated_422_widens_its_chroma(tmp_path: Path, told: list[str]) -> None:
    source = make_clip(tmp_path / "turned.mp4", frames=3, rotation=90, pixel_format="yuv422p", sound=False)
    assert probe(source).pixel_format == "yuv444p"
    assert psnr(next(read_frames(source)).image, np.rot90(picture(0, 64, 48))) > 30


def test_a_cut_file_gives_what_is_there_and_says_so(clip: Path, tmp_path: Path, told: list[str]) -> None:
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[: clip.stat().st_size * 6 // 10])
    frames = list(read_frames(cut))
    assert 3 < len(frames) < 24
    assert psnr(frames[2].image, picture(2, 64, 48)) > 30
    assert told[0] == "cut.mp4: damaged: decoded again, by one thread" and len(told) == 2
    assert told[1].startswith("cut.mp4: damaged after frame ") and "(of 24 expected)" in told[1]
    assert frame_count(cut) == 24


def test_a_cut_file_can_be_written_again(clip: Path, tmp_path: Path, told: list[str]) -> None:
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[: clip.stat().st_size * 6 // 10])
    out = encode(tmp_path / "out.mp4", cut)
    assert len(times(out)) == len(times(cut))


def test_a_file_of_which_nothing_decodes(clip: Path, tmp_path: Path) -> None:
    data = bytearray(clip.read_bytes())
    start = data.index(b"mdat") + 4
    data[start:] = bytes(len(data) - start)
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(bytes(data))
    for attempt in (probe, lambda path: list(read_frames(path))):
        with pytest.raises(MediaError, match=r"empty\.mp4: h264 video of which no frame decodes"):
            attempt(empty)


@pytest.mark.parametrize("name", ["notes.mp4", "notes.txt", "nothing.mp4"])
def test_what_is_no_video(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("" if name.startswith("nothing") else "these are not the frames\n" * 50)
    for attempt in (probe, read_frames, frame_count):
        with pytest.raises(MediaError, match=f"{name}: expected a video"):
            attempt(path)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.m4a"
    with av.open(str(path), "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=48000, layout="mono")
        wave = av.AudioFrame.from_ndarray(tone(48000, 1024 / 48000), "fltp", "mono")
        wave.sample_rate = 48000
        for piece in (wave, None):
            out.mux(stream.encode(piece))
    with pytest.raises(MediaError, match="no moving picture"):
        probe(path)


def test_missing_files(tmp_path: Path) -> None:
    for attempt in (probe, read_frames, frame_count):
        with pytest.raises(MediaError, match=r"no\.mp4: no such file"):
            attempt(tmp_path / "no.mp4")
    with pytest.raises(MediaError, match="found a folder"):
        probe(tmp_path)


def test_names_with_odd_characters(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    odd = Path("http:a %03d é.mp4")
    odd.write_bytes(clip.read_bytes())
    assert len(times(odd)) == 24
    assert len(times(encode(Path("out:%d.mp4"), odd))) == 24


def test_missing_time_stamps_follow_the_rate(tmp_path: Path, told: list[str]) -> None:
    source = make_clip(tmp_path / "raw.h264", sound=False)
    found = times(source)
    assert len(found) == 24
    assert all(late > early for early, late in pairwise(found))
    assert found[-1] == pytest.approx(23 / 25, abs=0.05)
    assert len([message for message in told if "time stamps" in message]) == 1
    assert times(encode(tmp_path / "out.mp4", source)) == found


def test_repeated_time_stamps_are_moved(tmp_path: Path, told: list[str]) -> None:
    source = tmp_path / "twice.mkv"
    make_clip(
        source,
        frames=6,
        sound=False,
        codec="ffv1",
        ticks=lambda index: 40 * (index // 2 * 2),
        time_base=Fraction(1, 1000),
    )
    found = [int(time * 1000) for time in times(source)]
    assert found == [0, 1, 80, 81, 160, 161]
    assert len(told) == 1 and "repeated" in told[0]


# Images


def write_image(path: Path, image: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    assert cv2.imwrite(str(path), image[..., ::-1])


def test_a_folder_of_images_in_natural_order(tmp_path: Path, told: list[str]) -> None:
    for number in (10, 9, 1):
        write_image(tmp_path / f"shot{number}.png", np.full((4, 6, 3), (number, 0, 200), np.uint8))
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_text("not an image")
    (tmp_path / "inner.png").mkdir()
    frames = list(read_frames(tmp_path))
    assert [frame.source.name for frame in frames] == ["shot1.png", "shot9.png", "shot10.png"]
    assert [frame.image[0, 0].tolist() for frame in frames] == [[1, 0, 200], [9, 0, 200], [10, 0, 200]]
    assert [frame.time for frame in frames] == [0, 1, 2]
    assert frame_count(tmp_path) == 3
    assert [frame.index for frame in read_frames(tmp_path, every=2)] == [0, 2]
    assert told == []


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".webp", ".tif", ".tiff", ".bmp"])
def test_a_single_image(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"face{suffix}"
    write_image(path, picture(0, 64, 48))
    (frame,) = read_frames(path)
    assert psnr(frame.image, picture(0, 64, 48)) > 28
    assert frame_count(path) == 1 and is_image(path)


def test_sixteen_bits_are_kept(tmp_path: Path) -> None:
    deep = np.full((4, 4, 3), (256, 1000, 65535), np.uint16)
    write_image(tmp_path / "deep.png", deep)
    (frame,) = read_frames(tmp_path / "deep.png")
    assert frame.image.dtype == np.uint16 and (frame.image == deep).all()


def test_grey_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    assert cv2.imwrite(str(tmp_path / "a.png"), np.full((4, 4), 77, np.uint8))
    assert cv2.imwrite(str(tmp_path / "b.png"), np.full((4, 4, 4), 88, np.uint8))
    assert [frame.image.shape for frame in read_frames(tmp_path)] == [(4, 4, 3)] * 2


def test_images_that_do_not_decode_are_counted(tmp_path: Path, told: list[str]) -> None:
    write_image(tmp_path / "a.png", picture(0, 8, 8))
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "c.jpg").write_bytes(b"no picture")
    write_image(tmp_path / "d.png", picture(0, 8, 8))
    assert [frame.index for frame in read_frames(tmp_path)] == [0, 3]
    assert told == [f"{tmp_path}: skipped 2 of 4 images that do not decode, first b.png"]


def test_folders_without_one_good_image(tmp_path: Path) -> None:
    for attempt in (read_frames, frame_count):
        with pytest.raises(MediaError, match="no image in this folder"):
            attempt(tmp_path)
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(MediaError, match=r"not one image decodes \(the first is a\.png\)"):
        list(read_frames(tmp_path))


# Colours


def coded(rgb: tuple[int, int, int], red: float, blue: float, full: bool) -> tuple[int, int, int]:
    """Y, U, V of a colour by the definition of the standards, from the weights of red and blue in luma."""
    r, g, b = (value / 255 for value in rgb)
    y = red * r + (1 - red - blue) * g + blue * b
    u, v = (b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)
    scale, chroma, black = (255, 255, 0) if full else (219, 224, 16)
    return round(black + scale * y), round(128 + chroma * u), round(128 + chroma * v)


STANDARDS = {
    "bt709": ((1, 1, 1, 1), (0.2126, 0.0722), "yuv420p", (64, 48)),
    "bt601": ((6, 6, 6, 1), (0.299, 0.114), "yuv420p", (64, 48)),
    "bt2020": ((9, 14, 9, 1), (0.2627, 0.0593), "yuv420p", (64, 48)),
    "full": ((1, 1, 1, 2), (0.2126, 0.0722), "yuvj420p", (64, 48)),
    "full444": ((6, 6, 6, 2), (0.299, 0.114), "yuv444p", (64, 48)),
    "untagged": ((2, 2, 2, 0), (0.299, 0.114), "yuv420p", (64, 48)),
    "untagged720": ((2, 2, 2, 0), (0.2126, 0.0722), "yuv420p", (1280, 720)),
}


@pytest.mark.parametrize("standard", STANDARDS)
def test_colours_are_right_in_both_directions(tmp_path: Path, standard: str) -> None:
    colors, weights, pixel_format, size = STANDARDS[standard]
    red, green = (200, 40, 90), (30, 190, 60)
    full = colors[3] == 2
    options = {"colors": colors, "pixel_format": pixel_format, "size": size, "sound": False, "crf": 0}
    source = make_clip(tmp_path / "in.mp4", frames=2, flat=coded(red, *weights, full), **options)
    for frame in read_frames(source):
        assert np.abs(frame.image.astype(int) - red).max() <= 2
    picture = np.full((size[1], size[0], 3), green, np.uint8)
    out = encode(tmp_path / "out.mp4", source, lambda frame: frame.with_image(picture), crf=0)
    first = next(read_frames(out))
    assert first.native is not None
    samples = [plane[len(plane) // 2] for plane in planes(first)]
    assert np.abs(np.subtract(samples, coded(green, *weights, full))).max() <= 1
    assert np.abs(first.image.astype(int) - green).max() <= 3
    assert probe(out).colors == probe(source).colors == video.Colors(*colors)


def test_rotated_colours_are_right(tmp_path: Path) -> None:
    flat = coded((200, 40, 90), 0.2126, 0.0722, False)
    source = make_clip(tmp_path / "in.mp4", frames=2, flat=flat, colors=(1, 1, 1, 1), rotation=90, sound=False)
    assert np.abs(next(read_frames(source)).image.astype(int) - (200, 40, 90)).max() <= 3


def test_a_redrawn_picture_does_not_shift_or_fade(clip: Path, tmp_path: Path) -> None:
    out = encode(tmp_path / "out.mp4", clip, redrawn, crf=0)
    for before, after in zip(read_frames(clip), read_frames(out), strict=True):
        difference = after.image.astype(float) - before.image
        assert abs(difference.mean()) < 0.5 and np.abs(difference).mean() < 1.5


# Writing


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("change", [lambda frame: frame, redrawn], ids=["native", "redrawn"])
def test_round_trip_keeps_everything(
    clip: Path, tmp_path: Path, told: list[str], suffix: str, change: Callable[[Frame], Frame]
) -> None:
    out = encode(tmp_path / f"out{suffix}", clip, change)
    before, after = probe(clip), probe(out)
    assert (after.width, after.height, after.frames) == (before.width, before.height, before.frames)
    assert after.rate == before.rate and after.pixel_format == before.pixel_format
    assert after.duration == pytest.approx(before.duration, abs=0.002)
    assert times(out) == times(clip)
    heard, expected = packets(out), packets(clip)
    assert [data for _, data in heard] == [data for _, data in expected]
    assert max(abs(a - b) for (a, _), (b, _) in zip(heard, expected, strict=True)) <= Fraction(1, 1000)
    if suffix != ".mkv":
        assert heard == expected and after.time_base == before.time_base
    assert list(tmp_path.iterdir()) == [out]
    assert told == []


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p"])
def test_untouched_frames_reach_the_encoder_bit_for_bit(tmp_path: Path, pixel_format: str) -> None:
    source = make_clip(tmp_path / "in.mp4", pixel_format=pixel_format, sound=False)
    out = encode(tmp_path / "out.mp4", source, crf=0)
    pairs = list(zip(read_frames(source), read_frames(out), strict=True))
    assert len(pairs) == 24
    for before, after in pairs:
        assert before.native is not None and after.native is not None
        assert before.native.format.name == after.native.format.name == pixel_format
        assert planes(before) == planes(after)


def test_the_new_encoder_places_its_own_key_frames(clip: Path, tmp_path: Path) -> None:
    def keys(path: Path) -> int:
        with av.open(str(path)) as container:
            return sum(packet.is_keyframe for packet in container.demux(video=0))

    assert keys(clip) == 4
    assert keys(encode(tmp_path / "out.mp4", clip)) == 1


def test_frames_that_the_file_hides_are_no_damage(tmp_path: Path, told: list[str]) -> None:
    source = make_clip(tmp_path / "in.mp4", sound=False, ticks=lambda index: index - 6)  # an edit list from 0 on
    assert times(source) == [Fraction(index, 25) for index in range(18)]
    assert frame_count(source) == 18
    assert times(encode(tmp_path / "out.mp4", source)) == times(source)
    assert told == []


def test_looking_at_a_frame_does_not_change_it(clip: Path, tmp_path: Path) -> None:
    def look(frame: Frame) -> Frame:
        assert frame.image.any()
        return frame

    out = encode(tmp_path / "out.mp4", clip, look, crf=0)
    assert [planes(frame) for frame in read_frames(out)] == [planes(frame) for frame in read_frames(clip)]


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize("rotation", [0, 90])
def test_a_part_is_cut_out_of_the_image(tmp_path: Path, pixel_format: str, rotation: int) -> None:
    how = {"pixel_format": pixel_format, "rotation": rotation}
    clip = make_clip(tmp_path / "in.mp4", frames=1, size=(210, 118), sound=False, **how)  # type: ignore[arg-type]
    for box in [(0, 0, 30, 20), (33, 41, 90, 97), (50, 1, 118, 118), (17, 100, 18, 101)]:
        (frame,) = read_frames(clip)
        part, (height, width) = frame.part(*box), frame.shape
        assert (height, width, 3) == frame.image.shape
        np.testing.assert_array_equal(part, frame.image[box[1] : box[3], box[0] : box[2]])
        np.testing.assert_array_equal(frame.part(*box), part)  # of an image that is made already


DEEP = ["yuv420p10le", "yuv422p10le", "yuv444p10le"]
PLANAR = ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", *DEEP]


@pytest.mark.parametrize("pixel_format", PLANAR)
@pytest.mark.parametrize("box", [(32, 32, 96, 64), (160, 96, 210, 118), (64, 0, 65, 3)])
def test_other_pixels_at_a_place_leave_the_rest_as_decoded(
    tmp_path: Path, pixel_format: str, box: tuple[int, int, int, int]
) -> None:
    clip = make_clip(tmp_path / "in.mkv", frames=1, size=(210, 118), sound=False, pixel_format=pixel_format)
    (frame,) = read_frames(clip)
    assert frame.native is not None
    before = [plane.copy() for plane in video.planes(frame.native)]
    part = frame.part(*box, deep=True)
    assert part.dtype == (np.uint16 if pixel_format in DEEP else np.uint8)
    shown = np.zeros(part.shape[:2], np.bool_)
    shown[::3, 1 if len(shown[0]) > 1 else 0 :: 4] = True
    white = np.iinfo(part.dtype).max
    fresh = frame.with_part(*box[:2], np.full_like(part, white // 2), shown)
    assert fresh.native is not None and fresh.native is not frame.native
    assert (fresh.index, fresh.time, fresh.native.format.name) == (frame.index, frame.time, frame.native.format.name)
    for i, (old, kept, new) in enumerate(
        zip(before, video.planes(frame.native), video.planes(fresh.native), strict=True)
    ):
        assert np.array_equal(old, kept), "the decoder's own picture is left alone"
        across, down = round(210 / old.shape[1]), round(118 / old.shape[0])
        rows, columns = np.nonzero(shown)
        where = np.zeros(old.shape, np.bool_)
        where[(rows + box[1]) // down, (columns + box[0]) // across] = True
        assert np.array_equal(new[~where], old[~where])
        grey = new[where].astype(float) / 2 ** (2 if pixel_format in DEEP else 0)
        middle = 127.5 if i == 0 and pixel_format == "yuvj420p" else 16 + 219 / 2 if i == 0 else 128
        assert np.abs(grey - middle).max() <= 1.01


@pytest.mark.parametrize("pixel_format", PLANAR)
def test_a_part_put_back_is_hardly_another(tmp_path: Path, pixel_format: str) -> None:
    clip = make_clip(tmp_path / "in.mkv", frames=1, size=(208, 118), sound=False, pixel_format=pixel_format)
    (frame,) = read_frames(clip)
    box = (32, 32, 160, 96)
    part = frame.part(*box, deep=True)
    fresh = frame.with_part(*box[:2], part, np.ones(part.shape[:2], np.bool_))
    again = fresh.part(*box, deep=True)
    error = np.abs(again.astype(float) - part)[8:-8, 8:-8].mean() / np.iinfo(part.dtype).max * 255
    assert error < (0.75 if "444" in pixel_format else 2.5)


def test_a_grey_ramp_of_ten_bits_comes_back(tmp_path: Path) -> None:
    native = av.VideoFrame(256, 64, "yuv420p10le")
    luma, *chroma = video.planes(native)
    luma[:] = np.linspace(64, 940, 256).round()
    for plane in chroma:
        plane[:] = 512
    frame = Frame(0, Fraction(0), tmp_path, native=native)
    part = frame.part(0, 0, 256, 64, deep=True)
    assert part.dtype == np.uint16 and part[0, 0].max() <= 64 and part[0, -1].min() >= 65535 - 64
    assert len(np.unique(part[0, :, 1])) > 250, "no trip through 8 bits"
    fresh = frame.with_part(0, 0, part, np.ones((64, 256), np.bool_))
    assert fresh.native is not None
    for old, new in zip(video.planes(native), video.planes(fresh.native), strict=True):
        assert np.abs(old.astype(int) - new).max() <= 1, "within a code value"


@pytest.mark.parametrize("pixel_format", ["gbrp", "rgb24"])
def test_what_is_not_in_planes_goes_through_rgb(tmp_path: Path, pixel_format: str) -> None:
    native = av.VideoFrame.from_ndarray(np.full((32, 64, 3), 90, np.uint8), "rgb24").reformat(format=pixel_format)
    frame = Frame(3, Fraction(1, 2), tmp_path, native=native)
    shown = np.zeros((16, 16), np.bool_)
    shown[2, 3] = True
    fresh = frame.with_part(32, 16, np.full((16, 16, 3), 200, np.uint8), shown)
    assert fresh.native is None and (fresh.index, fresh.time) == (3, Fraction(1, 2))
    assert (fresh.image[18, 35] == 200).all() and (fresh.image != 90).any(2).sum() == 1
    deep = Frame(0, Fraction(0), tmp_path, np.full((32, 32, 3), 40_000, np.uint16))
    part = deep.part(0, 0, 16, 16, deep=True)
    assert deep.with_part(0, 0, part + 5, shown).image[2, 3].tolist() == [40_005] * 3
    assert (deep.image == 40_000).all()


def test_a_part_of_a_large_frame_keeps_its_colours(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "in.mp4", frames=1, size=(1280, 720), flat=(120, 90, 170), sound=False)
    (frame,) = read_frames(clip)  # says nothing of its matrix: the size decides, and not the part's
    np.testing.assert_array_equal(frame.part(10, 10, 60, 60), frame.image[10:60, 10:60])


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "yuv444p", "yuv420p10le"])
def test_a_draft_looks_like_the_image(tmp_path: Path, pixel_format: str) -> None:
    clip = make_clip(tmp_path / "in.mp4", frames=1, size=(210, 118), pixel_format=pixel_format, sound=False)
    (frame,) = read_frames(clip)
    draft = frame.draft
    assert draft.shape == frame.image.shape and draft.dtype == np.uint8
    assert np.abs(draft.astype(float) - frame.image).mean() < 14  # of full range, taken for limited


@pytest.mark.parametrize("change", [lambda frame: frame, redrawn], ids=["native", "redrawn"])
def test_ten_bits_are_kept(tmp_path: Path, told: list[str], change: Callable[[Frame], Frame]) -> None:
    source = make_clip(tmp_path / "in.mp4", pixel_format="yuv420p10le", sound=False)
    out = encode(tmp_path / "out.mp4", source, change)
    assert probe(out).pixel_format == "yuv420p10le"
    assert psnr(list(read_frames(out))[5].image, picture(5, 64, 48)) > 30
    assert told == []


@pytest.mark.parametrize(
    ("size", "given", "made"),
    [
        ((63, 47), "yuv420p", "yuv444p"),
        ((63, 48), "yuv422p10le", "yuv444p10le"),
        ((64, 48), "bgr0", "yuv444p"),
        ((64, 48), "yuva420p", "yuv420p"),
        ((64, 48), "yuv422p12le", "yuv422p10le"),
        ((64, 48), "gbrp12le", "yuv444p10le"),
        ((64, 48), "yuv411p", "yuv422p"),
    ],
)
def test_what_h264_cannot_hold_becomes_the_nearest(
    tmp_path: Path, told: list[str], size: tuple[int, int], given: str, made: str
) -> None:
    source = make_clip(tmp_path / "in.mkv", frames=3, size=size, pixel_format=given, codec="ffv1", sound=False)
    assert probe(source).pixel_format == given
    for change in (lambda frame: frame, redrawn):
        out = encode(tmp_path / "out.mp4", source, change, codec="h264", overwrite=True)
        assert probe(out).pixel_format == made and (probe(out).width, probe(out).height) == size
        assert psnr(list(read_frames(out))[1].image, picture(1, *size)) > 28
    assert given in told[0] and f"written as {made}" in told[0]
    assert ("--codec h265 keeps 12 bits" in told[0]) == ("12" in given)
    assert ("--codec prores keeps its transparency" in told[0]) == ("a" in given)


@pytest.mark.parametrize(
    ("given", "made", "shown"),  # 4444 is decoded to 12 bits, of which two are empty
    [
        ("yuv420p", "yuv422p10le", "yuv422p10le"),
        ("yuv422p10le", "yuv422p10le", "yuv422p10le"),
        ("yuv420p12le", "yuv422p10le", "yuv422p10le"),
        ("yuv444p12le", "yuv444p10le", "yuv444p12le"),
        ("gbrp12le", "yuv444p10le", "yuv444p12le"),
        ("yuva420p", "yuva444p10le", "yuva444p12le"),
        ("yuva444p12le", "yuva444p10le", "yuva444p12le"),
    ],
)
@pytest.mark.parametrize("suffix", [".mov", ".mkv"])
@pytest.mark.parametrize("size", [(64, 48), (63, 47)])
def test_prores_has_ten_bits_and_keeps_transparency(
    tmp_path: Path, told: list[str], size: tuple[int, int], suffix: str, given: str, made: str, shown: str
) -> None:
    source = make_clip(tmp_path / "in.mkv", frames=3, size=size, pixel_format=given, codec="ffv1", sound=False)
    for change in (lambda frame: frame, redrawn):
        out = encode(tmp_path / f"out{suffix}", source, change, codec="prores", overwrite=True)
        assert probe(out).pixel_format == shown and (probe(out).width, probe(out).height) == size
        assert psnr(list(read_frames(out))[1].image, picture(1, *size)) > 28
        with av.open(str(out)) as container:
            assert container.streams.video[0].codec_context.codec_tag == ("apch" if "422" in made else "ap4h")
    assert (told == []) == (given == made) and all(f"written as {made}" in line for line in told)


@pytest.mark.parametrize("fmt", ["yuva444p12le", "yuva444p10le"])
def test_transparency_reaches_prores(tmp_path: Path, fmt: str) -> None:
    source, ramp = tmp_path / "in.mkv", np.linspace(0, 1, 64)
    native = av.VideoFrame(64, 48, fmt)
    for plane, value in zip(video.planes(native), (0.4, 0.5, 0.5, 1.0), strict=True):
        plane[:] = (
            np.round(ramp * value * (2 ** int(fmt[8:10]) - 1)) if value == 1 else int(value * 2 ** int(fmt[8:10]))
        )
    write_ffv1(source, [native])
    out = encode(tmp_path / "out.mov", source, codec="prores")
    (frame,) = read_frames(out)
    assert frame.native is not None
    assert np.abs(video.planes(frame.native)[3][20] / 4095 - ramp).max() < 0.6 / 1023 + 1e-9 + (0.5 / 1023)


def test_h265_is_played_by_quicktime_and_names_no_machine(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", frames=5, pixel_format="yuv420p10le")
    for suffix, tag in ((".mp4", "hvc1"), (".mov", "hvc1"), (".mkv", "")):
        out = encode(tmp_path / f"out{suffix}", source, codec="h265")
        with av.open(str(out)) as container:
            coder = container.streams.video[0].codec_context
            assert (coder.name, coder.profile) == ("hevc", "Main 10")
            assert not tag or coder.codec_tag == tag
        assert b"x265" not in out.read_bytes() and [d for _, d in packets(out)] == [d for _, d in packets(source)]


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_the_shortest_videos_of_h265(tmp_path: Path, frames: int) -> None:
    source = make_clip(tmp_path / "in.mp4", frames=frames, sound=False)
    for _ in range(12):  # what x265 leaves out was random
        out = encode(tmp_path / "out.mp4", source, codec="h265", overwrite=True)
        with av.open(str(out)) as container:
            stamps = [(p.dts, p.pts) for p in container.demux(video=0) if p.size]
        assert len(stamps) == frames and all(-1536 <= dts <= pts for dts, pts in stamps)


def test_a_codec_that_the_container_cannot_take(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"out\.mp4: \.mp4 files do not take ProRes; name it out\.mov"):
        VideoWriter(tmp_path / "out.mp4", clip, codec="prores")
    with pytest.raises(UsageError, match=r"do not take ProRes"):
        video.check_name(tmp_path / "out.mp4", "prores")
    video.check_name(tmp_path / "out.mov", "prores")


TAGS = [(9, 16, 9, 1), (9, 18, 9, 1), (1, 1, 1, 1), (6, 6, 6, 1), (9, 14, 9, 2), (12, 13, 1, 1)]


@pytest.mark.parametrize("colors", TAGS, ids=["pq", "hlg", "bt709", "bt601", "bt2020 full", "p3"])
@pytest.mark.parametrize(
    ("codec", "suffix"), [("h264", ".mp4"), ("h265", ".mp4"), ("h265", ".mkv"), ("prores", ".mov")]
)
def test_colour_tags_are_carried(
    tmp_path: Path, told: list[str], codec: str, suffix: str, colors: tuple[int, int, int, int]
) -> None:
    source = make_clip(tmp_path / "in.mp4", frames=2, pixel_format="yuv422p10le", colors=colors, sound=False)
    out = encode(tmp_path / f"out{suffix}", source, codec=codec)
    limited = codec == "prores" and colors[3] == 2
    assert probe(out).colors == video.Colors(*colors[:3], 1 if limited else colors[3])
    assert any("full range: ProRes has the limited one" in line for line in told) == limited
    assert psnr(next(read_frames(out)).image, next(read_frames(source)).image) > 35


def test_prores_says_the_matrix_that_was_meant(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", frames=1, size=(64, 736), sound=False)  # by its height FFmpeg says BT.709
    out = encode(tmp_path / "out.mov", source, codec="prores")
    assert (probe(source).colors.matrix, probe(out).colors.matrix) == (2, 6)


def test_what_is_said_of_the_mastering_display_is_carried(tmp_path: Path, told: list[str]) -> None:
    source, light = tmp_path / "in.mp4", "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
    with av.open(str(source), "w") as out:
        options = {"x265-params": f"log-level=none:master-display={light}:max-cll=1000,400"}
        stream = out.add_stream("libx265", rate=25, options=options, width=64, height=48, pix_fmt="yuv420p10le")
        for piece in (*(yuv(index, (64, 48), "yuv420p10le", None) for index in range(4)), None):
            out.mux(stream.encode(piece))
    wanted = video.Mastering((13250, 34500, 7500, 3000, 34000, 16000, 15635, 16450, 10000000, 50), (1000, 400))
    assert probe(source).mastering == wanted
    for codec in ("h264", "h265"):
        assert probe(encode(tmp_path / f"{codec}.mp4", source, codec=codec)).mastering == wanted
    assert told == []
    encode(tmp_path / "out.mov", source, codec="prores")
    assert any("mastering display (HDR10) is left out of ProRes" in line for line in told)


# Ramps


def write_ffv1(path: Path, frames: Sequence[av.VideoFrame]) -> Path:
    """The very samples in a file that is tagged as the frames are."""
    first = frames[0]
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=25, width=first.width, height=first.height, pix_fmt=first.format.name)
        coder = stream.codec_context
        coder.color_primaries, coder.color_trc = first.color_primaries, first.color_trc
        coder.colorspace, coder.color_range = first.colorspace, first.color_range
        for index, frame in enumerate(frames):
            frame.pts = index
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def ramp(pixel_format: str, matrix: int, spread: int, wide: int = 512) -> av.VideoFrame:
    """Grey from black to white, by the definition of the standards, in a large patch."""
    frame = av.VideoFrame(wide, 64, pixel_format)
    bits = frame.format.components[0].bits
    frame.colorspace, frame.color_range = matrix, spread
    luma, *chroma = video.planes(frame)
    black, white = (16 << (bits - 8), 235 << (bits - 8)) if spread == 1 else (0, 2**bits - 1)
    luma[:] = np.linspace(black, white, wide).round()
    for plane in chroma:
        plane[:] = 128 << (bits - 8)
    return frame


RAMPS = [f"yuv{chroma}p{bits}le" for bits in (10, 12) for chroma in (420, 422, 444)]


@pytest.mark.parametrize("pixel_format", RAMPS)
@pytest.mark.parametrize("matrix", [1, 6, 9])
@pytest.mark.parametrize("spread", [1, 2])
def test_a_deep_ramp_comes_back(tmp_path: Path, pixel_format: str, matrix: int, spread: int) -> None:
    native = ramp(pixel_format, matrix, spread)
    frame = Frame(0, Fraction(0), tmp_path, native=native)
    part = frame.part(0, 0, 512, 64, deep=True)
    assert part.dtype == np.uint16 and (part[:, 0] == 0).all() and (part[:, -1] == 65535).all()
    linear = np.linspace(0, 65535, 512)
    assert np.abs(part[0].astype(float) - linear[:, None]).max() <= 65535 / (2 ** int(pixel_format[7:9]) * 219 / 256)
    fresh = frame.with_part(0, 0, part, np.ones((64, 512), np.bool_))
    assert fresh.native is not None
    for old, new in zip(video.planes(native), video.planes(fresh.native), strict=True):
        assert np.abs(old.astype(int) - new).max() <= 1, "within a code value"


@pytest.mark.parametrize("pixel_format", RAMPS)
@pytest.mark.parametrize(("matrix", "spread"), [(1, 1), (6, 2), (9, 1), (9, 2)])
def test_a_deep_ramp_through_a_file(tmp_path: Path, pixel_format: str, matrix: int, spread: int) -> None:
    native = ramp(pixel_format, matrix, spread)
    source, bits = write_ffv1(tmp_path / "in.mkv", [native]), int(pixel_format[7:9])
    assert (probe(source).colors.matrix, probe(source).colors.range) == (matrix, spread)
    (whole,) = read_frames(encode(tmp_path / "out.mkv", source, crf=0))
    assert whole.native is not None and whole.native.format.name == pixel_format
    assert all(map(np.array_equal, video.planes(native), video.planes(whole.native))), "lossless: as it was"
    (less,) = read_frames(encode(tmp_path / "less.mkv", source, codec="h264", crf=0))
    assert less.native is not None and less.native.format.name == pixel_format.replace("12", "10")
    for i, (old, new) in enumerate(zip(video.planes(native), video.planes(less.native), strict=True)):
        part = 1023 / (2**bits - 1) if spread == 2 and i == 0 else 1 / 2 ** (bits - 10)
        assert np.abs(old * part - new).max() <= 1
    (limited,) = read_frames(encode(tmp_path / "out.mov", source, codec="prores"))
    assert limited.native is not None and probe(tmp_path / "out.mov").colors.range == 1
    deep = int(limited.native.format.name[7:9])  # 4444 is decoded to 12 bits
    wanted = np.linspace(64, 940, 512) * 2 ** (deep - 10)
    assert np.abs(video.planes(limited.native)[0] - wanted).max() <= 2 ** (deep - 10) * 2.1, "within the codec's error"


def test_a_deep_part_of_rgb_is_exact(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (32, 48, 3), np.uint16)
    for name, step in (("gbrp10le", 64), ("gbrp12le", 16), ("gbrp16le", 1), ("rgb48le", 1), ("gbrap12le", 16)):
        native = av.VideoFrame.from_ndarray(deep, "rgb48le").reformat(format=name)
        frame = Frame(0, Fraction(0), tmp_path, native=native)
        part = frame.part(16, 8, 40, 24, deep=True)
        assert np.abs(part.astype(int) - deep[8:24, 16:40]).max() < step
        shown = np.zeros(part.shape[:2], np.bool_)
        shown[3, 4] = True
        fresh = frame.with_part(16, 8, np.full_like(part, 1234), shown).image
        assert fresh.dtype == np.uint16 and (fresh[11, 20] == 1234).all()
        assert (fresh != frame.part(0, 0, 48, 32, deep=True)).any(2).sum() == 1


def test_sixteen_bits_of_rgb_are_written_deep(tmp_path: Path) -> None:
    image = np.repeat(np.linspace(0, 65535, 512).round().astype(np.uint16)[None, :, None], 64, 0).repeat(3, 2)
    source = write_ffv1(tmp_path / "in.mkv", [av.VideoFrame.from_ndarray(image, "rgb48le").reformat(format="gbrp12le")])
    for change in (lambda frame: frame, lambda frame: frame.with_image(image)):
        (frame,) = read_frames(encode(tmp_path / "out.mp4", source, change, crf=0, overwrite=True))
        assert frame.native is not None and frame.native.format.name == "yuv444p12le"
        assert np.abs(video.planes(frame.native)[0] - np.linspace(256, 3760, 512)).max() <= 1.5


def test_more_than_ten_bits_are_said_to_be_h265(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(console, "say", said.append)
    source = write_ffv1(tmp_path / "in.mkv", [ramp("yuv422p12le", 1, 1)])
    assert video.form_like(source).codec == "h265" and "has 12 bits: written as H.265" in said[0]
    assert video.form_like(source, codec="h264").pixel_format == "yuv422p10le"


def test_variable_frame_rate_is_kept(tmp_path: Path) -> None:
    marks = [0, 40, 80, 160, 163, 400, 401, 700, 1000, 1011]
    source = make_clip(
        tmp_path / "in.mp4", frames=10, ticks=lambda index: 500 + marks[index], time_base=Fraction(1, 600)
    )
    expected = times(source)
    assert [time - expected[0] for time in expected] == [Fraction(mark, 600) for mark in marks]
    assert expected[0] == pytest.approx(500 / 600, abs=0.0005)  # the clip's own muxer rounds its start
    for suffix in (".mp4", ".mov"):
        assert times(encode(tmp_path / f"out{suffix}", source)) == expected
    rounded = times(encode(tmp_path / "out.mkv", source))
    assert max(abs(a - b) for a, b in zip(rounded, expected, strict=True)) <= Fraction(1, 2000)


def test_a_whole_matroska_with_variable_frame_rate_is_no_damage_and_a_cut_one_is(
    tmp_path: Path, told: list[str]
) -> None:
    stamps = [0, 1, 2, 3, 9, 10, 20, 21, 22, 23, 24, 40, 41, 42, 43, 44, 45, 46, 47, 60, 61, 62, 63, 64]
    like = make_clip(tmp_path / "vfr.mp4", sound=False, ticks=stamps.__getitem__)
    whole = encode(tmp_path / "vfr.mkv", like)
    assert len(list(read_frames(whole))) == 24 and told == []
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    frames = list(read_frames(cut))
    assert 0 < len(frames) < 24
    assert len(told) == 2 and told[1].startswith("cut.mkv: damaged after frame ")


@pytest.mark.parametrize("name", ["in.mkv", "in.ts", "in.mp4"])
def test_from_the_first_damage_on_one_thread_decodes(
    name: str, tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several make something else of damage each time."""
    path = make_clip(tmp_path / name, frames=45, sound=False)
    data, rubbish = bytearray(path.read_bytes()), np.random.default_rng(0).bytes(600)
    data = data[: len(data) // 3] + rubbish + data[len(data) // 3 + 600 :]
    path.write_bytes(data)
    container, stream = video._open(path)
    stream.thread_type = "NONE"
    with container:
        calmly = [
            Frame(i, Fraction(0), path, native=n)
            for i, n in enumerate(video._decode(container, stream, video._Health()))
        ]
    decode, kinds = video._decode, []

    def noted(container: object, stream: av.VideoStream, health: object) -> Iterator[av.VideoFrame]:
        kinds.append(stream.thread_type.name)
        return decode(container, stream, health)  # type: ignore[arg-type]

    monkeypatch.setattr(video, "_decode", noted)
    frames = list(read_frames(path))
    assert kinds == ["AUTO", "NONE"] and "damaged after frame" in told[-1]
    assert [frame.index for frame in frames] == list(range(len(frames))) and 20 < len(frames) <= 45
    assert [planes(frame) for frame in frames] == [planes(frame) for frame in calmly]


def test_ntsc_rate_is_exact(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", rate=Fraction(30000, 1001))
    out = encode(tmp_path / "out.mp4", source)
    assert probe(out).rate == Fraction(30000, 1001)
    assert times(out) == [Fraction(1001 * index, 30000) for index in range(24)]


def test_a_clock_without_zero_starts_near_zero(tmp_path: Path) -> None:
    late = {"ticks": lambda index: 7 + 24 * index, "time_base": Fraction(1, 600)}  # by no whole millisecond
    source = make_clip(tmp_path / "in.ts", audio_codec="mp2", **late)
    before, heard_before = times(source), packets(source)
    assert before[0] >= 5
    out = encode(tmp_path / "out.mp4", source)
    after, heard_after = times(out), packets(out)
    shift = before[0] - after[0]
    assert 0 <= after[0] < Fraction(1, 10)
    assert [time + shift for time in after] == before
    assert heard_after[0][0] + shift == pytest.approx(float(heard_before[0][0]), abs=0.0001)


def test_a_clip_without_sound(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", sound=False)
    assert not probe(source).has_audio
    assert not probe(encode(tmp_path / "out.mp4", source)).has_audio


def test_sound_that_the_container_cannot_take(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", audio_codec="libopus")
    with pytest.raises(MediaError, match=r"opus, which \.mov files do not take; write to a file ending in \.mkv"):
        encode(tmp_path / "out.mov", source)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mkv"]
    out = encode(tmp_path / "out.mkv", source)
    assert [data for _, data in packets(out)] == [data for _, data in packets(source)]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_tags_of_the_file(clip: Path, tmp_path: Path, suffix: str) -> None:
    out = encode(tmp_path / f"out{suffix}", clip, metadata={"faceswap": '{"run": "ä"}', "comment": "made here"})
    with av.open(str(out)) as container:
        found = {key.lower(): value for key, value in container.metadata.items()}
    assert found["faceswap"] == '{"run": "ä"}' and found["comment"] == "made here"
    assert found["title"] == "a clip"
    over = encode(tmp_path / f"over{suffix}", clip, metadata={"title": "another"})
    with av.open(str(over)) as container:
        assert container.metadata["title"] == "another"


def test_mp4_starts_with_its_index(clip: Path, tmp_path: Path) -> None:
    data = encode(tmp_path / "out.mp4", clip).read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_an_existing_file_is_not_overwritten_unasked(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    out.write_text("precious")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        VideoWriter(out, clip)
    assert out.read_text() == "precious"
    assert len(times(encode(out, clip, overwrite=True))) == 24


def test_an_error_inside_leaves_nothing(clip: Path, tmp_path: Path) -> None:
    class OwnError(OSError):
        pass

    with pytest.raises(OwnError), VideoWriter(tmp_path / "deep/out.mp4", clip) as writer:
        for frame in read_frames(clip):
            writer.write(frame)
            if frame.index == 20:
                raise OwnError
    assert list((tmp_path / "deep").iterdir()) == []


def test_an_error_inside_leaves_the_old_file(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    out.write_text("old")
    with pytest.raises(KeyboardInterrupt), VideoWriter(out, clip, overwrite=True):
        raise KeyboardInterrupt
    assert out.read_text() == "old" and list(tmp_path.iterdir()) == [out]


def test_no_frame_no_file(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no frame was written"), VideoWriter(tmp_path / "out.mp4", clip):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(MediaError, match=f"disk full in {tmp_path}; nothing was left there"):
        encode(tmp_path / "out.mp4", clip)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_frames_are_written(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise av.error.OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(VideoWriter, "_mux", full)
    with pytest.raises(MediaError, match="disk full"):
        encode(tmp_path / "out.mp4", clip)
    assert list(tmp_path.iterdir()) == []


def test_wrong_use_of_the_writer(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"one of \.mp4, \.mov, \.mkv, found \.avi"):
        VideoWriter(tmp_path / "out.avi", clip)
    with pytest.raises(UsageError, match="found images"):
        VideoWriter(tmp_path / "out.mp4", tmp_path)
    write_image(tmp_path / "face.png", picture(0, 8, 8))
    with pytest.raises(UsageError, match="found images"):
        VideoWriter(tmp_path / "out.mp4", tmp_path / "face.png")
    with pytest.raises(UsageError, match="crf=60"):
        VideoWriter(tmp_path / "out.mp4", clip, crf=60)
    with pytest.raises(UsageError, match="preset=quick"):
        VideoWriter(tmp_path / "out.mp4", clip, preset="quick")


@pytest.mark.parametrize("image", [np.zeros((48, 62, 3), np.uint8), np.zeros((48, 64, 3), np.uint16)])
def test_an_image_of_another_size_or_type(clip: Path, tmp_path: Path, image: video.Image) -> None:
    with pytest.raises(UsageError, match=r"frame 0: expected \(48, 64, 3\) uint8"):
        encode(tmp_path / "out.mp4", clip, lambda frame: frame.with_image(image))


def test_a_writer_accepts_a_part_of_the_frames(clip: Path, tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "out.mp4", clip) as writer:
        for frame in read_frames(clip, every=4):
            writer.write(frame)
        assert writer.written == 6
    assert times(tmp_path / "out.mp4") == [Fraction(4 * index, 25) for index in range(6)]
    assert packets(tmp_path / "out.mp4") == packets(clip)


# Real clips


@pytest.fixture
def stage() -> Iterator[Path]:
    path = CLIPS / "stage_cuts.mp4"
    if not path.exists():
        pytest.skip(f"no real clips in {CLIPS}")
    yield path


def test_a_real_clip_keeps_frames_times_and_sound(stage: Path, tmp_path: Path, told: list[str]) -> None:
    out = encode(tmp_path / "out.mp4", stage, crf=30)
    assert len(times(stage)) == 275
    assert times(out) == times(stage)
    assert times(out)[0] == Fraction(10214, 11988)
    assert packets(out) == packets(stage)
    assert packets(out)[0][0] == Fraction(353, 44100)
    assert told == []


# A video of pictures


def patches() -> NDArray[np.uint8]:
    """Flat patches of colour (64, 96, 3), larger than the codec's blocks."""
    colors = [(200, 40, 40), (40, 180, 60), (50, 60, 200), (128, 128, 128), (235, 220, 60), (20, 20, 20)]
    return np.kron(np.array(colors, np.uint8).reshape(2, 3, 3), np.ones((32, 32, 1), np.uint8))


def test_pictures_become_a_video_with_their_colours_times_sound_and_tags(tmp_path: Path) -> None:
    out, image = tmp_path / "made.mp4", patches()
    sound = np.sin(np.arange(video.SOUND_RATE) / 20).astype(np.float32) / 3
    count = video.write_video(out, iter([image] * 30), Fraction(30), sound=sound, metadata={"comment": "made"})
    info = probe(out)
    assert count == info.frames == 30 and info.rate == 30 and info.has_audio
    assert (info.width, info.height, info.pixel_format) == (96, 64, "yuv420p")
    assert (info.colors.matrix, info.colors.range) == (1, 1), "BT.709, limited, and it says so"
    frames = list(read_frames(out))
    assert [frame.time for frame in frames] == [Fraction(i, 30) for i in range(30)]
    for row in range(2):
        for column in range(3):
            where = (slice(32 * row + 8, 32 * row + 24), slice(32 * column + 8, 32 * column + 24))
            assert np.abs(frames[15].image[where].astype(int) - image[where]).max() <= 4
    with av.open(str(out)) as container:
        assert container.metadata["comment"] == "made"


def test_a_video_of_no_pictures_is_none(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no frame was given"):
        video.write_video(tmp_path / "none.mp4", iter([]), Fraction(25))
    with pytest.raises(UsageError, match="ending in one of"):
        video.write_video(tmp_path / "none.gif", iter([patches()]), Fraction(25))
    (tmp_path / "mine.mkv").write_text("mine")
    with pytest.raises(OutputExistsError):
        video.write_video(tmp_path / "mine.mkv", iter([patches()]), Fraction(25))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.mkv"]
    video.write_video(tmp_path / "mine.mkv", iter([patches()]), Fraction(25), overwrite=True)
    assert probe(tmp_path / "mine.mkv").frames == 1


def test_a_part_that_is_kept_serves_those_inside_it(tmp_path: Path) -> None:
    frame = next(read_frames(make_clip(tmp_path / "in.mp4", size=(160, 120))))
    other = next(read_frames(tmp_path / "in.mp4"))
    for x0, y0, x1, y1 in ((40, 40, 100, 90), (50, 45, 96, 96), (0, 0, 33, 33), (20, 10, 160, 120), (60, 60, 61, 61)):
        assert np.array_equal(frame.part(x0, y0, x1, y1), other.image[y0:y1, x0:x1])
    assert frame.part(60, 60, 90, 90).base is frame.part(30, 30, 61, 61).base


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_what_is_encoded_does_not_hang_on_what_lay_in_memory(codec: str, tmp_path: Path) -> None:
    """As x264 does where it uses AVX-512."""
    lot = np.random.default_rng(0)
    images = [cv2.GaussianBlur(lot.integers(0, 256, (96, 96, 3), np.uint8), (0, 0), 4) for _ in range(24)]

    def littered() -> Iterator[NDArray[np.uint8]]:
        for image in images:
            litter = [np.full(lot.integers(1000, 400_000), lot.integers(256), np.uint8) for _ in range(20)]
            del litter
            yield image

    clip, made, again = tmp_path / "clip.mp4", set(), set()
    for _ in range(6):
        write_video(clip, littered(), Fraction(25), overwrite=True)
        made.add(clip.read_bytes())
        encoder, packets = Encoder(form_like(clip, codec=codec)), b""
        for index, image in enumerate(littered()):
            packets += b"".join(map(bytes, encoder(Frame(index, Fraction(index, 25), clip, image))))
        again.add(packets + b"".join(map(bytes, encoder(None))))
    assert len(made) == len(again) == 1
