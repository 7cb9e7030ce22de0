"""Blocks that architectures share. Convention: (B, C, H, W) float, channels_last kept wherever it can be."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.1  # of the leaky rectifiers


def icnr_(weight: Tensor, factor: int = 2) -> None:
    """Initialise a convolution (O * factor², I, k, k) before a pixel shuffle so that it starts as a resize.

    Without it the sub-pixels start from independent draws: a checkerboard (Aitken et al., arXiv 1707.02937).
    """
    coarse = torch.empty_like(weight[:: factor**2])
    nn.init.kaiming_normal_(coarse, a=SLOPE)
    with torch.no_grad():
        weight.copy_(coarse.repeat_interleave(factor**2, 0))


class Down(nn.Sequential):
    """Half the size: a convolution of stride 2."""

    def __init__(self, inward: int, outward: int) -> None:
        super().__init__(nn.Conv2d(inward, outward, 5, 2, 2), nn.LeakyReLU(SLOPE, inplace=True))


class SubPixels(nn.Module):
    """Twice the size: a convolution into sub-pixels (Shi et al., arXiv 1609.05158)."""

    def __init__(self, inward: int, outward: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inward, outward * 4, 3, 1, 1)
        icnr_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]  # there is one

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)


class Up(nn.Module):
    """Sub-pixels and a rectifier."""

    def __init__(self, inward: int, outward: int) -> None:
        super().__init__()
        self.subpixels = SubPixels(inward, outward)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.subpixels(x), SLOPE)


class Residual(nn.Module):
    """Two convolutions beside a short cut (He et al., arXiv 1512.03385), starting as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, 1, 1)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]  # there is one

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x + self.second(F.leaky_relu(self.first(x), SLOPE)), SLOPE)


class PixelNorm(nn.Module):
    """Each sample of (B, N) divided by its root mean square: what is drawn does not hang on the input's contrast."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6)
