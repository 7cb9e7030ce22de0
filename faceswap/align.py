"""Frame to face crop and back.

Convention: points are (x, y) in pixels with pixel centres at integers; a matrix is (2, 3) float64 and maps frame to
crop; images are (H, W, C).

The canonical crop is the five-point whole-face template of the .dfm players, so that a model trained here sees in a
player what it saw in training. A template point t lies at t * size in a crop of `size` pixels. Other crops (`CROPS`)
are parts of it, or reach beyond it: upright squares that lie in it where they always lie.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Points = NDArray[np.float32]
Image = NDArray[Any]

REACH = 3  # px around a pixel that sampling it looks at
# Image-left eye, image-right eye, nose tip, image-left and image-right mouth corner, in units of the crop's side.
TEMPLATE = np.array(
    [
        [0.35342266, 0.39285716],
        [0.62797622, 0.39285716],
        [0.48660713, 0.54017860],
        [0.38839287, 0.68750011],
        [0.59821427, 0.68750011],
    ]
)

# The eyes of the mean face that DeepFaceLab aligns to, in units of its box, and its crops by face type: their sides in
# units of the box's, and how far their middles lie above the box's.
MEAN_EYES = np.array([[0.2253, 0.2157], [0.7555, 0.2157]])
CANONICAL = "canonical"
CROPS = {
    "half": (1.0, 0.0),
    "mid-full": (1.191, 0.0),
    "full": (1.597, 0.0),
    "whole": (2.131, 0.07),
    "head": (2.980, 0.50),
}


def as_uint8(image: Image) -> NDArray[np.uint8]:
    """An image of 8 or 16 bit in 8 bit."""
    if image.dtype == np.uint16:
        return ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.asarray(image, np.uint8)


def similarity(points: NDArray[Any], onto: NDArray[Any]) -> Matrix:
    """The rotation, uniform scale and shift that bring `points` (N, 2) nearest to `onto` (N, 2) in least squares.

    Never mirrors. Umeyama, "Least-squares estimation of transformation parameters between two point patterns",
    PAMI 1991, in its closed form for the plane. `ValueError` if all points coincide.
    """
    source, target = np.asarray(points, np.float64), np.asarray(onto, np.float64)
    source_mean, target_mean = source.mean(0), target.mean(0)
    a, b = source - source_mean, target - target_mean
    norm = float((a * a).sum())
    if not norm > 0:
        raise ValueError("points coincide: no similarity transform fits them")
    cos = float((a * b).sum()) / norm  # scale * cos(angle)
    sin = float((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()) / norm
    linear = np.array([[cos, -sin], [sin, cos]])
    return np.column_stack([linear, target_mean - linear @ source_mean])


def crop_matrix(points: NDArray[Any], size: int) -> Matrix:
    """The matrix of the canonical crop of `size` px for a face's five points (5, 2) in frame pixels."""
    return similarity(points, TEMPLATE * size)


def onto(crop: str, side: float, size: float) -> Matrix:
    """The matrix from the canonical crop of `side` px to the crop called `crop` of `size` px.

    The template's eyes come to where DeepFaceLab's mean face has them in its crop. That is how an average face lies
    there; DeepFaceLab itself fits 33 landmarks anew in each face, and moves the head's crop aside as the head turns.
    """
    if crop == CANONICAL:
        return np.eye(2, 3) * (size / side)
    across, up = CROPS[crop]
    eyes = (MEAN_EYES - [0.5, 0.5 - up]) / across + 0.5
    return similarity(TEMPLATE[:2] * side, eyes * size)


def beyond(crop: str) -> float:
    """How far a crop reaches beyond the canonical one, in units of the canonical crop's side; 0: not at all."""
    corners = apply(invert(onto(crop, 1, 1)), np.array([[0.0, 0.0], [1.0, 1.0]]))
    return float(max(-corners[0].min(), corners[1].max() - 1, 0))


def after(matrix: Matrix, first: Matrix) -> Matrix:
    """The matrix that maps through `first` and then through `matrix`."""
    return np.column_stack([matrix[:, :2] @ first[:, :2], apply(matrix, first[:, 2][None])[0]])


def apply(matrix: Matrix, points: NDArray[Any]) -> NDArray[np.float64]:
    """`points` (N, 2) through `matrix`."""
    return np.asarray(points, np.float64) @ matrix[:, :2].T + matrix[:, 2]


def invert(matrix: Matrix) -> Matrix:
    """The matrix that maps the other way."""
    return np.asarray(cv2.invertAffineTransform(matrix), np.float64)


def scale_of(matrix: Matrix) -> float:
    """How many crop pixels a frame pixel becomes."""
    return float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))


def crop(image: Image, matrix: Matrix, size: int) -> Image:
    """The (size, size, C) crop of `image`, in its dtype; what lies outside the frame repeats the border.

    Shrinking is low-pass: the crop is sampled k times finer, k = ceil(shrink factor), and averaged in k x k cells.
    """
    return _warp(image, matrix, (size, size), cv2.BORDER_REPLICATE)


def glimpse(image: Image, matrix: Matrix, size: int) -> Image:
    """A crop like `crop`, four times faster where it shrinks and a little softer or rougher: to look at, not to keep.

    Cells of k x k pixels of the frame are averaged, k = floor(shrink factor), before they are sampled.
    """
    cell, where = int(1 / scale_of(matrix)), region(matrix, size, image.shape)
    if cell < 2 or where is None or min(where[2] - where[0], where[3] - where[1]) < 2 * cell:
        return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    x0, y0, x1, y1 = where
    wide, high = (x1 - x0) // cell, (y1 - y0) // cell
    part = image[y0 : y0 + high * cell, x0 : x0 + wide * cell]
    small = cv2.resize(part, (wide, high), interpolation=cv2.INTER_AREA)
    first = np.array([x0, y0]) + (cell - 1) / 2  # where the first cell's centre lies in the frame
    onto = np.column_stack([matrix[:, :2] * cell, apply(matrix, first[None])[0]])
    return cv2.warpAffine(small, onto, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _warp(image: Image, matrix: Matrix, shape: tuple[int, int], border: int) -> Image:
    """`image` through `matrix` onto (width, height) pixels. See `crop` for what happens when it shrinks."""
    fine = max(1, int(np.ceil(1 / scale_of(matrix) - 1e-6)))
    if fine == 1:
        return cv2.warpAffine(image, matrix, shape, flags=cv2.INTER_CUBIC, borderMode=border)
    shift = np.array([[0.0, 0.0, (fine - 1) / 2]] * 2)  # a cell's centre falls on the pixel's centre
    finer = (shape[0] * fine, shape[1] * fine)
    # With a fourth channel OpenCV samples in half the time, to the same result: worth it unless the image is large.
    fourth = image.dtype == np.uint8 and image.shape[2:] == (3,) and image.size < 4 * finer[0] * finer[1]
    image = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA) if fourth else image
    warped = cv2.warpAffine(image, matrix * fine + shift, finer, flags=cv2.INTER_LINEAR, borderMode=border)
    small = cv2.resize(warped, shape, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_RGBA2RGB) if fourth else small


def resize(image: Image, size: int, as_crop: str = CANONICAL) -> Image:
    """A canonical crop (S, S, C) at another size, or as another of `CROPS`, registered as if it had been cropped so."""
    if image.shape[0] == size == image.shape[1] and as_crop == CANONICAL:
        return image
    return crop(image, onto(as_crop, image.shape[0], size), size)


Region = tuple[int, int, int, int]


def region(matrix: Matrix, size: int, frame_shape: tuple[int, ...]) -> Region | None:
    """The part (x0, y0, x1, y1) of a frame that a crop covers, x1 and y1 exclusive; None if it lies outside."""
    corners = np.array([[-0.5, -0.5], [size - 0.5, -0.5], [-0.5, size - 0.5], [size - 0.5, size - 0.5]])
    spread = apply(invert(matrix), corners)
    height, width = frame_shape[:2]
    x0, y0 = np.clip(np.floor(spread.min(0)).astype(int), 0, [width, height])
    x1, y1 = np.clip(np.ceil(spread.max(0)).astype(int) + 1, 0, [width, height])
    return (int(x0), int(y0), int(x1), int(y1)) if x1 > x0 and y1 > y0 else None


def around(matrix: Matrix, size: int, frame_shape: tuple[int, ...]) -> tuple[Region, Matrix]:
    """The part of a frame that is needed to crop from it alone, and the matrix from that part to the crop."""
    height, width = frame_shape[:2]
    x0, y0, x1, y1 = region(matrix, size, frame_shape) or (0, 0, width, height)
    x0, y0, x1, y1 = max(x0 - REACH, 0), max(y0 - REACH, 0), min(x1 + REACH, width), min(y1 + REACH, height)
    return (x0, y0, x1, y1), shifted(matrix, x0, y0)


def shifted(matrix: Matrix, x0: float, y0: float) -> Matrix:
    """The matrix from the part of a frame that begins at (x0, y0) to the crop."""
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ np.array([x0, y0], np.float64)
    return moved


def uncrop(image: Image, matrix: Matrix, where: Region) -> Image:
    """A crop (S, S, C) laid back on the part `where` of its frame: (y1 - y0, x1 - x0, C), its edge repeated outside."""
    x0, y0, x1, y1 = where
    return _warp(image, invert(shifted(matrix, x0, y0)), (x1 - x0, y1 - y0), cv2.BORDER_REPLICATE)


def uncrop_mask(mask: Image, matrix: Matrix, where: Region) -> Image:
    """A crop's mask (S, S) float32 laid back like `uncrop`, 0 outside, in [0, 1]."""
    x0, y0, x1, y1 = where
    laid = _warp(mask, invert(shifted(matrix, x0, y0)), (x1 - x0, y1 - y0), cv2.BORDER_CONSTANT)
    return np.asarray(np.clip(laid, 0, 1, out=laid))  # cubic weights overshoot
