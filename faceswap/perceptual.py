"""What a classifier sees in an image, for the loss that compares it.

The network is VGG16 (Simonyan and Zisserman, arXiv 1409.1556) up to relu3_3, with torchvision's weights for ImageNet.
They do not ship: `network` reads `FILE` from `files.weight_folders()`, or says how to get it.

Convention: images (B, 3, H, W) float in [0, 1] RGB, at least 4 px high and wide.
"""

from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from faceswap import files
from faceswap.errors import CheckpointError

FILE = "vgg16.safetensors"
REMEDY = "faceswap pretrained pull vgg16 --overwrite brings it (553 MB come, 7 stay), or set loss.perceptual to 0"
# torchvision's numbers of the layers; each convolution is followed by a rectifier.
CONVOLUTIONS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256)}
POOLS = (4, 9)
SEEN = (3, 8, 15)  # relu1_2, relu2_2, relu3_3
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision's weights expect


class Features(nn.Module):
    """Images -> features after relu1_2 (B, 64, H, W), relu2_2 (B, 128, H/2, W/2), relu3_3 (B, 256, H/4, W/4).

    Frozen, and fresh from torch's random state. Its tensors are named as torchvision names them.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ReLU() for _ in range(SEEN[-1] + 1)]
        for index, (inward, outward) in CONVOLUTIONS.items():
            layers[index] = nn.Conv2d(inward, outward, 3, 1, 1)
        for index in POOLS:
            layers[index] = nn.MaxPool2d(2)
        self.features = nn.Sequential(*layers)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = (images.to(self.mean.dtype) - self.mean) / self.deviation
        x = x.contiguous(memory_format=torch.channels_last)
        seen = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in SEEN:
                seen.append(x)
        return seen


@lru_cache(maxsize=2)
def network(device: torch.device) -> Features:
    """The network on `device`, read once; `CheckpointError` if its weights are missing, damaged or others."""
    places = files.weight_folders()
    path = next((path for folder in places if (path := folder / FILE).is_file()), None)
    if path is None:
        raise CheckpointError(f"loss.perceptual: expected {FILE} in {places[0]}, found none; {REMEDY}")
    found = Features()
    found.load_state_dict(_read(path, found))
    return found.to(device)


def _read(path: Path, like: Features) -> dict[str, Tensor]:
    """The tensors of `path` that `like` has too; torchvision's file has more."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); {REMEDY}") from None
    for name, own in like.state_dict().items():
        there = list(tensors[name].shape) if name in tensors else None
        if there != list(own.shape):
            raise CheckpointError(f"{path}: expected VGG16: {name} is {there}, not {list(own.shape)}; {REMEDY}")
    if files.noted_sha256(path) not in (None, files.sha256(path)):
        raise CheckpointError(f"{path}: changed since it was pulled; {REMEDY}")
    return {name: tensors[name] for name in like.state_dict()}
