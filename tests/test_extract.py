"""Tests of faceswap.extract: drawn footage in, a faceset out, or nothing."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import footage
import numpy as np
import pytest

from faceswap import align, extract, faceset
from faceswap.config import ExtractRecipe
from faceswap.errors import FacesetError, MediaError, OutputExistsError, UsageError
from faceswap.faceset import Faceset
from faceswap.who import Who

SMALL = ExtractRecipe(size=64, min_size=40)
EMPTY = np.full((160, 160, 3), footage.BACKGROUND, np.uint8)


def photo(path: Path, image: np.ndarray[Any, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def single(tmp_path: Path) -> Path:
    return photo(tmp_path / "in" / "me.png", footage.draw_face())


def test_a_clip_gives_a_face_per_frame_that_shows_one(clips: dict[str, Path], facesets: dict[str, Path]) -> None:
    found = Faceset.open(facesets["target"])
    assert names(facesets["target"]) == [f"target_{i:06d}_0.png" for i in range(16) if i not in (5, 6)]
    meta = found.entries[-1].meta
    assert (meta.source, meta.frame, meta.time, meta.face) == ("target.mp4", 15, 0.6, 0)
    assert (meta.size, meta.detector, meta.version) == (64, "mtcnn", 2) and 0.9 <= meta.probability <= 1


def test_the_matrix_brings_the_points_to_the_template(facesets: dict[str, Path]) -> None:
    for entry in Faceset.open(facesets["source"]).entries:
        off = np.linalg.norm(entry.meta.crop_points(64) - align.TEMPLATE * 64, axis=1)
        assert off.max() < 64 * 0.08
        image = faceset.read_image(entry.path)
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8


def test_the_points_lie_where_the_face_was_drawn(clips: dict[str, Path], facesets: dict[str, Path]) -> None:
    for entry in Faceset.open(facesets["target"]).entries:
        phase = 2 * np.pi * entry.meta.frame / 12
        turn = 3 * np.sin(phase / 2)
        truth = footage.UNIT_POINTS + np.array([80 + 4 * np.sin(phase) + turn, 78 + 3 * np.cos(phase)])
        assert np.linalg.norm(np.array(entry.meta.points) - truth, axis=1).max() < 4.5


def test_every_other_frame_keeps_the_frames_numbers(clips: dict[str, Path], tmp_path: Path) -> None:
    recipe = SMALL.model_copy(update={"every": 5, "format": "jpg", "size": 32, "batch": 3})
    report = extract.extract([clips["target"]], tmp_path / "out", recipe)
    assert (report.faceset, report.frames, report.faces, report.frames_without_face) == (tmp_path / "out", 4, 3, 1)
    assert report.seconds > 0
    assert names(tmp_path / "out") == [f"target_{i:06d}_0.jpg" for i in (0, 10, 15)]
    assert faceset.read_image(tmp_path / "out" / "target_000010_0.jpg").shape == (32, 32, 3)


@pytest.mark.parametrize(("most", "count"), [(0, 2), (1, 1), (5, 2)])
def test_max_faces_keeps_the_largest(tmp_path: Path, most: int, count: int) -> None:
    both = np.hstack([footage.draw_face(scale=0.85), footage.draw_face(look="source", scale=1.3)])
    recipe = SMALL.model_copy(update={"max_faces": most})
    extract.extract([photo(tmp_path / "two.png", both)], tmp_path / "out", recipe)
    metas = [entry.meta for entry in Faceset.open(tmp_path / "out").entries]
    assert [meta.face for meta in metas] == list(range(count))
    assert metas[0].points[2][0] > 160


def test_a_folder_of_images_is_read_in_natural_order(tmp_path: Path) -> None:
    for i in (2, 10, 1):
        photo(tmp_path / "shots" / f"s{i}.png", EMPTY if i == 2 else footage.draw_face())
    report = extract.extract([tmp_path / "shots"], tmp_path / "out", SMALL)
    assert (report.frames, report.faces, report.frames_without_face) == (3, 2, 1)
    assert [(e.meta.source, e.meta.frame) for e in Faceset.open(tmp_path / "out").entries] == [
        ("s1.png", 0),
        ("s10.png", 2),
    ]


def test_16_bit_images_give_16_bit_faces(tmp_path: Path) -> None:
    deep = footage.draw_face().astype(np.uint16) * 257
    extract.extract([photo(tmp_path / "deep.png", deep)], tmp_path / "out", SMALL)
    assert faceset.read_image(tmp_path / "out" / "deep_000000_0.png").dtype == np.uint16


def test_inputs_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    inputs = [photo(tmp_path / place / "me.png", footage.draw_face()) for place in ("a", "b", "c")]
    assert extract.extract(inputs, tmp_path / "out", SMALL).faces == 3
    assert names(tmp_path / "out") == ["me-2_000000_0.png", "me-3_000000_0.png", "me_000000_0.png"]


def test_footage_without_a_face_is_refused_with_the_remedy(tmp_path: Path) -> None:
    shot = photo(tmp_path / "in" / "wall.png", EMPTY)
    with pytest.raises(
        FacesetError, match=r"wall\.png: no face of at least 40 px found in 1 frames; try --min-size 20"
    ):
        extract.extract([shot], tmp_path / "out", SMALL)
    assert names(tmp_path) == ["in"]


def test_one_input_without_a_face_is_no_failure(single: Path, tmp_path: Path) -> None:
    wall = photo(tmp_path / "in" / "wall.png", EMPTY)
    report = extract.extract([wall, single], tmp_path / "out", SMALL)
    assert (report.frames, report.faces, report.frames_without_face) == (2, 1, 1)


def test_an_input_without_the_person_asked_for_is_said_and_the_others_are_kept(
    single: Path, clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("faceswap.console.warn", said.append)
    monkeypatch.setattr("faceswap.embedding.find_embedder", lambda: None)
    extract.extract([clips["source"]], tmp_path / "all", SMALL)
    who = Who(references=(min((tmp_path / "all").iterdir()),))
    report = extract.extract([single, clips["source"]], tmp_path / "out", SMALL, who=who)
    assert (report.faces, report.tracks, report.tracks_found) == (16, 1, 2)
    assert any("was taken from source.mp4, not from me.png" in line for line in said)
    with pytest.raises(UsageError, match=r"was taken from source.mp4"):
        extract.extract([single], tmp_path / "alone", SMALL, who=who)
    with pytest.raises(UsageError, match="--track names a track of one input"):
        extract.extract([single, clips["source"]], tmp_path / "two", SMALL, who=Who(tracks=(0,)))


def test_no_input_and_a_missing_input_are_refused(single: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one"):
        extract.extract([], tmp_path / "out", SMALL)
    with pytest.raises(MediaError, match=r"none\.mp4"):
        extract.extract([single, tmp_path / "none.mp4"], tmp_path / "out", SMALL)
    assert names(tmp_path) == ["in"]


def failing_write(after: int, error: BaseException) -> Callable[..., None]:
    written: list[Path] = []

    def write(path: Path, *rest: Any, **options: Any) -> None:
        if len(written) == after:
            raise error
        written.append(path)
        faceset.write_face(path, *rest, **options)

    return write


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()])
def test_what_stops_midway_leaves_nothing(
    clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr(extract, "write_face", failing_write(2, error))
    recipe = SMALL.model_copy(update={"every": 4})
    with pytest.raises(type(error)):
        extract.extract([clips["source"]], tmp_path / "out", recipe)
    assert names(tmp_path) == []


def test_what_stops_midway_leaves_the_old_faceset(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    extract.extract([single], out, SMALL)
    monkeypatch.setattr(extract, "write_face", failing_write(0, OSError(errno.ENOSPC, "disk full")))
    with pytest.raises(OSError, match="disk full"):
        extract.extract([single], out, SMALL, overwrite=True)
    assert names(tmp_path) == ["in", "out"] and len(Faceset.open(out)) == 1


def test_a_faceset_is_replaced_only_when_asked(single: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extract.extract([single], out, SMALL)
    with pytest.raises(OutputExistsError, match="--overwrite"):
        extract.extract([single], out, SMALL)
    extract.extract([single], out, SMALL.model_copy(update={"format": "jpg"}), overwrite=True)
    assert names(out) == ["me_000000_0.jpg"]


@pytest.mark.parametrize("foreign", ["thesis.docx", "holiday.png", "folder/", "folder.png/", ".hidden"])
def test_overwrite_never_destroys_what_is_no_face(single: Path, tmp_path: Path, foreign: str) -> None:
    out = tmp_path / "out"
    extract.extract([single], out, SMALL)
    if foreign.endswith("/"):
        (out / foreign).mkdir()
    elif foreign.endswith(".png"):
        photo(out / foreign, EMPTY)
    else:
        (out / foreign).write_text("years of work")
    before = names(out)
    with pytest.raises(OutputExistsError, match=f"{foreign.strip('/')} is no extracted face"):
        extract.extract([single], out, SMALL, overwrite=True)
    assert names(out) == before


def test_overwrite_never_destroys_a_file(single: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("years of work")
    with pytest.raises(OutputExistsError, match="facesets only"):
        extract.extract([single], tmp_path / "out", SMALL, overwrite=True)
    assert (tmp_path / "out").read_text() == "years of work"


def test_an_output_that_came_meanwhile_is_kept(single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"

    def write_beside(path: Path, *rest: Any) -> None:
        out.mkdir(exist_ok=True)
        faceset.write_face(path, *rest)

    monkeypatch.setattr(extract, "write_face", write_beside)
    with pytest.raises(OutputExistsError):
        extract.extract([single], out, SMALL)
    assert names(out) == [] and names(tmp_path) == ["in", "out"]


def test_a_numbered_name_may_be_an_inputs_own(tmp_path: Path) -> None:
    inputs = [photo(tmp_path / name, footage.draw_face()) for name in ("a.png", "a.bmp", "a-2.png")]
    report = extract.extract(inputs, tmp_path / "out", SMALL)
    assert len(Faceset.open(tmp_path / "out")) == report.faces == 3


def test_faces_of_two_files_of_one_name_have_two_keys(tmp_path: Path) -> None:
    inputs = [photo(tmp_path / place / "me.png", footage.draw_face()) for place in ("a", "b")]
    extract.extract(inputs, tmp_path / "out", SMALL)
    assert len({entry.key for entry in Faceset.open(tmp_path / "out").entries}) == 2


def test_an_input_with_a_hidden_name_gives_visible_faces(tmp_path: Path) -> None:
    extract.extract([photo(tmp_path / ".me.png", footage.draw_face())], tmp_path / "out", SMALL)
    assert len(Faceset.open(tmp_path / "out")) == 1


def test_overwrite_refuses_a_single_face_in_place_of_a_faceset(single: Path, tmp_path: Path) -> None:
    extract.extract([single], tmp_path / "out", SMALL)
    (face,) = (tmp_path / "out").iterdir()
    with pytest.raises(OutputExistsError):
        extract.extract([single], face, SMALL, overwrite=True)
    assert face.is_file()
