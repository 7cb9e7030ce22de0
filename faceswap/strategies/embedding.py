"""One code for each person; the network is frozen (Gal et al., arXiv 2208.01618)."""

from typing import Any

from faceswap.config import StrategyRecipe
from faceswap.errors import RecipeError
from faceswap.models import FaceModel
from faceswap.strategies import Strategy, free, groups

FASTER = 30.0  # than all weights would train


class Embedding(Strategy):
    """See `faceswap.strategies.Strategy`."""

    needs_base = small = True

    def prepare(self, model: FaceModel, people: int) -> list[dict[str, Any]]:
        weights = free(model, people, "codes")
        if not weights:
            raise RecipeError("strategy.name = 'embedding': this model has no codes; use model.name = 'modulated'")
        return groups(model, weights, self.rate, FASTER)


def build(*, rate: float, recipe: StrategyRecipe) -> Strategy:
    return Embedding(rate, recipe)
