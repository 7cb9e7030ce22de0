"""Everything trains: fine-tuning proper from a base, training from scratch without one."""

from typing import Any

from faceswap.config import StrategyRecipe
from faceswap.models import FaceModel
from faceswap.strategies import Strategy, free, groups


class Full(Strategy):
    """See `faceswap.strategies.Strategy`."""

    def prepare(self, model: FaceModel, people: int) -> list[dict[str, Any]]:
        self.generic = model.people == 1
        return groups(model, free(model, people, every=True), self.rate, encoder=self.recipe.encoder)


def build(*, rate: float, recipe: StrategyRecipe) -> Strategy:
    return Full(rate, recipe)
