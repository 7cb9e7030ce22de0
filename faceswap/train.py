"""The loop. Progress is counted in face images; what a step does is a function of the recipe and of progress."""

import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from faceswap import checkpoint, console, files, losses, models, strategies
from faceswap.batches import Batch, Faces, batches, split, still
from faceswap.checkpoint import Progress, State
from faceswap.config import Recipe
from faceswap.devices import fabric_options
from faceswap.errors import CheckpointError, RecipeError, TrainingError
from faceswap.faceset import Entry, open_all
from faceswap.models import FaceModel
from faceswap.monitor import Monitor, sheet

PREVIEW_FACES = 6  # rows of the preview
MEASURED_FACES = 64  # held-out faces per person that a measurement looks at
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces the precision

SETBACKS = 3  # in a row, before training gives up


@dataclass(frozen=True)
class Report:
    """How a training ended."""

    run: Path
    images: int
    seconds: float  # of training, over all sessions
    faces_per_second: float  # of this session; 0 if there was nothing left to do
    held_out: dict[str, float]  # the last measurement
    reason: str  # "budget" or "interrupted"


def train(
    recipe: Recipe,
    people: Mapping[str, Sequence[Path]],  # name -> facesets; a base has one, a pair source and target
    run: Path,
    *,
    device: str = "auto",
    base: Path | None = None,  # a run or file that knows one person, where a new run starts
    overwrite: bool = False,  # throw away what is in `run`, else continue it
) -> Report:
    """Train a model on facesets, or go on where the run was interrupted.

    `RecipeError` without a budget, `FacesetError` for unusable facesets, `CheckpointError` if `run` or `base` is of
    another architecture, `TrainingError` if the losses stay not finite or memory runs out.
    """
    recipe = recipe.resolved()
    check_recipe(recipe, len(people))
    entries = {name: split(open_all(folders), recipe.data.holdout) for name, folders in people.items()}
    check_folder(run, overwrite)
    state = None if overwrite else checkpoint.latest(run)
    origin = open_base(base, recipe) if base is not None and state is None else None
    if base is not None and state is not None:
        console.say(f"{run}: goes on from its own weights, {base} is not needed")
    fabric = Fabric(**fabric_options(device, recipe.train.devices, recipe.train.precision))
    fabric.launch()
    try:
        trainer = Trainer(fabric, recipe, list(people), run)
        trainer.facesets = {name: [_from(run, folder) for folder in folders] for name, folders in people.items()}
        trainer.footage = {name: footage([*kept, *held]) for name, (kept, held) in entries.items()}
        trainer.start(state, origin)
        trainer.read(entries)
        try:
            return trainer.loop()
        finally:
            if trainer.monitor is not None:
                trainer.monitor.close()
    except torch.OutOfMemoryError:
        raise TrainingError(
            f"out of memory on {fabric.device}: lower data.batch (now {recipe.data.batch}), model.resolution "
            f"({recipe.model.resolution}) or model.width ({recipe.model.width})"
        ) from None


def check_recipe(recipe: Recipe, people: int) -> None:
    """`UsageError` if a training with this recipe could not even begin."""
    if not (recipe.train.images or recipe.train.minutes):
        raise RecipeError("no budget: give --minutes M or --images N (train.minutes, train.images)")
    step = people * recipe.train.devices
    if recipe.data.batch % step:
        raise RecipeError(f"data.batch = {recipe.data.batch}: expected a multiple of {step} (people x devices)")
    weights = recipe.loss.model_dump(exclude={"background"})
    if not any(weights.values()):
        raise RecipeError(f"every loss has the weight 0; set one of loss.{', loss.'.join(weights)} above it")
    models.load(recipe.model.name)
    strategies.SOCKET.load(recipe.strategy.name)


def _from(run: Path, folder: Path) -> str:
    """A faceset as the run names it: relative if it lies beside the run."""
    run, folder = run.resolve(), folder.resolve()
    return f"../{folder.relative_to(run.parent)}" if folder.is_relative_to(run.parent) else str(folder)


def footage(entries: Sequence[Entry]) -> str:
    """The files that faces come from, in words."""
    names = sorted({entry.meta.source for entry in entries})
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def open_base(base: Path, recipe: Recipe) -> State:
    """A base that fits the recipe; `CheckpointError` with the remedy if it does not."""
    origin = checkpoint.read(checkpoint.find(base))
    if len(origin.people) > 1:
        known = ", ".join(origin.people)
        raise CheckpointError(f"{base}: knows {known}; expected a base of faceswap pretrain, which knows one person")
    difference = checkpoint.same_architecture(recipe, origin.recipe, origin.people, origin.people)
    if difference:
        shape = " ".join(f"--set model.{key}={value}" for key, value in origin.recipe.model.model_dump().items())
        raise CheckpointError(f"{base}: {difference}; use another base, or its shape: {shape}")
    return origin


class Trainer:
    """A run in memory: model, average, optimizer and progress, and the loop over them."""

    def __init__(self, fabric: Fabric, recipe: Recipe, people: list[str], run: Path) -> None:
        self.fabric, self.recipe, self.people, self.run = fabric, recipe, people, run
        self.progress = Progress()
        self.held_out: dict[str, float] = {}
        self.monitor: Monitor | None = None  # of the first process alone
        self.footage: dict[str, str] = {}
        self.facesets: dict[str, list[str]] = {}
        torch.manual_seed(recipe.seed)
        self.raw: FaceModel = checkpoint.new_model(recipe, len(people))
        weights = sum(weight.numel() for weight in self.raw.parameters())
        console.detail(f"{recipe.model.name}: {weights / 1e6:.2f} M weights on {fabric.device}")
        self.strategy = strategies.build(recipe.strategy.name, rate=recipe.train.rate)

    def start(self, state: State | None, base: State | None) -> None:
        """Take the weights of the run's last state, or else of the base, or else the fresh ones."""
        if base is not None:
            self.raw.load_base(base.part("ema"))
            console.say(f"starting from a base of {base.progress.images} images")
        groups = self.strategy.prepare(self.raw)
        for group in groups:
            group["base_lr"] = group["lr"]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=self.recipe.train.weight_decay, betas=(0.9, 0.99))
        self.average = self.fabric.to_device(deepcopy(self.raw)).eval().requires_grad_(False)
        wrapped = self.fabric.setup(self.raw, self.optimizer)
        self.model, self.stepper = wrapped
        if state is not None:
            difference = checkpoint.same_architecture(self.recipe, state.recipe, self.people, state.people)
            if difference:
                raise CheckpointError(
                    f"{self.run}: {difference}; use its recipe, or another run folder (-o; of swap: --work)"
                )
            if state.recipe.data.holdout != self.recipe.data.holdout:
                raise CheckpointError(
                    f"{self.run}: holds {state.recipe.data.holdout:g} of the faces out of training, not "
                    f"{self.recipe.data.holdout:g}, and faces once trained on stay so; keep data.holdout, or use "
                    "another run folder (-o; of swap: --work)"
                )
            self.restore(state)
            for name, before in state.footage.items():
                if (now := self.footage[name]) != before:
                    console.warn(f"{self.run}: the {name} now comes from {now}, so far it came from {before}")
            console.say(f"{self.run}: continuing at {self.progress.images} images")

    def read(self, people: Mapping[str, tuple[list[Entry], list[Entry]]]) -> None:
        """Read the images to train on and those held out."""
        size, memory = self.recipe.model.resolution, self.recipe.data.memory_gb * 2**30 / len(people)
        self.faces, self.held = [], []
        for name, (kept, held) in people.items():
            self.faces.append(Faces(kept, size, memory, name))
            self.held.append(Faces(held[:MEASURED_FACES], size, memory, f"{name}, held out"))

    def loop(self) -> Report:
        """Train until the budget is used or somebody asks to stop; the last state is always saved."""
        train, progress = self.recipe.train, self.progress
        self._saved, first, began = time.monotonic(), progress.images, progress.seconds
        if self.fabric.is_global_zero:
            clear_folder(self.run, everything=not progress.steps)
            notes = {"recipe.toml": self.recipe.to_toml(), checkpoint.FACESETS: json.dumps(self.facesets, indent=1)}
            for name, text in notes.items():
                with files.whole_file(self.run / name, overwrite=True) as partial:
                    partial.write_text(text)
            self.monitor = Monitor(self.run, progress.images)
        if not progress.steps:
            self.save()  # somewhere to go back to
        label = "training" if len(self.people) > 1 else "pretraining"
        stopped = False
        with console.Meter(label, train.images or None, "images") as meter, interrupts() as asked:
            meter.start_at(progress.images)
            while not self.done() and not stopped:
                for values in self.session():
                    if not train.images and self.progress.seconds:
                        meter.total = self.progress.images * 60 * train.minutes / self.progress.seconds
                    meter.note = f"loss {values['loss']:.4f}"
                    meter.advance(self.progress.images - meter.done)
                    stopped = self._agree(asked())
                    if stopped or self.done():
                        break
        if not stopped:
            self.measure()
        self.save()
        seconds = self.progress.seconds - began
        rate = (self.progress.images - first) / seconds if seconds else 0.0
        if not self.fabric.is_global_zero:
            raise SystemExit(0)  # Fabric started this process to train beside the first, which goes on alone
        reason = "interrupted" if stopped else "budget"
        return Report(self.run, self.progress.images, self.progress.seconds, rate, self.held_out, reason)

    def session(self) -> Iterator[dict[str, float]]:
        """Steps from where progress stands, until a setback; gives the losses now and then."""
        data, progress, fabric = self.recipe.data, self.progress, self.fabric
        here = (fabric.global_rank, fabric.world_size)
        started = time.monotonic()
        for batch in batches(self.faces, data, self.recipe.seed, progress.images, fabric.device, *here):
            before, found = progress.images, self.step(batch)
            bad = [name for name, value in found.items() if not math.isfinite(value)]
            if self._agree(bool(bad)):
                self.set_back(bad or ["a loss of another process"])
                return
            progress.images += len(batch.person) * fabric.world_size
            progress.steps += 1
            progress.seconds += self._common(time.monotonic() - started)
            self._now_and_then(before, found)
            yield found
            started = time.monotonic()

    def step(self, batch: Batch) -> dict[str, float]:
        """One optimizer step; gives the losses, their sum `loss` and the gradient's norm `gradient`.

        If the gradient is not finite nothing is changed.
        """
        rate = self.recipe.train
        factor = schedule(self.progress, self.recipe) * self.progress.rate_scale
        for group in self.stepper.param_groups:
            group["lr"] = group["base_lr"] * factor
        found = self.strategy.losses(self.model, batch, self.recipe.loss.model_dump())
        total = torch.stack(list(found.values())).sum()
        found = {"loss": total, **found}
        self.stepper.zero_grad()
        if bool(torch.isfinite(total)) or self.fabric.world_size > 1:  # DDP: all ranks must meet in backward
            self.fabric.backward(total)
            norm = nn.utils.clip_grad_norm_(self.raw.parameters(), rate.clip or math.inf)
            found["gradient"] = norm
            if bool(torch.isfinite(norm)):
                self.stepper.step()
                self._average()
        return {name: float(value.detach()) for name, value in found.items()}

    @torch.no_grad()
    def _average(self) -> None:
        steps = self.progress.steps
        decay = min(self.recipe.train.ema, (1 + steps) / (10 + steps))
        averaged: list[Tensor] = list(self.average.parameters())
        current: list[Tensor] = list(self.raw.parameters())
        torch._foreach_lerp_(averaged, current, 1 - decay)

    def _now_and_then(self, before: int, found: Mapping[str, float]) -> None:
        train, images = self.recipe.train, self.progress.images

        def passed(every: int) -> bool:
            return bool(every) and before // every != images // every

        if passed(train.log_images) and self.monitor is not None:
            values = {f"train/{name}": value for name, value in found.items()}
            values |= {"rate": self.stepper.param_groups[0]["lr"], "seconds": self.progress.seconds}
            self.monitor.scalars(images, values)
        if passed(train.preview_images):
            self.measure()
        if passed(train.save_images) or self._agree(time.monotonic() - self._saved > 60 * train.save_minutes):
            self.save()

    def _common(self, value: float) -> float:
        """The mean of a number over all processes: what hangs on it must be the same for all."""
        if self.fabric.world_size == 1:
            return value
        mine = torch.tensor(value, dtype=torch.float32, device=self.fabric.device)
        return float(cast(Tensor, self.fabric.all_reduce(mine, reduce_op="mean")))

    def _agree(self, wish: bool) -> bool:
        """Whether any process wishes so: all must save and stop at the same step."""
        return self._common(float(wish)) > 0

    def done(self) -> bool:
        train = self.recipe.train
        return (0 < train.images <= self.progress.images) or self._agree(
            0 < 60 * train.minutes <= self.progress.seconds
        )

    @torch.no_grad()
    def measure(self) -> None:
        """Held-out loss and PSNR of the averaged weights, a preview, and the best weights kept."""
        if self.monitor is None:
            return
        values: dict[str, float] = {}
        for index, (name, faces) in enumerate(zip(self.people, self.held, strict=True)):
            found = [self._measured(still(faces, [row], index, self.fabric.device)) for row in range(len(faces))]
            values[f"held_out/{name}/loss"], values[f"held_out/{name}/psnr"] = np.mean(found, 0).tolist()
        self.held_out = values
        images = self.progress.images
        console.detail(f"at {images} images " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        self.monitor.scalars(images, values)
        self.monitor.preview(images, self.preview())
        loss = sum(v for n, v in values.items() if n.endswith("loss")) / len(self.people)
        if loss < self.progress.best:
            self.progress.best = loss
            checkpoint.write(self.run / "best.safetensors", self.state(averaged_only=True))

    def _measured(self, batch: Batch) -> tuple[float, float]:
        """Mean loss and PSNR (dB, inside the face) of a batch drawn by the averaged weights."""
        drawn, mask = self.average(batch.input, batch.person)
        weights = self.recipe.loss.model_dump()
        found = losses.reconstruction(drawn, mask, batch.target, batch.mask, batch.priority, weights)
        total = torch.stack(list(found.values())).sum(0)
        return float(total.mean()), float(losses.psnr(drawn, batch.target, batch.mask).mean())

    def preview(self) -> NDArray[np.uint8]:
        """The sheet (H, W, 3) uint8 RGB of the same held-out faces: each person, drawn as itself, target as source."""
        columns: list[Tensor] = []
        titles: list[str] = []
        rows = min(PREVIEW_FACES, *(len(faces) for faces in self.held))
        for index, (name, faces) in enumerate(zip(self.people, self.held, strict=True)):
            batch = still(faces, range(rows), index, self.fabric.device)
            columns += [batch.input, self.average(batch.input, batch.person)[0]]
            titles += [name, f"{name} as {name}"]
        if len(self.people) == 2:
            columns.append(self.average(columns[2], torch.zeros_like(batch.person))[0])
            titles.append("target as source")
        return sheet(columns, titles)

    def set_back(self, bad: Sequence[str]) -> None:
        """Go back to the last state with half the rate; `TrainingError` after `SETBACKS` in a row."""
        progress, names = self.progress, ", ".join(bad)
        setbacks = progress.setbacks + 1
        at, scale = progress.images, progress.rate_scale / 2
        if setbacks > SETBACKS:
            raise TrainingError(
                f"{self.run}: {names} not finite {setbacks} times near {at} images; the last good state is kept: "
                f"lower train.rate (now {self.recipe.train.rate:g}) or look for damaged faces"
            )
        state = checkpoint.latest(self.run)
        assert state is not None  # the loop begins with a save
        self.restore(state)
        if self.monitor is not None:
            self.monitor.close()
            self.monitor = Monitor(self.run, self.progress.images)
        self.progress.rate_scale, self.progress.setbacks = scale, setbacks
        console.warn(
            f"{names} not finite at {at} images: back to {self.progress.images}, rate at {scale:g} of the recipe's"
        )

    def state(self, *, averaged_only: bool = False) -> State:
        tensors = {f"ema.{name}": tensor for name, tensor in self.average.state_dict().items()}
        if not averaged_only:
            tensors |= {f"model.{name}": tensor for name, tensor in self.raw.state_dict().items()}
            tensors |= checkpoint.pack_optimizer(self.optimizer)
            tensors["random.cpu"] = torch.get_rng_state()
            if self.fabric.device.type == "cuda":
                tensors["random.cuda"] = torch.cuda.get_rng_state(self.fabric.device)
        return State(self.recipe, self.people, tensors, self.progress, self.footage)

    def restore(self, state: State) -> None:
        """Become exactly what was saved."""
        checkpoint.fit(self.raw, state.part("model"), str(self.run))
        checkpoint.fit(self.average, state.part("ema"), str(self.run))
        checkpoint.unpack_optimizer(self.optimizer, state.part("optimizer"))
        random = state.part("random")
        torch.set_rng_state(random["cpu"])
        if "cuda" in random and self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"], self.fabric.device)
        self.progress = state.progress

    def save(self) -> None:
        self.progress.setbacks = 0  # what is saved is sound
        if self.fabric.is_global_zero:
            checkpoint.save(self.run, self.state(), self.recipe.train.keep)
            console.detail(f"saved at {self.progress.images} images")
        self._saved = time.monotonic()
        self.fabric.barrier()


def schedule(progress: Progress, recipe: Recipe) -> float:
    """The learning rate in units of the recipe's: linear warm-up, then constant, then a cosine to a hundredth."""
    train = recipe.train
    done = progress.images / train.images if train.images else 0.0
    if train.minutes:
        done = max(done, progress.seconds / (60 * train.minutes))
    factor = min(1.0, (progress.images + recipe.data.batch) / train.warmup) if train.warmup else 1.0
    if train.decay and done > 1 - train.decay:
        through = min(1.0, (done - (1 - train.decay)) / train.decay)
        factor *= 0.01 + 0.99 * (1 + math.cos(math.pi * through)) / 2
    return factor


def _ours(run: Path) -> list[Path]:
    """What a run consists of, as far as it is there."""
    names = ["recipe.toml", checkpoint.FACESETS, "metrics.jsonl", "best.safetensors", "evaluation.html", "truth.html"]
    names += ["events.out.tfevents.*", "previews/latest.png"]
    found = [path for name in names for path in run.glob(name)]
    return [*found, *run.glob("previews/" + "[0-9]" * 9 + ".png"), *checkpoint.states(run)]


def check_folder(run: Path, overwrite: bool) -> None:
    """`CheckpointError` if `run` is neither a run nor empty, or holds weights but no state to go on from."""
    if run.exists() and not run.is_dir():
        raise CheckpointError(f"{run}: a file; expected a folder for the run; choose another -o")
    known = _ours(run)
    if run / "best.safetensors" in known and not checkpoint.states(run) and not overwrite:
        raise CheckpointError(
            f"{run}: holds best.safetensors but no state to go on from; choose another -o, or add --overwrite"
        )
    for path in run.iterdir() if run.is_dir() and not checkpoint.states(run) else ():
        if path not in known and path.name != "previews" and path.name[0] != ".":
            raise CheckpointError(f"{run}: expected a run or an empty folder, found {path.name}; choose another -o")


def clear_folder(run: Path, everything: bool) -> None:
    """Make the folder of a run; remove what killed processes left in it, or all of an older run."""
    run.mkdir(parents=True, exist_ok=True)
    files.sweep_inside(run)
    for path in _ours(run) if everything else ():
        path.unlink()


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM become a wish that the loop reads between two steps; a second Ctrl-C stops at once."""
    wishes: list[int] = []

    def wish(number: int, _: object) -> None:
        if wishes and number == signal.SIGINT:
            raise KeyboardInterrupt
        wishes.append(number)
        console.say("stopping after this step; Ctrl-C again to stop at once")

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    old = {number: signal.signal(number, wish) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(wishes)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
