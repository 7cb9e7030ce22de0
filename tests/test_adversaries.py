"""Tests of faceswap.adversaries."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from faceswap import adversaries
from faceswap.adversaries import Adversary, CodeDiscriminator, PatchDiscriminator
from faceswap.checkpoint import State, read, write
from faceswap.config import Recipe
from faceswap.errors import CheckpointError


def images(seed: int = 0, side: int = 32, count: int = 2) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def patch_discriminator(patch: int = 15, width: int = 4, seed: int = 0) -> PatchDiscriminator:
    torch.manual_seed(seed)
    return PatchDiscriminator(patch, width)


@pytest.mark.parametrize("patch", [3, 12, 16, 28, 40, 64])
def test_a_patch_logit_sees_what_was_asked_for(patch: int) -> None:
    net = patch_discriminator(patch, 2).double()
    theory = adversaries.receptive_field(adversaries.strides_for(patch))
    side = 2 * theory + 64
    start = images(side=side, count=1).double().requires_grad_()
    patches, _ = net(start)
    middle = patches.shape[-1] // 2
    (gradient,) = torch.autograd.grad(patches[0, 0, middle, middle], start)
    seen = gradient.abs().sum((0, 1)) > 0
    for line in (seen.any(0), seen.any(1)):
        found = line.nonzero()
        assert int(found[-1] - found[0]) + 1 == theory
    assert abs(theory - patch) <= 2


def test_the_shortest_way_to_a_size_is_taken() -> None:
    assert adversaries.strides_for(16) == (2, 2, 2) and adversaries.strides_for(64) == (2, 2, 2, 2, 2)
    assert adversaries.strides_for(1) == (2,) and adversaries.receptive_field(adversaries.strides_for(640)) == 639
    for patch in range(3, 130):
        assert abs(adversaries.receptive_field(adversaries.strides_for(patch)) - patch) <= 2


@pytest.mark.parametrize(
    ("patch", "shape"), [(3, (32, 32)), (12, (33, 47)), (27, (50, 31)), (64, (96, 96)), (640, (32, 32))]
)
def test_logits_per_patch_and_per_pixel(patch: int, shape: tuple[int, int]) -> None:
    patches, pixels = patch_discriminator(patch, 2)(torch.rand(2, 3, *shape))
    step = math.prod(adversaries.strides_for(patch))
    assert patches.shape == (2, 1, -(-shape[0] // step), -(-shape[1] // step)) and pixels.shape == (2, 1, *shape)


def test_a_pixel_logit_sees_its_pixel_and_beyond_the_patch() -> None:
    start = images(side=64, count=1).requires_grad_()
    _, pixels = patch_discriminator(15)(start)
    (gradient,) = torch.autograd.grad(pixels[0, 0, 31, 31], start)
    seen = gradient.abs().sum((0, 1)) > 0
    found = seen.any(0).nonzero()
    assert seen[31, 31] and int(found[-1] - found[0]) + 1 > 15


def test_under_autocast_losses_are_float32() -> None:
    adversary = Adversary(patch_discriminator(), 1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert adversary.discriminator(images())[0].dtype == torch.bfloat16
        found = adversary.generator_loss(images(), images(1))
    assert found.dtype == torch.float32
    assert torch.allclose(found, adversary.generator_loss(images(), images(1)), atol=1e-2)


@pytest.mark.parametrize(("shape", "places"), [((128,), (1,)), ((64, 6, 6), (1, 3, 3)), ((64, 8, 8), (1, 2, 2))])
def test_code_logits(shape: tuple[int, ...], places: tuple[int, ...]) -> None:
    codes = torch.randn(3, *shape)
    (found,) = CodeDiscriminator(shape, 8)(codes)
    assert found.shape == (3, *places)


def test_known_values() -> None:
    zero, one, two = torch.zeros(2, 1, 4, 4), torch.ones(2, 1), torch.full((2, 1, 3, 3), 2.0)
    assert adversaries.generator_term((zero,)).tolist() == pytest.approx([math.log(2)] * 2)
    assert adversaries.discriminator_term((zero, zero), (zero, zero)) == pytest.approx(math.log(2))
    missed, told = math.log(1 + math.exp(-1)), math.log(1 + math.exp(-2))
    assert adversaries.generator_term((one, two)) == pytest.approx((missed + told) / 2)
    assert adversaries.discriminator_term((-one,), (two,)) == pytest.approx((missed + told) / 2)
    assert adversaries.generator_term((1e4 * one,)) == pytest.approx(0)
    assert adversaries.generator_term((-1e4 * one,)) == pytest.approx(1e4)  # finite, and with a slope


def test_terms_are_torchs_binary_cross_entropy_with_its_gradient() -> None:
    random = torch.Generator().manual_seed(0)
    drawn, real = (torch.randn(2, 1, 3, 3, generator=random, dtype=torch.float64, requires_grad=True) for _ in "ab")
    entropy = nn.functional.binary_cross_entropy_with_logits
    expected = (entropy(drawn, torch.zeros_like(drawn)) + entropy(real, torch.ones_like(real))) / 2
    found = adversaries.discriminator_term((drawn,), (real,))
    assert torch.allclose(found.mean(), expected)
    assert torch.autograd.gradcheck(lambda a, b: adversaries.discriminator_term((a, a[:, :, 0]), (b,)), (drawn, real))
    assert torch.autograd.gradcheck(lambda a: adversaries.generator_term((a, a[:, :, 0])), drawn)


def test_gradient_penalty_of_known_networks() -> None:
    class Linear(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return (3 * x, x.sum((1, 2, 3), keepdim=True))

    real = images(side=4)  # 48 numbers; the mean logit has the slope (3/48 + 1) / 2 at each
    expected = 48 * ((3 / 48 + 1) / 2) ** 2 / 2
    assert adversaries.gradient_penalty(Linear(), real) == pytest.approx(expected)
    net = patch_discriminator(7, 2).double()
    penalty = adversaries.gradient_penalty(net, images(side=8).double())
    assert penalty.shape == (2,) and (penalty > 0).all()
    weight = net.enter.weight
    way = torch.randn(weight.shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(penalty.sum(), weight)
    found = []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * 1e-5 * way
        found.append(float(adversaries.gradient_penalty(net, images(side=8).double()).sum().detach()))
        with torch.no_grad():
            weight -= sign * 1e-5 * way
    assert (found[0] - found[1]) / 2e-5 == pytest.approx(float((gradient * way).sum()), rel=1e-4)


def test_the_gradient_of_the_generators_loss() -> None:
    adversary = Adversary(patch_discriminator(7, 2).double(), 1e-3)
    start, weight = images(side=8).double().requires_grad_(), torch.rand(2, 1, 8, 8).double()
    real = images(1, side=8).double()
    assert torch.autograd.gradcheck(lambda x: adversary.generator_loss(x, real, weight), start, fast_mode=True)


def test_the_generators_loss_is_per_face_and_spares_the_discriminator() -> None:
    adversary = Adversary(patch_discriminator(), 1e-3)
    drawn, real = images().requires_grad_(), images(1)
    found = adversary.generator_loss(drawn, real)
    assert found.shape == (2,) and found.dtype == torch.float32
    for face in (0, 1):
        alone = adversary.generator_loss(drawn[face : face + 1], real)
        assert torch.allclose(alone[0], found[face], atol=1e-6)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert drawn.grad is not None and drawn.grad.abs().sum() > 0
    assert all(weight.grad is None and weight.requires_grad for weight in adversary.discriminator.parameters())


def test_nothing_outside_the_weight_changes_it() -> None:
    adversary = Adversary(patch_discriminator(), 1e-3)
    weight, real = torch.ones(2, 1, 32, 32), images(1)
    weight[..., :16] = 0
    drawn = images().requires_grad_()
    other = drawn.detach().clone()
    other[..., :16] = 0.3
    found = adversary.generator_loss(drawn, real, weight)
    assert torch.equal(found, adversary.generator_loss(other, real, weight))
    (gradient,) = torch.autograd.grad(found.sum(), drawn)
    assert not gradient[..., :16].any() and gradient[..., 16:].any()
    assert torch.equal(
        adversary.generator_loss(drawn, real, torch.ones_like(weight)), adversary.generator_loss(drawn, real)
    )


def two_codes(count: int = 8) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.randn(count, 16, generator=random) - 1, torch.randn(count, 16, generator=random) + 1


@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_it_learns_to_tell_and_the_maker_learns_to_deceive(penalty: float) -> None:
    torch.manual_seed(0)
    adversary = Adversary(CodeDiscriminator((16,), 16), 1e-2, penalty)
    drawn, real = two_codes()
    values = [adversary.step(drawn, real) for _ in range(40)]
    assert values[0] == pytest.approx(math.log(2), abs=0.1) and values[-1] < 0.2
    start = drawn.clone()
    first = float(adversary.generator_loss(start, real).mean())
    for _ in range(60):
        start.requires_grad_()
        (gradient,) = torch.autograd.grad(adversary.generator_loss(start, real).sum(), start)
        start = start.detach() - 0.2 * gradient
    assert float(adversary.generator_loss(start, real).mean()) < 0.3 * first


def test_it_learns_to_tell_blurred_images_from_sharp_ones() -> None:
    adversary = Adversary(patch_discriminator(), 3e-3)
    real = images()
    drawn = nn.functional.avg_pool2d(real, 3, 1, 1)
    values = [adversary.step(drawn, real) for _ in range(60)]
    assert values[-1] < 0.3 < values[0]


@pytest.mark.parametrize("make", [patch_discriminator, lambda seed: CodeDiscriminator((3, 32, 32), 4)])
def test_it_goes_on_exactly_through_a_weight_file(make: Callable[..., nn.Module], tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    first, rate = Adversary(make(seed=0), 1e-3, 0.1), 1e-3
    for step in range(3):
        first.step(images(step), images(9 + step))
    tensors = {f"adversary.{name}": tensor for name, tensor in first.state_dict().items()}
    write(path, State(Recipe(), ["source"], tensors))
    second = Adversary(make(seed=1), rate, 0.1)
    second.load_state_dict(read(path).part("adversary"))
    for step in range(3, 6):
        assert first.step(images(step), images(9 + step)) == second.step(images(step), images(9 + step))
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_one_that_never_stepped_is_saved_too() -> None:
    first, second = Adversary(patch_discriminator(), 1e-3), Adversary(patch_discriminator(seed=1), 1e-3)
    second.load_state_dict(first.state_dict())
    assert first.step(images(), images(1)) == second.step(images(), images(1))


def test_weights_of_another_network_are_refused() -> None:
    tensors = Adversary(patch_discriminator(), 1e-3).state_dict()
    with pytest.raises(CheckpointError, match=r"run: of another architecture: .* is .*, expected"):
        Adversary(patch_discriminator(7), 1e-3).load_state_dict(tensors, "run")


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    adversary = Adversary(patch_discriminator(), 1e-3)
    adversary.step(images(), images(1))
    before = {name: tensor.clone() for name, tensor in adversary.state_dict().items()}
    assert math.isnan(adversary.step(images() * math.nan, images(1)))
    assert all(torch.equal(before[name], tensor) for name, tensor in adversary.state_dict().items())


def test_with_several_processes_gradients_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (Adversary(patch_discriminator(), 1e-3) for _ in "ab")
    distributed = torch.distributed
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 4)
    shared: list[Tensor] = []  # all four have the same
    monkeypatch.setattr(distributed, "all_reduce", lambda tensor: shared.append(tensor.mul_(4)))
    one.step(images(), images(1))
    assert len(shared) == len(list(one.discriminator.parameters()))
    monkeypatch.undo()
    two.step(images(), images(1))
    ours, theirs = one.state_dict(), two.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
