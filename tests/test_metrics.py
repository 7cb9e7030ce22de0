"""Tests of faceswap.metrics against hand formulas, scikit-image, SciPy and a camera whose answer is known.

Each measure is shown to fail: a perfect input scores perfect, a known damage moves it by a known amount.
"""

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import structural_similarity

from faceswap import align, metrics
from faceswap.masks import face_mask

Array = NDArray[np.float64]
Image = NDArray[np.float32]

SHARES = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])  # MS-SSIM's weights, from the paper
MEASURED = tuple(metrics.TABLE)
POINTS = align.TEMPLATE * 192


def picture(seed: int, size: int) -> Image:
    """Something like a photograph (S, S, 3): soft shapes, finer ones, and grain, spanning 0.1 to 0.9."""
    noise = np.random.default_rng(seed).standard_normal((size, size, 3))
    layers = [cv2.GaussianBlur(noise, (0, 0), sigma) * sigma for sigma in (size / 12, size / 48, 0.8)]
    image = sum(layers[1:], 2 * layers[0])
    return (0.1 + 0.8 * (image - image.min()) / np.ptp(image)).astype(np.float32)


def blurred(image: Image, sigma: float) -> Image:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.float32)


def disc(size: int, radius: float) -> Image:
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return (np.hypot(x, y) <= radius).astype(np.float32)


def score(image: Image, reference: Image, mask: Image) -> dict[str, float]:
    return {name: float(v[0]) for name, v in metrics.fidelity(image[None], reference[None], mask[None]).items()}


# ---------------------------------------------------------------------------------------------------- fidelity


def test_identical_images_are_perfect() -> None:
    images = np.stack([picture(seed, 96) for seed in (0, 1)])
    found = metrics.fidelity(images, images, np.stack([disc(96, 30), disc(96, 40)]))
    assert list(found) == ["psnr", "ssim", "ms_ssim"]
    for name, best in {"psnr": 100, "ssim": 1, "ms_ssim": 1}.items():
        assert found[name].shape == (2,) and found[name].dtype == np.float64
        np.testing.assert_allclose(found[name], best, atol=1e-5)


@pytest.mark.parametrize("amount", [0.01, 0.1, 0.3])
def test_psnr_follows_the_formula_inside_the_mask(amount: float) -> None:
    image = picture(0, 64)
    mask, other = disc(64, 20), picture(1, 64)
    worse = np.where(mask[..., None] > 0, image + np.float32(amount), other)
    assert score(worse, image, mask)["psnr"] == pytest.approx(-20 * np.log10(amount), abs=1e-3)


def test_psnr_weighs_each_pixel_by_the_mask() -> None:
    image, other = picture(0, 64), picture(1, 64)
    mask = blurred(disc(64, 20), 4)
    square = ((image.astype(np.float64) - other) ** 2).mean(2)
    expected = -10 * np.log10((square * mask).sum() / mask.sum())
    assert score(other, image, mask)["psnr"] == pytest.approx(expected, abs=1e-3)


def test_psnr_of_noise_is_that_of_its_deviation() -> None:
    image = picture(0, 192)
    noise = np.random.default_rng(5).normal(0, 0.05, image.shape).astype(np.float32)
    assert score(image + noise, image, disc(192, 80))["psnr"] == pytest.approx(26.02, abs=0.1)


@pytest.mark.parametrize("damage", ["blur", "noise", "another picture"])
def test_ssim_agrees_with_scikit_image(damage: str) -> None:
    image = picture(0, 96)
    grain = np.random.default_rng(1).normal(0, 0.1, image.shape).astype(np.float32)
    worse = {"blur": blurred(image, 2), "noise": np.clip(image + grain, 0, 1), "another picture": picture(1, 96)}[
        damage
    ]
    mask = blurred(disc(96, 30), 3)
    _, expected = structural_similarity(
        worse.astype(np.float64),
        image.astype(np.float64),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
        channel_axis=2,
        full=True,
    )
    inner, weight = expected[5:-5, 5:-5].mean(2), mask[5:-5, 5:-5]
    assert score(worse, image, np.ones_like(mask))["ssim"] == pytest.approx(inner.mean(), abs=2e-4)
    assert score(worse, image, mask)["ssim"] == pytest.approx((inner * weight).sum() / weight.sum(), abs=2e-4)


def ms_ssim_by_the_paper(image: Image, reference: Image, mask: Image, scales: int) -> float:
    """MS-SSIM in float64: a 2-D window, SciPy, one channel and one scale at a time."""
    r = np.arange(11) - 5
    window = np.exp(-(r[:, None] ** 2 + r**2) / 4.5)
    window /= window.sum()

    def local(values: Array) -> Array:
        return np.asarray(ndimage.correlate(values, window)[5:-5, 5:-5])

    def halved(values: Array) -> Array:
        even = np.pad(values, (0, len(values) % 2), mode="edge")  # the last of an odd side stays alone
        return (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4

    powers = SHARES[:scales] / SHARES[:scales].sum()
    per_channel = []
    for channel in range(3):
        x, y, w = (a.astype(np.float64) for a in (image[..., channel], reference[..., channel], mask))
        value = 1.0
        for scale in range(scales):
            if scale:
                x, y, w = halved(x), halved(y), halved(w)
            mx, my = local(x), local(y)
            vx, vy, vxy = local(x * x) - mx**2, local(y * y) - my**2, local(x * y) - mx * my
            similar = (2 * vxy + 0.03**2) / (vx + vy + 0.03**2)
            if scale == scales - 1:
                similar *= (2 * mx * my + 0.01**2) / (mx**2 + my**2 + 0.01**2)
            weight = w[5:-5, 5:-5]
            value *= ((similar * weight).sum() / weight.sum()) ** powers[scale]
        per_channel.append(value)
    return float(np.mean(per_channel))


@pytest.mark.parametrize(("size", "scales"), [(32, 2), (45, 3), (96, 3), (192, 5)])
def test_ms_ssim_agrees_with_its_definition(size: int, scales: int) -> None:
    image = picture(0, size)
    grain = np.random.default_rng(1).normal(0, 0.08, image.shape).astype(np.float32)
    worse = blurred(image, 1.2) * np.float32(0.9) + grain
    for mask in (np.ones((size, size), np.float32), blurred(disc(size, size / 3), 2)):
        expected = ms_ssim_by_the_paper(worse, image, mask, scales)
        assert 0.3 < expected < 0.97
        assert score(worse, image, mask)["ms_ssim"] == pytest.approx(expected, abs=3e-4)


@pytest.mark.parametrize("size", [32, 96, 192])
def test_the_more_blur_the_worse(size: int) -> None:
    image, mask = picture(0, size), disc(size, size / 3)
    scores = [score(blurred(image, sigma), image, mask) for sigma in (0.5, 1, 2, 4)]
    for name in ("psnr", "ssim", "ms_ssim"):
        values = [found[name] for found in scores]
        assert values == sorted(values, reverse=True) and values[0] - values[-1] > 0.05


def test_ms_ssim_forgives_fine_grain_more_than_ssim_does() -> None:
    image = picture(0, 192)
    grain = np.random.default_rng(1).normal(0, 0.08, image.shape).astype(np.float32)
    found = score(image + grain, image, disc(192, 60))
    assert found["ssim"] + 0.1 < found["ms_ssim"] < 0.99


def test_what_lies_outside_the_mask_does_not_count() -> None:
    image = picture(0, 96)
    left, right = image.copy(), image.copy()
    left[:, :20] = 1 - left[:, :20]
    right[:, 70:] = 1 - right[:, 70:]
    mask = np.zeros((96, 96), np.float32)
    mask[:, 52:] = 1  # the coarsest of three scales reaches 5 * 4 px
    hidden, seen = score(left, image, mask), score(right, image, mask)
    assert hidden == pytest.approx({"psnr": 100, "ssim": 1, "ms_ssim": 1}, abs=1e-5)
    assert seen["psnr"] < 20 and seen["ssim"] < 0.8 and seen["ms_ssim"] < 0.8


def test_a_mask_in_the_corner_is_no_damage_and_hides_none() -> None:
    image, mask = picture(0, 192), np.zeros((192, 192), np.float32)
    mask[:60, :60] = 1
    assert score(image, image, mask) == pytest.approx({"psnr": 100, "ssim": 1, "ms_ssim": 1}, abs=1e-5)
    worse = score(blurred(image, 2), image, mask)
    assert worse["ssim"] < 0.95 and worse["ms_ssim"] < 0.98


def test_an_empty_mask_measures_nothing() -> None:
    image, other = picture(0, 64)[None], picture(1, 64)[None]
    empty = np.zeros((1, 64, 64), np.float32)
    found = metrics.fidelity(other, image, empty)
    found |= {"change": metrics.change(image, other, empty), "laplacian": metrics.laplacian(image, empty)}
    found |= {"seam": metrics.seam(image, other, empty), "full": metrics.seam(image, other, empty + 1)}
    assert {name: str(value) for name, value in found.items()} == dict.fromkeys(found, "[nan]")


# --------------------------------------------------------------------------------------------------- landmarks


def test_landmarks_are_measured_in_percent_of_the_distance_of_the_eyes() -> None:
    reference = np.array([[[0.0, 0], [50, 0], [25, 30], [5, 60], [45, 60]]])
    shifted = reference + np.array([3, 4])
    one = reference.copy()
    one[0, 2, 1] += 10
    assert metrics.landmark_error(reference, reference) == pytest.approx(0)
    assert metrics.landmark_error(shifted, reference) == pytest.approx(10)  # 5 px of 50
    assert metrics.landmark_error(one, reference) == pytest.approx(4)  # 10 px of 50, one point in five
    assert metrics.landmark_error(shifted * 7, reference * 7) == pytest.approx(10)


def test_the_eyes_are_those_of_the_reference() -> None:
    reference = POINTS[None]
    wide = reference.copy()
    wide[0, 1, 0] += 52.71  # about the distance of the eyes
    assert metrics.landmark_error(wide, reference) == pytest.approx(100 / 5, rel=1e-2)


def test_a_face_that_was_not_found_has_no_figures_and_spoils_no_mean() -> None:
    points = np.stack([POINTS, POINTS + np.array([3, 4]), POINTS])
    points[2, 4] = np.nan
    reference = np.stack([POINTS] * 3)
    for found in (metrics.landmark_error(points, reference), metrics.landmark_error(reference, points)):
        assert np.isfinite(found).tolist() == [True, True, False]
        assert metrics.mean(found) == pytest.approx(found[1] / 2)
    assert np.isfinite(metrics.pose_error(points, reference, 192)).tolist() == [True, True, False]
    assert np.isfinite(metrics.pose_error(reference, points, 192)).tolist() == [True, True, False]
    assert np.isnan(metrics.rotation(points[2], 192)).all()


def test_the_mean_of_nothing_is_nan() -> None:
    assert np.isnan(metrics.mean(np.array([]))) and np.isnan(metrics.mean(np.array([np.nan, np.nan])))


# -------------------------------------------------------------------------------------------------------- pose


def turn(yaw: float, pitch: float, roll: float) -> Array:
    """A rotation by three angles in degrees."""
    (a, b, c), (d, e, f) = (function(np.radians([yaw, pitch, roll])) for function in (np.cos, np.sin))
    about_y = np.array([[a, 0, d], [0, 1, 0], [-d, 0, a]])
    about_x = np.array([[1, 0, 0], [0, b, -e], [0, e, b]])
    about_z = np.array([[c, -f, 0], [f, c, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)


def seen(rotation: Array, size: int, away: float = 900, aside: float = 0) -> Array:
    """The five points (5, 2) of a head at that distance in mm, by a pinhole camera written out by hand."""
    x, y, z = (metrics.HEAD @ rotation.T + [aside, -20, away]).T
    focal = metrics.FOCAL * size
    return np.stack([x / z, y / z], 1) * focal + (size - 1) / 2


def angle(a: Array, b: Array) -> float:
    """Between two rotations, in degrees, by their chord."""
    return float(np.degrees(2 * np.arcsin(np.linalg.norm(a - b) / np.sqrt(8))))


@pytest.mark.parametrize("yaw", [-60, -30, 0, 30, 60])
@pytest.mark.parametrize("pitch", [-30, 0, 30])
@pytest.mark.parametrize("roll", [-25, 0, 25])
def test_rotation_recovers_a_known_head(yaw: float, pitch: float, roll: float) -> None:
    truth = turn(yaw, pitch, roll)
    for size, away, aside in ((192, 900, 0), (64, 1500, 60)):
        found = metrics.rotation(seen(truth, size, away, aside), size)
        assert angle(found, truth) < 1e-3
        np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-9)


def test_rotation_recovers_another_head() -> None:
    head = np.random.default_rng(0).uniform(-80, 80, (30, 3))
    truth = turn(30, -10, 20)
    x, y, z = (head @ truth.T + [0, 0, 900]).T
    points = np.stack([x / z, y / z], 1) * metrics.FOCAL * 192 + 191 / 2
    assert angle(metrics.rotation(points, 192, head), truth) < 1e-3


@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.6, 0, 0.8)])
@pytest.mark.parametrize("degrees", [0, 1, 17, 40])
def test_pose_error_is_the_angle_between(axis: tuple[float, float, float], degrees: float) -> None:
    further = cv2.Rodrigues(np.radians(degrees) * np.array(axis, np.float64))[0]
    start = turn(10, -5, 5)
    ours, theirs = seen(further @ start, 192)[None], seen(start, 192)[None]
    assert metrics.pose_error(ours, theirs, 192) == pytest.approx(degrees, abs=1e-3)
    assert metrics.pose_error(theirs, ours, 192) == pytest.approx(degrees, abs=1e-3)


def test_moving_or_growing_a_head_hardly_turns_it() -> None:
    near, far = seen(turn(0, 0, 0), 192, 900), seen(turn(0, 0, 0), 192, 1400)
    assert metrics.pose_error(near[None], far[None], 192) < 1e-3
    assert metrics.pose_error(near[None] + 5, near[None], 192) < 5


def test_yaw_is_good_to_a_few_degrees_under_a_detector_s_noise() -> None:
    rng = np.random.default_rng(0)
    truth = seen(turn(20, 0, 0), 192)
    noisy = truth + rng.normal(0, 0.01 * np.linalg.norm(truth[1] - truth[0]), (60, 5, 2))
    yaws = [np.degrees(np.arctan2(r[0, 2], r[2, 2])) for r in (metrics.rotation(points, 192) for points in noisy)]
    assert np.mean(yaws) == pytest.approx(20, abs=2) and np.std(yaws) < 3
    found = metrics.pose_error(noisy, np.stack([truth] * 60), 192)
    assert 0.5 < np.median(found) < 6


def test_the_template_looks_into_the_camera() -> None:
    yaw = metrics.rotation(POINTS, 192)[:, 2]
    assert yaw[2] > np.cos(np.radians(15)) and abs(yaw[0]) < np.sin(np.radians(5))


@pytest.mark.parametrize("points", [np.zeros((5, 2)), np.full((5, 2), 95.5), POINTS * 0.01 + 90])
def test_points_that_coincide_have_no_pose(points: Array) -> None:
    assert np.isnan(metrics.rotation(points, 192)).all()
    assert np.isnan(metrics.pose_error(points[None], POINTS[None], 192)).all()


# ------------------------------------------------------------------------------------------------------- mouth


def mouths(width: Array, below: Array) -> Array:
    """Points (N, 5, 2) of faces, eyes 60 px apart, whose `mouth_shape` is that."""
    points = np.tile([[70.0, 80], [130, 80], [100, 110], [0, 0], [0, 0]], (len(width), 1, 1))
    points[:, 3] = np.stack([100 - 30 * width, 110 + 60 * below], 1)
    points[:, 4] = np.stack([100 + 30 * width, 110 + 60 * below], 1)
    return points


def speech(seed: int, length: int = 60) -> Array:
    rng = np.random.default_rng(seed)
    return mouths(rng.uniform(0.6, 0.9, length), rng.uniform(0.4, 0.7, length))


def moved(points: Array) -> Array:
    """Each face somewhere else, turned and of another size."""
    rng = np.random.default_rng(9)
    size, way = np.exp(rng.uniform(-0.5, 0.5, len(points))), rng.uniform(-1, 1, len(points))
    turned = np.einsum("nij,nkj->nki", [[[np.cos(w), -np.sin(w)], [np.sin(w), np.cos(w)]] for w in way], points)
    return turned * size[:, None, None] + rng.uniform(-50, 50, (len(points), 1, 2))


def test_mouth_shape_is_in_distances_of_the_eyes_wherever_the_head_is() -> None:
    width, below = np.array([0.5, 0.8, 1]), np.array([0.3, 0.6, 0.4])
    np.testing.assert_allclose(metrics.mouth_shape(moved(mouths(width, below))), np.stack([width, below], 1))


def test_a_mouth_agrees_with_itself() -> None:
    assert metrics.mouth_agreement(speech(0), speech(0)) == pytest.approx(1)
    assert metrics.mouth_agreement(moved(speech(0)), speech(0)) == pytest.approx(1)


def test_a_mouth_that_does_the_opposite_scores_minus_1() -> None:
    width, below = metrics.mouth_shape(speech(0)).T
    assert metrics.mouth_agreement(mouths(1.5 - width, 1 - below), speech(0)) == pytest.approx(-1)
    assert metrics.mouth_agreement(mouths(width, 1 - below), speech(0)) == pytest.approx(0)  # half and half


def test_mouth_agreement_is_pearson_s_correlation() -> None:
    ours, theirs = metrics.mouth_shape(speech(0)), metrics.mouth_shape(speech(0) + speech(1))
    expected = np.mean([np.corrcoef(ours[:, i], theirs[:, i])[0, 1] for i in (0, 1)])
    assert 0.4 < expected < 0.95
    assert metrics.mouth_agreement(speech(0), speech(0) + speech(1)) == pytest.approx(expected)


def test_less_of_the_same_movement_still_agrees_and_unrelated_speech_does_not() -> None:
    width, below = metrics.mouth_shape(speech(0)).T
    assert metrics.mouth_agreement(mouths(0.7 + width / 5, 0.5 + below / 5), speech(0)) == pytest.approx(1)
    assert abs(metrics.mouth_agreement(speech(0, 2000), speech(1, 2000))) < 0.06


def test_faces_that_were_not_found_do_not_speak() -> None:
    ours, theirs = speech(0), speech(0) + speech(1)
    sound = metrics.mouth_agreement(np.delete(ours, [3, 7], 0), np.delete(theirs, [3, 7], 0))
    ours[3], theirs[7, 4] = np.nan, np.nan
    assert metrics.mouth_agreement(ours, theirs) == pytest.approx(sound)


def test_a_still_mouth_agrees_with_nothing() -> None:
    still = np.stack([POINTS] * 60)
    for ours, theirs in ((still, speech(0)), (speech(0), still), (still, still), (speech(0)[:1], speech(1)[:1])):
        assert np.isnan(metrics.mouth_agreement(ours, theirs))


def test_a_still_mouth_in_a_moving_head_agrees_with_nothing() -> None:
    assert np.isnan(metrics.mouth_agreement(moved(np.stack([POINTS] * 60)), speech(0)))


def test_a_nodding_head_is_no_speech() -> None:
    rng = np.random.default_rng(3)
    speaking, silent = [], []
    for _ in range(200):
        yaw, pitch = rng.uniform(-0.5, 0.5), rng.uniform(-0.3, 0.3)
        opening, wide = rng.uniform(0, 7), rng.uniform(-2, 2)
        for into, share in ((speaking, 1.0), (silent, 0.0)):
            head = metrics.HEAD.copy()
            head[3:] += share * np.array([[-wide, opening, 0], [wide, opening, 0]])
            into.append(from_afar(head, yaw, pitch) + rng.normal(0, 0.3, (5, 2)))
    ours, theirs = np.array(silent), np.array(speaking)
    assert metrics.mouth_agreement(theirs, theirs) == pytest.approx(1)
    shapes = [metrics.mouth_shape(each) for each in (ours, theirs)]
    plain = np.mean([np.corrcoef(shapes[0][:, i], shapes[1][:, i])[0, 1] for i in (0, 1)])
    assert plain > 0.4, "seen as they are they seem to agree"
    assert abs(metrics.mouth_agreement(ours, theirs)) < plain - 0.1, "to second order: not all of it goes"


def from_afar(head: Array, yaw: float, pitch: float) -> Array:
    """Points (5, 2) of a head turned by radians, seen from afar."""
    across = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    down = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    return np.asarray((head @ (across @ down).T)[:, :2])


def test_no_face_at_all_gives_nan() -> None:
    nobody = np.full((4, 5, 2), np.nan)
    for ours, theirs in ((nobody, speech(0, 4)), (speech(0, 4), nobody), (nobody[:0], nobody[:0])):
        assert np.isnan(metrics.mouth_agreement(ours, theirs))


# ------------------------------------------------------------------------------------- flicker and registration


def test_change_is_the_mean_step_inside_the_mask() -> None:
    image, mask = picture(0, 64), disc(64, 20)
    after = image + np.where(mask[..., None] > 0, np.float32(0.2) * np.float32([1, -1, 0.5]), np.float32(5))
    assert metrics.change(image[None], image[None], mask[None]) == pytest.approx(0)
    assert metrics.change(image[None], after[None], mask[None]) == pytest.approx(0.2 * 2.5 / 3, rel=1e-4)
    soft = blurred(mask, 3)
    step = np.abs(picture(1, 64) - image).mean(2)
    expected = (step * soft).sum() / soft.sum()
    assert metrics.change(image[None], picture(1, 64)[None], soft[None]) == pytest.approx(expected, rel=1e-4)


def test_noise_that_boils_flickers_by_its_deviation() -> None:
    rng = np.random.default_rng(0)
    video = 0.5 + rng.normal(0, 0.05, (8, 96, 96, 3)).astype(np.float32)
    found = metrics.change(video[:-1], video[1:], np.stack([disc(96, 40)] * 7))
    np.testing.assert_allclose(found, 0.05 * 2 / np.sqrt(np.pi), rtol=0.03)  # mean |a - b| of two normal numbers


@pytest.mark.parametrize("move", [(0, 0, 0, 1), (7.3, -4.6, 0, 1), (3, 2, 0.2, 1.1), (-5, 6, -0.3, 0.9)])
def test_register_agrees_with_cropping_the_frame_there(move: tuple[float, float, float, float]) -> None:
    x, y, way, scale = move
    size, frame = 96, blurred(picture(0, 240), 1.5)
    face = align.TEMPLATE * 90 + [70, 75]
    linear = scale * np.array([[np.cos(way), -np.sin(way)], [np.sin(way), np.cos(way)]])
    matrix = align.crop_matrix(face, size)
    onto = align.crop_matrix((face - face.mean(0)) @ linear.T + face.mean(0) + [x, y], size)
    given, wanted = align.crop(frame, matrix, size), align.crop(frame, onto, size)
    mask = face_mask(align.TEMPLATE * size, size)
    assert score(metrics.register(given, matrix, onto, size), wanted, mask)["psnr"] > 45
    if move != (0, 0, 0, 1):
        assert score(given, wanted, mask)["psnr"] < 32
        assert score(metrics.register(given, onto, matrix, size), wanted, mask)["psnr"] < 32


# -------------------------------------------------------------------------------------------------------- seam

COLOURS = [
    ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    ((0.8, 0.6, 0.5), (0.7, 0.5, 0.45)),
    ((0.5, 0.5, 0.5), (0.5, 0.52, 0.5)),
    ((0.9, 0.1, 0.1), (0.1, 0.2, 0.9)),
]


def two_colours(inside: tuple[float, ...], outside: tuple[float, ...], mask: Image) -> Image:
    return np.where(mask[..., None] > 0.5, np.float32(inside), np.float32(outside))


def edge(image: Image, reference: Image, mask: Image) -> float:
    (found,) = metrics.seam(image[None], reference[None], mask[None])
    return float(found)


@pytest.mark.parametrize("size", [48, 128, 192])
def test_an_edge_that_the_reference_has_too_is_no_seam(size: int) -> None:
    mask, flat = disc(size, size / 3), np.full((size, size, 3), (0.8, 0.6, 0.5), np.float32)
    edged, photograph = two_colours(*COLOURS[0], mask), picture(0, size)
    for image in (flat, edged, photograph):
        assert edge(image, image, mask) == 0
    assert edge(flat, flat * np.float32(0.7), mask) == pytest.approx(0, abs=1e-3)  # another colour, all over
    assert edge(flat, edged, mask) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("size", [48, 128, 192])
@pytest.mark.parametrize(("inside", "outside"), COLOURS)
def test_two_flat_colours_have_their_ciede2000(
    inside: tuple[float, ...], outside: tuple[float, ...], size: int
) -> None:
    mask, flat = disc(size, size / 3), np.full((size, size, 3), outside, np.float32)
    expected = float(deltaE_ciede2000(rgb2lab(np.array(inside)), rgb2lab(np.array(outside))))
    found = edge(two_colours(inside, outside, mask), flat, mask)
    assert found == pytest.approx(expected, rel=2e-3, abs=1e-3)
    assert edge(two_colours(outside, inside, mask), flat, mask) == pytest.approx(found, rel=2e-3)


def test_two_grays_differ_by_their_lightness_as_the_formula_says() -> None:
    mask = disc(128, 40)
    lightness = [116 * (((v + 0.055) / 1.055) ** 2.4) ** (1 / 3) - 16 for v in (0.4, 0.6)]
    square = (np.mean(lightness) - 50) ** 2
    expected = (lightness[1] - lightness[0]) / (1 + 0.015 * square / np.sqrt(20 + square))
    dark = np.full((128, 128, 3), 0.4, np.float32)
    assert edge(two_colours((0.4,) * 3, (0.6,) * 3, mask), dark, mask) == pytest.approx(expected, rel=2e-3)


def test_an_edge_along_half_of_the_face_is_half_a_seam() -> None:
    mask, flat = disc(192, 60), np.full((192, 192, 3), COLOURS[1][1], np.float32)
    whole = two_colours(*COLOURS[1], mask)
    half = flat.copy()
    half[:, :96] = whole[:, :96]  # the other half of the face is as its surroundings
    assert edge(half, flat, mask) == pytest.approx(edge(whole, flat, mask) / 2, rel=0.05)
    assert edge(whole, half, mask) == pytest.approx(edge(whole, flat, mask) / 2, rel=0.1)


def test_the_seam_does_not_see_what_lies_far_from_it_and_sees_what_lies_at_it() -> None:
    mask, flat = disc(192, 60), np.full((192, 192, 3), COLOURS[1][1], np.float32)
    image = two_colours(*COLOURS[1], mask)
    away = ((disc(192, 52) > 0) | (disc(192, 68) == 0))[..., None]  # rings are 6 px wide
    busy = np.where(away, picture(3, 192), image)
    expected = edge(image, flat, mask)
    assert edge(busy, flat, mask) == pytest.approx(expected, rel=1e-5)
    assert edge(image, np.where(away, picture(3, 192), flat), mask) == pytest.approx(expected, rel=1e-5)
    assert edge(np.where(away, image, picture(3, 192)), flat, mask) != pytest.approx(expected, rel=0.1)


def test_a_stronger_seam_counts_more_and_grain_counts_little() -> None:
    mask, skin = disc(128, 40), np.full((128, 128, 3), (0.8, 0.6, 0.5), np.float32)
    grainy = skin + np.random.default_rng(0).normal(0, 0.03, skin.shape).astype(np.float32)
    found = [edge(grainy - np.float32(amount) * mask[..., None], skin, mask) for amount in (0, 0.05, 0.1)]
    assert found == sorted(found) and found[0] < 1 < found[1] and found[2] > 1.5 * found[1]


# --------------------------------------------------------------------------------------------------- sharpness


def test_the_laplacian_of_a_checkerboard_is_known() -> None:
    board = (np.indices((32, 32)).sum(0) % 2).astype(np.float32)[..., None].repeat(3, 2) * np.float32(0.1)
    whole = np.ones((1, 32, 32), np.float32)
    assert metrics.laplacian(board[None], whole) == pytest.approx(0.4**2, rel=1e-4)  # each pixel is +-4 steps off
    assert metrics.laplacian(3 * board[None], whole) == pytest.approx(9 * 0.4**2, rel=1e-4)


def test_the_laplacian_of_one_bright_pixel_is_known_in_the_luma_of_its_channel() -> None:
    mask = np.zeros((1, 32, 32), np.float32)
    mask[0, 8:18, 8:18] = 1  # 100 px: one of -4, four of 1
    for channel, luma in enumerate((0.299, 0.587, 0.114)):
        image = np.zeros((1, 32, 32, 3), np.float32)
        image[0, 12, 12, channel] = 1
        assert metrics.laplacian(image, mask) == pytest.approx(luma**2 * 20 / 100, rel=1e-3)
        assert metrics.laplacian(image[:, ::-1, ::-1], mask) == pytest.approx(0)  # outside the mask


def test_a_gradient_is_not_sharp_and_blur_takes_sharpness() -> None:
    ramp = np.linspace(0, 1, 64, dtype=np.float32)[None, :, None].repeat(64, 0).repeat(3, 2)
    inside = disc(64, 20)[None]
    assert metrics.laplacian(ramp[None], inside) == pytest.approx(0, abs=1e-9)
    image = picture(0, 64)
    found = [float(metrics.laplacian(blurred(image, sigma)[None], inside)[0]) for sigma in (0.3, 0.6, 1, 2)]
    assert found == sorted(found, reverse=True) and found[-1] < found[0] / 20


# -------------------------------------------------------------------------------------------------- the figures


def test_every_measure_says_what_it_means() -> None:
    labels = [measure.label for measure in metrics.TABLE.values()]
    assert len(set(labels)) == len(labels) and all(labels)
    for measure in metrics.TABLE.values():
        assert len(measure.meaning) > 20 and not measure.meaning.endswith(".")
        assert measure.best is None or not np.isnan(measure.best)
    assert set(metrics.fidelity(*np.zeros((2, 1, 32, 32, 3), np.float32), np.ones((1, 32, 32)))) <= set(MEASURED)


def test_columns_are_those_that_any_row_has_in_the_table_s_order() -> None:
    rows = {"a": {"seam": 1.0, "psnr": 30.0}, "b": {"ms_ssim": None, "psnr": 31.0}, "c": {}}
    assert metrics.columns(rows) == ["psnr", "ms_ssim", "seam"]
    assert metrics.columns({"all": dict.fromkeys(reversed(MEASURED), 0.0)}) == list(MEASURED)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (float("nan"), "-"),
        (0.0, "0.000"),
        (1.0, "1.000"),
        (0.98765, "0.988"),
        (-0.5, "-0.500"),
        (9.5, "9.500"),
        (31.25, "31.2"),
        (-12.34, "-12.3"),
        (100.0, "100.0"),
        (1234.56, "1235"),
        (np.float64(2.5), "2.500"),
    ],
)
def test_a_figure_is_shown_with_three_or_four_digits(value: float | None, text: str) -> None:
    assert metrics.shown(value) == text


def test_nothing_is_shown_below_zero_that_rounds_to_it() -> None:
    assert metrics.shown(-0.0001) == "0.000"


def test_a_table_is_aligned() -> None:
    rows = {
        "a long title": {"psnr": 31.25, "ssim": 0.98765, "seam": -12.345},
        "b": {"psnr": None, "ssim": float("nan"), "landmarks": 1.5},
    }
    head, *lines = metrics.text_table(rows).split("\n")
    assert head.split() == ["PSNR", "dB", "SSIM", "landmarks", "%", "seam", "ΔE"]
    assert [line.split() for line in lines] == [
        ["a", "long", "title", "31.2", "0.988", "-", "-12.3"],
        ["b", "-", "-", "1.500", "-"],
    ]
    assert {len(line) for line in lines} == {len(head)}
    ends = [head.index(word) + len(word) for word in ("dB", "SSIM", "%", "ΔE")]
    for line in (head, *lines):
        assert all(line[end - 1] != " " and line[end : end + 2].strip() == "" for end in ends)


def test_a_table_without_rows_is_empty() -> None:
    assert metrics.text_table({}).strip() == ""
