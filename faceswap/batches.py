"""Facesets to batches. Order and randomness are a function of the seed and of the images seen so far, and of nothing
else: that is what makes an interrupted run continue exactly."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from faceswap import align, augment, console
from faceswap.config import DataRecipe
from faceswap.errors import FacesetError
from faceswap.faceset import Entry, Faceset, read_images, read_mask
from faceswap.landmarks import COUNT
from faceswap.looks import head_pose
from faceswap.masks import face_mask, regions, within

MASK_FEATHER = 0.01  # units of the side: the network learns an edge that it can draw
POSE_CELL = 10  # degrees, side of the cells of yaw and pitch
MOST_REPEATS = 8  # a face comes at most so many times as often by pose as in a shuffle
DEVICE_SHARE = 0.25  # of an accelerator's free memory may be taken by faces
SWAPPED = 0.5  # of the faces whose moment somebody else played too, are drawn from the other's
WORKERS = min(4, os.cpu_count() or 1)  # threads that change faces; OpenCV lets them run side by side

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Faces to draw: (B, 3, R, R) float32 in [0, 1] RGB, two masks (B, 1, R, R) in [0, 1], person (B,) int64."""

    input: Tensor
    photo: Tensor  # who it is, as `models.ANYONE` is told: the target itself or, by person, another face of theirs
    target: Tensor
    mask: Tensor  # 1 on the face
    priority: Tensor  # 1 on eyes and mouth; 0 everywhere where landmarks are missing
    person: Tensor


class Faces:
    """The images of one person (or of many, for a base) at one size, with their masks.

    Decoded once and kept when they fit into `memory` bytes, read from disk batch by batch when they do not. Images
    that do not decode are left out, counted and named. A user's own mask beside an image wins over the landmarks; one
    that cannot be used is counted and named.
    """

    def __init__(
        self, entries: Sequence[Entry], size: int, memory: float, label: str, crop: str = align.CANONICAL
    ) -> None:
        self.entries, self.size, self.label, self.crop = list(entries), size, label, crop
        self._kept: tuple[augment.Image, augment.Image] | None = None
        self._placed: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._damaged: set[Path] = set()
        self._own: set[Path] = set()  # images whose own masks were used,
        self._unusable: dict[Path, str] = {}  # and those whose were not, and why
        if self.bytes <= memory:
            self._kept = self._keep()

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def bytes(self) -> int:
        """What the faces take in memory."""
        return len(self) * self.size**2 * 5

    def __getitem__(self, rows: Sequence[int] | Rows) -> tuple[augment.Image, augment.Image]:
        """Images (len(rows), R, R, 3) uint8 RGB and their masks (len(rows), 2, R, R) uint8: the face; eyes and mouth.

        They are copies. The next whole image stands in for a damaged one.
        """
        if self._kept is not None:
            return self._kept[0][rows], self._kept[1][rows]
        known = len(self._unusable)
        read = list(self._read([self.entries[row] for row in rows]))
        self._say_unusable(known)
        found = [self._instead(row) if face is None else face for row, face in zip(rows, read, strict=True)]
        return np.stack([image for image, _ in found]), np.stack([masks for _, masks in found])

    def poses(self) -> NDArray[np.float64]:
        """Yaw and pitch (N, 2) in degrees, see `looks.head_pose`; NaN where they are unknown."""
        entries = console.track(self.entries, f"turning heads of {self.label}", len(self), "faces")
        return np.array([head_pose(entry.meta) for entry in entries], np.float64)

    def people(self) -> Rows:
        """Numbers (N,) that faces of one person share: of the same footage and track, or of one rendered actor."""
        metas = [entry.meta for entry in self.entries]
        keys = [(meta.source, meta.input, meta.track, meta.face if meta.track is None else 0) for meta in metas]
        known = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        return np.array([known[key] for key in keys], np.int64)

    def moments(self) -> Rows:
        """Numbers (N,) that faces of one moment share: of rendered actors who did the same in the same light."""
        truths = [entry.meta.truth for entry in self.entries]
        keys = [str(i) if truth is None else _moment(truth) for i, truth in enumerate(truths)]
        known = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        return np.array([known[key] for key in keys], np.int64)

    @property
    def kept(self) -> bool:
        """Whether all are in memory."""
        return self._kept is not None

    def on(self, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """All images and masks, on the device; None where `place` did not bring them there."""
        return self._placed.get(device)

    def place(self, device: torch.device) -> None:
        """Copy all images and masks, which are in memory, to the device."""
        assert self._kept is not None
        images, masks = (torch.from_numpy(array).to(device) for array in self._kept)
        self._placed[device] = images, masks

    def _keep(self) -> tuple[augment.Image, augment.Image]:
        """All images that decode, and their masks; the others leave `entries`."""
        images = np.empty((len(self), self.size, self.size, 3), np.uint8)
        masks = np.empty((len(self), 2, self.size, self.size), np.uint8)
        good: list[Entry] = []
        damaged: list[Path] = []
        faces = console.track(self._read(self.entries), f"reading {self.label}", len(self.entries), "faces")
        for entry, face in zip(self.entries, faces, strict=True):
            if face is None:
                damaged.append(entry.path)
            else:
                images[len(good)], masks[len(good)] = face
                good.append(entry)
        if damaged:
            console.warn(f"{len(damaged)} images do not decode and are left out, the first is {damaged[0]}")
        self._say_unusable(0)
        if self._own:
            console.say(f"{self.label}: {len(self._own)} faces have masks of your own")
        if not good:
            folder = damaged[0].parent
            raise FacesetError(f"{folder} ({self.label}): none of {len(damaged)} images decodes; extract them again")
        self.entries = good
        return images[: len(good)], masks[: len(good)]

    def _instead(self, row: int) -> tuple[augment.Image, augment.Image]:
        """The first image after `row` that decodes; the damaged one is said, once."""
        path = self.entries[row].path
        if path not in self._damaged:
            self._damaged.add(path)
            console.warn(f"{path}: does not decode; another face stands in for it (delete it, or extract again)")
        for step in range(1, len(self)):
            face = next(self._read([self.entries[(row + step) % len(self)]]))
            if face is not None:
                return face
        raise FacesetError(f"{self.label}: none of {len(self)} images decodes; extract the faces again")

    def _read(self, entries: Sequence[Entry]) -> Iterator[tuple[augment.Image, augment.Image] | None]:
        paths = [entry.path for entry in entries]
        for entry, image in zip(entries, read_images(paths, self.size, self.crop), strict=True):
            yield None if image is None else (image, self._masks(entry))

    def _masks(self, entry: Entry) -> augment.Image:
        """The face, and of it the eyes and the mouth: nothing without landmarks. (2, R, R)."""
        outline = entry.meta.crop_outline(self.size, self.crop)
        face, priority = self._mask(entry, outline), np.zeros((self.size, self.size), np.float32)
        if len(outline) == COUNT:
            priority = np.minimum(np.maximum(*regions(outline, self.size)), face)
        return np.round(np.stack([face, priority]) * 255).astype(np.uint8)

    def _mask(self, entry: Entry, outline: NDArray[np.float64]) -> NDArray[np.float32]:
        """The user's mask as it is, or else the landmarks'."""
        try:
            own = read_mask(entry.path, self.size)
        except FacesetError as error:
            own = None
            self._unusable[entry.path] = str(error)
        if own is None:
            return face_mask(outline, self.size, MASK_FEATHER, crop=self.crop)
        self._own.add(entry.path)
        return within(own, self.size, self.crop)

    def _say_unusable(self, known: int) -> None:
        """Warn of masks that turned out unusable after the first `known` did."""
        if fresh := list(self._unusable.values())[known:]:
            console.warn(f"{len(fresh)} masks of your own give way to the landmarks' masks, the first: {fresh[0]}")


def _moment(truth: Mapping[str, Any]) -> str:
    return json.dumps([truth.get(name) for name in ("pose", "expression", "light")], sort_keys=True)


def split(facesets: Sequence[Faceset], holdout: float) -> tuple[list[Entry], list[Entry]]:
    """Entries to train on and entries held out, about `holdout` of all.

    A face's lot hangs on where it comes from, not on its file name or its neighbours: deleting or renaming images
    moves no other face from one side to the other. `FacesetError` if there are fewer than two faces.
    """
    entries = [entry for faceset in facesets for entry in faceset.entries]
    where = ", ".join(str(faceset.folder) for faceset in facesets)
    if len(entries) < 2:
        raise FacesetError(f"{where}: expected at least 2 faces (one is held out), found {len(entries)}; extract more")
    entries.sort(key=_lot)
    held = sum(_lot(entry) < holdout * 2**32 for entry in entries)
    held = min(max(held, 1), len(entries) - 1)
    return entries[held:], entries[:held]


def _lot(entry: Entry) -> int:
    return int.from_bytes(hashlib.blake2b(entry.key.encode(), digest_size=4).digest(), "big")


class Order:
    """Which of N faces come when: a function of the seed and of the position alone.

    Every epoch shows each of the `bins` (N,), numbers that faces share, in its own share of places, and they are mixed
    at random. Inside a bin faces come without replacement, again and again in other orders. All bins have the same
    share as far as no face comes more than `MOST_REPEATS` times as often as in a shuffle: rare faces are shown more
    often, single ones are not learnt by heart. One bin for all is a shuffle.
    """

    def __init__(self, bins: Rows, seed: int) -> None:
        self.seed = seed
        self.members = [np.flatnonzero(bins == number) for number in np.unique(bins)]
        counts = np.array([len(rows) for rows in self.members])
        low, high = 0.0, float(len(bins))  # the level at which shares are cut fills an epoch
        for _ in range(50):
            level = (low + high) / 2
            full = np.minimum(level, MOST_REPEATS * counts).sum() >= len(bins)
            low, high = (low, level) if full else (level, high)
        self.shares = np.maximum(1, np.round(np.minimum(high, MOST_REPEATS * counts))).astype(np.int64)
        self._epoch = lru_cache(2)(self._mixed)

    def __call__(self, position: int, count: int) -> Rows:
        """The faces at `position`, ..., `position + count - 1`."""
        length = int(self.shares.sum())
        places = range(position, position + count)
        return np.array([self._epoch(place // length)[place % length] for place in places], np.int64)

    def _mixed(self, epoch: int) -> Rows:
        shown = []
        for number, (rows, share) in enumerate(zip(self.members, self.shares, strict=True)):
            rounds, places = np.divmod(np.arange(epoch * share, (epoch + 1) * share), len(rows))
            for turn in np.unique(rounds):
                cards = np.random.default_rng([self.seed, number, int(turn)]).permutation(rows)
                shown.append(cards[places[rounds == turn]])
        return np.random.default_rng([self.seed, epoch]).permutation(np.concatenate(shown))


class Others:
    """Another face of the same group, by numbers (N,) that the faces of a group share."""

    def __init__(self, groups: Rows) -> None:
        _, self.group, self.sizes = np.unique(groups, return_inverse=True, return_counts=True)
        self.firsts = np.cumsum(self.sizes) - self.sizes  # of each group, in `sorted`
        self.sorted = np.argsort(self.group, kind="stable")
        self.place = np.argsort(self.sorted)  # of each face, in `sorted`

    def __call__(self, rows: Rows, random: NDArray[np.float64]) -> Rows:
        """For each of `rows` (M,) another face that a number (M,) in [0, 1) chooses; the same if it is alone."""
        first, size = self.firsts[self.group[rows]], self.sizes[self.group[rows]]
        step = 1 + (random * (size - 1)).astype(np.int64)
        return self.sorted[first + (self.place[rows] - first + step) % size]


class Pairs:
    """An order of faces in which as many again follow: of each the person's other face, or their only one again.

    people: numbers (N,) that the faces of a person share.
    """

    def __init__(self, order: Order, people: Rows) -> None:
        self.order, self.others = order, Others(people)

    def __call__(self, position: int, count: int) -> Rows:
        """The faces at `position`, ..., and their partners in the second half; both numbers are even."""
        rows = self.order(position // 2, count // 2)
        random = np.random.default_rng([self.order.seed, 1, position]).random(len(rows))
        return np.concatenate([rows, self.others(rows, random)])


def pose_bins(poses: NDArray[np.float64]) -> Rows:
    """Numbers (N,) of the cells in which yaw and pitch (N, 2) lie; the faces of unknown pose share one."""
    yaw, pitch = np.floor(np.clip(np.nan_to_num(poses), -90, 90) / POSE_CELL).astype(np.int64).T
    return np.asarray(np.where(np.isnan(poses).any(1), -10_000, 100 * yaw + pitch), np.int64)


class Loader:
    """Makes the batch of any step.

    On the CPU, OpenCV moves the faces one by one in some threads; `together` they are moved on the device, and come
    from its memory if they are there. Every process draws the whole batch and makes its part: how many processes there
    are does not change what is seen.
    """

    def __init__(
        self,
        people: Sequence[Faces],
        recipe: DataRecipe,
        seed: int,
        device: torch.device,
        rank: int,
        world: int,
        together: bool,  # by `augment.move_together`, else by `augment.move`
        workers: Executor,
    ) -> None:
        self.people, self.recipe, self.seed, self.device = people, recipe, seed, device
        self.together, self.workers = together, workers
        self.share = recipe.batch // min(len(people), 2)  # faces of each in the whole batch; generic ones on top
        self.mine = np.concatenate([np.arange(rank, self.share, world) + i * self.share for i in range(len(people))])
        self.person = self.mine // self.share
        by_pose = recipe.sampling == "pose"
        bins = [pose_bins(faces.poses()) if by_pose else np.zeros(len(faces), np.int64) for faces in people]
        orders = [Order(numbers, seed + i) for i, numbers in enumerate(bins)]
        self.orders: list[Callable[[int, int], Rows]] = list(orders)
        if recipe.sampling == "person":
            self.orders = [Pairs(order, faces.people()) for order, faces in zip(orders, people, strict=True)]
            self.doubles = [Others(faces.moments()) for faces in people]
        placed = [found for faces in people if together and (found := faces.on(device)) is not None]
        self.placed = placed if len(placed) == len(people) else []

    def __call__(self, step: int) -> Batch:
        people, share, kind, size = len(self.people), self.share, self.recipe.transfer, self.people[0].size
        rows = np.concatenate([order(step * share, share) for order in self.orders])  # of the whole batch
        plan = augment.draw(len(rows), size, self.recipe, [self.seed, step])[self.mine]
        seen = self._seen(rows, step)
        swapped = (seen != rows)[self.mine]
        disguised = plan.disguised & ~swapped
        relit = (self.person == 0) & (kind != "none" and people > 1)
        lent = np.flatnonzero(relit | plan.occluded | disguised)
        lenders = np.where(relit, share + plan.other % share, plan.other)[lent]
        others = dict(zip(lent.tolist(), zip(*self._take(rows, lenders), strict=True), strict=True))
        changed = relit | plan.occluded | plan.degraded | swapped | disguised
        read = np.flatnonzero(changed) if self.placed else np.arange(len(changed))
        images, masks = self._take(rows, self.mine[read])
        inputs = images.copy() if (plan.degraded | swapped | disguised).any() else images
        inputs[swapped[read]] = self._take(seen, self.mine[swapped])[0]
        out = None if self.together else augment.empty(len(read), size)

        def work(numbers: Sequence[int]) -> None:
            for number in numbers:
                face, own = int(read[number]), int(plan.seed[read[number]])
                if relit[face]:
                    image, (mask, _) = others[face]
                    colors = augment.colors(images[number], masks[number, 0]), augment.colors(image, mask)
                    plan.color[face] = augment.after(plan.color[face], augment.transfer(kind, *colors, own))
                if plan.occluded[face]:
                    seen_so, _ = augment.occlude(inputs[number], masks[number], others[face][0], own)
                    hidden = augment.occlude(images[number], masks[number], others[face][0], own)
                    images[number], masks[number] = hidden
                    inputs[number] = seen_so if swapped[face] else images[number]
                if disguised[face]:
                    inputs[number] = augment.disguise(inputs[number], others[face][0], own)
                if plan.degraded[face]:
                    inputs[number] = augment.degrade(inputs[number], own)
            if out is not None:
                augment.move(inputs, images, masks, plan, self.recipe.blur_out, numbers, out)

        parts = np.array_split(np.arange(len(read)), WORKERS)
        list(self.workers.map(work, [part.tolist() for part in parts if len(part)]))
        if out is None:
            inputs_, images_, masks_ = self._together(rows, read, (inputs, images, masks))
            out = augment.move_together(inputs_, images_, masks_, plan, self.recipe.blur_out)
        input_, target, mask, priority = (found.to(self.device) for found in out)
        photo = target
        if self.recipe.sampling == "person":  # whose two faces lie half a share apart
            halves = [part.roll(len(part) // 2, 0) for part in torch.split(target, len(self.mine) // people)]
            photo = torch.cat(halves).contiguous(memory_format=torch.channels_last)
        return Batch(input_, photo, target, mask, priority, self._send(self.person))

    def _seen(self, rows: Rows, step: int) -> Rows:
        """The faces to be shown where `rows` of the whole batch are to be drawn.

        By person, half of the time it is another's of the same moment, if there is one: a true swap.
        """
        if self.recipe.sampling != "person":
            return rows
        which, whether = np.random.default_rng([self.seed, step, 1]).random((2, len(rows)))
        parts = (np.split(array, len(self.people)) for array in (rows, which))
        others = np.concatenate([double(*part) for double, *part in zip(self.doubles, *parts, strict=True)])
        return np.where(whether < SWAPPED, others, rows)

    def _take(self, rows: Rows, numbers: Rows) -> tuple[augment.Image, augment.Image]:
        """Images and masks of some faces of the whole batch, whose `rows` are known."""
        size = self.people[0].size
        images = np.empty((len(numbers), size, size, 3), np.uint8)
        masks = np.empty((len(numbers), 2, size, size), np.uint8)
        for person, faces in enumerate(self.people):
            theirs = numbers // self.share == person
            if theirs.any():
                images[theirs], masks[theirs] = faces[rows[numbers[theirs]]]
        return images, masks

    def _together(self, rows: Rows, read: Rows, faces: Sequence[augment.Image]) -> list[Tensor]:
        """Inputs, images and masks of our part on the device; those `read` replace what is there already."""
        sent = [self._send(array) for array in faces]
        if not self.placed:
            return sent
        whole = []
        for i in range(2):  # images, masks
            parts = [
                held[i][self._send(rows[self.mine[self.person == person]])] for person, held in enumerate(self.placed)
            ]
            whole.append(torch.cat(parts))
        found = [whole[0].clone(), *whole]
        places = self._send(read)
        for ours, theirs in zip(found, sent, strict=True):
            ours[places] = theirs
        return found

    def _send(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def settle(people: Sequence[Faces], device: torch.device, free: int) -> None:
    """Copy the faces to the device, if all are in memory and take at most `DEVICE_SHARE` of its `free` bytes."""
    if all(faces.on(device) for faces in people):
        return
    need = sum(faces.bytes for faces in people)
    fits = need <= DEVICE_SHARE * free and all(faces.kept for faces in people)
    for faces in people if fits else []:
        faces.place(device)
    where = "stay on" if fits else "are sent batch by batch to"
    console.say(f"{sum(map(len, people))} faces ({need / 1e6:.0f} MB) {where} {device}")


def batches(
    people: Sequence[Faces],
    recipe: DataRecipe,
    seed: int,
    images: int,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
    reserve: int = 0,  # bytes of the device that faces must leave alone
) -> Iterator[Batch]:
    """Batches without end, from the one after `images` face images; each holds as many faces of every person.

    With `world` processes each takes its own `1 / world` of every batch. The next batch is made while one trains.
    """
    together = device.type == "cuda"
    if together:
        settle(people, device, torch.cuda.mem_get_info(device)[0] - reserve)
    with ThreadPoolExecutor(WORKERS) as workers, ThreadPoolExecutor(1) as reader:
        load = Loader(people, recipe, seed, device, rank, world, together, workers)
        first = images // (load.share * len(people))
        coming = reader.submit(load, first)
        for step in count(first + 1):
            batch = coming.result()
            coming = reader.submit(load, step)
            yield batch


def still(faces: Faces, rows: Sequence[int], person: int, device: torch.device) -> Batch:
    """Faces as they are, without augmentation: for held-out measurements and previews."""
    images, masks = (torch.from_numpy(array).to(device) for array in faces[rows])
    pixels, drawn = augment.to_float(images), masks.float() / 255
    people = torch.full((len(rows),), person, dtype=torch.int64, device=device)
    return Batch(pixels, pixels, pixels, drawn[:, :1].contiguous(), drawn[:, 1:].contiguous(), people)
