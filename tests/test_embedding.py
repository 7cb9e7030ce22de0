"""Tests of faceswap.embedding: the arithmetic on made-up embeddings, the embedders where they are installed."""

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import footage
import numpy as np
import pytest
import torch
from facenet_pytorch import InceptionResnetV1
from numpy.typing import NDArray
from safetensors.torch import save_file

from faceswap import align, embedding, extract
from faceswap.config import ExtractRecipe
from faceswap.embedding import Dlib, Embedder, FaceNet
from faceswap.errors import CheckpointError, FaceswapError
from faceswap.faceset import Faceset, read_image

Picture = NDArray[np.uint8]


class Colour:
    """A fake embedder: the mean colour."""

    name, same, other = "colour", 10.0, 50.0

    def __call__(self, images: Sequence[Picture]) -> NDArray[np.float32]:
        return np.array([image.mean((0, 1)) for image in images], np.float32).reshape(len(images), 3)


def crop(look: str, size: int = 192, turn: float = 0.0) -> Picture:
    """The canonical crop of a drawn face."""
    image = footage.draw_face(240, (120, 120), 1.8, look, turn=turn)
    matrix = align.crop_matrix(footage.UNIT_POINTS * 1.8 + 120, size)
    return align.as_uint8(align.crop(image, matrix, size))


def forget(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """As if `modules` were not installed."""
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr("faceswap.console.warn", said.append)
    return said


# The arithmetic


def test_distances_are_euclidean_for_each_pair() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    found = embedding.distances(a, b[:2])
    expected = [[np.linalg.norm(x.astype(np.float64) - y) for y in b[:2]] for x in a]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.diag(embedding.distances(a, a)).max() < 1e-6


def test_likeness_of_points_on_a_line() -> None:
    source, target, swaps = (np.array(points, np.float32)[:, None] for points in ([0, 2], [10], [1, 9]))
    found = embedding.likeness(swaps, source, target)
    assert found == embedding.Likeness(to_source=4.5, to_target=5.0, spread=2.0, apart=9.0, nearer=0.5)


def test_swaps_like_the_source_lie_as_far_from_it_as_its_own_frames() -> None:
    rng = np.random.default_rng(0)
    source, swaps, target = (rng.normal(size=(400, 16)).astype(np.float32) for _ in range(3))
    target += 3
    perfect, idle = embedding.likeness(swaps, source, target), embedding.likeness(target, source, target)
    assert perfect.to_source == pytest.approx(perfect.spread, rel=0.01) and perfect.nearer == 1
    assert idle.to_source == idle.apart and idle.nearer == 0
    assert idle.to_source > idle.spread * 1.5


@pytest.mark.parametrize("counts", [(0, 2, 1), (1, 1, 1), (1, 2, 0)])
def test_too_few_faces_are_refused_and_not_nan(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"expected at least 1 swap, 2 faces .* found {}, {} and {}".format(*counts)):
        embedding.likeness(*(np.zeros((count, 4), np.float32) for count in counts))


def test_the_line_says_how_to_read_it() -> None:
    embedder: Embedder = Colour()
    images = [np.full((4, 4, 3), level, np.uint8) for level in (0, 4, 10, 100)]
    points = embedder(images)
    line = embedding.describe(embedding.likeness(points[2:3], points[:2], points[3:]), embedder)
    assert line == (
        "identity: swaps lie 13.86 from the source, whose own frames lie 6.93 apart, and 155.88 from the target; "
        "one person usually lies below 10.00, others above 50.00 (colour)"
    )


# Finding one


def test_without_an_embedder_there_is_none_and_nothing_is_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, warnings: list[str]
) -> None:
    forget(monkeypatch, "dlib", "face_recognition_models")
    monkeypatch.setattr("faceswap.files.weight_folders", lambda: [tmp_path])
    assert embedding.find_embedder() is None and warnings == []
    assert "\n" not in embedding.NOT_MEASURED and "pip install 'faceswap[identity]'" in embedding.NOT_MEASURED


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, text: str) -> None:
    """A package `name` in `folder` that comes before any other of that name."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(sys.modules, name, sys)  # so that whatever is there now comes back in the end
    del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("raise ImportError('libopenblas.so:\\n  no such file')", r"\(libopenblas.so: no such file\)"),
        ("def shape_predictor(path): raise RuntimeError('Unable to open ' + path)", r"\(Unable to open .*5_face.*\)"),
        ("", "has no attribute 'shape_predictor'"),
    ],
)
def test_a_dlib_that_does_not_work_is_said_and_the_next_is_tried(
    text: str, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, warnings: list[str]
) -> None:
    install(monkeypatch, tmp_path, "dlib", text)
    install(monkeypatch, tmp_path, "face_recognition_models", "raise ImportError('pkg_resources')")
    monkeypatch.setattr(embedding, "FINDERS", (embedding.find_dlib, Colour))
    found = embedding.find_embedder()
    assert found is not None and found.name == "colour"
    assert len(warnings) == 1 and re.search(why, warnings[0]) and "\n" not in warnings[0]
    assert "pip install --force-reinstall dlib-bin" in warnings[0]


@pytest.mark.parametrize(
    ("there", "missing"), [("dlib", "face_recognition_models"), ("face_recognition_models", "dlib")]
)
def test_half_an_installation_is_said(
    there: str, missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, there, "")
    forget(monkeypatch, missing)
    with pytest.raises(FaceswapError, match=rf"identity: {missing} is missing .*pip install 'faceswap\[identity\]'"):
        embedding.find_dlib()


def test_the_module_brings_neither_dlib_nor_torch_with_it() -> None:
    script = "import sys, faceswap.embedding; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"dlib", "torch", "facenet_pytorch"} & set(done.stdout.split())


def test_the_predictor_that_may_not_be_used_commercially_is_not_named() -> None:
    assert "shape_predictor_68" not in Path(embedding.__file__).read_text()


# dlib


@pytest.fixture(scope="module")
def dlib() -> Dlib:
    pytest.importorskip("dlib", reason="dlib is not installed: pip install 'faceswap[identity]'")
    found = embedding.find_dlib()
    if found is None:
        pytest.skip("face_recognition_models is not installed: pip install 'faceswap[identity]'")
    assert isinstance(found, Dlib)
    return found


@pytest.mark.parametrize("look", list(footage.LOOKS))
@pytest.mark.parametrize("size", [96, 192, 256])
def test_dlib_finds_the_eyes_where_the_template_has_them(dlib: Dlib, look: str, size: int) -> None:
    right, left = dlib.points(crop(look, size))[:4].reshape(2, 2, 2).mean(1)
    np.testing.assert_allclose(np.array([left, right]) / size, align.TEMPLATE[:2], atol=0.03)


def test_dlib_embeds_each_face_on_its_own_and_the_same_each_time(dlib: Dlib, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = [crop("source"), crop("target"), crop("source", turn=2)]
    together = dlib(faces)
    assert together.shape == (3, 128) and together.dtype == np.float32
    np.testing.assert_array_equal(dlib(faces), together)
    monkeypatch.setattr(embedding, "AT_ONCE", 2)
    np.testing.assert_allclose(dlib(faces), together, atol=1e-5)
    view = np.flip(np.flip(faces[0], 1).copy(), 1)  # memory in another order
    np.testing.assert_allclose(dlib([view])[0], together[0], atol=1e-5)
    assert dlib([]).shape == (0, 128)


def test_dlib_cares_for_the_person_more_than_for_the_size_of_the_crop(dlib: Dlib) -> None:
    large, small, another = dlib([crop("source", 256), crop("source", 128), crop("target", 256)])
    assert np.linalg.norm(large - small) < 0.3 * np.linalg.norm(large - another)


REAL = footage.DATA / "clips"


@pytest.mark.skipif(not REAL.is_dir(), reason="no real footage beside the project")
def test_dlib_tells_real_people_apart(dlib: Dlib, tmp_path: Path) -> None:
    people = []
    for name in ("actor_a", "actor_b"):
        extract.extract([REAL / f"{name}.mp4"], tmp_path / name, ExtractRecipe(size=192, every=40))
        people.append(dlib([read_image(entry.path) for entry in Faceset.open(tmp_path / name).entries]))
    a, b = people
    assert min(len(a), len(b)) >= 5
    for person in people:
        among = embedding.distances(person, person)[np.triu_indices(len(person), 1)]
        assert among.mean() < dlib.same and among.max() < dlib.other
    assert embedding.distances(a, b).min() > dlib.other
    found = embedding.likeness(a[:3], a[3:], b)
    assert found.to_source < dlib.same < dlib.other < found.to_target and found.nearer == 1


# FaceNet


@pytest.fixture(scope="module")
def random_net() -> InceptionResnetV1:
    torch.manual_seed(0)
    return InceptionResnetV1().eval()


@pytest.fixture(scope="module")
def weights(random_net: InceptionResnetV1, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random weights under the name that is looked for."""
    folder = tmp_path_factory.mktemp("pretrained")
    save_file(random_net.state_dict(), folder / embedding.FACENET_FILE)
    return folder


def test_facenet_is_found_embeds_and_gives_length_one(
    weights: Path, random_net: InceptionResnetV1, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    forget(monkeypatch, "dlib", "face_recognition_models")
    monkeypatch.setenv("FACESWAP_PRETRAINED", str(weights))
    found = embedding.find_embedder()
    assert isinstance(found, FaceNet) and warnings == []
    faces = [crop("source", 192), crop("target", 256)]
    embedded = found(faces)
    assert embedded.shape == (2, 512) and embedded.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, atol=1e-5)
    batch = torch.from_numpy(np.stack([found._cut(face) for face in faces])).permute(0, 3, 1, 2)
    with torch.no_grad():
        np.testing.assert_allclose(embedded, random_net((batch.float() - 127.5) / 128).numpy(), atol=1e-5)
    assert found([]).shape == (0, 512)


def test_facenet_sees_the_part_of_the_crop_that_a_box_of_mtcnn_covers() -> None:
    rows, columns = np.mgrid[:256, :256]
    ramp = np.stack([columns, rows, np.zeros_like(rows)], 2).astype(np.uint8)
    part = FaceNet._cut(FaceNet.__new__(FaceNet), ramp)
    assert part.shape == (160, 160, 3)
    x0, y0, x1, y1 = (edge * 256 for edge in FaceNet.BOX)
    np.testing.assert_allclose(part[80, [1, -2], 0], [x0 + (x1 - x0) / 160, x1 - 2 * (x1 - x0) / 160], atol=1.5)
    np.testing.assert_allclose(part[[1, -2], 80, 1], [y0 + (y1 - y0) / 160, y1 - 2 * (y1 - y0) / 160], atol=1.5)


def test_facenet_weights_are_looked_for_in_all_folders(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("faceswap.files.weight_folders", lambda: [tmp_path / "none", tmp_path])
    assert embedding.find_facenet() is None
    monkeypatch.setattr("faceswap.files.weight_folders", lambda: [tmp_path, weights])
    assert isinstance(embedding.find_facenet(), FaceNet)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def another_network(path: Path) -> None:
    save_file({"conv2d_1a.conv.weight": torch.zeros(3)}, path)


def changed(path: Path) -> None:
    path.with_name(f"{path.name}.sha256").write_text(f"{'0' * 64}  {path.name}\n")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (cut_short, "not a whole safetensors file"),
        (another_network, "InceptionResnetV1, found others"),
        (changed, "changed since it was pulled; faceswap pretrained pull inception-resnet-v1 --overwrite"),
    ],
)
def test_damaged_facenet_weights_give_one_line(
    damage: Callable[[Path], None],
    why: str,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    warnings: list[str],
) -> None:
    path = tmp_path / embedding.FACENET_FILE
    path.write_bytes((weights / embedding.FACENET_FILE).read_bytes())
    damage(path)
    forget(monkeypatch, "dlib", "face_recognition_models")
    monkeypatch.setenv("FACESWAP_PRETRAINED", str(tmp_path))
    with pytest.raises(CheckpointError, match=why) as caught:
        embedding.find_facenet()
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert embedding.find_embedder() is None and warnings == [str(caught.value)]


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8, 3), np.float32), np.zeros((8, 9, 3), np.uint8), np.zeros((8, 8), np.uint8)]
)
def test_what_is_no_crop_is_refused(image: Picture) -> None:
    with pytest.raises(ValueError, match=r"expected canonical crops \(S, S, 3\) uint8, found \(8, "):
        embedding._batches([image])
