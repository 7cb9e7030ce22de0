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
    found = losses.reconstruction(target, mask, target, mask, mask, WEIGHTS | {"l1": 2.0, "mask": 1.0})
    assert set(found) == {"ssim", "l1", "mask"}
    assert all(per_face.shape == (2,) for per_face in found.values())
    one = losses.reconstruction(images(1), mask, target, mask, mask, WEIGHTS | {"l1": 1.0})["l1"]
    two = losses.reconstruction(images(1), mask, target, mask, mask, WEIGHTS | {"l1": 2.0})["l1"]
    assert torch.allclose(2 * one, two)


def test_the_face_counts_more_than_the_background() -> None:
    target = images()
    mask = torch.zeros_like(ONES)
    mask[..., 12:] = 1
    left, right = target.clone(), target.clone()
    left[..., :12] += 0.1
    right[..., 12:] += 0.1
    weights = WEIGHTS | {"ssim": 0.0, "l1": 1.0, "background": 0.1}
    outside = losses.reconstruction(left, mask, target, mask, mask, weights)["l1"]
    inside = losses.reconstruction(right, mask, target, mask, mask, weights)["l1"]
    assert inside / outside == pytest.approx(10, rel=1e-3)


def test_ms_ssim_of_known_images() -> None:
    for side in (32, 96, 192):
        x, gray, black = images(side=side), torch.full((2, 3, side, side), 0.5), torch.zeros(2, 3, side, side)
        whole = torch.ones(2, 1, side, side)
        assert losses.ms_ssim(x, x, whole) == pytest.approx(0, abs=1e-6)
        shares = losses.SCALES[: {32: 2, 96: 3, 192: 5}[side]]
        luminance = losses.K1**2 / (0.5**2 + losses.K1**2)  # only it differs, and counts at the coarsest scale alone
        expected = 1 - luminance ** (shares[-1] / sum(shares))
        assert losses.ms_ssim(gray, black, whole) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("side", [11, 21, 22, 32, 43, 44, 87, 160, 161, 175, 176])
def test_ms_ssim_works_on_any_side_that_its_window_fits(side: int) -> None:
    x, whole = images(side=side), torch.ones(2, 1, side, side)
    assert losses.ms_ssim(x, x, whole) == pytest.approx(0, abs=1e-6)
    worse = losses.ms_ssim(images(1, side), x, whole)
    assert ((worse > 0.1) & (worse <= 1)).all()
    wide = images(side=side + 30)[..., :side, :]
    assert losses.ms_ssim(wide, wide, torch.ones(2, 1, side, side + 30)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("side", [32, 176])
def test_ms_ssim_has_a_finite_gradient_everywhere(side: int) -> None:
    x, flat = images(side=side), torch.full((2, 3, side, side), 0.5)
    mask = torch.zeros(2, 1, side, side)
    mask[..., side // 4 : -side // 4, side // 4 : -side // 4] = 1
    for prediction, target in ((x, x), (1 - x, x), (flat, x), (flat, flat), (0 * flat, flat * 2), (images(1, side), x)):
        for weight in (mask, torch.ones_like(mask), torch.zeros_like(mask)):
            start = prediction.clone().requires_grad_()
            loss = losses.ms_ssim(start, target, weight)
            loss.sum().backward()
            assert start.grad is not None and start.grad.isfinite().all() and loss.isfinite().all()


def test_the_gradient_of_ms_ssim_agrees_with_finite_differences() -> None:
    target, weight = images(side=48).double(), torch.rand(2, 1, 48, 48, generator=torch.Generator().manual_seed(3))
    start = (0.5 * target + 0.5 * images(1, side=48)).requires_grad_()
    losses.ms_ssim(start, target, weight).sum().backward()
    assert start.grad is not None
    way = start.grad / start.grad.norm() * 1e-1
    ahead, behind = (losses.ms_ssim(start.detach() + s * way, target, weight).sum() for s in (1, -1))
    assert float(ahead - behind) / 2 == pytest.approx(float((start.grad * way).sum()), rel=2e-2)


def test_descending_ms_ssim_leads_to_the_target() -> None:
    target, whole = images(side=48), torch.ones(2, 1, 48, 48)
    drawn = torch.full_like(target, 0.5)
    first = losses.ms_ssim(drawn, target, whole)
    for step in range(60):
        drawn.requires_grad_()
        (gradient,) = torch.autograd.grad(losses.ms_ssim(drawn, target, whole).sum(), drawn)
        drawn = drawn.detach() - 0.05 * 0.95**step * gradient.sign()
    assert (losses.ms_ssim(drawn, target, whole) < 0.1).all() and (first > 0.5).all()


def test_ms_ssim_scores_each_face_by_itself() -> None:
    x, y = images(side=64), images(1, side=64)
    weight = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(3))
    alone = [losses.ms_ssim(x[i : i + 1], y[i : i + 1], weight[i : i + 1]) for i in (0, 1)]
    assert torch.allclose(losses.ms_ssim(x, y, weight), torch.cat(alone), atol=1e-6)
    assert alone[0] != pytest.approx(alone[1], abs=1e-5)
