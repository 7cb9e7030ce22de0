"""The loop. Progress is counted in face images; what a step does is a function of the recipe and of progress."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from faceswap import (
    adapters,
    align,
    checkpoint,
    console,
    devices,
    files,
    losses,
    memory,
    models,
    monitor,
    steering,
    strategies,
)
from faceswap.batches import Batch, Faces, batches, split, still
from faceswap.beginning import Origin, check_strategy, find_origin, known, relative, with_strategy
from faceswap.checkpoint import Progress, State
from faceswap.config import Recipe
from faceswap.errors import CheckpointError, RecipeError, TrainingError
from faceswap.faceset import Entry, open_all
from faceswap.interrupts import interrupts
from faceswap.models import ANYONE, FaceModel
from faceswap.monitor import Monitor, sheet

PREVIEW_FACES = 6  # rows of the preview
MEASURED_FACES = 64  # held-out faces per person that a measurement looks at
MOST_BEYOND = 0.1  # of their side may a model's crop reach beyond the images of a faceset
SETBACKS = 3  # in a row, before training gives up
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces the precision


@dataclass(frozen=True)
class Report:
    """How a training ended."""

    run: Path
    images: int
    seconds: float  # of training, over all sessions
    faces_per_second: float  # of this session; 0 if there was nothing left to do
    held_out: dict[str, float]  # the last measurement
    reason: str  # "budget", "plateau" or "interrupted"
    damage: dict[str, Any] | None = None  # what became of the base, see `faceswap.damage`, where it was measured


def train(
    recipe: Recipe,
    people: Mapping[str, Sequence[Path]],  # name -> facesets; a base has one, a pair source and target
    run: Path,
    *,
    device: str = "auto",
    base: Path | None = None,  # a run or file that knows `models.ANYONE`, where a new run starts
    generic: Sequence[Path] = (),  # facesets of anyone, for strategies that have a use for them
    overwrite: bool = False,  # throw away what is in `run`, else continue it
    consent: str | None = None,  # a note of the people's consent, kept in every weight file; None: as it was
) -> Report:
    """Train a model on facesets, or go on where the run was interrupted.

    `RecipeError` without a budget, `FacesetError` for unusable facesets, `CheckpointError` if `run` or `base` is of
    another architecture or another process trains it, `TrainingError` if the losses stay not finite or memory is short.
    """
    state = None if overwrite else checkpoint.latest(run)
    recipe = with_strategy(recipe, run, state)
    recipe = devices.counted(recipe.resolved(from_base=(base if state is None else state.base) is not None))
    people = dict(people) | ({ANYONE: generic} if generic else {})
    check_recipe(recipe, min(len(people), 2))
    check_strategy(recipe, people, state, base, generic)
    entries = {name: split(open_all(folders), recipe.data.holdout) for name, folders in people.items()}
    checkpoint.check_folder(run, overwrite)
    check_alone(run)
    origin = find_origin(recipe, run, state, base)
    fabric = Fabric(**devices.fabric_options(device, recipe.train.devices, recipe.train.precision))
    fabric.launch()
    with memory.exhausted(fabric.device, recipe):
        trainer = Trainer(fabric, recipe, list(people), run, known(people, origin, state))
        trainer.facesets = {name: [relative(run, folder) for folder in folders] for name, folders in people.items()}
        trainer.consent = consent if consent is not None else state.consent if state is not None else ""
        trainer.footage = {name: footage([*kept, *held]) for name, (kept, held) in entries.items()}
        trainer.start(state, origin)
        trainer.read(entries)
        if state is None and origin is not None:
            trainer.begin()
        if state is not None and trainer.consent != state.consent and fabric.is_global_zero:
            checkpoint.note_consent(run, trainer.consent)
        try:
            return trainer.loop()
        finally:
            if trainer.monitor is not None:
                trainer.monitor.close()


def check_recipe(recipe: Recipe, people: int) -> None:
    """`UsageError` if a training with this recipe could not even begin."""
    train, loss = recipe.train, recipe.loss.model_dump()
    if not steering.has_budget(recipe):
        raise RecipeError("no budget: give --minutes M or --images N (train.minutes, train.images), or --until-plateau")
    if recipe.strategy.name == "lp-ft" and not (train.images or train.minutes):
        raise RecipeError("strategy lp-ft: strategy.first is a part of the budget; give --minutes M or --images N")
    if train.until_plateau and train.decay == 1:
        raise RecipeError("train.decay = 1 with train.until_plateau: the rate falls after a plateau; set it below 1")
    step = min(people, 2) * train.devices * train.accumulate
    if recipe.data.sampling == "person":
        step *= 2
    if recipe.data.batch % step:
        twice = ", twice as data.sampling = 'person'" if recipe.data.sampling == "person" else ""
        raise RecipeError(
            f"data.batch = {recipe.data.batch}: expected a multiple of {step} (people x devices x accumulate{twice})"
        )
    if not any(loss[name] for name in strategies.RECONSTRUCTION):
        names = ", loss.".join(strategies.RECONSTRUCTION)
        raise RecipeError(f"every loss has the weight 0; set one of loss.{names} above it")
    for name in ("swap_back", "true_face"):
        if loss[name] and people < 2:
            raise RecipeError(f"loss.{name} = {loss[name]:g}: needs two people, found {people}; set it to 0")
    if train.compile and loss["true_face"]:
        raise RecipeError("train.compile with loss.true_face: only the whole network is compiled; set one of them off")
    if train.cuda_graphs and not train.compile:
        raise RecipeError("train.cuda_graphs without train.compile: graphs are made of compiled kernels; set both")
    again = loss["swap_back"] or loss["adversarial"] or recipe.strategy.name == "prior"
    if train.cuda_graphs and (train.accumulate > 1 or again):
        raise RecipeError(
            "train.cuda_graphs: a graph overwrites what it gave last time, which train.accumulate, loss.swap_back, "
            "loss.adversarial and strategy prior still need; set it to false"
        )
    if (rim := align.beyond(recipe.model.crop)) > MOST_BEYOND:
        raise RecipeError(
            f"model.crop = {recipe.model.crop!r}: reaches {100 * rim:.0f} % beyond the images of a faceset, which do "
            "not show what lies there: such a model cannot be trained here, only merged with"
        )
    losses.check(loss)
    models.load(recipe.model.name)
    strategies.SOCKET.load(recipe.strategy.name)


def check_alone(run: Path) -> None:
    """`CheckpointError` if another process trains this run."""
    if monitor.is_written(run):
        raise CheckpointError(f"{run}: another process trains it; wait for its end, stop it, or choose another -o")


def footage(entries: Sequence[Entry]) -> str:
    """The files that faces come from, in words."""
    names = sorted({entry.meta.source for entry in entries})
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class Trainer:
    """A run in memory: model, average, optimizer and progress, and the loop over them."""

    def __init__(
        self,
        fabric: Fabric,
        recipe: Recipe,
        people: list[str],  # it trains on
        run: Path,
        known: list[str] | None = None,  # to the model; None: no others
    ) -> None:
        self.fabric, self.recipe, self.people, self.run = fabric, recipe, people, run
        self.known = known or people
        self.base: checkpoint.Base | None = None
        self.origin: dict[str, Tensor] = {}  # the base's weights, if they are needed, by the names of this model
        self.progress = Progress()
        self.held_out: dict[str, float] = {}
        self.monitor: Monitor | None = None  # of the first process alone
        self.watch: steering.Watch | None = None  # likewise
        self.footage: dict[str, str] = {}
        self.consent = ""
        self.facesets: dict[str, list[str]] = {}
        self.asked: Callable[[], bool] = lambda: False  # whether somebody wants training to stop
        torch.manual_seed(recipe.seed)
        self.raw: FaceModel = checkpoint.new_model(recipe, self.known)
        weights = sum(weight.numel() for weight in self.raw.parameters())
        console.detail(f"{recipe.model.name}: {weights / 1e6:.2f} M weights on {fabric.device}")
        self.strategy = strategies.build(recipe.strategy.name, rate=recipe.train.rate, recipe=recipe.strategy)

    def start(self, state: State | None, base: Origin | None) -> None:
        """Take the weights of the run's last state, or else of the base, or else the fresh ones."""
        train = self.recipe.train
        if base is not None:
            origin, self.base = base
            self.raw.load_base(origin.part("ema"))
            self.origin = {name: weight.clone() for name, weight in self.raw.state_dict().items()}
            if state is None:
                console.say(f"starting from {self.base.name}, a base of {origin.progress.images} images")
        elif state is not None:
            self.base = state.base
        self.fabric.to_device(self.raw).to(memory_format=torch.channels_last)
        groups = self.strategy.prepare(self.raw, len(self.people))
        trained = {name for name, weight in self.raw.named_parameters() if weight.requires_grad}
        self.trained = set(adapters.plain(dict.fromkeys(trained, torch.empty(0))))
        for group in groups:
            group["base_lr"] = group["lr"]
        self.average = deepcopy(self.raw).eval().requires_grad_(False)
        if train.checkpointing:
            console.detail(f"{memory.checkpointed(self.raw)} stages compute their activations again on the way back")
        self.need, processes = self.estimate().at(self.faces_at_once), devices.on_this_host(train.devices)
        memory.check(self.need, processes if self.fabric.device.type == "cpu" else 1, self.fabric.device, self.recipe)
        fused = self.fabric.device.type in ("cuda", "cpu")  # a quarter of the time on both
        self.optimizer = torch.optim.AdamW(groups, weight_decay=train.weight_decay, betas=(0.9, 0.99), fused=fused)
        model: nn.Module = self.raw
        if train.compile:
            model = cast(nn.Module, torch.compile(model, mode="reduce-overhead" if train.cuda_graphs else "default"))
        self.model, self.stepper = self.fabric.setup(model, self.optimizer)
        self.model.mark_forward_method("code")
        if state is not None:
            self._go_on(state)
        if self.fabric.broadcast(self.progress.images) != self.progress.images:
            raise CheckpointError(f"{self.run}: not the same on all hosts; it must lie where all of them see it")

    def _go_on(self, state: State) -> None:
        """Take a state of this run, if it is of our kind; what is not as it was is said."""
        difference = checkpoint.same_architecture(self.recipe, state.recipe, self.known, state.people)
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
        changes = steering.differences(state.recipe, self.recipe)
        changed = {key: change for key, change in changes.items() if key in steering.LIVE - steering.LIMITS}
        if changed:
            console.say(f"{self.run}: not as it was saved: {steering.in_words(changed)}")
        if self.recipe.loss != state.recipe.loss:
            steering.forget(self.progress)
        console.say(f"{self.run}: continuing at {self.progress.images} images")

    @property
    def faces_at_once(self) -> int:
        """Faces that go through the model together in one process."""
        per_person = self.recipe.data.batch // min(len(self.people), 2)
        return per_person * len(self.people) // (self.recipe.train.devices * self.recipe.train.accumulate)

    def estimate(self) -> memory.Estimate:
        """What this training needs; nothing of it changes."""
        weights = self._oppose(self.recipe.loss.model_dump())

        def step(faces: int) -> None:
            with self.fabric.autocast(), torch.random.fork_rng(self._cards()):
                found = self.strategy.losses(self.raw, self.blank(faces), weights)
            torch.stack(list(found.values())).sum().backward()  # type: ignore[no-untyped-call]
            self.strategy.forget()

        copies = 2 if self.fabric.world_size > 1 else 1
        return memory.Estimate(self.raw, step, len(self.people), copies)

    def _cards(self) -> list[torch.device]:
        return [self.fabric.device] if self.fabric.device.type == "cuda" else []

    def blank(self, faces: int) -> Batch:
        """A batch of noise, as many of every person."""
        side, place = self.recipe.model.resolution, self.fabric.device
        noise = torch.rand(faces, 4, side, side, generator=torch.Generator().manual_seed(0)).to(place)
        noise = noise.contiguous(memory_format=torch.channels_last)
        person = torch.arange(len(self.people), device=place).repeat_interleave(faces // len(self.people))
        return Batch(noise[:, :3], noise[:, :3], noise[:, :3], noise[:, 3:], torch.zeros_like(noise[:, 3:]), person)

    def read(self, people: Mapping[str, tuple[list[Entry], list[Entry]]]) -> None:
        """Read the images to train on and those held out."""
        size, room = self.recipe.model.resolution, self.recipe.data.memory_gb * 2**30 / len(people)
        crop = self.recipe.model.crop
        if rim := align.beyond(crop):
            console.warn(
                f"model.crop = {crop!r} reaches {100 * rim:.0f} % beyond the images; their edge is repeated there"
            )
        self.faces, self.held = [], []
        for name, (kept, held) in people.items():
            self.faces.append(Faces(kept, size, room, name, crop))
            self.held.append(Faces(held[:MEASURED_FACES], size, room, f"{name}, held out", crop))

    @torch.no_grad()
    def begin(self) -> None:
        """Begin as what the strategy makes of the base and of the people's photos."""
        photos = [self._photos(faces) for faces in self.faces[: len(self.people)]]
        self.strategy.begin(self.raw, photos)
        self.average.load_state_dict(self.raw.state_dict())

    def _photos(self, faces: Faces) -> Tensor:
        """Some faces (N, 3, R, R), evenly from all."""
        rows = np.unique(np.linspace(0, len(faces) - 1, MEASURED_FACES).round()).astype(np.int64).tolist()
        return still(faces, rows, 0, self.fabric.device).input

    def loop(self) -> Report:
        """Train until the budget is used or somebody asks to stop; the last state is always saved."""
        progress = self.progress
        first, began = progress.images, progress.seconds
        self._saved, self._logged = time.monotonic(), (first, began)
        if self.fabric.is_global_zero:
            self.open_folder()
        if not progress.steps:
            self.save()  # somewhere to go back to
        label = "training" if len(self.people) > 1 else "pretraining"
        stopped = False
        with console.Meter(label, self.recipe.train.images or None, "images") as meter, interrupts() as self.asked:
            meter.start_at(progress.images)
            if (
                progress.images // self.recipe.train.preview_images
                > progress.measured // self.recipe.train.preview_images
            ):
                self.measure()  # which was interrupted
            while not self.done() and not stopped:
                for values in self.session():
                    done = steering.share(self.progress, self.recipe)
                    meter.total = self.progress.images / done if done else None
                    meter.note = f"loss {values['loss']:.4f}"
                    try:
                        meter.advance(self.progress.images - meter.done)
                    except BaseException:  # whoever is told of the progress wants no more of it
                        self.save()
                        raise
                    stopped = self._agree(self.asked())
                    if stopped or self.done():
                        break
            if not stopped:
                self.measure()
                stopped = self._agree(self.asked())
            self.save()
        seconds = self.progress.seconds - began
        rate = (self.progress.images - first) / seconds if seconds else 0.0
        if not self.fabric.is_global_zero:
            raise SystemExit(0)  # started to train beside the first process, which goes on alone
        reason = (
            "interrupted"
            if stopped
            else "plateau"
            if steering.ended_by_plateau(self.progress, self.recipe)
            else "budget"
        )
        return Report(self.run, self.progress.images, self.progress.seconds, rate, self.held_out, reason)

    def open_folder(self) -> None:
        """Make the run's folder, or ready it to go on."""
        check_alone(self.run)  # again: somebody may have begun while we read the faces
        checkpoint.clear_folder(self.run, everything=not self.progress.steps)
        notes = {"recipe.toml": self.recipe.to_toml(), checkpoint.FACESETS: json.dumps(self.facesets, indent=1)}
        for name, text in notes.items():
            with files.whole_file(self.run / name, overwrite=True) as partial:
                partial.write_text(text)
        self.monitor = Monitor(self.run, self.progress.images)
        self.watch = steering.Watch(self.run / "recipe.toml")

    def session(self) -> Iterator[dict[str, float]]:
        """Steps from where progress stands, until a setback; gives the losses now and then."""
        data, progress, fabric = self.recipe.data, self.progress, self.fabric
        here = (fabric.global_rank, fabric.world_size, self.need.more)
        started = time.monotonic()
        for batch in batches(self.faces, data, self.recipe.seed, progress.images, fabric.device, *here):
            before, found = progress.images, self.step(batch)
            bad = [name for name, value in found.items() if not math.isfinite(value)]
            bad = [name for name in bad if name != "gradient"] or bad  # which follows from the others
            late = time.monotonic() - self._saved > 60 * self.recipe.train.save_minutes
            failed, seconds, due = self._common([float(bool(bad)), time.monotonic() - started, float(late)])
            if failed:
                self.set_back(bad or ["a loss of another process"])
                return
            progress.images += len(batch.person) * fabric.world_size
            progress.steps += 1
            progress.seconds += seconds
            self._now_and_then(before, found, due > 0)
            yield found
            started = time.monotonic()

    def step(self, batch: Batch) -> dict[str, float]:
        """One optimizer step; gives the losses, their sum `loss` and the gradient's norm `gradient`.

        If the gradient is not finite nothing is changed.
        """
        train, weights = self.recipe.train, self._weights()
        self._set_rate(steering.schedule(self.progress, self.recipe) * self.progress.rate_scale)
        self.stepper.zero_grad()
        sums: dict[str, Tensor] = {}
        for part, last in parts(batch, train.accumulate):
            with self._together(last):
                with self.fabric.autocast():  # adversaries, classifier and codes too, not forward alone
                    found = self.strategy.losses(self.model, part, weights)
                found = {name: loss.float() / train.accumulate for name, loss in found.items()}
                self.fabric.backward(torch.stack(list(found.values())).sum())
            sums = {name: sums.get(name, 0) + loss.detach() for name, loss in found.items()}
        norm = nn.utils.clip_grad_norm_(self.raw.parameters(), train.clip or math.inf)
        numbers = torch.stack([*sums.values(), norm]).tolist()  # here the device is waited for, once
        values = {"loss": sum(numbers[:-1]), **dict(zip([*sums, "gradient"], numbers, strict=True))}
        if math.isfinite(values["gradient"]):  # which all processes share: adversaries wait for each other
            self.stepper.step()
            self._average()
            values |= self.strategy.step()
        self.strategy.forget()
        return values

    def _set_rate(self, factor: float) -> None:
        share = steering.share(self.progress, self.recipe)
        for group in self.stepper.param_groups:
            group["lr"] = group["base_lr"] * factor if share >= group.get("after", 0.0) else 0.0
        for adversary in self.strategy.adversaries.values():
            for group in adversary.optimizer.param_groups:
                group["lr"] = self.recipe.train.rate * factor

    def _weights(self) -> dict[str, float]:
        """The weights of the losses now."""
        weights = self.recipe.loss.model_dump()
        if steering.share(self.progress, self.recipe) < self.recipe.loss.adversarial_from:
            weights |= dict.fromkeys(strategies.ADVERSARIAL, 0.0)
        return self._oppose(weights)

    def _oppose(self, weights: dict[str, float]) -> dict[str, float]:
        """See to it that adversaries are there for the losses that have some."""
        for name in strategies.ADVERSARIAL:
            if weights[name] and name not in self.strategy.adversaries:
                found = strategies.adversary(name, self.raw, self.recipe, self.fabric.device)
                self.strategy.adversaries[name] = found
        return weights

    def _together(self, last: bool) -> AbstractContextManager[None]:
        """Processes wait for each other's gradients in the last part of a batch."""
        if last or self.fabric.world_size == 1:
            return nullcontext()
        return cast(AbstractContextManager[None], self.fabric.no_backward_sync(self.model))

    @torch.no_grad()
    def _average(self) -> None:
        steps = self.progress.steps
        decay = min(self.recipe.train.ema, (1 + steps) / (10 + steps))
        averaged: list[Tensor] = list(self.average.parameters())
        current: list[Tensor] = list(self.raw.parameters())
        torch._foreach_lerp_(averaged, current, 1 - decay)
        for mine, theirs in zip(self.average.buffers(), self.raw.buffers(), strict=True):
            mine.copy_(theirs)

    def _now_and_then(self, before: int, found: Mapping[str, float], due: bool) -> None:
        train, images = self.recipe.train, self.progress.images

        def passed(every: int) -> bool:
            return bool(every) and before // every != images // every

        if passed(train.log_images):
            self.log(found)
            self.reread()
        if passed(train.preview_images):
            self.measure()
        if passed(train.save_images) or due:
            self.save()

    def log(self, found: Mapping[str, float]) -> None:
        """Keep the losses of the step, as a mean over all processes, and how the work goes."""
        values = dict(zip([f"train/{name}" for name in found], self._common(list(found.values())), strict=True))
        if self.monitor is None:
            return
        progress = self.progress
        images, seconds = progress.images - self._logged[0], progress.seconds - self._logged[1]
        self._logged = progress.images, progress.seconds
        rate, done = images / max(seconds, 1e-9), steering.share(progress, self.recipe)
        values |= {"rate": self.stepper.param_groups[0]["lr"], "seconds": progress.seconds}
        values |= {"speed/faces_per_second": rate, "speed/memory_gb": memory.used(self.fabric.device) / memory.GB}
        if done:
            values["speed/seconds_left"] = progress.images * max(0.0, 1 / done - 1) / rate
        self.monitor.scalars(progress.images, values)

    def reread(self) -> None:
        """Take over what somebody changed in the run's recipe.toml, as far as it may change on the way."""
        recipe = self.fabric.broadcast(self.watch.look(self.recipe, self._may) if self.watch else None)
        if recipe is None:
            return
        before, self.recipe = self.recipe, recipe
        for group in self.stepper.param_groups:
            group["base_lr"] *= recipe.train.rate / before.train.rate
        if recipe.loss != before.loss:
            steering.forget(self.progress)
        self.save()  # should training go back, then not behind this

    def _may(self, recipe: Recipe) -> None:
        check_recipe(recipe, min(len(self.people), 2))

    def _common(self, values: list[float]) -> list[float]:
        """The means of numbers over all processes: what hangs on them must be the same for all."""
        if self.fabric.world_size == 1:
            return values
        mine = torch.tensor(values, dtype=torch.float32, device=self.fabric.device)
        return cast(list[float], cast(Tensor, self.fabric.all_reduce(mine, reduce_op="mean")).tolist())

    def _agree(self, wish: bool) -> bool:
        """Whether any process wishes so: all must save and stop at the same step."""
        return self._common([float(wish)])[0] > 0

    def done(self) -> bool:
        return steering.share(self.progress, self.recipe) >= 1

    @torch.no_grad()
    def measure(self) -> None:
        """Held-out loss and PSNR of the averaged weights, a preview, and the best weights kept.

        The first process does it. If it is asked to stop meanwhile it leaves it at that.
        """
        values = self.fabric.broadcast(self.measured() if self.monitor is not None else None)
        if values is None:
            return
        self.held_out, progress = values, self.progress
        loss = sum(v for n, v in values.items() if n.endswith("loss")) / len(self.people)
        steering.judge(progress, loss, self.recipe)
        if self.monitor is not None:
            console.detail(f"at {progress.images} images " + ", ".join(f"{n} {v:.4g}" for n, v in values.items()))
            self.monitor.scalars(progress.images, values)
            self.monitor.preview(progress.images, self.preview())
        if loss < progress.best:
            progress.best = loss
            if self.monitor is not None:
                checkpoint.write(self.run / "best.safetensors", self.state(averaged_only=True))

    def measured(self) -> dict[str, float] | None:
        """Loss and PSNR (dB, inside the face) of every person's held-out faces; None if asked to stop."""
        values: dict[str, float] = {}
        for index, (name, faces) in enumerate(zip(self.people, self.held, strict=True)):
            found = []
            for row in range(len(faces)):
                if self.asked():
                    return None
                found.append(self._measured(still(faces, [row], index, self.fabric.device)))
            values[f"held_out/{name}/loss"], values[f"held_out/{name}/psnr"] = np.mean(found, 0).tolist()
        return values

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
        if self.people[1:2] == ["target"]:
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
        self._logged = self.progress.images, self.progress.seconds  # speed is measured from here
        console.warn(
            f"{names} not finite at {at} images: back to {self.progress.images}, rate at {scale:g} of the recipe's"
        )

    def state(self, *, averaged_only: bool = False) -> State:
        tensors = self._drawing() if averaged_only else {f"ema.{n}": t for n, t in self.average.state_dict().items()}
        if not averaged_only:
            tensors |= {f"model.{name}": tensor for name, tensor in self.raw.state_dict().items()}
            tensors |= checkpoint.pack_optimizer(self.optimizer, self.raw)
            for name, adversary in self.strategy.adversaries.items():
                tensors |= {f"{name}.{part}": tensor for part, tensor in adversary.state_dict().items()}
            tensors["random.cpu"] = torch.get_rng_state()
            if self.fabric.device.type == "cuda":
                tensors["random.cuda"] = torch.cuda.get_rng_state(self.fabric.device)
        return State(self.recipe, self.known, tensors, self.progress, self.footage, self.base, self.consent)

    def _drawing(self) -> dict[str, Tensor]:
        """What it takes to draw: all averaged weights, or what of them the base does not have."""
        weights = self.average.state_dict()
        if self.strategy.small:
            small = {name: weight for name, weight in adapters.plain(weights).items() if name in self.trained}
            return {f"adapter.{name}": weight for name, weight in small.items()}
        if self.recipe.strategy.save == "delta" and self.origin:
            packed = adapters.pack_delta({name: weight.cpu() for name, weight in weights.items()}, self.origin)
            return {f"delta.{name}": tensor for name, tensor in packed.items()}
        if self.known == [ANYONE] and (code := self.average.told(self._photos(self.held[0]))) is not None:
            weights |= dict.fromkeys(self.average.named("codes"), code[None])  # the average person's
        return {f"ema.{name}": weight for name, weight in weights.items()}

    def restore(self, state: State) -> None:
        """Become exactly what was saved."""
        checkpoint.fit(self.raw, state.part("model"), str(self.run))
        checkpoint.fit(self.average, state.part("ema"), str(self.run))
        checkpoint.unpack_optimizer(self.optimizer, self.raw, state.part("optimizer"), str(self.run))
        self.strategy.adversaries.clear()
        for name in strategies.ADVERSARIAL:
            if saved := state.part(name):
                self._oppose(dict.fromkeys(strategies.ADVERSARIAL, 0.0) | {name: 1.0})
                self.strategy.adversaries[name].load_state_dict(saved, f"{self.run}: loss.{name}")
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


def parts(batch: Batch, count: int) -> Iterator[tuple[Batch, bool]]:
    """A batch in `count` parts with as many faces of every person, each with whether it is the last."""
    for i in range(count):
        tensors = {field.name: getattr(batch, field.name)[i::count] for field in fields(batch)}
        if count > 1:
            tensors = {
                name: tensor.contiguous(
                    memory_format=torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
                )
                for name, tensor in tensors.items()
            }
        yield replace(batch, **tensors), i == count - 1
