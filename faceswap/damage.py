"""Collateral damage: how well a network draws people who have nothing to do with it, before and after it was trained on
somebody.

A base has learnt faces in general. Training it on one pair may make it forget them; what it forgets shows on faces that
neither training has seen, each drawn by both networks and held against itself.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from faceswap import adapters, align, checkpoint, console, files, losses, metrics
from faceswap.actors import FRAME_PER_CROP, SCALE, as_arguments, at_random
from faceswap.batches import Faces
from faceswap.devices import resolve
from faceswap.errors import CheckpointError, FacesetError, UsageError
from faceswap.faceset import open_all, spread
from faceswap.heads import Identity
from faceswap.models import FaceModel
from faceswap.render import Actor, background

VERSION = 1  # of the rendered probe: to be raised when the renderer, or what is asked of it, changes
FIRST = 2**62  # seed of the first stranger; `actors.write_faces` draws its people from seeds below 2**31
COUNT = 500  # strangers' faces that are measured
SHOTS = 4  # faces of each stranger: to bake one more person takes as long as five faces

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Probe:
    """Faces that no training saw: canonical crops (N, R, R, 3) RGB and where the face is, (N, R, R), 255 inside.

    No mask is empty.
    """

    images: Bytes
    masks: Bytes

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Scores:
    """How near drawn faces come to what was to be drawn, inside the face, the mean over all; see `metrics.TABLE`."""

    psnr: float  # dB, at most 100
    ssim: float  # 1 is perfect
    ms_ssim: float  # the same; three scales up to 160 px, five above


@dataclass(frozen=True)
class Damage:
    """What training did to a network's drawing of strangers."""

    before: Scores
    after: Scores
    distance: float  # see `distance`

    @property
    def lost(self) -> Scores:
        """What the network did better before: negative where it got better."""
        then, now = self.before, self.after
        return Scores(then.psnr - now.psnr, then.ssim - now.ssim, then.ms_ssim - now.ms_ssim)


def probe(size: int, count: int | None = None, faceset: Path | None = None, crop: str = align.CANONICAL) -> Probe:
    """`count` (None: `COUNT`) faces of rendered strangers at `size` px, or at most as many of a faceset, evenly spread.

    Strangers are rendered once, `SHOTS` faces of each, and kept in the user's folder of weights. `FacesetError` if the
    faceset is missing or none of its faces can be used.
    """
    count = COUNT if count is None else count
    if count < 1:
        raise UsageError(f"a probe of {count} faces: expected at least one")
    if faceset is not None:
        return _chosen(faceset, size, count, crop)
    kind = f"{VERSION}-{size}-{count}" + (f"-{crop}" if crop != align.CANONICAL else "")
    places = [folder / "probes" / f"strangers-{kind}.npz" for folder in files.weight_folders()[:-1]]
    kept = (found for path in places if path.exists() and (found := _read(path, size, count)) is not None)
    if (known := next(kept, None)) is not None:
        return known
    faces = console.track(_strangers(size, count, crop), "rendering strangers", count, "faces")
    images, masks = zip(*faces, strict=True)
    fresh = Probe(np.stack(images), np.stack(masks))
    for path in places:
        try:
            with files.whole_file(path, overwrite=True) as partial:
                np.savez_compressed(partial, version=VERSION, images=fresh.images, masks=fresh.masks)
            break
        except OSError as error:
            console.say(f"{path}: the rendered strangers cannot be kept there ({error.strerror})")
    return fresh


def _read(path: Path, size: int, count: int) -> Probe | None:
    """The strangers kept at `path`; None, which is said, if they are not what is wanted."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            version, images, masks = int(archive["version"]), archive["images"], archive["masks"]
    except Exception as error:  # what a damaged archive makes of NumPy and zipfile has no end
        console.say(f"{path}: damaged ({type(error).__name__}); rendered anew")
        return None
    wanted = version == VERSION and images.dtype == masks.dtype == np.uint8
    if wanted and images.shape == (count, size, size, 3) and masks.shape == (count, size, size):
        return Probe(images, masks)
    console.say(f"{path}: not the strangers that its name says; rendered anew")
    return None


def _strangers(size: int, count: int, crop: str = align.CANONICAL) -> Iterator[tuple[Bytes, Bytes]]:
    """Faces (R, R, 3) and their masks (R, R), each in any pose, mood, light and room, like those of `write_faces`."""
    side = round(size * FRAME_PER_CROP)
    for person in range(-(-count // SHOTS)):
        actor, random = Actor(Identity.random(FIRST + person)), np.random.default_rng([FIRST + person, 1])
        for _ in range(min(SHOTS, count - person * SHOTS)):
            moment = at_random(random)
            room = background(int(random.integers(2**31)), side, side)
            shot = actor.render(**as_arguments(moment), size=side, background=room, scale=SCALE)
            matrix = align.after(align.onto(crop, size, size), align.crop_matrix(shot.points, size))
            inside = align.crop(shot.mask, matrix, size).clip(0, 1)
            yield align.crop(shot.image, matrix, size), np.round(inside * 255).astype(np.uint8)


def _chosen(folder: Path, size: int, count: int, crop: str) -> Probe:
    faces = Faces(spread(open_all([folder])[0].entries, count), size, math.inf, folder.name, crop)
    images, masks = faces[range(len(faces))]
    seen = masks[:, 0].any((1, 2))  # a user's own mask may be empty
    if not seen.any():
        raise FacesetError(f"{folder}: expected faces, found only empty masks of your own; delete some")
    if not seen.all():
        console.warn(f"{folder}: {(~seen).sum()} faces have empty masks of your own and are left out")
    return Probe(images[seen], masks[seen, 0])


@torch.inference_mode()
def scores(model: FaceModel, probe: Probe, person: int, device: torch.device, batch: int = 32) -> Scores:
    """How well `model`, which is on `device`, draws the faces as `person`, `batch` at once; not as one in training."""
    found, training = [], model.training
    model.eval()
    for start in range(0, len(probe), batch):
        images, masks = (
            torch.from_numpy(part[start : start + batch]).to(device).float().div_(255)
            for part in (probe.images, probe.masks)
        )
        faces, weight = images.permute(0, 3, 1, 2), masks[:, None]
        drawn, _ = model(faces, torch.full((len(faces),), person, dtype=torch.int64, device=device))
        alike = [1 - loss(drawn, faces, weight) for loss in (losses.ssim, losses.ms_ssim)]
        found.append(torch.stack([losses.psnr(drawn, faces, weight), *alike]).cpu())
    model.train(training)
    psnr, ssim, ms_ssim = torch.cat(found, 1).double().mean(1).tolist()
    return Scores(psnr, ssim, ms_ssim)


@torch.no_grad()
def distance(before: FaceModel, after: FaceModel) -> float:
    """How far training moved the weights, see `adapters.distance`, with what adapters make of them.

    A table with a row per person does not count where the number of people differs.
    """
    start, there = before.state_dict(), {name for name, _ in after.named_modules()}
    names = [name for name in start if name.rpartition(".")[0] in there]  # a state dict would hold the adapters apart
    return adapters.distance(start, {name: attrgetter(name)(after) for name in names})


def measure(
    before: FaceModel,
    after: FaceModel,
    probe: Probe,
    persons: tuple[int, int],  # whom each of them draws the strangers as
    device: torch.device,  # where both are
) -> Damage:
    """What training that made `after` of `before` did to strangers."""
    then, now = (scores(model, probe, who, device) for model, who in zip((before, after), persons, strict=True))
    return Damage(then, now, distance(before, after))


def of(
    weights: Path,  # a run or a file of one
    *,
    device: str = "auto",
    base: Path | None = None,  # where the base lies, if it is not where it was
    strength: float = 1.0,
    faceset: Path | None = None,  # of strangers; None: rendered ones
) -> Damage | None:
    """What fine-tuning did to strangers; None for a model that did not start from a base.

    A base that is not to be found is said, and nothing measured.
    """
    path, place = checkpoint.find(weights), resolve(device)
    state = checkpoint.read_header(path)
    if state.base is None:
        return None
    try:
        origin = checkpoint.find_base(state.base, path.parent, base)
    except CheckpointError as error:
        console.warn(f"{weights}: what became of the base is not measured: {error}")
        return None
    tuned, _ = checkpoint.load_model(path, base, strength)
    before, after = (checkpoint.new_model(origin.recipe, origin.people) for _ in range(2))
    before.load_state_dict(origin.part("ema"))
    after.load_state_dict(tuned.as_base(tuned.state_dict()))
    model = state.recipe.model
    strangers = probe(model.resolution, faceset=faceset, crop=model.crop)
    return measure(before.to(place), after.to(place), strangers, (0, 0), place)


def rows(damage: Damage) -> dict[str, dict[str, float | None]]:
    """The damage as a table: before, after and lost."""
    return {"before": asdict(damage.before), "after": asdict(damage.after), "lost": asdict(damage.lost)}


def text(damage: Damage) -> str:
    """The damage as a small table and a line."""
    return f"{metrics.text_table(rows(damage))}\nweights moved by {metrics.shown(100 * damage.distance)} %"
