"""Tests of faceswap.raster: every sample shows the nearest triangle, and neighbours leave no gap."""

import numpy as np

from faceswap import heads, raster


def test_the_rasteriser_leaves_no_seam_and_finds_the_nearest() -> None:
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(-2, 34, 12), np.linspace(-2, 34, 12))
    x[1:-1, 1:-1] += rng.uniform(-1, 1, (10, 10))
    y[1:-1, 1:-1] += rng.uniform(-1, 1, (10, 10))
    corners = heads.grid_triangles(12, 12)
    flat = np.stack([x.ravel(), y.ravel()]).astype(np.float32)
    plane = 0.5 * flat[0] + 2 * flat[1]
    owner, depth = raster.rasterise(flat[0], flat[1], plane, corners, 32)
    assert (owner >= 0).all()
    column, row = np.meshgrid(np.arange(32) + 0.5, np.arange(32) + 0.5)
    np.testing.assert_allclose(depth, (0.5 * column + 2 * row).ravel(), atol=1e-2)  # a plane comes back
    weights = raster.barycentric(flat, corners[:, owner], column.ravel(), row.ravel())
    assert weights.min() > -1e-3
    two_planes = np.concatenate([plane, plane + 1])
    owner, _ = raster.rasterise(
        np.tile(flat[0], 2), np.tile(flat[1], 2), two_planes, np.concatenate([corners, corners + 144], 1), 32
    )
    assert (owner >= corners.shape[1]).all()
    owner, _ = raster.rasterise(flat[0], flat[1], plane, corners[::-1], 32)
    assert (owner == -1).all()  # from behind


def test_covered_pixels_are_those_with_a_covered_sample() -> None:
    size = 5
    covered = np.random.default_rng(0).random((2 * size, 2 * size)) < 0.15
    pixels, samples = raster.covered_pixels(covered.ravel(), size)
    by_pixel = covered.reshape(size, 2, size, 2).any((1, 3))
    assert pixels.tolist() == np.flatnonzero(by_pixel).tolist()
    rows, columns = np.divmod(samples, 2 * size)
    assert (rows // 2 * size + columns // 2 == pixels).all(), "all four samples lie in their pixel"
    places = np.stack([columns, rows]) - 2 * np.stack([pixels % size, pixels // size])[:, None]
    assert np.allclose(places / 2 - 0.25, raster.OFFSETS[:, :, None]), "in the order of OFFSETS"


def test_expand_counts() -> None:
    index, step = raster._expand(np.array([2, 0, 3]))
    assert index.tolist() == [0, 0, 2, 2, 2] and step.tolist() == [0, 1, 0, 1, 2]
