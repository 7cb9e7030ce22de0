"""Tests of faceswap.blend: the face lies where the mask says, the rest of the frame stays."""

from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import lil_array
from scipy.sparse.linalg import spsolve

from faceswap import align, blend
from faceswap.errors import UsageError
from faceswap.masks import face_mask

SIZE = 48
PLACE = np.array([[1.0, 0, -30], [0, 1, -20]])  # the crop lies at x 30 to 77, y 20 to 67, pixel on pixel
Image = NDArray[np.float32]
TURNED = np.array([[1.1, -0.4, -20], [0.4, 1.1, -50]])


@pytest.fixture
def frame() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


@pytest.fixture
def face() -> NDArray[np.float32]:
    return np.random.default_rng(1).uniform(0, 1, (SIZE, SIZE, 3)).astype(np.float32)


def full(value: float) -> NDArray[np.float32]:
    return np.full((SIZE, SIZE), value, np.float32)


def paste(image: NDArray[Any], face: Image, mask: Image, matrix: align.Matrix, way: blend.Blend) -> NDArray[Any]:
    """A copy of a frame with a crop laid in, as `swap.lay_in` does it; the frame itself if nothing shows."""
    mask = blend.leaving(mask, matrix, image.shape)
    where = blend.covered(mask, matrix, image.shape)
    if where is None:
        return image
    x0, y0, x1, y1 = where
    part = image[y0:y1, x0:x1]
    pixels, shown = blend.lay_in(part, where, face, mask, matrix, way)
    if not shown.any():
        return image
    result = image.copy()
    result[y0:y1, x0:x1] = cv2.copyTo(pixels, shown.view(np.uint8), part.copy())
    return result


@pytest.mark.parametrize("name", blend.TABLE)
@pytest.mark.parametrize("matrix", [PLACE, TURNED])
def test_mask_0_leaves_the_frame_bit_for_bit(
    frame: NDArray[np.uint8], face: NDArray[np.float32], matrix: align.Matrix, name: str
) -> None:
    before = frame.copy()
    result = paste(frame, face, full(0), matrix, blend.get(name))
    np.testing.assert_array_equal(result, before)
    assert result.dtype == np.uint8


def test_no_blend_reaches_beyond_the_mask(frame: NDArray[np.uint8], face: NDArray[np.float32]) -> None:
    result = paste(frame, face, full(0), PLACE, lambda frame, face, mask: face)
    np.testing.assert_array_equal(result, frame)


@pytest.mark.parametrize("name", ["alpha", "feather"])
def test_mask_1_gives_the_face(frame: NDArray[np.uint8], face: NDArray[np.float32], name: str) -> None:
    before = frame.copy()
    result = paste(frame, face, full(1), PLACE, blend.get(name))
    np.testing.assert_array_equal(result[20:68, 30:78], np.round(face * 255).astype(np.uint8))
    rest = np.ones(frame.shape[:2], bool)
    rest[20:68, 30:78] = False
    np.testing.assert_array_equal(result[rest], before[rest])
    np.testing.assert_array_equal(frame, before)


def test_half_a_mask_gives_the_mean(frame: NDArray[np.uint8], face: NDArray[np.float32]) -> None:
    result = paste(frame, face, full(0.5), PLACE, blend.feather)[20:68, 30:78]
    assert np.abs(result - (frame[20:68, 30:78] / 2 + face * 127.5)).max() <= 0.51


@pytest.mark.parametrize("name", blend.TABLE)
def test_only_the_pixels_under_the_mask_change(frame: NDArray[np.uint8], face: NDArray[np.float32], name: str) -> None:
    mask = face_mask(align.TEMPLATE * SIZE, SIZE)
    changed = (paste(frame, face, mask, PLACE, blend.get(name)) != frame).any(2)
    rest = np.ones(frame.shape[:2], bool)
    rest[20:68, 30:78] = False
    assert not changed[rest].any()
    assert not changed[20:68, 30:78][mask == 0].any()
    assert changed[20:68, 30:78][mask == 1].mean() > 0.95


def test_a_turned_face_touches_its_region_only(frame: NDArray[np.uint8], face: NDArray[np.float32]) -> None:
    where = align.region(TURNED, SIZE, frame.shape)
    assert where is not None
    changed = (paste(frame, face, full(1), TURNED, blend.feather) != frame).any(2)
    x0, y0, x1, y1 = where
    assert changed[y0:y1, x0:x1].sum() == changed.sum() > 0.9 * SIZE**2 / align.scale_of(TURNED) ** 2


@pytest.mark.parametrize(("x", "y"), [(-20, -30), (100, 70), (-10, 60), (40, -47)])
def test_a_face_partly_outside_shows_its_part(
    frame: NDArray[np.uint8], face: NDArray[np.float32], x: int, y: int
) -> None:
    place = np.array([[1.0, 0, -x], [0, 1, -y]])
    result = paste(frame, face, full(1), place, blend.feather)
    mask = blend.leaving(full(1), place, frame.shape)[..., None]
    padded = np.pad(frame, ((100, 100), (100, 100), (0, 0))).astype(np.float32)
    under = padded[y + 100 : y + 100 + SIZE, x + 100 : x + 100 + SIZE]
    under += (face * 255 - under) * mask
    assert np.abs(result - padded[100:190, 100:220]).max() <= 0.51


@pytest.mark.parametrize(("x", "y"), [(-60, 20), (130, 20), (20, -60), (20, 100)])
def test_a_face_outside_the_frame_changes_nothing(
    frame: NDArray[np.uint8], face: NDArray[np.float32], x: int, y: int
) -> None:
    result = paste(frame, face, full(1), np.array([[1.0, 0, -x], [0, 1, -y]]), blend.feather)
    np.testing.assert_array_equal(result, frame)


@pytest.mark.parametrize("name", blend.TABLE)
def test_a_face_cut_from_its_frame_goes_back_unseen(name: str) -> None:
    x, y = np.meshgrid(np.linspace(0, 1, 120), np.linspace(0, 1, 90))
    frame = (255 * np.stack([x, y, (x + y) / 2], 2)).round().astype(np.uint8)
    crop = align.crop(frame, TURNED, SIZE).astype(np.float32) / np.float32(255)
    mask = blend.soften(full(1), 0.05, 0.02)
    result = paste(frame, crop, mask, TURNED, blend.get(name))
    assert np.abs(result.astype(int) - frame).max() <= 2


@pytest.mark.parametrize("name", blend.TABLE)
def test_a_face_that_is_the_frame_goes_back_as_it_was(name: str) -> None:
    frame = np.random.default_rng(3).integers(0, 2**16, (90, 120, 3), dtype=np.uint16)
    crop = frame[20:68, 30:78].astype(np.float32) / np.float32(65535)
    result = paste(frame, crop, round_mask((SIZE, SIZE), 14), PLACE, blend.get(name))
    # Of 65535 levels; what lies beyond the crop is not the frame, and the coarse grids see a little of it.
    assert np.abs(result.astype(int) - frame).max() <= (0 if name in ("alpha", "feather") else 8)


@pytest.mark.parametrize("name", blend.TABLE)
def test_16_bits_stay_16_bits(face: NDArray[np.float32], name: str) -> None:
    deep = np.random.default_rng(3).integers(0, 2**16, (90, 120, 3), dtype=np.uint16)
    mask = blend.soften(full(1), 0, 0.03)
    result = paste(deep, face, mask, PLACE, blend.get(name))
    assert result.dtype == np.uint16
    assert len(np.unique(result[20:68, 30:78] % 257)) > 200  # what has gone through 8 bits is a multiple of 257
    shallow = paste(align.as_uint8(deep), face, mask, PLACE, blend.get(name))
    assert np.abs(result / 257 - shallow).max() < 1.2
    if name == "feather":
        np.testing.assert_array_equal(result[44, 54], np.round(face[24, 24] * 65535).astype(np.uint16))


@pytest.mark.parametrize("erode", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("feather", [0.0, 0.03, 0.2])
def test_soften_stays_in_range_and_ends_inside_the_crop(erode: float, feather: float) -> None:
    given = full(1)
    mask = blend.soften(given, erode, feather)
    assert mask.dtype == np.float32 and mask.shape == (SIZE, SIZE) and (given == 1).all()
    assert mask.min() >= 0 and mask.max() <= 1 + 1e-6 and (mask[mask > 0] >= 1 / 255).all()
    assert not mask[[0, -1]].any() and not mask[:, [0, -1]].any()


@pytest.mark.parametrize("feather", [0.0, 0.03, 0.1])
def test_eroding_shrinks_steadily(feather: float) -> None:
    mask = face_mask(align.TEMPLATE * SIZE, SIZE)
    softened = [blend.soften(mask, erode, feather) for erode in (0, 0.03, 0.06, 0.1, 0.2)]
    for wide, narrow in pairwise(softened):
        assert (narrow <= wide + 1e-6).all() and narrow.sum() < wide.sum()


def test_feathering_softens_and_does_not_grow() -> None:
    mask = face_mask(align.TEMPLATE * SIZE, SIZE)
    sharp, soft, softer = (blend.soften(mask, 0, feather) for feather in (0, 0.03, 0.08))
    np.testing.assert_array_equal(sharp, mask)
    steps = [np.abs(np.diff(image, axis=1)).max() for image in (sharp, soft, softer)]
    assert steps[0] > steps[1] > steps[2]
    assert soft[mask == 0].max() < 0.3 and softer[mask == 0].max() < 0.3


@pytest.mark.parametrize("feather", [0.03, 0.1])
def test_a_full_mask_fades_out_before_the_border(feather: float) -> None:
    mask = blend.soften(np.ones((128, 128), np.float32), 0, feather)
    assert np.abs(np.diff(mask[64]))[:3].max() < 0.03


def test_a_negative_erode_lets_the_mask_grow() -> None:
    mask = face_mask(align.TEMPLATE * SIZE, SIZE)
    for feather in (0, 0.02):
        areas = [blend.soften(mask, erode, feather).sum() for erode in (-0.1, -0.05, 0, 0.05)]
        assert all(wide > narrow for wide, narrow in pairwise(areas))
    grown = blend.soften(mask, -0.0625, 0)
    assert (grown >= mask - 1 / 255).all() and not grown[[0, -1]].any()
    reach = cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7)))  # 3 px
    np.testing.assert_array_equal(grown > 0, reach >= 1 / 255)


def test_alpha_is_not_softened() -> None:
    mask = face_mask(align.TEMPLATE * SIZE, SIZE)
    np.testing.assert_array_equal(blend.through("alpha", mask, 0.0, 0.05), mask)
    np.testing.assert_array_equal(blend.through("alpha", mask, 0.05, 0.05), blend.soften(mask, 0.05, 0))
    for name in ("feather", "laplacian", "poisson"):
        np.testing.assert_array_equal(blend.through(name, mask, 0.01, 0.05), blend.soften(mask, 0.01, 0.05))


# ---------------------------------------------------------------- where the face leaves the frame


def at(x: float, y: float, scale: float = 1.0) -> align.Matrix:
    """The crop's first pixel lies at (x, y)."""
    return np.array([[scale, 0, -x * scale], [0, scale, -y * scale]])


def test_a_face_wholly_inside_does_not_fade() -> None:
    mask = face_mask(align.TEMPLATE * SIZE, SIZE)
    assert blend.leaving(mask, PLACE, (90, 120)) is mask
    edge = int(np.nonzero(mask.any(0))[0][0])  # the crop reaches out of the frame, the mask does not
    np.testing.assert_array_equal(blend.leaving(mask, at(-edge, 20), (90, 120)), mask)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("side", ["left", "top", "right", "bottom"])
def test_a_face_that_leaves_fades_out_at_that_border_only(side: str, scale: float) -> None:
    half, middle = SIZE / 2 / scale, 200.0
    where = {
        "left": (-half, middle),
        "top": (middle, -half),
        "right": (399 - half, middle),
        "bottom": (middle, 399 - half),
    }
    mask = blend.leaving(full(1), at(*where[side], scale), (400, 400))
    inwards = {"left": mask, "top": mask.T, "right": mask[:, ::-1], "bottom": mask.T[:, ::-1]}[side]
    assert (inwards == inwards[0]).all()  # nothing along the border
    first = int(np.nonzero(inwards[0])[0][0])
    assert abs(first - SIZE / 2) <= 1.5
    assert (np.diff(inwards[0]) >= 0).all() and np.diff(inwards[0]).max() < 0.45
    assert (inwards[0, first + int(blend.LEAVING * SIZE) + 1 :] == 1).all()


def test_the_fade_comes_in_by_degrees() -> None:
    large = np.ones((200, 200), np.float32)
    shown = [blend.leaving(large, at(-x, 100), (400, 400))[100] for x in np.arange(0, 30, 0.5)]
    for x, (before, after) in zip(np.arange(0, 30, 0.5), pairwise(shown), strict=False):
        visible = np.arange(200) >= x + 0.5
        assert (after <= before + 1e-6).all()
        assert np.abs(after - before)[visible].sum() < 1.2  # px of mask per half a pixel of motion


@pytest.mark.parametrize("name", blend.TABLE)
def test_no_hard_line_at_the_frames_border(name: str) -> None:
    frame, face = np.full((100, 100, 3), 60, np.uint8), np.full((SIZE, SIZE, 3), 0.8, np.float32)
    result = paste(frame, face, blend.soften(full(1), 0, 0.02), at(-20, 30), blend.get(name))
    np.testing.assert_array_equal(result[:, 0], frame[:, 0])


# ---------------------------------------------------------------- laplacian


def textured(seed: int, shape: tuple[int, int], grain: int) -> Image:
    """Noise (h, w, 3) in [0.2, 0.8] with grains of so many px."""
    coarse = np.random.default_rng(seed).uniform(0.2, 0.8, (shape[0] // grain, shape[1] // grain, 3)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_LINEAR), np.float32)


def round_mask(shape: tuple[int, int], radius: float, soft: float = 2.0) -> Image:
    y, x = np.indices(shape, np.float32)
    away = np.hypot(y - shape[0] / 2, x - shape[1] / 2)
    return np.asarray(np.clip((radius - away) / soft, 0, 1), np.float32)


@pytest.mark.parametrize("shape", [(64, 64), (97, 61), (33, 150), (1, 5), (3, 3)])
def test_laplacian_with_a_full_mask_gives_the_face(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    frame, face = rng.uniform(0, 1, (2, *shape, 3)).astype(np.float32)
    np.testing.assert_allclose(blend.laplacian(frame, face, np.ones(shape, np.float32)), face, atol=1e-5)


@pytest.mark.parametrize("name", blend.TABLE)
def test_blends_of_the_frame_with_itself_are_the_frame(name: str) -> None:
    frame = textured(0, (96, 128), 8)
    np.testing.assert_allclose(blend.get(name)(frame, frame.copy(), round_mask((96, 128), 40)), frame, atol=1e-6)


def test_laplacian_fades_light_over_a_wide_seam_and_texture_over_a_narrow_one() -> None:
    shape, radius = (256, 256), 100
    mask, frame = round_mask(shape, radius), np.full((256, 256, 3), 0.5, np.float32)
    light = (blend.laplacian(frame, frame + np.float32(0.2), mask) - frame)[128, 128:, 0] / 0.2
    assert np.abs(np.diff(light)).max() < 0.08 and light[0] > 0.98  # feather's edge has steps of 0.5
    assert light[radius - 1] < 0.15 and ((light > 0.1) & (light < 0.9)).sum() > 15
    checks = np.where(np.indices(shape).sum(0) % 4 < 2, 0.1, -0.1).astype(np.float32)[..., None].repeat(3, 2)
    texture = (blend.laplacian(frame, frame + checks, mask) - frame)[128, 128:, 0] / checks[128, 128:, 0]
    assert texture[: radius - 3].min() > 0.95


def test_what_is_drawn_beyond_the_mask_hardly_shows() -> None:
    shape = (256, 256)
    mask, frame, face = round_mask(shape, 80, 8), textured(0, shape, 16), textured(1, shape, 16)
    wrong = face.copy()
    wrong[mask == 0] = 1
    apart = np.abs(blend.laplacian(frame, wrong, mask) - blend.laplacian(frame, face, mask))
    assert apart[mask > 0].mean() < 0.01 and apart[mask == 1].max() < 0.1


def test_laplacians_levels_come_in_by_degrees() -> None:
    shape = (256, 256)
    frame, face = textured(0, shape, 16), textured(1, shape, 16)
    results = [blend.laplacian(frame, face, round_mask(shape, radius, 6)) for radius in np.arange(50, 60, 0.5)]
    steps = [np.abs(after - before).mean() for before, after in pairwise(results)]
    assert max(steps) < 1.5 * np.median(steps)  # a level begins on the way, at a mask of 96 px


# ---------------------------------------------------------------- poisson


def solved(values: Image, inside: NDArray[np.bool_]) -> Image:
    """The equation of Laplace by a direct solver."""
    ys, xs = np.nonzero(inside)
    number = np.full(inside.shape, -1)
    number[ys, xs] = np.arange(len(ys))
    matrix, right = lil_array((len(ys), len(ys))), np.zeros((len(ys), 3))
    for i, (y, x) in enumerate(zip(ys, xs, strict=True)):
        around = [(y + dy, x + dx) for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))]
        around = [(j, k) for j, k in around if 0 <= j < len(inside) and 0 <= k < len(inside[0])]  # a free edge
        matrix[i, i] = len(around)
        for j, k in around:
            if inside[j, k]:
                matrix[i, number[j, k]] = -1
            else:
                right[i] += values[j, k]
    result = values.copy()
    result[ys, xs] = spsolve(matrix.tocsc(), right)
    return result


@pytest.mark.parametrize("case", ["face", "open", "odd", "two"])
def test_the_membrane_is_that_of_a_direct_solver(case: str) -> None:
    shape = (61, 83) if case == "odd" else (64, 64)
    inside = round_mask(shape, 26) > 0.5
    if case == "open":
        inside[:20, 20:40] = True  # up to the image's border
    if case == "two":
        inside[:, 30:34] = False
    values = textured(0, shape, 8) + 0.1 * textured(1, shape, 1)
    found, expected = blend.membrane(values, inside), solved(values, inside)
    np.testing.assert_array_equal(found[~inside], values[~inside])
    assert np.abs(found - expected).max() < 0.03 and np.abs(found - expected)[inside].mean() < 0.006


def test_more_cycles_come_closer(monkeypatch: pytest.MonkeyPatch) -> None:
    inside, values = round_mask((64, 64), 26) > 0.5, textured(0, (64, 64), 8)
    monkeypatch.setattr(blend, "CYCLES", 6)
    assert np.abs(blend.membrane(values, inside) - solved(values, inside)).max() < 1e-3


def test_poisson_takes_a_constant_offset_off() -> None:
    frame, mask = textured(0, (96, 128), 8), round_mask((96, 128), 40)
    moved = frame + np.array([0.1, -0.05, 0.02], np.float32)
    np.testing.assert_allclose(blend.poisson(frame, moved, mask), frame, atol=1e-4)


def test_poisson_keeps_the_gradients_of_the_face() -> None:
    shape = (128, 128)
    frame, face, mask = textured(0, shape, 32), textured(1, shape, 8), round_mask(shape, 45)
    mixed = blend.poisson(frame, face, mask)
    sharp = [cv2.filter2D(image, -1, blend.CROSS) - image for image in (mixed, face)]
    deep = cv2.erode(mask, np.ones((5, 5), np.uint8)) == 1
    assert np.abs(sharp[0] - sharp[1])[deep].max() < 0.005
    edge = (mask > 0) & (mask < 1)
    assert np.abs(mixed - frame)[edge].mean() < 0.1 * np.abs(face - frame)[edge].mean()


@pytest.mark.parametrize("radii", [(30, 10), (12, 28)])
def test_poisson_does_not_move_a_patch_whose_mask_is_off_centre(radii: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(40, 200, (90, 120, 3)).astype(np.uint8)
    crop = frame[20:68, 30:78].astype(np.float32) / np.float32(255) + np.float32(0.1)
    mask = full(0)
    cv2.ellipse(mask, (17, 29), (radii[0] // 2, radii[1] // 2), 20, 0, 360, (1,), -1)
    result = paste(frame, crop, mask, PLACE, blend.poisson)
    assert np.abs(result.astype(int) - frame).max() <= 1


@pytest.mark.parametrize("name", blend.TABLE)
def test_a_faint_mask_shows_the_face_faintly(name: str) -> None:
    frame, face, mask = textured(0, (96, 96), 32), textured(1, (96, 96), 4), round_mask((96, 96), 40)
    faint, strong = (blend.get(name)(frame, face, mask * np.float32(share)) - frame for share in (0.3, 1))
    assert np.corrcoef(faint[mask == 1].ravel(), strong[mask == 1].ravel())[0, 1] > 0.98
    assert np.abs(faint).mean() == pytest.approx(0.3 * np.abs(strong).mean(), rel=0.25)


@pytest.mark.parametrize("name", blend.TABLE)
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (5, 3), (7, 200)])
def test_slivers_of_a_face_do_no_harm(name: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    frame, face = rng.uniform(0, 1, (2, *shape, 3)).astype(np.float32)
    for mask in (rng.uniform(0, 1, shape), np.ones(shape), np.eye(*shape)):
        mixed = blend.get(name)(frame, face, mask.astype(np.float32))
        assert mixed.shape == frame.shape and np.isfinite(mixed).all() and np.abs(mixed).max() < 3


def test_an_unknown_name_is_told_what_was_meant() -> None:
    with pytest.raises(UsageError, match=r"merge\.blend: no blend called 'fether'; did you mean 'feather'\?"):
        blend.get("fether")
    assert [blend.get(name) for name in blend.TABLE] == list(blend.TABLE.values())
