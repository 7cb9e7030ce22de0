"""Linear light: what the code values of footage stand for, by its transfer function.

Convention: code values are RGB, full range, 0 to 65535; light is float32, 0 for black, and 1 is what the curve says.
Footage of ITU-R BT.709 and HLG is scene-linear (the light before the camera), PQ is the light of the display.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from faceswap.errors import UsageError

Numbers = NDArray[np.float64]

SRGB = 13  # of ITU-T H.273 on transfer characteristics
UNSAID = (0, 2)


@dataclass(frozen=True)
class Curve:
    """A transfer function, from a signal in [0, 1] to light."""

    says: str  # for people
    light: Callable[[Numbers], Numbers]
    nits: float | None = None  # cd/m2 of light 1, if that is known

    def table(self) -> NDArray[np.float32]:
        """(65536,) the light of each code value."""
        return self.light(np.arange(65536) / 65535).astype(np.float32)


def bt709(signal: Numbers) -> Numbers:
    """ITU-R BT.709-6, item 1.2, inverted; BT.601 and BT.2020 have the same function.

    With the constants of ITU-T H.273, which BT.709 rounds to 1.099 and 0.018: so there is no step.
    """
    a, b = 1.099296826809442, 0.018053968510807
    return np.where(signal < 4.5 * b, signal / 4.5, ((signal + a - 1) / a) ** (1 / 0.45))


def srgb(signal: Numbers) -> Numbers:
    """IEC 61966-2-1."""
    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)


def pq(signal: Numbers) -> Numbers:
    """ITU-R BT.2100-2, table 4, EOTF (SMPTE ST 2084), in units of 100 cd/m2."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    root = signal ** (1 / m2)
    return 100 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)


def hlg(signal: Numbers) -> Numbers:
    """ITU-R BT.2100-2, table 5, OETF inverted: 1 is the brightest the camera takes."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


_BT709 = Curve("scene-linear: ITU-R BT.709 OETF inverted, 1 is white", bt709)
CURVES = {  # by the numbers of ITU-T H.273
    1: _BT709,
    4: Curve("display-linear: gamma 2.2, 1 is white", lambda signal: signal**2.2),
    5: Curve("display-linear: gamma 2.8, 1 is white", lambda signal: signal**2.8),
    6: _BT709,
    8: Curve("linear as the footage", lambda signal: signal),
    SRGB: Curve("linear: IEC 61966-2-1 (sRGB), 1 is white", srgb),
    14: _BT709,
    15: _BT709,
    16: Curve("display-linear: ITU-R BT.2100 PQ EOTF, 1 is 100 cd/m2", pq, 100),
    18: Curve("scene-linear: ITU-R BT.2100 HLG OETF inverted, 1 is the brightest", hlg),
}

D65 = (0.3127, 0.329)
PRIMARIES = {  # x, y of red, green, blue, white; ITU-T H.273, table 2
    1: (0.64, 0.33, 0.3, 0.6, 0.15, 0.06, *D65),
    5: (0.64, 0.33, 0.29, 0.6, 0.15, 0.06, *D65),
    6: (0.63, 0.34, 0.31, 0.595, 0.155, 0.07, *D65),
    7: (0.63, 0.34, 0.31, 0.595, 0.155, 0.07, *D65),
    9: (0.708, 0.292, 0.17, 0.797, 0.131, 0.046, *D65),
    11: (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, 0.314, 0.351),
    12: (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, *D65),
}


def curve(transfer: int, name: str) -> Curve:
    """That of footage called `name`, which says `transfer` (BT.709 if it says nothing). `UsageError`: none of these."""
    found = _BT709 if transfer in UNSAID else CURVES.get(transfer)
    if found is None:
        raise UsageError(
            f"{name}: its transfer function is number {transfer} of ITU-T H.273, whose linear light is not known here; "
            "choose --format tiff, which keeps the footage's own values"
        )
    return found
