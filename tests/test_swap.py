import pickle
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import footage
import numpy as np
import pytest
import torch

from faceswap import align, checkpoint, extract, found, pair, provenance, signing, swap, train
from faceswap.checkpoint import State
from faceswap.config import ExtractRecipe, MergeRecipe, Recipe, check
from faceswap.detectors import Face
from faceswap.errors import CheckpointError, FacesetError, OutputExistsError, UsageError
from faceswap.video import Frame, probe, read_frames
from faceswap.who import Who

CPU = torch.device("cpu")
RECIPE = check(
    {
        "model": {"resolution": 32, "width": 4, "code": 16},
        "data": {"batch": 4, "degrade": 0},
        "extract": {"min_size": 40, "size": 64},
        "train": {"images": 80},
    },
    "test",
)


def weights(path: Path, people: tuple[str, ...] = ("source", "target")) -> Path:
    """A weight file of a fresh network whose mask is wide open."""
    torch.manual_seed(0)
    model = checkpoint.new_model(RECIPE, list(people))
    tensors = {f"ema.{name}": tensor for name, tensor in model.state_dict().items()}
    for name in tensors:
        if name.endswith("head.conv.bias"):
            tensors[name][12:] = 9.0
    checkpoint.write(path, State(RECIPE, list(people), tensors))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights(tmp_path_factory.mktemp("model") / "pair.safetensors")


def swapper(model: Path, **merge: object) -> swap.Swapper:
    return swap.Swapper(model, MergeRecipe.model_validate(merge), CPU)


def face_at(x: float, y: float, iod: float = 25.0) -> Face:
    points = np.float32(footage.UNIT_POINTS * (iod / 25) + (x, y))
    return Face(np.float32([x - 30, y - 40, x + 30, y + 40]), points, 1.0)


def frame(index: int = 0, size: int = 160) -> Frame:
    image = np.random.default_rng(index).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Frame(index, Fraction(index, 25), Path("some.mp4"), image)


def test_a_frame_without_a_face_is_passed_on_itself(model: Path) -> None:
    given = [frame(i) for i in range(3)]
    got = list(swapper(model)((f, []) for f in given))
    assert all(out is original and count == 0 for (out, count), original in zip(got, given, strict=True))


def test_a_face_is_replaced_inside_and_nothing_else(model: Path) -> None:
    original, face = frame(), face_at(80, 80)
    ((out, count),) = swapper(model)([(original, [face])])
    assert count == 1 and out.index == original.index and out.time == original.time
    changed = (out.image != original.image).any(2)
    assert changed[70:95, 70:90].mean() > 0.9
    matrix = align.crop_matrix(face.points, 32)
    x0, y0, x1, y1 = align.region(matrix, 32, original.image.shape) or (0, 0, 0, 0)
    changed[y0:y1, x0:x1] = False
    assert not changed.any()


def test_batches_change_nothing(model: Path) -> None:
    given = [(frame(i), [face_at(70 + i, 80), face_at(120, 60, 15)][: i % 3]) for i in range(7)]
    one, many = (list(swapper(model, batch=batch)(given)) for batch in (1, 4))
    assert [count for _, count in one] == [count for _, count in many] == [0, 1, 2, 0, 1, 2, 0]
    for (a, _), (b, _) in zip(one, many, strict=True):
        assert np.abs(a.image.astype(int) - b.image).max() <= 1


def test_max_faces_takes_the_largest(model: Path) -> None:
    faces = [face_at(60, 80), face_at(130, 130, 10)]
    ((out, count),) = swapper(model, max_faces=1)([(frame(), faces)])
    assert count == 1
    assert np.array_equal(out.image[125:140, 120:140], frame().image[125:140, 120:140])


def test_faces_at_the_border_and_outside_are_survived(model: Path) -> None:
    faces = [face_at(0, 0), face_at(159, 80), face_at(-400, -400)]
    ((out, count),) = swapper(model)([(frame(), faces)])
    assert count == 2 and out.image.shape == (160, 160, 3)  # the third lies outside


def test_several_models_draw_each_its_own_faces(model: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    how = check({"model": {"resolution": 48, "width": 4, "code": 16}}, "test")
    network = checkpoint.new_model(how, ["source", "target"])
    tensors = {f"ema.{name}": tensor for name, tensor in network.state_dict().items()}
    for name in tensors:
        if name.endswith("head.conv.bias"):
            tensors[name][12:] = 9.0
    other = tmp_path / "other.safetensors"
    checkpoint.write(other, State(how, ["source", "target"], tensors))
    recipe = MergeRecipe(batch=1, mask="product")
    both = swap.Swapper([model, other], recipe, CPU)
    assert both.name == "pair.safetensors, other.safetensors"
    assert [part.size for part in both.models] == [32, 48]
    left, right = replace(face_at(45, 60, 18), track=0), replace(face_at(115, 100, 18), track=1)
    given = [(frame(i), [left, replace(right, model=1)][: 2 - i % 2]) for i in range(3)]
    first = swap.Swapper(model, recipe, CPU)((f, [face for face in faces if not face.model]) for f, faces in given)
    half = [(out, faces) for (out, _), (_, faces) in zip(first, given, strict=True)]
    second = swap.Swapper(other, recipe, CPU)(
        (f, [replace(face, model=0) for face in faces if face.model]) for f, faces in half
    )
    for (out, count), (wanted, _), (_, faces) in zip(both(given), second, given, strict=True):
        assert count == len(faces) and np.array_equal(out.image, wanted.image)
    again = pickle.loads(pickle.dumps(both.made_from)).swapper()
    video = tmp_path / "any.mp4"
    video.touch()
    assert swap.what_decides(video, again, {}) == swap.what_decides(video, both, {})
    one = swap.what_decides(video, swap.Swapper(model, recipe, CPU), {})
    assert one["model"] != swap.what_decides(video, both, {})["model"]


def test_who_draws_a_face_is_kept(tmp_path: Path) -> None:
    faces = {3: [replace(face_at(45, 60), model=2), face_at(90, 60)]}
    found.write(tmp_path / "faces.npz", faces)
    again = found.read(tmp_path / "faces.npz")
    assert [face.model for face in again[3]] == [2, 0] and found.digest(again) == found.digest(faces)
    assert found.digest(again) != found.digest({3: [face_at(45, 60), face_at(90, 60)]})


def test_a_base_cannot_draw_a_pair(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"knows nobody; expected a run of faceswap finetune"):
        swapper(weights(tmp_path / "base.safetensors", ("anyone",)))


@pytest.mark.parametrize(("key", "word"), [("color", "mkll"), ("blend", "feathr")])
def test_an_unknown_way_is_named(model: Path, key: str, word: str) -> None:
    with pytest.raises(UsageError, match="did you mean"):
        swapper(model, **{key: word})


def test_video_keeps_count_rate_times_and_sound(model: Path, clips: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    find = swap.detecting(clips["target"], RECIPE.extract, "cpu")
    report = swap.swap_video(clips["target"], out, swapper(model), find)
    assert (report.frames, report.frames_swapped, report.faces_swapped) == (16, 14, 14)
    before, after = list(read_frames(clips["target"])), list(read_frames(out))
    assert [f.time for f in before] == [f.time for f in after]
    assert probe(out).rate == probe(clips["target"]).rate
    sounds = []
    for path in (clips["target"], out):
        with av.open(path) as container:
            sounds.append([bytes(p) for p in container.demux(audio=0) if p.size])
    assert sounds[0] == sounds[1]
    difference = [np.abs(a.image.astype(int) - b.image).mean() for a, b in zip(before, after, strict=True)]
    assert max(difference[5:7]) < 1 < min(difference[:5] + difference[7:])


def test_the_result_says_that_it_was_swapped(model: Path, clips: dict[str, Path], tmp_path: Path) -> None:
    find = swap.detecting(clips["target"], RECIPE.extract, "cpu")
    swap.swap_video(clips["target"], tmp_path / "out.mp4", swapper(model), find)
    with av.open(tmp_path / "out.mp4") as container:
        assert "swapped with faceswap" in container.metadata["comment"]
        assert container.metadata["digitalsourcetype"].endswith("compositeWithTrainedAlgorithmicMedia")
    assert provenance.verify(tmp_path / "out.mp4").found == ("signed" if signing.available() else "tagged")
    bare = provenance.Marker(False, None)
    swap.swap_video(clips["target"], tmp_path / "bare.mp4", swapper(model), find, marks=bare)
    assert provenance.verify(tmp_path / "bare.mp4").found == "nothing"


def test_deleted_faces_are_not_swapped(
    model: Path, clips: dict[str, Path], facesets: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(facesets["target"], tmp_path / "faces")
    for path in sorted((tmp_path / "faces").iterdir())[:4]:
        path.unlink()
    find = swap.recalling(tmp_path / "faces", clips["target"])
    report = swap.swap_video(clips["target"], tmp_path / "out.mp4", swapper(model), find)
    assert (report.frames, report.frames_swapped) == (16, 10)


def test_recalled_faces_are_those_that_were_found(clips: dict[str, Path], facesets: dict[str, Path]) -> None:
    found = swap.detecting(clips["target"], ExtractRecipe(size=64, min_size=40), "cpu")
    recalled = swap.recalling(facesets["target"], clips["target"])
    assert sorted(found) == sorted(recalled) == [i for i in range(16) if i not in (5, 6)]
    for index, faces in found.items():
        for a, b in zip(faces, recalled[index], strict=True):
            np.testing.assert_allclose(a.points, b.points, atol=2e-3)
            np.testing.assert_allclose(a.matrix(64), b.matrix(64), atol=1e-6)
            assert (a.landmarks is None) == (b.landmarks is None) and a.track == b.track


def test_the_users_own_mask_bounds_the_swap(
    model: Path, clips: dict[str, Path], facesets: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(facesets["target"], tmp_path / "faces")
    first = min((tmp_path / "faces").iterdir())
    cv2.imwrite(str(first.with_name(f"{first.stem}.mask.png")), np.zeros((64, 64), np.uint8))
    found = swap.recalling(tmp_path / "faces", clips["target"])
    report = swap.swap_video(clips["target"], tmp_path / "out.mp4", swapper(model), found)
    assert report.frames_swapped == 13  # where the mask is empty nothing is laid in


@pytest.mark.parametrize("scale", [1.0, 1.1])
def test_nothing_grows_beyond_the_users_own_mask(model: Path, tmp_path: Path, scale: float) -> None:
    path = tmp_path / "0.png"
    cv2.imwrite(str(path), np.zeros((64, 64, 3), np.uint8))
    half = np.zeros((64, 64), np.uint8)
    half[:, :32] = 255
    cv2.imwrite(str(path.with_name("0.mask.png")), half)
    whole, own = face_at(80, 80), replace(face_at(80, 80), mask=path)
    draw = swapper(model, erode=-0.1, feather=0.02, scale=scale)
    changed = []
    for face in (whole, own):
        ((made, count),) = draw([(frame(), [face])])
        assert count == 1
        changed.append((made.image != frame().image).any(2))
    middle = round(float(align.apply(align.invert(own.matrix(64)), np.array([[31.5, 32.0]]))[0, 0]))
    assert changed[0][:, middle + 20 :].any() and changed[1].any()
    assert not changed[1][:, middle + 6 :].any(), "two pixels of the crop, by interpolation"


def test_an_output_that_cannot_be_is_said_before_the_work(
    clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swap, "Finder", lambda *_: pytest.fail("looked for faces"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        swap.detecting(clips["target"], ExtractRecipe(), "cpu", out=tmp_path / "file" / "out.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_faces_of_another_video_are_refused(clips: dict[str, Path], facesets: dict[str, Path]) -> None:
    with pytest.raises(FacesetError, match=r"holds no face of target.mp4; extract that video"):
        swap.recalling(facesets["source"], clips["target"])


def test_two_videos_in_one_out_and_a_second_run_goes_on(
    clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.mp4"
    report = pair.swap_pair(clips["source"], clips["target"], out, RECIPE, device="cpu")
    assert report.merge is not None and report.merge.frames_swapped == 14
    assert report.training.images == 80 and probe(out).frames == 16
    assert report.work == tmp_path / "out.faceswap"
    with pytest.raises(OutputExistsError, match="add --overwrite"):
        pair.swap_pair(clips["source"], clips["target"], out, RECIPE, device="cpu")

    monkeypatch.setattr("faceswap.extract.extract", lambda *_, **__: pytest.fail("extracted again"))
    more = RECIPE.changed(train={"images": 120})
    again = pair.swap_pair(clips["source"], clips["target"], out, more, device="cpu", overwrite=True)
    assert again.training.images == 120

    with pytest.raises(UsageError, match=r"made from another source; choose another --work"):
        pair.swap_pair(clips["target"], clips["target"], out, more, device="cpu", overwrite=True)


def test_a_first_try_that_failed_binds_nobody(clips: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    with pytest.raises(UsageError, match="no track 9"):
        pair.swap_pair(clips["source"], clips["target"], out, RECIPE, device="cpu", who={"target": Who(tracks=(9,))})
    how = RECIPE.changed(train={"images": 8})
    report = pair.swap_pair(clips["source"], clips["target"], out, how, device="cpu", who={"target": Who(tracks=(0,))})
    assert report.merge is not None
    with pytest.raises(UsageError, match="made from another extraction of the target; choose another --work"):
        pair.swap_pair(clips["source"], clips["target"], out, how, device="cpu", overwrite=True)


def test_every_fifth_face_of_a_video_is_said_to_flicker(
    clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("faceswap.console.warn", said.append)
    extract.extract([clips["source"]], tmp_path / "faces", ExtractRecipe(size=64, min_size=40, every=5))
    swap.recalling(tmp_path / "faces", clips["source"])
    assert any("every 5th frame at most" in line and "extract without --every" in line for line in said)


def test_interrupted_training_is_not_merged(
    clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = train.Report(tmp_path, 40, 1.0, 40.0, {}, "interrupted")
    monkeypatch.setattr("faceswap.train.train", lambda *_, **__: stopped)
    report = pair.swap_pair(clips["source"], clips["target"], tmp_path / "out.mp4", RECIPE, device="cpu")
    assert report.merge is None and not (tmp_path / "out.mp4").exists()


def test_a_folder_of_other_things_is_no_work_folder(clips: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("mine")
    how: Recipe = RECIPE
    with pytest.raises(UsageError, match="found other files"):
        pair.swap_pair(clips["source"], clips["target"], tmp_path / "out.mp4", how, work=tmp_path / "work")


REAL = footage.DATA / "clips"


@pytest.mark.skipif(not REAL.is_dir(), reason="no real footage beside the project")
@pytest.mark.parametrize(("clip", "least"), [("stage_cuts", 0.5), ("walking_720p", 0.98)])
def test_real_footage_with_cuts_and_nobody(model: Path, tmp_path: Path, clip: str, least: float) -> None:
    video, out = REAL / f"{clip}.mp4", tmp_path / "out.mp4"
    find = swap.detecting(video, Recipe().extract, "cpu")
    report = swap.swap_video(video, out, swapper(model), find)
    assert report.frames == probe(video).frames == probe(out).frames
    assert report.frames_swapped >= least * report.frames
    assert probe(out).rate == probe(video).rate
    faces = extract.extract([video], tmp_path / "faces", ExtractRecipe(every=10, size=64))
    assert faces.faces >= least * faces.frames
