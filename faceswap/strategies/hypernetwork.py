"""The base's teller, trained beside it, tells each person's code from photos, and with it what every channel of the
decoder is scaled and shifted by; then codes, factors and offsets are refined (Ruiz et al., arXiv 2307.06949)."""

from typing import Any

from faceswap import adapters
from faceswap.config import StrategyRecipe
from faceswap.errors import RecipeError
from faceswap.models import FaceModel
from faceswap.strategies import Strategy, free, groups
from faceswap.strategies.film import FASTER


class Hypernetwork(Strategy):
    """See `faceswap.strategies.Strategy`."""

    needs_base = small = True

    def prepare(self, model: FaceModel, people: int) -> list[dict[str, Any]]:
        if not model.named("anyone") or not model.named("codes"):
            raise RecipeError("strategy.name = 'hypernetwork': no teller here; use model.name = 'modulated'")
        weights = free(model, people, "codes")
        names = adapters.add_film(model, set(model.named("decoder")).__contains__)
        return groups(model, [*weights, *map(model.get_parameter, names)], self.rate * FASTER)


def build(*, rate: float, recipe: StrategyRecipe) -> Strategy:
    return Hypernetwork(rate, recipe)
