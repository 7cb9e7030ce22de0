"""Tests of faceswap.foreign: the layouts of other tools, made with rendered and drawn faces, become facesets."""

import io
import json
import os
import pickle
import shutil
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import footage
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from faceswap import align, console, faceset, foreign
from faceswap.actors import SCALE, as_arguments, at_random
from faceswap.cli import main
from faceswap.config import ExtractRecipe
from faceswap.errors import FacesetError, OutputExistsError, UsageError
from faceswap.faceset import Faceset
from faceswap.heads import Identity
from faceswap.landmarks import COUNT, five
from faceswap.render import Actor

SMALL = ExtractRecipe(size=64, min_size=40)
Image = NDArray[np.uint8]
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Shown:
    """A rendered face with its true 68 landmarks."""

    image: Image
    landmarks: Points

    def cut(self, onto: Points, side: int) -> "Shown":
        """Aligned as another tool would, its five points near `onto`."""
        matrix = align.similarity(five(self.landmarks), onto)
        return Shown(align.crop(self.image, matrix, side), align.apply(matrix, self.landmarks))


@pytest.fixture(scope="module")
def shots() -> list[Shown]:
    actor, random = Actor(Identity.random(5)), np.random.default_rng(3)
    rendered = [actor.render(**as_arguments(at_random(random)), size=224, scale=SCALE) for _ in range(3)]
    return [Shown(shot.image, shot.landmarks.astype(np.float64)) for shot in rendered]


@pytest.fixture(scope="module")
def aligned(shots: list[Shown]) -> list[Shown]:
    """Framed like DeepFaceLab's whole face, 160 px."""
    return [shot.cut((align.TEMPLATE - 0.5) * 0.9 * 160 + 80, 160) for shot in shots]


@pytest.fixture(scope="module")
def framed(shots: list[Shown]) -> list[Shown]:
    """Framed like FFHQ, 128 px."""
    return [shot.cut((foreign.FFHQ_POINTS + 0.5) / 8 - 0.5, 128) for shot in shots]


@dataclass(frozen=True)
class Seen:
    """What counts of `landmarks.Landmarks`."""

    points: Points
    fit: float

    @property
    def five(self) -> Any:
        return five(self.points)


class Blind:
    """A landmarker that believes nothing that it sees."""

    fit = 0.0

    def __init__(self, device: str) -> None:
        assert device == "cpu"

    def __call__(self, images: Sequence[Image], points: Sequence[Points], *, passes: int) -> list[Seen]:
        assert passes == 2 and len(images) == len(points)
        spread = [np.repeat(np.asarray(place), 31, axis=0)[:COUNT] for place in points]
        return [Seen(place, self.fit) for place in spread]


@pytest.fixture(autouse=True)
def blind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "ship" not in request.node.name:
        monkeypatch.setattr(foreign, "Landmarker", Blind)


def coded(image: Image, suffix: str = ".png") -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, 98] if suffix == ".jpg" else []
    ok, data = cv2.imencode(suffix, np.ascontiguousarray(image[..., ::-1]), options)
    assert ok
    return data.tobytes()


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def facts(shown: Shown, source: str) -> dict[str, Any]:
    """What DeepFaceLab stores of a face."""
    return {
        "face_type": "whole_face",
        "landmarks": shown.landmarks.tolist(),
        "source_filename": source,
        "source_rect": (10, 20, 110, 140),
        "source_landmarks": (shown.landmarks + 200),
        "image_to_face_mat": np.eye(3)[:2],
        "xseg_mask": np.frombuffer(b"\x89PNG not really", np.uint8),
    }


def with_app15(jpeg: bytes, body: bytes) -> bytes:
    return jpeg[:20] + b"\xff\xef" + struct.pack(">H", len(body) + 2) + body + jpeg[20:]


def dfl_jpeg(shown: Shown, source: str) -> bytes:
    return with_app15(coded(shown.image, ".jpg"), pickle.dumps(facts(shown, source), 3))


@pytest.fixture
def dfl(aligned: list[Shown], tmp_path: Path) -> Path:
    for number, shown in enumerate(aligned):
        put(tmp_path / "aligned" / f"{number + 9:05d}_{number % 2}.jpg", dfl_jpeg(shown, f"{number + 9:05d}.png"))
    return tmp_path / "aligned"


def pak(shown: list[Shown], *, ends: bool = True, absolute: bool = False, told: bool = True, version: int = 1) -> bytes:
    """A faceset.pak; without `told` the landmarks are in the JPEGs only."""
    configs = [
        {**(facts(one, f"{i}.png") if told else {}), "filename": f"{i:05d}_0.jpg"} for i, one in enumerate(shown)
    ]
    images = [coded(one.image, ".jpg") if told else dfl_jpeg(one, f"{i}.png") for i, one in enumerate(shown)]
    pickled = pickle.dumps(configs, 4)
    head = struct.pack("<QQ", version, len(pickled)) + pickled
    places = np.cumsum([0, *map(len, images)])[: len(images) + ends]
    places = places + (len(head) + 8 * len(places) if absolute else 0)
    return head + b"".join(struct.pack("<Q", place) for place in places) + b"".join(images)


def with_text(png: bytes, text: bytes, *, packed: bool = False) -> bytes:
    body = b"iTXtfaceswap\0" + (b"\1\0\0\0" if packed else b"\0\0\0\0") + (zlib.compress(text) if packed else text)
    return png[:33] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + png[33:]


def fsw_png(image: Image, source: str, face: int = 0, *, packed: bool = False) -> bytes:
    """What deepfakes/faceswap writes."""
    points = [[float(x), 300.5] for x in range(68)]
    alignments = {"x": 1, "y": 2, "w": 3, "h": 4, "landmarks_xy": points, "mask": {"components": b"\x00\xff'"}}
    told = {"alignments": alignments, "source": {"source_filename": source, "source_face_index": face}}
    return with_text(coded(image), str(told).encode(), packed=packed)


def entry(number: int, landmarks: Points) -> dict[str, Any]:
    """An image in FFHQ's JSON."""
    return {
        "category": "training",
        "metadata": {"photo_title": 'a "{quoted}" title, 名\n', "license": "CC"},
        "image": {"file_path": f"{number:05d}.png", "pixel_size": [1024, 1024], "face_landmarks": landmarks.tolist()},
        "in_the_wild": {"face_landmarks": [[0, 0]] * 68},
    }


def off(folder: Path, truth: list[Points]) -> float:
    """How far the faces' true five points (in pixels of the foreign images) are, at most, from where a canonical crop
    has them, beyond what no similarity transform can bring there."""
    worst = 0.0
    for found, points in zip(Faceset.open(folder).entries, truth, strict=True):
        crop = align.apply(np.array(found.meta.matrix), points)
        best = align.apply(align.crop_matrix(points, found.meta.size), points)
        worst = max(worst, float(np.abs(crop - best).max()))
        assert faceset.read_image(found.path).shape == (found.meta.size, found.meta.size, 3)
    return worst


def fives(shown: list[Shown]) -> list[Points]:
    return [five(one.landmarks).astype(np.float64) for one in shown]


def alike(folder: Path, shown: list[Shown]) -> float:
    """The largest mean difference, in levels, between the faces and crops made from the truth."""
    worst = 0.0
    for found, one in zip(Faceset.open(folder).entries, shown, strict=True):
        matrix = align.crop_matrix(five(one.landmarks), 64)
        truth = align.crop(one.image, matrix, 64).astype(float)
        worst = max(worst, float(np.abs(truth - faceset.read_image(found.path).astype(float)).mean()))
    return worst


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# DeepFaceLab


def test_aligned_jpegs_keep_their_landmarks_and_origin(dfl: Path, aligned: list[Shown], tmp_path: Path) -> None:
    report = foreign.import_faces([dfl], tmp_path / "out", SMALL)
    assert (report.faceset, report.faces, report.skipped, report.kinds) == (tmp_path / "out", 3, {}, ["dfl"])
    assert report.seconds > 0
    assert names(tmp_path / "out") == ["aligned_00009_0.png", "aligned_00010_1.png", "aligned_00011_0.png"]
    assert off(tmp_path / "out", fives(aligned)) < 0.01 and alike(tmp_path / "out", aligned) < 4
    meta = Faceset.open(tmp_path / "out").entries[1].meta
    assert (meta.source, meta.frame, meta.face, meta.detector, meta.probability) == ("00010.png", 10, 1, "dfl", 1.0)
    assert meta.landmarks is None and meta.fit == 0 and meta.size == 64 and meta.input == 0
    np.testing.assert_allclose(meta.points, five(aligned[1].landmarks), atol=1e-3)
    assert 0 < meta.box[0] < meta.points[0][0] and meta.points[4][1] < meta.box[3] < 160


def test_landmarks_that_fit_are_kept_and_place_the_crop(
    dfl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aligned: list[Shown]
) -> None:
    class Sharp(Blind):
        fit = 0.8

        def __call__(self, images: Sequence[Image], points: Sequence[Points], *, passes: int) -> list[Seen]:
            shift = np.array([2.0, -1.0])
            seen = [np.vstack([one.landmarks + shift, np.full((COUNT - 68, 2), 50.0)]) for one in aligned]
            return [Seen(points, self.fit) for points in seen]

    monkeypatch.setattr(foreign, "Landmarker", Sharp)
    foreign.import_faces([dfl], tmp_path / "out", SMALL)
    assert off(tmp_path / "out", [points + np.array([2, -1]) for points in fives(aligned)]) < 0.01
    meta = Faceset.open(tmp_path / "out").entries[0].meta
    assert meta.fit == 0.8 and meta.landmarks is not None and np.array(meta.landmarks).shape == (COUNT, 2)


@pytest.mark.parametrize("form", [{}, {"ends": False}, {"absolute": True}, {"ends": False, "absolute": True}])
@pytest.mark.parametrize("told", [True, False])
def test_a_pak_is_read_by_whatever_reading_of_its_table_fits(
    form: dict[str, bool], told: bool, aligned: list[Shown], tmp_path: Path
) -> None:
    path = put(tmp_path / "faceset.pak", pak(aligned, told=told, **form))
    report = foreign.import_faces([path], tmp_path / "out", SMALL)
    assert (report.faces, report.kinds) == (3, ["dfl"])
    assert off(tmp_path / "out", fives(aligned)) < 0.01 and alike(tmp_path / "out", aligned) < 4
    assert [e.meta.source for e in Faceset.open(tmp_path / "out").entries] == ["0.png", "1.png", "2.png"]


def test_a_folder_with_a_pak_is_read_from_it(aligned: list[Shown], tmp_path: Path) -> None:
    put(tmp_path / "src" / "faceset.pak", pak(aligned[:2]))
    put(tmp_path / "src" / "left over.jpg", coded(aligned[2].image, ".jpg"))
    assert foreign.import_faces([tmp_path / "src"], tmp_path / "out", SMALL).faces == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data[:10], "version 1, found another"),
        (lambda data: struct.pack("<Q", 2) + data[8:], "version 1, found another"),
        (lambda data: data[:8] + struct.pack("<Q", 1 << 50) + data[16:], "does not fit into it"),
        (lambda data: data[:16] + b"\x80\x04}." + data[20:], "expected a list of images"),
        (lambda data: data[:16] + b"\x80\x04K\x01" + data[20:], "damaged list|expected a list"),
        (lambda data: data[:2000], "does not fit into it|damaged list"),
        (lambda data: data.replace(b"\xff\xd8\xff", b"\0\0\0"), "its table of images does not fit"),
    ],
)
def test_a_damaged_pak_is_one_line(change: Any, said: str, aligned: list[Shown], tmp_path: Path) -> None:
    path = put(tmp_path / "faceset.pak", change(pak(aligned[:1])))
    with pytest.raises(FacesetError, match=said) as error:
        foreign.import_faces([path], tmp_path / "out", SMALL)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert not (tmp_path / "out").exists()


class Touch:
    """Pickles as a command of the shell."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("place", ["jpeg", "landmarks", "pak"])
def test_a_hostile_file_gets_an_error_and_runs_nothing(
    place: str, dfl: Path, aligned: list[Shown], tmp_path: Path
) -> None:
    evil: Any = Touch(tmp_path / "canary")
    if place == "pak":
        pickled = pickle.dumps([{"filename": "1.jpg", "landmarks": evil}])
        path = put(tmp_path / "f.pak", struct.pack("<QQ", 1, len(pickled)) + pickled + bytes(16))
    else:
        told = evil if place == "jpeg" else {**facts(aligned[0], "1.png"), "landmarks": evil}
        path = dfl
        put(dfl / "00010_9.jpg", with_app15(coded(aligned[0].image, ".jpg"), pickle.dumps(told)))
    with pytest.raises(FacesetError, match=r"asks for (posix|nt)\.system, .*; nothing was run, delete the file"):
        foreign.import_faces([path], tmp_path / "out", SMALL)
    assert not (tmp_path / "canary").exists() and not (tmp_path / "out").exists()


def test_names_from_a_set_lead_nowhere(aligned: list[Shown], tmp_path: Path) -> None:
    data = pak(aligned[:2], told=False).replace(b"00000_0.jpg", b"../../x.jpg").replace(b"00001_0.jpg", b"/etc/..\\x.p")
    foreign.import_faces([put(tmp_path / "in" / "faceset.pak", data)], tmp_path / "deep" / "out", SMALL)
    assert names(tmp_path / "deep" / "out") == ["faceset_x-2.png", "faceset_x.png"]
    assert names(tmp_path) == ["deep", "in"]


def test_what_has_no_metadata_is_counted_and_the_first_named(
    dfl: Path, aligned: list[Shown], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = coded(aligned[0].image, ".jpg")
    put(dfl / "00009_0_debug.jpg", plain)
    put(dfl / "00010_1_debug.jpg", plain)
    put(dfl / "00012_0.jpg", with_app15(plain, pickle.dumps(facts(aligned[0], "12.png"))[:99]))
    put(dfl / "00013_0.jpg", dfl_jpeg(aligned[0], "13.png")[:-300])
    put(dfl / "00014_0.jpg", b"")
    console.configure(console.NORMAL)
    report = foreign.import_faces([dfl], tmp_path / "out", SMALL)
    console.configure(console.QUIET)
    left_out = {"without metadata of DeepFaceLab": 2, "with damaged metadata": 1, "damaged": 2}
    assert (report.faces, report.skipped) == (3, left_out)
    said = " ".join(capfd.readouterr().err.split())
    assert "left out 5 of 8 images: 2 without metadata of DeepFaceLab, first 00009_0_debug.jpg; 1 with damaged" in said
    assert "2 damaged, first 00013_0.jpg" in said


def drawn(**look: Any) -> Image:
    return footage.draw_face(**look)


NONSENSE = {
    "none": None,
    "words": "words",
    "too few": [[1.0, 2.0]] * 67,
    "too narrow": [[1.0]] * 68,
    "letters": [["a", "b"]] * 68,
    "not finite": [[float("nan"), 1.0]] * 68,
    "one place": [[5.0, 5.0]] * 68,
    "huge": (np.arange(136.0) * 1e5).reshape(68, 2),
    "elsewhere": (np.arange(136.0) + 1e4).reshape(68, 2),
}


@pytest.mark.parametrize("landmarks", NONSENSE.values(), ids=NONSENSE)
def test_where_landmarks_make_no_sense_the_face_is_looked_for(landmarks: Any, tmp_path: Path) -> None:
    told = pickle.dumps({"landmarks": landmarks, "source_filename": r"C:\frames\00007.png"})
    path = put(tmp_path / "in" / "a.jpg", with_app15(coded(drawn(), ".jpg"), told))
    foreign.import_faces([path], tmp_path / "out", SMALL)
    meta = Faceset.open(tmp_path / "out").entries[0].meta
    assert (meta.source, meta.frame, meta.face, meta.detector) == ("00007.png", 7, 0, "mtcnn")
    assert np.linalg.norm(np.array(meta.points) - footage.UNIT_POINTS - 80, axis=1).max() < 4.5


# deepfakes/faceswap


@pytest.mark.parametrize("packed", [False, True])
def test_face_pngs_keep_their_origin_and_are_looked_at_anew(packed: bool, tmp_path: Path) -> None:
    put(tmp_path / "in" / "v_000002_0.png", fsw_png(drawn(), "v_000002.png", packed=packed))
    put(tmp_path / "in" / "v_000010_1.png", fsw_png(drawn(look="source", centre=(84, 78)), "v_000010.png", 1))
    put(tmp_path / "in" / "empty.png", fsw_png(np.full((160, 160, 3), 90, np.uint8), "v_000011.png"))
    put(tmp_path / "in" / "plain.png", coded(drawn()))
    report = foreign.import_faces([tmp_path / "in"], tmp_path / "out", SMALL)
    assert report.kinds == ["faceswap"] and report.faces == 2
    assert report.skipped == {"in which no face was found": 1, "without metadata of deepfakes/faceswap": 1}
    metas = [found.meta for found in Faceset.open(tmp_path / "out").entries]
    assert [(m.source, m.frame, m.face) for m in metas] == [("v_000002.png", 2, 0), ("v_000010.png", 10, 1)]
    assert np.linalg.norm(np.array(metas[1].points) - footage.UNIT_POINTS - [84, 78], axis=1).max() < 4.5


@pytest.mark.parametrize(
    "text",
    [
        b"{'a': 1}",
        b"{'source': 3}",
        b"{'source': __import__('os').system('touch canary')}",
        b"{" * 5000,
        b"{\xff}",
        b"{'source': " + b"-" * 50_000 + b"1}",
        b"{1: 2",
    ],
    ids=range(7),
)
def test_text_that_is_no_metadata_makes_no_set_of_faceswap(text: bytes, tmp_path: Path) -> None:
    put(tmp_path / "in" / "a.png", with_text(coded(drawn()), text))
    assert foreign.import_faces([tmp_path / "in"], tmp_path / "out", SMALL).kinds == ["images"]


def test_text_that_unpacks_without_end_is_cut_off() -> None:
    png = with_text(coded(drawn()), b"{'source': {}}" + b" " * 50_000_000, packed=True)
    assert len(foreign._text(png)) == foreign.MAX_TEXT
    assert foreign._text(with_text(png, b"x", packed=False).replace(b"faceswap\0\0", b"faceswap\0\1")) == b""


# FFHQ


def layout(kind: str, framed: list[Shown], root: Path) -> tuple[Path, list[int]]:
    """FFHQ as it is found in the wild, and the numbers of its images."""
    numbers = [2, 999, 1003]
    png = [coded(one.image) for one in framed]
    if kind == "thousands":
        for number, data in zip(numbers, png, strict=True):
            put(root / "images1024x1024" / f"{number // 1000 * 1000:05d}" / f"{number:05d}.png", data)
            put(root / "thumbnails128x128" / f"{number // 1000 * 1000:05d}" / f"{number:05d}.png", data)
        return root, numbers
    if kind == "flat":
        for number, data in zip(numbers, png, strict=True):
            put(root / "ffhq" / f"{number:05d}.png", data)
        return root / "ffhq", numbers
    root.mkdir(exist_ok=True)
    path = root / "ffhq.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED if kind == "stylegan" else zipfile.ZIP_DEFLATED) as archive:
        for rank, (number, data) in enumerate(zip(numbers, png, strict=True)):
            if kind == "stylegan":
                archive.writestr(f"00000/img{rank:08d}.png", data)
            else:
                archive.writestr(f"thumbnails128x128/{number // 1000 * 1000:05d}/{number:05d}.png", data)
        archive.writestr("dataset.json", '{"labels": null}')
        archive.writestr("LICENSE.txt", "CC")
    return path, [0, 1, 2] if kind == "stylegan" else numbers


LAYOUTS = ("thousands", "flat", "stylegan", "thumbnails")


@pytest.mark.parametrize("kind", LAYOUTS)
def test_ffhq_without_its_json_is_cropped_by_its_framing(kind: str, framed: list[Shown], tmp_path: Path) -> None:
    path, numbers = layout(kind, framed, tmp_path / "in")
    report = foreign.import_faces([path], tmp_path / "out", SMALL)
    assert (report.faces, report.kinds, report.skipped) == (3, ["ffhq"], {})
    metas = [found.meta for found in Faceset.open(tmp_path / "out").entries]
    assert [meta.frame for meta in metas] == numbers and {meta.detector for meta in metas} == {"ffhq"}
    assert off(tmp_path / "out", [(foreign.FFHQ_POINTS + 0.5) / 8 - 0.5] * 3) < 0.01
    assert alike(tmp_path / "out", framed) < 12


@pytest.mark.parametrize("kind", LAYOUTS)
def test_ffhq_with_its_json_is_cropped_by_the_landmarks(kind: str, framed: list[Shown], tmp_path: Path) -> None:
    path, numbers = layout(kind, framed, tmp_path / "in")
    told = dict(zip(numbers, ((one.landmarks + 0.5) * 8 - 0.5 for one in framed), strict=True))
    entries = {str(number): entry(number, told[number]) for number in numbers}
    if kind != "stylegan":  # a whole set of which we have a part
        entries = {"0": entry(0, told[2]), **entries, "1500": entry(1500, told[2])}
    (tmp_path / "in" / foreign.FFHQ_JSON).write_text(json.dumps(entries))
    assert foreign.import_faces([path], tmp_path / "out", SMALL).faces == 3
    assert off(tmp_path / "out", fives(framed)) < 0.01 and alike(tmp_path / "out", framed) < 4


def test_a_part_of_ffhq_that_was_counted_anew_does_not_take_others_landmarks(
    framed: list[Shown], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, _ = layout("stylegan", framed, tmp_path / "in")
    wrong = (framed[2].landmarks + 0.5) * 8 - 0.5 + 40
    entries = {str(number): entry(number, wrong) for number in range(5)}
    (tmp_path / "in" / foreign.FFHQ_JSON).write_text(json.dumps(entries))
    console.configure(console.NORMAL)
    foreign.import_faces([path], tmp_path / "out", SMALL)
    console.configure(console.QUIET)
    assert "its 3 images are counted anew" in " ".join(capfd.readouterr().err.split())
    assert off(tmp_path / "out", [(foreign.FFHQ_POINTS + 0.5) / 8 - 0.5] * 3) < 0.01


def test_gaps_and_damage_in_ffhq_are_accepted(framed: list[Shown], tmp_path: Path) -> None:
    path, _ = layout("flat", framed, tmp_path / "in")
    put(path / "00003.png", (path / "00002.png").read_bytes()[:3000])
    put(path / "cover.png", coded(drawn()))
    put(path / "00500.jpg", coded(framed[0].image, ".jpg"))
    report = foreign.import_faces([path], tmp_path / "out", SMALL, kind="ffhq")
    assert (report.faces, report.skipped) == (4, {"damaged": 1, "without a number for a name": 1})
    assert [found.meta.frame for found in Faceset.open(tmp_path / "out").entries] == [2, 500, 999, 1003]


def test_the_json_is_read_one_entry_at_a_time(tmp_path: Path) -> None:
    path, count = tmp_path / "big.json", 2000
    whole = {**entry(0, np.arange(136.0).reshape(68, 2)), "padding": '"}{\\ é' * 1000}
    padded = [json.dumps(whole, ensure_ascii=only) for only in (True, False)]
    with path.open("w", encoding="utf-8") as file:
        file.write("{")
        for number in range(count):
            file.write(("," if number else "") + f'\n "{number}" : {padded[number % 2]}')
        file.write("\n}\n")
    assert path.stat().st_size > 15_000_000
    tracemalloc.start()
    try:
        seen = 0
        for number, found in foreign.read_entries(path):
            assert number == seen and found["image"]["face_landmarks"][67] == [134.0, 135.0]
            seen += 1
        assert seen == count and tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 16])
def test_the_json_may_break_anywhere(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "CHUNK", chunk)
    path = tmp_path / "some.json"
    path.write_text('\n{ "0" :\t{"a": "\\u00e9}"} ,"12":{}\n}', encoding="utf-8")
    assert list(foreign.read_entries(path)) == [(0, {"a": "é}"}), (12, {})]
    path.write_text("{}")
    assert list(foreign.read_entries(path)) == []


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"0": {}', '{"0": {"a": 1}, "x": {}}', '{"0": 5}', '{"0": {}', '{"0": ' + "[" * 9999, "\0"]
)
def test_a_damaged_json_is_one_line(text: str, framed: list[Shown], tmp_path: Path) -> None:
    path, _ = layout("flat", framed, tmp_path / "in")
    put(path / foreign.FFHQ_JSON, text.encode())
    with pytest.raises(FacesetError, match=r"json: damaged, expected .* copy it again or move it away"):
        foreign.import_faces([path], tmp_path / "out", SMALL)


def test_an_entry_without_end_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "MAX_ENTRY", 100_000)
    path = put(tmp_path / "a.json", b'{"0": {"a": "' + b"x" * 5_000_000)
    with pytest.raises(FacesetError, match="damaged"):
        list(foreign.read_entries(path))


# Zips and other images


def test_a_zip_of_other_images_gives_the_face_in_the_middle(tmp_path: Path) -> None:
    both = np.hstack([drawn(scale=1.2), np.full((160, 60, 3), footage.BACKGROUND, np.uint8)])
    small = cv2.resize(drawn(look="source"), None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA)
    both[16:144, 110:] = np.where(np.arange(110)[:, None] >= 30, small[:, :110], both[16:144, 110:])
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a/me 7.png", coded(drawn()))
        archive.writestr("b/me 7.jpg", coded(drawn(), ".jpg"))
        archive.writestr("__MACOSX/._me.png", b"resource")
        archive.writestr("notes.txt", "none")
    report = foreign.import_faces([tmp_path / "photos.zip"], tmp_path / "out", SMALL)
    assert (report.faces, report.kinds) == (2, ["images"])
    assert names(tmp_path / "out") == ["photos_me_7-2.png", "photos_me_7.png"]
    assert {found.meta.frame for found in Faceset.open(tmp_path / "out").entries} == {7}


def test_of_two_faces_the_one_in_the_middle_is_taken(tmp_path: Path) -> None:
    wide = np.full((200, 420, 3), footage.BACKGROUND, np.uint8)
    wide[20:180, 130:290] = drawn(look="source")
    wide[0:160, 0:160] = drawn(scale=1.1, centre=(70, 80))
    put(tmp_path / "in" / "a.png", coded(wide))
    foreign.import_faces([tmp_path / "in"], tmp_path / "out", SMALL)
    meta = Faceset.open(tmp_path / "out").entries[0].meta
    assert 195 < meta.points[2][0] < 225


def test_a_zip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "MAX_FILE", 1 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("00000.png", coded(drawn()))
        archive.writestr("00001.png", bytes(50 << 20))
    with pytest.raises(FacesetError, match=r"00001\.png unpacks to more than 1 MiB, too much for an image of a face"):
        foreign.import_faces([tmp_path / "bomb.zip"], tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists()


def test_an_image_of_absurd_size_is_not_decoded() -> None:
    header = struct.pack(">II5B", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    assert foreign._dimensions(png) == (60_000, 60_000) and foreign._decode(png) is None
    assert foreign._dimensions(coded(drawn(), ".jpg")) == (160, 160) and foreign._dimensions(b"") is None


def test_damaged_and_locked_members_are_counted(tmp_path: Path) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in ("a.png", "b.png", "c.png"):
            archive.writestr(name, coded(drawn()))
    whole = bytearray(data.getvalue())
    whole[whole.index(b"IDAT") + 100] ^= 255  # a's checksum fails
    at = whole.index(b"PK\1\2")
    at = whole.index(b"PK\1\2", at + 4)
    whole[at + 8] |= 1  # b is encrypted
    report = foreign.import_faces([put(tmp_path / "some.zip", bytes(whole))], tmp_path / "out", SMALL)
    assert (report.faces, report.skipped) == (1, {"damaged": 2})


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.zip", b"no zip", "damaged zip"),
        ("a.txt", b"text", "found something else"),
        ("gone", None, "found nothing"),
        ("folder/notes.txt", b"text", "expected images .* found none"),
        ("folder/a.png", b"no image", "none of 1 images could be imported .1 damaged, first a.png.; check them"),
    ],
)
def test_a_wrong_input_is_one_line(name: str, data: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if data is not None:
        put(path, data)
    with pytest.raises(FacesetError, match=said) as error:
        foreign.import_faces([tmp_path / name.split("/")[0]], tmp_path / "out", SMALL)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_wrong_second_input_is_said_before_the_work(
    dfl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "Landmarker", None)  # would fail when called
    with pytest.raises(FacesetError, match="found nothing"):
        foreign.import_faces([dfl, tmp_path / "gone"], tmp_path / "out", SMALL)


def test_our_own_set_is_not_imported(dfl: Path, tmp_path: Path) -> None:
    foreign.import_faces([dfl], tmp_path / "ours", SMALL)
    with pytest.raises(FacesetError, match="a faceset of ours already"):
        foreign.import_faces([tmp_path / "ours"], tmp_path / "out", SMALL)


def test_several_sets_become_one_and_files_keep_apart(dfl: Path, aligned: list[Shown], tmp_path: Path) -> None:
    shutil.copytree(dfl, tmp_path / "other" / "aligned")
    put(tmp_path / "one.png", coded(drawn()))
    paths = [dfl, tmp_path / "other" / "aligned", tmp_path / "one.png"]
    recipe = SMALL.model_copy(update={"format": "jpg", "size": 48})
    report = foreign.import_faces(paths, tmp_path / "out", recipe)
    assert (report.faces, report.kinds) == (7, ["dfl", "dfl", "images"])
    assert len(names(tmp_path / "out")) == 7 and "aligned_00009_0-2.jpg" in names(tmp_path / "out")
    found = Faceset.open(tmp_path / "out").entries
    assert len({entry.key for entry in found}) == 7 and {entry.meta.size for entry in found} == {48}


def test_enlarged_faces_and_narrow_images_are_said(
    shots: list[Shown], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    half = shots[0].cut((align.TEMPLATE - 0.5) * 1.6 * 90 + 45, 90)
    put(tmp_path / "in" / "1.jpg", dfl_jpeg(half, "1.png"))
    console.configure(console.NORMAL)
    foreign.import_faces([tmp_path / "in"], tmp_path / "out", SMALL.model_copy(update={"size": 256}))
    console.configure(console.QUIET)
    said = " ".join(capfd.readouterr().err.split())
    assert "hold faces of about 144 px, enlarged to 256 px; --set extract.size=144" in said
    assert "1 of 1 crops reach beyond their image" in said


def test_nothing_is_overwritten_unasked_and_nothing_but_a_faceset(dfl: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    foreign.import_faces([dfl], out, SMALL)
    with pytest.raises(OutputExistsError, match="add --overwrite"):
        foreign.import_faces([dfl], out, SMALL)
    (dfl / "00009_0.jpg").unlink()
    assert foreign.import_faces([dfl], out, SMALL, overwrite=True).faces == len(names(out)) == 2
    put(out / "diary.txt", b"mine")
    with pytest.raises(OutputExistsError, match=r"diary\.txt is no extracted face"):
        foreign.import_faces([dfl], out, SMALL, overwrite=True)
    with pytest.raises(UsageError, match="never overwritten"):
        foreign.import_faces([dfl], dfl, SMALL, overwrite=True)
    with pytest.raises(UsageError, match="lies inside"):
        foreign.import_faces([dfl], dfl / "ours", SMALL)
    with pytest.raises(UsageError, match="expected at least one"):
        foreign.import_faces([], tmp_path / "other", SMALL)


def test_memory_holds_few_images_at_a_time() -> None:
    some = [foreign.Found("x", coded(drawn()))] * 70
    assert [len(group) for group in foreign._groups(some)] == [32, 32, 6]
    large = [foreign.Found("x", b"\x89PNG\r\n\x1a\n" + bytes(8) + struct.pack(">II", 5000, 5000)) for _ in range(3)]
    assert [len(group) for group in foreign._groups(large)] == [1, 1, 1]


# The command


def command(*words: object) -> Any:
    result = CliRunner().invoke(main, ["faceset", "import", *map(str, words)])
    console.configure(console.QUIET)
    return result


def test_the_command_with_the_landmarks_that_ship(framed: list[Shown], tmp_path: Path) -> None:
    path, _ = layout("thousands", framed, tmp_path / "in")
    result = command(path, "-o", tmp_path / "out", "--set", "extract.size=96", "--json", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["faces"], report["kinds"], report["skipped"]) == (3, ["ffhq"], {})
    assert "in: FFHQ, 3 images" in result.stderr and "importing in: 3/3 images" in result.stderr
    assert faceset.read_image(Faceset.open(tmp_path / "out").entries[0].path).shape == (96, 96, 3)


def test_the_command_fails_in_one_line(tmp_path: Path) -> None:
    put(tmp_path / "in" / "a.png", coded(np.full((90, 90, 3), 80, np.uint8)))
    result = command(tmp_path / "in", "-o", tmp_path / "out", "-q", "--kind", "images", "--device", "cpu")
    assert result.exit_code == 1 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert "1 in which no face was found, first a.png" in result.stderr
    help_ = command("-h").stdout
    assert "Example: faceswap faceset import" in help_ and "[dfl|faceswap|ffhq|images]" in help_
    assert "|".join(foreign.KINDS) in help_
