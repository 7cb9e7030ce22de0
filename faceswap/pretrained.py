"""Weights that travel with faceswap, in `pretrained/`."""

from pathlib import Path

from faceswap import checkpoint
from faceswap.config import Recipe


def folder() -> Path:
    """Where they are: beside the package in a clone, inside it in an installed wheel."""
    inside = Path(__file__).parent / "_data" / "pretrained"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "pretrained"


def find_base(recipe: Recipe) -> Path | None:
    """The first base of the recipe's architecture, None if there is none."""
    for path in sorted(folder().glob("*.safetensors")):
        state = checkpoint.read(path)
        if not checkpoint.same_architecture(recipe, state.recipe, state.people[:1], state.people):
            return path
    return None
