"""(face, footage) -> face: give a drawn face the sharpness, the motion and the grain of the footage.

Convention: a face is (h, w, 3) float32 RGB in [0, 1] as it lies on a part of its frame, pixel on pixel, and lengths are
in pixels of the frame: there one sees blur and grain. A strength of 0 gives the face itself.

Like a colour transfer, matching has two halves: `look` compares a face with the footage under it, `finish` changes the
face by what was seen in the frames around, averaged by `color.smooth`. Nothing else goes in but the way of the face
from frame to frame, and for the grain the frame's number and the track: a video rendered in parts is the same.
"""

import importlib
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from faceswap import align
from faceswap.color import NOTHING, Image, Numbers, State
from faceswap.config import MergeRecipe
from faceswap.errors import FaceswapError, UsageError

Vector = tuple[float, float]  # x, y in px of the frame

SHUTTER = 0.5  # share of the time of a frame in which it is exposed: 180 degrees
LEAST_WAY = 1.0  # px, of the frame and of the drawn face: an exposure over less leaves no trace
MIDDLE = align.TEMPLATE.mean(0)  # of a face, in units of the crop's side
RIM = 1 / 12  # of the face's side: the outline is not drawn alike, and nothing is measured so near to the mask's edge
LEAST_PIXELS = 400  # of a smaller face nothing is measured
GRAINED = (1500, 5000)  # pixels from which on grain comes in, and is taken as it is: a smaller face has no flat places

BLURS = (1.0, 2.0, 4.0, 8.0, 16.0)  # px², variances of the blurs through which edges are looked at
COMPARED = 3  # of them, the finest
MARGIN = 16  # px beyond the pixels that count: as far as those blurs reach
GAPS = np.square(np.linspace(0, 5, 201))  # px², by how much one image may be more blurred than the other
LEAST_ENERGY = 0.05  # share of what is measured that is left of edges, however strong the grain
MOST_SHARPENING = 1.5  # px, deviation of the widest blur that is undone
UNDONE = 0.5  # share of it
LEAST_BLUR = 0.1  # px, deviation: less is not worth a filter

DEVIATION = 0.6745  # median of the absolute value of a normal variable
FLAT = 0.5  # share of the pixels in which grain is measured, those of the least slope
LEAST_ROUGHNESS = 1e-8  # variance: less is none
SOFTEST = 1.5  # px, deviation of the softest grain
# Brightness and two differences of colours, orthonormal: each is as noisy as the colours are.
OPPONENT = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
SECOND = np.array([1.0, -2.0, 1.0]) / math.sqrt(6)  # white noise stays as strong
SECONDS = (SECOND, np.convolve(np.insert(SECOND, [1, 2], 0), [0.5, 0.5]))  # of pixels, and of the means of two
FIRST = np.array([-0.5, 0.0, 0.5])

SIDE = 512  # px, what a restorer takes
INSTALL = "pip install 'faceswap[restore]'"
# Where restorers expect eyes, nose and mouth corners, in units of the side: where FFHQ has them on the average.
FFHQ = np.array([[0.377, 0.469], [0.623, 0.469], [0.501, 0.613], [0.393, 0.725], [0.611, 0.725]])


# ---------------------------------------------------------------- measuring


def matching(recipe: MergeRecipe) -> bool:
    """Whether anything is wanted for which a face must be compared with the footage."""
    return bool(recipe.match_sharpness or recipe.motion_blur or recipe.grain)


def look(
    part: NDArray[Any], where: align.Region, face: Image, mask: Image, matrix: align.Matrix, colors: bool = True
) -> State:
    """`measure` of a crop's face (S, S, 3) and mask (S, S) laid on the part (h, w, 3) uint8 or uint16 of its frame."""
    footage = np.multiply(part, np.float32(1 / np.iinfo(part.dtype).max), dtype=np.float32)
    drawn = align.uncrop(face, matrix, where)
    drawn = np.clip(drawn, 0, 1, out=drawn)
    return measure(footage, drawn, align.uncrop_mask(mask, matrix, where), colors)


def measure(footage: Image, face: Image, mask: Image, colors: bool = True) -> State:
    """What the footage (h, w, 3), and a face that is drawn over it, look like under the mask (h, w): (2, 7, 3), see
    `_edges` and `_roughness`; `NOTHING` of a face that is too small. Without `colors` how rough they are is told of the
    brightness alone, which is all that sharpness needs; of the two others it is 0."""
    reach = 2 * round(RIM * math.sqrt(max(float(mask.sum(dtype=np.float64)), 0.0))) + 1
    square = np.ones((reach, reach), np.uint8)
    inside = np.asarray(cv2.erode((mask > 0.5).astype(np.uint8), square, borderValue=(0,)), np.uint8)
    if cv2.countNonZero(inside) < LEAST_PIXELS or not _halved(inside).any():
        return NOTHING
    weight, grained = float(inside.mean()), np.interp(cv2.countNonZero(inside), GRAINED, (0, 1))
    x, y, width, height = cv2.boundingRect(inside)
    around = np.s_[max(0, y - MARGIN) // 2 * 2 : y + height + MARGIN, max(0, x - MARGIN) // 2 * 2 : x + width + MARGIN]
    inside = np.ascontiguousarray(inside[around])
    found = []
    for image in (footage[around], face[around]):
        planes = [np.asarray(cv2.transform(image, row[None]), np.float32) for row in OPPONENT[: 3 if colors else 1]]
        rough = np.zeros((2, 3))
        rough[:, : len(planes)] = _roughness(planes, inside)
        found.append(np.concatenate([_edges(planes[0], inside, rough[:, 0]), rough * grained]))
    return State(weight, np.stack(found))


def _edges(light: Image, inside: NDArray[np.uint8], rough: Numbers) -> Numbers:
    """The mean (5, 3) of gx gx, gx gy and gy gy through each of `BLURS`, without what the grain adds."""
    deviation, softness = noise_of(rough)
    found, before = [], 0.0
    shown, count = (inside[1:-1, 1:-1] > 0).astype(np.float32), cv2.countNonZero(inside)
    for variance in BLURS:
        light = np.asarray(cv2.GaussianBlur(light, (0, 0), math.sqrt(variance - before)), np.float32)
        before = variance
        gx, gy = _slopes(light)
        ours, theirs = gx * shown, gy * shown
        products = np.array([cv2.sumElems(pair)[0] for pair in (ours * gx, ours * gy, theirs * gy)]) / count
        smooth = _gauss(math.sqrt(variance))
        left = _passed(np.convolve(smooth, FIRST), softness) * _passed(smooth, softness)
        noisy = deviation**2 * left * np.array([1, 0, 1])
        found.append(np.maximum(products - noisy, products * [LEAST_ENERGY, 1, LEAST_ENERGY]))
    return np.stack(found)


def _slopes(light: Image) -> tuple[Image, Image]:
    """Along x and along y, each (h - 2, w - 2): all but the border."""
    half = np.float32(0.5)
    return (light[1:-1, 2:] - light[1:-1, :-2]) * half, (light[2:, 1:-1] - light[:-2, 1:-1]) * half


def _roughness(planes: Sequence[Image], inside: NDArray[np.uint8]) -> Numbers:
    """The variance (2, N) of the second difference of each of N colours (h, w), brightness first, in pixels and in
    cells of 2 x 2, where it is flat.

    As in Immerkær, "Fast noise variance estimation", 1996, by the median for what is not noise.
    """
    found = []
    for parts, where in ((planes, inside), ([_halved(plane) for plane in planes], _halved(inside))):
        along, across = _slopes(np.asarray(cv2.GaussianBlur(parts[0], (0, 0), 2), np.float32))
        steep = np.square(along) + np.square(across)
        shown = np.flatnonzero(where[1:-1, 1:-1] == 1)
        order = np.argpartition(steep.reshape(-1)[shown], count := int(FLAT * (len(shown) - 1)))
        flat = shown[order[: count + 1]]
        for part in parts:
            rough = np.abs(cv2.sepFilter2D(part, -1, SECOND, SECOND)[1:-1, 1:-1].reshape(-1)[flat])
            found.append(np.square(np.median(rough) / DEVIATION))
    return np.array(found, np.float64).reshape(2, -1)


def _halved(image: NDArray[Any]) -> NDArray[Any]:
    high, wide = image.shape[0] // 2, image.shape[1] // 2
    return cv2.resize(image[: high * 2, : wide * 2], (wide, high), interpolation=cv2.INTER_AREA)


def noise_of(rough: Numbers) -> tuple[float, float]:
    """Of noise that is so rough, (2,), the deviation, and that of the blur that makes its grain, in px."""
    if rough.max() <= LEAST_ROUGHNESS:
        return 0.0, 0.0
    fine, coarse = np.maximum(rough, LEAST_ROUGHNESS)
    softness, shares, through = _table()
    grain = float(np.interp(math.log(coarse / fine), shares, softness))
    # both are right unless the noise is finer or softer than any in the table
    variance = min(fine / np.interp(grain, softness, through[0]), coarse / np.interp(grain, softness, through[1]))
    return math.sqrt(variance), grain


@lru_cache(maxsize=1)
def _table() -> tuple[Numbers, Numbers, Numbers]:
    """Softness of grain in px, log of coarse to fine roughness, and what of the variance goes through to each."""
    softness = np.linspace(0, SOFTEST, 61)
    through = np.array([[_passed(kernel, grain) ** 2 for grain in softness] for kernel in SECONDS])
    return softness, np.log(through[1] / through[0]), through


def _behind(rough: Numbers, variance: float) -> Numbers:
    """How rough, (2,), noise is behind a blur of that variance in px²."""
    blur, (_, softness) = _gauss(math.sqrt(variance)), noise_of(rough)
    left = [_passed(np.convolve(kernel, blur), softness) / _passed(kernel, softness) for kernel in SECONDS]
    return rough * np.square(left)


def _passed(kernel: Numbers, grain: float) -> float:
    """What of the variance of noise, along one axis, goes through a filter."""
    blur = _gauss(grain)
    return float(np.square(np.convolve(kernel, blur)).sum() / np.square(blur).sum())


@lru_cache
def _gauss(deviation: float) -> Numbers:
    if deviation < LEAST_BLUR:
        return np.ones(1)
    return np.asarray(cv2.getGaussianKernel(2 * math.ceil(4 * deviation) + 1, deviation)[:, 0], np.float64)


def blur_gap(values: Numbers, direction: tuple[float, float] | None = None) -> float:
    """By how much the footage is more blurred than the face, as a difference of variances in px², along the unit vector
    `direction` or all around; below 0 if it is sharper.

    Where one image is the other behind a Gaussian blur, its edges seen through a blur are the other's through a wider
    one. Whatever there are of edges, the same are in both; the contrast may differ.
    """
    x, y = direction or (1.0, 1.0)
    weights = np.array([x * x, 2 * x * y if direction else 0.0, y * y])
    footage, face = np.log(np.maximum(values[:, : len(BLURS)] @ weights, 1e-12))
    errors = np.concatenate([_misfits(face, footage)[::-1], _misfits(footage, face)])
    return float(np.concatenate([-GAPS[::-1], GAPS])[errors.argmin()])


def _misfits(soft: Numbers, sharp: Numbers) -> Numbers:
    """How far `sharp` behind a blur of each of `GAPS` is from `soft`, contrast apart; both as logarithms."""
    known = np.log(BLURS)
    wanted = np.log(np.add.outer(GAPS, BLURS[:COMPARED]))
    slope = (sharp[-1] - sharp[-2]) / (known[-1] - known[-2])
    behind = np.interp(wanted, known, sharp) + slope * np.maximum(wanted - known[-1], 0)
    return np.asarray(np.var(soft[:COMPARED] - behind, 1))


def middle(matrix: align.Matrix, size: int) -> Numbers:
    """Where the middle (2,) of a face lies in its frame."""
    return np.asarray(align.apply(align.invert(matrix), MIDDLE[None] * size)[0])


def way(middles: Mapping[int, Numbers], frame: int) -> Vector:
    """How far the middle of a face moves from one frame to the next at `frame`; 0 for who is in no other frame."""
    near = [index for index in (frame - 1, frame, frame + 1) if index in middles]
    x, y = (middles[near[-1]] - middles[near[0]]) / max(near[-1] - near[0], 1)
    return float(x), float(y)


# ---------------------------------------------------------------- changing


def finish(
    face: Image,
    recipe: MergeRecipe,
    *,
    steady: State,  # what was seen in the frames around
    now: State,  # what was seen in this frame
    moved: Vector,  # px from one frame to the next
    pixel: float,  # px of the frame that a pixel of the drawn face fills
    seed: tuple[int, int],  # of the grain: the frame's number and the track
) -> Image:
    """The face as the recipe wants it: blurred by its motion, as sharp as the footage, sharpened, grained."""
    trail, rough = trail_of(now, moved, pixel), np.zeros((2, 3))
    face = motion_blur(face, trail, recipe.motion_blur)
    if steady.weight > 0:
        added = sum(recipe.motion_blur**2 * part * part for part in trail) / 12
        gap = blur_gap(steady.values) - added / 2  # along one of two directions
        face = match_sharpness(face, gap, recipe.match_sharpness)
        footage, own = steady.values[:, len(BLURS) :]
        softened = max(gap, 0.0) * recipe.match_sharpness**2
        rough = footage - np.array([_behind(part, softened) for part in own.T]).T
    face = sharpen(face, recipe.sharpen, max(1.0, pixel))
    return grain(face, rough, recipe.grain, seed)


def sharpen(face: Image, amount: float, deviation: float = 1.0) -> Image:
    """By an unsharp mask: what a blur of that deviation would take away is added, times `amount`."""
    if not amount:
        return face
    soft = cv2.GaussianBlur(face, (0, 0), deviation)
    return np.asarray(np.clip(cv2.addWeighted(face, 1 + amount, soft, -amount, 0), 0, 1), np.float32)


def match_sharpness(face: Image, gap: float, strength: float) -> Image:
    """The face blurred, or sharpened where that can be done, as `blur_gap` says the footage is beside it.

    An unsharp mask of a blur's deviation undoes it to the first order; half of it, up to `MOST_SHARPENING`, as the rest
    of what is missing was never drawn and would be made of errors.
    """
    deviation = strength * math.sqrt(abs(gap))
    if deviation < LEAST_BLUR:
        return face
    if gap < 0:
        return sharpen(face, UNDONE * strength, min(math.sqrt(-gap), MOST_SHARPENING))
    return np.asarray(cv2.GaussianBlur(face, (0, 0), deviation), np.float32)


def smears(moved: Vector, pixel: float) -> bool:
    """Whether motion, in px of the frame from one to the next, may leave a trail on a face of such pixels."""
    return SHUTTER * math.hypot(*moved) >= LEAST_WAY * max(1.0, pixel)


def trail_of(now: State, moved: Vector, pixel: float = 1.0) -> Vector:
    """The line along which the footage is smeared and the face is not: at most as long as the way in an exposure."""
    length = SHUTTER * math.hypot(*moved)
    if not now.weight > 0 or not smears(moved, pixel):
        return 0.0, 0.0
    x, y = (SHUTTER * part / length for part in moved)
    seen = blur_gap(now.values, (x, y)) - max(blur_gap(now.values, (-y, x)), 0)
    length = min(length, math.sqrt(12 * max(seen, 0.0)))  # a line's variance is a twelfth of its square
    return x * length, y * length


def motion_blur(face: Image, trail: Vector, strength: float) -> Image:
    """The face smeared along a line."""
    x, y = (strength * part for part in trail)
    length = math.hypot(x, y)
    if length < LEAST_WAY:
        return face
    reach = math.ceil(max(abs(x), abs(y)) / 2) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    for share in (np.arange(count := 8 * math.ceil(length)) + 0.5) / count - 0.5:  # each point lies between four pixels
        left, top = math.floor(x * share), math.floor(y * share)
        across, down = x * share - left, y * share - top
        place = kernel[reach + top : reach + top + 2, reach + left : reach + left + 2]
        place += np.outer([1 - down, down], [1 - across, across]) / count
    return np.asarray(cv2.filter2D(face, -1, kernel, borderType=cv2.BORDER_REPLICATE), np.float32)


def grain(face: Image, rough: Numbers, strength: float, seed: tuple[int, int]) -> Image:
    """The face with noise that is as rough, (2, 3), see `noise_of`; the same wherever the seed is the same."""
    noises = [noise_of(part) for part in np.maximum(rough, 0).T]
    if not strength or not any(deviation for deviation, _ in noises):
        return face
    colors = np.random.default_rng(seed).standard_normal((3, *face.shape[:2]), np.float32)
    for color, (deviation, softness) in zip(colors, noises, strict=True):
        kernel = _gauss(softness)
        color[:] = cv2.sepFilter2D(color, -1, kernel, kernel)
        color *= strength * deviation / np.square(kernel).sum()
    noise = cv2.transform(np.dstack(list(colors)), OPPONENT.T)
    return np.asarray(np.clip(face + noise, 0, 1), np.float32)


def scaled(matrix: align.Matrix, size: int, by: float) -> align.Matrix:
    """The matrix of a crop of `size` px whose face shows `by` times as large, about its middle."""
    if by == 1:
        return matrix
    shift = MIDDLE * size * (1 - 1 / by)
    return np.asarray(np.column_stack([matrix[:, :2] / by, matrix[:, 2] / by + shift]), np.float64)


# ---------------------------------------------------------------- a restorer of the user's


class Restorer:
    """A network of the user's that draws faces anew, as GFPGAN and its kind are exported to ONNX.

    It takes one image (1, 3, 512, 512) float32 RGB in [-1, 1] of a face that lies as in FFHQ, and gives the same.
    """

    def __init__(self, path: Path, *, cuda: bool = False) -> None:
        """`UsageError` if there is no such file, `FaceswapError` if it cannot be run."""
        if not path.is_file():
            raise UsageError(f"merge.restore: {path}: no such file; expected a face restorer in ONNX")
        try:
            runtime = importlib.import_module("onnxruntime")
        except ImportError:
            raise FaceswapError(f"merge.restore: onnxruntime is not installed; {INSTALL}") from None
        fast = cuda and "CUDAExecutionProvider" in runtime.get_available_providers()
        providers = ["CUDAExecutionProvider"] * fast + ["CPUExecutionProvider"]
        try:
            self.session: Any = runtime.InferenceSession(str(path), providers=providers)
        except Exception as error:  # onnxruntime's own have no common base
            raise FaceswapError(f"merge.restore: {path}: not read as ONNX ({_line(error)}); export it anew") from None
        shapes = [list(one.shape) for one in self.session.get_inputs()]
        fits = len(shapes) == 1 and len(shapes[0]) == 4
        sides = zip(shapes[0], (1, 3, SIDE, SIDE), strict=True) if fits else []
        if not fits or any(isinstance(side, int) and side != wanted for side, wanted in sides):
            found = ", ".join(map(str, shapes)) or "none"
            raise UsageError(f"merge.restore: {path}: expected one input [1, 3, {SIDE}, {SIDE}], found {found}")
        self.path, self.name = path, self.session.get_inputs()[0].name

    def __call__(self, face: Image, share: float) -> Image:
        """A crop's face (S, S, 3) as (512, 512, 3), restored to `share` of it."""
        plain = np.clip(align.resize(face, SIDE), 0, 1)
        there = align.similarity(align.TEMPLATE * SIDE, FFHQ * SIDE)
        lying = np.clip(align.crop(plain, there, SIDE), 0, 1)
        try:
            (drawn, *_) = self.session.run(
                None, {self.name: np.ascontiguousarray(lying.transpose(2, 0, 1)[None] * 2 - 1)}
            )
        except Exception as error:  # as above
            raise FaceswapError(f"merge.restore: {self.path}: does not run ({_line(error)}); export it anew") from None
        drawn = np.asarray(drawn, np.float32)
        if drawn.shape != (1, 3, SIDE, SIDE) or not np.isfinite(drawn).all():
            raise FaceswapError(
                f"merge.restore: {self.path}: expected an image [1, 3, {SIDE}, {SIDE}], found {list(drawn.shape)}"
            )
        back = align.crop(np.ascontiguousarray(drawn[0].transpose(1, 2, 0)) / 2 + 0.5, align.invert(there), SIDE)
        return np.asarray(np.clip(plain + np.float32(share) * (back - plain), 0, 1), np.float32)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
