"""Training, measured beside plain PyTorch and beside DeepFaceLab's architectures: `python tools/benchmark.py train`.

All of it runs on actors that are rendered here, cropped by their true points and with their true masks, so that it
needs no footage and measures nothing but training. Blocks of whole steps alternate, A B A B, so that whatever else the
machine does meets both; a figure is the median of the blocks.

overhead: time per face of `train.Trainer.session` (data, augmentation, losses, optimizer, average), with a face's share
of a log line and of a held-out measurement, over that of the bare network's way forth and back from the sum of what it
draws. `overhead_over_bare_step` is that of the recipe's own resolution.

plain: faces per second of the session and of the same df-ud written the obvious way: `PlainDF`, NCHW, float32; two
`DataLoader`s whose processes decode files and augment with OpenCV, as DeepFaceLab is documented to do; its losses, SSIM
by 2-D windows; AdamW without extras; no average.

loader: `batches.batches` alone. `loader_faces_per_second` is the median at 128 px.

quality: the recipe's model against df-ud and liae-ud, each made as wide as it must be to have as many weights. They
train in turn; in between, the averaged weights are held against faces that were held out (SSIM inside the mask) and
against the true swap (PSNR inside the mask of the target drawn as the source, in the target's colours). The learning
rate does not fall, so that any moment could be the end. The quality to reach is the lower of what the rivals have at
their end, in both figures. `time_to_quality_ratio` is our time over a rival's, the mean of all pairs, of the rival that
it is higher for; null if we did not get there.

gains: what each part of the recipe is worth. The default and, one by one, recipes that leave a part out or put one in
are trained on as many images, learning rate and all, and scored as above at the end.

gpu: on CUDA, share of the kernels' time that is matrix work, share of the time in which no kernel runs, faces/s.
"""

import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler

from faceswap import align, checkpoint, color, devices, losses
from faceswap.actors import Take
from faceswap.batches import Batch, Faces, batches, split, still
from faceswap.config import Benchmark, BenchmarkPair, Recipe, check
from faceswap.faceset import Entry, FaceMeta, Faceset, mask_path, write_face
from faceswap.heads import Identity
from faceswap.landmarks import Landmarker
from faceswap.models import FaceModel
from faceswap.train import Trainer

PEOPLE = ("source", "target")
RIVALS = ("df-ud", "liae-ud")
PARTS = ("overhead", "plain", "loader", "quality", "gains", "gpu")
USUAL = tuple(part for part in PARTS if part != "gains")  # which takes hours
CHANGES: dict[str, dict[str, Any]] = {  # of the default, one by one
    "the default": {},
    "another seed": {"seed": 1},  # how much of what follows is chance
    "df-ud": {"model": {"name": "df-ud"}},
    "liae-ud": {"model": {"name": "liae-ud"}},
    "without SSIM": {"loss": {"ssim": 0.0, "l1": 1.4}},
    "without L1": {"loss": {"ssim": 1.4, "l1": 0.0}},
    "MS-SSIM for SSIM": {"loss": {"ssim": 0.0, "ms_ssim": 0.8}},
    "squared for L1": {"loss": {"l1": 0.0, "mse": 10.0}},
    "with focal frequency": {"loss": {"focal_frequency": 1.0}},
    "with Haar": {"loss": {"haar": 1.0}},
    "eyes and mouth count four times": {"loss": {"priority": 3.0}},
    "background counts fully": {"loss": {"background": 1.0}},
    "background does not count": {"loss": {"background": 0.0}},
    "with swap-back": {"loss": {"swap_back": 0.3}},
    "with true face": {"loss": {"true_face": 0.01, "adversarial_from": 0.2}},
    "with the patch adversary": {"loss": {"adversarial": 0.02}},
    "without warp": {"data": {"warp": 0.0}},
    "twice the warp": {"data": {"warp": 0.03}},
    "without moves": {"data": {"rotation": 0.0, "scale": 0.0, "shift": 0.0}},
    "without flip": {"data": {"flip": 0.0}},
    "without colour": {"data": {"color": 0.0}},
    "without spoilt inputs": {"data": {"degrade": 0.0}},
    "with occluders": {"data": {"occlude": 0.2}},
    "the source in the target's light": {"data": {"transfer": "mkl"}},
    "sampling by pose": {"data": {"sampling": "pose"}},
    "half the batch": {"data": {"batch": 4}},
    "twice the batch": {"data": {"batch": 16}},
    "twice the rate": {"train": {"rate": 2.0}},  # times the dial's
    "without moving average": {"train": {"ema": 0.0}},
}
LOADED = (64, 96, 128, 256)  # px, at which the loader is measured
ON_GPU = (128, 256, 512)  # px
SIZE = 256  # px, side of the crops on disk
WORKERS = max(1, (os.cpu_count() or 1) // 2)  # processes for each person's faces, of plain PyTorch
LEAST, TURNS = 3, 6  # blocks of each kind at least, and if they are not longer than they should be
EVERY = 30  # seconds of training between two points of a curve, at most
PROFILED = 20  # steps
MATRIX = re.compile(  # names of kernels; SSIM's windows and changes of layout are no matrix work
    r"^(?!.*(depthwise|grouped|nchwToNhwc|nhwcToNchw)).*(gemm|nvjet|conv|cutlass|cudnn|wgrad|dgrad|winograd|xmma)",
    re.IGNORECASE,
)
Row = dict[str, Any]


def run(
    recipe: Recipe,  # as given: the dial is turned here
    folder: Path,  # a scratch folder
    *,
    protocol: Benchmark,
    parts: Sequence[str] = USUAL,
    resolutions: Sequence[int] = (64, 128, 256),
    loaded: Sequence[int] = LOADED,
    minutes: float = 10,  # of training per model and pair, for the quality
    images: int = 12_000,  # the same, for the gains
    seconds: float = 60,  # for each row of the other parts
    pairs: int = 1,  # of the protocol
    device: str = "auto",
    say: Callable[[str], None] = lambda line: None,
) -> Row:
    """The object that `benchmark.py train --json` prints; what was not measured is null."""
    place = devices.resolve(device)
    rows: dict[str, Any] = dict.fromkeys(PARTS)

    def measured(name: str, measure: Callable[..., Row], recipes: Sequence[Recipe]) -> None:
        rows[name] = []
        for number, resolved in enumerate(recipes):
            rows[name].append(measure(resolved, casts[0], folder / f"{name}{number}", seconds, place))
            say(f"{name}: {rows[name][-1]}")

    def at(sides: Sequence[int], **model: Any) -> list[Recipe]:
        return [recipe.changed(model={"resolution": side, **model}).resolved() for side in sides]

    casts, compared = [], {"quality", "gains"} & set(parts)
    for number, pair in enumerate(protocol.pairs[: pairs if compared else 1], 1):
        say(f"rendering pair {number}: actor {pair.source} and actor {pair.target}")
        casts.append(folder / f"pair{number}")
        render(protocol, pair, casts[-1])
    own = recipe.model.resolution
    if "overhead" in parts:
        measured("overhead", overhead, at(sorted({own, *resolutions})))
    if "plain" in parts:
        measured("plain", against_plain, at(resolutions, name="df-ud"))
    if "loader" in parts:
        measured("loader", loader, at(loaded))
    if "gpu" in parts and place.type == "cuda":
        measured("gpu", on_gpu, at(ON_GPU))
    if "quality" in parts:
        rows["quality"] = [quality(recipe, cast, minutes, place, say) for cast in casts]
    if "gains" in parts:
        rows["gains"] = gains(recipe, casts, images, place, say)
    notes = [] if place.type == "cuda" else ["gpu: null, as there is no CUDA here"]
    for row in rows["quality"] or []:
        if None in row["ratios"].values():
            notes.append(f"{row['pair']}: ratios null, as our model did not get to where its rivals were")
    overheads = {row["resolution"]: row["overhead"] for row in rows["overhead"] or []}
    loads = {row["resolution"]: row["faces_per_second"] for row in rows["loader"] or []}
    return {
        "overhead_over_bare_step": overheads.get(own),
        "loader_faces_per_second": loads.get(128),
        "time_to_quality_ratio": worst_ratio(rows["quality"] or []),
        "machine": {"device": str(place), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "notes": notes,
        **rows,
    }


# ---------------------------------------------------------------- faces


def render(protocol: Benchmark, pair: BenchmarkPair, folder: Path) -> None:
    """The facesets `source`, `target` and `truth`, which is what every so many frames of the target should become."""
    source, target = (
        Take(Identity.random(who), performance, protocol.frames, protocol.size, Fraction(protocol.rate))
        for who, performance in ((pair.source, pair.source_performance), (pair.target, pair.target_performance))
    )
    whole = range(protocol.frames)
    _write(source, whole, folder / "source", ".jpg")
    metas = _write(target, whole, folder / "target", ".jpg")
    scored = whole[:: protocol.every]
    _write(target.with_face_of(source.identity), scored, folder / "truth", ".png", metas)


def _write(
    take: Take, frames: Sequence[int], folder: Path, suffix: str, metas: Sequence[FaceMeta] = ()
) -> list[FaceMeta]:
    """Faces with their masks, cropped by their own true points, or else as `metas` say of all frames of the take."""
    folder.mkdir(parents=True)
    found, landmarker = [], Landmarker()  # eyes and mouth are told by landmarks
    for frame, shot in zip(frames, take.shots(frames), strict=True):
        (marks,) = landmarker([shot.image], [shot.points])
        low, high = shot.points.min(0).tolist(), shot.points.max(0).tolist()
        meta = (
            metas[frame]
            if metas
            else FaceMeta(
                source=folder.name,
                frame=frame,
                time=float(frame / take.rate),
                face=0,
                box=[*low, *high],
                points=shot.points.tolist(),
                matrix=align.crop_matrix(shot.points, SIZE).tolist(),
                size=SIZE,
                detector="truth",
                probability=1.0,
                landmarks=marks.points.tolist(),
                fit=marks.fit,
            )
        )
        path, matrix = folder / f"{frame:06d}{suffix}", np.array(meta.matrix)
        write_face(path, align.crop(shot.image, matrix, SIZE), meta)
        mask = np.round(align.crop(shot.mask, matrix, SIZE).clip(0, 1) * 255).astype(np.uint8)
        cv2.imwrite(str(mask_path(path)), mask)
        found.append(meta)
    return found


def trainer(recipe: Recipe, cast: Path, run: Path, device: torch.device) -> Trainer:
    """A training that stands before its first step."""
    fabric = Fabric(**devices.fabric_options(str(device), 1, recipe.train.precision))
    fabric.launch()
    made = Trainer(fabric, recipe, list(PEOPLE), run)
    made.footage = dict.fromkeys(PEOPLE, "rendered")
    made.start(None, None)
    made.read({name: split([Faceset.open(cast / name)], recipe.data.holdout) for name in PEOPLE})
    made._saved, made._logged = time.monotonic(), (0, 0.0)
    made.open_folder()
    made.save()  # somewhere to go back to
    return made


def _shape(recipe: Recipe, model: nn.Module) -> Row:
    part = recipe.model
    return {
        "model": part.name,
        "resolution": part.resolution,
        "width": part.width,
        "code": part.code,
        "weights": sum(weight.numel() for weight in model.parameters()),
        "batch": recipe.data.batch,
    }


# ---------------------------------------------------------------- time


def timed(steps: Iterator[Any], faces: int, seconds: float, device: torch.device) -> NDArray[np.float64]:
    """Seconds per face, of the clock and of this process's cores, in whole steps of `faces` for at least so long."""
    _wait(device)
    clock, cores, done = time.perf_counter(), time.process_time(), 0
    while not done or time.perf_counter() - clock < seconds:
        next(steps)
        done += faces
    _wait(device)
    return np.array([time.perf_counter() - clock, time.process_time() - cores]) / done


def alternately(ways: Sequence[Callable[[float], NDArray[np.float64]]], seconds: float) -> NDArray[np.float64]:
    """(turns, ways, 2): what each way gives in turn, when told how long to take, for about so long altogether."""
    started, found = time.monotonic(), list[Any]()
    while len(found) < LEAST or time.monotonic() - started < seconds:
        found.append([way(seconds / TURNS / len(ways)) for way in ways])
    return np.array(found)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ---------------------------------------------------------------- what the pipeline costs


def overhead(recipe: Recipe, cast: Path, run: Path, seconds: float, device: torch.device) -> Row:
    undisturbed = {"log_images": 10**9, "preview_images": 10**9, "save_minutes": 1e9}
    made = trainer(recipe.changed(train=undisturbed), cast, run, device)
    faces = recipe.data.batch
    bare = bare_steps(made)
    with closing(made.session()) as session:
        last, _ = next(session), next(bare)
        found = alternately([partial(timed, steps, faces, device=device) for steps in (session, bare)], seconds)
    times = [time.perf_counter()]
    for work in (lambda: made.log(last), made.measure):
        work()
        times.append(time.perf_counter())
    logging, measuring = np.diff(times)
    made.monitor.close()
    found[:, 0] += logging / recipe.train.log_images + measuring / recipe.train.preview_images
    (ours, cores), (theirs, _) = np.median(found, 0)
    ratios = np.median(found[:, 0] / found[:, 1], 0)
    return _shape(recipe, made.raw) | {
        "overhead": round(float(ratios[0]), 4),
        "overhead_of_cores": round(float(ratios[1]), 4),
        "ms_per_face": round(1000 * float(ours), 3),
        "bare_ms_per_face": round(1000 * float(theirs), 3),
        "core_ms_per_face": round(1000 * float(cores), 3),
        "log_ms": round(1000 * float(logging), 2),
        "measurement_seconds": round(float(measuring), 2),
        "turns": len(found),
    }


def bare_steps(made: Trainer) -> Iterator[None]:
    """Ways forth and back of the network, of a batch as large."""
    batch = made.blank(made.recipe.data.batch)
    while True:
        with made.fabric.autocast():
            drawn, mask = made.raw(batch.input, batch.person)
        (drawn.sum() + mask.sum()).backward()
        made.raw.zero_grad()
        yield


def loader(recipe: Recipe, cast: Path, run: Path, seconds: float, device: torch.device) -> Row:
    people = [Faces(Faceset.open(cast / name).entries, recipe.model.resolution, 2**40, name) for name in PEOPLE]
    with closing(batches(people, recipe.data, recipe.seed, 0, device)) as coming:
        next(coming)
        found = alternately([partial(timed, coming, recipe.data.batch, device=device)], seconds)
    clock, cores = found[:, 0].T
    return {
        "resolution": recipe.model.resolution,
        "batch": recipe.data.batch,
        "faces_per_second": round(float(1 / np.median(clock))),
        "best_faces_per_second": round(float(1 / clock.min())),
        "seconds_per_1000": round(1000 * float(np.median(clock)), 3),
        "core_seconds_per_1000": round(1000 * float(np.median(cores)), 3),
        "turns": len(found),
    }


# ---------------------------------------------------------------- the obvious way


def against_plain(recipe: Recipe, cast: Path, run: Path, seconds: float, device: torch.device) -> Row:
    made = trainer(recipe, cast, run, device)
    plain = PlainDF(made.raw, recipe).to(device)
    optimizer = torch.optim.AdamW(plain.parameters(), recipe.train.rate)
    faces = recipe.data.batch

    def theirs(length: float) -> NDArray[np.float64]:
        with closing(plain_training(plain, optimizer, cast, recipe, device)) as training:
            for _ in range(2 * WORKERS + 1):  # until what the processes made beforehand is used up
                next(training)
            return timed(training, faces, length, device)

    with closing(made.session()) as session:
        next(session)
        found = alternately([partial(timed, session, faces, device=device), theirs], seconds)
    made.monitor.close()
    ours, plainly = np.median(found[..., 0], 0)
    return _shape(recipe, made.raw) | {
        "faces_per_second": round(float(1 / ours), 2),
        "plain_faces_per_second": round(float(1 / plainly), 2),
        "speedup": round(float(np.median(found[:, 1, 0] / found[:, 0, 0])), 3),
        "turns": len(found),
    }


def plain_training(
    model: "PlainDF", optimizer: torch.optim.Optimizer, cast: Path, recipe: Recipe, device: torch.device
) -> Iterator[float]:
    """Steps without end; gives their losses."""
    loaders, share = [], recipe.data.batch // len(PEOPLE)
    for name in PEOPLE:
        faces = PlainFaces(sorted((cast / name).glob("*.jpg")), recipe.model.resolution)
        order = RandomSampler(faces, num_samples=10**9)
        loaders.append(DataLoader(faces, share, sampler=order, num_workers=WORKERS))
    for pair in zip(*loaders, strict=True):
        loss = torch.zeros((), device=device)
        for person, (image, target, mask) in enumerate(pair):
            target, mask = target.to(device), mask.to(device)
            drawn, drawn_mask = model(image.to(device), person)
            loss = loss + 10 * plain_dssim(drawn * mask, target * mask)
            loss = loss + 10 * F.mse_loss(drawn * mask, target * mask) + 10 * F.mse_loss(drawn_mask, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def plain_dssim(image: Tensor, other: Tensor) -> Tensor:
    """(1 - SSIM) / 2 of (B, 3, R, R) by windows of 11 x 11."""
    line = torch.exp(-((torch.arange(11, device=image.device) - 5.0) ** 2) / (2 * 1.5**2))
    window = (line[:, None] * line / line.sum() ** 2).expand(3, 1, 11, 11)

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(x, window, groups=3)

    mean, mean_other = blur(image), blur(other)
    variance, variance_other = blur(image**2) - mean**2, blur(other**2) - mean_other**2
    covariance = blur(image * other) - mean * mean_other
    luminance = (2 * mean * mean_other + 0.01**2) / (mean**2 + mean_other**2 + 0.01**2)
    structure = (2 * covariance + 0.03**2) / (variance + variance_other + 0.03**2)
    return (1 - luminance * structure).mean() / 2


class PlainFaces(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Faces as they lie on disk, each decoded, warped on a grid of 5 x 5, moved and flipped when it is asked for."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths, self.size = paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        cv2.setNumThreads(0)
        side, path = self.size, self.paths[number]
        image = cv2.resize(cv2.imread(str(path)), (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        coded = cv2.imread(str(mask_path(path)), cv2.IMREAD_GRAYSCALE)
        mask = cv2.resize(coded, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        random = np.random.default_rng(int(torch.randint(2**31, ())))
        angle, size = random.uniform(-10, 10), 1.15 ** random.uniform(-1, 1)
        matrix = cv2.getRotationMatrix2D((side / 2, side / 2), angle, size)
        matrix[:, 2] += random.uniform(-0.05, 0.05, 2) * side
        cell = side // 4
        nodes = np.zeros((2, 5, 5), np.float32)
        nodes[:, 1:-1, 1:-1] = 0.24 * cell * random.standard_normal((2, 3, 3)).clip(-2.5, 2.5) / 2.5
        moved = [cv2.resize(part, (side + cell, side + cell)) for part in nodes]
        inside = slice(cell // 2, cell // 2 + side)
        y, x = np.mgrid[:side, :side].astype(np.float32)
        warped = cv2.remap(image, x + moved[0][inside, inside], y + moved[1][inside, inside], cv2.INTER_CUBIC)

        def move(picture: NDArray[Any], how: int, border: int) -> NDArray[Any]:
            return cv2.warpAffine(picture, matrix, (side, side), flags=how, borderMode=border)

        found = [move(picture, cv2.INTER_CUBIC, cv2.BORDER_REPLICATE) for picture in (warped, image)]
        found.append(move(mask, cv2.INTER_LINEAR, cv2.BORDER_CONSTANT)[..., None])
        if random.random() < 0.4:
            found = [picture[:, ::-1] for picture in found]
        first, second, third = (
            torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)).clip(0, 1)) for picture in found
        )
        return first, second, third


class PlainDF(nn.Module):
    """df-ud as one would write it down, for two people; with the weights of ours, whose order it has."""

    def __init__(self, ours: FaceModel, recipe: Recipe) -> None:
        super().__init__()
        part = recipe.model
        width, self.code, self.side = part.width, part.code, part.resolution // 32
        stages: list[nn.Module] = []
        for inward, outward in pairwise([3, width, width * 2, width * 4, width * 8]):
            stages += [nn.Conv2d(inward, outward, 5, 2, 2), nn.LeakyReLU(0.1)]
        self.encoder = nn.Sequential(*stages, nn.Flatten())
        self.narrow = nn.Linear(width * 8 * (self.side * 2) ** 2, self.code)
        self.spread = nn.Linear(self.code, self.code * self.side**2)
        self.up = _up(self.code, self.code)
        self.decoders = nn.ModuleList(PlainDecoder(self.code, part.decoder, part.mask) for _ in range(2))
        with torch.no_grad():
            for mine, theirs in zip(self.parameters(), ours.parameters(), strict=True):
                mine.copy_(theirs)

    def forward(self, faces: Tensor, person: int) -> tuple[Tensor, Tensor]:
        x = self.encoder(faces)
        x = x * torch.rsqrt((x**2).mean(1, keepdim=True) + 1e-6)
        x = self.spread(self.narrow(x)).view(-1, self.code, self.side, self.side)
        drawn: tuple[Tensor, Tensor] = self.decoders[person](self.up(x))
        return drawn


class PlainDecoder(nn.Module):
    def __init__(self, inward: int, width: int, mask: int) -> None:
        super().__init__()
        stages = pairwise([inward, width * 8, width * 4, width * 2])
        self.trunk = nn.Sequential(*(nn.Sequential(_up(i, o), PlainResidual(o)) for i, o in stages))
        self.heads = nn.ModuleList(nn.Conv2d(width * 2, 3, side, 1, side // 2) for side in (1, 3, 3, 3))
        ups = [_up(i, o) for i, o in pairwise([inward, mask * 8, mask * 4, mask * 2, mask])]
        self.mask = nn.Sequential(*ups, nn.Conv2d(mask, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        small = self.trunk(x)
        quarters = torch.stack([head(small) for head in self.heads], 2).flatten(1, 2)
        return torch.sigmoid(F.pixel_shuffle(quarters, 2)), torch.sigmoid(self.mask(x))


class PlainResidual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, 1, 1)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x + self.second(F.leaky_relu(self.first(x), 0.2)), 0.2)


def _up(inward: int, outward: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inward, outward * 4, 3, 1, 1), nn.LeakyReLU(0.1), nn.PixelShuffle(2))


# ---------------------------------------------------------------- how soon it is how good


def quality(
    recipe: Recipe,
    cast: Path,
    minutes: float,
    device: torch.device,
    say: Callable[[str], None],
) -> Row:
    """The curves of our model and of its rivals on one pair, and how long each took."""
    recipe = recipe.changed(train={"minutes": minutes, "decay": 0.0, "preview_images": 10**9, "save_minutes": 1e9})
    ours = recipe.resolved()
    least = weights_of(ours)
    runs = [ours, *(no_smaller(recipe.changed(model={"name": name}).resolved(), least) for name in RIVALS)]
    racers = [trainer(one, cast, cast / f"run{number}", device) for number, one in enumerate(runs)]
    sessions = [made.session() for made in racers]
    examination = Examination(cast, ours, device)
    curves = [[{"seconds": 0.0, "images": 0} | examination(made)] for made in racers]
    end = 60 * minutes
    for mark in np.linspace(0, end, max(10, math.ceil(end / EVERY)) + 1)[1:]:
        for made, session, curve in zip(racers, sessions, curves, strict=True):
            while made.progress.seconds < mark:
                next(session)
            done = {"seconds": round(made.progress.seconds, 2), "images": made.progress.images}
            curve.append(done | examination(made))
            say(f"quality: {made.recipe.model.name} {curve[-1]}")
    for made, session in zip(racers, sessions, strict=True):
        session.close()
        made.monitor.close()
    goal = {name: min(curve[-1][name] for curve in curves[1:]) for name in ("ssim", "swap_psnr")}
    rows = [
        _shape(made.recipe, made.raw) | {"seconds_to_quality": reached(curve, goal), "curve": curve}
        for made, curve in zip(racers, curves, strict=True)
    ]
    us = rows[0]["seconds_to_quality"]
    theirs = {row["model"]: row["seconds_to_quality"] for row in rows[1:]}  # 0: there before it was trained
    ratios = {name: round(us / took, 4) if us is not None and took else None for name, took in theirs.items()}
    return {"pair": cast.name, "goal": goal, "ratios": ratios, "models": rows}


def gains(
    recipe: Recipe, casts: Sequence[Path], images: int, device: torch.device, say: Callable[[str], None]
) -> list[Row]:
    """For each of `CHANGES` the scores after so many images, how far they lie from the default's, and the seconds of
    training: means of all pairs."""
    rows: list[Row] = []
    for number, (name, change) in enumerate(CHANGES.items()):
        one = recipe.changed(train={"images": images, "preview_images": 10**9, "save_minutes": 1e9}).resolved()
        if "rate" in change.get("train", {}):
            change = {"train": {"rate": change["train"]["rate"] * one.train.rate}}
        one = check(one.model_dump() | {"seed": change["seed"]}, name) if "seed" in change else one.changed(**change)
        if "name" in change.get("model", {}):
            one = no_smaller(one.changed(model={"decoder": 0, "mask": 0}).resolved(), weights_of(recipe.resolved()))
        found, seconds = [], []
        for cast in casts:
            made = trainer(one, cast, cast / f"gain{number}", device)
            while not made.done():
                for _ in made.session():  # which ends after a setback
                    if made.done():
                        break
            made.monitor.close()
            found.append(Examination(cast, one, device)(made))
            seconds.append(made.progress.seconds)
        scores = {key: round(float(np.mean([score[key] for score in found])), 4) for key in found[0]}
        first = rows[0] if rows else scores
        gain = {f"{key}_gain": round(value - first[key], 4) for key, value in scores.items()}
        rows.append({"change": name, "seconds": round(float(np.mean(seconds)), 2), **scores, **gain})
        say(f"gains: {rows[-1]}")
    return rows


class Examination:
    """Scores a training: `ssim` of held-out faces, the mean of both people, and `swap_psnr` (dB), inside the mask."""

    def __init__(self, cast: Path, recipe: Recipe, device: torch.device) -> None:
        truth = Faceset.open(cast / "truth").entries
        frames = {entry.meta.frame for entry in truth}
        target = [entry for entry in Faceset.open(cast / "target").entries if entry.meta.frame in frames]

        def read(entries: list[Entry]) -> Batch:
            faces = Faces(entries, recipe.model.resolution, 2**40, "faces to score")
            return still(faces, range(len(faces)), 0, device)

        held = [split([Faceset.open(cast / name)], recipe.data.holdout)[1] for name in PEOPLE]
        self.held = [read(entries) for entries in held]
        self.target, self.truth = read(target), read(truth)

    @torch.no_grad()
    def __call__(self, made: Trainer) -> dict[str, float]:
        similar = []
        for person, batch in enumerate(self.held):
            drawn = _draw(made, batch.input, person)
            similar.append(1 - float(losses.ssim(drawn, batch.target, batch.mask).mean()))
        swapped, crops, masks = (
            images.permute(0, 2, 3, 1).cpu().numpy()
            for images in (_draw(made, self.target.input, 0), self.target.input, self.target.mask)
        )
        faces = zip(swapped, crops, masks[..., 0], strict=True)
        colored = np.stack([color.mkl(face, crop, mask) for face, crop, mask in faces])
        images = torch.from_numpy(colored).permute(0, 3, 1, 2).to(self.truth.input)
        psnr = float(losses.psnr(images, self.truth.input, self.target.mask).mean())
        return {"ssim": round(float(np.mean(similar)), 5), "swap_psnr": round(psnr, 4)}


def _draw(made: Trainer, faces: Tensor, person: int) -> Tensor:
    """The faces as the averaged weights draw them."""
    parts = [made.average(part, torch.full((len(part),), person, device=part.device))[0] for part in faces.split(16)]
    return torch.cat(parts).float()


def weights_of(recipe: Recipe) -> int:
    with torch.device("meta"):
        model = checkpoint.new_model(recipe, PEOPLE)
    return sum(weight.numel() for weight in model.parameters())


def no_smaller(recipe: Recipe, weights: int) -> Recipe:
    """A resolved recipe with its model made wide enough to have at least so many weights."""
    width = recipe.model.width
    while weights_of(recipe) < weights:
        width += 2
        recipe = recipe.changed(model={"width": width, "decoder": 0, "mask": 0}).resolved()
    return recipe


def reached(curve: Sequence[Row], goal: dict[str, float]) -> float | None:
    """Seconds until every figure was as high as its goal for the first time, linear between measurements; None: not."""
    times = []
    for name, level in goal.items():
        after = next((i for i, point in enumerate(curve) if point[name] >= level), None)
        if after is None:
            return None
        end, start = curve[after], curve[max(after - 1, 0)]
        rise = end[name] - start[name]
        share = (level - start[name]) / rise if rise > 0 else 1.0
        times.append(start["seconds"] + share * (end["seconds"] - start["seconds"]))
    return round(max(times), 2)


def worst_ratio(rows: Sequence[Row]) -> float | None:
    """Of the rivals' ratios, each the mean of all pairs, the highest; None if one is missing."""
    found = [[row["ratios"][name] for row in rows] for name in RIVALS]
    if not rows or any(ratio is None for ratios in found for ratio in ratios):
        return None
    return round(max(float(np.mean(ratios)) for ratios in found), 4)


# ---------------------------------------------------------------- where a GPU is


def on_gpu(recipe: Recipe, cast: Path, run: Path, seconds: float, device: torch.device) -> Row:
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    made = trainer(recipe, cast, run, device)
    faces = recipe.data.batch
    with closing(made.session()) as session:
        for _ in range(PROFILED):
            next(session)
        wall = timed(session, faces, seconds, device)[0] * faces
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            for _ in range(PROFILED):
                next(session)
            _wait(device)
    made.monitor.close()
    kernels = [(e.key, e.self_device_time_total / 1e6) for e in seen.key_averages() if e.device_type == DeviceType.CUDA]
    busy = sum(spent for _, spent in kernels)
    return _shape(recipe, made.raw) | {
        "faces_per_second": round(faces / wall, 1),
        "matrix_share": round(sum(spent for name, spent in kernels if MATRIX.search(name)) / busy, 4),
        "idle_share": round(max(0.0, 1 - busy / PROFILED / wall), 4),
    }
