"""What happens in a run, kept: scalars in TensorBoard and metrics.jsonl, previews as PNG."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from faceswap import files

if os.name == "posix":
    import fcntl

METRICS = "metrics.jsonl"


class Monitor:
    """Writes into a run folder. Steps are counted in face images.

    A run that continues from `images` drops what an interrupted session wrote beyond that point. Until it is closed,
    or its process ends in whatever way, others see by `is_written` that the run goes on.
    """

    def __init__(self, run: Path, images: int) -> None:
        self.run = run
        kept = [line for line in read(run) if line.get("images", 0) <= images]
        with files.whole_file(run / METRICS, overwrite=True) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._metrics = (run / METRICS).open("a")
        if os.name == "posix":
            fcntl.flock(self._metrics, fcntl.LOCK_EX)
        self._board = SummaryWriter(str(run), purge_step=images + 1)

    def scalars(self, images: int, values: Mapping[str, float]) -> None:
        """Keep figures of the moment; names are paths like `train/ssim`."""
        for name, value in values.items():
            self._board.add_scalar(name, value, images)
        self._metrics.write(json.dumps({"images": images, **values}) + "\n")
        self._metrics.flush()

    def preview(self, images: int, sheet: NDArray[np.uint8]) -> None:
        """Keep a preview (H, W, 3) uint8 RGB as previews/NNN.png, previews/latest.png and in TensorBoard."""
        folder = self.run / "previews"
        for name in (f"{images:09d}.png", "latest.png"):
            with files.whole_file(folder / name, overwrite=True) as partial:
                partial.write_bytes(cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1].tobytes())
        self._board.add_image("preview", sheet, images, dataformats="HWC")
        self._board.flush()

    def close(self) -> None:
        self._board.close()
        self._metrics.close()


def read(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl that are whole: a kill may have cut the last one."""
    path, lines = run / METRICS, []
    for text in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        lines += [line] if isinstance(line, dict) else []
    return lines


def is_written(run: Path) -> bool:
    """Whether a process of this machine trains this run now; False where nobody can say (Windows)."""
    if os.name != "posix" or not (run / METRICS).is_file():
        return False
    with (run / METRICS).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def sheet(columns: Sequence[Tensor], titles: Sequence[str]) -> NDArray[np.uint8]:
    """A grid (H, W, 3) uint8 RGB: one column per tensor (N, 3, R, R) float in [0, 1], its title above."""
    side = columns[0].shape[-1]
    zoom = math.ceil(128 / side)
    stacked = torch.stack(list(columns), 1).clamp(0, 1).mul(255).round().byte()
    n, c = stacked.shape[:2]
    grid = stacked.permute(0, 3, 1, 4, 2).reshape(n * side, c * side, 3).cpu().numpy()
    grid = grid.repeat(zoom, 0).repeat(zoom, 1)
    head = np.full((22, grid.shape[1], 3), 255, np.uint8)
    for i, title in enumerate(titles):
        place = (i * side * zoom + 3, 15)
        cv2.putText(head, title, place, cv2.FONT_HERSHEY_SIMPLEX, 0.36, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([head, grid])
