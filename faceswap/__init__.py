"""faceswap: train a face-swap autoencoder on two people and render the swap.

video -> faces -> tracks -> aligned faces -> faceset -> batches -> model -> swapped face -> frame -> video

extract.py   footage to faceset          video, detectors/, landmarks, tracks, who, align, faceset
curate.py    faceset to a better one     faceset, looks, sheet, pack; foreign.py: from other tools
train.py     facesets to a run           batches, augment, models/, losses, strategies/, checkpoint, monitor
swap.py      footage and run to footage  checkpoint, color, blend, provenance, video
pair.py      all three, for two videos
evaluate.py  how good is it              batches, detectors/, swap, metrics, embedding, page
actors.py    people who are not real     heads, skins, render: footage whose truth is known
benchmark.py a swap against its truth    actors, pair, evaluate
cli.py       the command line over these
api.py       the same from Python: `__all__` below, loaded when first used, so that this import is quick
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = [
    "Face",
    "Faceset",
    "FaceswapError",
    "Frame",
    "Progress",
    "Recipe",
    "Swapper",
    "Who",
    "evaluate_run",
    "extract_faces",
    "find_faces",
    "finetune",
    "load_recipe",
    "on_progress",
    "pretrain",
    "read_frames",
    "swap_pair",
    "swap_video",
]

if TYPE_CHECKING:
    from faceswap.api import (
        Face,
        Faceset,
        FaceswapError,
        Frame,
        Progress,
        Recipe,
        Swapper,
        Who,
        evaluate_run,
        extract_faces,
        find_faces,
        finetune,
        load_recipe,
        on_progress,
        pretrain,
        read_frames,
        swap_pair,
        swap_video,
    )
else:  # hidden from type checkers, which would believe that every name is here

    def __getattr__(name: str) -> object:
        """The public name, see PEP 562."""
        if name not in __all__:
            raise AttributeError(f"module 'faceswap' has no attribute {name!r}; it has {', '.join(__all__)}")
        from importlib import import_module

        return getattr(import_module("faceswap.api"), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
