import cv2
import numpy as np
import pytest
import torch

from faceswap import augment
from faceswap.augment import (
    Moved,
    colors,
    degrade,
    disguise,
    draw,
    empty,
    move,
    move_together,
    occlude,
    to_float,
    transfer,
)
from faceswap.config import DataRecipe

STILL = DataRecipe(warp=0, rotation=0, scale=0, shift=0, flip=0, color=0, degrade=0)
FULL = DataRecipe(warp=0.03, rotation=15, color=0.1)
SIDE, COUNT = 64, 4
BYTE = 2 / 255  # what both ways may differ by


def faces(side: int = SIDE) -> tuple[augment.Image, augment.Image]:
    """Smooth images (4, R, R, 3) and masks (4, 2, R, R)."""
    random = np.random.default_rng(0)
    rough = random.integers(0, 256, (COUNT, 8, 8, 5), dtype=np.uint8)
    smooth = np.stack([cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC) for image in rough])
    return np.ascontiguousarray(smooth[..., :3]), np.ascontiguousarray(np.moveaxis(smooth[..., 3:], 3, 1))


def change(**changes: float) -> DataRecipe:
    return STILL.model_copy(update=changes)


def one_by_one(recipe: DataRecipe, seed: int = 0, blur_out: bool = False) -> Moved:
    images, masks = faces()
    out = empty(COUNT, SIDE)
    for row in range(COUNT):
        move(images, images, masks, draw(COUNT, SIDE, recipe, [seed]), blur_out, [row], out)
    return out


def together(recipe: DataRecipe, seed: int = 0, blur_out: bool = False) -> Moved:
    images, masks = (torch.from_numpy(array) for array in faces())
    return move_together(images, images, masks, draw(COUNT, SIDE, recipe, [seed]), blur_out)


@pytest.mark.parametrize("run", [one_by_one, together])
def test_nothing_asked_nothing_changed(run: type) -> None:
    images, masks = faces()
    source, target, mask, priority = run(STILL)
    assert np.array_equal((target * 255).round().byte().permute(0, 2, 3, 1), images)
    assert torch.equal(source, target)
    assert np.array_equal((torch.cat([mask, priority], 1) * 255).round().byte(), masks)


@pytest.mark.parametrize("run", [one_by_one, together])
def test_flip_mirrors_all_alike(run: type) -> None:
    for image, expected in zip(run(change(flip=1.0)), run(STILL), strict=True):
        torch.testing.assert_close(image, expected.flip(3), atol=1e-3, rtol=0)


@pytest.mark.parametrize("blur_out", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_both_ways_agree(seed: int, blur_out: bool) -> None:
    for one, other in zip(one_by_one(FULL, seed, blur_out), together(FULL, seed, blur_out), strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().mean() < BYTE / 2 and (one - other).abs().max() < 4 * BYTE


def test_a_known_turn() -> None:
    quarter = draw(COUNT, SIDE, STILL, [0])
    quarter.place[:] = np.array([[0, -1, SIDE - 1], [1, 0, 0]], np.float32)
    images, masks = faces()
    out = empty(COUNT, SIDE)
    move(images, images, masks, quarter, False, range(COUNT), out)
    expected = to_float(torch.from_numpy(images)).rot90(1, (2, 3))
    assert (out[1] - expected).abs().max() < 1e-3


def test_shifts_are_in_units_of_the_side_and_turns_about_the_centre() -> None:
    middle = (SIDE - 1) / 2
    plan = draw(2000, SIDE, change(shift=0.1), [1])
    shift = plan.place[:, :, 2]
    assert np.allclose(plan.place[:, :, :2], np.eye(2)) and 6.3 < np.abs(shift).max() <= 6.4
    turned = draw(2000, SIDE, change(rotation=30.0, scale=0.2, flip=0.5), [1]).place
    np.testing.assert_allclose(turned @ np.array([middle, middle, 1]), middle, atol=1e-4)
    assert abs((np.linalg.det(turned[:, :, :2]) < 0).mean() - 0.5) < 0.05


@pytest.mark.parametrize("run", [one_by_one, together])
def test_the_warp_moves_the_input_and_leaves_the_target(run: type) -> None:
    source, *others = run(change(warp=0.06))
    for image, still in zip(others, run(STILL)[1:], strict=True):
        torch.testing.assert_close(image, still)
    assert (source - others[0]).abs().mean() > 0.01


def test_the_warp_is_of_mean_zero_and_as_strong_as_asked() -> None:
    columns = augment._columns(SIDE)
    seen = columns @ augment._coefficients(draw(2000, SIDE, change(warp=0.02), [0]))[0] @ columns.T
    here = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)))
    assert np.abs((seen - here).mean((0, 2, 3))).max() < 0.03  # pixels
    nodes = (seen - here)[:, :, [0, -1]][..., [0, -1]]
    assert abs(nodes.std() / (0.02 * SIDE) - 1) < 0.03


@pytest.mark.parametrize("run", [one_by_one, together])
def test_color_changes_input_and_target_alike_and_no_mask(run: type) -> None:
    source, target, mask, _ = run(change(color=0.2))
    torch.testing.assert_close(source, target)
    assert torch.equal(mask, run(STILL)[2])
    assert (target - run(STILL)[1]).abs().mean() > 0.01


@pytest.mark.parametrize("run", [one_by_one, together])
def test_in_range_and_channels_last(run: type) -> None:
    for image in run(change(color=0.5), 5):
        assert image.min() >= 0 and image.max() <= 1 and image.dtype == torch.float32
        assert image.is_contiguous(memory_format=torch.channels_last)


def test_the_seed_decides_everything_and_one_probability_nothing_else() -> None:
    plan, same, other = (draw(64, SIDE, FULL, [1, seed]) for seed in (3, 3, 4))
    for name, value in vars(plan).items():
        assert np.array_equal(value, getattr(same, name))
        assert name in ("occluded", "disguised") or not np.array_equal(value, getattr(other, name))
    more = draw(64, SIDE, FULL.model_copy(update={"occlude": 0.5, "degrade": 0.5, "warp": 0.0}), [1, 3])
    assert more.occluded.any() and np.array_equal(more.place, plan.place) and np.array_equal(more.color, plan.color)
    assert np.array_equal(plan[[5, 2]].place, plan.place[[5, 2]])


def test_what_lies_outside_the_face_is_blurred_from_outside_alone() -> None:
    image = np.random.default_rng(0).random((SIDE, SIDE, 3)).astype(np.float32)
    mask = np.zeros((SIDE, SIDE), np.float32)
    mask[16:48, 16:48] = 1
    image[16:48, 16:48] = [1, 0, 0]
    blurred = augment._blur_out(image, mask)
    assert np.array_equal(blurred[20:40, 20:40], image[20:40, 20:40])
    assert blurred[:8].std() < 0.8 * image[:8].std()
    flat = np.where(mask[..., None] > 0, [1, 0, 0], [0.2, 0.5, 0.7]).astype(np.float32)
    np.testing.assert_allclose(augment._blur_out(flat, mask), flat, atol=1e-6)  # the face does not leak
    np.testing.assert_allclose(augment._blur_out(image, np.ones_like(mask)), image, atol=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_an_occluder_hides_a_part_and_the_masks_leave_it_out(seed: int) -> None:
    images, _ = faces()
    full = np.full((2, SIDE, SIDE), 255, np.uint8)
    image, masks = occlude(images[0], full, images[1], seed)
    hidden = masks[0] < 255
    assert 0.01 < hidden.mean() < 0.85 and np.array_equal(masks[0], masks[1]) and masks.min() < 20
    assert np.array_equal(image[~hidden], images[0][~hidden]) and not np.array_equal(image, images[0])
    again = occlude(images[0], full, images[1], seed)
    assert np.array_equal(image, again[0]) and (full == 255).all()


@pytest.mark.parametrize("seed", range(24))
def test_degrading_is_the_seeds_and_keeps_the_brightness(seed: int) -> None:
    image = faces()[0][0]
    before = image.copy()
    spoilt = degrade(image, seed)
    assert np.array_equal(image, before) and spoilt.shape == image.shape and not np.array_equal(spoilt, image)
    assert np.array_equal(spoilt, degrade(image, seed))
    assert abs(spoilt.mean() - image.mean()) < 4
    assert np.abs(spoilt.astype(float) - image).mean() < 25


def skins() -> tuple[augment.Image, augment.Image, augment.Image]:
    """Two pictures of unlike colours, and a mask of their middle."""
    random = np.random.default_rng(1)
    mixes = np.array([[[30, 10, 5], [12, 20, 8], [3, 9, 14]], [[15, 12, 10], [0, 12, 6], [4, 0, 9]]])
    raw = random.standard_normal((2, SIDE, SIDE, 3))
    pictures = [raw[i] @ mixes[i].T + [[150, 110, 90], [120, 100, 130]][i] for i in range(2)]
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[10:50, 12:52] = 255
    ours, theirs = (np.clip(picture, 0, 255).astype(np.uint8) for picture in pictures)
    return ours, theirs, mask


@pytest.mark.parametrize("name", ["reinhard", "mkl", "sliced-ot"])
def test_transferred_colours_have_the_others_statistics(name: str) -> None:
    ours, theirs, mask = skins()
    found = transfer(name, colors(ours, mask), colors(theirs, mask), 0)
    moved, goal = (picture[mask > 0] / 255 for picture in (ours, theirs))
    moved = moved @ found[:, :3].T + found[:, 3]
    np.testing.assert_allclose(moved.mean(0), goal.mean(0), atol=0.01)
    axes = augment.OPPONENT if name == "reinhard" else np.eye(3)
    spread, expected = (np.cov(axes @ pixels.T) for pixels in (moved, goal))
    if name == "reinhard":
        spread, expected = np.diag(spread), np.diag(expected)
    np.testing.assert_allclose(spread, expected, atol=0.15 * np.abs(expected).max())


def test_without_colours_nothing_is_transferred() -> None:
    ours, _, mask = skins()
    nothing = colors(ours, np.zeros_like(mask))
    assert len(nothing) == 0 and np.array_equal(transfer("mkl", colors(ours, mask), nothing, 0), np.eye(3, 4))


def test_maps_of_colours_follow_each_other() -> None:
    random = np.random.default_rng(0)
    one, two, color = random.random((3, 4)), random.random((3, 4)).astype(np.float32), random.random(3)
    expected = two @ [*(one @ [*color, 1]), 1]
    np.testing.assert_allclose(augment.after(two, one) @ [*color, 1], expected, rtol=1e-5)


def test_a_disguise_bends_and_tints_but_keeps_the_place() -> None:
    image = np.zeros((96, 96, 3), np.uint8)
    cv2.circle(image, (48, 48), 20, (200, 150, 120), -1)
    found = [disguise(image, image, seed) for seed in range(40)]
    assert all(one.dtype == np.uint8 and one.shape == image.shape for one in found)
    assert np.array_equal(found[3], disguise(image, image, 3)) and not np.array_equal(found[3], found[4])
    centres = [np.argwhere(one[:, :, 0] > 60).mean(0) for one in found]
    assert np.mean(centres, 0) == pytest.approx([48, 48], abs=1) and 0.5 < np.std(centres) < 4
    tones = np.array([one[44:53, 44:53].mean((0, 1)) for one in found])
    assert (tones.std(0) > 8).all() and np.abs(tones.mean(0) - [200, 150, 120]).max() < 15
    ghosts = [float(disguise(np.zeros_like(image), np.full_like(image, 255), seed).mean()) / 255 for seed in range(40)]
    assert min(ghosts) < 0.1 and 0.35 < max(ghosts) < 0.65, "somebody else shines through, but never more than half"
