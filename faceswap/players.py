"""What the players of .dfm files do around a model, to see here how it will look there.

Each cuts a face out in its own way, which is not the way of training, and lays it back in its own way. The facts were
observed of facefusion 3.8, DeepFaceLive (2024-10) and VisoMaster (2025-02), with what each does when nothing is set;
what is done here in OpenCV is like it, not equal to it.

Convention: crops are (S, S, 3) float32 RGB in [0, 1], masks (S, S) float32 in [0, 1]; a crop's points are five, as in
`align`, in units of its side.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from faceswap import align, blend, color, console, detectors, files
from faceswap.config import Recipe
from faceswap.detectors import Face
from faceswap.errors import FacesetError, UsageError
from faceswap.faceset import spread
from faceswap.video import Frame, frame_count, read_frames

Image = NDArray[np.float32]
Numbers = NDArray[np.float64]
Draw = Callable[[Image, float], tuple[Image, Image, Image]]  # see `dfm.Dfm.__call__`

# An average face in DeepFaceLab's whole-face crop, which is 2.1313708 units of its template wide, and in that of
# DeepFaceLive: 2.2 wide and 1 % higher, in which the landmarks of its own that it fits make faces 2.1 % smaller.
_WHOLE = np.array(
    [
        [0.37120582, 0.39959060],
        [0.61952933, 0.39959060],
        [0.49536777, 0.54017368],
        [0.38465123, 0.66432288],
        [0.60608384, 0.66432288],
    ]
)
_LIVE = ((_WHOLE - 0.5) * 2.1313708 + [0, 0.01]) / (2.2 * 0.898 / 0.879) + 0.5
_ARCFACE = np.array(
    [
        [0.36167656, 0.40387734],
        [0.63696719, 0.40235469],
        [0.50019687, 0.56044219],
        [0.38710391, 0.72160547],
        [0.61507734, 0.72034453],
    ]
)

CELL, LABEL = 128, 20  # px, of a sheet
AROUND = 1.6  # of a crop's side: what a sheet shows of the frame


@dataclass(frozen=True)
class Fit:
    """How a player's crop lies to that of training."""

    scale: float  # size of a face in it beside its size in training
    shift: tuple[float, float]  # of its middle, in units of the crop's side


@dataclass(frozen=True)
class Player:
    """A tool that draws with .dfm files."""

    points: Numbers  # (5, 2) where its crop has a face
    side: int | None  # px of its crop; None: of the model
    morph: float  # what it gives, unless told otherwise, to a model that takes it
    before: Callable[[Image], Image]  # crop -> what the model sees
    after: Callable[[Image, Image, Image, Image], tuple[Image, Image]]  # (face, crop, both masks) -> face and mask
    advice: str  # what to set in it

    @property
    def to_ours(self) -> align.Matrix:
        """The matrix (2, 3) from its crop to the canonical one, both of side 1, without the turn, which is below half a
        degree."""
        middle, goal = self.points.mean(0), align.TEMPLATE.mean(0)
        scale = align.similarity(self.points, align.TEMPLATE)[0, 0]
        return np.column_stack([scale * np.eye(2), goal - scale * middle])

    @property
    def fit(self) -> Fit:
        scale = 1 / float(self.to_ours[0, 0])
        x, y = align.apply(align.invert(self.to_ours), np.array([[0.5, 0.5]]))[0] - 0.5
        return Fit(scale, (float(x), float(y)))


# ---------------------------------------------------------------- what they do


def _itself(crop: Image) -> Image:
    return crop


def _unsharp(crop: Image) -> Image:
    """Facefusion sharpens before the model."""
    image = _bytes(crop)
    return _floats(cv2.addWeighted(image, 1.75, cv2.GaussianBlur(image, (0, 0), 2), -0.75, 0))


def _ours(face: Image, crop: Image, target: Image, source: Image) -> tuple[Image, Image]:
    return color.get("mkl")(face, crop, source), blend.soften(source, 0, 0.02)


def _facefusion(face: Image, crop: Image, target: Image, source: Image) -> tuple[Image, Image]:
    """Colours as far as the histograms are alike already, the smaller of both masks, not up to the crop's edge."""
    mask = np.minimum(target, source).clip(0, 1)
    mask = cv2.erode(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3)), iterations=2)
    mask = np.minimum(cv2.GaussianBlur(mask, (0, 0), 6.25), _box(len(mask), 0.07))
    counts = [cv2.calcHist([_bytes(image)], [0, 1, 2], None, [8, 8, 8], [0, 256] * 3) for image in (face, crop)]
    alike = float(np.clip(cv2.compareHist(counts[0], counts[1], cv2.HISTCMP_CORREL), 0, 1))
    matched = color.get("reinhard")(face, crop, np.ones_like(mask))
    return np.asarray(face + np.float32(alike) * (matched - face), np.float32), np.asarray(mask, np.float32)


def _deepfacelive(face: Image, crop: Image, target: Image, source: Image) -> tuple[Image, Image]:
    """The product of both masks, eroded by 5 px and blurred by 25 px of its crop; Reinhard's colours."""
    mask = cv2.erode(target * source, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (11, 11)))
    mask = np.minimum(cv2.GaussianBlur(mask, (0, 0), 25 / 4), _box(len(mask), 0.02))
    return color.get("reinhard")(face, crop, target * source), np.asarray(mask, np.float32)


def _visomaster(face: Image, crop: Image, target: Image, source: Image) -> tuple[Image, Image]:
    """The whole crop, whatever the masks say, with soft edges."""
    return face, _box(len(face), 0.1)


def _box(size: int, edge: float) -> Image:
    """1 inside, 0 over the outer `edge` of a crop's side, and soft between."""
    width = max(1, round(edge * size))
    box = np.zeros((size, size), np.float32)
    box[width:-width, width:-width] = 1
    return np.asarray(cv2.GaussianBlur(box, (0, 0), width / 2), np.float32)


TABLE = {
    "faceswap": Player(align.TEMPLATE, None, 1.0, _itself, _ours, ""),
    "facefusion": Player(align.TEMPLATE, None, 1.0, _unsharp, _facefusion, "faces lie as in training"),
    "deepfacelive": Player(
        _LIVE,
        224,
        0.75,
        _itself,
        _deepfacelive,
        "set Face coverage to 1.9 and Resolution to the model's, or export --for deepfacelive and leave the coverage",
    ),
    "visomaster": Player(_ARCFACE, 512, 0.5, _itself, _visomaster, "export --for visomaster"),
}
TOOLS = tuple(TABLE)[1:]


# ---------------------------------------------------------------- a sheet of it


@dataclass(frozen=True)
class Preview:
    """The sheet that was drawn."""

    sheet: Path
    frames: int
    players: list[str]


def sheet(
    draw: Draw,
    size: int,  # px, side of what it draws
    morphs: bool,  # whether it takes morph_value:0
    video: Path,
    out: Path,
    recipe: Recipe,
    *,
    names: Sequence[str] = tuple(TABLE),
    count: int = 6,  # frames, evenly spread
    device: str = "cpu",
    overwrite: bool = False,
) -> Preview:
    """Draw the largest face of some frames as each player would: what the model sees, what it draws, the mask through
    which it is laid in, and the frame. `FacesetError` if none of them shows a face."""
    if out.suffix.lower() != ".png":
        raise UsageError(f"{out}: expected NAME.png, found {out.suffix or 'no suffix'}; choose another -o")
    files.refuse_existing(out, overwrite)
    shown = list(_faces(video, recipe, count, device))
    if not shown:
        raise FacesetError(f"{video}: no face in {count} frames of it; try another video, or lower extract.threshold")
    rows = []
    for image, face in console.track(shown, "preview", len(shown), "frames"):
        cells = [part for name in names for part in _cells(TABLE[name], draw, size, morphs, image, face)]
        rows.append(np.concatenate(cells, 1))
    page = np.concatenate([_label(names, rows[0].shape[1]), *rows])
    with files.whole_file(out, overwrite=overwrite) as partial:
        partial.write_bytes(cv2.imencode(".png", cv2.cvtColor(page, cv2.COLOR_RGB2BGR))[1].tobytes())
    return Preview(out, len(shown), list(names))


def _faces(video: Path, recipe: Recipe, count: int, device: str) -> Iterator[tuple[NDArray[np.uint8], Face]]:
    """Frames (H, W, 3) uint8 RGB and the largest face of each."""
    part = recipe.extract
    detector = detectors.build(part.detector, threshold=part.threshold, min_size=part.min_size, device=device)
    frames: list[Frame] = []
    wanted = set(spread(range(total), count)) if (total := frame_count(video)) else set(range(count))
    for frame in read_frames(video):
        if frame.index in wanted:
            frames.append(frame)
        if frame.index >= max(wanted):
            break
    for frame in frames:
        image = align.as_uint8(frame.image)
        for face in detector([image])[0][:1]:
            yield image, face


def _cells(
    player: Player, draw: Draw, size: int, morphs: bool, image: NDArray[np.uint8], face: Face
) -> list[NDArray[np.uint8]]:
    """What the model sees, what it draws, its mask and the frame: (CELL, CELL, 3) each."""
    side = player.side or size
    matrix = align.similarity(face.points, player.points * side)
    crop = _floats(cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
    seen = player.before(_sized(crop, size))
    target, drawn, source = draw(seen[None, ..., ::-1], player.morph if morphs else 1.0)
    face_there, *masks = (_sized(part[0], side) for part in (drawn[..., ::-1], target[..., 0], source[..., 0]))
    laid, mask = player.after(face_there, crop, *masks)
    frame = _laid_in(image, laid, mask, matrix)
    around = align.crop_matrix(face.points, CELL) / AROUND
    around[:, 2] += CELL * (1 - 1 / AROUND) / 2
    shown = [_bytes(_sized(part, CELL)) for part in (seen, drawn[0, ..., ::-1], np.repeat(mask[..., None], 3, 2))]
    return [*shown, np.asarray(align.crop(frame, around, CELL), np.uint8)]


def _laid_in(image: NDArray[np.uint8], face: Image, mask: Image, matrix: align.Matrix) -> NDArray[np.uint8]:
    """The frame with a crop's face cross-faded into it."""
    if (where := align.region(matrix, len(face), image.shape)) is None:
        return image
    x0, y0, x1, y1 = where
    soft = align.uncrop_mask(mask, matrix, where)[..., None]
    part = _floats(image[y0:y1, x0:x1])
    frame = image.copy()
    frame[y0:y1, x0:x1] = _bytes(part + soft * (align.uncrop(face, matrix, where) - part))
    return frame


def _label(names: Sequence[str], width: int) -> NDArray[np.uint8]:
    strip = np.full((LABEL, width, 3), 24, np.uint8)
    for i, name in enumerate(names):
        at, white = (4 * CELL * i + 6, 14), (255, 255, 255)
        cv2.putText(
            strip, f"{name}: seen, drawn, mask, frame", at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, white, 1, cv2.LINE_AA
        )
    return strip


def _sized(image: Image, size: int) -> Image:
    return np.asarray(align.resize(np.ascontiguousarray(image), size), np.float32)


def _floats(image: NDArray[Any]) -> Image:
    return image.astype(np.float32) / np.float32(255)


def _bytes(image: NDArray[Any]) -> NDArray[np.uint8]:
    return np.asarray(np.round(np.clip(image, 0, 1) * 255), np.uint8)
