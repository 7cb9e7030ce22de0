"""Merging, measured beside the obvious way and beside doing nothing: `python tools/benchmark.py merge`.

A rendered actor plays there and back before a room, with a little grain, at each height; an untrained pair of the
recipe's shape draws, as what it draws does not matter. Each way runs in a process of its own, in turn, several times
over, and the best time of each counts: whatever else the machine does slows down all of them. Imports and the loading
of the network are not counted; everything from the first frame read to the whole file is.

ours: `swap.swap_video`, with faces found before; `detect_frames_per_second` is what finding them takes.

naive: frame by frame and face by face: the whole frame as float RGB, the face drawn alone and coloured like the frame,
face and mask warped to the whole frame, blended there, and back to YUV; the same encoder. Nothing is steadied, and
sharpness and motion are not matched, as ours are. `speedup` is ours over it with the recipe's own blend on both sides,
`speedup_over_feather` over it with the cheapest one there.

bare: decoded and encoded, nothing else. `share_of_transcode` is ours over it.

`cpu_ms` is processor time per frame, which tells more than the clock where a machine is shared. `peak_memory_mb` is
the most that the process of ours ever held, torch and the faces included, `peak_memory_mb_long` of a clip that is
`longer` times as long.
"""

import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from faceswap import align, blend, checkpoint, color, devices, found, masks, swap
from faceswap.actors import Take
from faceswap.checkpoint import State
from faceswap.config import MergeRecipe, Recipe
from faceswap.detectors import Face
from faceswap.found import FoundFaces
from faceswap.heads import Identity
from faceswap.provenance import Marker
from faceswap.video import Frame, VideoWriter, read_frames, write_video

HEIGHTS = (480, 1080)  # px
RATE = Fraction(25)  # frames/s
SIDE = 480  # px, of what is rendered: larger frames show it enlarged
SCALE = 0.5  # height of the head in units of the frame's
GRAIN = 1.0  # levels of 255, deviation
CRF = 18  # of the footage
Row = dict[str, Any]


def run(
    recipe: Recipe,
    folder: Path,  # a scratch folder
    *,
    heights: Sequence[int] = HEIGHTS,  # px
    frames: int = 60,  # rendered: a clip has nearly twice as many
    rounds: int = 3,
    longer: int = 5,  # times as long is the clip that shows whether memory grows
    side: int = SIDE,  # px
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> Row:
    """The object that `benchmark.py merge --json` prints."""
    say(f"rendering {frames} frames")
    recipe = recipe.changed(merge={"mask": "landmarks"})  # an untrained network draws none
    images, model = rendered(frames, side), write_pair(folder / "pair.safetensors", recipe)
    rows = []
    for height in heights:
        rows.append(measured(recipe, images, height, model, folder, rounds, longer, device))
        say(f"{height}p: {rows[-1]}")
    return {
        "speedup": min(row["speedup"] for row in rows),
        "share_of_transcode": min(row["share_of_transcode"] for row in rows),
        "peak_memory_mb": max(max(row["peak_memory_mb"], row["peak_memory_mb_long"]) for row in rows),
        "machine": {"device": device, "cores": os.cpu_count(), "torch": torch.__version__},
        "rows": rows,
    }


def measured(
    recipe: Recipe,
    images: Sequence[NDArray[np.uint8]],
    height: int,
    model: Path,
    folder: Path,
    rounds: int,
    longer: int,
    device: str,
) -> Row:
    """One height's figures."""
    clip, long = folder / f"{height}.mp4", folder / f"{height}_long.mp4"
    count = write_video(clip, footage(images, height), RATE, crf=CRF)
    faces = folder / f"{height}.npz"
    detected = alone(partial(detect, clip, faces, recipe, device))
    feather = recipe.changed(merge={"blend": "feather"})
    ways = {
        "ours": partial(ours, clip, faces, model, recipe.merge, device),
        "naive": partial(naive, clip, faces, model, recipe.merge, device),
        "feather": partial(naive, clip, faces, model, feather.merge, device),
        "bare": partial(bare, clip, recipe.merge),
    }
    best: dict[str, Row] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            again = alone(way)
            best[name] = {key: min(value, best.get(name, again)[key]) for key, value in again.items()}
    write_video(long, footage(images, height, longer), RATE, crf=CRF)
    short = found.read(faces)
    found.write(faces, {index: short.get(index % count, []) for index in range(longer * count)})
    lasting = alone(partial(ours, long, faces, model, recipe.merge, device))
    speed = {name: count / took["seconds"] for name, took in best.items()}
    return {
        "height": height,
        "frames": count,
        "faces": sum(map(len, short.values())),
        "detect_frames_per_second": round(count / detected["seconds"], 2),
        **{f"{name}_frames_per_second": round(value, 2) for name, value in speed.items()},
        "speedup": round(speed["ours"] / speed["naive"], 2),
        "speedup_over_feather": round(speed["ours"] / speed["feather"], 2),
        "share_of_transcode": round(speed["ours"] / speed["bare"], 3),
        "cpu_ms": {name: round(1000 * took["cpu"] / count, 1) for name, took in best.items()},
        "peak_memory_mb": round(best["ours"]["memory"]),
        "peak_memory_mb_long": round(lasting["memory"]),
        "longer": longer,
    }


# ---------------------------------------------------------------- what is merged


def rendered(frames: int, side: int) -> list[NDArray[np.uint8]]:
    """A head that turns and speaks: (side, side, 3) RGB each."""
    take = Take(Identity.random(30), 22, frames, side, RATE, SCALE)
    return [shot.image for shot in take.shots()]


def footage(images: Sequence[NDArray[np.uint8]], height: int, times: int = 1) -> Iterator[NDArray[np.uint8]]:
    """The images there and back, 16 to 9, so many times over; the edges of the room are drawn out to both sides."""
    width = round(height * 16 / 9 / 2) * 2
    random, beside = np.random.default_rng(0), (width - height) // 2
    for image in list(chain(images, images[-2:0:-1])) * times:
        large = cv2.resize(image, (height, height), interpolation=cv2.INTER_CUBIC)
        wide = cv2.copyMakeBorder(large, 0, 0, beside, width - height - beside, cv2.BORDER_REPLICATE)
        grain = random.normal(0, GRAIN, wide.shape[:2]).astype(np.float32)[..., None]
        yield np.clip(wide + grain + 0.5, 0, 255).astype(np.uint8)


def write_pair(path: Path, recipe: Recipe) -> Path:
    """A weight file of a fresh pair."""
    torch.manual_seed(recipe.seed)
    recipe, people = recipe.resolved(), ["source", "target"]
    tensors = checkpoint.new_model(recipe, people).state_dict()
    checkpoint.write(path, State(recipe, people, {f"ema.{name}": tensor for name, tensor in tensors.items()}))
    return path


# ---------------------------------------------------------------- ways to do it, each in a process of its own


def alone(way: Callable[[], tuple[float, float]]) -> Row:
    """Seconds that `way` gives, processor time of all of it, and the most memory in MB, in a fresh process."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as pool:
        return pool.submit(_watched, way).result()


def _watched(way: Callable[[], tuple[float, float]]) -> Row:
    seconds, cpu = way()
    return {"seconds": seconds, "cpu": cpu, "memory": peak_memory()}


def peak_memory() -> float:
    """The most that this process ever held, in MB."""
    if sys.platform == "linux":  # whose ru_maxrss begins with that of the process that started this one
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    began, cpu = time.monotonic(), time.process_time()
    work()
    return time.monotonic() - began, time.process_time() - cpu


def detect(clip: Path, faces: Path, recipe: Recipe, device: str) -> tuple[float, float]:
    devices.resolve(device)
    return _timed(lambda: found.write(faces, swap.detecting(clip, recipe.extract, device)))


def ours(clip: Path, faces: Path, model: Path, recipe: MergeRecipe, device: str) -> tuple[float, float]:
    swapper, marks = swap.Swapper(model, recipe, devices.resolve(device)), Marker(False, None)
    known, out = found.read(faces), clip.with_name("ours.mp4")
    return _timed(lambda: swap.swap_video(clip, out, swapper, known, overwrite=True, marks=marks))


def naive(clip: Path, faces: Path, model: Path, recipe: MergeRecipe, device: str) -> tuple[float, float]:
    swapper = swap.Swapper(model, recipe, devices.resolve(device))
    known, out = found.read(faces), clip.with_name("naive.mp4")

    def work() -> None:
        with VideoWriter(out, clip, crf=recipe.crf, preset=recipe.preset, overwrite=True) as writer:
            for frame in naively(clip, known, swapper):
                writer.write(frame)

    return _timed(work)


def bare(clip: Path, recipe: MergeRecipe) -> tuple[float, float]:
    def work() -> None:
        out = clip.with_name("bare.mp4")
        with VideoWriter(out, clip, crf=recipe.crf, preset=recipe.preset, overwrite=True) as writer:
            for frame in read_frames(clip):
                writer.write(frame)

    return _timed(work)


def naively(clip: Path, known: FoundFaces, swapper: swap.Swapper) -> Iterator[Frame]:
    """The frames of a clip, swapped the obvious way."""
    for frame in read_frames(clip):
        image = frame.image.astype(np.float32) / 255
        for face in known.get(frame.index, []):
            image = _pasted(image, frame.image, face, swapper)
        yield frame.with_image((np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8))


def _pasted(
    image: NDArray[np.float32],  # (H, W, 3)
    original: NDArray[Any],
    face: Face,
    swapper: swap.Swapper,
) -> NDArray[np.float32]:
    recipe, model = swapper.recipe, swapper.models[0]
    size = model.size
    matrix, whole = face.matrix(size), (0, 0, image.shape[1], image.shape[0])
    crop = align.crop(original, matrix, size)
    ((drawn, mask),) = model([crop], swap.SOURCE, 1)
    mask = masks.chosen(recipe.mask, mask, swap.bound(face, matrix, size))
    drawn = color.get(recipe.color)(drawn, crop.astype(np.float32) / 255, mask)
    soft = blend.through(recipe.blend, mask, recipe.erode, recipe.feather)
    spread = align.uncrop_mask(soft, matrix, whole)
    return blend.get(recipe.blend)(image, np.clip(align.uncrop(drawn, matrix, whole), 0, 1), spread)


def text(result: Row) -> str:
    """The figures as a table for people."""
    lines = [f"{'':>6} {'ours':>8} {'naive':>8} {'feather':>8} {'bare':>8} {'detect':>8}  frames/s"]
    for row in result["rows"]:
        speeds = [row[f"{name}_frames_per_second"] for name in ("ours", "naive", "feather", "bare", "detect")]
        lines.append(
            f"{row['height']:>5}p " + " ".join(f"{value:>8.2f}" for value in speeds) + f"  speedup {row['speedup']} "
            f"({row['speedup_over_feather']} over feather), {row['share_of_transcode']:.0%} of a bare transcode, "
            f"{row['peak_memory_mb']} MB, {row['peak_memory_mb_long']} MB when {row['longer']} times as long"
        )
    return "\n".join(lines)
