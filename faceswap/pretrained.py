"""Weights that travel with faceswap, in `pretrained/`."""

from pathlib import Path

from faceswap import checkpoint, files
from faceswap.config import Recipe


def bases() -> list[Path]:
    """The weight files that are there, by name."""
    return sorted(p for p in files.shipped("pretrained").glob("*.safetensors") if p.name != "landmarks.safetensors")


def find_base(recipe: Recipe) -> Path | None:
    """The first base of the recipe's architecture, None if there is none."""
    for path in bases():
        state = checkpoint.read(path)
        if not checkpoint.same_architecture(recipe, state.recipe, state.people[:1], state.people):
            return path
    return None
