"""Landmarks to masks: where a face ends, and where its eyes and its mouth are.

A mask is drawn when it is needed and stored nowhere. Dense landmarks give the face's own outline, with the forehead
above the mesh's highest arc. Five points say where a face lies, not where it ends: from them the mask is an ellipse
that covers brows to chin.

Convention: points are (x, y) in crop pixels, pixel centres at integers; lengths are in units of the crop's side.
"""

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from faceswap import align
from faceswap.errors import UsageError
from faceswap.landmarks import BROW_LEFT, BROW_RIGHT, CONTOUR, COUNT, EYE_LEFT, EYE_RIGHT, LIPS, NOSE
from faceswap.registry import suggest

Mask = NDArray[np.float32]

CENTRE = (0.4885, 0.5200)  # of the ellipse
RADII = (0.2550, 0.3450)
TURN_FROM = align.TEMPLATE[2, 0]  # where the nose of a straight face lies
LEAN, MOST_LEAN = 0.7, 0.15  # how far the ellipse follows a turned head, against the nose

# What lies above the eyes is stretched by this share. Real faces call for 0 (a low hairline, or a fringe) to 0.4 (a
# high one); at 0.25 the corners of the forehead reach into the hair of most.
FOREHEAD = 0.15
FINE, BITS = 4, 4  # drawn so much finer, then averaged; fractional bits of cv2's coordinates
STEPS = 4  # of the curve from one point of the outline to the next

_MIDDLE = np.concatenate([NOSE[:8], LIPS[[15, 5]]])  # from between the eyes down: bridge, nose, lips
_BROW = np.concatenate([BROW_LEFT[3:7], BROW_RIGHT[3:7], NOSE[:2]])  # the inner ends of both, and the bridge


def face_mask(
    points: NDArray[Any], size: int, feather: float = 0.0, grow: float = 0.0, crop: str = align.CANONICAL
) -> NDArray[np.float32]:
    """The (size, size) float32 mask in [0, 1] of a crop, canonical or of `align.CROPS`: 1 on the face, 0 off it.

    `points` are a face's landmarks (152, 2) or five points (5, 2). `grow` moves the edge outwards by that distance,
    inwards if it is negative; `feather` is the standard deviation of the soft edge, 0 gives an anti-aliased one.
    """
    if len(points) not in (5, COUNT):
        raise ValueError(f"a mask is drawn from {COUNT} landmarks or from five points, not from {len(points)}")
    if len(points) == 5 and crop != align.CANONICAL:  # the ellipse is known there only
        plain = align.apply(align.invert(align.onto(crop, size, size)), points)
        return within(face_mask(plain, size, feather, grow), size, crop)
    canvas = _canvas(size)
    if len(points) == COUNT:
        for part in _parts(np.asarray(points, np.float64)):
            cv2.fillPoly(canvas, [_fixed(part, size)], (255,), cv2.LINE_8, BITS)
    else:
        _ellipse(canvas, points, size)
    return _finish(_grown(canvas, grow * size * FINE), size, feather)


def within(mask: NDArray[np.float32], size: int, crop: str) -> NDArray[np.float32]:
    """The mask of a canonical crop, as that of another of `align.CROPS` and (size, size)."""
    return np.asarray(align.resize(mask, size, crop).clip(0, 1), np.float32)


def regions(
    points: NDArray[Any],
    size: int,
    margin: float = 0.02,  # around the lids and the lips
    feather: float = 0.01,  # as in `face_mask`
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Masks of the eyes with their lids and of the mouth with its lips, each (size, size) float32 in [0, 1].

    From landmarks (152, 2) only: `ValueError` for five points, which do not say how wide an eye or a mouth is.
    """
    if len(points) != COUNT:
        raise ValueError(f"eyes and mouth are drawn from {COUNT} landmarks, not from {len(points)} points")
    fixed = _fixed(np.asarray(points, np.float64), size)
    masks = []
    for parts in ([EYE_LEFT, EYE_RIGHT], [LIPS]):
        canvas = _canvas(size)
        for part in parts:
            hull = cv2.convexHull(fixed[part])
            cv2.fillConvexPoly(canvas, hull, (255,), cv2.LINE_8, BITS)
            if (width := round(2 * margin * size * FINE)) > 0:
                cv2.polylines(canvas, [hull], True, (255,), width, cv2.LINE_8, BITS)
        masks.append(_finish(canvas, size, feather))
    return masks[0], masks[1]


def _parts(points: NDArray[np.float64]) -> Sequence[NDArray[np.float64]]:
    """Polygons (N, 2) whose union is the face that one sees.

    Where a head is turned the far half of the mesh's contour runs across the cheek, and one sees the near half up to
    its middle line, and the brow.
    """
    outline = _CURVE @ _outline(points)
    chin, middle = len(outline) // 2, points[_MIDDLE]
    left = np.concatenate([outline[chin:], outline[:1], middle])
    right = np.concatenate([outline[: chin + 1], middle[::-1]])
    brow = np.concatenate([outline[:1], points[_BROW]]).astype(np.float32)
    return left, right, np.asarray(cv2.convexHull(brow)[:, 0], np.float64)


def _outline(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The contour (36, 2) with the forehead up to the hairline, nearly: the mesh's arc runs below it."""
    contour = points[CONTOUR]
    up = contour[0] - contour[len(contour) // 2]
    up = up / max(float(np.hypot(*up)), 1e-9)
    height = (contour - points[NOSE[0]]) @ up
    return np.asarray(contour + FOREHEAD * np.outer(height.clip(0), up))


def _curve(count: int) -> NDArray[np.float64]:
    """The matrix (count * STEPS, count) of a closed Catmull-Rom curve through as many points, from the first on."""
    t = (np.arange(STEPS) / STEPS)[:, None]
    weights = np.hstack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3]) / 2
    matrix = np.zeros((count * STEPS, count))
    for i in range(count):
        for step, row in enumerate(weights):
            matrix[i * STEPS + step, [(i + k) % count for k in (-1, 0, 1, 2)]] = row
    return matrix


_CURVE = _curve(len(CONTOUR))


def _ellipse(canvas: NDArray[np.uint8], points: NDArray[Any], size: int) -> None:
    """Fill the ellipse of five points: where the nose lies beside its place in the template the head is turned, and the
    face extends to the other side."""
    turn = float(points[2, 0]) / size - TURN_FROM
    x = CENTRE[0] - float(np.clip(LEAN * turn, -MOST_LEAN, MOST_LEAN))
    centre = [round((c * size * FINE + (FINE - 1) / 2) * 2**BITS) for c in (x, CENTRE[1])]
    radii = [round(r * size * FINE * 2**BITS) for r in RADII]
    cv2.ellipse(canvas, centre, radii, 0, 0, 360, (255,), -1, cv2.LINE_8, BITS)


def _canvas(size: int) -> NDArray[np.uint8]:
    return np.zeros((size * FINE, size * FINE), np.uint8)


def _fixed(points: NDArray[Any], size: int) -> NDArray[np.int32]:
    """Crop points in the canvas's fixed-point coordinates; those far outside are brought nearer."""
    near = np.clip(points, -4 * size, 5 * size)
    return np.asarray(np.round((near * FINE + (FINE - 1) / 2) * 2**BITS), np.int32)


def _grown(canvas: NDArray[np.uint8], distance: float) -> NDArray[np.uint8]:
    """The canvas with all edges moved outwards by `distance` of its pixels, rounded: a line twice as wide is drawn
    along them. (A distance transform says the same in five times the time.)"""
    steps = round(abs(distance))
    if not steps:
        return canvas
    grown = canvas if distance > 0 else 255 - canvas
    edges, _ = cv2.findContours(grown, cv2.RETR_LIST, cv2.CHAIN_APPROX_TC89_L1)
    cv2.polylines(grown, edges, True, (255,), 2 * steps)
    return grown if distance > 0 else 255 - grown


def _finish(canvas: NDArray[np.uint8], size: int, feather: float) -> NDArray[np.float32]:
    mask = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), feather * size) if feather > 0 else mask, np.float32)


# ---------------------------------------------------------------- where a drawn face is laid in

# (what the network draws for the source, what it draws for the target) -> mask, before the bound
TABLE: dict[str, Callable[[Mask, Mask], Mask]] = {
    "learned": lambda source, target: source,
    "landmarks": lambda source, target: np.ones_like(source),
    "target": lambda source, target: target,
    "product": lambda source, target: source * target,
    "union": lambda source, target: np.maximum(source, target),
}
OF_TARGET = {"target", "product", "union"}  # those for which the target must be drawn, too


def check(name: str) -> str:
    """The name of a mask; `UsageError` if there is none of that name."""
    if name not in TABLE:
        raise UsageError(f"merge.mask: no mask called {name!r}; {suggest(name, TABLE)}")
    return name


def chosen(name: str, learned: Mask, bound: Mask, target: Mask | None = None) -> Mask:
    """The mask (S, S) in [0, 1] called `name`, of the network's for the source and for the target.

    Whatever the name says, `bound` is never left, which is the user's own mask or that of the landmarks: a network that
    errs cannot paint the background. What lies before a face stays with every mask that the network draws, as far as it
    knows of it.
    """
    if target is None and name in OF_TARGET:
        raise ValueError(f"the mask {name!r} needs the target's")
    return np.minimum(TABLE[check(name)](learned, learned if target is None else target), bound)
