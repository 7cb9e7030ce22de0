from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from faceswap import files, losses, perceptual
from faceswap.config import LossRecipe
from faceswap.errors import CheckpointError

WEIGHTS = dict.fromkeys(losses.TABLE, 0.0) | {"ssim": 1.0, "mask": 0.0, "background": 0.5, "priority": 0.0}


@pytest.fixture(scope="module", autouse=True)
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a classifier with random weights, which `perceptual` finds."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    tensors = {name: tensor.contiguous() for name, tensor in perceptual.Features().state_dict().items()}
    save_file(tensors | {"classifier.6.bias": torch.zeros(3)}, folder / perceptual.FILE)
    perceptual.network.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACESWAP_PRETRAINED", str(folder))
        yield folder
    perceptual.network.cache_clear()


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


def test_the_table_holds_every_image_loss_of_a_recipe() -> None:
    others = {"mask", "background", "priority", "swap_back", "true_face"}
    others |= {"adversarial", "r1", "patch", "adversarial_from"}
    assert set(LossRecipe().model_dump()) - others == set(losses.TABLE)


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


@pytest.mark.parametrize("name", losses.TABLE)
def test_a_loss_does_not_hang_on_the_size_of_the_weight_or_on_other_faces(name: str) -> None:
    x, y, loss = images(side=40), images(1, 40), losses.TABLE[name]
    weight = torch.rand(2, 1, 40, 40, generator=torch.Generator().manual_seed(3))
    found = loss(x, y, weight)
    assert found.shape == (2,) and found.dtype == torch.float32
    assert torch.allclose(loss(x, y, 4 * weight), found, rtol=1e-4)
    alone = [loss(x[i : i + 1], y[i : i + 1], weight[i : i + 1]) for i in (0, 1)]
    assert torch.allclose(torch.cat(alone), found, rtol=1e-5)


@pytest.mark.parametrize("name", losses.TABLE)
def test_a_weight_of_nothing_costs_nothing_and_all_stays_finite(name: str) -> None:
    for weight in (torch.zeros(2, 1, 40, 40), torch.ones(2, 1, 40, 40)):
        for prediction in (images(1, 40), images(side=40), torch.zeros(2, 3, 40, 40)):
            start = prediction.requires_grad_()
            found = losses.TABLE[name](start, images(side=40), weight)
            (gradient,) = torch.autograd.grad(found.sum(), start)
            assert found.isfinite().all() and gradient.isfinite().all()
            if not weight.any() and name != "ms_ssim":  # which looks at the whole image then
                assert found.tolist() == [0, 0] and not gradient.any()


@pytest.mark.parametrize("name", sorted(set(losses.TABLE) - {"focal_frequency"}))  # whose weights are held still
def test_exact_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = deepcopy(perceptual.network(torch.device("cpu"))).double()
    monkeypatch.setattr(perceptual, "network", lambda _: net)
    target, start = images(side=12)[:1].double(), images(1, side=12)[:1].double().requires_grad_()
    weight = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(3)).double()
    assert torch.autograd.gradcheck(lambda x: losses.TABLE[name](x, target, weight), start, fast_mode=True)


def focal_by_numpy(x: np.ndarray, y: np.ndarray, weight: np.ndarray, focus: np.ndarray | None = None) -> float:
    """The paper's formula for one face (C, H, W), over the whole spectrum; `focus`: weights of another spectrum."""
    distance = np.abs(np.fft.fft2(x * weight, norm="ortho") - np.fft.fft2(y * weight, norm="ortho"))
    if focus is None:
        focus = distance / distance.max((1, 2), keepdims=True)
    return float((focus * distance**2).mean() / (weight**2).mean())


@pytest.mark.parametrize("shape", [(24, 24), (23, 20), (20, 23)])
def test_focal_frequency_agrees_with_its_formula(shape: tuple[int, int]) -> None:
    numbers = np.random.default_rng(0)
    x, y, weight = numbers.random((2, 3, *shape)), numbers.random((2, 3, *shape)), numbers.random((2, 1, *shape))
    start = torch.tensor(x, requires_grad=True)
    found = losses.focal_frequency(start, torch.tensor(y), torch.tensor(weight))
    expected = [focal_by_numpy(*face) for face in zip(x, y, weight, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-9)
    (gradient,) = torch.autograd.grad(found.sum(), start)  # the weights of the frequencies are held still
    spectrum = np.abs(np.fft.fft2((x[0] - y[0]) * weight[0]))
    focus, way = spectrum / spectrum.max((1, 2), keepdims=True), numbers.standard_normal(x[0].shape)
    ahead, behind = (focal_by_numpy(x[0] + s * 1e-4 * way, y[0], weight[0], focus) for s in (1, -1))
    assert (ahead - behind) / 2e-4 == pytest.approx(float((gradient[0].numpy() * way).sum()), rel=1e-6)


def test_focal_frequency_of_waves() -> None:
    step = torch.arange(24) * 2 * torch.pi / 24
    strong, weak = 0.2 * torch.cos(3 * step), 0.1 * torch.cos(5 * step)
    gray = torch.full((2, 3, 24, 24), 0.5)
    # One wave of amplitude a has the mean square a²/2, and all of it counts. A second, half as high, counts half.
    assert losses.focal_frequency(gray + strong, gray, ONES) == pytest.approx(0.02, rel=1e-4)
    assert losses.focal_frequency(gray + strong + weak, gray, ONES) == pytest.approx(0.02 + 0.0025, rel=1e-4)


def test_haar_of_known_images() -> None:
    gray = torch.full((2, 3, 24, 24), 0.5)
    column = 0.1 * (-1.0) ** torch.arange(24)
    for stripes in (column, column[:, None], column * (-1.0) ** torch.arange(24)[:, None]):
        assert losses.haar(gray + stripes, gray, ONES) == pytest.approx(0.2 / 3)  # one band has 4 * 0.1 / 2
    assert losses.haar(gray + 0.1, gray, ONES) == pytest.approx(0, abs=1e-6)  # no detail
    block = torch.tensor([[0.1, 0.2], [0.4, 0.8]]).repeat(1, 3, 1, 1)
    bands = (abs(0.1 + 0.4 - 0.2 - 0.8), abs(0.1 + 0.2 - 0.4 - 0.8), abs(0.1 + 0.8 - 0.2 - 0.4))
    assert losses.haar(block, torch.zeros(1, 3, 2, 2), torch.ones(1, 1, 2, 2)) == pytest.approx(sum(bands) / 2 / 3)
    odd = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    found = losses.haar(odd, 0 * odd, torch.ones(1, 1, 5, 7))
    assert found == losses.haar(odd[..., :4, :6], 0 * odd[..., :4, :6], torch.ones(1, 1, 4, 6))


def coarsely(bits: int) -> Callable[..., torch.Tensor]:
    """A convolution whose inputs have mantissas of so many bits: 10 in TF32, 7 in bf16."""
    convolve, drop = F.conv2d, 23 - bits

    def rounded(x: torch.Tensor) -> torch.Tensor:
        whole = x.detach().contiguous().view(torch.int32)
        return x + (((whole + (1 << drop - 1)) >> drop << drop).view(torch.float32) - x).detach()

    return lambda x, window, **how: convolve(rounded(x), rounded(window), **how)


def test_ssim_stands_a_convolution_in_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    random, ramp = torch.Generator().manual_seed(0), torch.linspace(0, 3, 96)
    smooth = (0.55 + 0.2 * torch.sin(ramp + ramp[:, None])).expand(2, 3, 96, 96)
    for level, grain in ((0.55, 0.01), (0.9, 0.002)):
        target = (smooth - 0.55) * 4 * grain + level + grain * torch.randn(smooth.shape, generator=random)
        start = (target + 0.01 + grain * torch.randn(smooth.shape, generator=random)).requires_grad_()
        whole, found = torch.ones(2, 1, 96, 96), []
        for convolve in (F.conv2d, coarsely(10)):
            monkeypatch.setattr(F, "conv2d", convolve)
            loss = losses.ssim(start, target, whole)
            found.append((loss.detach(), torch.autograd.grad(loss.sum(), start)[0]))
        (exact, slope), (coarse, other) = found
        assert torch.allclose(coarse, exact, rtol=0.01)
        assert (other - slope).norm() < 0.015 * slope.norm()
        monkeypatch.undo()


def test_the_loss_sees_with_every_second_window_what_ssim_sees() -> None:
    target = images(side=96)
    for other in (images(1, side=96), (target + 0.05 * images(2, side=96)).clamp(0, 1)):
        for weight in (torch.ones(2, 1, 96, 96), images(3, side=96)[:, :1]):
            thin, whole = losses.thin_ssim(other, target, weight), losses.ssim(other, target, weight)
            assert torch.allclose(thin, whole, rtol=0.03)


def test_no_pixel_is_passed_over_by_the_loss() -> None:
    """All windows that cover a pixel together weigh the same, whichever pixel it is."""
    covered = torch.zeros(1, 1, 64, 64, requires_grad=True)
    losses._blur(covered, 2).sum().backward()
    assert covered.grad is not None
    inner = covered.grad[0, 0, 12:-12, 12:-12]
    assert inner.max() / inner.min() - 1 < 2e-3


@pytest.mark.parametrize("name", ["ssim", "ms_ssim", "focal_frequency"])
def test_autocast_changes_nothing(name: str) -> None:
    x, y, whole = images(side=48), images(1, side=48), torch.ones(2, 1, 48, 48)
    outside = losses.TABLE[name](x, y, whole)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(losses.TABLE[name](x, y, whole), outside)


def test_perceptual_by_its_definition() -> None:
    x, y, net = images(side=32), images(1, side=32), perceptual.network(torch.device("cpu"))
    expected = []
    for one, other in zip(net(x), net(y), strict=True):
        a, b = (seen.double() / seen.double().square().sum(1, keepdim=True).sqrt() for seen in (one, other))
        expected.append((a - b).square().sum(1).mean((1, 2)))
    whole = torch.ones(2, 1, 32, 32)
    assert torch.allclose(losses.perceptual(x, y, whole), torch.stack(expected).mean(0).float(), rtol=1e-4)
    assert [tuple(seen.shape[1:]) for seen in net(x)] == [(64, 32, 32), (128, 16, 16), (256, 8, 8)]


def test_the_classifier_is_vgg16_as_torchvision_has_it() -> None:
    from torchvision.models import vgg16  # type: ignore[import-untyped]
    from torchvision.transforms.functional import normalize  # type: ignore[import-untyped]

    with torch.device("meta"):
        theirs = vgg16(weights=None).features
    theirs = theirs[:16].to_empty(device="cpu").eval()
    net, x = perceptual.network(torch.device("cpu")), images(side=32)
    theirs.load_state_dict({name.removeprefix("features."): tensor for name, tensor in net.state_dict().items()})
    for depth, seen in zip(perceptual.SEEN, net(x), strict=True):
        expected = theirs[: depth + 1](normalize(x, perceptual.MEAN, perceptual.DEVIATION))
        assert torch.allclose(seen, expected, atol=1e-5)
    assert not any(weight.requires_grad for weight in net.parameters())


def test_without_the_classifier_there_is_one_line_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "weight_folders", lambda: [tmp_path])
    perceptual.network.cache_clear()
    losses.check(WEIGHTS)
    for ask in (
        lambda: losses.check(WEIGHTS | {"perceptual": 0.1}),
        lambda: losses.reconstruction(images(), ONES, images(), ONES, ONES, WEIGHTS | {"perceptual": 0.1}),
    ):
        with pytest.raises(CheckpointError, match=f"expected {perceptual.FILE} in .*, found none; .*vgg16") as caught:
            ask()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda path: path.write_bytes(b"nothing"), "not a whole safetensors file"),
        (lambda path: save_file({"weight": torch.ones(1)}, path), "expected VGG16: features.0.weight is None, not"),
        (
            lambda path: path.with_name(f"{path.name}.sha256").write_text("0" * 64 + "  x"),
            "changed since it was pulled",
        ),
    ],
)
def test_a_classifier_that_is_none_gives_one_line(
    change: Callable[[Path], object], why: str, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / perceptual.FILE
    path.write_bytes((classifier / perceptual.FILE).read_bytes())
    monkeypatch.setattr(files, "weight_folders", lambda: [tmp_path])
    perceptual.network.cache_clear()
    losses.check(WEIGHTS | {"perceptual": 0.1})
    change(path)
    perceptual.network.cache_clear()
    with pytest.raises(CheckpointError, match=why):
        losses.check(WEIGHTS | {"perceptual": 0.1})


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


def test_eyes_and_mouth_count_more_as_the_recipe_says() -> None:
    target, mask, priority = images(), torch.zeros_like(ONES), torch.zeros_like(ONES)
    mask[..., 4:20, 4:20] = 1
    priority[..., 8:12, 8:16] = 1
    eyes, cheek = target.clone(), target.clone()
    eyes[..., 8:12, 8:16] += 0.1
    cheek[..., 12:16, 8:16] += 0.1  # as many pixels
    weights = WEIGHTS | {"ssim": 0.0, "l1": 1.0, "background": 0.0, "priority": 3.0}
    at_eyes = losses.reconstruction(eyes, mask, target, mask, priority, weights)["l1"]
    at_cheek = losses.reconstruction(cheek, mask, target, mask, priority, weights)["l1"]
    assert at_eyes == pytest.approx(0.1 * 4 * 32 / (256 + 3 * 32), rel=1e-4)
    assert at_eyes / at_cheek == pytest.approx(4, rel=1e-4)
    everywhere = losses.reconstruction(target + 0.1, mask, target, mask, priority, weights)["l1"]
    assert everywhere == pytest.approx(0.1, rel=1e-4)  # emphasis, not a further term


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


@pytest.mark.parametrize(
    ("side", "scales"), [(11, 1), (20, 1), (21, 2), (40, 2), (41, 3), (160, 3), (161, 5), (200, 5)]
)
def test_ms_ssim_looks_at_three_scales_up_to_160_px_and_at_five_above(side: int, scales: int) -> None:
    gray, black = torch.full((1, 3, side, side), 0.5), torch.zeros(1, 3, side, side)
    luminance = losses.K1**2 / (0.5**2 + losses.K1**2)
    expected = 1 - luminance ** (losses.SCALES[scales - 1] / sum(losses.SCALES[:scales]))
    assert losses.ms_ssim(gray, black, torch.ones(1, 1, side, side)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("side", [32, 176])
def test_ms_ssim_has_a_finite_gradient_everywhere(side: int) -> None:
    x, flat = images(side=side), torch.full((2, 3, side, side), 0.5)
    mask = torch.zeros(2, 1, side, side)
    mask[..., side // 4 : -side // 4, side // 4 : -side // 4] = 1
    for prediction, target in ((x, x), (1 - x, x), (flat, x), (flat, flat), (0 * flat, flat * 2), (images(1, side), x)):
        for weight in (mask, torch.ones_like(mask), torch.zeros_like(mask)):
            start = prediction.clone().requires_grad_()
            loss = losses.ms_ssim(start, target, weight)
            loss.sum().backward()  # type: ignore[no-untyped-call]
            assert start.grad is not None and start.grad.isfinite().all() and loss.isfinite().all()


def test_the_gradient_of_ms_ssim_agrees_with_finite_differences() -> None:
    target, weight = images(side=48).double(), torch.rand(2, 1, 48, 48, generator=torch.Generator().manual_seed(3))
    start = (0.5 * target + 0.5 * images(1, side=48)).requires_grad_()
    losses.ms_ssim(start, target, weight).sum().backward()  # type: ignore[no-untyped-call]
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
