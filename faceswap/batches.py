"""Facesets to batches. Order and randomness are a function of the seed and of the images seen so far, and of nothing
else: that is what makes an interrupted run continue exactly."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from faceswap import augment, console
from faceswap.config import DataRecipe
from faceswap.errors import FacesetError
from faceswap.faceset import Entry, Faceset, read_images, read_mask
from faceswap.masks import face_mask

MASK_FEATHER = 0.01  # units of the side: the network learns an edge that it can draw


@dataclass(frozen=True)
class Batch:
    """Faces to draw: (B, 3, R, R) float32 in [0, 1] RGB, two masks (B, 1, R, R) in [0, 1], person (B,) int64."""

    input: Tensor
    target: Tensor
    mask: Tensor  # 1 on the face
    priority: Tensor  # 1 on eyes and mouth; 0 everywhere where landmarks are missing
    person: Tensor


class Faces:
    """The images of one person (or of many, for a base) at one size, with their masks: (N, R, R, 4) uint8.

    Decoded once and kept when they fit into `memory` bytes, read from disk batch by batch when they do not. Images
    that do not decode are left out, counted and named. A user's own mask beside an image wins over the landmarks; one
    that cannot be used is counted and named.
    """

    def __init__(self, entries: Sequence[Entry], size: int, memory: float, label: str) -> None:
        self.entries, self.size, self.label = list(entries), size, label
        self._kept: NDArray[np.uint8] | None = None
        self._damaged: set[Path] = set()
        self._own: set[Path] = set()  # images whose own masks were used,
        self._unusable: dict[Path, str] = {}  # and those whose were not, and why
        if len(self.entries) * size * size * 4 <= memory:
            self._kept = self._keep()

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images and masks (len(rows), R, R, 4) uint8; the next whole image stands in for a damaged one."""
        if self._kept is not None:
            return self._kept[rows]
        known = len(self._unusable)
        found = list(self._read([self.entries[row] for row in rows]))
        self._say_unusable(known)
        return np.stack([self._instead(row) if face is None else face for row, face in zip(rows, found, strict=True)])

    def _keep(self) -> NDArray[np.uint8]:
        """All images that decode; the others leave `entries`."""
        kept = np.empty((len(self.entries), self.size, self.size, 4), np.uint8)
        good: list[Entry] = []
        damaged: list[Path] = []
        faces = console.track(self._read(self.entries), f"reading {self.label}", len(self.entries), "faces")
        for entry, face in zip(self.entries, faces, strict=True):
            if face is None:
                damaged.append(entry.path)
            else:
                kept[len(good)] = face
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
        return kept[: len(good)]

    def _instead(self, row: int) -> NDArray[np.uint8]:
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

    def _read(self, entries: Sequence[Entry]) -> Iterator[NDArray[np.uint8] | None]:
        for entry, image in zip(entries, read_images([e.path for e in entries], self.size), strict=True):
            if image is None:
                yield None
                continue
            yield np.dstack([image, (self._mask(entry) * 255).round().astype(np.uint8)])

    def _mask(self, entry: Entry) -> NDArray[np.float32]:
        """The user's mask as it is, or else the landmarks'."""
        try:
            own = read_mask(entry.path, self.size)
        except FacesetError as error:
            own = None
            self._unusable[entry.path] = str(error)
        if own is None:
            return face_mask(entry.meta.crop_outline(self.size), self.size, MASK_FEATHER)
        self._own.add(entry.path)
        return own

    def _say_unusable(self, known: int) -> None:
        """Warn of masks that turned out unusable after the first `known` did."""
        if fresh := list(self._unusable.values())[known:]:
            console.warn(f"{len(fresh)} masks of your own give way to the landmarks' masks, the first: {fresh[0]}")


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


def batches(
    people: Sequence[Faces],
    recipe: DataRecipe,
    seed: int,
    images: int,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """Batches without end, from the one after `images` face images; each holds as many faces of every person.

    With `world` processes each takes its own `1 / world` of every batch. The next batch is read while one trains.
    """
    share = recipe.batch // len(people)
    with ThreadPoolExecutor(1) as reader:
        steps = count(images // (share * len(people)))
        coming = reader.submit(_read, people, recipe, seed, next(steps), share, rank, world)
        for step in steps:
            inputs, faces, person = coming.result()
            coming = reader.submit(_read, people, recipe, seed, step, share, rank, world)
            # Metal lacks the bicubic sampling with repeated border of older torch releases: move on the CPU there.
            place = torch.device("cpu") if device.type == "mps" else device
            generator = torch.Generator(place).manual_seed(_mix(seed, step - 1, rank))
            seen, pixels = (torch.from_numpy(array).to(place) for array in (inputs, faces))
            input_, target, mask = (image.to(device) for image in augment.augment(seen, pixels, recipe, generator))
            yield Batch(input_, target, mask, torch.zeros_like(mask), torch.from_numpy(person).to(device))


def _read(
    people: Sequence[Faces], recipe: DataRecipe, seed: int, step: int, share: int, rank: int, world: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64]]:
    rows = [order(len(faces), seed + i, step * share, share)[rank::world] for i, faces in enumerate(people)]
    faces = np.concatenate([faces[chosen] for faces, chosen in zip(people, rows, strict=True)])
    person = np.repeat(np.arange(len(people)), [len(chosen) for chosen in rows])
    return augment.degrade(faces[..., :3], recipe.degrade, _mix(seed, step, rank)), faces, person


def order(size: int, seed: int, position: int, count: int) -> NDArray[np.int64]:
    """Which of `size` images come at `position`, ..., `position + count - 1`: every epoch is a permutation."""
    places = np.arange(position, position + count)
    permutations = {epoch: np.random.default_rng([seed, int(epoch)]).permutation(size) for epoch in set(places // size)}
    return np.array([permutations[place // size][place % size] for place in places], np.int64)


def _mix(*numbers: int) -> int:
    """One seed below 2**31 from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 1)


def still(faces: Faces, rows: Sequence[int], person: int, device: torch.device) -> Batch:
    """Faces as they are, without augmentation: for held-out measurements and previews."""
    pixels = augment.to_float(torch.from_numpy(faces[rows]).to(device))
    people = torch.full((len(rows),), person, dtype=torch.int64, device=device)
    return Batch(pixels[:, :3], pixels[:, :3], pixels[:, 3:], torch.zeros_like(pixels[:, 3:]), people)
