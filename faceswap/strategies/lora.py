"""Low-rank updates of all convolutions and dense layers; the base is frozen (Hu et al., LoRA, arXiv 2106.09685)."""

from typing import Any

from faceswap import adapters
from faceswap.config import StrategyRecipe
from faceswap.models import FaceModel
from faceswap.strategies import Strategy, free, groups

FASTER = 3.0  # than all weights would train


class LoRA(Strategy):
    """See `faceswap.strategies.Strategy`."""

    needs_base = small = True

    def prepare(self, model: FaceModel, people: int) -> list[dict[str, Any]]:
        resting = {*model.named("anyone"), *model.named("codes")}
        weights = free(model, people, "codes")
        names = adapters.add_low_rank(model, self.recipe.rank, lambda name: name not in resting)
        return groups(model, [*weights, *map(model.get_parameter, names)], self.rate * FASTER)


def build(*, rate: float, recipe: StrategyRecipe) -> Strategy:
    return LoRA(rate, recipe)
