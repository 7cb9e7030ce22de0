"""The base's teller tells each person's code from photos, and with it the modulation of every channel; then the codes
and a factor and an offset for each channel are refined, which takes little (Ruiz et al., arXiv 2307.06949)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from faceswap.config import StrategyRecipe
from faceswap.errors import RecipeError
from faceswap.models import FaceModel
from faceswap.strategies import Strategy
from faceswap.strategies.film import FiLM


class Hypernetwork(FiLM):
    """See `faceswap.strategies.Strategy`."""

    def begin(self, model: FaceModel, photos: Sequence[Tensor]) -> None:
        Strategy.begin(self, model, photos)

    def prepare(self, model: FaceModel, people: int) -> list[dict[str, Any]]:
        if not model.named("anyone") or not model.named("codes"):
            raise RecipeError("strategy.name = 'hypernetwork': no teller here; use model.name = 'modulated'")
        return super().prepare(model, people)


def build(*, rate: float, recipe: StrategyRecipe) -> Strategy:
    return Hypernetwork(rate, recipe)
