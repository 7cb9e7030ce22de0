"""Tests of faceswap.color: what each transfer promises of the statistics under the mask."""

import cv2
import footage
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from faceswap import align, color
from faceswap.errors import UsageError
from faceswap.masks import face_mask

Image = NDArray[np.float32]
SIZE = 64
CHANGING = [name for name in color.TABLE if name != "none"]


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
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), np.float32)


def test_none_is_the_face_as_drawn(mask: Image) -> None:
    face = drawn("source")
    assert color.none(face, drawn("target"), mask) is face


@pytest.mark.parametrize("name", ["mkl", "lct"])
@pytest.mark.parametrize("seed", range(4))
def test_linear_transfers_give_mean_and_covariance_of_the_target(name: str, seed: int, mask: Image) -> None:
    face, target = noise(seed, (0.5, 0.45, 0.4), 0.4), noise(seed + 100, (0.5, 0.55, 0.5), 0.4)
    moved = color.get(name)(face, target, mask)
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


@pytest.mark.parametrize("name", ["reinhard", "lct", "mkl", "mix"])
def test_a_soft_face_is_not_stretched_to_the_contrast_of_sharp_footage(name: str, mask: Image) -> None:
    face, target = noise(0, (0.5, 0.48, 0.46), 0.04), noise(1, (0.6, 0.5, 0.5), 0.16)
    moved = color.get(name)(face, target, mask)
    space = lab if name in ("reinhard", "mix") else np.asarray
    before, after = (statistics(space(image), mask)[1] for image in (face, moved))
    stretched = np.sqrt(np.linalg.eigvalsh(after)[-1] / np.linalg.eigvalsh(before)[-1])
    assert stretched == pytest.approx(color.MOST_STRETCHED, rel=0.05)
    if name != "mix":
        np.testing.assert_allclose(statistics(moved, mask)[0], statistics(target, mask)[0], atol=0.01)


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


def fitted(face: Image, moved: Image) -> NDArray[np.float64]:
    """The matrix (3, 4) that takes the colours of one image to those of another, where nothing was clipped."""
    free = ((moved > 0) & (moved < 1)).all(2)
    known = np.column_stack([face[free], np.ones(free.sum())]).astype(np.float64)
    found, left, *_ = np.linalg.lstsq(known, moved[free].astype(np.float64), rcond=None)
    assert left.max() < 1e-6
    return np.asarray(found.T)


def test_mkl_is_the_map_that_is_symmetric_and_lct_the_triangular_one(mask: Image) -> None:
    face, target = noise(0, (0.5, 0.45, 0.4), 0.3), noise(1, (0.5, 0.55, 0.5), 0.25)
    mkl, lct = (fitted(face, transfer(face, target, mask))[:, :3] for transfer in (color.mkl, color.lct))
    np.testing.assert_allclose(mkl, mkl.T, atol=1e-4)
    assert (np.linalg.eigvalsh(mkl) > 0).all()
    np.testing.assert_allclose(np.triu(lct, 1), 0, atol=1e-4)


def test_mix_keeps_the_lightness_and_takes_the_colour(mask: Image) -> None:
    face, target = noise(0, (0.4, 0.45, 0.45), 0.1), noise(1, (0.6, 0.5, 0.45), 0.1)
    moved, goal, own = lab(color.mix(face, target, mask)), lab(target), lab(face)
    np.testing.assert_allclose(moved[..., 0], own[..., 0], atol=0.3)
    (mean, cov), (expected, goal_cov) = statistics(moved, mask), statistics(goal, mask)
    np.testing.assert_allclose(mean[1:], expected[1:], atol=0.3)
    np.testing.assert_allclose(cov[1:, 1:], goal_cov[1:, 1:], rtol=0.1, atol=1)


def test_histogram_gives_each_channels_distribution(mask: Image) -> None:
    face, target = noise(0, (0.5, 0.45, 0.4), 0.3), noise(1, (0.5, 0.55, 0.5), 0.3) ** 2
    moved, inside, shares = color.histogram(face, target, mask), mask > 0.5, np.linspace(0.02, 0.98, 49)
    for channel in range(3):
        found, goal = (np.quantile(image[..., channel][inside], shares) for image in (moved, target))
        np.testing.assert_allclose(found, goal, atol=0.015)
        order = np.argsort(face[..., channel], axis=None)
        assert (np.diff(moved[..., channel].flat[order]) >= 0).all()


def test_histogram_shifts_what_is_brighter_than_all_that_was_measured(mask: Image) -> None:
    state = color.histogram.measure(np.full((SIZE, SIZE, 3), 0.3, np.float32), noise(1, (0.5, 0.5, 0.5), 0.02), mask)
    shown = np.full((1, 2, 3), [[[0.4], [0.45]]], np.float32)
    moved = color.histogram.apply(shown, state)
    np.testing.assert_allclose(np.diff(moved, axis=1), 0.05, atol=1e-5)


def distance(one: Image, other: Image, mask: Image) -> float:
    """The mean Wasserstein distance along 20 axes."""
    axes = np.random.default_rng(5).standard_normal((20, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    inside = mask > 0.5
    return float(np.mean([wasserstein_distance(one[inside] @ axis, other[inside] @ axis) for axis in axes]))


@pytest.mark.parametrize("name", ["reinhard", "lct", "mkl", "idt", "sliced-ot", "histogram"])
def test_transfers_bring_the_distributions_together(name: str, mask: Image) -> None:
    face, target = noise(0, (0.5, 0.45, 0.4), 0.25), noise(1, (0.45, 0.55, 0.5), 0.2)
    assert distance(color.get(name)(face, target, mask), target, mask) < 0.2 * distance(face, target, mask)


def test_idt_follows_a_curve_that_no_matrix_can(mask: Image) -> None:
    face = noise(0, (0.5, 0.5, 0.5), 0.45)
    target = noise(7, (0.5, 0.5, 0.5), 0.45) ** 2.2
    straight, curved = (distance(color.get(name)(face, target, mask), target, mask) for name in ("mkl", "idt"))
    assert curved < 0.5 * straight


def test_sliced_ot_of_normal_colours_is_close_to_mkl(mask: Image) -> None:
    rng = np.random.default_rng(0)
    turn = np.array([[0.09, 0.03, 0], [0.01, 0.08, 0.02], [0, 0.02, 0.07]])
    face = (rng.standard_normal((SIZE, SIZE, 3)) * 0.08 + 0.45).astype(np.float32)
    target = (rng.standard_normal((SIZE, SIZE, 3)) @ turn + 0.5).astype(np.float32)
    assert np.abs(color.sliced_ot(face, target, mask) - color.mkl(face, target, mask)).mean() < 0.01


@pytest.mark.parametrize("name", ["reinhard", "mkl", "lct", "idt", "sliced-ot", "histogram"])
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
def test_flat_images_give_numbers_in_range(name: str, mask: Image) -> None:
    face, target = np.full((2, SIZE, SIZE, 3), [[[[0.2]]], [[[0.7]]]], np.float32)
    moved = color.get(name)(face, target, mask)
    assert moved.dtype == np.float32 and moved.shape == face.shape
    np.testing.assert_allclose(moved, face if name in ("none", "mix") else target, atol=0.01)


@pytest.mark.parametrize("name", color.TABLE)
def test_an_empty_mask_leaves_the_face_as_drawn(name: str, mask: Image) -> None:
    face, target = drawn("source"), drawn("target")
    assert color.get(name)(face, target, np.zeros_like(mask)) is face
    assert color.get(name).measure(face, target, mask * np.float32(1e-6)) is color.NOTHING
    assert color.get(name).apply(face, color.NOTHING) is face


@pytest.mark.parametrize("name", CHANGING)
@pytest.mark.parametrize("pixels", [1, 2, 5])
def test_a_mask_of_a_few_pixels_shifts_and_does_not_explode(name: str, pixels: int, mask: Image) -> None:
    face, target, few = drawn("source"), drawn("target"), np.zeros_like(mask)
    few[32, 32 : 32 + pixels] = 1
    moved = color.get(name)(face, target, few)
    assert np.isfinite(moved).all() and moved.min() >= 0 and moved.max() <= 1
    expected = face + (target - face)[few > 0].mean(0)
    if name != "mix":
        assert np.abs(moved - expected)[mask > 0].mean() < 0.06


@pytest.mark.parametrize("name", CHANGING)
@pytest.mark.parametrize("flat", ["face", "target"])
def test_one_flat_image_does_not_explode(name: str, flat: str, mask: Image) -> None:
    face, target = noise(0, (0.5, 0.45, 0.4), 0.2), noise(1, (0.5, 0.55, 0.5), 0.2)
    (face if flat == "face" else target)[:] = 0.4
    moved = color.get(name)(face, target, mask)
    assert np.isfinite(moved).all() and moved.min() >= 0 and moved.max() <= 1
    if flat == "face":
        assert np.ptp(moved.reshape(-1, 3), axis=0).max() < 1e-4


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


# ---------------------------------------------------------------- over time


def filmed(name: str, frames: int, spread: float = 0.03) -> tuple[Image, Image, dict[int, color.State]]:
    """A face, its mask, and its states over frames in which the target's light trembles."""
    rng, face, target = np.random.default_rng(0), drawn("source"), drawn("target")
    mask = face_mask(align.TEMPLATE * SIZE, SIZE)
    tremble = rng.normal(0, spread, (frames, 3)).astype(np.float32)
    transfer = color.get(name)
    return face, mask, {i: transfer.measure(face, np.clip(target + tremble[i], 0, 1), mask) for i in range(frames)}


@pytest.mark.parametrize("name", color.TABLE)
def test_a_transfer_is_its_two_halves(name: str, mask: Image) -> None:
    transfer, face, target = color.get(name), drawn("source"), drawn("target")
    state = transfer.measure(face, target, mask)
    assert state.weight == pytest.approx(float(mask.mean())) and state.values.size <= 400
    np.testing.assert_array_equal(transfer.apply(face, state), transfer(face, target, mask))


@pytest.mark.parametrize("name", CHANGING)
def test_smoothing_calms_the_light(name: str) -> None:
    face, mask, states = filmed(name, 40)
    means = {
        reach: [statistics(color.get(name).apply(face, color.smooth(states, i, reach)), mask)[0] for i in range(40)]
        for reach in (0, 8)
    }
    raw, calm = (np.abs(np.diff(means[reach], axis=0)).mean() for reach in (0, 8))
    assert calm < raw / 4
    np.testing.assert_allclose(np.mean(means[8], axis=0), np.mean(means[0], axis=0), atol=0.01)


@pytest.mark.parametrize("name", CHANGING)
def test_states_that_are_alike_stay(name: str) -> None:
    face, _, states = filmed(name, 9, spread=0)
    for frame in (0, 4, 8):
        smoothed = color.smooth(states, frame, 4)
        np.testing.assert_allclose(smoothed.values, states[0].values, rtol=1e-9)
        difference = color.get(name).apply(face, smoothed) - color.get(name).apply(face, states[0])
        assert np.abs(difference).max() < 1e-5


def test_a_state_depends_on_its_window_alone_wherever_a_part_of_the_video_starts() -> None:
    _, _, states = filmed("mkl", 40)
    whole = {i: color.smooth(states, i, 6) for i in range(40)}
    for first, last in ((0, 12), (12, 25), (25, 39)):
        part = {i: states[i] for i in reversed(range(max(0, first - 6), min(39, last + 6) + 1))}
        for i in range(first, last + 1):
            np.testing.assert_array_equal(color.smooth(part, i, 6).values, whole[i].values)
            assert color.smooth(part, i, 6).weight == whole[i].weight


def state(value: float, weight: float = 1.0) -> color.State:
    return color.State(weight, np.array([value]))


def test_smoothing_has_no_lag() -> None:
    ramp = {i: state(0.1 * i) for i in range(30)}
    for i in range(5, 25):
        assert color.smooth(ramp, i, 5).values == pytest.approx(0.1 * i)
    pulse = {i: state(float(i == 10)) for i in range(21)}
    heights = np.concatenate([color.smooth(pulse, i, 5).values for i in range(21)])
    np.testing.assert_allclose(heights, heights[::-1], atol=1e-12)
    assert heights.argmax() == 10 and heights.sum() == pytest.approx(1)
    assert not heights[:5].any() and not heights[16:].any()


def test_frames_that_show_more_count_more_and_those_that_show_nothing_not_at_all() -> None:
    states = {0: state(0.0, 0.1), 1: color.NOTHING, 2: state(1.0, 0.3)}
    assert color.smooth(states, 1, 1).values == pytest.approx(0.75)
    assert color.smooth(states, 1, 0) is color.NOTHING and color.smooth({}, 3, 5) is color.NOTHING
    assert color.smooth(states, 2, 0).values == 1 and color.smooth(states, 2, 0).weight == pytest.approx(0.3)


def test_gaps_in_a_track_are_bridged() -> None:
    states = {i: state(0.5) for i in (0, 1, 2, 7, 8)}
    assert all(color.smooth(states, i, 4).values == pytest.approx(0.5) for i in range(9))
