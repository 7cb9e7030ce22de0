import cv2
import numpy as np
import pytest
import torch

from faceswap import losses

WEIGHTS = {"ssim": 1.0, "l1": 0.0, "charbonnier": 0.0, "mask": 0.0, "background": 0.5}


def images(seed: int = 0, side: int = 24) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed))


ONES = torch.ones(2, 1, 24, 24)


@pytest.mark.parametrize("name", losses.TABLE)
def test_perfect_prediction_costs_nothing_and_a_worse_one_more(name: str) -> None:
    target, noise = images(), images(1) - 0.5
    loss = losses.TABLE[name]
    assert loss(target, target, ONES) == pytest.approx(0, abs=1e-6)
    small, large = loss(target + 0.05 * noise, target, ONES), loss(target + 0.3 * noise, target, ONES)
    assert (small > 0).all() and (small < large).all()


@pytest.mark.parametrize("name", losses.TABLE)
def test_gradient_agrees_with_finite_differences(name: str) -> None:
    target, start = images(side=12).double(), images(1, side=12).double().requires_grad_()
    loss, weight = losses.TABLE[name], torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(3))
    loss(start, target, weight).sum().backward()
    way = torch.randn(start.shape, generator=torch.Generator().manual_seed(2)).double()
    step = 1e-3
    ahead, behind = (loss(start.detach() + s * step * way, target, weight).sum() for s in (1, -1))
    assert start.grad is not None
    slope = float((start.grad * way).sum())
    assert float(ahead - behind) / (2 * step) == pytest.approx(slope, rel=2e-2)


def test_ssim_agrees_with_its_definition() -> None:
    x, y = (image[0, 0].double().numpy() for image in (images(1), images(2)))

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (11, 11), 1.5)[5:-5, 5:-5]

    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    expected = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    found = losses.ssim_map(images(1)[:1, :1], images(2)[:1, :1])[0, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_known_values() -> None:
    black, gray = torch.zeros(2, 3, 24, 24), torch.full((2, 3, 24, 24), 0.5)
    assert losses.l1(gray, black, ONES) == pytest.approx(0.5)
    assert losses.mse(gray, black, ONES) == pytest.approx(0.25)
    assert losses.charbonnier(gray, black, ONES) == pytest.approx(0.499, abs=1e-5)
    assert losses.psnr(gray, black, ONES) == pytest.approx(6.0206, abs=1e-3)
    constant = 1 - losses.K1**2 / (0.5**2 + losses.K1**2)  # only luminance differs
    assert losses.ssim(gray, black, ONES) == pytest.approx(constant, abs=1e-4)


@pytest.mark.parametrize("name", losses.TABLE)
def test_weight_zero_hides_an_error(name: str) -> None:
    target = images(side=40)
    wrong, weight = target.clone(), torch.ones(2, 1, 40, 40)
    wrong[..., :8] = 1 - wrong[..., :8]
    weight[..., :20] = 0  # the window of SSIM reaches 5 px beyond the error
    loss = losses.TABLE[name]
    assert loss(wrong, target, weight) == pytest.approx(0, abs=1e-6)
    assert (loss(wrong, target, torch.ones_like(weight)) > 0.01).all()


def test_reconstruction_holds_what_the_weights_turn_on() -> None:
    target, mask = images(), ONES * 0.5
    found = losses.reconstruction(target, mask, target, mask, WEIGHTS | {"l1": 2.0, "mask": 1.0})
    assert set(found) == {"ssim", "l1", "mask"}
    assert all(per_face.shape == (2,) for per_face in found.values())
    one = losses.reconstruction(images(1), mask, target, mask, WEIGHTS | {"l1": 1.0})["l1"]
    two = losses.reconstruction(images(1), mask, target, mask, WEIGHTS | {"l1": 2.0})["l1"]
    assert torch.allclose(2 * one, two)


def test_the_face_counts_more_than_the_background() -> None:
    target = images()
    mask = torch.zeros_like(ONES)
    mask[..., 12:] = 1
    left, right = target.clone(), target.clone()
    left[..., :12] += 0.1
    right[..., 12:] += 0.1
    weights = WEIGHTS | {"ssim": 0.0, "l1": 1.0, "background": 0.1}
    outside = losses.reconstruction(left, mask, target, mask, weights)["l1"]
    inside = losses.reconstruction(right, mask, target, mask, weights)["l1"]
    assert inside / outside == pytest.approx(10, rel=1e-3)
