"""Every kind of footage through a whole merge, by each codec: what no face touches is there as it was."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import footage
import numpy as np
import pytest
from test_segments import BARE, Killed
from test_swap import face_at, swapper, weights
from test_video import make_clip, packets, planes, psnr, ramp, times, write_ffv1

from faceswap import blend, console, provenance, segments, signing, swap, video
from faceswap.found import FoundFaces
from faceswap.video import probe, read_frames

HOURS = 90 * 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights(tmp_path_factory.mktemp("model") / "pair.safetensors")


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the user was told."""
    messages: list[str] = []
    monkeypatch.setattr(console, "say", messages.append)
    monkeypatch.setattr(console, "warn", messages.append)
    return messages


def merge(model: Path, clip: Path, out: Path, found: FoundFaces | None = None, **recipe: object) -> Path:
    made = swapper(model, **({"crf": 0, "segment": 7} | recipe))
    swap.swap_video(clip, out, made, found or {}, marks=BARE)
    return out


def deep_clip(path: Path, pixel_format: str, frames: int = 3) -> Path:
    """A face that moves, 160 x 160, in the very samples."""
    shown = []
    for image in footage.performance("target", frames):
        native = av.VideoFrame.from_ndarray(image, "rgb24").reformat(
            format=pixel_format, dst_colorspace=1, dst_color_range=1
        )
        native.colorspace, native.color_range = 1, 1
        shown.append(native)
    return write_ffv1(path, shown)


MARKS = [0, 40, 80, 160, 163, 400, 401, 700, 1000, 1011]
KINDS: dict[str, Callable[[Path], Path]] = {
    "usual": lambda folder: make_clip(folder / "in.mp4"),
    "10 bit": lambda folder: make_clip(folder / "in.mp4", pixel_format="yuv420p10le", colors=(9, 16, 9, 1)),
    "12 bit": lambda folder: write_ffv1(folder / "in.mkv", [ramp("yuv422p12le", 9, 1)] * 9),
    "full range": lambda folder: make_clip(folder / "in.mp4", pixel_format="yuvj420p", colors=(1, 1, 1, 2)),
    "variable rate": lambda folder: make_clip(
        folder / "in.mp4", frames=10, ticks=lambda index: 500 + MARKS[index], time_base=Fraction(1, 600)
    ),
    "rotated": lambda folder: make_clip(folder / "in.mp4", rotation=90),
    "odd-sized": lambda folder: make_clip(folder / "in.mp4", size=(63, 47), pixel_format="yuv444p"),
    "odd halves": lambda folder: make_clip(
        folder / "in.mkv", size=(63, 47), codec="ffv1", pixel_format="yuv420p", sound=False
    ),
    "one frame": lambda folder: make_clip(folder / "in.mp4", frames=1),
    "silent": lambda folder: make_clip(folder / "in.mp4", sound=False),
    "5.1": lambda folder: make_clip(folder / "in.mp4", layout="5.1"),
    "90 minutes": lambda folder: make_clip(
        folder / "in.mp4", frames=10, sound=False, ticks=lambda i: 600 * HOURS // 9 * i, time_base=Fraction(1, 600)
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("codec", "suffix"), [("auto", ".mp4"), ("h265", ".mp4"), ("prores", ".mov")])
def test_footage_of_every_kind_comes_through(model: Path, tmp_path: Path, codec: str, suffix: str, kind: str) -> None:
    clip = KINDS[kind](tmp_path)
    out = merge(model, clip, tmp_path / f"out{suffix}", codec=codec)
    before, after = probe(clip), probe(out)
    assert times(out) == times(clip) and after.frames == len(times(clip))
    assert (after.width, after.height) == (before.width, before.height)
    assert packets(out) == packets(clip) if before.has_audio else not after.has_audio
    meant = [
        (info.colors.primaries, info.colors.transfer, *video._conversion(info.colors, info.width, info.height))
        for info in (before, after)
    ]
    if (codec, kind) == ("prores", "full range"):
        meant[0] = (*meant[0][:3], video.LIMITED)
    assert meant[0] == meant[1], "what it leaves unsaid may be said"
    with av.open(str(out)) as made, av.open(str(clip)) as given:
        layouts = [[stream.layout.name for stream in each.streams.audio] for each in (made, given)]
    assert layouts[0] == layouts[1]
    if kind == "90 minutes":
        assert times(out)[-1] == HOURS
    pairs = list(zip(read_frames(clip), read_frames(out), strict=True))
    if codec != "prores" and kind != "odd halves":
        assert all(planes(a) == planes(b) for a, b in pairs), "coded without loss: not one sample is another"
    else:
        assert min(psnr(a.image, b.image) for a, b in pairs) > (35 if kind != "odd halves" else 30)


@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "yuv422p10le", "yuv420p12le", "yuv422p12le", "yuv444p12le"])
def test_what_lies_beside_a_face_is_as_it_was(model: Path, tmp_path: Path, pixel_format: str) -> None:
    clip = deep_clip(tmp_path / "in.mkv", pixel_format)
    made, face = swapper(model), face_at(80, 78)
    ((_, (laid,)),) = made.faces([(next(read_frames(clip)), [face])])
    x0, y0, x1, y1 = blend.covered(swap.soft(laid, (160, 160)), laid.matrix, (160, 160)) or (0, 0, 0, 0)
    out = merge(model, clip, tmp_path / "out.mkv", {0: [face], 1: [face], 2: [face]})
    assert probe(out).pixel_format == pixel_format
    for before, after in zip(read_frames(clip), read_frames(out), strict=True):
        assert before.native is not None and after.native is not None
        for old, new in zip(video.planes(before.native), video.planes(after.native), strict=True):
            across, down = 160 // old.shape[1], 160 // old.shape[0]
            place = np.s_[y0 // down : -(-y1 // down), x0 // across : -(-x1 // across)]
            inside = np.zeros(old.shape, np.bool_)
            inside[place] = True
            assert np.array_equal(old[~inside], new[~inside])
            assert (old[place] != new[place]).any()
        luma = video.planes(after.native)[0][y0:y1, x0:x1]
        assert len(np.unique(luma)) > 256, "no trip through 8 bits"


@pytest.mark.parametrize(
    ("codec", "suffix"), [("h265", ".mp4"), ("h265", ".mkv"), ("prores", ".mov"), ("prores", ".mkv")]
)
def test_stopped_anywhere_the_file_is_the_same(
    model: Path, clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, suffix: str
) -> None:
    found: FoundFaces = {index: [face_at(80, 78)] for index in range(16)}
    how = {"codec": codec, "crf": 20, "segment": 5, "steady": 3, "batch": 2}
    whole = merge(model, clips["target"], tmp_path / f"whole{suffix}", found, **how)
    assert sum(1 for _ in read_frames(whole)) == 16
    out, write, count = tmp_path / f"out{suffix}", segments._write_one, 0

    def stop(*given: object) -> None:
        nonlocal count
        count += 1
        if count in (2, 4):
            raise Killed
        write(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(segments, "_write_one", stop)
    for _ in range(2):
        with pytest.raises(Killed):
            merge(model, clips["target"], out, found, **how)
    assert merge(model, clips["target"], out, found, **how).read_bytes() == whole.read_bytes()
    assert count == 6, "two of the four were there"


def test_prores_is_marked_and_signed_as_any_video(model: Path, clips: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.mov"
    swap.swap_video(clips["target"], out, swapper(model, codec="prores"), {0: [face_at(80, 78)]})
    assert provenance.verify(out).found == ("signed" if signing.available() else "tagged")
    with av.open(str(out)) as container:
        assert container.metadata["digitalsourcetype"] == provenance.SOURCE_TYPE
