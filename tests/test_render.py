"""Tests of faceswap.render: the picture and the truth about it agree."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from faceswap import heads, render
from faceswap.errors import UsageError
from faceswap.heads import Expression, Identity, Pose
from faceswap.render import Actor, Light, Shot

BALD, SHORT, LONG = 7, 1, 6  # seeds of people with that hair
SIDE = 128


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(threads)


@pytest.fixture(scope="module")
def actors() -> dict[int, Actor]:
    return {seed: Actor(Identity.random(seed)) for seed in (BALD, SHORT, LONG)}


def grey(shot: Shot) -> NDArray[np.float32]:
    return np.asarray(shot.image.astype(np.float32).mean(2))


def around(picture: NDArray[np.float32], point: NDArray[np.float32], reach: int = 1) -> float:
    """Mean of the (2 reach + 1)^2 pixels about a point (x, y)."""
    x, y = (round(float(value)) for value in point)
    return float(picture[y - reach : y + reach + 1, x - reach : x + reach + 1].mean())


def psnr(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(10 * np.log10(255**2 / np.square(one - other).mean()))


def digest() -> str:
    """A hash of some pictures; run as a program by another process, too."""
    out = hashlib.sha256()
    for seed in (SHORT, LONG):
        shot = Actor(Identity.random(seed)).render(
            pose=Pose(20, -10, 5),
            expression=Expression(jaw=0.5, smile=0.5, blink_left=0.4),
            size=96,
            background=render.background(seed, 60, 60),
            grain=3,
        )
        for part in (shot.image, shot.mask, shot.alpha, shot.points, shot.landmarks):
            out.update(np.ascontiguousarray(part).tobytes())
    return out.hexdigest()


def test_renders_are_the_same_in_every_process_and_on_any_number_of_threads() -> None:
    code = "import cv2, test_render; cv2.setNumThreads(2); print(test_render.digest())"
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(heads.__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": path}
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert other.stdout.strip() == digest()


def test_a_shot_has_the_documented_form(actors: dict[int, Actor]) -> None:
    for actor in actors.values():
        shot = actor.render(size=SIDE, pose=Pose(25, 10, -10), expression=Expression(jaw=0.3))
        assert shot.image.shape == (SIDE, SIDE, 3)
        assert shot.image.dtype == np.uint8
        for part, shape in ((shot.mask, (SIDE, SIDE)), (shot.alpha, (SIDE, SIDE)), (shot.points, (5, 2))):
            assert part.shape == shape
            assert part.dtype == np.float32
        assert shot.landmarks.shape == (68, 2)
        assert shot.landmarks.dtype == np.float32
        for part in (shot.mask, shot.alpha):
            assert 0 == part.min() < part.max() == pytest.approx(1)
        assert np.isfinite(shot.landmarks).all()
        assert (shot.mask <= shot.alpha).all()
        assert 0.05 < shot.mask.mean() < 0.5 * shot.alpha.mean()


def test_too_small_a_picture_is_refused(actors: dict[int, Actor]) -> None:
    with pytest.raises(UsageError, match="at least 8 px, found 4"):
        actors[BALD].render(size=4)


def test_the_actor_has_no_holes(actors: dict[int, Actor]) -> None:
    """Nothing shines through: every pixel that is not the actor's hangs together with the picture's border."""
    for actor in (actors[BALD], actors[SHORT]):
        for yaw, pitch in ((0, 0), (40, 20), (-60, -25), (90, 0), (180, 10)):
            empty = (actor.render(pose=Pose(yaw, pitch), size=SIDE).alpha < 0.9).astype(np.uint8)
            regions = cv2.connectedComponents(empty, connectivity=8)[1]
            border = np.unique(np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]]))
            assert not set(regions[empty > 0].tolist()) - set(border.tolist()), (yaw, pitch)


@pytest.mark.parametrize("seed", [BALD, SHORT, LONG])
def test_extreme_moments_stay_finite(actors: dict[int, Actor], seed: int) -> None:
    """Any angle, light from anywhere, far off and out of the picture. A NaN on the way would warn, and so fail."""
    rng = np.random.default_rng(seed)
    lights = [Light(180, 0), Light(0, 90), Light(90, -90), Light(0, 0, 0, 0, 0, 0)]
    lights += [Light(rng.uniform(-180, 180), rng.uniform(-90, 90)) for _ in range(8)]
    for light in lights:
        shot = actors[seed].render(
            pose=Pose(*(rng.uniform(-1, 1, 3) * [180, 80, 180])),
            expression=Expression(*rng.uniform(0, 1, 7), *rng.uniform(-40, 40, 2)),
            light=light,
            size=int(rng.choice([8, 33, 64])),
            scale=float(rng.choice([0.02, 0.2, 2, 6])),
            shift=(rng.uniform(-1, 1), rng.uniform(-1, 1)),
        )
        assert np.isfinite(shot.landmarks).all()
        assert (shot.mask <= shot.alpha).all()
        assert 0 <= shot.mask.min() <= shot.alpha.max() <= 1


def test_no_specks(actors: dict[int, Actor]) -> None:
    """On a plain skull no pixel departs far from its neighbours."""
    shot = actors[BALD].render(size=2 * SIDE, pose=Pose(10, -10), scale=0.6, light=Light(ambient=0.6, fill=0.5))
    picture = grey(shot).astype(np.uint8)
    top = np.zeros_like(shot.mask)
    top[: int(shot.landmarks[17:27, 1].min()) - 8] = 1
    skull = cv2.erode((shot.alpha > 0.99).astype(np.float32) * top, np.ones((5, 5))) > 0
    assert np.abs(picture.astype(int) - cv2.medianBlur(picture, 5))[skull].max() < 16


@pytest.mark.parametrize("seed", [BALD, SHORT, LONG])
def test_eyes_nose_and_mouth_lie_where_the_truth_says(actors: dict[int, Actor], seed: int) -> None:
    for pose in (Pose(), Pose(20, 5, 15), Pose(-20, -5, -15)):
        shot = actors[seed].render(size=2 * SIDE, pose=pose, scale=0.6, light=Light(azimuth=0, elevation=10))
        picture = grey(shot)
        for eye, corners in ((0, (36, 39)), (1, (42, 45))):
            white = max(around(picture, (shot.points[eye] + 2 * shot.landmarks[corner]) / 3) for corner in corners)
            x, y = shot.points[eye].round().astype(int)
            assert picture[y - 1 : y + 2, x - 1 : x + 2].min() < 0.6 * white  # the pupil is dark
        lip, chin = shot.image[tuple(shot.landmarks[57].round().astype(int)[::-1] - [2, 0])], shot.landmarks[8]
        assert lip[0] / max(lip[1], 1) > 1.1  # red
        assert shot.mask[tuple(((chin + shot.points[2]) / 2).round().astype(int)[::-1])] == 1
        for point in shot.landmarks[27:]:
            assert around(shot.alpha, point, 0) > 0.5


def test_the_jaw_line_bounds_the_mask(actors: dict[int, Actor]) -> None:
    shot = actors[BALD].render(size=2 * SIDE, scale=0.6)
    hull = np.zeros_like(shot.mask, np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(shot.landmarks.round().astype(np.int32)), (1,))
    both = ((shot.mask > 0.5) & (hull > 0)).sum()
    assert both / ((shot.mask > 0.5) | (hull > 0)).sum() > 0.9


def symmetric(seed: int) -> Identity:
    """Somebody whose hair hangs the same on both sides."""
    return replace(Identity.random(seed), hair_part=0.0, hair_length=0.0)


def test_a_mirrored_moment_has_mirrored_truth() -> None:
    actor = Actor(symmetric(3))
    mirror = [*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1)]
    mirror += [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
    mirror += [54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65]
    one = actor.render(
        pose=Pose(25, 10, 12), expression=Expression(jaw=0.5, blink_left=0.7), light=Light(azimuth=40), size=SIDE
    )
    other = actor.render(
        pose=Pose(-25, 10, -12), expression=Expression(jaw=0.5, blink_right=0.7), light=Light(azimuth=-40), size=SIDE
    )
    flipped = other.landmarks[mirror] * [-1, 1] + [SIDE - 1, 0]
    np.testing.assert_allclose(one.landmarks, flipped, atol=0.02)
    np.testing.assert_allclose(one.points, other.points[[1, 0, 2, 4, 3]] * [-1, 1] + [SIDE - 1, 0], atol=0.02)
    assert np.abs(one.alpha - other.alpha[:, ::-1]).mean() < 0.005
    assert psnr(grey(one), grey(other)[:, ::-1]) > 28  # moles and pores differ


@pytest.mark.parametrize(
    ("pose", "axis", "sign"), [(Pose(yaw=20), 0, 1), (Pose(yaw=-20), 0, -1), (Pose(pitch=15), 1, -1)]
)
def test_turning_moves_the_nose_against_the_eyes(actors: dict[int, Actor], pose: Pose, axis: int, sign: int) -> None:
    def nose(shot: Shot) -> float:
        return float((shot.points[2] - shot.points[:2].mean(0))[axis])

    actor = actors[SHORT]
    assert sign * (nose(actor.render(pose=pose, size=SIDE)) - nose(actor.render(size=SIDE))) > 2


def test_roll_tilts_the_eyes(actors: dict[int, Actor]) -> None:
    left, right = actors[SHORT].render(pose=Pose(roll=20), size=SIDE).points[:2]
    angle = np.degrees(np.arctan2(right[1] - left[1], right[0] - left[0]))
    assert angle == pytest.approx(-20, abs=1)  # the image-left eye sinks: y points down


def test_scale_and_shift_place_the_head(actors: dict[int, Actor]) -> None:
    one = actors[BALD].render(size=SIDE)
    half = actors[BALD].render(size=SIDE, scale=0.22, shift=(0.1, -0.2))
    spread = np.linalg.norm(one.points[1] - one.points[0]) / np.linalg.norm(half.points[1] - half.points[0])
    assert spread == pytest.approx(2, rel=1e-4)
    middle = (SIDE - 1) / 2
    wanted = (one.landmarks - middle) / 2 + middle + np.array([0.1, -0.2]) * SIDE
    np.testing.assert_allclose(half.landmarks, wanted, atol=0.01)


def test_a_blink_closes_the_lids(actors: dict[int, Actor]) -> None:
    actor = actors[BALD]
    open_, shut = (actor.render(size=256, scale=0.7, expression=Expression(blink_left=blink)) for blink in (0.0, 1.0))
    for upper, lower in ((37, 41), (38, 40)):
        assert shut.landmarks[lower, 1] - shut.landmarks[upper, 1] == pytest.approx(0, abs=0.1)
        assert open_.landmarks[lower, 1] - open_.landmarks[upper, 1] > 4
    np.testing.assert_allclose(shut.landmarks[42:48], open_.landmarks[42:48], atol=1e-3)  # the other eye stays
    inner, outer = open_.landmarks[39], open_.landmarks[36]
    white = (open_.points[0] + 2 * outer) / 3
    cheek = inner + np.array([0, 22])

    def redness(shot: Shot, point: NDArray[np.float32]) -> float:
        colour = [around(shot.image[..., channel].astype(np.float32), point) for channel in (0, 2)]
        return colour[0] / colour[1]

    assert redness(open_, white) < 1.35 < redness(shut, white)  # white or iris, then skin
    assert redness(shut, white) == pytest.approx(redness(shut, cheek), rel=0.25)


def test_the_jaw_parts_the_inner_lips(actors: dict[int, Actor]) -> None:
    shut, wide = (actors[SHORT].render(size=256, expression=Expression(jaw=jaw)) for jaw in (0.0, 0.8))
    gap = [shot.landmarks[66, 1] - shot.landmarks[62, 1] for shot in (shut, wide)]
    assert gap[0] == pytest.approx(0, abs=0.2)
    assert gap[1] > 5
    mouth = (wide.landmarks[66] * 0.6 + wide.landmarks[62] * 0.4).astype(np.float32)
    assert around(grey(wide), mouth) < 0.5 * around(grey(shut), shut.landmarks[57] - [0, 2])  # dark inside


def test_gaze_moves_the_iris(actors: dict[int, Actor]) -> None:
    left, right = (
        grey(actors[BALD].render(size=256, scale=0.8, expression=Expression(gaze_x=gaze))) for gaze in (-20.0, 20.0)
    )
    eye = actors[BALD].render(size=256, scale=0.8).points[0]
    offset = np.array([4.0, 0.0], np.float32)
    assert around(left, eye - offset) < around(left, eye + offset) - 20
    assert around(right, eye + offset) < around(right, eye - offset) - 20


def test_the_true_swap_leaves_hair_and_background() -> None:
    target, source = Identity.random(SHORT), Identity.random(LONG)
    scene = render.background(5, SIDE, SIDE)
    shots = [
        Actor(who).render(pose=Pose(10), size=SIDE, background=scene) for who in (target, target.with_face_of(source))
    ]
    same, swapped = (shot.image.astype(np.float32) for shot in shots)
    face = np.maximum(shots[0].mask, shots[1].mask)
    near = cv2.dilate((face > 0).astype(np.uint8), np.ones((9, 9))) > 0
    outside = (np.maximum(shots[0].alpha, shots[1].alpha) < 0.01) & ~near
    assert np.abs(same - swapped)[outside].max() == 0
    top = np.zeros(face.shape, bool)
    top[: int(shots[0].landmarks[17:27, 1].min()) - 22] = True
    assert np.abs(same - swapped)[top].mean() < 2  # hair
    assert np.abs(same - swapped)[face > 0.9].mean() > 6


def test_people_differ_more_than_light_does() -> None:
    crowd = [Actor(replace(Identity.random(seed), hair_length=0.1)) for seed in range(8)]
    one = [actor.render(size=96).image.astype(float) for actor in crowd]
    lit = [actor.render(size=96, light=Light(azimuth=-20)).image.astype(float) for actor in crowd]
    mask = crowd[0].render(size=96).mask > 0.5
    by_light = np.mean([np.abs(a - b)[mask].mean() for a, b in zip(one, lit, strict=True)])
    pairs = [np.abs(a - b)[mask].mean() for i, a in enumerate(one) for b in one[:i]]
    assert np.mean(pairs) > 1.3 * by_light


@pytest.mark.parametrize("seed", [BALD, SHORT, LONG])
def test_edges_are_smooth(actors: dict[int, Actor], seed: int) -> None:
    """A small picture is what a camera would make of a large one. Measured: 37 to 44 dB."""
    moment = Expression(jaw=0.3)
    small = actors[seed].render(size=SIDE, expression=moment, pose=Pose(20, 5, 5))
    large = actors[seed].render(size=4 * SIDE, expression=moment, pose=Pose(20, 5, 5))
    average = cv2.resize(large.image.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    assert psnr(small.image.astype(np.float32), np.asarray(average)) > 34
    np.testing.assert_allclose((large.landmarks + 0.5) / 4 - 0.5, small.landmarks, atol=1e-3)
    for fine, coarse in ((large.alpha, small.alpha), (large.mask, small.mask)):
        coverage = cv2.resize(fine, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        assert np.abs(coverage - coarse).max() < 0.45  # four samples tell five degrees
        assert np.abs(coverage - coarse).mean() < 0.005


def test_light_comes_from_where_it_is_said(actors: dict[int, Actor]) -> None:
    for azimuth, side in ((60.0, 1), (-60.0, -1)):
        shot = actors[BALD].render(size=SIDE, light=Light(azimuth=azimuth, elevation=15))
        cheeks = [around(grey(shot), (shot.landmarks[jaw] + shot.points[2]) / 2) for jaw in (2, 14)]
        assert side * (cheeks[1] - cheeks[0]) > 10
    warm, cold = (actors[BALD].render(size=SIDE, light=Light(warmth=warmth)) for warmth in (1.0, -1.0))
    skin = warm.mask > 0.9
    ratios = [shot.image[skin].mean(0) for shot in (warm, cold)]
    assert ratios[0][0] / ratios[0][2] > 1.15 * ratios[1][0] / ratios[1][2]


def test_grain_is_seeded_noise(actors: dict[int, Actor]) -> None:
    clean, one, same, other = (actors[BALD].render(size=96, grain=seed).image.astype(int) for seed in (None, 1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    assert 1.5 < (one - clean).std() < 4


def test_a_background_fills_what_the_actor_leaves(actors: dict[int, Actor]) -> None:
    scene = render.background(2, 50, 70)
    assert scene.shape == (50, 70, 3)
    assert scene.dtype == np.float32
    np.testing.assert_array_equal(scene, render.background(2, 50, 70))
    assert np.abs(scene - render.background(3, 50, 70)).mean() > 0.02
    red, blue = (np.zeros((SIDE, SIDE, 3), np.float32) + colour for colour in ([0.5, 0, 0], [0, 0, 0.5]))
    one, other = (actors[SHORT].render(size=SIDE, background=colour) for colour in (red, blue))
    differs = np.abs(one.image.astype(int) - other.image).max(2) > 2
    np.testing.assert_array_equal(differs[one.alpha < 0.9], True)
    np.testing.assert_array_equal(differs[one.alpha == 1], False)


def test_mtcnn_finds_the_actors() -> None:
    facenet = pytest.importorskip("facenet_pytorch")
    net = facenet.MTCNN(keep_all=True)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        pose = Pose(*(rng.uniform(-1, 1, 3) * [30, 12, 15]))
        shot = Actor(Identity.random(seed)).render(pose=pose, background=render.background(seed, 256, 256))
        _, certainty, points = net.detect(shot.image, landmarks=True)
        error = [np.linalg.norm(np.asarray(found, float) - shot.points, axis=1).mean() for found in points]
        best = int(np.argmin(error))
        assert certainty[best] > 0.9, seed
        assert error[best] < 0.25 * np.linalg.norm(shot.points[1] - shot.points[0]), seed
