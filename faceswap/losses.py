"""(prediction, target, weight) -> one number per face, 0 when the prediction is perfect.

Convention: images (B, C, H, W) float in [0, 1]; `weight` (B, 1, H, W), not negative, says how much each pixel counts; a
loss is its weighted mean, (B,) float32. Only the weight's proportions matter: ten times the weight is the same loss.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from faceswap import perceptual as classifier

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # weights of MS-SSIM's scales, the finest first
K1, K2 = 0.01, 0.03


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """The mean (B,) of `values` (B, C, H, W) under `weight` (B, 1, H, W)."""
    total = (values.mean(1, keepdim=True) * weight).sum((1, 2, 3))
    return total / weight.sum((1, 2, 3)).clamp_min(1e-6)


def _exact(image: Tensor) -> Tensor:
    """`image` in float32, or in float64 if it has that: half precision is too coarse for differences of squares."""
    return image.to(torch.promote_types(image.dtype, torch.float32))


def ssim_map(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity (B, C, H - 10, W - 10) of two images, 1 where they agree.

    Wang et al., "Image quality assessment", TIP 2004: Gaussian window of 11 x 11 px, sigma 1.5, data range 1, no
    padding.
    """
    luminance, structure = _similarity(prediction, target)
    return luminance * structure


def _similarity(prediction: Tensor, target: Tensor, step: int = 1) -> tuple[Tensor, Tensor]:
    """SSIM's two factors, luminance and contrast-structure, each (B, C, H - 10, W - 10), at every `step`th place.

    Written by the difference d = x - y, which is the same and loses less to rounding, as nothing large cancels:

        (2 mx my + c1) / (mx² + my² + c1)  = 1 - md² / (mx² + my² + c1)
        (2 vxy + c2) / (vx + vy + c2)      = 1 - vd / (vx + vy + c2)

    Variances do not change when a constant is taken off both images; the target's mean is. Should CUDA round what it
    convolves to TF32, the loss and its gradient are off by about 1 % on smooth images with fine grain (simulated;
    the textbook's form: the gradient by 40 % and more).
    """
    x, y = _exact(prediction), _exact(target)
    middle = y.mean((2, 3), keepdim=True)
    x, y = x - middle, y - middle
    d = x - y
    my = _blur(y, step)  # apart from the rest: it needs no gradient
    md, dd, squares = _blur(torch.cat([d, d * d, x * x + y * y], 1), step).chunk(3, 1)
    mx = my + md
    vd = dd - md * md
    luminance = 1 - md * md / ((mx + middle).square() + (my + middle).square() + K1**2)
    structure = 1 - vd / (squares - mx * mx - my * my + K2**2)
    return luminance, structure


def _blur(images: Tensor, step: int) -> Tensor:
    """Each channel of (B, C, H, W) under SSIM's Gaussian, (B, C, H - 10, W - 10), at every `step`th place: two 1-D
    passes, never in bf16."""
    channels = images.shape[1]
    offsets = torch.arange(WINDOW, device=images.device, dtype=images.dtype) - WINDOW // 2
    window = torch.exp(-offsets.square() / (2 * SIGMA**2))
    window = (window / window.sum()).expand(channels, 1, 1, WINDOW)
    with torch.autocast(images.device.type, enabled=False):
        wide = F.conv2d(images, window, stride=(1, step), groups=channels)
        return F.conv2d(wide, window.transpose(2, 3), stride=(step, 1), groups=channels)


def ssim(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """1 - SSIM."""
    edge = WINDOW // 2
    return weighted_mean(1 - ssim_map(prediction, target), weight[:, :, edge:-edge, edge:-edge])


def thin_ssim(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """1 - SSIM at every second place down and across: the loss, in half the time.

    No pixel counts less for it: Gaussians of SSIM's deviation, 1.5 px, that lie 2 px apart add up to nearly a constant,
    within a thousandth.
    """
    luminance, structure = _similarity(prediction, target, 2)
    edge = WINDOW // 2
    return weighted_mean(1 - luminance * structure, weight[:, :, edge:-edge:2, edge:-edge:2])


def _half(images: Tensor) -> Tensor:
    """Means of 2 x 2 px; the last row or column of an odd side stays alone."""
    return F.avg_pool2d(images, 2, ceil_mode=True)


def ms_ssim(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """1 - MS-SSIM: structure at each of several scales, each half the size of the last, and luminance at the coarsest.

    Wang, Simoncelli and Bovik, "Multiscale structural similarity for image quality assessment", Asilomar 2003. Five
    scales if the shorter side is above 160 px, where the window fits them all; else three (or as many as it fits), the
    exponents renormalised. A scale whose windows see nothing of the face looks at the whole image.
    """
    side = min(prediction.shape[-2:])
    scales = len(SCALES) if side > 160 else min(3, 1 + int(math.log2((side - 1) / (WINDOW - 1))))
    prediction, target = _exact(prediction), _exact(target)
    shares = torch.tensor(SCALES[:scales], device=prediction.device)
    edge, found = WINDOW // 2, []
    for scale in range(scales):
        if scale:
            prediction, target, weight = (_half(image) for image in (prediction, target, weight))
        luminance, structure = _similarity(prediction, target)
        similar = structure * luminance if scale == scales - 1 else structure
        inside = weight[:, :, edge:-edge, edge:-edge] + 1e-6
        mean = (similar * inside).sum((2, 3)) / inside.sum((2, 3))
        found.append(mean.clamp_min(1e-6))
    powers = torch.stack(found) ** (shares / shares.sum())[:, None, None]
    return 1 - powers.prod(0).mean(1)


def l1(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Absolute difference."""
    return weighted_mean((prediction - target).abs(), weight)


def charbonnier(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Absolute difference, smooth at zero (Charbonnier et al., ICIP 1994), with epsilon 1e-3."""
    return weighted_mean(torch.sqrt((prediction - target).square() + 1e-6) - 1e-3, weight)


def mse(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Squared difference."""
    return weighted_mean((prediction - target).square(), weight)


def focal_frequency(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Squared difference of the spectra, each frequency weighted by how wrong it is, the most wrong one by 1.

    Jiang et al., "Focal frequency loss", ICCV 2021 (arXiv 2012.12821), equations 5 to 8 with alpha 1, channel by
    channel, on the images times `weight`. Divided by the mean of weight², so that with alpha 0 it would be, by
    Parseval's theorem, the mean squared difference under weight².
    """
    share = _exact(weight)
    wrong = (_exact(prediction) - _exact(target)) * share
    with torch.autocast(wrong.device.type, enabled=False):
        spectrum = torch.fft.rfft2(wrong, norm="ortho")
    power = spectrum.real.square() + spectrum.imag.square()
    focus = power.detach().sqrt()
    focus = focus / focus.amax((2, 3), keepdim=True).clamp_min(1e-12)
    twice = torch.full((spectrum.shape[-1],), 2.0, device=wrong.device)  # what rfft2 leaves out mirrors what it gives
    twice[0] = 1
    if wrong.shape[-1] % 2 == 0:
        twice[-1] = 1
    total: Tensor = (focus * power * twice).sum((2, 3)).mean(1)
    return total / share.square().sum((1, 2, 3)).clamp_min(1e-6)


def haar(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Absolute difference of fine detail: the mean over the three detail bands of one level of Haar's wavelet.

    Mallat, "A theory for multiresolution signal decomposition", PAMI 1989, with the orthonormal filters (1, ±1) / √2.
    A block of 2 x 2 px counts as its mean weight; the last row or column of an odd side is left out.
    """
    high, wide = (side // 2 * 2 for side in prediction.shape[-2:])
    wrong = (prediction - target)[..., :high, :wide]
    top, bottom = wrong[..., ::2, :], wrong[..., 1::2, :]
    low, fine = top + bottom, top - bottom
    bands = ((low[..., ::2] - low[..., 1::2]).abs(), *((fine[..., ::2] + s * fine[..., 1::2]).abs() for s in (1, -1)))
    return weighted_mean((bands[0] + bands[1] + bands[2]) / 6, F.avg_pool2d(weight, 2))


def perceptual(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Squared distance of a classifier's features, each pixel's made a unit vector, the mean over three depths.

    LPIPS without its learned weights (Zhang et al., CVPR 2018, arXiv 1801.03924), on VGG16's relu1_2, relu2_2 and
    relu3_3; in [0, 2]. Features look far around, so the target stands in for the prediction in proportion to what a
    pixel's weight lacks to the largest. `CheckpointError` without the classifier's weights, see `check`.
    """
    share = weight / weight.amax((1, 2, 3), keepdim=True).clamp_min(1e-6)
    network = classifier.network(prediction.device)
    with torch.no_grad():
        aims = network(target)
    depths = []
    for found, aim in zip(network(target + share * (prediction - target)), aims, strict=True):
        distance = (F.normalize(_exact(found), eps=1e-6) - F.normalize(_exact(aim), eps=1e-6)).square()
        there = F.adaptive_avg_pool2d(share, found.shape[-2:])
        depths.append(weighted_mean(distance, there) * found.shape[1])  # the sum over channels, not their mean
    return torch.stack(depths).mean(0)


TABLE: dict[str, Loss] = {
    "ssim": thin_ssim,
    "ms_ssim": ms_ssim,
    "l1": l1,
    "charbonnier": charbonnier,
    "mse": mse,
    "focal_frequency": focal_frequency,
    "haar": haar,
    "perceptual": perceptual,
}


def check(weights: Mapping[str, float]) -> None:
    """`CheckpointError` with the remedy if a loss that `weights` turn on lacks a file: to be asked before training."""
    if weights["perceptual"]:
        classifier.network(torch.device("cpu"))


def reconstruction(
    drawn: Tensor,
    drawn_mask: Tensor,
    target: Tensor,
    target_mask: Tensor,
    priority: Tensor,  # (B, 1, H, W) in [0, 1], 1 on eyes and mouth
    weights: Mapping[str, float],
) -> dict[str, Tensor]:
    """The losses (B,) that `weights` turn on, by name and already weighted.

    A pixel of the face counts 1 in the image losses, one outside it `weights["background"]`, and eyes and mouth
    `weights["priority"]` on top. As a loss is a weighted mean, this is emphasis and not a further term: what eyes and
    mouth gain the rest loses, and the size of the loss stays as it is.
    """
    background = weights["background"]
    weight = background + (1 - background) * target_mask + weights["priority"] * priority
    found = {name: weights[name] * loss(drawn, target, weight) for name, loss in TABLE.items() if weights[name]}
    if weights["mask"]:
        found["mask"] = weights["mask"] * mse(drawn_mask, target_mask, torch.ones_like(target_mask))
    return found


def psnr(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Peak signal to noise ratio in dB, (B,), of images in [0, 1] under `weight`: a measure, not a loss."""
    return -10 * torch.log10(mse(prediction.float(), target.float(), weight).clamp_min(1e-10))
