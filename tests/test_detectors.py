"""Tests of faceswap.detectors and of MTCNN on drawn faces, whose points are known."""

from dataclasses import replace

import footage
import numpy as np
import pytest
from numpy.typing import NDArray

from faceswap import align, detectors
from faceswap.detectors import Detector, Face
from faceswap.errors import UsageError

Picture = NDArray[np.uint8]
EMPTY = np.full((160, 160, 3), footage.BACKGROUND, np.uint8)


@pytest.fixture(scope="module")
def mtcnn() -> Detector:
    return detectors.build("mtcnn", threshold=0.9, min_size=40, device="cpu")


def pair(left: float, right: float) -> Picture:
    """Two faces side by side, at these scales."""
    return np.hstack([footage.draw_face(scale=left, look="source"), footage.draw_face(scale=right)])


@pytest.mark.parametrize("look", list(footage.LOOKS))
@pytest.mark.parametrize(("scale", "centre"), [(1.0, (80.0, 80.0)), (1.3, (75.0, 82.0)), (0.8, (60.0, 70.0))])
def test_the_points_of_a_drawn_face_are_found(
    mtcnn: Detector, look: str, scale: float, centre: tuple[float, float]
) -> None:
    ((face,),) = mtcnn([footage.draw_face(look=look, scale=scale, centre=centre)])
    truth = footage.UNIT_POINTS * scale + centre
    assert np.linalg.norm(face.points - truth, axis=1).max() < 4 * max(1, scale)
    assert face.box.shape == (4,) and face.points.shape == (5, 2)
    assert face.box.dtype == face.points.dtype == np.float32
    assert 0.9 <= face.probability <= 1 and type(face.probability) is float
    assert (face.box[:2] < truth.min(0)).all() and (truth.max(0) < face.box[2:]).all()


def test_a_batch_answers_per_image_as_one_by_one(mtcnn: Detector) -> None:
    images = [EMPTY, footage.draw_face(), footage.draw_face(look="source", turn=2)]
    batch = mtcnn(images)
    assert [len(faces) for faces in batch] == [0, 1, 1]
    for faces, image in zip(batch, images, strict=True):
        (alone,) = mtcnn([image])
        for ours, theirs in zip(faces, alone, strict=True):
            np.testing.assert_allclose(ours.points, theirs.points, atol=0.05)


def test_images_of_a_batch_may_hold_different_numbers_of_faces(mtcnn: Detector) -> None:
    wide_empty = np.hstack([EMPTY, EMPTY])
    one = np.hstack([footage.draw_face(), EMPTY])
    found = mtcnn([pair(1.0, 1.3), wide_empty, one])
    assert [len(faces) for faces in found] == [2, 0, 1]
    assert all(face.points.dtype == np.float32 for faces in found for face in faces)


@pytest.mark.parametrize(("left", "right"), [(0.85, 1.3), (1.3, 0.85)])
def test_the_largest_face_comes_first(mtcnn: Detector, left: float, right: float) -> None:
    ((first, second),) = mtcnn([pair(left, right)])
    assert first.side > second.side
    assert (first.points[2, 0] > second.points[2, 0]) == (right > left)


def test_small_faces_are_left_out(mtcnn: Detector) -> None:
    image = pair(0.85, 1.3)
    large, small = (face.side for face in mtcnn([image])[0])
    strict = detectors.build("mtcnn", threshold=0.9, min_size=(large + small) / 2, device="cpu")
    assert [face.side >= (large + small) / 2 for face in strict([image])[0]] == [True]


def test_doubtful_faces_are_left_out() -> None:
    certain = detectors.build("mtcnn", threshold=1.0, min_size=40, device="cpu")
    doubted = [face.probability for face in certain([footage.draw_face()])[0]]
    assert all(probability >= 1 for probability in doubted)
    half = footage.draw_face()
    half[:, 80:] = footage.BACKGROUND
    found = [face.probability for face in detectors.build("mtcnn", threshold=0.0, min_size=40, device="cpu")([half])[0]]
    assert found
    above = detectors.build("mtcnn", threshold=max(found) + 1e-4, min_size=40, device="cpu")
    assert above([half]) == [[]]


@pytest.mark.parametrize("side", [1, 12, 20, 31])
def test_an_image_smaller_than_a_face_holds_none(mtcnn: Detector, side: int) -> None:
    assert mtcnn([np.zeros((side, 90, 3), np.uint8)] * 2) == [[], []]


@pytest.mark.parametrize("side", [32, 33, 48])
def test_an_image_hardly_larger_than_a_face_is_searched(mtcnn: Detector, side: int) -> None:
    assert mtcnn([np.zeros((side, side, 3), np.uint8)]) == [[]]


def test_an_image_just_as_large_as_a_face_is_no_error() -> None:
    assert detectors.build("mtcnn", threshold=0.9, min_size=59, device="cpu")([np.zeros((47, 47, 3), np.uint8)]) == [[]]


def test_an_unknown_detector_is_told_the_known() -> None:
    with pytest.raises(UsageError, match=r"no detector called 'mtcn'; did you mean 'mtcnn'\?"):
        detectors.build("mtcn", threshold=0.9, min_size=40, device="cpu")


def test_a_face_crops_by_its_points_or_by_a_smoothed_place() -> None:
    points = (footage.UNIT_POINTS + 80).astype(np.float32)
    face = Face(np.float32([50, 40, 110, 120]), points, 1.0)
    np.testing.assert_allclose(face.matrix(64), align.crop_matrix(points, 64))
    place = np.array([[0.01, 0, 0.3], [0, 0.01, 0.2]])
    np.testing.assert_allclose(replace(face, place=place).matrix(64), place * 64)


def test_a_mask_is_drawn_from_landmarks_where_there_are_any() -> None:
    face = Face(np.zeros(4, np.float32), np.zeros((5, 2), np.float32), 1.0)
    assert face.outline is face.points
    dense = np.ones((152, 2), np.float32)
    assert replace(face, landmarks=dense).outline is dense
