"""Landmarks to face mask.

Five points say where a face lies, not where it ends: the mask is an ellipse that covers brows to chin, drawn in the
canonical crop and carried along when the points sit elsewhere than the template.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from faceswap import align

CENTRE = (0.4885, 0.5200)  # in units of the crop's side
RADII = (0.2550, 0.3450)
NOSE = align.TEMPLATE[2, 0]
LEAN, MOST_LEAN = 0.7, 0.15  # how far the ellipse follows a turned head, against the nose


def face_mask(points: NDArray[Any], size: int, feather: float = 0.0) -> NDArray[np.float32]:
    """The (size, size) float32 mask in [0, 1] of a canonical crop: 1 on the face, 0 off it.

    `points` are the face's five points (5, 2) in crop pixels: where the nose lies beside its place in the template
    the head is turned, and the face extends to the other side. `feather` is the standard deviation of the soft edge
    in units of the crop's side; 0 gives an anti-aliased edge.
    """
    turn = float(points[2, 0]) / size - NOSE
    x = CENTRE[0] - float(np.clip(LEAN * turn, -MOST_LEAN, MOST_LEAN))
    fine, bits = 4, 4  # drawn finer, then averaged; fractional bits of cv2's coordinates
    canvas = np.zeros((size * fine, size * fine), np.uint8)
    centre = [round((c * size * fine + (fine - 1) / 2) * 2**bits) for c in (x, CENTRE[1])]
    radii = [round(r * size * fine * 2**bits) for r in RADII]
    cv2.ellipse(canvas, centre, radii, 0, 0, 360, (255,), -1, cv2.LINE_8, bits)
    mask = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), feather * size) if feather > 0 else mask, np.float32)
