"""(face, target, mask) -> face: give a drawn face the colours of the footage.

Convention: `face` and `target` are crops (S, S, 3) float32 RGB in [0, 1], `mask` is (S, S) float32 in [0, 1];
statistics are taken under the mask only, in both.

A transfer has two halves. `measure(face, target, mask)` gives a `State`: a small array that may be averaged over
frames. `apply(face, state)` changes the colours of a whole crop. What is measured in one frame alone trembles with
every blink and every hand that passes: `smooth` averages the states of one face over the frames around each frame.
Called like a function, a transfer measures and applies on one frame.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from faceswap.errors import UsageError
from faceswap.registry import suggest

Image = NDArray[np.float32]
Numbers = NDArray[np.float64]

# Variances added on both sides: where neither image varies, as the hues of a soft face hardly do, nothing is stretched.
LEAST_LAB, LEAST_RGB, LEAST_TERM = 4.0, 1e-3, 3e-4
LEAST_PIXELS = 1.0  # a mask that sums to less than one pixel shows nothing
SAMPLES, BINS = 4096, 64  # pixels taken for what must be sorted; bins of a table of quantiles
LEAST_SLOPE = 2e-3  # what a table of quantiles rises by at least, over its length: no two are equal
STEPS = 12  # of optimal transport, each along three axes
MOST_STRETCHED = 1.5  # times: a soft face stretched to the contrast of sharp footage has holes for eyes
DEVIATIONS = 2.5  # at which the Gaussian of `smooth` ends


# ---------------------------------------------------------------- the two halves, and time between them


@dataclass(frozen=True)
class State:
    """What a transfer knows of a face in one frame, or in several on the average."""

    weight: float  # mean of the mask: how much there was to see; 0: nothing, the face stays as drawn
    values: Numbers  # as the transfer makes them; the mean of several is meaningful


NOTHING = State(0.0, np.zeros(0))


@dataclass(frozen=True)
class Transfer:
    """A colour transfer in its two halves."""

    statistics: Callable[[Image, Image, Image], Numbers]  # (face, target, mask) -> values; the mask shows something
    change: Callable[[Image, Numbers], Image]  # (face, values) -> face in [0, 1]

    def measure(self, face: Image, target: Image, mask: Image) -> State:
        """`NOTHING` where the mask shows less than a pixel."""
        total = float(mask.sum(dtype=np.float64))
        if not total >= LEAST_PIXELS:
            return NOTHING
        return State(total / mask.size, self.statistics(face, target, mask))

    def apply(self, face: Image, state: State) -> Image:
        """The face (S, S, 3) with its colours changed; as drawn if the state knows nothing."""
        return self.change(face, state.values) if state.weight > 0 else face

    def __call__(self, face: Image, target: Image, mask: Image) -> Image:
        return self.apply(face, self.measure(face, target, mask))


def smooth(states: Mapping[int, State], frame: int, reach: int) -> State:
    """The state of one face at `frame`, averaged with those at most `reach` frames before and after.

    `states` are those of one track, by frame; tracks end at cuts, so no light leaks from one shot into the next. The
    weights are a Gaussian over time, times how much of the face each frame shows. There is no lag, and the result
    depends on nothing beyond the window: a video rendered in parts looks the same bit for bit, if each part measures
    `reach` frames more at both ends.
    """
    window = range(frame - reach, frame + reach + 1)
    near = [(index, states[index]) for index in window if index in states and states[index].weight > 0]
    if not near:
        return NOTHING
    narrow = DEVIATIONS / max(reach, 1)
    shares = [state.weight * math.exp(-(((index - frame) * narrow) ** 2) / 2) for index, state in near]
    total = math.fsum(shares)
    values = np.zeros_like(near[0][1].values)
    for share, (_, state) in zip(shares, near, strict=True):
        values += share / total * state.values
    return State(
        math.fsum(share * state.weight for share, (_, state) in zip(shares, near, strict=True)) / total, values
    )


# ---------------------------------------------------------------- linear: means and covariances


Solve = Callable[[Numbers, Numbers], Numbers]


def _linear(solve: Solve, *, lab: bool = False) -> Transfer:
    """The transfer by one matrix: `solve` makes (3, 4), from (x, y, z, 1) to (x, y, z), out of the moments of the face
    and of the target, each (3, 4): the mean beside the covariance, in RGB or in CIELAB."""
    least = (LEAST_LAB if lab else LEAST_RGB) * np.eye(3, 4, 1)

    def statistics(face: Image, target: Image, mask: Image) -> Numbers:
        return np.stack([_moments(_to_lab(image) if lab else image, mask) for image in (face, target)])

    def change(face: Image, values: Numbers) -> Image:
        matrix = solve(values[0] + least, values[1] + least)
        moved = cv2.transform(_to_lab(face) if lab else face, matrix)
        return _clip(cv2.cvtColor(moved, cv2.COLOR_LAB2RGB) if lab else moved)

    return Transfer(statistics, change)


def _reinhard(ours: Numbers, theirs: Numbers) -> Numbers:
    """Mean and standard deviation per channel in CIELAB (Reinhard et al., "Color transfer between images", 2001)."""
    return _about(np.diag(np.sqrt(np.diag(theirs[:, 1:]) / np.diag(ours[:, 1:]))), ours, theirs)


def _lct(ours: Numbers, theirs: Numbers) -> Numbers:
    """Mean and covariance of RGB by their Cholesky factors, one of the linear maps that Pitié and Kokaram compare.
    Red changes by red alone, and green without blue; of the maps that do the same `mkl` moves colours least."""
    lower = np.linalg.cholesky(np.stack([ours[:, 1:], theirs[:, 1:]]))
    return _about(lower[1] @ np.linalg.inv(lower[0]), ours, theirs)


def _mkl(ours: Numbers, theirs: Numbers) -> Numbers:
    """Mean and covariance of RGB by the linear Monge-Kantorovich map (Pitié and Kokaram, "The linear
    Monge-Kantorovitch linear colour mapping for example-based colour transfer", 2007)."""
    return _about(_monge(ours[:, 1:], theirs[:, 1:]), ours, theirs)


def _mix(ours: Numbers, theirs: Numbers) -> Numbers:
    """Lightness as drawn, colour of the footage: a and b of CIELAB by the linear Monge-Kantorovich map."""
    matrix = np.eye(3, 4)
    matrix[1:, 1:3] = _tamed(_monge(ours[1:, 2:], theirs[1:, 2:]))
    matrix[1:, 3] = theirs[1:, 0] - matrix[1:, 1:3] @ ours[1:, 0]
    return matrix


def _about(linear: Numbers, ours: Numbers, theirs: Numbers) -> Numbers:
    """The map (3, 4) that is `linear` (3, 3), tamed, and takes mean to mean."""
    linear = _tamed(linear)
    return np.column_stack([linear, theirs[:, 0] - linear @ ours[:, 0]])


def _tamed(linear: Numbers) -> Numbers:
    """The matrix with no direction stretched over `MOST_STRETCHED`."""
    left, stretches, right = np.linalg.svd(linear)
    return np.asarray((left * np.minimum(stretches, MOST_STRETCHED)) @ right)


def _monge(cov: Numbers, goal: Numbers) -> Numbers:
    """The symmetric matrix that takes one covariance to another and moves colours least."""
    root, inverse = _power(cov, 0.5), _power(cov, -0.5)
    return np.asarray(inverse @ _power(root @ goal @ root, 0.5) @ inverse)


def _power(matrix: Numbers, exponent: float) -> Numbers:
    """A power of a symmetric, positive definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * values**exponent) @ vectors.T)


def _moments(image: Image, mask: Image) -> Numbers:
    """The mean (3, 1) beside the covariance (3, 3) of the pixels under the mask."""
    under = np.flatnonzero(mask > 0)
    weight = mask.reshape(-1)[under].astype(np.float64)
    pixels = image.reshape(-1, 3)[under].astype(np.float64)
    weight /= weight.sum()
    mean = weight @ pixels
    pixels -= mean
    return np.column_stack([mean, (pixels * weight[:, None]).T @ pixels])


# ---------------------------------------------------------------- by sorted colours


def _histogram() -> Transfer:
    """The distribution of each channel of RGB. A state holds quantiles, not counts: the mean of quantiles is again
    those of a distribution with one bulk, where the mean of histograms that moved has two."""

    def statistics(face: Image, target: Image, mask: Image) -> Numbers:
        ranked = np.sort(_samples(face, target, mask), axis=2)  # (2, 3, SAMPLES)
        return np.asarray(ranked.reshape(2, 3, BINS, -1).mean(3, dtype=np.float64))

    def change(face: Image, values: Numbers) -> Image:
        rise = np.linspace(-LEAST_SLOPE / 2, LEAST_SLOPE / 2, BINS)
        beyond = np.array([-1.0, *np.zeros(BINS), 1.0])  # past the darkest and the brightest bin colours are shifted
        tables = np.pad(values + rise, ((0, 0), (0, 0), (1, 1)), mode="edge") + beyond
        channels = [np.interp(face[..., i], tables[0, i], tables[1, i]) for i in range(3)]
        return _clip(np.stack(channels, 2).astype(np.float32))

    return Transfer(statistics, change)


def _transport(terms: Callable[[Image], list[Image]], bases: int) -> Transfer:
    """Optimal transport step by step: in each, colours move as their order along the axes of `bases` turned bases says.

    One base a step is iterative distribution transfer (Pitié et al., "Automated colour grading using colour
    distribution transfer", 2007), several are sliced optimal transport (Rabin et al., "Wasserstein barycenter and its
    application to texture mixing", 2011). Either moves every sample its own way, noise included; what is applied is the
    nearest map that is linear in `terms` of the colours, K times (..., 3). A state holds the normal equations of that
    fit, (1 + 3K, 1 + 3K + 3), whose mean over frames is the fit to the colours of all of them.
    """
    axes = np.linalg.qr(np.random.default_rng(0).standard_normal((STEPS, bases, 3, 3)))[0].astype(np.float32)

    def statistics(face: Image, target: Image, mask: Image) -> Numbers:
        ours, theirs = _samples(face, target, mask)  # (3, SAMPLES)
        moved = ours
        for turns in axes:
            step = np.zeros_like(moved)
            for turn in turns:
                along = turn @ moved
                ranked = np.empty_like(along)
                np.put_along_axis(ranked, along.argsort(1), np.sort(turn @ theirs, 1), 1)
                step += turn.T @ (ranked - along)
            moved = moved + step / len(turns)
        known = np.column_stack([np.ones(SAMPLES), *terms(np.ascontiguousarray(ours.T))])
        return np.array(known.T @ np.column_stack([known, (moved - ours).T]) / SAMPLES, np.float64)

    def change(face: Image, values: Numbers) -> Image:
        count = len(values)
        mean, move = values[0, 1:count], values[0, count:]
        spread = values[1:, 1:count] - np.outer(mean, mean)
        together = values[1:, count:] - np.outer(mean, move)
        gain = np.linalg.solve(spread + LEAST_TERM * np.eye(count - 1), together)  # (3K, 3)
        moved = face + (move - mean @ gain).astype(np.float32)
        for part, own in zip(terms(face), np.split(gain, (count - 1) // 3), strict=True):
            moved += cv2.transform(part, own.T)
        return _clip(moved)

    return Transfer(statistics, change)


def _first_order(colors: Image) -> list[Image]:
    """Colours (..., 3) in [-1, 1]."""
    return [colors * 2 - 1]


def _second_order(colors: Image) -> list[Image]:
    """Colours in [-1, 1], their squares and their products, each (..., 3)."""
    middle = colors * 2 - 1
    return [middle, middle * middle, middle * middle[..., [1, 2, 0]]]


def _samples(face: Image, target: Image, mask: Image) -> Image:
    """Colours (2, 3, SAMPLES) of the face and of the target at the same pixels, evenly taken from the mask's weight."""
    total = mask.reshape(-1).cumsum(dtype=np.float64)
    chosen = np.searchsorted(total, (np.arange(SAMPLES) + 0.5) * (total[-1] / SAMPLES))
    return np.stack([image.reshape(-1, 3)[chosen].T for image in (face, target)])


def _to_lab(image: Image) -> Image:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), np.float32)


def _clip(image: NDArray[Any]) -> Image:
    return np.clip(image, 0, 1, out=image)


# As drawn.
none = Transfer(lambda face, target, mask: np.zeros(0), lambda face, values: face)
reinhard, lct, mkl, mix = _linear(_reinhard, lab=True), _linear(_lct), _linear(_mkl), _linear(_mix, lab=True)
histogram = _histogram()
idt, sliced_ot = _transport(_second_order, bases=1), _transport(_first_order, bases=2)

TABLE: dict[str, Transfer] = {
    "none": none,
    "reinhard": reinhard,
    "lct": lct,
    "mkl": mkl,
    "idt": idt,
    "sliced-ot": sliced_ot,
    "mix": mix,
    "histogram": histogram,
}


def get(name: str) -> Transfer:
    """The transfer `name`; `UsageError` if there is none."""
    if name not in TABLE:
        raise UsageError(f"merge.color: no transfer called {name!r}; {suggest(name, TABLE)}")
    return TABLE[name]
