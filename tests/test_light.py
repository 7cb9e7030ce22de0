"""What code values stand for, against figures that standards and others publish."""

import numpy as np
import pytest
from skimage.color import rgb2xyz

from faceswap import light
from faceswap.errors import UsageError


@pytest.mark.parametrize(
    ("transfer", "signal", "linear"),
    [
        (1, 0.5, 0.25959),  # BT.709
        (1, 0.0405, 0.0405 / 4.5),
        (13, 0.5, 0.21404),  # sRGB
        (16, 0.5081, 1.0),  # 100 cd/m2: BT.2390, 5.3.1
        (16, 0.5807, 2.03),  # reference white of 203 cd/m2: BT.2408, table 1
        (16, 0.7518, 10.0),
        (16, 1.0, 100.0),
        (18, 0.5, 1 / 12),
        (18, 0.75, 0.26496),  # reference white: BT.2408, table 1
        (18, 1.0, 1.0),
        (4, 0.5, 0.5**2.2),
        (8, 0.3, 0.3),
    ],
)
def test_published_figures(transfer: int, signal: float, linear: float) -> None:
    assert light.CURVES[transfer].light(np.array([signal]))[0] == pytest.approx(linear, rel=1e-3)


def test_srgb_is_that_of_others() -> None:
    signal = np.linspace(0, 1, 257)
    luminance = rgb2xyz(np.repeat(signal[None, :, None], 3, 2))[0, :, 1]
    np.testing.assert_allclose(light.srgb(signal), luminance, atol=1e-5)


@pytest.mark.parametrize("transfer", light.CURVES)
def test_light_only_grows_and_has_no_step(transfer: int) -> None:
    curve = light.CURVES[transfer]
    table = curve.table().astype(np.float64)
    assert table.shape == (65536,) and table[0] == pytest.approx(0, abs=1e-9)
    assert table[-1] == pytest.approx(100 if curve.nits else 1, rel=1e-6)
    steps = np.diff(table)
    assert (steps >= 0).all() and steps.max() < table[-1] * 5e-4


def test_the_standards_forward_functions_lead_back() -> None:
    scene = np.linspace(0, 1, 1001)
    coded = np.where(scene < 0.018, 4.5 * scene, 1.099 * scene**0.45 - 0.099)  # BT.709, item 1.2
    np.testing.assert_allclose(light.bt709(coded), scene, atol=2e-4)
    a, b, c = 0.17883277, 1 - 4 * 0.17883277, 0.5 - 0.17883277 * np.log(4 * 0.17883277)  # BT.2100, table 5
    coded = np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)
    np.testing.assert_allclose(light.hlg(coded), scene, atol=1e-6)
    power = scene ** (2610 / 16384)  # BT.2100, table 4, of 10 000 cd/m2
    coded = ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)
    np.testing.assert_allclose(light.pq(coded), 100 * scene, atol=1e-6)


def test_footage_that_says_nothing_or_something_strange() -> None:
    assert light.curve(2, "a.mp4") is light.curve(0, "a.mp4") is light.curve(1, "a.mp4")
    with pytest.raises(UsageError, match=r"a\.mp4: its transfer function is number 9 .* choose --format tiff"):
        light.curve(9, "a.mp4")
