"""DF: one encoder and one bottleneck for everybody, one decoder per person.

Because all faces pass through one small code, what the code says (pose, expression, gaze, light) is common to all;
because each decoder has seen one person only, it draws that person, whoever the code comes from. The idea is the
"deepfakes" autoencoder of 2017 in DeepFaceLab's form (Perov et al., arXiv 2005.05535), with its letters u, d, t and c.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from faceswap.layers import Decoder, Encoder, Inter, by_person, glorot_
from faceswap.models import NONE, FaceModel, Shape, require_multiple

LETTERS = "udtc"


class DF(FaceModel):
    """See `faceswap.models.FaceModel`."""

    def __init__(self, shape: Shape, people: int) -> None:
        super().__init__()
        letters, code = shape.letters, shape.code
        require_multiple(shape, 32 if set(letters) & set("dt") else 16)
        self.people = people
        self.encoder = Encoder(shape.resolution, shape.width, letters)
        self.inter = Inter(self.encoder.length, shape.resolution, code, code, letters)
        self.decoders = nn.ModuleList(Decoder(code, shape.decoder, shape.mask, letters) for _ in range(people))
        mask, trunk = (len(part) - 1 for part in (self.decoders[0].mask, self.decoders[0].trunk))  # type: ignore[arg-type]
        last = rf"decoders\.\d+\.(head|mask\.{mask})\."
        self.patterns = {
            "codes": NONE,
            "decoder": r"decoders\.",
            "last block": rf"{last}|decoders\.\d+\.trunk\.{trunk}\.",
            "last layer": last,
            "anyone": rf"decoders\.{people - 1}\." if shape.anyone else NONE,
        }
        self.apply(glorot_).to(memory_format=torch.channels_last)

    def code(self, faces: Tensor) -> Tensor:
        code: Tensor = self.inter(self.encoder(faces.contiguous(memory_format=torch.channels_last)))
        return code

    def forward(self, faces: Tensor, person: Tensor, photos: Tensor | None = None) -> tuple[Tensor, Tensor]:
        small = self.code(faces)
        rows, back = by_person(person, self.people)
        drawn = [decoder(small[own]) for decoder, own in zip(self.decoders, rows, strict=True) if len(own)]
        both = torch.cat(drawn)[back]
        return both[:, :3], both[:, 3:]

    def load_base(self, weights: Mapping[str, Tensor]) -> None:
        spread: dict[str, Tensor] = {}
        for name, weight in weights.items():
            part, _, rest = name.partition(".0.")
            names = [f"decoders.{i}.{rest}" for i in range(self.people)] if part == "decoders" else [name]
            spread |= dict.fromkeys(names, weight)
        self.load_state_dict(spread)

    def as_base(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        last = f"decoders.{self.people - 1}."
        kept = {name: weight for name, weight in weights.items() if not name.startswith("decoders.")}
        own = {name: weight for name, weight in weights.items() if name.startswith(last)}
        return kept | {f"decoders.0.{name.removeprefix(last)}": weight for name, weight in own.items()}


def build(shape: Shape, people: int) -> FaceModel:
    return DF(shape, people)
