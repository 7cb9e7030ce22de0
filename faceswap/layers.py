"""Blocks that architectures share. Convention: (B, C, H, W) float, channels_last kept wherever it can be.

`Encoder`, `Inter` and `Decoder` are the parts of DeepFaceLab's DF and LIAE (Perov et al., arXiv 2005.05535), which
differ in how they join them only. Their letters: `u` codes of one length, `d` drawn at half the size and split into
sub-pixels, `t` one stage more and residuals in the encoder, `c` x * cos(x) in place of every rectifier. These parts
start as `glorot_` leaves them.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.1  # of the leaky rectifiers
RESIDUAL_SLOPE = 0.2  # of those in the residuals of DF and LIAE


def glorot_(module: nn.Module) -> None:
    """Initialise a convolution or a linear layer uniformly by both its sides (Glorot & Bengio 2010), without bias.

    For `Module.apply`: other modules are left as they are. It overrides how `SubPixels` and `Residual` start.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # there is one


def by_person(person: Tensor, people: int) -> tuple[list[Tensor], Tensor]:
    """The rows of a batch by whom they are drawn as, for one pass per person; asks the device once.

    person: (B,) int64 in [0, people). Gives for each person their rows (N,) int64, N may be 0, and the order (B,)
    int64 that brings `torch.cat` of what was drawn, person by person, back into the batch's order.
    """
    if len(person) == 1:  # nothing to sort: an exporter, which has no sorting, can follow
        whose, first = int(person), torch.zeros_like(person)
        return [first if number == whose else first[:0] for number in range(people)], first
    order = person.argsort(stable=True)
    counts = person.bincount(minlength=people).tolist()
    return list(torch.split(order, counts)), order.argsort()


def shuffle(x: Tensor) -> Tensor:
    """(B, C * 4, H, W) -> (B, C, 2 * H, 2 * W): channel c * 4 + 2 * dy + dx is sub-pixel (dy, dx) of channel c.

    DeepFaceLab orders them (2 * dy + dx) * C + c: who imports its weights permutes each convolution before this.
    """
    return F.pixel_shuffle(x, 2).contiguous(memory_format=torch.channels_last)  # which CUDA would lose


def icnr_(weight: Tensor, factor: int = 2) -> None:
    """Initialise a convolution (O * factor², I, k, k) before a pixel shuffle so that it starts as a resize.

    Without it the sub-pixels start from independent draws: a checkerboard (Aitken et al., arXiv 1707.02937).
    """
    coarse = torch.empty_like(weight[:: factor**2])
    nn.init.kaiming_normal_(coarse, a=SLOPE)
    with torch.no_grad():
        weight.copy_(coarse.repeat_interleave(factor**2, 0))


class Cosine(nn.Module):
    """x * cos(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.cos()


def rectifier(slope: float, letters: str, *, inplace: bool = False) -> nn.Module:
    """A leaky rectifier, or what the letter `c` puts in its place."""
    return Cosine() if "c" in letters else nn.LeakyReLU(slope, inplace=inplace)


class Down(nn.Sequential):
    """Half the size: a convolution of stride 2."""

    def __init__(self, inward: int, outward: int, letters: str = "") -> None:
        super().__init__(nn.Conv2d(inward, outward, 5, 2, 2), rectifier(SLOPE, letters, inplace=True))


class SubPixels(nn.Module):
    """Twice the size: a convolution into sub-pixels (Shi et al., arXiv 1609.05158)."""

    def __init__(self, inward: int, outward: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inward, outward * 4, 3, 1, 1)
        icnr_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]  # there is one

    def forward(self, x: Tensor) -> Tensor:
        return shuffle(self.conv(x))


class Up(nn.Module):
    """Sub-pixels and a rectifier."""

    def __init__(self, inward: int, outward: int, letters: str = "") -> None:
        super().__init__()
        self.subpixels = SubPixels(inward, outward)
        self.act = rectifier(SLOPE, letters)

    def forward(self, x: Tensor) -> Tensor:
        up: Tensor = self.act(self.subpixels(x))
        return up


class Residual(nn.Module):
    """Two convolutions beside a short cut (He et al., arXiv 1512.03385), starting as the identity."""

    def __init__(self, channels: int, slope: float = SLOPE, letters: str = "") -> None:
        super().__init__()
        self.act = rectifier(slope, letters)
        self.first = nn.Conv2d(channels, channels, 3, 1, 1)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]  # there is one

    def forward(self, x: Tensor) -> Tensor:
        both: Tensor = self.act(x + self.second(self.act(self.first(x))))
        return both


class PixelNorm(nn.Module):
    """Each sample of (B, N) divided by its root mean square: what is drawn does not hang on the input's contrast."""

    def forward(self, x: Tensor) -> Tensor:
        size = x.float().square().mean(1, keepdim=True)  # which half floats could not hold
        return x * torch.rsqrt(size + 1e-6).to(x.dtype)


class Encoder(nn.Sequential):
    """Faces (B, 3, R, R) -> codes (B, `length`): a map of R / 16 px, R / 32 with `t`, flattened as C, H, W.

    resolution: R, px. width: channels of the first stage. With `u` the root mean square of each code is 1.
    """

    length: int

    def __init__(self, resolution: int, width: int, letters: str) -> None:
        deep = "t" in letters
        widths = [width * times for times in ((1, 2, 4, 8, 8) if deep else (1, 2, 4, 8))]
        stages: list[nn.Module] = [Down(i, o, letters) for i, o in pairwise([3, *widths])]
        if deep:
            stages.insert(1, Residual(width, RESIDUAL_SLOPE, letters))
            stages.append(Residual(widths[-1], RESIDUAL_SLOPE, letters))
        super().__init__(*stages, nn.Flatten(), *([PixelNorm()] if "u" in letters else []))
        self.length = widths[-1] * (resolution // 2 ** len(widths)) ** 2


class Inter(nn.Module):
    """Codes (B, length) -> small maps (B, outward, S, S), through a bottleneck of `code` numbers.

    S is R / 8 px, halved by each of `d` and `t`: R / 16 or R / 32 from the bottleneck, then doubled but with `t`.
    """

    def __init__(self, length: int, resolution: int, code: int, outward: int, letters: str) -> None:
        super().__init__()
        side = resolution // (32 if "d" in letters else 16)
        self.shape = (outward, side, side)
        self.narrow = nn.Linear(length, code)
        self.spread = nn.Linear(code, outward * side * side)
        self.up = nn.Identity() if "t" in letters else Up(outward, outward, letters)

    def forward(self, codes: Tensor) -> Tensor:
        small = self.spread(self.narrow(codes)).view(-1, *self.shape)
        up: Tensor = self.up(small.contiguous(memory_format=torch.channels_last))  # which a view loses
        return up


class Quarters(nn.Module):
    """Twice the size: a convolution for each of the sub-pixels (dy, dx) = (0, 0), (0, 1), (1, 0), (1, 1).

    The first sees one pixel only, the others its neighbours too. They run as one, in half the time on a CPU.
    """

    def __init__(self, inward: int, outward: int) -> None:
        super().__init__()
        self.corner = nn.Conv2d(inward, outward, 1)
        self.right, self.below, self.across = (nn.Conv2d(inward, outward, 3, 1, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.corner, self.right, self.below, self.across]
        weights = [F.pad(self.corner.weight, (1, 1, 1, 1)), *(part.weight for part in parts[1:])]
        weight = torch.stack(weights, 1).flatten(0, 1)  # (outward * 4, inward, 3, 3)
        bias = torch.stack([part.bias for part in parts], 1).flatten()  # type: ignore[misc]  # there is one
        return shuffle(F.conv2d(x, weight, bias, padding=1))


class Decoder(nn.Module):
    """Small maps (B, inward, S, S) of an `Inter` -> (B, 4, R, R) float32 in [0, 1]: red, green, blue and mask.

    width, mask: half the channels of the last stage of the branch that draws the face, or the mask.
    """

    def __init__(self, inward: int, width: int, mask: int, letters: str) -> None:
        super().__init__()
        times = (8, 8, 4, 2) if "t" in letters else (8, 4, 2)
        split = "d" in letters
        drawn = pairwise([inward, *(width * by for by in times)])
        where = pairwise([inward, *(mask * by for by in times), *([mask] if split else [])])
        stages = (nn.Sequential(Up(i, o, letters), Residual(o, RESIDUAL_SLOPE, letters)) for i, o in drawn)
        self.trunk = nn.Sequential(*stages)
        self.head = Quarters(width * 2, 3) if split else nn.Conv2d(width * 2, 3, 1)
        self.mask = nn.Sequential(*(Up(i, o, letters) for i, o in where), nn.Conv2d(mask if split else mask * 2, 1, 1))

    def forward(self, small: Tensor) -> Tensor:
        both = torch.cat([self.head(self.trunk(small)), self.mask(small)], 1)
        return torch.sigmoid(both.float())  # bf16 rounds to 1 and stops learning
