"""Tests of faceswap.color: what each transfer promises of the statistics under the mask."""

import cv2
import footage
import numpy as np
import pytest
from numpy.typing import NDArray

from faceswap import align, color
from faceswap.errors import UsageError
from faceswap.masks import face_mask

Image = NDArray[np.float32]
SIZE = 64


def noise(seed: int, middle: tuple[float, float, float], spread: float) -> Image:
    """Pixels (64, 64, 3) whose channels go along with each other, at most `spread` from `middle`."""
    rng = np.random.default_rng(seed)
    mix = np.eye(3) * 0.7 + rng.uniform(0, 0.1, (3, 3))
    return (rng.uniform(-spread, spread, (SIZE, SIZE, 3)) @ mix + middle).astype(np.float32)


def drawn(look: str) -> Image:
    crop = footage.draw_face(look=look)[30:130, 30:130]
    return (cv2.resize(crop, (SIZE, SIZE), interpolation=cv2.INTER_AREA) / np.float32(255)).astype(np.float32)


@pytest.fixture
def mask() -> Image:
    return face_mask(align.TEMPLATE * SIZE, SIZE, 0.03)


def statistics(image: Image, mask: Image) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """NumPy's own weighted mean and covariance."""
    pixels, weight = image.reshape(-1, 3).astype(np.float64), mask.reshape(-1).astype(np.float64)
    return np.average(pixels, axis=0, weights=weight), np.cov(pixels.T, aweights=weight, ddof=0)


def lab(image: Image) -> Image:
    return cv2.cvtColor(image, cv2.COLOR_RGB2LAB)


def test_none_is_the_face_as_drawn(mask: Image) -> None:
    face = drawn("source")
    assert color.none(face, drawn("target"), mask) is face


@pytest.mark.parametrize("seed", range(4))
def test_mkl_gives_mean_and_covariance_of_the_target(seed: int, mask: Image) -> None:
    face, target = noise(seed, (0.5, 0.45, 0.4), 0.4), noise(seed + 100, (0.5, 0.55, 0.5), 0.4)
    moved = color.mkl(face, target, mask)
    inside = moved[mask > 0]
    assert ((inside > 0) & (inside < 1)).mean() > 0.999
    (mean, cov), (goal, goal_cov) = statistics(moved, mask), statistics(target, mask)
    np.testing.assert_allclose(mean, goal, atol=1e-3)
    np.testing.assert_allclose(cov, goal_cov, atol=1e-3)


@pytest.mark.parametrize("spread", [0.2, 0.05])
def test_mkl_gives_the_covariance_of_a_target_with_little_contrast(spread: float, mask: Image) -> None:
    target = noise(1, (0.5, 0.55, 0.5), spread)
    moved = color.mkl(noise(0, (0.5, 0.45, 0.4), spread), target, mask)
    np.testing.assert_allclose(statistics(moved, mask)[1], statistics(target, mask)[1], atol=0.1 * spread**2)


@pytest.mark.parametrize("name", color.TABLE)
@pytest.mark.parametrize("look", list(footage.LOOKS))
def test_a_face_that_has_the_colours_already_stays(name: str, look: str, mask: Image) -> None:
    face = drawn(look)
    assert np.abs(color.get(name)(face, face, mask) - face)[mask > 0].max() < 0.02


@pytest.mark.parametrize("seed", range(3))
def test_reinhard_gives_mean_and_spread_in_lab(seed: int, mask: Image) -> None:
    face, target = noise(seed, (0.5, 0.45, 0.4), 0.2), noise(seed + 100, (0.45, 0.5, 0.5), 0.2)
    moved = color.reinhard(face, target, mask)
    (mean, cov), (goal, goal_cov) = statistics(lab(moved), mask), statistics(lab(target), mask)
    np.testing.assert_allclose(mean, goal, atol=0.3)
    np.testing.assert_allclose(np.sqrt(np.diag(cov)), np.sqrt(np.diag(goal_cov)), rtol=0.05)


@pytest.mark.parametrize("name", ["reinhard", "mkl"])
def test_a_drawn_face_takes_the_targets_mean(name: str, mask: Image) -> None:
    face, target = drawn("source"), drawn("target")
    moved = color.get(name)(face, target, mask)
    before, after = (np.abs(statistics(image, mask)[0] - statistics(target, mask)[0]).max() for image in (face, moved))
    assert after < before / 3


@pytest.mark.parametrize("name", color.TABLE)
def test_only_what_lies_under_the_mask_counts(name: str, mask: Image) -> None:
    face, target = noise(0, (0.5, 0.45, 0.4), 0.4), noise(1, (0.5, 0.55, 0.5), 0.4)
    other_face, other_target = face.copy(), target.copy()
    other_face[mask == 0], other_target[mask == 0] = 0.9, 0.1
    expected, found = color.get(name)(face, target, mask), color.get(name)(other_face, other_target, mask)
    np.testing.assert_allclose(found[mask > 0], expected[mask > 0], atol=1e-6)


@pytest.mark.parametrize("name", color.TABLE)
@pytest.mark.parametrize("empty", [False, True])
def test_flat_images_give_numbers_in_range(name: str, empty: bool, mask: Image) -> None:
    face, target = np.full((2, SIZE, SIZE, 3), [[[[0.2]]], [[[0.7]]]], np.float32)
    moved = color.get(name)(face, target, np.zeros_like(mask) if empty else mask)
    assert moved.dtype == np.float32 and moved.shape == face.shape
    assert np.isfinite(moved).all() and moved.min() >= 0 and moved.max() <= 1
    if name != "none" and not empty:
        np.testing.assert_allclose(moved, target, atol=0.01)


@pytest.mark.parametrize("name", color.TABLE)
def test_extremes_stay_in_range(name: str, mask: Image) -> None:
    rng = np.random.default_rng(0)
    face, target = rng.integers(0, 2, (2, SIZE, SIZE, 3)).astype(np.float32)
    moved = color.get(name)(face, target, mask)
    assert moved.dtype == np.float32 and moved.min() >= 0 and moved.max() <= 1


def test_an_unknown_name_is_told_what_was_meant() -> None:
    with pytest.raises(UsageError, match=r"merge\.color: no transfer called 'reinhardt'; did you mean 'reinhard'\?"):
        color.get("reinhardt")
    assert [color.get(name) for name in color.TABLE] == list(color.TABLE.values())
