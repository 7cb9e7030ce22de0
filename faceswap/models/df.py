"""DF: one encoder and one bottleneck for everybody, one decoder per person.

Because all faces pass through one small code, what the code says (pose, expression, gaze, light) is common to all;
because each decoder has seen one person only, it draws that person, whoever the code comes from. The idea is the
"deepfakes" autoencoder of 2017 in DeepFaceLab's form (Perov et al., arXiv 2005.05535).
"""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from faceswap.layers import SLOPE, Down, PixelNorm, Residual, SubPixels, Up
from faceswap.models import FaceModel, Shape

STAGES = 4  # halvings of the encoder, doublings of a decoder


class Encoder(nn.Sequential):
    """Faces (B, 3, R, R) -> code (B, code)."""

    def __init__(self, resolution: int, width: int, code: int) -> None:
        widths = [3] + [width * 2**stage for stage in range(STAGES)]
        downs = [Down(i, o) for i, o in pairwise(widths)]
        flat = widths[-1] * (resolution // 2**STAGES) ** 2
        super().__init__(*downs, nn.Flatten(), PixelNorm(), nn.Linear(flat, code))


class Bottleneck(nn.Module):
    """Code (B, code) -> small map (B, C, R/16, R/16)."""

    def __init__(self, resolution: int, code: int, channels: int) -> None:
        super().__init__()
        self.shape = (channels, resolution // 2**STAGES, resolution // 2**STAGES)
        self.spread = nn.Linear(code, channels * self.shape[1] * self.shape[2])

    def forward(self, code: Tensor) -> Tensor:
        small = F.leaky_relu(self.spread(code), SLOPE).view(-1, *self.shape)
        return small.contiguous(memory_format=torch.channels_last)  # a view loses it


class Decoder(nn.Module):
    """Small map (B, C, R/16, R/16) -> faces (B, 3, R, R) and mask (B, 1, R, R)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for stage in reversed(range(1, STAGES)):
            stages += [Up(channels, width * 2**stage), Residual(width * 2**stage)]
            channels = width * 2**stage
        self.trunk = nn.Sequential(*stages)  # to half the size; the head draws sub-pixels
        self.head = SubPixels(channels, 4)

    def forward(self, small: Tensor) -> tuple[Tensor, Tensor]:
        drawn = torch.sigmoid(self.head(self.trunk(small)).float())  # bf16 rounds to 1 and stops learning
        return drawn[:, :3], drawn[:, 3:]


class DF(FaceModel):
    """See `faceswap.models.FaceModel`."""

    def __init__(self, resolution: int, width: int, code: int, people: int) -> None:
        super().__init__()
        self.people = people
        channels = width * 4
        self.encoder = Encoder(resolution, width, code)
        self.bottleneck = Bottleneck(resolution, code, channels)
        self.decoders = nn.ModuleList(Decoder(channels, width) for _ in range(people))
        self.to(memory_format=torch.channels_last)

    def forward(self, faces: Tensor, person: Tensor) -> tuple[Tensor, Tensor]:
        small = self.bottleneck(self.encoder(faces.contiguous(memory_format=torch.channels_last)))
        drawn = faces.new_empty(faces.shape)
        mask = faces.new_empty(faces.shape[0], 1, *faces.shape[2:])
        for index, decoder in enumerate(self.decoders):
            rows = (person == index).nonzero().squeeze(1)
            if len(rows):
                face, where = decoder(small[rows])
                drawn = drawn.index_copy(0, rows, face.to(drawn.dtype))
                mask = mask.index_copy(0, rows, where.to(mask.dtype))
        return drawn, mask

    def load_base(self, weights: Mapping[str, Tensor]) -> None:
        spread: dict[str, Tensor] = {}
        for name, weight in weights.items():
            part, _, rest = name.partition(".0.")
            names = [f"decoders.{i}.{rest}" for i in range(self.people)] if part == "decoders" else [name]
            spread |= dict.fromkeys(names, weight)
        self.load_state_dict(spread)


def build(shape: Shape, people: int) -> FaceModel:
    return DF(shape.resolution, shape.width, shape.code, people)
