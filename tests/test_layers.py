"""The blocks of architectures, each against its definition."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from faceswap.layers import Encoder, PixelNorm, Quarters, Residual, Up, by_person, glorot_, shuffle


def test_sub_pixels_start_without_checkerboard() -> None:
    torch.manual_seed(0)
    drawn = Up(8, 4)(torch.rand(1, 8, 6, 6))
    blocks = drawn.reshape(1, 4, 6, 2, 6, 2)
    assert (blocks.amax((3, 5)) - blocks.amin((3, 5))).max() < 1e-6


def test_residual_starts_as_identity_on_positive_values() -> None:
    x = torch.rand(1, 4, 5, 5)
    torch.testing.assert_close(Residual(4)(x), x)


def test_residual_bends_by_its_slope() -> None:
    x = -torch.rand(1, 4, 5, 5)
    torch.testing.assert_close(Residual(4, 0.2)(x), 0.2 * x)


@pytest.mark.parametrize("layer", [nn.Conv2d(8, 24, 5), nn.Linear(50, 30)], ids=["convolution", "linear"])
def test_glorot_fills_its_bound_evenly_and_empties_the_bias(layer: nn.Conv2d | nn.Linear) -> None:
    torch.manual_seed(0)
    layer.apply(glorot_)
    area = layer.weight[0, 0].numel()  # of the kernel
    bound = (6 / (area * sum(layer.weight.shape[:2]))) ** 0.5
    assert 0.98 * bound < layer.weight.abs().max() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert layer.bias is not None and not layer.bias.any()


def test_rows_are_sorted_by_person_and_brought_back() -> None:
    person = torch.tensor([2, 0, 2, 3, 0])
    rows, back = by_person(person, 5)
    assert [own.tolist() for own in rows] == [[1, 4], [], [0, 2], [3], []]
    assert person[torch.cat(rows)][back].tolist() == person.tolist()
    rows, back = by_person(torch.tensor([2]), 4)  # not sorted, and the same
    assert [own.tolist() for own in rows] == [[], [], [0], []] and back.tolist() == [0]


def test_half_floats_are_normed_without_overflow() -> None:
    x = torch.full((1, 8), 1000.0, dtype=torch.half)  # whose square is beyond 65504
    assert (PixelNorm()(x) - 1).abs().max() < 1e-3 and PixelNorm()(x).dtype == torch.half


def test_shuffle_orders_channels_as_said_and_stays_channels_last() -> None:
    x = torch.rand(2, 12, 3, 5)
    drawn = shuffle(x.contiguous(memory_format=torch.channels_last))
    assert drawn.shape == (2, 3, 6, 10) and drawn.is_contiguous(memory_format=torch.channels_last)
    for c, dy, dx in [(0, 0, 0), (1, 0, 1), (2, 1, 0), (1, 1, 1)]:
        assert torch.equal(drawn[:, c, dy::2, dx::2], x[:, c * 4 + 2 * dy + dx])


def test_quarters_are_four_convolutions_side_by_side() -> None:
    quarters, x = Quarters(6, 3), torch.rand(2, 6, 4, 5)
    drawn = quarters(x)
    parts = [quarters.corner, quarters.right, quarters.below, quarters.across]
    for part, (dy, dx) in zip(parts, [(0, 0), (0, 1), (1, 0), (1, 1)], strict=True):
        torch.testing.assert_close(drawn[:, :, dy::2, dx::2], part(x))


def test_pixel_norm_makes_the_root_mean_square_one() -> None:
    x = torch.randn(3, 100) * torch.tensor([[1e-1], [1], [50]])
    torch.testing.assert_close(PixelNorm()(x), F.normalize(x) * 10, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("letters", ["", "u", "t", "ut", "d"])
def test_the_encoder_knows_the_length_of_its_codes(letters: str) -> None:
    encoder = Encoder(64, 2, letters)
    codes = encoder(torch.rand(2, 3, 64, 64))
    assert codes.shape == (2, encoder.length)
    assert ("u" in letters) == torch.allclose(codes.square().mean(1), torch.ones(2), atol=1e-2)
