"""Paste a face into its frame through its mask.

Convention: a blend takes `frame` (h, w, 3) and `face` (h, w, 3), float32 RGB in [0, 1], and `mask` (h, w) float32 in
[0, 1], all on the part of the frame that the mask covers, with a little around it. Where the mask is 0 the frame stays
as it is.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from faceswap import align
from faceswap.errors import UsageError
from faceswap.registry import suggest

Image = NDArray[np.float32]
Blend = Callable[[Image, Image, Image], Image]

FADE = 4.0  # deviations of the soft edge over which a mask that reaches the border fades out
LEAVING = 0.08  # of the crop's side: over this a face that leaves the frame fades out before the frame's border
GRID = 32  # px: the part of a frame that is worked on begins at multiples of it, so that pyramids do not shift in time
COARSE = 24  # the laplacian's coarsest pixels: so many make the side of a square as large as the mask
# Of poisson's solver: V-cycles, sweeps before and after each coarser grid, sweeps on the coarsest, its side, the pace.
CYCLES, SWEEPS, FIRST_SWEEPS, SMALLEST, DAMPED = 1, 2, 40, 6, np.float32(0.8)
CROSS = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.float32) / 4  # the mean of the four neighbours


# ---------------------------------------------------------------- blends


def alpha(frame: Image, face: Image, mask: Image) -> Image:
    """A cross-fade through the mask as it is drawn: nothing softens it, see `through`."""
    return feather(frame, face, mask)


def feather(frame: Image, face: Image, mask: Image) -> Image:
    """A cross-fade through the mask."""
    mixed = face - frame
    mixed *= _wide(mask)
    mixed += frame
    return mixed


def laplacian(frame: Image, face: Image, mask: Image) -> Image:
    """Each band of frequencies through a mask as soft as the band is coarse (Burt and Adelson, "A multiresolution
    spline with application to image mosaics", 1983): light fades over a wide seam, texture over a narrow one.

    The pyramid is that of the difference, as blending is linear. The mask of each coarser band is shrunk a little,
    where the original's reaches over the edge: nothing beyond the mask may change, and hardly anything is cut off
    there. The number of levels goes with the size of the face, the last one coming in by degrees: none pops up as a
    face comes near.
    """
    wanted = np.log2(max(1.0, float(np.sqrt(mask.sum())) / COARSE))
    levels = min(int(np.ceil(wanted)), int(np.log2(min(mask.shape))) - 1)
    rest: Image = face - frame
    stack: list[tuple[Image, Image, Image]] = []  # the finer first: what a level shows, what of it is coarser, its mask
    for _ in range(levels):
        small = _down(rest)
        stack.append((rest, _up(small, rest), mask))
        rest, mask = small, _down(np.asarray(cv2.erode(mask, np.ones((3, 3), np.uint8)), np.float32))
    mixed = rest * _wide(mask)
    share = np.float32(min(1.0, wanted - levels + 1))  # of the coarsest
    for shown, coarser, own in stack[::-1]:
        below = _up(mixed, shown)
        if share < 1:
            coarser, below = coarser * share, below * share
        shown -= coarser
        shown *= _wide(own)
        shown += below
        mixed, share = shown, np.float32(1)
    mixed += frame
    return mixed


def _wide(mask: Image) -> Image:
    """(h, w) as (h, w, 3): NumPy is slow where it repeats each number three times by itself."""
    return np.asarray(cv2.merge([mask, mask, mask]), np.float32)


def _down(image: Image) -> Image:
    return np.asarray(cv2.pyrDown(image), np.float32)


def _up(image: Image, like: Image) -> Image:
    return np.asarray(cv2.pyrUp(image, dstsize=like.shape[1::-1]), np.float32)


def poisson(frame: Image, face: Image, mask: Image) -> Image:
    """The face's gradients, the frame's colours at the edge (Pérez et al., "Poisson image editing", 2003).

    The edge is where the mask is half of what it is at most. What is taken off the face is the membrane that is
    stretched over the difference along the edge: the only part of the equation that must be solved, and a smooth one.
    A part of the frame's border that lies under the mask is left free. The result is cross-faded through the mask. In a
    video the light of a whole face hangs on its edge and may flicker with it.
    """
    inside = mask > mask.max() / 2
    apart = face - frame
    if inside.all():
        return feather(frame, face, mask)
    return frame + (apart - membrane(apart, inside)) * _wide(mask)


def membrane(values: Image, inside: NDArray[np.bool_]) -> Image:
    """`values` (h, w, 3), replaced where `inside` (h, w) by what solves the equation of Laplace there.

    What lies around is kept and holds the edge; the edge of the image itself is free. By full multigrid: a guess from
    the coarser grid, then `CYCLES` V-cycles (Briggs, Henson and McCormick, "A multigrid tutorial", 2000).
    """
    return _solved(values, _wide(inside.astype(np.float32)))


def _solved(values: Image, unknown: Image) -> Image:
    """`values`, solved where `unknown` (h, w, 3) is 1 and as they are where it is 0."""
    if min(unknown.shape[:2]) < SMALLEST:
        known = 1 - unknown
        guess = (values * known).sum((0, 1), np.float32) / np.maximum(known.sum((0, 1), np.float32), 1)
        return _relaxed(values * known + guess * unknown, None, unknown, FIRST_SWEEPS)
    known = 1 - unknown
    share = _half(known)
    coarse = np.asarray(_half(values * known) / np.maximum(share, 1e-6), np.float32)
    filled = values * known + _double(_solved(coarse, (share < 1e-6).astype(np.float32)), unknown) * unknown
    for _ in range(CYCLES):
        filled = _cycle(filled, None, unknown)
    return filled


def _cycle(values: Image, wanted: Image | None, unknown: Image) -> Image:
    """One V-cycle towards values - mean of four neighbours = wanted (None: 0), where `unknown` is 1."""
    if min(unknown.shape[:2]) < SMALLEST:
        return _relaxed(values, wanted, unknown, FIRST_SWEEPS)
    values = _relaxed(values, wanted, unknown, SWEEPS)
    below = (_half(unknown) > 0.5).astype(np.float32)
    if below.all():  # nothing would hold the coarser grid
        return values
    # On a grid twice as wide the same curvature makes four times the difference to the neighbours.
    fix = _cycle(np.zeros_like(below), 4 * _half(_left(values, wanted) * unknown), below)
    return _relaxed(values + _double(fix, unknown) * unknown, wanted, unknown, SWEEPS)


def _relaxed(values: Image, wanted: Image | None, unknown: Image, sweeps: int) -> Image:
    """`sweeps` steps of Jacobi's method, damped so that what is rough goes first."""
    pace = DAMPED * unknown
    for _ in range(sweeps):
        step = _left(values, wanted)
        step *= pace
        step += values
        values = step
    return values


def _left(values: Image, wanted: Image | None) -> Image:
    """What is still wrong."""
    left = np.asarray(cv2.filter2D(values, -1, CROSS, borderType=cv2.BORDER_REPLICATE), np.float32)
    left -= values
    if wanted is not None:
        left += wanted
    return left


def _half(values: Image) -> Image:
    height, width = values.shape[:2]
    return np.asarray(
        cv2.resize(values, ((width + 1) // 2, (height + 1) // 2), interpolation=cv2.INTER_AREA), np.float32
    )


def _double(values: Image, like: Image) -> Image:
    return np.asarray(cv2.resize(values, like.shape[1::-1], interpolation=cv2.INTER_LINEAR), np.float32)


TABLE: dict[str, Blend] = {"alpha": alpha, "feather": feather, "laplacian": laplacian, "poisson": poisson}


def get(name: str) -> Blend:
    """The blend `name`; `UsageError` if there is none."""
    if name not in TABLE:
        raise UsageError(f"merge.blend: no blend called {name!r}; {suggest(name, TABLE)}")
    return TABLE[name]


# ---------------------------------------------------------------- masks


def through(name: str, mask: Image, erode: float, feather: float) -> Image:
    """The mask through which the blend `name` lays in a face with the mask (S, S) drawn; see `soften`."""
    return soften(mask, erode, 0.0 if get(name) is alpha else feather)


def soften(mask: Image, erode: float, feather: float) -> Image:
    """A crop's mask (S, S), shrunk by `erode` and softened by `feather`, both in units of the crop's side.

    A negative `erode` lets it grow. It ends inside the crop: the crop's border never shows in the frame.
    """
    size, mask = len(mask), mask.copy()
    # The softening reaches outward as far as inward: shrink first by what it will reach.
    shrink = round((erode + feather) * size)
    if shrink:
        reach = 2 * abs(shrink) + 1
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
        change = cv2.erode if shrink > 0 else cv2.dilate
        mask[:] = change(mask, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=(0,))
    if feather > 0:
        mask[:] = cv2.GaussianBlur(mask, (0, 0), feather * size, borderType=cv2.BORDER_CONSTANT)
    inside = np.minimum(np.arange(size), np.arange(size)[::-1])
    fade = _step(inside / max(1.0, FADE * feather * size))
    soft = np.asarray(mask * np.minimum.outer(fade, fade), np.float32)
    soft[soft < 1 / 255] = 0
    return soft


def leaving(mask: Image, matrix: align.Matrix, shape: tuple[int, ...]) -> Image:
    """A crop's mask (S, S), faded to 0 towards each border of a frame (h, w, ...) over which it reaches.

    What is drawn there was guessed from a border that was repeated. The fade is as wide as what lies outside, up to
    `LEAVING`: it comes in by degrees as a face leaves, and a face wholly inside stays as it is.
    """
    size, back = len(mask), align.invert(matrix)
    last = np.array([shape[1], shape[0]], np.float64) - 1
    corners = align.apply(back, np.array([[0, 0], [size - 1, 0], [0, size - 1], [size - 1, size - 1]]))
    if (corners >= 0).all() and (corners <= last).all():
        return mask
    steps, scale, shown = np.arange(size), align.scale_of(matrix), mask > 0
    for axis in (0, 1):
        along = np.add.outer(back[axis, 1] * steps, back[axis, 0] * steps + back[axis, 2])  # where each pixel lies
        for inwards in (along, last[axis] - along):
            inwards = (inwards * scale).astype(np.float32)  # px of the crop from this border
            outside = -float(inwards.min(where=shown, initial=0.0))
            if outside > 0:
                mask = mask * _step(inwards / min(outside, LEAVING * size))
    return mask


def _step(values: NDArray[Any]) -> NDArray[Any]:
    """0 below 0, 1 above 1, a smooth step between."""
    values = np.clip(values, 0, 1)
    return np.asarray(values * values * (3 - 2 * values))


# ---------------------------------------------------------------- into the frame


def lay_in(
    part: NDArray[Any],  # (h, w, 3) uint8 or uint16 RGB, of a frame
    where: align.Region,  # what part of it, see `covered`
    face: Image,  # (S, S, 3)
    mask: Image,  # (S, S), after `leaving`
    matrix: align.Matrix,  # frame to crop
    blend: Blend,
    finish: Callable[[Image], Image] | None = None,  # what is done to the face (h, w, 3) once it lies on the part
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The part with the face laid in, in its dtype, and where (h, w) that holds; no pixel goes through fewer bits."""
    spread = align.uncrop_mask(mask, matrix, where)
    white = np.float32(np.iinfo(part.dtype).max)
    drawn = align.uncrop(face, matrix, where)
    drawn = np.clip(drawn, 0, 1, out=drawn)  # cubic weights overshoot
    drawn = finish(drawn) if finish else drawn
    mixed = np.clip(blend(np.multiply(part, 1 / white, dtype=np.float32), drawn, spread), 0, 1)
    mixed *= white
    mixed += np.float32(0.5)
    return mixed.astype(part.dtype), spread > 0


def covered(mask: Image, matrix: align.Matrix, shape: tuple[int, ...]) -> align.Region | None:
    """The part of a frame that a crop's mask covers, widened to multiples of `GRID`; None if it is empty."""
    x, y, width, height = cv2.boundingRect((mask > 0).astype(np.uint8))
    if not width:
        return None
    left, top, right, bottom = x - 2, y - 2, x + width + 1, y + height + 1  # interpolation reaches two pixels further
    corners = np.array([[left, top], [right, top], [left, bottom], [right, bottom]], np.float64)
    spread = align.apply(align.invert(matrix), corners)
    limit = [shape[1], shape[0]]
    x0, y0 = np.clip((np.floor(spread.min(0)) // GRID * GRID).astype(int), 0, limit)
    x1, y1 = np.clip((np.ceil(spread.max(0)) // GRID * GRID).astype(int) + GRID, 0, limit)
    return (int(x0), int(y0), int(x1), int(y1)) if x1 > x0 and y1 > y0 else None
