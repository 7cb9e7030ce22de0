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

FADE = 4.0  # deviations of the soft edge over which a mask that reaches the border fades out


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
    size, mask = len(mask), mask.copy()
    # The softening reaches outward as far as inward: shrink first by what it will reach.
    shrink = round((erode + feather) * size)
    if shrink:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * shrink + 1, 2 * shrink + 1))
        mask[:] = cv2.erode(mask, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=(0,))
    if feather > 0:
        mask[:] = cv2.GaussianBlur(mask, (0, 0), feather * size, borderType=cv2.BORDER_CONSTANT)
    inside = np.minimum(np.arange(size), np.arange(size)[::-1])
    fade = np.clip(inside / max(1.0, FADE * feather * size), 0, 1)
    fade = fade**2 * (3 - 2 * fade)
    soft = np.asarray(mask * np.minimum.outer(fade, fade), np.float32)
    soft[soft < 1 / 255] = 0
    return soft


def paste(image: NDArray[Any], face: Image, mask: Image, matrix: align.Matrix, blend: Blend) -> NDArray[Any]:
    """A copy of the frame `image` (H, W, 3) uint8 RGB with the crop `face` (S, S, 3) laid in through `mask` (S, S).

    Only the part that the crop covers is touched; pixels under mask 0 keep their value bit for bit. `image` itself
    comes back if the mask shows nothing inside the frame.
    """
    where = align.region(matrix, len(face), image.shape)
    if where is None:
        return image
    x0, y0, x1, y1 = where
    part = image[y0:y1, x0:x1]
    spread = np.clip(align.uncrop(mask, matrix, where, border=cv2.BORDER_CONSTANT), 0, 1).astype(np.float32)
    if not spread.any():
        return image
    drawn = np.clip(align.uncrop(face, matrix, where), 0, 1)  # cubic weights overshoot
    mixed = blend(part.astype(np.float32) / np.float32(255), drawn, spread)
    result = image.copy()
    pixels = np.clip(np.round(mixed * 255), 0, 255).astype(image.dtype)
    result[y0:y1, x0:x1] = np.where(spread[..., None] > 0, pixels, part)
    return result
