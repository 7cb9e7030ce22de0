"""Frames to faces. A detector is one file here with `build(threshold, min_size, device) -> Detector`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from faceswap.align import CANONICAL, Matrix, after, crop_matrix, onto
from faceswap.registry import Socket

SOCKET = Socket("faceswap.detectors", "detector")


@dataclass(frozen=True)
class Face:
    """A face in a frame.

    Convention: (x, y) in frame pixels, pixel centres at integers. `box` is (4,) float32 x0, y0, x1, y1; `points` is
    (5, 2) float32: image-left eye, image-right eye, nose tip, image-left and image-right mouth corner. What a detector
    does not know is filled in later: dense landmarks with their fit by `faceswap.landmarks`, the track by
    `faceswap.tracks`, which also smooths `place`, the canonical crop of side 1, the model by `faceswap.who`.
    """

    box: NDArray[np.float32]
    points: NDArray[np.float32]
    probability: float
    landmarks: NDArray[np.float32] | None = None  # (152, 2); None: not looked for, or none that fit
    fit: float = 0.0  # of the landmarks, see faceswap.landmarks
    track: int | None = None  # who this is over time
    place: Matrix | None = None  # (2, 3), frame to crop of side 1; None: as the points say
    mask: Path | None = None  # the face image beside which the user's own mask lies, see faceset.read_mask
    model: int = 0  # which of several models draws it

    @property
    def side(self) -> float:
        """The larger side of the box in pixels."""
        return float(max(self.box[2] - self.box[0], self.box[3] - self.box[1]))

    @property
    def outline(self) -> NDArray[np.float32]:
        """What a mask is drawn from: the landmarks (152, 2), or else the five points (5, 2)."""
        return self.points if self.landmarks is None else self.landmarks

    def matrix(self, size: int, crop: str = CANONICAL) -> Matrix:
        """The matrix (2, 3) of the canonical crop of `size` px, or of another of `align.CROPS`."""
        canonical = crop_matrix(self.points, size) if self.place is None else self.place * size
        return canonical if crop == CANONICAL else after(onto(crop, size, size), canonical)


class Detector(Protocol):
    """Finds faces in a batch of frames of one size."""

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[list[Face]]:
        """Faces per image, the largest first, for images (H, W, 3) uint8 RGB; an empty list where there is none."""
        ...


def build(name: str, *, threshold: float, min_size: float, device: str) -> Detector:
    """The detector `name`; faces below `threshold` (probability) or `min_size` (px, larger side) are left out."""
    part: Any = SOCKET.load(name)
    detector: Detector = part.build(threshold=threshold, min_size=min_size, device=device)
    return detector
