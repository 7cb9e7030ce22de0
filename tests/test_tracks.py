"""Tests of faceswap.tracks: drawn squares for faces, with a detector and a landmarker that know where they are."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import footage
import numpy as np
import pytest
from numpy.typing import NDArray

from faceswap import align, detectors, landmarks, tracks
from faceswap.config import ExtractRecipe
from faceswap.detectors import Face
from faceswap.landmarks import Landmarker, Landmarks
from faceswap.tracks import Footage, Track
from faceswap.video import Frame, read_frames

SIDE = 40
RECIPE = ExtractRecipe(min_size=30, key_every=5, smooth=0)
MEAN = (landmarks.load(Path(__file__).parents[1] / "pretrained" / landmarks.FILE).mean.numpy() - 0.5) * 1.6
PATTERNS = [np.random.default_rng(seed).integers(0, 256, (10, 10), np.uint8) for seed in range(4)]
ROOMS = [np.random.default_rng(seed).integers(60, 190, (9, 16), np.uint8) for seed in range(3)]
Place = tuple[int, float, float]  # pattern, centre


def draw(places: Sequence[Place], room: int = 0) -> NDArray[np.uint8]:
    """A frame (180, 320, 3) with patterned squares for faces."""
    image = cv2.resize(ROOMS[room], (320, 180), interpolation=cv2.INTER_CUBIC)
    for pattern, x, y in places:
        matrix = np.array([[SIDE / 10, 0, x - SIDE / 2 + 2], [0, SIDE / 10, y - SIDE / 2 + 2]])
        layer = cv2.warpAffine(
            PATTERNS[pattern], matrix, (320, 180), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_TRANSPARENT, dst=image
        )
        image = layer
    return np.repeat(np.asarray(image)[..., None], 3, 2).astype(np.uint8)


class World:
    """Frames with faces at known places; detector and landmarker look the places up by the frame's pixels."""

    def __init__(
        self,
        script: Sequence[Sequence[Place]],
        *,
        rooms: Sequence[int] | None = None,
        missed: Callable[[int, int], bool] = lambda frame, face: False,  # by the detector
        unfit: Callable[[int, int], bool] = lambda frame, face: False,  # by the landmarker
        noise: float = 0.0,
        probability: float = 0.99,
    ) -> None:
        self.script, self.missed, self.unfit, self.probability = script, missed, unfit, probability
        rooms = rooms or [0] * len(script)
        self.images = [draw(places, room) for places, room in zip(script, rooms, strict=True)]
        for number, image in enumerate(self.images):
            image[0, 0] = (number % 256, number // 256, 7)  # which frame it is
        self.looked: list[int] = []  # frames that the detector saw
        self.checked: list[int] = []  # frames of which it saw a part
        self.random = np.random.default_rng(0)
        self.noise = noise

    def frames(self, every: int = 1) -> Iterator[Frame]:
        for number in range(0, len(self.images), every):
            yield Frame(number, Fraction(number, 25), Path("clip.mp4"), self.images[number])

    @staticmethod
    def number(image: NDArray[np.uint8]) -> int:
        return int(image[0, 0, 0]) + 256 * int(image[0, 0, 1])

    def detector(self, images: Sequence[NDArray[np.uint8]]) -> list[list[Face]]:
        found = []
        for image in images:
            if image.shape != self.images[0].shape:
                found.append(self.around(image))
                continue
            number = self.number(image)
            self.looked.append(number)
            faces = [
                Face(box_at(x, y), landmarks.five(dense_at(x, y)), self.probability)
                for face, x, y in self.script[number]
                if not self.missed(number, face)
            ]
            found.append(faces)
        return found

    def around(self, part: NDArray[np.uint8]) -> list[Face]:
        """What the detector finds in a part of a frame."""
        number = next(n for n, image in enumerate(self.images) if np.shares_memory(part, image))
        offset = part.__array_interface__["data"][0] - self.images[number].__array_interface__["data"][0]
        y, x = divmod(offset // 3, self.images[number].shape[1])
        height, width = part.shape[:2]
        inside = [
            Face(box_at(at_x - x, at_y - y), landmarks.five(dense_at(at_x - x, at_y - y)), self.probability)
            for face, at_x, at_y in self.script[number]
            if x < at_x < x + width and y < at_y < y + height and not self.missed(number, face)
        ]
        self.checked.append(number)
        return inside

    def landmarker(
        self, images: Sequence[NDArray[np.uint8]], points: Sequence[NDArray[Any]], *, passes: int = 1
    ) -> list[Landmarks]:
        found = []
        for image, five in zip(images, points, strict=True):
            number = self.number(image)
            x, y = five[:, 0].mean(), five[:, 1].mean()
            near = [p for p in self.script[number] if np.hypot(p[1] - x, p[2] - y) < SIDE / 2]
            if not near or self.unfit(number, near[0][0]):
                found.append(Landmarks(dense_at(x, y), 0.01, np.zeros(landmarks.LOOK**2, np.float32)))
                continue
            face, at_x, at_y = near[0]
            dense = dense_at(at_x, at_y) + self.random.normal(0, self.noise, (landmarks.COUNT, 2))
            look = cv2.resize(PATTERNS[face], (landmarks.LOOK,) * 2).astype(np.float32).ravel()
            found.append(Landmarks(dense.astype(np.float32), 0.9, look))
        return found

    def follow(self, **changes: Any) -> Footage:
        recipe = RECIPE.model_copy(update=changes)
        landmarker: Any = self.landmarker
        return tracks.follow(self.frames(recipe.every), self.detector, landmarker, recipe)


def dense_at(x: float, y: float) -> NDArray[np.float32]:
    dense = MEAN * SIDE
    dense = dense - landmarks.five(dense).mean(0) + [x, y]
    return np.asarray(dense, np.float32)


def box_at(x: float, y: float) -> NDArray[np.float32]:
    return np.array([x - SIDE / 2, y - SIDE / 2, x + SIDE / 2, y + SIDE / 2], np.float32)


def walk(count: int, face: int = 0, start: float = 60.0, speed: float = 3.0, y: float = 90.0) -> list[Place]:
    return [(face, start + speed * i, y) for i in range(count)]


def apart(world: World, track: Track) -> float:
    """The largest distance of a track's faces from where they were drawn, in pixels."""
    worst = 0.0
    for index, face in track.faces.items():
        x, y = face.points.mean(0)
        worst = max(worst, min(np.hypot(x - at_x, y - at_y) for _, at_x, at_y in world.script[index]))
    return worst


def test_the_detector_looks_half_as_often_while_there_are_few_faces() -> None:
    places = [(face, 40.0 + 70 * face, 90.0) for face in range(3)]
    looked = {}
    for count in (0, 1, 2, 3):
        world = World([places[:count]] * 23)
        world.follow()
        looked[count] = sorted(world.looked)
    assert looked[1] == looked[2] == [0, 5, 15, 22]  # the last one too
    assert looked[0] == looked[3] == [0, 5, 10, 15, 20, 22]


def test_a_face_is_one_track_and_detected_on_key_frames_only() -> None:
    world = World([[place] for place in walk(23)])
    footage = world.follow()
    assert len(footage.tracks) == 1 and (footage.frames, footage.shots) == (23, 1)
    assert sorted(world.looked) == [0, 5, 15, 22]
    (track,) = footage.tracks
    assert sorted(track.faces) == list(range(23)) and apart(world, track) < 0.01
    assert all(face.track == 0 and face.landmarks is not None for face in track.faces.values())
    assert track.span == (0, 22) and track.side == pytest.approx(SIDE)
    for index, face in track.faces.items():  # the box goes along
        assert tracks.overlap(face.box, box_at(*world.script[index][0][1:])) > 0.9


def test_who_comes_between_key_frames_is_followed_back() -> None:
    first, second = walk(12), walk(12, face=1, start=200, speed=-1, y=50)
    world = World([[a] if i < 7 else [a, b] for i, (a, b) in enumerate(zip(first, second, strict=True))])
    one, other = world.follow().tracks
    assert sorted(one.faces) == list(range(12)) and sorted(other.faces) == list(range(7, 12))


def test_who_comes_after_the_last_key_frame_is_found_too() -> None:
    world = World([[] if i < 12 else [(0, 100.0, 90.0)] for i in range(14)])
    (track,) = world.follow().tracks
    assert sorted(track.faces) == [12, 13]


def test_who_leaves_is_not_followed_into_nothing() -> None:
    world = World([[(0, 100.0, 90.0)] if i < 13 else [] for i in range(30)])
    (track,) = world.follow().tracks
    assert sorted(track.faces) == list(range(13))


def test_a_cut_ends_every_track() -> None:
    world = World([[(0, 100.0, 90.0)]] * 7 + [[(1, 102.0, 90.0)]] * 6, rooms=[0] * 7 + [1] * 6)
    footage = world.follow()
    assert [sorted(track.faces) for track in footage.tracks] == [list(range(7)), list(range(7, 13))]
    assert footage.shots == 2 and 7 in world.looked
    assert [track.shot for track in footage.tracks] == [0, 1]


def test_a_face_that_looks_otherwise_is_another_though_at_the_same_place() -> None:
    world = World([[(0, 100.0, 90.0)]] * 7 + [[(2, 100.0, 90.0)]] * 6)  # no cut is seen: the room stays
    assert [sorted(track.faces) for track in world.follow().tracks] == [list(range(7)), list(range(7, 13))]


def test_faces_that_pass_each_other_stay_themselves() -> None:
    a, b = walk(31, 0, 40, 6, 70), walk(31, 1, 220, -6, 112)
    world = World([list(pair) for pair in zip(a, b, strict=True)])
    one, other = world.follow().tracks
    for track, face in ((one, 0), (other, 1)):
        assert len(track.faces) == 31
        places = [next(p for p in world.script[i] if p[0] == face) for i in sorted(track.faces)]
        found = [track.faces[i].points.mean(0) for i in sorted(track.faces)]
        np.testing.assert_allclose(found, [p[1:] for p in places], atol=0.1)


@pytest.mark.parametrize("length", [1, 3, 5])
def test_a_short_gap_is_filled_in_between(length: int) -> None:
    hidden = range(11, 11 + length)
    places = walk(30, speed=2)
    world = World([[place] for place in places], missed=lambda i, _: i in hidden, unfit=lambda i, _: i in hidden)
    (track,) = world.follow().tracks
    assert sorted(track.faces) == list(range(30)) and track.filled == set(hidden)
    for index in hidden:
        np.testing.assert_allclose(track.faces[index].points.mean(0), places[index][1:], atol=0.1)
        assert track.faces[index].probability == 0


def test_a_long_gap_is_none_of_ours() -> None:
    world = World([[] if 11 <= i < 20 else [place] for i, place in enumerate(walk(30, speed=1))])
    first, second = world.follow().tracks
    assert sorted(first.faces) == list(range(11)) and sorted(second.faces) == list(range(20, 30))
    assert len(World(world.script).follow(gap=9).tracks) == 1
    assert len(World([[] if i == 11 else [p] for i, p in enumerate(walk(30))]).follow(gap=0).tracks) == 2


def test_two_faces_seen_at_once_never_become_one_track() -> None:
    first, second = walk(8, 0, 100, 0.5), [(0, 127.0, 90.0)] * 14  # of one look, side by side
    world = World([[*first[i : i + 1], *(second[:1] if i >= 6 else [])] for i in range(20)])
    found = world.follow().tracks
    assert [sorted(track.faces) for track in found] == [list(range(8)), list(range(6, 20))]


def test_every_photo_in_a_folder_is_looked_at(tmp_path: Path) -> None:
    looked: list[int] = []

    def detector(images: Sequence[NDArray[np.uint8]]) -> list[list[Face]]:
        looked.append(1)
        return [[] for _ in images]

    for number in range(7):  # as alike as a photo booth's
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((90, 90, 3), 100 + number, np.uint8))
    anyone: Any = World([]).landmarker
    tracks.follow(read_frames(tmp_path), detector, anyone, RECIPE)
    assert len(looked) == 7


def test_an_empty_frame_stays_empty() -> None:
    world = World([[] if i in (11, 12) else [place] for i, place in enumerate(walk(30, speed=1))])
    (track,) = world.follow().tracks  # one track all the same
    assert sorted(set(range(30)) - set(track.faces)) == [11, 12] and not track.filled


def test_who_comes_just_before_a_cut_is_found() -> None:
    world = World([[] if i < 7 else [(0, 100.0, 90.0)] for i in range(9)] + [[]] * 4, rooms=[0] * 9 + [1] * 4)
    (track,) = world.follow().tracks
    assert sorted(track.faces) == [7, 8]


def test_a_face_without_landmarks_is_carried_by_its_flow() -> None:
    world = World([[place] for place in walk(22, speed=2)], unfit=lambda frame, face: True)
    (track,) = world.follow().tracks
    assert sorted(track.faces) == list(range(22)) and apart(world, track) < 2
    assert all(face.landmarks is None and face.fit == 0 for face in track.faces.values())
    assert sorted(world.looked) == [0, 5, 15, 21]


def test_flow_alone_does_not_say_that_there_is_a_face() -> None:
    world = World(
        [[place] for place in walk(22, speed=1)], unfit=lambda frame, face: True, missed=lambda frame, face: frame >= 10
    )
    (track,) = world.follow().tracks
    assert max(track.faces) < 15  # the next key frame


def test_a_face_that_the_detector_misses_goes_on_while_it_fits() -> None:
    world = World([[place] for place in walk(22, speed=1)], missed=lambda frame, face: 4 <= frame < 20)
    (track,) = world.follow().tracks
    assert sorted(track.faces) == list(range(22)) and not track.filled


def test_landmarks_that_come_back_are_taken_up_again() -> None:
    world = World([[place] for place in walk(22, speed=1)], unfit=lambda frame, face: 6 <= frame < 9)
    (track,) = world.follow().tracks
    assert sorted(track.faces) == list(range(22))
    assert 6 in world.checked and 6 not in world.looked  # only around the face
    fitting = [index for index, face in track.faces.items() if face.landmarks is not None]
    assert set(range(22)) - set(fitting) <= set(range(6, 15)) and {0, 5, 15, 21} <= set(fitting)


def test_what_is_never_large_or_sure_enough_is_left_out() -> None:
    script = [[place] for place in walk(8)]
    assert World(script).follow(min_size=SIDE + 1).tracks == []
    assert len(World(script).follow(min_size=SIDE).tracks) == 1
    assert World(script, probability=0.85).follow(threshold=0.9).tracks == []


def test_every_third_frame_is_followed_by_its_numbers() -> None:
    world = World([[place] for place in walk(30, speed=1)])
    (track,) = world.follow(every=3, key_every=6).tracks
    assert sorted(track.faces) == list(range(0, 30, 3))
    assert sorted(world.looked) == [0, 6, 18, 27]


def test_photos_of_different_people_are_never_one_track(tmp_path: Path) -> None:
    for number in range(6):
        image = draw([(number % 2, 100.0, 90.0)]) // 2 + 60 * (number % 2)
        assert cv2.imwrite(str(tmp_path / f"{number}.png"), image)
    looked: list[int] = []

    def detector(images: Sequence[NDArray[np.uint8]]) -> list[list[Face]]:
        looked.append(1)
        return [[Face(box_at(100, 90), landmarks.five(dense_at(100, 90)), 1.0)] for _ in images]

    anywhere: Any = lambda images, points, *, passes=1: [  # noqa: E731
        Landmarks(dense_at(100, 90), 0.9, np.arange(landmarks.LOOK**2, dtype=np.float32)) for _ in images
    ]
    found = tracks.follow(read_frames(tmp_path), detector, anywhere, RECIPE)
    assert [sorted(track.faces) for track in found.tracks] == [[i] for i in range(6)] and len(looked) == 6


def test_nothing_gives_nothing() -> None:
    assert World([]).follow() == Footage([], 0, 0, 0)
    assert World([[]] * 7).follow().tracks == []


def test_errors_of_the_reader_and_the_detector_come_through() -> None:
    world = World([[place] for place in walk(12)])

    def broken() -> Iterator[Frame]:
        yield from list(world.frames())[:6]
        raise RuntimeError("the reader")

    landmarker: Any = world.landmarker
    with pytest.raises(RuntimeError, match="the reader"):
        tracks.follow(broken(), world.detector, landmarker, RECIPE)

    def failing(images: Sequence[NDArray[np.uint8]]) -> list[list[Face]]:
        raise RuntimeError("the detector")

    with pytest.raises(RuntimeError, match="the detector"):
        tracks.follow(world.frames(), failing, landmarker, RECIPE)


def test_threads_are_given_back() -> None:
    import torch

    before = torch.get_num_threads()
    World([[place] for place in walk(3)]).follow()
    assert torch.get_num_threads() == before


# Smoothing


def test_parameters_and_place_are_inverse() -> None:
    random = np.random.default_rng(1)
    for _ in range(20):
        values = np.array([random.uniform(-7, -2), random.uniform(-3, 3), *random.uniform(0, 500, 2)])
        np.testing.assert_allclose(tracks.parameters(tracks.place(values)), values, atol=1e-9)


def shaken(count: int, noise: float, turn: float = 0.0) -> tuple[Track, list[NDArray[np.float64]]]:
    """A track of a face that moves steadily, seen with noise, and where it truly is."""
    random, track, truth = np.random.default_rng(3), Track(0, 0), []
    base = (align.TEMPLATE - 0.5) * 100
    for i in range(count):
        angle = np.radians(turn * i)
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        points = base @ rotation.T * 1.01**i + [200 + 3 * i, 150 + 0.02 * i * i]
        truth.append(points)
        seen = (points + random.normal(0, noise, (5, 2))).astype(np.float32)
        track.faces[i] = Face(np.float32([0, 0, 90, 90]), seen, 1.0)
    return track, truth


def off(track: Track, truth: list[NDArray[np.float64]]) -> float:
    """Root mean square distance in pixels between where the template lies by the track and by the truth."""
    apart = [
        align.apply(align.invert(track.faces[i].matrix(1)), align.TEMPLATE)
        - align.apply(align.invert(align.crop_matrix(points, 1)), align.TEMPLATE)
        for i, points in enumerate(truth)
    ]
    return float(np.sqrt((np.array(apart) ** 2).mean()))


def test_smoothing_brings_the_crop_nearer_the_truth() -> None:
    track, truth = shaken(60, 1.0, turn=7)  # the angle passes pi
    before = off(track, truth)
    tracks.smooth(track, 9)
    assert off(track, truth) < 0.6 * before


def test_smoothing_has_no_lag() -> None:
    track, truth = shaken(60, 0.0)
    tracks.smooth(track, 9)
    assert off(track, truth) < 0.1


def test_smoothing_keeps_points_and_landmarks_and_may_be_off() -> None:
    track, _ = shaken(30, 1.0)
    before = {index: face.points.copy() for index, face in track.faces.items()}
    for window in (0, 4):
        tracks.smooth(track, window)
        assert all(face.place is None for face in track.faces.values())
    tracks.smooth(track, 7)
    assert all(np.array_equal(face.points, before[i]) and face.place is not None for i, face in track.faces.items())


def test_smoothing_never_reaches_over_a_gap() -> None:
    near, _ = shaken(20, 1.0)
    far = Track(0, 0, dict(near.faces))
    for index in range(30, 50):
        far.faces[index] = replace(near.faces[index - 30], points=near.faces[index - 30].points + 500)
    tracks.smooth(near, 9)
    tracks.smooth(far, 9)
    for index in range(20):
        np.testing.assert_allclose(near.faces[index].matrix(1), far.faces[index].matrix(1))


def test_jitter_is_the_noise_it_measures() -> None:
    random = np.random.default_rng(0)
    places: list[align.Matrix | None] = []
    for i in range(400):
        points = (align.TEMPLATE - 0.5) * 100 + [200 + 3 * i, 150] + random.normal(0, 1, 2)  # the crop's shift shakes
        places.append(align.crop_matrix(points, 1))
    eyes = 100 * (align.TEMPLATE[1, 0] - align.TEMPLATE[0, 0])
    assert tracks.jitter(places) == pytest.approx(100 / eyes, rel=0.25)
    assert tracks.jitter([places[0], None, places[1], places[2]]) is None


# Real footage, where there is any


@pytest.mark.skipif(not (footage.DATA / "clips").is_dir(), reason="no real footage beside the project")
def test_one_man_in_a_studio_is_one_track_that_is_stiller_than_mtcnn() -> None:
    clip = footage.DATA / "clips" / "actor_a.mp4"
    detector = detectors.build("mtcnn", threshold=0.8, min_size=43, device="cpu")
    frames = [frame for frame in read_frames(clip) if frame.index < 40]
    found = tracks.follow(frames, detector, Landmarker(), ExtractRecipe())
    (track,) = found.tracks
    assert sorted(track.faces) == list(range(40)) and found.detected <= 11
    raw = tracks.jitter([align.crop_matrix(face.points, 1) for face in track.faces.values()])
    smoothed = tracks.jitter([face.matrix(1) for face in track.faces.values()])
    theirs = tracks.jitter([align.crop_matrix(detector([frame.image])[0][0].points, 1) for frame in frames])
    assert raw is not None and smoothed is not None and theirs is not None
    assert smoothed < 0.6 * raw and raw < theirs
