"""Everything trains: fine-tuning proper from a base, training from scratch without one."""

from typing import Any

from torch import nn

from faceswap.strategies import Strategy


class Full(Strategy):
    """See `faceswap.strategies.Strategy`."""

    def prepare(self, model: nn.Module) -> list[dict[str, Any]]:
        return [{"params": list(model.parameters()), "lr": self.rate}]


def build(*, rate: float) -> Strategy:
    return Full(rate)
