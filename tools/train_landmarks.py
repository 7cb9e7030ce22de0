"""Train the landmark network of faceswap/landmarks.py: face crops with a teacher's points -> landmarks.safetensors.

    python tools/train_landmarks.py DATA -o pretrained/landmarks.safetensors --faces 400000

DATA holds `img/NNNNN.jpg` and `landmarks478.npy`, (N, 478, 2 or more): the points of MediaPipe's face mesh with irises
in pixels of each image. `--actors` adds a faceset of `faceswap actors faces`, whose inner points are known exactly,
and `--nothing` a folder of pictures without faces. A tenth of DATA, in blocks so that neighbours stay together, is held
out and measured at the end. One process trains on one thread while another augments: two cores, 90 faces/s.
"""

import argparse
import json
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, IterableDataset

from faceswap import align, landmarks
from faceswap.landmarks import COUNT, MESH, MIRROR, SIZE, UNIT, Network, eye_distance, five

BLOCK, HELD = 50, 10  # every tenth block of fifty faces is held out
INNER = np.arange(17, 68)  # of an actor the contour is not the mesh's
FINE = np.concatenate([np.arange(36, 68), landmarks.EYE_LEFT, landmarks.EYE_RIGHT, landmarks.LIPS, landmarks.MOUTH])


PARTS = {
    "contour": landmarks.CONTOUR,
    "brows": np.concatenate([landmarks.BROW_LEFT, landmarks.BROW_RIGHT]),
    "eyes": np.concatenate([landmarks.EYE_LEFT, landmarks.EYE_RIGHT, landmarks.IRIS_LEFT, landmarks.IRIS_RIGHT]),
    "nose": landmarks.NOSE,
    "lips": np.concatenate([landmarks.LIPS, landmarks.MOUTH]),
}


class Crops:
    """Pictures (H, W, 3) uint8 RGB with points (152, 2) in their pixels, and the weight of each point."""

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []
        self.points: list[np.ndarray] = []
        self.weights: list[np.ndarray] = []

    def add(self, image: np.ndarray, points: np.ndarray, weights: np.ndarray) -> None:
        self.images.append(np.ascontiguousarray(image))
        self.points.append(points.astype(np.float32))
        self.weights.append(weights.astype(np.float32))


def read_taught(folder: Path) -> tuple[Crops, Crops]:
    """Faces with the teacher's points: those to train on, and those held out."""
    mesh = np.load(folder / "landmarks478.npy")[:, MESH, :2].astype(np.float32) - 0.5  # its pixels have centres at .5
    train, held = Crops(), Crops()
    weights = np.ones(COUNT, np.float32)
    weights[np.unique(FINE)] = 1.5
    for number, points in enumerate(mesh):
        image = cv2.cvtColor(cv2.imread(str(folder / "img" / f"{number:05d}.jpg")), cv2.COLOR_BGR2RGB)
        (held if number // BLOCK % HELD == HELD - 1 else train).add(image, points, weights)
    return train, held


def read_actors(folder: Path) -> Crops:
    from faceswap.faceset import Faceset, read_image

    found = Crops()
    for entry in Faceset.open(folder).entries:
        points, weights = np.zeros((COUNT, 2)), np.zeros(COUNT)
        assert entry.meta.truth is not None
        points[:68] = align.apply(np.array(entry.meta.matrix), np.array(entry.meta.truth["landmarks"]))
        weights[INNER] = 1
        found.add(align.as_uint8(read_image(entry.path)), points, weights)
    return found


def read_nothing(folder: Path) -> list[np.ndarray]:
    return [cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in sorted(folder.iterdir())]


class Augmented(IterableDataset):
    """Batches without end of crops (B, 3, 128, 128) uint8, points (B, 152, 2) in units of the side, weights (B, 152)
    and what the fit may be at most (B,): 1 for a face, 0 for none."""

    def __init__(
        self, taught: Crops, actors: Crops, nothing: list[np.ndarray], batch: int, seed: int, faces: int
    ) -> None:
        self.taught, self.actors, self.nothing, self.batch, self.seed = taught, actors, nothing, batch, seed
        self.faces = faces  # of the whole training

    def __iter__(self):
        cv2.setNumThreads(1)
        random, order, drawn = np.random.default_rng(self.seed), [], 0
        while True:
            # Wild for the first third, then ever calmer: the last steps are for precision.
            self.wild = float(np.clip(1.4 - 1.2 * drawn / self.faces, 0.2, 1))
            drawn += self.batch
            rows = []
            while len(rows) < self.batch:
                draw = random.random()
                if draw < 0.05 and self.nothing:
                    image = self.nothing[random.integers(len(self.nothing))]
                    rows.append((augment_pixels(image, random, self.wild), np.zeros((COUNT, 2)), np.zeros(COUNT), 0.0))
                elif draw < 0.15 and self.actors.images:
                    number = random.integers(len(self.actors.images))
                    rows.append(self.face(self.actors, number, random))
                else:
                    if not order:
                        order = list(random.permutation(len(self.taught.images)))
                    rows.append(self.face(self.taught, order.pop(), random))
            images, points, weights, most = zip(*rows, strict=True)
            pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
            yield (
                pixels,
                torch.from_numpy(np.stack(points)).float(),
                torch.from_numpy(np.stack(weights)).float(),
                torch.tensor(most),
            )

    def face(self, crops: Crops, number: int, random: np.random.Generator):
        """A face moved, turned, covered and spoilt. One in twelve is moved so far that only its fit is learned."""
        points, wild = crops.points[number], random.random() < 1 / 12
        matrix = align.crop_matrix(five(points), 1)
        reach = 3.0 if wild else 1.0
        angle = random.uniform(-45, 45) if random.random() < 0.5 * self.wild else random.normal(0, 6)
        angle = random.uniform(-180, 180) if wild else angle
        size = np.exp(random.normal(0, 0.09 * reach))
        shift = random.normal(0, 0.03 * reach, 2)
        turn = cv2.getRotationMatrix2D((0.5, 0.5), angle, size)
        turn[:, 2] += shift
        if random.random() < 0.3 * self.wild:  # other proportions, as of other lenses and people
            turn[0] *= np.exp(random.normal(0, 0.05))
        whole = np.vstack([matrix, [0, 0, 1]])
        whole = np.vstack([turn, [0, 0, 1]]) @ whole
        mirrored = random.random() < 0.5
        if mirrored:  # x -> SIZE - 1 - x, as pixel centres lie at integers
            whole = np.array([[-1.0, 0, 1 - 1 / SIZE], [0, 1, 0], [0, 0, 1]]) @ whole
        moved, weights = points @ whole[:2, :2].T + whole[:2, 2], crops.weights[number]
        if mirrored:
            moved, weights = moved[MIRROR], weights[MIRROR]
        to_pixels = whole[:2] * SIZE
        border = cv2.BORDER_REPLICATE if random.random() < 0.6 else cv2.BORDER_CONSTANT
        how = (cv2.INTER_LINEAR, cv2.INTER_CUBIC)[random.integers(2)]
        image = cv2.warpAffine(crops.images[number], to_pixels, (SIZE, SIZE), flags=how, borderMode=border)
        image = cover(image, crops, random) if random.random() < 0.35 * self.wild else image
        image = augment_pixels(image, random, self.wild)
        return image, moved.astype(np.float32), weights * (not wild), 1.0


def cover(image: np.ndarray, crops: Crops, random: np.random.Generator) -> np.ndarray:
    """Lay a patch over part of the face: of one colour, of noise, or of another picture."""
    for _ in range(int(random.integers(1, 4))):
        high, wide = (int(v) for v in random.uniform(8, 56, 2))
        y, x = int(random.uniform(-high / 2, SIZE - high / 2)), int(random.uniform(-wide / 2, SIZE - wide / 2))
        y0, x0, y1, x1 = max(y, 0), max(x, 0), min(y + high, SIZE), min(x + wide, SIZE)
        kind = random.integers(3)
        if kind == 0:
            patch = np.broadcast_to(random.integers(0, 256, 3), (y1 - y0, x1 - x0, 3))
        elif kind == 1:
            patch = random.integers(0, 256, (y1 - y0, x1 - x0, 3))
        else:
            other = crops.images[random.integers(len(crops.images))]
            patch = cv2.resize(other, (SIZE, SIZE))[y0:y1, x0:x1]
        image = image.copy()
        if random.random() < 0.4:  # round, as hands and cups are
            mask = np.zeros((SIZE, SIZE), np.uint8)
            centre, axes = (int(x + wide / 2), int(y + high / 2)), (max(wide // 2, 1), max(high // 2, 1))
            cv2.ellipse(mask, centre, axes, 0, 0, 360, (1,), -1)
            inside = mask[y0:y1, x0:x1, None]
            image[y0:y1, x0:x1] = np.where(inside, patch, image[y0:y1, x0:x1])
        else:
            image[y0:y1, x0:x1] = patch
    return image


def augment_pixels(image: np.ndarray, random: np.random.Generator, wild: float) -> np.ndarray:
    """Light, colour, grey, low resolution, blur, noise and JPEG; `wild` scales how often."""
    image = cv2.resize(image, (SIZE, SIZE)) if image.shape[:2] != (SIZE, SIZE) else image
    if random.random() < 0.3 * wild:
        side = int(random.uniform(20, 100))
        small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, (SIZE, SIZE), interpolation=(cv2.INTER_LINEAR, cv2.INTER_CUBIC)[random.integers(2)])
    if random.random() < 0.2 * wild:
        image = cv2.GaussianBlur(image, (0, 0), float(random.uniform(0.4, 3)))
    if random.random() < 0.1 * wild:
        length = int(random.integers(3, 12))
        kernel = np.zeros((length, length), np.float32)
        cv2.line(kernel, (0, int(random.integers(length))), (length - 1, int(random.integers(length))), (1.0,))
        image = cv2.filter2D(image, -1, kernel / kernel.sum())
    pixels = image.astype(np.float32)
    if random.random() < 0.25 * wild:
        pixels = np.repeat(pixels @ np.array([0.299, 0.587, 0.114], np.float32)[..., None], 3, 2)
    gain = np.exp(random.normal(0, 0.22)) * np.exp(random.normal(0, 0.09, 3) * (random.random() < 0.7))
    pixels = (pixels - 128) * np.exp(random.normal(0, 0.2)) + 128 + random.normal(0, 15)
    pixels = pixels * gain.astype(np.float32)
    if random.random() < 0.25 * wild:  # light from one side
        angle = random.uniform(0, 2 * np.pi)
        y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
        ramp = np.exp(random.normal(0, 0.5) * (x * np.cos(angle) + y * np.sin(angle)))
        pixels = pixels * ramp[..., None].astype(np.float32)
    if random.random() < 0.3 * wild:
        pixels = pixels + random.normal(0, random.uniform(1, 14), pixels.shape).astype(np.float32)
    image = np.clip(pixels, 0, 255).astype(np.uint8)
    if random.random() < 0.3 * wild:
        quality = int(random.uniform(12, 85))
        image = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)
    return image


def train(taught: Crops, held: Crops, actors: Crops, nothing: list[np.ndarray], options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    network = Network()
    canonical = [align.apply(align.crop_matrix(five(p), 1), p) for p in taught.points]
    network.mean.copy_(torch.from_numpy(np.mean(canonical, 0)).float())
    if options.start:
        network = landmarks.load(options.start).requires_grad_(True).train()
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.rate, weight_decay=0.02)
    averaged = torch.optim.swa_utils.AveragedModel(
        network,
        avg_fn=lambda old, new, count: torch.lerp(old, new, 1 - min(0.998, (1 + int(count)) / (10 + int(count)))),
    )
    data = Augmented(taught, actors, nothing, options.batch, options.seed, options.faces)
    loader = iter(DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=4))
    started, step, told = time.monotonic(), 0, time.monotonic()
    errors = []
    while (done := step * options.batch / options.faces) < 1:
        rate = options.rate * min(1, (step + 1) / 200) * (0.5 + 0.5 * np.cos(np.pi * done)) + 1e-6
        for group in optimizer.param_groups:
            group["lr"] = rate
        images, points, weights, most = next(loader)
        pixels = images.to(memory_format=torch.channels_last).float() / 255
        drawn, logits = network(pixels)
        eyes = (points[:, [36, 39]].mean(1) - points[:, [42, 45]].mean(1)).norm(dim=1).clamp_min(0.05)
        apart = (drawn - points).norm(dim=2) / eyes[:, None]
        total = weights.sum(1)
        per_face = (apart * weights).sum(1) / total.clamp_min(1)
        with torch.no_grad():  # a face moved so far that its points are not learned has an error all the same
            error = apart[:, INNER].mean(1)
            wanted = most * torch.exp2(-error / UNIT)
        fit = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted)
        loss = per_face[total > 0].mean() + 0.05 * fit
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        averaged.update_parameters(network)
        errors.append(per_face[total > 0].mean().item())
        step += 1
        if time.monotonic() - told > 180:
            told = time.monotonic()
            calibrate(averaged.module, loader)
            measured = evaluate(averaged.module, held, 100)
            print(
                f"{(told - started) / 60:.1f} min, {step * options.batch} faces, "
                f"training {100 * np.mean(errors):.2f} %, held out {measured['error']:.2f} %",
                flush=True,
            )
            errors = []
            save(averaged.module, options.out)
    calibrate(averaged.module, loader, 60)
    save(averaged.module, options.out)
    print(json.dumps({"faces": step * options.batch} | evaluate(averaged.module, held), indent=1))


@torch.no_grad()
def calibrate(network: Network, loader, batches: int = 15) -> None:
    """Measure the batch norms' statistics anew: those of averaged weights are not the average of statistics."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain mean over what follows
            module.reset_running_stats()
    network.train()
    for _ in range(batches):
        network(next(loader)[0].to(memory_format=torch.channels_last).float() / 255)


def save(network: Network, path: Path) -> None:
    """In half precision, which costs less than a hundredth of a pixel and half the bytes."""
    state = {name: tensor.detach().half().contiguous() for name, tensor in network.state_dict().items()}
    save_file({name: tensor for name, tensor in state.items() if "num_batches" not in name}, path)


def evaluate(network: Network, held: Crops, most: int | None = None) -> dict[str, float]:
    """The mean error on held-out faces in percent of the distance between the eyes, and how well the fit tells it.

    Each is looked at as in use: from a canonical crop a little off (5 % of the eye distance, as a detector's points
    are), and then again from what was found.
    """
    network.eval()
    random, first, second, fits, corners = np.random.default_rng(0), [], [], [], []
    parts: dict[str, list[float]] = {name: [] for name in PARTS}
    chosen = range(0, len(held.images), 1 if most is None else max(1, len(held.images) // most))
    for image, points in ((held.images[number], held.points[number]) for number in chosen):
        eyes = float(eye_distance(points))
        where = five(points) + random.normal(0, 0.05 * eyes, (5, 2))
        for errors in (first, second):
            matrix = align.crop_matrix(where, SIZE)
            crop = torch.from_numpy(align.crop(image, matrix, SIZE)).permute(2, 0, 1)[None].float() / 255
            with torch.inference_mode():
                drawn, logit = network(crop.to(memory_format=torch.channels_last))
            found = align.apply(align.invert(matrix), drawn[0].numpy() * SIZE)
            errors.append(100 * np.linalg.norm(found - points, axis=1).mean() / eyes)
            where = five(found)
        apart = 100 * np.linalg.norm(found - points, axis=1) / eyes
        for name, part in PARTS.items():
            parts[name].append(float(apart[part].mean()))
        corners.append(apart.mean() * eyes / np.linalg.norm(points[36] - points[45]))
        fits.append(float(torch.sigmoid(logit)))
    network.train()
    expected = -5 * np.log2(np.array(fits))
    return {
        "error": float(np.mean(second)),
        "error_first_look": float(np.mean(first)),
        "median": float(np.median(second)),
        "worst_twentieth": float(np.percentile(second, 95)),
        "correlation_of_fit": float(np.corrcoef(expected, second)[0, 1]),
        "expected_by_fit": float(np.mean(expected)),
        "error_by_outer_corners": float(np.mean(corners)),
        **{f"error_{name}": float(np.mean(values)) for name, values in parts.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--evaluate", action="store_true", help="only measure the weights in OUT, on what is held out")
    parser.add_argument("--actors", type=Path)
    parser.add_argument("--nothing", type=Path)
    parser.add_argument("--start", type=Path, help="weights to go on from")
    parser.add_argument("--faces", type=int, default=400_000, help="length of the training")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    taught, held = read_taught(options.data)
    if options.evaluate:
        print(json.dumps(evaluate(landmarks.load(options.out), held), indent=1))
        return
    actors = read_actors(options.actors) if options.actors else Crops()
    nothing = read_nothing(options.nothing) if options.nothing else []
    print(
        f"{len(taught.images)} faces, {len(held.images)} held out, "
        f"{len(actors.images)} of actors, {len(nothing)} of nothing",
        flush=True,
    )
    train(taught, held, actors, nothing, options)


if __name__ == "__main__":
    main()
