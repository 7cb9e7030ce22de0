"""Weight files that the tests make themselves: small networks, untrained, that draw something."""

from pathlib import Path

import torch

from faceswap import checkpoint, config
from faceswap.checkpoint import Progress, State

ARCHITECTURES = ("modulated", "df-ud", "liae-ud")
PAIR = ("source", "target")


def weights(path: Path, architecture: str = "modulated", people: tuple[str, ...] = PAIR, size: int = 64) -> Path:
    """A weight file of a network whose weights are a little out of order: people are drawn unlike each other."""
    recipe = config.check({"model": {"name": architecture, "resolution": size, "width": 4, "code": 16}}, "tests")
    torch.manual_seed(0)
    model = checkpoint.new_model(recipe, list(people))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.03)
    tensors = {f"ema.{name}": tensor for name, tensor in model.state_dict().items()}
    state = State(
        recipe, list(people), tensors, Progress(images=120), {"source": "anna.mp4"}, consent="Anna, in writing"
    )
    checkpoint.write(path, state)
    return path
