import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from faceswap import align, landmarks
from faceswap.batches import MASK_FEATHER, Batch, Faces, batches, order, split, still
from faceswap.config import DataRecipe
from faceswap.errors import FacesetError
from faceswap.faceset import Entry, Faceset
from faceswap.masks import face_mask

CPU = torch.device("cpu")
RECIPE = DataRecipe(batch=8)


@pytest.fixture(scope="module")
def people(facesets: dict[str, Path]) -> list[Faces]:
    return [Faces(Faceset.open(path).entries, 32, 1e9, name) for name, path in facesets.items()]


def first(people: list[Faces], count: int, images: int = 0, **more: int) -> list[Batch]:
    return list(islice(batches(people, RECIPE, 0, images, CPU, **more), count))


def test_a_batch_holds_as_many_faces_of_everybody(people: list[Faces]) -> None:
    batch = first(people, 1)[0]
    assert batch.input.shape == batch.target.shape == (8, 3, 32, 32)
    assert batch.mask.shape == (8, 1, 32, 32)
    assert batch.person.tolist() == [0] * 4 + [1] * 4


def test_what_comes_hangs_on_the_images_seen_alone(people: list[Faces]) -> None:
    through, later = first(people, 4), first(people, 2, images=16)
    for one, other in zip(through[2:], later, strict=True):
        for name in ("input", "target", "mask", "person"):
            assert torch.equal(getattr(one, name), getattr(other, name))


def test_every_epoch_shows_every_image_once_in_another_order() -> None:
    seen = np.concatenate([order(10, 3, position, 4) for position in range(0, 40, 4)])
    epochs = seen.reshape(4, 10)
    assert (np.sort(epochs, 1) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_processes_share_a_batch_without_overlap() -> None:
    whole = order(10, 0, 0, 8)
    parts = [whole[rank::2] for rank in range(2)]
    assert sorted(np.concatenate(parts)) == sorted(whole)


def test_two_processes_get_half_a_batch_each(people: list[Faces]) -> None:
    halves = [first(people, 1, rank=rank, world=2)[0] for rank in range(2)]
    assert [half.person.tolist() for half in halves] == [[0, 0, 1, 1]] * 2
    assert not torch.equal(halves[0].target, halves[1].target)


def test_streaming_gives_what_memory_gives(facesets: dict[str, Path]) -> None:
    entries = Faceset.open(facesets["source"]).entries
    kept, streamed = (Faces(entries, 32, memory, "source") for memory in (1e9, 0))
    assert np.array_equal(kept[[3, 1, 2]], streamed[[3, 1, 2]])


def test_masks_lie_on_the_faces(people: list[Faces]) -> None:
    mask = people[0][[0]][0, :, :, 3]
    assert mask[17, 16] == 255 and mask[0, 0] == 0


def landmarked(entry: Entry) -> Entry:
    """The face with landmarks, all amid the crop but for a round contour."""
    turns = 2 * np.pi * np.arange(36) / 36
    inside = np.full((landmarks.COUNT, 2), 0.5)
    inside[landmarks.CONTOUR] += 0.2 * np.stack([np.sin(turns), -np.cos(turns)], 1)
    frame = align.apply(align.invert(np.array(entry.meta.matrix)), inside * entry.meta.size - 0.5)
    return replace(entry, meta=replace(entry.meta, landmarks=frame.tolist()))


@pytest.mark.parametrize("memory", [1e9, 0])
def test_dense_landmarks_draw_the_mask_where_there_are_any(facesets: dict[str, Path], memory: float) -> None:
    five, dense = Faceset.open(facesets["source"]).entries[:2]
    dense = landmarked(dense)
    masks = Faces([five, dense], 32, memory, "some")[[0, 1]][..., 3]
    for entry, mask in zip([five, dense], masks, strict=True):
        expected = face_mask(entry.meta.crop_outline(32), 32, MASK_FEATHER)
        np.testing.assert_array_equal(mask, (expected * 255).round())
    assert masks[1].sum() < 0.7 * masks[0].sum()


@pytest.mark.parametrize("memory", [1e9, 0])
@pytest.mark.parametrize("side", [64, 100])
def test_a_users_mask_wins(facesets: dict[str, Path], tmp_path: Path, memory: float, side: int) -> None:
    shutil.copytree(facesets["source"], tmp_path / "some")
    first, second, *_ = Faceset.open(tmp_path / "some").entries
    painted = np.zeros((side, side), np.uint8)
    painted[: side // 2] = 255
    cv2.imwrite(str(first.path.with_suffix(".mask.png")), painted)
    masks = Faces([landmarked(first), second], 32, memory, "some")[[0, 1]][..., 3]
    assert (masks[0, :14] == 255).all() and not masks[0, 18:].any()
    assert np.array_equal(masks[1], Faces([second], 32, memory, "some")[[0]][0, ..., 3])


def test_unusable_masks_are_counted_and_named(
    facesets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("faceswap.console.warn", said.append)
    shutil.copytree(facesets["source"], tmp_path / "some")
    entries = Faceset.open(tmp_path / "some").entries
    plain = Faces(entries, 32, 1e9, "some")[[0, 1, 2]]
    cv2.imwrite(str(entries[0].path.with_suffix(".mask.png")), np.zeros((64, 48), np.uint8))
    entries[2].path.with_suffix(".mask.png").write_bytes(b"damaged")
    assert np.array_equal(Faces(entries, 32, 1e9, "some")[[0, 1, 2]], plain)
    assert len(said) == 1 and said[0].startswith("2 masks of your own give way to the landmarks' masks, the first: ")
    assert "found 48 x 64 px" in said[0]
    streamed = Faces(entries, 32, 0, "some")
    for _ in range(2):
        assert np.array_equal(streamed[[0, 1, 2]], plain)
    assert len(said) == 2 and said[1].startswith("2 masks")


def test_held_out_faces_stay_held_out_when_others_are_deleted(facesets: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(facesets["source"], tmp_path / "some")
    train, held = split([Faceset.open(tmp_path / "some")], 0.3)
    assert len(train) + len(held) == 16 and not {e.key for e in train} & {e.key for e in held}
    for entry in train[:3]:
        entry.path.unlink()
    train[4].path.rename(tmp_path / "some" / "renamed.png")
    fewer, same = split([Faceset.open(tmp_path / "some")], 0.3)
    assert {e.key for e in same} == {e.key for e in held}
    assert len(fewer) == len(train) - 3


def test_about_the_share_asked_for_is_held_out(facesets: dict[str, Path]) -> None:
    faceset = Faceset.open(facesets["source"])
    first = faceset.entries[0]
    faceset.entries = [replace(first, meta=replace(first.meta, frame=i)) for i in range(1000)]
    for share in (0.1, 0.3):
        _, held = split([faceset], share)
        assert abs(len(held) - 1000 * share) < 40
        spread = np.diff(sorted(e.meta.frame for e in held)).max()
        assert spread < 120  # all along the footage


def test_two_faces_are_one_to_train_on_and_one_held_out(facesets: dict[str, Path], tmp_path: Path) -> None:
    for path in sorted(facesets["source"].iterdir())[:2]:
        shutil.copy(path, tmp_path)
    train, held = split([Faceset.open(tmp_path)], 0.1)
    assert len(train) == len(held) == 1


def test_one_face_is_too_few(facesets: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(next(facesets["source"].iterdir()), tmp_path)
    with pytest.raises(FacesetError, match=r"expected at least 2 faces.*found 1; extract more"):
        split([Faceset.open(tmp_path)], 0.1)


def spoil(path: Path) -> None:
    """Keep the header with its metadata, destroy the pixels."""
    data = path.read_bytes()
    start = data.index(b"IDAT") + 4
    path.write_bytes(data[:start] + bytes(len(data) - start))


def test_a_damaged_image_is_left_out_and_named(
    facesets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("faceswap.console.warn", said.append)
    shutil.copytree(facesets["source"], tmp_path / "some")
    damaged = sorted((tmp_path / "some").iterdir())[3]
    spoil(damaged)
    faces = Faces(Faceset.open(tmp_path / "some").entries, 32, 1e9, "some")
    assert len(faces) == 15 and damaged not in [e.path for e in faces.entries]
    assert len(said) == 1 and "1 images do not decode" in said[0] and str(damaged) in said[0]
    streamed = Faces(Faceset.open(tmp_path / "some").entries, 32, 0, "some")
    for _ in range(2):
        assert np.array_equal(streamed[[2, 3, 4]], streamed[[2, 4, 4]])
    assert len(said) == 2 and "another face stands in" in said[1]


def test_still_faces_are_as_they_are(people: list[Faces]) -> None:
    batch = still(people[0], [2], 1, CPU)
    assert batch.person.tolist() == [1]
    expected = people[0][[2]][0, :, :, :3]
    assert np.array_equal((batch.target[0].permute(1, 2, 0) * 255).round().byte().numpy(), expected)
