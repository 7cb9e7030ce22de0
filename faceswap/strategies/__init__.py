"""What trains, how fast, against which losses. A strategy is one file here with `build(rate) -> Strategy`."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from faceswap import losses
from faceswap.adversaries import Adversary, CodeDiscriminator, PatchDiscriminator
from faceswap.batches import Batch
from faceswap.config import Recipe
from faceswap.registry import Socket

SOCKET = Socket("faceswap.strategies", "strategy")
RECONSTRUCTION = (*losses.TABLE, "mask")  # losses that say what to draw; the others only say how
ADVERSARIAL = ("adversarial", "true_face")  # those whose other side trains too


class Strategy:
    """How a model is fitted. Only `prepare` must be given."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.adversaries: dict[str, Adversary] = {}  # by the loss that each stands for; whoever trains puts them here
        self._met: dict[str, list[tuple[Tensor, ...]]] = {}  # what each has to learn from

    @abstractmethod
    def prepare(self, model: nn.Module) -> list[dict[str, Any]]:
        """Freeze what stays and give the optimizer's parameter groups, each with `params` and `lr`."""

    def losses(self, model: nn.Module, batch: Batch, weights: Mapping[str, float]) -> dict[str, Tensor]:
        """The losses to be summed, by name: scalars, already weighted. A loss of weight 0 is left out."""
        drawn, mask = model(batch.input, batch.person)
        terms = losses.reconstruction(drawn, mask, batch.target, batch.mask, batch.priority, weights)
        found = {name: per_face.mean() for name, per_face in terms.items()}
        if weights["swap_back"]:
            found["swap_back"] = weights["swap_back"] * swap_back(model, batch, weights)
        if weights["adversarial"]:
            found["adversarial"] = weights["adversarial"] * self._meet("adversarial", drawn, batch.target, batch.mask)
        if weights["true_face"]:
            codes: Tensor = model.code(batch.input)  # type: ignore[operator]
            found["true_face"] = weights["true_face"] * self._meet("true_face", *codes.chunk(2))
        return found

    def _meet(self, name: str, drawn: Tensor, real: Tensor, *weight: Tensor) -> Tensor:
        self._met.setdefault(name, []).append((drawn.detach(), real.detach(), *weight))
        return self.adversaries[name].generator_loss(drawn, real, *weight).mean()

    def step(self) -> dict[str, float]:
        """After the model's own step: adversaries learn from what `losses` met since the last; gives their losses."""
        met, self._met = self._met, {}
        return {
            f"{name}_adversary": self.adversaries[name].step(*(torch.cat(parts) for parts in zip(*seen, strict=True)))
            for name, seen in met.items()
        }

    def forget(self) -> None:
        """Drop what `losses` met: there was no step."""
        self._met.clear()


def swap_back(model: nn.Module, batch: Batch, weights: Mapping[str, float]) -> Tensor:
    """Each face drawn as the other person, and back from there, against itself.

    Only the way back learns: the other person's face is what the model meets, not what it is told to draw.
    """
    with torch.no_grad():
        other, _ = model(batch.target, 1 - batch.person)
    drawn, mask = model(other, batch.person)
    found = losses.reconstruction(drawn, mask, batch.target, batch.mask, batch.priority, weights)
    return torch.stack(list(found.values())).sum(0).mean()


def adversary(name: str, model: nn.Module, recipe: Recipe, device: torch.device) -> Adversary:
    """The other side of the loss `name`, fresh: the same for the same recipe, whenever and wherever it is made."""
    side = recipe.model.resolution
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(recipe.seed)
        if name == "adversarial":
            network: nn.Module = PatchDiscriminator(recipe.loss.patch or side // 8)
        else:
            code: Tensor = model.code(torch.zeros(1, 3, side, side, device=device))  # type: ignore[operator]
            network = CodeDiscriminator(code.shape[1:])
    return Adversary(network.to(device), recipe.train.rate, recipe.loss.r1)


def build(name: str, *, rate: float) -> Strategy:
    """The strategy `name` with the learning rate `rate`."""
    part: Any = SOCKET.load(name)
    strategy: Strategy = part.build(rate=rate)
    return strategy
