"""Facesets that the tests make themselves, of pictures that are no faces but look as different from each other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from faceswap import align
from faceswap.faceset import FaceMeta, read_meta, write_face

SIDE = 96
POINTS = align.TEMPLATE * SIDE


def meta(number: int, **given: Any) -> FaceMeta:
    """A face whose crop lies in its frame as it is."""
    known: dict[str, Any] = {
        **{"source": "clip.mp4", "frame": number, "time": number / 25, "face": 0, "box": [20.0, 20.0, 70.0, 80.0]},
        **{"points": POINTS.tolist(), "matrix": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], "size": SIDE},
        **{"detector": "mtcnn", "probability": 0.99},
    }
    return FaceMeta(**known | given)


def picture(seed: int, blur: float = 0.0, light: float = 1.0) -> NDArray[np.uint8]:
    """Blobs of its own: not a face, but a picture unlike all others."""
    noise = np.random.default_rng(seed).uniform(0, 255, (12, 12, 3)).astype(np.float32)
    image = cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) * light
    image += np.random.default_rng(seed + 999).normal(0, 8, image.shape)
    soft = cv2.GaussianBlur(image, (0, 0), blur) if blur else image
    return np.asarray(soft.clip(0, 255), np.uint8)


def make(folder: Path, faces: Sequence[tuple[NDArray[np.uint8], FaceMeta]]) -> Path:
    folder.mkdir()
    for image, about in faces:
        write_face(folder / f"clip_{about.frame:06d}_{about.face}.png", image, about)
    return folder


def damage(folder: Path, frame: int) -> None:
    path = folder / f"clip_{frame:06d}_0.png"
    path.write_bytes(path.read_bytes()[:-3000])  # the metadata stands before the pixels
    assert read_meta(path) is not None


def ten(folder: Path) -> Path:
    """Ten pictures; the third has a mask."""
    make(folder, [(picture(i, i * 0.3, 1 - i / 20), meta(i, track=i // 4)) for i in range(10)])
    cv2.imwrite(str(folder / "clip_000002_0.mask.png"), np.full((SIDE, SIDE), 200, np.uint8))
    return folder
