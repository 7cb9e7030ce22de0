"""Tests of faceswap.landmarks: the scheme by its symmetry, the network on rendered faces, whose points are known."""

import time
from pathlib import Path

import cv2
import footage
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from faceswap import actors, align, landmarks
from faceswap.errors import CheckpointError
from faceswap.heads import Identity
from faceswap.landmarks import COUNT, MIRROR, SIZE, Landmarker, Network, eye_distance, five, load
from faceswap.render import Actor, Shot, background

REAL = footage.DATA / "landmarks"


@pytest.fixture(scope="module")
def landmarker() -> Landmarker:
    return Landmarker()


@pytest.fixture(scope="module")
def shots() -> list[Shot]:
    """Six people in any pose, mood and light."""
    found = []
    for seed in range(6):
        random = np.random.default_rng(seed)
        actor, room = Actor(Identity.random(seed)), background(seed, 200, 200)
        given = actors.as_arguments(actors.at_random(random))
        found.append(actor.render(**given, size=200, background=room, scale=0.5))
    return found


def errors(shots: list[Shot], found: list[landmarks.Landmarks]) -> list[float]:
    """Mean error of brows, eyes, nose and lips in units of the eye distance, per face."""
    return [
        float(np.linalg.norm(face.points[17:68] - shot.landmarks[17:68], axis=1).mean() / eye_distance(shot.landmarks))
        for shot, face in zip(shots, found, strict=True)
    ]


def test_mirroring_twice_is_nothing_and_swaps_the_sides() -> None:
    assert np.array_equal(MIRROR[MIRROR], np.arange(COUNT)) and COUNT == 152
    assert np.array_equal(MIRROR[landmarks.EYE_LEFT], landmarks.EYE_RIGHT)
    assert np.array_equal(MIRROR[landmarks.BROW_LEFT], landmarks.BROW_RIGHT)
    ibug = [*range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, 35, 34, 33, 32, 31]
    ibug += [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
    ibug += [54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65]
    assert MIRROR[:68].tolist() == ibug  # the mirror of the 68-point scheme, as everyone has it


def test_the_mean_face_is_its_own_mirror_image() -> None:
    mean = Network().mean
    assert mean.shape == (COUNT, 2)
    mean = load(Path(__file__).parents[1] / "pretrained" / landmarks.FILE).mean
    middle = (mean[0, 0] + mean[16, 0]) / 2
    mirrored = torch.stack([2 * middle - mean[:, 0], mean[:, 1]], 1)[torch.from_numpy(MIRROR)]
    assert float((mirrored - mean).abs().max()) < 0.03
    assert np.abs(five(mean.numpy()) - align.TEMPLATE).max() < 0.03


def test_five_points_do_not_follow_lids_and_gaze() -> None:
    points = np.random.default_rng(0).normal(size=(3, COUNT, 2)).astype(np.float32)
    moved = points.copy()
    moved[:, [37, 38, 40, 41, 43, 44, 46, 47]] += 5
    moved[:, landmarks.IRIS_LEFT] += 5
    assert np.array_equal(five(points), five(moved)) and five(points).shape == (3, 5, 2)
    assert np.array_equal(five(points), five(points[:, :68]))


def test_the_network_is_small() -> None:
    assert sum(weights.numel() for weights in Network().parameters()) < 2_000_000
    assert (Path(__file__).parents[1] / "pretrained" / landmarks.FILE).stat().st_size < 8_000_000


def test_the_flat_network_computes_what_the_network_does() -> None:
    network = load(Path(__file__).parents[1] / "pretrained" / landmarks.FILE)
    crops = torch.rand(2, 3, SIZE, SIZE)
    before = network(crops)
    after = landmarks._Flat(network)(crops)
    torch.testing.assert_close(before, after, atol=1e-3, rtol=1e-3)


def test_the_points_of_rendered_faces_are_found(landmarker: Landmarker, shots: list[Shot]) -> None:
    found = landmarker([shot.image for shot in shots], [shot.points for shot in shots], passes=2)
    assert max(errors(shots, found)) < 0.12 and np.mean(errors(shots, found)) < 0.07
    assert all(face.points.shape == (COUNT, 2) and face.points.dtype == np.float32 for face in found)
    assert min(face.fit for face in found) > 0.3


def test_a_rough_place_is_enough_and_a_second_look_is_better(landmarker: Landmarker, shots: list[Shot]) -> None:
    rough = [shot.points + np.float32([5, -4]) for shot in shots]  # a tenth of the eye distance
    images = [shot.image for shot in shots]
    good = np.mean(errors(shots, landmarker(images, [shot.points for shot in shots], passes=2)))
    assert np.mean(errors(shots, landmarker(images, rough, passes=2))) < good + 0.01


def test_the_points_move_and_turn_with_the_picture(landmarker: Landmarker, shots: list[Shot]) -> None:
    shot = shots[0]
    matrix = cv2.getRotationMatrix2D((100, 100), 30, 1.2) + np.array([[0, 0, 7], [0, 0, -4]])
    turned = cv2.warpAffine(shot.image, matrix, (200, 200), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    (straight,) = landmarker([shot.image], [shot.points], passes=2)
    (moved,) = landmarker([turned], [align.apply(matrix, shot.points)], passes=2)
    apart = np.linalg.norm(align.apply(matrix, straight.points) - moved.points, axis=1)
    assert apart.mean() < 0.02 * eye_distance(moved.points)


def test_what_is_no_face_has_no_fit(landmarker: Landmarker) -> None:
    random = np.random.default_rng(0)
    nothing: list[NDArray[np.uint8]] = [
        np.full((160, 160, 3), 128, np.uint8),
        random.integers(0, 256, (160, 160, 3), np.uint8),
        cv2.resize(random.integers(0, 256, (6, 6, 3), np.uint8), (160, 160), interpolation=cv2.INTER_CUBIC),
    ]
    assert max(face.fit for face in landmarker(nothing, [align.TEMPLATE * 160] * 3)) < 0.2


def test_batches_change_nothing(landmarker: Landmarker, shots: list[Shot], monkeypatch: pytest.MonkeyPatch) -> None:
    images, points = [shot.image for shot in shots], [shot.points for shot in shots]
    together = landmarker(images, points)
    monkeypatch.setattr(landmarks, "AT_ONCE", 4)
    for one, other in zip(together, landmarker(images, points), strict=True):
        np.testing.assert_allclose(one.points, other.points, atol=0.01)
    assert landmarker([], []) == []


def test_16_bit_pictures_give_the_same_points(landmarker: Landmarker, shots: list[Shot]) -> None:
    (plain,) = landmarker([shots[0].image], [shots[0].points])
    (deep,) = landmarker([shots[0].image.astype(np.uint16) * 257], [shots[0].points])
    np.testing.assert_allclose(plain.points, deep.points, atol=0.05)


@pytest.mark.parametrize("damage", ["missing", "text", "other"])
def test_a_bad_weight_file_is_said(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "landmarks.safetensors"
    if damage == "text":
        path.write_text("not weights")
    elif damage == "other":
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=r"expected the weights of the landmark network .*; install faceswap"):
        Landmarker(path=path)


def test_a_face_takes_milliseconds(landmarker: Landmarker, shots: list[Shot]) -> None:
    images, points = [shot.image for shot in shots], [shot.points for shot in shots]
    landmarker(images, points)
    started = time.thread_time()
    for _ in range(3):
        landmarker(images, points)
    assert (time.thread_time() - started) / 3 / len(shots) < 0.02  # 3 ms on a quiet core


@pytest.mark.skipif(not REAL.is_dir(), reason="no real faces beside the project")
def test_real_faces_that_were_held_out(landmarker: Landmarker) -> None:
    mesh = np.load(REAL / "landmarks478.npy")[:, landmarks.MESH, :2].astype(np.float32) - 0.5
    apart = []
    for number in range(450, len(mesh), 500):  # of the blocks that training leaves out
        image = cv2.cvtColor(cv2.imread(str(REAL / "img" / f"{number:05d}.jpg")), cv2.COLOR_BGR2RGB)
        (found,) = landmarker([image], [five(mesh[number])], passes=2)
        apart.append(np.linalg.norm(found.points - mesh[number], axis=1).mean() / eye_distance(mesh[number]))
    assert np.mean(apart) < 0.05  # 17 of 850; the model card has the figure
