"""A run goes on from its complete state, with the strategy that it has, as if it had never stopped."""

from faceswap.config import StrategyRecipe
from faceswap.errors import RecipeError
from faceswap.strategies import Strategy


def build(*, rate: float, recipe: StrategyRecipe) -> Strategy:
    """Whoever trains takes the run's own strategy: there is no run."""
    raise RecipeError("strategy.name = 'resume': no run to go on with; name one with -o, or another strategy")
