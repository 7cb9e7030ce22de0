"""What trains, how fast, against which losses. A strategy is one file here with `build(rate) -> Strategy`."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from faceswap import losses
from faceswap.batches import Batch
from faceswap.registry import Socket

SOCKET = Socket("faceswap.strategies", "strategy")


class Strategy(Protocol):
    """How a model is fitted."""

    def prepare(self, model: nn.Module) -> list[dict[str, Any]]:
        """Freeze what stays and give the optimizer's parameter groups, each with `params` and `lr`."""
        ...

    def losses(self, model: nn.Module, batch: Batch, weights: Mapping[str, float]) -> dict[str, Tensor]:
        """The losses to be summed, by name: scalars, already weighted."""
        ...


def reconstruct(model: nn.Module, batch: Batch, weights: Mapping[str, float]) -> dict[str, Tensor]:
    """Each face drawn as the person it is, compared with itself."""
    drawn, mask = model(batch.input, batch.person)
    found = losses.reconstruction(drawn, mask, batch.target, batch.mask, batch.priority, weights)
    return {name: per_face.mean() for name, per_face in found.items()}


def build(name: str, *, rate: float) -> Strategy:
    """The strategy `name` with the learning rate `rate`."""
    part: Any = SOCKET.load(name)
    strategy: Strategy = part.build(rate=rate)
    return strategy
