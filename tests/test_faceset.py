"""Tests of faceswap.faceset: images that carry their own metadata, read by us and by others."""

import ast
import json
import os
import shutil
import struct
import time
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import footage
import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngInfo

from faceswap import align, faceset
from faceswap.errors import FacesetError, OutputExistsError
from faceswap.faceset import FaceMeta, Faceset, read_image, read_images, read_meta, spread, write_face

META = FaceMeta(
    source='clip "é" 名.mp4',
    frame=7,
    time=0.28,
    face=1,
    box=[1.5, 2.0, 61.25, 70.0],
    points=[[20.0, 25.5], [40.0, 25.0], [30.0, 35.0], [22.0, 45.0], [38.0, 45.125]],
    matrix=[[1.25, -0.1, 3.0], [0.1, 1.25, -4.0]],
    size=64,
    detector="mtcnn",
    probability=0.99871,
)


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    return footage.draw_face()[48:112, 48:112].copy()


@pytest.fixture
def face(tmp_path: Path, picture: NDArray[np.uint8]) -> Path:
    path = tmp_path / "face.png"
    write_face(path, picture, META)
    return path


def with_chunk(png: bytes, name: bytes, body: bytes) -> bytes:
    """`png` with another chunk behind its header."""
    chunk = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return png[:33] + chunk + png[33:]


def test_png_keeps_metadata_and_pixels(face: Path, picture: NDArray[np.uint8]) -> None:
    assert read_meta(face) == META
    np.testing.assert_array_equal(read_image(face), picture)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG"])
def test_jpeg_keeps_metadata_and_nearly_the_pixels(tmp_path: Path, picture: NDArray[np.uint8], suffix: str) -> None:
    path = tmp_path / f"face{suffix}"
    write_face(path, picture, META)
    assert read_meta(path) == META
    assert np.abs(read_image(path).astype(int) - picture).mean() < 3


def test_png_keeps_16_bits_and_jpeg_takes_their_upper_8(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    deep = picture.astype(np.uint16) * 257 + np.arange(64, dtype=np.uint16)[:, None, None]
    write_face(tmp_path / "deep.png", deep, META)
    write_face(tmp_path / "deep.jpg", deep, META)
    found = read_image(tmp_path / "deep.png")
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, deep)
    assert read_image(tmp_path / "deep.png", 64).dtype == np.uint8
    shallow = read_image(tmp_path / "deep.jpg")
    assert shallow.dtype == np.uint8 and np.abs(shallow.astype(int) - picture).mean() < 3


def test_a_lower_quality_makes_a_smaller_jpeg(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    for quality in (40, 95):
        write_face(tmp_path / f"{quality}.jpg", picture, META, quality=quality)
    assert (tmp_path / "40.jpg").stat().st_size < (tmp_path / "95.jpg").stat().st_size


def test_other_tools_read_our_files(face: Path, tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    with PIL.Image.open(face) as image:
        assert json.loads(image.text["faceswap"]) == asdict(META)  # type: ignore[attr-defined]
        np.testing.assert_array_equal(np.asarray(image), picture)
    write_face(tmp_path / "face.jpg", picture, META)
    with PIL.Image.open(tmp_path / "face.jpg") as image:
        keyword, _, text = image.info["comment"].partition(b" ")
        assert keyword == b"faceswap" and json.loads(text) == asdict(META)
        image.load()


def test_metadata_is_found_behind_other_chunks(face: Path) -> None:
    face.write_bytes(with_chunk(face.read_bytes(), b"tEXt", b"Comment\0" + b"x" * 5000))
    face.write_bytes(with_chunk(face.read_bytes(), b"iTXt", b"Title\0\0\0\0\0my faceswap face"))
    assert read_meta(face) == META


def test_metadata_is_found_where_pillow_puts_it(face: Path, tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("Software", "a painter")
    with PIL.Image.open(face) as image:
        info.add_itxt("faceswap", image.text["faceswap"])  # type: ignore[attr-defined]
        image.save(tmp_path / "again.png", pnginfo=info, dpi=(72, 72))
    assert read_meta(tmp_path / "again.png") == META


def test_metadata_is_found_in_a_jpeg_that_pillow_saved_again(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    write_face(tmp_path / "face.jpg", picture, META)
    with PIL.Image.open(tmp_path / "face.jpg") as image:
        image.save(tmp_path / "again.jpg", quality=80, comment=image.info["comment"], dpi=(72, 72))
    assert read_meta(tmp_path / "again.jpg") == META


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_plain_image_has_no_metadata(tmp_path: Path, picture: NDArray[np.uint8], suffix: str) -> None:
    path = tmp_path / f"plain.{suffix}"
    PIL.Image.fromarray(picture).save(path)
    assert read_meta(path) is None


@pytest.mark.parametrize("content", [b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"text" * 100])
def test_what_is_no_image_has_no_metadata_and_no_pixels(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "face.png"
    path.write_bytes(content)
    assert read_meta(path) is None
    with pytest.raises(FacesetError, match=r"face\.png: damaged"):
        read_image(path)


@pytest.mark.parametrize("values", [[], {}, 3, {"version": 1}, {"version": "x"}, asdict(META) | {"version": None}])
def test_foreign_metadata_under_our_name_is_none_of_ours(
    face: Path, picture: NDArray[np.uint8], values: object
) -> None:
    PIL.Image.fromarray(picture).save(face)
    text = b"faceswap\0\0\0\0\0" + json.dumps(values).encode()
    face.write_bytes(with_chunk(face.read_bytes(), b"iTXt", text))
    assert read_meta(face) is None


def test_a_future_version_is_refused_with_the_remedy(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    write_face(tmp_path / "face.png", picture, replace(META, version=faceset.VERSION + 1))
    expected = rf"face\.png: metadata of version {faceset.VERSION + 1}, expected at most {faceset.VERSION}; update"
    with pytest.raises(FacesetError, match=expected):
        Faceset.open(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_image_is_damaged_but_known(
    tmp_path: Path, picture: NDArray[np.uint8], suffix: str, share: float
) -> None:
    path = tmp_path / f"face.{suffix}"
    write_face(path, picture, META)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(FacesetError, match="does not decode"):
        read_image(path)
    assert read_meta(path) == META


@pytest.mark.parametrize(
    "suffix",
    [
        "png",
        "jpg",
    ],
)
def test_no_damage_makes_reading_metadata_fail(tmp_path: Path, picture: NDArray[np.uint8], suffix: str) -> None:
    path = tmp_path / f"face.{suffix}"
    write_face(path, picture, META)
    head = path.read_bytes()[:700]
    rng = np.random.default_rng(0)
    for length in [*range(120), *range(120, len(head), 17)]:
        path.write_bytes(head[:length])
        assert read_meta(path) in (None, META)
    for place, value in rng.integers(0, [len(head), 256], (300, 2)):
        path.write_bytes(head[:place] + bytes([value]) + head[place + 1 :])
        try:
            found = read_meta(path)
        except FacesetError as error:
            assert "version" in str(error)
        else:
            assert found is None or isinstance(found, FaceMeta)


def test_images_are_read_in_order_and_at_a_size(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(12)]
    for i, path in enumerate(paths):
        write_face(path, np.full_like(picture, 20 * i), META)
    paths[4].write_bytes(b"damaged")
    images = list(read_images(paths, 32))
    assert images[4] is None
    for i, image in enumerate(images):
        assert image is None or (image.shape == (32, 32, 3) and image.dtype == np.uint8 and (image == 20 * i).all())


def test_an_image_at_another_size_is_registered(face: Path, picture: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(read_image(face, 48), align.resize(picture, 48))


def test_crop_points_follow_the_size() -> None:
    expected = np.array(META.points) @ [[1.25, 0.1], [-0.1, 1.25]] + [3, -4]
    np.testing.assert_allclose(META.crop_points(64), expected)
    np.testing.assert_allclose(META.crop_points(128), expected * 2)


def test_an_opened_faceset_is_in_the_order_of_the_footage(facesets: dict[str, Path]) -> None:
    found = Faceset.open(facesets["target"])
    assert [entry.meta.frame for entry in found.entries] == [i for i in range(16) if i not in (5, 6)]
    assert len(found) == 14 and found.skipped == []
    assert found.entries[0].key == "0:target.mp4:0:0" and len({entry.key for entry in found.entries}) == 14


def test_renaming_and_deleting_faces_just_works(facesets: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "faces"
    shutil.copytree(facesets["target"], folder)
    before = Faceset.open(folder).entries
    before[0].path.rename(folder / "zzz my favourite.png")
    before[1].path.unlink()
    before[2].path.rename(before[2].path.with_suffix(".PNG"))
    after = Faceset.open(folder).entries
    assert [entry.meta for entry in after] == [entry.meta for entry in before if entry is not before[1]]


def test_images_without_metadata_are_listed_and_other_files_ignored(face: Path, picture: NDArray[np.uint8]) -> None:
    folder = face.parent
    PIL.Image.fromarray(picture).save(folder / "holiday.jpg")
    (folder / "broken.png").touch()
    for name in ("notes.txt", ".hidden.png"):
        (folder / name).touch()
    found = Faceset.open(folder)
    assert [entry.path.name for entry in found.entries] == ["face.png"]
    assert [path.name for path in found.skipped] == ["broken.png", "holiday.jpg"]


def test_a_folder_without_faces_is_refused_with_what_was_found(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    with pytest.raises(FacesetError, match=r"none: expected a faceset .*faceswap extract"):
        Faceset.open(tmp_path / "none")
    with pytest.raises(FacesetError, match="found no image"):
        Faceset.open(tmp_path)
    PIL.Image.fromarray(picture).save(tmp_path / "holiday.jpg")
    with pytest.raises(FacesetError, match="found 1 images without face metadata"):
        Faceset.open(tmp_path)


def test_ten_thousand_faces_open_in_two_seconds(face: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(10_000):
        os.link(face, folder / f"{i:05d}.png")
    seconds = []
    for _ in range(3):
        started = time.process_time()  # other tests run beside this one
        assert len(Faceset.open(folder)) == 10_000
        seconds.append(time.process_time() - started)
    assert min(seconds) < 3  # 1.5 on a quiet core; other tests beside it take their share of the caches


def test_nothing_is_unpickled() -> None:
    tree = ast.parse(Path(faceset.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports for alias in node.names}
    names |= {node.module for node in imports if isinstance(node, ast.ImportFrom) and node.module}
    assert "json" in names and not names & {"pickle", "marshal", "shelve", "dill", "torch"}


def test_a_face_deleted_while_reading_is_left_out(face: Path) -> None:
    assert list(read_images([face.with_name("deleted.png")], 32)) == [None]


def test_a_subfolder_named_like_an_image_is_ignored(face: Path) -> None:
    (face.parent / "best.png").mkdir()
    assert len(Faceset.open(face.parent)) == 1


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "compressed iTXt"])
def test_metadata_that_a_tool_stored_in_another_text_chunk_is_found(face: Path, kind: str) -> None:
    info = PngInfo()
    with PIL.Image.open(face) as image:
        text = str(image.text["faceswap"])  # type: ignore[attr-defined]
        if kind == "compressed iTXt":
            info.add_itxt("faceswap", text, zip=True)
        else:
            info.add_text("faceswap", text, zip=kind == "zTXt")
        image.save(face, pnginfo=info)
    assert read_meta(face) == META


NAN = float("nan")


@pytest.mark.parametrize(
    "change",
    [
        {"frame": "one"},
        {"frame": -1},
        {"source": None},
        {"version": float("inf")},
        {"matrix": None},
        {"matrix": [[1, 0], [0, 1]]},
        {"matrix": [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]},
        {"matrix": [[NAN, 0.0, 1.0], [0.0, 1.0, 1.0]]},
        {"points": []},
        {"points": [[1.0, 2.0]] * 3},
        {"points": [[1e300, 2.0]] * 5},
        {"box": "zz"},
        {"size": 0},
        {"size": -64},
        {"unknown": 1},
    ],
    ids=str,
)
def test_metadata_that_somebody_edited_badly_is_none(
    tmp_path: Path, picture: NDArray[np.uint8], change: dict[str, object]
) -> None:
    ok, coded = cv2.imencode(".png", picture)
    assert ok
    path = tmp_path / "face.png"
    path.write_bytes(faceset._embed(coded.tobytes(), json.dumps(asdict(META) | change).encode()))
    assert read_meta(path) is None
    path.write_bytes(faceset._embed(coded.tobytes(), json.dumps(asdict(META)).encode()))
    assert read_meta(path) == META


def beside(face: Path, mask: NDArray[Any]) -> Path:
    """A user's mask beside a face."""
    path = face.with_suffix(".mask.png")
    ok, coded = cv2.imencode(".png", mask)
    assert ok
    path.write_bytes(coded.tobytes())
    return path


HALF = np.zeros((64, 64), np.uint8)
HALF[:, 32:] = 255


@pytest.mark.parametrize("kind", ["grey", "16 bit", "colour", "transparent", "palette", "1 bit"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".v2.jpeg"])
def test_a_users_mask_is_read_whatever_painted_it(
    tmp_path: Path, picture: NDArray[np.uint8], kind: str, suffix: str
) -> None:
    face = tmp_path / f"face{suffix}"
    write_face(face, picture, META)
    assert faceset.read_mask(face) is None
    path = beside(face, HALF)
    if kind in ("palette", "1 bit"):
        PIL.Image.fromarray(HALF).convert("P" if kind == "palette" else "1").save(path)
    elif kind != "grey":
        white = np.full_like(HALF, 255)
        many: dict[str, NDArray[Any]] = {"16 bit": HALF.astype(np.uint16) * 257, "colour": np.dstack([HALF] * 3)}
        beside(face, many.get(kind, np.dstack([white, white, white, HALF])))
    mask = faceset.read_mask(face)
    assert mask is not None and mask.dtype == np.float32
    np.testing.assert_array_equal(mask, HALF / 255)


def test_a_soft_mask_keeps_its_values(face: Path) -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    beside(face, ramp)
    mask = faceset.read_mask(face)
    assert mask is not None and np.abs(mask - ramp / 255).max() < 1e-6
    small = faceset.read_mask(face, 64)
    assert small is not None and small.shape == (64, 64) and np.abs(small - align.resize(mask, 64)).max() < 1e-6
    large = faceset.read_mask(face, 300)
    assert large is not None and large.min() == 0 and large.max() == 1


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8", b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_a_mask_that_does_not_decode_is_said_in_a_line(face: Path, content: bytes) -> None:
    face.with_suffix(".mask.png").write_bytes(content)
    with pytest.raises(FacesetError, match=r"face\.mask\.png: damaged, the mask does not decode; save it") as error:
        faceset.read_mask(face)
    assert "\n" not in str(error.value)


def test_a_mask_of_another_shape_is_said_in_a_line(face: Path) -> None:
    beside(face, HALF[:, :50])
    with pytest.raises(FacesetError, match=r"face\.mask\.png: expected a square mask.*found 50 x 64 px"):
        faceset.read_mask(face)


def test_masks_are_no_faces_and_no_skipped_images(face: Path) -> None:
    shutil.copy(face, face.with_suffix(".mask.png"))  # painted over a copy, which kept the metadata
    beside(face.with_name("deleted.png"), HALF)
    beside(face.with_name("other.png"), HALF).rename(face.with_name("Other.MASK.PNG"))
    found = Faceset.open(face.parent)
    assert [entry.path for entry in found.entries] == [face] and found.skipped == []


@pytest.mark.parametrize("painted", ["blank", "copy"])
def test_a_folder_with_users_masks_is_not_to_be_replaced(face: Path, painted: str) -> None:
    faceset.refuse_foreign(face.parent)
    path = beside(face, HALF)
    if painted == "copy":
        shutil.copy(face, path)
    with pytest.raises(OutputExistsError, match=r"would destroy face\.mask\.png, a mask of your own; move it") as error:
        faceset.refuse_foreign(face.parent)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("many", "most"), [(0, 3), (3, 3), (10, 3), (10, 1), (1000, 7)])
def test_a_spread_is_even_and_starts_at_the_first(many: int, most: int) -> None:
    found = spread(range(many), most)
    assert len(found) == min(many, most) and found == sorted(set(found))
    assert not found or found[0] == 0
    assert most == 1 or not found or found[-1] == many - 1
