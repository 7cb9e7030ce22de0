"""Tests of faceswap.curate: order, choice, sheets and copies that lose no face."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from faceswap import actors, align, console, curate, heads, pack
from faceswap.cli import main
from faceswap.curate import Faces, Limits
from faceswap.errors import FacesetError, FaceswapError, OutputExistsError, UsageError
from faceswap.faceset import LANDMARKS, FaceMeta, Faceset, mask_path, read_image, read_meta, write_face

COMMANDS = ("info", "sort", "filter", "sheet", "copy", "pack", "unpack")
SIDE = 96
POINTS = align.TEMPLATE * SIDE


def meta(number: int, **given: Any) -> FaceMeta:
    """A face whose crop lies in its frame as it is."""
    known: dict[str, Any] = {
        **{"source": "clip.mp4", "frame": number, "time": number / 25, "face": 0, "box": [20.0, 20.0, 70.0, 80.0]},
        **{"points": POINTS.tolist(), "matrix": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], "size": SIDE},
        **{"detector": "mtcnn", "probability": 0.99},
    }
    return FaceMeta(**known | given)


def picture(seed: int, blur: float = 0.0, light: float = 1.0) -> NDArray[np.uint8]:
    """Blobs of its own: not a face, but a picture unlike all others."""
    noise = np.random.default_rng(seed).uniform(0, 255, (12, 12, 3)).astype(np.float32)
    image = cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) * light
    image += np.random.default_rng(seed + 999).normal(0, 8, image.shape)
    soft = cv2.GaussianBlur(image, (0, 0), blur) if blur else image
    return np.asarray(soft.clip(0, 255), np.uint8)


def seen(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """At the size at which faces are looked at."""
    return np.asarray(cv2.resize(image, (curate.SIZE, curate.SIZE)), np.uint8)


def make(folder: Path, faces: Sequence[tuple[NDArray[np.uint8], FaceMeta]]) -> Path:
    folder.mkdir()
    for image, about in faces:
        write_face(folder / f"clip_{about.frame:06d}_{about.face}.png", image, about)
    return folder


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Ten pictures; the third has a mask."""
    folder = make(tmp_path / "set", [(picture(i, i * 0.3, 1 - i / 20), meta(i, track=i // 4)) for i in range(10)])
    cv2.imwrite(str(folder / "clip_000002_0.mask.png"), np.full((SIDE, SIDE), 200, np.uint8))
    return folder


def contents(folder: Path) -> Counter[bytes]:
    """The bytes of all files in a folder and below, whatever they are called."""
    return Counter(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def frames(folder: Path) -> list[int]:
    """The faces' frames in the order in which a file browser shows them."""
    found = [read_meta(path) for path in sorted(folder.glob("*.png")) if ".mask" not in path.name]
    return [about.frame for about in found if about]


def damage(folder: Path, frame: int) -> None:
    path = folder / f"clip_{frame:06d}_0.png"
    path.write_bytes(path.read_bytes()[:-3000])  # the metadata stands before the pixels
    assert read_meta(path) is not None


class FakeEmbedder:
    """Knows a person by how bright the picture is."""

    name, same, other = "fake", 0.1, 0.2

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        return np.array([[image.mean() / 255, 0] for image in images], np.float32).reshape(-1, 2)


@pytest.fixture
def embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curate, "find_embedder", FakeEmbedder)


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curate, "find_embedder", lambda: None)


# ---------------------------------------------------------------- measuring


def test_pose_is_that_of_rendered_heads(tmp_path: Path) -> None:
    actors.write_faces(tmp_path / "many", 60, size=96, seed=4, overwrite=False)
    metas = [entry.meta for entry in Faceset.open(tmp_path / "many").entries]
    truth = np.array([(about.truth["pose"]["yaw"], about.truth["pose"]["pitch"]) for about in metas if about.truth])
    five = np.array([curate.head_pose(about) for about in metas])
    assert (np.abs(five - truth).mean(0) < [7, 9]).all()
    dense = np.zeros((len(metas), LANDMARKS, 2))
    for row, about in enumerate(metas):
        assert about.truth
        dense[row, :68] = about.truth["landmarks"]
    marked = [replace(about, landmarks=points.tolist()) for about, points in zip(metas, dense, strict=True)]
    found = np.array([curate.head_pose(about) for about in marked])
    assert (np.abs(found - truth).mean(0) < [4, 4]).all()
    assert (np.corrcoef(found.T, truth.T)[[0, 1], [2, 3]] > 0.97).all()


@pytest.mark.parametrize("yaw", [-40, 0, 25])
@pytest.mark.parametrize("roll", [-20, 0, 30])
def test_pose_has_the_signs_of_heads_and_no_roll(yaw: int, roll: int) -> None:
    head = curate._average_head()
    turn = heads.Pose(yaw, 10, roll).matrix() * np.outer([1, -1, -1], [1, -1, -1])
    seen = head @ turn.T + [0, 0, 4000]
    points = seen[:, :2] / seen[:, 2:] * 8 * SIDE + SIDE / 2
    dense = np.zeros((LANDMARKS, 2))
    dense[:68] = points
    found = curate.head_pose(meta(0, landmarks=dense.tolist()))
    assert found == pytest.approx((yaw, 10), abs=6)


def test_a_face_that_no_head_fits_has_no_pose() -> None:
    about = meta(0, points=[[50.0, 50.0]] * 5)
    assert np.isnan(curate.head_pose(about)).all()


def test_sharpness_falls_with_blur_and_brightness_with_light() -> None:
    sharp = [curate.look(seen(picture(1, blur)))[0] for blur in (0, 0.7, 1.5, 4)]
    assert sharp == sorted(sharp, reverse=True) and sharp[0] > 10 * sharp[-1]
    light = [curate.look(seen(picture(1, 0, light)))[1] for light in (0.2, 0.5, 0.9)]
    assert light == sorted(light) and 0 < light[0] < light[-1] < 1


def test_hashes_hold_what_is_alike_and_part_what_is_not() -> None:
    base = seen(picture(1))
    noisy = np.asarray((base + np.random.default_rng(0).normal(0, 3, base.shape)).clip(0, 255), np.uint8)
    first, again, other = (curate.look(image) for image in (base, noisy, seen(picture(2))))
    assert (first[2] ^ again[2]).bit_count() <= 4 < 15 < (first[2] ^ other[2]).bit_count()
    assert float(first[3] @ again[3]) > 0.97 > 0.5 > float(first[3] @ other[3])


def test_info_counts_what_is_there(plain: Path) -> None:
    damage(plain, 5)
    cv2.imwrite(str(plain / "holiday.png"), picture(77))
    found = curate.info(plain)
    assert (found.faces, found.skipped, found.damaged, found.masks) == (10, 1, 1, 1)
    assert found.sources == {"clip.mp4": 10} and found.side == [SIDE] and found.landmarks == 0 and found.fit is None
    assert [(track.track, track.faces) for track in found.tracks] == [(0, 4), (1, 4), (2, 2)]
    assert found.size == pytest.approx([3000**0.5] * 3, abs=1e-3)
    assert sum(found.yaw) == sum(found.pitch) == 10 and len(found.yaw) == len(found.bins) - 1
    assert found.sharpness and found.sharpness[0] < found.sharpness[1] < found.sharpness[2]
    text = curate.info_text(found)
    assert "10 faces" in text and "█" in text and "track" in text


@pytest.mark.parametrize("eighths", range(25))
def test_bars_are_exact_to_an_eighth(eighths: int) -> None:
    bar = curate._bar(eighths / 8)
    last = " ▏▎▍▌▋▊▉".find(bar[-1]) if bar else 0
    assert bar.count("█") * 8 + max(last, 0) == eighths


# ---------------------------------------------------------------- sorting


def test_sorting_renames_in_order_and_time_gives_the_names_back(plain: Path) -> None:
    before, files = names(plain), contents(plain)
    looks = Faces(Faceset.open(plain)).looks
    for by, measure in {"blur": -looks.sharpness, "brightness": looks.brightness}.items():
        report = curate.sort_faces(plain, by)
        assert frames(plain) == np.argsort(measure).tolist() and contents(plain) == files
        assert report.faces == 10 and names(plain)[0].startswith("00000--clip_")
    faces = Faces(Faceset.open(plain))
    assert [entry.meta.frame for entry in faces.entries] == list(range(10)), "metadata keeps the order of footage"
    curate.sort_faces(plain, "time")
    assert names(plain) == before and contents(plain) == files


def test_a_mask_follows_its_face(plain: Path) -> None:
    mask = (plain / "clip_000002_0.mask.png").read_bytes()
    curate.sort_faces(plain, "blur")
    face = next(path for path in plain.glob("*clip_000002_0.png"))
    assert mask_path(face).read_bytes() == mask
    curate.filter_faces(plain, Limits(tracks=(1,)))
    moved = next((plain / "removed" / "track").glob("*clip_000002_0.png"))
    assert mask_path(moved).read_bytes() == mask and len(names(plain)) == 5


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


def test_damaged_images_come_last_and_are_counted(plain: Path) -> None:
    damage(plain, 0)
    for by in ("blur", "brightness", "similarity"):
        assert curate.sort_faces(plain, by).damaged == 1
        assert frames(plain)[-1] == 0


def test_similarity_puts_the_like_together_and_says_by_what(plain: Path, nobody: None, capsys: Any) -> None:
    for number in range(10, 20):
        image = np.roll(picture(number - 10), 1, axis=1)
        write_face(plain / f"clip_{number:06d}_0.png", image, meta(number))
    report = curate.sort_faces(plain, "similarity")
    assert "no embedder" in report.means
    places = {frame: place for place, frame in enumerate(frames(plain))}
    assert sum(abs(places[i] - places[i + 10]) == 1 for i in range(6)) >= 5


def test_similarity_takes_the_embedder(plain: Path, embedder: None) -> None:
    assert "fake" in curate.sort_faces(plain, "similarity").means
    light = [float(read_image(path).mean()) for path in sorted(plain.glob("0*0.png"))]
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


def test_names_that_collide_lose_nothing(plain: Path) -> None:
    for clash in ("00000--clip_000009_0.png", "00003--clip_000001_0.png", "00000--clip_000000_0.jpg"):
        shutil.copy(plain / "clip_000004_0.png", plain / clash)
    files = contents(plain)
    for by in ("blur", "size", "brightness", "blur", "time"):
        curate.sort_faces(plain, by)
        assert contents(plain) == files
    assert curate.sort_faces(plain, "time").renamed == 0


def test_names_go_round_in_a_circle(plain: Path) -> None:
    a, b, c = (plain / f"clip_{i:06d}_0.png" for i in (1, 2, 3))
    before = [path.read_bytes() for path in (a, b, c)]
    mask = mask_path(b).read_bytes()
    assert curate.rename([(a, b), (b, c), (c, a)]) == 3
    assert [path.read_bytes() for path in (b, c, a)] == before
    assert mask_path(c).read_bytes() == mask and not mask_path(b).exists()


def test_a_kill_at_any_step_loses_nothing(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, mask = contents(plain), (plain / "clip_000002_0.mask.png").read_bytes()
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
            curate.sort_faces(plain, "brightness" if steps % 2 else "blur")
        monkeypatch.undo()
        assert not files - contents(plain) and set(contents(plain)) == set(files)
        masked = [entry for entry in Faceset.open(plain).entries if curate.own_mask(entry.path)]
        assert [entry.meta.frame for entry in masked] == [2] and mask_path(masked[0].path).read_bytes() == mask


def test_every_key_sorts(plain: Path, nobody: None) -> None:
    files = contents(plain)
    for by in curate.SORTS:
        curate.sort_faces(plain, by)
        assert contents(plain) == files


# ---------------------------------------------------------------- filtering


def test_filters_move_by_reason_and_moving_back_brings_back(plain: Path) -> None:
    files = contents(plain)
    sharpness = Faces(Faceset.open(plain)).looks.sharpness
    report = curate.filter_faces(plain, Limits(blur=float(sharpness[6])))
    assert report.kept == 7 and report.removed["blurred"] == [f"clip_{i:06d}_0.png" for i in (7, 8, 9)]
    assert names(plain / "removed" / "blurred") == report.removed["blurred"] and contents(plain) == files
    assert len(Faceset.open(plain)) == 7
    for path in (plain / "removed" / "blurred").iterdir():
        path.rename(plain / path.name)
    assert len(Faceset.open(plain)) == 10


def test_a_dry_run_moves_nothing(plain: Path) -> None:
    before = names(plain)
    report = curate.filter_faces(plain, Limits(tracks=(0,)), dry_run=True)
    assert len(report.removed["track"]) == 6 and report.kept == 4 and names(plain) == before


def test_a_name_that_was_removed_before_is_kept_beside(plain: Path) -> None:
    files = contents(plain)
    curate.filter_faces(plain, Limits(tracks=(1, 2)))
    again = picture(50)
    write_face(plain / "clip_000002_0.png", again, meta(2, track=0))
    write_face(plain / "clip_000003_0.png", picture(51), meta(3, track=1))
    curate.filter_faces(plain, Limits(tracks=(1, 2)))
    assert "clip_000002_0-2.png" in names(plain / "removed" / "track")
    assert sum((contents(plain) - files).values()) == 2 and not files - contents(plain)


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
    looks = curate.Looks(np.zeros(200), rng.choice([0.2, 0.23, 0.5], 200), hashes, thumbs)
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


def test_without_an_embedder_a_person_is_never_guessed(plain: Path, nobody: None) -> None:
    with pytest.raises(FaceswapError, match=r"no face embedder.*--track N"):
        curate.filter_faces(plain, Limits(person=True))
    assert len(Faceset.open(plain)) == 10


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
def test_wrong_limits_move_nothing(plain: Path, limits: Limits, kind: type[Exception], said: str) -> None:
    before = names(plain)
    with pytest.raises(kind, match=said):
        curate.filter_faces(plain, limits)
    assert names(plain) == before


# ---------------------------------------------------------------- sheets


def test_a_sheet_shows_each_track_with_its_faces(plain: Path, tmp_path: Path) -> None:
    report = curate.sheet(plain, tmp_path / "sheet.png", shown=3)
    assert [(group.track, group.faces) for group in report.groups] == [(0, 4), (1, 4), (2, 2)]
    drawn = cv2.cvtColor(np.asarray(cv2.imread(str(tmp_path / "sheet.png"))), cv2.COLOR_BGR2RGB)
    strip = curate.LABEL + curate.CELL
    assert drawn.shape == (3 * strip, curate.NARROWEST * curate.CELL, 3)
    for group, column, frame in [(0, 0, 0), (0, 2, 3), (1, 0, 4), (2, 1, 9)]:
        y, x = group * strip + curate.LABEL, column * curate.CELL
        cell = drawn[y : y + curate.CELL, x : x + curate.CELL]
        np.testing.assert_array_equal(cell, read_image(plain / f"clip_{frame:06d}_0.png", curate.CELL))
    for group in range(3):
        assert (drawn[group * strip : group * strip + curate.LABEL] > 200).any(), "a label"


def test_sheets_go_on_on_further_pages(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curate, "ROWS", 2)
    damage(plain, 5)
    out = tmp_path / "sheet.png"
    report = curate.sheet(plain, out)
    assert [page.name for page in report.pages] == ["sheet.png", "sheet-2.png"]
    assert all(cv2.imread(str(page)) is not None for page in report.pages)
    (tmp_path / "sheet.png").unlink()
    with pytest.raises(OutputExistsError, match=r"sheet-2\.png"):
        curate.sheet(plain, out)
    assert not out.exists()
    assert len(curate.sheet(plain, out, overwrite=True).pages) == 2
    for by in ("source", "all"):
        assert len(curate.sheet(plain, tmp_path / f"{by}.png", by=by, shown=30).groups) == 1
    with pytest.raises(UsageError, match=r"expected NAME\.png"):
        curate.sheet(plain, tmp_path / "sheet.jpg")


@pytest.mark.parametrize(("many", "most"), [(0, 3), (3, 3), (10, 3), (10, 1), (1000, 7)])
def test_a_spread_is_even_and_starts_at_the_first(many: int, most: int) -> None:
    found = curate.spread(range(many), most)
    assert len(found) == min(many, most) and found == sorted(set(found))
    assert not found or found[0] == 0
    assert most == 1 or not found or found[-1] == many - 1


# ---------------------------------------------------------------- copies and packs


def test_a_copy_holds_what_was_chosen(plain: Path, tmp_path: Path) -> None:
    report = curate.copy(plain, tmp_path / "some", Limits(tracks=(0, 1)), every=2)
    assert frames(tmp_path / "some") == [0, 2, 4, 6] and (report.faces, report.masks) == (4, 1)
    curate.copy(plain, tmp_path / "few", Limits(), most=3)
    assert frames(tmp_path / "few") == [0, 4, 9]
    assert not contents(tmp_path / "some") - contents(plain)
    with pytest.raises(OutputExistsError):
        curate.copy(plain, tmp_path / "few", Limits())
    curate.copy(plain, tmp_path / "few", Limits(), overwrite=True)
    assert names(tmp_path / "few") == names(plain)
    with pytest.raises(OutputExistsError, match="mask"):  # somebody's work is not replaced
        curate.copy(plain, tmp_path / "few", Limits(), overwrite=True)
    with pytest.raises(UsageError):
        curate.copy(plain, plain, Limits(), overwrite=True)
    with pytest.raises(FacesetError, match="would be left"):
        curate.copy(plain, tmp_path / "none", Limits(blur=1e9))
    assert not (tmp_path / "none").exists()


def test_packing_and_unpacking_gives_the_same_bytes_and_names(plain: Path, tmp_path: Path) -> None:
    curate.sort_faces(plain, "brightness")
    packed, back = tmp_path / "set.faces", tmp_path / "back"
    assert curate.pack_faces(plain, packed).masks == 1
    assert curate.unpack_faces(packed, back).faces == 10
    assert {p.name: p.read_bytes() for p in back.iterdir()} == {p.name: p.read_bytes() for p in plain.iterdir()}
    curate.pack_faces(back, tmp_path / "again.faces")
    assert (tmp_path / "again.faces").read_bytes() == packed.read_bytes()
    curate.pack_faces(packed, tmp_path / "third.faces")
    assert (tmp_path / "third.faces").read_bytes() == packed.read_bytes()


def test_a_pack_is_looked_at_and_copied_from_but_not_changed(plain: Path, tmp_path: Path) -> None:
    packed = tmp_path / "set.faces"
    curate.pack_faces(plain, packed)
    ours, theirs = curate.info(packed), curate.info(plain)
    assert replace(ours, faceset=plain, bytes=theirs.bytes) == theirs and ours.bytes == packed.stat().st_size
    curate.sheet(packed, tmp_path / "a.png")
    curate.sheet(plain, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert curate.copy(packed, tmp_path / "one", Limits(tracks=(0,))).masks == 1
    for change in (lambda: curate.sort_faces(packed, "blur"), lambda: curate.filter_faces(packed, Limits(blur=1))):
        with pytest.raises(UsageError, match="unpack it first"):
            change()
    with pytest.raises(UsageError, match="expected a pack"):
        curate.unpack_faces(plain, tmp_path / "x")
    with pytest.raises(OutputExistsError):
        curate.unpack_faces(packed, plain)
    with pytest.raises(OutputExistsError, match="mask"):
        curate.unpack_faces(packed, plain, overwrite=True)
    with pytest.raises(UsageError, match=r"expected the name of a pack"):
        curate.pack_faces(plain, tmp_path / "set.zip")


# ---------------------------------------------------------------- commands


def faceset(*words: object, status: int = 0) -> str:
    result = CliRunner().invoke(main, ["faceset", *map(str, words)])
    console.configure(console.QUIET)
    assert result.exit_code == status, (result.output, result.exception)
    if status:
        assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: ")
        return result.stderr
    return result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_the_common_options(command: str) -> None:
    text = faceset(command, "-h")
    assert f"Example: faceswap faceset {command}" in text and "--json" in text


def test_sort_offers_what_the_table_has() -> None:
    text = faceset("sort", "-h").replace("\n", "").replace(" ", "")
    assert f"[{'|'.join(curate.SORTS)}]" in text


def test_commands_do_what_they_say_and_give_json(plain: Path, tmp_path: Path) -> None:
    assert json.loads(faceset("info", plain, "--json"))["faces"] == 10
    assert "degrees" in faceset("info", plain)
    assert json.loads(faceset("sort", plain, "--by", "blur", "--json"))["renamed"] == 10
    assert "renamed, darkest first" in faceset("sort", plain, "--by", "brightness")
    faceset("sort", plain, "--by", "time")
    dry = faceset("filter", plain, "--track", 0, "--dry-run")
    assert dry.count("track     clip_") == 6 and "4 faces stay, would move" in dry
    found = json.loads(faceset("filter", plain, "--track", 0, "--track", 1, "--json"))
    assert found["kept"] == 8 and found["removed"]["track"] == ["clip_000008_0.png", "clip_000009_0.png"]
    assert "2 groups by track" in faceset("sheet", plain, "-o", tmp_path / "sheet.png")
    assert "4 faces and 1 mask" in faceset("copy", plain, "-o", tmp_path / "copy", "--every", 2, "--max", 4)
    faceset("pack", plain, "-o", tmp_path / "set.faces")
    assert json.loads(faceset("unpack", tmp_path / "set.faces", "-o", tmp_path / "back", "--json"))["faces"] == 8
    assert pack.is_pack(tmp_path / "set.faces")


def test_mistakes_get_one_line(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.faces").write_bytes(b"PK" * 300)
    for words, status in [
        (("info", tmp_path / "nothing"), 1),
        (("info", tmp_path / "bad.faces"), 1),
        (("sort", plain), 2),
        (("sort", plain, "--by", "name"), 2),
        (("filter", plain, "-q"), 2),
        (("filter", plain, "--duplicates", 65), 2),
        (("filter", plain, "--fit", "nan"), 2),
        (("filter", plain, "--fit", 0.5, "-q"), 1),
        (("sheet", plain, "-o", plain), 2),
        (("copy", plain, "-o", plain, "--overwrite"), 2),
        (("pack", plain, "-o", tmp_path / "x.zip"), 2),
        (("unpack", plain, "-o", tmp_path / "x"), 2),
    ]:
        faceset(*words, status=status)
    assert len(Faceset.open(plain)) == 10 and sorted(p.name for p in tmp_path.iterdir()) == ["bad.faces", "set"]
