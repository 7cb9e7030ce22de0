"""(prediction, target, weight) -> one number per face, 0 when the prediction is perfect.

Convention: images (B, C, H, W) float in [0, 1]; `weight` (B, 1, H, W) says how much each pixel counts; a loss is its
weighted mean, (B,) float32.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # weights of MS-SSIM's scales, the finest first
K1, K2 = 0.01, 0.03


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """The mean (B,) of `values` (B, C, H, W) under `weight` (B, 1, H, W)."""
    total = (values.mean(1, keepdim=True) * weight).sum((1, 2, 3))
    return total / weight.sum((1, 2, 3)).clamp_min(1e-6)


def ssim_map(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity (B, C, H - 10, W - 10) of two images, 1 where they agree.

    Wang et al., "Image quality assessment", TIP 2004: Gaussian window of 11 x 11 px, sigma 1.5, data range 1, no
    padding.
    """
    luminance, structure = _similarity(prediction, target)
    return luminance * structure


def _similarity(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM's two factors, luminance and contrast-structure, each (B, C, H - 10, W - 10).

    The window is separable: two 1-D passes over all five moments, channel by channel.
    """
    x, y = prediction.float(), target.float()
    channels = x.shape[1] * 5
    offsets = torch.arange(WINDOW, device=x.device, dtype=torch.float32) - WINDOW // 2
    window = torch.exp(-offsets.square() / (2 * SIGMA**2))
    window = (window / window.sum()).expand(channels, 1, 1, WINDOW)
    moments = torch.cat([x, y, x * x, y * y, x * y], 1)
    moments = F.conv2d(F.conv2d(moments, window, groups=channels), window.transpose(2, 3), groups=channels)
    mx, my, xx, yy, xy = moments.chunk(5, 1)
    c1, c2 = K1**2, K2**2
    luminance = (2 * mx * my + c1) / (mx * mx + my * my + c1)
    structure = (2 * (xy - mx * my) + c2) / (xx - mx * mx + yy - my * my + c2)
    return luminance, structure


def ssim(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """1 - SSIM."""
    edge = WINDOW // 2
    return weighted_mean(1 - ssim_map(prediction, target), weight[:, :, edge:-edge, edge:-edge])


def ms_ssim(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """1 - MS-SSIM: structure at each of several scales, each half the size of the last, and luminance at the coarsest.

    Wang, Simoncelli and Bovik, "Multiscale structural similarity for image quality assessment", Asilomar 2003. Five
    scales need a side of 176 px; smaller images get three (as many as the window fits), their weights renormalised. A
    scale whose windows see nothing of the face looks at the whole image.
    """
    fitting = int(math.log2(min(prediction.shape[-2:]) / WINDOW)) + 1
    scales = len(SCALES) if fitting >= len(SCALES) else min(3, fitting)
    shares = torch.tensor(SCALES[:scales], device=prediction.device)
    edge, found = WINDOW // 2, []
    for scale in range(scales):
        if scale:
            prediction, target, weight = (F.avg_pool2d(image, 2) for image in (prediction, target, weight))
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


TABLE: dict[str, Loss] = {"ssim": ssim, "l1": l1, "charbonnier": charbonnier}


def reconstruction(
    drawn: Tensor,
    drawn_mask: Tensor,
    target: Tensor,
    target_mask: Tensor,
    priority: Tensor,  # (B, 1, H, W), 1 on eyes and mouth
    weights: Mapping[str, float],
) -> dict[str, Tensor]:
    """The losses (B,) that `weights` turn on, by name and already weighted.

    The image losses look at the face: outside it a pixel counts `weights["background"]` of what it counts inside.
    """
    background = weights["background"]
    weight = background + (1 - background) * target_mask
    found = {name: weights[name] * loss(drawn, target, weight) for name, loss in TABLE.items() if weights[name]}
    if weights["mask"]:
        found["mask"] = weights["mask"] * mse(drawn_mask, target_mask, torch.ones_like(target_mask))
    return found


def psnr(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Peak signal to noise ratio in dB, (B,), of images in [0, 1] under `weight`: a measure, not a loss."""
    return -10 * torch.log10(mse(prediction.float(), target.float(), weight).clamp_min(1e-10))
