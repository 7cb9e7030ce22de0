"""Tests of faceswap.masks: where the face is, and where it is not."""

from itertools import pairwise

import footage
import numpy as np
import pytest
from numpy.typing import NDArray

from faceswap import align, detectors
from faceswap.masks import CENTRE, MOST_LEAN, RADII, face_mask

SIZES = [32, 64, 100, 256]


def points(size: int, nose: float = 0.0) -> NDArray[np.float64]:
    """The template's points, the nose moved by `nose` crop sides to the image's right."""
    moved = align.TEMPLATE.copy()
    moved[2, 0] += nose
    return moved * size


def centre(mask: NDArray[np.float32]) -> float:
    return float((mask.sum(0) * np.arange(len(mask))).sum() / mask.sum()) / len(mask)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("feather", [0.0, 0.03])
def test_a_mask_is_a_share_per_pixel(size: int, feather: float) -> None:
    mask = face_mask(points(size), size, feather)
    assert mask.shape == (size, size) and mask.dtype == np.float32
    assert mask.min() == 0 and mask.max() <= 1 and mask[size // 2, size // 2] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("nose", [-0.05, 0.0, 0.05])
def test_the_points_lie_on_the_face_and_the_border_off_it(size: int, nose: float) -> None:
    mask = face_mask(points(size, nose), size)
    x, y = points(size, nose).round().astype(int).T
    assert (mask[y, x] == 1).all()
    assert not mask[[0, -1]].any() and not mask[:, [0, -1]].any()


def test_a_detected_face_has_its_points_in_its_mask() -> None:
    detector = detectors.build("mtcnn", threshold=0.9, min_size=40, device="cpu")
    (faces,) = detector([footage.draw_face(turn=3)])
    inside = align.apply(align.crop_matrix(faces[0].points, 128), faces[0].points)
    x, y = inside.round().astype(int).T
    assert (face_mask(inside, 128)[y, x] == 1).all()


def test_the_mask_leans_against_the_nose_up_to_a_bound() -> None:
    middles = [centre(face_mask(points(128, nose), 128)) for nose in (-0.6, -0.3, -0.1, 0, 0.1, 0.3, 0.6)]
    far_left, *_, far_right = shifts = np.array(middles) - middles[3]
    assert (np.diff(shifts) <= 1e-9).all() and shifts[2] > 0.03 > -0.03 > shifts[4]
    assert far_left == pytest.approx(MOST_LEAN, abs=0.005) and far_right == pytest.approx(-MOST_LEAN, abs=0.005)


@pytest.mark.parametrize("size", SIZES)
def test_a_mask_is_the_same_ellipse_at_each_size(size: int) -> None:
    mask = face_mask(points(size), size)
    width, height = RADII
    grown = 0.125 / size  # cv2 fills the outline too, half a pixel of the finer drawing
    assert float(mask.mean()) == pytest.approx(np.pi * (width + grown) * (height + grown), abs=0.005)
    assert centre(mask) == pytest.approx(CENTRE[0], abs=0.003)
    assert centre(mask.T) == pytest.approx(CENTRE[1], abs=0.003)


@pytest.mark.parametrize("feather", [0.0, 0.01, 0.03, 0.08])
def test_from_its_middle_the_mask_only_falls(feather: float) -> None:
    mask = face_mask(points(128), 128, feather)
    row, column = mask[66], mask[:, 62]
    for ray in (row[63:], row[62::-1], column[67:], column[66::-1]):
        assert (np.diff(ray) <= 1e-6).all() and ray[0] > 0.9 and ray[-1] < 0.1


def test_a_wider_feather_is_softer() -> None:
    slopes = [np.abs(np.diff(face_mask(points(128), 128, feather)[66])).max() for feather in (0, 0.01, 0.03, 0.08)]
    assert all(a > b for a, b in pairwise(slopes))
