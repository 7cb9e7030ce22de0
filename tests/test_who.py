"""Tests of faceswap.who: tracks made by hand, an embedder that reads a person off a picture's brightness."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import footage
import numpy as np
import pytest
from numpy.typing import NDArray

from faceswap import align, console, embedding, faceset
from faceswap.config import ExtractRecipe
from faceswap.detectors import Face
from faceswap.errors import FacesetError, UsageError
from faceswap.extract import meta_of
from faceswap.landmarks import Landmarker
from faceswap.tracks import Footage, Track
from faceswap.who import (
    EVERYONE,
    LARGEST,
    Casting,
    Chooser,
    Finder,
    Who,
    cast_by_number,
    cast_of,
    one_at_a_time,
)

VIDEO = Path("clip.mp4")


class Brightness:
    """People differ by how bright they are: 100 levels are a distance of 1."""

    name, same, other = "brightness", 0.2, 0.6

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        return np.array([[image.mean() / 100] for image in images], np.float32).reshape(-1, 1)


@pytest.fixture
def embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "find_embedder", lambda: Brightness())


@pytest.fixture
def nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "find_embedder", lambda: None)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(console, "say", lines.append)
    monkeypatch.setattr(console, "warn", lines.append)
    return lines


def track(number: int, frames: range, side: float = 60, level: int = 100, x: float = 100) -> Track:
    box = np.array([x, 50, x + side, 50 + side], np.float32)
    points = (align.TEMPLATE * side + [x, 50]).astype(np.float32)
    portrait = np.full((160, 160, 3), level, np.uint8)
    faces = {index: Face(box, points, 0.99, track=number) for index in frames}
    return Track(number, 0, faces, portraits=[(1.0, portrait), (0.5, portrait)])


def choose(asked: Who, tracks: Sequence[Track]) -> list[int]:
    chooser = Chooser(asked, lambda images: [[] for _ in images], None)  # type: ignore[arg-type]
    return [found.number for found in chooser(Footage(list(tracks), 100, 20, 1), VIDEO)]


def picture(path: Path, level: int) -> Path:
    """A face image of ours, of a person as bright as `level`."""
    face = next(iter(track(3, range(40, 41)).faces.values()))
    meta = meta_of(face, VIDEO.name, 40, 1.6, 0, 0, ExtractRecipe(size=64))
    faceset.write_face(path, np.full((64, 64, 3), level, np.uint8), meta)
    return path


def test_everyone_is_everyone(nobody_knows: None) -> None:
    assert choose(EVERYONE, [track(0, range(5)), track(1, range(5))]) == [0, 1]
    assert choose(LARGEST, []) == []


def test_tracks_are_chosen_by_number(nobody_knows: None) -> None:
    tracks = [track(n, range(n, n + 5)) for n in range(4)]
    assert choose(Who(tracks=(2, 0)), tracks) == [0, 2]
    with pytest.raises(
        UsageError, match=r"clip.mp4: no track 7; expected one of 0 to 3: 0 \(frames 0 to 4, 60 px\), 1"
    ):
        choose(Who(tracks=(7,)), tracks)


def test_one_wish_at_a_time() -> None:
    with pytest.raises(UsageError, match="found several"):
        Who(tracks=(1,), largest=True)
    with pytest.raises(UsageError, match="found several"):
        Who(references=(VIDEO,), tracks=(1,))


def test_the_largest_fills_most_of_the_footage_not_one_frame(nobody_knows: None, said: list[str]) -> None:
    tracks = [track(0, range(10), side=90), track(1, range(100), side=60)]
    assert choose(LARGEST, tracks) == [1]
    assert "by track and position" in said[0] and "faceswap[identity]" in said[0]


def test_the_largest_goes_on_in_other_frames(nobody_knows: None) -> None:
    tracks = [track(0, range(50)), track(1, range(40, 45)), track(2, range(60, 90)), track(3, range(70, 95), side=50)]
    assert choose(LARGEST, tracks) == [0, 2]


def test_the_largest_goes_on_as_the_same_person_only(embedder: None, said: list[str]) -> None:
    tracks = [track(0, range(50)), track(1, range(60, 90), level=200), track(2, range(60, 80), side=50, level=110)]
    assert choose(LARGEST, tracks) == [0, 2]
    assert "by face embedding (brightness)" in said[0]


def test_a_reference_finds_the_person(embedder: None, said: list[str], tmp_path: Path) -> None:
    tracks = [
        track(0, range(50), level=200),
        track(1, range(50), level=104),
        track(2, range(40, 80), level=101),  # shares frames with 1 and is nearer
        track(3, range(90, 95), level=110),
    ]
    assert choose(Who((picture(tmp_path / "anna.png", 100),)), tracks) == [2, 3]
    assert "track 2, 3 is the person of the reference anna.png, by face embedding (brightness" in said[0]


def test_a_reference_of_nobody_is_said_with_the_nearest(embedder: None, tmp_path: Path) -> None:
    tracks = [track(0, range(50), level=200), track(1, range(50), level=180)]
    with pytest.raises(UsageError, match=r"nobody looks like the reference \w+.png: the nearest is track 1 at 0\.80"):
        choose(Who((picture(tmp_path / "anna.png", 100),)), tracks)


def test_without_an_embedder_a_face_of_the_footage_names_its_track(
    nobody_knows: None, said: list[str], tmp_path: Path
) -> None:
    tracks = [track(0, range(50), x=300), track(1, range(30, 60)), track(2, range(60, 80))]
    assert choose(Who((picture(tmp_path / "anna.png", 100),)), tracks) == [1]
    assert "by track and position" in said[0]
    with pytest.raises(UsageError, match=r"no track of clip.mp4 has a face there now; choose with --track N"):
        choose(Who((tmp_path / "anna.png",)), tracks[2:])


def test_without_an_embedder_other_pictures_are_refused(nobody_knows: None, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), footage.draw_face())
    with pytest.raises(
        UsageError, match=r"without a face embedder a reference must be .*faceswap\[identity\].*--track N"
    ):
        choose(Who((photo,)), [track(0, range(5))])
    other = picture(tmp_path / "other.png", 100)
    chooser = Chooser(Who((other,)), None, None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"was taken from clip.mp4, not from another.mp4"):
        chooser(Footage([track(0, range(50))], 50, 10, 1), Path("another.mp4"))


def test_a_photo_is_searched_for_the_largest_face(embedder: None, said: list[str], tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), footage.draw_face())
    small, large = (next(iter(track(0, range(1), side=side).faces.values())) for side in (20, 60))
    chooser = Chooser(Who((photo,)), lambda images: [[large, small]], Landmarker())
    assert chooser.known is not None and chooser.known.shape == (1, 1)
    assert any("several faces in 1 pictures of the reference, the largest is taken" in line for line in said)
    with pytest.raises(FacesetError, match=r"photo.png: no face found in the reference; give a picture"):
        Chooser(Who((photo,)), lambda images: [[]], Landmarker())


def test_a_reference_that_is_not_there_is_said_so(nobody_knows: None, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"typo.jpg: no such file; give a picture of the person"):
        choose(Who((tmp_path / "typo.jpg",)), [track(0, range(5))])


def test_a_track_gives_up_the_few_frames_that_it_shares() -> None:
    first, second = one_at_a_time([track(0, range(100)), track(1, range(98, 190))])
    assert sorted(first.faces) == list(range(100)) and sorted(second.faces) == list(range(100, 190))
    assert len(one_at_a_time([track(0, range(100)), track(1, range(90, 130))])) == 1


def test_one_person_is_in_one_place() -> None:
    tracks = [track(4, range(10)), track(1, range(5, 15)), track(2, range(10, 20))]
    assert [found.number for found in one_at_a_time(tracks)] == [2, 4]


def test_what_was_asked_can_be_noted() -> None:
    asked: dict[str, Any] = Who(tracks=(3, 1)).to_json()
    assert asked == {"references": [], "tracks": [3, 1], "largest": False}
    assert Who((Path("a.png"),)).to_json()["references"] == [str(Path("a.png").resolve())]


def test_a_finder_takes_the_recipes_word(clips: dict[str, Path], nobody_knows: None) -> None:
    recipe = ExtractRecipe(min_size=40, who="largest")
    assert Finder(recipe, "cpu").who == LARGEST and Finder(recipe, "cpu", EVERYONE).who == EVERYONE
    footage_, chosen = Finder(recipe, "cpu")(clips["source"])
    assert footage_.frames == 16 and len(chosen) == 1 and len(chosen[0].faces) == 16


# ---------------------------------------------------------------- several people


def casting(words: Sequence[str], tracks: Sequence[Track]) -> dict[int, set[int]]:
    """The models that draw the faces of each track that was chosen."""
    cast, _ = cast_of(words)
    chooser = Casting(cast, lambda images: [[] for _ in images], None)  # type: ignore[arg-type]
    found = chooser(Footage(list(tracks), 100, 20, 1), VIDEO)
    return {track.number: {face.model for face in track.faces.values()} for track in found}


def test_a_cast_is_read() -> None:
    cast, runs = cast_of(["a.jpg=one", "track:3=two", "b=c.jpg=one", "track:5=two", "track:7=one"])
    assert runs == [Path("one"), Path("two")]
    assert cast.people == (
        (Who((Path("a.jpg"), Path("b=c.jpg"))), 0),
        (Who(tracks=(7,)), 0),
        (Who(tracks=(3, 5)), 1),
    )
    assert cast.references == (Path("a.jpg"), Path("b=c.jpg")) and cast.needs_portraits
    assert [part["model"] for part in cast.to_json()["people"]] == [0, 0, 1]
    assert not cast_of(["track:3=two"])[0].needs_portraits
    for word in ("a.jpg", "=run", "a.jpg=", "track:x=run", "track:=run"):
        with pytest.raises(UsageError, match=r"expected PICTURE=RUN or track:N=RUN"):
            cast_of([word])
    with pytest.raises(UsageError, match=r"track 3 is given twice"):
        cast_of(["track:3=a", "track:3=b"])


def test_each_face_is_drawn_for_the_person_it_is_nearest_to(embedder: None, said: list[str], tmp_path: Path) -> None:
    anna, bert = picture(tmp_path / "anna.png", 100), picture(tmp_path / "bert.png", 160)
    tracks = [
        track(0, range(50), level=165),
        track(1, range(50), level=104),
        track(2, range(60, 90), level=128),  # within reach of both, nearer to Anna
        track(3, range(60, 90), level=250),  # nobody
        track(4, range(60, 90), level=105),  # as like as Anna, but said to be another
    ]
    words = [f"{anna}=one", f"{bert}=two", "track:4=three"]
    assert casting(words, tracks) == {0: {1}, 1: {0}, 2: {0}, 4: {2}}
    assert any("track 1, 2 is the person of the reference anna.png" in line for line in said)
    assert any("track 0 is the person of the reference bert.png" in line for line in said)
    assert casting([f"{anna}=one", "track:1=one", "track:4=three"], tracks) == {1: {0}, 2: {0}, 4: {1}}
    with pytest.raises(
        UsageError, match=r"nobody looks like the reference bert.png: .* track 2 at 0\.32, nearer to an"
    ):
        casting(words, tracks[1:3])
    with pytest.raises(UsageError, match=r"no track 4; expected one of"):
        casting(words, tracks[:3])
    assert casting(words, []) == {}


def test_two_pictures_of_one_person_are_one_person(embedder: None, said: list[str], tmp_path: Path) -> None:
    front, side = picture(tmp_path / "front.png", 100), picture(tmp_path / "side.png", 120)
    tracks = [track(0, range(50), level=102), track(1, range(50), level=122)]
    assert casting([f"{front}=one", f"{side}=one"], tracks) == {0: {0}}, "and in one place"


def test_without_an_embedder_people_are_told_by_position(nobody_knows: None, said: list[str], tmp_path: Path) -> None:
    anna = picture(tmp_path / "anna.png", 100)  # taken where track 1 is
    tracks = [track(0, range(50), x=300), track(1, range(30, 60))]
    assert casting([f"{anna}=one", "track:0=two"], tracks) == {0: {1}, 1: {0}}
    other = picture(tmp_path / "other.png", 100)
    with pytest.raises(UsageError, match=r"track 1 is two of the people; give track:1=RUN for it"):
        casting([f"{anna}=one", f"{other}=two"], tracks)


def test_a_cast_by_number_of_what_was_found_before() -> None:
    found = {index: [track(n, range(9)).faces[index] for n in (0, 1, 2)] for index in range(3)}
    found[3] = [track(0, range(9)).faces[3]]
    cast, _ = cast_of(["track:2=a", "track:1=b"])
    chosen = cast_by_number(found, cast)
    assert {index: [(face.track, face.model) for face in faces] for index, faces in chosen.items()} == {
        index: [(1, 1), (2, 0)] for index in range(3)
    }
    with pytest.raises(UsageError, match=r"no track 7 among the faces; expected some of 0, 1, 2"):
        cast_by_number(found, cast_of(["track:7=a"])[0])
    with pytest.raises(UsageError, match=r"--faces says where faces are and not who they are"):
        cast_by_number(found, cast_of(["a.jpg=a"])[0])
