"""Tests of faceswap.looks: poses of heads whose pose is known, and measures that fall when the picture is spoilt."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from crops import SIDE, damage, meta, picture
from numpy.typing import NDArray

from faceswap import actors, heads, looks
from faceswap.faceset import LANDMARKS, Faceset


def seen(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """At the size at which faces are looked at."""
    return np.asarray(cv2.resize(image, (looks.SIZE, looks.SIZE)), np.uint8)


def test_pose_is_that_of_rendered_heads(tmp_path: Path) -> None:
    actors.write_faces(tmp_path / "many", 60, size=96, seed=4, overwrite=False)
    metas = [entry.meta for entry in Faceset.open(tmp_path / "many").entries]
    truth = np.array([(about.truth["pose"]["yaw"], about.truth["pose"]["pitch"]) for about in metas if about.truth])
    five = np.array([looks.head_pose(about) for about in metas])
    assert (np.abs(five - truth).mean(0) < [7, 9]).all()
    dense = np.zeros((len(metas), LANDMARKS, 2))
    for row, about in enumerate(metas):
        assert about.truth
        dense[row, :68] = about.truth["landmarks"]
    marked = [replace(about, landmarks=points.tolist()) for about, points in zip(metas, dense, strict=True)]
    found = np.array([looks.head_pose(about) for about in marked])
    assert (np.abs(found - truth).mean(0) < [4, 4]).all()
    assert (np.corrcoef(found.T, truth.T)[[0, 1], [2, 3]] > 0.97).all()


@pytest.mark.parametrize("yaw", [-40, 0, 25])
@pytest.mark.parametrize("roll", [-20, 0, 30])
def test_pose_has_the_signs_of_heads_and_no_roll(yaw: int, roll: int) -> None:
    head = looks.average_head()
    turn = heads.Pose(yaw, 10, roll).matrix() * np.outer([1, -1, -1], [1, -1, -1])
    seen = head @ turn.T + [0, 0, 4000]
    points = seen[:, :2] / seen[:, 2:] * 8 * SIDE + SIDE / 2
    dense = np.zeros((LANDMARKS, 2))
    dense[:68] = points
    found = looks.head_pose(meta(0, landmarks=dense.tolist()))
    assert found == pytest.approx((yaw, 10), abs=6)


def test_a_face_that_no_head_fits_has_no_pose() -> None:
    for given in ({"points": [[50.0, 50.0]] * 5}, {"landmarks": [[50.0, 50.0]] * LANDMARKS}):
        assert np.isnan(looks.head_pose(meta(0, **given))).all()


def test_sharpness_falls_with_blur_and_brightness_with_light() -> None:
    sharp = [looks.look(seen(picture(1, blur)))[0] for blur in (0, 0.7, 1.5, 4)]
    assert sharp == sorted(sharp, reverse=True) and sharp[0] > 10 * sharp[-1]
    light = [looks.look(seen(picture(1, 0, light)))[1] for light in (0.2, 0.5, 0.9)]
    assert light == sorted(light) and 0 < light[0] < light[-1] < 1


def test_hashes_hold_what_is_alike_and_part_what_is_not() -> None:
    base = seen(picture(1))
    noisy = np.asarray((base + np.random.default_rng(0).normal(0, 3, base.shape)).clip(0, 255), np.uint8)
    first, again, other = (looks.look(image) for image in (base, noisy, seen(picture(2))))
    assert (first[2] ^ again[2]).bit_count() <= 4 < 15 < (first[2] ^ other[2]).bit_count()
    assert float(first[3] @ again[3]) > 0.97 > 0.5 > float(first[3] @ other[3])


def test_info_counts_what_is_there(ten_faces: Path) -> None:
    damage(ten_faces, 5)
    cv2.imwrite(str(ten_faces / "holiday.png"), picture(77))
    found = looks.info(ten_faces)
    assert (found.faces, found.skipped, found.damaged, found.masks) == (10, 1, 1, 1)
    assert found.sources == {"clip.mp4": 10} and found.side == [SIDE] and found.landmarks == 0 and found.fit is None
    assert [(track.track, track.faces) for track in found.tracks] == [(0, 4), (1, 4), (2, 2)]
    assert found.size == pytest.approx([3000**0.5] * 3, abs=1e-3)
    assert sum(found.yaw) == sum(found.pitch) == 10 and len(found.yaw) == len(found.bins) - 1
    assert found.sharpness and found.sharpness[0] < found.sharpness[1] < found.sharpness[2]
    text = looks.info_text(found)
    assert "10 faces" in text and "█" in text and "track" in text


@pytest.mark.parametrize("whole", [True, False])
def test_some_of_the_faces_keep_what_was_measured(ten_faces: Path, whole: bool) -> None:
    if not whole:
        damage(ten_faces, 5)  # likeness leaves out what does not decode
    faces, kept = looks.Faces(Faceset.open(ten_faces)), np.arange(10) % 3 > 0
    names = ("places", "pose", "size", "fit", "looks", "likeness")
    for name in names:
        getattr(faces, name)
    some = faces.only(kept)
    assert set(names) <= some.__dict__.keys() and len(some) == kept.sum() and len(faces) == 10
    afresh = looks.Faces(Faceset(ten_faces, some.entries, []))
    assert [entry.path for entry in some.entries] == [
        e.path for e, keep in zip(faces.entries, kept, strict=True) if keep
    ]
    assert some.places == afresh.places and some.likeness[0] == afresh.likeness[0]
    np.testing.assert_allclose(some.likeness[1], afresh.likeness[1], atol=1e-6)
    for name in ("pose", "size", "fit"):
        np.testing.assert_array_equal(getattr(some, name), getattr(afresh, name))
    for name, numbers in vars(some.looks).items():
        np.testing.assert_array_equal(numbers, getattr(afresh.looks, name))


@pytest.mark.parametrize("eighths", range(25))
def test_bars_are_exact_to_an_eighth(eighths: int) -> None:
    bar = looks._bar(eighths / 8)
    last = " ▏▎▍▌▋▊▉".find(bar[-1]) if bar else 0
    assert bar.count("█") * 8 + max(last, 0) == eighths
