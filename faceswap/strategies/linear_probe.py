"""The last layer, and the codes where they are all that tells people apart: linear probing."""

from typing import Any

from faceswap.config import StrategyRecipe
from faceswap.models import FaceModel
from faceswap.strategies import Strategy, free, groups

FASTER = 3.0  # than all weights would train


class LinearProbe(Strategy):
    """See `faceswap.strategies.Strategy`."""

    needs_base = small = True

    def prepare(self, model: FaceModel, people: int) -> list[dict[str, Any]]:
        return groups(model, free(model, people, "codes", "last layer"), self.rate * FASTER)


def build(*, rate: float, recipe: StrategyRecipe) -> Strategy:
    return LinearProbe(rate, recipe)
