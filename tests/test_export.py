"""Tests of faceswap.export: the contract of .dfm files, as players rely on it."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from drawers import ARCHITECTURES, weights

from faceswap import align, checkpoint, dfm, export, players, swap
from faceswap.config import MergeRecipe, Recipe
from faceswap.errors import CheckpointError, FaceswapError, OutputExistsError, UsageError
from faceswap.export import SOURCE, TARGET

onnx = pytest.importorskip("onnx", reason="needs faceswap[export]")
runtime = pytest.importorskip("onnxruntime", reason="needs faceswap[export]")
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights(tmp_path_factory.mktemp("run") / f"{request.param}.safetensors", request.param)


@pytest.fixture(scope="module")
def plain(run: Path) -> tuple[Path, export.Report]:
    out = run.with_suffix(".dfm")
    return out, export.export(run, out, licence="CC BY 4.0")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights(tmp_path_factory.mktemp("pair") / "pair.safetensors")


def crops(count: int = 3, size: int = 64) -> list[Any]:
    """Some (R, R, 3) uint8 RGB, smooth and rough."""
    random = np.random.default_rng(1)
    sides = [4, 8, size][:count]
    noises = [random.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in sides]
    return [cv2.resize(noise, (size, size), interpolation=cv2.INTER_LINEAR) for noise in noises]


def as_players_do(path: Path, crop: Any, morph: float | None = None) -> list[Any]:
    """The three outputs of a crop (R, R, 3) uint8 RGB, by onnxruntime alone."""
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = {"in_face:0": crop[None, ..., ::-1].astype(np.float32) / 255}
    if morph is not None:
        given["morph_value:0"] = np.array([morph], np.float32)
    return session.run(None, given)


def as_merge_does(run: Path, crop: Any, person: int = SOURCE) -> tuple[Any, Any]:
    """Face (R, R, 3) RGB and mask (R, R)."""
    model, _ = checkpoint.load_model(run)
    return next(swap.draw(model, [crop], person, 1, CPU))


def test_names_shapes_types_and_versions_are_those_that_players_expect(plain: tuple[Path, export.Report]) -> None:
    model = onnx.load(plain[0])
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 8 and [(one.domain, one.version) for one in model.opset_import] == [("", 12)]

    def said(values: Any) -> list[tuple[str, list[int], int]]:
        kinds = [(one.name, one.type.tensor_type) for one in values]
        return [(name, [side.dim_value for side in kind.shape.dim], kind.elem_type) for name, kind in kinds]

    single = onnx.TensorProto.FLOAT
    assert said(model.graph.input) == [("in_face:0", [1, 64, 64, 3], single)]
    assert said(model.graph.output) == [
        ("out_face_mask:0", [1, 64, 64, 1], single),
        ("out_celeb_face:0", [1, 64, 64, 3], single),
        ("out_celeb_face_mask:0", [1, 64, 64, 1], single),
    ]
    assert not any(tensor.data_location for tensor in model.graph.initializer)
    assert plain[0].stat().st_size == plain[1].bytes < 2**31


def test_what_is_drawn_is_what_merge_draws(run: Path, plain: tuple[Path, export.Report]) -> None:
    assert plain[1].difference < 1e-5
    for crop in crops():
        target, face, mask = as_players_do(plain[0], crop)
        drawn, own = as_merge_does(run, crop)
        _, theirs = as_merge_does(run, crop, TARGET)
        assert np.abs(face[0, ..., ::-1] - drawn).max() < 1e-5 and np.abs(mask[0, ..., 0] - own).max() < 1e-5
        assert np.abs(target[0, ..., 0] - theirs).max() < 1e-5
        assert face.std() > 0.01 and np.abs(own - theirs).max() > 1e-3, "or else nothing was compared"


def test_blue_is_the_first_channel_on_both_sides(pair: Path, tmp_path: Path) -> None:
    state = checkpoint.read(pair)
    for name in state.tensors:
        if name.endswith("head.conv.weight"):
            state.tensors[name].zero_()
        if name.endswith("head.conv.bias"):  # red, green, blue, mask; four sub-pixels of each
            state.tensors[name][:] = torch.tensor([-9.0, -9, 9, 9]).repeat_interleave(4)
    checkpoint.write(tmp_path / "blue.safetensors", state)
    export.export(tmp_path / "blue.safetensors", tmp_path / "blue.dfm")
    _, face, _ = as_players_do(tmp_path / "blue.dfm", crops()[0])
    assert face[..., 0].min() > 0.99 and face[..., 1:].max() < 0.01

    model, state = checkpoint.load_model(pair)
    model.forward = lambda faces, person, photos=None: (faces, faces[:, :1])  # type: ignore[method-assign]
    blue = np.zeros((1, 64, 64, 3), np.float32)
    blue[..., 0] = 1
    _, face, red = export.Portable(model, state).draw(blue)
    assert np.array_equal(face, blue) and not red.any(), "the model itself sees red first"


def test_a_morph_goes_from_the_target_to_the_source(run: Path, tmp_path: Path) -> None:
    export.export(run, tmp_path / "m.dfm", morph=True)
    names = [one.name for one in onnx.load(tmp_path / "m.dfm").graph.input]
    assert names == ["in_face:0", "morph_value:0"]
    (crop,) = crops(1)
    faces = {morph: as_players_do(tmp_path / "m.dfm", crop, morph)[1][0, ..., ::-1] for morph in (0, 0.5, 1)}
    for morph, person in ((1, SOURCE), (0, TARGET)):
        assert np.abs(faces[morph] - as_merge_does(run, crop, person)[0]).max() < 1e-5
    np.testing.assert_allclose(faces[0.5], (faces[0] + faces[1]) / 2, atol=1e-5)


def test_half_floats_are_half_the_size_and_draw_nearly_the_same(
    run: Path, plain: tuple[Path, export.Report], tmp_path: Path
) -> None:
    report = export.export(run, tmp_path / "half.dfm", half=True)
    assert 1e-6 < report.difference < 2 / 255 and report.bytes < 0.6 * plain[1].bytes
    (crop,) = crops(1)
    face = as_players_do(tmp_path / "half.dfm", crop)[1]
    assert face.dtype == np.float32 and np.abs(face[0, ..., ::-1] - as_merge_does(run, crop)[0]).max() < 2 / 255


def test_a_person_learnt_alone_is_drawn_beside_the_mask_of_anyone(tmp_path: Path) -> None:
    alone = weights(tmp_path / "alone.safetensors", people=("source", "anyone"))
    export.export(alone, tmp_path / "alone.dfm")
    (crop,) = crops(1)
    target, face, _ = as_players_do(tmp_path / "alone.dfm", crop)
    assert np.abs(face[0, ..., ::-1] - as_merge_does(alone, crop)[0]).max() < 1e-5
    assert np.abs(target[0, ..., 0] - as_merge_does(alone, crop, TARGET)[1]).max() < 1e-5


def test_one_person_alone_lends_the_mask_and_cannot_morph(tmp_path: Path) -> None:
    one = weights(tmp_path / "one.safetensors", people=("source",))
    export.export(one, tmp_path / "one.dfm")
    target, _, mask = as_players_do(tmp_path / "one.dfm", crops()[0])
    assert np.abs(target - mask).max() < 1e-6
    with pytest.raises(UsageError, match="--morph: the run knows one person only; expected a pair"):
        export.export(one, tmp_path / "other.dfm", morph=True)
    assert not (tmp_path / "other.dfm").exists()


def test_the_file_says_what_it_is_and_names_no_footage(plain: tuple[Path, export.Report], run: Path) -> None:
    model = onnx.load(plain[0])
    said = {one.key: one.value for one in model.metadata_props}
    assert said["faceswap.consent"] == "Anna, in writing" and said["faceswap.licence"] == "CC BY 4.0"
    assert said["faceswap.crop"] == "facefusion" and "(0.3534, 0.3929)" in said["faceswap.points"]
    assert said["faceswap.model"] == checkpoint.digest(checkpoint.load_model(run)[0].state_dict())
    assert (said["faceswap.images"], model.producer_name) == ("120", "faceswap")
    assert "anna.mp4" not in str(said) and str(run.parent) not in str(model.graph)


@pytest.mark.parametrize("player", ["deepfacelive", "visomaster"])
def test_a_file_for_another_player_draws_its_crop_as_ours_is_drawn(pair: Path, player: str, tmp_path: Path) -> None:
    frame = crops(1, 200)[0]
    points = align.apply(align.invert(align.crop_matrix(align.TEMPLATE * 100, 100)), align.TEMPLATE * 100) + 45
    there = align.similarity(points, players.TABLE[player].points * 64)
    ours = align.crop_matrix(points, 64)
    theirs, own = (cv2.warpAffine(frame, m, (64, 64), borderMode=cv2.BORDER_REPLICATE) for m in (there, ours))
    export.export(pair, tmp_path / "x.dfm", player)
    _, face, mask = as_players_do(tmp_path / "x.dfm", theirs)
    drawn, drawn_mask = as_merge_does(pair, own)
    back = there @ np.vstack([align.invert(ours), [0, 0, 1]])
    wanted = cv2.warpAffine(drawn, back, (64, 64), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    mask_wanted = cv2.warpAffine(drawn_mask, back, (64, 64), flags=cv2.INTER_CUBIC)
    assert np.abs(face[0, ..., ::-1] - wanted).mean() < 4 / 255, "resampled twice"
    assert np.abs(mask[0, ..., 0] - mask_wanted.clip(0, 1)).mean() < 2 / 255
    unlike = as_merge_does(pair, theirs)[0]
    assert np.abs(face[0, ..., ::-1] - wanted).mean() < 0.7 * np.abs(unlike - wanted).mean()
    with pytest.raises(CheckpointError, match=f"made for the crop of {player}; use its run, or export it without"):
        dfm.load_model(tmp_path / "x.dfm")


def test_moving_by_matrices_is_a_resampling() -> None:
    image = crops(2)[1].astype(np.float32) / 255
    moved = np.array([[1.07, 0, 0.02 * 64], [0, 1.07, -0.03 * 64]])
    wanted = cv2.warpAffine(image, moved, (64, 64), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    rows, columns = (export.resampling(64, 1.07, shift, cv2.BORDER_REPLICATE).numpy() for shift in (-0.03, 0.02))
    found = np.einsum("ij,jkc,lk->ilc", rows, image, columns)
    assert np.abs(found - wanted).max() < 0.02
    np.testing.assert_allclose(rows.sum(1), 1, atol=1e-5)
    assert np.array_equal(export.resampling(64, 1, 0, cv2.BORDER_CONSTANT).numpy(), np.eye(64))


def test_what_cannot_be_exported_is_said_in_a_line(pair: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ending in \.dfm or \.onnx; choose another -o"):
        export.export(pair, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match="a base, which knows nobody"):
        export.export(weights(tmp_path / "base.safetensors", people=("anyone",)), tmp_path / "x.dfm")
    (tmp_path / "there.dfm").write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        export.export(pair, tmp_path / "there.dfm")
    with pytest.raises(UsageError, match="is exported already"):
        export.export(tmp_path / "there.dfm", tmp_path / "x.dfm")
    assert (tmp_path / "there.dfm").read_bytes() == b"mine" and not (tmp_path / "x.dfm").exists()


def test_a_file_that_draws_otherwise_is_not_left(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "CLOSE", 0.0)
    with pytest.raises(CheckpointError, match="it draws otherwise"):
        export.export(pair, tmp_path / "x.dfm")
    assert not list(tmp_path.iterdir())


def test_merge_draws_the_same_with_the_file(pair: Path, tmp_path: Path) -> None:
    export.export(pair, tmp_path / "x.dfm")
    one, other = (swap.Swapper(path, MergeRecipe(), CPU) for path in (pair, tmp_path / "x.dfm"))
    given = crops()
    for (face, mask), (again, same) in zip(
        *(made.models[0](given, swap.SOURCE, 8) for made in (one, other)), strict=True
    ):
        assert np.abs(face - again).max() < 1 / 255 and np.abs(mask - same).max() < 1 / 255
    assert other.name == "x.dfm 120 images"


@pytest.mark.parametrize("exported", [True, False])
def test_a_preview_shows_every_player(pair: Path, clips: dict[str, Path], exported: bool, tmp_path: Path) -> None:
    model = pair
    if exported:
        model = tmp_path / "x.dfm"
        export.export(pair, model)
    recipe = Recipe().changed(extract={"min_size": 40})
    report = export.preview(model, clips["target"], tmp_path / "sheet.png", recipe)
    assert report.players == ["faceswap", "facefusion", "deepfacelive", "visomaster"] and report.frames == 5
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape == (players.LABEL + 5 * players.CELL, 16 * players.CELL, 3)


def test_without_the_extra_the_remedy_is_said(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(FaceswapError, match=r"onnxruntime is not installed.*pip install 'faceswap\[export\]'"):
        export.export(pair, tmp_path / "x.dfm")
