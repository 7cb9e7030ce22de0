"""Everything trains: fine-tuning proper from a base, training from scratch without one."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from faceswap.batches import Batch
from faceswap.strategies import Strategy, reconstruct


class Full:
    """See `faceswap.strategies.Strategy`."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def prepare(self, model: nn.Module) -> list[dict[str, Any]]:
        return [{"params": list(model.parameters()), "lr": self.rate}]

    def losses(self, model: nn.Module, batch: Batch, weights: Mapping[str, float]) -> dict[str, Tensor]:
        return reconstruct(model, batch, weights)


def build(*, rate: float) -> Strategy:
    return Full(rate)
