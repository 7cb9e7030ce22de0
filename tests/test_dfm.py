"""Tests of faceswap.dfm: files of any tool, read as data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawers import weights

from faceswap import checkpoint, config, dfm, evaluate, export, swap
from faceswap.config import MergeRecipe
from faceswap.errors import CheckpointError, FaceswapError, UsageError
from faceswap.models import ANYONE

onnx = pytest.importorskip("onnx", reason="needs faceswap[export]")
pytest.importorskip("onnxruntime", reason="needs faceswap[export]")
CPU = torch.device("cpu")
SIZE = 64


def foreign(
    path: Path,
    *,
    inputs: Any = (("in_face:0", ["N", SIZE, SIZE, 3]),),
    outputs: int = 3,
    kind: int | None = None,
    extra: Any = (),
) -> Path:
    """A file as another tool writes it, with sizes left open: the face is turned to its negative, blue first; the
    target's mask is 1, the drawn one the blue of the input."""
    helper, floats = onnx.helper, kind or onnx.TensorProto.FLOAT
    one = helper.make_tensor("one", floats, [1], [1.0])
    numbers = [helper.make_tensor(name, onnx.TensorProto.INT64, [1], [value]) for name, value in (("0", 0), ("1", 1))]
    axis = helper.make_tensor("axis", onnx.TensorProto.INT64, [1], [3])
    nodes = [
        helper.make_node("Slice", [inputs[0][0], "0", "1", "axis"], ["blue"]),
        helper.make_node("Sub", ["one", inputs[0][0]], ["face"]),
        helper.make_node("Sub", ["blue", "blue"], ["nothing"]),
        helper.make_node("Add", ["nothing", "one"], ["target"]),
    ]
    made = [helper.make_tensor_value_info(name, floats, shape) for name, shape in inputs]
    given = [helper.make_tensor_value_info(name, floats, None) for name in ("target", "face", "blue")[:outputs]]
    graph = helper.make_graph([*nodes, *extra], "g", made, given, [one, axis, *numbers])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=7)
    path.write_bytes(model.SerializeToString())
    return path


def face(seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def test_a_file_of_another_tool_draws_through_the_contract_of_our_models(tmp_path: Path) -> None:
    model, state = dfm.load_model(foreign(tmp_path / "celebrity.dfm"))
    assert state.recipe.model.resolution == SIZE and state.subjects == ["source", "target"] and model.people == 1
    crop, other = face(), face(1)
    (drawn, mask), (second, _) = swap.draw(model, [crop, other], swap.SOURCE, 8, CPU)
    np.testing.assert_allclose(drawn, 1 - crop.astype(np.float32) / 255, atol=1e-6)
    np.testing.assert_allclose(mask, crop[..., 2].astype(np.float32) / 255, atol=1e-6)
    np.testing.assert_allclose(second, 1 - other.astype(np.float32) / 255, atol=1e-6)
    ((itself, target),) = swap.draw(model, [crop], swap.TARGET, 8, CPU)
    assert np.array_equal(itself, crop.astype(np.float32) / 255) and (target == 1).all()


def test_merge_takes_it_and_the_masks_of_both(tmp_path: Path) -> None:
    path = foreign(tmp_path / "celebrity.onnx")
    swapper = swap.Swapper(path, MergeRecipe(mask="product"), CPU)
    assert swapper.models[0].size == SIZE and swapper.name == "celebrity.onnx"
    assert ANYONE not in swapper.models[0].network.state_dict()
    other = foreign(tmp_path / "other.dfm", inputs=(("in_face:0", [1, SIZE, SIZE, 3]),))
    digests = {
        checkpoint.digest(swap.Swapper(p, MergeRecipe(), CPU).models[0].network.state_dict()) for p in (path, other)
    }
    assert len(digests) == 2, "a merge that was interrupted goes on with the same file only"


def test_a_morph_is_both_people(tmp_path: Path) -> None:
    run = weights(tmp_path / "pair.safetensors")
    export.export(run, tmp_path / "m.dfm", morph=True)
    model, state = dfm.load_model(tmp_path / "m.dfm")
    ours, _ = checkpoint.load_model(run)
    assert model.people == 2 and state.consent == "Anna, in writing" and state.progress.images == 120
    for person in (swap.SOURCE, swap.TARGET):
        (one,), (other,) = (swap.draw(each, [face()], person, 1, CPU) for each in (ours, model))
        assert np.abs(one[0] - other[0]).max() < 1e-5 and np.abs(one[1] - other[1]).max() < 1e-5


def test_evaluate_measures_it_on_other_faces(tmp_path: Path, facesets: dict[str, Path], tiny: config.Recipe) -> None:
    path = foreign(tmp_path / "celebrity.dfm")
    report = evaluate.evaluate(path, tiny, device="cpu", faces=facesets["target"])
    assert list(report.tables["the swap against the target"]) == ["swap", "noise floor"]
    assert list(report.tables) == ["the swap against the target"] and report.page == tmp_path / "celebrity.html"
    assert not report.notes and "Evaluation of celebrity<" in report.page.read_text()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"inputs": [("image", [1, SIZE, SIZE, 3])]}, "expected the input in_face:0"),
        (
            {"inputs": [("in_face:0", [1, 3, SIZE, SIZE])]},
            r"as \[N, R, R, 3\], R a multiple of 16 from 32 to 1024; found",
        ),
        ({"inputs": [("in_face:0", ["N", "H", "W", 3])]}, r"found \['N', 'H', 'W', 3\]"),
        ({"inputs": [("in_face:0", [1, 8192, 8192, 3])]}, "from 32 to 1024"),
        ({"outputs": 2}, "expected three outputs"),
        ({"inputs": [("in_face:0", ["N", SIZE, SIZE, 3]), ("x:0", [1])]}, "perhaps morph_value:0"),
    ],
)
def test_what_does_not_keep_to_the_convention_is_refused(tmp_path: Path, how: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        dfm.load_model(foreign(tmp_path / "x.dfm", **how))
    assert "\n" not in str(caught.value)


def test_outputs_of_another_size_or_not_finite_are_refused(tmp_path: Path) -> None:
    model = onnx.load(foreign(tmp_path / "x.dfm"))
    model.graph.output.append(model.graph.output[0])
    del model.graph.output[0]  # face, mask, mask
    onnx.save(model, tmp_path / "x.dfm")
    with pytest.raises(CheckpointError, match="mask, face and mask, found"):
        dfm.load_model(tmp_path / "x.dfm")
    model = onnx.load(foreign(tmp_path / "x.dfm"))
    model.graph.initializer[0].CopyFrom(onnx.helper.make_tensor("one", 1, [1], [float("nan")]))
    onnx.save(model, tmp_path / "x.dfm")
    with pytest.raises(CheckpointError, match="expected finite"):
        dfm.load_model(tmp_path / "x.dfm")


@pytest.mark.parametrize("content", [b"", b"not a protobuf at all", b"\x80\x04\x95garbage of a pickle", b"\x00" * 64])
def test_a_file_that_is_no_model_gets_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.dfm").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.dfm: ") as caught:
        dfm.load_model(tmp_path / "x.dfm")
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"no such file; expected a \.dfm"):
        dfm.load_model(tmp_path / "gone.dfm")


@pytest.mark.parametrize("where", ["initializer", "branch"])
def test_weights_outside_of_the_file_are_refused(tmp_path: Path, where: str) -> None:
    """A path in a model could point anywhere on the disk."""
    outside = onnx.helper.make_tensor("secret", onnx.TensorProto.FLOAT, [1], b"\0" * 4, raw=True)
    onnx.external_data_helper.set_external_data(outside, location="../../etc/passwd")
    outside.data_location = onnx.TensorProto.EXTERNAL
    model = onnx.load(foreign(tmp_path / "x.dfm"))
    if where == "initializer":
        model.graph.initializer.append(outside)
    else:
        branch = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["y"], value=outside)], "b", [], [])
        model.graph.node.append(onnx.helper.make_node("If", ["face"], ["z"], then_branch=branch, else_branch=branch))
    (tmp_path / "x.dfm").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=r"weights \('secret'\) lie outside of it; expected one file"):
        dfm.load_model(tmp_path / "x.dfm")


def test_too_large_a_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x.dfm").open("wb") as file:
        file.truncate(2**31)  # sparse
    with pytest.raises(CheckpointError, match="less than 2 GB"):
        dfm.load_model(tmp_path / "x.dfm")


def test_a_dfm_has_no_base_and_can_do_nothing_but_draw(tmp_path: Path) -> None:
    path = foreign(tmp_path / "x.dfm")
    with pytest.raises(UsageError, match="leave out --base and --strength"):
        dfm.load_model(path, strength=0.5)
    model, _ = dfm.load_model(path)
    for wanted in (lambda: model.code(torch.zeros(1)), lambda: model.load_base({}), lambda: model.as_base({})):
        with pytest.raises(CheckpointError, match="can draw and nothing else"):
            wanted()


def test_a_device_that_onnxruntime_lacks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("faceswap.console.warn", said.append)
    dfm.Dfm(foreign(tmp_path / "x.dfm"), torch.device("mps"))
    assert said == ["x.dfm: drawn on the CPU, as onnxruntime finds no mps; CUDA: onnxruntime-gpu"]


def test_a_run_is_read_as_ever(tmp_path: Path) -> None:
    model, state = dfm.load_model(weights(tmp_path / "pair.safetensors"))
    assert model.people == 2 and state.consent == "Anna, in writing"


def test_without_the_extra_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = foreign(tmp_path / "x.dfm")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(FaceswapError, match=r"onnx is not installed, which \.dfm files need; pip install"):
        dfm.load_model(path)
