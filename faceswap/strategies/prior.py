"""Everything trains, and with it faces of anyone, so that the model does not forget them (Ruiz et al., DreamBooth,
arXiv 2208.12242).

With generic faces, which stand for `ANYONE`, these are drawn too. Without any, the two people's own faces, drawn as
`ANYONE`, must stay as the base draws them (Li & Hoiem, Learning without Forgetting, arXiv 1606.09282); what tells
people from photos rests then, as it would learn to tell these two.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from faceswap import losses
from faceswap.batches import Batch
from faceswap.config import StrategyRecipe
from faceswap.models import FaceModel
from faceswap.strategies import Strategy, free, groups


class Prior(Strategy):
    """See `faceswap.strategies.Strategy`."""

    needs_base = True
    takes_generic = True

    def prepare(self, model: FaceModel, people: int) -> list[dict[str, Any]]:
        self.anyone = model.people - 1
        self.base = None if people == model.people else deepcopy(model).requires_grad_(False)
        return groups(model, free(model, people, every=True), self.rate, encoder=self.recipe.encoder)

    def losses(self, model: nn.Module, batch: Batch, weights: Mapping[str, float]) -> dict[str, Tensor]:
        if self.base is None:
            own = len(batch.person) * self.anyone // (self.anyone + 1)  # the rest is generic
            batch, generic = rows(batch, slice(own)), rows(batch, slice(own, None))
        else:
            anyone = torch.full_like(batch.person, self.anyone)
            with torch.no_grad():
                target, mask = self.base(batch.target, anyone, batch.photo)
            generic = replace(batch, target=target, mask=mask, person=anyone)
        found = super().losses(model, batch, weights)
        drawn, mask = model(generic.input, generic.person, generic.photo)
        terms = losses.reconstruction(drawn, mask, generic.target, generic.mask, generic.priority, weights)
        return found | {"prior": self.recipe.prior * torch.stack(list(terms.values())).sum(0).mean()}


def rows(batch: Batch, chosen: slice) -> Batch:
    """Some faces of a batch."""
    return Batch(**{field.name: getattr(batch, field.name)[chosen] for field in fields(batch)})


def build(*, rate: float, recipe: StrategyRecipe) -> Strategy:
    return Prior(rate, recipe)
