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
TELLER = (16, 32, 64, 128)  # channels of the teller's stages
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


class Teller(nn.Module):
    """Photos (B, 3, R, R) in [0, 1] -> who they show (B, IDENTITY), of mean square 1 as a fresh `who` has it."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(*(Down(i, o) for i, o in pairwise([3, *TELLER])))
        self.last = nn.Linear(TELLER[-1] * 2, IDENTITY)

    def forward(self, photos: Tensor) -> Tensor:
        deep = self.stages(photos.contiguous(memory_format=torch.channels_last))
        code: Tensor = self.last(torch.cat([deep.mean((2, 3)), deep.amax((2, 3))], 1)).float()
        return code * torch.rsqrt(code.square().mean(1, keepdim=True) + 1e-6)


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
        self.teller = Teller() if shape.anyone else None
        last = rf"stages\.{len(self.stages) - 1}\.|head\."
        self.patterns = {
            "codes": r"who\.",
            "decoder": r"spread\.|small\.|stages\.|head\.",
            "last block": last,
            "last layer": r"head\.",
            "anyone": r"teller\.",
        }
        self.to(memory_format=torch.channels_last)

    def code(self, faces: Tensor) -> Tensor:
        deep = self.encoder(faces.contiguous(memory_format=torch.channels_last))
        code: Tensor = self.narrow(self.norm(deep.flatten(1)))
        return code

    def forward(self, faces: Tensor, person: Tensor, photos: Tensor | None = None) -> tuple[Tensor, Tensor]:
        who, small = self.codes(faces, person, photos), F.leaky_relu(self.spread(self.code(faces)), SLOPE)
        small = small.view(-1, *self.map).contiguous(memory_format=torch.channels_last)  # which a view loses
        x = self.small(small, who)
        for stage in self.stages:
            x = stage(x, who)
        drawn = torch.sigmoid(self.head(x).float())  # bf16 rounds to 1 and stops learning
        return drawn[:, :3], drawn[:, 3:]

    def codes(self, faces: Tensor, person: Tensor, photos: Tensor | None) -> Tensor:
        """Who is to be drawn (B, IDENTITY); see `forward`."""
        own: Tensor = self.who(person)
        if self.teller is None or (photos is None and self.training):
            return own
        anyone = (person == self.people - 1)[:, None]
        if photos is None and not anyone.any():
            return own
        return torch.where(anyone, self.teller(faces if photos is None else photos).to(own.dtype), own)

    def load_base(self, weights: Mapping[str, Tensor]) -> None:
        self.load_state_dict({**weights, "who.weight": weights["who.weight"].expand(self.people, -1)})

    def as_base(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**weights, "who.weight": weights["who.weight"][-1:]}

    @torch.no_grad()
    def told(self, photos: Tensor) -> Tensor | None:
        return self.teller(photos).mean(0) if self.teller is not None else None


def build(shape: Shape, people: int) -> FaceModel:
    return Modulated(shape, people)
