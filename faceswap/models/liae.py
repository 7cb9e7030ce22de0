"""LIAE: one encoder and one decoder for everybody; who is drawn is said by half of the map between them.

A bottleneck common to all (DeepFaceLab's inter_AB) makes one half, a person's own (inter_B) the other. The first
person, the source, has none of their own: the common half stands in both places. So drawing the target as the source
puts the common half in place of the target's own; it has seen everybody, which is why the light of the target carries
over better than in DF (Perov et al., arXiv 2005.05535). The letters u, d, t and c are DeepFaceLab's, which knows two
people; here each person but the first has a bottleneck of their own.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from faceswap.layers import Decoder, Encoder, Inter, by_person, glorot_
from faceswap.models import NONE, FaceModel, Shape, require_multiple

LETTERS = "udtc"


class LIAE(FaceModel):
    """See `faceswap.models.FaceModel`."""

    def __init__(self, shape: Shape, people: int) -> None:
        super().__init__()
        letters, half = shape.letters, shape.code * 2  # channels
        require_multiple(shape, 32 if set(letters) & set("dt") else 16)
        self.people = people
        self.encoder = Encoder(shape.resolution, shape.width, letters)
        self.common, *own = (
            Inter(self.encoder.length, shape.resolution, shape.code, half, letters) for _ in range(people)
        )
        self.own = nn.ModuleList(own)  # own[k - 1] is of person k
        self.decoder = Decoder(half * 2, shape.decoder, shape.mask, letters)
        trunk, mask = len(self.decoder.trunk) - 1, len(self.decoder.mask) - 1
        last = rf"decoder\.(head|mask\.{mask})\."
        self.patterns = {
            "codes": NONE,
            "decoder": r"decoder\.",
            "last block": rf"{last}|decoder\.trunk\.{trunk}\.",
            "last layer": last,
            "anyone": rf"own\.{people - 2}\." if shape.anyone and people > 1 else NONE,
        }
        self.apply(glorot_).to(memory_format=torch.channels_last)

    def code(self, faces: Tensor) -> Tensor:
        code: Tensor = self.common(self.encoder(faces.contiguous(memory_format=torch.channels_last)))
        return code

    def forward(self, faces: Tensor, person: Tensor, photos: Tensor | None = None) -> tuple[Tensor, Tensor]:
        codes = self.encoder(faces.contiguous(memory_format=torch.channels_last))
        common = self.common(codes)
        (first, *others), back = by_person(person, self.people)
        own = [inter(codes[rows]) for inter, rows in zip(self.own, others, strict=True) if len(rows)]
        both = self.decoder(torch.cat([torch.cat([common[first], *own])[back], common], 1))
        return both[:, :3], both[:, 3:]

    def load_base(self, weights: Mapping[str, Tensor]) -> None:
        spread = dict(weights)
        for name, weight in weights.items():
            part, _, rest = name.partition(".")
            if part == "common":
                spread |= {f"own.{i}.{rest}": weight for i in range(self.people - 1)}
        self.load_state_dict(spread)

    def as_base(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: weight for name, weight in weights.items() if not name.startswith("own.")}  # in one half: common


def build(shape: Shape, people: int) -> FaceModel:
    return LIAE(shape, people)
