"""Everything trains, and the way from the base costs something (Li et al., L2-SP, arXiv 1802.01483)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from faceswap.batches import Batch
from faceswap.config import StrategyRecipe
from faceswap.models import FaceModel
from faceswap.strategies import Strategy
from faceswap.strategies.full import Full


class L2SP(Full):
    """See `faceswap.strategies.Strategy`."""

    needs_base = True

    def prepare(self, model: FaceModel, people: int) -> list[dict[str, Any]]:
        found = super().prepare(model, people)
        codes = set(model.named("codes"))  # which have to leave
        named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
        self.pairs = [(weight, weight.detach().clone()) for name, weight in named if name not in codes]
        return found

    def losses(self, model: nn.Module, batch: Batch, weights: Mapping[str, float]) -> dict[str, Tensor]:
        found = super().losses(model, batch, weights)
        way = torch.stack([(weight - start).square().sum() for weight, start in self.pairs]).sum()
        return found | {"way": self.recipe.penalty * way}


def build(*, rate: float, recipe: StrategyRecipe) -> Strategy:
    return L2SP(rate, recipe)
