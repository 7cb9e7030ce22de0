"""What to set before a long run: the learning rate and the batch, found by trying. Nothing is written."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric

from faceswap import checkpoint, console, devices, memory, strategies
from faceswap.batches import batches, split
from faceswap.beginning import find_origin, with_strategy
from faceswap.config import Recipe
from faceswap.errors import CheckpointError, TrainingError, UsageError
from faceswap.faceset import open_all
from faceswap.models import ANYONE
from faceswap.train import Trainer

LOWEST, HIGHEST = 1e-6, 1.0  # rates that are tried
SMOOTH = 0.9  # share of the past in the smoothed loss
WARM = 5  # steps before the smoothed loss is believed
DIVERGED = 2.0  # times the lowest smoothed loss: further up all is lost
GROWN = 1.1  # times the lowest smoothed loss: here it has clearly begun to grow,
BELOW = 10  # and so many times below that is the suggestion

FULL = 0.8  # share of the free memory that a batch may need
STEPS = 3  # timed steps per batch, after one that warms up
WORTH = 1.05  # times the faces/s that a batch must win to be worth its memory
LARGEST = 4096  # faces


@dataclass(frozen=True)
class RateReport:
    """A range test: the smoothed loss at each rate."""

    run: Path
    images: int  # where the state stood that it began from
    rates: list[float]
    losses: list[float]
    suggestion: float
    now: float  # the rate of the run's recipe


def find_rate(
    run: Path,
    recipe: Recipe,  # laid over the run's
    *,
    device: str = "auto",
    steps: int = 100,
) -> RateReport:
    """Raise the learning rate step by step until the loss grows (Smith, arXiv 1506.01186), on a copy of a run's state.

    The suggestion is a tenth of the rate at which the smoothed loss lies 10 % above its lowest. `CheckpointError`
    without a state or facesets, `TrainingError` if no rate lowers the loss.
    """
    state = checkpoint.latest(run)
    if state is None:
        raise CheckpointError(f"{run}: expected the folder of a run, found no state; begin one with --images 1")
    folders = checkpoint.facesets(run)
    if not folders:
        raise CheckpointError(f"{run}: does not say which facesets it was trained on; continue it once")
    recipe = recipe.over(state.recipe).changed(train={"images": 1, "warmup": 0, "decay": 0.0, "devices": 1}).resolved()
    recipe = with_strategy(recipe, run, state)
    with _trainer(recipe, list(folders), run, device, state.people) as trainer:
        trainer.start(None, find_origin(recipe, run, state, None))
        trainer.restore(state)
        trainer.read({name: split(open_all(folders[name]), recipe.data.holdout) for name in folders})
        return _range_test(trainer, steps, state.recipe.train.rate)


def _range_test(trainer: Trainer, steps: int, now: float) -> RateReport:
    progress, recipe = trainer.progress, trainer.recipe
    images, average = progress.images, 0.0
    progress.rate_scale = 1.0
    rates: list[float] = []
    losses: list[float] = []
    speeds = [group["base_lr"] / recipe.train.rate for group in trainer.stepper.param_groups]
    coming = batches(trainer.faces, recipe.data, recipe.seed, images, trainer.fabric.device)
    for step, batch in enumerate(console.track(coming, "trying rates", steps, "steps")):
        if step == steps:
            break
        rate = LOWEST * (HIGHEST / LOWEST) ** (step / max(steps - 1, 1))
        for group, times in zip(trainer.stepper.param_groups, speeds, strict=True):
            group["base_lr"] = rate * times
        loss = trainer.step(batch)["loss"]
        if not math.isfinite(loss):
            break
        average = SMOOTH * average + (1 - SMOOTH) * loss
        rates.append(rate)
        losses.append(average / (1 - SMOOTH ** (step + 1)))
        if losses[-1] > DIVERGED * min(losses):
            break
    settled = range(WARM, len(losses))  # a mean of fewer losses says little
    best = min(settled, key=losses.__getitem__, default=0)
    edge = next((i for i in range(best, len(losses)) if losses[i] > GROWN * losses[best]), len(losses) - 1)
    if best <= WARM:
        raise TrainingError(f"{trainer.run}: no rate above {LOWEST:g} lowers the loss; is there something to learn?")
    return RateReport(trainer.run, images, rates, losses, float(f"{rates[edge] / BELOW:.2g}"), now)


@dataclass(frozen=True)
class BatchRow:
    batch: int  # faces
    memory_gb: float  # estimated
    faces_per_second: float


@dataclass(frozen=True)
class BatchReport:
    """Batches that were tried, each twice the last."""

    device: str
    free_gb: float | None
    rows: list[BatchRow]
    suggestion: int  # the smallest that is nearly as fast as the fastest
    largest: int  # that was tried and fits
    stopped: str  # why


def find_batch(recipe: Recipe, *, people: int = 2, device: str = "auto") -> BatchReport:
    """Double the batch as long as that makes training faster and memory suffices, on noise; it ends before memory does.

    A batch is not tried if its estimate exceeds 80 % of the free memory. `UsageError` if not even the smallest fits.
    """
    step = people * recipe.train.accumulate
    recipe = recipe.changed(data={"batch": step}, train={"images": 1, "devices": 1}).resolved()
    rows: list[BatchRow] = []
    names = ["source", "target"] if people == 2 else [ANYONE]
    strategy = strategies.build(recipe.strategy.name, rate=recipe.train.rate, recipe=recipe.strategy)
    known = [*names, ANYONE] if strategy.needs_base else names
    with _trainer(recipe, names, Path(), device, known) as trainer:
        trainer.start(None, None)
        estimate, place = trainer.estimate(), trainer.fabric.device
        held = memory.Need(estimate.weights, 0, 0, estimate.weights, 0).total  # there already
        free, stopped = memory.free(place), f"{LARGEST} faces are the most that are tried"
        while step <= LARGEST:
            need = estimate.at(step // recipe.train.accumulate).total
            if free is not None and need - held > FULL * free:
                stopped = f"{step} faces would need {need / memory.GB:.2f} GB, of {free / memory.GB:.2f} GB free"
                break
            try:
                rate = _faces_per_second(trainer, step)
            except torch.OutOfMemoryError:
                stopped = f"{step} faces ran out of memory"
                break
            console.say(f"batch {step}: {need / memory.GB:.2f} GB, {rate:.1f} faces/s")
            rows.append(BatchRow(step, need / memory.GB, rate))
            if len(rows) > 2 and rate < WORTH * max(row.faces_per_second for row in rows[:-2]):
                stopped = "two doublings made it no faster"
                break
            step *= 2
    if not rows:
        raise UsageError(f"no batch fits: {stopped}; {memory.remedies(recipe)}")
    fastest = max(row.faces_per_second for row in rows)
    good = next(row.batch for row in rows if row.faces_per_second * WORTH >= fastest)
    return BatchReport(str(place), None if free is None else free / memory.GB, rows, good, rows[-1].batch, stopped)


def _faces_per_second(trainer: Trainer, faces: int) -> float:
    batch = trainer.blank(faces)
    trainer.step(batch)
    started = time.monotonic()
    for _ in range(STEPS):
        trainer.step(batch)  # which waits for the device
    return STEPS * faces / (time.monotonic() - started)


@contextmanager
def _trainer(
    recipe: Recipe, people: list[str], run: Path, device: str, known: list[str] | None = None
) -> Iterator[Trainer]:
    """A trainer of one process that is never saved."""
    fabric = Fabric(**devices.fabric_options(device, 1, recipe.train.precision))
    with memory.exhausted(fabric.device, recipe):
        yield Trainer(fabric, recipe, people, run, known)
