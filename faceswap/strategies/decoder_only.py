"""All behind the bottleneck, and the codes; what the base sees in a face stays as it is."""

from typing import Any

from faceswap.config import StrategyRecipe
from faceswap.models import FaceModel
from faceswap.strategies import Strategy, free, groups


class DecoderOnly(Strategy):
    """See `faceswap.strategies.Strategy`."""

    needs_base = small = True

    def prepare(self, model: FaceModel, people: int) -> list[dict[str, Any]]:
        return groups(model, free(model, people, "codes", "decoder"), self.rate)


def build(*, rate: float, recipe: StrategyRecipe) -> Strategy:
    return DecoderOnly(rate, recipe)
