"""Tests of faceswap.blend: the face lies where the mask says, the rest of the frame stays."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from faceswap import align, blend
from faceswap.errors import UsageError
from faceswap.masks import face_mask

SIZE = 48
PLACE = np.array([[1.0, 0, -30], [0, 1, -20]])  # the crop lies at x 30 to 77, y 20 to 67, pixel on pixel
TURNED = np.array([[1.1, -0.4, -20], [0.4, 1.1, -50]])


@pytest.fixture
def frame() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


@pytest.fixture
def face() -> NDArray[np.float32]:
    return np.random.default_rng(1).uniform(0, 1, (SIZE, SIZE, 3)).astype(np.float32)


def full(value: float) -> NDArray[np.float32]:
    return np.full((SIZE, SIZE), value, np.float32)


@pytest.mark.parametrize("matrix", [PLACE, TURNED])
def test_mask_0_leaves_the_frame_bit_for_bit(
    frame: NDArray[np.uint8], face: NDArray[np.float32], matrix: align.Matrix
) -> None:
    before = frame.copy()
    result = blend.paste(frame, face, full(0), matrix, blend.feather)
    np.testing.assert_array_equal(result, before)
    assert result.dtype == np.uint8


def test_no_blend_reaches_beyond_the_mask(frame: NDArray[np.uint8], face: NDArray[np.float32]) -> None:
    result = blend.paste(frame, face, full(0), PLACE, lambda frame, face, mask: face)
    np.testing.assert_array_equal(result, frame)


def test_mask_1_gives_the_face(frame: NDArray[np.uint8], face: NDArray[np.float32]) -> None:
    before = frame.copy()
    result = blend.paste(frame, face, full(1), PLACE, blend.feather)
    np.testing.assert_array_equal(result[20:68, 30:78], np.round(face * 255).astype(np.uint8))
    rest = np.ones(frame.shape[:2], bool)
    rest[20:68, 30:78] = False
    np.testing.assert_array_equal(result[rest], before[rest])
    np.testing.assert_array_equal(frame, before)


def test_half_a_mask_gives_the_mean(frame: NDArray[np.uint8], face: NDArray[np.float32]) -> None:
    result = blend.paste(frame, face, full(0.5), PLACE, blend.feather)[20:68, 30:78]
    assert np.abs(result - (frame[20:68, 30:78] / 2 + face * 127.5)).max() <= 0.51


def test_only_the_pixels_under_the_mask_change(frame: NDArray[np.uint8], face: NDArray[np.float32]) -> None:
    mask = face_mask(align.TEMPLATE * SIZE, SIZE)
    changed = (blend.paste(frame, face, mask, PLACE, blend.feather) != frame).any(2)
    assert not changed[20:68, 30:78][mask == 0].any()
    assert changed[20:68, 30:78][mask == 1].mean() > 0.95


def test_a_turned_face_touches_its_region_only(frame: NDArray[np.uint8], face: NDArray[np.float32]) -> None:
    where = align.region(TURNED, SIZE, frame.shape)
    assert where is not None
    changed = (blend.paste(frame, face, full(1), TURNED, blend.feather) != frame).any(2)
    x0, y0, x1, y1 = where
    assert changed[y0:y1, x0:x1].sum() == changed.sum() > 0.9 * SIZE**2 / align.scale_of(TURNED) ** 2


@pytest.mark.parametrize(("x", "y"), [(-20, -30), (100, 70), (-10, 60), (40, -47)])
def test_a_face_partly_outside_shows_its_part(
    frame: NDArray[np.uint8], face: NDArray[np.float32], x: int, y: int
) -> None:
    result = blend.paste(frame, face, full(1), np.array([[1.0, 0, -x], [0, 1, -y]]), blend.feather)
    expected = np.pad(frame, ((100, 100), (100, 100), (0, 0)))
    expected[y + 100 : y + 100 + SIZE, x + 100 : x + 100 + SIZE] = np.round(face * 255)
    np.testing.assert_array_equal(result, expected[100:190, 100:220])


@pytest.mark.parametrize(("x", "y"), [(-60, 20), (130, 20), (20, -60), (20, 100)])
def test_a_face_outside_the_frame_changes_nothing(
    frame: NDArray[np.uint8], face: NDArray[np.float32], x: int, y: int
) -> None:
    result = blend.paste(frame, face, full(1), np.array([[1.0, 0, -x], [0, 1, -y]]), blend.feather)
    np.testing.assert_array_equal(result, frame)


def test_a_face_cut_from_its_frame_goes_back_unseen() -> None:
    x, y = np.meshgrid(np.linspace(0, 1, 120), np.linspace(0, 1, 90))
    frame = (255 * np.stack([x, y, (x + y) / 2], 2)).round().astype(np.uint8)
    crop = align.crop(frame, TURNED, SIZE).astype(np.float32) / np.float32(255)
    mask = blend.soften(full(1), 0.05, 0.02)
    result = blend.paste(frame, crop, mask, TURNED, blend.feather)
    assert np.abs(result.astype(int) - frame).max() <= 2


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


def test_an_unknown_name_is_told_what_was_meant() -> None:
    with pytest.raises(UsageError, match=r"merge\.blend: no blend called 'fether'; did you mean 'feather'\?"):
        blend.get("fether")
    assert blend.get("feather") is blend.feather
