"""A factor and an offset for each channel of every convolution and dense layer; the base is frozen.

Noguchi & Harada, "Image Generation from Small Datasets via Batch Statistics Adaptation", 2019; IA3, arXiv 2205.05638.
"""

from typing import Any

from faceswap import adapters
from faceswap.config import StrategyRecipe
from faceswap.models import FaceModel
from faceswap.strategies import Strategy, free, groups

FASTER = 10.0  # than all weights would train


class FiLM(Strategy):
    """See `faceswap.strategies.Strategy`."""

    needs_base = small = True

    def prepare(self, model: FaceModel, people: int) -> list[dict[str, Any]]:
        resting = {*model.named("anyone"), *model.named("codes")}
        weights = free(model, people, "codes")
        names = adapters.add_film(model, lambda name: name not in resting)
        return groups(model, [*weights, *map(model.get_parameter, names)], self.rate * FASTER)


def build(*, rate: float, recipe: StrategyRecipe) -> Strategy:
    return FiLM(rate, recipe)
