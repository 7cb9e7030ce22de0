"""MTCNN (Zhang et al., "Joint face detection and alignment using multitask cascaded convolutional networks", 2016)
as facenet-pytorch ships it, weights included."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from facenet_pytorch import MTCNN
from numpy.typing import NDArray

from faceswap.detectors import Detector, Face


class Mtcnn:
    """See `faceswap.detectors.Detector`."""

    def __init__(self, threshold: float, min_size: float, device: str) -> None:
        self.threshold, self.min_size = threshold, min_size
        # Boxes are refined after the first stage, so look for faces a little smaller than those that are wanted.
        self._smallest = max(12, int(0.88 * min_size))
        place = "cpu" if device == "mps" else device  # its area interpolation fails on Metal
        self._net = MTCNN(keep_all=True, min_face_size=self._smallest, device=torch.device(place)).eval()
        for stage in (self._net.pnet, self._net.rnet, self._net.onet):  # a third faster on a CPU, same result
            stage.to(memory_format=torch.channels_last)

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[list[Face]]:
        # MTCNN's image pyramid is empty, and torch.cat of nothing raises, when no face of that size can be inside.
        if min(images[0].shape[:2]) <= self._smallest:
            return [[] for _ in images]
        found = self._net.detect(np.stack(images), landmarks=True)
        return [self._faces(*per_image) for per_image in zip(*found, strict=True)]

    def _faces(self, boxes: Any, probabilities: Any, points: Any) -> list[Face]:
        """One image's answer. On NumPy 2 the arrays have dtype object; where there is no face they are None."""
        if boxes is None:
            return []
        boxes, points = np.asarray(boxes, np.float32), np.asarray(points, np.float32)
        faces = [Face(b, p, float(q)) for b, p, q in zip(boxes, points, probabilities, strict=True)]
        wanted = [f for f in faces if f.probability >= self.threshold and f.side >= self.min_size and _is_sound(f)]
        return sorted(wanted, key=lambda face: -face.side)


def _is_sound(face: Face) -> bool:
    """Whether a face has points by which it can be cropped: finite, and not all in one place."""
    spread = np.ptp(face.points, axis=0).max()
    return bool(np.isfinite(face.points).all() and np.isfinite(face.box).all() and spread > 0.05 * face.side)


def build(*, threshold: float, min_size: float, device: str) -> Detector:
    return Mtcnn(threshold, min_size, device)
