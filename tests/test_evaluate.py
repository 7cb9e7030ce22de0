"""Tests of faceswap.evaluate: what is measured of a model when there is no truth."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from faceswap import align, batches, checkpoint, config, embedding, evaluate, landmarks
from faceswap.config import Recipe
from faceswap.errors import CheckpointError, FacesetError, OutputExistsError, UsageError
from faceswap.evaluate import Views
from faceswap.faceset import Faceset
from faceswap.train import train


@pytest.fixture(scope="module")
def run(facesets: dict[str, Path], tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluate") / "run"
    recipe = tiny.changed(train={"images": 40})
    train(recipe, {name: [folder] for name, folder in facesets.items()}, path, device="cpu")
    return path


@pytest.fixture(scope="module")
def report(run: Path, tiny: Recipe) -> evaluate.Report:
    return evaluate.evaluate(run, tiny, device="cpu")


def test_a_pair_is_measured_as_both_people_and_as_a_swap(report: evaluate.Report, run: Path) -> None:
    assert report.model == run / "best.safetensors" and report.images == 40
    people, rows = report.tables.values()
    assert list(people) == ["source as source, held out", "target as target, held out"]
    for row in people.values():
        assert set(row) == {"psnr", "ssim", "ms_ssim"} and row["psnr"] is not None and 5 < row["psnr"] < 40
    assert list(rows) == ["swap", "target as target", "noise floor"]
    expected = {"found", "landmarks", "pose", "mouth", "flicker", "seam", "sharpness"}
    assert expected | {"swap_back", "decoders"} <= set(rows["swap"]) and expected <= set(rows["noise floor"])


def test_the_noise_floor_is_small(report: evaluate.Report) -> None:
    rows = report.tables["the swap against the target"]
    floor: dict[str, Any] = rows["noise floor"]
    assert floor["found"] == 1 and floor["landmarks"] < 10 and floor["pose"] < 10 and 0.5 < floor["flicker"] < 1.3
    assert floor["seam"] < 1.5 and 0 < floor["sharpness"] < 1


def test_a_swap_that_repeats_the_target_is_exposed(
    run: Path, tiny: Recipe, tmp_path: Path, report: evaluate.Report
) -> None:
    same = tmp_path / "run"
    shutil.copytree(run, same)
    state = checkpoint.read(same / "best.safetensors")
    for name in list(state.tensors):
        if name.endswith(".who.weight"):  # who is drawn is all that the two people do not share
            state.tensors[name] = state.tensors[name][[1, 1]]
    checkpoint.write(same / "best.safetensors", state)
    found = evaluate.evaluate(same, tiny, device="cpu")
    row = found.tables["the swap against the target"]["swap"]
    assert row["decoders"] == 0 and any("merely repeat the target" in note for note in found.notes)


def test_the_page_has_the_figures_and_the_pictures(report: evaluate.Report, run: Path) -> None:
    assert report.page == run / "evaluation.html"
    text = report.page.read_text()
    assert "the swap against the target" in text and text.count("<img") >= 5 * 2
    assert "://" not in text


def test_what_is_measured_is_json(report: evaluate.Report) -> None:
    assert json.loads(json.dumps(report.tables)) == report.tables


def test_the_same_evaluation_gives_the_same_figures(report: evaluate.Report, run: Path, tiny: Recipe) -> None:
    again = evaluate.evaluate(run / "best.safetensors", tiny, device="cpu")
    assert json.dumps(again.tables) == json.dumps(report.tables)


def test_the_held_out_faces_are_those_of_training(run: Path, facesets: dict[str, Path]) -> None:
    state = checkpoint.read(run / "best.safetensors")
    people = evaluate._people(run / "best.safetensors", state, None)
    for name, folder in facesets.items():
        kept, held = batches.split([Faceset.open(folder)], state.recipe.data.holdout)
        assert {entry.key for entry in people[name].held} == {entry.key for entry in held}
        assert {entry.key for entry in people[name].every} == {entry.key for entry in kept + held}


def test_how_the_run_was_merged_counts_unless_told_otherwise(
    run: Path, facesets: dict[str, Path], tiny: Recipe, tmp_path: Path
) -> None:
    state = checkpoint.read(run / "best.safetensors")
    base = state.recipe.changed(merge={"color": "none", "feather": 0.05})
    given = config.load(settings=["merge.feather=0.03"])
    assert (given.over(base).merge.color, given.over(base).merge.feather) == ("none", 0.03)
    assert config.load().over(base) == base


def test_a_weight_file_alone_replaces_no_page(
    run: Path, facesets: dict[str, Path], tiny: Recipe, tmp_path: Path
) -> None:
    weights = shutil.copy(run / "best.safetensors", tmp_path / "w.safetensors")
    (tmp_path / "evaluation.html").write_text("mine")
    with pytest.raises(OutputExistsError):
        evaluate.evaluate(Path(weights), tiny, device="cpu", faces=facesets["target"])
    assert (tmp_path / "evaluation.html").read_text() == "mine"


def test_a_page_of_ones_own_is_not_overwritten(run: Path, tiny: Recipe, tmp_path: Path) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("mine")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        evaluate.evaluate(run, tiny, device="cpu", out=mine)
    assert mine.read_text() == "mine"


def test_other_faces_stand_in_for_the_targets(
    run: Path, facesets: dict[str, Path], tiny: Recipe, tmp_path: Path
) -> None:
    found = evaluate.evaluate(run, tiny, device="cpu", faces=facesets["source"], out=tmp_path / "page.html")
    rows = found.tables["reconstruction, at 192 px"]
    assert list(rows) == ["source as source, held out", f"target as target, {facesets['source'].name}"]
    assert found.page == tmp_path / "page.html"


def test_faces_that_are_gone_are_said(run: Path, facesets: dict[str, Path], tiny: Recipe, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    note = moved / checkpoint.FACESETS
    known = json.loads(note.read_text())
    note.write_text(json.dumps(known | {"source": [str(tmp_path / "gone")]}))
    found = evaluate.evaluate(moved, tiny, device="cpu")
    people, rows = found.tables.values()
    assert list(people) == ["target as target, held out"] and rows["swap"]["sharpness"] is None
    note.write_text(json.dumps(known | {"target": [str(tmp_path / "gone")]}))
    with pytest.raises(FacesetError, match=r"gone.*name some with --faces"):
        evaluate.evaluate(moved, tiny, device="cpu")
    note.write_text("[]")
    with pytest.raises(CheckpointError, match="damaged; delete it"):
        evaluate.evaluate(moved, tiny, device="cpu")
    with pytest.raises(CheckpointError, match="no such weight file"):
        evaluate.evaluate(tmp_path / "nothing", tiny, device="cpu")


def test_a_base_is_measured_by_its_reconstruction(facesets: dict[str, Path], tiny: Recipe, tmp_path: Path) -> None:
    recipe = tiny.changed(train={"images": 8})
    train(recipe, {"anyone": [facesets["source"]]}, tmp_path / "base", device="cpu")
    for faces in (None, facesets["target"]):
        found = evaluate.evaluate(tmp_path / "base", recipe, device="cpu", faces=faces)
        assert list(found.tables) == ["reconstruction, at 192 px"]
        (row,) = found.tables["reconstruction, at 192 px"]
        assert row == f"anyone as anyone, {faces.name if faces else 'held out'}"


def test_faces_without_a_next_frame_have_no_flicker(
    run: Path, facesets: dict[str, Path], tiny: Recipe, tmp_path: Path
) -> None:
    lonely = tmp_path / "lonely"
    lonely.mkdir()
    for entry in Faceset.open(facesets["target"]).entries[::2]:
        if entry.meta.frame % 2 == 0:
            shutil.copy(entry.path, lonely)
    found = evaluate.evaluate(run, tiny, device="cpu", faces=lonely, out=tmp_path / "page.html")
    rows = found.tables["the swap against the target"]
    assert "flicker" not in rows["swap"] and "landmarks" in rows["swap"]


def views(shift: float, step: float = 0.1) -> Views:
    random = np.random.default_rng(0)
    images = np.full((9, 32, 32, 3), 0.5, np.float32)
    points = random.uniform(5, 27, (9, 5, 2)) + shift
    return Views(images, images + np.float32(step), points)


def test_another_person_is_not_blamed_for_another_face() -> None:
    mask = np.zeros((9, 32, 32), np.float32)
    mask[:, 8:24, 8:24] = 1
    found = [
        evaluate.agreement(views(3), views(0), mask, mask, same_person=same_person)["landmarks"]
        for same_person in (True, False)
    ]
    assert found[0] is not None and found[0] > 10 and found[1] == pytest.approx(0, abs=1e-9)
    few = [Views(v.images[:3], v.following[:3], v.points[:3]) for v in (views(3), views(0))]
    alone = evaluate.agreement(few[0], few[1], mask[:3], mask[:3], same_person=False)
    assert np.isnan(alone["landmarks"]) and alone["found"] == 1, "a mean over three would take the error with it"
    flicker = evaluate.agreement(views(0, 0.2), views(0, 0.1), mask, mask, same_person=True)["flicker"]
    assert flicker == pytest.approx(2)


def test_identity_is_measured_or_said_not_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        name, same, other = "fake", 0.4, 0.6

        def __call__(self, images: Any) -> Any:
            return np.array([[float(image.mean()), 0.0] for image in images], np.float32)

    faces = {value: [np.full((8, 8, 3), value, np.uint8)] * 3 for value in (10, 20, 40)}
    notes: list[str] = []
    monkeypatch.setattr(embedding, "find_embedder", lambda: Fake())
    found = evaluate.likeness(faces[10], faces[40], {"swap": faces[20], "none": faces[40]}, notes)
    assert found["swap"] == {"identity_source": 10, "identity_target": 20, "identity_spread": 0}
    assert found["none"]["identity_target"] == 0 and "10.00 from the source" in notes[0]
    monkeypatch.setattr(embedding, "find_embedder", lambda: None)
    assert evaluate.likeness(faces[10], faces[40], {"swap": faces[20]}, notes) == {"swap": {}}
    assert notes[1] == embedding.NOT_MEASURED


def test_the_floor_is_a_swap_without_a_mistake(facesets: dict[str, Path], tiny: Recipe) -> None:
    entry = Faceset.open(facesets["target"]).entries[0]
    shot = evaluate._Shot.of(entry, 96)
    laid = shot.swapped(shot.itself(), tiny.merge)
    assert np.abs(laid.astype(int) - shot.image).mean() < 2 and (laid != shot.image).any()


def test_masks_are_drawn_from_dense_landmarks_where_a_face_has_them(facesets: dict[str, Path], tiny: Recipe) -> None:
    entry = Faceset.open(facesets["target"]).entries[0]
    turns = 2 * np.pi * np.arange(len(landmarks.CONTOUR)) / len(landmarks.CONTOUR)
    inside = np.full((landmarks.COUNT, 2), 0.5)
    inside[landmarks.CONTOUR] += 0.15 * np.stack([np.sin(turns), -np.cos(turns)], 1)
    places = align.apply(align.invert(np.array(entry.meta.matrix)), inside * entry.meta.size)
    dense = replace(entry, meta=replace(entry.meta, landmarks=places.tolist()))
    five, small = (evaluate._Shot.of(face, 96) for face in (entry, dense))
    assert np.array_equal(five.points, small.points) and small.outline.shape == (landmarks.COUNT, 2)
    assert evaluate._masks([small]).sum() < 0.5 * evaluate._masks([five]).sum()
    drawn = np.zeros((96, 96, 3), np.float32), np.ones((96, 96), np.float32)
    changed = [(shot.swapped(drawn, tiny.merge) != shot.image).any(2) for shot in (small, five)]
    outside = evaluate.laid_in(small.outline, tiny.merge) == 0
    assert changed[0].any() and changed[0][outside].mean() < 0.02 < 0.1 < changed[1][outside].mean()


def test_faces_are_laid_in_as_merge_lays_them_in(facesets: dict[str, Path], tiny: Recipe) -> None:
    shot = evaluate._Shot.of(Faceset.open(facesets["target"]).entries[0], 96)
    plain = shot.swapped(shot.itself(), tiny.merge)
    for change in ({"scale": 0.9}, {"sharpen": 1.0}, {"blend": "poisson"}, {"erode": 0.1}):
        assert (shot.swapped(shot.itself(), tiny.merge.model_copy(update=change)) != plain).any(), change
    none = np.zeros((96, 96), np.float32)
    product = tiny.merge.model_copy(update={"mask": "product"})
    assert np.array_equal(shot.swapped(shot.itself(), product, target=none), shot.image)


def test_a_wrong_name_is_said_before_the_work(run: Path, tiny: Recipe) -> None:
    with pytest.raises(UsageError, match="no mask called 'learnt'; did you mean 'learned'"):
        evaluate.evaluate(run, tiny.changed(merge={"mask": "learnt"}), device="cpu")
