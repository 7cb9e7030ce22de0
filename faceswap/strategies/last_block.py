"""The last block with the last layer, and the codes (Lee et al., surgical fine-tuning, arXiv 2210.11466)."""

from typing import Any

from faceswap.config import StrategyRecipe
from faceswap.models import FaceModel
from faceswap.strategies import Strategy, free, groups


class LastBlock(Strategy):
    """See `faceswap.strategies.Strategy`."""

    needs_base = small = True

    def prepare(self, model: FaceModel, people: int) -> list[dict[str, Any]]:
        return groups(model, free(model, people, "codes", "last block"), self.rate)


def build(*, rate: float, recipe: StrategyRecipe) -> Strategy:
    return LastBlock(rate, recipe)
