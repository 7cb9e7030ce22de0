import numpy as np
import pytest
import torch

from faceswap.augment import augment, degrade, to_float
from faceswap.config import DataRecipe

STILL = DataRecipe(warp=0, rotation=0, scale=0, shift=0, flip=0, color=0, degrade=0)


def faces(side: int = 32) -> torch.Tensor:
    """Smooth images with masks (4, R, R, 4)."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    base = torch.stack([x * 6 % 256, y * 7 % 256, (x + y) * 3 % 256, (x > side // 2) * 255], -1)
    return torch.stack([(base * (i + 1) // 4).byte() for i in range(4)])


def run(recipe: DataRecipe, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images = faces()
    return augment(images[..., :3], images, recipe, torch.Generator().manual_seed(seed))


def test_nothing_asked_nothing_changed() -> None:
    source, target, mask = run(STILL)
    expected = to_float(faces())
    torch.testing.assert_close(target, expected[:, :3], atol=1e-5, rtol=0)
    torch.testing.assert_close(source, expected[:, :3], atol=1e-5, rtol=0)
    torch.testing.assert_close(mask, expected[:, 3:], atol=1e-5, rtol=0)


def test_flip_mirrors_input_target_and_mask() -> None:
    for image, expected in zip(run(STILL.model_copy(update={"flip": 1.0})), run(STILL), strict=True):
        torch.testing.assert_close(image, expected.flip(3), atol=1e-4, rtol=0)


def test_quarter_turns_are_turned_about_the_centre() -> None:
    turned = run(STILL.model_copy(update={"rotation": 90.0}), seed=1)[1]
    assert turned.shape == (4, 3, 32, 32)
    centre = (slice(None), slice(None), slice(12, 20), slice(12, 20))
    torch.testing.assert_close(turned[centre].mean((2, 3)), run(STILL)[1][centre].mean((2, 3)), atol=0.06, rtol=0)


def test_the_warp_moves_the_input_and_leaves_the_target() -> None:
    source, target, mask = run(STILL.model_copy(update={"warp": 0.06}))
    _, still, still_mask = run(STILL)
    torch.testing.assert_close(target, still, atol=1e-5, rtol=0)
    torch.testing.assert_close(mask, still_mask, atol=1e-5, rtol=0)
    assert (source - still).abs().mean() > 0.005


def test_color_changes_input_and_target_alike_and_no_mask() -> None:
    source, target, mask = run(STILL.model_copy(update={"color": 0.2}))
    torch.testing.assert_close(source, target)
    torch.testing.assert_close(mask, run(STILL)[2], atol=1e-5, rtol=0)
    assert (target - run(STILL)[1]).abs().mean() > 0.01


def test_the_generator_decides_everything() -> None:
    for one, same, other in zip(run(DataRecipe(), 3), run(DataRecipe(), 3), run(DataRecipe(), 4), strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


def test_in_range_and_channels_last() -> None:
    for image in run(DataRecipe(color=0.5), 5):
        assert image.min() >= 0 and image.max() <= 1
    source, target, _ = run(DataRecipe())
    assert source.is_contiguous(memory_format=torch.channels_last)
    assert target.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.5, 20, 44), (1.0, 64, 64)])
def test_a_share_is_degraded_and_the_seed_decides_which(share: float, low: int, high: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    before = images.copy()
    spoilt = degrade(images, share, 7)
    changed = int((spoilt != images).any((1, 2, 3)).sum())
    assert low <= changed <= high
    assert np.array_equal(images, before)
    assert np.array_equal(spoilt, degrade(images, share, 7))
