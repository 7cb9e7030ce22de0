"""Tests of faceswap.strategies: which terms there are, and who learns from them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from faceswap import checkpoint, strategies
from faceswap.batches import Batch
from faceswap.config import LossRecipe, check
from faceswap.strategies import Strategy, full

RECIPE = check({"model": {"resolution": 32, "width": 4, "code": 16}, "loss": {"patch": 8}}, "test").resolved()
NOTHING = dict.fromkeys(LossRecipe.model_fields, 0.0) | {"background": 1.0}


class Rememberer(nn.Module):
    """Draws a person's own gray; notes what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.gray = nn.Parameter(torch.tensor([0.25, 0.75]))
        self.given: list[tuple[Tensor, Tensor, bool]] = []

    def forward(self, faces: Tensor, person: Tensor) -> tuple[Tensor, Tensor]:
        self.given.append((faces, person, torch.is_grad_enabled()))
        drawn = self.gray[person][:, None, None, None].expand_as(faces)
        return drawn, drawn[:, :1]

    def code(self, faces: Tensor) -> Tensor:
        return faces.mean((2, 3)) * self.gray.sum()


def batch() -> Batch:
    torch.manual_seed(0)
    faces, one = torch.rand(4, 3, 32, 32), torch.ones(4, 1, 32, 32)
    return Batch(faces * 0.9, faces, one, torch.zeros_like(one), torch.tensor([0, 0, 1, 1]))


def parts(strategy: Strategy, model: nn.Module, **weights: float) -> dict[str, Tensor]:
    return strategy.losses(model, batch(), NOTHING | weights)


def test_a_face_is_drawn_as_the_other_without_gradient_and_back_with_it() -> None:
    model, strategy = Rememberer(), full.build(rate=1e-3)
    found = parts(strategy, model, l1=0.5, swap_back=2.0)
    (_, own, _), (faces, other, there), (drawn, back, again) = model.given
    assert own.tolist() == back.tolist() == [0, 0, 1, 1] and other.tolist() == [1, 1, 0, 0]
    assert torch.equal(faces, batch().target) and (there, again) == (False, True)
    assert torch.equal(drawn[:, 0, 0, 0], torch.tensor([0.75, 0.75, 0.25, 0.25])) and not drawn.requires_grad
    assert found["swap_back"].item() == pytest.approx(2 * found["l1"].item())  # the same gray, whatever it was given
    found["swap_back"].backward()
    assert model.gray.grad is not None and model.gray.grad.abs().min() > 0


def test_a_loss_of_weight_zero_is_left_out() -> None:
    model = Rememberer()
    assert parts(full.build(rate=1e-3), model, l1=1.0).keys() == {"l1"} and len(model.given) == 1


@pytest.mark.parametrize("name", strategies.ADVERSARIAL)
def test_an_adversary_learns_apart_from_the_model(name: str) -> None:
    model, strategy = Rememberer(), full.build(rate=1e-3)
    strategy.adversaries[name] = strategies.adversary(name, model, RECIPE, torch.device("cpu"))
    network = strategy.adversaries[name].discriminator
    before = [weight.clone() for weight in network.parameters()]
    found = parts(strategy, model, **{name: 0.5})
    found[name].backward()
    assert found[name].item() == pytest.approx(0.5 * 0.6931, abs=0.1)
    assert model.gray.grad is not None and all(weight.grad is None for weight in network.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    gradient = model.gray.grad.clone()
    said = strategy.step()
    assert said.keys() == {f"{name}_adversary"} and torch.equal(model.gray.grad, gradient)
    assert not all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert strategy.step() == {}, "nothing was met since"
    parts(strategy, model, **{name: 0.5})
    strategy.forget()
    assert strategy.step() == {}


def test_an_adversary_is_the_same_whenever_it_is_made() -> None:
    made: list[dict[str, Any]] = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        made.append(strategies.adversary("adversarial", Rememberer(), RECIPE, torch.device("cpu")).state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    assert made[0].keys() == made[1].keys() and all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_everything_trains_in_full() -> None:
    model = checkpoint.new_model(RECIPE, 2)
    (group,) = full.build(rate=0.5).prepare(model)
    assert group["lr"] == 0.5 and len(group["params"]) == len(list(model.parameters()))
