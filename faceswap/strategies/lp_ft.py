"""The last layer and the codes first, then everything (Kumar et al., LP-FT, arXiv 2202.10054)."""

from typing import Any

from faceswap.config import StrategyRecipe
from faceswap.models import FaceModel
from faceswap.strategies import Strategy, free, groups


class LPFT(Strategy):
    """See `faceswap.strategies.Strategy`."""

    needs_base = True

    def prepare(self, model: FaceModel, people: int) -> list[dict[str, Any]]:
        first = free(model, people, "codes", "last layer")
        known = set(map(id, first))
        rest = [weight for weight in free(model, people, every=True) if id(weight) not in known]
        later = groups(model, rest, self.rate, encoder=self.recipe.encoder)
        return [*groups(model, first, self.rate), *(group | {"after": self.recipe.first} for group in later)]


def build(*, rate: float, recipe: StrategyRecipe) -> Strategy:
    return LPFT(rate, recipe)
