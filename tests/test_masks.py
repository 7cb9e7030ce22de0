"""Tests of faceswap.masks: where the face is, and where it is not."""

import time
from itertools import pairwise

import cv2
import footage
import numpy as np
import pytest
from numpy.typing import NDArray

from faceswap import align, detectors, landmarks, masks
from faceswap.errors import UsageError
from faceswap.masks import CENTRE, FOREHEAD, MOST_LEAN, RADII, face_mask, regions

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


# Dense landmarks

RADIUS = 0.3  # of the drawn contour, in units of the side
MIDDLE = 0.5


def ring(count: int, x: float, y: float, width: float, height: float, start: float) -> NDArray[np.float64]:
    """`count` points round an ellipse, anticlockwise in the image from the angle `start` in turns, 0 at the top."""
    turns = 2 * np.pi * (start - np.arange(count) / count)
    return np.stack([x + width * np.sin(turns), y - height * np.cos(turns)], 1)


def face(size: int, yaw: float = 0.0) -> NDArray[np.float64]:
    """A face's landmarks (152, 2) in a crop of `size`: symmetric, its contour a circle, turned by `yaw` degrees."""
    flat = np.zeros((landmarks.COUNT, 2))
    flat[landmarks.CONTOUR] = ring(36, MIDDLE, MIDDLE, -RADIUS, RADIUS, 0)
    flat[landmarks.LIPS] = ring(20, MIDDLE, 0.65, 0.1, 0.04, 0.75)
    flat[landmarks.MOUTH] = ring(20, MIDDLE, 0.65, 0.08, 0.01, 0.75)
    nose = [(0.0, y) for y in (0.5, 0.52, 0.53, 0.54, 0.55, 0.56, 0.57, 0.59)]
    nose += [(-0.05, 0.57), (-0.03, 0.58), (-0.01, 0.59), (0.01, 0.59), (0.03, 0.58), (0.05, 0.57)]
    flat[landmarks.NOSE] = nose
    flat[landmarks.NOSE, 0] += MIDDLE
    left = [(landmarks.EYE_LEFT, ring(16, 0.38, 0.48, 0.06, 0.02, 0.75))]
    left += [(landmarks.BROW_LEFT, ring(10, 0.37, 0.42, 0.08, 0.01, 0.75))]
    left += [(landmarks.IRIS_LEFT, np.full((5, 2), [0.38, 0.48]))]
    for places, where in left:
        flat[places] = where
        flat[landmarks.MIRROR[places]] = np.array([1, 0]) + [-1, 1] * where
    depth = np.sqrt(np.clip(RADIUS**2 - ((flat - MIDDLE) ** 2).sum(1), 0, None))
    depth[landmarks.CONTOUR] = -2 * (flat[landmarks.CONTOUR, 0] - MIDDLE) ** 2  # back to the ears
    depth[landmarks.NOSE] += [0, 0.01, 0.03, 0.05, 0.07, 0.1, 0.09, 0.03, *[0.03] * 6]
    turned = np.deg2rad(yaw)
    flat[:, 0] = MIDDLE + (flat[:, 0] - MIDDLE) * np.cos(turned) + depth * np.sin(turned)
    return flat * size - 0.5


def area(mask: NDArray[np.float32]) -> float:
    """In units of the side, squared."""
    return float(mask.mean())


def pieces(mask: NDArray[np.bool_]) -> int:
    return int(cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[0]) - 1


@pytest.fixture
def no_forehead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "FOREHEAD", 0.0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("feather", [0.0, 0.03])
@pytest.mark.parametrize("grow", [-0.05, 0.0, 0.05])
def test_a_mask_of_landmarks_is_a_share_per_pixel(size: int, feather: float, grow: float) -> None:
    mask = face_mask(face(size), size, feather, grow)
    assert mask.shape == (size, size) and mask.dtype == np.float32
    assert mask.min() == 0 and mask.max() <= 1
    x, y = face(size)[landmarks.NOSE[4]].round().astype(int)
    assert mask[y, x] == pytest.approx(1, abs=1e-4)
    assert not mask[[0, 0, -1, -1], [0, -1, 0, -1]].any()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.usefixtures("no_forehead")
def test_a_round_contour_gives_a_disc_not_a_polygon(size: int) -> None:
    mask = face_mask(face(size), size)
    drawn = RADIUS + 0.125 / size  # cv2 fills the outline too, half a pixel of the finer drawing
    assert area(mask) == pytest.approx(np.pi * drawn**2, rel=0.003)
    assert area(mask) > 36 / 2 * np.sin(np.pi / 18) * drawn**2  # the polygon's
    y, x = np.mgrid[:size, :size]
    away = np.hypot(x + 0.5 - MIDDLE * size, y + 0.5 - MIDDLE * size) - RADIUS * size
    assert (mask[away < -1] == 1).all() and not mask[away > 1].any()


@pytest.mark.parametrize("size", SIZES)
def test_the_forehead_reaches_higher_and_nothing_else_changes(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = face_mask(face(size), size)
    assert area(mask) == pytest.approx(np.pi * RADIUS**2 * (1 + FOREHEAD / 2), rel=0.03)
    top = (MIDDLE - RADIUS * (1 + FOREHEAD)) * size
    assert np.flatnonzero(mask.max(1) > 0.5)[0] == pytest.approx(top, abs=1)
    monkeypatch.setattr(masks, "FOREHEAD", 0.0)
    below = slice(round(0.6 * size), None)
    assert np.array_equal(face_mask(face(size), size)[below], mask[below])


@pytest.mark.parametrize("size", [64, 100, 256])
@pytest.mark.parametrize("grow", [-0.15, -0.05, -0.02, 0.02, 0.05, 0.15])
@pytest.mark.usefixtures("no_forehead")
def test_growing_moves_the_edge_by_that_distance(size: int, grow: float) -> None:
    radius = np.sqrt(area(face_mask(face(size), size, grow=grow)) / np.pi)
    assert (radius - RADIUS) * size == pytest.approx(grow * size, abs=0.35)  # px


@pytest.mark.parametrize("points", [points(96), face(96), face(96, 70)], ids=["five", "straight", "turned"])
def test_a_larger_mask_holds_the_smaller(points: NDArray[np.float64]) -> None:
    grown = [face_mask(points, 96, grow=grow) for grow in (-1, -0.2, -0.1, -0.03, 0, 0.003, 0.03, 0.1, 0.2)]
    assert all((small <= large + 1 / 16).all() for small, large in pairwise(grown))  # one of a pixel's 4 x 4
    areas = [area(mask) for mask in grown]
    assert areas[0] == 0 and all(small < large for small, large in pairwise(areas))


def test_where_the_face_leaves_the_crop_shrinking_leaves_it_whole() -> None:
    near = (face(64) - 32) * 3 + 32  # a face larger than its crop
    assert (face_mask(near, 64, grow=-0.1)[20:44] == 1).all()


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("yaw", [0, 25, 60, 85])
def test_the_mirrored_face_has_the_mirrored_masks(size: int, yaw: float) -> None:
    there = face(size, yaw)
    there += np.random.default_rng(0).normal(0, 0.005 * size, there.shape)
    mirrored = there[landmarks.MIRROR] * [-1, 1] + [size - 1, 0]
    for one, other in [
        (face_mask(there, size), face_mask(mirrored, size)),
        (face_mask(there, size, 0.02, 0.05), face_mask(mirrored, size, 0.02, 0.05)),
        *zip(regions(there, size), regions(mirrored, size), strict=True),
    ]:
        assert np.abs(one[:, ::-1] - other).mean() < 0.25 / size  # some sixteenths of a pixel, along the edge


@pytest.mark.parametrize("yaw", [0, 40, 80])
def test_a_mask_is_the_same_at_each_size(yaw: float) -> None:
    large = face_mask(face(256, yaw), 256)
    for size in (32, 64, 128):
        small = cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA)
        assert np.abs(face_mask(face(size, yaw), size) - small).mean() < 0.3 / size


@pytest.mark.parametrize("yaw", range(-90, 91, 15))
def test_a_turned_face_is_one_piece_without_a_hole_up_to_its_nose(yaw: float) -> None:
    there = face(128, yaw)
    mask = face_mask(there, 128) > 0.5
    assert pieces(mask) == 1 and pieces(~mask) == 1
    x, y = there[landmarks.NOSE[[0, 2, 4, 6]]].round().astype(int).T
    assert (face_mask(there, 128, grow=0.01)[y, x] > 0.5).all()  # they lie on the edge


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("yaw", [0, 30])
def test_regions_hold_eyes_and_mouth_and_not_the_nose(size: int, yaw: float) -> None:
    eyes, mouth = regions(face(size, yaw), size)
    x, y = face(size, yaw).round().astype(int).T
    for mask in (eyes, mouth):
        assert mask.shape == (size, size) and mask.dtype == np.float32 and mask.min() == 0 and mask.max() <= 1
        assert mask[y[landmarks.NOSE[4]], x[landmarks.NOSE[4]]] < 0.01 and not mask[[0, -1]].any()
    both = np.concatenate([landmarks.EYE_LEFT, landmarks.EYE_RIGHT])
    assert (eyes[y[both], x[both]] > 0.5).all() and (mouth[y[landmarks.LIPS], x[landmarks.LIPS]] > 0.5).all()
    assert (eyes * mouth).max() < 1e-3 and pieces(mouth > 0.5) == 1 and pieces(eyes > 0.5) == 2
    assert area(np.maximum(eyes, mouth)) < 0.1


def test_a_margin_goes_round_the_regions() -> None:
    eyes, mouth = zip(*(regions(face(128), 128, margin, 0) for margin in (0, 0.01, 0.02, 0.04)), strict=True)
    for masks_of in (eyes, mouth):
        assert all((small <= large).all() and area(small) < area(large) for small, large in pairwise(masks_of))
    assert area(mouth[0]) == pytest.approx(np.pi * 0.1 * 0.04, rel=0.06)


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ValueError, match=r"152 landmarks, not from 5 points"):
        regions(points(64), 64)
    with pytest.raises(ValueError, match=r"152 landmarks or from five points, not from 68"):
        face_mask(np.zeros((68, 2)), 64)


@pytest.mark.parametrize("value", [0.0, -1e8, 1e8])
def test_absurd_landmarks_give_a_mask_all_the_same(value: float) -> None:
    there = np.full((landmarks.COUNT, 2), value)
    there[::2] *= -1
    for mask in (face_mask(there, 64, 0.01, 0.02), *regions(there, 64)):
        assert mask.shape == (64, 64) and np.isfinite(mask).all()


def test_masks_are_drawn_in_a_millisecond() -> None:
    there, seconds = face(128), []
    for _ in range(40):
        started = time.perf_counter()
        face_mask(there, 128, 0.01)
        regions(there, 128)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 4e-3  # both; slack for a slow machine


# ---------------------------------------------------------------- where a drawn face is laid in


def drawn_masks() -> list[NDArray[np.float32]]:
    """Of the source, of the target, of the landmarks: any values at all."""
    return list(np.random.default_rng(0).uniform(0, 1, (3, 16, 16)).astype(np.float32))


def test_masks_are_chosen_by_name() -> None:
    source, target, bound = drawn_masks()
    expected = {
        "learned": np.minimum(source, bound),
        "landmarks": bound,
        "target": np.minimum(target, bound),
        "product": np.minimum(source * target, bound),
        "union": np.minimum(np.maximum(source, target), bound),
    }
    assert set(expected) == set(masks.TABLE)
    for name, mask in expected.items():
        found = masks.chosen(name, source, bound, target)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, mask)
    before = np.minimum(source, bound)
    np.testing.assert_array_equal(masks.chosen("learned", source, bound), before)


@pytest.mark.parametrize("name", masks.TABLE)
def test_no_mask_leaves_its_bound(name: str) -> None:
    source, target, bound = drawn_masks()
    shut = np.where(bound > 0.5, bound, np.float32(0))  # the user's own, or the landmarks'
    assert (masks.chosen(name, source, shut, target) <= shut).all()
    assert not masks.chosen(name, source, np.zeros_like(bound), target).any()
    if name in masks.OF_TARGET:
        with pytest.raises(ValueError, match="needs the target's"):
            masks.chosen(name, source, bound)


def test_what_the_network_knows_to_lie_before_a_face_stays() -> None:
    source, target, bound = np.ones((3, 8, 8), np.float32)
    source[2:4] = target[2:4] = 0  # a hand that both know
    target[5] = 0  # and one that the target knows
    for name in ("learned", "target", "product", "union"):
        assert not masks.chosen(name, source, bound, target)[2:4].any()
    kept = {name: not masks.chosen(name, source, bound, target)[5].any() for name in masks.TABLE}
    assert kept == {"learned": False, "landmarks": False, "target": True, "product": True, "union": False}


def test_an_unknown_mask_is_told_what_was_meant() -> None:
    assert masks.check("union") == "union"
    with pytest.raises(UsageError, match=r"merge\.mask: no mask called 'onion'; did you mean 'union'\?"):
        masks.check("onion")
