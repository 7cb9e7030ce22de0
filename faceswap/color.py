"""(face, target, mask) -> face: give a drawn face the colours of the footage.

Convention: `face` and `target` are crops (S, S, 3) float32 RGB in [0, 1], `mask` is (S, S) float32 in [0, 1];
statistics are taken under the mask only, in both.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from faceswap.errors import UsageError
from faceswap.registry import suggest

Image = NDArray[np.float32]
Transfer = Callable[[Image, Image, Image], Image]

# Variances added on both sides: where neither image varies, as the hues of a soft face hardly do, nothing is stretched.
LEAST_LAB, LEAST_RGB = 4.0, 1e-3


def none(face: Image, target: Image, mask: Image) -> Image:
    """As drawn."""
    return face


def reinhard(face: Image, target: Image, mask: Image) -> Image:
    """Mean and standard deviation per channel in CIELAB (Reinhard et al., "Color transfer between images", 2001)."""
    ours, theirs = (cv2.cvtColor(image, cv2.COLOR_RGB2LAB) for image in (face, target))
    (mean, cov), (goal, goal_cov) = _statistics(ours, mask), _statistics(theirs, mask)
    gain = np.sqrt((np.diag(goal_cov) + LEAST_LAB) / (np.diag(cov) + LEAST_LAB))
    moved = ((ours - mean) * gain + goal).astype(np.float32)
    return np.clip(cv2.cvtColor(moved, cv2.COLOR_LAB2RGB), 0, 1)


def mkl(face: Image, target: Image, mask: Image) -> Image:
    """Mean and covariance of RGB by the linear Monge-Kantorovich map (Pitié and Kokaram, "The linear
    Monge-Kantorovitch linear colour mapping for example-based colour transfer", 2007)."""
    (mean, cov), (goal, goal_cov) = _statistics(face, mask), _statistics(target, mask)
    cov, goal_cov = cov + LEAST_RGB * np.eye(3), goal_cov + LEAST_RGB * np.eye(3)
    root, inverse = _power(cov, 0.5), _power(cov, -0.5)
    matrix = inverse @ _power(root @ goal_cov @ root, 0.5) @ inverse
    return np.clip((face - mean) @ matrix.T + goal, 0, 1).astype(np.float32)


def _statistics(image: NDArray[Any], mask: Image) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (3,) and covariance (3, 3) of the pixels under the mask."""
    weight = mask.reshape(-1, 1).astype(np.float64)
    pixels = image.reshape(-1, 3).astype(np.float64)
    total = max(float(weight.sum()), 1e-6)
    mean = (pixels * weight).sum(0) / total
    centred = pixels - mean
    return mean, (centred * weight).T @ centred / total


def _power(matrix: NDArray[Any], exponent: float) -> NDArray[np.float64]:
    """A power of a symmetric, positive definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * values**exponent) @ vectors.T)


TABLE: dict[str, Transfer] = {"none": none, "reinhard": reinhard, "mkl": mkl}


def get(name: str) -> Transfer:
    """The transfer `name`; `UsageError` if there is none."""
    if name not in TABLE:
        raise UsageError(f"merge.color: no transfer called {name!r}; {suggest(name, TABLE)}")
    return TABLE[name]
