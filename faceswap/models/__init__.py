"""Draw these faces as that person. An architecture is one file here with `build(recipe, people) -> FaceModel`.

The one contract: `forward(faces, person) -> (faces, mask)`. Training draws each person as itself; swapping draws the
target as the source. Nothing outside asks which architecture it is.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from faceswap.registry import Socket

SOCKET = Socket("faceswap.models", "model")


class FaceModel(nn.Module):
    """What every architecture offers."""

    people: int

    @abstractmethod
    def forward(self, faces: Tensor, person: Tensor) -> tuple[Tensor, Tensor]:
        """Draw `faces` (B, 3, R, R) float in [0, 1] RGB as `person` (B,) int64, each below `people`.

        Gives the drawn faces, like `faces`, and where they are faces: (B, 1, R, R) float in [0, 1].
        """

    @abstractmethod
    def load_base(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of a model of the same shape that knows one person, as the start of every person."""


def build(name: str, *, resolution: int, width: int, code: int, people: int) -> FaceModel:
    """The architecture `name`, freshly initialised from torch's random state."""
    part: Any = SOCKET.load(name)
    model: FaceModel = part.build(resolution=resolution, width=width, code=code, people=people)
    return model
