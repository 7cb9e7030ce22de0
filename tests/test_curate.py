"""Tests of faceswap.curate: orders, choices and copies that lose no face."""

import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crops import POINTS, damage, make, meta, picture
from numpy.typing import NDArray

from faceswap import curate, looks, sheet
from faceswap.curate import Limits
from faceswap.errors import FacesetError, FaceswapError, OutputExistsError, UsageError
from faceswap.faceset import LANDMARKS, Faceset, mask_path, own_mask, read_image, read_meta, write_face
from faceswap.looks import Faces, Looks


def contents(folder: Path) -> Counter[bytes]:
    """The bytes of all files in a folder and below, whatever they are called."""
    return Counter(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def frames(folder: Path) -> list[int]:
    """The faces' frames in the order in which a file browser shows them."""
    found = [read_meta(path) for path in sorted(folder.glob("*.png")) if ".mask" not in path.name]
    return [about.frame for about in found if about]


class FakeEmbedder:
    """Knows a person by how bright the picture is."""

    name, same, other = "fake", 0.1, 0.2

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        return np.array([[image.mean() / 255, 0] for image in images], np.float32).reshape(-1, 2)


@pytest.fixture
def embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "find_embedder", FakeEmbedder)


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "find_embedder", lambda: None)


# ---------------------------------------------------------------- sorting


def test_sorting_renames_in_order_and_time_gives_the_names_back(ten_faces: Path) -> None:
    before, files = names(ten_faces), contents(ten_faces)
    looks = Faces(Faceset.open(ten_faces)).looks
    for by, measure in {"blur": -looks.sharpness, "brightness": looks.brightness}.items():
        report = curate.sort_faces(ten_faces, by)
        assert frames(ten_faces) == np.argsort(measure).tolist() and contents(ten_faces) == files
        assert report.faces == 10 and names(ten_faces)[0].startswith("00000--clip_")
    faces = Faces(Faceset.open(ten_faces))
    assert [entry.meta.frame for entry in faces.entries] == list(range(10)), "metadata keeps the order of footage"
    curate.sort_faces(ten_faces, "time")
    assert names(ten_faces) == before and contents(ten_faces) == files


def test_a_mask_follows_its_face(ten_faces: Path) -> None:
    mask = (ten_faces / "clip_000002_0.mask.png").read_bytes()
    curate.sort_faces(ten_faces, "blur")
    face = next(path for path in ten_faces.glob("*clip_000002_0.png"))
    assert mask_path(face).read_bytes() == mask
    curate.filter_faces(ten_faces, Limits(tracks=(1,)))
    moved = next((ten_faces / "removed" / "track").glob("*clip_000002_0.png"))
    assert mask_path(moved).read_bytes() == mask and len(names(ten_faces)) == 5


def test_faces_sort_by_size_and_pose(tmp_path: Path) -> None:
    turned = POINTS.copy()
    made = []
    for i in range(5):
        turned = POINTS + np.array([[0, 0], [0, 0], [(2 - i) * 4, (i - 2) * 3], [0, 0], [0, 0]])
        made.append((picture(i), meta(i, points=turned.tolist(), box=[0.0, 0.0, 10.0 + i, 10.0 + i])))
    folder = make(tmp_path / "set", made)
    for by in ("size", "yaw"):
        curate.sort_faces(folder, by)
        assert frames(folder) == [4, 3, 2, 1, 0]
    curate.sort_faces(folder, "pitch")
    assert frames(folder) == [4, 3, 2, 1, 0], "a nose further down looks down"


def test_damaged_images_come_last_and_are_counted(ten_faces: Path) -> None:
    damage(ten_faces, 0)
    for by in ("blur", "brightness", "similarity"):
        assert curate.sort_faces(ten_faces, by).damaged == 1
        assert frames(ten_faces)[-1] == 0


def test_similarity_puts_the_like_together_and_says_by_what(ten_faces: Path, nobody: None, capsys: Any) -> None:
    for number in range(10, 20):
        image = np.roll(picture(number - 10), 1, axis=1)
        write_face(ten_faces / f"clip_{number:06d}_0.png", image, meta(number))
    report = curate.sort_faces(ten_faces, "similarity")
    assert "no embedder" in report.means
    places = {frame: place for place, frame in enumerate(frames(ten_faces))}
    assert sum(abs(places[i] - places[i + 10]) == 1 for i in range(6)) >= 5


def test_similarity_takes_the_embedder(ten_faces: Path, embedder: None) -> None:
    assert "fake" in curate.sort_faces(ten_faces, "similarity").means
    light = [float(read_image(path).mean()) for path in sorted(ten_faces.glob("0*0.png"))]
    assert light in (sorted(light), sorted(light, reverse=True))


@pytest.mark.parametrize("size", [0, 1, 2, 50, 333])
def test_a_chain_is_a_permutation_that_walks_a_curve(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curate, "CHAIN", 64)
    rng = np.random.default_rng(size)
    along = np.sort(rng.uniform(0, 3, size))
    points = np.stack([np.cos(along), np.sin(along)], 1).astype(np.float32)
    mixed = rng.permutation(size)
    found = curate.chained(points[mixed])
    assert sorted(found) == list(range(size))
    if size:
        steps = np.abs(np.diff(along[mixed][found]))
        assert steps.sum() < 2.5 * np.ptp(along) + 1e-6


def test_names_that_collide_lose_nothing(ten_faces: Path) -> None:
    for clash in ("00000--clip_000009_0.png", "00003--clip_000001_0.png", "00000--clip_000000_0.jpg"):
        shutil.copy(ten_faces / "clip_000004_0.png", ten_faces / clash)
    files = contents(ten_faces)
    for by in ("blur", "size", "brightness", "blur", "time"):
        curate.sort_faces(ten_faces, by)
        assert contents(ten_faces) == files
    assert curate.sort_faces(ten_faces, "time").renamed == 0


def test_names_go_round_in_a_circle(ten_faces: Path) -> None:
    a, b, c = (ten_faces / f"clip_{i:06d}_0.png" for i in (1, 2, 3))
    before = [path.read_bytes() for path in (a, b, c)]
    mask = mask_path(b).read_bytes()
    assert curate.rename([(a, b), (b, c), (c, a)]) == 3
    assert [path.read_bytes() for path in (b, c, a)] == before
    assert mask_path(c).read_bytes() == mask and not mask_path(b).exists()


def test_a_kill_at_any_step_loses_nothing(ten_faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, mask = contents(ten_faces), (ten_faces / "clip_000002_0.mask.png").read_bytes()
    for steps in range(14):
        left = iter(range(steps))

        def dying(real: Any, left: Any = left) -> Any:
            def step(*given: Any) -> Any:
                if next(left, None) is None:
                    raise KeyboardInterrupt
                return real(*given)

            return step

        monkeypatch.setattr(Path, "rename", dying(Path.rename))
        monkeypatch.setattr(Path, "unlink", dying(Path.unlink))
        monkeypatch.setattr(shutil, "copy2", dying(shutil.copy2))
        with suppress(KeyboardInterrupt):
            curate.sort_faces(ten_faces, "brightness" if steps % 2 else "blur")
        monkeypatch.undo()
        assert not files - contents(ten_faces) and set(contents(ten_faces)) == set(files)
        masked = [entry for entry in Faceset.open(ten_faces).entries if own_mask(entry.path)]
        assert [entry.meta.frame for entry in masked] == [2] and mask_path(masked[0].path).read_bytes() == mask


def test_every_key_sorts(ten_faces: Path, nobody: None) -> None:
    files = contents(ten_faces)
    for by in curate.SORTS:
        curate.sort_faces(ten_faces, by)
        assert contents(ten_faces) == files


# ---------------------------------------------------------------- filtering


def test_filters_move_by_reason_and_moving_back_brings_back(ten_faces: Path) -> None:
    files = contents(ten_faces)
    sharpness = Faces(Faceset.open(ten_faces)).looks.sharpness
    report = curate.filter_faces(ten_faces, Limits(blur=float(sharpness[6])))
    assert report.kept == 7 and report.removed["blurred"] == [f"clip_{i:06d}_0.png" for i in (7, 8, 9)]
    assert names(ten_faces / "removed" / "blurred") == report.removed["blurred"] and contents(ten_faces) == files
    assert len(Faceset.open(ten_faces)) == 7
    for path in (ten_faces / "removed" / "blurred").iterdir():
        path.rename(ten_faces / path.name)
    assert len(Faceset.open(ten_faces)) == 10


def test_a_dry_run_moves_nothing(ten_faces: Path) -> None:
    before = names(ten_faces)
    report = curate.filter_faces(ten_faces, Limits(tracks=(0,)), dry_run=True)
    assert len(report.removed["track"]) == 6 and report.kept == 4 and names(ten_faces) == before


def test_a_name_that_was_removed_before_is_kept_beside(ten_faces: Path) -> None:
    files = contents(ten_faces)
    curate.filter_faces(ten_faces, Limits(tracks=(1, 2)))
    again = picture(50)
    write_face(ten_faces / "clip_000002_0.png", again, meta(2, track=0))
    write_face(ten_faces / "clip_000003_0.png", picture(51), meta(3, track=1))
    curate.filter_faces(ten_faces, Limits(tracks=(1, 2)))
    assert "clip_000002_0-2.png" in names(ten_faces / "removed" / "track")
    assert sum((contents(ten_faces) - files).values()) == 2 and not files - contents(ten_faces)


def test_each_reason_finds_its_own(tmp_path: Path, nobody: None) -> None:
    marks = np.tile(POINTS[:1], (LANDMARKS, 1)).tolist()
    made = [(picture(i), meta(i, landmarks=marks, fit=0.9, track=0)) for i in range(8)]
    made[1] = (picture(1), replace(made[1][1], box=[0.0, 0.0, 12.0, 12.0]))
    made[2] = (picture(2), replace(made[2][1], fit=0.1))
    made[3] = (picture(3), replace(made[3][1], landmarks=None, fit=0.9))
    made[4] = (picture(4, blur=5), made[4][1])
    made[5] = (picture(5), replace(made[5][1], track=None))
    made[6] = (picture(7, blur=0.5), made[6][1])
    folder = make(tmp_path / "set", made)
    damage(folder, 0)
    report = curate.filter_faces(folder, Limits(blur=20, min_size=20, fit=0.5, duplicates=6, tracks=(0,)), dry_run=True)
    found = {reason: [int(name[5:11]) for name in names] for reason, names in report.removed.items()}
    assert found == {"damaged": [0], "track": [5], "small": [1], "fit": [2, 3], "blurred": [4], "duplicate": [6]}


def test_of_duplicates_the_sharpest_stays_and_slow_footage_is_thinned(tmp_path: Path) -> None:
    base = picture(3).astype(np.float32)
    other = picture(4).astype(np.float32)
    made = [(np.asarray(base * (1 - i / 40) + other * (i / 40), np.uint8), meta(i)) for i in range(40)]
    folder = make(tmp_path / "set", made)
    faces = Faces(Faceset.open(folder))
    goes = curate.REASONS["duplicate"](faces, Limits(duplicates=4), np.ones(40, bool), [])
    assert goes is not None and 2 <= (~goes).sum() < 20
    looks, kept = faces.looks, np.flatnonzero(~goes)
    for row in np.flatnonzero(goes):
        alike = curate._alike(looks, np.array([row]), kept, 4)
        assert alike[0], "one like it stays"
    for row in kept:
        assert not curate._alike(looks, np.array([row]), kept[kept != row], 4)[0], "none that stays is like another"


@pytest.mark.parametrize("bits", [0, 3, 8])
def test_repeats_are_those_of_a_plain_search(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curate, "BLOCK", 16)
    rng = np.random.default_rng(bits)
    hashes = rng.integers(0, 2**63, 30, np.uint64)[rng.integers(0, 30, 200)]
    for _ in range(4):
        hashes ^= np.uint64(1) << rng.integers(0, 63, 200).astype(np.uint64)
    thumbs = rng.normal(size=(3, 256)).astype(np.float32)[rng.integers(0, 3, 200)]
    thumbs /= np.linalg.norm(thumbs, axis=1, keepdims=True)
    looks = Looks(np.zeros(200), rng.choice([0.2, 0.23, 0.5], 200), hashes, thumbs)
    rows, kept, expected = rng.permutation(200), list[int](), list[int]()
    for row in rows.tolist():
        alike = any(
            int(hashes[row] ^ hashes[k]).bit_count() <= bits
            and float(thumbs[row] @ thumbs[k]) >= curate.ALIKE
            and abs(looks.brightness[row] - looks.brightness[k]) <= curate.AS_BRIGHT
            for k in kept
        )
        (expected if alike else kept).append(row)
    assert sorted(curate.repeats(looks, rows, bits)) == sorted(expected)


def test_the_largest_group_stays(tmp_path: Path, embedder: None) -> None:
    light = [1.0, 0.97, 0.94, 0.91, 0.3, 0.33, 0.9]
    folder = make(tmp_path / "set", [(picture(1, 2, value), meta(i)) for i, value in enumerate(light)])
    report = curate.filter_faces(folder, Limits(person=True), dry_run=True)
    assert report.removed["person"] == ["clip_000004_0.png", "clip_000005_0.png"]
    assert "fake" in report.notes[0] and "largest group" in report.notes[0]


def test_a_group_is_led_through_in_steps() -> None:
    line = np.stack([np.arange(20) * 0.09, np.zeros(20)], 1)
    crowd = np.stack([np.full(15, 5.0), np.arange(15) * 0.001], 1)
    points = np.concatenate([crowd, line, [[np.nan, np.nan]]]).astype(np.float32)
    assert len(curate._largest_group(points, 0.1)) == 20


def test_references_choose_the_person(tmp_path: Path, embedder: None) -> None:
    light = [1.0, 0.97, 0.94, 0.3, 0.33]
    folder = make(tmp_path / "set", [(picture(1, 2, value), meta(i)) for i, value in enumerate(light)])
    known = make(tmp_path / "known", [(picture(1, 2, 0.31), meta(0))])
    for reference in (known, known / "clip_000000_0.png"):
        report = curate.filter_faces(folder, Limits(person=True, references=(reference,)), dry_run=True)
        assert report.kept == 2 and "references" in report.notes[0]
    (tmp_path / "photo.png").write_bytes(b"no face")
    for wrong in ("photo.png", "missing.png"):
        with pytest.raises(FacesetError, match="expected an extracted face"):
            curate.filter_faces(folder, Limits(person=True, references=(tmp_path / wrong,)))
    damage(known, 0)
    with pytest.raises(FacesetError, match="reference does not decode"):
        curate.filter_faces(folder, Limits(person=True, references=(known,)))


def test_without_an_embedder_a_person_is_never_guessed(ten_faces: Path, nobody: None) -> None:
    with pytest.raises(FaceswapError, match=r"no face embedder.*--track N"):
        curate.filter_faces(ten_faces, Limits(person=True))
    assert len(Faceset.open(ten_faces)) == 10


@pytest.mark.parametrize(
    ("limits", "kind", "said"),
    [
        (Limits(), UsageError, "expected something to filter by"),
        (Limits(tracks=(7,)), UsageError, "has no track 7, but 0, 1, 2"),
        (Limits(fit=0.5), FacesetError, "no face has any"),
        (Limits(blur=1e9), FacesetError, "none of 10 faces would be left"),
        (Limits(min_size=1e9, duplicates=3), FacesetError, "none of 10 faces would be left"),
        (Limits(references=(Path("x"),)), UsageError, "belongs to --person"),
    ],
)
def test_wrong_limits_move_nothing(ten_faces: Path, limits: Limits, kind: type[Exception], said: str) -> None:
    before = names(ten_faces)
    with pytest.raises(kind, match=said):
        curate.filter_faces(ten_faces, limits)
    assert names(ten_faces) == before


# ---------------------------------------------------------------- copies and packs


def test_a_copy_holds_what_was_chosen(ten_faces: Path, tmp_path: Path) -> None:
    report = curate.copy(ten_faces, tmp_path / "some", Limits(tracks=(0, 1)), every=2)
    assert frames(tmp_path / "some") == [0, 2, 4, 6] and (report.faces, report.masks) == (4, 1)
    curate.copy(ten_faces, tmp_path / "few", Limits(), most=3)
    assert frames(tmp_path / "few") == [0, 4, 9]
    assert not contents(tmp_path / "some") - contents(ten_faces)
    with pytest.raises(OutputExistsError):
        curate.copy(ten_faces, tmp_path / "few", Limits())
    curate.copy(ten_faces, tmp_path / "few", Limits(), overwrite=True)
    assert names(tmp_path / "few") == names(ten_faces)
    with pytest.raises(OutputExistsError, match="mask"):  # somebody's work is not replaced
        curate.copy(ten_faces, tmp_path / "few", Limits(), overwrite=True)
    with pytest.raises(UsageError):
        curate.copy(ten_faces, ten_faces, Limits(), overwrite=True)
    with pytest.raises(FacesetError, match="would be left"):
        curate.copy(ten_faces, tmp_path / "none", Limits(blur=1e9))
    assert not (tmp_path / "none").exists()


def test_packing_and_unpacking_gives_the_same_bytes_and_names(ten_faces: Path, tmp_path: Path) -> None:
    curate.sort_faces(ten_faces, "brightness")
    packed, back = tmp_path / "set.faces", tmp_path / "back"
    assert curate.pack_faces(ten_faces, packed).masks == 1
    assert curate.unpack_faces(packed, back).faces == 10
    assert {p.name: p.read_bytes() for p in back.iterdir()} == {p.name: p.read_bytes() for p in ten_faces.iterdir()}
    curate.pack_faces(back, tmp_path / "again.faces")
    assert (tmp_path / "again.faces").read_bytes() == packed.read_bytes()
    curate.pack_faces(packed, tmp_path / "third.faces")
    assert (tmp_path / "third.faces").read_bytes() == packed.read_bytes()


def test_a_pack_is_looked_at_and_copied_from_but_not_changed(ten_faces: Path, tmp_path: Path) -> None:
    packed = tmp_path / "set.faces"
    curate.pack_faces(ten_faces, packed)
    ours, theirs = looks.info(packed), looks.info(ten_faces)
    assert replace(ours, faceset=ten_faces, bytes=theirs.bytes) == theirs and ours.bytes == packed.stat().st_size
    sheet.sheet(packed, tmp_path / "a.png")
    sheet.sheet(ten_faces, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert curate.copy(packed, tmp_path / "one", Limits(tracks=(0,))).masks == 1
    for change in (lambda: curate.sort_faces(packed, "blur"), lambda: curate.filter_faces(packed, Limits(blur=1))):
        with pytest.raises(UsageError, match="unpack it first"):
            change()
    with pytest.raises(UsageError, match="expected a pack"):
        curate.unpack_faces(ten_faces, tmp_path / "x")
    with pytest.raises(OutputExistsError):
        curate.unpack_faces(packed, ten_faces)
    with pytest.raises(OutputExistsError, match="mask"):
        curate.unpack_faces(packed, ten_faces, overwrite=True)
    with pytest.raises(UsageError, match=r"expected the name of a pack"):
        curate.pack_faces(ten_faces, tmp_path / "set.zip")
