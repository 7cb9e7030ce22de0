"""Modulated: one encoder, one bottleneck and one decoder for everybody; who is drawn scales and shifts its channels.

A person is a code of `IDENTITY` numbers. From it each stage of the decoder learns a factor and an offset per channel
(Perez et al., "FiLM", arXiv 1709.07871; StyleGAN draws with styles alike). As in DF all faces pass through one small
code; but every face trains the whole decoder, not half of it, and a new person is a new code, which is a small file.
"""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from faceswap.layers import SLOPE, Down, PixelNorm, Residual, SubPixels, Up
from faceswap.models import FaceModel, Shape, require_multiple

IDENTITY = 64  # numbers that say who is drawn
STAGES, SMALL = 4, 8  # least halvings of the encoder, and as many more as bring the map to this side in pixels
WIDEST = 8  # most channels of a stage, in units of the first one's


class Modulation(nn.Module):
    """Maps (B, C, H, W) and who (B, IDENTITY) -> maps, each channel scaled and shifted; nearly as it was at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.style = nn.Linear(IDENTITY, 2 * channels)
        nn.init.normal_(self.style.weight, std=0.02)
        nn.init.zeros_(self.style.bias)

    def forward(self, x: Tensor, who: Tensor) -> Tensor:
        scale, shift = self.style(who)[:, :, None, None].chunk(2, 1)
        modulated: Tensor = x * (1 + scale) + shift
        return modulated


class Stage(nn.Module):
    """Twice the size, and a residual, both modulated: (B, I, H, W) -> (B, O, 2 * H, 2 * W)."""

    def __init__(self, inward: int, outward: int) -> None:
        super().__init__()
        self.up, self.residual = Up(inward, outward), Residual(outward)
        self.first, self.second = Modulation(outward), Modulation(outward)

    def forward(self, x: Tensor, who: Tensor) -> Tensor:
        x = self.first(self.up(x), who)
        inner = self.second(F.leaky_relu(self.residual.first(x), SLOPE), who)
        return F.leaky_relu(x + self.residual.second(inner), SLOPE)


class Modulated(FaceModel):
    """See `faceswap.models.FaceModel`."""

    def __init__(self, shape: Shape, people: int) -> None:
        super().__init__()
        require_multiple(shape, 2**STAGES)
        stages, side = STAGES, shape.resolution // 2**STAGES
        while side > SMALL and side % 2 == 0:
            stages, side = stages + 1, side // 2
        widths = [min(2**stage, WIDEST) for stage in range(stages)]
        inward = [3, *(shape.width * width for width in widths)]
        outward = [shape.decoder * 4, *(shape.decoder * width for width in reversed(widths[1:]))]
        self.people = people
        self.encoder = nn.Sequential(*(Down(i, o) for i, o in pairwise(inward)))
        self.norm = PixelNorm()
        self.narrow = nn.Linear(inward[-1] * side * side, shape.code)
        self.spread = nn.Linear(shape.code, outward[0] * side * side)
        self.map = (outward[0], side, side)
        self.who = nn.Embedding(people, IDENTITY)
        self.small = Modulation(outward[0])
        self.stages = nn.ModuleList(Stage(i, o) for i, o in pairwise(outward))
        self.head = SubPixels(outward[-1], 4)  # the stages draw at half the size
        self.to(memory_format=torch.channels_last)

    def code(self, faces: Tensor) -> Tensor:
        deep = self.encoder(faces.contiguous(memory_format=torch.channels_last))
        code: Tensor = self.narrow(self.norm(deep.flatten(1)))
        return code

    def forward(self, faces: Tensor, person: Tensor) -> tuple[Tensor, Tensor]:
        who, small = self.who(person), F.leaky_relu(self.spread(self.code(faces)), SLOPE).view(-1, *self.map)
        x = self.small(small.contiguous(memory_format=torch.channels_last), who)  # which a view loses
        for stage in self.stages:
            x = stage(x, who)
        drawn = torch.sigmoid(self.head(x).float())  # bf16 rounds to 1 and stops learning
        return drawn[:, :3], drawn[:, 3:]

    def load_base(self, weights: Mapping[str, Tensor]) -> None:
        self.load_state_dict({**weights, "who.weight": weights["who.weight"].expand(self.people, -1)})


def build(shape: Shape, people: int) -> FaceModel:
    return Modulated(shape, people)
