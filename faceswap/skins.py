"""What a synthetic actor's surfaces look like: skin, lips, brows, beard and hair as textures.

Convention: colours are linear RGB float32, (..., 3), 0 black and 1 white; sRGB only in the tables below. A texture
spans the head's template: columns go around it (`column_at`), rows go down it (`row_at`). Textures are pyramids: level
n has 1/2^n of the width, and a picture whose pixel is as large as four texels reads level 2.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from faceswap.heads import (
    BOTTOM_T,
    LONG,
    MOUTH_HALF,
    MOUTH_T,
    TOP_T,
    Array,
    Identity,
    azimuth_at,
    bell,
    brow_curve,
    hair_edge,
    lip_edges,
    pair,
    profile,
    smoothstep,
    spot,
    turn_at,
)

WIDTH, HEIGHT = 640, 576  # texels of level 0: 0.42 mm on the front of the face; divisible by 2^(LEVELS - 1)
LEVELS = 4
MM_PER_TEXEL = (TOP_T - BOTTOM_T) / HEIGHT
HAIR_WIDTH, HAIR_HEIGHT = 1024, 256
HAIR_LEVELS = 3
FACE_TOP = (27.0, 23.0)  # template t over which the face mask begins, above the brows' lower edge
FACE_BOTTOM = (-113.0, -110.0)  # and ends, under the chin
FACE_SIDE = (0.22, 0.30)  # cosine of azimuth over which it ends at the sides


def linear(colour: Any) -> Array:
    """sRGB 0 to 255 (..., 3) as linear light, with the plain exponent 2.2."""
    return np.power(np.asarray(colour, np.float32) / 255, np.float32(2.2))


SKIN = linear(
    [(222, 182, 160), (218, 174, 147), (216, 166, 135), (194, 140, 106), (152, 102, 73), (110, 71, 50), (72, 47, 36)]
)
HAIR = linear(
    [
        *[(24, 19, 17), (44, 29, 22), (78, 50, 32), (120, 78, 44)],  # black to brown
        *[(176, 132, 80), (205, 175, 120), (140, 62, 30), (150, 148, 146)],  # blond, red, grey
    ]
)
IRIS = linear([(58, 34, 18), (92, 56, 28), (110, 92, 48), (86, 112, 84), (88, 122, 148), (120, 142, 158)])


def along_table(table: Array, place: float) -> Array:
    """The colour (3,) at `place`, from 0 (first row of the table) to 1 (last)."""
    place = min(max(place, 0.0), 1.0) * (len(table) - 1)
    row = min(int(place), len(table) - 2)
    return np.asarray(table[row] + (table[row + 1] - table[row]) * np.float32(place - row))


def column_at(azimuth: Any) -> Array:
    """Texture column of an azimuth: the texture's left edge is -pi, its right edge pi, behind the head."""
    return (turn_at(azimuth) + 1) / 2 * WIDTH - 0.5


def row_at(t: Any) -> Array:
    """Texture row of a template height."""
    return (TOP_T - np.asarray(t)) / (TOP_T - BOTTOM_T) * HEIGHT - 0.5


def noise(rng: np.random.Generator, shape: tuple[int, int], cells: float, aspect: float = 1.0) -> Array:
    """Smooth noise (rows, columns) of about unit variance: `cells` nodes across and `cells * aspect` down."""
    nodes = rng.standard_normal((max(2, int(cells * aspect)), max(2, int(cells))), dtype=np.float32)
    return np.asarray(cv2.resize(nodes, shape[::-1], interpolation=cv2.INTER_CUBIC))


def pyramid(texture: Array, levels: int) -> list[Array]:
    """`texture` and its halvings, each texel the mean of four."""
    out: list[Array] = [np.ascontiguousarray(texture, np.float32)]
    for _ in range(levels - 1):
        height, width = out[-1].shape[:2]
        out.append(cv2.resize(out[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA))
    return out


def _texture_grid() -> tuple[Array, Array, Array]:
    """Template x (H, W), t (H, 1) and azimuth (1, W) of each texel's centre, float32."""
    azimuth = azimuth_at((np.arange(WIDTH) + 0.5) / WIDTH * 2 - 1)[None]
    t = (TOP_T - (np.arange(HEIGHT) + 0.5) / HEIGHT * (TOP_T - BOTTOM_T))[:, None]
    x = profile(t)[0] * np.sin(azimuth)
    return x.astype(np.float32), t.astype(np.float32), azimuth.astype(np.float32)


_X, _T, _AZIMUTH = _texture_grid()
_SIDE_X = np.abs(_X)
_FRONT = smoothstep(np.cos(_AZIMUTH), 0, 0.3)  # 1 on the face, 0 behind the ears
_SHAPE = (HEIGHT, WIDTH)
_Blob = Callable[[Array, Array, tuple[float, float], tuple[float, float]], Array]


def _patch(kind: _Blob, centre: tuple[float, float], sigma: tuple[float, float]) -> tuple[slice, Array]:
    """The rows that a blob touches and its heights there: a small part of the texture, most of the time."""
    top, bottom = row_at(centre[1] + 4 * sigma[1]), row_at(centre[1] - 4 * sigma[1])
    rows = slice(max(int(top), 0), min(int(bottom) + 2, HEIGHT))
    return rows, kind(_X[rows], _T[rows], centre, sigma)


def _dab(texture: Array, strength: float, kind: _Blob, centre: tuple[float, float], sigma: tuple[float, float]) -> None:
    """Add a blob to `texture` in place."""
    rows, heights = _patch(kind, centre, sigma)
    texture[rows] += strength * heights


class Skin:
    """One person's textures.

    `surface`: pyramid of (H, W, 4): albedo and gloss. `detail`: pyramid of (H, W, 3): how much a texel belongs to the
    face, and the slopes of the fine relief along columns and rows. `hair_colour`, a pyramid of (H, W, 3), and
    `hair_opacity` (H, W) are the hair's: columns around the head, rows from crown to tips.
    """

    def __init__(self, who: Identity) -> None:
        self.who = who
        self.tone = along_table(SKIN, who.melanin)
        self.hair_tone = along_table(HAIR, who.hair_tone)
        rng = np.random.default_rng(who.skin_seed)
        albedo = self._complexion(rng)
        lips = self._lips(rng, albedo)
        self._folds(albedo)
        beard = self._beard(rng, albedo, lips)
        brows = self._brows(rng, albedo)
        scalp = self._scalp(rng, albedo)
        gloss = self._gloss(rng, lips, beard, scalp)
        surface = np.dstack([np.clip(albedo, 0.002, 1), gloss])
        detail = np.dstack([self._face(scalp), *self._slopes(rng, lips, brows, beard)])
        self.surface = pyramid(surface, LEVELS)
        self.detail = pyramid(detail, LEVELS)
        colour, opacity = self._hair()
        self.hair_colour = pyramid(colour, HAIR_LEVELS)
        self.hair_opacity = opacity
        self.opaque_rows = float((opacity > 0.98).all(1).argmin()) - 2  # texture rows above are opaque

    def _complexion(self, rng: np.random.Generator) -> Array:
        """Bare skin (H, W, 3): tone, blush, blotches, pores, shaded eyes, freckles and moles."""
        who = self.who
        blush = 0.04 * noise(rng, _SHAPE, 14, 0.9) + 0.03 * noise(rng, _SHAPE, 40, 0.9)
        _dab(blush, 0.20 * who.ruddiness, pair, (42, -32), (14, 13))
        _dab(blush, 0.16 * who.ruddiness, spot, (0, -40), (12, 8))
        _dab(blush, 0.07 * who.ruddiness, spot, (0, -97), (16, 9))
        _dab(blush, 0.10, pair, (44, 0), (5, 5))
        light = 1 + 0.035 * noise(rng, _SHAPE, 9, 0.9) + 0.03 * noise(rng, _SHAPE, 60, 0.9)
        light += 0.025 * noise(rng, _SHAPE, 250, 0.9)
        _dab(light, -0.13 * (0.5 + 0.8 * max(who.age, 0)), pair, (28, -11), (11, 5))  # under the eyes
        _dab(light, -0.10, pair, (31, 5), (15, 6))
        _dab(light, 0.05, spot, (0, 45), (35, 16))
        _dab(light, -0.05 * who.melanin, spot, (0, MOUTH_T), (30, 18))
        albedo = self.tone * light[..., None] * np.dstack([1 + 0.35 * blush, 1 - 0.85 * blush, 1 - 0.75 * blush])
        if who.freckles > 0:
            rows, cheeks = _patch(pair, (30, -22), (22, 14))
            dots = smoothstep(noise(rng, _SHAPE, 190, 0.9)[rows], 1.5, 2.1) * cheeks
            strength = 0.45 * who.freckles * (1 - who.melanin)
            albedo[rows] *= 1 - (strength * dots)[..., None] * np.array([0.6, 0.9, 1.0], np.float32)
        for _ in range(rng.integers(0, 4)):
            where = (float(rng.uniform(-50, 50)), float(rng.uniform(-95, 40)))
            rows, mole = _patch(spot, where, (0.8, 0.8))
            albedo[rows] *= 1 - (0.7 * mole * _FRONT)[..., None]
        return np.asarray(albedo)

    def _lips(self, rng: np.random.Generator, albedo: Array) -> Array:
        """Paint the lips into `albedo`; returns where they are (H, W)."""
        who = self.who
        upper, lower = (edge.astype(np.float32) for edge in lip_edges(_X, who))
        above = _T - MOUTH_T
        lips = smoothstep(upper - above, -0.7, 0.9) * smoothstep(above + lower, -0.7, 1.2)
        lips = lips * (_SIDE_X < MOUTH_HALF) * _FRONT
        red = 0.35 * who.lip_redness
        tint = np.array([0.84, 0.50, 0.49]) * (1 - red) + np.array([0.95, 0.30, 0.34]) * red
        colour = (self.tone * tint * (1 - 0.10 * who.melanin)).astype(np.float32)
        furrows = 1 + 0.03 * noise(rng, _SHAPE, 260, 0.1)
        albedo += (colour * furrows[..., None] - albedo) * (0.88 * lips)[..., None]
        across = np.sqrt(np.clip(1 - (_X / MOUTH_HALF) ** 2, 0, 1))
        line = 0.62 * bell(above, 0.75) * across * _FRONT
        line += 0.30 * pair(_X, _T, (26, MOUTH_T - 0.5), (2.4, 1.8)) * _FRONT
        albedo *= 1 - line[..., None]
        return np.asarray(lips)

    def _folds(self, albedo: Array) -> None:
        """Nostrils, the folds beside the mouth and the lines of the forehead."""
        who, age = self.who, max(self.who.age, 0)
        outward = _SIDE_X - 7.2 * (1 + 0.6 * who.nose_width)
        nostril = np.hypot(outward / 3.7, (_T + 47.0 - 0.16 * outward) / 1.7)
        dark = 0.80 * smoothstep(nostril, 1.3, 0.6) * _FRONT
        fold = (_SIDE_X - 18 + (44 + _T) * 0.55) / 1.6
        dark += (0.06 + 0.16 * age) * bell(fold, 1) * smoothstep(_T, -72, -62) * smoothstep(_T, -39, -46) * _FRONT
        dark += 0.14 * age * self._wrinkles(1.0)
        albedo *= 1 - dark[..., None]

    def _wrinkles(self, width: float) -> Array:
        """Three lines (H, W) across the forehead, `width` mm wide."""
        waves = 2 * np.cos(_X / 14)
        lines = sum(bell(_T - height - waves, width) for height in (38, 46, 54))
        return np.asarray(lines * smoothstep(_SIDE_X, 45, 25) * _FRONT)

    def _beard(self, rng: np.random.Generator, albedo: Array, lips: Array) -> Array:
        """Paint the beard; returns its cover (H, W)."""
        who = self.who
        if who.beard <= 0:
            return np.zeros(_SHAPE, np.float32)
        edge = np.interp(_SIDE_X, [0, 20, 28, 40, 55, 75], [-74, -74, -66, -58, -38, -5]).astype(np.float32)
        cover = smoothstep(edge - _T + 3 * noise(rng, _SHAPE, 30, 0.9), -3, 7)
        cover *= 1 - 0.9 * smoothstep(np.hypot(_X / 12, (_T + 79) / 4), 1.2, 0.6) * (_SIDE_X > 5)
        over_lip = smoothstep(np.abs(_T + 56.5 + 0.010 * _X * _X), 8, 4) * smoothstep(_SIDE_X, 34, 26)
        cover = np.maximum(cover, who.moustache * over_lip * smoothstep(_T - MOUTH_T, 1, 4))
        cover *= (1 - lips) * smoothstep(np.cos(_AZIMUTH), -0.1, 0.2)
        grain = np.clip(0.65 + 0.3 * noise(rng, _SHAPE, 330, 0.8) + 0.2 * noise(rng, _SHAPE, 120, 0.5), 0, 1.2)
        cover = np.clip(cover * (0.25 + 0.7 * who.beard) * grain, 0, 0.93)
        albedo += (self._brow_colour() * (0.8 + 0.5 * grain[..., None]) - albedo) * cover[..., None]
        return np.asarray(cover)

    def _brow_colour(self) -> Array:
        return np.minimum(along_table(HAIR, self.who.brow_tone), self.tone * 0.5)

    def _brows(self, rng: np.random.Generator, albedo: Array) -> Array:
        """Paint the brows, a few hundred strokes; returns their cover (H, W)."""
        who, bits = self.who, 4  # fractional bits of cv2's coordinates
        count = int(240 * (0.5 + 0.6 * who.brow_thickness))
        # Strokes are drawn on the brows' part of the texture, twice as fine.
        top, bottom = int(row_at(50)), int(row_at(0))
        canvas = np.zeros((2 * (bottom - top), 2 * WIDTH), np.float32)
        for side in (-1, 1):
            along = rng.uniform(0, 1, count) ** 0.9
            width = 3.6 * who.brow_thickness * (1 - 0.75 * along**2.2) * (0.75 + 0.5 * np.minimum(along * 6, 1))
            x, t = brow_curve(along, who)
            t = t + rng.normal(size=count) * 0.42 * width
            angle = np.radians(72 - 75 * np.minimum(1, along * 1.6) + rng.normal(size=count) * 10 - (t - 20) * 3)
            length = rng.uniform(3, 6, count)
            darkness = rng.uniform(0.35, 0.8, count)
            ends = []
            for end_x, end_t in ((x, t), (x + length * np.cos(angle), t + 0.6 * length * np.sin(angle))):
                azimuth = np.arcsin(np.clip(side * end_x / profile(end_t)[0], -1, 1))
                place = np.stack([column_at(azimuth) + 0.5, row_at(end_t) + 0.5 - top], -1) * 2 - 0.5
                ends.append((place * 2**bits).astype(int).tolist())
            for start, end, dark in zip(*ends, darkness.tolist(), strict=True):
                cv2.line(canvas, start, end, (dark,), 1, cv2.LINE_AA, bits)
        strokes = cv2.resize(cv2.GaussianBlur(canvas, (0, 0), 0.8), (WIDTH, bottom - top), interpolation=cv2.INTER_AREA)
        cover = np.zeros(_SHAPE, np.float32)
        cover[top:bottom] = np.clip(2.2 * strokes + 0.9 * cv2.GaussianBlur(strokes, (0, 0), 2.1), 0, 0.92)
        albedo += (0.8 * self._brow_colour() - albedo) * cover[..., None]
        return cover

    def _scalp(self, rng: np.random.Generator, albedo: Array) -> Array:
        """Paint the roots of the hair; returns how much of the skin is scalp (H, W)."""
        above = _T - hair_edge(_AZIMUTH, self.who, to_the_tips=False).astype(np.float32)
        if self.who.hair_length > 0:
            cover, most = smoothstep(above + 2.5 * noise(rng, _SHAPE, 90, 0.3), -2, 9), 0.95
        else:
            cover, most = 0.25 * smoothstep(above + 3 * noise(rng, _SHAPE, 40, 0.9), -6, 14), 0.6
        strands = np.clip(1 + 0.22 * noise(rng, _SHAPE, 300, 0.04) + 0.12 * noise(rng, _SHAPE, 90, 0.05), 0.4, 1.7)
        albedo += (0.8 * self.hair_tone * strands[..., None] - albedo) * (most * cover)[..., None]
        return np.asarray(cover)

    def _gloss(self, rng: np.random.Generator, lips: Array, beard: Array, scalp: Array) -> Array:
        gloss = 0.55 + 0.12 * noise(rng, _SHAPE, 200, 0.9)
        _dab(gloss, 0.50, spot, (0, -38), (9, 9))
        _dab(gloss, 0.35, spot, (0, 42), (32, 18))
        _dab(gloss, 0.25, pair, (42, -18), (12, 8))
        return np.clip(gloss * (1 - 0.7 * beard) * (1 - 0.8 * scalp) + 0.55 * lips, 0, 1.5)

    def _face(self, scalp: Array) -> Array:
        """What the mask of the face covers: brows to chin, without hair."""
        sides = smoothstep(np.cos(_AZIMUTH), *FACE_SIDE)
        return np.asarray(smoothstep(_T, *FACE_TOP) * smoothstep(_T, *FACE_BOTTOM) * sides * (1 - scalp))

    def _slopes(self, rng: np.random.Generator, lips: Array, brows: Array, beard: Array) -> tuple[Array, Array]:
        """Fine relief as slopes along columns and rows: pores, the lips' furrows, hairs and wrinkles."""
        height: Array = 0.035 * noise(rng, _SHAPE, 250, 0.9) + 0.035 * noise(rng, _SHAPE, 120, 0.9)
        height += 0.18 * lips * noise(rng, _SHAPE, 200, 0.1)
        height += (0.5 * brows + 0.5 * beard) * noise(rng, _SHAPE, 300, 0.6)
        height -= 0.8 * max(self.who.age, 0) * self._wrinkles(1.3)
        height = cv2.GaussianBlur(height.astype(np.float32), (0, 0), 0.7)
        strength = 0.18 * _FRONT
        return strength * cv2.Sobel(height, -1, 1, 0), strength * cv2.Sobel(height, -1, 0, 1)

    def _hair(self) -> tuple[Array, Array]:
        """Colour (H, W, 3) and opacity (H, W) of the strands, from the crown (row 0) to their ends."""
        who, shape = self.who, (HAIR_HEIGHT, HAIR_WIDTH)
        rng = np.random.default_rng((who.hair_seed, 1))
        strands = 0.5 * noise(rng, shape, 420, 0.022) + 0.5 * noise(rng, shape, 160, 0.03)
        strands += 0.5 * noise(rng, shape, 50, 0.05)
        colour = np.clip(self.hair_tone * np.clip(1 + 0.38 * strands, 0.25, 2)[..., None], 0, 1)
        ragged = 0.05 + 0.10 * np.abs(noise(rng, (1, HAIR_WIDTH), 300)) + 0.06 * np.abs(noise(rng, (1, HAIR_WIDTH), 60))
        length = 1 - ragged * (1 - 0.5 * who.bangs) * (0.45 if who.hair_length > LONG else 1)
        down = np.linspace(0, 1, HAIR_HEIGHT)[:, None]
        opacity = smoothstep(length - down, -0.015, 0.05 + 0.10 * (1 - who.bangs))
        return colour, np.asarray(opacity, np.float32)


def iris_colour(who: Identity) -> Array:
    """Linear RGB (3,) of the iris's middle."""
    return along_table(IRIS, who.iris)
