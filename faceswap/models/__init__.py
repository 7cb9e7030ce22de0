"""Draw these faces as that person. An architecture is one file here with `build(shape, people) -> FaceModel`.

The one contract: `forward(faces, person) -> (faces, mask)`. Training draws each person as itself; swapping draws the
target as the source. Nothing outside asks which architecture it is.

A base knows one person, `ANYONE`, who is drawn as whoever the face shows. What is fine-tuned from it keeps them, behind
its own people: with them one sees what became of the base.
"""

import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from faceswap.errors import RecipeError, UsageError
from faceswap.registry import Socket

SOCKET = Socket("faceswap.models", "model")
ANYONE = "anyone"
Part = Literal["codes", "decoder", "last block", "last layer", "anyone"]
NONE = "$."  # a pattern that no name matches


@dataclass(frozen=True)
class Shape:
    """How large a network is. An architecture that has no use for a number passes it over."""

    resolution: int  # px, side of the faces
    width: int  # channels of the encoder's first stage
    code: int  # length of the bottleneck's code
    decoder: int  # half the channels of the decoder's last stage
    mask: int  # the same of a branch of its own for the mask
    letters: str = ""  # variants, by a letter each
    anyone: bool = False  # the last person is `ANYONE`


def require_multiple(shape: Shape, of: int) -> None:
    """`RecipeError` unless the resolution is a multiple of `of` px, to be halved evenly."""
    low = shape.resolution // of * of
    if low != shape.resolution:
        letters = f" with the letters {shape.letters!r}" if shape.letters else ""
        near = " or ".join(f"--set model.resolution={size}" for size in (low, low + of) if size)
        raise RecipeError(f"model.resolution = {shape.resolution}: expected a multiple of {of}{letters}; try {near}")


class FaceModel(nn.Module):
    """What every architecture offers."""

    people: int
    patterns: Mapping[Part, str]  # of the names of the parameters in each part, as regular expressions

    @abstractmethod
    def forward(self, faces: Tensor, person: Tensor, photos: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draw `faces` (B, 3, R, R) float in [0, 1] RGB as `person` (B,) int64, each below `people`.

        photos, like `faces`: who `ANYONE` is, of each face; without them it is who the face shows. A model in training
        needs them where it is to draw `ANYONE`. An architecture that has no use for photos passes them over.

        Gives the drawn faces, like `faces`, and where they are faces: (B, 1, R, R) float in [0, 1].
        """

    @abstractmethod
    def code(self, faces: Tensor) -> Tensor:
        """What the bottleneck says of `faces`, whoever they are drawn as: (B, N) or (B, C, H, W), any range."""

    @abstractmethod
    def load_base(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of a model of the same shape that knows `ANYONE` alone, as the start of every person."""

    @abstractmethod
    def as_base(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of this model, by name, as those of one that knows `ANYONE` alone: the inverse of `load_base`."""

    def told(self, photos: Tensor) -> Tensor | None:
        """The code of who the photos (N, 3, R, R) show, their mean; None: the architecture tells none from photos."""
        return None

    def meet(self, person: int, photos: Tensor) -> None:
        """Begin a person as who the photos (N, 3, R, R) show, if the architecture can."""
        if (code := self.told(photos)) is not None:
            with torch.no_grad():
                self.get_parameter(*self.named("codes"))[person] = code

    def named(self, part: Part) -> list[str]:
        """The names of the parameters in a part, in order; empty if the architecture has no such part.

        codes: one row of numbers for each person, if that is all that tells them apart. decoder: all behind the
        bottleneck; of it the last block, with the last layer in it. anyone: what only `ANYONE` uses.
        """
        pattern = re.compile(self.patterns[part])
        return [name for name, _ in self.named_parameters() if pattern.match(name)]


def build(name: str, shape: Shape, people: int) -> FaceModel:
    """The architecture `name`, freshly initialised from torch's random state.

    Letters after a dash, as in DeepFaceLab's `liae-ud`, are `shape.letters`; `UsageError` if it has no such variant.
    """
    part = load(name)
    letters = name.partition("-")[2]
    model: FaceModel = part.build(replace(shape, letters=letters), people)
    return model


def load(name: str) -> Any:
    """The module of the architecture `name`; `UsageError` if there is none, or none with its letters."""
    root, dash, letters = name.partition("-")
    part = SOCKET.load(root)
    known = getattr(part, "LETTERS", "")
    if (dash and not letters) or set(letters) - set(known) or len(set(letters)) < len(letters):
        offer = f"with letters of {known!r} after a dash, each once, or without" if known else "without letters"
        raise UsageError(f"no model called {name!r}; expected {root!r} {offer}")
    return part
