"""Tests of faceswap.align against closed forms, OpenCV and what the geometry promises."""

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from faceswap import align

Array = NDArray[np.float64]
SEEDS = range(6)


def random_matrix(rng: np.random.Generator, low: float = 0.3, high: float = 3.0, shift: float = 60) -> Array:
    """A similarity: any rotation, log-uniform scale, shift in pixels."""
    angle, scale = rng.uniform(-np.pi, np.pi), np.exp(rng.uniform(np.log(low), np.log(high)))
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cos, -sin, rng.uniform(-shift, shift)], [sin, cos, rng.uniform(-shift, shift)]])


def around(centre: tuple[float, float], middle: float, scale: float, angle: float = 0.4) -> Array:
    """The similarity of that scale and angle that maps `centre` to (middle, middle)."""
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.array([[cos, -sin], [sin, cos]])
    return np.column_stack([linear, [middle, middle] - linear @ centre])


def blob(shape: tuple[int, int], centre: tuple[float, float], sigma: float) -> NDArray[np.float32]:
    y, x = np.mgrid[: shape[0], : shape[1]]
    value = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * sigma**2))
    return value.astype(np.float32)[..., None].repeat(3, 2)


def centroid(image: NDArray[np.float32]) -> Array:
    weight = np.clip(image[..., 0].astype(np.float64) - 0.02, 0, None)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


def smooth(rng: np.random.Generator, side: int, sigma: float) -> NDArray[np.float32]:
    """Soft noise (side, side, 3) that spans 0.1 to 0.9."""
    noise = cv2.GaussianBlur(rng.standard_normal((side, side, 3)), (0, 0), sigma)
    return (0.1 + 0.8 * (noise - noise.min()) / np.ptp(noise)).astype(np.float32)


def checkerboard(side: int) -> NDArray[np.float32]:
    return (np.indices((side, side)).sum(0) % 2).astype(np.float32)[..., None].repeat(3, 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_similarity_recovers_a_known_transform(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, points = random_matrix(rng), rng.uniform(0, 500, (5, 2))
    np.testing.assert_allclose(align.similarity(points, align.apply(truth, points)), truth, atol=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_similarity_is_the_least_squares_fit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 100, (5, 2))
    onto = align.apply(random_matrix(rng), points) + rng.normal(0, 4, (5, 2))
    found = align.similarity(points, onto)
    one, none = np.ones(5), np.zeros(5)
    rows = [np.column_stack([points[:, 0], -points[:, 1], one, none]), np.column_stack([points[:, ::-1], none, one])]
    cos, sin, x, y = np.linalg.lstsq(np.concatenate(rows), onto.T.reshape(-1), rcond=None)[0]
    np.testing.assert_allclose(found, [[cos, -sin, x], [sin, cos, y]], atol=1e-8)
    theirs, _ = cv2.estimateAffinePartial2D(points, onto, ransacReprojThreshold=1e6, refineIters=100)
    np.testing.assert_allclose(found, theirs, atol=1e-3)


def test_similarity_never_mirrors() -> None:
    mirrored = align.TEMPLATE * [-1, 1]
    assert np.linalg.det(align.similarity(mirrored, align.TEMPLATE)[:, :2]) >= 0


def test_similarity_refuses_points_that_coincide_or_are_not_numbers() -> None:
    for points in (np.ones((5, 2)), np.full((5, 2), np.nan)):
        with pytest.raises(ValueError, match="coincide"):
            align.similarity(points, align.TEMPLATE)


@pytest.mark.parametrize("seed", SEEDS)
def test_invert_undoes_apply(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix, points = random_matrix(rng), rng.uniform(-100, 100, (7, 2))
    np.testing.assert_allclose(align.apply(align.invert(matrix), align.apply(matrix, points)), points, atol=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_canonical_crop_holds_the_template(seed: int) -> None:
    face = align.apply(random_matrix(np.random.default_rng(seed)), align.TEMPLATE * 80)
    matrix = align.crop_matrix(face, 128)
    np.testing.assert_allclose(align.apply(matrix, face), align.TEMPLATE * 128, atol=1e-9)
    np.testing.assert_allclose(matrix * 0.5, align.crop_matrix(face, 64), atol=1e-9)


def test_scale_counts_crop_pixels_in_a_frame_pixel() -> None:
    assert align.scale_of(around((3, 4), 8, 2.5)) == pytest.approx(2.5)


@pytest.mark.parametrize("scale", [0.125, 0.3, 0.49, 0.51, 0.99, 1.0, 1.7, 4.0])
def test_crop_puts_a_spot_where_the_matrix_says(scale: float) -> None:
    spot = (201.3, 187.6)
    frame = blob((400, 420), spot, 3 / min(scale, 1))
    crop = align.crop(frame, around(spot, 31.25, scale), 64)
    assert np.abs(centroid(crop) - 31.25).max() < 0.1


@pytest.mark.parametrize("size", [32, 50, 64, 100, 192, 256])
def test_resize_is_registered_with_a_crop_of_that_size(size: int) -> None:
    spot = (101.3, 77.6)
    frame = blob((200, 220), spot, 7)
    matrix = around(spot, 61.7, 1.2)
    direct = align.crop(frame, matrix * (size / 128), size)
    resized = align.resize(align.crop(frame, matrix, 128), size)
    assert np.abs(centroid(resized) - centroid(direct)).max() < 0.1
    assert np.abs(resized - direct).max() < 0.08


def test_resize_to_its_own_size_is_the_image_itself() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    assert align.resize(image, 32) is image


@pytest.mark.parametrize("scale", [0.11, 0.23, 0.31])
def test_shrinking_is_low_pass(scale: float) -> None:
    board = checkerboard(512)
    matrix = around((255, 255), 31.5, scale)
    assert align.crop(board, matrix, 48).std() < 0.04
    assert cv2.warpAffine(board, matrix, (48, 48), flags=cv2.INTER_LINEAR).std() > 0.1


def test_laying_back_a_finer_crop_is_low_pass() -> None:
    matrix = around((40, 40), 127, 3.3)
    where = align.region(matrix, 256, (80, 80))
    assert where is not None
    assert align.uncrop(checkerboard(256), matrix, where)[25:55, 25:55].std() < 0.04


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("scale", [0.2, 1.0])
def test_crop_keeps_the_type_and_a_flat_colour_beyond_the_border(dtype: type, scale: float) -> None:
    frame = np.full((40, 30, 3), 200, dtype)
    crop = align.crop(frame, around((0, 0), 16, scale), 64)
    assert crop.shape == (64, 64, 3) and crop.dtype == dtype
    np.testing.assert_allclose(crop.astype(float), 200, rtol=1e-6)


def test_what_lies_outside_repeats_the_border() -> None:
    frame = np.arange(20, dtype=np.uint8)[None, :, None].repeat(20, 0).repeat(3, 2) * 10
    crop = align.crop(frame, np.array([[1.0, 0, 10], [0, 1, 10]]), 40)
    assert (crop[:, :9] == 0).all() and (crop[:, 32:] == 190).all()
    np.testing.assert_array_equal(crop[10:30, 10:30], frame)


@pytest.mark.parametrize("seed", SEEDS)
def test_crop_and_uncrop_give_the_frame_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frame = smooth(rng, 160, 4)
    matrix = around((80 + rng.uniform(-20, 20), 80), 63.5, rng.uniform(0.9, 1.6), rng.uniform(-3, 3))
    where = align.region(matrix, 128, frame.shape)
    assert where is not None
    x0, y0, x1, y1 = where
    back = align.uncrop(align.crop(frame, matrix, 128), matrix, where)
    covered = align.uncrop_mask(np.ones((128, 128), np.float32), matrix, where) > 0.999
    assert covered.mean() > 0.4 and back.shape == frame[y0:y1, x0:x1].shape
    assert np.abs(back - frame[y0:y1, x0:x1])[covered].max() < 0.02


def test_uncrop_of_a_mask_ends_with_the_crop() -> None:
    matrix = np.array([[1.0, 0, -10], [0, 1, -20]])
    laid = align.uncrop_mask(np.ones((8, 8), np.float32), matrix, (0, 0, 40, 40))
    expected = np.zeros((40, 40), np.float32)
    expected[20:28, 10:18] = 1
    np.testing.assert_allclose(laid, expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(25))
def test_region_holds_each_covered_pixel_and_lies_in_the_frame(seed: int) -> None:
    matrix = random_matrix(np.random.default_rng(seed), shift=40)
    height, width, size = 50, 70, 32
    y, x = np.mgrid[:height, :width]
    inside = align.apply(matrix, np.column_stack([x.ravel(), y.ravel()])).reshape(height, width, 2)
    covered = ((inside >= -0.5) & (inside <= size - 0.5)).all(2)
    where = align.region(matrix, size, (height, width, 3))
    if where is None:
        assert not covered.any()
        return
    x0, y0, x1, y1 = where
    assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    covered[y0:y1, x0:x1] = False
    assert not covered.any()


def test_region_fits_closely_and_is_none_outside() -> None:
    place = np.array([[1.0, 0, -10], [0, 1, -20]])
    assert align.region(place, 8, (100, 100, 3)) == (9, 19, 19, 29)
    for x, y in ((-30, 5), (130, 5), (5, -30), (5, 130)):
        assert align.region(np.array([[1.0, 0, -x], [0, 1, -y]]), 8, (100, 100, 3)) is None


def test_16_bits_become_8_by_rounding() -> None:
    deep = np.arange(65536, dtype=np.uint16)
    np.testing.assert_array_equal(align.as_uint8(deep), np.round(deep / 257).astype(np.uint8))
    shallow = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(align.as_uint8(shallow.astype(np.uint16) * 257), shallow)
    np.testing.assert_array_equal(align.as_uint8(shallow), shallow)


def test_the_quick_way_of_small_images_changes_nothing() -> None:
    random = np.random.default_rng(0)
    face = cv2.GaussianBlur(random.integers(0, 256, (300, 300, 3), np.uint8), (0, 0), 2)
    matrix = np.array([[0.5, 0.02, 3.0], [-0.02, 0.5, 4.0]])
    by_channel = [align.crop(np.ascontiguousarray(face[..., i]), matrix, 150) for i in range(3)]
    np.testing.assert_array_equal(align.crop(face, matrix, 150), np.dstack(by_channel))


# Face types as the reference of DeepFaceLab's crops has them: eye centres, and the box of its mean face.
THEIRS = {
    "full": ([[0.328, 0.322], [0.660, 0.322]], [0.187, 0.187, 0.813, 0.813]),
    "whole": ([[0.371, 0.400], [0.620, 0.400]], [0.265, 0.298, 0.735, 0.767]),
    "head": ([[0.408, 0.572], [0.585, 0.572]], [0.332, 0.500, 0.668, 0.836]),
    "mid-full": (None, [0.080, 0.080, 0.920, 0.920]),
    "half": (None, [0.0, 0.0, 1.0, 1.0]),
}


@pytest.mark.parametrize("crop", THEIRS)
def test_crops_are_those_of_deepfacelab(crop: str) -> None:
    eyes, box = THEIRS[crop]
    x0, y0, x1, y1 = box
    expected = np.array([x0, y0]) + align.MEAN_EYES * [x1 - x0, y1 - y0] if eyes is None else np.array(eyes)
    inside = align.apply(align.onto(crop, 200, 128), align.TEMPLATE[:2] * 200) / 128
    np.testing.assert_allclose(inside, expected, atol=2e-3)
    assert (align.beyond(crop) > 0) == (crop in ("whole", "head"))


def test_the_canonical_crop_is_one_of_them() -> None:
    assert np.array_equal(align.onto("canonical", 64, 128), np.eye(2, 3) * 2) and align.beyond("canonical") == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_one_matrix_after_another(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, then, points = random_matrix(rng), random_matrix(rng), rng.normal(size=(5, 2)) * 50
    expected = align.apply(then, align.apply(first, points))
    np.testing.assert_allclose(align.apply(align.after(then, first), points), expected)


def test_another_crop_of_a_crop_is_that_of_the_frame() -> None:
    frame = blob((300, 300), (150, 140), 12.0)
    canonical = around((150, 150), 64, 0.6, 0.2)
    once = align.crop(frame, align.after(align.onto("full", 128, 96), canonical), 96)
    np.testing.assert_allclose(align.resize(align.crop(frame, canonical, 128), 96, "full"), once, atol=0.01)
