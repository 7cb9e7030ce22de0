import os
import signal
import tempfile
from pathlib import Path

import crops
import footage
import pytest
import torch

from faceswap import benchmark, config, damage, evaluate, extract
from faceswap.config import Benchmark, ExtractRecipe, Recipe

signal.signal(signal.SIGINT, signal.default_int_handler)  # begun with `&` we would ignore it, and so our children
torch.set_num_threads(1)  # tests run side by side
os.environ["OMP_NUM_THREADS"] = "1"  # and so do the processes that they start

evaluate.EMBEDDED = 3  # an embedder, where there is one, is slow
damage.COUNT = 4  # and so are strangers to render
_data = tempfile.TemporaryDirectory()  # nothing is kept in the user's own folder, nor found there
os.environ["XDG_DATA_HOME"] = _data.name

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


TINY = config.check(
    {
        "extract": {"size": 96, "min_size": 30},
        "model": {"resolution": 32, "width": 4, "code": 16},
        "data": {"batch": 4, "holdout": 0.3},
        "train": {"preview_images": 40},
    },
    "tests",
)
PROTOCOL = Benchmark.model_validate(
    {
        **{"size": 128, "rate": 25, "seconds": 0.72, "images": 40, "every": 6},
        "pairs": [{"source": 31, "source_performance": 21, "target": 26, "target_performance": 22}],
    }
)


@pytest.fixture(scope="session")
def tiny() -> Recipe:
    """A recipe that trains in seconds."""
    return TINY


@pytest.fixture(scope="session")
def protocol() -> Benchmark:
    """A benchmark of one pair that takes seconds."""
    return PROTOCOL


@pytest.fixture(scope="session")
def benched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, benchmark.Report]:
    """The folder and the report of the tiny benchmark: read only."""
    folder = tmp_path_factory.mktemp("benchmark") / "bench"
    return folder, benchmark.run(PROTOCOL, TINY, folder, device="cpu")


@pytest.fixture
def ten_faces(tmp_path: Path) -> Path:
    """A folder of ten faces; the third has a mask."""
    return crops.ten(tmp_path / "set")
