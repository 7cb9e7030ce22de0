"""Triangles to the samples and pixels that show them.

Convention: pictures are square, points (x, y) float32 with pixel centres at integers, samples with centres at halves.
Arrays are planar, (channels, N). A pixel has 2 x 2 samples.
"""

from dataclasses import dataclass

import numpy as np

from faceswap.heads import Array

FAR = np.float32(-1e9)


def rasterise(x: Array, y: Array, depth: Array, corners: Array, side: int) -> tuple[Array, Array]:
    """Which triangle each sample of a square picture shows: owner (side^2), -1 none; its depth (side^2) float32.

    `x`, `y` (N,) float32 are in samples, the first sample's centre at (0.5, 0.5); the greatest `depth` wins. Triangles,
    `corners` (3, T), are seen from their counter-clockwise face.

    By scanline: a row of samples crosses a triangle between its longest edge and one of the short ones. An edge is
    always evaluated from its upper end, hence to the same bits for both triangles that share it: no holes, no overlap.
    """
    which, (top, mid, low) = _visible(x, y, depth, corners, side)
    (x0, y0, z0), (x1, y1, z1), (x2, y2, z2) = top, mid, low
    first, last = np.maximum(np.ceil(y0 - 0.5), 0), np.minimum(np.ceil(y2 - 0.5), side)
    slope_long, slope_upper, slope_lower = _slope(x0, y0, x2, y2), _slope(x0, y0, x1, y1), _slope(x1, y1, x2, y2)
    area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
    area[area == 0] = np.inf  # a sliver, by rounding: take its depth as constant
    z_across = ((z1 - z0) * (y2 - y0) - (z2 - z0) * (y1 - y0)) / area
    z_down = ((z2 - z0) * (x1 - x0) - (z1 - z0) * (x2 - x0)) / area
    # One span per triangle and row.
    rows = np.maximum(last - first, 0).astype(np.intp)
    of, step = _expand(rows)
    row = first.astype(np.intp)[of] + step
    middle = row.astype(np.float32) + 0.5
    left0, down = x0[of], middle - y0[of]
    one = left0 + down * slope_long[of]
    above_mid = middle < y1[of]
    other = np.where(above_mid, left0 + down * slope_upper[of], x1[of] + (middle - y1[of]) * slope_lower[of])
    start = np.clip(np.ceil(np.minimum(one, other) - 0.5), 0, side)
    count = (np.clip(np.ceil(np.maximum(one, other) - 0.5), 0, side) - start).astype(np.intp)
    across = z_across[of]
    z_start = z0[of] + down * z_down[of] + (start + 0.5 - left0) * across
    # One candidate per span and sample.
    span, step = _expand(count)
    at = (row * side + start.astype(np.intp))[span] + step
    z = z_start[span] + across[span] * step.astype(np.float32)
    nearest = np.full(side * side, FAR)
    np.maximum.at(nearest, at, z)
    wins = np.flatnonzero(z == nearest[at])
    owner = np.full(side * side, -1, np.int32)
    owner[at[wins]] = which[of[span[wins]]]
    return owner, nearest


def _visible(
    x: Array, y: Array, depth: Array, corners: Array, side: int
) -> tuple[Array, list[tuple[Array, Array, Array]]]:
    """Indices of the triangles that face us and reach a sample row; their corners (x, y, z) from top to bottom."""
    a, b, c = corners
    xa, xb, xc, ya, yb, yc = x[a], x[b], x[c], y[a], y[b], y[c]
    area = (xb - xa) * (yc - ya) - (xc - xa) * (yb - ya)  # negative if counter-clockwise, as y points down
    shown = area < -1e-6
    top, low = np.minimum(np.minimum(ya, yb), yc), np.maximum(np.maximum(ya, yb), yc)
    shown &= (np.ceil(low - 0.5) > np.ceil(top - 0.5)) & (low > 0) & (top < side)
    which = np.flatnonzero(shown)
    a, b, c = a[which], b[which], c[which]
    a, b = _by_height(y, a, b)
    b, c = _by_height(y, b, c)
    a, b = _by_height(y, a, b)
    return which, [(x[corner], y[corner], depth[corner]) for corner in (a, b, c)]


def _by_height(y: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """Vertices `a` and `b`, the upper one first; of level ones the lower index, whichever triangle asks."""
    ya, yb = y[a], y[b]
    swap = (yb < ya) | ((yb == ya) & (b < a))
    return np.where(swap, b, a), np.where(swap, a, b)


def _slope(x0: Array, y0: Array, x1: Array, y1: Array) -> Array:
    """dx/dy of an edge; 0 for a level one, which no row crosses."""
    height = y1 - y0
    return np.asarray((x1 - x0) / np.where(height > 0, height, np.inf), np.float32)


def _expand(counts: Array) -> tuple[Array, Array]:
    """For [2, 0, 3]: the indices [0, 0, 2, 2, 2] and the steps [0, 1, 0, 1, 2]."""
    index = np.repeat(np.arange(len(counts)), counts)
    return index, np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)


def take(rows: Array, index: Array) -> Array:
    """`rows[:, index]`, which NumPy does several times as fast row by row."""
    return np.stack([row[index] for row in rows])


@dataclass(frozen=True)
class Fragments:
    """Bits of surface of one kind, each with its share of a pixel."""

    pixel: Array  # (N,) index into the picture, row by row
    share: Array  # (N,) float32, 0 to 1, of the pixel's area
    triangle: Array  # (N,)
    corners: Array  # (3, N) vertices
    weights: Array  # (3, N) float32: barycentric coordinates in the picture

    def interpolate(self, values: Array) -> Array:
        """`values` (C, V) of the vertices at the fragments: (C, N)."""
        (a, b, c), (wa, wb, wc) = self.corners, self.weights
        return np.stack([row[a] * wa + row[b] * wb + row[c] * wc for row in values])

    def only(self, index: Array) -> "Fragments":
        return Fragments(
            self.pixel[index],
            self.share[index],
            self.triangle[index],
            take(self.corners, index),
            take(self.weights, index),
        )


def barycentric(flat: Array, corners: Array, x: Array, y: Array) -> Array:
    """Barycentric coordinates (3, N) of (x, y) in triangles with `corners` (3, N) among the points `flat` (2, V).

    Limited to a little beyond the triangle: a pixel's centre may lie outside the triangle that its samples show.
    """
    a, b, c = corners
    (xa, ya), (xb, yb), (xc, yc) = take(flat, a), take(flat, b), take(flat, c)
    across, up = x - xc, y - yc
    area = np.minimum((yb - yc) * (xa - xc) + (xc - xb) * (ya - yc), -1e-9)  # all face us; slivers round to 0
    wa = np.clip(((yb - yc) * across + (xc - xb) * up) / area, -0.5, 1.5)
    wb = np.clip(((yc - ya) * across + (xa - xc) * up) / area, -0.5, 1.5)
    return np.stack([wa, wb, 1 - wa - wb])


OFFSETS = np.array([[-0.25, 0.25, -0.25, 0.25], [-0.25, -0.25, 0.25, 0.25]], np.float32)  # samples from centre: x, y


def covered_pixels(covered: Array, size: int) -> tuple[Array, Array]:
    """Pixels (N,) of which a sample is covered, and their samples (4, N) in the order of `OFFSETS`.

    `covered` (4 * size^2,) bool, a row of samples after the other.
    """
    rows = covered.reshape(size, 2, 2 * size)
    either = rows[:, 0] | rows[:, 1]
    pixels = np.flatnonzero(either[:, 0::2] | either[:, 1::2])
    corner = pixels // size * (4 * size) + pixels % size * 2
    return pixels, np.stack([corner, corner + 1, corner + 2 * size, corner + 2 * size + 1])
