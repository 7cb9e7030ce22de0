"""Paste a face into its frame through its mask.

Convention: a blend takes `frame` (h, w, 3) and `face` (h, w, 3), float32 RGB in [0, 1], and `mask` (h, w) float32 in
[0, 1], all on the part of the frame that the face covers. Where the mask is 0 the frame stays as it is.
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


def feather(frame: Image, face: Image, mask: Image) -> Image:
    """A cross-fade through the mask."""
    return frame + (face - frame) * mask[..., None]


TABLE: dict[str, Blend] = {"feather": feather}


def get(name: str) -> Blend:
    """The blend `name`; `UsageError` if there is none."""
    if name not in TABLE:
        raise UsageError(f"merge.blend: no blend called {name!r}; {suggest(name, TABLE)}")
    return TABLE[name]


def soften(mask: Image, erode: float, feather: float) -> Image:
    """A crop's mask (S, S), shrunk by `erode` and softened by `feather`, both in units of the crop's side.

    It ends inside the crop: the crop's border never shows in the frame.
    """
    size = len(mask)
    padded = cv2.copyMakeBorder(mask, size, size, size, size, cv2.BORDER_CONSTANT, value=0)
    padded[size : size + 1] = padded[2 * size - 1 : 2 * size] = 0
    padded[:, size : size + 1] = padded[:, 2 * size - 1 : 2 * size] = 0
    # The softening reaches outward as far as inward: shrink first by what it will reach.
    shrink = round((erode + feather) * size)
    if shrink:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * shrink + 1, 2 * shrink + 1))
        padded = cv2.erode(padded, kernel)
    if feather > 0:
        padded = cv2.GaussianBlur(padded, (0, 0), feather * size)
    inner = padded[size : 2 * size, size : 2 * size].copy()
    inner[[0, -1]] = inner[:, [0, -1]] = 0
    inner[inner < 1 / 255] = 0
    return np.asarray(inner, np.float32)


def paste(image: NDArray[Any], face: Image, mask: Image, matrix: align.Matrix, blend: Blend) -> NDArray[Any]:
    """A copy of the frame `image` (H, W, 3) uint8 RGB with the crop `face` (S, S, 3) laid in through `mask` (S, S).

    Only the part that the crop covers is touched; pixels under mask 0 keep their value bit for bit.
    """
    where = align.region(matrix, len(face), image.shape)
    if where is None:
        return image
    x0, y0, x1, y1 = where
    part = image[y0:y1, x0:x1]
    spread = np.clip(align.uncrop(mask, matrix, where, border=cv2.BORDER_CONSTANT), 0, 1).astype(np.float32)
    mixed = blend(part.astype(np.float32) / np.float32(255), align.uncrop(face, matrix, where), spread)
    result = image.copy()
    drawn = np.clip(np.round(mixed * 255), 0, 255).astype(image.dtype)
    result[y0:y1, x0:x1] = np.where(spread[..., None] > 0, drawn, part)
    return result
