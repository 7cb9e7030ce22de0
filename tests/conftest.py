import os
from pathlib import Path

import footage
import pytest
import torch

from faceswap import extract
from faceswap.config import ExtractRecipe

torch.set_num_threads(1)  # tests run side by side
os.environ["OMP_NUM_THREADS"] = "1"  # and so do the processes that they start

SMALL = ExtractRecipe(size=64, min_size=40)


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A short clip of each drawn person; in the target's, frames 5 and 6 show nobody."""
    folder = tmp_path_factory.mktemp("clips")
    return {
        "source": footage.write_clip(folder / "source.mp4", footage.performance("source", 16)),
        "target": footage.write_clip(folder / "target.mp4", footage.performance("target", 16, empty=(5, 6))),
    }


@pytest.fixture(scope="session")
def facesets(clips: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The faces of `clips`, extracted at 64 px: read only, copy before changing."""
    folder = tmp_path_factory.mktemp("facesets")
    for name, clip in clips.items():
        extract.extract([clip], folder / name, SMALL)
    return {name: folder / name for name in clips}
