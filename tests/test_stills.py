"""Images for a compositor: what is laid over what, what is in a file, and what a second start does."""

import json
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import footage
import numpy as np
import pytest
from numpy.typing import NDArray
from test_swap import CPU, face_at, weights
from test_video import ramp, write_ffv1

from faceswap import align, light, provenance, signing, stills, swap, video
from faceswap.config import ExtractRecipe, MergeRecipe
from faceswap.errors import MediaError, OutputExistsError, UsageError
from faceswap.found import FoundFaces
from faceswap.video import Frame, read_frames

SMALL = ExtractRecipe(size=64, min_size=40)
LOOSE = 2  # faces that nothing binds to the frames around


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights(tmp_path_factory.mktemp("model") / "pair.safetensors")


@pytest.fixture(scope="module")
def found(clips: dict[str, Path]) -> FoundFaces:
    return swap.detecting(clips["target"], SMALL, "cpu")


def swapper(model: Path, **merge: object) -> swap.Swapper:
    return swap.Swapper(model, MergeRecipe.model_validate(merge), CPU)


def frame(kind: type[Any]) -> Frame:
    image = footage.draw_face().astype(kind)
    image += np.random.default_rng(0).integers(0, 9, image.shape).astype(kind)  # no white
    return Frame(3, Fraction(3, 25), Path("some.mp4"), image * kind(257) if kind is np.uint16 else image)


def over(plate: NDArray[Any], picture: NDArray[Any]) -> NDArray[Any]:
    """Straight alpha over a plate, as any compositor does it."""
    alpha = picture[..., 3:].astype(np.float64) / np.iinfo(picture.dtype).max
    return np.round(plate * (1 - alpha) + picture[..., :3] * alpha)


def read(path: Path) -> NDArray[Any]:
    """RGB or RGBA, as OpenCV finds it."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA if image.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# ---------------------------------------------------------------- one picture


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("blend", ["feather", "alpha", "laplacian", "poisson"])
def test_the_faces_alone_over_the_plate_are_the_normal_merge(model: Path, blend: str, kind: type[Any]) -> None:
    made, plate = swapper(model, blend=blend), frame(kind)
    faces = [face_at(80, 78), face_at(110, 90)]  # one over the other
    ((merged, count),) = made([(plate, faces)])
    ((_, laid),) = made.faces([(plate, faces)])
    picture, shown = stills.picture(plate, laid, alpha=True)
    assert count == len(shown) == LOOSE and picture.dtype == kind and picture.shape == (160, 160, 4)
    assert (merged.image != plate.image).any(2).sum() > 1000
    far = np.abs(over(plate.image, picture) - merged.image).max()
    assert far <= (1 if kind is np.uint8 or blend in ("feather", "alpha") else 2)
    whole, _ = stills.picture(plate, laid, alpha=False)
    assert np.array_equal(whole, merged.image)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_the_colour_is_that_of_the_face_and_the_alpha_is_the_mask(model: Path, kind: type[Any]) -> None:
    made, white = swapper(model, blend="feather"), np.iinfo(kind).max
    plain = frame(kind)
    ((_, (laid,)),) = made.faces([(plain, [face_at(80, 78)])])
    picture, _ = stills.picture(plain, [laid], alpha=True)
    where = (0, 0, 160, 160)
    mask = align.uncrop_mask(swap.soft(laid, (160, 160)), laid.matrix, where)
    assert np.abs(picture[..., 3] - mask * white).max() <= 0.51 * (1 if kind is np.uint8 else 1.2)
    assert (picture[picture[..., 3] == 0] == 0).all() and (picture[..., 3] == 0).mean() > 0.5
    other = Frame(
        3, plain.time, plain.source, np.full_like(plain.image, white // 3)
    )  # the same face over another plate
    beside, _ = stills.picture(other, [laid], alpha=True)
    clear = mask > 0.1
    assert np.abs(beside[clear][:, :3].astype(int) - picture[clear][:, :3]).max() <= (1 if kind is np.uint8 else 12)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("blend", ["feather", "laplacian", "poisson"])
@pytest.mark.parametrize("transfer", [1, 16])
def test_light_over_the_light_of_the_plate_is_the_normal_merge(
    model: Path, blend: str, kind: type[Any], transfer: int
) -> None:
    made, plate, table = swapper(model, blend=blend), frame(kind), light.CURVES[transfer].table()
    faces = [face_at(80, 78), face_at(110, 90)]
    ((_, laid),) = made.faces([(plate, faces)])
    whole, _ = stills.picture(plate, laid, False, table)
    alone, shown = stills.picture(plate, laid, True, table)
    assert whole.dtype == alone.dtype == np.float32 and len(shown) == LOOSE
    deep = plate.image.astype(np.uint16) * np.uint16(257 if kind is np.uint8 else 1)
    laid_over = alone[..., :3] + (1 - alone[..., 3:]) * table[deep]  # associated alpha, as any compositor does it
    np.testing.assert_allclose(laid_over, whole, atol=1e-6 * table[-1])
    assert (alone[alone[..., 3] == 0] == 0).all() and alone[..., 3].max() <= 1
    untouched = (alone == 0).all(2)
    assert 0.3 < untouched.mean() < 1 and np.array_equal(whole[untouched], table[deep][untouched])
    straight, _ = stills.picture(plate, laid, True)
    assert np.abs(straight[..., 3] / np.iinfo(kind).max - alone[..., 3]).max() < (0.003 if kind is np.uint8 else 6e-4)


def test_without_a_face_nothing_is_drawn(model: Path) -> None:
    plain = frame(np.uint8)
    picture, shown = stills.picture(plain, [], alpha=True)
    assert not picture.any() and picture.shape == (160, 160, 4) and shown == []
    whole, _ = stills.picture(plain, [], alpha=False)
    assert np.array_equal(whole, plain.image)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("form", ["png", "tiff"])
def test_a_file_is_what_others_read(tmp_path: Path, form: str, channels: int, kind: type[Any]) -> None:
    white = np.iinfo(kind).max
    image = np.random.default_rng(1).integers(0, white, (21, 34, channels), kind, endpoint=True)
    path = tmp_path / f"a.{form}"
    path.write_bytes(stills.FORMATS[form](image, lambda pixels: provenance.packet(provenance.tags("w"), "odd")))
    if (form, channels, kind) != ("tiff", 4, np.uint8):  # there OpenCV multiplies by the alpha as it reads
        assert np.array_equal(read(path), image)
    with av.open(str(path)) as container:  # another decoder
        native = next(container.decode(video=0))
        deep, fourth = kind is np.uint16, channels == 4
        assert native.format.name.startswith(
            ("rgba" if fourth else "rgb") + (("64" if fourth else "48") if deep else "")
        )
        assert np.array_equal(native.to_ndarray(), image)
    assert provenance.verify(path).found == "tagged"
    assert "real footage with parts made by a trained model" in provenance.text(provenance.verify(path))


def halves(path: Path) -> NDArray[np.float32]:
    """The pixels of an EXR file, as FFmpeg finds them; (H, W, 3 or 4) RGB."""
    with av.open(str(path)) as container:
        native = next(container.decode(video=0))
    assert native.format.name in ("gbrpf16le", "gbrapf16le")
    shown = [np.frombuffer(plane, np.float16).reshape(plane.height, -1)[:, : plane.width] for plane in native.planes]
    return np.stack([shown[i] for i in (2, 0, 1, 3)[: len(shown)]], 2).astype(np.float32)


@pytest.mark.parametrize("size", [(1, 1), (16, 33), (37, 50)])
@pytest.mark.parametrize("channels", [3, 4])
def test_an_exr_file_is_what_others_read(tmp_path: Path, channels: int, size: tuple[int, int]) -> None:
    image = np.random.default_rng(2).normal(0, 3, (*size, channels)).astype(np.float32)
    image[0, 0, 0] = 65504
    path, pixels = tmp_path / "a.exr", []

    def say(coded: bytes) -> bytes:
        pixels.append(coded)
        return provenance.packet(provenance.tags("w"), "odd")

    path.write_bytes(stills.exr(image, say, light.CURVES[16], primaries=9))
    nearest = image.astype(np.float16).astype(np.float32)
    assert np.array_equal(halves(path), nearest)
    assert path.read_bytes().endswith(pixels[0]) and provenance.noted(path.read_bytes()) == "odd"
    assert provenance.verify(path).found == "tagged"
    reference = pytest.importorskip("OpenEXR")  # of those who made the format
    with reference.File(str(path)) as opened:
        header, (shown,) = opened.header(), opened.channels().values()
        assert shown.pixels.dtype == np.float16 and np.array_equal(shown.pixels.astype(np.float32), nearest)
        assert header["chromaticities"] == pytest.approx(light.PRIMARIES[9]) and header["whiteLuminance"] == 100
        assert header["comments"] == light.CURVES[16].says and header["xmp"].startswith("<?xpacket")
        assert (header["compression"], header["type"]) == (reference.ZIP_COMPRESSION, reference.scanlineimage)


def test_an_alpha_is_said_to_be_straight(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    image = np.full((8, 8, 4), 100, np.uint8)
    (tmp_path / "a.tiff").write_bytes(stills.tiff(image, lambda pixels: provenance.packet({}, "")))
    with pillow.open(tmp_path / "a.tiff") as opened:
        assert opened.mode == "RGBA" and opened.tag_v2[338] in (2, (2,)) and opened.tag_v2[700].startswith(b"<?xpacket")
        assert np.array_equal(np.asarray(opened), image)


def test_a_note_survives_its_packet() -> None:
    words = json.dumps({"source": "a \"b\" <c> & 'ä'.mp4"})
    said = provenance.packet(provenance.tags("w & v"), words)
    assert provenance.noted(b"\x89PNG" + said + b"IDAT") == words
    assert provenance.noted(b"nothing") is None and provenance.SOURCE_TYPE.encode() in said
    assert provenance.TERMS.encode() not in provenance.packet({}, words)


# ---------------------------------------------------------------- the folder


def test_a_video_becomes_images_and_what_lies_where(
    model: Path, clips: dict[str, Path], found: FoundFaces, tmp_path: Path
) -> None:
    made = swapper(model, blend="feather")
    report = stills.write_stills(clips["target"], tmp_path / "out", made, found, alpha=True)
    assert (report.frames, report.kept, report.frames_swapped, report.faces_swapped) == (16, 0, 14, 14)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    held = json.loads((tmp_path / "out" / "faces.json").read_text())
    assert held["alpha"] == "straight" and held["rate"] == "25" and held["source"] == made.name
    assert held["marks"]["digitalsourcetype"] == provenance.SOURCE_TYPE and held["colors"]["range"] == 1
    assert [row["frame"] for row in held["frames"]] == list(range(16))
    for row, plate in zip(held["frames"], read_frames(clips["target"]), strict=True):
        image = read(tmp_path / "out" / row["file"])
        assert image.dtype == np.uint8 and row["time"] == float(plate.time) and row["footage"] == "target.mp4"
        assert len(row["faces"]) == (row["frame"] not in (5, 6)) == bool(image[..., 3].any())
        for face in row["faces"]:
            wanted = found[row["frame"]][0]
            assert face["track"] == wanted.track and face["size"] == 32
            np.testing.assert_allclose(face["matrix"], wanted.matrix(32))
            crop = align.crop(image, np.array(face["matrix"]), face["size"])  # the face lies in the middle of its crop
            assert crop[10:22, 10:22, 3].min() > 200
    assert provenance.verify(tmp_path / "out" / "000000.png").found == "tagged"
    assert not set(tmp_path.glob(".*"))


def test_whole_frames_are_those_of_the_video(
    model: Path, clips: dict[str, Path], found: FoundFaces, tmp_path: Path
) -> None:
    stills.write_stills(clips["target"], tmp_path / "out", swapper(model), found, form="tiff")
    swapped = swapper(model)((f, found.get(f.index, [])) for f in read_frames(clips["target"]))
    for plate, (frame, count) in zip(read_frames(clips["target"]), swapped, strict=True):
        image = read(tmp_path / "out" / f"{frame.index:06d}.tiff")
        assert image.shape == (160, 160, 3)
        away = np.abs(image.astype(int) - frame.image)  # a video has coarser chroma, an image has not
        assert away.mean() < 1.5
        if not count:
            assert np.array_equal(image, plate.image)


def test_footage_of_ten_bits_gives_sixteen(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "deep.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.width = stream.height = 160
        stream.pix_fmt = "yuv420p10le"
        for image in footage.performance("target", 3):
            native = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format="yuv420p10le")
            output.mux(stream.encode(native))
        output.mux(stream.encode(None))
    found: FoundFaces = {1: [face_at(80, 78)]}
    for alpha in (False, True):
        stills.write_stills(path, tmp_path / str(alpha), swapper(model), found, alpha=alpha)
        image = read(tmp_path / str(alpha) / "000001.png")
        assert image.dtype == np.uint16 and len(np.unique(image // 257 * 257 - image)) > 50
    plate = read(tmp_path / "False" / "000000.png")
    assert np.abs(plate / 257 - footage.performance("target", 1)[0]).mean() < 4


@pytest.mark.parametrize(
    ("colors", "says", "of_light"),
    [
        ((9, 16, 9, 1), "BT.2100 PQ EOTF", light.pq),
        ((9, 18, 9, 1), "BT.2100 HLG OETF", light.hlg),
        ((1, 1, 1, 1), "BT.709 OETF", light.bt709),
        ((2, 2, 2, 0), "BT.709 OETF", light.bt709),
    ],
)
def test_exr_holds_the_light_of_the_footage(
    model: Path, tmp_path: Path, colors: tuple[int, int, int, int], says: str, of_light: Any
) -> None:
    native = ramp("yuv444p12le", 9, 1)
    native.color_primaries, native.color_trc, native.colorspace, native.color_range = colors
    clip = write_ffv1(tmp_path / "in.mkv", [native])
    report = stills.write_stills(clip, tmp_path / "out", swapper(model), {}, form="exr")
    assert report.frames == 1 and stills.write_stills(clip, tmp_path / "out", swapper(model), {}, form="exr").kept == 1
    wanted = of_light(np.linspace(0, 1, 512))
    shown = halves(tmp_path / "out" / "000000.exr")
    assert np.abs(shown - wanted[:, None]).max() < wanted[-1] * 2e-3
    assert np.abs(shown[0, 60:, 1] / wanted[60:] - 1).max() < 0.02, "dark ones too, by a code value of 12 bits"
    held = json.loads((tmp_path / "out" / "faces.json").read_text())
    assert says in held["light"] and held["alpha"] is None
    header = (tmp_path / "out" / "000000.exr").read_bytes()[:3000]
    assert says.encode() in header and (b"chromaticities" in header) == (colors[0] != 2)


def test_exr_of_a_face_and_of_images(model: Path, tmp_path: Path) -> None:
    (tmp_path / "plates").mkdir()
    for index, image in enumerate(footage.performance("target", 2)):
        cv2.imwrite(str(tmp_path / "plates" / f"{index}.png"), image[..., ::-1])
    found: FoundFaces = {1: [face_at(80, 78)]}
    for alpha in (False, True):
        stills.write_stills(tmp_path / "plates", tmp_path / str(alpha), swapper(model), found, alpha=alpha, form="exr")
    plate = light.srgb(footage.performance("target", 2)[1] / 255)
    alone, whole = halves(tmp_path / "True" / "000001.exr"), halves(tmp_path / "False" / "000001.exr")
    assert np.abs(alone[..., :3] + (1 - alone[..., 3:]) * plate - whole).max() < 1e-3
    assert alone[70:95, 70:90, 3].min() > 0.9 and not halves(tmp_path / "True" / "000000.exr").any()
    held = json.loads((tmp_path / "True" / "faces.json").read_text())
    assert held["alpha"] == "associated" and "sRGB" in held["light"]


def test_exr_of_footage_whose_light_is_not_known(model: Path, tmp_path: Path) -> None:
    native = ramp("yuv444p10le", 1, 1)
    native.color_trc = 9
    clip = write_ffv1(tmp_path / "in.mkv", [native])
    with pytest.raises(UsageError, match=r"number 9 of ITU-T H\.273.*choose --format tiff"):
        stills.check(tmp_path / "out", clip, "exr")
    stills.check(tmp_path / "out", clip, "tiff")
    assert video.probe(clip).colors.transfer == 9


@pytest.mark.parametrize("deep", [False, True])
def test_a_folder_of_images_is_footage_too(model: Path, tmp_path: Path, deep: bool) -> None:
    (tmp_path / "plates").mkdir()
    for index, image in enumerate(footage.performance("target", 4)):
        plate = image.astype(np.uint16) * 257 if deep else image
        cv2.imwrite(str(tmp_path / "plates" / f"shot_{index + 8}.png"), plate[..., ::-1])
    found = swap.detecting(tmp_path / "plates", SMALL, "cpu", None, tmp_path / "out")
    report = stills.write_stills(tmp_path / "plates", tmp_path / "out", swapper(model), found)
    assert report.frames == report.frames_swapped == 4
    held = json.loads((tmp_path / "out" / "faces.json").read_text())
    assert [row["footage"] for row in held["frames"]] == ["shot_8.png", "shot_9.png", "shot_10.png", "shot_11.png"]
    assert held["rate"] is None
    plate, image = read(tmp_path / "plates" / "shot_10.png"), read(tmp_path / "out" / "000002.png")
    changed = (plate != image).any(2)
    assert image.dtype == plate.dtype and changed.any() and not changed[:20].any()


def test_faces_of_a_folder_are_recalled(model: Path, tmp_path: Path) -> None:
    from faceswap import extract

    (tmp_path / "plates").mkdir()
    for index, image in enumerate(footage.performance("target", 4)):
        cv2.imwrite(str(tmp_path / "plates" / f"shot_{index}.png"), image[..., ::-1])
    extract.extract([tmp_path / "plates"], tmp_path / "faces", SMALL)
    cv2.imwrite(str(tmp_path / "plates" / "an_earlier_one.png"), np.zeros((160, 160, 3), np.uint8))
    found = swap.recalling(tmp_path / "faces", tmp_path / "plates")
    assert sorted(found) == [1, 2, 3, 4]  # by name


# ---------------------------------------------------------------- again


def test_what_is_there_is_kept_and_the_rest_is_the_same(
    model: Path, clips: dict[str, Path], found: FoundFaces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(name: str) -> stills.Report:
        made = swapper(model, batch=2, steady=1)
        return stills.write_stills(clips["target"], tmp_path / name, made, found, alpha=True)

    write("whole")
    wanted = contents(tmp_path / "whole")
    picture, lock, drawn = stills.picture, threading.Lock(), []

    def stop(plate: Frame, *rest: Any) -> Any:
        with lock:
            drawn.append(plate.index)
        if plate.index == 9 and len(drawn) < 12:
            raise KeyboardInterrupt
        return picture(plate, *rest)

    monkeypatch.setattr(stills, "picture", stop)
    with pytest.raises(KeyboardInterrupt):
        write("out")
    names = set(contents(tmp_path / "out"))
    assert names == {f"{index:06d}.png" for index in range(9)}  # nothing half-written, no index
    for name in ("000003.png", "000004.png"):
        (tmp_path / "out" / name).unlink()
    drawn.extend([0] * 12)
    before = len(drawn)
    report = write("out")
    assert drawn[before:] == [3, 4, *range(9, 16)] and report.kept == 7 and report.frames == 16
    assert contents(tmp_path / "out") == wanted
    monkeypatch.setattr(stills, "read_frames", lambda *_: pytest.fail("read again"))
    assert write("out").kept == 16


def test_images_of_other_work_are_replaced_only_if_asked(
    model: Path, clips: dict[str, Path], found: FoundFaces, tmp_path: Path
) -> None:
    out, few = tmp_path / "out", {0: found[0]}
    stills.write_stills(clips["target"], out, swapper(model), few, alpha=True)
    before = contents(out)
    with pytest.raises(OutputExistsError, match=r"holds images of another choice of faces; choose another folder"):
        stills.write_stills(clips["target"], out, swapper(model), {}, alpha=True)
    with pytest.raises(OutputExistsError, match=r"another merge recipe and kind of image"):
        stills.write_stills(clips["target"], out, swapper(model, blend="alpha"), few)
    assert contents(out) == before
    report = stills.write_stills(clips["target"], out, swapper(model), few, form="tiff", overwrite=True)
    assert report.kept == 0 and not list(out.glob("*.png")) and len(list(out.glob("*.tiff"))) == 16


def test_a_changed_image_is_not_replaced_unasked(
    model: Path, clips: dict[str, Path], found: FoundFaces, tmp_path: Path
) -> None:
    def write(**how: Any) -> stills.Report:
        return stills.write_stills(clips["target"], tmp_path / "out", swapper(model), found, **how)

    write()
    changed = tmp_path / "out" / "000004.png"
    whole = changed.read_bytes()
    changed.write_bytes(whole[:-300])
    with pytest.raises(OutputExistsError, match=r"000004.png: changed or damaged since it was made; move it away"):
        write()
    assert changed.read_bytes() == whole[:-300]
    assert write(overwrite=True).kept == 15 and changed.read_bytes() == whole


@pytest.mark.parametrize("name", ["thesis.txt", "000001.png", "faces.json"])
def test_a_folder_with_other_files_is_refused(model: Path, clips: dict[str, Path], tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(b"mine")
    with pytest.raises(UsageError, match=rf"found other files in it, such as {name}"):
        stills.write_stills(clips["target"], tmp_path / "out", swapper(model), {}, overwrite=True)
    assert contents(tmp_path / "out") == {name: b"mine"}


def test_where_images_may_not_go(model: Path, clips: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected a folder for --frames"):
        stills.check(tmp_path / "out.mp4", clips["target"])
    with pytest.raises(UsageError, match=r"is the footage itself"):
        stills.check(tmp_path, tmp_path)
    with pytest.raises(MediaError, match=r"no such file"):
        stills.write_stills(tmp_path / "no.mp4", tmp_path / "out", swapper(model), {})
    assert not list(tmp_path.iterdir())


def test_marks_are_left_out_if_asked(model: Path, clips: dict[str, Path], tmp_path: Path) -> None:
    bare = provenance.marker(tmp_path / "out", on=False, stills=True)
    stills.write_stills(clips["target"], tmp_path / "out", swapper(model), {}, marks=bare)
    assert provenance.verify(tmp_path / "out" / "000000.png").found == "nothing"
    assert json.loads((tmp_path / "out" / "faces.json").read_text())["marks"] == {}


def test_images_are_not_signed(tmp_path: Path) -> None:
    assert provenance.marker(tmp_path / "out.png", stills=True).credentials is None
    with pytest.raises(UsageError, match="images are not signed, only videos are"):
        provenance.marker(tmp_path / "out", cert=tmp_path / "c.pem", key=tmp_path / "k.pem", stills=True)
    assert signing.TYPES[".png"] == "image/png"  # though one by one they could be
