"""Tests of faceswap.heads: who people are, and that nobody's head folds."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from faceswap import heads
from faceswap.heads import Expression, Head, Identity, Pose

SEEDS = range(6)


@pytest.fixture(scope="module")
def crowd() -> list[Head]:
    return [Head(Identity.random(seed)) for seed in range(12)]


@pytest.mark.parametrize("seed", SEEDS)
def test_an_identity_survives_json(seed: int) -> None:
    who = Identity.random(seed)
    text = json.dumps(dataclasses.asdict(who))
    assert Identity(**json.loads(text)) == who
    assert hash(Identity(**json.loads(text))) == hash(who)


def test_a_seed_names_one_person() -> None:
    assert Identity.random(3) == Identity.random(3)
    assert len({Identity.random(seed) for seed in range(50)}) == 50


def test_random_people_stay_in_range_and_differ_in_kind() -> None:
    people = [Identity.random(seed) for seed in range(300)]
    for each in dataclasses.fields(Identity):
        values = np.array([getattr(who, each.name) for who in people], float)
        assert np.isfinite(values).all()
        if "range" in each.metadata and each.name not in {"brow_thickness", "lashes", "iris", "hair_tone"}:
            low, high = each.metadata["range"]
            assert low <= values.min() < low + 0.1 * (high - low)
            assert high >= values.max() > high - 0.1 * (high - low)
    shares = {
        "beard": np.mean([who.beard > 0 for who in people]),
        "long hair": np.mean([who.hair_length > 0.3 for who in people]),
        "bald": np.mean([who.hair_length == 0 for who in people]),
        "bangs": np.mean([who.bangs > 0 for who in people]),
    }
    assert all(0.03 < share < 0.6 for share in shares.values()), shares


@pytest.mark.parametrize("keep_tone", [True, False])
def test_the_true_swap_takes_the_face_and_leaves_the_head(keep_tone: bool) -> None:
    target, source = Identity.random(1), Identity.random(2)
    swapped = target.with_face_of(source, keep_tone=keep_tone)
    for name in ("hair_length", "hair_seed", "hair_tone", "head_width", "ear_size", "neck_width", "cloth"):
        assert getattr(swapped, name) == getattr(target, name)
    for name in ("nose_length", "jaw_width", "iris", "brow_tone", "beard", "skin_seed", "mouth_width", "age"):
        assert getattr(swapped, name) == getattr(source, name)
    assert swapped.melanin == (target if keep_tone else source).melanin
    assert target.with_face_of(target, keep_tone=keep_tone) == target


def test_the_template_inverts() -> None:
    turn = np.linspace(-1, 1, 101)
    np.testing.assert_allclose(heads.turn_at(heads.azimuth_at(turn)), turn, atol=1e-3)
    head = Head(Identity())
    x, t = np.meshgrid([-45.0, -20, 0, 10, 40], [-80.0, -60, -20, 10, 30])
    found = head.locate(heads.TEMPLATE, np.stack([x.ravel(), t.ravel()], -1))
    np.testing.assert_allclose(found[:, 0], x.ravel(), atol=0.5)


def test_triangles_face_outward(crowd: list[Head]) -> None:
    for head in crowd:
        points = head.rest.reshape(-1, 3)
        a, b, c = (points[corner] for corner in heads.grid_triangles(*head.rest.shape[:2]))
        normals, middle = np.cross(b - a, c - a), (a + b + c) / 3
        assert (np.einsum("ij,ij->i", normals, middle) > 0).mean() > 0.95


@pytest.mark.parametrize("expression", [Expression(), Expression(jaw=1, smile=0.5), Expression(pucker=1, frown=1)])
def test_no_face_folds(crowd: list[Head], expression: Expression) -> None:
    """Seen from the front, rows stay in order: a fold would turn part of the face inside out."""
    face = (np.abs(heads.AZIMUTH) < 0.9) & (heads.TEMPLATE_T < 45) & (heads.TEMPLATE_T > -95)
    for head in crowd:
        down = -np.diff(head.deform(expression)[..., 1], axis=0)
        assert (down[face[1:]] > -0.5).mean() > 0.995
        across = np.diff(head.deform(expression)[..., 0], axis=1)
        assert (across[face[:, 1:]] > 0).mean() > 0.999


def test_grids_close_and_are_finite(crowd: list[Head]) -> None:
    for head in crowd:
        np.testing.assert_allclose(head.rest[:, 0], head.rest[:, -1], atol=1e-4)
        assert np.ptp(head.rest[0], 0).max() < 1e-4  # no hole in the crown
        for sheet in head.sheets:
            np.testing.assert_allclose(sheet.points[:, 0], sheet.points[:, -1], atol=1e-2, err_msg=sheet.name)
            assert np.isfinite(sheet.points).all() and np.isfinite(sheet.normals).all()
            lengths = np.linalg.norm(sheet.normals, axis=-1)
            assert lengths.max() < 1.001


@pytest.mark.parametrize(("pose", "moves"), [(Pose(yaw=20), (1, 0)), (Pose(pitch=20), (0, 1)), (Pose(roll=20), (0, 0))])
def test_a_pose_moves_the_nose_as_documented(pose: Pose, moves: tuple[int, int]) -> None:
    nose, crown = pose.matrix() @ [0, 0, 100], pose.matrix() @ [0, 100, 0]
    assert np.sign(np.round(nose[:2], 3)).tolist() == list(moves)
    if pose.roll:
        assert crown[0] < -30
    np.testing.assert_allclose(pose.matrix() @ pose.matrix().T, np.eye(3), atol=1e-6)


def test_expressions_move_what_they_name() -> None:
    head = Head(Identity())

    def at(expression: Expression, x: float, t: float) -> heads.Array:
        return np.asarray(head.locate(head.deform(expression), np.array([[x, t]]))[0])

    rest, corner = Expression(), (25.0, heads.UPPER_T)
    assert at(Expression(smile=1), *corner)[0] > at(rest, *corner)[0] + 3  # corners go out
    assert at(Expression(smile=1), *corner)[1] > at(rest, *corner)[1] + 3  # and up
    assert at(Expression(pucker=1), *corner)[0] < at(rest, *corner)[0] - 2
    assert at(Expression(surprise=1), 27, 22)[1] > at(rest, 27, 22)[1] + 4
    assert at(Expression(frown=1), 17, 19)[1] < at(rest, 17, 19)[1] - 2
    assert at(Expression(jaw=1), 0, -100)[1] < at(rest, 0, -100)[1] - 10
    np.testing.assert_allclose(at(Expression(jaw=1), 0, 30), at(rest, 0, 30), atol=1e-4)  # the forehead stays


def test_lids_meet_when_the_eye_is_shut() -> None:
    who, along = Identity.random(4), np.linspace(-1, 1, 21)
    gaps = [np.subtract(*heads.lids(along, openness, who))[1:-1] for openness in (0.0, 0.3, 0.6, 1.0)]
    np.testing.assert_allclose(gaps[0], 0, atol=1e-9)
    for narrow, wide in itertools.pairwise(gaps):
        assert (wide > narrow).all()
    assert Expression(blink_left=1).openness(-1) == 0 < Expression(blink_left=1).openness(1)


def test_landmarks_are_in_ibug_order() -> None:
    x, t = heads.landmark_template(Identity(), Expression()).T
    assert len(x) == 68
    for contour in (slice(0, 17), slice(17, 27), slice(31, 36), slice(48, 55), slice(60, 65)):
        assert (np.diff(x[contour]) > 0).all()  # from image left to image right
    assert (np.diff(t[27:31]) < 0).all()  # down the nose
    assert t[8] == t[:17].min()
    for lids in (slice(36, 42), slice(42, 48)):
        left, up, up2, right, low, low2 = t[lids]
        assert min(up, up2) > max(left, right) > max(low, low2)
    mirror = [*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1)]
    mirror += [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
    mirror += [54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65]
    np.testing.assert_allclose(x[mirror], -x, atol=1e-9)
    np.testing.assert_allclose(t[mirror], t, atol=0.05)
