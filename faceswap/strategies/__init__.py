"""What trains, how fast, against which losses. A strategy is one file here with `build(rate, recipe) -> Strategy`."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from faceswap import losses
from faceswap.adversaries import Adversary, CodeDiscriminator, PatchDiscriminator
from faceswap.batches import Batch
from faceswap.config import Recipe, StrategyRecipe
from faceswap.models import FaceModel, Part
from faceswap.registry import Socket

SOCKET = Socket("faceswap.strategies", "strategy")
RECONSTRUCTION = (*losses.TABLE, "mask")  # losses that say what to draw; the others only say how
ADVERSARIAL = ("adversarial", "true_face")  # those whose other side trains too


class Strategy:
    """How a model is fitted. Only `prepare` must be given."""

    takes_base, needs_base = True, False
    takes_generic = False  # faces of anyone besides those of the people
    small = False  # whether only what trains is kept to draw with, and the base is needed for the rest

    def __init__(self, rate: float, recipe: StrategyRecipe) -> None:
        self.rate, self.recipe = rate, recipe
        self.generic = False  # whether the batches hold `ANYONE` alone, who is told by photos
        self.adversaries: dict[str, Adversary] = {}  # by the loss that each stands for; whoever trains puts them here
        self._met: dict[str, list[tuple[Tensor, ...]]] = {}  # what each has to learn from

    def begin(self, model: FaceModel, photos: Sequence[Tensor]) -> None:
        """A new run from a base: who each of its people is, by photos (N, 3, R, R) of each."""
        for person, theirs in enumerate(photos):
            model.meet(person, theirs)

    @abstractmethod
    def prepare(self, model: FaceModel, people: int) -> list[dict[str, Any]]:
        """Freeze what stays and give the optimizer's parameter groups, each with `params` and `lr`.

        people: how many of the model's people have faces to train on, the first ones. The weights are those of the
        base, if there is one. A group rests until the part `after` of the budget is over.
        """

    def losses(self, model: nn.Module, batch: Batch, weights: Mapping[str, float]) -> dict[str, Tensor]:
        """The losses to be summed, by name: scalars, already weighted. A loss of weight 0 is left out."""
        drawn, mask = model(batch.input, batch.person, batch.photo if self.generic else None)
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


def free(model: FaceModel, people: int, *parts: Part, every: bool = False) -> list[nn.Parameter]:
    """Freeze a model but for some parts, or but for nothing if `every`; gives what is left to train, in order.

    What only `ANYONE` uses is frozen in any case where they have no faces to train on.
    """
    chosen = {name for part in parts for name in model.named(part)}
    resting = set(model.named("anyone")) if people < model.people else set[str]()
    for name, weight in model.named_parameters():
        weight.requires_grad_((every or name in chosen) and name not in resting)
    return [weight for weight in model.parameters() if weight.requires_grad]


def groups(
    model: FaceModel, weights: Sequence[nn.Parameter], rate: float, codes: float = 1.0, encoder: float = 1.0
) -> list[dict[str, Any]]:
    """Groups for the optimizer: codes apart, whose rate is `codes` times as high and which do not decay; and all before
    the decoder apart if its rate is another, `encoder` times as high (Howard & Ruder, arXiv 1801.06146)."""
    own = {id(model.get_parameter(name)) for name in model.named("codes")}
    drawing = {id(model.get_parameter(name)) for name in model.named("decoder")}
    seeing = {id(weight) for weight in weights} - drawing - own if encoder != 1 else set[int]()
    found: list[dict[str, Any]] = [
        {"params": [weight for weight in weights if id(weight) not in own | seeing], "lr": rate},
        {"params": [weight for weight in weights if id(weight) in seeing], "lr": rate * encoder},
        {"params": [weight for weight in weights if id(weight) in own], "lr": rate * codes, "weight_decay": 0.0},
    ]
    return [group for group in found if group["params"]]


def build(name: str, *, rate: float, recipe: StrategyRecipe) -> Strategy:
    """The strategy `name` with the learning rate `rate`."""
    part: Any = SOCKET.load(name)
    strategy: Strategy = part.build(rate=rate, recipe=recipe)
    return strategy
