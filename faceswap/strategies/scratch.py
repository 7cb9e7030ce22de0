"""Everything trains, from nothing: what DeepFaceLab's and FaceSwap's users did at first. Takes no base."""

from faceswap.config import StrategyRecipe
from faceswap.strategies import Strategy
from faceswap.strategies.full import Full


class Scratch(Full):
    """See `faceswap.strategies.Strategy`."""

    takes_base = False


def build(*, rate: float, recipe: StrategyRecipe) -> Strategy:
    return Scratch(rate, recipe)
