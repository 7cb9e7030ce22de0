import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from faceswap import align, landmarks
from faceswap.actors import SHOTS, write_faces
from faceswap.batches import (
    MASK_FEATHER,
    MOST_REPEATS,
    Batch,
    Faces,
    Loader,
    Order,
    Pairs,
    batches,
    pose_bins,
    settle,
    split,
    still,
)
from faceswap.config import DataRecipe
from faceswap.errors import FacesetError
from faceswap.faceset import Entry, Faceset
from faceswap.masks import face_mask, regions
from faceswap.train import parts

CPU = torch.device("cpu")
RECIPE = DataRecipe(batch=8)


@pytest.fixture(scope="module")
def people(facesets: dict[str, Path]) -> list[Faces]:
    return [Faces(Faceset.open(path).entries, 32, 1e9, name) for name, path in facesets.items()]


FIELDS = ("input", "target", "mask", "priority", "person", "photo")
EVERYTHING = DataRecipe(batch=8, degrade=0.4, disguise=0.3, occlude=0.5, blur_out=True, transfer="mkl", sampling="pose")
TWICE = EVERYTHING.model_copy(update={"sampling": "person"})


def first(people: list[Faces], count: int, images: int = 0, recipe: DataRecipe = RECIPE, **more: int) -> list[Batch]:
    return list(islice(batches(people, recipe, 0, images, CPU, **more), count))


def test_a_batch_holds_as_many_faces_of_everybody(people: list[Faces]) -> None:
    batch = first(people, 1)[0]
    assert batch.input.shape == batch.target.shape == (8, 3, 32, 32)
    assert batch.mask.shape == batch.priority.shape == (8, 1, 32, 32)
    assert batch.person.tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize("recipe", [RECIPE, EVERYTHING, TWICE])
def test_what_comes_hangs_on_the_images_seen_alone(people: list[Faces], recipe: DataRecipe) -> None:
    through, later = first(people, 4, recipe=recipe), first(people, 2, 16, recipe)
    for one, other in zip(through[2:], later, strict=True):
        for name in FIELDS:
            assert torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("recipe", [RECIPE, EVERYTHING, TWICE])
def test_two_processes_see_what_one_sees(people: list[Faces], recipe: DataRecipe) -> None:
    whole = first(people, 2, recipe=recipe)
    halves = [first(people, 2, recipe=recipe, rank=rank, world=2) for rank in range(2)]
    for step, batch in enumerate(whole):
        for rank in range(2):
            assert halves[rank][step].person.tolist() == [0, 0, 1, 1]
            for name in FIELDS:
                assert torch.equal(getattr(halves[rank][step], name), getattr(batch, name)[rank::2])


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("recipe", [RECIPE, EVERYTHING, TWICE])
@pytest.mark.parametrize("resident", [False, True])
def test_a_gpus_way_gives_the_same(
    facesets: dict[str, Path], monkeypatch: pytest.MonkeyPatch, recipe: DataRecipe, resident: bool, world: int
) -> None:
    said: list[str] = []
    monkeypatch.setattr("faceswap.console.say", said.append)
    people = [Faces(Faceset.open(path).entries, 32, 1e9, name) for name, path in facesets.items()]
    for _ in range(2):
        settle(people, CPU, 2**30 if resident else 2**10)
    assert all((faces.on(CPU) is not None) == resident for faces in people)
    assert said[0].endswith("stay on cpu" if resident else "are sent batch by batch to cpu")
    assert len(said) == (1 if resident else 2)
    with ThreadPoolExecutor(2) as workers:
        for rank in range(world):
            loaders = [Loader(people, recipe, 0, CPU, rank, world, together, workers) for together in (False, True)]
            for step in range(3):
                one, other = (load(step) for load in loaders)
                for name in ("input", "target", "mask", "priority", "photo"):
                    ours, theirs = getattr(one, name), getattr(other, name)
                    assert (ours - theirs).abs().mean() < 2 / 255 and (ours - theirs).abs().max() < 0.1
                assert torch.equal(one.person, other.person)


@pytest.mark.parametrize(("kinds", "share"), [(1, 8), (2, 4), (3, 4)])
@pytest.mark.parametrize("sampling", ["shuffle", "person"])
def test_generic_faces_come_on_top(people: list[Faces], kinds: int, share: int, sampling: str) -> None:
    recipe = DataRecipe.model_validate({"batch": 8, "sampling": sampling, "transfer": "reinhard", "occlude": 0.5})
    some = [*people, people[0]][:kinds]
    one, two = first(some, 2, recipe=recipe)
    assert one.person.tolist() == [person for person in range(kinds) for _ in range(share)]
    later = first(some, 1, share * kinds, recipe)[0]
    assert torch.equal(later.input, two.input), "a step is as many images as a batch holds"


def test_generic_faces_change_nothing_of_the_others(people: list[Faces]) -> None:
    calm = DataRecipe(batch=8, warp=0, rotation=0, scale=0, shift=0, flip=0, color=0, degrade=0)
    two, three = first(people, 1, recipe=calm)[0], first([*people, people[0]], 1, recipe=calm)[0]
    assert torch.equal(three.target[:8], two.target)
    lit = calm.model_copy(update={"transfer": "mkl"})
    assert torch.equal(
        first([*people, people[0]], 1, recipe=lit)[0].target[4:],
        first([*people, people[0]], 1, recipe=calm)[0].target[4:],
    ), "only the first person is relit"


@pytest.mark.parametrize("world", [1, 2])
def test_by_person_a_photo_is_the_partners_target(people: list[Faces], world: int) -> None:
    for rank in range(world):
        for batch in first(people, 3, recipe=TWICE, rank=rank, world=world):
            half = len(batch.target) // 4
            for start in (0, 2 * half):
                one, other = (slice(start + i * half, start + (i + 1) * half) for i in range(2))
                assert torch.equal(batch.photo[one], batch.target[other])
                assert torch.equal(batch.photo[other], batch.target[one])
            assert batch.photo.is_contiguous(memory_format=torch.channels_last)
            for part, _ in parts(batch, 2):
                assert len(part.photo) == 2 * half and part.person.tolist() == [0] * half + [1] * half
    plain = first(people, 1)[0]
    assert plain.photo is plain.target


def test_parts_of_a_batch_keep_the_photos(people: list[Faces]) -> None:
    batch = first(people, 1, recipe=TWICE)[0]
    for start, (part, _) in enumerate(parts(batch, 2)):
        assert torch.equal(part.photo, batch.photo[start::2]) and torch.equal(part.target, batch.target[start::2])


def paired(people: list[int], position: int, count: int, seed: int = 3) -> tuple[list[int], list[int]]:
    """Faces at a position, and their partners."""
    rows = Pairs(Order(np.zeros(len(people), np.int64), seed), np.array(people))(position, count).tolist()
    return rows[: count // 2], rows[count // 2 :]


COMPANY = [7, 3, 7, 9, 3, 7, 11, 7]  # four faces of one, two of another, and two who have but one


def test_a_partner_is_another_face_of_the_same_person() -> None:
    met: dict[int, set[int]] = {row: set() for row in range(len(COMPANY))}
    for position in range(0, 1600, 4):
        for row, other in zip(*paired(COMPANY, position, 4), strict=True):
            assert COMPANY[row] == COMPANY[other]
            assert (row != other) == (COMPANY.count(COMPANY[row]) > 1)
            met[row].add(other)
    for row, others in met.items():
        family = {other for other, person in enumerate(COMPANY) if person == COMPANY[row]}
        assert others == (family - {row} or {row}), "all of them, at one time or another"


def test_partners_come_as_often() -> None:
    found = [other for position in range(0, 8000, 8) for _, other in zip(*paired([0] * 5, position, 8), strict=True)]
    assert np.bincount(found) == pytest.approx([800] * 5, rel=0.15)


def test_pairs_are_a_function_of_the_seed_and_the_position() -> None:
    assert paired(COMPANY, 12, 4) == paired(COMPANY, 12, 4)
    assert paired(COMPANY, 12, 4) != paired(COMPANY, 12, 4, seed=4)
    assert len({str(paired([0] * 5, position, 10)[1]) for position in range(0, 200, 10)}) > 10


def test_every_face_comes_once_per_epoch_as_the_first_of_a_pair() -> None:
    seen = [row for position in range(0, 48, 4) for row in paired(COMPANY, position, 4)[0]]
    assert (np.sort(np.reshape(seen, (3, 8)), 1) == np.arange(8)).all()


def test_faces_of_one_person_are_those_of_a_track(facesets: dict[str, Path]) -> None:
    entry = Faceset.open(facesets["source"]).entries[0]

    def numbers(*who: dict[str, Any]) -> list[int]:
        faces = Faces([replace(entry, meta=replace(entry.meta, **one)) for one in who], 32, 0, "some")
        return list(map(int, faces.people()))

    a, b = {"source": "a.mp4", "track": 0, "face": 0}, {"source": "a.mp4", "track": 1, "face": 1}
    assert numbers(a, b, a | {"face": 1}, b, a | {"frame": 9}) == [0, 1, 0, 1, 0]
    assert numbers(a, a | {"source": "b.mp4"}, a | {"input": 1}, a) == [0, 1, 2, 0], "other footage, another person"
    untracked = {"source": "a.mp4", "track": None}
    assert numbers(untracked | {"face": 0}, untracked | {"face": 1}, untracked | {"face": 0, "frame": 3}) == [0, 1, 0]


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Faces:
    """Rendered people who play the same moments, and two more."""
    folder = tmp_path_factory.mktemp("cast") / "faces"
    write_faces(folder, SHOTS**2 + 2, size=32, workers=1)
    return Faces(Faceset.open(folder).entries, 32, 2**30, "cast")


def test_rendered_people_meet_the_same_moments(cast: Faces, people: list[Faces]) -> None:
    whose, when = cast.people(), cast.moments()
    assert len({*zip(whose.tolist(), when.tolist(), strict=True)}) == len(cast), "each plays each moment once"
    assert sorted(np.bincount(when).tolist()) == [1, 1, *[SHOTS] * SHOTS]
    assert len(set(people[0].moments().tolist())) == len(people[0]), "footage has each moment once"


def test_by_person_half_do_not_show_who_they_are(cast: Faces) -> None:
    calm = DataRecipe(
        batch=8, warp=0, rotation=0, scale=0, shift=0, flip=0, color=0, degrade=0, disguise=0.5, sampling="person"
    )
    whose, when = cast.people(), cast.moments()
    known = {image.tobytes(): row for row, image in enumerate(cast[range(len(cast))][0])}

    def rows(pictures: torch.Tensor) -> list[int | None]:
        images = (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        return [known.get(image.numpy().tobytes()) for image in images]

    swapped, disguised = [], []
    for batch in first([cast], 60, recipe=calm):
        for shown, drawn, photo in zip(*map(rows, (batch.input, batch.target, batch.photo)), strict=True):
            assert drawn is not None and whose[photo] == whose[drawn] and photo != drawn
            if np.count_nonzero(when == when[drawn]) > 1:
                swapped.append(shown not in (None, drawn))
            if shown not in (None, drawn):
                assert when[shown] == when[drawn], "another of the same moment"
            else:
                disguised.append(shown is None)
    assert np.mean(swapped) == pytest.approx(0.5, abs=0.07) and np.mean(disguised) == pytest.approx(0.5, abs=0.1)


def test_what_lies_before_a_face_leaves_a_swap_a_swap(cast: Faces) -> None:
    calm = {"warp": 0, "rotation": 0, "scale": 0, "shift": 0, "flip": 0, "color": 0, "degrade": 0, "disguise": 0}
    hidden = DataRecipe.model_validate({"batch": 8, "occlude": 1, "sampling": "person", **calm})
    swapped = [(batch.input != batch.target).flatten(1).any(1) for batch in first([cast], 20, recipe=hidden)]
    assert 0.3 < float(torch.cat(swapped).float().mean()) < 0.6


def shuffle(count: int, seed: int = 3) -> Order:
    return Order(np.zeros(count, np.int64), seed)


def test_every_epoch_shows_every_image_once_in_another_order() -> None:
    seen = np.concatenate([shuffle(10)(position, 4) for position in range(0, 40, 4)])
    epochs = seen.reshape(4, 10)
    assert (np.sort(epochs, 1) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_poses_come_as_often_but_no_face_too_often() -> None:
    bins = np.repeat([0, 1, 2, 3], [900, 60, 39, 1])
    order = Order(bins, 0)
    seen = order(0, 20000)
    often = np.bincount(bins[seen]) / len(seen)
    assert often[0] == pytest.approx(often[1], rel=0.35)  # the level: what the rare ones may not take falls to others
    single = (seen == 999).sum() / (len(seen) / len(bins))
    assert single == pytest.approx(MOST_REPEATS, rel=0.1)
    for number in range(4):
        times = np.bincount(seen, minlength=1000)[bins == number]
        assert times.max() - times.min() <= 1  # without replacement inside a bin
    parts = np.concatenate([order(position, 7) for position in range(1000, 1070, 7)])
    assert np.array_equal(parts, seen[1000:1070])


def test_many_bins_of_one_face_are_a_shuffle() -> None:
    assert np.array_equal(np.sort(Order(np.arange(12), 0)(12, 12)), np.arange(12))


def test_cells_of_pose() -> None:
    poses = np.array([[0, 0], [9, 9], [11, 0], [-1, 0], [np.nan, 0], [0, np.nan], [300, 0], [90, 0], [0, 11]])
    bins = pose_bins(poses)
    assert bins[0] == bins[1] and bins[4] == bins[5] and bins[6] == bins[7]
    assert len(set(bins)) == 6


def test_poses_are_those_of_the_faces(people: list[Faces]) -> None:
    poses = people[0].poses()
    assert poses.shape == (16, 2) and np.isfinite(poses).all()


def test_colours_of_the_last_person_reach_the_first_alone(people: list[Faces]) -> None:
    still_ = DataRecipe(batch=8, warp=0, rotation=0, scale=0, shift=0, flip=0, color=0, degrade=0)
    plain = first(people, 1, recipe=still_)[0]
    relit = first(people, 1, recipe=still_.model_copy(update={"transfer": "mkl"}))[0]
    assert torch.equal(plain.target[4:], relit.target[4:]) and torch.equal(relit.input, relit.target)

    def mean(batch: Batch, row: int) -> torch.Tensor:
        return (batch.target[row] * batch.mask[row]).sum((1, 2)) / batch.mask[row].sum()

    theirs = torch.stack([mean(plain, row) for row in range(4, 8)])
    for row in range(4):
        assert (theirs - mean(relit, row)).abs().amax(1).min() < 0.03
        assert (theirs - mean(relit, row)).abs().amax(1).min() < (theirs - mean(plain, row)).abs().amax(1).min()


def test_only_the_input_is_spoilt_and_what_hides_hides_from_both(people: list[Faces]) -> None:
    calm = DataRecipe(batch=8, warp=0, color=0, degrade=0)
    plain, spoilt, hidden = (
        first(people, 1, recipe=calm.model_copy(update=more))[0] for more in ({}, {"degrade": 1.0}, {"occlude": 1.0})
    )
    assert torch.equal(plain.target, spoilt.target) and not torch.equal(plain.input, spoilt.input)
    assert torch.equal(plain.mask, spoilt.mask)
    assert (hidden.input - hidden.target).abs().mean() < 0.01  # one is sampled linear, one bicubic
    assert (hidden.target - plain.target).abs().mean() > 0.03
    assert hidden.mask.sum() < plain.mask.sum() and (hidden.mask <= plain.mask + 1e-6).all()
    assert (hidden.priority <= plain.priority + 1e-6).all()


def test_streaming_gives_what_memory_gives(facesets: dict[str, Path]) -> None:
    entries = Faceset.open(facesets["source"]).entries
    kept, streamed = (Faces(entries, 32, memory, "source") for memory in (1e9, 0))
    for one, other in zip(kept[[3, 1, 2]], streamed[[3, 1, 2]], strict=True):
        assert np.array_equal(one, other)
    assert kept.kept and not streamed.kept


def test_masks_lie_on_the_faces(people: list[Faces]) -> None:
    mask = people[0][[0]][1][0, 0]
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
    five, dense = replace(five, meta=replace(five.meta, landmarks=None)), landmarked(dense)
    masks, priority = np.moveaxis(Faces([five, dense], 32, memory, "some")[[0, 1]][1], 1, 0)
    for entry, mask in zip([five, dense], masks, strict=True):
        expected = face_mask(entry.meta.crop_outline(32), 32, MASK_FEATHER)
        np.testing.assert_array_equal(mask, (expected * 255).round())
    assert masks[1].sum() < 0.7 * masks[0].sum()
    eyes, mouth = regions(dense.meta.crop_outline(32), 32)
    assert not priority[0].any()
    assert np.array_equal(priority[1], np.minimum((np.maximum(eyes, mouth) * 255).round(), masks[1]))
    assert priority[1].max() > 200


@pytest.mark.parametrize("memory", [1e9, 0])
@pytest.mark.parametrize("side", [64, 100])
def test_a_users_mask_wins(facesets: dict[str, Path], tmp_path: Path, memory: float, side: int) -> None:
    shutil.copytree(facesets["source"], tmp_path / "some")
    first, second, *_ = Faceset.open(tmp_path / "some").entries
    painted = np.zeros((side, side), np.uint8)
    painted[: side // 2] = 255
    cv2.imwrite(str(first.path.with_suffix(".mask.png")), painted)
    masks = Faces([landmarked(first), second], 32, memory, "some")[[0, 1]][1][:, 0]
    assert (masks[0, :14] == 255).all() and not masks[0, 18:].any()
    assert np.array_equal(masks[1], Faces([second], 32, memory, "some")[[0]][1][0, 0])


def test_unusable_masks_are_counted_and_named(
    facesets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("faceswap.console.warn", said.append)
    shutil.copytree(facesets["source"], tmp_path / "some")
    entries = Faceset.open(tmp_path / "some").entries
    plain = Faces(entries, 32, 1e9, "some")[[0, 1, 2]][1]
    cv2.imwrite(str(entries[0].path.with_suffix(".mask.png")), np.zeros((64, 48), np.uint8))
    entries[2].path.with_suffix(".mask.png").write_bytes(b"damaged")
    assert np.array_equal(Faces(entries, 32, 1e9, "some")[[0, 1, 2]][1], plain)
    assert len(said) == 1 and said[0].startswith("2 masks of your own give way to the landmarks' masks, the first: ")
    assert "found 48 x 64 px" in said[0]
    streamed = Faces(entries, 32, 0, "some")
    for _ in range(2):
        assert np.array_equal(streamed[[0, 1, 2]][1], plain)
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
        assert np.array_equal(streamed[[2, 3, 4]][0], streamed[[2, 4, 4]][0])
    assert len(said) == 2 and "another face stands in" in said[1]


def test_still_faces_are_as_they_are(people: list[Faces]) -> None:
    batch = still(people[0], [2], 1, CPU)
    assert batch.person.tolist() == [1]
    assert batch.photo is batch.target
    images, masks = people[0][[2]]
    assert np.array_equal((batch.target[0].permute(1, 2, 0) * 255).round().byte().numpy(), images[0])
    drawn = torch.cat([batch.mask, batch.priority], 1)
    assert np.array_equal((drawn * 255).round().byte().numpy(), masks)
