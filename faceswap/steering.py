"""Where a run stands: how much of its budget is used, how fast it learns, when it ends, what may change on its way.

All of it is a function of the recipe and of saved progress, so that an interrupted run goes on as if nothing had been.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faceswap import checkpoint, config, console, monitor
from faceswap.checkpoint import Progress
from faceswap.config import Recipe
from faceswap.errors import CheckpointError, FaceswapError, RecipeError

GAIN = 0.005  # relative; a held-out loss that falls by less is no better
LIMITS = {"train.images", "train.minutes", "train.until_plateau", "train.patience"}
LIVE = LIMITS | {
    *("train.rate", "train.preview_images", "train.log_images", "train.save_images", "train.save_minutes"),
    *(f"loss.{name}" for name in config.LossRecipe.model_fields if name not in ("patch", "r1")),
}


def has_budget(recipe: Recipe) -> bool:
    return bool(recipe.train.images or recipe.train.minutes or recipe.train.until_plateau)


def share(progress: Progress, recipe: Recipe) -> float:
    """The part of the budget that is used, 1 at its end; 0 while the end is not known.

    A plateau makes an end: where it would have been, had the rate's fall over the last `train.decay` of a budget
    begun at the plateau.
    """
    train = recipe.train
    used = [0.0]
    if train.images:
        used.append(progress.images / train.images)
    if train.minutes:
        used.append(progress.seconds / (60 * train.minutes))
    if train.until_plateau and progress.plateau:
        used.append(progress.images * (1 - train.decay) / progress.plateau)
    return max(used)


def ended_by_plateau(progress: Progress, recipe: Recipe) -> bool:
    """Whether the end that is reached is that of a plateau, not a limit."""
    limits = recipe.changed(train={"until_plateau": False})
    return share(progress, limits) < 1 <= share(progress, recipe)


def schedule(progress: Progress, recipe: Recipe) -> float:
    """The learning rate in units of the recipe's: linear warm-up, then constant, then a cosine to a hundredth."""
    train, done = recipe.train, share(progress, recipe)
    factor = min(1.0, (progress.images + recipe.data.batch) / train.warmup) if train.warmup else 1.0
    if train.decay and done > 1 - train.decay:
        through = min(1.0, (done - (1 - train.decay)) / train.decay)
        factor *= 0.01 + 0.99 * (1 + math.cos(math.pi * through)) / 2
    return factor


def judge(progress: Progress, loss: float, recipe: Recipe) -> None:
    """Note a held-out loss, once per place.

    `train.patience` measurements in a row of which none is 0.5 % below the last that was, are a plateau.
    """
    if progress.images == progress.measured:
        return
    progress.measured = progress.images
    if loss < progress.bar * (1 - GAIN):
        progress.bar, progress.stale = loss, 0
    else:
        progress.stale += 1
    train = recipe.train
    if train.until_plateau and not progress.plateau and progress.stale >= train.patience:
        progress.plateau = progress.images
        end = round(progress.images / (1 - train.decay))
        console.say(f"plateau at {progress.images} images: the rate falls until {end} images, then training ends")


def forget(progress: Progress) -> None:
    """Losses are weighted otherwise from here on: earlier ones are no measure of those to come."""
    progress.best = progress.bar = math.inf
    progress.stale = progress.plateau = 0


def differences(before: Recipe, after: Recipe) -> dict[str, tuple[Any, Any]]:
    """The options in which two recipes differ, as `section.key`, with both values."""
    old, new = _flat(before.model_dump()), _flat(after.model_dump())
    return {key: (old[key], new[key]) for key in old if old[key] != new[key]}


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= {f"{key}.{name}": part for name, part in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def in_words(changes: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{key} {old!r} -> {new!r}" for key, (old, new) in changes.items())


class Watch:
    """The recipe in a run's folder, which somebody may edit while the run goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = self._stamp()

    def _stamp(self) -> tuple[int, int]:
        try:
            facts = self.path.stat()
        except OSError:  # gone, or just being replaced
            return 0, 0
        return facts.st_mtime_ns, facts.st_size

    def look(self, recipe: Recipe, check: Callable[[Recipe], None]) -> Recipe | None:
        """The recipe that holds from now on, if the file has changed and all that changed may; what happens is said.

        `check` raises an error of ours if a recipe is none to train with.
        """
        stamp = self._stamp()
        if stamp in (self._seen, (0, 0)):
            return None
        self._seen = stamp
        try:
            found = config.load(self.path).resolved()
        except RecipeError as error:
            console.warn(f"{' '.join(str(error).split())}; training goes on with the recipe it has")
            return None
        changes = differences(recipe, found)
        fixed = {key: change for key, change in changes.items() if key not in LIVE}
        if fixed:
            console.warn(f"{self.path}: {in_words(fixed)} needs a new start; nothing of the file was taken")
            return None
        if not changes:
            return None
        try:
            check(found)
        except FaceswapError as error:
            console.warn(f"{self.path}: {error}; nothing of the file was taken")
            return None
        console.say(f"{self.path}: {in_words(changes)}")
        return found


@dataclass(frozen=True)
class Status:
    """How a run stands, by what it wrote. None: not known (yet)."""

    run: Path
    running: bool
    people: list[str]
    images: int  # face images trained on
    minutes: float  # of training, over all sessions
    share: float  # of the budget; 0 if the end is not known
    faces_per_second: float | None
    seconds_left: float | None
    rate: float | None  # learning rate
    gradient: float | None  # norm
    memory_gb: float | None
    losses: dict[str, float]
    held_out: dict[str, float]  # loss and PSNR per person
    best: float | None  # lowest held-out loss, mean of all people
    measurements_without_gain: int
    footage: dict[str, str]  # of each person, the files that faces come from
    consent: str  # what was noted of it
    saved_images: int  # where the newest state stands
    saved_seconds_ago: float


def status(run: Path, lines: Sequence[Mapping[str, Any]] | None = None) -> Status:
    """How a run stands, from the lines of metrics.jsonl (None: as they are now) and the header of the newest state; it
    may go on meanwhile."""
    head, saved = _newest(run)
    logged: dict[str, Any] = {}
    progress = head.progress
    best = progress.best
    for line in monitor.read(run) if lines is None else lines:
        if "train/loss" in line:  # losses that were turned off since then are of no interest
            logged = {name: value for name, value in logged.items() if not name.startswith("train/")}
        logged |= line
        losses = [value for name, value in line.items() if name.startswith("held_out/") and name.endswith("/loss")]
        if losses and line["images"] > progress.images:  # measured since the last save
            best = min(best, sum(losses) / len(losses))
    images, seconds = int(logged.get("images", 0)), float(logged.get("seconds", 0.0))
    if progress.images > images:
        images, seconds = progress.images, progress.seconds
    now = Progress(images, seconds=seconds, plateau=progress.plateau)

    def part(prefix: str) -> dict[str, float]:
        return {name.removeprefix(prefix): value for name, value in logged.items() if name.startswith(prefix)}

    trained = part("train/")
    gradient = trained.pop("gradient", None)
    speed = part("speed/")
    return Status(
        run=run,
        running=monitor.is_written(run),
        people=head.subjects,
        images=images,
        minutes=seconds / 60,
        share=min(share(now, head.recipe), 1.0),
        faces_per_second=speed.get("faces_per_second"),
        seconds_left=speed.get("seconds_left"),
        rate=logged.get("rate"),
        gradient=gradient,
        memory_gb=speed.get("memory_gb"),
        losses=trained,
        held_out=part("held_out/"),
        best=best if math.isfinite(best) else None,
        measurements_without_gain=progress.stale,
        footage=head.footage,
        consent=head.consent,
        saved_images=progress.images,
        saved_seconds_ago=max(0.0, time.time() - saved),
    )


def _newest(run: Path) -> tuple[checkpoint.State, float]:
    """The newest state that is whole, without its tensors, and when it was written."""
    for path in checkpoint.states(run):
        try:
            return checkpoint.read_header(path), path.stat().st_mtime
        except (CheckpointError, OSError):  # damaged, or gone: a run that goes on removes its oldest
            continue
    raise CheckpointError(f"{run}: expected the folder of a run, found no state in it; name the -o of a training")
